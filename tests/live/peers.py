# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Who talks over TCP in the tests: servers, scripted processes, and the clients, whose own count of
what they did is what phasewatch is measured against."""

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from common import end_of
from harness import DEADLINE, REPO, SERVERS, free_port, now_ns, wait_until

REQUEST = b"GET / HTTP/1.0\r\n\r\n"
# What is said on connections to actors, in bytes.
QUESTION = 41
ANSWER = 59

URING = REPO / "build" / "tests" / "uring"

# What a server listens on, and what a client of it connects to.
FAMILIES = {
    "ipv4": ("127.0.0.1", "127.0.0.1"),
    "ipv6": ("::1", "::1"),
    "mapped": ("::", "127.0.0.1"),
}


# Clients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connection:
    """One connection as its client knows it. acceptor and handler are the server's pids, where it
    answered."""

    src: tuple
    dst: tuple
    acceptor: int = 0
    handler: int = 0


def ends(sock):
    return sock.getsockname()[:2], sock.getpeername()[:2]


def open_connection(address, port):
    return socket.create_connection((address, port), timeout=DEADLINE)


def ask(sock):
    """Sends one request, reads to the end; the body."""
    sock.sendall(REQUEST)
    answer = b""
    while data := sock.recv(4096):
        answer += data
    return answer.partition(b"\r\n\r\n")[2].decode()


def connect_and_ask(address, port, count):
    made = []
    for _ in range(count):
        with open_connection(address, port) as sock:
            src, dst = ends(sock)
            acceptor, handler = map(int, ask(sock).split())
            made.append(Connection(src, dst, acceptor, handler))
    return made


def refuse(address, port):
    """A connect that must be refused; its client's address and port."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
        sock.settimeout(DEADLINE)
        sock.bind(("::" if ":" in address else "0.0.0.0", 0))
        own = sock.getsockname()[1]
        result = sock.connect_ex((address, port))
        assert result == errno.ECONNREFUSED, errno.errorcode.get(result)
        return own


class Held:
    """Connections that stay open until the end of the `with` block."""

    def __init__(self, address, port, count):
        self.sockets = [open_connection(address, port) for _ in range(count)]
        self.made = [Connection(*ends(s)) for s in self.sockets]
        self.ports = [c.src[1] for c in self.made]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for sock in self.sockets:
            sock.close()

    def reset_at_close(self, which=None):
        for sock in self.sockets if which is None else [self.sockets[i] for i in which]:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def send(self):
        for sock in self.sockets:
            sock.sendall(b"again\n")

    def receive(self):
        for sock in self.sockets:
            assert sock.recv(100) == b"again\n"


def arrive(one, count):
    """So many connections, which the actor accepts; their clients' records."""
    with Held("127.0.0.1", one.port, count) as held:
        one.call("accept", count)
        one.call("close_connections")
        return held.made


class Kept(Held):
    """Connections that an actor has accepted: the n-th here is its n-th after the `first` ones.
    Counts what is sent."""

    def __init__(self, one, count, address="127.0.0.1", accept=True, first=0):
        self.one = one
        self.first = first
        self.earliest = now_ns()
        super().__init__(address, one.port, count)
        if accept:
            one.call("accept", count)
        self.latest = now_ns()
        self.to_server = [0] * count
        self.to_client = [0] * count

    def say(self, which, size=QUESTION):
        for i in which:
            self.sockets[i].sendall(bytes(size))
            self.to_server[i] += size

    def read(self, which, size=QUESTION, *how):
        self.one.call("receive", [self.first + i for i in which], size, *how)

    def answer(self, which, size=ANSWER):
        self.one.call("send", [self.first + i for i in which], size)
        for i in which:
            got = 0
            while got < size:
                got += len(self.sockets[i].recv(size - got))
            self.to_client[i] += size

    def ask(self, which, size=QUESTION):
        self.say(which, size)
        self.read(which, size)
        self.answer(which)

    def leave(self, which):
        for i in which:
            self.sockets[i].close()


def fill(port, count, address="127.0.0.1", talk=(), already=0):
    """Connections that wait to be accepted; those in `talk` have sent a request."""
    held = Held(address, port, count)
    for i in talk:
        held.sockets[i].sendall(bytes(QUESTION))
    queued = count + already
    wait_until(lambda: accept_queue(port) == queued, f"{queued} in the accept queue")
    return held


def resets(held):
    return [end_of(s) for s in held.sockets].count("rst")


# /proc --------------------------------------------------------------------------------------


def sockets(port, state, pid="self"):
    """The lines of /proc/net/tcp{,6} with this local port and state, in this process's network
    namespace."""
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].split(":")[1], 16) == port and int(fields[3], 16) == state:
                yield fields


def listening(port):
    return any(sockets(port, state=10))


def accept_queue(port, pid="self"):
    """How many connections wait to be accepted."""
    return sum(int(fields[4].split(":")[1], 16) for fields in sockets(port, state=10, pid=pid))


def wait_syn_sent(port):
    """Until some connect to this port is under way."""

    def found():
        lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
        return any(f[3] == "02" and int(f[2].split(":")[1], 16) == port for f in lines)

    wait_until(found, f"a SYN is sent to port {port}")


def unread(port):
    """The clients' ports of the connections to this port that hold data which nobody has read."""
    lines = [f for f in sockets(port, state=1) if int(f[4].split(":")[1], 16)]
    return {int(f[2].split(":")[1], 16) for f in lines}


def children(pid):
    return {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def descendants(pid):
    """This process and those that come of it."""
    found = {pid}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for child in children(pid):
            found |= descendants(child)
    return found


def has_ended(pid):
    """Whether or not its parent has asked for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def start_ns(pid):
    """When a process started (CLOCK_BOOTTIME), in the resolution of /proc: 10 ms."""
    after_comm = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(after_comm[19]) * 10**9 // os.sysconf("SC_CLK_TCK")


def halt(server):
    """Stops all processes of its group, as Ctrl-Z does."""
    os.killpg(server.pid, signal.SIGSTOP)

    def stopped():
        states = set()
        for stat in Path("/proc").glob("[0-9]*/task/[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                state, _, group, *_ = stat.read_text().rpartition(")")[2].split()
                states |= {state} if int(group) == server.pid else set()
        return states == {"T"}

    wait_until(stopped, "all its processes are stopped")


def next_tick():
    """What was said so far and what follows are told apart by TCP's clocks, too: they are what
    tells whose turn it was when DRAIN came, and tick every 10 ms or more often."""
    begin = now_ns()
    wait_until(lambda: now_ns() > begin + 10**7, "10 ms have passed")


# Servers ------------------------------------------------------------------------------------


class Server:
    """A server process in a process group of its own. pid is what one would declare."""

    def __init__(self, command, port=None, **more):
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, **more
        )
        self.pid = self.process.pid
        self.port = port

    def line(self):
        line = self.process.stdout.readline()
        assert line, f"{self.process.args} ended with {self.process.wait()}"
        return json.loads(line)

    def wait_listening(self):
        def ready():
            code = self.process.poll()
            assert code is None, f"{self.process.args} ended with {code}"
            return listening(self.port)

        wait_until(ready, f"{self.process.args[0]} listens on {self.port}")

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


def script(name, address, *more):
    interpreter = shutil.which("node") if name.endswith(".js") else sys.executable
    server = Server([interpreter, str(SERVERS / name), address, *more])
    server.port = server.line()["port"]
    return server


def endpoint(address, port):
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def nginx(address, directory, workers=2):
    port = free_port()
    directory = Path(directory)
    (directory / "nginx.conf").write_text(f"""
daemon off;
user root;
worker_processes {workers};
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ }}
http {{
    log_format client '$remote_addr $remote_port $pid';
    access_log {directory}/access.log client;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen {endpoint(address, port)}{" ipv6only=off" if address == "::" else ""};
        return 200 "$pid $pid";
    }}
}}
""")
    server = Server(
        ["nginx", "-p", str(directory), "-e", "error.log", "-c", f"{directory}/nginx.conf"], port
    )
    server.wait_listening()
    wait_until(lambda: len(children(server.pid)) == workers, "nginx has its workers")
    return server


def haproxy_config(address, directory, more=""):
    """The file, and the port in it. `more` is for the global section."""
    port = free_port()
    config = Path(directory) / "haproxy.cfg"
    family = "ipv4@" if ":" not in address else ""
    config.write_text(f"""
global
    nbthread 2
    {more}
defaults
    mode http
    timeout client 60s
    timeout http-keep-alive 60s
frontend main
    bind {family}{address}:{port}{" v4v6" if address == "::" else ""}
    http-request return status 200 content-type text/plain lf-string "%pid %pid"
""")
    return config, port


def minds_signals(master):
    """HAProxy's master executes itself once more when its workers run, and then comes to catch
    signals as a master does, SIGCHLD last. Those that end it before that are lost."""
    environment = Path(f"/proc/{master}/environ").read_bytes()
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{master}/status").read_text())[1]
    catches = int(caught, 16) >> (signal.SIGCHLD - 1) & 1
    return b"HAPROXY_MWORKER_WAIT_ONLY" in environment and catches


def haproxy(address, directory, mode="-W", more=""):
    """Master and worker, two threads."""
    config, port = haproxy_config(address, directory, more)
    server = Server(["haproxy", mode, "-db", "-f", str(config)], port)
    server.wait_listening()
    wait_until(lambda: minds_signals(server.pid), "haproxy's master minds signals")
    return server


# Scripted processes -------------------------------------------------------------------------


class Actor:
    """A process that does what it is told; see servers/actor.py for what it can do, and
    servers/uring.c for what it can do by io_uring: there `uring` is how it accepts."""

    def __init__(self, prefix=(), scripts=SERVERS, uring=None):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(DEADLINE)
        program = [URING, uring] if uring else [sys.executable, scripts / "actor.py"]
        with theirs:
            self.process = subprocess.Popen(
                [*prefix, *program, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self.process.pid

    def call(self, method, *arguments, fds=()):
        """Has the method run; what it returned."""
        return self.call_for_fds(method, *arguments, fds=fds)[0]

    def call_for_fds(self, method, *arguments, fds=()):
        self.begin(method, *arguments, fds=fds)
        return self.end()

    def begin(self, method, *arguments, fds=()):
        """The first half of call(), for what takes long or does not return."""
        socket.send_fds(self.control, [json.dumps([method, *arguments]).encode()], fds)

    def end(self):
        answer, fds, _, _ = socket.recv_fds(self.control, 65536, 253)
        assert answer, f"the actor (pid {self.pid}) failed; its traceback is on stderr"
        return json.loads(answer), fds

    def hand_over(self, what, other):
        """Passes "listener" or "connections" to another actor (SCM_RIGHTS)."""
        _, fds = self.call_for_fds(f"lend_{what}")
        other.call(f"take_{what}", fds=fds)
        for fd in fds:
            os.close(fd)

    def wait(self):
        return self.process.wait(DEADLINE)

    def die(self, how):
        """By "exit" or a signal's name."""
        if how == "exit":
            self.begin("exit", 0)
        else:
            os.kill(self.pid, getattr(signal, how))
        self.wait()

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        self.control.close()
