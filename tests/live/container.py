# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Containers as far as a hook can tell one: a pid namespace, a mount namespace with a root
directory of its own and what is mounted there (read only), and a cgroup; and processes that are put
into one from outside, as a runtime does it."""

import os
import subprocess

import peers

# The root directory has what the machine has, without what runs there, and what is mounted into it.
MAKE = """
set -e
cgroup=$1 root=$2
shift 2
mount -t tmpfs container "$root"
for entry in /*; do
    case $entry in /proc | /run) continue ;; esac
    if [ -L "$entry" ]; then
        cp -P "$entry" "$root"
    elif [ -d "$entry" ]; then
        mkdir "$root$entry"
        mount --bind "$entry" "$root$entry"
    fi
done
mkdir "$root/proc" "$root/run"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$2"; else : >"$root$2"; fi
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
    shift 2
done
shift
echo 0 >"$cgroup/cgroup.procs"
exec chroot "$@"
"""
ENTER = 'echo 0 >"$0/cgroup.procs" && exec chroot "$@"'


def in_root(root, user):
    return [f"--userspec={user}:{user}", "--groups=", str(root)]


class Container:
    """Its process 1 is an actor, which listens."""

    def __init__(self, cgroup, root, mounts, scripts, user=0):
        self.cgroup = cgroup
        self.root = root
        self.user = user
        pairs = [str(path) for pair in mounts.items() for path in pair]
        make = ["sh", "-c", MAKE, "sh", str(cgroup.directory), str(root), *pairs, "--"]
        prefix = ["unshare", "--mount", "--pid", "--fork", *make, *in_root(root, user)]
        self.actor = peers.Actor(prefix, scripts=scripts)
        self.actor.port = self.actor.call("listen", "127.0.0.1")
        (self.pid,) = peers.children(self.actor.pid)

    def start(self, *command, user=None):
        """In it, by somebody outside."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid"]
        user = self.user if user is None else user
        put = ["sh", "-c", ENTER, str(self.cgroup.directory), *in_root(self.root, user)]
        return subprocess.Popen(
            [*enter, *put, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def remove(self):
        self.actor.stop()
        os.rmdir(self.root)
