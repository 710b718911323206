# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A process that does what a test tells it, one call at a time. Its argument is the descriptor of
the control socket: each message is a JSON list [method, argument...] for the class below, each
answer the JSON of what the method returned. File descriptors travel with either."""

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time

import common

LIBC = ctypes.CDLL(None, use_errno=True)
MESSAGE = 65536


def checked(result):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def fork_as(pid):
    """clone3(2) with set_tid: fork(2) of a child with this pid, which is free some moments after
    whoever had it was waited for."""
    pids = (ctypes.c_int * 1)(pid)
    arguments = (ctypes.c_uint64 * 10)()
    arguments[4], arguments[8], arguments[9] = signal.SIGCHLD, ctypes.addressof(pids), 1
    end = time.monotonic() + 5
    while True:
        try:
            return checked(LIBC.syscall(435, ctypes.byref(arguments), ctypes.sizeof(arguments)))
        except FileExistsError:
            if time.monotonic() > end:
                raise


def client(address):
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    # One retransmission only: a connect that nobody answers fails after 3 s, not after 2 min.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
    return sock


def outcome(result, sock, begin):
    return {
        "errno": errno.errorcode.get(result),
        "port": sock.getsockname()[1],
        "ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME) - begin,
    }


READS = {
    "recv": lambda sock, size, flags: len(sock.recv(size, flags)),
    "recvmsg": lambda sock, size, flags: len(sock.recvmsg(size, 0, flags)[0]),
    "read": lambda sock, size, flags: len(os.read(sock.fileno(), size)),
    "readv": lambda sock, size, flags: os.readv(sock.fileno(), [bytearray(size)]),
}


def receive(sock, total, size, call, flags):
    calls = 0
    while total > 0:
        got = READS[call](sock, min(size, total), flags)
        assert got, "the peer has sent less"
        total -= got
        calls += 1
    return calls


class Actor:
    def __init__(self):
        self.listener = None
        self.kept = []  # more listeners
        self.connections = []
        self.children = []
        self.controls = {}  # of forked actors, by pid
        self.passed = []  # descriptors that came with the last message
        self.lent = []  # descriptors that go with the next answer

    # As a server

    def listen(self, address, port=0, backlog=common.BACKLOG, reuseport=False):
        self.listener = common.bound(address, port, reuseport)
        self.listener.listen(backlog)
        return self.listener.getsockname()[1]

    def shutdown_listener(self):
        self.listener.shutdown(socket.SHUT_RD)

    def close_listener(self):
        self.listener.close()

    def keep_listener(self):
        """Before listening once more."""
        self.kept.append(self.listener)

    def duplicate_listener(self, count):
        self.kept += [self.listener.dup() for _ in range(count)]

    def lend_listener(self):
        self.lent = [self.listener.fileno()]

    def lend_connections(self):
        self.lent = [c.fileno() for c in self.connections]

    def take_listener(self):
        self.listener = socket.socket(fileno=self.passed.pop())

    def take_connections(self):
        self.connections += [socket.socket(fileno=fd) for fd in self.passed]

    def accept(self, count):
        """Blocking, as Python does it: accept4(2) with an address."""
        for _ in range(count):
            self.connections.append(self.listener.accept()[0])

    def accept_call(self, name, with_address, count):
        """The C library's accept or accept4, with an address to fill in or NULL."""
        buffer = ctypes.create_string_buffer(128)
        for _ in range(count):
            length = ctypes.c_uint(len(buffer))
            where = (buffer, ctypes.byref(length)) if with_address else (None, None)
            flags = (0,) if name == "accept4" else ()
            fd = checked(getattr(LIBC, name)(self.listener.fileno(), *where, *flags))
            self.connections.append(socket.socket(fileno=fd))

    def accept_all(self):
        """What is there to accept."""
        self.listener.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.connections.append(self.listener.accept()[0])
                self.connections[-1].setblocking(True)

    def accept_nonblocking(self, count):
        self.listener.setblocking(False)
        while count:
            try:
                connection, _ = self.listener.accept()
            except BlockingIOError:
                select.select([self.listener], [], [])
            else:
                connection.setblocking(True)
                self.connections.append(connection)
                count -= 1

    def peer_ports(self):
        """getpeername(2) of each connection."""
        return [c.getpeername()[1] for c in self.connections]

    def echo(self):
        """Receives from each connection and sends it back."""
        for connection in self.connections:
            connection.sendall(connection.recv(4096))

    def receive(self, which, total, size=4096, call="recv", flags=0):
        """From each of these connections so many bytes, at most `size` at a time; the number of
        calls that took."""
        return [receive(self.connections[i], total, size, call, flags) for i in which]

    def receive_end(self, which):
        """The end of what the peer sends."""
        for i in which:
            assert self.connections[i].recv(1) == b""

    def receive_nothing(self, which):
        """A non-blocking receive with nothing to receive."""
        for i in which:
            try:
                self.connections[i].recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                continue
            raise AssertionError("there was something to receive")

    def send(self, which, size):
        for i in which:
            self.connections[i].sendall(bytes(size))

    def send_all(self, i):
        """As much as goes without waiting."""
        self.connections[i].setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self.connections[i].send(bytes(MESSAGE))

    def linger(self, which):
        """These connections end with RST."""
        for i in which:
            self.connections[i].setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )

    def ends(self):
        """How the peers ended the connections."""
        return [common.end_of(c) for c in self.connections]

    def close_connections(self, which=None):
        for i in sorted(range(len(self.connections)) if which is None else which, reverse=True):
            self.connections.pop(i).close()

    # As a client

    def connect(self, address, port, keep=False, source=0):
        sock = client(address)
        if source:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", source))
        begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        result = outcome(sock.connect_ex((address, port)), sock, begin)
        if keep:
            self.connections.append(sock)
        else:
            sock.close()
        return result

    def connect_storm(self, address, port, count):
        """So many connects, one after the other, that nobody asks about."""
        for _ in range(count):
            sock = socket.socket()
            sock.connect_ex((address, port))
            sock.close()

    def connect_nonblocking(self, address, port):
        sock = client(address)
        sock.setblocking(False)
        begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        started = sock.connect_ex((address, port))
        if started == errno.EINPROGRESS:
            select.select([], [sock], [])
            started = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        result = outcome(started, sock, begin)
        sock.close()
        return result

    def connect_and_close(self, address, port):
        """A connect that is given up before it is answered."""
        sock = client(address)
        sock.setblocking(False)
        begin = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        result = outcome(sock.connect_ex((address, port)), sock, begin)
        sock.close()
        return result

    # As a process

    def rename(self, comm):
        with open("/proc/self/comm", "w") as file:
            file.write(comm)

    def catch(self, name):
        """Has a signal do nothing."""
        signal.signal(getattr(signal, name), lambda *_: None)

    def block(self, name):
        """A signal that is fetched by sigwait(2), say, or never."""
        signal.pthread_sigmask(signal.SIG_BLOCK, [getattr(signal, name)])

    def ignore(self, name):
        signal.signal(getattr(signal, name), signal.SIG_IGN)

    def kill(self, pid, name):
        os.kill(pid, getattr(signal, name))

    def setsid(self):
        os.setsid()

    def fork_actor(self, new_session, pid=0):
        """A child that does what tell_child() has it do; its pid, which may be told."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = fork_as(pid) if pid else os.fork()
        if pid == 0:
            ours.close()
            if new_session:
                os.setsid()
            serve(Actor(), theirs)
            os._exit(0)
        theirs.close()
        self.controls[pid] = ours
        return pid

    def tell_child(self, pid, method, *arguments):
        self.controls[pid].send(json.dumps([method, *arguments]).encode())
        return json.loads(self.controls[pid].recv(MESSAGE))

    def lend_child(self, pid):
        """What tell_child() talks to: whoever has it keeps that one alive."""
        self.lent = [self.controls[pid].fileno()]

    def fork(self, new_session=False):
        """A child that does nothing."""
        pid = os.fork()
        if pid == 0:
            if new_session:
                os.setsid()
            signal.pause()
        return pid

    def spawn_with_listener(self, *command):
        """A child that inherits the listener, its last argument, and says a line when it is ready;
        its pid."""
        number = self.listener.fileno()
        child = subprocess.Popen(
            [*command, str(number)], pass_fds=[number], stdout=subprocess.PIPE
        )  # fmt: skip
        self.children.append(child)
        child.stdout.readline()
        return child.pid

    def run(self, *command):
        """A command as a child of this process."""
        done = subprocess.run(command, capture_output=True, text=True)
        return [done.returncode, done.stdout, done.stderr]

    def execute(self, *command):
        os.execv(command[0], command)

    def ask(self, path, request):
        """By this very process; the status and the body."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)
            answer = b""
            # where the answer comes before the question
            with contextlib.suppress(BrokenPipeError):
                sock.sendall(request.encode())
            with contextlib.suppress(ConnectionResetError):
                while data := sock.recv(MESSAGE):
                    answer += data
        head, body = answer.decode().split("\r\n\r\n", 1)
        return [int(head.split()[1]), body]

    def notify(self, path, text):
        """sd_notify(3) and sd_notify_barrier(3): returns when the message has been looked at."""
        done, theirs = os.pipe()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(path)
            sock.send(text.encode())
            socket.send_fds(sock, [b"BARRIER=1"], [theirs])
        os.close(theirs)
        assert os.read(done, 1) == b""
        os.close(done)

    def put_phase(self, path, body):
        text = json.dumps(body)
        head = f"PUT /v1/phase HTTP/1.0\r\nContent-Length: {len(text)}\r\n\r\n"
        return self.ask(path, head + text)

    def get(self, path, target):
        return self.ask(path, f"GET {target} HTTP/1.0\r\n\r\n")

    def connect_unix(self, path):
        """A connection that is kept, and on which nothing is said."""
        self.connections.append(socket.socket(socket.AF_UNIX))
        self.connections[-1].connect(path)

    def spawn_as(self, pid, *command):
        """A child with this pid, which has to be free: clone3(2)."""
        wanted = (ctypes.c_int * 1)(pid)
        # flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, its size
        arguments = (ctypes.c_uint64 * 10)(0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
        arguments[8:] = ctypes.addressof(wanted), 1
        if checked(LIBC.syscall(435, arguments, ctypes.sizeof(arguments))) == 0:
            os.execvp(command[0], command)

    def exit(self, code):
        os._exit(code)


def serve(actor, control):
    while True:
        message, actor.passed, _, _ = socket.recv_fds(control, MESSAGE, 253)
        if not message:
            return
        method, *arguments = json.loads(message)
        answer = getattr(actor, method)(*arguments)
        socket.send_fds(control, [json.dumps(answer).encode()], actor.lent)
        actor.lent = []


def main():
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    serve(Actor(), control)


main()
