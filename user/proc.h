/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What /proc and the cgroup file system tell of processes. Everything in it can be gone a moment
 * later: callers check start times where it matters. */
#ifndef PW_PROC_H
#define PW_PROC_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bpf/abi.h"

struct proc_stat {
	char comm[PW_COMM_LEN];
	pid_t ppid;
	pid_t session;
	pid_t tgid; /* differs from the pid asked for if that is a thread's */
	uint64_t start_ns; /* CLOCK_BOOTTIME, in units of PW_START_UNIT_NS */
	uid_t uid, euid;
};

/* -ESRCH: no such process; a zombie is none either. */
int proc_read(pid_t pid, struct proc_stat *ret);
/* Its cgroup's path in the v2 hierarchy, as /proc shows it. */
int proc_cgroup2(pid_t pid, char *buf, size_t size);
/*
 * The process that `speaker` calls `pid`: by another number than ours where it is in a pid namespace
 * of its own. -ESRCH: there is none in that namespace; -EACCES: we may not look.
 */
int proc_translate(pid_t pid, pid_t speaker, pid_t *ret);
/*
 * 0: it has none but init, or one outside of its pid namespace, such as a container runtime that put
 * it there.
 */
pid_t proc_parent(pid_t pid);
/* For qsort(3) and bsearch(3). */
static inline int compare_pids(const void *a, const void *b)
{
	return *(const pid_t *)a - *(const pid_t *)b;
}
/* True if `pid` is `ancestor` or descends from it. */
bool proc_descends(pid_t pid, pid_t ancestor);

/* Of this process: bytes of memory, and open file descriptors. */
int proc_usage(uint64_t *resident, uint64_t *fds);

/*
 * Names of processes' programs and cgroups, remembered, because events tell of processes that are
 * gone when they are read. A bounded cache: what was pushed out is read again, or absent.
 */
struct proc_names;
int proc_names_new(struct proc_names **ret);
void proc_names_free(struct proc_names *n);
/* NULL if not known. Valid until the next call. */
const char *proc_names_exe(struct proc_names *n, const struct pw_process *p);
const char *proc_names_cgroup(struct proc_names *n, uint64_t cgroup_id);
/* For cgroup.h; negative: there is none. */
int proc_names_cgroup_root(const struct proc_names *n);
/* A process was forked (it runs its parent's program), or executed another program. */
void proc_names_forked(struct proc_names *n, const struct pw_process *child);
void proc_names_executed(struct proc_names *n, const struct pw_process *p);

#endif /* PW_PROC_H */
