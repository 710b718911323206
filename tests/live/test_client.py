# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Who opened a connection, where that is a process on this node."""

import subprocess

import expect
import pytest
from harness import free_port
from peers import QUESTION


@pytest.mark.parametrize("where", ["here", "namespace"])
def test_client(daemon, watch, listening, client, netns, where):
    """One that connects before the drain, one during it, one after the exit."""
    address = netns.far if where == "namespace" else "127.0.0.1"
    near, far = (netns.inside, netns.outside) if where == "namespace" else ((), ())
    one = listening(address, far)
    early, late, tardy = client(near), client(near), client(near)
    daemon.declare("ACTIVE", one.pid)

    early_ports = [early.call("connect", address, one.port, True)["port"] for _ in range(3)]
    one.call("accept", 3)
    daemon.declare("DRAIN", one.pid)
    late_ports = [late.call("connect", address, one.port, True)["port"] for _ in range(5)]
    one.call("accept", 5)
    early.call("send", [0, 1, 2], QUESTION)
    one.call("receive", [0, 1, 2], QUESTION)
    one.die("exit")
    early.call("ends")
    late.call("ends")
    refused = [tardy.call("connect", address, one.port) for _ in range(2)]
    assert {r["errno"] for r in refused} == {"ECONNREFUSED"}

    events = watch.collect()
    assert expect.counted(events) == {"accept": 5, "request": 3, "abandon": 8, "refused": 2}
    for event in events:
        port = event.get("src", {}).get("port")
        if event["type"] == "refused":
            expect.client(event, tardy)
        elif port in early_ports:
            expect.client(event, early)
        elif port in late_ports:
            expect.client(event, late)


SERVICE = "203.0.113.9"
HOOKS = {"its own node": "output", "the server's node": "prerouting"}


@pytest.mark.parametrize("where", HOOKS)
def test_client_through_dnat(daemon, watch, listening, client, netns, where):
    """It connects to a service's address, as kube-proxy and its like translate it."""
    one = listening(netns.far, netns.outside)
    one.call("rename", "server")
    other = client(netns.inside)
    translator = netns.inside if where == "its own node" else netns.outside
    rules = f"""
        table ip nat {{
            chain translate {{
                type nat hook {HOOKS[where]} priority -100;
                ip daddr {SERVICE} tcp dport 80 dnat to {netns.far}:{one.port}
            }}
        }}"""
    done = subprocess.run(
        [*translator, "nft", "-f", "-"], input=rules, text=True, capture_output=True
    )
    if "Could not process rule" in done.stderr:
        pytest.skip(f"no NAT on this kernel: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    daemon.declare("ACTIVE", one.pid)
    early = [other.call("connect", SERVICE, 80, True)["port"] for _ in range(3)]
    one.call("accept", 3)
    daemon.declare("DRAIN", one.pid)
    late = [other.call("connect", SERVICE, 80, True)["port"] for _ in range(5)]
    one.call("accept", 5)
    other.call("send", [0, 1, 2], QUESTION)
    one.call("receive", [0, 1, 2], QUESTION)
    events = watch.collect()
    assert expect.counted(events) == {"accept": 5, "request": 3}
    for kind, ports in (("accept", late), ("request", early)):
        shown = expect.of_type(events, kind)
        assert [e["src"]["port"] for e in shown] == ports
        for event in shown:
            assert (event["dst"]["addr"], event["dst"]["port"]) == (netns.far, one.port), event
            expect.client(event, other)


def test_clients_on_everybodys_loopback(daemon, watch, listening, client, netns):
    """Two network namespaces, two connections with the same addresses and ports."""
    source, port = free_port(), free_port()
    clients = {}
    for prefix in ((), netns.inside):
        one, other = listening("127.0.0.1", prefix, port=port), client(prefix)
        clients[one.pid] = other
        daemon.declare("DRAIN", one.pid)
        assert other.call("connect", "127.0.0.1", port, True, source)["errno"] is None
        one.call("accept", 1)
    events = expect.of_type(watch.collect(), "accept")
    assert {e["src"]["port"] for e in events} == {source}
    assert len(events) == 2
    for event in events:
        expect.client(event, clients[event["process"]["pid"]])


def test_client_of_a_wildcard_listener(daemon, watch, listening, client):
    one, other = listening("::"), client()
    daemon.declare("DRAIN", one.pid)
    for address in ("127.0.0.1", "::1"):
        other.call("connect", address, one.port, True)
    one.call("accept", 2)
    events = expect.of_type(watch.collect(), "accept")
    assert len(events) == 2
    for event in events:
        expect.client(event, other)


def test_client_that_has_gone(daemon, watch, listening, client):
    """It closed, then exited, before it was accepted."""
    one, other = listening(), client()
    daemon.declare("DRAIN", one.pid)
    for _ in range(5):
        other.call("connect", "127.0.0.1", one.port)
    other.die("exit")
    one.call("accept", 5)
    events = expect.of_type(watch.collect(), "accept")
    assert len(events) == 5
    for event in events:
        shown = event["client"]
        assert (shown["pid"], shown["comm"]) == (other.pid, other.comm), event


def test_clients_of_one_server(daemon, watch, listening, client):
    """Each event names its own."""
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    clients = {}
    for _ in range(7):
        other = client()
        clients[other.call("connect", "127.0.0.1", one.port, True)["port"]] = other
    one.call("accept", 7)
    daemon.declare("DRAIN", one.pid)
    for other in clients.values():
        other.call("send", [0], QUESTION)
    one.call("receive", list(range(7)), QUESTION)
    events = expect.of_type(watch.collect(), "request")
    assert sorted(e["src"]["port"] for e in events) == sorted(clients)
    for event in events:
        expect.client(event, clients[event["src"]["port"]])


def test_reused_port(daemon, watch, listening, client):
    """Who connected from this port during an earlier drain, to another server, is not it."""
    other, one = listening(), listening()
    first, second = client(), client()
    source = free_port()
    daemon.declare("ACTIVE", one.pid)
    daemon.declare("DRAIN", other.pid)
    first.call("connect", "127.0.0.1", other.port, True, source)
    other.call("accept", 1)
    other.die("exit")
    first.die("exit")
    made = second.call("connect", "127.0.0.1", one.port, True, source)
    assert (made["errno"], made["port"]) == (None, source)
    one.call("accept", 1)
    daemon.declare("DRAIN", one.pid)
    second.call("send", [0], QUESTION)
    one.call("receive", [0], QUESTION)
    (event,) = expect.of_type(watch.collect(), "request")
    expect.client(event, second)


def test_client_is_the_draining_process_itself(daemon, watch, listening):
    """A health check of its own, say."""
    one = listening()
    one.call("rename", "itself")
    daemon.declare("DRAIN", one.pid)
    made = one.call("connect", "127.0.0.1", one.port, True)
    one.call("accept", 1)
    (event,) = expect.of_type(watch.collect(), "accept")
    assert event["src"]["port"] == made["port"]
    assert (event["client"]["pid"], event["client"]["comm"]) == (one.pid, "itself")
