/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Phases by sd_notify(3): a datagram socket for services that tell a manager how they are. A
 * message is assignments, a line each:
 *
 *	READY=1           ACTIVE
 *	STOPPING=1        DRAIN, whatever READY says
 *	X_PHASE=PHASE     that phase, whatever the others say
 *	X_EPOCH=N         the generation, as `declare --epoch`
 *	X_REASON=TEXT     why; or else STATUS=TEXT, if it is short enough
 *	MAINPID=N         for this process: N as the sender counts, if the sender may declare for it
 *
 * RELOADING=1 declares nothing: a reload is no drain, and READY=1 follows. The rest of sd_notify(3)
 * is passed over. Of one name given twice the last counts.
 *
 * For whom it is: for the sender. systemd-notify(1) speaks for who runs it. A process that descends
 * from a declared one may send READY and STOPPING too (it has the same NOTIFY_SOCKET), and they are
 * ignored, as under systemd's NotifyAccess=main: a worker that stops must not drain its service,
 * and one that is ready must not be left out of its service's next drain. If it means itself, it
 * says X_PHASE or MAINPID.
 */
#ifndef PW_NOTIFY_H
#define PW_NOTIFY_H

#include <event2/event.h>

#include "declare.h"

#define NOTIFY_MAX 4096 /* bytes of a message, as systemd takes them */

struct notify_message {
	uint32_t phase;	 /* PW_UNDECLARED: it declares nothing */
	bool by_x_phase; /* and not by the service's READY or STOPPING */
	pid_t main_pid;	 /* 0: not given, and so with the epoch */
	uint64_t epoch;
	char reason[PW_REASON_LEN];
};

/* Pure. -EINVAL with a sentence in `why`: too long, NUL bytes, or a value that is not allowed. */
int notify_parse(
	const char *data, size_t len, struct notify_message *ret, char why[static WHY_LEN]);

enum notify_result {
	NOTIFY_ACCEPTED,
	NOTIFY_REFUSED,
	NOTIFY_IGNORED, /* declares nothing, or by somebody whose word does not count */
	NOTIFY_RESULTS
};

struct notify;

struct notify_context {
	struct event_base *base;
	struct subjects *subjects;
	struct declare *declare;
	uint64_t *counts; /* of messages, by result */
	/* Brings the stream up to date with the kernel half before something is declared. */
	void (*catch_up)(void *arg);
	void *arg;
};

/* Where it is by default: daemons that have sockets of their own do not meet here either. */
const char *notify_beside(const char *socket, char *path, size_t size);

/* On failure `why` has a sentence. */
int notify_new(struct notify **ret, const struct notify_context *context, const char *path,
	char *why, size_t why_len);
/* Removes the socket as well. */
void notify_free(struct notify *n);

#endif /* PW_NOTIFY_H */
