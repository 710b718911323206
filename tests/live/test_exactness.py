# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""One life of a server, for each of many: what phasewatch says of it is what its clients did and
saw. How it goes is in script(), for all; what is expected is counted by the clients alone."""

import functools
import itertools
import os
import signal
from collections import Counter, namedtuple
from dataclasses import dataclass

import expect
import peers
import pytest
import real
from expect import now_ns, of_type
from harness import ARRIVALS, DEADLINE, LOSSES, wait_until
from peers import ANSWER, QUESTION


@dataclass(frozen=True)
class Rows:
    """The product of its columns."""

    kind: str
    families: list
    accepts: list
    ends: list


V4, ALL = ["ipv4"], ["ipv4", "ipv6", "mapped"]
ADDRESS, NULL = ["address"], ["null"]
CALLS = ["accept", "accept4", "accept4 null", "nonblocking"]
URING = ["normal", "null", "multishot", "multishot null",
         "direct", "direct null", "multishot direct", "multishot direct null"]  # fmt: skip
KILLS = ["exit", "SIGTERM", "SIGKILL"]

# What kind of server, on what addresses, accepts how (servers/uring.c explains its words), and how
# it ends. A "graceful" end answers the requests that have begun and closes the rest; all others
# leave that to the kernel. Whoever hands over gives listener and connections to an ACTIVE process.
TABLE = [
    #    kind         families accepts  ends
    Rows("actor",     ALL,     CALLS,   [*KILLS, "close, then exit", "hand over"]),
    Rows("uring",     ALL,     URING,   ["exit"]),
    Rows("uring",     V4,      URING,   ["SIGTERM", "SIGKILL", "close, then exit", "hand over"]),
    Rows("threads",   ALL,     ADDRESS, KILLS),
    Rows("prefork",   ALL,     ADDRESS, KILLS),
    Rows("reuseport", ALL,     ADDRESS, KILLS),
    Rows("fork-each", ALL,     ADDRESS, KILLS),
    Rows("node",      ALL,     NULL,    ["graceful SIGTERM", "SIGKILL"]),
    Rows("nginx",     ALL,     ADDRESS, ["graceful SIGQUIT", "SIGTERM", "SIGKILL"]),
    Rows("haproxy",   ALL,     ADDRESS, ["graceful SIGUSR1", "SIGTERM", "SIGKILL"]),
    Rows("apache",    V4,      ADDRESS, ["graceful SIGWINCH", "SIGKILL"]),
    Rows("gunicorn",  V4,      ADDRESS, ["graceful SIGTERM", "SIGKILL"]),
    Rows("postgres",  V4,      ADDRESS, ["graceful SIGTERM", "SIGINT", "SIGKILL"]),
    Rows("redis",     V4,      ADDRESS, ["SIGTERM", "SIGKILL"]),
]  # fmt: skip

Row = namedtuple("Row", "kind family accepts end")
ROWS = [
    Row(rows.kind, *columns)
    for rows in TABLE
    for columns in itertools.product(rows.families, rows.accepts, rows.ends)
]


# Clients ------------------------------------------------------------------------------------


class Told(real.Client):
    """A client of an actor, which does nothing unless it is told to."""

    REQUEST = bytes(QUESTION)

    def __init__(self, one, port, address, wait=True):
        super().__init__(port, address)
        self.one = one
        if wait:
            self.accepted()

    def accepted(self):
        self.one.call(*self.one.accept)
        self.index = self.one.accepted
        self.one.accepted += 1

    def begin(self):
        super().begin()
        self.one.call("receive", [self.index], QUESTION // 2)

    def ask(self):
        self.send(self.REQUEST)
        self.one.call("receive", [self.index], QUESTION)
        self.one.call("send", [self.index], ANSWER)
        return self.outcome()

    def complete(self):
        return len(self.got) == ANSWER


ACCEPTS = {
    "accept": ("accept_call", "accept", True, 1),
    "accept4": ("accept_call", "accept4", True, 1),
    "accept4 null": ("accept_call", "accept4", False, 1),
    "nonblocking": ("accept_nonblocking", 1),
}


def told(one, accept=("accept", 1)):
    """An actor knows how to accept, and how many it has."""
    one.accept = accept
    one.accepted = 0
    return one


# A life -------------------------------------------------------------------------------------


class Scene:
    """A server, and what its clients did and saw."""

    def __init__(self, row, actor, server, fexit):
        self.row = row
        self.fexit = fexit
        self.own, self.to = peers.FAMILIES[row.family]
        self.is_told = row.kind in ("actor", "uring")
        if self.is_told:
            uring = row.accepts if row.kind == "uring" else None
            one = self.server = told(actor(uring=uring))
            one.accept = ACCEPTS.get(row.accepts, one.accept)
            one.port = one.call("listen", self.own)
            client = functools.partial(Told, one)
        else:
            self.server = server(row.kind, self.own)
            client = real.CLIENTS.get(row.kind, real.Http)
        self.pid, self.port = self.server.pid, self.server.port
        self.client = functools.partial(client, self.port, self.to)
        self.living, self.pids = set(), set()  # its processes: now, and all that were seen
        self.draining = False
        self.clients = []
        self.refused = []  # the ports of clients

    def open(self, count, queued=False):
        """Connections that the server accepts, if they are not `queued`."""
        clients = [self.client(wait=not queued) for _ in range(count)]
        assert {c.opened for c in clients} == {"ok"}
        for c in clients:
            c.late, c.queued = self.draining, queued
            c.requests = 0  # that are late
            c.gone = c.unseen = False
            c.end = None  # as it saw it: fin, rst
            # At Apache (TCP_DEFER_ACCEPT) a connection arrives when its client has said something.
            if self.row.kind == "apache" and not queued:
                assert c.ask() == "ok"
        self.clients += clients
        self.living = peers.descendants(self.pid)
        self.pids |= self.living
        return clients

    def drain(self, daemon):
        self.since = now_ns()
        daemon.declare("DRAIN", self.pid)
        self.draining = True

    def ask(self, clients):
        for c in clients:
            c.requests += self.draining and not c.late
            assert c.ask() == "ok"

    def begin(self, clients):
        """The first half of a request, which is read."""
        for c in clients:
            c.requests += self.draining and not c.late
            c.begin()
        ports = {c.port for c in clients}
        wait_until(lambda: not ports & peers.unread(self.port), "the halves are read")

    def leave(self, clients):
        for c in clients:
            c.close()
            c.gone = True

    def refuse(self, count):
        self.refused += [peers.refuse(self.to, self.port) for _ in range(count)]

    def still_there(self):
        return [c for c in self.clients if not c.gone]

    def see_the_end(self, clients):
        for c in clients:
            c.end = {"closed": "fin", "reset": "rst"}[c.outcome()]
            c.gone = True

    def halt(self):
        """True if nothing is read nor accepted any more until its end."""
        if self.is_told:
            if "multishot" in self.row.accepts:
                self.server.call("stop_accepting")
            return True
        # PostgreSQL's processes are in groups of their own.
        if self.row.end != "SIGKILL" or self.row.kind == "postgres":
            return False
        peers.halt(self.server)
        return True

    def kill(self):
        how = self.row.end.split()[-1]
        if self.is_told:
            self.server.die(how)
        elif how in ("exit", "SIGKILL") or self.row.kind in KILLED_IN_GROUPS:
            os.killpg(self.pid, signal.SIGQUIT if how == "exit" else getattr(signal, how))
        else:
            os.kill(self.pid, getattr(signal, how))

    def wait(self):
        self.server.process.wait(DEADLINE)
        wait_until(lambda: all(map(peers.has_ended, self.pids)), "all its processes are gone")

    # What must be said of it

    def arrived(self):
        return [c for c in self.clients if c.late and not c.queued and not c.unseen]

    def requests(self):
        return Counter({c.port: c.requests for c in self.clients if c.requests})

    def abandoned(self):
        cut_off = [c for c in self.clients if c.end and not c.queued]
        return [] if "graceful" in self.row.end else cut_off

    def dropped(self):
        return [c for c in self.clients if c.end and c.queued]

    def counts(self):
        return +Counter(
            accept=len(self.arrived()),
            request=self.requests().total(),
            abandon=len(self.abandoned()),
            dropped=len(self.dropped()),
            refused=len(self.refused),
        )


KILLED_IN_GROUPS = ("threads", "prefork", "reuseport", "fork-each")


def script(scene, daemon, actor):
    """Ten connections, one request on eight of them, half a second one on three of these. DRAIN.
    Then four requests on three of the idle ones, and half of one; seven new connections, requests
    on four of them, of which two leave and one begins another. Where that can be, requests that
    are not read, and eleven connections that are not accepted, three of them with a request. Then
    the end, and three connects more."""
    daemon.declare("ACTIVE", scene.pid)
    idle, unused, busy = scene.open(5), scene.open(2), scene.open(3)
    scene.ask([*idle, *busy])
    peers.next_tick()
    scene.begin(busy)

    scene.drain(daemon)
    scene.ask([idle[0], idle[1], idle[1], unused[0]])
    new = scene.open(7)
    scene.ask(new[:4])
    scene.leave(new[:2])
    scene.begin([idle[2], new[2]])
    queued = []
    if scene.halt():
        for c in (idle[3], new[3]):
            c.send(c.REQUEST)
        queued = scene.open(11, queued=True)
        for c in queued if scene.row.kind == "apache" else queued[:3]:
            c.send(c.REQUEST)

    if "graceful" in scene.row.end:
        end_gracefully(scene)
    elif scene.row.end == "hand over":
        hand_over(scene, queued, daemon, actor)
    else:
        if scene.row.end == "close, then exit":
            scene.server.call("close_listener")
            scene.see_the_end(queued)
            scene.refuse(2)
        scene.kill()
        scene.see_the_end(scene.still_there())
        scene.wait()
        scene.refuse(3)


def end_gracefully(scene):
    # Not all close a connection on which nothing was asked yet. PostgreSQL closes none but waits.
    unused = [c for c in scene.still_there() if not c.sent]
    idle = [c for c in scene.still_there() if not c.unanswered]
    scene.leave(idle if scene.row.kind == "postgres" else unused)
    scene.kill()
    for c in scene.still_there():
        if c.unanswered:
            assert c.finish() == "ok"
            scene.leave([c])
    scene.see_the_end(scene.still_there())
    scene.wait()
    scene.refuse(3)


def hand_over(scene, queued, daemon, actor):
    old, heir = scene.server, told(actor())
    daemon.declare("ACTIVE", heir.pid)
    old.hand_over("listener", heir)
    handed_over = []
    # What is in an io_uring's table has no descriptor that could be passed.
    if "direct" not in scene.row.accepts:
        old.hand_over("connections", heir)
        heir.accepted = old.accepted
        handed_over = [c for c in scene.still_there() if not c.queued]
    old.die("exit")
    for c in [*handed_over, *queued]:
        c.one = heir
        c.gone = True
        # Without trampolines an accept with a NULL address is seen when the connection is first
        # used, and that is by its new owner here.
        c.unseen = "null" in scene.row.accepts and not c.sent and not scene.fexit
    scene.see_the_end(scene.still_there())
    scene.wait()
    for c in queued:
        c.accepted()
    more = [Told(heir, scene.port, scene.to) for _ in range(3)]
    for c in [*handed_over, *queued, *more]:
        if not c.unanswered:
            assert c.ask() == "ok"
        c.close()


@pytest.fixture
def play(daemon, actor, server, fexit):
    """Plays a row of the table; the scene as it is then."""
    scenes = []

    def make(row):
        scenes.append(Scene(row, actor, server, fexit))
        script(scenes[-1], daemon, actor)
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.leave(scene.clients)


# What is said of it -------------------------------------------------------------------------

PLAYED = []  # the watches and scenes so far


@pytest.mark.parametrize("row", ROWS, ids="-".join)
def test_row(daemon, watch, play, row):
    before = daemon.metrics()
    scene = play(row)
    events = watch.collect()
    PLAYED.append((watch, scene))

    counted = expect.counted(events)
    counted["dropped"] = sum(e["dropped"] for e in of_type(events, "backlog"))
    del counted["backlog"]
    assert +counted == scene.counts()
    null = "null" in row.accepts
    # The kernel closes what is in an io_uring's table, and says not for whom.
    acceptors = scene.pids | ({None} if "direct null" in row.accepts else set())
    expect.accepts(
        events, scene.arrived(), scene.pid, acceptors, since=scene.since,
        seen_by=("accept", "first_io", "release") if null else ("accept",),
    )  # fmt: skip
    assert Counter(e["src"]["port"] for e in of_type(events, "request")) == scene.requests()
    exits = expect_exits(scene, of_type(events, "exit"))
    expect_abandoned(scene, of_type(events, "abandon"), exits)
    listeners = [e["listener"] for e in of_type(events, "backlog")]
    assert all(at == {"addr": scene.own, "port": scene.port} for at in listeners), listeners
    assert [e["src"]["port"] for e in of_type(events, "refused")] == scene.refused
    for event in events:
        if event["type"] in ARRIVALS | LOSSES:
            assert (event["subject"]["id"], event["phase"]) == (scene.pid, "DRAIN"), event
    expect_metrics(scene, before, daemon.metrics())


def expect_abandoned(scene, events, exits):
    found = expect.by_src_port(events)
    assert len(found) == len(events)
    for c in scene.abandoned():
        event = found[c.port]
        assert (event["dst"]["addr"], event["dst"]["port"]) == c.dst, event
        assert (event["how"], event["busy"]) == (c.end, c.unanswered), event
        assert (event["bytes_in"], event["bytes_out"]) == (c.sent, c.received), event
        if "process" in event:
            assert event["process"]["pid"] in exits, event
        else:
            assert "direct" in scene.row.accepts, event


def expect_exits(scene, events):
    """One of each process that lived to the end, and none twice. By pid."""
    exits = Counter(e["process"]["pid"] for e in events)
    assert {exits[pid] for pid in scene.living} == {1}, exits
    assert max(exits.values()) == 1, exits
    (own,) = [e for e in events if e["process"]["pid"] == scene.pid]
    status = scene.server.process.returncode
    assert own.get("code", -own.get("signal", 0)) == status, own
    return exits


def expect_metrics(scene, before, after):
    def gained(name, **labels):
        name = f"phasewatch_{name}_total"
        return after.sum(name, **labels) - before.sum(name, **labels)

    counts = scene.counts()
    assert gained("misrouted", type="accept", phase="DRAIN") == counts["accept"]
    assert gained("misrouted", type="request", phase="DRAIN") == counts["request"]
    assert gained("misrouted") == counts["accept"] + counts["request"]
    if scene.row.end != "hand over":
        early = sum(not c.late for c in scene.clients)
        assert gained("connections", direction="accept", phase="ACTIVE") == early
        assert gained("connections", direction="accept", phase="DRAIN") == counts["accept"]
    ends = Counter((c.end, c.unanswered) for c in scene.abandoned())
    for how, busy in itertools.product(("fin", "rst"), (False, True)):
        labels = {"how": how, "busy": str(busy).lower()}
        assert gained("abandoned", **labels) == ends[how, busy], labels
    assert gained("backlog_dropped") == counts["dropped"]
    assert gained("refused") == counts["refused"]


def test_reports():
    """Each drain has a report, a second or two after its end. Of all rows that were played."""
    for watch, scene in PLAYED:

        def is_its(event, pid=scene.pid):
            return event["type"] == "drain" and event["subject"]["id"] == pid

        report, counts = watch.wait_for(is_its, scene.row)["report"], scene.counts()
        told = {
            "accept": report["arrivals"]["misrouted"],
            "request": report["requests"]["misrouted"],
            "abandon": report["abandoned"]["total"],
            "dropped": report["backlog_dropped"],
            "refused": report["refused"]["count"],
        }
        assert +Counter(told) == counts, scene.row
        assert report["requests"]["connections"] == len(scene.requests()), scene.row
        assert report["inflight"]["start"] == 10, scene.row
        busy = sum(c.unanswered for c in scene.abandoned())
        assert report["abandoned"]["busy"] == busy, scene.row
