/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The door for declarations from outside, whatever way they come: who asks, by the kernel's word and
 * never by the request's, and whether they may.
 */
#ifndef PW_DECLARE_H
#define PW_DECLARE_H

#include <stdbool.h>
#include <sys/types.h>

#include "subjects.h"

/* As SO_PEERCRED or SCM_CREDENTIALS tells. */
struct declarer {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	enum pw_source source; /* the way it came */
};

struct declare;

/* `subjects` has to outlive it. */
int declare_new(struct declare **ret, struct subjects *subjects);
void declare_free(struct declare *d);

/*
 * For whom declare_may() says; for one's own cgroup, if all in it are of one's user; root for any.
 * Fills in who declared. -EPERM: they may not; or as subjects_declare().
 */
int declare_phase(struct declare *d, const struct declarer *who, struct declaration_request *r,
	struct declaration_result *ret, char why[static WHY_LEN]);

/* For oneself, one's descendants, one's parent of the same user; root for any. Exposed for tests. */
bool declare_may(const struct declarer *who, pid_t pid);

#endif /* PW_DECLARE_H */
