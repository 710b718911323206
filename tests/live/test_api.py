# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The HTTP API as monitoring, browsers and whoever means no good use it."""

import json

from harness import bpftool


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
