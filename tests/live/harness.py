# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The daemon under test, what it says, and what it leaves behind.

Nothing here sleeps for a guessed time: wait_until() polls a condition until its deadline, and
Follower.collect() uses a marker in the event stream to know that nothing more is to come.
"""

import contextlib
import glob
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

from prometheus_client.openmetrics import parser as openmetrics

REPO = Path(__file__).resolve().parents[2]
BINARY = REPO / "build" / "phasewatch"
SERVERS = Path(__file__).resolve().parent / "servers"
BPFFS = Path("/sys/fs/bpf")
DEADLINE = 20.0
NOBODY = 65534

os.environ["PATH"] += ":/usr/sbin:/sbin"


def wait_until(condition, what, deadline=DEADLINE):
    """Returns the first true value of condition(), or fails naming what (text, or a function that
    makes it) did not happen."""
    end = time.monotonic() + deadline
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            what = what() if callable(what) else what
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(0.005)


def now_ns():
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


EPHEMERAL = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
CANDIDATES = random.sample(range(10000, EPHEMERAL), EPHEMERAL - 10000)


def free_port():
    """One that no client gets by chance before it is listened on, whichever the address."""
    while True:
        port = CANDIDATES.pop()
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as s:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            s.bind(("::", port))
            return port


# What is loaded -----------------------------------------------------------------------------


def bpftool(*args):
    """What bpftool lists. It gives up when something goes away while it
    looks: then it looks again."""

    def listed():
        out = subprocess.run(["bpftool", "-j", *args], capture_output=True, text=True)
        return out if out.returncode == 0 else None

    return json.loads(wait_until(listed, f"bpftool {args}").stdout or "[]")


def loaded():
    """The programs, maps and links of phasewatch that the kernel holds, as (kind, id, name)."""
    ours = re.compile(r"pw_|phasewat").match
    found = {
        (kind, item["id"], item["name"])
        for kind in ("prog", "map")
        for item in bpftool(kind, "list")
        if ours(item.get("name", ""))
    }
    programs = {ident: name for kind, ident, name in found if kind == "prog"}
    found |= {
        ("link", item["id"], programs[item["prog_id"]])
        for item in bpftool("link", "list")
        if item.get("prog_id") in programs
    }
    return found


def opened(pid="[0-9]*"):
    """(kind, id) of all that a process has open, or that all have."""
    found = set()
    for fdinfo in glob.iglob(f"/proc/{pid}/fdinfo/*"):
        with contextlib.suppress(OSError):
            found |= set(re.findall(r"^(prog|map|link)_id:\t(\d+)", Path(fdinfo).read_text(), re.M))
    return {(kind, int(ident)) for kind, ident in found}


def in_use():
    """(kind, id) of all that living processes have open or that is pinned, and what these use:
    another phasewatch may come and go while a test runs."""
    used = opened()
    lists = {kind: bpftool("-f", kind, "list") for kind in ("link", "prog", "map")}
    used |= {(k, item["id"]) for k, items in lists.items() for item in items if "pinned" in item}
    for kind, users, name in (("prog", "link", "prog_id"), ("map", "prog", "map_ids")):
        for item in lists[users]:
            if (users, item["id"]) in used and name in item:
                ids = item[name]
                used |= {(kind, i) for i in (ids if isinstance(ids, list) else [ids])}
    return used


def left_over(before):
    new = loaded() - before
    if not new:
        return new
    used = in_use()
    return {x for x in new & loaded() if x[:2] not in used}


def assert_nothing_left(before, pin_dir):
    """The kernel frees programs and maps a grace period after their last user is gone."""
    assert not Path(pin_dir).exists(), f"pins left: {sorted(Path(pin_dir).iterdir())}"
    wait_until(lambda: not left_over(before), lambda: f"{left_over(before)} is gone")


# The daemon ---------------------------------------------------------------------------------


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=DEADLINE)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # one that does not wait is refused where others wait already
        self.sock.connect(self.path)
        self.sock.settimeout(self.timeout)


class Daemon:
    """`phasewatch run` with a socket, a port and a pin directory of its own."""

    def __init__(self, directory, binary, name="test"):
        self.directory = Path(directory)
        self.binary = binary
        self.socket = self.directory / "phasewatch.sock"
        self.notify_socket = self.directory / "notify.sock"
        self.pin_dir = BPFFS / f"phasewatch-{name}-{os.getpid()}"
        self.port = free_port()
        self.options = []
        self.how = {}  # for Popen
        self.log = self.directory / "daemon.log"
        self.process = None
        self.follower = None

    def command(self):
        return [
            str(self.binary), "run", "--socket", str(self.socket), "--pin-dir", str(self.pin_dir),
            "--listen", f"127.0.0.1:{self.port}", *self.options,
        ]  # fmt: skip

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(), **{"stdout": log, "stderr": log, **self.how}
            )
        wait_until(self.ready, lambda: f"the daemon serves {self.socket}; it says:\n{self.said()}")
        return self

    def ready(self):
        if self.process.poll() is not None:
            code = self.process.returncode
            raise AssertionError(f"the daemon exited with {code}:\n{self.said()}")
        try:
            return self.get("/healthz").strip() == "ok"
        except (OSError, http.client.HTTPException):
            return False

    def said(self):
        return self.log.read_text() if self.log.exists() else ""

    def end(self, number):
        if self.follower:
            self.follower.stop()
            self.follower = None
        self.process.send_signal(number)
        self.process.wait(DEADLINE)
        return self.process.returncode

    def stop(self):
        return self.end(signal.SIGTERM)

    def kill(self):
        return self.end(signal.SIGKILL)

    def unload(self):
        return self.run("unload", "--pin-dir", str(self.pin_dir))

    def remove(self):
        """However far it came, leaves nothing behind."""
        if self.process and self.process.poll() is None:
            self.stop()
        self.unload()
        assert not self.pin_dir.exists(), f"unload left {self.pin_dir}"

    # Asking it

    def run(self, *args, **more):
        """A phasewatch command as it is: the result, with its output as text."""
        return subprocess.run(
            [str(self.binary), *args], capture_output=True, text=True, timeout=DEADLINE, **more
        )

    def cli(self, *args, **more):
        """A command that talks to this daemon."""
        return self.run(args[0], "--socket", str(self.socket), *args[1:], **more)

    def declare(self, phase, pid, *more):
        done = self.cli("declare", phase, "--pid", str(pid), *more)
        assert done.returncode == 0, f"declare {phase} --pid {pid} {more}: {done.stderr}"

    def request(self, method, path, body=None):
        with contextlib.closing(UnixConnection(self.socket)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def get(self, path):
        status, body = self.request("GET", path)
        assert status == 200, f"GET {path}: {status} {body}"
        return body

    def recent(self):
        return [json.loads(line) for line in self.get("/v1/events").splitlines()]

    def subjects(self, kind="process"):
        """Subjects by pid or cgroup id, as `ps -o json` shows them; the API must say the same. (One
        whose processes are gone may end at any moment.)"""

        def by_id(text):
            subjects = json.loads(text)["subjects"]
            return {s["subject"]["id"]: s for s in subjects if s["subject"]["kind"] == kind}

        def served():
            return by_id(self.get("/v1/subjects")).keys()

        before = served()
        shown = self.cli("ps", "-o", "json")
        assert shown.returncode == 0, shown.stderr
        subjects = by_id(shown.stdout)
        after = served()
        assert before & after <= subjects.keys() <= before | after
        return subjects

    def subject(self, ident, kind="process"):
        subjects = self.subjects(kind)
        assert ident in subjects, f"no {kind} {ident} in {sorted(subjects)}"
        return subjects[ident]

    def reports(self):
        """The reports of drains that have ended, oldest first."""
        return [r for r in json.loads(self.get("/v1/reports"))["reports"] if not r["running"]]

    def report(self, ident, kind="process"):
        """The report of the last drain of this subject, once it has ended; `report` has to know it as
        well."""

        def found():
            subjects = [(r["subject"]["kind"], r["subject"]["id"], r) for r in self.reports()]
            return next((r for k, i, r in reversed(subjects) if (k, i) == (kind, ident)), None)

        report = wait_until(found, f"there is a report of the drain of {kind} {ident}")
        shown = self.cli("report", str(ident), "--last", "1000", "-o", "json")
        assert shown.returncode == 0, shown.stderr
        assert report["declared"] in [r["declared"] for r in json.loads(shown.stdout)["reports"]]
        return report

    def metrics(self):
        return Metrics(self.get("/metrics"))

    def watch(self):
        """A view of the event stream from here on; see Follower."""
        if not self.follower:
            self.follower = Follower(self)
        return Watch(self.follower)


class Metrics:
    """As the OpenMetrics parser of Prometheus' own library reads them, which is strict."""

    def __init__(self, text):
        self.families = list(openmetrics.text_string_to_metric_families(text))
        self.samples = [(s.name, s.labels, s.value) for f in self.families for s in f.samples]

    def sum(self, name, **labels):
        """The sum of the samples that have these labels, among others."""
        return sum(
            value
            for sample, has, value in self.samples
            if sample == name and labels.items() <= has.items()
        )

    def connections(self, **labels):
        return self.sum("phasewatch_connections_total", **labels)

    def notified(self):
        """Messages of sd_notify by result: accepted, refused, ignored."""
        results = ("accepted", "refused", "ignored")
        return [self.sum("phasewatch_notify_messages_total", result=r) for r in results]

    def misrouted(self, **labels):
        return self.sum("phasewatch_misrouted_total", **labels)


# The event stream ---------------------------------------------------------------------------


class Follower:
    """`phasewatch events -f -o json`, read by a thread.

    When have all events come? Waiting a while is no answer. So mark() ends the life of a process
    declared for this only, and waits for its `exit` event. The kernel made that record after all
    records before it and the ring buffer keeps their order, so whatever the kernel saw before
    mark() was called is in front of it in the stream.
    """

    def __init__(self, daemon):
        self.daemon = daemon
        self.events = []
        self.marker = None
        self.of_markers = set()  # positions of their events
        self.changed = threading.Condition()
        self.process = subprocess.Popen(
            [str(daemon.binary), "events", "--socket", str(daemon.socket), "-f", "-o", "json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        # Only a marker that comes back tells that the follower is connected.
        wait_until(lambda: self.mark(0.25) is not None, "events -f shows an event")

    def read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            subject = event.get("subject", {})
            with self.changed:
                if subject.get("kind") == "process" and subject["id"] == self.marker:
                    self.of_markers.add(len(self.events))
                self.events.append(event)
                self.changed.notify_all()

    def mark(self, deadline=DEADLINE):
        """The position of a new marker in the stream, None if it does not come."""
        before = len(self.events)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as marker:
            self.marker = marker.pid
            self.daemon.declare("ACTIVE", marker.pid)

        def position():
            own = (i for i in self.of_markers if i >= before)
            return next((i for i in own if self.events[i]["type"] == "exit"), None)

        with self.changed:
            self.changed.wait_for(lambda: position() is not None, deadline)
            self.marker = None
            return position()

    def between(self, first, end):
        """Events in [first, end) without the markers' own."""
        return [self.events[i] for i in range(first, end) if i not in self.of_markers]

    def stop(self):
        self.process.terminate()
        self.process.wait(DEADLINE)
        self.reader.join(DEADLINE)
        self.process.stdout.close()


ARRIVALS = {"accept", "connect", "request"}
LOSSES = {"abandon", "backlog", "refused"}
TYPES = {"exit", "phase", "drain", "lost", "violation"} | ARRIVALS | LOSSES
PHASES = {"UNDECLARED", "INIT", "ACTIVE", "DRAIN", "SHUTDOWN"}


def check_event(event):
    """What holds for every event."""
    assert event["schema"] == 1
    assert event["type"] in TYPES
    assert event["node"] == socket.gethostname()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", event["time"])
    if "phase" in event:
        assert event["phase"] in PHASES
    if event["type"] in ARRIVALS:
        assert event["verdict"] in ("misrouted", "grace", "ignored")
    if event["type"] != "lost":
        assert event["subject"]["kind"] in ("process", "cgroup")
    check_value(event, event)


def check_value(value, event):
    """What is not known is absent, never empty; durations are not negative; an IPv4 address is
    shown as one."""
    if isinstance(value, dict):
        assert value, event
        for key, inner in value.items():
            if key.endswith("_ns") and not isinstance(inner, dict):
                assert isinstance(inner, int) and inner >= 0, (key, event)
            check_value(inner, event)
    else:
        assert value not in (None, "", []), event
        assert not str(value).startswith("::ffff:"), event


def check_seq(events):
    """seq has no gap: what a `lost` event counts took numbers as well."""
    for one, other in zip(events, events[1:]):
        step = one["count"] if one["type"] == "lost" else 1
        assert other["seq"] == one["seq"] + step, (one, other)


class Watch:
    def __init__(self, follower):
        self.follower = follower
        self.dropped = self.dropped_total()
        self.first = self.mark() + 1

    def mark(self):
        position = self.follower.mark()
        assert position is not None, "the marker's exit event did not come"
        return position

    def dropped_total(self):
        return self.follower.daemon.metrics().sum("phasewatch_backlog_dropped_total")

    def wait_backlogs(self):
        """The daemon adds up the connections of a backlog, so that event may come after later ones:
        until all that the kernel has counted are in events."""
        dropped = self.dropped_total() - self.dropped

        def shown():
            events = self.follower.events[self.first :]
            return sum(e["dropped"] for e in events if e["type"] == "backlog")

        wait_until(lambda: shown() >= dropped, lambda: f"{dropped} dropped, {shown()} in events")

    def is_of_before(self, event):
        """What a subject's end leads to is told a second later: when its process had gone before this
        watch began, it belongs to an earlier test."""
        if event["type"] not in ("drain", "violation"):
            return False
        subject = event["subject"]["id"]
        before = self.follower.events[: self.first]
        return any(e["type"] == "exit" and e["process"]["pid"] == subject for e in before)

    def collect(self, kind=None):
        """All events since this watch began, or those of one type."""
        self.mark()
        self.wait_backlogs()
        end = self.mark()
        events = self.follower.between(self.first, end)
        events = [e for e in events if not self.is_of_before(e)]
        for event in events:
            check_event(event)
        check_seq(self.follower.events[self.first : end + 1])
        return [e for e in events if kind in (None, e["type"])]

    def wait_for(self, condition, what, deadline=DEADLINE):
        """The first event since this watch began that satisfies condition."""
        follower = self.follower

        def found():
            return next((e for e in follower.events[self.first :] if condition(e)), None)

        with follower.changed:
            assert follower.changed.wait_for(found, deadline), f"no event: {what}"
            return found()


def as_nobody(*command):
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
