# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""run --auto: who listens is a subject, and nobody declares anything."""

import json
import os
import signal
import socket
import subprocess
import sys

import expect
import peers
import pytest
from conftest import KINDS
from harness import DEADLINE, SERVERS, now_ns, wait_until
from peers import connect_and_ask
from test_accept import seen_by


@pytest.fixture
def auto(own_daemon):
    own_daemon.options = ["--auto"]
    return own_daemon


def moves(events, ident):
    events = [e for e in expect.of_type(events, "phase") if e["subject"]["id"] == ident]
    return [(e["from"], e["to"], e["source"]) for e in events]


def of(events, pids):
    return [e for e in events if e.get("subject", {}).get("id") in pids]


# All of one listener; HAProxy's master keeps none when its worker runs.
ONE_LISTENER = [kind for kind in KINDS if kind != "reuseport"]
BEGAN = ("UNDECLARED", "ACTIVE", "listen")


def listeners_of(daemon, pids):
    """Those of these processes that are subjects."""
    return sorted(set(daemon.subjects()) & set(pids))


@pytest.mark.parametrize("kind", ONE_LISTENER)
def test_server(auto, server, kind):
    """One subject for the whole server, ACTIVE from its first moment on; then DRAIN by a signal."""
    auto.start()
    watch = auto.watch()
    s = server(kind)
    connect_and_ask("127.0.0.1", s.port, 23)
    events = of(watch.collect(), [s.pid])
    assert moves(events, s.pid) == [BEGAN]
    assert expect.counted(events) == {}
    assert auto.subject(s.pid)["accepts"] == 23
    members = {s.pid, *peers.children(s.pid)}
    assert listeners_of(auto, members) == [s.pid]
    assert auto.subject(s.pid)["members"] == len(members)


def test_workers_that_listen_each(auto, server):
    """Their parent does not listen: each is a service of its own."""
    auto.start()
    watch = auto.watch()
    s = server("reuseport")
    workers = {c.acceptor for c in connect_and_ask("127.0.0.1", s.port, 23)}
    assert listeners_of(auto, [s.pid, *peers.children(s.pid)]) == sorted(peers.children(s.pid))
    assert workers <= peers.children(s.pid)
    assert expect.counted(of(watch.collect(), workers)) == {}


@pytest.mark.parametrize("kind", ONE_LISTENER)
def test_server_older_than_the_daemon(auto, server, kind):
    s = server(kind)
    connect_and_ask("127.0.0.1", s.port, 5)
    auto.start()
    watch = auto.watch()
    workers = peers.children(s.pid)
    owner = workers.pop() if kind == "haproxy" else s.pid
    members = {owner, *workers}
    assert listeners_of(auto, {s.pid, *members}) == [owner]
    shown = auto.subject(owner)
    assert (shown["phase"], shown["subject"]["source"]) == ("ACTIVE", "listen")
    assert shown["members"] == len(members)
    auto.declare("DRAIN", owner)
    made = connect_and_ask("127.0.0.1", s.port, 23)
    expect.accepts(of(watch.collect(), [owner]), made, owner, seen_by=seen_by(kind))


def test_sigterm_while_curl_goes_on(auto):
    """An operator who declared nothing sees who still asks a server after its SIGTERM."""
    auto.start()
    watch = auto.watch()
    port = peers.free_port()
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        wait_until(lambda: peers.listening(port), "the server listens")
        outcomes = []

        def curl():
            done = subprocess.run(
                ["curl", "-s", "-o", "/dev/null", f"http://127.0.0.1:{port}/"], timeout=DEADLINE
            )
            outcomes.append(done.returncode)

        for _ in range(7):
            curl()
        server.terminate()
        for _ in range(11):
            curl()
        server.wait(DEADLINE)
    # 7: could not connect
    refused = outcomes.count(7)
    assert set(outcomes) <= {0, 7, 56} and outcomes[:7] == [0] * 7 and refused > 0
    events = of(watch.collect(), [server.pid])
    assert moves(events, server.pid) == [BEGAN, ("ACTIVE", "DRAIN", "signal")]
    kinds = expect.counted(events)
    assert kinds["refused"] == refused
    # One that came in its last moment was accepted, or reset with its queue.
    dropped = sum(e["dropped"] for e in expect.of_type(events, "backlog"))
    assert kinds["accept"] + dropped == len(outcomes) - 7 - refused
    assert {e["client"]["comm"] for e in expect.of_type(events, "refused")} == {"curl"}
    report = auto.report(server.pid)
    assert report["reason"] == "SIGTERM"
    assert report["refused"]["count"] == refused


def test_nginx_quits(auto, server):
    """What its workers accept after SIGQUIT to the master, which goes on as long as it has to."""
    auto.start()
    s = server("nginx")
    watch = auto.watch()
    connect_and_ask("127.0.0.1", s.port, 5)
    os.kill(s.pid, signal.SIGQUIT)
    s.process.wait(DEADLINE)
    for _ in range(3):
        peers.refuse("127.0.0.1", s.port)
    events = of(watch.collect(), [s.pid])
    assert expect.counted(events)["refused"] == 3
    assert auto.report(s.pid)["reason"] == "SIGQUIT"


@pytest.mark.parametrize("where", ["root", "cgroup"])
def test_server_in_the_background(auto, actor, cgroups, where):
    """It listens, and forks its master into a session of its own. In a cgroup that is the same tree;
    in the root cgroup it is found when the first process has gone. Nothing ended without a drain."""
    auto.start()
    watch = auto.watch()
    one = actor()
    if where == "cgroup":
        cgroups("background").add(one.pid)
    port = one.call("listen", "127.0.0.1")
    master = one.call("fork_actor", True)
    one.call("tell_child", master, "catch", "SIGTERM")
    _, (control,) = one.call_for_fds("lend_child", master)
    _, (listener,) = one.call_for_fds("lend_listener")
    with socket.socket(fileno=control) as control:

        def tell(*what, fds=()):
            socket.send_fds(control, [json.dumps(what).encode()], fds)
            assert control.recv(99) == b"null"

        tell("take_listener", fds=[listener])
        os.close(listener)
        one.die("exit")
        subject = one.pid if where == "cgroup" else master
        wait_until(lambda: auto.subjects().get(subject, {}).get("members") == 1, "the master is one")
        wait_until(lambda: listeners_of(auto, [one.pid, master]) == [subject], "and no other")
        os.kill(master, signal.SIGTERM)
        with peers.Held("127.0.0.1", port, 5) as held:
            tell("accept", 5)
            events = watch.collect()
        expect.accepts(of(events, [subject]), held.made, subject, master)
    assert moves(events, subject) == [BEGAN, ("ACTIVE", "DRAIN", "signal")]
    assert [e for e in of(events, [one.pid]) if e["type"] == "violation"] == []


def test_sessions_bound_a_tree(auto, actor):
    """A login of sshd's is none of its workers: a child with a session of its own is none either,
    and if it listens it is a subject of its own."""
    auto.start()
    one = actor()
    one.port = one.call("listen", "127.0.0.1")
    worker, login = one.call("fork_actor", False), one.call("fork_actor", True)
    watch = auto.watch()
    auto.declare("DRAIN", one.pid)
    target = actor()
    port = target.call("listen", "127.0.0.1")
    for child in (worker, login):
        one.call("tell_child", child, "connect", "127.0.0.1", port)
    events = [e for e in watch.collect() if e["type"] == "connect"]
    assert [e["process"]["pid"] for e in events] == [worker]
    for child in (worker, login):
        one.call("tell_child", child, "listen", "127.0.0.1")
    assert listeners_of(auto, [one.pid, worker, login]) == sorted([one.pid, login])
    assert [auto.subject(pid)["members"] for pid in (one.pid, login)] == [2, 1]


def test_session_of_the_subject(auto, actor):
    """The tree is where its process is, not where that was when it began to listen."""
    auto.start()
    one, target = actor(), actor()
    server = one.call("fork_actor", False)
    for what in (["listen", "127.0.0.1"], ["setsid"]):
        one.call("tell_child", server, *what)
    worker = one.call("tell_child", server, "fork_actor", False)
    port = target.call("listen", "127.0.0.1")
    watch = auto.watch()
    auto.declare("DRAIN", server)
    one.call("tell_child", server, "tell_child", worker, "connect", "127.0.0.1", port)
    events = [e for e in watch.collect() if e["type"] == "connect"]
    assert [(e["subject"]["id"], e["process"]["pid"]) for e in events] == [(server, worker)]


def test_threads_that_listen_at_once(auto, directories):
    """One subject, and one move, whichever of them was the first."""
    auto.start()
    watch = auto.watch()
    program = f"{directories()}/listeners"
    subprocess.run(["gcc", "-pthread", "-o", program, SERVERS / "listeners.c"], check=True)
    with subprocess.Popen([program, "61"], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(process.stdout.readline()) for _ in range(61)]
        events = watch.collect()
        members = {auto.subject(pid)["members"] for pid in pids}
        process.kill()
    assert {tuple(moves(events, pid)) for pid in pids} == {(BEGAN,)}
    assert members == {1}


def test_pid_is_used_again(auto, actor, cgroups):
    """By another server, while a process of the first one lives."""
    auto.start()
    watch = auto.watch()
    group, first, second = cgroups("again"), actor(), actor()
    group.add(first.pid)
    first.call("listen", "127.0.0.1")
    left = first.call("fork", True)
    first.die("SIGKILL")
    pid = second.call("fork_actor", True, first.pid)
    assert pid == first.pid
    port = second.call("tell_child", pid, "listen", "127.0.0.1")
    assert moves(watch.collect(), pid) == [BEGAN, BEGAN]
    assert auto.subject(pid)["members"] == 1
    with peers.Held("127.0.0.1", port, 5):
        second.call("tell_child", pid, "accept", 5)
        os.kill(left, signal.SIGKILL)
        wait_until(lambda: peers.has_ended(left), "the first one's child has ended")
        shown = auto.subject(pid)
    assert (shown["members"], shown["accepts"], shown["inflight_tcp"]) == (1, 5, 5)


def test_declared_ones_stay_whole(auto, actor):
    """Somebody has said what belongs together: sessions and listeners in it do not split it."""
    auto.start()
    one = actor()
    auto.declare("INIT", one.pid)
    login = one.call("fork_actor", True)
    one.call("tell_child", login, "listen", "127.0.0.1")
    assert listeners_of(auto, [one.pid, login]) == [one.pid]
    assert auto.subject(one.pid)["phase"] == "INIT"


def test_server_that_came_while_the_daemon_was_away(auto, actor):
    """With the child that it had before it listened."""
    auto.start()
    auto.kill()
    one = actor()
    one.call("fork")
    one.call("listen", "127.0.0.1")
    since = now_ns()
    wait_until(lambda: now_ns() > since + 2 * 10**9, "its declaration is no news")
    auto.start()
    wait_until(lambda: moves(auto.recent(), one.pid) == [BEGAN], "it is told")
    assert auto.subject(one.pid)["members"] == 2


@pytest.mark.parametrize("around", ["cgroup", "ancestor"])
def test_declared_around_it(auto, actor, cgroups, around):
    """What somebody declares goes for the listeners in there, which nobody did declare: what they
    accept is counted there, and what they have accepted is in flight there."""
    auto.start()
    watch = auto.watch()
    one, group = actor(), cgroups("around")
    group.add(one.pid)
    child = one.call("fork_actor", False)
    port = one.call("tell_child", child, "listen", "127.0.0.1")
    assert moves(watch.collect(), child) == [BEGAN]
    with peers.Held("127.0.0.1", port, 3):
        one.call("tell_child", child, "accept", 3)
        if around == "cgroup":
            assert auto.cli("declare", "DRAIN", "--cgroup", group.path).returncode == 0
        else:
            auto.declare("DRAIN", one.pid)
        kind, ident = ("cgroup", group.id) if around == "cgroup" else ("process", one.pid)
        with peers.Held("127.0.0.1", port, 5) as held:
            one.call("tell_child", child, "accept", 5)
            expect.accepts(of(watch.collect(), [ident]), held.made, ident, child)
        shown = auto.subject(ident, kind)
        assert (shown["members"], shown["accepts"], shown["inflight"]) == (2, 5, 8)
        one.call("tell_child", child, "close_connections")
        assert auto.subject(ident, kind)["inflight"] == 0
    assert child not in auto.subjects()


def test_nobody_else(auto, actor):
    """Who only connects is none, nor are the daemon and the host's first process."""
    auto.start()
    one, target = actor(), actor()
    port = target.call("listen", "127.0.0.1")
    assert one.call("connect", "127.0.0.1", port)["errno"] is None
    assert listeners_of(auto, [one.pid, target.pid, auto.process.pid, 1]) == [target.pid]


def test_without_auto(own_daemon, actor):
    own_daemon.start()
    one = actor()
    one.call("listen", "127.0.0.1")
    assert own_daemon.subjects() == {}
