# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

pytest.register_assert_rewrite("harness", "peers", "expect", "real")

sys.path.append(str(Path(__file__).parent / "servers"))

import cgroup  # noqa: E402
import harness  # noqa: E402
import peers  # noqa: E402
import real  # noqa: E402


def pytest_configure(config):
    if os.geteuid() != 0:
        pytest.exit("the live tests load BPF programs: run them as root (tests/run uses sudo)", 1)
    for program in (harness.BINARY, peers.URING):
        if not program.exists():
            pytest.exit(f"{program} is not there: run `make build servers`", 1)


@pytest.fixture(scope="session")
def directories():
    """Makes directories in /tmp, which everybody can reach; pytest's own are private."""
    made = []

    def make():
        made.append(tempfile.mkdtemp(prefix="phasewatch-test-"))
        os.chmod(made[-1], 0o755)
        return made[-1]

    yield make
    for directory in made:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def public(directories):
    """The program and the scripts where everybody may use them: the tree may be in a private home.
    And a copy does not change when somebody builds meanwhile."""
    directory = Path(directories())
    shutil.copy(harness.BINARY, directory / "phasewatch")
    shutil.copytree(harness.SERVERS, directory / "servers")
    return directory


@dataclasses.dataclass
class Installed:
    """What `make install` makes of the client library, in a directory that is no system's."""

    root: Path

    @property
    def lib(self):
        return self.root / "usr/local/lib"

    @property
    def environment(self):
        """For compilers and for what they make."""
        return {
            **os.environ,
            "PKG_CONFIG_SYSROOT_DIR": str(self.root),
            "PKG_CONFIG_PATH": str(self.lib / "pkgconfig"),
            "LD_LIBRARY_PATH": str(self.lib),
        }


@pytest.fixture(scope="session")
def installed(directories):
    made = Installed(Path(directories()))
    subprocess.run(
        ["make", "-s", "-C", harness.REPO, "install", f"DESTDIR={made.root}", "PREFIX=/usr/local"],
        check=True,
    )
    return made


@pytest.fixture(scope="session")
def daemon(directories, public):
    """The daemon that most tests share. At the end it goes, and must leave nothing."""
    before = harness.loaded()
    daemon = harness.Daemon(directories(), public / "phasewatch")
    try:
        yield daemon.start()
        assert daemon.stop() == 0, daemon.said()
        assert harness.loaded() - before, "observing goes on without the daemon"
    finally:
        daemon.remove()
    harness.assert_nothing_left(before, daemon.pin_dir)


@pytest.fixture(scope="session")
def fexit(daemon):
    """Whether an accept with a NULL address is seen at once, as phasewatch says itself."""
    shown = json.loads(daemon.run("probe", "-o", "json").stdout)
    return any(h["on"] for h in shown["hooks"] if h["hook"] == "fexit/inet_csk_accept")


@pytest.fixture
def own_daemon(directories, public):
    """A daemon of the test's own, not started yet."""
    daemon = harness.Daemon(directories(), public / "phasewatch", name="own")
    yield daemon
    daemon.remove()


@pytest.fixture
def watch(daemon):
    return daemon.watch()


@pytest.fixture
def actor():
    """Makes scripted processes."""
    made = []

    def make(*args, uring=None, **more):
        if uring:
            able = subprocess.run([peers.URING, uring], capture_output=True, text=True)
            if able.returncode:
                pytest.skip(able.stderr.strip())
        made.append(peers.Actor(*args, uring=uring, **more))
        return made[-1]

    yield make
    for one in made:
        one.stop()


@pytest.fixture
def listening(actor):
    """Makes actors that listen."""

    def make(address="127.0.0.1", *args, port=0, **more):
        one = actor(*args, **more)
        one.port = one.call("listen", address, port)
        return one

    return make


@pytest.fixture
def client(actor):
    """Makes actors with a name of their own, to be clients."""

    def make(prefix=()):
        one = actor(prefix)
        one.comm = f"client-{one.pid}"
        one.call("rename", one.comm)
        return one

    return make


@pytest.fixture
def cgroups():
    """Makes cgroups: with a name of the test's own, or in another with exactly that name. What is
    still in them at the end is killed."""
    if not cgroup.mounted():
        pytest.skip("cgroup2 is not mounted")
    made = []

    def make(name, parent=None, root=None):
        if parent:
            made.append(cgroup.Cgroup(parent.root, parent.directory / name))
        else:
            root = root or cgroup.mounted()
            made.append(cgroup.Cgroup(root, root / f"pw-test-{os.getpid()}-{name}"))
        return made[-1]

    yield make
    cgroup.remove(made)


class Netns:
    """Two network namespaces: the command prefixes `inside` and `outside` run something in the
    first and in the second, which has the address `far`. From the first, `beyond` is an address
    that the second answers for with "host unreachable"."""

    far = "192.0.2.2"
    beyond = "198.51.100.7"

    def __init__(self):
        self.names = [f"pw-test-{os.getpid()}-{i}" for i in range(2)]
        self.inside, self.outside = (["ip", "netns", "exec", name] for name in self.names)

    def ip(self, *args, check=True):
        return subprocess.run(["ip", *args], check=check, capture_output=True, text=True)

    def make(self):
        near, far = self.names
        for name in self.names:
            self.ip("netns", "add", name)
        made = self.ip(
            "link", "add", "near", "netns", near, "type", "veth",
            "peer", "name", "far", "netns", far, check=False,
        )  # fmt: skip
        if made.returncode:
            pytest.skip(f"no veth devices on this kernel: {made.stderr.strip()}")
        for name, device, address in ((near, "near", "192.0.2.1"), (far, "far", self.far)):
            self.ip("-n", name, "address", "add", f"{address}/24", "dev", device)
            self.ip("-n", name, "link", "set", device, "up")
            self.ip("-n", name, "link", "set", "lo", "up")
        self.ip("-n", near, "route", "add", "default", "via", self.far)
        self.ip("-n", far, "route", "add", "unreachable", "198.51.100.0/24")
        forward = "echo 1 >/proc/sys/net/ipv4/ip_forward"
        self.ip("netns", "exec", far, "sh", "-c", forward)

    def remove(self):
        for name in self.names:
            self.ip("netns", "delete", name, check=False)


@pytest.fixture
def netns():
    made = Netns()
    try:
        made.make()
        yield made
    finally:
        made.remove()


SCRIPTS = {
    "blocking": "blocking.py",
    "nonblocking": "nonblocking.py",
    "threads": "threads.py",
    "prefork": "prefork.py",
    "reuseport": "reuseport.py",
    "fork-each": "fork_each.py",
    "node": "node.js",
}
KINDS = [*SCRIPTS, "nginx", "haproxy"]


@pytest.fixture
def server(directories):
    """Makes servers by kind; each has .pid (what one would declare) and .port."""
    made = []

    def make(kind, address="127.0.0.1"):
        if kind in SCRIPTS:
            made.append(peers.script(SCRIPTS[kind], address))
        else:
            directory = Path(directories())
            made.append(getattr(real if hasattr(real, kind) else peers, kind)(address, directory))
            made[-1].directory = directory
        return made[-1]

    yield make
    for one in made:
        one.stop()
