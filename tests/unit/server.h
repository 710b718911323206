/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a daemon might answer, or not, to one request over a Unix socket. */
#ifndef PW_TEST_SERVER_H
#define PW_TEST_SERVER_H

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cmocka.h>

#include "util.h"

#define CHUNKS_MAX 4

/* Answers one connection with `chunks`, each sent when the client has taken the one before. */
struct server {
	char dir[32];
	char path[64];
	int fd;
	pthread_t thread;
	const char *chunks[CHUNKS_MAX];
	size_t sizes[CHUNKS_MAX]; /* 0: the chunk is a string */
	char request[4096];
	int drip_ms; /* not 0: one byte at a time, and so much time between them */
	bool deaf; /* does not read the request: without chunks, closes the connection at once */
	bool silent; /* keeps the connection open after the last chunk, until the client closes */
};

static void read_request(struct server *s, int fd)
{
	size_t len = 0, want = SIZE_MAX;

	while (len < want) {
		ssize_t n = read(fd, s->request + len, sizeof(s->request) - 1 - len);
		const char *head, *length;

		if (n <= 0)
			return;
		len += n;
		s->request[len] = '\0';
		head = strstr(s->request, "\r\n\r\n");
		length = strstr(s->request, "Content-Length: ");
		if (head && length)
			want = head + 4 - s->request + strtoul(length + 16, NULL, 10);
	}
}

static void *serve(void *arg)
{
	struct server *s = arg;
	_cleanup_(closep) int fd = accept(s->fd, NULL, NULL);
	struct pollfd hangup = { .fd = fd };
	char byte;

	if (fd < 0)
		return NULL;
	if (!s->deaf)
		read_request(s, fd);
	for (size_t i = 0; i < CHUNKS_MAX && s->chunks[i]; i++) {
		size_t size = s->sizes[i] ? s->sizes[i] : strlen(s->chunks[i]);

		while (size) {
			ssize_t n = send(fd, s->chunks[i], s->drip_ms ? 1 : size, MSG_NOSIGNAL);

			if (n < 0 || (s->drip_ms && poll(&hangup, 1, s->drip_ms)))
				return NULL;
			s->chunks[i] += n;
			size -= n;
		}
	}
	if (s->silent && read(fd, &byte, 1) > 0)
		return NULL;
	return NULL;
}

static void server_start(struct server *s)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	strcpy(s->dir, "/tmp/pw-client-XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	snprintf(s->path, sizeof(s->path), "%s/sock", s->dir);
	strcpy(address.sun_path, s->path);
	s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(s->fd >= 0);
	assert_int_equal(bind(s->fd, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(s->fd, 1), 0);
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void server_stop(struct server *s)
{
	pthread_join(s->thread, NULL);
	close(s->fd);
	unlink(s->path);
	rmdir(s->dir);
}

#endif /* PW_TEST_SERVER_H */
