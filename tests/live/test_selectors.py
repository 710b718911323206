# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What a declaration is for, by the names that people use: units, containers, pods. podman's container
is real; the other cgroups are made by hand, with the names that systemd, the kubelet and the runtimes
give them, and real processes in them."""

import contextlib
import os
import secrets
import shutil
import subprocess
import uuid
from pathlib import Path

import cgroup
import expect
import harness
import peers
import pytest
from expect import now_ns
from harness import as_nobody, free_port, wait_until
from peers import arrive

OWN = f"pw-test-{os.getpid()}"


@pytest.fixture(scope="module")
def pod_logs(directories):
    return Path(directories())


@pytest.fixture(scope="module")
def daemon(directories, public, pod_logs):
    daemon = harness.Daemon(directories(), public / "phasewatch", name="selectors")
    daemon.options = ["--pod-logs", str(pod_logs)]
    try:
        yield daemon.start()
        assert daemon.stop() == 0, daemon.said()
    finally:
        daemon.remove()


def declared(daemon, *selector):
    done = daemon.cli("declare", "DRAIN", *selector)
    assert done.returncode == 0, done.stderr
    return done.stdout


def failed(daemon, code, *selector):
    """The one line that says why."""
    before = daemon.subjects("cgroup").keys()
    done = daemon.cli("declare", "DRAIN", *selector)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert daemon.subjects("cgroup").keys() <= before
    (line,) = done.stderr.splitlines()
    return line


def check(daemon, watch, one, where, name, since):
    """23 connections are misrouted, on the cgroup `where`, which is called `name`."""
    made = arrive(one, 23)
    events = watch.collect()
    expect.accepts(events, made, where.id, one.pid, since=since)
    accepts = expect.of_type(events, "accept")
    assert {(e["subject"]["kind"], e["subject"]["name"]) for e in accepts} == {("cgroup", name)}
    (phase,) = (e for e in expect.of_type(events, "phase") if e["subject"]["kind"] == "cgroup")
    assert (phase["subject"]["id"], phase["subject"]["name"]) == (where.id, name)
    shown = daemon.subject(where.id, "cgroup")
    assert (shown["subject"]["name"], shown["accepts_misrouted"]) == (name, 23)


# Units --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "directory, typed, name",
    [
        (f"{OWN}-web.service", f"{OWN}-web", f"{OWN}-web"),
        (f"{OWN}-web.service", f"{OWN}-web.service", f"{OWN}-web"),
        (f"{OWN}@a\\x2db.service", f"{OWN}@a\\x2db", f"{OWN}@a\\x2db"),
        (f"{OWN}-7.scope", f"{OWN}-7.scope", f"{OWN}-7"),
        (f"_{OWN}.service", OWN, OWN),
    ],
    ids=["service", "suffix", "instance", "scope", "escaped"],
)
def test_unit(daemon, watch, cgroups, listening, directory, typed, name):
    unit = cgroups(directory, cgroups("top.slice"))
    worker = cgroups("worker", unit)
    one = listening()
    worker.add(one.pid)
    since = now_ns()
    said = declared(daemon, "--unit", typed)
    shown = name.replace("\\", "\\x5c")
    assert said == f"{shown}: UNDECLARED -> DRAIN, epoch 1, 1 process\n"
    check(daemon, watch, one, unit, name, since)


def test_slice(daemon, watch, cgroups, listening):
    """All units in it."""
    top = cgroups("top.slice")
    part = cgroups(f"{OWN}-top-part.slice", top)
    one = listening()
    cgroups("any.service", part).add(one.pid)
    since = now_ns()
    declared(daemon, "--unit", f"{OWN}-top-part.slice")
    check(daemon, watch, one, part, f"{OWN}-top-part", since)


def test_unit_of_the_system_before_a_users(daemon, watch, cgroups, listening):
    unit = f"{OWN}-web.service"
    manager = cgroups("user@1000.service", cgroups("a.slice"))
    cgroups(unit, manager)
    theirs = listening()
    cgroups(unit, cgroups("app.slice", manager)).add(theirs.pid)
    system = cgroups(unit, cgroups("b.slice"))
    one = listening()
    system.add(one.pid)
    since = now_ns()
    declared(daemon, "--unit", unit)
    arrive(theirs, 5)
    check(daemon, watch, one, system, f"{OWN}-web", since)


def test_unit_only_in_v1(daemon, cgroups, actor):
    root = cgroup.mounted("cgroup", "name=systemd")
    if not root:
        pytest.skip("no v1 hierarchy with the name systemd is mounted")
    unit = cgroups("web.service", root=root)
    line = failed(daemon, 1, "--unit", f"{OWN}-web")
    assert "is not in cgroup v2, only in systemd's v1 hierarchy, at " + unit.path in line
    assert "--pid" not in line
    main, helper = actor(), actor()
    for one in (helper, main):
        unit.add(one.pid)
    oldest = min((peers.start_ns(one.pid), one.pid) for one in (main, helper))[1]
    line = failed(daemon, 1, "--unit", f"{OWN}-web")
    assert line.endswith(f"declare for its main process instead: --pid {oldest}")
    # and that can be done
    declared(daemon, "--pid", str(oldest))


# Containers ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheme",
    ["docker-{}.scope", "cri-containerd-{}.scope", "crio-{}.scope", "libpod-{}.scope", "{}"],
)
def test_container(daemon, watch, cgroups, listening, scheme):
    ident = secrets.token_hex(32)
    top = cgroups("top.slice")
    container = cgroups(scheme.format(ident), top)
    monitor = cgroups(f"libpod-conmon-{ident}.scope", top)
    one, other = listening(), listening()
    cgroups("container", container).add(one.pid)
    monitor.add(other.pid)
    since = now_ns()
    declared(daemon, "--container", ident[:12])
    arrive(other, 5)
    check(daemon, watch, one, container, ident[:12], since)


class Podman:
    """Containers of busybox in a store of their own, below a cgroup of their own."""

    def __init__(self, directory):
        directory = Path(directory)
        self.parent = f"/{OWN}-podman"
        self.command = [
            "podman", "--root", f"{directory}/root", "--runroot", f"{directory}/run",
            "--tmpdir", f"{directory}/tmp", "--network-config-dir", f"{directory}/net",
            "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc",
            "--events-backend", "none",
        ]  # fmt: skip
        self.monitors = []
        archive = directory / "busybox.tar"
        subprocess.run(["tar", "-cf", archive, "-C", "/bin", "busybox"], check=True)
        self.run("import", "--quiet", str(archive), "busybox")

    def run(self, *args):
        done = subprocess.run(
            [*self.command, *args], capture_output=True, text=True, timeout=harness.DEADLINE
        )
        assert done.returncode == 0, f"podman {' '.join(args)}: {done.stderr}"
        return done.stdout.strip()

    def start(self, *command):
        """A container's id and the pid of its first process."""
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        ident = self.run(
            "run", "--detach", "--pull", "never", "--network", "host", *limits,
            "--cgroups", "no-conmon", "--cgroup-parent", self.parent, "busybox", *command,
        )  # fmt: skip
        form = "{{.State.Pid}} {{.State.ConmonPid}}"
        pid, monitor = map(int, self.run("inspect", "--format", form, ident).split())
        self.monitors.append(monitor)
        return ident, pid

    def remove(self):
        self.run("rm", "--force", "--all", "--time", "0")
        for pid in self.monitors:  # they clean up, too
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), f"conmon {pid} is gone")
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
        for _, where, kind, *_ in mounts:
            if kind in ("cgroup", "cgroup2"):
                with contextlib.suppress(FileNotFoundError):
                    Path(where + self.parent).rmdir()


@pytest.fixture
def podman(directories):
    for program in ("podman", "runc", "busybox"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed")
    made = Podman(directories())
    try:
        yield made
    finally:
        made.remove()


@pytest.mark.parametrize("typed", ["12 digits", "all", "kubernetes"])
def test_podman(daemon, watch, podman, typed):
    port = free_port()
    ident, pid = podman.start("/busybox", "httpd", "-f", "-p", f"127.0.0.1:{port}", "-h", "/")
    (own,) = (
        line.removeprefix("0::")
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        if line.startswith("0::")
    )
    if ident not in own:
        pytest.skip(f"runc does not put containers into cgroup2 here: {own}")
    container = Path(f"{cgroup.mounted()}{own}").stat().st_ino
    wait_until(lambda: peers.listening(port), f"the container listens on {port}")
    since = now_ns()
    selector = {"12 digits": ident[:12], "all": ident, "kubernetes": f"podman://{ident}"}[typed]
    said = declared(daemon, "--container", selector)
    assert said == f"{ident[:12]}: UNDECLARED -> DRAIN, epoch 1, 1 process\n"
    made = []
    for _ in range(23):
        with peers.open_connection("127.0.0.1", port) as sock:
            made.append(peers.Connection(*peers.ends(sock)))
            assert peers.ask(sock)
    events = watch.collect("accept")
    expect.accepts(events, made, container, pid, since=since)
    assert {e["subject"]["kind"] for e in events} == {"cgroup"}
    assert {e["subject"]["name"] for e in events} == {ident[:12]}
    assert {e["process"]["cgroup"] for e in events} == {own}
    assert {e["process"]["comm"] for e in events} == {"busybox"}


# Pods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["systemd", "cgroupfs"])
@pytest.mark.parametrize("qos", ["guaranteed", "burstable"])
def test_pod(daemon, watch, cgroups, listening, pod_logs, driver, qos):
    """The last pod of that name is gone, and its logs are still there."""
    uid, last, ident = str(uuid.uuid4()), str(uuid.uuid4()), secrets.token_hex(32)
    name = f"frontend-{ident[:5]}"
    for one in (uid, last):
        (pod_logs / f"shop_{name}_{one}").mkdir()
    where = cgroups("kubepods.slice" if driver == "systemd" else "kubepods")
    inner = "kubepods-"
    if qos != "guaranteed":
        where = cgroups("kubepods-burstable.slice" if driver == "systemd" else "burstable", where)
        inner = "kubepods-burstable-"
    if driver == "systemd":
        pod = cgroups(f"{inner}pod{uid.replace('-', '_')}.slice", where)
        container = cgroups(f"cri-containerd-{ident}.scope", pod)
    else:
        pod = cgroups(f"pod{uid}", where)
        container = cgroups(ident, pod)
    one = listening()
    container.add(one.pid)
    since = now_ns()
    declared(daemon, "--pod", f"shop/{name}")
    check(daemon, watch, one, pod, name, since)


def test_no_pod_logs(own_daemon):
    own_daemon.options = ["--pod-logs", f"{own_daemon.directory}/none"]
    own_daemon.start()
    line = failed(own_daemon, 1, "--pod", "shop/frontend")
    assert f"{own_daemon.directory}/none cannot be read: No such file" in line


# What cannot be told ------------------------------------------------------------------------


def test_unknown(daemon, cgroups, pod_logs):
    ident, uid = secrets.token_hex(32), str(uuid.uuid4())
    top = cgroups("top.slice")
    cgroups(f"{OWN}-webserver.service", top)
    cgroups(f"docker-{ident}.scope", top)
    cgroups(f"pod{uid}", top)
    (pod_logs / f"shop_{OWN}-x2x5z_{uid}").mkdir()
    line = failed(daemon, 1, "--unit", f"{OWN}-web")
    assert f"there is no unit {OWN}-web.service in cgroup v2" in line
    assert f": {OWN}-webserver.service" in line
    last = "0" if ident[11] != "0" else "1"
    line = failed(daemon, 1, "--container", ident[:11] + last)
    assert f": {ident[:12]}" in line
    line = failed(daemon, 1, "--pod", f"shop/{OWN}")
    assert f": shop/{OWN}-x2x5z" in line


def test_ambiguous(daemon, cgroups):
    same, top = secrets.token_hex(8), cgroups("top.slice")
    both = [cgroups(f"docker-{same}{secrets.token_hex(24)}.scope", top) for _ in range(2)]
    line = failed(daemon, 1, "--container", same)
    assert f"container {same} could be any of 2: " in line
    assert all(one.path in line for one in both)
    # the path is what to give then
    declared(daemon, "--cgroup", both[0].path)


def test_hostile_names(daemon, cgroups):
    """Whoever may make cgroups can call them anything."""
    top = cgroups("top.slice")
    for text in ("\x1b[31m", "\u202e", b"\xff\xfe".decode(errors="surrogateescape"), "%s%n"):
        cgroups(f"{OWN}-hostile-{text}.service", top)
    line = failed(daemon, 1, "--unit", f"{OWN}-hostile-")
    assert "\\x1b[31m.service" in line and "%s%n.service" in line
    assert line.isprintable()


def test_not_root(daemon, cgroups, public):
    cgroups(f"{OWN}-web.service", cgroups("top.slice"))
    for option, what in (
        ("--unit", f"{OWN}-web"), ("--container", "0123456789ab"), ("--pod", "shop/frontend")
    ):  # fmt: skip
        done = subprocess.run(
            as_nobody(
                daemon.binary, "declare", "DRAIN", "--socket", daemon.socket, option, what
            ),
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 4, done
        assert f"may not declare for {option[2:]} {what}; only root and the --admin-gid may" in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        ["--unit", ""],
        ["--unit", "a", "--pid", "1"],
        ["--unit", "a", "--container", "0123456789ab"],
        ["--pod", "a/b", "--self"],
        ["--container", "012"],
        ["--container", "nginx"],
        ["--container", "0" * 65],
        ["--pod", "frontend"],
        ["--pod", "a/b/c"],
        ["--pod", "shop/front_end"],
    ],
    ids=" ".join,
)
def test_bad_options(daemon, options):
    failed(daemon, 2, *options)
