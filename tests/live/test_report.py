# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Reports of drains, against what was scripted."""

import json
import os
import re
import signal
from collections import Counter

import expect
import peers
from expect import now_ns
from harness import free_port, wait_until
from peers import ANSWER, QUESTION, Kept, connect_and_ask


def expect_timeline(timeline, *expected):
    """These, in this order, among others; (what, pattern of the detail)."""
    times = [entry["at_ns"] for entry in timeline]
    assert times == sorted(times) and times[0] == 0, timeline
    rest = iter(timeline)
    for what, detail in expected:
        entry = next((e for e in rest if e["what"] == what), None)
        assert entry, f"{what}: not there or not in order in {timeline}"
        assert re.fullmatch(detail, entry.get("detail", "")), entry


REQUESTS = ("misrouted", "connections", "total")


def counts_of(report):
    """All that the script can count."""
    connects, refused = report["connects"], report["refused"]
    return {
        "arrivals": report["arrivals"],
        "requests": {key: report["requests"][key] for key in REQUESTS},
        "inflight": report["inflight"],
        "abandoned": report["abandoned"],
        "backlog_dropped": report["backlog_dropped"],
        "refused": refused["count"],
        "connects": {key: connects[key] for key in ("misrouted", "failed")},
    }


def test_report(daemon, watch, listening, client, actor, server):
    other_server = server("nonblocking")
    one, user = listening(), client()
    one.call("rename", "frontend")
    one.call("catch", "SIGTERM")
    daemon.declare("ACTIVE", one.pid)
    for _ in range(11):
        user.call("connect", "127.0.0.1", one.port, True)
    one.call("accept", 11)

    began = now_ns()
    daemon.declare("DRAIN", one.pid, "--epoch", "7", "--reason", "rolling update")
    # Thirteen arrive; five late requests on three connections; two requests on new ones.
    for _ in range(13):
        user.call("connect", "127.0.0.1", one.port, True)
    one.call("accept", 13)
    for which in ([0, 1, 2], [0, 1], [11, 12]):
        user.call("send", which, QUESTION)
        one.call("receive", which, QUESTION)
        one.call("send", which, ANSWER)
        user.call("receive", which, ANSWER)
    # Three connects of its own, one of which fails.
    for port in (other_server.port, other_server.port, free_port()):
        one.call("connect", "127.0.0.1", port)
    # Four are closed; of the others one is not answered, two are not read.
    one.call("close_connections", [7, 8, 9, 10])
    user.call("send", [3, 4, 5], QUESTION)
    one.call("receive", [3], QUESTION)
    # Seventeen in the backlog.
    for _ in range(17):
        user.call("connect", "127.0.0.1", one.port, True)
    wait_until(lambda: peers.accept_queue(one.port) == 17, "17 in the accept queue")
    os.kill(one.pid, signal.SIGTERM)
    one.begin("exit", 0)
    one.wait()
    lasted = now_ns() - began
    ends = Counter(user.call("ends"))
    assert ends == {"fin": 11 + 13 - 2, "rst": 2 + 17}
    for _ in range(3):
        assert user.call("connect", "127.0.0.1", one.port)["errno"] == "ECONNREFUSED"

    def refusals_counted():
        return daemon.report(one.pid)["refused"]["count"] == 3

    wait_until(refusals_counted, "the report has three refusals")
    report = daemon.report(one.pid)
    # The connection on which request 6 is not answered had none since DRAIN: one more late one.
    assert counts_of(report) == {
        "arrivals": {"accepts": 24, "misrouted": 13, "grace": 0, "ignored": 0},
        "requests": {"misrouted": 6, "connections": 4, "total": 8},
        "inflight": {"start": 11, "start_tcp": 11, "end": 20, "end_tcp": 20 + 17},
        "abandoned": {"total": 20, "busy": 3, "fin": 18, "rst": 2},
        "backlog_dropped": 17,
        "refused": 3,
        "connects": {"misrouted": 3, "failed": 1},
    }
    assert report["subject"] == {
        "kind": "process", "id": one.pid, "name": "frontend", "epoch": 7, "source": "api",
    }  # fmt: skip
    assert report["processes"] == 1
    assert report["reason"] == "rolling update"
    assert report["by"]["uid"] == 0
    assert 0 < report["settle_ns"] <= report["duration_ns"] < lasted
    assert 0 < report["refused"]["last_after_ns"] < now_ns() - began
    queue = report["queue"]
    assert 0 < queue["p50_ns"] <= queue["p99_ns"] <= queue["max_ns"] < lasted
    clients = [(c["comm"], c["pid"], c["count"]) for c in report["clients"]]
    assert clients == [(user.comm, user.pid, 13 + 6 + 3)]
    expect_timeline(
        report["timeline"],
        ("DRAIN declared", rf'by .*\[{os.getpid()}\] uid 0, "rolling update"'),
        ("first misrouted", ".*"),
        ("last misrouted", ".*"),
        ("SIGTERM", rf"from .*\[{os.getpid()}\]"),
        ("listener closed", f"port {one.port}, 17 in the backlog dropped"),
        ("last process gone", "exit 0"),
    )

    # The event at the end of the drain says the same, but for the refusals that came later.
    drains = expect.of_type(watch.collect(), "drain")
    (event,) = [e for e in drains if e["subject"]["id"] == one.pid]
    later = {**counts_of(report), "refused": 0}
    assert {**counts_of(event["report"]), "refused": 0} == later
    assert event["report"]["duration_ns"] == report["duration_ns"]

    shown = daemon.cli("report", "frontend")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert len(lines) <= 24, shown.stdout
    assert max(map(len, lines)) <= 100, shown.stdout
    for part in ("Drain of frontend", "rolling update", "13 of 24", "17 in the backlog dropped",
                 f"{user.comm}[{user.pid}]", "20 abandoned", "exit 0"):  # fmt: skip
        assert part in shown.stdout, (part, shown.stdout)
    markdown = daemon.cli("report", "frontend", "-o", "markdown")
    assert markdown.returncode == 0, markdown.stderr
    assert "rolling update" in markdown.stdout


def test_report_of_a_clean_drain(daemon, watch, listening):
    """Nothing went wrong, and the report says so: no settle time, no client, no cost."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    with Kept(one, 3) as kept:
        kept.ask(range(3))
        daemon.declare("DRAIN", one.pid)
    one.call("receive_end", [0, 1, 2])
    one.call("close_connections")
    one.die("exit")
    report = daemon.report(one.pid)
    assert counts_of(report) == {
        "arrivals": {"accepts": 3, "misrouted": 0, "grace": 0, "ignored": 0},
        "requests": {"misrouted": 0, "connections": 0, "total": 0},
        "inflight": {"start": 3, "start_tcp": 3, "end": 0, "end_tcp": 0},
        "abandoned": {"total": 0, "busy": 0, "fin": 0, "rst": 0},
        "backlog_dropped": 0,
        "refused": 0,
        "connects": {"misrouted": 0, "failed": 0},
    }
    assert "settle_ns" not in report
    assert report.get("clients", []) == report.get("peers", []) == []
    assert expect.counted(watch.collect()) == {}


def test_report_of_many_processes(daemon, server):
    s = server("prefork")
    workers = {s.line()["worker"] for _ in range(3)}
    daemon.declare("DRAIN", s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 31)
    os.kill(s.pid, signal.SIGKILL)
    s.process.wait()
    for worker in workers:
        os.kill(worker, signal.SIGTERM)
    report = daemon.report(s.pid)
    assert report["processes"] == 4
    assert report["arrivals"]["misrouted"] == len(made)
    expect_timeline(
        report["timeline"], ("DRAIN declared", ".*"), ("last process gone", "killed by SIGTERM")
    )  # fmt: skip


def test_reports_while_draining(daemon, listening):
    """A drain that runs has a report as well; it is not in the way of finished ones."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    with Kept(one, 5):
        shown = daemon.cli("report", str(one.pid), "-o", "json")
        assert shown.returncode == 0, shown.stderr
        (report,) = json.loads(shown.stdout)["reports"]
        assert report["running"] is True
        assert report["arrivals"]["misrouted"] == 5
        assert one.pid not in {r["subject"]["id"] for r in daemon.reports()}
    one.die("exit")
    assert daemon.report(one.pid)["running"] is False


def test_report_of_nobody(daemon):
    shown = daemon.cli("report", "nobody-has-this-name")
    assert shown.returncode == 1
    assert "nobody-has-this-name" in shown.stderr
