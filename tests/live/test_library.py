# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""libphasewatch as `make install` leaves it: programs in C and C++ that declare themselves."""

import errno
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from harness import DEADLINE, NOBODY, SERVERS, as_nobody

EXPORTED = {"pw_declare", "pw_declare_to", "pw_last_error"}
INIT, ACTIVE, DRAIN, SHUTDOWN = range(1, 5)
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread"]
COMPILERS = {
    "c": ["gcc", "-std=c11", *STRICT, SERVERS / "declare.c"],
    "c++": ["g++", "-std=c++11", *STRICT, SERVERS / "declare.cc"],
}


def said(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def pkg_config(installed, *what):
    command = ["pkg-config", *what, "phasewatch"]
    shown = subprocess.check_output(command, env=installed.environment, text=True)
    return shown.split()


@pytest.fixture(scope="module")
def build(installed, directories):
    """Builds declare.c or declare.cc, once each."""
    made = {}

    def make(language, linked="shared"):
        if (language, linked) not in made:
            libs = pkg_config(installed, "--libs")
            if linked == "static":
                libs = [installed.lib / "libphasewatch.a"]
            program = f"{directories()}/declare"
            cflags = pkg_config(installed, "--cflags")
            subprocess.run([*COMPILERS[language], *cflags, "-o", program, *libs], check=True)
            made[language, linked] = program
        return made[language, linked]

    return make


@pytest.fixture
def declare(daemon, installed):
    """Runs one of these programs as nobody: (pid, result, error) of each declaration."""

    def run(program, *arguments, prefix=()):
        done = subprocess.run(
            as_nobody(*prefix, program, *arguments),
            env={**installed.environment, "PHASEWATCH_SOCKET": str(daemon.socket)},
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done
        lines = (line.split(" ", 2) for line in done.stdout.splitlines())
        return [(int(pid), int(result), error) for pid, result, error in lines]

    return run


@pytest.mark.parametrize(
    "language, linked", [("c", "shared"), ("c", "static"), ("c++", "shared"), ("c++", "static")]
)
def test_declarations(watch, build, declare, language, linked):
    reasons = ["starting", 'ready: "\\" \x7f\t€', "x" * 55]
    arguments = [f"{phase}:0:{reasons[phase - 1]}" for phase in (INIT, ACTIVE, DRAIN)]
    made = declare(build(language, linked), *arguments)
    pid = made[0][0]
    assert made == [(pid, 0, "")] * 3
    events = watch.collect("phase")
    moves = [("UNDECLARED", "INIT"), ("INIT", "ACTIVE"), ("ACTIVE", "DRAIN")]
    assert [(e["from"], e["to"]) for e in events] == moves
    assert [e["reason"] for e in events] == reasons
    assert {(e["subject"]["id"], e["epoch"], e["source"]) for e in events} == {(pid, 1, "api")}
    assert [e["by"] for e in events] == [{"pid": pid, "uid": NOBODY, "comm": "declare"}] * 3


def test_refusals(watch, build, declare):
    """Each leaves what is in force."""
    made = declare(build("c"), "3:7:", "2:0:", "3:6:", "3:7:", "2:8:")
    assert [-result for _, result, _ in made] == [0, errno.ESTALE, errno.ESTALE, 0, 0]
    backward, stale = made[1][2], made[2][2]
    assert "ACTIVE" in backward and "DRAIN" in backward and "epoch 7" in backward
    assert "epoch 6" in stale and "epoch 7" in stale
    events = watch.collect("phase")
    assert [(e["to"], e["epoch"]) for e in events] == [("DRAIN", 7), ("ACTIVE", 8)]
    assert "reason" not in events[0]


def test_after_fork(watch, build, declare):
    """A child declares itself, and nothing for its parent."""
    parent, child = declare(build("c"), "2:0:parent", "fork", "3:0:child")
    assert parent[0] != child[0]
    assert parent[1] == child[1] == 0
    events = [(e["subject"]["id"], e["to"], e["reason"]) for e in watch.collect("phase")]
    assert events == [(parent[0], "ACTIVE", "parent"), (child[0], "DRAIN", "child")]


def test_daemon_that_hangs(daemon, build, declare):
    """A service on its way out is not held up."""
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        made = declare(build("c"), "3:0:")
        took = time.monotonic() - begin
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    assert made[0][1:] == (
        -errno.ETIMEDOUT,
        f"the daemon at {daemon.socket} did not answer within 2000 ms",
    )
    assert 2 <= took < 5


def test_no_daemon(own_daemon, build, installed):
    done = subprocess.run(
        [build("c"), "3:0:"],
        env={**installed.environment, "PHASEWATCH_SOCKET": str(own_daemon.socket)},
        capture_output=True,
        text=True,
    )
    error = f"cannot connect to {own_daemon.socket}: No such file or directory"
    assert re.fullmatch(rf"\d+ -{errno.ENOENT} {error}\n", done.stdout), done


def test_leaks(build, declare):
    if not shutil.which("valgrind"):
        pytest.skip("valgrind is not installed")
    valgrind = ["valgrind", "-q", "--leak-check=full", "--show-leak-kinds=all",
                "--errors-for-leak-kinds=all", "--error-exitcode=99"]  # fmt: skip
    made = declare(build("c"), "2:7:ready", "3:6:stale", "9:0:", "3:0:\udcff", prefix=valgrind)
    assert [-result for _, result, _ in made] == [0, errno.ESTALE, errno.EINVAL, errno.EINVAL]


# What is installed --------------------------------------------------------------------------


def test_exported_symbols(installed):
    shown = said("nm", "-D", "--defined-only", installed.lib / "libphasewatch.so")
    assert {line.split()[-1] for line in shown.splitlines()} == EXPORTED
    shown = said("nm", "-g", "--defined-only", installed.lib / "libphasewatch.a")
    assert set(re.findall(r"^\w+ \w (\w+)$", shown, re.MULTILINE)) == EXPORTED


def test_shared_object(installed):
    names = {p.name: os.readlink(p) for p in installed.lib.glob("*.so*") if p.is_symlink()}
    version = pkg_config(installed, "--modversion")[0]
    assert names == {
        "libphasewatch.so": "libphasewatch.so.0",
        "libphasewatch.so.0": f"libphasewatch.so.{version}",
    }
    shown = said("readelf", "-d", installed.lib / "libphasewatch.so")
    assert re.findall(r"SONAME.*\[(.*)\]", shown) == ["libphasewatch.so.0"]
    needed = re.findall(r"NEEDED.*\[(.*)\]", shown)
    assert [name for name in needed if not name.startswith("ld-")] == ["libc.so.6"]
