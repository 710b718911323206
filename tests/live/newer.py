# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Packages of a newer Debian than this one, unpacked where a test wants them: nothing is installed."""

import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader

import pytest
from harness import REPO

SUITE = "trixie"


def unpack(package, directory):
    """Skips the test where the machine's mirror does not give it."""
    loader = SourceFileLoader("kernels", str(REPO / "tests/kernels/run"))
    kernels = module_from_spec(spec_from_loader("kernels", loader))
    loader.exec_module(kernels)
    try:
        apt = kernels.Apt(kernels.CACHE.parent / "apt")
        done = apt.run("apt-get", "-q", "download", f"{package}/{SUITE}", cwd=directory)
    except kernels.Skip as e:
        pytest.skip(str(e))
    if done.returncode:
        pytest.skip(f"cannot download {package} of {SUITE}: {kernels.last_line(done.stderr)}")
    for deb in directory.glob(f"{package}_*.deb"):
        subprocess.run(["dpkg-deb", "-x", deb, directory], check=True)
    return directory
