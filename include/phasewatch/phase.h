/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * phasewatch/phase.h - the shared map `pw_phases`, for whoever declares phases.
 *
 * The map is a BPF hash, pinned at /sys/fs/bpf/phasewatch/pw_phases. Its layout is stable: fields
 * are never moved, only `reserved` space is given meaning. All integers are in host byte order.
 * Any language's BPF library, or plain `bpftool map update`, can write it; what is written takes
 * effect at the next connection. Zero is a valid "not known" in each field but `phase`.
 *
 *   key   (16 bytes)   0 kind        u32   PW_KIND_PROCESS or PW_KIND_CGROUP
 *                      4 reserved    u32   0
 *                      8 id          u64   tgid in the initial pid namespace, or cgroup v2 id
 *   value (128 bytes)  0 phase       u32   enum pw_phase
 *                      4 source      u32   enum pw_source; who writes the map itself leaves 0
 *                      8 epoch       u64   generation of the subject's life cycle, from 1 to
 *                                              PW_EPOCH_MAX
 *                     16 since_ns    u64   CLOCK_BOOTTIME ns when `phase` was entered
 *                     24 start_ns    u64   CLOCK_BOOTTIME ns when the process started
 *                     32 by_uid      u32   who declared it
 *                     36 by_pid      u32
 *                     40 entered_ns  u64 x 4   when INIT, ACTIVE, DRAIN, SHUTDOWN of this epoch
 *                                              were entered; 0: not (yet), or not known
 *                     72 reason      char x 56  text, ends with NUL
 *
 * start_ns guards against pid reuse: a declaration whose start_ns is neither 0 nor the process's is
 * nobody's. Both are compared in units of PW_START_UNIT_NS, because /proc/PID/stat shows no more:
 * write field 22 times 1e9 / sysconf(_SC_CLK_TCK).
 */
#ifndef PHASEWATCH_PHASE_H
#define PHASEWATCH_PHASE_H

#ifndef __VMLINUX_H__
#include <linux/types.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define PW_PIN_DIR "/sys/fs/bpf/phasewatch"
#define PW_START_UNIT_NS 10000000ULL
#define PW_REASON_LEN 56
#define PW_EPOCH_MAX 0x7fffffffffffffffULL

enum pw_phase {
	PW_UNDECLARED = 0,
	PW_INIT = 1,
	PW_ACTIVE = 2,
	PW_DRAIN = 3,
	PW_SHUTDOWN = 4,
	PW_PHASES,
};

enum pw_kind {
	PW_KIND_PROCESS = 1,
	PW_KIND_CGROUP = 2,
};

enum pw_source {
	PW_SOURCE_MAP = 0,
	PW_SOURCE_API = 1,
	PW_SOURCE_SDNOTIFY = 2,
	PW_SOURCE_SIGNAL = 3,
	PW_SOURCE_KUBERNETES = 4,
	PW_SOURCE_LISTEN = 5, /* it listens: see 'phasewatch run --auto' and 'phasewatch exec' */
	PW_SOURCES,
};

struct pw_subject_key {
	__u32 kind;
	__u32 reserved;
	__u64 id;
};

struct pw_declaration {
	__u32 phase;
	__u32 source;
	__u64 epoch;
	__u64 since_ns;
	__u64 start_ns;
	__u32 by_uid;
	__u32 by_pid;
	__u64 entered_ns[PW_PHASES - 1];
	char reason[PW_REASON_LEN];
};

#ifdef __cplusplus
static_assert(sizeof(struct pw_subject_key) == 16, "pw_subject_key is 16 bytes");
static_assert(sizeof(struct pw_declaration) == 128, "pw_declaration is 128 bytes");
}
#else
_Static_assert(sizeof(struct pw_subject_key) == 16, "pw_subject_key is 16 bytes");
_Static_assert(sizeof(struct pw_declaration) == 128, "pw_declaration is 128 bytes");
#endif

#endif /* PHASEWATCH_PHASE_H */
