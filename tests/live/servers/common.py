# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What the Python servers share: each listens on ADDRESS (its argument, any free port), says so in
one line of JSON, and answers each request with the pids of who accepted it and who answers. It
keeps connections open until the client closes, unless that speaks HTTP/1.0. SIGQUIT ends it at
once, with EXIT_CODE."""

import contextlib
import json
import os
import selectors
import signal
import socket
import sys

BACKLOG = 512
EXIT_CODE = 7


def bound(address, port=0, reuseport=False):
    signal.signal(signal.SIGQUIT, lambda *_: os._exit(EXIT_CODE))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    if reuseport:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind((address, port))
    return sock


def listener(address=None, port=0, reuseport=False):
    sock = bound(address or sys.argv[1], port, reuseport)
    sock.listen(BACKLOG)
    return sock


def say(**what):
    # One write, so that the lines of several processes do not mix.
    os.write(1, json.dumps(what).encode() + b"\n")


def ready(sock):
    say(port=sock.getsockname()[1])


def complete(request):
    return request.endswith(b"\r\n\r\n")


def reply(acceptor):
    body = f"{acceptor} {os.getpid()}"
    return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def take(connection, request, acceptor):
    """Receives more of a request, answers if that was the rest; whether the connection goes on."""
    data = connection.recv(4096)
    request += data
    if not complete(request):
        return bool(data)
    connection.sendall(reply(acceptor))
    goes_on = b"HTTP/1.0" not in request
    request.clear()
    return goes_on


def answer(connection, acceptor):
    with connection:
        request = bytearray()
        while take(connection, request, acceptor):
            pass


def accept_forever(sock):
    """One connection at a time."""
    while True:
        answer(sock.accept()[0], os.getpid())


def serve(sock):
    """All connections at once: one epoll loop, which accepts until EAGAIN."""
    selector = selectors.EpollSelector()
    sock.setblocking(False)
    selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not sock:
                if not take(key.fileobj, key.data, os.getpid()):
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    connection, _ = sock.accept()
                    connection.setblocking(False)
                    selector.register(connection, selectors.EVENT_READ, bytearray())


def end_of(sock):
    """How the peer ended a connection: "fin" or "rst"."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "rst"
    return "fin"
