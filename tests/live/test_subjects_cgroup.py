# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Subjects that are cgroups: who belongs to them, and whose declaration is in force for a process
for which there are several: its own, its ancestors', its cgroups'."""

import os
import signal

import expect
import peers
import pytest
from expect import now_ns
from harness import NOBODY, wait_until
from peers import Held, arrive, connect_and_ask


@pytest.fixture
def member(actor):
    """Makes actors in a cgroup that listen. `when`: moved there before or after they listen."""

    def make(cgroup, when="before"):
        one = actor()
        if when == "before":
            cgroup.add(one.pid)
        one.port = one.call("listen", "127.0.0.1")
        if when == "after":
            cgroup.add(one.pid)
        return one

    return make


def declare(daemon, phase, cgroup, *more):
    done = daemon.cli("declare", phase, "--cgroup", str(cgroup), *more)
    assert done.returncode == 0, done.stderr


def expect_subject(events, cgroup):
    for event in events:
        subject = event["subject"]
        assert (subject["kind"], subject["id"]) == ("cgroup", cgroup.id), event
        assert subject["name"], event


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("path", ["mounted", "relative"])
def test_subtree(daemon, watch, cgroups, member, depth, path):
    """The path is that of the directory or, as /proc/PID/cgroup has it, that below the mount."""
    top = inner = cgroups("top")
    for i in range(depth):
        inner = cgroups(f"inner{i}", inner)
    one = member(inner)
    since = now_ns()
    declare(daemon, "DRAIN", top.directory if path == "mounted" else top.path, "--epoch", "7")
    made = arrive(one, 23)
    events = watch.collect("accept")
    expect.accepts(events, made, top.id, one.pid, since=since)
    expect_subject(events, top)
    assert {e["subject"]["epoch"] for e in events} == {7}
    assert {e["process"]["cgroup"] for e in events} == {inner.path}
    shown = daemon.subject(top.id, "cgroup")
    assert shown["subject"]["kind"] == "cgroup"
    assert (shown["phase"], shown["accepts_misrouted"]) == ("DRAIN", 23)


@pytest.mark.parametrize("declared", ["before", "after"])
@pytest.mark.parametrize("moved", ["before", "after"])
def test_moved_into_it(daemon, watch, cgroups, member, moved, declared):
    """What counts is where the process is when it accepts: not where its listener was made."""
    top = cgroups("top")
    if declared == "before":
        declare(daemon, "DRAIN", top.path)
    one = member(top, moved)
    if declared == "after":
        declare(daemon, "DRAIN", top.path)
    made = arrive(one, 23)
    events = watch.collect("accept")
    expect.accepts(events, made, top.id, one.pid)
    expect_subject(events, top)


def test_neighbours(daemon, watch, cgroups, member, actor):
    """A sibling, the parent, and a process in no cgroup of ours."""
    parent = cgroups("parent")
    draining, sibling = cgroups("draining", parent), cgroups("sibling", parent)
    others = [member(sibling), member(parent), actor()]
    others[2].port = others[2].call("listen", "127.0.0.1")
    declare(daemon, "DRAIN", draining.path)
    for one in others:
        arrive(one, 5)
    assert watch.collect("accept") == []


@pytest.mark.parametrize("outer, inner", [("DRAIN", "ACTIVE"), ("ACTIVE", "DRAIN")])
def test_nearest_cgroup(daemon, watch, cgroups, member, outer, inner):
    top = cgroups("top")
    middle = cgroups("middle", top)
    bottom = cgroups("bottom", middle)
    in_top, in_bottom = member(top), member(bottom)
    declare(daemon, outer, top.path)
    declare(daemon, inner, middle.path)
    made = {top.id: (in_top, arrive(in_top, 7)), middle.id: (in_bottom, arrive(in_bottom, 5))}
    late = top if outer == "DRAIN" else middle
    one, connections = made[late.id]
    events = watch.collect("accept")
    expect.accepts(events, connections, late.id, one.pid)
    expect_subject(events, late)


@pytest.mark.parametrize("cgroup, own", [("DRAIN", "ACTIVE"), ("ACTIVE", "DRAIN")])
@pytest.mark.parametrize("whose", ["own", "parent"])
@pytest.mark.parametrize("first", ["cgroup", "process"])
def test_process_before_cgroup(daemon, watch, cgroups, actor, cgroup, own, whose, first):
    """Its own declaration, or that of an ancestor, who may be elsewhere."""
    top = cgroups("top")
    one = actor() if whose == "own" else actor(["sh", "-c", '"$@"; :', "sh"])
    one.port = one.call("listen", "127.0.0.1")
    pid = one.pid if whose == "own" else peers.children(one.pid).pop()
    top.add(pid)
    if first == "process":
        daemon.declare(own, one.pid)
    declare(daemon, cgroup, top.path)
    if first == "cgroup":
        daemon.declare(own, one.pid)
    made = arrive(one, 23)
    events = watch.collect("accept")
    if own == "ACTIVE":
        assert events == []
    else:
        expect.accepts(events, made, one.pid, pid)
        assert {e["subject"]["kind"] for e in events} == {"process"}


def test_forked_server(daemon, watch, cgroups, server):
    """Workers are where their parent is."""
    top = cgroups("top")
    s = server("prefork")
    workers = {s.line()["worker"] for _ in range(3)}
    for pid in (s.pid, *workers):
        top.add(pid)
    declare(daemon, "DRAIN", top.path)
    made = connect_and_ask("127.0.0.1", s.port, 23)
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    workers = {s.line()["worker"] for _ in range(3)}
    made += connect_and_ask("127.0.0.1", s.port, 23)
    events = watch.collect()
    expect.accepts(events, made, top.id)
    expect_subject([e for e in events if e["type"] in ("accept", "exit")], top)
    assert len([e for e in events if e["type"] == "exit"]) == 3
    assert daemon.subject(top.id, "cgroup")["members"] == 4


def test_connects_and_exit(daemon, watch, cgroups, member, server):
    s = server("nonblocking")
    top = cgroups("top")
    one = member(top)
    declare(daemon, "DRAIN", top.path)
    done = [one.call("connect", "127.0.0.1", s.port) for _ in range(7)]
    one.begin("exit", 3)
    one.wait()
    events = watch.collect()
    connects = [e for e in events if e["type"] == "connect"]
    assert [e["src"]["port"] for e in connects] == [d["port"] for d in done]
    (gone,) = [e for e in events if e["type"] == "exit"]
    assert (gone["process"]["pid"], gone["code"]) == (one.pid, 3)
    expect_subject([*connects, gone], top)


def test_late_requests_and_abandoned_connections(daemon, watch, cgroups, member):
    top = cgroups("top")
    one = member(top)
    declare(daemon, "ACTIVE", top.path)
    with Held("127.0.0.1", one.port, 5) as held:
        one.call("accept", 5)
        declare(daemon, "DRAIN", top.path)
        for sock in held.sockets:
            sock.sendall(b"again\n")
        one.call("receive", [0, 1, 2], 6)
        one.begin("exit", 0)
        one.wait()
        events = watch.collect()
    late = [e["src"]["port"] for e in events if e["type"] == "request"]
    assert sorted(late) == sorted(held.ports[:3])
    left = {e["src"]["port"]: (e["how"], e["busy"]) for e in events if e["type"] == "abandon"}
    ends = [("fin", True)] * 3 + [("rst", True)] * 2
    assert left == dict(zip(held.ports, ends))
    expect_subject([e for e in events if e["type"] in ("request", "abandon")], top)
    report = daemon.report(top.id, "cgroup")
    assert report["requests"]["misrouted"] == 3
    assert report["abandoned"] == {"total": 5, "busy": 5, "fin": 3, "rst": 2}


def test_phase_event(daemon, watch, cgroups):
    top = cgroups("top")
    declare(daemon, "ACTIVE", top.path, "--epoch", "7")
    declare(daemon, "DRAIN", top.path, "--epoch", "7", "--reason", "rolling update")
    phases = [e for e in watch.collect("phase") if e["subject"]["id"] == top.id]
    expect_subject(phases, top)
    assert [(e["from"], e["to"]) for e in phases] == [("UNDECLARED", "ACTIVE"), ("ACTIVE", "DRAIN")]
    assert phases[1]["reason"] == "rolling update"


def test_backward_and_stale(daemon, cgroups):
    """The same rules as for processes."""
    top = cgroups("top")
    declare(daemon, "DRAIN", top.path, "--epoch", "7")
    for phase, epoch in (("ACTIVE", "7"), ("SHUTDOWN", "6")):
        done = daemon.cli("declare", phase, "--cgroup", top.path, "--epoch", epoch)
        assert done.returncode == 4, done.stderr
    declare(daemon, "ACTIVE", top.path, "--epoch", "8")
    assert daemon.subject(top.id, "cgroup")["phase"] == "ACTIVE"


@pytest.mark.parametrize("path", ["/no-such-cgroup", "/proc/self", "/etc/passwd", "/dev/null"])
def test_no_cgroup(daemon, path):
    done = daemon.cli("declare", "DRAIN", "--cgroup", path)
    assert done.returncode == 1
    assert path in done.stderr


@pytest.mark.parametrize("other", [("--pid", "1"), ("--self",)])
def test_one_subject_at_a_time(daemon, cgroups, other):
    done = daemon.cli("declare", "DRAIN", "--cgroup", cgroups("top").path, *other)
    assert done.returncode == 2
    assert "--cgroup" in done.stderr


def test_root_only(daemon, cgroups):
    """Whoever is in a cgroup does not own it."""
    top = cgroups("top")
    os.chmod(daemon.socket, 0o666)
    refused = daemon.run(
        "declare", "DRAIN", "--cgroup", top.path, "--socket", str(daemon.socket), user=NOBODY
    )
    assert refused.returncode == 4, refused.stderr
    assert top.path in refused.stderr
    assert top.id not in daemon.subjects("cgroup")


def test_removed_cgroup(daemon, watch, cgroups, member):
    """It is no subject any more, and one that comes by the same name is another one."""
    top = cgroups("top")
    one = member(top)
    declare(daemon, "DRAIN", top.path)
    arrive(one, 5)
    one.stop()
    top.remove()
    wait_until(lambda: top.id not in daemon.subjects("cgroup"), "the removed cgroup is no subject")
    top.directory.mkdir()
    again = member(top)
    arrive(again, 5)
    assert len(watch.collect("accept")) == 5
    again.stop()


def test_older_than_the_daemon(own_daemon, cgroups, member):
    top = cgroups("top")
    one = member(top)
    with Held("127.0.0.1", one.port, 3) as early:
        one.call("accept", 3)
        own_daemon.start()
        watch = own_daemon.watch()
        declare(own_daemon, "DRAIN", top.path)
        for sock in early.sockets:
            sock.sendall(b"again\n")
        one.call("receive", [0, 1, 2], 6)
        one.call("close_connections")
        made = arrive(one, 23)
        events = watch.collect()
        accepts = [e for e in events if e["type"] == "accept"]
        expect.accepts(accepts, made, top.id, one.pid)
        late = [e["src"]["port"] for e in events if e["type"] == "request"]
        assert sorted(late) == sorted(early.ports)
