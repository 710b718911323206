// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "unix_socket.h"
#include "util.h"

#define BACKLOG 512 /* more than one user may hold (api.c) */

/* True if somebody answers there, in whatever way: then it is not ours to replace. */
static bool is_served(int type, const struct sockaddr_un *addr)
{
	_cleanup_(closep) int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	return fd >= 0 && (connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0 ||
				  errno == EPROTOTYPE);
}

static int make_parent(const char *path)
{
	char dir[PATH_MAX], *slash;

	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	if (!slash || slash == dir)
		return 0;
	*slash = '\0';
	return mkdir(dir, 0755) < 0 && errno != EEXIST ? -errno : 0;
}

int unix_socket_make(int type, const char *path, struct unix_socket *ret, char *why, size_t len)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	_cleanup_(freep) char *copy = strdup(path);
	_cleanup_(closep) int fd = -1;
	static const int on = 1;
	struct stat st;
	int err;

	if (!copy)
		return fail_with(why, len, -ENOMEM, "out of memory");
	if (strlen(path) >= sizeof(addr.sun_path))
		return fail_with(why, len, -ENAMETOOLONG, "socket path %s is longer than %zu bytes",
			path, sizeof(addr.sun_path) - 1);
	strcpy(addr.sun_path, path);
	if (is_served(type, &addr))
		return fail_with(why, len, -EADDRINUSE, "another daemon serves %s", path);
	err = make_parent(path);
	if (err)
		return fail_with(why, len, err, "cannot make the directory of %s: %s", path,
			strerror(-err));
	if (lstat(path, &st) == 0 && S_ISSOCK(st.st_mode))
		unlink(path);
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 ||
		(type == SOCK_DGRAM &&
			setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0) ||
		bind(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return fail_with(why, len, -errno, "cannot listen on %s: %s", path, strerror(errno));
	/* Everybody may ask; what each may declare is decided for each request. */
	if (chmod(path, 0666) < 0 || lstat(path, &st) < 0 ||
		(type == SOCK_STREAM && listen(fd, BACKLOG) < 0)) {
		err = -errno;
		unlink(path);
		return fail_with(why, len, err, "cannot listen on %s: %s", path, strerror(-err));
	}
	*ret = (struct unix_socket){ TAKE_PTR(copy), st.st_dev, st.st_ino };
	return TAKE_FD(fd);
}

void unix_socket_remove(struct unix_socket *s)
{
	struct stat st;

	if (s->path && lstat(s->path, &st) == 0 && st.st_dev == s->dev && st.st_ino == s->ino)
		unlink(s->path);
	free(s->path);
	*s = (struct unix_socket){ 0 };
}
