# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Cgroups that tests make."""

import contextlib
import os
import signal
from pathlib import Path

from harness import wait_until


def mounted(kind="cgroup2", option=""):
    """The root of a hierarchy; None: it is not mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, is_kind, options, *_ = line.split()
        if is_kind == kind and option in ["", *options.split(",")]:
            return Path(where)
    return None


class Cgroup:
    """A directory of cgroup2, or of v1. `path` is how /proc/PID/cgroup shows it."""

    def __init__(self, root, directory):
        self.root = root
        self.directory = directory
        self.directory.mkdir()
        self.path = "/" + str(self.directory.relative_to(root))
        self.id = self.directory.stat().st_ino

    def add(self, pid):
        (self.directory / "cgroup.procs").write_text(str(pid))

    def pids(self):
        return [int(pid) for pid in (self.directory / "cgroup.procs").read_text().split()]

    def remove(self):
        def removed():
            with contextlib.suppress(OSError):
                self.directory.rmdir()
            return not self.directory.exists()

        wait_until(removed, f"{self.directory} is empty and removed")


def remove(cgroups):
    """With whoever is in them."""
    for pid in (pid for one in cgroups for pid in one.pids()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for one in reversed(cgroups):
        one.remove()
