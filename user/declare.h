/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The door for declarations from outside, whatever way they come: who asks, by the kernel's word
 * and never by the request's, whether they may, how many and how often. Each one goes to the audit
 * log, refused ones included; so do those that came around the door, straight to the map.
 */
#ifndef PW_DECLARE_H
#define PW_DECLARE_H

#include <stdbool.h>
#include <sys/types.h>

#include "audit.h"
#include "subjects.h"

/* As SO_PEERCRED or SCM_CREDENTIALS tells. */
struct declarer {
	pid_t pid; /* 0: in a pid namespace that cannot be seen from here */
	uid_t uid;
	gid_t gid;
	enum pw_source source; /* the way it came */
	int sock; /* its connection, which knows its supplementary groups; 0: none, as of a datagram */
};

#define NO_GID ((gid_t)-1)

/* The limits are those of each user who is neither root nor in the group `admin_gid`. */
struct declare_options {
	struct audit *audit; /* NULL: no log */
	gid_t admin_gid; /* NO_GID: nobody but root may declare anything */
	uint32_t rate; /* declarations a second, and five times as many at once; from 1 on */
	uint32_t subjects; /* that live at once */
};

struct declare;

/* `subjects` and the audit log have to outlive it. */
int declare_new(
	struct declare **ret, struct subjects *subjects, const struct declare_options *options);
void declare_free(struct declare *d);

/*
 * For whom declare_may() says; for one's own cgroup, if all in it are of one's user; for any, if one
 * is an admin. Who declares is filled in here. -EPERM: they may not; -EAGAIN, -EDQUOT: too often,
 * too many; -EINVAL: what they mean is not there; or as subjects_declare().
 */
int declare_phase(struct declare *d, const struct declarer *who,
	const struct declaration_request *request, struct declaration_result *ret,
	char why[static WHY_LEN]);

/* One that is refused on the way to the door: it counts all the same, and goes to the audit log. */
void declare_refuse(struct declare *d, const struct declarer *who,
	const struct declaration_request *request, int err, const char *why);

/* To be called with each phase event: what came by another way goes to the audit log, too. */
void declare_moved(struct declare *d, const struct subject *s, const struct event_phase *p);

/* To be called once a second or so: tells what was refused in between without a word. */
void declare_tick(struct declare *d);

/* Since the start: declarations by what became of them, and lines that the audit log lacks. */
uint64_t declare_count(const struct declare *d, enum audit_verdict verdict);
uint64_t declare_audit_lost(const struct declare *d);

/* Root, or in the group: may declare anything, without limits. */
bool declare_is_admin(const struct declare *d, const struct declarer *who);

/* For oneself, one's descendants, one's parent of the same user; root: any. Exposed for tests. */
bool declare_may(const struct declarer *who, pid_t pid);

#endif /* PW_DECLARE_H */
