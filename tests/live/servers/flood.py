# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A user who leaves the daemon no time, if it can: SOCKET is its argument. Until it is killed, some
processes of it declare, some ask and never wait for an answer, some connect and leave. It says a line
as soon as it has been told that it does something too often."""

import os
import select
import socket
import sys

import common

BODY = b'{"phase":"ACTIVE","self":true}'
DECLARE = b"PUT /v1/phase HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
ASK = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/subjects HTTP/1.1\r\nHost: x\r\n\r\n"


def connect():
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(sys.argv[1])
    return sock


def send_on(request, connections, tell=None):
    """On so many connections as many of these requests as they take."""
    rest = {connect(): request for _ in range(connections)}
    for sock in rest:
        sock.setblocking(False)
    while True:
        readable, writable, _ = select.select(rest, rest, [])
        for sock in writable:
            rest[sock] = rest[sock][sock.send(rest[sock]) :] or request
        for sock in readable:
            answers = sock.recv(1 << 20)
            if tell is not None and b" 429 " in answers:
                os.write(tell, b".")
                tell = None


def come_and_go():
    while True:
        try:
            connect().close()
        except OSError:
            pass


def main():
    told, tell = os.pipe()
    kinds = [
        lambda: send_on(DECLARE, 12, tell),
        lambda: send_on(ASK, 12),
        come_and_go,
        come_and_go,
    ]
    for kind in kinds:
        if os.fork() == 0:
            kind()
    os.read(told, 1)
    common.say(flooding=True)
    os.wait()


main()
