/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel half as the rest of the program sees it: file descriptors, a shared page, and a few
 * verbs. Only kernel.c knows the BPF object.
 *
 * Pins: DIR/pw_* are maps, DIR/links/ and DIR/progs/ what their names say. They outlive the daemon:
 * observing goes on without it, and the next one takes over if its BPF object is the same, else it
 * replaces everything. A flock on DIR says that a daemon is there.
 */
#ifndef PW_KERNEL_H
#define PW_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "bpf/abi.h"

enum hook_kind {
	HOOK_CGROUP,	/* at the cgroup2 root, by link */
	HOOK_TRACING,	/* attached as long as the kernel half is */
	HOOK_ON_DEMAND, /* attached while something drains */
	HOOK_ITERATOR,	/* run by the daemon: at a declaration, to count connections */
};

struct hook {
	const char *program;
	const char *attaches_to;
	enum hook_kind kind;
	const char *serves;
	const char *without; /* the consequence */
	int error;	     /* 0: on; else why it is off, negative errno */
	bool superseded;     /* off because another hook here is this kernel's variant */
};

/* A few words; only for one that is off. */
const char *kernel_why_off(const struct hook *h);

#define KERNEL_HOOKS_MAX 32

struct kernel {
	int phases; /* map file descriptors */
	int members;
	int stats;
	int tallies;
	int conns;
	int counters;
	int events;
	int workloads_fd;
	struct pw_control *control; /* shared with the programs */
	struct pw_workload *workloads; /* 1 + PW_WORKLOADS, shared with the next daemon */
	unsigned int cpus;	    /* values in a per-CPU element */
	bool took_over;
	bool replaced; /* pins of another build were there */
	struct hook hooks[KERNEL_HOOKS_MAX];
	size_t n_hooks;
	struct kernel_private *private;
};

/*
 * Loads and attaches, or takes over what is pinned in `pin_dir`; with NULL nothing is pinned and
 * kernel_free() detaches. On failure nothing new is left attached or pinned, and `why` has a
 * sentence. Returns 0 or a negative errno; -EBUSY: another daemon holds the pin directory.
 */
int kernel_open(struct kernel **ret, const char *pin_dir, char *why, size_t why_len);
/* Pins what kernel_open() loaded; to be called last, when nothing else can fail any more. */
int kernel_pin(struct kernel *k, char *why, size_t why_len);
/* Whether it still observes, and would go on without the daemon; else `why` has a sentence. */
bool kernel_is_whole(const struct kernel *k, char *why, size_t why_len);
void kernel_free(struct kernel *k);
static inline void kernel_freep(struct kernel **k)
{
	kernel_free(*k);
}

/* Removes every pin. -EBUSY: a daemon runs on it. `removed`: whether there was anything. */
int kernel_unload(const char *pin_dir, bool *removed, char *why, size_t why_len);

/*
 * Brings the descendants of process subject `to` into it, those of the subject `from` around it
 * too (0: none); only those of its own cgroup or session if `scoped`. `pids` receives them, malloc'ed;
 * 0 of them: the process is gone.
 */
int kernel_adopt(struct kernel *k, pid_t to, pid_t from, bool scoped, pid_t **pids, size_t *n);
/* The processes that hold listeners, each once, in order; `pids` is malloc'ed. */
int kernel_who_listens(struct kernel *k, pid_t **pids, size_t *n);
/* Looks at the sockets that these members of a subject have open; of NULL: at everybody's. */
int kernel_snapshot(struct kernel *k, enum pw_snapshot_pass pass, const struct pw_subject_key *of,
	const pid_t *pids, size_t n);
/*
 * Counts the connections that subjects have now (pw_stats.queued, unseen, open; their `look` is then
 * that of `control`). -ENOENT: this kernel cannot.
 */
int kernel_look(struct kernel *k);
/* Attaches or detaches the HOOK_ON_DEMAND programs; the first time looks at who is connected. */
int kernel_arm(struct kernel *k, bool on);

/* What a program costs. `run_ns` and `runs` are counted while kernel.bpf_stats_enabled is set. */
struct kernel_cost {
	const char *program;
	uint64_t run_ns;
	uint64_t runs;
	uint64_t recursion_misses;
};

/* Of the programs that are on; how many. */
size_t kernel_costs(const struct kernel *k, struct kernel_cost ret[KERNEL_HOOKS_MAX]);
/* Bytes of records that wait in the ring buffer, of so many. */
uint64_t kernel_ring_used(const struct kernel *k);
/* How many entries a map may have, or bytes the ring; 0: not known. */
uint32_t kernel_map_capacity(int fd);

/* The counters' sum over all CPUs. */
int kernel_read_counters(const struct kernel *k, struct pw_counters *ret);

#endif /* PW_KERNEL_H */
