# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Events against what the clients know."""

import time
from pathlib import Path

import peers


def now_ns():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def ports(connections):
    return sorted(c.src[1] for c in connections)


def by_src_port(events):
    return {e["src"]["port"]: e for e in events}


def accepts(events, made, subject, acceptor=None, phase="DRAIN", since=0, seen_by=("accept",)):
    """Exactly one misrouted accept event for each connection: `made` are the clients' own records,
    `subject` the declared pid, `since` when its phase was declared, at the earliest. Who
    accepted is in the records, or is `acceptor`."""
    events = [e for e in events if e["type"] == "accept"]
    assert sorted(e["src"]["port"] for e in events) == ports(made)
    found = by_src_port(events)
    longest = now_ns() - since
    for one in made:
        event = found[one.src[1]]
        assert (event["src"]["addr"], event["src"]["port"]) == one.src, event
        assert (event["dst"]["addr"], event["dst"]["port"]) == one.dst, event
        assert event["process"]["pid"] == (acceptor or one.acceptor), event
        assert event["subject"]["id"] == subject, event
        assert event["phase"] == phase, event
        assert event["verdict"] == "misrouted", event
        assert 0 < event["phase_age_ns"] < longest, event
        assert event["seen_by"] in seen_by, event
        if event["seen_by"] == "release":
            assert "queue_ns" not in event, event
        else:
            assert 0 <= event["queue_ns"] < longest, event


def process(shown, pid):
    """The process block of an event, while that process is still there."""
    assert shown["pid"] == pid
    # /proc shows whole clock ticks.
    assert 0 <= shown["start_ns"] - peers.start_ns(pid) < 10**7, shown
    assert shown["comm"] == Path(f"/proc/{pid}/comm").read_text().rstrip("\n")
    assert shown["exe"] == str(Path(f"/proc/{pid}/exe").readlink())
    own = [line for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if "0::" in line]
    assert shown["cgroup"] == own[0].partition("0::")[2]


class Counts:
    """What the counters gained since this was made, in ps and in /metrics."""

    def __init__(self, daemon, pid):
        self.daemon = daemon
        self.pid = pid
        self.metrics = daemon.metrics()
        subject = daemon.subjects().get(pid, {})
        self.subject = {key: subject.get(key, 0) for key in self.SHOWN}

    SHOWN = ("accepts", "accepts_misrouted", "connects", "connects_misrouted")

    def gained(self, phase):
        """(connections, misrouted) of accepts and connects in this phase, by the metrics. ps does
        not tell phases apart; its sums must agree."""
        subject = self.daemon.subject(self.pid)
        metrics = self.daemon.metrics()
        gained = {}
        for direction in ("accept", "connect"):

            def more(name, **labels):
                return metrics.sum(name, **labels) - self.metrics.sum(name, **labels)

            def connections(**labels):
                return more("phasewatch_connections_total", direction=direction, **labels)

            total = connections(phase=phase)
            misrouted = connections(phase=phase, verdict="misrouted")
            assert more("phasewatch_misrouted_total", type=direction, phase=phase) == misrouted
            shown = [subject[k] - self.subject[k] for k in self.SHOWN if k.startswith(direction)]
            declared = connections() - connections(phase="UNDECLARED")
            assert shown == [declared, connections(verdict="misrouted")], direction
            gained[direction] = (total, misrouted)
        return gained
