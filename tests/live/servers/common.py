# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What the Python servers share: each listens on ADDRESS (its argument, any free port), says so in
one line of JSON, and answers each request with the pids of who accepted it and who answers."""

import json
import os
import socket
import sys

BACKLOG = 512


def bound(address, port=0, reuseport=False):
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
    return f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


def answer(connection, acceptor):
    with connection:
        request = b""
        while not complete(request):
            data = connection.recv(4096)
            if not data:
                return
            request += data
        connection.sendall(reply(acceptor))


def accept_forever(sock):
    while True:
        answer(sock.accept()[0], os.getpid())


def end_of(sock):
    """How the peer ended a connection: "fin" or "rst"."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        return "rst"
    return "fin"
