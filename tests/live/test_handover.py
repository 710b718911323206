# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A successor takes over while the old process drains: what it accepts and reads is not late, and
nothing is lost with the old one."""

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import expect
import peers
from harness import SERVERS, wait_until
from peers import ANSWER, QUESTION, Kept, connect_and_ask, fill


def start_wrk(port, seconds, connections):
    url = f"http://127.0.0.1:{port}/"
    return subprocess.Popen(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", url],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_nginx_reloads_under_load(daemon, watch, server):
    """The master is ACTIVE throughout; its old workers end, its new ones accept."""
    s = server("nginx")
    daemon.declare("ACTIVE", s.pid)
    served = 0
    with start_wrk(s.port, 3, 16) as wrk:
        for _ in range(3):
            old = peers.children(s.pid)
            os.kill(s.pid, signal.SIGHUP)

            def replaced():
                nonlocal served
                served += len(connect_and_ask("127.0.0.1", s.port, 7))
                now = peers.children(s.pid)
                return len(now) == len(old) and not now & old

            wait_until(replaced, "nginx has new workers only")
        said, _ = wrk.communicate()
    assert served > 0 and int(re.search(r"(\d+) requests in", said)[1]) > 100
    events = watch.collect()
    assert expect.counted(events) == {}
    assert len(expect.of_type(events, "exit")) == 6


def test_kept_alive_load_while_draining(daemon, watch, server):
    """nginx's access log tells how many requests wrk has had answered since DRAIN, but for those
    that were under way at that moment: one a connection at most. Each is an event or counted in a
    `lost` event."""
    s = server("nginx")
    log = Path(s.directory, "access.log")

    def logged():
        return len(log.read_text().splitlines())

    daemon.declare("ACTIVE", s.pid)
    before = daemon.metrics().misrouted(type="request")
    with start_wrk(s.port, 2, 8) as wrk:
        wait_until(lambda: logged() > 100, "wrk is at work")
        least = logged()
        daemon.declare("DRAIN", s.pid)
        most = logged()
        wrk.communicate()
    late = daemon.metrics().misrouted(type="request") - before
    assert logged() - most - 8 <= late <= logged() - least
    events = watch.collect()
    lost = sum(e["by_type"].get("request", 0) for e in expect.of_type(events, "lost"))
    assert len(expect.of_type(events, "request")) + lost == late
    assert expect.of_type(events, "accept") == []


def activated(listener):
    """A server that inherits its listener, as systemd's socket activation has it."""
    command = [sys.executable, str(SERVERS / "activated.py"), str(listener.fileno())]
    server = peers.Server(command, listener.getsockname()[1], pass_fds=[listener.fileno()])
    server.line()
    return server


def test_socket_activation(daemon, watch):
    """Old and new inherit one listener from a parent that is no subject. Nobody waits in vain: the
    parent keeps it."""
    with socket.create_server(("127.0.0.1", 0), backlog=512) as listener:
        port = listener.getsockname()[1]
        old = activated(listener)
        daemon.declare("ACTIVE", old.pid)
        connect_and_ask("127.0.0.1", port, 7)
        new = activated(listener)
        try:
            daemon.declare("ACTIVE", new.pid)
            daemon.declare("DRAIN", old.pid)
            made = connect_and_ask("127.0.0.1", port, 101)
            theirs = [c for c in made if c.acceptor == old.pid]
            events = watch.collect()
            expect.accepts(events, theirs, old.pid)
            assert expect.counted(events) == ({"accept": len(theirs)} if theirs else {})
            watch = daemon.watch()
            old.stop()
            made = connect_and_ask("127.0.0.1", port, 23)
            assert {c.acceptor for c in made} == {new.pid}
            assert expect.counted(watch.collect()) == {}
        finally:
            old.stop()
            new.stop()


def test_connections_passed_to_the_new_process(daemon, watch, listening, actor):
    """What the new one reads on them is not late."""
    old, new = listening(), actor()
    daemon.declare("ACTIVE", old.pid)
    every = list(range(5))
    with Kept(old, 5) as kept:
        kept.ask(every)
        daemon.declare("ACTIVE", new.pid)
        daemon.declare("DRAIN", old.pid)
        old.hand_over("connections", new)
        for _ in range(3):
            kept.say(every)
            new.call("receive", every, QUESTION)
            new.call("send", every, ANSWER)
            assert [len(s.recv(ANSWER)) for s in kept.sockets] == [ANSWER] * 5
        assert expect.counted(watch.collect()) == {}


def test_reuseport_pair(daemon, watch, actor):
    """Old and new listen on one port, each on its own; only what the old one accepts is late."""
    old, new = actor(), actor()
    port = old.call("listen", "127.0.0.1", 0, 512, True)
    new.call("listen", "127.0.0.1", port, 512, True)
    daemon.declare("ACTIVE", new.pid)
    daemon.declare("DRAIN", old.pid)
    with fill(port, 101) as held:
        old.call("accept_all")
        new.call("accept_all")
        theirs = set(old.call("peer_ports"))
        made = [c for c in held.made if c.src[1] in theirs]
        assert 0 < len(made) < 101
        assert len(made) + len(new.call("peer_ports")) == 101
        events = watch.collect()
        expect.accepts(events, made, old.pid, old.pid)
        assert expect.counted(events) == {"accept": len(made)}


def test_forked_successor(daemon, watch, listening):
    """fork and exec: the child inherits the listener, is declared ACTIVE and goes on; its parent
    drains and exits."""
    old = listening()
    daemon.declare("ACTIVE", old.pid)
    command = [sys.executable, str(SERVERS / "activated.py")]
    successor = old.call("spawn_with_listener", *command)
    try:
        daemon.declare("ACTIVE", successor)
        daemon.declare("DRAIN", old.pid)
        made = connect_and_ask("127.0.0.1", old.port, 23)
        assert {c.acceptor for c in made} == {successor}
        old.die("exit")
        made = connect_and_ask("127.0.0.1", old.port, 23)
        assert {c.acceptor for c in made} == {successor}
        assert expect.counted(watch.collect()) == {}
    finally:
        os.kill(successor, signal.SIGKILL)
