# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What Prometheus makes of the numbers: deploy/prometheus by promtool, and by a server that scrapes."""

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request

import peers
import pytest
import yaml
from harness import REPO, free_port, wait_until

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


# Each alert -------------------------------------------------------------------------------

PAGE, TICKET = "page", "ticket"
OF = 'workload="red"'
OK = f'phasewatch_connections_total{{{OF},direction="accept",phase="ACTIVE",verdict="ok"}}'
MISROUTED = f'phasewatch_misrouted_total{{{OF},type="accept",phase="DRAIN"}}'
REQUESTS = f'phasewatch_misrouted_total{{{OF},type="request",phase="DRAIN"}}'
INFO = f'phasewatch_workload_info{{{OF},epoch="7"}}'
UP = 'up{job="phasewatch",instance="n1"}'
MAINTENANCE = f"phasewatch_maintenance{{{OF}}}"


def steady(per_minute, minutes=DAYS + 240):
    return f"0+{per_minute}x{minutes}"


def after(quiet, per_minute, minutes=240):
    """Nothing for so long, then so much a minute."""
    return f"0x{quiet} 0+{per_minute}x{minutes}"


def once(value, at=DAYS):
    return f"0x{at} {value}x240"


# 100 connections a minute, each of the workload "red"
QUIET = {OK: steady(100), MISROUTED: steady(0), REQUESTS: steady(0), INFO: "1x4560", UP: "1x4560"}
BOTH = [("PhasewatchMismatch", PAGE), ("PhasewatchDrainFailure", PAGE)]
SETTLE = [f'phasewatch_settle_seconds_bucket{{{OF},le="{le}"}}' for le in ("1.0", "2.0", "5.0", "+Inf")]
DRAINS = f"phasewatch_settle_seconds_count{{{OF}}}"

CASES = {
    "quiet": ({}, 30, []),
    # more than 14.4 times the budget of an hour; that of three days is not spent that soon
    "mismatch": ({MISROUTED: after(DAYS, 20)}, 30, [*BOTH, ("PhasewatchMismatch", TICKET)]),
    # 0.7 % for five hours: slow, but in three days it would be too much
    "mismatch-slow": ({MISROUTED: after(DAYS - 270, 0.8, 510)}, 30,
                      [("PhasewatchMismatch", PAGE), ("PhasewatchMismatch", TICKET)]),
    # 0.2 % for all of the time
    "mismatch-small": ({MISROUTED: steady(0.2)}, 30, [("PhasewatchMismatch", TICKET)]),
    "drain-failure": ({REQUESTS: after(DAYS, 20)}, 30, [("PhasewatchDrainFailure", PAGE)]),
    # it is over: the short window ends it
    "over": ({MISROUTED: f"0x{DAYS} 0+20x20 420x220"}, 60, [("PhasewatchMismatch", TICKET)]),
    # one of ten connections in the hour: a large share of little
    "scarce": ({OK: steady(0.1), MISROUTED: once(1)}, 10, []),
    "maintenance": ({MISROUTED: after(DAYS, 20), MAINTENANCE: "1x4560"}, 30, []),
    "maintenance-of-another": (
        {MISROUTED: after(DAYS, 20), 'phasewatch_maintenance{workload="blue"}': "1x4560"}, 30,
        [*BOTH, ("PhasewatchMismatch", TICKET)]),
    "maintenance-of-all": ({MISROUTED: after(DAYS, 20), "phasewatch_maintenance": "1x4560"}, 30, []),
    "maintenance-is-over": ({MISROUTED: after(DAYS, 20), "phasewatch_maintenance": "0x4560"}, 30,
                            [*BOTH, ("PhasewatchMismatch", TICKET)]),
    # four drains, noticed after more than 2 s
    "slow-to-settle": ({SETTLE[0]: steady(0), SETTLE[1]: steady(0), SETTLE[2]: once(4),
                        SETTLE[3]: once(4), DRAINS: once(4)}, 30, [("PhasewatchSlowToSettle", TICKET)]),
    "settles-soon": ({s: once(4) for s in [*SETTLE, DRAINS]}, 30, []),
    "one-slow-drain": ({SETTLE[0]: steady(0), SETTLE[1]: steady(0), SETTLE[2]: once(1),
                        SETTLE[3]: once(1), DRAINS: once(1)}, 30, []),
    "flapping": ({f"phasewatch_flaps_total{{{OF}}}": once(3)}, 30, [("PhasewatchFlapping", TICKET)]),
    "two-flaps": ({f"phasewatch_flaps_total{{{OF}}}": f"0x{DAYS} 1x30 2x210"}, 50, []),
    "exit-without-drain": (
        {f'phasewatch_violations_total{{{OF},kind="exit_without_drain"}}': once(1)}, 10,
        [("PhasewatchExitWithoutDrain", TICKET)]),
    "other-violations": ({f'phasewatch_violations_total{{{OF},kind="backward"}}': once(1)}, 10, []),
    "backlog": ({f"phasewatch_backlog_dropped_total{{{OF}}}": once(3)}, 10,
                [("PhasewatchBacklogDropped", TICKET)]),
    "backlog-long-ago": ({f"phasewatch_backlog_dropped_total{{{OF}}}": once(3)}, 40, []),
    "refused": ({f"phasewatch_refused_total{{{OF}}}": once(3)}, 10,
                [("PhasewatchRefusedAfterExit", TICKET)]),
    "two-owners": ({f'phasewatch_subjects{{{OF},phase="ACTIVE",instance="{n}"}}': once(1)
                    for n in ("n1", "n2")} | {f"phasewatch_singleton{{{OF}}}": "1x4560"}, 20,
                   [("PhasewatchLeaderOverlap", PAGE)]),
    "two-owners-of-many": ({f'phasewatch_subjects{{{OF},phase="ACTIVE",instance="{n}"}}': once(1)
                            for n in ("n1", "n2")}, 20, []),
    "lost": ({'phasewatch_events_lost_total{instance="n1",type="accept",stage="ring"}': once(5)}, 10,
             [("PhasewatchRecordsLost", TICKET)]),
    "down": ({UP: f"1x{DAYS} 0x240"}, 20, [("PhasewatchDown", TICKET)]),
    "down-for-a-moment": ({UP: f"1x{DAYS} 0x3 1x240"}, 20, []),
    "absent": ({UP: f"1x{DAYS} _x240"}, 30, [("PhasewatchAbsent", TICKET)]),
}  # fmt: skip


def test_rules():
    promtool("check", "rules", RULES)


@pytest.mark.parametrize("case", CASES)
def test_alert(tmp_path, case):
    series, minute, alerts = CASES[case]
    assert_firing(tmp_path, QUIET | series, DAYS + minute, alerts)


def test_each_alert_has_a_case():
    named = {name for _, _, alerts in CASES.values() for name, _ in alerts}
    assert named == {r["alert"] for r in all_rules() if "alert" in r}


def test_each_alert_has_a_runbook():
    for rule in all_rules():
        if "alert" in rule:
            book = REPO / rule["annotations"]["runbook_url"]
            assert rule["alert"] in book.read_text(), book


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
                "eval_time": "61m",
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
