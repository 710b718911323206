# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Events against what the clients know."""

from collections import Counter
from pathlib import Path

import peers
from harness import ARRIVALS, LOSSES, now_ns


def of_type(events, kind):
    return [e for e in events if e["type"] == kind]


def counted(events):
    """How many there are of each kind that counts against a drain."""
    return Counter(e["type"] for e in events if e["type"] in ARRIVALS | LOSSES)


def ports(connections):
    return sorted(c.src[1] for c in connections)


def by_src_port(events):
    return {e["src"]["port"]: e for e in events}


def accepts(events, made, subject, acceptor=None, phase="DRAIN", since=0, seen_by=("accept",)):
    """Exactly one misrouted accept event for each connection: `made` are the clients' own records,
    `subject` the declared pid, `since` when its phase was declared, at the earliest. Who
    accepted is in the records, or is `acceptor`, or one of them."""
    acceptors = acceptor if isinstance(acceptor, set) else {acceptor}
    events = [e for e in events if e["type"] == "accept"]
    assert sorted(e["src"]["port"] for e in events) == ports(made)
    found = by_src_port(events)
    longest = now_ns() - since
    for one in made:
        event = found[one.src[1]]
        assert (event["src"]["addr"], event["src"]["port"]) == one.src, event
        assert (event["dst"]["addr"], event["dst"]["port"]) == one.dst, event
        pid = event.get("process", {}).get("pid")
        assert pid in ({one.acceptor} if one.acceptor else acceptors), event
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


def requests(events, kept, late, subject, acceptor=None, drained=0, tracked=True):
    """`late`: how many requests each connection carried since the drain was declared. How old a
    connection is that nobody tracked, because it is older than any declaration, is not known."""
    events = of_type(events, "request")
    now = now_ns()
    expected = {port: n for port, n in zip(kept.ports, late) if n}
    assert Counter(e["src"]["port"] for e in events) == expected
    made = {c.src[1]: c for c in kept.made}
    ages = {}
    for event in events:
        one = made[event["src"]["port"]]
        assert (event["src"]["addr"], event["src"]["port"]) == one.src, event
        assert (event["dst"]["addr"], event["dst"]["port"]) == one.dst, event
        assert event["subject"]["id"] == subject, event
        assert event["process"]["pid"] == (acceptor or subject), event
        assert (event["phase"], event["verdict"]) == ("DRAIN", "misrouted"), event
        assert 0 < event["phase_age_ns"] < now - drained, event
        # It arrived after DRAIN, and that came when all connections were there.
        if not tracked:
            assert "conn_age_ns" not in event, event
            continue
        youngest = max(drained - kept.latest, 0)
        assert youngest <= event["conn_age_ns"] <= now - kept.earliest, event
        assert event["conn_age_ns"] > ages.get(one, 0), event
        ages[one] = event["conn_age_ns"]
    for port in expected:
        numbers = [e["nth"] for e in events if e["src"]["port"] == port]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), port


def abandoned(events, kept, ends, pid, subject=None):
    """`ends`: {the number of a connection: (how, busy)}, all of them."""
    events = of_type(events, "abandon")
    assert sorted(e["src"]["port"] for e in events) == sorted(kept.ports[i] for i in ends)
    found = by_src_port(events)
    now = now_ns()
    for i, (how, busy) in ends.items():
        event = found[kept.ports[i]]
        assert (event["src"]["addr"], event["src"]["port"]) == kept.made[i].src, event
        assert (event["dst"]["addr"], event["dst"]["port"]) == kept.made[i].dst, event
        assert (event["how"], event["busy"]) == (how, busy), (i, event)
        assert event["bytes_in"] == kept.to_server[i], (i, event)
        assert event["bytes_out"] == kept.to_client[i], (i, event)
        assert event["process"]["pid"] == pid, event
        assert event["subject"]["id"] == (subject or pid), event
        assert event["phase"] == "DRAIN", event
        assert 0 < event["conn_age_ns"] <= now - kept.earliest, event


def backlog(events, pid, endpoint, dropped, subject=None):
    (event,) = of_type(events, "backlog")
    assert event["dropped"] == dropped, event
    assert (event["listener"].get("addr"), event["listener"]["port"]) == endpoint, event
    assert event["subject"]["id"] == (subject or pid), event
    assert event["process"]["pid"] == pid, event
    assert event["phase"] == "DRAIN", event
    assert event["phase_age_ns"] > 0, event


def client(event, client):
    shown = event["client"]
    assert (shown["pid"], shown["comm"]) == (client.pid, client.comm), event
    own = [x for x in Path(f"/proc/{client.pid}/cgroup").read_text().splitlines() if "0::" in x]
    assert shown.get("cgroup") in (None, own[0].partition("0::")[2]), event


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
