# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Servers as Debian packages them, with connections kept alive, and clients of them that tell how
each request ended: "ok", "closed" (the end came instead of an answer), "reset", "refused"."""

import contextlib
import glob
import os
import re
import socket
import struct
import subprocess

import peers
from harness import DEADLINE, NOBODY, SERVERS, free_port, wait_until

ADDRESS = "127.0.0.1"

# Clients ------------------------------------------------------------------------------------


class Client:
    """One connection, and what went over it. The halves of a request are for one that is under way
    at some moment."""

    def __init__(self, port, address=ADDRESS, wait=True):
        self.sent = self.received = 0
        self.unanswered = False
        self.got = b""
        self.dst = (address, port)
        self.sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        self.sock.settimeout(DEADLINE)
        self.sock.bind((address, 0))
        self.src = self.sock.getsockname()[:2]
        self.port = self.src[1]
        self.acceptor = self.handler = 0
        try:
            self.sock.connect(self.dst)
            self.opened = "ok"
        except ConnectionRefusedError:
            self.opened = "refused"
            return
        self.greet()
        if wait:
            self.opened = self.greeted()

    def greet(self):
        """Says what comes before the first request."""

    def greeted(self):
        return "ok"

    def begin(self):
        self.send(self.REQUEST[: len(self.REQUEST) // 2])

    def finish(self):
        self.send(self.REQUEST[len(self.REQUEST) // 2 :])
        return self.outcome()

    def ask(self):
        self.send(self.REQUEST)
        return self.outcome()

    def send(self, data):
        # If that fails, the receive says how the connection ended.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)
            self.sent += len(data)
            self.unanswered = True

    def outcome(self):
        """Of what was sent: "ok", "closed" or "reset"."""
        try:
            while not self.complete():
                data = self.sock.recv(65536)
                if not data:
                    return "closed"
                self.received += len(data)
                self.unanswered = False
                self.got += data
        except ConnectionResetError:
            return "reset"
        self.answered(self.got)
        self.got = b""
        return "ok"

    def answered(self, answer):
        """May look at who answered, where the answer tells."""

    def close(self):
        self.sock.close()


class Http(Client):
    REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"

    def complete(self):
        head, end, body = self.got.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        return end and len(body) >= int(length[1])

    def answered(self, answer):
        pids = answer.partition(b"\r\n\r\n")[2].split()
        if len(pids) == 2:
            self.acceptor, self.handler = map(int, pids)


class Redis(Client):
    REQUEST = b"PING\r\n"

    def complete(self):
        return self.got.endswith(b"+PONG\r\n")


class Postgres(Client):
    """Protocol version 3, no password."""

    QUERY = b"SELECT 1\0"
    REQUEST = b"Q" + struct.pack("!i", 4 + len(QUERY)) + QUERY

    def greet(self):
        who = b"user\0nobody\0database\0postgres\0\0"
        self.send(struct.pack("!ii", 8 + len(who), 3 << 16) + who)

    def greeted(self):
        return self.outcome()

    def complete(self):
        """Messages up to ReadyForQuery."""
        rest, last = self.got, b""
        while len(rest) >= 5:
            (length,) = struct.unpack("!i", rest[1:5])
            last, rest = rest[:1] if len(rest) > length else b"", rest[1 + length :]
        return last == b"Z" and not rest


# Servers ------------------------------------------------------------------------------------


def start(command, port, **more):
    server = peers.Server(command, port, **more)
    server.wait_listening()
    return server


def apache(address, directory):
    port = free_port()
    modules = "/usr/lib/apache2/modules"
    config = directory / "apache.conf"
    (directory / "index.html").write_text("ok\n")
    config.write_text(f"""
ServerName test
ServerRoot {directory}
PidFile {directory}/pid
ErrorLog {directory}/error.log
Listen {peers.endpoint(address, port)}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule dir_module {modules}/mod_dir.so
StartServers 2
ServerLimit 2
ThreadsPerChild 25
MaxRequestWorkers 50
MinSpareThreads 1
MaxSpareThreads 50
KeepAlive On
KeepAliveTimeout 60
DocumentRoot {directory}
DirectoryIndex index.html
""")
    server = start(["apache2", "-DFOREGROUND", "-f", str(config)], port)
    wait_until(lambda: len(peers.children(server.pid)) == 2, "apache has its two children")
    return server


def gunicorn(address, directory):
    port = free_port()
    command = [
        "gunicorn", "--worker-class", "gthread", "--threads", "16", "--workers", "2",
        "--keep-alive", "60", "--bind", peers.endpoint(address, port), "--chdir", str(SERVERS),
        "--worker-tmp-dir", str(directory), "wsgi:application",
    ]  # fmt: skip
    with open(directory / "gunicorn.log", "ab") as log:
        server = start(command, port, stderr=log)
    wait_until(lambda: len(peers.children(server.pid)) == 2, "gunicorn has its two workers")
    return server


def postgres(address, directory):
    """As nobody: it refuses to run as root."""
    (programs,) = glob.glob("/usr/lib/postgresql/*/bin")[-1:]
    data = directory / "data"
    data.mkdir()
    os.chown(data, NOBODY, NOBODY)
    port = free_port()
    initdb = [f"{programs}/initdb", "-A", "trust", "-U", "nobody", "-N", "-D", str(data)]
    as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": [], "cwd": data}
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **as_nobody)
    command = [
        f"{programs}/postgres", "-D", str(data), "-p", str(port), "-k", str(data),
        "-c", f"listen_addresses={address}", "-c", "fsync=off",
    ]  # fmt: skip
    with open(directory / "postgres.log", "ab") as log:
        server = start(command, port, stderr=log, **as_nobody)

    def accepting():
        client = Postgres(port, address)
        client.close()
        return client.opened == "ok"

    wait_until(accepting, "postgres accepts connections")
    return server


def redis(address, directory, *more):
    port = free_port()
    return start(
        ["redis-server", "--port", str(port), "--bind", address, "--save", "", "--dir",
         str(directory), "--logfile", str(directory / "redis.log"), *more],
        port,
    )  # fmt: skip


CLIENTS = {"postgres": Postgres, "redis": Redis}
