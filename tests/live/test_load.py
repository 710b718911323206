# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Exact under load: one CPU for the server, its client and somebody who burns it. That is where
tracing programs miss runs (softirqs interrupt them); the counters must not."""

import os
import signal
import subprocess
import sys

import peers
import pytest
from expect import Counts
from harness import SERVERS

CONNECTIONS = 20_000


@pytest.fixture
def one_cpu():
    """This process and the children that it starts from here on run on one CPU."""
    all_cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(all_cpus)})
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield
    spinner.kill()
    spinner.wait()
    os.sched_setaffinity(0, all_cpus)


def test_20000_connections_on_one_cpu(daemon, watch, one_cpu):
    s = peers.script("load.py", "127.0.0.1")
    try:
        daemon.declare("DRAIN", s.pid)
        counts = Counts(daemon, s.pid)
        client = subprocess.run(
            [sys.executable, str(SERVERS / "load_client.py"), str(s.port), str(CONNECTIONS)],
            stdout=subprocess.PIPE,
            check=True,
        )
        assert int(client.stdout) == CONNECTIONS
        s.process.send_signal(signal.SIGTERM)
        assert s.line() == {"accepted": CONNECTIONS}
    finally:
        s.stop()
    events = watch.collect()
    assert counts.gained("DRAIN")["accept"] == (CONNECTIONS, CONNECTIONS)
    delivered = sum(e["type"] == "accept" for e in events)
    lost = sum(e.get("by_type", {}).get("accept", 0) for e in events if e["type"] == "lost")
    assert delivered + lost == CONNECTIONS
