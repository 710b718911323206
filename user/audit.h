/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The audit log: one line of JSON for each declaration, whatever became of it. A line is written at
 * once, whole or not at all; one that cannot be written is counted. Nothing here ends the daemon.
 */
#ifndef PW_AUDIT_H
#define PW_AUDIT_H

#include <limits.h>
#include <stdint.h>
#include <sys/types.h>

#include "phasewatch/phase.h"
#include "bpf/abi.h"

struct audit;

struct audit_options {
	const char *path;
	uint64_t size; /* bytes; a line that would make it larger begins a new file. 0: never */
	uint32_t keep; /* older files that stay, from 1 on: PATH.1 is the youngest */
};

enum audit_verdict {
	AUDIT_ACCEPTED,
	AUDIT_UNCHANGED, /* it was in that phase already */
	AUDIT_REFUSED,
	AUDIT_VERDICTS,
};
extern const struct names audit_verdict_names;

/* By the kernel's word. 0 or "" is not known; of uid and gid, -1. */
struct audit_who {
	pid_t pid;
	uid_t uid;
	gid_t gid;
	char comm[PW_COMM_LEN];
	char exe[PATH_MAX];
	char cgroup[PATH_MAX];
};

/* Fills in the rest from /proc, if the process `pid` is still the user's. */
void audit_who_read(struct audit_who *who);

/* What is not known is 0 or NULL. */
struct audit_record {
	enum audit_verdict verdict;
	const struct audit_who *who;
	pid_t by_pid; /* on whose behalf, if not `who`'s: the process that the phase event names */
	const char *by_comm;
	struct pw_subject_key key;
	const char *name;
	const char *from, *to;
	uint64_t epoch;
	uint32_t source; /* enum pw_source */
	const char *reason;
	const char *why; /* it was refused */
	uint64_t count; /* declarations that this record stands for, if not one */
};

/*
 * -EINVAL: what is there is no regular file, somebody else's, or has another name as well; or what
 * open(2) said. On failure `why` has a sentence. A full disk is no failure: it may pass. `node` and
 * the path have to outlive it.
 */
int audit_new(struct audit **ret, const struct audit_options *options, const char *node, char *why,
	size_t why_len);
void audit_free(struct audit *a);

void audit_write(struct audit *a, const struct audit_record *r);
/* Somebody has moved the file away: goes on in a new one. */
void audit_reopen(struct audit *a);
/* Lines that were not written. */
uint64_t audit_lost(const struct audit *a);

#endif /* PW_AUDIT_H */
