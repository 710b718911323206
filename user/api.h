/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The HTTP API: on the Unix socket for reading and declaring, on TCP for reading. Who declares is
 * what the kernel says of the socket's other end, never what the request says.
 */
#ifndef PW_API_H
#define PW_API_H

#include <sys/socket.h>
#include <event2/event.h>

#include "kernel.h"
#include "metrics.h"
#include "stream.h"
#include "subjects.h"

struct api;

struct api_context {
	struct event_base *base;
	struct kernel *kernel;
	const struct subjects *subjects;
	struct declare *declare;
	struct drains *drains;
	struct stream *stream;
	struct metrics_of *metrics;
	const char *node;
	/* Brings the stream up to date with the kernel half before an answer is made. */
	void (*catch_up)(void *arg);
	void *arg;
};

/* `socket` is a path; `listen` is ADDR:PORT, "" for none. On failure `why` has a sentence. */
int api_new(struct api **ret, const struct api_context *context, const char *socket,
	const char *listen, char *why, size_t why_len);
/* Removes the socket as well. */
void api_free(struct api *api);

/*
 * Where no file descriptor was left for a connection, accepting has ended: to be called once a
 * second or so, to go on.
 */
void api_accept_again(struct api *api);

/* ADDR:PORT, such as 127.0.0.1:9464 or [::1]:9464, with a port from 1 on. 0 or -EINVAL. */
int api_parse_listen(const char *where, struct sockaddr_storage *ret, int *ret_len);

#endif /* PW_API_H */
