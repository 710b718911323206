# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The numbers: by workload they are what the clients counted, they add up to those of all, and no
counter falls back."""

import http.client
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import peers
import pytest
from harness import DEADLINE, REPO, wait_until
from prometheus_client.parser import text_string_to_metric_families

COUNTED = ("_total", "_bucket", "_count", "_sum")


def counters(metrics):
    return {
        (name, *sorted(labels.items())): value
        for name, labels, value in metrics.samples
        if name.endswith(COUNTED)
    }


def assert_none_fell(before, after):
    before, after = counters(before), counters(after)
    fell = {key: (value, after.get(key)) for key, value in before.items()
            if not after.get(key, -1) >= value}  # fmt: skip
    assert not fell


def histogram(metrics, name, **labels):
    """Its count and its buckets' own counts by upper bound."""
    buckets, below = {}, 0
    for sample, has, value in metrics.samples:
        if sample == f"{name}_bucket" and labels.items() <= has.items():
            buckets[float(has["le"])] = value - below
            below = value
    assert metrics.sum(f"{name}_count", **labels) == below
    return below, {le: n for le, n in buckets.items() if n}


def gained(before, after, name, **labels):
    return after.sum(name, **labels) - before.sum(name, **labels)


@pytest.fixture
def named(actor):
    """An actor that calls itself that, and listens."""

    def make(name):
        one = actor()
        one.call("rename", name)
        one.port = one.call("listen", "127.0.0.1")
        return one

    return make


def test_by_workload(own_daemon, named):
    """Two instances of one, one of another, and somebody whom nobody declared; when the subjects are
    gone the numbers are still there, and after a restart."""
    own_daemon.start()
    red, red2, blue, nobody = (named(n) for n in ("red", "red", "blue", "nobody"))
    for one in (red, red2, blue):
        own_daemon.declare("ACTIVE", one.pid)
    before = own_daemon.metrics()
    peers.arrive(red, 23)
    peers.arrive(nobody, 7)
    own_daemon.declare("DRAIN", red.pid)
    own_daemon.declare("DRAIN", red2.pid, "--epoch", "9")
    peers.arrive(red, 11)
    peers.arrive(red2, 13)
    peers.arrive(blue, 17)
    nobody.call("connect", "127.0.0.1", blue.port)
    blue.call("connect", "127.0.0.1", nobody.port)
    blue.call("accept", 1)

    def expect(metrics):
        def total(name, **labels):
            return gained(before, metrics, f"phasewatch_{name}_total", **labels)

        accepts = {"direction": "accept"}
        assert total("connections", workload="red", verdict="ok", **accepts) == 23
        assert total("connections", workload="red", phase="DRAIN", **accepts) == 24
        assert total("connections", workload="blue", **accepts) == 18
        assert total("connections", workload="blue", direction="connect", phase="ACTIVE") == 1
        assert total("misrouted", workload="red", type="accept", phase="DRAIN") == 24
        assert total("misrouted", workload="blue") == 0
        assert gained(before, metrics, "phasewatch_misroute_delay_seconds_count", workload="red") == 24
        assert gained(before, metrics, "phasewatch_accept_queue_seconds_count", workload="red") == 47

    now = own_daemon.metrics()
    expect(now)
    assert gained(before, now, "phasewatch_connect_seconds_count") == 1
    assert now.sum("phasewatch_subjects", workload="red", phase="DRAIN") == 2
    assert now.sum("phasewatch_subjects", workload="red", phase="ACTIVE") == 0
    assert now.sum("phasewatch_workload_info", workload="red", epoch="9") == 1
    assert now.sum("phasewatch_workload_info", workload="red") == 1
    # of those whom nobody declared: this process connects, and others of this machine may
    undeclared = [(labels, value) for name, labels, value in now.samples
                  if name == "phasewatch_connections_total" and "workload" not in labels]  # fmt: skip
    assert sum(value for labels, value in undeclared if labels["direction"] == "accept") >= 8
    assert {labels["phase"] for labels, _ in undeclared} == {"UNDECLARED"}

    for one in (red, red2, blue):
        one.die("SIGKILL")
    wait_until(lambda: not own_daemon.subjects(), "all subjects are gone")
    gone = own_daemon.metrics()
    expect(gone)
    assert_none_fell(now, gone)
    assert not [s for s in gone.samples if s[0] == "phasewatch_workload_info"]
    assert gained(before, gone, "phasewatch_violations_total", kind="exit_without_drain") == 1
    own_daemon.kill()
    own_daemon.start()
    again = own_daemon.metrics()
    expect(again)
    # what the daemon counts for itself begins anew with it, as the process's CPU time does
    own = ("phasewatch_declarations", "phasewatch_api_", "phasewatch_notify_", "process_")
    again.samples += [s for s in gone.samples if s[0].startswith(own)]
    assert_none_fell(gone, again)


def test_refused(own_daemon, named):
    """Of a subject that is gone."""
    own_daemon.start()
    one = named("red")
    own_daemon.declare("DRAIN", one.pid)
    one.die("SIGTERM")
    wait_until(lambda: not own_daemon.subjects(), "it is gone")
    for _ in range(23):
        peers.refuse("127.0.0.1", one.port)
    wait_until(lambda: own_daemon.metrics().sum("phasewatch_refused_total", workload="red") == 23,
               "all are told")  # fmt: skip
    assert own_daemon.metrics().sum("phasewatch_refused_total") == 23


def test_drain_times(own_daemon, named):
    """One sample a drain, with the event to look for; the same numbers as in its report."""
    own_daemon.start()
    one = named("red")
    own_daemon.declare("DRAIN", one.pid)
    peers.arrive(one, 3)
    one.die("SIGTERM")
    report = own_daemon.report(one.pid)
    metrics = own_daemon.metrics()
    for name, ns in (("settle", report["settle_ns"]), ("drain", report["duration_ns"])):
        name = f"phasewatch_{name}_seconds"
        count, buckets = histogram(metrics, name, workload="red")
        assert count == 1
        assert next(iter(buckets)) >= ns / 1e9
        assert metrics.sum(f"{name}_sum", workload="red") == pytest.approx(ns / 1e9)
    exemplars = [s.exemplar for f in metrics.families for s in f.samples
                 if f.name == "phasewatch_drain_seconds" and s.exemplar]  # fmt: skip
    drains = [e for e in own_daemon.recent() if e["type"] == "drain"]
    assert [e.labels["seq"] for e in exemplars] == [str(e["seq"]) for e in drains]


def test_overflow(own_daemon, named):
    """Names beyond --max-workloads are one, and counted as such."""
    own_daemon.options = ["--max-workloads", "2"]
    own_daemon.start()
    many = [named(f"name{i}") for i in range(5)]
    for one in many:
        own_daemon.declare("DRAIN", one.pid)
        peers.arrive(one, 3)
    metrics = own_daemon.metrics()
    misrouted = Counter()
    for name, labels, value in metrics.samples:
        if name == "phasewatch_misrouted_total" and "workload" in labels:
            misrouted[labels["workload"]] += value
    assert misrouted == {"name0": 3, "name1": 3, "other": 9}
    assert metrics.sum("phasewatch_workloads_overflowed_total") == 3


def test_hostile_name(own_daemon, named):
    """A process may call itself anything; the strict parser reads it, and no terminal obeys it."""
    own_daemon.start()
    one = named('a"\\\n\x1b[31m')
    own_daemon.declare("DRAIN", one.pid)
    peers.arrive(one, 3)
    assert own_daemon.metrics().sum("phasewatch_misrouted_total", workload='a"\\??[31m') == 3
    assert "\x1b" not in own_daemon.get("/metrics")


def test_a_new_program(own_daemon, actor):
    """From its exec on a process goes by another name; what it has counted stays where it is."""
    own_daemon.start()
    one = actor()
    one.call("rename", "before")
    one.port = one.call("listen", "127.0.0.1")
    own_daemon.declare("DRAIN", one.pid)
    peers.arrive(one, 5)
    before = own_daemon.metrics()
    one.begin("execute", shutil.which("sleep"), "100")
    wait_until(lambda: own_daemon.subject(one.pid)["subject"]["name"] == "sleep", "it runs sleep")
    after = own_daemon.metrics()
    assert after.sum("phasewatch_misrouted_total", workload="before") == 5
    assert_none_fell(before, after)


def test_formats(own_daemon, named):
    """What is asked for by Accept, over TCP; both say the same."""
    own_daemon.start()
    one = named("red")
    own_daemon.declare("DRAIN", one.pid)
    peers.arrive(one, 3)

    def get(accept):
        connection = http.client.HTTPConnection("127.0.0.1", own_daemon.port, timeout=DEADLINE)
        connection.request("GET", "/metrics", headers={"Accept": accept} if accept else {})
        answer = connection.getresponse()
        body = answer.read().decode()
        connection.close()
        return answer.headers["Content-Type"], body

    prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3"
    for accept in ("", "*/*", prometheus):
        kind, body = get(accept)
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert body.endswith("# EOF\n")
    kind, classic = get("text/plain;version=0.0.4")
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert "# EOF" not in classic and "# UNIT" not in classic and "# {" not in classic
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for f in text_string_to_metric_families(classic)
        for s in f.samples
    }
    shown = {(n, *sorted(labels.items())): v for n, labels, v in own_daemon.metrics().samples}
    assert samples.keys() == shown.keys()
    ours = ("phasewatch_misrouted_total", ("phase", "DRAIN"), ("type", "accept"), ("workload", "red"))
    assert samples[ours] == shown[ours] == 3


def test_own_numbers(own_daemon, named):
    """What it costs, by those who know: the kernel, and /proc."""
    own_daemon.start()
    one = named("red")
    own_daemon.declare("DRAIN", one.pid)
    peers.arrive(one, 3)
    metrics = own_daemon.metrics()
    shown = subprocess.run(["bpftool", "map", "show", "pinned", f"{own_daemon.pin_dir}/pw_phases"],
                           capture_output=True, text=True, check=True).stdout  # fmt: skip
    most = int(re.search(r"max_entries (\d+)", shown)[1])
    assert metrics.sum("phasewatch_map_capacity", map="pw_phases") == most
    assert metrics.sum("phasewatch_map_entries", map="pw_phases") == 1
    assert metrics.sum("phasewatch_map_entries", map="pw_members") == 1
    assert metrics.sum("phasewatch_ring_size_bytes") == 4 << 20
    status = Path(f"/proc/{own_daemon.process.pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+)", status)[1]) << 10
    assert metrics.sum("process_resident_memory_bytes") == pytest.approx(resident, rel=0.2)
    programs = {labels["program"] for name, labels, _ in metrics.samples
                if name == "phasewatch_program_recursion_misses_total"}  # fmt: skip
    assert {"pw_sockops", "pw_sock_release", "pw_process_exit"} <= programs


def test_run_time(own_daemon, named):
    """Of programs, while the kernel measures it."""
    own_daemon.start()
    one = named("red")
    own_daemon.declare("DRAIN", one.pid)
    enabled = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = enabled.read_text()
    enabled.write_text("1")
    try:
        peers.arrive(one, 23)
    finally:
        enabled.write_text(before)
    metrics = own_daemon.metrics()
    # at the least each end is established, and closed
    assert metrics.sum("phasewatch_program_runs_total", program="pw_sockops") >= 2 * 23
    assert 0 < metrics.sum("phasewatch_program_run_seconds_total", program="pw_sockops") < 1


def test_series_of_a_workload(own_daemon, named):
    """As many as docs/scale.md counts on."""
    own_daemon.start()
    own_daemon.declare("ACTIVE", named("first").pid)
    before = own_daemon.metrics()
    one = named("red")
    own_daemon.declare("ACTIVE", one.pid)
    quiet = own_daemon.metrics()
    peers.arrive(one, 3)
    said = re.search(r"(\d+) for each workload, and (\d+) more", (REPO / "docs/scale.md").read_text())
    each, busy = map(int, said.groups())
    assert len(quiet.samples) - len(before.samples) == each
    assert each < len(own_daemon.metrics().samples) - len(before.samples) <= each + busy


def test_documented(own_daemon, named):
    """docs/metrics.md has each family, and no other."""
    own_daemon.start()
    one = named("red")
    own_daemon.declare("DRAIN", one.pid)
    peers.arrive(one, 3)
    text = (REPO / "docs" / "metrics.md").read_text()
    documented = {
        name.strip()
        for names in re.findall(r"^\| (\w+(?:, \w+)*) \|", text, re.M)[1:]
        for name in names.split(",")
    }
    suffix = {"counter": "_total", "info": "_info"}
    shown = {f.name + suffix.get(f.type, "") for f in own_daemon.metrics().families}
    optional = {"phasewatch_program_run_seconds_total", "phasewatch_program_runs_total"}
    assert documented - optional == shown - optional
