// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dirent.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "borrow.h"
#include "util.h"

static bool is_socket(int dir, const char *name)
{
	char target[16];

	return readlinkat(dir, name, target, sizeof(target)) > 0 &&
	       strncmp(target, "socket:", strlen("socket:")) == 0;
}

static void borrow(int pidfd, int fd, void (*each)(int fd, int state, void *arg), void *arg)
{
	_cleanup_(closep) int ours = syscall(SYS_pidfd_getfd, pidfd, fd, 0);
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);

	/* every other protocol refuses the option */
	if (ours >= 0 && getsockopt(ours, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 &&
		info.tcpi_state != TCP_CLOSE)
		each(ours, info.tcpi_state, arg);
}

void borrow_tcp_sockets(pid_t pid, void (*each)(int fd, int state, void *arg), void *arg)
{
	_cleanup_(closep) int pidfd = syscall(SYS_pidfd_open, pid, 0);
	_cleanup_(closedirp) DIR *dir = NULL;
	struct dirent *entry;
	char path[32];

	if (pidfd < 0)
		return;
	snprintf(path, sizeof(path), "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (is_socket(dirfd(dir), entry->d_name))
			borrow(pidfd, atoi(entry->d_name), each, arg);
}
