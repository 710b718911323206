# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Outbound connects of subjects, against what connect(2) told the connecting process."""

import contextlib
import socket

import peers
import pytest
from expect import Counts, now_ns
from harness import free_port

RESULTS = {
    None: "established",
    "ECONNREFUSED": "refused",
    "ETIMEDOUT": "timeout",
    "EHOSTUNREACH": "unreachable",
}


def expect_connects(events, done, pid, to, phase="DRAIN", result=None):
    """Exactly one event for each of `done`, the actor's own records."""
    events = [e for e in events if e["type"] == "connect"]
    assert sorted(e["src"]["port"] for e in events) == sorted(d["port"] for d in done)
    found = {e["src"]["port"]: e for e in events}
    for one in done:
        event = found[one["port"]]
        assert (event["dst"]["addr"], event["dst"]["port"]) == to, event
        assert event["process"]["pid"] == pid, event
        assert event["subject"]["id"] == pid, event
        assert (event["phase"], event["verdict"]) == (phase, "misrouted"), event
        assert event["phase_age_ns"] > 0, event
        assert event["result"] == (result or RESULTS[one["errno"]]), (event, one)
        if result != "aborted":
            assert 0 < event["connect_ns"] <= one["ns"], (event, one)


@contextlib.contextmanager
def full_listener(address):
    """Its accept queue has room for one connection and holds it: further SYNs are dropped."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=0) as sock:
        port = sock.getsockname()[1]
        with peers.Held(address, port, 1):
            yield port


@pytest.mark.parametrize("phase", ["DRAIN", "SHUTDOWN"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_established(daemon, watch, actor, server, address, phase):
    s = server("blocking", address)
    one = actor()
    daemon.declare(phase, one.pid)
    counts = Counts(daemon, one.pid)
    done = [one.call("connect", address, s.port) for _ in range(23)]
    expect_connects(watch.collect(), done, one.pid, (address, s.port), phase)
    assert counts.gained(phase) == {"accept": (0, 0), "connect": (23, 23)}


def test_v4_mapped(daemon, watch, actor, server):
    """An IPv6 socket that connects to an IPv4 address is shown with IPv4 addresses."""
    s = server("blocking")
    one = actor()
    daemon.declare("DRAIN", one.pid)
    done = [one.call("connect", "::ffff:127.0.0.1", s.port) for _ in range(23)]
    events = watch.collect("connect")
    expect_connects(events, done, one.pid, ("127.0.0.1", s.port))
    assert {e["src"]["addr"] for e in events} == {"127.0.0.1"}


@pytest.mark.parametrize("method", ["connect", "connect_nonblocking"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_refused(daemon, watch, actor, address, method):
    closed = free_port()
    one = actor()
    daemon.declare("DRAIN", one.pid)
    counts = Counts(daemon, one.pid)
    done = [one.call(method, address, closed) for _ in range(23)]
    assert {d["errno"] for d in done} == {"ECONNREFUSED"}
    expect_connects(watch.collect(), done, one.pid, (address, closed))
    assert counts.gained("DRAIN")["connect"] == (23, 23)


def test_nonblocking(daemon, watch, actor, server):
    s = server("blocking")
    one = actor()
    daemon.declare("DRAIN", one.pid)
    done = [one.call("connect_nonblocking", "127.0.0.1", s.port) for _ in range(23)]
    expect_connects(watch.collect(), done, one.pid, ("127.0.0.1", s.port))


def test_timeout(daemon, watch, actor):
    """Takes 3 s: the shortest that TCP gives a SYN and one retransmission."""
    many = [actor() for _ in range(5)]
    for one in many:
        daemon.declare("DRAIN", one.pid)
    with full_listener("127.0.0.1") as v4, full_listener("::1") as v6:
        to = [("127.0.0.1", v4), ("::1", v6)]
        for i, one in enumerate(many):
            one.begin("connect", *to[i % 2])
        done = [one.end()[0] for one in many]
    assert {d["errno"] for d in done} == {"ETIMEDOUT"}
    events = watch.collect("connect")
    assert len(events) == len(many)
    for i, one in enumerate(many):
        own = [e for e in events if e["process"]["pid"] == one.pid]
        expect_connects(own, [done[i]], one.pid, to[i % 2])


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_aborted(daemon, watch, actor, address):
    """Given up before it is answered."""
    one = actor()
    daemon.declare("DRAIN", one.pid)
    counts = Counts(daemon, one.pid)
    begin = now_ns()
    with full_listener(address) as port:
        done = [one.call("connect_and_close", address, port) for _ in range(23)]
        assert {d["errno"] for d in done} == {"EINPROGRESS"}
        events = watch.collect("connect")
        expect_connects(events, done, one.pid, (address, port), result="aborted")
    assert all(0 < e["connect_ns"] < now_ns() - begin for e in events)
    assert counts.gained("DRAIN")["connect"] == (23, 23)


def test_aborted_by_exit(daemon, watch, actor):
    one = actor()
    daemon.declare("DRAIN", one.pid)
    with full_listener("127.0.0.1") as port:
        one.begin("connect", "127.0.0.1", port)
        peers.wait_syn_sent(port)
        one.process.kill()
        one.wait()
        events = watch.collect()
    (connect,) = [e for e in events if e["type"] == "connect"]
    assert connect["result"] == "aborted"
    assert connect["process"]["pid"] == one.pid
    (gone,) = [e for e in events if e["type"] == "exit"]
    assert gone["signal"] == 9


def test_unreachable(daemon, watch, actor, netns):
    """A router answers the SYN with ICMP. Takes 1 s each: TCP heeds the answer to its second SYN
    only, because the socket is still in connect(2)'s hands when that to the first comes."""
    one = actor(netns.inside)
    daemon.declare("DRAIN", one.pid)
    done = [one.call("connect", netns.beyond, 80) for _ in range(2)]
    assert {d["errno"] for d in done} == {"EHOSTUNREACH"}
    expect_connects(watch.collect(), done, one.pid, (netns.beyond, 80))


@pytest.mark.parametrize("phase", ["INIT", "ACTIVE"])
def test_allowed_phases(daemon, watch, actor, server, phase):
    s = server("blocking")
    one = actor()
    daemon.declare(phase, one.pid)
    counts = Counts(daemon, one.pid)
    for _ in range(23):
        one.call("connect", "127.0.0.1", s.port)
    for _ in range(7):
        one.call("connect", "127.0.0.1", free_port())
    assert watch.collect("connect") == []
    assert counts.gained(phase) == {"accept": (0, 0), "connect": (30, 0)}


def test_undeclared_clients(daemon, watch, server):
    s = server("blocking")
    daemon.declare("ACTIVE", s.pid)
    peers.connect_and_ask("127.0.0.1", s.port, 23)
    assert watch.collect("connect") == []


def test_established_after_the_drain(daemon, watch, actor):
    """Begun while ACTIVE, given up while draining: the moment of connect(2) counts."""
    one = actor()
    daemon.declare("ACTIVE", one.pid)
    with full_listener("127.0.0.1") as port:
        one.begin("connect", "127.0.0.1", port)
        peers.wait_syn_sent(port)
        daemon.declare("DRAIN", one.pid)
        one.end()
    assert watch.collect("connect") == []
    assert daemon.subject(one.pid)["connects"] == 1
    assert daemon.subject(one.pid)["connects_misrouted"] == 0


def test_both_ends_are_subjects(daemon, watch, actor):
    one, other = actor(), actor()
    port = other.call("listen", "127.0.0.1")
    daemon.declare("DRAIN", one.pid)
    daemon.declare("DRAIN", other.pid)
    done = [one.call("connect", "127.0.0.1", port, True) for _ in range(23)]
    other.call("accept", 23)
    events = watch.collect()
    expect_connects(events, done, one.pid, ("127.0.0.1", port))
    accepts = [e for e in events if e["type"] == "accept"]
    assert [e["src"]["port"] for e in accepts] == [d["port"] for d in done]
    assert {e["process"]["pid"] for e in accepts} == {other.pid}
