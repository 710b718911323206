# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Who may declare what, what is refused with which words, and the shared map."""

import contextlib
import json
import os
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import expect
import pytest
from expect import now_ns
from harness import NOBODY, as_nobody
from peers import Held, children, connect_and_ask, start_ns

LAST_PID = 4194304


@pytest.fixture
def nobody(actor, public):
    """Makes scripted processes of an unprivileged user."""
    return lambda *command: actor(as_nobody(*command), scripts=public / "servers")


def state(daemon, pid):
    """What a refused declaration must not change."""
    shown = daemon.subjects().get(pid)
    return shown and (shown["phase"], shown["subject"], shown.get("reason"))


def refused(done, code, *words):
    assert done.returncode == code, done
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr
    return done


# Phase events -------------------------------------------------------------------------------


def test_phase_events(daemon, watch, actor):
    one = actor()
    moves = ["INIT", "ACTIVE", "DRAIN", "SHUTDOWN"]
    for phase in moves:
        daemon.declare(phase, one.pid, "--reason", f"to {phase}")
    events = watch.collect()
    assert {e["type"] for e in events} == {"phase"}
    assert [e["from"] for e in events] == ["UNDECLARED", *moves[:-1]]
    assert [e["to"] for e in events] == [e["phase"] for e in events] == moves
    assert [e["reason"] for e in events] == [f"to {p}" for p in moves]
    assert {(e["subject"]["id"], e["epoch"], e["source"]) for e in events} == {(one.pid, 1, "api")}
    # who ran the command is of interest, not the command
    comm = Path("/proc/self/comm").read_text().strip()
    assert [e["by"] for e in events] == [{"pid": os.getpid(), "uid": 0, "comm": comm}] * 4


def test_same_phase_again(daemon, watch, actor):
    one = actor()
    daemon.declare("DRAIN", one.pid)
    done = daemon.cli("declare", "DRAIN", "--pid", str(one.pid))
    assert done.returncode == 0
    assert "already DRAIN" in done.stdout
    assert len(watch.collect("phase")) == 1


def test_new_epoch_begins_again(daemon, watch, server):
    s = server("blocking")
    daemon.declare("DRAIN", s.pid, "--epoch", "7")
    daemon.declare("ACTIVE", s.pid, "--epoch", "8")
    connect_and_ask("127.0.0.1", s.port, 23)
    assert watch.collect("accept") == []
    since = now_ns()
    daemon.declare("DRAIN", s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 23)
    events = watch.collect()
    expect.accepts(events, made, s.pid, since=since)
    assert {e["subject"]["epoch"] for e in events if e["type"] == "accept"} == {8}


# Bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["DRAINING", "UNDECLARED", "", "DRAIN;", "2", "\x1b[31m"])
def test_unknown_phase(daemon, actor, phase):
    one = actor()
    done = daemon.cli("declare", phase, "--pid", str(one.pid))
    refused(done, 2, "INIT", "ACTIVE", "DRAIN", "SHUTDOWN")
    assert phase.strip("\x1b") in done.stderr
    assert "\x1b" not in done.stderr
    assert state(daemon, one.pid) is None


@pytest.mark.parametrize(
    "options",
    [
        ["--pid", "0"],
        ["--pid", "-1"],
        ["--pid", "x"],
        ["--pid", "1x"],
        ["--pid", "4294967297"],
        ["--pid", ""],
        ["--pid"],
        ["--epoch", "0"],
        ["--epoch", "-1"],
        ["--epoch", "99999999999999999999"],
        ["--reason", "x" * 56],
        ["--reason", ""],
        ["--nonsense"],
        ["--pid", "1", "--self"],
        ["ACTIVE"],
    ],
    ids=" ".join,
)
def test_bad_options(daemon, options):
    refused(daemon.cli("declare", "DRAIN", *options), 2)


def test_no_such_process(daemon, watch):
    gone = subprocess.Popen(["true"])
    gone.wait()
    for pid in (gone.pid, LAST_PID):
        refused(daemon.cli("declare", "DRAIN", "--pid", str(pid)), 1, pid)
        assert state(daemon, pid) is None
    assert watch.collect() == []


def test_thread_is_no_process(daemon, server):
    """The id of a thread is not that of a process."""
    s = server("threads")
    tasks = subprocess.check_output(["ls", f"/proc/{s.pid}/task"], text=True).split()
    thread = max(map(int, tasks))
    assert thread != s.pid
    refused(daemon.cli("declare", "DRAIN", "--pid", str(thread)), 1, thread)
    assert state(daemon, thread) is None


def test_stale_epoch(daemon, watch, actor):
    one = actor()
    daemon.declare("ACTIVE", one.pid, "--epoch", "7")
    before = state(daemon, one.pid)
    done = daemon.cli("declare", "DRAIN", "--pid", str(one.pid), "--epoch", "6")
    refused(done, 4, "epoch 6", "epoch 7")
    assert state(daemon, one.pid) == before
    assert len(watch.collect("phase")) == 1


@pytest.mark.parametrize("back", ["INIT", "ACTIVE"])
def test_backward_move(daemon, watch, actor, back):
    one = actor()
    daemon.declare("DRAIN", one.pid, "--epoch", "7")
    before = state(daemon, one.pid)
    for epoch in ([], ["--epoch", "7"]):
        done = daemon.cli("declare", back, "--pid", str(one.pid), *epoch)
        refused(done, 4, back, "DRAIN", "epoch 7")
    assert state(daemon, one.pid) == before
    assert len(watch.collect("phase")) == 1


def test_no_daemon(daemon, tmp_path):
    for command in (["declare", "DRAIN"], ["events"], ["ps"]):
        done = daemon.run(*command, "--socket", str(tmp_path / "none"))
        refused(done, 3, tmp_path / "none", "phasewatch run")


# Whose --------------------------------------------------------------------------------------


def command_line(daemon, *command):
    return [str(daemon.binary), *command, "--socket", str(daemon.socket)]


@pytest.mark.parametrize("option", [["--self"], []])
def test_self(daemon, watch, option):
    """The process that runs the command: here a script of an unprivileged user."""
    script = 'echo $$; "$@"; exit $?'
    done = subprocess.run(
        as_nobody("sh", "-c", script, "sh", *command_line(daemon, "declare", "DRAIN", *option)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    event = watch.collect("phase")[0]
    assert (event["subject"]["id"], event["to"]) == (int(done.stdout.split()[0]), "DRAIN")
    assert event["by"]["uid"] == NOBODY


def test_self_over_the_api(daemon, watch, nobody):
    one = nobody()
    body = {"phase": "DRAIN", "self": True}
    status, answer = one.call("put_phase", str(daemon.socket), body)
    assert status == 200
    answer = json.loads(answer)
    assert (answer["schema"], answer["from"], answer["to"]) == (1, "UNDECLARED", "DRAIN")
    assert (answer["changed"], answer["members"]) == (True, 1)
    assert answer["subject"]["id"] == one.pid
    event = watch.collect("phase")[0]
    assert event["by"] == {"pid": one.pid, "uid": NOBODY, "comm": "python3"}


def test_descendants(daemon, nobody):
    """A process may declare its child and its child's child."""
    one = nobody("sh", "-c", '"$@"; :', "sh")
    child = one.call("fork")
    body = {"phase": "DRAIN", "pid": child}
    status, _ = one.call("put_phase", str(daemon.socket), body)
    assert status == 200
    assert daemon.subject(child)["phase"] == "DRAIN"


def test_descendants_by_command(daemon, nobody):
    """exec makes the command the parent of the process that it declares."""
    one = nobody()
    child = one.call("fork")
    one.begin("execute", *command_line(daemon, "declare", "DRAIN", "--pid", str(child)))
    assert one.wait() == 0
    assert daemon.subject(child)["phase"] == "DRAIN"


@pytest.mark.parametrize("whose", ["root", "same user", "own parent", "init"])
def test_others(daemon, watch, actor, nobody, whose):
    one = nobody()
    pids = {
        "root": lambda: actor().pid,
        "same user": lambda: nobody().pid,
        "own parent": os.getpid,
        "init": lambda: 1,
    }
    pid = pids[whose]()
    status, answer = one.call("put_phase", str(daemon.socket), {"phase": "DRAIN", "pid": pid})
    assert status == 403
    assert str(pid) in json.loads(answer)["error"]
    command = command_line(daemon, "declare", "DRAIN", "--pid", str(pid))
    code, out, err = one.call("run", *command)
    assert (code, out) == (4, "")
    assert str(pid) in err
    assert state(daemon, pid) is None
    assert watch.collect() == []


def test_self_is_not_a_privileged_parent(daemon, watch):
    """This process is root: its unprivileged child may not speak for it."""
    done = subprocess.run(
        as_nobody(*command_line(daemon, "declare", "DRAIN", "--self")),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 4, done
    assert watch.collect() == []


def test_anybody_may_read(daemon):
    command = as_nobody(*command_line(daemon, "ps"))
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The API ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        '"DRAIN"',
        "{}",
        '{"phase":"DRAIN"}',
        '{"phase":7,"pid":1}',
        '{"phase":null,"self":true}',
        '{"phase":"GONE","self":true}',
        '{"phase":"DRAIN","self":false}',
        '{"phase":"DRAIN","pid":"1"}',
        '{"phase":"DRAIN","pid":-1}',
        '{"phase":"DRAIN","pid":0}',
        '{"phase":"DRAIN","pid":1.5}',
        '{"phase":"DRAIN","pid":99999999999999999999}',
        '{"phase":"DRAIN","pid":4294967297}',
        '{"phase":"DRAIN","pid":1,"self":true}',
        '{"phase":"DRAIN","self":true,"epoch":0}',
        '{"phase":"DRAIN","self":true,"epoch":-1}',
        '{"phase":"DRAIN","self":true,"epoch":"7"}',
        '{"phase":"DRAIN","self":true,"reason":7}',
        '{"phase":"DRAIN","self":true,"reason":"' + "x" * 56 + '"}',
        '{"phase":"DRAIN","self":true} trailing',
        "[" * 4000,
        "\x00",
    ],
    ids=lambda body: body[:60],
)
def test_bad_bodies(daemon, body):
    status, said = daemon.request("PUT", "/v1/phase", body)
    assert status == 400, said
    said = json.loads(said)
    assert list(said) == ["error"]
    assert said["error"]
    assert daemon.get("/healthz").strip() == "ok"


def test_huge_body(daemon):
    """Refused before it is read: the answer may come while the client still sends."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(daemon.socket))
        sock.sendall(b"PUT /v1/phase HTTP/1.0\r\nContent-Length: 1000000000\r\n\r\n")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                sock.sendall(b"[" * 65536)
    assert daemon.get("/healthz").strip() == "ok"


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/nothing", 404),
        ("GET", "/v1/phase", 405),
        ("POST", "/v1/phase", 405),
        ("DELETE", "/v1/subjects", 405),
        ("GET", "/v1/events?last=x", 400),
        ("GET", "/v1/events?last=-1", 400),
        ("GET", "/v1/events?type=nothing", 400),
        ("GET", "/v1/events?phase=nothing", 400),
        ("GET", "/v1/events?verdict=nothing", 400),
        ("GET", "/v1/events?pid=x", 400),
    ],
)
def test_bad_requests(daemon, method, path, status):
    got, body = daemon.request(method, path)
    assert got == status, body
    assert json.loads(body)["error"]


def test_tcp_is_read_only(daemon):
    def ask(method, path, body=None):
        connection = HTTPConnection("127.0.0.1", daemon.port, timeout=10)
        connection.request(method, path, body)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    status, text = ask("GET", "/metrics")
    assert status == 200
    assert text.endswith("# EOF\n")
    assert ask("GET", "/healthz")[0] == 200
    assert ask("GET", "/v1/subjects")[0] == 200
    body = json.dumps({"phase": "DRAIN", "pid": os.getpid()})
    assert ask("PUT", "/v1/phase", body)[0] in (403, 404, 405)
    assert state(daemon, os.getpid()) is None


# The shared map -----------------------------------------------------------------------------

DRAIN = 3


def little(value, size):
    return [f"{byte:#04x}" for byte in value.to_bytes(size, sys.byteorder)]


def map_update(daemon, pid, phase, epoch=0, started=0):
    """bpftool map update, by the byte table in phasewatch/phase.h."""
    value = little(phase, 4) + little(0, 4) + little(epoch, 8) + little(0, 8) + little(started, 8)
    value += ["0x00"] * (128 - len(value))
    key = little(1, 4) + little(0, 4) + little(pid, 8)
    subprocess.run(
        ["bpftool", "map", "update", "pinned", str(daemon.pin_dir / "pw_phases"),
         "key", *key, "value", *value],
        check=True,
    )  # fmt: skip


@pytest.mark.parametrize("fields", ["phase only", "all"])
def test_map_write(daemon, watch, server, fields):
    """Effective at once; the daemon notices within a second."""
    s = server("blocking")
    more = {"epoch": 7, "started": start_ns(s.pid)} if fields == "all" else {}
    map_update(daemon, s.pid, DRAIN, **more)
    made = connect_and_ask("127.0.0.1", s.port, 23)
    phase = watch.wait_for(
        lambda e: e["type"] == "phase" and e["subject"]["id"] == s.pid, "phase by map", 2
    )
    assert (phase["to"], phase["source"]) == ("DRAIN", "map")
    assert phase["epoch"] == more.get("epoch", 1)
    made += connect_and_ask("127.0.0.1", s.port, 37)
    events = watch.collect()
    assert sorted(e["src"]["port"] for e in events if e["type"] == "accept") == expect.ports(made)
    assert len([e for e in events if e["type"] == "phase"]) == 1
    subject = daemon.subject(s.pid)
    assert (subject["accepts"], subject["accepts_misrouted"]) == (60, 60)
    assert subject["subject"]["source"] == "map"


def test_map_write_over_a_declaration(daemon, watch, server):
    """Of a subject whose members are known: theirs too, at once."""
    s = server("prefork")
    daemon.declare("ACTIVE", s.pid)
    connect_and_ask("127.0.0.1", s.port, 23)
    map_update(daemon, s.pid, DRAIN, epoch=1, started=start_ns(s.pid))
    made = connect_and_ask("127.0.0.1", s.port, 37)
    watch.wait_for(
        lambda e: e["type"] == "phase" and e.get("source") == "map", "phase by map", 2
    )  # fmt: skip
    events = watch.collect()
    assert sorted(e["src"]["port"] for e in events if e["type"] == "accept") == expect.ports(made)
    moves = [(e["from"], e["to"], e["source"]) for e in events if e["type"] == "phase"]
    assert moves == [("UNDECLARED", "ACTIVE", "api"), ("ACTIVE", "DRAIN", "map")]


def test_map_write_for_another_start_time(daemon, watch, server):
    """A declaration for an earlier process with this pid is nobody's."""
    s = server("blocking")
    map_update(daemon, s.pid, DRAIN, started=start_ns(s.pid) - 10**9)
    connect_and_ask("127.0.0.1", s.port, 23)
    assert watch.collect() == []


@pytest.mark.parametrize("phase", [0, 5, 2**32 - 1])
def test_map_write_of_nonsense(daemon, watch, server, phase):
    """No phase: neither the daemon nor the programs take harm, and nothing is misrouted."""
    s = server("blocking")
    map_update(daemon, s.pid, phase)
    connect_and_ask("127.0.0.1", s.port, 23)
    assert watch.collect("accept") == []
    assert daemon.get("/healthz").strip() == "ok"


# What the commands show ---------------------------------------------------------------------


def test_events_filters(daemon, watch, actor):
    one, other = actor(), actor()
    for each in (one, other):
        port = each.call("listen", "127.0.0.1")
        daemon.declare("INIT" if each is one else "DRAIN", each.pid)
        with Held("127.0.0.1", port, 23):
            each.call("accept", 23)
    daemon.declare("DRAIN", one.pid)
    watch.collect()

    def shown(*options):
        done = daemon.cli("events", "-o", "json", *options)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def count(*options):
        return len(shown(*options))

    both = ["--pid", str(one.pid), "--pid", str(other.pid)]
    assert count(*both, "--type", "accept") == 46
    assert count("--pid", str(one.pid), "--type", "accept") == 23
    assert count(*both, "--type", "accept", "--phase", "INIT") == 23
    assert count(*both, "--type", "accept", "--phase", "INIT", "--phase", "DRAIN") == 46
    assert count(*both, "--type", "accept", "--verdict", "misrouted") == 46
    assert count(*both, "--type", "accept", "--verdict", "grace") == 0
    assert count("--last", "7") == 7
    assert [e["seq"] for e in shown("--last", "101")] == [e["seq"] for e in daemon.recent()[-101:]]
    pretty = daemon.cli("events", "-o", "jsonpretty", "--last", "1").stdout
    assert json.loads(pretty) == shown("--last", "1")[0]
    compact = daemon.cli("events", "--type", "accept", "--pid", str(one.pid)).stdout
    assert len(compact.splitlines()) == 23
    assert f"python3[{one.pid}]" in compact
    assert "-> 127.0.0.1:" in compact


@pytest.mark.parametrize("command", ["run", "declare", "events", "ps", "probe", "unload"])
def test_help(daemon, command):
    done = daemon.run(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: phasewatch {command}")


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["nonsense"],
        ["events", "-o", "xml"],
        ["events", "--last", "0"],
        ["events", "--type", "nothing"],
        ["ps", "-o", "yaml"],
        ["unload", "extra"],
        ["probe", "--nonsense"],
    ],
    ids=" ".join,
)
def test_usage_errors(daemon, command):
    done = daemon.run(*command)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


def test_children_are_shown(daemon, server):
    s = server("prefork")
    daemon.declare("ACTIVE", s.pid)
    table = daemon.cli("ps").stdout
    (line,) = [x for x in table.splitlines() if f"[{s.pid}]" in x]
    assert "ACTIVE" in line
    assert daemon.subject(s.pid)["members"] == 1 + len(children(s.pid))
