# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Phases by signals: who receives one that means DRAIN is in DRAIN when kill(2) returns, whether it
catches the signal, blocks it, or dies of it."""

import json
import os
import pty
import signal
import socket
import subprocess

import expect
import peers
import pytest
import real
from expect import now_ns
from harness import DEADLINE
from peers import Held


def phases(events, ident):
    """The subject's moves, as (from, to, source)."""
    events = [e for e in expect.of_type(events, "phase") if e["subject"]["id"] == ident]
    return [(e["from"], e["to"], e["source"]) for e in events]


def arrive(one, count):
    with Held("127.0.0.1", one.port, count) as held:
        one.call("accept", count)
    one.call("close_connections")
    return held.made


MOVED = [("ACTIVE", "DRAIN", "signal")]


@pytest.mark.parametrize("how", ["catch", "block"])
@pytest.mark.parametrize("name", ["SIGTERM", "SIGQUIT", "SIGINT"])
def test_signal(daemon, watch, listening, name, how):
    one = listening()
    one.call(how, name)
    daemon.declare("ACTIVE", one.pid, "--epoch", "7")
    arrive(one, 23)
    since = now_ns()
    os.kill(one.pid, getattr(signal, name))
    made = arrive(one, 37)
    events = watch.collect()
    expect.accepts(events, made, one.pid, one.pid, since=since)
    assert phases(events, one.pid) == [("UNDECLARED", "ACTIVE", "api"), *MOVED]
    moved = expect.of_type(events, "phase")[-1]
    assert (moved["reason"], moved["epoch"]) == (name, 7)
    assert (moved["by"]["pid"], moved["by"]["uid"]) == (os.getpid(), 0)
    # Nothing moves twice.
    os.kill(one.pid, getattr(signal, name))
    assert phases(watch.collect(), one.pid) == [("UNDECLARED", "ACTIVE", "api"), *MOVED]


def test_sender(daemon, watch, listening, client):
    """Somebody else's doing is told as theirs."""
    one, other = listening(), client()
    one.call("catch", "SIGTERM")
    daemon.declare("ACTIVE", one.pid)
    other.call("kill", one.pid, "SIGTERM")
    moved = expect.of_type(watch.collect(), "phase")[-1]
    assert (moved["by"]["pid"], moved["by"]["comm"]) == (other.pid, other.comm)


def test_end_while_the_daemon_looks(daemon, watch, listening):
    """It looks at the files of what begins to drain, and may be the last one to let go of them."""
    ones = [listening() for _ in range(23)]
    for one in ones:
        one.call("duplicate_listener", 900)
        daemon.declare("ACTIVE", one.pid)
        one.die("SIGTERM")
        peers.wait_until(lambda port=one.port: not peers.listening(port), "it is closed")
        peers.refuse("127.0.0.1", one.port)
    events = watch.collect()
    refused = {e["dst"]["port"] for e in expect.of_type(events, "refused")}
    missed = {one.pid for one in ones if one.port not in refused}
    assert not missed, [e for e in events if e.get("subject", {}).get("id") in missed]


def test_ignored_signal(daemon, watch, listening):
    one = listening()
    one.call("ignore", "SIGTERM")
    daemon.declare("ACTIVE", one.pid)
    os.kill(one.pid, signal.SIGTERM)
    arrive(one, 23)
    events = watch.collect()
    assert phases(events, one.pid) == [("UNDECLARED", "ACTIVE", "api")]
    assert expect.counted(events) == {}


def test_other_signals(daemon, watch, listening):
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGALRM", "SIGCHLD", "SIGCONT"):
        one.call("catch", name)
        os.kill(one.pid, getattr(signal, name))
    arrive(one, 3)
    events = watch.collect()
    assert phases(events, one.pid) == [("UNDECLARED", "ACTIVE", "api")]
    assert expect.counted(events) == {}


@pytest.mark.parametrize("phase", ["INIT", "DRAIN", "SHUTDOWN"])
def test_signal_in_another_phase(daemon, watch, listening, phase):
    """It moves who is ACTIVE, and forward only."""
    one = listening()
    one.call("catch", "SIGTERM")
    daemon.declare(phase, one.pid)
    os.kill(one.pid, signal.SIGTERM)
    assert phases(watch.collect(), one.pid) == [("UNDECLARED", phase, "api")]


def test_signal_to_a_worker(daemon, watch, listening):
    """Masters end their workers: that is no end of the subject."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    workers = [one.call("fork") for _ in range(3)]
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    arrive(one, 23)
    events = watch.collect()
    assert phases(events, one.pid) == [("UNDECLARED", "ACTIVE", "api")]
    assert expect.counted(events) == {}


def test_processes_left_behind(daemon, watch, actor):
    """Where a server puts itself in the background, no signal reaches the one that was declared."""
    one = actor()
    daemon.declare("ACTIVE", one.pid)
    worker, master = one.call("fork"), one.call("fork_actor", True)
    one.call("tell_child", master, "catch", "SIGTERM")
    _, (control,) = one.call_for_fds("lend_child", master)
    with socket.socket(fileno=control) as control:
        os.kill(worker, signal.SIGTERM)
        one.die("SIGKILL")
        peers.wait_until(lambda: daemon.subject(one.pid)["members"] == 1, "one is left")
        assert phases(watch.collect(), one.pid) == [("UNDECLARED", "ACTIVE", "api")]
        control.send(json.dumps(["kill", master, "SIGTERM"]).encode())
        assert control.recv(99) == b"null"
        assert phases(watch.collect(), one.pid) == [("UNDECLARED", "ACTIVE", "api")]
        os.kill(master, signal.SIGTERM)
        assert phases(watch.collect(), one.pid) == [("UNDECLARED", "ACTIVE", "api"), *MOVED]


@pytest.mark.parametrize("kind", ["process", "cgroup"])
def test_terminal(daemon, watch, cgroups, kind):
    """Ctrl-C is sent by nobody. It ends what runs on the terminal: in a container, somebody's shell."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp("sh", ["sh", "-c", "stty -echo; echo ready; exec cat"])
    with os.fdopen(terminal, "r+b", buffering=0) as file:
        assert b"ready" in file.readline()
        if kind == "process":
            ident = pid
            daemon.declare("ACTIVE", pid)
        else:
            group = cgroups("terminal")
            group.add(pid)
            ident = group.id
            assert daemon.cli("declare", "ACTIVE", "--cgroup", group.path).returncode == 0
        file.write(b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGINT
    moved = expect.of_type(watch.collect(), "phase")
    moved = [e for e in moved if (e["subject"]["id"], e["to"]) == (ident, "DRAIN")]
    assert len(moved) == (kind == "process")
    assert not any("by" in e for e in moved)


def test_next_epoch(daemon, watch, listening):
    """A life cycle that a signal ended is followed by a declared one, and that may end the same."""
    one = listening()
    one.call("catch", "SIGTERM")
    daemon.declare("ACTIVE", one.pid)
    os.kill(one.pid, signal.SIGTERM)
    refused = daemon.cli("declare", "ACTIVE", "--pid", str(one.pid))
    assert refused.returncode == 4, refused
    daemon.declare("ACTIVE", one.pid, "--epoch", "2")
    arrive(one, 23)
    os.kill(one.pid, signal.SIGTERM)
    made = arrive(one, 5)
    events = watch.collect()
    expect.accepts(events, made, one.pid, one.pid)
    assert phases(events, one.pid)[1:] == [*MOVED, ("DRAIN", "ACTIVE", "api"), *MOVED]


def test_rules(own_daemon, actor):
    """A program's own beat the general ones."""
    own_daemon.options = ["--signals", "TERM,USR2=DRAIN,web:QUIT=DRAIN,web:TERM=SHUTDOWN"]
    own_daemon.start()
    watch = own_daemon.watch()
    expected = {
        ("web", "SIGQUIT"): "DRAIN",
        ("web", "SIGTERM"): "SHUTDOWN",
        ("web", "SIGUSR2"): "DRAIN",
        ("web2", "SIGQUIT"): None,
        ("web2", "SIGTERM"): "DRAIN",
        ("web", "SIGINT"): None,
    }
    moved = {}
    for comm, name in expected:
        one = actor()
        one.call("rename", comm)
        one.call("catch", name)
        own_daemon.declare("ACTIVE", one.pid)
        os.kill(one.pid, getattr(signal, name))
        moved[comm, name] = next(
            (to for _, to, source in phases(watch.collect(), one.pid) if source == "signal"), None
        )
    assert moved == expected
    # From DRAIN on to SHUTDOWN.
    one = actor()
    one.call("rename", "web")
    for name in ("SIGQUIT", "SIGTERM"):
        one.call("catch", name)
    own_daemon.declare("ACTIVE", one.pid)
    os.kill(one.pid, signal.SIGQUIT)
    os.kill(one.pid, signal.SIGTERM)
    assert [to for _, to, _ in phases(watch.collect(), one.pid)] == ["ACTIVE", "DRAIN", "SHUTDOWN"]


def test_no_rules(own_daemon, listening):
    own_daemon.options = ["--signals", ""]
    own_daemon.start()
    watch = own_daemon.watch()
    one = listening()
    one.call("catch", "SIGTERM")
    own_daemon.declare("ACTIVE", one.pid)
    os.kill(one.pid, signal.SIGTERM)
    arrive(one, 3)
    events = watch.collect()
    assert phases(events, one.pid) == [("UNDECLARED", "ACTIVE", "api")]
    assert expect.counted(events) == {}


@pytest.mark.parametrize("rules", ["TERM", "NOSUCH=DRAIN", "TERM=ACTIVE", "TERM=DRAIN,"])
def test_bad_rules(own_daemon, rules):
    done = own_daemon.run("run", "--signals", rules)
    assert done.returncode == 2
    assert "--signals" in done.stderr and "phasewatch run --help" in done.stderr


# Real servers -------------------------------------------------------------------------------


ENDS = {
    "nginx": "SIGQUIT",
    "haproxy": "SIGUSR1",
    "apache": "SIGWINCH",
    "gunicorn": "SIGTERM",
    "node": "SIGTERM",
    "postgres": "SIGTERM",
    "redis": "SIGTERM",
}


@pytest.mark.parametrize("kind", ENDS)
def test_real_server(daemon, watch, server, kind):
    """Nobody declares its drain: the signal that ends it does, and the report says so."""
    s = server(kind)
    client = real.CLIENTS.get(kind, real.Http)
    daemon.declare("ACTIVE", s.pid)
    one = client(s.port)
    assert one.ask() == "ok"
    one.close()
    os.kill(s.pid, getattr(signal, ENDS[kind]))
    s.process.wait(DEADLINE)
    refused = [client(s.port).opened for _ in range(3)]
    assert refused == ["refused"] * 3
    events = watch.collect()
    assert phases(events, s.pid) == [("UNDECLARED", "ACTIVE", "api"), *MOVED]
    assert expect.counted(events)["refused"] == 3
    report = daemon.report(s.pid)
    assert (report["reason"], report["by"]["pid"]) == (ENDS[kind], os.getpid())
    timeline = [(m["what"], m.get("detail", "")) for m in report["timeline"]]
    declared = next(detail for what, detail in timeline if what == "DRAIN declared")
    assert f"[{os.getpid()}]" in declared
    assert ENDS[kind] in dict(timeline)


# While the daemon is away ------------------------------------------------------------------


def test_daemon_was_away(own_daemon, listening):
    """What the kernel half moved meanwhile is told, and is followed from then on, be it long ago."""
    own_daemon.start()
    lives, gone = listening(), listening()
    for one in (lives, gone):
        one.call("catch", "SIGTERM")
        own_daemon.declare("ACTIVE", one.pid, "--epoch", "7")
    own_daemon.kill()
    for one in (lives, gone):
        os.kill(one.pid, signal.SIGTERM)
        arrive(one, 23)
    since = now_ns()
    gone.die("exit")
    peers.wait_until(lambda: now_ns() > since + 2 * 10**9, "its declaration is no news")
    own_daemon.start()

    def told():
        return [phases(own_daemon.recent(), one.pid) for one in (lives, gone)] == [MOVED] * 2

    peers.wait_until(told, "both moves are told")
    moves = own_daemon.metrics().sum("phasewatch_phase_changes_total", source="signal")
    assert moves == 2
    lives.die("exit")
    for one in (lives, gone):
        report = own_daemon.report(one.pid)
        assert (report["reason"], report["end"]) == ("SIGTERM", "exited"), report
        assert report["arrivals"]["misrouted"] == 23, report
    assert violations(own_daemon.recent(), lives.pid) == []


def test_cgroup_over_a_restart(own_daemon, listening, cgroups):
    """It is counted for from the daemon's first moment on, though it moved just before."""
    own_daemon.start()
    one, group = listening(), cgroups("restart")
    one.call("catch", "SIGTERM")
    group.add(one.pid)
    done = own_daemon.cli("declare", "ACTIVE", "--cgroup", group.path)
    assert done.returncode == 0, done
    os.kill(one.pid, signal.SIGTERM)
    peers.wait_until(lambda: phases(own_daemon.recent(), group.id)[1:] == MOVED, "it is told")
    own_daemon.kill()
    own_daemon.start()
    watch = own_daemon.watch()
    made = arrive(one, 23)
    expect.accepts(watch.collect(), made, group.id, one.pid)


# Violations ---------------------------------------------------------------------------------


def violations(events, ident):
    events = [e for e in expect.of_type(events, "violation") if e["subject"]["id"] == ident]
    return [e["kind"] for e in events]


@pytest.mark.parametrize("how", ["exit", "SIGKILL", "SIGTERM", "DRAIN"])
def test_exit_without_drain(daemon, watch, listening, how):
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    if how == "DRAIN":
        daemon.declare("DRAIN", one.pid)
    one.die("exit" if how == "DRAIN" else how)
    peers.wait_until(lambda: one.pid not in daemon.subjects(), "the subject has ended")
    expected = ["exit_without_drain"] if how in ("exit", "SIGKILL") else []
    assert violations(watch.collect(), one.pid) == expected


def test_stale_and_backward(daemon, watch, actor):
    """Refused, and told of, with who tried."""
    one = actor()
    before = daemon.metrics()
    daemon.declare("DRAIN", one.pid, "--epoch", "7")
    for phase, epoch in (("ACTIVE", "6"), ("ACTIVE", "7"), ("SHUTDOWN", "3")):
        done = daemon.cli("declare", phase, "--pid", str(one.pid), "--epoch", epoch)
        assert done.returncode == 4, done
    events = watch.collect()
    assert violations(events, one.pid) == ["stale_epoch", "backward", "stale_epoch"]
    for event in expect.of_type(events, "violation"):
        assert (event["phase"], event["by"]["pid"]) == ("DRAIN", os.getpid()), event
        assert "epoch 7" in event["detail"], event
    after, name = daemon.metrics(), "phasewatch_violations_total"
    assert after.sum(name, kind="stale_epoch") - before.sum(name, kind="stale_epoch") == 2
    assert after.sum(name, kind="backward") - before.sum(name, kind="backward") == 1


def test_flapping(daemon, watch, actor):
    """The third life cycle begun anew within an hour is one too many."""
    one = actor()
    flaps = daemon.metrics().sum("phasewatch_flaps_total")
    daemon.declare("ACTIVE", one.pid)
    for epoch in range(2, 6):
        daemon.declare("DRAIN", one.pid)
        daemon.declare("ACTIVE", one.pid, "--epoch", str(epoch))
    assert violations(watch.collect(), one.pid) == ["flapping", "flapping"]
    assert daemon.metrics().sum("phasewatch_flaps_total") - flaps == 4


def test_illegal_writes_to_the_map(daemon, watch, actor):
    """They take effect, within a second they are told of, and flagged."""
    one = actor()
    daemon.declare("DRAIN", one.pid, "--epoch", "7")
    pinned = str(daemon.pin_dir / "pw_phases")
    key = (1).to_bytes(4, "little") + bytes(4) + one.pid.to_bytes(8, "little")
    for phase, epoch in ((2, 7), (3, 6)):
        value = phase.to_bytes(4, "little") + bytes(4) + epoch.to_bytes(8, "little")
        value += bytes(128 - len(value))
        hexes = [f"{b:02x}" for b in key], [f"{b:02x}" for b in value]
        command = ["bpftool", "map", "update", "pinned", pinned]
        subprocess.run(
            [*command, "key", "hex", *hexes[0], "value", "hex", *hexes[1]], check=True
        )  # fmt: skip
        name = {2: "ACTIVE", 3: "DRAIN"}[phase]
        watch.wait_for(
            lambda e, to=name, n=epoch: e["type"] == "phase"
            and (e["subject"]["id"], e["to"], e["epoch"]) == (one.pid, to, n),
            f"{name} by the map",
            2,
        )
    events = watch.collect()
    assert violations(events, one.pid) == ["backward", "stale_epoch"]
    assert [s for _, _, s in phases(events, one.pid)] == ["api", "map", "map"]
