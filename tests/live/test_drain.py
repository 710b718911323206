# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What a drain costs: late requests, abandoned connections, dropped backlogs, refused connects.
What happened is known from the clients. What all servers do is in test_exactness.py."""

import contextlib
import json
import os
import signal
import socket
import subprocess
from collections import Counter

import expect
import harness
import peers
import pytest
from common import end_of
from expect import now_ns
from harness import free_port, wait_until
from peers import ANSWER, QUESTION, Held, Kept, fill, resets


# Requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["ACTIVE", None])
def test_requests(daemon, watch, listening, first):
    one = listening()
    if first:
        daemon.declare(first, one.pid)
    before = [0, 1, 2, 3, 0, 1, 5]
    late = [3, 0, 1, 5, 0, 2, 2]
    misrouted = daemon.metrics().misrouted(type="request", phase="DRAIN")
    with Kept(one, 7) as kept:
        for turn in range(max(before)):
            kept.ask([i for i in range(7) if before[i] > turn])
        drained = now_ns()
        daemon.declare("DRAIN", one.pid)
        for turn in range(max(late)):
            kept.ask([i for i in range(7) if late[i] > turn])
        events = watch.collect()
        expect.requests(events, kept, late, one.pid, drained=drained, tracked=first is not None)
        assert expect.counted(events) == {"request": 13}
        grown = daemon.metrics().misrouted(type="request", phase="DRAIN") - misrouted
        assert grown == 13


def test_requests_on_connections_older_than_the_daemon(own_daemon, listening):
    one = listening()
    with Kept(one, 7) as kept:
        kept.ask(range(5))
        own_daemon.start()
        watch = own_daemon.watch()
        own_daemon.declare("DRAIN", one.pid)
        kept.ask(range(3, 7))
        kept.ask(range(6, 7))
        events = watch.collect()
        assert expect.counted(events) == {"request": 5}
        late = expect.of_type(events, "request")
        expected = {port: n for port, n in zip(kept.ports, [0, 0, 0, 1, 1, 1, 2]) if n}
        assert Counter(e["src"]["port"] for e in late) == expected


@pytest.mark.parametrize("call", ["recv", "recvmsg", "read", "readv"])
def test_ways_to_read(daemon, watch, listening, call):
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 3) as kept:
        kept.ask(range(3))
        daemon.declare("DRAIN", one.pid)
        kept.say(range(3))
        kept.read(range(3), QUESTION, 4096, call)
        kept.answer(range(3))
        expect.requests(watch.collect(), kept, [1, 1, 1], one.pid)


@pytest.mark.parametrize("before", [0, 1])
def test_upload_is_one_request(daemon, watch, listening, before):
    """3 MB, in a thousand receives or so."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    size = 3_000_017
    with Kept(one, 2) as kept:
        for _ in range(before):
            kept.ask(range(2))
        daemon.declare("DRAIN", one.pid)
        one.begin("receive", [0], size, 4096)
        kept.say([0], size)
        (calls,), _ = one.end()
        assert calls > 100
        kept.answer([0])
        expect.requests(watch.collect(), kept, [1, 0], one.pid)


def test_segments_are_one_request(daemon, watch, listening):
    """Each is read before the next is sent."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 3) as kept:
        daemon.declare("DRAIN", one.pid)
        for _ in range(2):
            for _ in range(5):
                kept.say(range(3), 7)
                kept.read(range(3), 7)
            kept.answer(range(3))
        expect.requests(watch.collect(), kept, [2, 2, 2], one.pid)


def test_unanswered_requests_in_a_row_are_one(daemon, watch, listening):
    """Nothing tells where pipelined requests end: it is the server's turn until it answers."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 3) as kept:
        kept.ask(range(3))
        daemon.declare("DRAIN", one.pid)
        for _ in range(3):
            kept.say(range(3))
        for _ in range(3):
            kept.read(range(3))
        for _ in range(3):
            kept.answer(range(3))
        events = watch.collect()
        expect.requests(events, kept, [1, 1, 1], one.pid)


def test_answer_in_parts(daemon, watch, listening):
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 3) as kept:
        daemon.declare("DRAIN", one.pid)
        kept.say(range(3))
        kept.read(range(3))
        for _ in range(5):
            kept.answer(range(3))
        one.call("receive_nothing", [0, 1, 2])
        expect.requests(watch.collect(), kept, [1, 1, 1], one.pid)


def test_peek(daemon, watch, listening):
    """Looked at twice, then read: one request. Looked at only: none was read."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 5) as kept:
        kept.ask(range(5))
        daemon.declare("DRAIN", one.pid)
        kept.say(range(5))
        for _ in range(2):
            kept.read(range(5), QUESTION, 4096, "recv", socket.MSG_PEEK)
        kept.read(range(3))
        kept.answer(range(3))
        expect.requests(watch.collect(), kept, [1, 1, 1, 0, 0], one.pid)


def test_requests_begun_before_the_drain(daemon, watch, listening):
    """Their first bytes came before DRAIN: read, being read, not yet read."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 9) as kept:
        kept.ask([0, 3, 6])
        peers.next_tick()
        kept.say(range(9))
        kept.read([0, 1, 2])
        kept.read([3, 4, 5], 7)
        daemon.declare("DRAIN", one.pid)
        kept.say(range(9), 11)
        kept.read([0, 1, 2], 11)
        kept.read([3, 4, 5], QUESTION - 7 + 11)
        kept.read([6, 7, 8], QUESTION + 11)
        kept.answer(range(9))
        late = expect.of_type(watch.collect(), "request")
        assert [kept.ports.index(e["src"]["port"]) for e in late] == []
        kept.ask([1, 4, 7])
        expect.requests(watch.collect(), kept, [0, 1, 0, 0, 1, 0, 0, 1, 0], one.pid)


def test_ends_are_no_requests(daemon, watch, listening):
    """The peer closes or resets, the server closes, nothing happens at all."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 7) as kept:
        kept.ask(range(5))
        daemon.declare("DRAIN", one.pid)
        kept.leave([0, 1])
        one.call("receive_end", [0, 1])
        one.call("receive_nothing", [2, 5])
        one.call("close_connections", [3, 6])
        assert expect.counted(watch.collect()) == {}


def test_answers_to_the_draining_process(daemon, watch, actor, listening):
    """What it reads on connections that it opened itself, before and after DRAIN."""
    one, other = actor(), listening()
    daemon.declare("ACTIVE", one.pid)
    for phase in ("ACTIVE", "DRAIN"):
        daemon.declare(phase, one.pid)
        for _ in range(3):
            one.call("connect", "127.0.0.1", other.port, True)
            other.call("accept", 1)
        every = list(range(len(one.call("peer_ports"))))
        for _ in range(5):
            one.call("send", every, QUESTION)
            other.call("receive", every, QUESTION)
            other.call("send", every, ANSWER)
            one.call("receive", every, ANSWER)
    assert expect.counted(watch.collect()) == {"connect": 3}


def test_requests_on_connections_accepted_while_draining(daemon, watch, listening):
    """That they were accepted is the event."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 7) as kept:
        for _ in range(3):
            kept.ask(range(7))
        events = watch.collect()
        expect.accepts(events, kept.made, one.pid, one.pid)
        assert expect.counted(events) == {"accept": 7}


def test_requests_queued_at_the_drain(daemon, watch, listening):
    """The connection arrived before DRAIN, was accepted after it; its first request was there, its
    second is late."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 5, accept=False) as kept:
        kept.say(range(5))
        wait_until(lambda: peers.accept_queue(one.port) == 5, "5 connections in the accept queue")
        daemon.declare("DRAIN", one.pid)
        one.call("accept", 5)
        kept.read(range(5))
        kept.answer(range(5))
        assert expect.counted(watch.collect()) == {}
        kept.ask([1, 2])
        expect.requests(watch.collect(), kept, [0, 1, 1, 0, 0], one.pid)


def test_requests_to_another_subject(daemon, watch, listening):
    """While one drains, those of an ACTIVE one and of nobody's are no events."""
    draining, active, nobody = listening(), listening(), listening()
    daemon.declare("ACTIVE", draining.pid)
    daemon.declare("ACTIVE", active.pid)
    with Kept(draining, 3) as late, Kept(active, 3) as fine, Kept(nobody, 3) as other:
        daemon.declare("DRAIN", draining.pid)
        for kept in (late, fine, other):
            kept.ask(range(3))
        events = watch.collect()
        expect.requests(events, late, [1, 1, 1], draining.pid)
        assert expect.counted(events) == {"request": 3}


def test_shutdown_declared(daemon, watch, listening):
    """SHUTDOWN is as late as DRAIN; `phase` says which."""
    one = listening()
    with Kept(one, 3) as kept:
        daemon.declare("DRAIN", one.pid)
        kept.ask(range(3))
        daemon.declare("SHUTDOWN", one.pid)
        kept.ask(range(2))
        late = expect.of_type(watch.collect(), "request")
        assert Counter(e["phase"] for e in late) == {"DRAIN": 3, "SHUTDOWN": 2}


def test_request_hooks(own_daemon, actor):
    """They are attached from the first drain on until nothing drains any more."""
    probed = json.loads(own_daemon.run("probe", "-o", "json").stdout)["hooks"]
    hooks = {h["program"] for h in probed if h["runs"] == "while draining" and h["on"]}
    assert hooks

    def attached():
        own = harness.opened(own_daemon.process.pid)
        links = {name for kind, i, name in harness.loaded() if kind == "link" and (kind, i) in own}
        return links & hooks

    own_daemon.start()
    one, other = actor(), actor()
    own_daemon.declare("ACTIVE", one.pid)
    assert attached() == set()
    own_daemon.declare("DRAIN", one.pid)
    assert attached() == hooks
    own_daemon.declare("DRAIN", other.pid)
    own_daemon.declare("ACTIVE", one.pid, "--epoch", "2")
    assert attached() == hooks
    other.die("exit")
    wait_until(lambda: attached() == set(), "the end of the last draining process is seen")
    own_daemon.declare("DRAIN", one.pid)
    assert attached() == hooks
    # They go with the daemon, and come with the next one.
    own_daemon.kill()
    own_daemon.start()
    assert attached() == hooks
    own_daemon.declare("SHUTDOWN", one.pid)
    assert attached() == hooks
    own_daemon.declare("ACTIVE", one.pid, "--epoch", "3")
    assert attached() == set()


# In flight ----------------------------------------------------------------------------------


def inflight(daemon, one):
    """As the process holds them, and as TCP does."""
    shown = daemon.subject(one.pid)
    return shown["inflight"], shown["inflight_tcp"]


def wait_inflight(daemon, one, expected):
    """TCP is a moment later than its user."""
    wait_until(
        lambda: inflight(daemon, one) == expected,
        lambda: f"{expected} in flight; now {inflight(daemon, one)}",
    )


def clog(kept, which):
    """Answers that their clients do not read: when the server closes them, TCP goes on with them."""
    for i in which:
        kept.one.call("send_all", i)


@pytest.mark.parametrize("family", peers.FAMILIES)
@pytest.mark.parametrize("first", ["ACTIVE", None])
def test_inflight(daemon, listening, first, family):
    """Accepted with and without an address, waiting to be accepted, closed, being closed; with
    DRAIN as the first declaration as well."""
    own, to = peers.FAMILIES[family]
    one = listening(own)
    if first:
        daemon.declare(first, one.pid)
    with Kept(one, 11, to) as kept, Kept(one, 5, to, accept=False):
        one.call("accept_call", "accept4", False, 5)
        with fill(one.port, 7, to):
            if first:
                assert inflight(daemon, one) == (16, 23)
            daemon.declare("DRAIN", one.pid)
            assert inflight(daemon, one) == (16, 23)
            clog(kept, [1, 2])
            one.call("close_connections", [0, 1, 2])
            wait_inflight(daemon, one, (13, 22))
            one.call("accept", 3)
            assert inflight(daemon, one) == (16, 22)
            one.die("exit")
    report = daemon.report(one.pid)
    assert report["inflight"] == {"start": 16, "start_tcp": 23, "end": 16, "end_tcp": 20}
    assert (report["abandoned"]["total"], report["backlog_dropped"]) == (16, 4)


def test_inflight_older_than_the_daemon(own_daemon, listening):
    one = listening()
    with Kept(one, 5), fill(one.port, 3):
        own_daemon.start()
        own_daemon.declare("ACTIVE", one.pid)
        assert inflight(own_daemon, one) == (5, 8)
        with fill(one.port, 2, already=3):
            assert inflight(own_daemon, one) == (5, 10)
            one.call("accept", 5)
            assert inflight(own_daemon, one) == (10, 10)


def test_inflight_of_a_listener_that_went_over(daemon, listening, actor):
    """Its queue is counted where it was first declared, and when that has gone by its next owner."""
    old, new = listening(), actor()
    daemon.declare("ACTIVE", old.pid)
    old.hand_over("listener", new)
    daemon.declare("ACTIVE", new.pid)
    with fill(old.port, 5):
        assert (inflight(daemon, old), inflight(daemon, new)) == ((0, 5), (0, 0))
        old.die("exit")
        wait_until(lambda: old.pid not in daemon.subjects(), "the old one is forgotten")
        daemon.declare("DRAIN", new.pid)
        with fill(old.port, 3, already=5):
            assert inflight(daemon, new) == (0, 8)
            new.call("accept", 8)
            assert inflight(daemon, new) == (8, 8)


# Abandoned connections ----------------------------------------------------------------------


# Answered; never used; not answered at all, or not the second time; not read at all, or not the
# second time; to be reset, after an answer.
IDLE, NEW, BUSY, BUSY_AGAIN = range(3), range(3, 5), range(5, 7), range(7, 10)
UNREAD, UNREAD_AGAIN, LINGER = range(10, 11), range(11, 12), range(12, 13)
LEFT = {
    **dict.fromkeys([*IDLE, *NEW], ("fin", False)),
    **dict.fromkeys([*BUSY, *BUSY_AGAIN], ("fin", True)),
    **dict.fromkeys([*UNREAD, *UNREAD_AGAIN], ("rst", True)),
    **dict.fromkeys(LINGER, ("rst", False)),
}
LEFT_AFTER_REQUESTS = 3 + 2 + 2 * 3 + 1 + 1


def leave_in_every_state(kept):
    kept.ask([*IDLE, *BUSY_AGAIN, *UNREAD_AGAIN, *LINGER])
    peers.next_tick()
    kept.say([*BUSY, *BUSY_AGAIN, *UNREAD, *UNREAD_AGAIN])
    kept.read([*BUSY, *BUSY_AGAIN])
    kept.one.call("linger", list(LINGER))


def test_abandoned(daemon, watch, listening):
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 13) as kept:
        leave_in_every_state(kept)
        daemon.declare("DRAIN", one.pid)
        one.die("exit")
        assert [end_of(s) for s in kept.sockets] == [LEFT[i][0] for i in range(13)]
        events = watch.collect()
        expect.abandoned(events, kept, LEFT, one.pid)
        assert expect.counted(events) == {"abandon": 13}


def test_left_by_their_clients(daemon, watch, listening):
    """Who has closed without a word has lost nothing, accepted or not; TCP counts a FIN as a byte."""
    one = listening()
    with Held("127.0.0.1", one.port, 3):
        pass
    daemon.declare("ACTIVE", one.pid)
    one.call("accept", 3)
    with Held("127.0.0.1", one.port, 5):
        one.call("accept", 5)
    daemon.declare("DRAIN", one.pid)
    assert daemon.subject(one.pid)["inflight"] == 8
    assert daemon.subject(one.pid)["accepts"] == 8
    one.die("SIGKILL")
    assert expect.counted(watch.collect()) == {}


@pytest.mark.parametrize("when", ["before", "after"])
def test_abandoned_states_reached_while_draining(daemon, watch, listening, when):
    """The same with all traffic after DRAIN, on connections accepted before and after it."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with contextlib.ExitStack() as stack:
        if when == "before":
            kept = stack.enter_context(Kept(one, 13))
        daemon.declare("DRAIN", one.pid)
        if when == "after":
            kept = stack.enter_context(Kept(one, 13))
        leave_in_every_state(kept)
        one.die("exit")
        assert [end_of(s) for s in kept.sockets] == [LEFT[i][0] for i in range(13)]
        events = watch.collect()
        expect.abandoned(events, kept, LEFT, one.pid)
        late = {"request": LEFT_AFTER_REQUESTS} if when == "before" else {"accept": 13}
        assert expect.counted(events) == {"abandon": 13, **late}


def test_abandoned_connections_older_than_the_daemon(own_daemon, listening):
    one = listening()
    with Kept(one, 13) as kept:
        leave_in_every_state(kept)
        own_daemon.start()
        watch = own_daemon.watch()
        own_daemon.declare("DRAIN", one.pid)
        one.die("exit")
        events = expect.of_type(watch.collect(), "abandon")
        found = expect.by_src_port(events)
        assert sorted(found) == sorted(kept.ports)
        assert {i: (found[p]["how"], found[p]["busy"]) for i, p in enumerate(kept.ports)} == LEFT


@pytest.mark.parametrize("bytes_each", [1, 700_001])
def test_bytes(daemon, watch, listening, bytes_each):
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 3) as kept:
        for _ in range(3):
            one.begin("receive", [1, 2], bytes_each)
            kept.say([1, 2], bytes_each)
            one.end()
            one.begin("send", [2], bytes_each)
            got = 0
            while got < bytes_each:
                got += len(kept.sockets[2].recv(65536))
            kept.to_client[2] += got
            one.end()
        one.die("exit")
        ends = {0: ("fin", False), 1: ("fin", True), 2: ("fin", False)}
        expect.abandoned(watch.collect(), kept, ends, one.pid)


def test_held_by_a_child(daemon, watch, listening):
    """Whoever is the last to hold them abandons them."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 7) as kept:
        kept.ask(range(3))
        child = one.call("fork")
        daemon.declare("DRAIN", one.pid)
        one.die("exit")
        events = watch.collect()
        assert expect.counted(events) == {}
        assert [e["open_connections"] for e in expect.of_type(events, "exit")] == [7]
        os.kill(child, signal.SIGKILL)
        assert [end_of(s) for s in kept.sockets] == ["fin"] * 7
        wait_until(lambda: peers.has_ended(child), "the child is gone")
        ends = dict.fromkeys(range(7), ("fin", False))
        expect.abandoned(watch.collect(), kept, ends, child, one.pid)


def test_ended_before_the_exit(daemon, watch, listening):
    """By the peer, in either way; by the server itself; after which one is left."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 8) as kept:
        kept.ask(range(8))
        kept.leave([0, 1, 2])
        kept.reset_at_close([3, 4])
        kept.leave([3, 4])
        one.call("receive_end", [0, 1, 2])
        one.call("close_connections", [5, 6])
        one.die("exit")
        assert end_of(kept.sockets[7]) == "fin"
        expect.abandoned(watch.collect(), kept, {7: ("fin", False)}, one.pid)


def test_workers_abandon_what_they_hold(daemon, watch, listening):
    """Connections by who held them: a child got a copy of the first five only."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 5) as shared:
        child = one.call("fork")
        own = Kept(one, 3)
        with own:
            daemon.declare("DRAIN", one.pid)
            one.die("SIGKILL")
            assert [end_of(s) for s in own.sockets] == ["fin"] * 3
            events = watch.collect()
            expect.abandoned(events, own, dict.fromkeys(range(3), ("fin", False)), one.pid)
        watch = daemon.watch()
        os.kill(child, signal.SIGTERM)
        assert [end_of(s) for s in shared.sockets] == ["fin"] * 5
        wait_until(lambda: peers.has_ended(child), "the child is gone")
        events = watch.collect()
        ends = dict.fromkeys(range(5), ("fin", False))
        expect.abandoned(events, shared, ends, child, one.pid)


# Backlogs -----------------------------------------------------------------------------------


STOPS_LISTENING = {
    "close": lambda one: one.call("close_listener"),
    "shutdown": lambda one: one.call("shutdown_listener"),
    "exit": lambda one: one.die("exit"),
    "SIGKILL": lambda one: one.die("SIGKILL"),
}


def test_backlog_of_a_listener_that_is_shut_down(daemon, watch, listening):
    """shutdown(2) drops the queue without an end of the listener, which alone knows its address."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with fill(one.port, 17, talk=range(7)) as waiting:
        daemon.declare("DRAIN", one.pid)
        one.call("shutdown_listener")
        assert resets(waiting) == 17
        events = watch.collect()
        expect.backlog(events, one.pid, (None, one.port), 17)
        assert expect.counted(events) == {"backlog": 1}


def test_backlog_that_came_while_draining(daemon, watch, listening):
    """Neither accepted nor lost without trace: no accept event, but one of the backlog."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with fill(one.port, 13) as waiting:
        one.call("accept", 5)
        one.die("exit")
        assert resets(waiting) == 8
        events = watch.collect()
        expect.backlog(events, one.pid, ("127.0.0.1", one.port), 8)
        assert expect.counted(events) == {"accept": 5, "abandon": 5, "backlog": 1}


def test_backlog_older_than_the_daemon(own_daemon, listening):
    one = listening()
    with fill(one.port, 11) as waiting:
        own_daemon.start()
        watch = own_daemon.watch()
        own_daemon.declare("DRAIN", one.pid)
        one.die("exit")
        assert resets(waiting) == 11
        expect.backlog(watch.collect(), one.pid, ("127.0.0.1", one.port), 11)


def test_backlog_older_than_any_declaration(daemon, watch, listening):
    """DRAIN is the first that is declared, as a preStop hook does it."""
    one = listening()
    with fill(one.port, 11) as waiting:
        daemon.declare("DRAIN", one.pid)
        with fill(one.port, 5, already=11) as late:
            one.die("exit")
            assert (resets(waiting), resets(late)) == (11, 5)
            expect.backlog(watch.collect(), one.pid, ("127.0.0.1", one.port), 16)


@pytest.mark.parametrize("how", ["close", "shutdown", "exit"])
def test_empty_backlog(daemon, watch, listening, how):
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 3):
        one.call("close_connections")
        STOPS_LISTENING[how](one)
        assert expect.counted(watch.collect()) == {"accept": 3}


def test_two_listeners(daemon, watch, listening):
    one = listening()
    first = one.port
    one.call("keep_listener")
    second = one.call("listen", "127.0.0.1")
    daemon.declare("DRAIN", one.pid)
    with fill(first, 7) as a, fill(second, 3) as b:
        one.die("exit")
        assert (resets(a), resets(b)) == (7, 3)
        events = expect.of_type(watch.collect(), "backlog")
        assert {e["listener"]["port"]: e["dropped"] for e in events} == {first: 7, second: 3}


@pytest.mark.parametrize("how", ["close", "exit", "SIGKILL"])
@pytest.mark.parametrize("holder", ["child", "other"])
def test_kept_listener(daemon, watch, listening, actor, how, holder):
    """Somebody else has the listener as well: nothing is dropped, and the queue is served."""
    one, other = listening(), actor()
    for pid in (one.pid, other.pid):
        daemon.declare("ACTIVE", pid)
    if holder == "other":
        one.hand_over("listener", other)
    else:
        child = one.call("fork")
    with fill(one.port, 7) as waiting:
        daemon.declare("DRAIN", one.pid)
        STOPS_LISTENING[how](one)
        assert expect.counted(watch.collect()) == {}
        if holder == "other":
            other.call("accept", 7)
            assert sorted(other.call("peer_ports")) == sorted(waiting.ports)
            assert expect.counted(watch.collect()) == {}
        else:
            os.kill(child, signal.SIGKILL)
            assert resets(waiting) == 7
            wait_until(lambda: peers.has_ended(child), "the child is gone")
            expect.backlog(watch.collect(), child, ("127.0.0.1", one.port), 7, one.pid)


class Pair:
    """Two actors with a listener each on one port, in a network namespace, and a client there."""

    def __init__(self, daemon, actor, netns, migrate, count):
        inside = netns.inside
        value = f"echo {migrate} >/proc/sys/net/ipv4/tcp_migrate_req"
        if subprocess.run([*inside, "sh", "-c", value], capture_output=True).returncode:
            pytest.skip("no tcp_migrate_req on this kernel (5.14 has it)")
        self.old, self.new, self.client = actor(inside), actor(inside), actor(inside)
        self.port = self.old.call("listen", "127.0.0.1", 0, 512, True)
        self.new.call("listen", "127.0.0.1", self.port, 512, True)
        for one in (self.old, self.new):
            daemon.declare("ACTIVE", one.pid)
        made = [self.client.call("connect", "127.0.0.1", self.port, True) for _ in range(count)]
        assert {m["errno"] for m in made} == {None}
        pid = self.old.pid
        wait_until(lambda: peers.accept_queue(self.port, pid) == count, f"{count} are queued")


@pytest.mark.parametrize("how", ["close", "exit", "shutdown"])
def test_migrated_backlog(daemon, watch, actor, netns, how):
    """The kernel gives the queue of a closed listener to another of its SO_REUSEPORT group."""
    pair = Pair(daemon, actor, netns, 1, 31)
    daemon.declare("DRAIN", pair.old.pid)
    STOPS_LISTENING[how](pair.old)
    pair.new.call("accept", 31)
    pair.new.call("send", list(range(31)), ANSWER)
    pair.client.call("receive", list(range(31)), ANSWER)
    assert expect.counted(watch.collect()) == {}


def test_backlog_that_is_not_migrated(daemon, watch, actor, netns):
    """Each has a queue of its own: only that of the closed one is lost."""
    pair = Pair(daemon, actor, netns, 0, 31)
    daemon.declare("DRAIN", pair.old.pid)
    pair.old.die("exit")
    pair.new.call("accept_all")
    pair.new.call("close_connections")
    ends = pair.client.call("ends")
    assert 0 < ends.count("rst") < 31
    events = watch.collect()
    expect.backlog(events, pair.old.pid, ("127.0.0.1", pair.port), ends.count("rst"))
    assert expect.counted(events) == {"backlog": 1}


# Refused connects ---------------------------------------------------------------------------


def expect_refused(events, ports, subject, endpoint, gone=None):
    """`ports` are the clients', in their order."""
    events = expect.of_type(events, "refused")
    assert [e["src"]["port"] for e in events] == ports
    ages = [e["since_exit_ns"] for e in events]
    assert ages == sorted(ages) and len(set(ages)) == len(ages)
    for event in events:
        assert (event["dst"]["addr"], event["dst"]["port"]) == endpoint, event
        assert event["subject"]["id"] == subject, event
        assert event["phase"] == "DRAIN", event
        assert 0 < event["since_exit_ns"] <= now_ns() - (gone or 0), event
        assert "process" not in event, event


@pytest.mark.parametrize("family", peers.FAMILIES)
def test_refused(daemon, watch, listening, actor, family):
    own, to = peers.FAMILIES[family]
    one = listening(own)
    daemon.declare("DRAIN", one.pid)
    gone = now_ns()
    one.die("exit")
    ports = [peers.refuse(to, one.port) for _ in range(11)]
    events = watch.collect()
    expect_refused(events, ports, one.pid, (to, one.port), gone)
    assert expect.counted(events) == {"refused": 11}

    # Somebody listens there again, and leaves again: that is not the drained one any more.
    watch = daemon.watch()
    other = actor()
    other.call("listen", own, one.port)
    with Held(to, one.port, 3):
        assert expect.counted(watch.collect()) == {}
    other.die("exit")
    peers.refuse(to, one.port)
    assert expect.counted(watch.collect()) == {}


def test_refused_while_draining(daemon, watch, listening):
    """The listener is gone before its process is."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 1):
        one.call("close_listener")
        ports = [peers.refuse("127.0.0.1", one.port) for _ in range(5)]
        expect_refused(watch.collect(), ports, one.pid, ("127.0.0.1", one.port))


def test_refused_elsewhere(daemon, watch, listening, netns, actor):
    """Another port, another address, another network namespace."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    one.die("exit")
    peers.refuse("127.0.0.2", one.port)
    peers.refuse("::1", one.port)
    peers.refuse("127.0.0.1", free_port())
    other = actor(netns.inside)
    assert other.call("connect", "127.0.0.1", one.port)["errno"] == "ECONNREFUSED"
    assert expect.counted(watch.collect()) == {}


def test_refused_at_any_address(daemon, watch, listening):
    """A listener on 0.0.0.0 was there for all of them."""
    one = listening("0.0.0.0")
    daemon.declare("DRAIN", one.pid)
    one.die("exit")
    ports = [peers.refuse(f"127.0.0.{i}", one.port) for i in (1, 2, 3)]
    events = expect.of_type(watch.collect(), "refused")
    assert [e["src"]["port"] for e in events] == ports
    assert [e["dst"]["addr"] for e in events] == ["127.0.0.1", "127.0.0.2", "127.0.0.3"]


@pytest.mark.parametrize("phase", ["ACTIVE", None])
def test_refused_by_what_did_not_drain(daemon, watch, listening, phase):
    one = listening()
    if phase:
        daemon.declare(phase, one.pid)
    one.die("exit")
    peers.refuse("127.0.0.1", one.port)
    assert expect.counted(watch.collect()) == {}


def test_not_refused_while_somebody_has_the_listener(daemon, watch, listening, actor):
    one, other = listening(), actor()
    one.hand_over("listener", other)
    daemon.declare("DRAIN", one.pid)
    one.die("exit")
    with Held("127.0.0.1", one.port, 3):
        other.call("accept", 3)
    other.call("close_connections")
    assert expect.counted(watch.collect()) == {}


# Requests after the close -------------------------------------------------------------------


CLOSES = {**STOPS_LISTENING, "close": lambda one: one.call("close_connections")}
del CLOSES["shutdown"]


def send_after_the_end(kept, which, size):
    """Each sees the end, speaks all the same, and is reset: then it cannot send any more."""
    for i in which:
        assert kept.sockets[i].recv(1) == b""
        with contextlib.suppress(BrokenPipeError):
            kept.say([i], size)
        with pytest.raises(BrokenPipeError):
            kept.say([i], 1)


@pytest.mark.parametrize("family", peers.FAMILIES)
@pytest.mark.parametrize("how", CLOSES)
def test_requests_after_the_close(daemon, watch, listening, client, how, family):
    """Answered before; never used; answered in DRAIN: none of them on its way when the end came.
    And one that is not answered: what follows belongs to that request, which is abandoned."""
    own, to = peers.FAMILIES[family]
    one = listening(own)
    daemon.declare("ACTIVE", one.pid)
    before = daemon.metrics()
    idle = [*range(5), *range(6, 8)]
    with Kept(one, 8, to) as kept:
        kept.ask([0, 1, 2, 5])
        peers.next_tick()
        kept.say([5])
        kept.read([5])
        daemon.declare("DRAIN", one.pid)
        kept.ask([0])
        kept.ask([0, 6])
        since = now_ns()
        CLOSES[how](one)
        send_after_the_end(kept, range(8), QUESTION)
        events = watch.collect()
        late = [e for e in expect.of_type(events, "request") if "after_close_ns" in e]
        assert sorted(e["src"]["port"] for e in late) == sorted(kept.ports[i] for i in idle)
        for event in late:
            made = kept.made[kept.ports.index(event["src"]["port"])]
            assert (event["src"]["addr"], event["src"]["port"]) == made.src, event
            assert (event["dst"]["addr"], event["dst"]["port"]) == made.dst, event
            assert event["process"]["pid"] == event["subject"]["id"] == one.pid, event
            assert (event["phase"], event["verdict"]) == ("DRAIN", "misrouted"), event
            assert 0 < event["after_close_ns"] <= now_ns() - since, event
            assert event["after_close_ns"] < event["conn_age_ns"], event
        gone = {"abandon": 8} if how != "close" else {}
        assert expect.counted(events) == {"request": 3 + 7, **gone}
    after = daemon.metrics()
    name = "phasewatch_requests_too_late_total"
    assert after.sum(name) - before.sum(name) == 7
    assert after.misrouted(type="request") - before.misrouted(type="request") == 3 + 7
    if how != "close":
        requests = daemon.report(one.pid)["requests"]
        assert (requests["misrouted"], requests["too_late"], requests["connections"]) == (10, 7, 7)


def test_request_after_the_close_is_told_once(daemon, watch, listening):
    """In many segments, and once more on another connection from the same port."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 3) as kept:
        one.die("exit")
        send_after_the_end(kept, range(3), 300_007)
        assert expect.counted(watch.collect()) == {"accept": 3, "abandon": 3, "request": 3}


def test_later_connection_with_the_same_ends(daemon, watch, listening):
    """To who serves there next: what comes after that one's close is nothing of the drain."""
    one, source = listening(), free_port()

    def connect_and_close(server):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", source))
            sock.connect(("127.0.0.1", one.port))
            server.call("accept", 1)
            server.call("close_connections")
            assert sock.recv(1) == b""
            if server is not one:
                sock.sendall(bytes(QUESTION))

    daemon.declare("DRAIN", one.pid)
    connect_and_close(one)
    one.die("exit")
    other = listening(port=one.port)
    daemon.declare("ACTIVE", other.pid)
    connect_and_close(other)
    assert expect.counted(watch.collect()) == {"accept": 1}


@pytest.mark.parametrize("phase", ["ACTIVE", "INIT"])
def test_closed_while_not_draining(daemon, watch, listening, phase):
    """While something else drains."""
    one, other = listening(), listening()
    daemon.declare(phase, one.pid)
    daemon.declare("DRAIN", other.pid)
    with Kept(one, 3) as kept:
        watch = daemon.watch()
        one.call("close_connections")
        send_after_the_end(kept, range(3), QUESTION)
        assert expect.counted(watch.collect()) == {}


def test_farewells_are_no_requests(daemon, watch, listening):
    """As TLS says goodbye to who said goodbye; RST answers it as well."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 5) as kept:
        one.die("exit")
        send_after_the_end(kept, range(5), 31)
        assert expect.counted(watch.collect()) == {"accept": 5, "abandon": 5}
