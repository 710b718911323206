// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <mntent.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/statfs.h>
#include <sys/stat.h>
#include <linux/magic.h>

#include "mounts.h"
#include "util.h"

/*
 * The root of the hierarchy has inode 1; a cgroup namespace or a bind mount shows a part of it.
 * Takes the file descriptor.
 */
static int check_root(int dir)
{
	_cleanup_(closep) int fd = dir;
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	return st.st_ino == 1 ? TAKE_FD(fd) : -EXDEV;
}

static int open_root(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? -errno : check_root(fd);
}

static int open_mounted(const char *type, const char *option)
{
	FILE *mounts = setmntent("/proc/self/mounts", "re");
	struct mntent *m;
	int fd = -ENOENT;

	if (!mounts)
		return -errno;
	while (fd < 0 && (m = getmntent(mounts)))
		if (strcmp(m->mnt_type, type) == 0 && (!option || hasmntopt(m, option)))
			fd = open_root(m->mnt_dir);
	endmntent(mounts);
	return fd;
}

static int open_detached(void)
{
	_cleanup_(closep) int fs = fsopen("cgroup2", FSOPEN_CLOEXEC);
	int fd;

	if (fs < 0)
		return -errno;
	if (fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0)
		return -errno;
	fd = fsmount(fs, FSMOUNT_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	return check_root(fd);
}

int mounts_open_cgroup2(void)
{
	int fd = open_mounted("cgroup2", NULL);

	return fd >= 0 ? fd : open_detached();
}

int mounts_open_systemd(void)
{
	return open_mounted("cgroup", "name=systemd");
}

int mounts_ensure_bpffs(void)
{
	struct statfs fs;

	if (statfs("/sys/fs/bpf", &fs) < 0)
		return -errno;
	if ((unsigned long)fs.f_type == BPF_FS_MAGIC)
		return 0;
	if (mount("bpffs", "/sys/fs/bpf", "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=700") < 0)
		return -errno;
	return 0;
}
