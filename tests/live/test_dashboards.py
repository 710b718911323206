# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""deploy/grafana: each query of each panel is put to a Prometheus that scrapes a daemon which has seen
all that there is to show."""

import json
import re
import secrets
import subprocess
import time
import uuid
from pathlib import Path

import peers
import pytest
from harness import REPO, free_port, wait_until
from test_prometheus import RULES, Prometheus, play

DIRECTORY = REPO / "deploy" / "grafana"
DASHBOARDS = {p.stem: json.loads(p.read_text()) for p in sorted(DIRECTORY.glob("*.json"))}
# What Grafana puts in, where all workloads and nodes are chosen
GIVEN = {"__range": "1h", "__rate_interval": "10s", "namespace": ".*", "workload": ".+", "instance": ".+"}


def filled_in(query):
    query = re.sub(r"\$(\w+)", lambda name: GIVEN[name[1]], query)
    assert "$" not in query
    return query


@pytest.fixture
def run_times():
    """The kernel measures its programs meanwhile."""
    enabled = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = enabled.read_text()
    enabled.write_text("1")
    yield
    enabled.write_text(before)


@pytest.fixture
def prometheus(directories, own_daemon, run_times):
    own_daemon.options = ["--pod-logs", str(own_daemon.directory / "pods"),
                          "--otlp-endpoint", f"http://127.0.0.1:{free_port()}"]  # fmt: skip
    own_daemon.start()
    server = Prometheus(Path(directories()), f"127.0.0.1:{own_daemon.port}")
    yield server
    server.stop()


@pytest.fixture
def pod(own_daemon, listening, cgroups):
    """A pod "shop/frontend", and who runs in it."""
    ident = str(uuid.uuid4())
    (own_daemon.directory / "pods" / f"shop_frontend_{ident}").mkdir(parents=True)
    container = cgroups(secrets.token_hex(32), cgroups(f"pod{ident}", cgroups("kubepods")))
    one = listening()
    container.add(one.pid)
    return one


def scraped(prometheus):
    """Until Prometheus knows what happened so far, in two samples: rates need as many."""
    begin = time.time()
    newest = 'min(timestamp(up{job="phasewatch"}))'
    wait_until(lambda: (prometheus.number(newest) or 0) > begin + 1, "two scrapes")


@pytest.fixture
def seen(prometheus, own_daemon, actor, pod, listening):
    """All kinds of numbers of a pod and of a process, each of which rises while they are looked at."""
    other = listening()

    def declare(phase):
        done = own_daemon.cli("declare", phase, "--pod", "shop/frontend")
        assert done.returncode == 0, done.stderr

    def busy():
        with peers.Held("127.0.0.1", pod.port, 13):
            pod.call("accept", 13)
        kept.ask(range(5))
        pod.call("connect", "127.0.0.1", other.port)
        scraped(prometheus)

    kept = peers.Kept(pod, 5)
    declare("ACTIVE")
    busy()
    play(own_daemon, actor, prometheus)
    declare("DRAIN")
    busy()
    busy()
    with kept:
        yield


def targets():
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} {target['refId']}", target


def answer(prometheus, target):
    """What its panel would show: (labels, values)."""
    expression = filled_in(target["expr"])
    if target.get("instant"):
        result = prometheus.get("query", query=expression)["result"]
        return [(r["metric"], [r["value"]]) for r in result]
    now = time.time()
    result = prometheus.get("query_range", query=expression, start=now - 30, end=now, step=1)["result"]
    return [(r["metric"], r["values"]) for r in result]


def missing(text, result):
    """The labels in a legend, or the label that a variable lists, that nothing has. What is in no pod has
    no namespace."""
    there = {label for labels in result for label in labels}
    return [label for label in re.findall(r"{{(\w+)}}", text) if label not in {*there, "namespace"}]


def test_with_data(prometheus, seen):
    """Each query has an answer, each legend the labels that it names, each variable something to choose."""
    wrong = []
    for name, target in targets():
        result = answer(prometheus, target)
        if not any(value != "NaN" for _, values in result for _, value in values):
            wrong.append((name, "nothing", filled_in(target["expr"])))
        wrong += [(name, label) for label in missing(target["legendFormat"], [r[0] for r in result])]
    for dashboard in DASHBOARDS.values():
        for one in dashboard["templating"]["list"][1:]:
            series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", one["definition"]).groups()
            found = prometheus.get("series", **{"match[]": filled_in(series)})
            wrong += [(one["name"], label) for label in missing(f"{{{{{label}}}}}", found)]
    assert not wrong

    # 13 accepts, 5 late requests and a connect, twice; an increase is extrapolated at both ends
    (misrouted,) = (t for n, t in targets() if n == "executive: Workloads A")
    by_workload = {labels["workload"]: float(v[0][1]) for labels, v in answer(prometheus, misrouted)}
    assert by_workload["frontend"] == pytest.approx(38, rel=0.15)
    assert prometheus.number('sum(phasewatch_misrouted_total{workload="frontend"})') == 38


@pytest.mark.parametrize("name", DASHBOARDS)
def test_layout(name):
    """No two panels lie on the same place, and none beyond the edge."""
    panels = DASHBOARDS[name]["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    taken = [
        (x, y)
        for place in (p["gridPos"] for p in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


def test_objectives():
    """They are those of the rules."""
    expressions = " ".join(target["expr"] for _, target in targets())
    allowed = set(re.findall(r"\* (0\.\d+)", RULES.read_text()))
    assert set(re.findall(r"/ (0\.\d+)", expressions)) == allowed


def test_generated(tmp_path):
    """By tools/dashboards, as it is."""
    subprocess.run([REPO / "tools" / "dashboards", tmp_path], check=True)
    made = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert made == {p.name: p.read_text() for p in DIRECTORY.iterdir()}
