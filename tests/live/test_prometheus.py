# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What Prometheus makes of the numbers: deploy/prometheus by promtool, and by a server that scrapes."""

import json
import os
import re
import signal
import subprocess
import urllib.parse
import urllib.request

import peers
import pytest
import yaml
from docs import snippet, snippets
from harness import DEADLINE, REPO, free_port, now_ns, wait_until

RULES = REPO / "deploy" / "prometheus" / "phasewatch.rules.yml"
FIRING = 'count by (alertname, severity) (ALERTS{alertstate="firing"})'
DAYS = 3 * 24 * 60  # minutes; before what happens


def all_rules():
    return [r for g in yaml.safe_load(RULES.read_text())["groups"] for r in g["rules"]]


def promtool(*arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def assert_firing(tmp_path, series, minute, alerts):
    """Of the rules, given the values of each series minute by minute: just these alerts fire then, as
    (name, severity). They are evaluated every ten minutes: every minute of days takes long."""
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "10m",
        "group_eval_order": [g["name"] for g in yaml.safe_load(RULES.read_text())["groups"]],
        "tests": [{
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "promql_expr_test": [{
                "expr": f"{FIRING} > bool 0",
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{name}", severity="{severity}"}}', "value": 1}
                    for name, severity in alerts
                ],
            }],
        }],
    }  # fmt: skip
    path = tmp_path / "rules.test.yml"
    path.write_text(yaml.safe_dump(test))
    promtool("test", "rules", path)


# Each alert, by promtool -------------------------------------------------------------------------------

PAGE, TICKET = "page", "ticket"
OF = 'workload="red"'
OK = f'phasewatch_connections_total{{{OF},direction="accept",phase="ACTIVE",verdict="ok"}}'
MISROUTED = f'phasewatch_misrouted_total{{{OF},type="accept",phase="DRAIN"}}'
REQUESTS = f'phasewatch_misrouted_total{{{OF},type="request",phase="DRAIN"}}'
INFO = f'phasewatch_workload_info{{{OF},epoch="7"}}'
UP = 'up{job="phasewatch",instance="n1"}'
MAINTENANCE = f"phasewatch_maintenance{{{OF}}}"
BACKLOG = f"phasewatch_backlog_dropped_total{{{OF}}}"
OF_SHOP = f'phasewatch_backlog_dropped_total{{{OF},namespace="shop"}}'
IN_SHOP = 'phasewatch_maintenance{namespace="shop"}'


def steady(per_minute, minutes=DAYS + 240):
    return f"0+{per_minute}x{minutes}"


def after(quiet, per_minute, minutes=240):
    """Nothing for so long, then so much a minute."""
    return f"0x{quiet} 0+{per_minute}x{minutes}"


def once(value, at=DAYS):
    return f"0x{at} {value}x240"


# 100 connections a minute, each of the workload "red"; where the ratios are not asked for, none: three days of
# them take seconds
TRAFFIC = {OK: steady(100), MISROUTED: steady(0), REQUESTS: steady(0)}
QUIET = {INFO: "1x4560", UP: "1x4560"}
BOTH = [("PhasewatchMismatch", PAGE), ("PhasewatchDrainFailure", PAGE)]
SETTLE = [f'phasewatch_settle_seconds_bucket{{{OF},le="{le}"}}' for le in ("1.0", "2.0", "5.0", "+Inf")]
DRAINS = f"phasewatch_settle_seconds_count{{{OF}}}"

CASES = {
    "quiet": (TRAFFIC, 30, []),
    # more than 14.4 times the budget of an hour; that of three days is not spent that soon
    "mismatch": ({MISROUTED: after(DAYS, 20)}, 30, [*BOTH, ("PhasewatchMismatch", TICKET)]),
    # 0.8 % for five hours
    "mismatch-slow": ({MISROUTED: after(DAYS - 270, 0.8, 510)}, 30,
                      [("PhasewatchMismatch", PAGE)]),
    # 0.2 % for all of the time
    "mismatch-small": ({MISROUTED: steady(0.2)}, 30, [("PhasewatchMismatch", TICKET)]),
    "drain-failure": ({REQUESTS: after(DAYS, 20)}, 30, [("PhasewatchDrainFailure", PAGE)]),
    # it is over: the short window ends it
    "over": ({MISROUTED: f"0x{DAYS} 0+20x20 420x220"}, 60, []),
    # one of ten connections in the hour: a large share of little
    "scarce": ({OK: steady(0.1), MISROUTED: once(1)}, 10, []),
    "maintenance": ({MISROUTED: after(DAYS, 20), MAINTENANCE: "1x4560"}, 30, []),
    "maintenance-of-another": (
        {MISROUTED: after(DAYS, 20), 'phasewatch_maintenance{workload="blue"}': "1x4560"}, 30,
        [*BOTH, ("PhasewatchMismatch", TICKET)]),
    "maintenance-of-all": ({MISROUTED: after(DAYS, 20), "phasewatch_maintenance": "1x4560"}, 30, []),
    "maintenance-of-a-namespace": ({OF_SHOP: once(3), IN_SHOP: "1x4560"}, 10, []),
    "maintenance-of-another-namespace": (
        {BACKLOG: once(3), IN_SHOP: "1x4560"}, 10, [("PhasewatchBacklogDropped", TICKET)]),
    "maintenance-is-over": ({MISROUTED: after(DAYS, 20), "phasewatch_maintenance": "0x4560"}, 30,
                            [*BOTH, ("PhasewatchMismatch", TICKET)]),
    # four drains, noticed after more than 2 s
    "slow-to-settle": ({SETTLE[0]: steady(0), SETTLE[1]: steady(0), SETTLE[2]: once(4),
                        SETTLE[3]: once(4), DRAINS: once(4)}, 30, [("PhasewatchSlowToSettle", TICKET)]),
    "settles-soon": ({s: once(4) for s in [*SETTLE, DRAINS]}, 30, []),
    "one-slow-drain": ({SETTLE[0]: steady(0), SETTLE[1]: steady(0), SETTLE[2]: once(1),
                        SETTLE[3]: once(1), DRAINS: once(1)}, 30, []),
    "flapping": ({f"phasewatch_flaps_total{{{OF}}}": once(3)}, 30, [("PhasewatchFlapping", TICKET)]),
    # the hour begins between two scrapes
    "two-flaps": ({f"phasewatch_flaps_total{{{OF}}}": f"0x{DAYS - 11} _ 0x9 1x30 2x210"}, 50, []),
    "reload-of-all": ({f'phasewatch_flaps_total{{{OF},instance="n{n}"}}': once(1) for n in range(9)},
                      30, []),
    "exit-without-drain": (
        {f'phasewatch_violations_total{{{OF},kind="exit_without_drain"}}': once(1)}, 10,
        [("PhasewatchExitWithoutDrain", TICKET)]),
    "other-violations": ({f'phasewatch_violations_total{{{OF},kind="backward"}}': once(1)}, 10, []),
    "backlog": ({BACKLOG: once(3)}, 10,
                [("PhasewatchBacklogDropped", TICKET)]),
    "backlog-long-ago": ({BACKLOG: once(3)}, 40, []),
    "refused": ({f"phasewatch_refused_total{{{OF}}}": once(3)}, 10,
                [("PhasewatchRefusedAfterExit", TICKET)]),
    "two-owners": ({f'phasewatch_subjects{{{OF},phase="ACTIVE",instance="{n}"}}': once(1)
                    for n in ("n1", "n2")} | {f"phasewatch_singleton{{{OF}}}": "1x4560"}, 20,
                   [("PhasewatchLeaderOverlap", PAGE)]),
    "two-owners-of-many": ({f'phasewatch_subjects{{{OF},phase="ACTIVE",instance="{n}"}}': once(1)
                            for n in ("n1", "n2")}, 20, []),
    "lost": ({'phasewatch_events_lost_total{instance="n1",type="accept",stage="ring"}': once(5)}, 10,
             [("PhasewatchRecordsLost", TICKET)]),
    "not-exported": (
        {'phasewatch_otlp_dropped_total{instance="n1",signal="logs",reason="queue_full"}': once(5)}, 10,
        [("PhasewatchRecordsLost", TICKET)]),
    "down": ({UP: f"1x{DAYS} 0x240"}, 20, [("PhasewatchDown", TICKET)]),
    "down-for-a-moment": ({UP: f"1x{DAYS} 0x3 1x240"}, 20, []),
    "absent": ({UP: f"1x{DAYS} _x240"}, 30, [("PhasewatchAbsent", TICKET)]),
}  # fmt: skip


# A server that scrapes -----------------------------------------------------------------------


class Prometheus:
    """Set up as docs/alerts.md says, but that it scrapes `target`, every second."""

    def __init__(self, directory, target, *rules):
        self.port = free_port()
        self.path = directory / "prometheus.yml"
        config = yaml.safe_load(snippets("alerts.md")["scrape"].replace("127.0.0.1:9464", target))
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] += map(str, rules)
        (directory / RULES.name).write_text(RULES.read_text())
        self.write(config)
        with open(directory / "prometheus.log", "wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={self.path}", f"--storage.tsdb.path={directory}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}"],
                stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: self.query('up{job="phasewatch"} == 1'), "it scrapes")

    def write(self, config):
        self.path.write_text(yaml.safe_dump(config))
        self.config = config

    def get(self, path, **query):
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=DEADLINE) as answer:
            return json.load(answer)["data"]

    def query(self, expression):
        """What it knows now, as (labels, value)."""
        try:
            result = self.get("query", query=expression)["result"]
        except OSError:
            return []
        return [(r["metric"], float(r["value"][1])) for r in result]

    def number(self, expression):
        result = self.query(expression)
        assert len(result) <= 1, result
        return result[0][1] if result else None

    def alerts(self, state="firing", **labels):
        """The names of those in this state."""
        wanted = ",".join(f'{k}="{v}"' for k, v in {"alertstate": state, **labels}.items())
        return {found["alertname"] for found, _ in self.query(f"ALERTS{{{wanted}}}")}

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE)


@pytest.fixture
def prometheus(tmp_path, own_daemon):
    own_daemon.start()
    server = Prometheus(tmp_path, f"127.0.0.1:{own_daemon.port}")
    yield server
    server.stop()


def play(daemon, actor, prometheus):
    """A drain with all that can go wrong in it; its report."""
    one = actor()
    one.call("rename", "red")
    one.port = one.call("listen", "127.0.0.1")
    daemon.declare("ACTIVE", one.pid)
    # a rate counts from the first value on that was scraped
    wait_until(lambda: prometheus.query('phasewatch_subjects{workload="red"}'), "it is known")
    peers.arrive(one, 100)
    for epoch in (2, 3, 4):
        daemon.declare("DRAIN", one.pid)
        daemon.declare("ACTIVE", one.pid, "--epoch", str(epoch))
    kept = peers.Kept(one, 5)
    kept.ask(range(5))
    daemon.declare("DRAIN", one.pid)
    with peers.Held("127.0.0.1", one.port, 23):
        one.call("accept", 23)
    kept.ask(range(5))
    with peers.fill(one.port, 7):
        one.die("SIGKILL")
    wait_until(lambda: one.pid not in daemon.subjects(), "nobody is left of it")
    report = daemon.report(one.pid)
    for _ in range(11):
        peers.refuse("127.0.0.1", one.port)
    other = actor()
    other.call("rename", "red")
    daemon.declare("ACTIVE", other.pid)
    other.die("SIGKILL")
    wait_until(lambda: not daemon.subjects(), "nobody is left")
    return report


def test_scraped(prometheus, own_daemon, actor):
    """Prometheus, /metrics and the report say what the clients counted; each recording rule has
    something to say, and no rule fails."""
    before = prometheus.number("sum(phasewatch_misrouted_total)")
    report = play(own_daemon, actor, prometheus)
    red = 'workload="red"'
    expected = {
        f'phasewatch_misrouted_total{{{red},type="accept",phase="DRAIN"}}': 23,
        f'phasewatch_misrouted_total{{{red},type="request",phase="DRAIN"}}': 5,
        f"phasewatch_backlog_dropped_total{{{red}}}": 7,
        f"phasewatch_refused_total{{{red}}}": 11,
        f"sum(phasewatch_abandoned_total{{{red}}})": 5,
        f"phasewatch_flaps_total{{{red}}}": 3,
        f'phasewatch_violations_total{{{red},kind="exit_without_drain"}}': 1,
        "sum(phasewatch_misrouted_total)": before + 28,
    }
    for expression, value in expected.items():
        wait_until(lambda e=expression, v=value: prometheus.number(e) == v,
                   lambda e=expression, v=value: f"{e} is {v}, not {prometheus.query(e)}")  # fmt: skip
    metrics = own_daemon.metrics()
    assert metrics.sum("phasewatch_misrouted_total", workload="red", type="accept") == 23
    assert metrics.sum("phasewatch_refused_total", workload="red") == 11
    assert report["arrivals"]["misrouted"] == 23 and report["requests"]["misrouted"] == 5

    # rates are extrapolated, a ratio of two over the same time is not
    failed = f"workload:phasewatch_drain_failure:ratio_rate5m{{{red}}}"
    wait_until(lambda: prometheus.number(failed) == pytest.approx(28 / (105 + 28)),
               lambda: f"{failed} is {28 / 133}, not {prometheus.query(failed)}")  # fmt: skip
    for rule in all_rules():
        if "record" in rule:
            assert prometheus.query(rule["record"]), rule["record"]
    rules = [r for g in prometheus.get("rules")["groups"] for r in g["rules"]]
    assert len(rules) == len(all_rules())
    assert {r["health"] for r in rules} == {"ok"}
    expected = {
        "PhasewatchMismatch", "PhasewatchDrainFailure", "PhasewatchFlapping",
        "PhasewatchBacklogDropped", "PhasewatchRefusedAfterExit", "PhasewatchExitWithoutDrain",
    }  # fmt: skip
    wait_until(lambda: prometheus.alerts() == expected,
               lambda: f"{expected} fire, not {prometheus.alerts()}")  # fmt: skip


def named(daemon, actor, name, phase="ACTIVE"):
    """An actor of that name, which listens and is declared."""
    one = actor()
    one.call("rename", name)
    one.port = one.call("listen", "127.0.0.1")
    daemon.declare(phase, one.pid)
    return one


def test_other_alerts(tmp_path, own_daemon, actor):
    """Those that one drain does not set off; and a maintenance, as docs/alerts.md has it."""
    silences = snippet("alerts.md", "silences", tmp_path / "silences.yml")
    own_daemon.start()
    prometheus = Prometheus(tmp_path, f"127.0.0.1:{own_daemon.port}", silences)
    try:
        for _ in range(2):
            named(own_daemon, actor, "scheduler")
        slow = [named(own_daemon, actor, "slow") for _ in range(3)]
        red, nginx = (named(own_daemon, actor, name) for name in ("red", "nginx"))
        wait_until(lambda: prometheus.query('phasewatch_subjects{workload="nginx"}'), "it is known")
        for one in slow:
            own_daemon.declare("DRAIN", one.pid)
        begin = now_ns()
        for one in (red, nginx):
            with peers.fill(one.port, 7):
                one.die("SIGKILL")

        # more than the ring holds, while nobody reads it
        storm = named(own_daemon, actor, "storm", "DRAIN")
        own_daemon.process.send_signal(signal.SIGSTOP)
        try:
            storm.call("connect_storm", "127.0.0.1", free_port(), 60_000)
        finally:
            own_daemon.process.send_signal(signal.SIGCONT)

        wait_until(lambda: now_ns() > begin + 2_100_000_000, "more than the objective has passed")
        for one in slow:
            peers.arrive(one, 1)
            one.die("SIGTERM")
            assert own_daemon.report(one.pid)["settle_ns"] > 2_100_000_000
        expected = {
            "scheduler": "PhasewatchLeaderOverlap", "slow": "PhasewatchSlowToSettle",
            "red": "PhasewatchBacklogDropped", "": "PhasewatchRecordsLost",
        }  # fmt: skip
        for workload, alert in expected.items():
            wait_until(lambda w=workload, a=alert: a in prometheus.alerts(workload=w),
                       lambda w=workload, a=alert: f"{a} of {w}, not {prometheus.alerts()}",
                       deadline=60)  # fmt: skip
        assert prometheus.number('phasewatch_backlog_dropped_total{workload="nginx"}') == 7
        assert not prometheus.alerts(workload="nginx")

        # these two wait for minutes
        own_daemon.stop()
        wait_until(lambda: "PhasewatchDown" in prometheus.alerts("pending"), "it is down")
        prometheus.config["scrape_configs"][0]["static_configs"] = []
        prometheus.write(prometheus.config)
        prometheus.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "PhasewatchAbsent" in prometheus.alerts("pending"), "it is not scraped")
    finally:
        prometheus.stop()


def test_rules():
    promtool("check", "rules", RULES)


@pytest.mark.parametrize("case", CASES)
def test_alert(tmp_path, case):
    series, minute, alerts = CASES[case]
    traffic = TRAFFIC if TRAFFIC.keys() & series.keys() else {}
    assert_firing(tmp_path, QUIET | traffic | series, DAYS + minute, alerts)


def test_each_alert_has_a_case():
    named = {name for _, _, alerts in CASES.values() for name, _ in alerts}
    assert named == {r["alert"] for r in all_rules() if "alert" in r}


def test_each_alert_has_a_runbook():
    for rule in all_rules():
        if "alert" in rule:
            book = REPO / rule["annotations"]["runbook_url"]
            assert rule["alert"] in book.read_text(), book


RUNBOOKS = sorted((REPO / "docs" / "runbooks").glob("*.md"))


@pytest.mark.parametrize("book", RUNBOOKS, ids=lambda p: p.stem)
def test_runbook(daemon, public, actor, book):
    """Its commands work when there was a drain, and the options in its text are there."""
    daemon.declare("DRAIN", actor().pid)
    text = book.read_text()
    environment = {**os.environ, "PATH": f"{public}:{os.environ['PATH']}",
                   "PHASEWATCH_SOCKET": str(daemon.socket)}  # fmt: skip
    commands = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert "phasewatch " in commands
    script = commands.replace("9464", str(daemon.port))
    done = subprocess.run(["sh", "-e", "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done
    for command, rest in re.findall(r"`(?:phasewatch )?(run|declare|drain|events|report)\b([^`]*)`", text):
        known = daemon.run(command, "--help").stdout
        assert all(option in known for option in re.findall(r"--[a-z-]+", rest)), (command, rest)


def test_what_an_alert_says(tmp_path):
    """Its labels and annotations, epoch included."""
    labels = 'workload="red",namespace="shop"'
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [{
            "interval": "1m",
            "input_series": [
                {"series": f"phasewatch_flaps_total{{{labels}}}", "values": "0x60 4x60"},
                {"series": f'phasewatch_workload_info{{{labels},epoch="7"}}', "values": "1x120"},
                {"series": UP, "values": "1x120"},
            ],
            "alert_rule_test": [{
                "eval_time": "63m",
                "alertname": "PhasewatchFlapping",
                "exp_alerts": [{
                    "exp_labels": {"severity": "ticket", "epoch": "7", "workload": "red",
                                   "namespace": "shop"},
                    "exp_annotations": {
                        "summary": "shop/red began its life cycle anew 4 times within an hour",
                        "runbook_url": "docs/runbooks/flapping.md",
                    },
                }],
            }],
        }],
    }  # fmt: skip
    path = tmp_path / "rules.test.yml"
    path.write_text(yaml.safe_dump(test))
    promtool("test", "rules", path)
