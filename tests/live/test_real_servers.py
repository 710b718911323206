# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Real servers from DRAIN to their end, against what clients of them counted."""

import os
import re
import signal
import threading
from collections import Counter
from pathlib import Path

import expect
import peers
import pytest
import real
from harness import DEADLINE, free_port, wait_until

KINDS = list(real.SERVERS_BY_KIND)

# How each is stopped, so that requests under way are answered first; and at once. What is at once
# leaves it to the kernel to close the connections: then they are abandoned. (Apache's takes seconds
# and is that of its children's threads; gunicorn's Python closes them on its way out.)
GRACEFUL = {
    "nginx": "SIGQUIT",
    "haproxy": "SIGUSR1",
    "apache": "SIGWINCH",
    "gunicorn": "SIGTERM",
    "node": "SIGTERM",
    "postgres": "SIGTERM",
}
AT_ONCE = {"nginx": "SIGTERM", "haproxy": "SIGTERM", "postgres": "SIGINT", "redis": "SIGTERM"}
ENDS = [
    *((kind, how, True) for kind, how in GRACEFUL.items()),
    *((kind, how, False) for kind, how in AT_ONCE.items()),
    *((kind, "SIGKILL", False) for kind in KINDS),
]
END = pytest.mark.parametrize("kind, how, graceful", ENDS)


@pytest.fixture
def serve(directories):
    """Makes a server by kind: it, and the class of its clients."""
    made = []

    def make(kind):
        server, client = real.serve(kind, directories())
        made.append(server)
        return server, client

    yield make
    for server in made:
        server.stop()


def stop(server, how):
    if how == "SIGKILL":
        os.killpg(server.pid, signal.SIGKILL)
    else:
        os.kill(server.pid, getattr(signal, how))


def next_tick():
    begin = expect.now_ns()
    wait_until(lambda: expect.now_ns() > begin + 10**7, "10 ms have passed")


@END
def test_end_of_life(daemon, watch, serve, kind, how, graceful):
    """Seven idle connections, three with half a request; then DRAIN; then five requests on two of
    the idle ones, and eleven new connections, six of which their clients close; then the end; then
    three more clients."""
    server, client = serve(kind)
    daemon.declare("ACTIVE", server.pid)
    idle = [client(server.port) for _ in range(7)]
    busy = [client(server.port) for _ in range(3)]
    assert {c.ask() for c in (*idle, *busy)} == {"ok"}
    next_tick()
    for c in busy:
        c.begin()
    daemon.declare("DRAIN", server.pid)

    late = Counter(idle[i].ask() for i in (0, 1, 0, 1, 1))
    new = [client(server.port) for _ in range(11)]
    assert {c.opened for c in new} == {"ok"}
    assert late + Counter(c.ask() for c in new) == {"ok": 5 + 11}
    for c in new[5:]:
        c.close()
    kept = [*idle, *new[:5]]
    if graceful and kind == "postgres":
        # A smart shutdown waits until all have gone.
        for c in kept:
            c.close()
    stop(server, how)
    if graceful:
        assert Counter(c.finish() for c in busy) == {"ok": 3}
        for c in busy:
            c.close()
    else:
        kept += busy
    if not (graceful and kind == "postgres"):
        assert Counter(c.outcome() for c in kept) == {"closed": len(kept)}
    server.process.wait(DEADLINE)
    wait_until(lambda: not group_exists(server.pid), f"all processes of {kind} are gone")
    assert Counter(client(server.port).opened for _ in range(3)) == {"refused": 3}

    events = watch.collect()
    abandoned = 0 if graceful else len(kept)
    expected = Counter(accept=11, request=5, abandon=abandoned, refused=3)
    assert expect.counted(events) == +expected
    assert sorted(e["src"]["port"] for e in expect.of_type(events, "accept")) == sorted(
        c.port for c in new
    )
    requests = Counter(e["src"]["port"] for e in expect.of_type(events, "request"))
    assert requests == {idle[0].port: 2, idle[1].port: 3}
    left = {c.port: c for c in kept}
    # PostgreSQL's processes, each a session of its own, tell their clients that this is the end.
    unanswered = set() if kind == "postgres" else {c.port for c in busy}
    for event in expect.of_type(events, "abandon"):
        one = left[event["src"]["port"]]
        assert event["how"] == "fin", event
        assert event["busy"] == (one.port in unanswered), event
        assert (event["bytes_in"], event["bytes_out"]) == (one.sent, one.received), event
    expect_report(daemon, server.pid, expected, busy=0 if graceful else len(unanswered))


def expect_report(daemon, pid, expected, busy):
    wait_until(
        lambda: daemon.report(pid)["refused"]["count"] == expected["refused"],
        lambda: f"{expected['refused']} refused in {daemon.report(pid)}",
    )
    report = daemon.report(pid)
    assert report["arrivals"]["misrouted"] == expected["accept"]
    assert report["requests"]["misrouted"] == expected["request"]
    assert report["abandoned"]["total"] == expected["abandon"]
    assert report["abandoned"]["busy"] == busy
    assert report["backlog_dropped"] == expected["backlog"]
    assert report["inflight"]["start"] == 10


def group_exists(pid):
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


def halt(server):
    """Stops all its processes, as Ctrl-Z does."""
    os.killpg(server.pid, signal.SIGSTOP)

    def stopped():
        stats = [s.read_text() for s in Path("/proc").glob("[0-9]*/task/[0-9]*/stat")]
        fields = [stat.rpartition(")")[2].split() for stat in stats]
        return {state for state, _, group, *_ in fields if int(group) == server.pid} == {"T"}

    wait_until(stopped, "all its processes are stopped")


@END
def test_end_with_a_queue(daemon, watch, serve, kind, how, graceful):
    """Seventeen clients connect while the server does not run and send a request; then it is
    told to end and runs on. Which of them it accepts is its own affair: each is accepted or
    dropped, and each reset that a client saw is accounted for."""
    server, client = serve(kind)
    daemon.declare("ACTIVE", server.pid)
    assert client(server.port).ask() == "ok"
    daemon.declare("DRAIN", server.pid)
    halt(server)
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
