/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* File systems the kernel half needs, found by type: hosts mount them in different places. */
#ifndef PW_MOUNTS_H
#define PW_MOUNTS_H

/*
 * A file descriptor of the root of the cgroup v2 hierarchy, wherever it is mounted; where it is not,
 * of a mount of our own that no path shows. Negative errno; -EXDEV: a cgroup namespace hides the
 * root.
 */
int mounts_open_cgroup2(void);

/*
 * The same of the v1 hierarchy in which systemd keeps its units where cgroup v2 does not have all that
 * is (hybrid hosts). Negative errno; -ENOENT: there is none.
 */
int mounts_open_systemd(void);

/* Mounts a BPF file system on /sys/fs/bpf unless one is there. Negative errno. */
int mounts_ensure_bpffs(void);

#endif /* PW_MOUNTS_H */
