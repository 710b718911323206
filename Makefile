# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#
#   make demo    installs what it lacks, builds, and shows the main job on HAProxy and nginx
#   make test    the same, and runs all tests
#   make build   builds build/phasewatch and the client library only
#   make test-kernels [KERNELS="5.10 6.1 ..."]   boots Debian kernels under QEMU and tests there
#   make install PREFIX=/usr/local

VERSION := 0.1.0
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
B := build

CC := gcc
CLANG ?= clang
PKG_CONFIG ?= pkg-config
# Debian keeps it in sbin, which is not on every user's PATH.
BPFTOOL ?= $(or $(shell command -v bpftool),/usr/sbin/bpftool)

PACKAGES := libbpf libevent jansson libprotobuf-c
CFLAGS ?= -O2 -g
WARNINGS := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wno-unused-parameter \
	-Wno-missing-field-initializers
INCLUDES := -I. -Iinclude -Iuser -I$(B) -I$(B)/proto
ALL_CFLAGS = -std=gnu11 -D_GNU_SOURCE -DPW_VERSION='"$(VERSION)"' $(WARNINGS) $(INCLUDES) \
	$(shell $(PKG_CONFIG) --cflags $(PACKAGES)) $(CFLAGS)
LIBS = $(shell $(PKG_CONFIG) --libs $(PACKAGES)) -lelf -lz
# What services link with: libc only, and no names but its own.
LIB := libphasewatch
LIB_SO := $(LIB).so.0
LIB_CFLAGS = -std=c11 -D_GNU_SOURCE -fPIC $(WARNINGS) -Iinclude -Iuser $(CFLAGS)

# The instruction set of 5.10: v3 without the atomics that are used only where the hook needs 6.3.
BPF_CFLAGS := -g -O2 -target bpf -mcpu=v3 -Wall -Wextra -Werror -Wno-unused-parameter \
	-I/usr/include/$(shell $(CC) -print-multiarch) -Ivmlinux -Iinclude -Ibpf

# The maps' definitions first: libbpf 1.1 does not resolve them against externs it met before.
BPF_OBJECTS := $(patsubst %.c,$(B)/%.o,bpf/maps.bpf.c $(filter-out bpf/maps.bpf.c,$(wildcard bpf/*.bpf.c)))
PROTO := $(patsubst proto/%.proto,$(B)/proto/%.pb-c,$(shell find proto -name '*.proto'))
OBJECTS := $(patsubst %.c,$(B)/%.o,$(wildcard user/*.c)) $(PROTO:=.o)
UNIT_TESTS := $(patsubst %.c,$(B)/%,$(wildcard tests/unit/test_*.c))
TEST_SERVERS := $(B)/tests/uring $(B)/tests/load

.PHONY: demo test test-kernels build lib unit servers install clean
.DELETE_ON_ERROR:

demo:
	@tools/deps build demo
	@$(MAKE) --no-print-directory -s build
	@tools/demo

test-kernels: build
	@tests/kernels/run $(KERNELS)

test:
	@tools/deps build test
	@$(MAKE) --no-print-directory -s build unit servers
	@tests/run

build: $(B)/phasewatch lib

$(B)/phasewatch: $(OBJECTS)
	$(CC) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

$(B)/user/%.o: user/%.c $(B)/pw.skel.h $(PROTO:=.h) | $(B)/user
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

$(B)/user/page.o: user/status.html

# All at once: they include each other.
$(PROTO:=.c) $(PROTO:=.h) &: $(shell find proto -name '*.proto')
	@mkdir -p $(B)/proto
	protoc-c --c_out=$(B)/proto -Iproto $^

$(B)/proto/%.pb-c.o: $(B)/proto/%.pb-c.c $(PROTO:=.h)
	$(CC) $(ALL_CFLAGS) -c -o $@ $<

$(B)/pw.skel.h: $(B)/pw.bpf.o
	$(BPFTOOL) gen skeleton $< name pw_bpf > $@

$(B)/pw.bpf.o: $(BPF_OBJECTS)
	$(BPFTOOL) gen object $@ $^

$(B)/bpf/%.o: bpf/%.c | $(B)/bpf
	$(CLANG) $(BPF_CFLAGS) -MMD -MP -c -o $@ $<

lib: $(B)/$(LIB).a $(B)/$(LIB_SO)

$(B)/$(LIB).a: $(B)/lib/client.o
	rm -f $@
	$(AR) rcs $@ $^

$(B)/$(LIB_SO): $(B)/lib/client.o lib/exports.map
	$(CC) -shared -Wl,-soname,$(LIB_SO) -Wl,--version-script=lib/exports.map -Wl,-z,defs \
		$(CFLAGS) $(LDFLAGS) -o $@ $<

$(B)/lib/%.o: lib/%.c | $(B)/lib
	$(CC) $(LIB_CFLAGS) -MMD -MP -c -o $@ $<

unit: $(UNIT_TESTS)

# A unit test sees the whole program but its main(), and the client library.
$(B)/tests/unit/%: tests/unit/%.c $(filter-out $(B)/user/main.o,$(OBJECTS)) $(B)/lib/client.o \
		| $(B)/tests/unit
	$(CC) $(ALL_CFLAGS) -MMD -MP $(LDFLAGS) -o $@ $(filter %.c %.o,$^) $(LIBS) -lcmocka -lpthread

# Whom the live tests talk to.
servers: $(TEST_SERVERS)

$(B)/tests/%: tests/live/servers/%.c | $(B)/tests/unit
	$(CC) $(ALL_CFLAGS) -MMD -MP $(LDFLAGS) -o $@ $< -luring -ljansson

$(B)/user $(B)/bpf $(B)/lib $(B)/tests/unit:
	@mkdir -p $@

install: build
	install -D -m 755 $(B)/phasewatch $(DESTDIR)$(PREFIX)/bin/phasewatch
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/include/phasewatch include/phasewatch/*.h
	install -D -m 644 -t $(DESTDIR)$(LIBDIR) $(B)/$(LIB).a
	install -m 755 $(B)/$(LIB_SO) $(DESTDIR)$(LIBDIR)/$(LIB).so.$(VERSION)
	ln -sf $(LIB).so.$(VERSION) $(DESTDIR)$(LIBDIR)/$(LIB_SO)
	ln -sf $(LIB_SO) $(DESTDIR)$(LIBDIR)/$(LIB).so
	install -d $(DESTDIR)$(LIBDIR)/pkgconfig
	sed 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(LIBDIR)|; s|@VERSION@|$(VERSION)|' \
		lib/phasewatch.pc.in >$(DESTDIR)$(LIBDIR)/pkgconfig/phasewatch.pc

clean:
	rm -rf $(B)

-include $(wildcard $(B)/*/*.d $(B)/*/*/*.d)
