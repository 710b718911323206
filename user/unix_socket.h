/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A socket in the file system that everybody may reach, made anew and taken away again. */
#ifndef PW_UNIX_SOCKET_H
#define PW_UNIX_SOCKET_H

#include <stddef.h>
#include <sys/types.h>

struct unix_socket {
	char *path;
	dev_t dev;
	ino_t ino;
};

/*
 * Makes the last directory as well. `type` is SOCK_STREAM, which listens then, or SOCK_DGRAM, which
 * is told who sent each message. What a daemon that is gone left there is replaced. Returns the
 * file descriptor, non-blocking, or a negative errno with a sentence in `why`: -EADDRINUSE if
 * somebody serves it.
 */
int unix_socket_make(int type, const char *path, struct unix_socket *ret, char *why, size_t len);
/* Unless a successor has made its own there. One that was never made is fine. */
void unix_socket_remove(struct unix_socket *s);

#endif /* PW_UNIX_SOCKET_H */
