# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""docs/declaring.md: each snippet does what the text says, as it is written there."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import peers
import pytest
from docs import snippet
from harness import DEADLINE, NOBODY, as_nobody, free_port, wait_until

PAGE = "declaring.md"


@pytest.fixture
def environment(daemon, public, installed):
    """Where to find the program, the library and the daemon."""
    path = f"{public}:{os.environ['PATH']}"
    return {**installed.environment, "PATH": path, "PHASEWATCH_SOCKET": str(daemon.socket)}


def declared(watch, pid):
    events = [e for e in watch.collect("phase") if e["subject"]["id"] == pid]
    return [(e["to"], e["reason"], e["source"], e["by"]["uid"]) for e in events]


# Services: ready, and at SIGTERM on their way out -------------------------------------------


def c_service(directory, installed):
    snippet(PAGE, "c", directory / "service.c")
    build = snippet(PAGE, "c-build", directory / "build")
    subprocess.run(["sh", "-e", build], cwd=directory, env=installed.environment, check=True)
    return [directory / "service"]


def python_service(directory, installed):
    return [sys.executable, snippet(PAGE, "python", directory / "service.py")]


def go_service(directory, installed):
    if not shutil.which("go"):
        pytest.skip("go is not installed")
    source = snippet(PAGE, "go", directory / "service.go")
    offline = {"GOPROXY": "off", "GOTOOLCHAIN": "local", "GOFLAGS": "", "GO111MODULE": "off"}
    homes = {name: str(directory / name.lower()) for name in ("HOME", "GOPATH", "GOCACHE")}
    subprocess.run(
        ["go", "build", "-o", "service", source.name],
        cwd=directory,
        env={**os.environ, **offline, **homes},
        check=True,
    )
    return [directory / "service"]


@pytest.fixture(scope="module", params=[c_service, python_service, go_service])
def service(request, directories, installed):
    """The command that runs it, as nobody."""
    return as_nobody(*request.param(Path(directories()), installed))


def test_service(watch, environment, service):
    with subprocess.Popen(service, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            watch.wait_for(
                lambda e: e["type"] == "phase" and e["subject"]["id"] == process.pid, "ACTIVE"
            )
            process.send_signal(signal.SIGTERM)
            assert process.wait(DEADLINE) == 0
        finally:
            process.kill()
        assert process.stderr.read() == ""
    # The signal was quicker, and declared the same.
    assert declared(watch, process.pid) == [
        ("ACTIVE", "ready", "api", NOBODY),
        ("DRAIN", "SIGTERM", "signal", 0),
    ]


def test_service_without_a_daemon(own_daemon, environment, service):
    """It says so, twice, and goes on."""
    environment["PHASEWATCH_SOCKET"] = str(own_daemon.socket)
    with subprocess.Popen(service, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            said = [process.stderr.readline()]
            process.send_signal(signal.SIGTERM)
            said += process.stderr.readlines()
            assert process.wait(DEADLINE) == 0, said
        finally:
            process.kill()
    assert ["phase not declared: " in line for line in said] == [True, True], said


# What a script does for itself --------------------------------------------------------------


@pytest.mark.parametrize("name", ["command", "curl"])
def test_script(watch, environment, directories, name):
    command = as_nobody("sh", "-e", snippet(PAGE, name, Path(directories()) / name))
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as shell:
        assert shell.wait(DEADLINE) == 0
    assert declared(watch, shell.pid) == [("DRAIN", "rolling update", "api", NOBODY)]


# What nobody declares ----------------------------------------------------------------------


def on_port(text, port):
    assert "8080" in text
    return text.replace("8080", str(port))


def test_auto(own_daemon, environment, directories):
    own_daemon.options = ["--auto"]
    own_daemon.start()
    environment["PHASEWATCH_SOCKET"] = str(own_daemon.socket)
    directory = Path(directories())
    script = snippet(PAGE, "auto", directory / "auto")
    script.write_text(on_port(script.read_text(), free_port()))
    done = subprocess.run(
        ["sh", script], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done
    assert "Drain of python3" in done.stdout and '"SIGTERM"' in done.stdout, done
    assert re.search(r"refused +1, .*\n(.*\n)?.*curl\[\d+\] 1", done.stdout), done


def test_exec(daemon, watch, environment, directories):
    port = free_port()
    script = snippet(PAGE, "exec", Path(directories()) / "exec")
    script.write_text("exec " + on_port(script.read_text(), port))
    with subprocess.Popen(["sh", script], env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: peers.listening(port), "the server listens")
        process.terminate()
        assert process.wait(DEADLINE) == -signal.SIGTERM
    events = [e for e in watch.collect("phase") if e["subject"]["id"] == process.pid]
    assert [(e["to"], e["source"]) for e in events] == [
        ("INIT", "api"), ("ACTIVE", "listen"), ("DRAIN", "signal")
    ]  # fmt: skip


# A node agent -------------------------------------------------------------------------------


def test_map(daemon, watch, actor, directories):
    one = actor()
    script = snippet(PAGE, "map", Path(directories()) / "declare.py")
    pinned = daemon.pin_dir / "pw_phases"
    subprocess.run([sys.executable, script, str(one.pid), str(pinned)], check=True)
    watch.wait_for(lambda e: e["type"] == "phase" and e["subject"]["id"] == one.pid, "map", 2)
    assert declared(watch, one.pid) == [("DRAIN", "rolling update", "map", 0)]
