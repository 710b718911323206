# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The end of member processes, against what wait(2) says of them."""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys

import expect
import pytest
from expect import now_ns
from harness import SERVERS, wait_until
from peers import Held, connect_and_ask, start_ns


def exits(events):
    return [e for e in events if e["type"] == "exit"]


@pytest.mark.parametrize("connections", [0, 3, 101])
@pytest.mark.parametrize("how", [0, 7, "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("phase", ["ACTIVE", "DRAIN"])
def test_exit(daemon, watch, actor, phase, how, connections):
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare(phase, one.pid)
    with Held("127.0.0.1", port, connections):
        one.call("accept", connections)
        if isinstance(how, int):
            one.begin("exit", how)
        else:
            os.kill(one.pid, getattr(signal, how))
        status = one.wait()
    (event,) = exits(watch.collect())
    assert event["process"]["pid"] == event["subject"]["id"] == one.pid
    assert event["phase"] == ("DRAIN" if how == "SIGTERM" else phase)
    assert event["phase_age_ns"] > 0
    assert event["open_connections"] == connections
    assert event.get("code") == (status if status >= 0 else None)
    assert event.get("signal") == (-status if status < 0 else None)


def test_outbound_and_closed_connections(daemon, watch, actor, server):
    """Outbound connections are open connections as well; closed ones and listeners are not."""
    s = server("nonblocking")
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("ACTIVE", one.pid)
    with Held("127.0.0.1", port, 7):
        one.call("accept", 7)
        one.call("close_connections")
        for _ in range(5):
            one.call("connect", "127.0.0.1", s.port, True)
        one.begin("exit", 0)
        one.wait()
    (event,) = exits(watch.collect())
    assert event["open_connections"] == 5


def test_threads(daemon, watch, server):
    """The end of a thread is not that of its process."""
    s = server("threads")
    daemon.declare("ACTIVE", s.pid)
    connect_and_ask("127.0.0.1", s.port, 23)
    assert watch.collect("exit") == []
    s.process.terminate()
    assert s.process.wait() == -signal.SIGTERM
    (event,) = watch.collect("exit")
    assert (event["process"]["pid"], event["signal"]) == (s.pid, signal.SIGTERM)


def test_workers(daemon, watch, server):
    s = server("prefork")
    workers = {s.line()["worker"] for _ in range(3)}
    daemon.declare("DRAIN", s.pid, "--epoch", "7")
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    for _ in workers:
        s.line()
    events = exits(watch.collect())
    assert {e["process"]["pid"]: e["signal"] for e in events} == dict.fromkeys(workers, 15)
    assert {(e["subject"]["id"], e["subject"]["epoch"]) for e in events} == {(s.pid, 7)}


def test_fork_for_each_connection(daemon, watch, server):
    s = server("fork-each")
    daemon.declare("ACTIVE", s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 37)
    wait_until(lambda: len(exits(watch.follower.events[watch.first :])) >= 37, "37 exits")
    events = exits(watch.collect())
    assert sorted(e["process"]["pid"] for e in events) == sorted(c.handler for c in made)
    assert {e["code"] for e in events} == {0}


def test_many_members(daemon, server):
    """Members come and go with each connection; only the declared process stays."""
    s = server("fork-each")
    daemon.declare("ACTIVE", s.pid)
    connect_and_ask("127.0.0.1", s.port, 1009)
    wait_until(lambda: daemon.subject(s.pid)["members"] <= 1, "all children are gone")
    subject = daemon.subject(s.pid)
    assert (subject["members"], subject["inflight"], subject["accepts"]) == (1, 0, 1009)


def test_exec(daemon, watch, actor):
    """exec keeps the pid and the phase; the event shows what the process was at its end."""
    one = actor()
    daemon.declare("DRAIN", one.pid)
    one.begin("execute", "/bin/sh", "-c", "exit 7")
    assert one.wait() == 7
    (event,) = exits(watch.collect())
    assert (event["process"]["pid"], event["code"]) == (one.pid, 7)
    assert event["process"]["comm"] == "sh"


def test_no_members(daemon, watch):
    """Processes of nobody, and the parent of a subject."""
    parent = subprocess.Popen(
        ["sh", "-c", "cat & echo $!; wait; exit 3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    subprocess.run(["true"], check=True)
    with parent:
        parent.stdout.readline()
        parent.kill()
    assert watch.collect() == []


def test_members_that_outlive_the_subject(daemon, watch, server):
    """The master is gone, its workers accept on: they are still its members."""
    s = server("prefork")
    workers = {s.line()["worker"] for _ in range(3)}
    daemon.declare("DRAIN", s.pid)
    os.kill(s.pid, signal.SIGKILL)
    s.process.wait()
    made = connect_and_ask("127.0.0.1", s.port, 23)
    assert {c.acceptor for c in made} <= workers
    events = watch.collect()
    expect.accepts(events, made, s.pid)
    assert [e["process"]["pid"] for e in exits(events)] == [s.pid]


# Reused pids --------------------------------------------------------------------------------

CLONE3 = 435
START_UNIT_NS = 10**7


def fork_with_pid(pid):
    """clone3(2) with set_tid; returns as fork(2) does. PyDLL keeps the interpreter's lock, which
    the child could not get otherwise."""
    libc = ctypes.PyDLL(None, use_errno=True)
    set_tid = (ctypes.c_int * 1)(pid)
    # struct clone_args: exit_signal is the fifth field, set_tid and its size are the last two
    arguments = (ctypes.c_uint64 * 10)(
        0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(set_tid), 1
    )  # fmt: skip
    result = libc.syscall(CLONE3, arguments, ctypes.sizeof(arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def group_exists(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.contextmanager
def server_with_pid(pid):
    """The port of a blocking server with this pid."""
    read_end, write_end = os.pipe()
    try:
        if fork_with_pid(pid) == 0:
            os.dup2(write_end, 1)
            os.execv(sys.executable, [sys.executable, str(SERVERS / "blocking.py"), "127.0.0.1"])
    except OSError as e:
        pytest.skip(f"no process can be made with pid {pid}: {e}")
    os.close(write_end)
    try:
        with open(read_end) as said:
            yield json.loads(said.readline())["port"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("who", ["subject", "member"])
def test_reused_pid(daemon, watch, server, who):
    """Another process with the pid of a subject or member that has ended is nobody: neither its
    connections nor its end are events. Two processes that start within 10 ms, the resolution of
    /proc, are not told apart: far less than it takes to use up all pids."""
    s = server("prefork")
    worker = s.line()["worker"]
    daemon.declare("DRAIN", s.pid)
    wait_until(lambda: now_ns() > start_ns(worker) + 2 * START_UNIT_NS, "10 ms have passed")
    if who == "subject":
        pid = s.pid
        s.stop()
        # Its number is also that of its process group, as long as that has a member.
        wait_until(lambda: not group_exists(pid), "the orphaned workers are reaped")
    else:
        pid = worker
        for _ in range(2):
            s.line()
        os.kill(worker, signal.SIGKILL)
        s.line()
    with server_with_pid(pid) as port:
        connect_and_ask("127.0.0.1", port, 23)
        subject = daemon.subjects().get(pid, {})
        assert subject.get("accepts", 0) == 0
    events = watch.collect()
    assert [e for e in events if e["type"] == "accept"] == []
    assert [e["process"]["pid"] for e in exits(events)].count(pid) == 1
