# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The HTTP API as monitoring, browsers and whoever means no good use it."""

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import time

import pytest
from docs import snippet, snippets
from harness import DEADLINE, bpftool


def test_probe(daemon):
    """The daemon tells what the command finds."""
    shown = daemon.run("probe", "-o", "json")
    assert shown.returncode == 0, shown.stderr
    served = json.loads(daemon.get("/v1/probe"))
    assert served == json.loads(shown.stdout)
    assert any(hook["on"] for hook in served["hooks"])


def ready(daemon):
    status, body = daemon.request("GET", "/readyz")
    return status, body if status == 200 else json.loads(body)["error"]


def test_ready_until_unpinned(own_daemon):
    daemon = own_daemon.start()
    assert ready(daemon) == (200, "ok\n")
    pin = next((daemon.pin_dir / "links").iterdir())
    pin.unlink()
    status, error = ready(daemon)
    assert (status, str(pin) in error) == (503, True), error
    assert daemon.get("/healthz") == "ok\n"


def test_ready_until_detached(own_daemon):
    daemon = own_daemon.start()
    daemon.kill()
    daemon.start()  # took over
    assert ready(daemon) == (200, "ok\n")
    bpftool("link", "detach", "pinned", str(daemon.pin_dir / "links" / "pw_sockops"))
    status, error = ready(daemon)
    assert (status, "pw_sockops has been detached" in error) == (503, True), error
    assert daemon.get("/healthz") == "ok\n"


class Sse:
    """A browser's EventSource, as far as we need one: (id, event, data) as they come."""

    def __init__(self, daemon, target="/v1/events", last_id=None):
        self.connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=DEADLINE)
        headers = {"Accept": "text/event-stream"}
        if last_id is not None:
            headers["Last-Event-ID"] = str(last_id)
        self.connection.request("GET", target, headers=headers)
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.getheader("Content-Type") == "text/event-stream"

    def next(self):
        fields = {}
        while True:
            line = self.answer.readline().decode().rstrip("\n")
            if not line and fields:
                return int(fields["id"]), fields["event"], json.loads(fields["data"])
            if line and not line.startswith(":"):
                name, value = line.split(": ", 1)
                fields[name] = value

    def close(self):
        self.answer.close()
        self.connection.close()


def test_server_sent_events(daemon, listening):
    one, other = listening(), listening()
    seen = []
    with contextlib.closing(Sse(daemon, f"/v1/events?subject={one.pid}&type=phase")) as stream:
        for phase in ("INIT", "ACTIVE", "DRAIN"):
            daemon.declare(phase, other.pid)
            daemon.declare(phase, one.pid)
            seen.append(stream.next())
    assert [(kind, e["to"]) for _, kind, e in seen] == [
        ("phase", "INIT"), ("phase", "ACTIVE"), ("phase", "DRAIN")
    ]  # fmt: skip
    assert all(ident == e["seq"] and e["subject"]["id"] == one.pid for ident, _, e in seen)

    # Goes on after the last one that it had, which beats where the page began.
    target = f"/v1/events?subject={one.pid}&since_seq=0"
    with contextlib.closing(Sse(daemon, target, last_id=seen[0][0])) as stream:
        assert [stream.next() for _ in seen[1:]] == seen[1:]
        daemon.declare("SHUTDOWN", one.pid)
        assert stream.next()[2]["to"] == "SHUTDOWN"


def test_since(daemon, listening):
    one = listening()
    daemon.declare("ACTIVE", one.pid)
    daemon.declare("DRAIN", one.pid)

    def asked(query):
        lines = daemon.get(f"/v1/events?subject={one.pid}&type=phase&{query}").splitlines()
        return [json.loads(line) for line in lines]

    first, last = asked("since=10m")
    assert asked(f"since={last['time']}") == [last]
    assert asked(f"since_seq={first['seq']}") == [last]
    assert asked(f"since_seq={last['seq']}") == []
    assert asked("since=0s") == []
    for bad in ("since=yesterday", "since_seq=-1", "since_seq=", "subject=", "since=", "pod=x"):
        status, body = daemon.request("GET", f"/v1/events?{bad}")
        assert (status, bad.split("=")[0] in json.loads(body)["error"]) == (400, True), body


def shown(done):
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_events_and_their_replay(daemon, listening, tmp_path):
    """The daemon's answer, its copy in a file, and the same from a pipe are one."""
    one, other = listening(), listening()
    for phase in ("ACTIVE", "DRAIN", "SHUTDOWN"):
        daemon.declare(phase, one.pid)
        daemon.declare(phase, other.pid)
    copy = tmp_path / "events"
    copy.write_text(daemon.cli("events", "-o", "json").stdout)
    first = shown(daemon.cli("events", "-o", "json", "--subject", str(one.pid)))[0]
    name = f"{first['subject']['name']}[{one.pid}]"
    for filters in (
        ["--subject", str(one.pid)],
        ["--subject", name, "--phase", "DRAIN"],
        ["--subject", name, "--subject", str(other.pid), "--type", "phase", "--last", "3"],
        ["--subject", name, "--since", first["time"]],
        ["--pid", str(other.pid), "--since", "10m"],
    ):
        live = shown(daemon.cli("events", "-o", "json", *filters))
        assert live, filters
        assert shown(daemon.run("events", "-o", "json", "--input-file", copy, *filters)) == live
        piped = daemon.run(
            "events", "-o", "json", "--input-file", "-", *filters, input=copy.read_text()
        )
        assert shown(piped) == live
        for output in ("compact", "jsonpretty"):
            asked = daemon.cli("events", "-o", output, *filters)
            replayed = daemon.run("events", "-o", output, "--input-file", copy, *filters)
            assert (asked.returncode, replayed.returncode) == (0, 0)
            assert replayed.stdout == asked.stdout


def test_replay_of_what_is_no_events(daemon, tmp_path):
    good = b'{"schema":1,"time":"2026-11-25T12:04:31Z","seq":1,"type":"%s","x":"\\u001b[31m\\u0000"}'
    bad = [b"x", b"{}", b"[]", b"\xff\xfe", b"\0", b"[" * 100_000, b'{"a":' * 5000,
           b'{"type":"exit","time":"' + b"9" * 2_000_000 + b'"}', good[:40]]  # fmt: skip
    path = tmp_path / "events"
    path.write_bytes(b"\n".join([good % b"exit", *bad, b"", good % b"new", b""]))
    for output in ("json", "compact", "jsonpretty"):
        done = daemon.run("events", "-o", output, "--input-file", path)
        assert done.returncode == 0
        assert f"{path}: skipped {len(bad)} lines" in done.stderr
        assert done.stderr.count("\n") == 1
        assert "\x1b" not in done.stdout and "\0" not in done.stdout
    types = [e["type"] for e in shown(daemon.run("events", "-o", "json", "--input-file", path))]
    assert types == ["exit", "new"]
    assert daemon.run("events", "--input-file", tmp_path / "none").returncode == 1
    assert daemon.run("events", "--input-file", tmp_path).returncode == 1
    assert daemon.run("events", "-f", "--input-file", path).returncode == 2
    assert daemon.run("events", "--since", "yesterday", "--input-file", path).returncode == 2


def test_status_page(daemon):
    """Over TCP; its policy allows what is marked in it, and nothing from elsewhere."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", daemon.port)) as connection:
        policies = set()
        for _ in range(2):
            connection.request("GET", "/")
            answer = connection.getresponse()
            page, policy = answer.read().decode(), answer.getheader("Content-Security-Policy")
            assert answer.status == 200
            assert answer.getheader("Content-Type") == "text/html; charset=utf-8"
            assert answer.getheader("X-Content-Type-Options") == "nosniff"
            assert answer.getheader("Access-Control-Allow-Origin") is None
            nonces = set(re.findall(r'<(?:script|style) nonce="([0-9a-f]{32})">', page))
            assert len(nonces) == 1 and page.count("<script") == page.count("<style") == 1
            assert policy.startswith("default-src 'none'; ")
            assert re.findall(r"(?:script|style)-src ([^;]*);", policy) == [f"'nonce-{nonces.pop()}'"] * 2
            assert "@" not in page and "innerHTML" not in page and "://" not in page
            policies.add(policy)
        assert len(policies) == 2


def exchange(daemon, data):
    """All that is answered to these bytes, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", daemon.port), DEADLINE) as s:
        s.sendall(data)
        s.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: s.recv(65536), b""))


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/probe", "/v1/events?follow=1"])
def test_head(daemon, path):
    """As GET, without the body."""
    request = f"HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    head, body = exchange(daemon, request).split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and b"Content-Length: " in head
    assert body == b""


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "PATCH"])
def test_method(daemon, method):
    answer = exchange(daemon, f"{method} /v1/events HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 405 ") and b"\r\nAllow: GET, HEAD\r\n" in answer
    assert b"Access-Control" not in answer


def test_fifty_slow_broken_and_greedy_clients(daemon, watch, listening):
    """Others are answered at once, and see all."""
    kinds = [
        b"GET /v1/ev",  # a slow head
        b"PUT /v1/phase HTTP/1.1\r\nContent-Length: 4000\r\n\r\n{",  # a slow body
        b"GET /v1/events?follow=1&last=4096 HTTP/1.1\r\n\r\n",  # reads nothing
        b"GET / HTTP/1.1\r\nAccept: text/event-stream\r\n\r\n" * 50,  # pipelines, and reads nothing
        b"\x16\x03\x01\x02\x00\x01\xff\0\0",  # TLS
        b"GET /v1/events HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"GET /" + b"%00%ff" * 50_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\nx",
        b"GET /v1/events?type=%zz&=&&% HTTP/1.0\r\n\r\n",
        b"GET /v1/events HTTP/1.1\r\nAccept: text/event-stream\r\nLast-Event-ID: 0\r\n\r\n",
    ]
    one = listening()
    with contextlib.ExitStack() as stack:
        for i in range(50):
            s = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port), DEADLINE))
            s.setblocking(False)
            with contextlib.suppress(BlockingIOError, ConnectionError):
                s.send(kinds[i % len(kinds)])
        for phase in ("INIT", "ACTIVE", "DRAIN"):
            daemon.declare(phase, one.pid)
            began = time.monotonic()
            assert daemon.get("/healthz") == "ok\n"
            assert exchange(daemon, b"GET /healthz HTTP/1.0\r\n\r\n").endswith(b"ok\n")
            assert time.monotonic() - began < 1
        events = [e for e in watch.collect("phase") if e["subject"]["id"] == one.pid]
        assert [e["to"] for e in events] == ["INIT", "ACTIVE", "DRAIN"]
    assert daemon.process.poll() is None


def test_listen_on_what_cannot_be(own_daemon):
    """Once and clearly, and nothing is left half started."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        for listen, code, told in (
            (f"127.0.0.1:{port}", 1, "Address already in use; give another --listen"),
            ("192.0.2.1:9464", 1, "Cannot assign requested address"),
            ("[2001:db8::1]:9464", 1, "Cannot assign requested address"),
            ("127.0.0.1:0", 2, "is no ADDR:PORT"),
            ("127.0.0.1", 2, "is no ADDR:PORT"),
            ("::1:9464", 2, "is no ADDR:PORT"),
            ("localhost:9464", 2, "is no ADDR:PORT"),
        ):
            done = own_daemon.run(
                "run", "--socket", str(own_daemon.socket), "--pin-dir", str(own_daemon.pin_dir),
                "--listen", listen,
            )  # fmt: skip
            assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
            assert told in done.stderr and listen in done.stderr
            assert not own_daemon.socket.exists() and not own_daemon.pin_dir.exists()


def test_docs(daemon, listening, tmp_path):
    """docs/api.md: each command does what the text says."""
    one = listening()
    daemon.declare("DRAIN", one.pid)
    said = {}
    for name in snippets("api.md"):
        script = snippet("api.md", name, tmp_path / name)
        said[name] = subprocess.run(
            ["sh", "-e", script],
            env={**os.environ, "PHASEWATCH_SOCKET": str(daemon.socket)},
            capture_output=True, text=True, timeout=DEADLINE, check=True,
        ).stdout  # fmt: skip
    assert json.loads(said["events"])["subject"]["id"] == one.pid
    last = said["sse"].strip().split("\n\n")[-1].splitlines()
    assert last[1] == "event: phase"
    assert json.loads(last[2].removeprefix("data: "))["subject"]["id"] == one.pid
    assert said["ready"] == "ok\n"
