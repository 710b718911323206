# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Start, restart, failure at start, and what is left of it all: nothing."""

import contextlib
import signal
import socket
import subprocess
import threading

import harness
import pytest
from expect import Counts, accepts, now_ns
from harness import DEADLINE, Daemon, assert_nothing_left, loaded
from peers import Held, connect_and_ask


@pytest.fixture(scope="module", autouse=True)
def alone(daemon):
    """The shared daemon is started before any test here takes stock of what is loaded."""


def run_fails(daemon, *prefix):
    """`phasewatch run` that must not come up: its exit code, what it said, and nothing left."""
    before = loaded()
    done = subprocess.run(
        [*prefix, *daemon.command()], capture_output=True, text=True, timeout=DEADLINE
    )
    assert_nothing_left(before, daemon.pin_dir)
    assert done.stderr, "it says why"
    return done.returncode, done.stderr


# Start and end ------------------------------------------------------------------------------


def test_unload_leaves_nothing(own_daemon, server):
    before = loaded()
    own_daemon.start()
    s = server("nginx")
    watch = own_daemon.watch()
    own_daemon.declare("DRAIN", s.pid)
    connect_and_ask("127.0.0.1", s.port, 37)
    assert len(watch.collect("accept")) == 37
    ours = loaded() - before
    assert {kind for kind, _, _ in ours} == {"prog", "map", "link"}
    assert own_daemon.stop() == 0
    assert not own_daemon.socket.exists()
    kept = loaded() - before
    assert {kind for kind, _, _ in kept} == {"prog", "map", "link"}, "observing goes on"
    assert own_daemon.unload().returncode == 0
    assert_nothing_left(before, own_daemon.pin_dir)


def test_unload_of_nothing(own_daemon):
    assert own_daemon.unload().returncode == 0
    assert not own_daemon.pin_dir.exists()


def test_unload_under_the_daemon(own_daemon):
    """Either it is refused and all goes on, or the daemon ends as well; nothing in between."""
    before = loaded()
    own_daemon.start()
    done = own_daemon.unload()
    if done.returncode:
        assert own_daemon.get("/healthz").strip() == "ok"
        assert own_daemon.pin_dir.exists()
        return
    own_daemon.process.wait(DEADLINE)
    assert_nothing_left(before, own_daemon.pin_dir)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(own_daemon, number):
    own_daemon.start()
    assert own_daemon.end(number) == 0


def test_follower_learns_that_the_daemon_has_gone(own_daemon):
    own_daemon.start()
    follower = own_daemon.watch().follower
    own_daemon.process.send_signal(signal.SIGTERM)
    assert follower.process.wait(DEADLINE) == 3


def test_bpffs_is_mounted_where_it_is_missing(own_daemon):
    """In a mount namespace of its own, where it is unmounted first."""
    before = loaded()
    script = """
        umount --all-targets --recursive /sys/fs/bpf
        pins=$1
        shift
        "$@" &
        trap 'kill $!' TERM
        wait
        wait $! && ls "$pins"
    """
    own_daemon.process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(own_daemon.pin_dir),
         *own_daemon.command()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    harness.wait_until(own_daemon.ready, "the daemon is there")
    own_daemon.process.terminate()
    pins, said = own_daemon.process.communicate(timeout=DEADLINE)
    assert "pw_phases" in pins.split(), said
    # The namespace has taken the mount and its pins along.
    assert_nothing_left(before, own_daemon.pin_dir)


def test_events_come_at_once(own_daemon, server):
    """Requests look at the ring buffer as well, and may take away what the daemon was woken for: it
    goes on to look by itself."""
    own_daemon.start()
    s = server("blocking")
    own_daemon.declare("DRAIN", s.pid)
    follower = own_daemon.watch().follower
    enough = threading.Event()

    def ask():
        while not enough.is_set():
            own_daemon.get("/v1/subjects")

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for one in asking:
        one.start()
    for _ in range(211):
        connect_and_ask("127.0.0.1", s.port, 1)
    enough.set()
    for one in asking:
        one.join()
    began = now_ns()
    for _ in range(7):
        follower.mark()
    assert now_ns() - began < 7 * 5 * 10**8


# Refusals -----------------------------------------------------------------------------------


def test_second_daemon(own_daemon, directories, server):
    """On the same pin directory: refused, and the first one does not notice."""
    own_daemon.start()
    s = server("blocking")
    watch = own_daemon.watch()
    own_daemon.declare("DRAIN", s.pid)
    before = loaded()
    second = Daemon(directories(), own_daemon.binary)
    second.pin_dir = own_daemon.pin_dir
    done = subprocess.run(second.command(), capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    assert str(own_daemon.pin_dir) in done.stderr
    assert_nothing_left(before, second.directory / "pins")
    assert not second.socket.exists()
    made = connect_and_ask("127.0.0.1", s.port, 23)
    accepts(watch.collect(), made, s.pid)


def test_second_daemon_on_the_same_socket(own_daemon, directories):
    own_daemon.start()
    second = Daemon(directories(), own_daemon.binary, name="second")
    second.socket = own_daemon.socket
    code, said = run_fails(second)
    assert code == 1
    assert str(own_daemon.socket) in said
    assert own_daemon.get("/healthz").strip() == "ok"


def test_stale_socket_file(own_daemon):
    """What kill -9 left behind is in nobody's way."""
    own_daemon.start()
    own_daemon.kill()
    assert own_daemon.socket.exists()
    own_daemon.start()


def test_port_in_use(own_daemon):
    with socket.create_server(("127.0.0.1", own_daemon.port)):
        code, said = run_fails(own_daemon)
    assert code == 1
    assert f"127.0.0.1:{own_daemon.port}" in said
    assert not own_daemon.socket.exists()


@pytest.mark.parametrize("what", ["directory missing", "not a directory"])
def test_socket_that_cannot_be(own_daemon, tmp_path, what):
    (tmp_path / "file").write_text("")
    own_daemon.socket = tmp_path / "file" / "x" if what == "not a directory" else "/proc/nothing/x"
    code, said = run_fails(own_daemon)
    assert code == 1
    assert str(own_daemon.socket) in said


@pytest.mark.parametrize("where", ["/proc/nothing/x", "phasewatch.sock"])
def test_notify_socket_that_cannot_be(own_daemon, where):
    where = own_daemon.directory / where
    own_daemon.options = ["--notify-socket", str(where)]
    code, said = run_fails(own_daemon)
    assert code == 1
    assert str(where) in said
    assert not own_daemon.socket.exists()


@pytest.mark.parametrize("where", ["/proc/phasewatch", "/sys/kernel/phasewatch"])
def test_pin_dir_that_cannot_be(own_daemon, where):
    own_daemon.pin_dir = harness.Path(where)
    code, said = run_fails(own_daemon)
    assert code == 1
    assert where in said


def test_without_rights(own_daemon):
    """No capability at all."""
    code, said = run_fails(
        own_daemon, "setpriv", "--inh-caps=-all", "--ambient-caps=-all", "--bounding-set=-all"
    )
    assert code == 1
    assert "CAP_BPF" in said


@pytest.mark.parametrize("missing", ["bpf", "perfmon", "net_admin"])
def test_without_one_right(own_daemon, missing):
    """Not even CAP_SYS_ADMIN, which would stand in for it."""
    drop = f"--bounding-set=-sys_admin,-{missing}"
    before = loaded()
    process = subprocess.Popen(
        ["setpriv", drop, *own_daemon.command()], stderr=subprocess.PIPE, text=True
    )
    own_daemon.process = process
    with contextlib.suppress(AssertionError):
        harness.wait_until(own_daemon.ready, "up")
    if process.poll() is None:
        process.terminate()
    _, said = process.communicate(timeout=DEADLINE)
    assert f"CAP_{missing.upper()}" in said
    assert process.returncode == 1
    assert_nothing_left(before, own_daemon.pin_dir)


@pytest.mark.parametrize(
    "options",
    [
        ["--listen", "nonsense"],
        ["--listen", "127.0.0.1"],
        ["--listen", "127.0.0.1:65536"],
        ["--listen", "127.0.0.1:-1"],
        ["--listen", "999.0.0.1:9464"],
        ["--socket", "x" * 108],
        ["--socket", ""],
        ["--pin-dir", ""],
        ["--grace", "-1s"],
        ["--grace", "soon"],
        ["--nonsense"],
        ["extra"],
    ],
    ids=lambda options: " ".join(options)[:40],
)
def test_bad_options(own_daemon, options):
    own_daemon.options = options
    code, said = run_fails(own_daemon)
    assert code == 2
    assert len(said.splitlines()) == 1


# Restart ------------------------------------------------------------------------------------


def misrouted_events(daemon, pid):
    """Also what the kernel kept while no daemon was there; `recent` is what was delivered."""
    return [e for e in daemon.recent() if e["type"] == "accept" and e["subject"]["id"] == pid]


def always(found):
    """Without the links of the hooks that the daemon itself attaches while something drains."""
    return {x for x in found if x[0] != "link" or x[2] not in ("pw_recv", "pw_send")}


@pytest.mark.parametrize("kind", ["prefork", "node"])
@pytest.mark.parametrize("end", ["stop", "kill"])
def test_takeover(own_daemon, server, end, kind):
    """The kernel half goes on alone: no connection is lost to the counters or the stream. Without
    the daemon node's accepts with a NULL address may be seen as late as its close."""
    s = server(kind)
    own_daemon.start()
    own_daemon.declare("ACTIVE", s.pid, "--epoch", "7", "--reason", "before")
    connect_and_ask("127.0.0.1", s.port, 23)
    harness.wait_until(lambda: own_daemon.subject(s.pid)["accepts"] == 23, "23 accepts")
    since = now_ns()
    own_daemon.declare("DRAIN", s.pid)
    counts = Counts(own_daemon, s.pid)
    before = loaded()
    first = connect_and_ask("127.0.0.1", s.port, 37)
    getattr(own_daemon, end)()

    alone = connect_and_ask("127.0.0.1", s.port, 101)
    own_daemon.start()
    after = connect_and_ask("127.0.0.1", s.port, 23)
    watch = own_daemon.watch()
    harness.wait_until(lambda: own_daemon.subject(s.pid)["accepts"] >= 184, "184 accepts")
    watch.collect()
    assert counts.gained("DRAIN")["accept"] == (161, 161)
    subject = own_daemon.subject(s.pid)
    assert (subject["accepts"], subject["accepts_misrouted"]) == (184, 161)
    assert (subject["phase"], subject["subject"]["epoch"]) == ("DRAIN", 7)
    assert subject["members"] == (4 if kind == "prefork" else 1)
    # The first 37 may have been delivered by the first daemon, which is gone.
    seen = {e["src"]["port"] for e in misrouted_events(own_daemon, s.pid)}
    events = [
        e
        for e in misrouted_events(own_daemon, s.pid)
        if e["src"]["port"] not in {c.src[1] for c in first}
    ]
    assert seen >= {c.src[1] for c in alone}
    ways = ("accept",) if kind == "prefork" else ("accept", "first_io", "release")
    accepts(events, alone + after, s.pid, since=since, seen_by=ways)
    assert always(before) <= loaded(), "the pinned programs and maps are used again"


def test_takeover_keeps_refusing(own_daemon, actor):
    """Epochs and phases are in the map, not in the daemon."""
    one = actor()
    own_daemon.start()
    own_daemon.declare("DRAIN", one.pid, "--epoch", "7")
    own_daemon.kill()
    own_daemon.start()
    for options in (["DRAIN", "--epoch", "6"], ["ACTIVE"]):
        done = own_daemon.cli("declare", *options, "--pid", str(one.pid))
        assert done.returncode == 4, done


def test_takeover_says_what_is_off(own_daemon):
    """Nothing that the first start did not: what another hook does is not off."""

    def off():
        said = own_daemon.said().splitlines()
        return {line for line in said if " is off (" in line}

    own_daemon.start()
    first = off()
    own_daemon.kill()
    own_daemon.start()
    assert off() == first


def test_takeover_sees_forks_and_exits(own_daemon, server):
    """Workers that were replaced while no daemon was there."""
    s = server("prefork")
    old = {s.line()["worker"] for _ in range(3)}
    own_daemon.start()
    own_daemon.declare("DRAIN", s.pid)
    own_daemon.kill()
    for pid in old:
        harness.os.kill(pid, signal.SIGKILL)
    new = {s.line()["worker"] for _ in range(3)}
    own_daemon.start()
    watch = own_daemon.watch()
    made = connect_and_ask("127.0.0.1", s.port, 37)
    assert {c.acceptor for c in made} <= new
    accepts(watch.collect(), made, s.pid)
    gone = {e["process"]["pid"] for e in own_daemon.recent() if e["type"] == "exit"}
    assert gone >= old
    assert own_daemon.subject(s.pid)["members"] == 4


def test_seq_goes_on_after_a_restart(own_daemon, actor):
    own_daemon.start()
    watch = own_daemon.watch()
    one = actor()
    own_daemon.declare("ACTIVE", one.pid)
    last = watch.collect("phase")[-1]["seq"]
    own_daemon.stop()
    own_daemon.start()
    own_daemon.declare("DRAIN", one.pid)
    assert own_daemon.recent()[-1]["seq"] > last


# Options ------------------------------------------------------------------------------------


def test_grace(own_daemon, server):
    """Within the grace time arrivals are expected: shown, counted apart, not misrouted."""
    own_daemon.options = ["--grace", "1h"]
    own_daemon.start()
    s = server("blocking")
    watch = own_daemon.watch()
    own_daemon.declare("DRAIN", s.pid)
    made = connect_and_ask("127.0.0.1", s.port, 23)
    events = watch.collect("accept")
    assert sorted(e["src"]["port"] for e in events) == sorted(c.src[1] for c in made)
    assert {e["verdict"] for e in events} == {"grace"}
    metrics = own_daemon.metrics()
    assert metrics.connections(direction="accept", phase="DRAIN", verdict="grace") == 23
    assert metrics.misrouted() == 0


def test_probe(daemon):
    before = loaded()
    done = daemon.run("probe")
    assert done.returncode == 0, done.stderr
    assert "pw_sockops" in done.stdout
    assert_nothing_left(before, daemon.directory / "pins")


# The stream ---------------------------------------------------------------------------------


def test_slow_follower_does_not_hold_up_others(own_daemon, actor):
    """One follower never reads; the other one gets everything, and the daemon lives."""
    own_daemon.start()
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(str(own_daemon.socket))
        deaf.sendall(b"GET /v1/events?follow=1 HTTP/1.0\r\n\r\n")
        watch = own_daemon.watch()
        one = actor()
        port = one.call("listen", "127.0.0.1")
        own_daemon.declare("DRAIN", one.pid)
        for _ in range(11):
            with Held("127.0.0.1", port, 101):
                one.call("accept", 101)
                one.call("close_connections")
        assert len(watch.collect("accept")) == 1111


def test_lost_events_are_counted(own_daemon, actor):
    """While the daemon is stopped the ring buffer fills. What it cannot hold, or what the follower
    is too slow for, is a `lost` event in its place, and seq has no gap over all of it."""
    own_daemon.start()
    one = actor()
    own_daemon.declare("DRAIN", one.pid)
    watch = own_daemon.watch()
    wanted = 60_000
    own_daemon.process.send_signal(signal.SIGSTOP)
    try:
        one.call("connect_storm", "127.0.0.1", harness.free_port(), wanted)
    finally:
        own_daemon.process.send_signal(signal.SIGCONT)

    def count():
        events = watch.follower.events[watch.first :]
        delivered = sum(e["type"] == "connect" for e in events)
        lost = sum(e.get("by_type", {}).get("connect", 0) for e in events if e["type"] == "lost")
        return delivered, lost

    harness.wait_until(lambda: sum(count()) >= wanted, "each connect is delivered or lost")
    watch.collect()
    delivered, lost = count()
    assert (delivered + lost, delivered > 0, lost > 0) == (wanted, True, True)
    assert own_daemon.subject(one.pid)["connects_misrouted"] == wanted
    metrics = own_daemon.metrics()
    assert metrics.misrouted(type="connect") == wanted
    assert metrics.sum("phasewatch_events_lost_total", type="connect", stage="ring") > 0
