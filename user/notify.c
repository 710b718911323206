// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

#include "clock.h"
#include "names.h"
#include "notify.h"
#include "opts.h"
#include "proc.h"
#include "unix_socket.h"
#include "util.h"

/* Of messages between two looks at the rest: the ring buffer holds what a storm brings in 10 ms. */
#define TURN_NS (2 * NS_PER_MS)

struct notify {
	struct notify_context c;
	struct unix_socket socket;
	struct event *readable;
	int fd;
	uint64_t told_ns; /* when a refusal was logged last */
	uint64_t untold;  /* since then */
};

/* ---- what a message says ---- */

struct words {
	bool ready, stopping;
	const char *reason, *status;
	uint64_t main_pid;
};

static const char *value_of(const char *line, const char *name)
{
	size_t len = strlen(name);

	return strncmp(line, name, len) == 0 ? line + len : NULL;
}

static int take_number(const char *name, const char *value, uint64_t max, uint64_t *ret,
	char why[static WHY_LEN])
{
	uint64_t number;

	if (parse_u64(value, &number) < 0 || number < 1 || number > max)
		return fail_with(why, WHY_LEN, -EINVAL,
			"%s%.40s is to be an integer from 1 to %" PRIu64, name, value, max);
	*ret = number;
	return 0;
}

static int take(struct notify_message *m, struct words *w, const char *line,
	char why[static WHY_LEN])
{
	const char *v;
	int phase;

	if (strcmp(line, "READY=1") == 0) {
		w->ready = true;
	} else if (strcmp(line, "STOPPING=1") == 0) {
		w->stopping = true;
	} else if ((v = value_of(line, "X_PHASE="))) {
		phase = names_parse(&declared_phase_names, v);
		if (phase < 0)
			return fail_with(why, WHY_LEN, -EINVAL,
				"no phase \"%.40s\"; use INIT, ACTIVE, DRAIN or SHUTDOWN", v);
		m->phase = phase;
	} else if ((v = value_of(line, "X_EPOCH="))) {
		return take_number("X_EPOCH=", v, PW_EPOCH_MAX, &m->epoch, why);
	} else if ((v = value_of(line, "MAINPID="))) {
		return take_number("MAINPID=", v, PID_MAX, &w->main_pid, why);
	} else if ((v = value_of(line, "X_REASON="))) {
		if (strlen(v) > PW_REASON_LEN - 1)
			return fail_with(why, WHY_LEN, -EINVAL,
				"X_REASON= is to be a text of at most %d bytes", PW_REASON_LEN - 1);
		w->reason = v;
	} else if ((v = value_of(line, "STATUS="))) {
		w->status = strlen(v) <= PW_REASON_LEN - 1 ? v : NULL;
	}
	return 0;
}

int notify_parse(const char *data, size_t len, struct notify_message *ret, char why[static WHY_LEN])
{
	char text[NOTIFY_MAX + 1] = "", *rest = text, *line;
	struct notify_message m = { 0 };
	struct words w = { 0 };
	int err;

	if (len > NOTIFY_MAX)
		return fail_with(why, WHY_LEN, -EINVAL, "it is longer than %d bytes", NOTIFY_MAX);
	memcpy(text, data, len);
	/* some end with one */
	if (strlen(text) + 1 < len)
		return fail_with(why, WHY_LEN, -EINVAL, "it has a NUL byte inside");
	while ((line = strsep(&rest, "\n"))) {
		err = take(&m, &w, line, why);
		if (err)
			return err;
	}
	m.by_x_phase = m.phase;
	if (!m.phase)
		m.phase = w.stopping ? PW_DRAIN : w.ready ? PW_ACTIVE : PW_UNDECLARED;
	m.main_pid = w.main_pid;
	if (!w.reason)
		w.reason = w.status;
	if (w.reason)
		strcpy(m.reason, w.reason);
	*ret = m;
	return 0;
}

/* ---- whom it is for ---- */

/*
 * 0, or -ECHILD: it is none of the sender's business; or another negative errno: refused. Where
 * systemd-notify may, it sends its parent's pid as its own.
 */
static int choose(struct notify *n, const struct notify_message *m, const struct declarer *who,
	struct declaration_request *r, char why[static WHY_LEN])
{
	pid_t speaker = who->pid, above;
	struct proc_stat sender;

	if (proc_read(who->pid, &sender) < 0)
		return fail_with(why, WHY_LEN, -ESRCH,
			"its sender is gone, and nobody knows whom it spoke for; systemd-notify "
			"waits, unless it is told --no-block");
	if (m->main_pid) {
		r->means = MEANS_INNER_PID;
		r->pid = m->main_pid;
		return 0;
	}
	if (strcmp(sender.comm, "systemd-notify") == 0)
		speaker = proc_parent(who->pid);
	if (!speaker)
		return fail_with(why, WHY_LEN, -ESRCH,
			"systemd-notify's parent is init or outside of its pid namespace, no service");
	above = m->by_x_phase ? 0 : subjects_above(n->c.subjects, speaker);
	if (above)
		return fail_with(why, WHY_LEN, -ECHILD,
			"process %d is declared and speaks for those that descend from it", above);
	r->pid = speaker;
	return 0;
}

/* ---- messages ---- */

/* Once a second: anybody may send anything. */
static void tell(struct notify *n, const char *what, const struct declarer *who, const char *why)
{
	uint64_t now = clock_boot_ns();

	if (n->told_ns && now - n->told_ns < NS_PER_S) {
		n->untold++;
		return;
	}
	log_warning("%s a message from process %d (uid %u): %s", what, who->pid, who->uid, why);
	if (n->untold)
		log_warning("%" PRIu64 " more messages like that were not logged", n->untold);
	n->told_ns = now;
	n->untold = 0;
}

static enum notify_result handle(
	struct notify *n, const char *data, size_t len, const struct declarer *who)
{
	struct declaration_request r = { 0 };
	struct declaration_result result;
	struct notify_message m;
	char why[WHY_LEN];
	int err;

	err = notify_parse(data, len, &m, why);
	if (err) {
		tell(n, "refused", who, why);
		return NOTIFY_REFUSED;
	}
	if (!m.phase)
		return NOTIFY_IGNORED;
	r.phase = m.phase;
	r.epoch = m.epoch;
	r.reason = m.reason;
	if (who->pid > 0)
		err = choose(n, &m, who, &r, why);
	else /* in a pid namespace that cannot be seen from here: at the door that is the end */
		r.means = MEANS_CALLER;
	if (err) {
		tell(n, err == -ECHILD ? "ignored" : "refused", who, why);
		if (err != -ECHILD)
			declare_refuse(n->c.declare, who, &r, err, why);
		return err == -ECHILD ? NOTIFY_IGNORED : NOTIFY_REFUSED;
	}
	n->c.catch_up(n->c.arg);
	return declare_phase(n->c.declare, who, &r, &result, why) < 0 ? NOTIFY_REFUSED :
									NOTIFY_ACCEPTED;
}

/*
 * There is no room for file descriptors: the kernel closes them as it hands out the message. So none
 * can leak or use up ours, and sd_notify_barrier(3), which waits for its own to be closed, ends when
 * all that was sent before is done.
 */
static ssize_t receive(int fd, char *data, size_t size, struct declarer *who)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(sizeof(struct ucred))];
	} control = { 0 };
	struct iovec iov = { data, size };
	struct msghdr msg = { .msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control) };
	ssize_t len = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
	const struct cmsghdr *c = len < 0 ? NULL : CMSG_FIRSTHDR(&msg);
	struct ucred from = { 0 };

	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS)
		memcpy(&from, CMSG_DATA(c), sizeof(from));
	*who = (struct declarer){ from.pid, from.uid, from.gid, PW_SOURCE_SDNOTIFY };
	return len;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
	uint64_t end = clock_boot_ns() + TURN_NS;
	struct notify *n = arg;
	char data[NOTIFY_MAX + 1];
	struct declarer who;
	ssize_t len;

	do {
		len = receive(fd, data, sizeof(data), &who);
		if (len < 0)
			return;
		n->c.counts[handle(n, data, len, &who)]++;
	} while (clock_boot_ns() < end);
}

const char *notify_beside(const char *socket, char *path, size_t size)
{
	const char *slash = strrchr(socket, '/');

	snprintf(path, size, "%.*snotify.sock", slash ? (int)(slash + 1 - socket) : 0, socket);
	return path;
}

int notify_new(struct notify **ret, const struct notify_context *context, const char *path,
	char *why, size_t len)
{
	struct notify *n = calloc(1, sizeof(*n));

	if (!n)
		return fail_with(why, len, -ENOMEM, "out of memory");
	n->c = *context;
	n->fd = unix_socket_make(SOCK_DGRAM, path, &n->socket, why, len);
	if (n->fd < 0) {
		int err = n->fd;

		notify_free(n);
		return err;
	}
	n->readable = event_new(context->base, n->fd, EV_READ | EV_PERSIST, on_readable, n);
	if (!n->readable || event_add(n->readable, NULL) < 0) {
		notify_free(n);
		return fail_with(why, len, -ENOMEM, "out of memory");
	}
	*ret = n;
	return 0;
}

void notify_free(struct notify *n)
{
	if (!n)
		return;
	unix_socket_remove(&n->socket);
	if (n->readable)
		event_free(n->readable);
	closep(&n->fd);
	free(n);
}
