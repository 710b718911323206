# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""phasewatch exec: a command that is a subject from its first moment on."""

import os
import signal
import subprocess

import expect
import pytest
from harness import DEADLINE, as_nobody
from peers import Held
from test_signals import phases


@pytest.fixture
def executed(daemon, public):
    """The prefix of a command that is run by exec."""
    return lambda *options: [
        str(public / "phasewatch"), "exec", "--socket", str(daemon.socket), *options, "--"
    ]  # fmt: skip


INIT = ("UNDECLARED", "INIT", "api")
ACTIVE = ("INIT", "ACTIVE", "listen")
DRAIN = ("ACTIVE", "DRAIN", "signal")


@pytest.mark.parametrize("who", ["itself", "a child"])
def test_life(daemon, watch, actor, executed, who):
    one = actor(executed("--epoch", "7", "--reason", "a release"))
    one.call("catch", "SIGTERM")
    assert phases(watch.collect(), one.pid) == [INIT]
    if who == "itself":
        port = one.call("listen", "127.0.0.1")
    else:
        child = one.call("fork_actor", True)
        port = one.call("tell_child", child, "listen", "127.0.0.1")

    def arrive(count):
        with Held("127.0.0.1", port, count) as held:
            if who == "itself":
                one.call("accept", count)
            else:
                one.call("tell_child", child, "accept", count)
        return held.made

    # Nothing that arrives is too early: it is ACTIVE before listen(2) returns.
    arrive(23)
    os.kill(one.pid, signal.SIGTERM)
    made = arrive(5)
    events = watch.collect()
    expect.accepts(events, made, one.pid, one.pid if who == "itself" else child)
    assert phases(events, one.pid) == [INIT, ACTIVE, DRAIN]
    first = expect.of_type(events, "phase")[0]
    assert (first["epoch"], first["reason"]) == (7, "a release")
    # It has the command's name, not phasewatch's.
    assert daemon.subject(one.pid)["subject"]["name"].startswith("python3")


def test_before_it_listens(daemon, watch, actor, executed):
    """What it accepts in INIT came by a listener that it was given."""
    one, other = actor(executed()), actor()
    other.port = other.call("listen", "127.0.0.1")
    other.hand_over("listener", one)
    with Held("127.0.0.1", other.port, 3) as held:
        one.call("accept", 3)
        expect.accepts(watch.collect(), held.made, one.pid, one.pid, phase="INIT")


def test_from_its_first_moment_on(daemon, watch, listening, executed):
    """What the command does first is its subject's doing already."""
    target = listening()
    before = daemon.metrics().connections(direction="connect", phase="INIT")
    script = f"exec 3<>/dev/tcp/127.0.0.1/{target.port}"
    for _ in range(5):
        subprocess.run([*executed(), "bash", "-c", script], check=True)
    watch.collect()
    after = daemon.metrics().connections(direction="connect", phase="INIT")
    assert after - before == 5


def test_ready(watch, executed):
    """Who does not listen says by sd_notify(3) when it is ready."""
    with subprocess.Popen([*executed(), "sh", "-c", "systemd-notify --ready; exit 3"]) as process:
        assert process.wait(DEADLINE) == 3
    assert phases(watch.collect(), process.pid) == [INIT, ("INIT", "ACTIVE", "sdnotify")]


def test_somebody_elses_notify_socket(executed):
    """Such as systemd's, which waits for READY=1."""
    done = subprocess.run(
        [*executed(), "sh", "-c", "echo $NOTIFY_SOCKET"],
        env={**os.environ, "NOTIFY_SOCKET": "/run/systemd/notify"},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert done.stdout == "/run/systemd/notify\n"


@pytest.mark.parametrize("script, code", [
    ("exit 0", 0),
    ("exit 7", 7),
    ("kill -KILL $$", -signal.SIGKILL),
    ("kill -TERM $$", -signal.SIGTERM),
    ("kill -PIPE $$", -signal.SIGPIPE),
])  # fmt: skip
def test_end(executed, script, code):
    assert subprocess.run([*executed(), "sh", "-c", script]).returncode == code


def test_streams_and_arguments(executed):
    script = 'cat; echo "$#: $*"; echo error >&2'
    done = subprocess.run(
        [*executed(), "sh", "-c", script, "sh", "--pid", "-x"],
        input="input\n", capture_output=True, text=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("input\n2: --pid -x\n", "error\n")


def test_as_nobody(watch, executed):
    with subprocess.Popen(as_nobody(*executed(), "true")) as process:
        assert process.wait(DEADLINE) == 0
    assert phases(watch.collect(), process.pid) == [INIT]


def test_command_that_cannot_be_run(executed, directories):
    done = subprocess.run([*executed(), "no-such-command"], capture_output=True, text=True)
    assert done.returncode == 127 and "no-such-command" in done.stderr
    done = subprocess.run([*executed(), directories()], capture_output=True, text=True)
    assert done.returncode == 126, done
    done = subprocess.run(executed(), capture_output=True, text=True)
    assert done.returncode == 2 and "phasewatch exec --help" in done.stderr


def test_without_a_daemon(own_daemon, public):
    """A service does not depend on its observer, unless it is told to."""
    command = [str(public / "phasewatch"), "exec", "--socket", str(own_daemon.socket)]
    done = subprocess.run([*command, "echo", "runs"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "runs\n")
    assert str(own_daemon.socket) in done.stderr
    done = subprocess.run([*command, "--require", "echo", "runs"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "")
