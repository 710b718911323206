# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Arrivals at a drain that count against nobody: probes, scrapes, those within the grace time."""

import socket
import subprocess
from pathlib import Path

import pytest
from harness import DEADLINE
from peers import Held, ask, connect_and_ask

PROBER = "127.0.0.7"
OWN_COMM = Path("/proc/self/comm").read_text().rstrip("\n")


def ask_from(source, port, count):
    """The clients' ports."""
    made = []
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", port), DEADLINE, (source, 0)) as sock:
            made.append(sock.getsockname()[1])
            ask(sock)
    return made


def ask_for_ports(port, count):
    return [c.src[1] for c in connect_and_ask("127.0.0.1", port, count)]


def verdicts(watch):
    """Of accepts: {verdict: the clients' ports}."""
    found = {}
    for event in watch.collect("accept"):
        assert event["phase"] == "DRAIN", event
        found.setdefault(event["verdict"], []).append(event["src"]["port"])
    return {verdict: sorted(ports) for verdict, ports in found.items()}


def check(daemon, watch, pids, **expected):
    """Of the subjects together, exactly these clients' ports for each verdict: in events, in ps and
    in the metrics."""
    assert verdicts(watch) == {verdict: sorted(ports) for verdict, ports in expected.items()}
    misrouted = len(expected.get("misrouted", []))
    subjects = daemon.subjects()
    assert sum(subjects[pid]["accepts"] for pid in pids) == sum(map(len, expected.values()))
    assert sum(subjects[pid]["accepts_misrouted"] for pid in pids) == misrouted
    metrics = daemon.metrics()
    for verdict in ("misrouted", "grace", "ignored"):
        shown = metrics.connections(direction="accept", phase="DRAIN", verdict=verdict)
        assert shown == len(expected.get(verdict, [])), verdict
    assert metrics.misrouted(type="accept") == misrouted


def start(daemon, *options):
    daemon.options = list(options)
    daemon.start()
    return daemon.watch()


@pytest.mark.parametrize("peer", [PROBER, f"{PROBER}/32", "127.0.0.4/30"])
def test_peer(own_daemon, server, peer):
    s = server("blocking")
    watch = start(own_daemon, "--ignore-peer", peer)
    own_daemon.declare("DRAIN", s.pid)
    ignored = ask_from(PROBER, s.port, 23)
    check(own_daemon, watch, [s.pid], ignored=ignored)
    assert own_daemon.subject(s.pid)["accepts_misrouted"] == 0
    assert own_daemon.metrics().misrouted() == 0

    # the next address is outside of each of them
    misrouted = ask_from("127.0.0.8", s.port, 3) + ask_from("127.0.0.3", s.port, 4)
    check(own_daemon, watch, [s.pid], ignored=ignored, misrouted=misrouted)


def test_peer_of_a_dual_stack_listener(own_daemon, server):
    """There IPv4 arrives as ::ffff:a.b.c.d."""
    s = server("blocking", "::")
    watch = start(own_daemon, "--ignore-peer", PROBER)
    own_daemon.declare("DRAIN", s.pid)
    ignored = ask_from(PROBER, s.port, 23)
    misrouted = ask_for_ports(s.port, 7)
    check(own_daemon, watch, [s.pid], ignored=ignored, misrouted=misrouted)


def test_all_of_ipv4_is_not_ipv6(own_daemon, server):
    s = server("blocking", "::")
    watch = start(own_daemon, "--ignore-peer", "0.0.0.0/0")
    own_daemon.declare("DRAIN", s.pid)
    ignored = ask_for_ports(s.port, 23)
    misrouted = [c.src[1] for c in connect_and_ask("::1", s.port, 7)]
    check(own_daemon, watch, [s.pid], ignored=ignored, misrouted=misrouted)


def test_ipv6_peer(own_daemon, server):
    s = server("blocking", "::")
    watch = start(own_daemon, "--ignore-peer", "::1/128")
    own_daemon.declare("DRAIN", s.pid)
    ignored = [c.src[1] for c in connect_and_ask("::1", s.port, 23)]
    misrouted = ask_for_ports(s.port, 7)
    check(own_daemon, watch, [s.pid], ignored=ignored, misrouted=misrouted)


def test_port(own_daemon, server):
    probed, other = server("blocking"), server("blocking")
    watch = start(own_daemon, "--ignore-port", str(probed.port))
    for s in (probed, other):
        own_daemon.declare("DRAIN", s.pid)
    ignored = ask_for_ports(probed.port, 23)
    check(own_daemon, watch, [probed.pid, other.pid], ignored=ignored)
    assert own_daemon.metrics().misrouted() == 0

    misrouted = ask_for_ports(other.port, 7)
    check(own_daemon, watch, [probed.pid, other.pid], ignored=ignored, misrouted=misrouted)
    assert own_daemon.subject(probed.pid)["accepts_misrouted"] == 0
    assert own_daemon.subject(other.pid)["accepts_misrouted"] == 7


def test_client(own_daemon, listening, client):
    """By the name of the program, which only a client on this node has."""
    one, other = listening(), client()
    watch = start(own_daemon, "--ignore-client", OWN_COMM)
    own_daemon.declare("DRAIN", one.pid)
    with Held("127.0.0.1", one.port, 23) as held:
        one.call("accept", 23)
        check(own_daemon, watch, [one.pid], ignored=held.ports)
        assert own_daemon.metrics().misrouted() == 0

        misrouted = [other.call("connect", "127.0.0.1", one.port, True)["port"] for _ in range(7)]
        one.call("accept", 7)
        check(own_daemon, watch, [one.pid], ignored=held.ports, misrouted=misrouted)


def test_part_of_a_name_is_not_the_name(own_daemon, server):
    s = server("blocking")
    watch = start(
        own_daemon, "--ignore-client", OWN_COMM[:-1], "--ignore-client", f"{OWN_COMM}x"[:15]
    )
    own_daemon.declare("DRAIN", s.pid)
    check(own_daemon, watch, [s.pid], misrouted=ask_for_ports(s.port, 7))


def test_last_of_many(own_daemon, server):
    s = server("blocking")
    options = [f"--ignore-peer=192.0.2.{i}" for i in range(15)]
    watch = start(own_daemon, *options, f"--ignore-peer={PROBER}")
    own_daemon.declare("DRAIN", s.pid)
    ignored = ask_from(PROBER, s.port, 23)
    check(own_daemon, watch, [s.pid], ignored=ignored, misrouted=ask_for_ports(s.port, 7))


def test_without_the_option_after_a_takeover(own_daemon, server):
    """What the daemon before it was to ignore is not ignored for ever."""
    s = server("blocking")
    start(own_daemon, "--ignore-peer", PROBER)
    own_daemon.stop()
    watch = start(own_daemon)
    own_daemon.declare("DRAIN", s.pid)
    check(own_daemon, watch, [s.pid], misrouted=ask_from(PROBER, s.port, 7))


def test_grace(own_daemon, server):
    s = server("blocking")
    watch = start(own_daemon, "--grace", "1h")
    own_daemon.declare("DRAIN", s.pid)
    grace = ask_from(PROBER, s.port, 23) + ask_for_ports(s.port, 7)
    check(own_daemon, watch, [s.pid], grace=grace)
    assert own_daemon.metrics().misrouted() == 0


@pytest.mark.parametrize(
    "option, value",
    [
        ("--ignore-peer", "nonsense"),
        ("--ignore-peer", ""),
        ("--ignore-peer", "127.0.0.7/33"),
        ("--ignore-peer", "127.0.0.7/"),
        ("--ignore-peer", "127.0.0.7/-1"),
        ("--ignore-peer", "127.0.0"),
        ("--ignore-peer", "::1/129"),
        ("--ignore-peer", "::/0"),
        ("--ignore-port", "0"),
        ("--ignore-port", "65536"),
        ("--ignore-port", "-1"),
        ("--ignore-port", "http"),
        ("--ignore-port", ""),
        ("--ignore-client", ""),
        ("--ignore-client", "sixteen-bytes-xx"),
    ],
)
def test_bad_values(own_daemon, option, value):
    """Refused after a good one as well, and by its name."""
    good = {"--ignore-peer": PROBER, "--ignore-port": "80", "--ignore-client": "curl"}[option]
    refused(own_daemon, option, value, [option, good, option, value])


@pytest.mark.parametrize(
    "option, value",
    [("--ignore-peer", "192.0.2.{}"), ("--ignore-port", "80{}"), ("--ignore-client", "prober-{}")],
)
def test_too_many(own_daemon, option, value):
    values = [value.format(i) for i in range(17)]
    refused(own_daemon, option, values[-1], [f"{option}={one}" for one in values])


def refused(daemon, option, value, options):
    daemon.options = options
    done = subprocess.run(daemon.command(), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1
    assert "--ignore-" in done.stderr and f"'{value}'" in done.stderr, (option, done.stderr)
    assert not daemon.socket.exists()
    assert not daemon.pin_dir.exists()
