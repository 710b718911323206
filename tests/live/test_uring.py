# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What only servers do that accept, read, write and close through io_uring; see servers/uring.c.
What all servers do is in test_exactness.py."""

import contextlib

import expect
import peers
import pytest
from common import end_of
from expect import now_ns
from peers import Kept, fill, resets

FD = ["normal", "null", "multishot", "multishot null"]
TABLE = ["direct", "direct null", "multishot direct", "multishot direct null"]
WAYS = [*FD, *TABLE]
# By the kernel's worker threads, by its polling thread, with the listener in the ring's table, too.
MORE = [f"{word} {way}" for word in ("async", "sqpoll", "fixed") for way in WAYS]


def seen_by(way):
    """Without trampolines an accept with a NULL address is shown only by what follows it."""
    return ("accept", "first_io", "release") if "null" in way else ("accept",)


@pytest.fixture
def ringing(daemon, actor):
    """Makes such a server, ACTIVE before it listens: a listener that only a ring's table has is not
    found any more later."""

    def make(way):
        one = actor(uring=way)
        daemon.declare("ACTIVE", one.pid)
        one.port = one.call("listen", "127.0.0.1")
        return one

    return make


def acceptors(one, way):
    """The kernel closes what is in a ring's table, and says not for whom."""
    return {one.pid, None} if "direct null" in way else {one.pid}


@pytest.mark.parametrize("way", [*WAYS, *MORE])
def test_uring(daemon, watch, ringing, way):
    """An accept request is under way when DRAIN comes, and when each connection comes. Of these 23,
    eleven are closed by the server, twelve by its exit; then seven are in the queue."""
    one = ringing(way)
    with Kept(one, 5) as old, contextlib.ExitStack() as stack:
        old.ask(range(3))
        one.begin("accept", 23)
        since = now_ns()
        daemon.declare("DRAIN", one.pid)
        new = stack.enter_context(Kept(one, 23, accept=False, first=5))
        one.end()
        new.ask(range(17))
        old.ask([0])
        old.ask([0, 4])
        one.call("close_connections", list(range(5 + 12, 5 + 23)))
        assert [end_of(s) for s in new.sockets[12:]] == ["fin"] * 11
        one.call("stop_accepting")
        waiting = stack.enter_context(fill(one.port, 7))
        one.die("exit")
        assert resets(waiting) == 7
        assert [end_of(s) for s in (*old.sockets, *new.sockets[:12])] == ["fin"] * 17
        refused = peers.refuse("127.0.0.1", one.port)

        events = watch.collect()
        counts = {"accept": 23, "request": 3, "abandon": 17, "backlog": 1, "refused": 1}
        assert expect.counted(events) == counts
        expect.accepts(
            events, new.made, one.pid, acceptors(one, way), since=since, seen_by=seen_by(way)
        )  # fmt: skip
        ports = {kind: [e["src"]["port"] for e in expect.of_type(events, kind)]
                 for kind in ("request", "abandon", "refused")}  # fmt: skip
        assert ports["request"] == [old.ports[i] for i in (0, 0, 4)]
        assert sorted(ports["abandon"]) == sorted([*old.ports, *new.ports[:12]])
        assert ports["refused"] == [refused]
        (backlog,) = expect.of_type(events, "backlog")
        assert backlog["dropped"] == 7
        assert backlog["listener"] == {"addr": "127.0.0.1", "port": one.port}


@pytest.mark.parametrize("way", WAYS)
def test_requests_begun_before_the_drain(daemon, watch, ringing, way):
    """Their first half was read before DRAIN, the second after it; then there is a new one."""
    one = ringing(way)
    with Kept(one, 4) as kept:
        kept.ask([0, 1])
        peers.next_tick()
        kept.say(range(4), 7)
        kept.read(range(4), 7)
        daemon.declare("DRAIN", one.pid)
        kept.say(range(4), 11)
        kept.read(range(4), 11)
        kept.answer(range(4))
        assert expect.counted(watch.collect()) == {}
        kept.ask([1, 2])
        expect.requests(watch.collect(), kept, [0, 1, 1, 0], one.pid)


@pytest.mark.parametrize("way", WAYS)
def test_ring_closed_by_its_process(daemon, watch, ringing, way):
    """The connections in its table are closed thereby, those that are descriptors stay open.
    Nothing is abandoned but by an exit."""
    one = ringing(way)
    with Kept(one, 5) as kept:
        kept.ask(range(5))
        daemon.declare("DRAIN", one.pid)
        one.call("stop_accepting")
        one.call("close_ring")
        if way in TABLE:
            assert [end_of(s) for s in kept.sockets] == ["fin"] * 5
        assert expect.counted(watch.collect()) == {}
        one.die("exit")
        left = {} if way in TABLE else dict.fromkeys(range(5), ("fin", False))
        expect.abandoned(watch.collect(), kept, left, one.pid)


def test_listener_that_only_a_ring_has(daemon, watch, actor):
    """One that was put there before the first declaration is found by nobody. Who asks for the
    address is seen to accept all the same."""
    one = actor(uring="fixed")
    one.port = one.call("listen", "127.0.0.1")
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 7) as kept:
        expect.accepts(watch.collect(), kept.made, one.pid, one.pid)
