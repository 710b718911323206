# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Real servers with clients in the way, against what these counted. Their lives are in
test_exactness.py."""

import os
import re
import signal
import threading
from collections import Counter

import expect
import peers
import pytest
import real
from harness import DEADLINE, free_port, wait_until

KINDS = ["nginx", "haproxy", "apache", "gunicorn", "node", "postgres", "redis"]

# How each is stopped, so that requests under way are answered first; and at once.
GRACEFUL = {
    "nginx": "SIGQUIT",
    "haproxy": "SIGUSR1",
    "apache": "SIGWINCH",
    "gunicorn": "SIGTERM",
    "node": "SIGTERM",
    "postgres": "SIGTERM",
}
AT_ONCE = {"nginx": "SIGTERM", "haproxy": "SIGTERM", "postgres": "SIGINT", "redis": "SIGTERM"}
ENDS = [*GRACEFUL.items(), *AT_ONCE.items(), *((kind, "SIGKILL") for kind in KINDS)]


@pytest.fixture
def serve(server):
    """Makes a server by kind: it, and the class of its clients."""
    return lambda kind: (server(kind), real.CLIENTS.get(kind, real.Http))


def stop(server, how):
    if how == "SIGKILL":
        os.killpg(server.pid, signal.SIGKILL)
    else:
        os.kill(server.pid, getattr(signal, how))


def group_exists(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("kind, how", ENDS)
def test_end_with_a_queue(daemon, watch, serve, kind, how):
    """Seventeen clients connect while the server does not run and send a request; then it is
    told to end and runs on. Which of them it accepts is its own affair: each is accepted or
    dropped, and each reset that a client saw is accounted for."""
    server, client = serve(kind)
    daemon.declare("ACTIVE", server.pid)
    assert client(server.port).ask() == "ok"
    daemon.declare("DRAIN", server.pid)
    peers.halt(server)
    waiting = [client(server.port, wait=False) for _ in range(17)]
    assert {c.opened for c in waiting} == {"ok"}
    if client is not real.Postgres:
        for c in waiting:
            c.send(c.REQUEST)
    stop(server, how)
    os.killpg(server.pid, signal.SIGCONT)
    outcomes = {c.port: c.outcome() for c in waiting}
    for c in waiting:
        c.close()
    server.process.wait(DEADLINE)
    wait_until(lambda: not group_exists(server.pid), f"all processes of {kind} are gone")

    events = watch.collect()
    accepted = {e["src"]["port"] for e in expect.of_type(events, "accept")}
    assert accepted <= outcomes.keys()
    dropped = sum(e["dropped"] for e in expect.of_type(events, "backlog"))
    never_accepted = outcomes.keys() - accepted
    assert dropped == len(never_accepted)
    assert {outcomes[port] for port in never_accepted} <= {"reset"}
    cut_off = {e["src"]["port"] for e in expect.of_type(events, "abandon") if e["how"] == "rst"}
    resets = {port for port, outcome in outcomes.items() if outcome == "reset"}
    assert cut_off <= accepted
    assert resets == never_accepted | cut_off
    if how == "SIGKILL":
        assert dropped == 17


RELOADS = {"nginx": "SIGHUP", "haproxy": "SIGUSR2", "apache": "SIGUSR1", "gunicorn": "SIGHUP"}


@pytest.mark.parametrize("kind", RELOADS)
def test_reload(daemon, watch, serve, kind):
    """The master is ACTIVE, so are its new workers: whatever clients see, nothing is misrouted."""
    server, client = serve(kind)
    daemon.declare("ACTIVE", server.pid)
    idle = [client(server.port) for _ in range(7)]
    assert Counter(c.ask() for c in idle) == {"ok": 7}
    old = peers.children(server.pid)
    os.kill(server.pid, getattr(signal, RELOADS[kind]))
    outcomes = Counter()

    def replaced():
        for _ in range(5):
            one = client(server.port)
            outcomes[one.ask() if one.opened == "ok" else one.opened] += 1
            one.close()
        for c in idle:
            c.ask()
        return not peers.children(server.pid) & old

    wait_until(replaced, f"{kind} has new workers only")
    assert outcomes["ok"] > 0
    assert expect.counted(watch.collect()) == {}


# A proxy in front ---------------------------------------------------------------------------


def proxy(directory, to):
    """HAProxy that goes on routing to this port: one connection for each request, no second try, no
    health check."""
    port = free_port()
    config = os.path.join(directory, "proxy.cfg")
    with open(config, "w") as file:
        file.write(f"""
defaults
    mode http
    timeout client 30s
    timeout connect 30s
    timeout server 30s
    option httpclose
    retries 0
frontend main
    bind {real.ADDRESS}:{port}
    default_backend app
backend app
    server one {real.ADDRESS}:{to}
""")
    return real.start(["haproxy", "-db", "-q", "-f", config], port)


class Users(threading.Thread):
    """Asks the proxy, over and over; counts the answers by status."""

    def __init__(self, port):
        super().__init__()
        self.port = port
        self.outcomes = Counter()
        self.enough = threading.Event()

    def run(self):
        while not (self.enough.is_set() and self.outcomes[503] > 10):
            with peers.open_connection(real.ADDRESS, self.port) as sock:
                sock.sendall(peers.REQUEST)
                status = b""
                while data := sock.recv(65536):
                    status += data
            self.outcomes[int(re.match(rb"HTTP/1.\d (\d+)", status)[1])] += 1


@pytest.mark.parametrize("how", ["SIGQUIT", "SIGTERM", "SIGKILL"])
def test_proxy_goes_on_routing(daemon, watch, serve, directories, how):
    """nginx drains and ends under load: what its users saw is what the events say, and the events
    name HAProxy as the client."""
    server, _ = serve("nginx")
    front = proxy(directories(), server.port)
    try:
        daemon.declare("ACTIVE", server.pid)
        daemon.declare("DRAIN", server.pid)
        users = [Users(front.port) for _ in range(3)]
        for one in users:
            one.start()
        wait_until(lambda: all(u.outcomes[200] > 30 for u in users), "users are served")
        stop(server, how)
        server.process.wait(DEADLINE)
        for one in users:
            one.enough.set()
            one.join()
    finally:
        front.stop()
    outcomes = sum((u.outcomes for u in users), Counter())
    assert outcomes.keys() <= {200, 502, 503}
    events = watch.collect()
    kinds = expect.counted(events)
    dropped = sum(
        e["dropped"] + e.get("half_open", 0) for e in expect.of_type(events, "backlog")
    )
    assert kinds["accept"] + dropped + kinds["refused"] == outcomes.total()
    # accepted, and gone before an answer: its request may have been on its way still
    unserved = [e for e in expect.of_type(events, "abandon") if e["bytes_out"] == 0]
    assert dropped + kinds["refused"] + len(unserved) == outcomes[502] + outcomes[503]
    clients = {(e["client"]["comm"], e["client"]["pid"]) for e in events if "client" in e}
    assert clients == {("haproxy", front.pid)}
    report = daemon.report(server.pid)
    assert {(c["comm"], c["pid"]) for c in report["clients"]} == {("haproxy", front.pid)}
