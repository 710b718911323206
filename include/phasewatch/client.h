/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * phasewatch/client.h - a service declares its own phase. Link with -lphasewatch (pkg-config:
 * phasewatch). C11 and C++11.
 *
 *	if (pw_declare(PW_DRAIN, 0, "rolling update") < 0)
 *		fprintf(stderr, "phase not declared: %s\n", pw_last_error());
 *
 * Each call is one request to the daemon on a connection of its own: nothing stays open, nothing is
 * kept but the text of an error, so there is nothing to set up, to free or to mind after fork().
 * Any thread may call at any time, but no signal handler. No call raises SIGPIPE, writes to a
 * stream or passes a file descriptor on to another program.
 *
 * A service does not depend on its observer: go on when a call fails.
 */
#ifndef PHASEWATCH_CLIENT_H
#define PHASEWATCH_CLIENT_H

#include <stdint.h>
#include <phasewatch/phase.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PW_SOCKET "/run/phasewatch/phasewatch.sock"
#define PW_DECLARE_TIMEOUT_MS 2000

/*
 * Declares the phase of the calling process, and of its descendants that declare none of their own.
 * Declaring the phase in force again succeeds and changes nothing.
 *
 *   phase    PW_INIT, PW_ACTIVE, PW_DRAIN or PW_SHUTDOWN
 *   epoch    generation of the process's life cycle, within which phases only move forward: 1 to
 *            PW_EPOCH_MAX, or 0 for the one in force (the first is 1)
 *   reason   text for whoever reads the event: UTF-8, less than PW_REASON_LEN bytes; NULL for none.
 *            Copied.
 *
 * Asks the daemon at $PHASEWATCH_SOCKET, or at PW_SOCKET if that is unset or empty, or the program
 * runs set-user-ID. Returns after PW_DECLARE_TIMEOUT_MS at the latest: 0, or
 *
 *   -ENOENT, -ECONNREFUSED   no daemon there
 *   -EPERM      refused: the daemon cannot see this process's pid namespace, or does not trust it
 *   -ESTALE     refused: `epoch` is lower than the one in force, or the move is backward within it
 *   -EAGAIN     refused for now: the user declares too often, has declared too many processes or
 *               holds too many connections
 *   -EINVAL     an argument is out of range, or `reason` is too long or not UTF-8
 *   -ETIMEDOUT  no answer in time; the declaration may take effect yet
 *   -EPROTO     the answer is cut off, or not phasewatch's
 *   -EIO        the daemon could not do it: pw_last_error() says why
 *   another negative errno of socket(2) or connect(2), such as -EACCES, -ENAMETOOLONG, -EMFILE
 */
int pw_declare(enum pw_phase phase, uint64_t epoch, const char *reason);

/*
 * The same with another socket (a path; NULL: as above) and another limit of time (in milliseconds;
 * 0: as above).
 */
int pw_declare_to(const char *socket_path, unsigned int timeout_ms, enum pw_phase phase,
	uint64_t epoch, const char *reason);

/*
 * What went wrong in this thread's last call that failed, as one line of text; "" if none did.
 * Valid until the thread's next call that fails, or its end.
 */
const char *pw_last_error(void);

#ifdef __cplusplus
}
#endif

#endif /* PHASEWATCH_CLIENT_H */
