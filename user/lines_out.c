// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <event2/buffer.h>
#include <fcntl.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "lines_out.h"
#include "util.h"

struct lines_out {
	struct stream *stream;
	struct follower *follower;
	struct evbuffer *queue;
	struct event *writable; /* NULL: a file, to which one can always write */
	int fd;
	bool socket;
	bool told; /* that it fails */
};

static ssize_t write_some(struct lines_out *o)
{
	struct evbuffer_iovec v;

	if (evbuffer_peek(o->queue, -1, NULL, &v, 1) < 1)
		return 0;
	return o->socket ? send(o->fd, v.iov_base, v.iov_len, MSG_DONTWAIT | MSG_NOSIGNAL) :
			   write(o->fd, v.iov_base, v.iov_len);
}

/* Nobody will read any more. */
static void give_up(struct lines_out *o)
{
	log_warning("standard output is closed: events are not written there any more");
	stream_unfollow(o->stream, o->follower);
	o->follower = NULL;
	evbuffer_drain(o->queue, evbuffer_get_length(o->queue));
}

/* Returns 0, or why not all could be written: -EAGAIN, -EPIPE, -ENOSPC, ... */
static int write_all(struct lines_out *o)
{
	ssize_t n;

	while (evbuffer_get_length(o->queue)) {
		n = write_some(o);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		evbuffer_drain(o->queue, n);
	}
	return 0;
}

/* A line that was cut off goes on where it was, when there is room again. */
static void tell(struct lines_out *o, int err)
{
	if (err && err != -EAGAIN && !o->told)
		log_warning("cannot write events to standard output: %s; trying again", strerror(-err));
	if (!err && o->told)
		log_info("events are written to standard output again");
	o->told = err && (o->told || err != -EAGAIN);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
	struct lines_out *o = arg;
	int err = write_all(o);

	if (err == -EPIPE || err == -ECONNRESET) {
		give_up(o); /* not from the stream's own call, in take_lines() */
		return;
	}
	tell(o, err);
	if (err == -EAGAIN && o->writable)
		event_add(o->writable, NULL);
}

static void take_lines(struct evbuffer *data, void *arg)
{
	struct lines_out *o = arg;

	if (evbuffer_add_buffer(o->queue, data) < 0)
		evbuffer_drain(data, evbuffer_get_length(data));
	if (!o->writable)
		tell(o, write_all(o));
	else if (!event_pending(o->writable, EV_WRITE, NULL))
		event_add(o->writable, NULL);
}

static size_t backlog(void *arg)
{
	struct lines_out *o = arg;

	return evbuffer_get_length(o->queue);
}

/*
 * Opened anew, a pipe or a terminal can be non-blocking for us alone; a file keeps its offset, which
 * others may share, and a socket is asked not to block each time.
 */
static int open_out(struct lines_out *o, int fd, bool *waits)
{
	char path[32];
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	o->socket = S_ISSOCK(st.st_mode);
	*waits = o->socket || S_ISFIFO(st.st_mode) || (S_ISCHR(st.st_mode) && isatty(fd));
	if (*waits && !o->socket) {
		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		o->fd = open(path, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
		if (o->fd >= 0)
			return 0;
	}
	o->fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (o->fd < 0)
		return -errno;
	if (*waits && !o->socket && fcntl(o->fd, F_SETFL, O_NONBLOCK | fcntl(o->fd, F_GETFL)) < 0)
		return -errno;
	return 0;
}

int lines_out_new(struct lines_out **ret, struct event_base *base, struct stream *s, int fd)
{
	static const struct filter everything;
	struct lines_out *o = calloc(1, sizeof(*o));
	bool waits = false;
	int err;

	if (!o)
		return -ENOMEM;
	o->stream = s;
	o->fd = -1;
	err = open_out(o, fd, &waits);
	if (!err && waits) {
		o->writable = event_new(base, o->fd, EV_WRITE, on_writable, o);
		err = o->writable ? 0 : -ENOMEM;
	}
	o->queue = err ? NULL : evbuffer_new();
	if (!err)
		err = o->queue ? stream_follow(s, &everything, STREAM_LINES, take_lines, backlog, o,
					 &o->follower) :
				 -ENOMEM;
	if (err) {
		lines_out_free(o);
		return err;
	}
	*ret = o;
	return 0;
}

void lines_out_free(struct lines_out *o)
{
	if (!o)
		return;
	if (o->follower) {
		write_all(o);
		stream_unfollow(o->stream, o->follower);
	}
	if (o->writable)
		event_free(o->writable);
	if (o->queue)
		evbuffer_free(o->queue);
	closep(&o->fd);
	free(o);
}
