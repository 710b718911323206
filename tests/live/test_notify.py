# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Phases as sd_notify(3) tells them: by systemd-notify, by hand, and by servers that speak it."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import expect
import peers
import pytest
import real
from docs import snippet, snippets
from harness import DEADLINE, NOBODY, as_nobody, wait_until
from peers import children, connect_and_ask

LAST_PID = 4194304


@pytest.fixture
def nobody(actor, public):
    """Makes scripted processes of an unprivileged user."""
    return lambda *command: actor(as_nobody(*command), scripts=public / "servers")


@pytest.fixture
def notify_socket(daemon, monkeypatch):
    """In the environment of what the test starts."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(daemon.notify_socket))


@pytest.fixture
def words_only(own_daemon):
    """A daemon that takes no signal for an answer."""
    own_daemon.options = ["--signals", ""]
    return own_daemon.start()


@pytest.fixture
def gained(daemon):
    """How many messages were accepted, refused and ignored since the test began."""
    before = daemon.metrics().notified()
    return lambda: [n - b for n, b in zip(daemon.metrics().notified(), before)]


def notify(daemon, one, *lines):
    one.call("notify", str(daemon.notify_socket), "\n".join(lines))


def phase(daemon, pid):
    return daemon.subjects().get(pid, {}).get("phase")


def moves(events, pid):
    """The phases that a process was declared in, all of them this way."""
    events = [e for e in expect.of_type(events, "phase") if e["subject"]["id"] == pid]
    assert {e["source"] for e in events} <= {"sdnotify"}
    return [e["to"] for e in events]


# systemd-notify -----------------------------------------------------------------------------


class Shell:
    """A service that is a shell script, and runs systemd-notify with what it is told."""

    def __init__(self, prefix, options):
        script = 'while read -r line; do systemd-notify "$@" "$line"; echo $?; done'
        self.process = subprocess.Popen(
            [*prefix, "sh", "-c", script, "sh", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid

    def say(self, line):
        print(line, file=self.process.stdin, flush=True)
        assert self.process.stdout.readline() == "0\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate(timeout=DEADLINE)


USERS = pytest.mark.parametrize(
    "uid, prefix", [(0, []), (NOBODY, as_nobody())], ids=["root", "nobody"]
)
PID = pytest.mark.parametrize("options", [[], ["--pid"]], ids=["no-pid", "pid"])


@USERS
@PID
def test_systemd_notify(daemon, watch, notify_socket, gained, uid, prefix, options):
    """It declares for the script that runs it, and has done so when it returns."""
    with Shell(prefix, options) as shell:
        shell.say("--ready")
        assert phase(daemon, shell.pid) == "ACTIVE"
        shell.say("RELOADING=1")
        shell.say("--status=nothing new")
        assert phase(daemon, shell.pid) == "ACTIVE"
        shell.say("STOPPING=1")
        assert phase(daemon, shell.pid) == "DRAIN"
        shell.say("X_PHASE=SHUTDOWN")
        assert phase(daemon, shell.pid) == "SHUTDOWN"
    events = watch.collect("phase")
    assert moves(events, shell.pid) == ["ACTIVE", "DRAIN", "SHUTDOWN"]
    assert [e["by"] for e in events] == [{"pid": shell.pid, "uid": uid, "comm": "sh"}] * 3
    # five messages, and a barrier after each
    assert gained() == [3, 0, 2 + 5]


@USERS
@PID
def test_systemd_notify_does_not_wait(daemon, watch, notify_socket, gained, uid, prefix, options):
    """The one of an unprivileged user sends its own pid, and may be gone when it is looked for:
    then it is refused, and never taken for somebody else."""
    with Shell(prefix, [*options, "--no-block"]) as shell:
        for _ in range(11):
            shell.say("--ready")
        wait_until(lambda: sum(gained()) == 11, lambda: f"eleven messages in {gained()}")
    accepted, refused, ignored = gained()
    assert ignored == 0
    assert refused == 0 or uid == NOBODY
    assert moves(watch.collect(), shell.pid) == ["ACTIVE"] * bool(accepted)


def test_systemd_notify_with_options_of_later_releases(daemon, watch, notify_socket):
    known = subprocess.check_output(["systemd-notify", "--help"], text=True)
    if "--stopping" not in known:
        pytest.skip("this systemd-notify has no --stopping")
    with Shell([], []) as shell:
        for option in ("--ready", "--reloading", "--ready", "--stopping"):
            shell.say(option)
    assert moves(watch.collect(), shell.pid) == ["ACTIVE", "DRAIN"]


def test_systemd_notify_is_not_a_privileged_parent(daemon, watch, notify_socket, gained):
    """This process is root: its unprivileged child may not speak for it."""
    for more in ([], ["--pid"], [f"--pid={os.getpid()}"], ["--pid=1"]):
        subprocess.run(as_nobody("systemd-notify", "--ready", *more), check=True)
    assert gained() == [0, 4, 4]
    assert watch.collect("phase") == []


# By hand ------------------------------------------------------------------------------------


def test_server(daemon, watch, nobody):
    """Its life: 23 connections in each phase."""
    one = nobody()
    one.port = one.call("listen", "127.0.0.1")

    def arrive():
        with peers.Kept(one, 23) as kept:
            one.call("close_connections")
            return kept.made

    notify(daemon, one, "X_PHASE=INIT", "X_EPOCH=7", "X_REASON=cold cache", "STATUS=Loading")
    early = arrive()
    notify(daemon, one, "READY=1", "STATUS=Serving")
    arrive()
    notify(daemon, one, "RELOADING=1", "MONOTONIC_USEC=1")
    arrive()
    notify(daemon, one, "READY=1")
    arrive()
    since = expect.now_ns()
    notify(daemon, one, "STOPPING=1", "READY=1", "STATUS=" + "too long for a reason" * 10)
    late = arrive()
    events = watch.collect()
    shown = [e for e in events if e["type"] == "phase"]
    assert moves(events, one.pid) == ["INIT", "ACTIVE", "DRAIN"]
    assert [e.get("reason") for e in shown] == ["cold cache", "Serving", None]
    assert {e["epoch"] for e in shown} == {7}
    assert [e["by"] for e in shown] == [{"pid": one.pid, "uid": NOBODY, "comm": "python3"}] * 3
    accepts = expect.of_type(events, "accept")
    in_init = [e for e in accepts if e["phase"] == "INIT"]
    expect.accepts(in_init, early, one.pid, one.pid, phase="INIT")
    in_drain = [e for e in accepts if e["phase"] == "DRAIN"]
    expect.accepts(in_drain, late, one.pid, one.pid, since=since)
    assert len(accepts) == 2 * 23


def test_fencing(daemon, watch, nobody, gained):
    one = nobody()
    notify(daemon, one, "STOPPING=1", "X_EPOCH=7")
    notify(daemon, one, "READY=1")
    notify(daemon, one, "X_PHASE=SHUTDOWN", "X_EPOCH=6")
    assert gained() == [1, 2, 3]
    notify(daemon, one, "READY=1", "X_EPOCH=8")
    assert gained() == [2, 2, 4]
    events = watch.collect("phase")
    assert [(e["to"], e["epoch"]) for e in events] == [("DRAIN", 7), ("ACTIVE", 8)]


@pytest.mark.parametrize("whose", ["root", "same user", "own parent", "init", "nobody"])
def test_forged_main_pid(daemon, watch, actor, nobody, gained, whose):
    one = nobody()
    pids = {
        "root": lambda: actor().pid,
        "same user": lambda: nobody().pid,
        "own parent": os.getpid,
        "init": lambda: 1,
        "nobody": lambda: LAST_PID,
    }
    pid = pids[whose]()
    said = len(daemon.said())
    notify(daemon, one, "STOPPING=1", f"MAINPID={pid}")
    assert gained() == [0, 1, 1]
    assert phase(daemon, pid) is None
    assert watch.collect("phase") == []
    assert f"process {one.pid} (uid {NOBODY})" in daemon.said()[said:]


def test_main_pid_of_a_child(daemon, nobody):
    """As a parent that is about to leave its service alone says it."""
    one = nobody()
    child = one.call("fork")
    notify(daemon, one, "READY=1", f"MAINPID={child}")
    assert phase(daemon, child) == "ACTIVE"
    assert phase(daemon, one.pid) is None


SHELL = ["sh", "-c", '"$@"; :', "sh"]  # a parent, of the same user


def child_of(one):
    (pid,) = wait_until(lambda: children(one.pid), "it has its child")
    return pid


def test_workers_do_not_speak_for_their_service(daemon, watch, nobody, gained):
    """One that stops must not drain its service, and one that is ready is no service of its own. If
    it means itself, it says so."""
    worker = nobody(*SHELL)
    service, pid = worker.pid, child_of(worker)
    notify(daemon, worker, "READY=1", f"MAINPID={service}")
    notify(daemon, worker, "STOPPING=1")
    notify(daemon, worker, "READY=1")
    assert gained() == [1, 0, 2 + 3]
    assert phase(daemon, service) == "ACTIVE"
    assert phase(daemon, pid) is None
    notify(daemon, worker, "X_PHASE=DRAIN")
    assert phase(daemon, service) == "ACTIVE"
    assert phase(daemon, pid) == "DRAIN"
    events = watch.collect()
    assert (moves(events, service), moves(events, pid)) == (["ACTIVE"], ["DRAIN"])


def test_main_pid_of_a_worker(daemon, watch, nobody):
    """As HAProxy's master under a supervisor that is declared."""
    worker = nobody(*SHELL)
    service, pid = worker.pid, child_of(worker)
    daemon.declare("ACTIVE", service)
    notify(daemon, worker, "READY=1", f"MAINPID={pid}")
    notify(daemon, worker, "STOPPING=1")
    assert phase(daemon, service) == "ACTIVE"
    assert moves(watch.collect(), pid) == ["ACTIVE", "DRAIN"]


def test_workers_that_survive_their_service(daemon, watch, nobody):
    worker = nobody(*SHELL)
    service, pid = worker.pid, child_of(worker)
    notify(daemon, worker, "READY=1", f"MAINPID={service}")
    os.kill(service, signal.SIGKILL)
    worker.wait()
    notify(daemon, worker, "STOPPING=1")
    assert phase(daemon, pid) == "DRAIN"
    assert moves(watch.collect(), pid) == ["DRAIN"]


def test_pid_namespace(daemon, watch, actor, gained):
    """Root of a container says MAINPID=1, as HAProxy does there: it means itself, not the node's
    init."""
    one = actor(["unshare", "--pid", "--fork"])
    notify(daemon, one, "READY=1", "MAINPID=1")
    pid = child_of(one)
    assert phase(daemon, pid) == "ACTIVE"
    notify(daemon, one, "STOPPING=1", f"MAINPID={pid}")
    notify(daemon, one, "STOPPING=1", f"MAINPID={one.pid}")
    notify(daemon, one, "STOPPING=1", "MAINPID=2")
    assert phase(daemon, pid) == "ACTIVE"
    assert gained() == [1, 3, 4]
    assert one.call("fork") == 2
    notify(daemon, one, "STOPPING=1", "MAINPID=2")
    (child,) = children(pid)
    assert (phase(daemon, pid), phase(daemon, child)) == ("ACTIVE", "DRAIN")
    notify(daemon, one, "STOPPING=1")
    assert moves(watch.collect(), pid) == ["ACTIVE", "DRAIN"]
    assert not daemon.subjects().keys() & {1, 2, one.pid}


# Servers that speak it ----------------------------------------------------------------------


def haproxy(directory, stack):
    """Its workers accept for a while yet when it stops."""
    server = peers.haproxy(real.ADDRESS, directory, "-Ws", "grace 60s")
    stack.callback(server.stop)
    return server, real.Http, signal.SIGUSR1, "ok"


def postgres(directory, stack):
    """Waits for the client that it has, and accepts others to tell them that it shuts down."""
    server = real.postgres(real.ADDRESS, directory)
    stack.callback(server.stop)
    stack.callback(real.Postgres(server.port).close)
    return server, real.Postgres, signal.SIGTERM, "closed"


def redis(directory, stack):
    """Waits for a replica that lags behind."""
    options = ["--supervised", "systemd", "--repl-diskless-sync-delay", "0"]
    server = real.redis(real.ADDRESS, directory, *options)
    stack.callback(server.stop)
    (directory / "replica").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("NOTIFY_SOCKET")
        replica = real.redis(real.ADDRESS, directory / "replica", "--replicaof", real.ADDRESS, str(server.port))
    stack.callback(replica.stop)
    client = Info(server.port)
    stack.callback(client.close)
    wait_until(lambda: "state=online" in client.info(), "the replica is online")
    os.kill(replica.pid, signal.SIGSTOP)
    client.send(b"SET one two\r\n")
    return server, real.Redis, signal.SIGTERM, "ok"


class Info(real.Redis):
    def info(self):
        self.send(b"INFO replication\r\nPING\r\n")
        while not self.complete():
            self.got += self.sock.recv(65536)
        text, self.got = self.got.decode(), b""
        return text


@pytest.mark.parametrize("kind", [haproxy, postgres, redis], ids=lambda f: f.__name__)
def test_servers(words_only, monkeypatch, directories, kind):
    """Nobody declares anything: they say themselves when they are ready and when they stop, and go
    on accepting."""
    daemon, watch = words_only, words_only.watch()
    monkeypatch.setenv("NOTIFY_SOCKET", str(daemon.notify_socket))
    with contextlib.ExitStack() as stack:
        server, client, stop, outcome = kind(Path(directories()), stack)
        wait_until(lambda: phase(daemon, server.pid) == "ACTIVE", "it is ready")
        assert [client(server.port).ask() for _ in range(11)] == ["ok"] * 11
        server.process.send_signal(stop)
        wait_until(lambda: phase(daemon, server.pid) == "DRAIN", "it stops")
        late = [client(server.port) for _ in range(23)]
        assert {c.opened if c.opened != "ok" else c.ask() for c in late} == {outcome}
        events = watch.collect()
    assert moves(events, server.pid) == ["ACTIVE", "DRAIN"]
    accepts = expect.of_type(events, "accept")
    assert sorted(e["src"]["port"] for e in accepts) == sorted(c.port for c in late)
    assert {e["subject"]["id"] for e in accepts} == {server.pid}
    assert {(e["phase"], e["verdict"]) for e in accepts} == {("DRAIN", "misrouted")}


def test_signal_and_word(daemon, watch, notify_socket, directories):
    """The signal is quicker, and the service then says the same."""
    server = peers.haproxy(real.ADDRESS, directories(), "-Ws", "grace 60s")
    try:
        wait_until(lambda: phase(daemon, server.pid) == "ACTIVE", "it is ready")
        before = daemon.metrics().notified()[0]
        os.kill(server.pid, signal.SIGUSR1)
        wait_until(lambda: daemon.metrics().notified()[0] > before, "it has said STOPPING=1")
        events = [e for e in watch.collect("phase") if e["subject"]["id"] == server.pid]
        shown = [(e["to"], e["source"]) for e in events]
        assert shown == [("ACTIVE", "sdnotify"), ("DRAIN", "signal")]
    finally:
        server.stop()


def test_reload(daemon, watch, notify_socket, directories):
    """HAProxy's reload is no drain."""
    server = peers.haproxy(real.ADDRESS, directories(), "-Ws")
    try:
        wait_until(lambda: phase(daemon, server.pid) == "ACTIVE", "it is ready")
        old = children(server.pid)
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: not children(server.pid) & old, "it has a new worker only")
        wait_until(lambda: peers.minds_signals(server.pid), "haproxy's master minds signals")
        assert [real.Http(server.port).ask() for _ in range(11)] == ["ok"] * 11
        events = watch.collect()
        assert moves(events, server.pid) == ["ACTIVE"]
        assert expect.counted(events) == {}
    finally:
        server.stop()


# The manual's examples ----------------------------------------------------------------------

PAGE = "notify.md"

# Paths as the manual has them: the daemon's directory is /run/phasewatch, its program is installed.
AT_HOME = """
mount -t tmpfs tmpfs /run
mkdir -p /run/phasewatch /run/systemd/system /run/user
mount --bind "$1" /run/phasewatch
mount -t tmpfs tmpfs /usr/local/bin
ln -s "$2" /usr/local/bin/phasewatch
shift 2
exec "$@"
"""


def at_home(daemon, *command):
    home = ["sh", "-ec", AT_HOME, "sh", str(daemon.directory), str(daemon.binary)]
    return ["unshare", "--mount", *home, *command]


@pytest.mark.parametrize("name, interpreter", [("script", "sh"), ("python", sys.executable)])
def test_example(daemon, watch, tmp_path, name, interpreter):
    program = snippet(PAGE, name, tmp_path / name)
    with open(program, "a") as file:
        print({"script": "read _", "python": "input()"}[name], file=file)
    service = subprocess.Popen(
        at_home(daemon, interpreter, str(program)),
        stdin=subprocess.PIPE,
        env={**os.environ, "NOTIFY_SOCKET": "/run/phasewatch/notify.sock"},
    )
    wait_until(lambda: phase(daemon, service.pid) == "DRAIN", "it has said all")
    service.communicate(b"\n", DEADLINE)
    assert service.returncode == 0
    events = [e for e in watch.collect("phase") if e["subject"]["id"] == service.pid]
    assert moves(events, service.pid) == ["ACTIVE", "DRAIN"]
    assert events[1]["reason"] == "rolling update"


class Manager:
    """A systemd of its own, which runs app.service with this drop-in: a user's manager, in a cgroup
    that it cannot look out of."""

    def __init__(self, daemon, cgroup, directory, service, drop_in):
        self.cgroup = cgroup
        self.log = directory / "log"
        units = directory / "systemd" / "user"
        (units / "app.service.d").mkdir(parents=True)
        (units / "app.service").write_text(service)
        (units / "app.service.d" / "phasewatch.conf").write_text(drop_in)
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": "/run/user",
            "XDG_CONFIG_HOME": str(directory),
        }
        enter = 'echo $$ >"$1/cgroup.procs"; shift; exec "$@"'
        alone = 'mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"'
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                ["sh", "-ec", enter, "sh", str(cgroup.directory)]
                + ["unshare", "--mount", "--cgroup", "sh", "-ec", alone, "sh"]
                + at_home(daemon, "/lib/systemd/systemd", "--user"),
                env=self.environment,
                stdout=log,
                stderr=log,
            )

    def systemctl(self, *command, check=True):
        done = subprocess.run(
            ["nsenter", "--mount", "--target", str(self.process.pid)]
            + ["systemctl", "--user", *command],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        assert done.returncode == 0 or not check, done.stderr + self.log.read_text()
        return done.stdout.strip()

    def wait_running(self):
        def running():
            if self.process.poll() is not None:
                pytest.skip(f"no user's systemd here: {self.log.read_text()}")
            return self.systemctl("is-system-running", check=False) in ("running", "degraded")

        wait_until(running, self.log.read_text)

    def main_pid(self):
        return int(self.systemctl("show", "app", "-P", "MainPID"))

    def stop(self):
        self.systemctl("exit", check=False)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(DEADLINE)
        wait_until(self.is_empty, "nobody is left of systemd and its services")
        self.process.wait(DEADLINE)
        for directory in sorted(filter(Path.is_dir, self.cgroup.directory.rglob("*")))[::-1]:
            directory.rmdir()

    def is_empty(self):
        lists = [f.read_text().split() for f in self.cgroup.directory.rglob("cgroup.procs")]
        for pid in map(int, sum(lists, [])):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not any(lists)


@pytest.mark.parametrize("kind, name", [("exec", "unit"), ("notify", "unit-notify")])
def test_unit(words_only, cgroups, directories, kind, name):
    """HAProxy, stopped while a request is under way: systemd waits for that."""
    daemon, watch = words_only, words_only.watch()
    directory = Path(directories())
    config, port = peers.haproxy_config(real.ADDRESS, directory)
    service = f"""
[Service]
Type={kind}
ExecStart=/usr/sbin/haproxy -Ws -q -f {config}
KillMode=mixed
KillSignal=SIGUSR1
"""
    manager = Manager(daemon, cgroups("systemd"), directory, service, snippets(PAGE)[name])
    try:
        manager.wait_running()
        manager.systemctl("start", "app")
        pid = manager.main_pid()
        wait_until(lambda: phase(daemon, pid) == "ACTIVE", "it is ready")
        wait_until(lambda: peers.minds_signals(pid), "haproxy's master minds signals")
        client = real.Http(port)
        client.begin()
        manager.systemctl("stop", "--no-block", "app")
        wait_until(lambda: phase(daemon, pid) == "DRAIN", "it stops")
        assert client.finish() == "ok"
        client.close()
        wait_until(lambda: manager.main_pid() == 0, "it has ended")
    finally:
        manager.stop()
    events = [e for e in watch.collect() if e.get("subject", {}).get("id") == pid]
    phases = expect.of_type(events, "phase")
    assert [e["to"] for e in phases] == ["ACTIVE", "DRAIN"]
    assert {e["source"] for e in phases} == {"sdnotify" if kind == "exec" else "api"}
    assert {e["subject"]["name"] for e in phases} == {"app"}
    exits = {e["process"]["pid"]: e["phase"] for e in expect.of_type(events, "exit")}
    assert exits[pid] == "DRAIN"


# The socket ---------------------------------------------------------------------------------


def test_no_socket(own_daemon):
    own_daemon.options = ["--notify-socket", ""]
    own_daemon.start()
    assert not own_daemon.notify_socket.exists()
    assert "phasewatch_notify" not in own_daemon.get("/metrics")


def test_socket_elsewhere(own_daemon, actor):
    own_daemon.notify_socket = own_daemon.directory / "made" / "here"
    own_daemon.options = ["--notify-socket", str(own_daemon.notify_socket)]
    own_daemon.start()
    one = actor()
    notify(own_daemon, one, "READY=1")
    assert phase(own_daemon, one.pid) == "ACTIVE"
    assert own_daemon.stop() == 0
    assert not own_daemon.notify_socket.exists()


def test_restart(own_daemon, actor):
    """What was declared is still so, and the socket that was left there is replaced."""
    one = actor()
    own_daemon.start()
    notify(own_daemon, one, "READY=1", "X_EPOCH=7")
    own_daemon.kill()
    assert own_daemon.notify_socket.exists()
    own_daemon.start()
    notify(own_daemon, one, "STOPPING=1")
    shown = own_daemon.subject(one.pid)
    assert (shown["phase"], shown["subject"]["epoch"]) == ("DRAIN", 7)
    assert own_daemon.metrics().notified() == [1, 0, 1]


FLOOD = r"""
import os, random, socket, sys
path, count = sys.argv[1], int(sys.argv[2])
choices = [b"", b"\0", b"\0" * 4096, b"x" * 4097, b"READY=1\n" * 20000, b"READY=1\0STOPPING=1",
    b"X_PHASE=", b"X_PHASE=\xff\x1b[31m", b"X_EPOCH=99999999999999999999", b"READY=1\nMAINPID=-1",
    b"STOPPING=1\nX_REASON=" + b"y" * 4000, os.urandom(4096), b"=\n" * 2048]
null = os.open("/dev/null", os.O_RDONLY)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.connect(path)
    for i in range(count):
        message = random.choice(choices)
        if i % 17:
            sock.send(message)
        else:
            socket.send_fds(sock, [message], [null] * random.randrange(1, 253))
"""


def flood(daemon, count):
    return subprocess.Popen(
        as_nobody(sys.executable, "-c", FLOOD, str(daemon.notify_socket), str(count))
    )


def memory(pid):
    """Resident, in kB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_flood(own_daemon, server):
    """Half a million messages that are nothing, in at most 30 s: the daemon does not grow, does not
    log each, answers, and misses no connection meanwhile."""
    own_daemon.start()
    s = server("blocking")
    watch = own_daemon.watch()
    own_daemon.declare("DRAIN", s.pid)
    assert flood(own_daemon, 10_007).wait(DEADLINE) == 0
    pid = own_daemon.process.pid
    files, said = len(os.listdir(f"/proc/{pid}/fd")), own_daemon.said().count("\n")
    before = memory(pid)
    began = expect.now_ns()
    storm = flood(own_daemon, 500_009)
    made = connect_and_ask("127.0.0.1", s.port, 1009)
    asked = 0
    while storm.poll() is None:
        assert own_daemon.get("/healthz").strip() == "ok"
        asked += 1
    seconds = (expect.now_ns() - began) / 1e9
    assert storm.returncode == 0
    assert seconds <= 30
    wait_until(lambda: sum(own_daemon.metrics().notified()) == 510_016, "all were looked at")
    assert own_daemon.metrics().notified()[0] == 0
    assert memory(pid) - before < 1024
    wait_until(lambda: len(os.listdir(f"/proc/{pid}/fd")) == files, "it has no more files open")
    # a refusal a second, and how many there were besides
    assert own_daemon.said().count("\n") - said <= 2 * (seconds + 2)
    assert asked > 100
    events = watch.collect()
    expect.accepts(events, made, s.pid)
    assert not expect.of_type(events, "lost")
