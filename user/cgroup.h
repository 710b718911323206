/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Cgroups of the v2 hierarchy, by the id that the kernel half knows them by. */
#ifndef PW_CGROUP_H
#define PW_CGROUP_H

#include <stdint.h>
#include <sys/types.h>

/* `root` is a file descriptor of the hierarchy's root (mounts.h). Negative errno on failure. */

/* By its path below the root, such as /system.slice/nginx.service, or below any mount of cgroup2. */
int cgroup_find(int root, const char *path, uint64_t *ret_id);
/* Its path below the root, malloc'ed; NULL: it is gone. */
char *cgroup_path(int root, uint64_t id);
/* 0: it is there; -ESRCH: it is gone. */
int cgroup_check(int root, uint64_t id);
/* The processes in it and below, malloc'ed. -ESRCH: it is gone. */
int cgroup_pids(int root, uint64_t id, pid_t **ret, size_t *n);

#endif /* PW_CGROUP_H */
