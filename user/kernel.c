// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <linux/magic.h>
#include <netinet/tcp.h>

#include "kernel.h"
#include "borrow.h"
#include "mounts.h"
#include "proc.h"
#include "pw.skel.h"
#include "util.h"

#define MEMBERS_OUT_MAX 65536

/*
 * What each program is for. `needs` is a name in the kernel's BTF, of a tracepoint's type or of the
 * function behind a helper; where it is missing, the program is not loaded. Where a required one
 * cannot be had, nothing starts.
 */
static const struct hook_spec {
	const char *program;
	const char *attaches_to;
	enum hook_kind kind;
	bool required;
	const char *needs;
	const char *serves;
	const char *without;
	bool trampoline; /* attaches by one, which some kernels refuse */
	/* a function that is to have so many parameters, for the variant that fits */
	const char *function;
	int params;
	const char *unless; /* a name in BTF that makes this one superfluous */
} specs[] = {
	{ "pw_sockops", "sockops", HOOK_CGROUP, true, NULL,
		"arrivals, listeners, connects and their results, exactly", "nothing works" },
	{ "pw_sock_release", "cgroup/sock_release", HOOK_CGROUP, true, NULL,
		"the last close; accepts that nothing else saw", "nothing works" },
	{ "pw_getpeername4", "cgroup/getpeername4", HOOK_CGROUP, true, NULL,
		"accept(), IPv4, exactly", "nothing works" },
	{ "pw_getpeername6", "cgroup/getpeername6", HOOK_CGROUP, true, NULL,
		"accept(), IPv6, exactly", "nothing works" },
	{ "pw_accept", "fexit/inet_csk_accept", HOOK_TRACING, false, "bpf_sk_storage_get_tracing",
		"accept() with a NULL address, at once",
		"such accepts are seen at the first read or write, at the latest at the close",
		true, "inet_csk_accept", 2 },
	{ "pw_accept_6_9", "fexit/inet_csk_accept", HOOK_TRACING, false,
		"bpf_sk_storage_get_tracing",
		"accept() with a NULL address, at once",
		"such accepts are seen at the first read or write, at the latest at the close",
		true, "inet_csk_accept", 4 },
	{ "pw_recv", "tp_btf/sock_recv_length", HOOK_ON_DEMAND, false, "btf_trace_sock_recv_length",
		"late requests; accept() with a NULL address, at the first read",
		"accepts with a NULL address are seen at the close" },
	{ "pw_recv_6_2", "tp_btf/tcp_rcv_space_adjust", HOOK_ON_DEMAND, false,
		"bpf_sk_storage_get_tracing", "late requests",
		"late requests are not seen", .unless = "btf_trace_sock_recv_length" },
	{ "pw_send", "tp_btf/sock_send_length", HOOK_ON_DEMAND, false,
		"btf_trace_sock_send_length", "accept() with a NULL address, at the first write",
		"accepts with a NULL address are seen at the close" },
	{ "pw_reset", "tp_btf/tcp_send_reset", HOOK_TRACING, false, "bpf_sk_storage_get_tracing",
		"connections dropped from an accept queue; refused connects, and requests after the close, from 6.10 on",
		"connections dropped from an accept queue are taken from its length" },
	{ "pw_reset4_6_9", "fentry/tcp_v4_send_reset", HOOK_TRACING, false, "tcp_v4_send_reset",
		"refused connects, and requests after the close, IPv4", "neither is seen",
		true, "btf_trace_tcp_send_reset", 3 },
	{ "pw_reset6_6_9", "fentry/tcp_v6_send_reset", HOOK_TRACING, false, "tcp_v6_send_reset",
		"refused connects, and requests after the close, IPv6", "neither is seen",
		true, "btf_trace_tcp_send_reset", 3 },
	{ "pw_signal", "tp_btf/signal_generate", HOOK_TRACING, false, "btf_trace_signal_generate",
		"phases by signals, and who asked a process to go",
		"signals declare nothing, and drain reports do not have them" },
	{ "pw_signal2", "tp_btf/signal_generate", HOOK_TRACING, false, "btf_trace_signal_generate",
		"the same, where 7.x skips the other", "the same" },
	{ "pw_process_fork", "tp_btf/sched_process_fork", HOOK_TRACING, true,
		"btf_trace_sched_process_fork", "new processes of a subject", "nothing works" },
	{ "pw_process_fork2", "tp_btf/sched_process_fork", HOOK_TRACING, true,
		"btf_trace_sched_process_fork", "the same, where 7.x skips the other",
		"nothing works" },
	{ "pw_process_exec", "tp_btf/sched_process_exec", HOOK_TRACING, false,
		"btf_trace_sched_process_exec", "programs' names",
		"the name of a program that was replaced is the old one's" },
	{ "pw_process_exit", "tp_btf/sched_process_exit", HOOK_TRACING, true,
		"btf_trace_sched_process_exit", "exit events", "nothing works" },
	{ "pw_process_exit2", "tp_btf/sched_process_exit", HOOK_TRACING, true,
		"btf_trace_sched_process_exit", "the same, where 7.x skips the other",
		"nothing works" },
	{ "pw_process_free", "tp_btf/sched_process_free", HOOK_TRACING, true,
		"btf_trace_sched_process_free", "the end of a membership", "nothing works" },
	{ "pw_adopt", "iter/task", HOOK_ITERATOR, true, NULL,
		"processes older than their subject's declaration", "nothing works" },
	{ "pw_snapshot", "iter/task_file", HOOK_ITERATOR, false, "bpf_sock_from_file",
		"sockets older than the declaration",
		"connections older than the declaration are not counted as in flight" },
	{ "pw_turns", "iter/bpf_sk_storage_map", HOOK_ITERATOR, false,
		"bpf_iter_bpf_sk_storage_map",
		"requests under way when a drain begins, on connections in an io_uring's table",
		"of such connections the first read after DRAIN is taken for a late request" },
	{ "pw_look", "iter/bpf_sk_storage_map", HOOK_ITERATOR, false,
		"bpf_iter_bpf_sk_storage_map",
		"connections in accept queues and being closed, counted when asked for",
		"in flight are only those that a process holds" },
};

_Static_assert(ARRAY_SIZE(specs) <= KERNEL_HOOKS_MAX, "room for every hook");

static int spec_index(const char *program)
{
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++)
		if (strcmp(specs[i].program, program) == 0)
			return i;
	abort();
}

struct kernel_private {
	struct pw_bpf *skel; /* NULL after a take-over */
	struct bpf_link *links[ARRAY_SIZE(specs)];
	int progs[ARRAY_SIZE(specs)]; /* of on-demand programs and iterators */
	int armed[ARRAY_SIZE(specs)]; /* link file descriptors, -1: not attached */
	int measured[ARRAY_SIZE(specs)]; /* programs of links */
	const void *ring; /* its positions */
	char *pin_dir;
	int lock;
	bool made_dir;
};

static int quiet(enum libbpf_print_level level, const char *fmt, va_list args)
{
	if (!getenv("PHASEWATCH_DEBUG"))
		return 0;
	return vfprintf(stderr, fmt, args);
}

static __u64 object_id(void)
{
	const unsigned char *data;
	__u64 hash = 0xcbf29ce484222325ULL; /* FNV-1a */
	size_t size, i;

	data = pw_bpf__elf_bytes(&size);
	for (i = 0; i < size; i++)
		hash = (hash ^ data[i]) * 0x100000001b3ULL;
	return hash;
}

/* ---- what this kernel allows ---- */

/*
 * Some kernels refuse trampolines although everything else loads, and only say so at the load. 0 or
 * a negative errno.
 */
static int probe_trampolines(const struct btf *btf)
{
	static const struct bpf_insn insns[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = BPF_TRACE_FEXIT);
	_cleanup_(closep) int prog = -1, link = -1;
	int id;

	id = btf__find_by_name_kind(btf, "inet_csk_accept", BTF_KIND_FUNC);
	if (id < 0)
		return id;
	opts.attach_btf_id = id;
	prog = bpf_prog_load(BPF_PROG_TYPE_TRACING, "pw_probe", "GPL", insns, ARRAY_SIZE(insns),
		&opts);
	if (prog < 0)
		return prog;
	/* arm64 before 6.4 loads it and refuses the attachment */
	link = bpf_raw_tracepoint_open(NULL, prog);
	return link < 0 ? link : 0;
}

/* Of a function, or of a tracepoint's type (btf_trace_NAME), whose first one is its context. */
static int count_params(const struct btf *btf, const char *name)
{
	int id = btf__find_by_name(btf, name);
	const struct btf_type *type = id < 0 ? NULL : btf__type_by_id(btf, id);

	while (type && !btf_is_func_proto(type))
		type = btf__type_by_id(btf, type->type);
	return type ? btf_vlen(type) : -ENOENT;
}

static void btf_freep(struct btf **btf)
{
	btf__free(*btf);
}

/* Nobody misses what another one does in its stead. */
static void supersede(struct kernel *k)
{
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++)
		for (size_t j = 0; j < ARRAY_SIZE(specs); j++)
			if (specs[i].unless && !k->hooks[i].error && specs[j].needs &&
				strcmp(specs[i].unless, specs[j].needs) == 0)
				k->hooks[j].superseded = true;
}

static int choose_programs(struct kernel *k, char *why, size_t len)
{
	struct kernel_private *p = k->private;
	_cleanup_(btf_freep) struct btf *btf = NULL;
	int trampolines;

	btf = btf__load_vmlinux_btf();
	if (!btf)
		return fail_with(why, len, -errno,
			"this kernel has no BTF (CONFIG_DEBUG_INFO_BTF), which CO-RE needs");
	trampolines = probe_trampolines(btf);
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		const struct hook_spec *s = &specs[i];
		struct bpf_program *prog;
		int err = s->trampoline ? trampolines : 0;

		if (s->needs && btf__find_by_name(btf, s->needs) < 0)
			err = -ENOENT;
		if ((s->function && count_params(btf, s->function) != s->params) ||
			(s->unless && btf__find_by_name(btf, s->unless) >= 0)) {
			err = -ENOENT;
			k->hooks[i].superseded = true;
		}
		if (err && s->required)
			return fail_with(why, len, err, "this kernel has no %s, which is needed for %s",
				s->attaches_to, s->serves);
		k->hooks[i].error = err;
		prog = bpf_object__find_program_by_name(p->skel->obj, s->program);
		bpf_program__set_autoload(prog, !err);
	}
	supersede(k);
	return 0;
}

/* ---- a fresh start ---- */

static const char *missing_rights(char *buf, size_t len)
{
	static const struct {
		int bit;
		const char *name;
	} needed[] = { { 39, "CAP_BPF" }, { 38, "CAP_PERFMON" }, { 12, "CAP_NET_ADMIN" } };
	_cleanup_(fclosep) FILE *f = fopen("/proc/self/status", "re");
	unsigned long long have = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "CapEff: %llx", &have) == 1)
			break;
	buf[0] = '\0';
	if (have >> 21 & 1) /* CAP_SYS_ADMIN stands for the first two */
		have |= 1ULL << 39 | 1ULL << 38;
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (!(have >> needed[i].bit & 1))
			snprintf(buf + strlen(buf), len - strlen(buf), "%s%s", *buf ? ", " : "",
				needed[i].name);
	return buf;
}

static int attach(struct kernel *k, char *why, size_t len)
{
	struct kernel_private *p = k->private;
	_cleanup_(closep) int cgroup = -1;

	cgroup = mounts_open_cgroup2();
	if (cgroup < 0)
		return fail_with(why, len, cgroup, "cannot open the root of cgroup v2: %s",
			cgroup == -EXDEV ? "it is hidden by a cgroup namespace; run in the host's" :
					   strerror(-cgroup));
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		const struct hook_spec *s = &specs[i];
		struct bpf_program *prog;

		if (k->hooks[i].error)
			continue;
		prog = bpf_object__find_program_by_name(p->skel->obj, s->program);
		if (s->kind == HOOK_ON_DEMAND || s->kind == HOOK_ITERATOR) {
			p->progs[i] = fcntl(bpf_program__fd(prog), F_DUPFD_CLOEXEC, 3);
			continue;
		}
		p->links[i] = s->kind == HOOK_CGROUP ? bpf_program__attach_cgroup(prog, cgroup) :
						       bpf_program__attach(prog);
		if (p->links[i])
			continue;
		k->hooks[i].error = -errno;
		if (s->required)
			return fail_with(why, len, -errno, "cannot attach %s to %s: %s", s->program,
				s->attaches_to, strerror(errno));
	}
	return 0;
}

static int load(struct kernel *k, char *why, size_t len)
{
	struct kernel_private *p = k->private;
	char missing[64];
	int err;

	p->skel = pw_bpf__open();
	if (!p->skel)
		return fail_with(why, len, -errno, "cannot open the BPF object: %s", strerror(errno));
	missing_rights(missing, sizeof(missing));
	if (*missing)
		return fail_with(why, len, -EPERM,
			"not allowed to load BPF programs: missing %s; run it as root or with these capabilities",
			missing);
	err = choose_programs(k, why, len);
	if (err)
		return err;
	err = pw_bpf__load(p->skel);
	if (err)
		return fail_with(why, len, err,
			"the kernel refused the BPF programs: %s (PHASEWATCH_DEBUG=1 shows its log)",
			strerror(-err));
	malloc_trim(0); /* the kernel's BTF, some 10 MB, was there for the load only */
	k->phases = bpf_map__fd(p->skel->maps.pw_phases);
	k->members = bpf_map__fd(p->skel->maps.pw_members);
	k->stats = bpf_map__fd(p->skel->maps.pw_stats);
	k->tallies = bpf_map__fd(p->skel->maps.pw_tallies);
	k->workloads_fd = bpf_map__fd(p->skel->maps.pw_workloads);
	k->conns = bpf_map__fd(p->skel->maps.pw_conns);
	k->counters = bpf_map__fd(p->skel->maps.pw_counters);
	k->events = bpf_map__fd(p->skel->maps.pw_events);
	return attach(k, why, len);
}

static int map_control(struct kernel *k, int fd)
{
	void *page = mmap(NULL, sizeof(*k->control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (page == MAP_FAILED)
		return -errno;
	k->control = page;
	return 0;
}

#define WORKLOADS_SIZE ((1 + PW_WORKLOADS) * sizeof(struct pw_workload))
_Static_assert(sizeof(struct pw_workload) % 8 == 0, "elements of an array begin at multiples of 8");

static int map_workloads(struct kernel *k)
{
	void *pages = mmap(NULL, WORKLOADS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
		k->workloads_fd, 0);

	if (pages == MAP_FAILED)
		return -errno;
	k->workloads = pages;
	return 0;
}

static size_t page_size(void)
{
	return sysconf(_SC_PAGESIZE);
}

/* ---- what it costs ---- */

/* While it may still ask for programs by their ids. What cannot be had is not shown. */
static void measure(struct kernel *k)
{
	struct kernel_private *p = k->private;
	void *ring = mmap(NULL, 2 * page_size(), PROT_READ, MAP_SHARED, k->events, 0);

	p->ring = ring == MAP_FAILED ? NULL : ring;
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		struct bpf_link_info link = { 0 };
		__u32 len = sizeof(link);

		if (p->links[i] &&
			bpf_obj_get_info_by_fd(bpf_link__fd(p->links[i]), &link, &len) == 0)
			p->measured[i] = bpf_prog_get_fd_by_id(link.prog_id);
	}
}

size_t kernel_costs(const struct kernel *k, struct kernel_cost ret[KERNEL_HOOKS_MAX])
{
	const struct kernel_private *p = k->private;
	size_t n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		struct bpf_prog_info info = { 0 };
		__u32 len = sizeof(info);
		int fd = p->links[i] ? p->measured[i] : p->progs[i];

		if (!k->hooks[i].error && fd >= 0 && bpf_obj_get_info_by_fd(fd, &info, &len) == 0)
			ret[n++] = (struct kernel_cost){ specs[i].program, info.run_time_ns,
				info.run_cnt, info.recursion_misses };
	}
	return n;
}

/* The consumer's position is on the ring's first page, the producer's on the second. */
uint64_t kernel_ring_used(const struct kernel *k)
{
	const char *ring = k->private->ring;

	if (!ring)
		return 0;
	return __atomic_load_n((uint64_t *)(ring + page_size()), __ATOMIC_ACQUIRE) -
	       __atomic_load_n((uint64_t *)ring, __ATOMIC_ACQUIRE);
}

uint32_t kernel_map_capacity(int fd)
{
	struct bpf_map_info info = { 0 };
	__u32 len = sizeof(info);

	return bpf_obj_get_info_by_fd(fd, &info, &len) == 0 ? info.max_entries : 0;
}

/* ---- pins ---- */

static const struct {
	const char *name;
	size_t fd; /* its place in struct kernel */
} pinned_maps[] = {
	{ "pw_phases", offsetof(struct kernel, phases) },
	{ "pw_members", offsetof(struct kernel, members) },
	{ "pw_stats", offsetof(struct kernel, stats) },
	{ "pw_tallies", offsetof(struct kernel, tallies) },
	{ "pw_workloads", offsetof(struct kernel, workloads_fd) },
	{ "pw_conns", offsetof(struct kernel, conns) },
	{ "pw_counters", offsetof(struct kernel, counters) },
	{ "pw_events", offsetof(struct kernel, events) },
};

static int *map_fd(struct kernel *k, size_t i)
{
	return (int *)((char *)k + pinned_maps[i].fd);
}

static void pin_path(char *buf, size_t len, const char *dir, const char *sub, const char *name)
{
	snprintf(buf, len, "%s/%s%s%s", dir, sub, *sub ? "/" : "", name);
}

static int remove_entries(const char *dir, const char *sub, bool *removed)
{
	char path[PATH_MAX];
	struct dirent *e;
	DIR *d;

	pin_path(path, sizeof(path), dir, sub, "");
	d = opendir(path);
	if (!d)
		return errno == ENOENT ? 0 : -errno;
	while ((e = readdir(d))) {
		/* what is not ours stays */
		if (strncmp(e->d_name, "pw_", 3) != 0)
			continue;
		pin_path(path, sizeof(path), dir, sub, e->d_name);
		if (unlink(path) == 0)
			*removed = true;
	}
	closedir(d);
	if (*sub) {
		pin_path(path, sizeof(path), dir, sub, "");
		rmdir(path);
	}
	return 0;
}

static int remove_pins(const char *dir, bool *removed)
{
	int err = remove_entries(dir, "links", removed);

	if (!err)
		err = remove_entries(dir, "progs", removed);
	if (!err)
		err = remove_entries(dir, "", removed);
	return err;
}

static int lock_dir(const char *dir, char *why, size_t len)
{
	_cleanup_(closep) int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct statfs fs;

	if (fd < 0)
		return fail_with(why, len, -errno, "cannot open pin directory %s: %s", dir,
			strerror(errno));
	if (fstatfs(fd, &fs) < 0 || (unsigned long)fs.f_type != BPF_FS_MAGIC)
		return fail_with(why, len, -EINVAL,
			"pin directory %s is not on a BPF file system; choose one below /sys/fs/bpf",
			dir);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return fail_with(why, len, errno == EWOULDBLOCK ? -EBUSY : -errno,
			"another phasewatch daemon is running on %s", dir);
	return TAKE_FD(fd);
}

/* 0: taken over; -ENOENT: nothing there; -ESTALE: something else, or only part of it. */
static int take_over(struct kernel *k)
{
	struct kernel_private *p = k->private;
	_cleanup_(closep) int control = -1;
	char path[PATH_MAX];
	int err;

	pin_path(path, sizeof(path), p->pin_dir, "", "pw_control");
	control = bpf_obj_get(path);
	if (control < 0) {
		pin_path(path, sizeof(path), p->pin_dir, "", "pw_phases");
		return access(path, F_OK) == 0 ? -ESTALE : -ENOENT;
	}
	err = map_control(k, control);
	if (err)
		return -ESTALE;
	if (k->control->magic != PW_MAGIC || k->control->abi != PW_ABI ||
		k->control->object_id != object_id())
		return -ESTALE;
	for (size_t i = 0; i < ARRAY_SIZE(pinned_maps); i++) {
		pin_path(path, sizeof(path), p->pin_dir, "", pinned_maps[i].name);
		*map_fd(k, i) = bpf_obj_get(path);
		if (*map_fd(k, i) < 0)
			return -ESTALE;
	}
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		bool is_prog = specs[i].kind == HOOK_ON_DEMAND || specs[i].kind == HOOK_ITERATOR;

		pin_path(path, sizeof(path), p->pin_dir, is_prog ? "progs" : "links",
			specs[i].program);
		if (is_prog)
			p->progs[i] = bpf_obj_get(path);
		else
			p->links[i] = bpf_link__open(path);
		if (is_prog ? p->progs[i] >= 0 : p->links[i] != NULL)
			continue;
		k->hooks[i].error = -errno;
		/* it was told at the load */
		k->hooks[i].superseded = specs[i].trampoline || specs[i].unless;
		if (specs[i].required)
			return -ESTALE;
	}
	supersede(k);
	k->took_over = true;
	return 0;
}

static void drop_handles(struct kernel *k)
{
	struct kernel_private *p = k->private;

	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		bpf_link__destroy(p->links[i]);
		p->links[i] = NULL;
		closep(&p->progs[i]);
		p->progs[i] = -1;
		closep(&p->armed[i]);
		p->armed[i] = -1;
		closep(&p->measured[i]);
		p->measured[i] = -1;
		k->hooks[i].error = 0;
		k->hooks[i].superseded = false;
	}
	if (!p->skel)
		for (size_t i = 0; i < ARRAY_SIZE(pinned_maps); i++)
			closep(map_fd(k, i));
	for (size_t i = 0; i < ARRAY_SIZE(pinned_maps); i++)
		*map_fd(k, i) = -1;
	if (k->control)
		munmap(k->control, sizeof(*k->control));
	k->control = NULL;
	if (k->workloads)
		munmap(k->workloads, WORKLOADS_SIZE);
	k->workloads = NULL;
	if (p->ring)
		munmap((void *)p->ring, 2 * page_size());
	p->ring = NULL;
	pw_bpf__destroy(p->skel);
	p->skel = NULL;
}

static int open_pin_dir(struct kernel *k, const char *dir, char *why, size_t len)
{
	struct kernel_private *p = k->private;
	bool removed = false;
	int err;

	p->pin_dir = strdup(dir);
	if (!p->pin_dir)
		return fail_with(why, len, -ENOMEM, "out of memory");
	err = mounts_ensure_bpffs();
	if (err)
		return fail_with(why, len, err, "cannot mount the BPF file system on /sys/fs/bpf: %s",
			strerror(-err));
	if (mkdir(dir, 0755) == 0)
		p->made_dir = true;
	else if (errno != EEXIST)
		return fail_with(why, len, -errno, "cannot make pin directory %s: %s", dir,
			strerror(errno));
	p->lock = lock_dir(dir, why, len);
	if (p->lock < 0)
		return p->lock;

	err = take_over(k);
	if (err != -ESTALE)
		return 0;
	k->replaced = true;
	drop_handles(k);
	err = remove_pins(dir, &removed);
	if (err)
		return fail_with(why, len, err, "cannot remove the old pins in %s: %s", dir,
			strerror(-err));
	return 0;
}

int kernel_pin(struct kernel *k, char *why, size_t len)
{
	struct kernel_private *p = k->private;
	char path[PATH_MAX];
	int err = 0;

	if (k->took_over || !p->pin_dir)
		return 0;
	for (size_t i = 0; !err && i < ARRAY_SIZE(pinned_maps); i++) {
		pin_path(path, sizeof(path), p->pin_dir, "", pinned_maps[i].name);
		err = bpf_obj_pin(*map_fd(k, i), path);
	}
	pin_path(path, sizeof(path), p->pin_dir, "links", "");
	if (!err && mkdir(path, 0700) < 0)
		err = -errno;
	pin_path(path, sizeof(path), p->pin_dir, "progs", "");
	if (!err && mkdir(path, 0700) < 0)
		err = -errno;
	for (size_t i = 0; !err && i < ARRAY_SIZE(specs); i++) {
		if (k->hooks[i].error)
			continue;
		pin_path(path, sizeof(path), p->pin_dir, p->links[i] ? "links" : "progs",
			specs[i].program);
		err = p->links[i] ? bpf_link__pin(p->links[i], path) :
				    bpf_obj_pin(p->progs[i], path);
	}
	/* the last, so that pins without it are known to be half-made */
	if (!err) {
		pin_path(path, sizeof(path), p->pin_dir, "", "pw_control");
		err = bpf_obj_pin(bpf_map__fd(p->skel->maps.pw_control), path);
	}
	if (err) {
		fail_with(why, len, err, "cannot pin %s: %s", path, strerror(-err));
		remove_pins(p->pin_dir, &(bool){ false });
		return err;
	}
	p->made_dir = false;
	return 0;
}

/* Somebody with the rights has detached it: `bpftool link detach`, or the cgroup is gone. */
static bool is_detached(const struct bpf_link *link)
{
	struct bpf_link_info info = { 0 };
	__u32 len = sizeof(info);

	return bpf_obj_get_info_by_fd(bpf_link__fd(link), &info, &len) < 0 ||
	       (info.type == BPF_LINK_TYPE_CGROUP && !info.cgroup.cgroup_id);
}

bool kernel_is_whole(const struct kernel *k, char *why, size_t len)
{
	const struct kernel_private *p = k->private;
	char path[PATH_MAX];

	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		if (!p->links[i])
			continue;
		if (is_detached(p->links[i])) {
			fail_with(why, len, 0, "%s has been detached from %s; run 'phasewatch unload', "
				"then 'phasewatch run'", specs[i].program, specs[i].attaches_to);
			return false;
		}
		if (!p->pin_dir)
			continue;
		pin_path(path, sizeof(path), p->pin_dir, "links", specs[i].program);
		if (access(path, F_OK) < 0) {
			fail_with(why, len, 0, "the pin %s has gone: nothing observes when the daemon "
				"stops; restart it", path);
			return false;
		}
	}
	return true;
}

int kernel_open(struct kernel **ret, const char *pin_dir, char *why, size_t len)
{
	_cleanup_(kernel_freep) struct kernel *k = calloc(1, sizeof(*k));
	struct kernel_private *p;
	int err;

	p = calloc(1, sizeof(*p));
	if (!k || !p) {
		free(p);
		return fail_with(why, len, -ENOMEM, "out of memory");
	}
	k->private = p;
	p->lock = -1;
	for (size_t i = 0; i < ARRAY_SIZE(pinned_maps); i++)
		*map_fd(k, i) = -1;
	k->n_hooks = ARRAY_SIZE(specs);
	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		p->progs[i] = p->armed[i] = p->measured[i] = -1;
		k->hooks[i] = (struct hook){ specs[i].program, specs[i].attaches_to, specs[i].kind,
			specs[i].serves, specs[i].without, 0, false };
	}
	libbpf_set_print(quiet);
	err = libbpf_num_possible_cpus();
	if (err < 0)
		return fail_with(why, len, err, "cannot count the CPUs: %s", strerror(-err));
	k->cpus = err;

	if (pin_dir) {
		err = open_pin_dir(k, pin_dir, why, len);
		if (err)
			return err;
	}
	if (!k->took_over) {
		err = load(k, why, len);
		if (err)
			return err;
		err = map_control(k, bpf_map__fd(p->skel->maps.pw_control));
		if (err)
			return fail_with(why, len, err, "cannot map pw_control: %s", strerror(-err));
		k->control->magic = PW_MAGIC;
		k->control->abi = PW_ABI;
		k->control->object_id = object_id();
	}
	err = map_workloads(k);
	if (err)
		return fail_with(why, len, err, "cannot map pw_workloads: %s", strerror(-err));
	measure(k);
	k->control->daemon = getpid();
	k->control->queue_is_loss = k->hooks[spec_index("pw_reset")].error != 0;
	*ret = TAKE_PTR(k);
	return 0;
}

void kernel_free(struct kernel *k)
{
	struct kernel_private *p;

	if (!k)
		return;
	p = k->private;
	if (p) {
		drop_handles(k);
		if (p->made_dir)
			rmdir(p->pin_dir);
		closep(&p->lock);
		free(p->pin_dir);
		free(p);
	}
	free(k);
}

int kernel_unload(const char *pin_dir, bool *removed, char *why, size_t len)
{
	_cleanup_(closep) int lock = -1;
	int err;

	*removed = false;
	if (access(pin_dir, F_OK) < 0 && errno == ENOENT)
		return 0;
	lock = lock_dir(pin_dir, why, len);
	if (lock < 0)
		return lock;
	err = remove_pins(pin_dir, removed);
	if (err)
		return fail_with(why, len, err, "cannot remove the pins in %s: %s", pin_dir,
			strerror(-err));
	if (rmdir(pin_dir) < 0 && errno != ENOENT)
		return fail_with(why, len, -errno, "%s is left: it has files that are not phasewatch's",
			pin_dir);
	return 0;
}

const char *kernel_why_off(const struct hook *h)
{
	return h->error == -ENOENT ? "not in this kernel" : strerror(-h->error);
}

/* ---- verbs ---- */

/* Runs an iterator to its end; what it writes goes to `out`. Returns bytes, or a negative errno. */
static ssize_t run_iterator(int prog, union bpf_iter_link_info *info, void *out, size_t size)
{
	LIBBPF_OPTS(bpf_link_create_opts, opts);
	_cleanup_(closep) int link = -1, iter = -1;
	size_t got = 0;
	ssize_t n;

	if (info) {
		opts.iter_info = info;
		opts.iter_info_len = sizeof(*info);
	}
	link = bpf_link_create(prog, 0, BPF_TRACE_ITER, &opts);
	if (link < 0)
		return link;
	iter = bpf_iter_create(link);
	if (iter < 0)
		return iter;
	for (;;) {
		n = read(iter, (char *)out + got, size - got);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return got;
		got += n;
		if (got == size)
			return -E2BIG;
	}
}

/* Over all sockets that are tracked. */
static int run_over_conns(struct kernel *k, const char *program)
{
	union bpf_iter_link_info info = { .map.map_fd = k->conns };
	int hook = spec_index(program);
	char nothing[1];

	if (k->hooks[hook].error)
		return k->hooks[hook].error;
	return run_iterator(k->private->progs[hook], &info, nothing, sizeof(nothing));
}

int kernel_look(struct kernel *k)
{
	k->control->look++;
	return run_over_conns(k, "pw_look");
}

int kernel_who_listens(struct kernel *k, pid_t **pids, size_t *n)
{
	_cleanup_(freep) pid_t *found = malloc(MEMBERS_OUT_MAX * sizeof(*found));
	int hook = spec_index("pw_snapshot");
	ssize_t got;
	size_t kept = 0;

	if (!found)
		return -ENOMEM;
	if (k->hooks[hook].error)
		return k->hooks[hook].error;
	k->control->snapshot = PW_PASS_WHO_LISTENS;
	got = run_iterator(k->private->progs[hook], NULL, found, MEMBERS_OUT_MAX * sizeof(*found));
	if (got < 0)
		return got;
	got /= sizeof(*found);
	qsort(found, got, sizeof(*found), compare_pids);
	for (ssize_t i = 0; i < got; i++)
		if (!kept || found[kept - 1] != found[i])
			found[kept++] = found[i];
	*n = kept;
	*pids = TAKE_PTR(found);
	return 0;
}

int kernel_adopt(struct kernel *k, pid_t to, pid_t from, bool scoped, pid_t **pids, size_t *n)
{
	_cleanup_(freep) pid_t *found = malloc(MEMBERS_OUT_MAX * sizeof(*found));
	size_t size = MEMBERS_OUT_MAX * sizeof(*found), got = 0;
	int prog = k->private->progs[spec_index("pw_adopt")];
	ssize_t turn;

	if (!found)
		return -ENOMEM;
	k->control->adopt_to = to;
	k->control->adopt_from = from;
	k->control->adopt_scoped = scoped;
	do {
		turn = run_iterator(prog, NULL, (char *)found + got, size - got);
		if (turn < 0)
			return turn;
		got += turn;
	} while (turn > 0);
	*n = got / sizeof(*found);
	*pids = TAKE_PTR(found);
	return 0;
}

struct borrower {
	const struct kernel *k;
	struct pw_conn listener;
};

/* Listeners, so that their children are seen; connections, so that none is taken for a new one. */
static void stamp_borrowed(int fd, int state, void *arg)
{
	static const struct pw_conn connection = { .judged = 1 };
	const struct borrower *b = arg;

	bpf_map_update_elem(b->k->conns, &fd,
		state == TCP_LISTEN ? &b->listener : &connection, BPF_NOEXIST);
}

static void borrow_all(struct kernel *k, const struct pw_subject_key *of, const pid_t *pids, size_t n)
{
	struct borrower b = { .k = k };
	struct pw_stats stats;

	if (bpf_map_lookup_elem(k->stats, of, &stats) == 0)
		b.listener = (struct pw_conn){ .kind = of->kind, .subject = of->id,
			.life = stats.life };
	for (size_t i = 0; i < n; i++)
		borrow_tcp_sockets(pids[i], stamp_borrowed, &b);
}

int kernel_snapshot(struct kernel *k, enum pw_snapshot_pass pass, const struct pw_subject_key *of,
	const pid_t *pids, size_t n)
{
	int hook = spec_index("pw_snapshot"), prog = k->private->progs[hook];
	char nothing[1];
	ssize_t err;

	if (k->hooks[hook].error) {
		if (pass == PW_PASS_CONNECTIONS)
			borrow_all(k, of, pids, n);
		return 0;
	}
	k->control->snapshot = pass;
	if (!of)
		return run_iterator(prog, NULL, nothing, sizeof(nothing));
	for (size_t i = 0; i < n; i++) {
		union bpf_iter_link_info info = { .task.pid = pids[i] };

		err = run_iterator(prog, &info, nothing, sizeof(nothing));
		if (err == -ESRCH)
			continue; /* gone meanwhile */
		if (err == -EINVAL || err == -E2BIG) { /* no filter by process before 6.1 */
			err = run_iterator(prog, NULL, nothing, sizeof(nothing));
			n = 0;
		}
		if (err < 0)
			return err;
	}
	if (pass != PW_PASS_TURNS)
		return 0;
	k->control->turns_of = *of;
	err = run_over_conns(k, "pw_turns");
	return err == -ENOENT ? 0 : err;
}

int kernel_arm(struct kernel *k, bool on)
{
	struct kernel_private *p = k->private;
	bool was_on = k->control->armed;

	if (on != was_on)
		k->control->armed = on ? ++k->control->armings : 0;

	for (size_t i = 0; i < ARRAY_SIZE(specs); i++) {
		if (specs[i].kind != HOOK_ON_DEMAND || k->hooks[i].error ||
			on == (p->armed[i] >= 0))
			continue;
		if (!on) {
			closep(&p->armed[i]);
			p->armed[i] = -1;
			continue;
		}
		p->armed[i] = bpf_raw_tracepoint_open(NULL, p->progs[i]);
		if (p->armed[i] < 0)
			return p->armed[i];
	}
	return on && !was_on ? kernel_snapshot(k, PW_PASS_CLIENTS, NULL, NULL, 0) : 0;
}

int kernel_read_counters(const struct kernel *k, struct pw_counters *ret)
{
	_cleanup_(freep) struct pw_counters *each = calloc(k->cpus, sizeof(*each));
	__u64 sum[sizeof(*ret) / sizeof(__u64)] = { 0 };
	__u32 zero = 0;

	if (!each)
		return -ENOMEM;
	if (bpf_map_lookup_elem(k->counters, &zero, each) < 0)
		return -errno;
	for (unsigned int cpu = 0; cpu < k->cpus; cpu++)
		for (size_t i = 0; i < ARRAY_SIZE(sum); i++)
			sum[i] += ((const __u64 *)&each[cpu])[i];
	memcpy(ret, sum, sizeof(*ret));
	return 0;
}
