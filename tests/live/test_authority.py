# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Who may declare what, and how much of it; the audit log says who did, exactly once."""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import harness
import pytest
from harness import NOBODY, as_nobody, wait_until
from peers import Actor, Server

ADMINS = 4711
SUBJECTS = 5  # of one user
HELD = 256  # connections of one user
BURST = 250  # declarations of one user at once
LAST_PID = 4194304
SO_PEERPIDFD = 77


class Audit:
    """The audit log from here on."""

    def __init__(self, daemon):
        self.daemon = daemon
        self.path = daemon.directory / "audit.jsonl"
        self.seen = self.path.stat().st_size

    def lines(self, subject=None):
        """Those since the last time, or those about one subject. A declaration is in it before it
        is answered."""
        with open(self.path) as file:
            file.seek(self.seen)
            text = file.read()
            self.seen = file.tell()
        assert not text or text.endswith("\n")
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            assert line["schema"] == 1
            assert line["node"] == socket.gethostname()
            harness.check_value(line, line)
        return [x for x in lines if subject in (None, x.get("subject", {}).get("id"))]

    def once(self, verdict, **fields):
        """The only line, which has these fields."""
        lines = self.lines()
        assert [x["verdict"] for x in lines] == [verdict], lines
        assert {k: lines[0].get(k) for k in fields} == fields
        return lines[0]

    def nothing(self):
        assert self.lines() == []


@pytest.fixture(scope="module")
def guarded(directories, public):
    """A daemon with an audit log."""
    daemon = harness.Daemon(directories(), public / "phasewatch", name="guarded")
    daemon.options = [
        "--audit-log", str(daemon.directory / "audit.jsonl"), "--admin-gid", str(ADMINS),
        "--limit-subjects", str(SUBJECTS),
    ]  # fmt: skip
    try:
        yield daemon.start()
        assert daemon.stop() == 0, daemon.said()
    finally:
        daemon.remove()


@pytest.fixture
def audit(guarded):
    return Audit(guarded)


@pytest.fixture
def user(actor, public):
    """Makes scripted processes of a user: each test has a uid of its own, as limits are by uid."""

    def make(uid, *command, gid=None, groups=()):
        gid = uid if gid is None else gid
        more = [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
        prefix = ["setpriv", f"--reuid={uid}", f"--regid={gid}", *more, *command]
        return actor(prefix, scripts=public / "servers")

    return make


uids = iter(range(61000, 62000))


@pytest.fixture
def uid():
    return next(uids)


def who(pid, uid, gid=None):
    """What the audit log has to know of a process that lives."""
    proc = Path("/proc", str(pid))
    known = {"pid": pid, "uid": uid, "gid": uid if gid is None else gid}
    known["comm"] = (proc / "comm").read_text().rstrip("\n")
    known["exe"] = os.readlink(proc / "exe")
    cgroups = (proc / "cgroup").read_text().splitlines()
    return known | {"cgroup": line[3:] for line in cgroups if line.startswith("0::")}


def declare(one, daemon, **body):
    """By the actor itself: the status, and the answer or the error."""
    status, answer = one.call("put_phase", str(daemon.socket), body)
    answer = json.loads(answer)
    return status, answer.get("error", answer)


def command(daemon, *words):
    return [str(daemon.binary), words[0], "--socket", str(daemon.socket), *words[1:]]


# Each declaration, once ---------------------------------------------------------------------


def test_each_verdict(guarded, audit, actor):
    """By root, with the command: who runs it is named as in the event."""
    one = actor()
    comm = Path("/proc/self/comm").read_text().rstrip("\n")
    pid = str(one.pid)
    cases = [
        ("accepted", ["ACTIVE", "--epoch", "7"], "UNDECLARED", "ACTIVE", 7),
        ("unchanged", ["ACTIVE"], "ACTIVE", "ACTIVE", 7),
        ("accepted", ["DRAIN", "--reason", "rolling \"update\" \u00fc"], "ACTIVE", "DRAIN", 7),
        ("refused", ["INIT"], "DRAIN", "INIT", 7),
        ("refused", ["DRAIN", "--epoch", "6"], "DRAIN", "DRAIN", 6),
        ("accepted", ["INIT", "--epoch", "8"], "DRAIN", "INIT", 8),
    ]
    for verdict, words, before, after, epoch in cases:
        done = guarded.cli("declare", *words, "--pid", pid)
        line = audit.once(verdict, source="api", epoch=epoch)
        assert (line["from"], line["to"]) == (before, after)
        assert line["subject"] == {"kind": "process", "id": one.pid, "name": "python3"}
        assert line["by"] == {"pid": os.getpid(), "comm": comm}
        said = line["who"]
        assert (said["uid"], said["gid"], said["comm"]) == (0, 0, "phasewatch")
        assert said["exe"] == str(guarded.binary)
        assert said["pid"] not in (os.getpid(), one.pid)
        if verdict == "refused":
            assert done.returncode == 4
            assert line["why"] in done.stderr
        else:
            assert done.returncode == 0, done.stderr
            assert "why" not in line
    assert guarded.subject(one.pid)["phase"] == "INIT"


def test_event_and_line_agree(guarded, audit, actor):
    watch = guarded.watch()
    one = actor()
    guarded.declare("DRAIN", one.pid, "--reason", "why not")
    (event,) = watch.collect("phase")
    (line,) = audit.lines(one.pid)
    assert {k: line[k] for k in ("from", "to", "epoch", "source", "reason", "node")} == {
        k: event[k] for k in ("from", "to", "epoch", "source", "reason", "node")
    }
    assert line["by"] == {k: event["by"][k] for k in ("pid", "comm")}
    assert line["time"][:16] in (event["time"][:16], time.strftime("%Y-%m-%dT%H:%M", time.gmtime()))


def test_no_such_process(guarded, audit):
    done = guarded.cli("declare", "DRAIN", "--pid", str(LAST_PID))
    assert done.returncode == 1
    line = audit.once("refused", to="DRAIN")
    assert line["subject"] == {"kind": "process", "id": LAST_PID}


def test_no_such_cgroup(guarded, audit):
    done = guarded.cli("declare", "DRAIN", "--cgroup", "/none/such")
    assert done.returncode == 1
    line = audit.once("refused", to="DRAIN")
    assert line["subject"] == {"kind": "cgroup", "name": "/none/such"}
    assert "from" not in line


def test_cgroup(guarded, audit, user, cgroups, uid):
    """By root and by an admin. What cannot be is refused in the same words to both."""
    top = cgroups("audited")
    admin = user(uid, groups=[ADMINS])
    name = top.path.rpartition("/")[2]
    done = guarded.cli("declare", "DRAIN", "--cgroup", top.path)
    assert done.returncode == 0, done.stderr
    line = audit.once("accepted", to="DRAIN")
    assert line["subject"] == {"kind": "cgroup", "id": top.id, "name": name}
    for phase, status, verdict in (("SHUTDOWN", 200, "accepted"), ("ACTIVE", 409, "refused")):
        assert declare(admin, guarded, phase=phase, cgroup=top.path)[0] == status
        line = audit.once(verdict, to=phase, epoch=1)
        assert line["from"] == {"SHUTDOWN": "DRAIN", "ACTIVE": "SHUTDOWN"}[phase]
        assert line["subject"] == {"kind": "cgroup", "id": top.id, "name": name}
        assert line["who"] == who(admin.pid, uid)


def test_signal(guarded, audit, actor):
    """A move that the kernel half makes: who sent the signal, and nobody declared."""
    one = actor()
    one.call("catch", "SIGTERM")
    guarded.declare("ACTIVE", one.pid)
    assert len(audit.lines(one.pid)) == 1
    os.kill(one.pid, signal.SIGTERM)
    wait_until(lambda: guarded.subject(one.pid)["phase"] == "DRAIN", "it drains")
    (line,) = audit.lines(one.pid)
    assert (line["verdict"], line["source"], line["reason"]) == ("accepted", "signal", "SIGTERM")
    assert (line["from"], line["to"], line["epoch"]) == ("ACTIVE", "DRAIN", 1)
    mine = who(os.getpid(), 0)
    del mine["gid"]  # of a sender the kernel half tells the rest
    assert line["who"] == mine
    wait_reconciled(guarded)
    assert audit.lines(one.pid) == []


def test_what_is_no_declaration(guarded, audit, user, uid):
    """Nothing that could be audited was said; nor does anybody say it over TCP."""
    one = user(uid)
    assert declare(one, guarded, phase="GONE", self=True)[0] == 400
    assert declare(one, guarded, phase="DRAIN")[0] == 400
    with socket.create_connection(("127.0.0.1", guarded.port)) as sock:
        sock.sendall(b"PUT /v1/phase HTTP/1.0\r\nContent-Length: 31\r\n\r\n"
                     b'{"phase":"DRAIN","self":true}  ')  # fmt: skip
        assert b" 403 " in sock.recv(4096)
    audit.nothing()


@pytest.mark.parametrize("source", [0, 1])
def test_write_to_the_map(guarded, audit, actor, source):
    """Around the door, whatever source it claims."""
    one = actor()
    little = [f"{b:#04x}" for b in b"".join(n.to_bytes(4, "little") for n in (3, source))]
    key = [f"{b:#04x}" for b in (1).to_bytes(8, "little") + one.pid.to_bytes(8, "little")]
    update = ["bpftool", "map", "update", "pinned", str(guarded.pin_dir / "pw_phases")]
    subprocess.run([*update, "key", *key, "value", *little, *["0x00"] * 120], check=True)
    wait_until(lambda: one.pid in guarded.subjects(), "the daemon has seen it")
    line = audit.once("accepted", source=["map", "api"][source], to="DRAIN", epoch=1)
    assert line["subject"]["id"] == one.pid
    assert "who" not in line
    wait_reconciled(guarded)
    assert audit.lines(one.pid) == []


def wait_reconciled(daemon):
    """The daemon has compared itself with the map twice: a subject has been found gone since."""
    with subprocess.Popen(["sleep", "60"]) as gone:
        status, _ = daemon.request(
            "PUT", "/v1/phase", json.dumps({"phase": "ACTIVE", "pid": gone.pid})
        )
        assert status == 200
        gone.kill()
    wait_until(lambda: gone.pid not in daemon.subjects(), "its subject is gone")


# Who may ------------------------------------------------------------------------------------


def test_own_and_others(guarded, audit, user, uid):
    one, other = user(uid), user(uid + 10000)
    status, _ = declare(one, guarded, phase="ACTIVE", self=True, reason="ready")
    assert status == 200
    line = audit.once("accepted", to="ACTIVE", source="api", reason="ready")
    assert line["who"] == who(one.pid, uid)
    assert line["subject"]["id"] == one.pid
    assert "by" not in line

    # a pid in the request is whom it is for, never who asks
    for pid in (other.pid, os.getpid(), 1, LAST_PID):
        status, error = declare(one, guarded, phase="DRAIN", pid=pid)
        assert status == 403
        assert f"process {pid} is not yours" in error
        line = audit.once("refused", to="DRAIN", why=error)
        assert line["who"] == who(one.pid, uid)
        assert line["subject"]["id"] == pid
        assert pid not in guarded.subjects()
    for claim in ({"uid": 0}, {"by_pid": 1}, {"by_uid": 0}, {"gid": ADMINS}, {"source": "map"}):
        assert declare(one, guarded, phase="DRAIN", pid=other.pid, **claim)[0] == 400
    audit.nothing()


def test_cgroup_is_not_for_users(guarded, audit, user, uid):
    """Not even whether there is such a path is told."""
    one = user(uid)
    for path in ("/", "/none/such", "/proc/1/root"):
        status, error = declare(one, guarded, phase="DRAIN", cgroup=path)
        assert (status, path in error) == (403, True)
        line = audit.once("refused", why=error)
        assert line["subject"] == {"kind": "cgroup", "name": path}


def need_user_namespaces(*flags):
    done = subprocess.run(as_nobody("unshare", *flags, "true"), capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()}")


def test_root_of_another_user_namespace(guarded, audit, user, actor, uid):
    """There it is uid 0, and here it is not."""
    need_user_namespaces("-Ur")
    one, victim = user(uid, "unshare", "-Ur"), actor()
    assert one.call("run", "id", "-u")[1] == "0\n"
    for pid in (victim.pid, 1):
        status, error = declare(one, guarded, phase="DRAIN", pid=pid)
        assert (status, f"(uid {uid})" in error) == (403, True)
        assert audit.once("refused")["who"] == who(one.pid, uid)
        code, out, _ = one.call("run", *command(guarded, "declare", "DRAIN", "--pid", str(pid)))
        assert (code, out) == (4, "")
        line = audit.once("refused")
        assert (line["who"]["uid"], line["who"]["comm"]) == (uid, "phasewatch")
        assert line["by"]["pid"] == one.pid
    assert victim.pid not in guarded.subjects()
    assert declare(one, guarded, phase="DRAIN", self=True)[0] == 200
    assert audit.once("accepted")["who"] == who(one.pid, uid)


def test_pid_of_another_namespace(guarded, audit, user, uid):
    """What it calls 1 is itself, here it is init; what others are called here is nobody there."""
    need_user_namespaces("-Urpf")
    one = user(uid, "unshare", "-Urpf", "--kill-child", "--mount-proc")
    assert one.call("run", "sh", "-c", "echo $PPID")[1] == "1\n"
    (inside,) = map(int, Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split())
    for pid in (os.getpid(), inside, LAST_PID):
        status, error = declare(one, guarded, phase="DRAIN", pid=pid)
        assert (status, f"no process {pid} in the caller's" in error) == (404, True)
        line = audit.once("refused", why=error)
        assert line["who"] == who(inside, uid)
        assert line["subject"] == {"kind": "process"}
        assert pid not in guarded.subjects()
    for phase, means in (("ACTIVE", {"pid": 1}), ("DRAIN", {"self": True})):
        assert declare(one, guarded, phase=phase, **means)[0] == 200
        line = audit.once("accepted", to=phase)
        assert line["who"] == who(inside, uid)
        assert line["subject"]["id"] == inside
    assert 1 not in guarded.subjects()


@pytest.mark.parametrize("how", ["primary", "supplementary", "by command"])
def test_admin_group(guarded, audit, user, actor, uid, how):
    ids = {"gid": ADMINS} if how == "primary" else {"groups": [5, ADMINS, 6]}
    one, victim = user(uid, **ids), actor()
    for phase in ("INIT", "ACTIVE", "DRAIN"):
        if how == "by command":
            words = command(guarded, "declare", phase, "--pid", str(victim.pid))
            assert one.call("run", *words)[0] == 0
            line = audit.once("accepted", to=phase)
            assert (line["who"]["comm"], line["by"]["pid"]) == ("phasewatch", one.pid)
        else:
            assert declare(one, guarded, phase=phase, pid=victim.pid)[0] == 200
            line = audit.once("accepted", to=phase)
            assert line["who"] == who(one.pid, uid, ids.get("gid"))
    # as root may: without limits, too
    for _ in range(2 * BURST):
        assert declare(one, guarded, phase="DRAIN", pid=victim.pid)[0] == 200
    assert Counter(x["verdict"] for x in audit.lines()) == {"unchanged": 2 * BURST}


@pytest.mark.parametrize("groups", [[], [5, 6], [ADMINS - 1, ADMINS + 1]], ids=str)
def test_not_in_the_admin_group(guarded, audit, user, actor, uid, groups):
    one, victim = user(uid, groups=groups), actor()
    assert declare(one, guarded, phase="DRAIN", pid=victim.pid)[0] == 403
    assert audit.once("refused")["who"] == who(one.pid, uid)


def test_admin_group_of_another_user_namespace(guarded, audit, user, actor, uid):
    """There one can have any group that one maps, and one's own is all that one can map."""
    need_user_namespaces("-U", f"--map-group={ADMINS}")
    one, victim = user(uid, "unshare", "-U", f"--map-group={ADMINS}"), actor()
    assert one.call("run", "id", "-g")[1] == f"{ADMINS}\n"
    assert declare(one, guarded, phase="DRAIN", pid=victim.pid)[0] == 403
    assert audit.once("refused")["who"] == who(one.pid, uid)


def ask(sock, **body):
    """A declaration on a connection that another process has made."""
    text = json.dumps(body)
    head = f"PUT /v1/phase HTTP/1.0\r\nContent-Length: {len(text)}\r\n\r\n"
    sock.sendall((head + text).encode())
    answer = b""
    while data := sock.recv(65536):
        answer += data
    head, answer = answer.decode().split("\r\n\r\n", 1)
    return int(head.split()[1]), json.loads(answer).get("error")


def lend_connection(one, daemon):
    one.call("close_connections")
    one.call("connect_unix", str(daemon.socket))
    _, (fd,) = one.call_for_fds("lend_connections")
    return socket.socket(fileno=fd)


def knows_peers(sock):
    try:
        os.close(sock.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD))
    except OSError as e:
        pytest.skip(f"the kernel gives no pidfd of a peer (6.5): {e}")


@pytest.mark.parametrize("heir", ["same user", "root", "nobody"])
def test_recycled_pid(guarded, audit, actor, user, uid, heir):
    """Whoever connected has handed the connection on and ended. Its pid, which the connection still
    has, is another process's: nobody speaks for that one."""
    one = user(uid)
    with lend_connection(one, guarded) as sock:
        if heir == "same user":
            knows_peers(sock)
        one.die("exit")
        if heir != "nobody":
            ids = [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            prefix = ["setpriv", *ids] if heir == "same user" else []
            actor().call("spawn_as", one.pid, *prefix, "sleep", "600")
            comm = Path(f"/proc/{one.pid}/comm")
            wait_until(lambda: comm.read_text() == "sleep\n", "the heir is there")
        status, error = ask(sock, phase="DRAIN", **{"self": True})
    assert status == 403, error
    line = audit.once("refused", why=error)
    # what the connection has is told, and nothing of the heir
    assert line["who"] == {"pid": one.pid, "uid": uid, "gid": uid}
    assert one.pid not in guarded.subjects()


def test_connection_of_another(guarded, audit, user, uid):
    """A connection that is handed on speaks for who made it, while that lives."""
    one, other = user(uid), user(uid + 10000)
    with lend_connection(one, guarded) as sock:
        assert ask(sock, phase="DRAIN", pid=other.pid)[0] == 403
    assert audit.once("refused")["who"] == who(one.pid, uid)
    with lend_connection(one, guarded) as sock:
        assert ask(sock, phase="DRAIN", **{"self": True})[0] == 200
    line = audit.once("accepted")
    assert (line["subject"]["id"], line["who"]) == (one.pid, who(one.pid, uid))


# Limits -------------------------------------------------------------------------------------


def test_rate(guarded, audit, user, uid):
    one, other = user(uid), user(uid + 10000)
    begin = time.monotonic()
    answers = [declare(one, guarded, phase="DRAIN", self=True) for _ in range(5 * BURST)]
    code, out, err = one.call("run", *command(guarded, "declare", "DRAIN"))
    took = time.monotonic() - begin
    counts = Counter(status for status, _ in answers)
    assert counts.keys() == {200, 429}
    # a token more for each 20 ms
    assert BURST <= counts[200] <= BURST + 50 * took + 1
    error = next(error for status, error in answers if status == 429)
    assert f"uid {uid}" in error
    assert "the limit is 50 a second, 250 at once; try again in 0.0" in error
    if code:
        assert (code, out) == (4, "")
        assert "try again in" in err
    # it is nobody else's affair
    assert declare(other, guarded, phase="DRAIN", self=True)[0] == 200

    wanted = counts[429] + bool(code)
    lines = audit.lines()
    wait_until(
        lambda: lines.extend(audit.lines()) or too_often(lines, uid) >= wanted, "all are audited"
    )
    assert too_often(lines, uid) == wanted
    others = [x for x in lines if x["verdict"] != "refused"]
    assert len(others) == counts[200] + (not code) + 1
    assert Counter(x["verdict"] for x in others)["accepted"] == 2


def too_often(lines, uid):
    """How many declarations of this user were refused for that."""
    refused = [x for x in lines if x["verdict"] == "refused" and x["who"]["uid"] == uid]
    often = [x for x in refused if x["why"] == f"uid {uid} declares too often"]
    # what waited to be served when whoever asked was killed
    late = [x for x in refused if x["why"].endswith(", which connected, has ended")]
    assert len(often) + len(late) == len(refused), refused
    return sum(x.get("count", 1) for x in often)


def test_subjects(guarded, audit, user, uid):
    one = user(uid)
    children = [one.call("fork") for _ in range(SUBJECTS + 1)]
    for pid in children[:SUBJECTS]:
        assert declare(one, guarded, phase="ACTIVE", pid=pid)[0] == 200
    assert len(audit.lines()) == SUBJECTS
    last = children[-1]
    status, error = declare(one, guarded, phase="ACTIVE", pid=last)
    assert status == 429
    assert f"uid {uid} has declared 5 processes: the limit is 5; try again when one" in error
    assert audit.once("refused", why=error)["who"] == who(one.pid, uid)
    code, out, err = one.call("run", *command(guarded, "declare", "DRAIN", "--pid", str(last)))
    assert (code, out) == (4, "")
    audit.once("refused")
    # those that are there may move, and another user and root may have more
    assert declare(one, guarded, phase="DRAIN", pid=children[0])[0] == 200
    assert declare(user(uid + 10000), guarded, phase="DRAIN", self=True)[0] == 200
    guarded.declare("ACTIVE", last)
    os.kill(last, signal.SIGKILL)
    assert Counter(x["verdict"] for x in audit.lines()) == {"accepted": 3}

    # one that has ended makes room
    another = one.call("fork")
    assert declare(one, guarded, phase="ACTIVE", pid=another)[0] == 429
    os.kill(children[1], signal.SIGKILL)
    wait_until(lambda: children[1] not in guarded.subjects(), "its subject is gone")
    assert declare(one, guarded, phase="ACTIVE", pid=another)[0] == 200
    assert Counter(x["verdict"] for x in audit.lines()) == {"accepted": 1, "refused": 1}


def test_connections(guarded, user, uid):
    """One user holds as many as it may, and no more; nobody else notices."""
    one, other = user(uid), user(uid + 10000)
    before = guarded.metrics().sum("phasewatch_api_connections_refused_total")
    for _ in range(HELD):
        one.call("connect_unix", str(guarded.socket))
    for path in ("/healthz", "/metrics"):
        status, body = one.call("get", str(guarded.socket), path)
        assert status == 429
        assert "too many connections" in json.loads(body)["error"]
    code, out, err = one.call("run", *command(guarded, "ps"))
    assert (code, out) == (4, "")
    assert "too many connections" in err
    assert other.call("get", str(guarded.socket), "/healthz")[0] == 200
    assert guarded.get("/healthz").strip() == "ok"
    refused = guarded.metrics().sum("phasewatch_api_connections_refused_total")
    assert refused - before == 3
    one.call("close_connections", [0])
    assert one.call("get", str(guarded.socket), "/healthz")[0] == 200


# Floods -------------------------------------------------------------------------------------


def resources(daemon):
    """Resident memory in MiB, and open file descriptors."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    (rss,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
    return int(rss) / 1024, len(os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_a_million_malformed_requests(own_daemon, public):
    """Of root, whom no limit slows down."""
    own_daemon.start()
    script = [sys.executable, str(public / "servers" / "malformed.py")]

    def ask_nonsense(count, clients):
        command = [*script, str(own_daemon.socket), str(count // clients)]
        asking = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(clients)]
        answers = [json.loads(one.communicate(timeout=60)[0] or "{}") for one in asking]
        return sum(a["answered"] for a in answers), sum(a["closed"] for a in answers)

    ask_nonsense(10_000, 4)
    rss, fds = resources(own_daemon)
    answered, closed = ask_nonsense(1_000_000, 4)
    assert answered + closed >= 1_000_000
    assert closed == 20_000
    assert own_daemon.process.poll() is None, own_daemon.said()
    wait_until(lambda: resources(own_daemon)[1] <= fds, "its file descriptors are closed")
    assert resources(own_daemon)[0] < rss + 4
    # nor does it fill the disk with what it says of them
    assert len(own_daemon.said().splitlines()) < 10


def test_flood_of_one_user(guarded, audit, actor, user, public, uid):
    """It declares, asks and connects as fast as it can: root is answered within a second, whichever
    way, other users are answered, and each declaration is counted and audited."""
    victim, other = actor(), user(uid + 10000)
    said = len(guarded.said().splitlines())
    before = verdicts(guarded)
    script = public / "servers" / "flood.py"
    flood = Server(
        ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
         sys.executable, str(script), str(guarded.socket)],
    )  # fmt: skip
    took = []
    try:
        assert flood.line() == {"flooding": True}
        for epoch in range(1, 102):
            begin = time.monotonic()
            body = {"phase": "ACTIVE", "pid": victim.pid, "epoch": epoch}
            assert guarded.request("PUT", "/v1/phase", json.dumps(body))[0] == 200
            took.append(time.monotonic() - begin)
            if epoch % 10 == 0:
                assert declare(other, guarded, phase="ACTIVE", self=True)[0] == 200
        begin = time.monotonic()
        guarded.declare("DRAIN", victim.pid)
        took.append(time.monotonic() - begin)
    finally:
        flood.stop()
    assert max(took) < 1, sorted(took)[-5:]
    wait_reconciled(guarded)  # and has told what was too often
    lines = audit.lines()
    own = [x for x in lines if x.get("subject", {}).get("id") == victim.pid]
    assert Counter(x["verdict"] for x in own) == {"accepted": 102}
    audited = Counter()
    for line in lines:
        audited[line["verdict"]] += line.get("count", 1)
    assert audited == verdicts(guarded) - before
    assert too_often(lines, uid) > 1000
    # ten lines at once, then one a second
    assert len(guarded.said().splitlines()) - said < 10 + sum(took) + 30


def verdicts(daemon):
    metrics = daemon.metrics()
    return Counter({
        v: int(metrics.sum("phasewatch_declarations_total", verdict=v))
        for v in ("accepted", "unchanged", "refused")
    })  # fmt: skip


# The file -----------------------------------------------------------------------------------


def test_hangup(guarded, audit, actor):
    """logrotate moves the file away, and says so."""
    one = actor()
    moved = audit.path.with_suffix(".old")
    guarded.declare("INIT", one.pid)
    os.rename(audit.path, moved)
    guarded.declare("ACTIVE", one.pid)
    guarded.process.send_signal(signal.SIGHUP)
    wait_until(audit.path.exists, "there is a new file")
    assert audit.path.stat().st_mode & 0o777 == 0o600
    guarded.declare("DRAIN", one.pid)
    new = [json.loads(line) for line in audit.path.read_text().splitlines()]
    assert [x["to"] for x in new] == ["DRAIN"]
    old = [json.loads(line) for line in moved.read_text().splitlines()]
    assert [x["to"] for x in old[-2:]] == ["INIT", "ACTIVE"]


def test_hangup_without_an_audit_log(own_daemon):
    own_daemon.start()
    own_daemon.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "SIGHUP" in own_daemon.said(), "it says so")
    assert own_daemon.get("/healthz").strip() == "ok"
    assert not list(own_daemon.directory.glob("*.jsonl"))


def test_file_that_may_not_grow(own_daemon, actor):
    """As on a full disk: declarations go on, what is not written is counted, and said once."""
    path = own_daemon.directory / "audit.jsonl"
    own_daemon.options = ["--audit-log", str(path)]
    own_daemon.start()
    one = actor()
    own_daemon.declare("ACTIVE", one.pid)
    whole = path.read_text()

    def limit(size):
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(own_daemon.process.pid, resource.RLIMIT_FSIZE, (size, unlimited))

    limit(len(whole) + 100)
    for epoch in range(2, 25):
        own_daemon.declare("ACTIVE", one.pid, "--epoch", str(epoch))
    assert own_daemon.subject(one.pid)["subject"]["epoch"] == 24
    assert path.read_text() == whole
    assert own_daemon.metrics().sum("phasewatch_audit_lost_total") == 23
    assert own_daemon.said().count("cannot write the audit log") == 1

    limit(resource.RLIM_INFINITY)
    own_daemon.declare("DRAIN", one.pid)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 24]
    assert "written again; 23 lines are missing" in own_daemon.said()
    assert own_daemon.metrics().sum("phasewatch_audit_lost_total") == 23


def test_rotation(own_daemon, actor):
    path = own_daemon.directory / "audit.jsonl"
    own_daemon.options = ["--audit-log", str(path), "--audit-size", "2000", "--audit-keep", "2"]
    own_daemon.start()
    one = actor()
    for epoch in range(1, 24):
        own_daemon.declare("ACTIVE", one.pid, "--epoch", str(epoch))
    files = [path.with_name(f"audit.jsonl{suffix}") for suffix in (".2", ".1", "")]
    assert sorted(own_daemon.directory.glob("audit*")) == sorted(files)
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert [x["epoch"] for x in lines] == list(range(24 - len(lines), 24))
    for file in files:
        assert file.stat().st_size <= 2000
        assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("what", ["link", "fifo", "directory", "no directory", "other's"])
def test_no_place_for_an_audit_log(own_daemon, what):
    path = own_daemon.directory / "audit.jsonl"
    victim = own_daemon.directory / "victim"
    victim.write_text("secret")
    if what == "link":
        path.symlink_to(victim)
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "no directory":
        path = path / "audit.jsonl"
    else:
        path.touch()
        os.chown(path, NOBODY, NOBODY)
    own_daemon.options = ["--audit-log", str(path)]
    done = subprocess.run(own_daemon.command(), capture_output=True, text=True, timeout=20)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert str(path) in done.stderr
    assert victim.read_text() == "secret"


@pytest.mark.parametrize(
    "options",
    [
        ["--audit-log", ""],
        ["--audit-size", "-1"],
        ["--audit-size", "16M"],
        ["--audit-keep", "0"],
        ["--admin-gid", "no-such-group"],
        ["--admin-gid", "-1"],
        ["--admin-gid", "4294967295"],
        ["--admin-gid", ""],
        ["--limit-rate", "0"],
        ["--limit-subjects", "many"],
    ],
    ids=" ".join,
)
def test_bad_options(own_daemon, options):
    done = own_daemon.run("run", "--pin-dir", str(own_daemon.pin_dir), *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert options[0] in done.stderr
