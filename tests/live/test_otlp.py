# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Metrics and events that are pushed by OTLP/HTTP: what a receiver gets is what the clients counted,
and whatever a receiver does, nothing is lost without being counted."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections import Counter
from pathlib import Path

import newer
import otlp
import pytest
from docs import snippets
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from harness import DEADLINE, REPO, free_port, wait_until
from peers import connect_and_ask

COUNT = 23
MESSAGES = {
    "logs": "opentelemetry.proto.collector.logs.v1.ExportLogsServiceRequest",
    "metrics": "opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceRequest",
}
ANSWERS = {
    "logs": "opentelemetry.proto.collector.logs.v1.ExportLogsServiceResponse",
    "metrics": "opentelemetry.proto.collector.metrics.v1.ExportMetricsServiceResponse",
}


# The protocol, by its own files ---------------------------------------------------------------


class Protocol:
    """The messages of OpenTelemetry's own .proto files, as Debian packages them."""

    def __init__(self, root):
        include = root / "usr/include"
        files = sorted(include.glob("opentelemetry/proto/collector/[lm]*/v1/*.proto"))
        done = subprocess.run(
            ["protoc", "-I", include, "--include_imports", "--descriptor_set_out=/dev/stdout", *files],
            check=True, capture_output=True,
        )  # fmt: skip
        self.pool = descriptor_pool.DescriptorPool()
        for file in descriptor_pb2.FileDescriptorSet.FromString(done.stdout).file:
            self.pool.Add(file)

    def new(self, name):
        factory = message_factory.MessageFactory(self.pool)
        return factory.GetPrototype(self.pool.FindMessageTypeByName(name))()

    def decode(self, kind, body, json_encoded):
        """The message, if it has nothing that the protocol does not know."""
        message = self.new(MESSAGES[kind])
        if json_encoded:
            return json_format.Parse(body, message)
        message.ParseFromString(body)
        known = self.new(MESSAGES[kind])
        known.CopyFrom(message)
        known.DiscardUnknownFields()
        assert known.ByteSize() == len(body)
        return message


@pytest.fixture(scope="session")
def protocol(directories):
    return Protocol(newer.unpack("opentelemetry-proto", Path(directories())))


def value(any_value):
    kind = any_value.WhichOneof("value")
    if kind == "kvlist_value":
        return attributes(any_value.kvlist_value.values)
    if kind == "array_value":
        return [value(v) for v in any_value.array_value.values]
    return getattr(any_value, kind)


def attributes(pairs):
    found = {pair.key: value(pair.value) for pair in pairs}
    assert len(found) == len(pairs), f"twice: {[p.key for p in pairs]}"
    return found


class Got:
    """What a receiver got, decoded."""

    def __init__(self, protocol, receiver):
        self.requests = {kind: [] for kind in MESSAGES}
        for path, headers, body, _ in list(receiver.got):
            kind = path.rpartition("/")[2]
            json_encoded = headers["Content-Type"] == "application/json"
            self.requests[kind].append(protocol.decode(kind, body, json_encoded))

    def records(self):
        return [
            record
            for request in self.requests["logs"]
            for resource in request.resource_logs
            for scope in resource.scope_logs
            for record in scope.log_records
        ]

    def seqs(self):
        """How many numbers each log record stands for, by its first."""
        found = {}
        for record in self.records():
            has = attributes(record.attributes)
            assert has["phasewatch.seq"] not in found, "twice"
            found[has["phasewatch.seq"]] = has.get("phasewatch.count", 1)
        return found

    def events(self, kind):
        return [r for r in self.records() if r.event_name == f"phasewatch.{kind}"]

    def last_metrics(self):
        """The last of each metric."""
        last = self.requests["metrics"][-1]
        return {m.name: m for r in last.resource_metrics for s in r.scope_metrics for m in s.metrics}

    def resource(self, kind):
        return attributes(getattr(self.requests[kind][-1], f"resource_{kind}")[0].resource.attributes)


def assert_gapless(seqs):
    following = min(seqs)
    for seq in sorted(seqs):
        assert seq == following, f"{following} is not there"
        following += seqs[seq]


# A daemon that pushes, and a receiver -----------------------------------------------------------


@pytest.fixture
def receiver():
    """Makes receivers, not started yet."""
    made = []

    def make(*args):
        made.append(otlp.Receiver(free_port(), *args))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def pushing(own_daemon):
    """Starts the daemon with these options and variables."""

    def start(*options, interval="200ms", **variables):
        own_daemon.options = ["--otlp-interval", interval, *options]
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OTEL_")}
        own_daemon.how["env"] = {**clean, "no_proxy": "127.0.0.1", **variables}
        return own_daemon.start()

    return start


def misroute(daemon, server, count=COUNT):
    """Connections to a server that drains; the clients' own records."""
    s = server("blocking")
    daemon.declare("DRAIN", s.pid, "--reason", "test")
    return s, connect_and_ask("127.0.0.1", s.port, count)


def said(daemon, *words):
    return [line for line in daemon.said().splitlines() if all(w in line for w in words)]


def own(daemon, name, **labels):
    return daemon.metrics().sum(f"phasewatch_otlp_{name}", **labels)


def wait_own(daemon, at_least, name, **labels):
    wait_until(
        lambda: own(daemon, name, **labels) >= at_least,
        lambda: f"{name} {labels} >= {at_least}; it says: {daemon.said()}",
    )


# What is sent -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("encoding", ["http/protobuf", "http/json"])
def test_events_and_metrics(pushing, receiver, server, protocol, encoding, compression):
    r = receiver().start()
    daemon = pushing(
        "--otlp-endpoint", r.url, "--otlp-protocol", encoding, "--otlp-compression", compression
    )
    watch = daemon.watch()
    s, made = misroute(daemon, server)
    shown = watch.collect("accept")
    assert len(shown) == COUNT
    metrics = daemon.metrics()
    assert daemon.stop() == 0
    assert not said(daemon, "OTLP"), daemon.said()

    for _, headers, _, _ in r.got:
        assert headers["Content-Type"].endswith(encoding.partition("/")[2])
        assert headers.get("Content-Encoding", "none") == compression
    got = Got(protocol, r)
    assert_gapless(got.seqs())
    accepts = got.events("accept")
    assert len(accepts) == COUNT
    for event in shown:
        record = next(
            a for a in accepts if attributes(a.attributes)["phasewatch.seq"] == event["seq"]
        )
        has = attributes(record.attributes)
        assert (has["client.address"], has["client.port"]) == tuple(event["src"].values())
        assert (has["server.address"], has["server.port"]) == ("127.0.0.1", s.port)
        assert (has["network.transport"], has["network.type"]) == ("tcp", "ipv4")
        assert has["process.pid"] == event["process"]["pid"]
        assert has["process.executable.path"] == event["process"]["exe"]
        assert has["process.executable.name"] == Path(event["process"]["exe"]).name
        assert has["phasewatch.subject.id"] == s.pid
        assert has["phasewatch.phase"] == "DRAIN" and has["phasewatch.verdict"] == "misrouted"
        assert has["phasewatch.queue_ns"] == event["queue_ns"]
        assert has["event.name"] == "phasewatch.accept"
        assert record.severity_text == "WARN" and record.severity_number == 13
        assert record.body.string_value.startswith("accept ")
        seconds, _, ns = event["time"].rstrip("Z").rpartition(".")
        assert record.time_unix_nano % 10**9 == int(ns)
        assert time.strftime("%FT%T", time.gmtime(record.time_unix_nano // 10**9)) == seconds
        assert 0 <= record.observed_time_unix_nano - record.time_unix_nano < 60 * 10**9
    (phase,) = [
        p for p in got.events("phase") if attributes(p.attributes)["phasewatch.to"] == "DRAIN"
        and attributes(p.attributes)["phasewatch.subject.id"] == s.pid
    ]  # fmt: skip
    assert phase.severity_text == "INFO"
    assert attributes(phase.attributes)["phasewatch.reason"] == "test"

    for kind in MESSAGES:
        resource = got.resource(kind)
        assert resource["service.name"] == "phasewatch"
        assert resource["host.name"] == resource["service.instance.id"] == os.uname().nodename
    last = got.last_metrics()
    misrouted = last["phasewatch_misrouted"].sum
    assert misrouted.is_monotonic and misrouted.aggregation_temporality == 2
    assert sum(p.as_int for p in misrouted.data_points) == COUNT
    assert metrics.misrouted(type="accept") == COUNT
    # each sample of /metrics, and no other
    for family in metrics.families:
        if family.name.startswith(("phasewatch_otlp", "process_")):
            continue
        name = family.name + ("_info" if family.type == "info" else "")
        points = getattr(last[name], last[name].WhichOneof("data")).data_points
        count = {"histogram": "_count", "counter": "_total"}.get(family.type, "")
        there = {tuple(sorted(x.labels.items())) for x in family.samples if x.name == name + count}
        assert {tuple(sorted(attributes(p.attributes).items())) for p in points} >= there, name
    delays = last["phasewatch_misroute_delay_seconds"].histogram
    assert last["phasewatch_misroute_delay_seconds"].unit == "s"
    assert sum(p.count for p in delays.data_points) == COUNT
    seqs = {e["seq"] for e in shown}
    exemplars = [x for p in delays.data_points for x in p.exemplars]
    assert exemplars
    for x in exemplars:
        assert attributes(x.filtered_attributes)["seq"] in seqs
    for p in delays.data_points:
        assert len(p.bucket_counts) == len(p.explicit_bounds) + 1
        assert sum(p.bucket_counts) == p.count
        assert 0 < p.start_time_unix_nano < p.time_unix_nano


def test_counters_go_on(pushing, receiver, server, protocol):
    """After a restart they count since the same moment."""
    r = receiver().start()
    daemon = pushing("--otlp-endpoint", r.url)
    misroute(daemon, server)
    assert daemon.stop() == 0
    before = Got(protocol, r).last_metrics()["phasewatch_misrouted"].sum.data_points
    r.got.clear()
    daemon.start()
    assert daemon.stop() == 0
    after = Got(protocol, r).last_metrics()["phasewatch_misrouted"].sum.data_points
    assert sum(p.as_int for p in before) == sum(p.as_int for p in after) == COUNT
    assert abs(before[0].start_time_unix_nano - after[0].start_time_unix_nano) < 10**9


# A real receiver --------------------------------------------------------------------------------


@pytest.fixture
def victoria(directories):
    """VictoriaMetrics, by its URL. (Debian's Prometheus is built without a receiver for OTLP.)"""
    root = newer.unpack("victoria-metrics", Path(directories()))
    port = free_port()
    with open(root / "log", "w") as log:
        process = subprocess.Popen(
            [
                root / "usr/bin/victoria-metrics", f"-storageDataPath={root}/data",
                f"-httpListenAddr=127.0.0.1:{port}", "-opentelemetry.usePrometheusNaming",
                "-search.latencyOffset=0s",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"

    def ready():
        try:
            return urllib.request.urlopen(f"{url}/health", timeout=1).status == 200
        except OSError:
            return False

    try:
        wait_until(ready, lambda: (root / "log").read_text())
        yield url
    finally:
        process.kill()
        process.wait()


def ask_victoria(url, query):
    query = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=DEADLINE) as answer:
        return [(r["metric"], float(r["value"][1])) for r in json.load(answer)["data"]["result"]]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_victoria_metrics(pushing, victoria, server, compression):
    """A real receiver takes all, under the names and with the numbers of /metrics."""
    daemon = pushing(
        "--otlp-compression", compression,
        OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{victoria}/opentelemetry/v1/metrics",
        interval="500ms",
    )  # fmt: skip
    watch = daemon.watch()
    misroute(daemon, server)
    watch.collect()

    def misrouted():
        return ask_victoria(victoria, 'sum(phasewatch_misrouted_total{type="accept"})')

    wait_until(lambda: [n for _, n in misrouted()] == [COUNT], lambda: f"{misrouted()} {daemon.said()}")
    shown = daemon.metrics()
    assert shown.misrouted(type="accept") == COUNT
    names = {name for name, _, _ in shown.samples}
    for name in sorted(names):
        wait_until(lambda: ask_victoria(victoria, f"count({name})"), f"there is {name}")
    ((labels, _),) = ask_victoria(victoria, "phasewatch_build_info")
    assert labels["version"] and "phasewatch" in labels.values(), labels
    ((_, delays),) = ask_victoria(victoria, "sum(phasewatch_misroute_delay_seconds_count)")
    assert delays == COUNT
    wait_own(daemon, len(shown.families), "exported_total", signal="metrics")
    assert not said(daemon, "OTLP"), daemon.said()


# Receivers that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_again_when_asked(pushing, receiver, server, protocol, status):
    r = receiver().start()
    r.answer = (status, {"Retry-After": "2"}, b"")
    daemon = pushing("--otlp-endpoint", r.url)
    misroute(daemon, server)
    for signal_name in ("logs", "metrics"):
        wait_until(lambda: r.bodies(signal_name), f"{signal_name} come")
    r.answer = (200, {}, b"")
    wait_own(daemon, 1, "exported_total", signal="metrics")
    wait_own(daemon, 1, "exported_total", signal="logs")
    sent = [(at, body) for path, _, body, at in r.got if path == "/v1/logs"]
    assert sent[0][1] == sent[1][1], "the same"
    assert sent[1][0] - sent[0][0] >= 2, "not before it may"
    assert own(daemon, "retries_total", signal="logs") == 1
    assert own(daemon, "dropped_total", signal="logs") == 0
    assert daemon.stop() == 0
    del r.got[[path for path, _, _, _ in r.got].index("/v1/logs")]
    assert_gapless(Got(protocol, r).seqs())
    assert len(Got(protocol, r).events("accept")) == COUNT
    for what in ("events", "metrics"):
        assert len(said(daemon, f"answers {status}", what)) == 1, daemon.said()
        assert len(said(daemon, what, "again", "reach")) == 1, daemon.said()


@pytest.mark.parametrize("status", [301, 400, 401, 404, 413, 500])
def test_refused(pushing, receiver, server, status):
    """A request that is refused is not sent again; what comes later is."""
    r = receiver().start()
    r.answer = (status, {"Content-Type": "text/plain"}, b"because of this\nand more")
    daemon = pushing("--otlp-endpoint", r.url)
    misroute(daemon, server)
    wait_own(daemon, COUNT, "dropped_total", signal="logs", reason="rejected")
    wait_own(daemon, 1, "dropped_total", signal="metrics", reason="rejected")
    r.answer = (200, {}, b"")
    misroute(daemon, server)
    wait_own(daemon, COUNT, "exported_total", signal="logs")
    wait_own(daemon, 1, "exported_total", signal="metrics")
    logs = r.bodies("logs")
    assert len(logs) == len(set(logs))
    for what in ("events", "metrics"):
        assert len(said(daemon, f"answers {status}", what, "because of this;")) == 1, daemon.said()
        assert len(said(daemon, what, "again", "reach")) == 1, daemon.said()
    assert not said(daemon, "and more")


@pytest.mark.parametrize("encoding", ["http/protobuf", "http/json"])
def test_taken_in_part(pushing, receiver, server, protocol, encoding):
    answer = protocol.new(ANSWERS["logs"])
    answer.partial_success.rejected_log_records = 5
    answer.partial_success.error_message = "too old"
    if encoding == "http/json":
        content, body = "application/json", json_format.MessageToJson(answer).encode()
    else:
        content, body = otlp.PROTOBUF, answer.SerializeToString()
    r = receiver().start()
    r.answer = lambda path: (200, {"Content-Type": content}, body if path == "/v1/logs" else b"")
    daemon = pushing("--otlp-endpoint", r.url, "--otlp-protocol", encoding)
    misroute(daemon, server)
    wait_own(daemon, 5, "dropped_total", signal="logs", reason="partial")
    wait_until(lambda: own(daemon, "queue_records", signal="logs") == 0, "all is sent")
    requests = len(r.bodies("logs"))
    assert own(daemon, "dropped_total", signal="logs", reason="partial") == 5 * requests
    records = len(Got(protocol, r).records())
    assert own(daemon, "exported_total", signal="logs") == records - 5 * requests
    assert len(said(daemon, "took events but for 5: too old")) == 1, daemon.said()


def test_nobody_there(pushing, receiver, server, protocol):
    r = receiver()
    daemon = pushing("--otlp-endpoint", r.url)
    _, made = misroute(daemon, server)
    wait_own(daemon, 2, "retries_total", signal="logs")
    assert own(daemon, "queue_records", signal="logs") >= COUNT
    r.start()
    wait_own(daemon, COUNT, "exported_total", signal="logs")
    wait_own(daemon, 1, "exported_total", signal="metrics")
    assert own(daemon, "dropped_total", signal="logs") == 0
    assert daemon.stop() == 0
    got = Got(protocol, r)
    assert_gapless(got.seqs())
    assert len(got.events("accept")) == COUNT
    for what in ("events", "metrics"):
        assert len(said(daemon, f"{what} do not reach", "onnect")) == 1, daemon.said()
        assert len(said(daemon, f"{what} reach", "again")) == 1, daemon.said()


@pytest.mark.parametrize("how", ["close", "hang"])
def test_no_answer(pushing, receiver, server, how):
    """Nobody waits for it but this request."""
    r = receiver().start()
    r.answer = how
    daemon = pushing("--otlp-endpoint", r.url, "--otlp-timeout", "1s")
    watch = daemon.watch()
    _, made = misroute(daemon, server)
    wait_until(lambda: r.answered[how] >= 2, "it is asked")
    begin = time.monotonic()
    assert daemon.get("/healthz").strip() == "ok"
    assert time.monotonic() - begin < 0.5
    assert len(watch.collect("accept")) == COUNT
    wait_own(daemon, 1, "retries_total", signal="logs")
    r.answer = (200, {}, b"")
    wait_own(daemon, COUNT, "exported_total", signal="logs")
    assert len(said(daemon, "events do not reach")) == 1, daemon.said()
    assert len(said(daemon, "events reach", "again")) == 1, daemon.said()


def test_a_name_that_is_none(pushing, server):
    daemon = pushing("--otlp-endpoint", "http://receiver.invalid:4318")
    misroute(daemon, server)
    wait_own(daemon, 1, "retries_total", signal="logs")
    assert daemon.get("/healthz").strip() == "ok"
    assert len(said(daemon, "events do not reach", "resolve")) == 1, daemon.said()


def test_full_queue(pushing, receiver, server, protocol):
    """More events than may wait: the newest are lost, and a `lost` event in their place says how many."""
    r = receiver()
    daemon = pushing("--otlp-endpoint", r.url, OTEL_METRICS_EXPORTER="none")
    s, _ = misroute(daemon, server, 0)
    made = 0
    while own(daemon, "dropped_total", signal="logs", reason="queue_full") < 1000:
        connect_and_ask("127.0.0.1", s.port, 2000)
        made += 2000
        assert made < 40000
    assert len(said(daemon, "newer ones are lost")) == 1, daemon.said()
    r.start()
    wait_until(lambda: said(daemon, "fit in the queue again"), "the queue is empty", 60)
    connect_and_ask("127.0.0.1", s.port, COUNT)
    made += COUNT
    dropped = own(daemon, "dropped_total", signal="logs", reason="queue_full")
    lost = daemon.metrics().sum("phasewatch_events_lost_total", stage="export")
    assert daemon.stop() == 0
    got = Got(protocol, r)
    assert_gapless(got.seqs())
    accepts, told = len(got.events("accept")), Counter()
    for record in got.events("lost"):
        has = attributes(record.attributes)
        assert has["phasewatch.stage"] == "export" and record.severity_text == "WARN"
        for key, number in has.items():
            if key.startswith("phasewatch.by_type"):
                told.update(number if isinstance(number, dict) else {key.split(".")[-1]: number})
    assert accepts + told["accept"] == made
    assert sum(told.values()) == dropped == lost
    assert len(said(daemon, "fit in the queue again", f"{dropped:.0f} were lost")) == 1, daemon.said()


def test_stop_without_receiver(pushing, receiver, server):
    """Who cannot deliver says what is lost, and does not take long."""
    r = receiver().start()
    r.answer = "hang"
    daemon = pushing("--otlp-endpoint", r.url)
    misroute(daemon, server)
    wait_until(lambda: r.bodies("logs"), "it is asked")
    begin = time.monotonic()
    assert daemon.stop() == 0
    assert time.monotonic() - begin < 5
    assert len(said(daemon, "events were not delivered")) == 1, daemon.said()


# TLS --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(directories):
    """Two authorities, "ca" and "other", and certificates of the first."""
    directory = Path(directories())

    def openssl(*args):
        subprocess.run(["openssl", *args], cwd=directory, check=True, capture_output=True)

    for name in ("ca", "other"):
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
                f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")  # fmt: skip
    for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "basicConstraints=CA:FALSE")):
        (directory / f"{name}.ext").write_text(extension)
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out",
                f"{name}.csr", "-subj", f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
                "-CAcreateserial", "-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext")  # fmt: skip
    return directory


def test_tls(pushing, receiver, server, certificates, protocol):
    """With a certificate of our own, which the receiver asks for."""
    c = certificates
    r = receiver(c / "server.pem", c / "server.key", c / "ca.pem").start()
    daemon = pushing(
        "--otlp-endpoint", r.url, "--otlp-ca", str(c / "ca.pem"),
        "--otlp-cert", str(c / "client.pem"), "--otlp-key", str(c / "client.key"),
    )  # fmt: skip
    misroute(daemon, server)
    wait_own(daemon, COUNT, "exported_total", signal="logs")
    assert daemon.stop() == 0
    assert len(Got(protocol, r).events("accept")) == COUNT
    assert not said(daemon, "OTLP"), daemon.said()


@pytest.mark.parametrize("ca", ["other.pem", None])
def test_tls_that_fails(pushing, receiver, server, certificates, ca):
    """By an authority that is not known; and it recovers when the files are right."""
    c = certificates
    used = c / "used.pem"
    used.write_bytes((c / "other.pem").read_bytes())
    r = receiver(c / "server.pem", c / "server.key").start()
    options = ["--otlp-ca", str(used)] if ca else []
    daemon = pushing("--otlp-endpoint", r.url, *options)
    misroute(daemon, server)
    wait_own(daemon, 2, "retries_total", signal="logs")
    assert not r.got
    assert len(said(daemon, "events do not reach", "certificate")) == 1, daemon.said()
    if ca:
        used.write_bytes((c / "ca.pem").read_bytes())
        wait_own(daemon, COUNT, "exported_total", signal="logs")
        assert len(said(daemon, "events reach", "again")) == 1, daemon.said()


def test_tls_without_our_certificate(pushing, receiver, server, certificates):
    c = certificates
    r = receiver(c / "server.pem", c / "server.key", c / "ca.pem").start()
    daemon = pushing("--otlp-endpoint", r.url, OTEL_EXPORTER_OTLP_CERTIFICATE=str(c / "ca.pem"))
    misroute(daemon, server)
    wait_own(daemon, 1, "retries_total", signal="logs")
    assert not r.got
    assert len(said(daemon, "events do not reach")) >= 1, daemon.said()


# Options and variables --------------------------------------------------------------------------


def test_variables(pushing, receiver):
    one, other = receiver().start(), receiver().start()
    daemon = pushing(
        "--otlp-header", "x-one=1", "--otlp-header", "X-Three=three",
        OTEL_EXPORTER_OTLP_ENDPOINT=f"{one.url}/base/",
        OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=f"{other.url}/whole/v1/logs",
        OTEL_EXPORTER_OTLP_HEADERS="x-two=a%20b,x-three=3",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
        OTEL_EXPORTER_OTLP_LOGS_PROTOCOL="http/json",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_RESOURCE_ATTRIBUTES="service.name=x,deployment.environment=a%2Cb,host.name=h",
        OTEL_SERVICE_NAME="watcher",
        NODE_NAME="node-7",
    )  # fmt: skip
    daemon.declare("ACTIVE", os.getpid())
    wait_until(lambda: one.got and other.got, "both come")
    path, headers, _, _ = one.got[0]
    assert path == "/base/v1/metrics"
    assert headers["Content-Type"] == otlp.PROTOBUF and headers["Content-Encoding"] == "gzip"
    assert (headers["x-one"], headers["x-two"], headers["X-Three"]) == ("1", "a b", "three")
    assert "x-three" not in headers
    path, headers, body, _ = other.got[0]
    assert path == "/whole/v1/logs" and headers["Content-Type"] == "application/json"
    pairs = json.loads(body)["resourceLogs"][0]["resource"]["attributes"]
    resource = {p["key"]: p["value"]["stringValue"] for p in pairs}
    assert resource["service.name"] == "watcher" and resource["host.name"] == "h"
    assert resource["deployment.environment"] == "a,b"
    assert resource["k8s.node.name"] == resource["service.instance.id"] == "node-7"


@pytest.mark.parametrize(
    "variables",
    [{}, {"OTEL_SDK_DISABLED": "true"}, {"OTEL_LOGS_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}],
)
def test_off(pushing, receiver, variables):
    """Without an endpoint, or where the variables say so; then nothing is loaded for it."""
    r = receiver().start()
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": r.url} if variables else {}
    daemon = pushing(**endpoint, **variables)
    daemon.declare("ACTIVE", os.getpid())
    assert "libcurl" not in Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert "phasewatch_otlp" not in daemon.get("/metrics")
    assert daemon.stop() == 0
    assert not r.got


URL = "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("options", "variables", "says"),
    [
        (["--otlp-endpoint", "localhost:4318"], {}, "--otlp-endpoint 'localhost:4318' is no URL"),
        (["--otlp-endpoint", "ftp://x"], {}, "is no URL such as http://127.0.0.1:4318"),
        (["--otlp-endpoint", "http://a:b@x"], {}, "is no URL"),
        (["--otlp-protocol", "grpc"], {}, "--otlp-protocol 'grpc': expected one of"),
        (["--otlp-compression", "zstd"], {}, "--otlp-compression 'zstd': expected one of"),
        (["--otlp-timeout", "0"], {}, "--otlp-timeout '0': expected"),
        (["--otlp-interval", "1ms"], {}, "--otlp-interval '1ms': expected"),
        (["--otlp-endpoint", URL, "--otlp-header", "abc"], {}, "expected NAME=VALUE"),
        (["--otlp-endpoint", URL, "--otlp-header", "a b=c"], {}, "is no name of a header"),
        (["--otlp-endpoint", URL, "--otlp-header", "a=b\nc: d"], {}, "or its value is none"),
        (["--otlp-endpoint", URL, "--otlp-ca", "/none"], {}, "--otlp-ca: cannot read /none: No such file"),
        (["--otlp-endpoint", URL, "--otlp-cert", "/etc/passwd"], {}, "--otlp-key is missing"),
        ([], {"OTEL_EXPORTER_OTLP_ENDPOINT": "x"}, "OTEL_EXPORTER_OTLP_ENDPOINT 'x' is no URL"),
        ([], {"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "x"}, "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT 'x'"),
        (["--otlp-endpoint", URL], {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
         "OTEL_EXPORTER_OTLP_PROTOCOL 'grpc': expected http/protobuf or http/json"),
        (["--otlp-endpoint", URL], {"OTEL_EXPORTER_OTLP_TIMEOUT": "10s"},
         "OTEL_EXPORTER_OTLP_TIMEOUT '10s': expected milliseconds"),
        (["--otlp-endpoint", URL], {"OTEL_EXPORTER_OTLP_METRICS_HEADERS": "a"},
         "OTEL_EXPORTER_OTLP_METRICS_HEADERS: expected NAME=VALUE"),
        (["--otlp-endpoint", URL], {"OTEL_RESOURCE_ATTRIBUTES": "=b"}, "OTEL_RESOURCE_ATTRIBUTES: expected"),
    ],
)  # fmt: skip
def test_bad_values(own_daemon, options, variables, says):
    done = own_daemon.run("run", *options, env={**os.environ, **variables})
    assert done.returncode == 2
    assert says in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_page(own_daemon, receiver, server, directories):
    """docs/otlp.md: its command, at another port."""
    r = receiver().start()
    text = snippets("otlp.md")["run"]
    assert text.startswith("phasewatch run ") and "http://127.0.0.1:4318" in text
    own_daemon.options = text.replace("http://127.0.0.1:4318", r.url).split()[2:]
    own_daemon.how["env"] = {**os.environ, "no_proxy": "127.0.0.1"}
    own_daemon.start()
    misroute(own_daemon, server)
    wait_own(own_daemon, COUNT, "exported_total", signal="logs")


# --stdout ---------------------------------------------------------------------------------------


def lines(text):
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def printing(own_daemon):
    """Starts the daemon with --stdout there."""

    def start(out):
        own_daemon.options = ["--stdout"]
        own_daemon.how["stdout"] = out
        return own_daemon.start()

    return start


@pytest.mark.parametrize("kind", ["pipe", "socket", "file"])
def test_stdout(printing, server, tmp_path, kind):
    """All events, and nothing else; whoever shares the file is not made non-blocking."""
    path = tmp_path / "events"
    if kind == "pipe":
        reader, out = map(os.fdopen, os.pipe(), "rw")
    elif kind == "socket":
        a, out = socket.socketpair()
        reader = a.makefile()
    else:
        out = path.open("w")
        out.write("{}\n")
        out.flush()
    daemon = printing(out)
    assert os.get_blocking(out.fileno())
    watch = daemon.watch()
    misroute(daemon, server)
    shown = watch.collect()
    assert daemon.stop() == 0
    out.close()
    got = lines(path.read_text() if kind == "file" else reader.read())
    if kind == "file":
        assert got.pop(0) == {}, "it is not begun anew"
    else:
        reader.close()
    by_seq = {e["seq"]: e for e in got}
    assert_gapless({seq: 1 for seq in by_seq})
    assert len(shown) >= COUNT and all(by_seq[e["seq"]] == e for e in shown)


def test_stdout_that_nobody_reads(printing, server):
    """Events that do not fit are lost, and counted in their place; the daemon lives."""
    reader, out = os.pipe()
    daemon = printing(out)
    os.close(out)
    s, _ = misroute(daemon, server, 0)
    made = 0

    def missed():
        return daemon.metrics().sum("phasewatch_events_lost_total", stage="subscriber")

    while missed() < 1000:
        connect_and_ask("127.0.0.1", s.port, 2000)
        made += 2000
        assert made < 40000
    lost = missed()
    with os.fdopen(reader) as r:
        got = []
        while not got or got[-1]["type"] != "lost":
            got.append(json.loads(r.readline()))
        connect_and_ask("127.0.0.1", s.port, COUNT)
        made += COUNT
        assert daemon.stop() == 0
        got += lines(r.read())
    told = [e for e in got if e["type"] == "lost"]
    assert sum(e["count"] for e in told) == lost and {e["stage"] for e in told} == {"subscriber"}
    accepts = sum(e["type"] == "accept" for e in got)
    assert accepts + sum(e["by_type"].get("accept", 0) for e in told) == made
    assert_gapless({e["seq"]: e.get("count", 1) for e in got})


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_stdout_that_is_closed(printing, server, kind):
    """It is said once."""
    if kind == "pipe":
        reader, out = os.pipe()
        daemon = printing(out)
        os.close(out)
        os.close(reader)
    else:
        a, out = socket.socketpair()
        daemon = printing(out)
        out.close()
        a.close()
    for _ in range(2):
        watch = daemon.watch()
        misroute(daemon, server)
        assert len(watch.collect("accept")) == COUNT
    assert len(said(daemon, "standard output")) == 1, daemon.said()
    assert daemon.process.poll() is None
    assert daemon.end(signal.SIGTERM) == 0


def test_stdout_on_a_full_disk(printing, server):
    with open("/dev/full", "w") as out:
        daemon = printing(out)
    misroute(daemon, server)
    wait_until(lambda: said(daemon, "standard output: No space left"), "it says so")
    misroute(daemon, server)
    assert daemon.stop() == 0
    assert len(said(daemon, "standard output")) == 1, daemon.said()
