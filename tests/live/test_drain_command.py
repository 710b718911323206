# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""`phasewatch drain`: it returns when the last arrival is as long ago as was asked for, not before
and not a second later; or says why not."""

import configparser
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import cgroup
import docs
import harness
import peers
import pytest
import yaml
from container import Container
from expect import now_ns
from harness import DEADLINE, NOBODY, wait_until
from peers import Kept, fill
from test_handover import start_wrk

MS = 10**6
S = 10**9


class Hook:
    """The command, under way."""

    def __init__(self, daemon, *options, process=None, **more):
        self.daemon = daemon
        self.process = process or subprocess.Popen(
            [str(daemon.binary), "drain", "--socket", str(daemon.socket), *map(str, options)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )

    def wait_draining(self, ident, kind="process"):
        """Its first look comes after that."""

        def draining():
            found = json.loads(self.daemon.get(f"/v1/subjects?kind={kind}&id={ident}"))["subjects"]
            return found and found[0]["phase"] == "DRAIN"

        wait_until(draining, f"{kind} {ident} drains")
        return self

    def check_waits(self, ns=300 * MS):
        """So long, at least."""
        begin = now_ns()
        wait_until(lambda: now_ns() > begin + ns, "time passes")
        assert self.process.poll() is None, self.process.communicate()

    def end(self, code=0):
        """When it ended."""
        self.out, self.err = self.process.communicate(timeout=3 * DEADLINE)
        ended = now_ns()
        assert self.process.returncode == code, (self.process.returncode, self.out, self.err)
        return ended

    def progress(self):
        """The lines that tell what it waits for."""
        return [line for line in self.err.splitlines() if line.startswith("waited ")]


def last(lines):
    return lines.splitlines()[-1]


def arrivals(accepts, requests):
    connections = f"{accepts} new connection{'' if accepts == 1 else 's'}"
    return f"{connections} and {requests} late request{'' if requests == 1 else 's'}"


@pytest.fixture
def served(daemon, listening):
    """An actor in ACTIVE that listens."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    return one


def connect(one, kept=0):
    """One more connection, which is closed at once."""
    with peers.open_connection("127.0.0.1", one.port):
        one.call("accept", 1)
        one.call("close_connections", [kept])


# The end ------------------------------------------------------------------------------------


def test_quiet(daemon, served):
    """Connections and requests, each within 2 s of the one before."""
    with Kept(served, 3) as kept:
        kept.ask(range(3))
        peers.next_tick()
        hook = Hook(daemon, "--pid", served.pid, "--inflight", 3).wait_draining(served.pid)
        for i in range(11):
            begin = now_ns()
            if i % 2:
                kept.ask([i % 3])
            else:
                connect(served, kept=3)
            latest = now_ns()
            hook.check_waits()
        ended = hook.end()
    assert begin + 2 * S <= ended <= latest + 3 * S
    assert arrivals(6, 5) in hook.out
    assert "in flight 3 at the start, 3 at the end" in hook.out
    assert hook.out.count("\n") == 1
    assert hook.out.startswith(f"python3[{served.pid}]: drained after ")
    assert daemon.subject(served.pid)["phase"] == "DRAIN"


def test_nothing_arrives(daemon, served):
    begin = now_ns()
    hook = Hook(daemon, "--pid", served.pid, "--quiet", "700ms", "--reason", "rolling update")
    ended = hook.end()
    assert begin + 700 * MS <= ended <= begin + 1700 * MS
    assert arrivals(0, 0) in hook.out
    assert "no arrival for " in hook.out
    shown = daemon.subject(served.pid)
    assert shown["reason"] == "rolling update"
    assert shown["quiet_ns"] >= 700 * MS
    assert "settle_ns" not in shown


@pytest.mark.parametrize("left", [0, 2])
def test_in_flight(daemon, served, left):
    with Kept(served, 5):
        options = ("--quiet", "50ms", "--inflight", left)
        hook = Hook(daemon, "--pid", served.pid, *options).wait_draining(served.pid)
        for _ in range(5 - left):
            hook.check_waits()
            begin = now_ns()
            served.call("close_connections", [0])
        ended = hook.end()
    assert begin <= ended <= begin + S
    assert f"in flight 5 at the start, {left} at the end" in hook.out


def test_in_nobodys_hands(daemon, served):
    """Connections that wait to be accepted, and closed ones whose data the client has not read."""
    with Kept(served, 2) as kept:
        hook = Hook(daemon, "--pid", served.pid, "--quiet", "50ms").wait_draining(served.pid)
        for i in range(2):
            served.call("send_all", i)
        served.call("close_connections")
        hook.check_waits()
        with fill(served.port, 3):
            for sock in kept.sockets:
                while sock.recv(1 << 20):
                    pass
            hook.check_waits()
            served.call("accept", 3)
            served.call("close_connections")
            begin = now_ns()
        ended = hook.end()
    assert begin <= ended <= begin + S
    assert arrivals(3, 0) in hook.out


def test_load(daemon, server):
    """wrk on kept-alive connections; nginx logs what it has served."""
    s = server("nginx")
    log = Path(s.directory, "access.log")

    def logged():
        return len(log.read_text().splitlines())

    daemon.declare("ACTIVE", s.pid)
    with start_wrk(s.port, 3, 8) as wrk:
        wait_until(lambda: logged() > 100, "wrk is at work")
        least = logged()
        hook = Hook(daemon, "--pid", s.pid, "-o", "json").wait_draining(s.pid)
        most = logged()
        wrk.communicate()
        latest = now_ns()
    ended = hook.end()
    # when the log was written to, in units of the kernel's clock tick
    begin = log.stat().st_mtime_ns - (time.time_ns() - now_ns()) - 20 * MS
    assert begin + 2 * S <= ended <= latest + 3 * S
    said = json.loads(hook.out)
    assert logged() - most - 8 <= said["arrivals"]["requests"] <= logged() - least
    assert said["inflight"] == {"start": 8, "end": 0}


@pytest.mark.parametrize("kind", ["process", "cgroup"])
def test_subject_exits(daemon, listening, cgroups, kind):
    """Whatever else it would have waited for."""
    one = listening()
    target, ident = ("--pid", one.pid), one.pid
    if kind == "cgroup":
        top = cgroups("top")
        top.add(one.pid)
        target, ident = ("--cgroup", top.path), top.id
    with Kept(one, 3):
        hook = Hook(daemon, *target, "--quiet", "1h").wait_draining(ident, kind)
        connect(one, kept=3)
        hook.check_waits()
        begin = now_ns()
        one.die("SIGKILL")
        ended = hook.end()
    assert begin <= ended <= begin + S
    assert "all its processes have exited" in hook.out
    assert arrivals(1, 0) in hook.out


def test_json(daemon, served):
    with Kept(served, 5) as kept:
        kept.ask(range(5))
        peers.next_tick()
        options = ("--quiet", "300ms", "--inflight", 5, "-o", "json")
        begin = now_ns()
        hook = Hook(daemon, "--pid", served.pid, *options).wait_draining(served.pid)
        for _ in range(7):
            connect(served, kept=5)
        kept.ask([0, 1, 2])
        ended = hook.end()
    said = json.loads(hook.out)
    assert (said["schema"], said["outcome"]) == (1, "drained")
    assert said["subject"]["id"] == served.pid
    assert said["arrivals"] == {"accepts": 7, "requests": 3}
    assert said["inflight"] == {"start": 5, "end": 5}
    assert 300 * MS <= said["quiet_ns"] <= said["waited_ns"] <= ended - begin


# What does not count ------------------------------------------------------------------------


def test_grace(own_daemon, listening):
    """Arrivals are expected so long; the quiet time begins when that is over."""
    own_daemon.options = ["--grace", "1s"]
    own_daemon.start()
    one = listening()
    own_daemon.declare("ACTIVE", one.pid)
    begin = now_ns()
    hook = Hook(own_daemon, "--pid", one.pid, "--quiet", "500ms").wait_draining(one.pid)
    declared = now_ns()
    connect(one)
    ended = hook.end()
    assert begin + 1500 * MS <= ended <= declared + 2500 * MS
    assert arrivals(0, 0) in hook.out


def test_ignored(own_daemon, listening, client):
    """A prober goes on and on: it is not waited for, but a user's arrival in between is. (In flight
    its connections are like all others.)"""
    prober, one = client(), listening()
    own_daemon.options = ["--ignore-client", prober.comm]
    own_daemon.start()
    own_daemon.declare("ACTIVE", one.pid)
    options = ("--quiet", "1s", "--inflight", 3)
    hook = Hook(own_daemon, "--pid", one.pid, *options).wait_draining(one.pid)
    begin = now_ns()
    connect(one)
    latest = now_ns()
    while hook.process.poll() is None:
        prober.call("connect", "127.0.0.1", one.port, True)
        one.call("accept", 1)
        one.call("close_connections")
        prober.call("close_connections")
        assert now_ns() < latest + 3 * S
    ended = hook.end()
    assert begin + 1 * S <= ended <= latest + 2 * S
    assert arrivals(1, 0) in hook.out


# Already under way --------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["DRAIN", "SHUTDOWN"])
def test_already(daemon, served, phase):
    """What it was quiet for before counts; arrivals before do not."""
    daemon.declare(phase, served.pid, "--epoch", "7", "--reason", "first")
    begin = now_ns()
    connect(served)
    latest = now_ns()
    wait_until(lambda: daemon.subject(served.pid)["quiet_ns"] > 400 * MS, "it is quiet")
    hook = Hook(daemon, "--pid", served.pid, "--quiet", "800ms", "--reason", "second")
    ended = hook.end()
    assert begin + 800 * MS <= ended <= latest + 1800 * MS
    assert arrivals(0, 0) in hook.out
    shown = daemon.subject(served.pid)
    assert (shown["phase"], shown["reason"], shown["subject"]["epoch"]) == (phase, "first", 7)
    begin = now_ns()
    assert Hook(daemon, "--pid", served.pid, "--quiet", "800ms").end() <= begin + 800 * MS


def test_older_epoch(daemon, served):
    daemon.declare("SHUTDOWN", served.pid, "--epoch", "7")
    hook = Hook(daemon, "--pid", served.pid, "--epoch", 6)
    hook.end(4)
    assert "epoch 6" in hook.err and "epoch 7" in hook.err


def test_somebody_moves_it_on(daemon, served):
    hook = Hook(daemon, "--pid", served.pid, "--quiet", "1h").wait_draining(served.pid)
    daemon.declare("ACTIVE", served.pid, "--epoch", "2")
    hook.end(1)
    assert "moved on to ACTIVE of epoch 2" in last(hook.err)
    assert hook.out == ""


def test_somebody_takes_it_away(daemon, served):
    hook = Hook(daemon, "--pid", served.pid, "--quiet", "1h", "-o", "json")
    hook.wait_draining(served.pid)
    key = (1).to_bytes(4, "little") + bytes(4) + served.pid.to_bytes(8, "little")
    done = ["bpftool", "map", "delete", "pinned", str(daemon.pin_dir / "pw_phases"), "key"]
    subprocess.run([*done, *map(str, key)], check=True)
    hook.end(1)
    assert "took its declaration away" in last(hook.err)
    assert json.loads(hook.out)["outcome"] == "moved"


# When it does not end -----------------------------------------------------------------------


def test_timeout(daemon, served, client):
    """Says what is still there, and from whom."""
    user = client()
    begin = now_ns()
    hook = Hook(daemon, "--pid", served.pid, "--timeout", "1500ms").wait_draining(served.pid)
    with Kept(served, 2):
        least, made = 0, 2
        while hook.process.poll() is None:
            user.call("connect", "127.0.0.1", served.port)
            served.call("accept", 1)
            served.call("close_connections", [2])
            made += 1
            if now_ns() < begin + 1500 * MS:
                least = made
        ended = hook.end(5)
    assert begin + 1500 * MS <= ended <= begin + 2500 * MS
    said = last(hook.err)
    assert said.startswith(f"phasewatch: python3[{served.pid}]: not drained after 1.5")
    assert re.search(r"in flight 0 at the start, [23] at the end$", said)
    assert re.search(r", last arrival [\d.]+[mu]s ago, from ", said)
    assert f"{user.comm}[{user.pid}] " in said
    counted = int(re.search(r"(\d+) new connections", said)[1])
    assert least <= counted <= made
    assert hook.out == ""
    assert daemon.subject(served.pid)["phase"] == "DRAIN"


def test_timeout_at_once(daemon, served):
    """One look."""
    hook = Hook(daemon, "--pid", served.pid, "--timeout", "0", "-o", "json")
    hook.end(5)
    assert json.loads(hook.out)["outcome"] == "timeout"
    assert Hook(daemon, "--pid", served.pid, "--timeout", "0", "--quiet", "0").end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(daemon, served, number):
    hook = Hook(daemon, "--pid", served.pid, "--quiet", "1h").wait_draining(served.pid)
    hook.check_waits()
    hook.process.send_signal(number)
    hook.end(-number)
    assert f"stays in DRAIN, interrupted by {number.name}" in last(hook.err)
    assert daemon.subject(served.pid)["phase"] == "DRAIN"


def test_ignored_signal(daemon, served):
    """As a shell has it for what it runs in the background."""

    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    hook = Hook(daemon, "--pid", served.pid, "--quiet", "1s", preexec_fn=ignore)
    hook.wait_draining(served.pid)
    hook.process.send_signal(signal.SIGINT)
    hook.end()


# The daemon goes ----------------------------------------------------------------------------


def test_restart(own_daemon, listening):
    """The kernel half goes on meanwhile: what arrives without a daemon is waited for as well."""
    own_daemon.start()
    one = listening()
    own_daemon.declare("ACTIVE", one.pid)
    hook = Hook(own_daemon, "--pid", one.pid).wait_draining(one.pid)
    connect(one)
    own_daemon.kill()
    hook.check_waits(1200 * MS)
    for _ in range(3):
        begin = now_ns()
        connect(one)
        latest = now_ns()
    own_daemon.start()
    ended = hook.end()
    assert begin + 2 * S <= ended <= latest + 3 * S
    assert arrivals(4, 0) in hook.out
    assert any("the daemon does not answer" in line for line in hook.progress())


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_daemon_does_not_come_back(own_daemon, listening, how):
    """Gone, or silent."""
    own_daemon.start()
    one = listening()
    begin = now_ns()
    hook = Hook(own_daemon, "--pid", one.pid, "--timeout", "2500ms").wait_draining(one.pid)
    if how == "kill":
        own_daemon.kill()
    else:
        own_daemon.process.send_signal(signal.SIGSTOP)
    try:
        ended = hook.end(3)
    finally:
        if how == "stop":
            own_daemon.process.send_signal(signal.SIGCONT)
    assert begin + 2500 * MS <= ended <= begin + 4500 * MS
    assert str(own_daemon.socket) in last(hook.err)


def test_no_daemon(daemon, tmp_path):
    """Nothing is waited for."""
    begin = now_ns()
    done = daemon.run("drain", "--pid", str(os.getpid()), "--socket", str(tmp_path / "none"))
    assert done.returncode == 3
    assert now_ns() < begin + S
    assert str(tmp_path / "none") in done.stderr


# What it shows meanwhile --------------------------------------------------------------------


def test_progress_in_a_pipe(daemon, served):
    with Kept(served, 3):
        hook = Hook(daemon, "--pid", served.pid, "--quiet", "1500ms").wait_draining(served.pid)
        hook.check_waits(2500 * MS)
        served.call("close_connections")
        hook.end()
    lines = hook.progress()
    assert hook.err == "".join(f"{line}\n" for line in lines)
    seconds = [int(re.match(r"waited (\d+)\.\d+s of 25", line)[1]) for line in lines]
    assert len(seconds) >= 2 and seconds == list(range(1, len(seconds) + 1))
    assert re.search(r": 3 in flight, no arrival for 1\.\d+s$", lines[0])
    assert lines[1].endswith(": 3 in flight")


def test_progress_on_a_terminal(daemon, served):
    """One line, in place; at the end the summary stands there instead."""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as screen:
        process = subprocess.Popen(
            [str(daemon.binary), "drain", "--socket", str(daemon.socket), "--pid",
             str(served.pid), "--quiet", "2500ms"],
            stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody has it open any more
            while data := screen.read(4096):
                shown += data
        assert process.wait(DEADLINE) == 0
    first, *told, end = shown.decode().split("\r\x1b[K")
    assert first == ""
    assert len(told) >= 2, shown
    assert all(re.fullmatch(r"waited [\d.]+s of [\d.]+s: no arrival for [\d.]+s", t) for t in told)
    assert re.fullmatch(rf"python3\[{served.pid}\]: drained after 2\.[^\n]*\r\n", end)


# Whose --------------------------------------------------------------------------------------


def test_self(daemon):
    """Who runs it: here a shell, as nobody."""
    script = 'echo $$; "$@"; echo $?'
    done = subprocess.run(
        harness.as_nobody("sh", "-c", script, "sh", str(daemon.binary), "drain", "--quiet", "0",
                          "--socket", str(daemon.socket)),
        capture_output=True, text=True,
    )  # fmt: skip
    pid, said, code = done.stdout.splitlines()
    assert (code, done.stderr) == ("0", "")
    assert said.startswith(f"sh[{pid}]: drained")


@pytest.mark.parametrize(
    "options",
    [
        ["--quiet", "-1"],
        ["--quiet", "2h"],
        ["--timeout", "x"],
        ["--inflight", "-1"],
        ["--pid", "0"],
        ["--pid", "1", "--self"],
        ["--pid", "1", "--cgroup", "/"],
        ["-q"],
        ["DRAIN"],
    ],
    ids=" ".join,
)
def test_bad_options(daemon, options):
    done = daemon.cli("drain", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def container(daemon, public, cgroups):
    """Makes containers with the program and the daemon's socket in them."""
    made = []

    def make(user=0, mounts=None):
        mounts = mounts or {daemon.binary: "/phasewatch", daemon.directory: "/run/phasewatch"}
        root = tempfile.mkdtemp(prefix="phasewatch-test-")
        own = cgroups(f"container{len(made)}")
        made.append(Container(own, root, mounts, public / "servers", user))
        return made[-1]

    yield make
    for one in made:
        one.remove()


def drain_in(daemon, container, *options, **more):
    return Hook(daemon, process=container.start("/phasewatch", "drain", *options, **more))


@pytest.mark.parametrize("user", [0, NOBODY])
def test_container(daemon, container, user):
    """Whoever is put into it declares for it, if it is all its user's."""
    here, other = container(user), container(user)
    out, _ = here.start("/phasewatch", "declare", "ACTIVE", "--cgroup", "self").communicate()
    assert out.startswith(f"{here.cgroup.directory.name}: UNDECLARED -> ACTIVE, epoch 1, 2 proc")
    hook = drain_in(daemon, here, "--cgroup", "self", "--quiet", "1s")
    hook.wait_draining(here.cgroup.id, "cgroup")
    begin = now_ns()
    connect(here.actor)
    latest = now_ns()
    connect(other.actor)
    ended = hook.end()
    assert begin + S <= ended <= latest + 2 * S
    assert arrivals(1, 0) in hook.out
    assert hook.out.startswith(here.cgroup.directory.name)
    assert other.cgroup.id not in daemon.subjects("cgroup")


def test_container_of_another_user(daemon, container):
    here = container()
    hook = drain_in(daemon, here, "--cgroup", "self", user=NOBODY)
    hook.end(4)
    assert here.cgroup.path in hook.err
    assert here.cgroup.id not in daemon.subjects("cgroup")


def test_pid_in_a_container(daemon, container, actor):
    """Is what it means there. Nobody outside can be named."""
    here, outside = container(), actor()
    hook = drain_in(daemon, here, "--pid", "1", "--quiet", "300ms")
    hook.wait_draining(here.pid)
    connect(here.actor)
    hook.end()
    assert arrivals(1, 0) in hook.out
    assert hook.out.startswith(f"python3[{here.pid}]: ")
    hook = drain_in(daemon, here, "--pid", str(outside.pid))
    hook.end(1)
    assert str(outside.pid) in hook.err
    assert not {1, outside.pid} & daemon.subjects().keys()


def test_parent_outside_the_container(daemon, container):
    """A runtime put the hook there: that is not who serves."""
    hook = drain_in(daemon, container())
    hook.end(2)
    assert "pid namespace" in hook.err


def test_root_cgroup(daemon):
    """On a host with v1 hierarchies everybody is in it."""
    move = 'echo 0 >"$0/cgroup.procs" && exec "$@"'
    command = ["drain", "--cgroup", "self", "--socket", str(daemon.socket)]
    done = subprocess.run(
        ["sh", "-c", move, cgroup.mounted(), str(daemon.binary), *command], capture_output=True, text=True
    )
    assert done.returncode == 2, done
    assert "root cgroup" in done.stderr


# docs/drain.md, as it is written ------------------------------------------------------------


@pytest.mark.parametrize("user", [0, NOBODY])
def test_prestop(daemon, container, user):
    """The command of the pod's hook, put into a container with the pod's mounts."""
    spec = yaml.safe_load(docs.snippets("drain.md")["prestop"])["spec"]
    (described,) = spec["containers"]
    command = described["lifecycle"]["preStop"]["exec"]["command"]
    timeout = re.fullmatch(r"(\d+)s", command[command.index("--timeout") + 1])
    assert int(timeout[1]) + 10 <= spec["terminationGracePeriodSeconds"]
    on_host = {"/run/phasewatch": daemon.directory, "/usr/local/bin/phasewatch": daemon.binary}
    paths = {v["name"]: on_host[v["hostPath"]["path"]] for v in spec["volumes"]}
    mounts = {paths[m["name"]]: m["mountPath"] for m in described["volumeMounts"]}
    assert all(m["readOnly"] for m in described["volumeMounts"])
    here = container(user, mounts)
    hook = Hook(daemon, process=here.start(*command))
    hook.wait_draining(here.cgroup.id, "cgroup")
    for _ in range(5):
        begin = now_ns()
        connect(here.actor)
    latest = now_ns()
    ended = hook.end()
    assert begin + 2 * S <= ended <= latest + 3 * S
    assert arrivals(5, 0) in hook.out


# A host with the program and the socket where they are installed.
HOST = """
set -e
mount -t tmpfs host /usr/local/bin
cp "$1" /usr/local/bin/phasewatch
mount -t tmpfs host /run
mkdir /run/phasewatch
mount --bind "$2" /run/phasewatch
exec sh -c "$3"
"""


def test_execstop(daemon, server):
    unit = configparser.ConfigParser()
    unit.read_string(docs.snippets("drain.md")["execstop"])
    command = unit["Service"]["ExecStop"].lstrip("-@:+!")
    timeout = re.search(r"--timeout (\d+)s$", command)
    assert int(timeout[1]) + 10 <= int(unit["Service"]["TimeoutStopSec"])
    s = server("nginx")
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", HOST, "sh", str(daemon.binary), str(daemon.directory),
         command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MAINPID": str(s.pid)},
    )  # fmt: skip
    hook = Hook(daemon, process=process).wait_draining(s.pid)
    for _ in range(5):
        begin = now_ns()
        peers.connect_and_ask("127.0.0.1", s.port, 1)
    latest = now_ns()
    ended = hook.end()
    assert begin + 2 * S <= ended <= latest + 3 * S
    assert arrivals(5, 0) in hook.out
