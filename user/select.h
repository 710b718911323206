/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Cgroups by what people call them: a systemd unit, a container, a pod. Nobody is asked: the names of
 * the directories tell, and of pods those of the kubelet's log directories. How they are made:
 *
 *	unit       …/nginx.service, …/session-3.scope, a.slice/a-b.slice; a _ in front where it would
 *	           clash with a file of the kernel's (systemd, cg_escape())
 *	container  its id of 64 digits: alone (Docker, containerd with cgroupfs), as PREFIX-ID
 *	           (crio, libpod), PREFIX-ID.scope (docker, cri-containerd, crio, libpod, nerdctl) or
 *	           SLICE:PREFIX:ID (a runtime without systemd under a kubelet with it); PREFIX-conmon is
 *	           the container's monitor
 *	pod        podUID, or …-podUID.slice with _ for each - (kubelet); its logs are in
 *	           NAMESPACE_NAME_UID, and none of the three can have a _ in it
 */
#ifndef PW_SELECT_H
#define PW_SELECT_H

#include <limits.h>
#include <stddef.h>
#include <stdint.h>

#include "names.h"

#define PW_POD_LOGS "/var/log/pods"

enum select_by { SELECT_PATH, SELECT_UNIT, SELECT_CONTAINER, SELECT_POD, SELECT_WAYS };
extern const struct names select_names; /* cgroup, unit, container, pod */

/* Where it is looked for. */
struct select_roots {
	int cgroup2; /* of the hierarchy; negative: it cannot be reached */
	int systemd; /* of that of v1 with systemd's units (mounts.h); negative: there is none */
	const char *pod_logs; /* directory */
};

/*
 * The cgroup with a name other than its path. What root made comes before what is in a cgroup that was
 * given to another user; a unit of the system's before one of a user or in a container. -EINVAL: no
 * such name can be; -ESRCH: there is none; -ENOTUNIQ: there are several; or why it cannot be told.
 * Then `why` has a sentence that says what there is instead.
 */
int select_cgroup(const struct select_roots *roots, enum select_by by, const char *what,
	uint64_t *ret_id, char *why, size_t len);

/* What to call a cgroup: unit, container or pod; else the last part of its path. */
void select_name(const char *path, const char *pod_logs, char *ret, size_t size);

#endif /* PW_SELECT_H */
