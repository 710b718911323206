# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""New connections at subjects: each misrouted one is one event and one in the counters, no other is
either. The numbers come from the clients. What all servers do is in test_exactness.py."""

import os
import signal
import socket

import expect
import peers
import pytest
from conftest import KINDS
from expect import Counts, now_ns
from harness import wait_until
from peers import Held, connect_and_ask

# Without trampolines the kernel shows an accept(2) with a NULL address only by what follows it.
NULL_THEN_IO = ("accept", "first_io")
NULL_THEN_CLOSE = ("accept", "release")


def seen_by(kind):
    return NULL_THEN_IO if kind == "node" else ("accept",)


@pytest.mark.parametrize("kind", KINDS)
def test_drain_is_the_first_declaration(daemon, watch, server, kind):
    """The listener and its workers are older than any declaration."""
    s = server(kind)
    connect_and_ask("127.0.0.1", s.port, 23)
    since = now_ns()
    daemon.declare("DRAIN", s.pid)
    counts = Counts(daemon, s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 23)
    expect.accepts(watch.collect(), made, s.pid, since=since, seen_by=seen_by(kind))
    assert counts.gained("DRAIN")["accept"] == (23, 23)


def test_everything_is_older_than_the_daemon(own_daemon, server):
    servers = {kind: server(kind) for kind in KINDS}
    for s in servers.values():
        connect_and_ask("127.0.0.1", s.port, 5)
    own_daemon.start()
    watch = own_daemon.watch()
    for kind, s in servers.items():
        since = now_ns()
        own_daemon.declare("DRAIN", s.pid)
        counts = Counts(own_daemon, s.pid)
        made = connect_and_ask("127.0.0.1", s.port, 23)
        events = [e for e in watch.collect("accept") if e["subject"]["id"] == s.pid]
        expect.accepts(events, made, s.pid, since=since, seen_by=seen_by(kind))
        assert counts.gained("DRAIN")["accept"] == (23, 23), kind


def test_connections_older_than_the_daemon(own_daemon, actor):
    """Accepted before the daemon came, or waiting in the accept queue then: none is an event."""
    one = actor()
    port = one.call("listen", "127.0.0.1")
    with Held("127.0.0.1", port, 7) as accepted:
        one.call("accept", 7)
        with Held("127.0.0.1", port, 5):
            own_daemon.start()
            watch = own_daemon.watch()
            own_daemon.declare("DRAIN", one.pid)
            accepted.send()
            one.call("echo")
            accepted.receive()
            one.call("accept", 5)
            assert len(one.call("peer_ports")) == 12
            one.call("close_connections")
            assert watch.collect("accept") == []
    with Held("127.0.0.1", port, 23) as late:
        one.call("accept", 23)
        expect.accepts(watch.collect(), late.made, one.pid, one.pid)


@pytest.mark.parametrize("phase", ["INIT", "DRAIN", "SHUTDOWN"])
def test_phases(daemon, watch, server, phase):
    s = server("blocking")
    since = now_ns()
    daemon.declare(phase, s.pid)
    counts = Counts(daemon, s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 23)
    expect.accepts(watch.collect(), made, s.pid, phase=phase, since=since)
    assert counts.gained(phase)["accept"] == (23, 23)


def test_common_fields(daemon, watch, server):
    """What an event says of the process is what /proc says."""
    s = server("nginx")
    daemon.declare("DRAIN", s.pid, "--epoch", "7", "--reason", "rolling update")
    (made,) = connect_and_ask("127.0.0.1", s.port, 1)
    event = watch.collect("accept")[0]
    expect.process(event["process"], made.acceptor)
    assert event["subject"] == {
        "kind": "process", "id": s.pid, "name": "nginx", "epoch": 7, "source": "api",
    }  # fmt: skip
    shown = daemon.subject(s.pid)
    assert shown["phase"] == "DRAIN"
    assert shown["reason"] == "rolling update"
    assert shown["members"] == 3
    assert shown["inflight"] == 0


def test_inflight(daemon, actor):
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("ACTIVE", one.pid)
    with Held("127.0.0.1", port, 23):
        one.call("accept", 23)
        assert daemon.subject(one.pid)["inflight"] == 23
    one.call("close_connections")
    assert daemon.subject(one.pid)["inflight"] == 0


def test_undeclared(daemon, watch, server):
    s = server("prefork")
    before = daemon.metrics()
    connect_and_ask("127.0.0.1", s.port, 23)
    assert watch.collect() == []
    assert daemon.metrics().misrouted() == before.misrouted()


# Which connections --------------------------------------------------------------------------


def test_kept_alive_connections(daemon, watch, actor):
    """Accepted while ACTIVE: neither more data nor getpeername(2) makes them new."""
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("ACTIVE", one.pid)
    with Held("127.0.0.1", port, 23) as held:
        one.call("accept", 23)
        daemon.declare("DRAIN", one.pid)
        for _ in range(3):
            held.send()
            one.call("echo")
            held.receive()
        assert one.call("peer_ports") == [c.src[1] for c in held.made]
        one.call("close_connections")
    assert watch.collect("accept") == []


def test_outbound_connections_are_no_accepts(daemon, watch, actor, server):
    """getpeername(2) runs the program that accept(2) with an address runs."""
    s = server("blocking")
    one = actor()
    daemon.declare("ACTIVE", one.pid)
    for _ in range(7):
        one.call("connect", "127.0.0.1", s.port, True)
    daemon.declare("DRAIN", one.pid)
    one.call("connect", "127.0.0.1", s.port, True)
    assert one.call("peer_ports") == [s.port] * 8
    one.call("close_connections")
    assert watch.collect("accept") == []
    assert len(watch.collect("connect")) == 1


def test_connections_that_nobody_accepted(daemon, watch, actor):
    """They die with the listener."""
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("DRAIN", one.pid)
    with Held("127.0.0.1", port, 23):
        one.begin("exit", 0)
        one.wait()
        assert watch.collect("accept") == []


@pytest.mark.parametrize("with_address", [True, False])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_connections_that_the_client_has_left(daemon, watch, actor, how, with_address):
    """They are accepted all the same."""
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("DRAIN", one.pid)
    with Held("127.0.0.1", port, 23) as held:
        if how == "reset":
            held.reset_at_close()
    one.call("accept_call", "accept4", with_address, 23)
    one.call("close_connections")
    ways = ("accept",) if with_address else NULL_THEN_CLOSE
    expect.accepts(watch.collect(), held.made, one.pid, one.pid, seen_by=ways)


@pytest.mark.parametrize("name, with_address", [("accept4", True), ("accept4", False)])
def test_accept_queue_at_the_drain(daemon, watch, actor, name, with_address):
    """The arrival counts: what waited to be accepted when DRAIN was declared is not misrouted."""
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("ACTIVE", one.pid)
    with Held("127.0.0.1", port, 23):
        wait_until(lambda: peers.accept_queue(port) == 23, "23 connections in the accept queue")
        since = now_ns()
        daemon.declare("DRAIN", one.pid)
        with Held("127.0.0.1", port, 37) as late:
            counts = Counts(daemon, one.pid)
            one.call("accept_call", name, with_address, 60)
            one.call("close_connections")
            ways = ("accept",) if with_address else NULL_THEN_CLOSE
            expect.accepts(
                watch.collect(), late.made, one.pid, one.pid, since=since, seen_by=ways
            )  # fmt: skip
            assert counts.gained("DRAIN")["accept"] == (37, 37)


def test_queue_time(daemon, watch, actor):
    """queue_ns is what the connection waited, by the client's clock."""
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("DRAIN", one.pid)
    begin = now_ns()
    with Held("127.0.0.1", port, 1):
        wait_until(lambda: peers.accept_queue(port) == 1, "a connection in the accept queue")
        queued = now_ns()
        # What takes a while: the processes that these commands are.
        for _ in range(5):
            daemon.subjects()
        waited = now_ns() - queued
        one.call("accept", 1)
        longest = now_ns() - begin
        (event,) = watch.collect("accept")
        assert waited <= event["queue_ns"] <= longest, event


# Ways to accept -----------------------------------------------------------------------------


def test_null_address_then_close(daemon, watch, actor):
    """Accepted, never read nor written: seen when it is closed, at the latest."""
    one = actor()
    port = one.call("listen", "127.0.0.1")
    since = now_ns()
    daemon.declare("DRAIN", one.pid)
    counts = Counts(daemon, one.pid)
    with Held("127.0.0.1", port, 23) as held:
        one.call("accept_call", "accept4", False, 23)
        one.call("close_connections")
        expect.accepts(
            watch.collect(), held.made, one.pid, one.pid, since=since, seen_by=NULL_THEN_CLOSE
        )
        assert counts.gained("DRAIN")["accept"] == (23, 23)


def test_null_address_accepted_before_the_drain(daemon, watch, actor):
    one = actor()
    port = one.call("listen", "127.0.0.1")
    daemon.declare("ACTIVE", one.pid)
    with Held("127.0.0.1", port, 23) as held:
        one.call("accept_call", "accept4", False, 23)
        daemon.declare("DRAIN", one.pid)
        held.send()
        one.call("echo")
        one.call("close_connections")
        assert watch.collect("accept") == []


# Whose --------------------------------------------------------------------------------------


def worker_pids(s, count):
    return {s.line()["worker"] for _ in range(count)}


@pytest.mark.parametrize("fork_in", ["ACTIVE", "DRAIN"])
def test_workers_forked_after_the_declaration(daemon, watch, server, fork_in):
    s = server("prefork")
    old = worker_pids(s, 3)
    daemon.declare(fork_in, s.pid)
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    new = worker_pids(s, 3)
    daemon.declare("DRAIN", s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 37)
    assert {c.acceptor for c in made} <= new
    events = watch.collect()
    expect.accepts(events, made, s.pid)
    ended = {e["process"]["pid"]: e["signal"] for e in events if e["type"] == "exit"}
    assert ended == dict.fromkeys(old, 9)
    assert daemon.subject(s.pid)["members"] == 4


@pytest.mark.parametrize("declared", ["before", "after"])
def test_descendants_of_descendants(daemon, watch, actor, declared):
    """The declared process is a shell whose child's child accepts."""
    nested = """sh -c '"$@"; :' sh "$@"; :"""
    one = actor(["sh", "-c", nested, "sh"])
    if declared == "before":
        daemon.declare("ACTIVE", one.pid)
    port = one.call("listen", "127.0.0.1")
    (middle,) = peers.children(one.pid)
    (acceptor,) = peers.children(middle)
    since = now_ns()
    daemon.declare("DRAIN", one.pid)
    with Held("127.0.0.1", port, 23) as held:
        one.call("accept", 23)
        expect.accepts(watch.collect(), held.made, one.pid, acceptor, since=since)


def test_own_declaration_beats_the_ancestors(daemon, watch, server):
    """One worker of a draining master is ACTIVE by its own declaration."""
    s = server("prefork")
    active = worker_pids(s, 3).pop()
    daemon.declare("ACTIVE", active)
    daemon.declare("DRAIN", s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 101)
    there = [c for c in made if c.acceptor == active]
    assert there
    expect.accepts(watch.collect(), [c for c in made if c not in there], s.pid)
    assert daemon.subject(active)["accepts"] == len(there)
    assert daemon.subject(active)["accepts_misrouted"] == 0


@pytest.mark.parametrize("owner", ["UNDECLARED", "ACTIVE", "DRAIN"])
def test_listener_handed_over(daemon, watch, actor, owner):
    """Who accepts counts, not who called listen(2): SCM_RIGHTS from old to new process."""
    old, new = actor(), actor()
    port = old.call("listen", "127.0.0.1")
    if owner != "UNDECLARED":
        daemon.declare(owner, old.pid)
    old.hand_over("listener", new)
    daemon.declare("ACTIVE", new.pid)
    with Held("127.0.0.1", port, 23):
        new.call("accept", 23)
        assert watch.collect("accept") == []
    assert daemon.subject(new.pid)["accepts"] == 23
    since = now_ns()
    daemon.declare("DRAIN", new.pid)
    with Held("127.0.0.1", port, 37) as held:
        new.call("accept", 37)
        expect.accepts(watch.collect(), held.made, new.pid, new.pid, since=since)


def test_listener_shared_by_old_and_new(daemon, watch, actor):
    """Both accept from one listener; only the draining one's are misrouted."""
    old, new = actor(), actor()
    daemon.declare("ACTIVE", old.pid)
    port = old.call("listen", "127.0.0.1")
    old.hand_over("listener", new)
    daemon.declare("ACTIVE", new.pid)
    daemon.declare("DRAIN", old.pid)
    with Held("127.0.0.1", port, 60) as held:
        old.call("accept", 23)
        new.call("accept", 37)
        theirs = set(old.call("peer_ports"))
        made = [c for c in held.made if c.src[1] in theirs]
        assert len(made) == 23
        expect.accepts(watch.collect(), made, old.pid, old.pid)


def test_socket_activation(daemon, watch, actor):
    """The listener is this process's, which nobody declared."""
    one = actor()
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        one.call("take_listener", fds=[mine.fileno()])
    since = now_ns()
    daemon.declare("DRAIN", one.pid)
    with Held("127.0.0.1", port, 23) as held:
        one.call("accept", 23)
        expect.accepts(watch.collect(), held.made, one.pid, one.pid, since=since)


@pytest.mark.parametrize("phase", ["UNDECLARED", "ACTIVE"])
def test_connections_handed_over(daemon, watch, actor, phase):
    """Accepted by another process, used by a draining one: nothing was accepted there."""
    front, back = actor(), actor()
    port = front.call("listen", "127.0.0.1")
    if phase != "UNDECLARED":
        daemon.declare(phase, front.pid)
    daemon.declare("DRAIN", back.pid)
    with Held("127.0.0.1", port, 23) as held:
        front.call("accept", 23)
        front.hand_over("connections", back)
        front.call("close_connections")
        held.send()
        back.call("echo")
        held.receive()
        back.call("peer_ports")
        back.call("close_connections")
        assert watch.collect("accept") == []


@pytest.mark.parametrize("phase", ["UNDECLARED", "ACTIVE"])
def test_outbound_connections_handed_over(daemon, watch, actor, server, phase):
    """Opened by another process: that a draining one asks for the peer's name is no accept(2)."""
    s = server("nonblocking")
    front, back = actor(), actor()
    if phase != "UNDECLARED":
        daemon.declare(phase, front.pid)
    daemon.declare("DRAIN", back.pid)
    for _ in range(23):
        front.call("connect", "127.0.0.1", s.port, True)
    front.hand_over("connections", back)
    assert back.call("peer_ports") == [s.port] * 23
    back.call("close_connections")
    assert watch.collect("accept") == []
