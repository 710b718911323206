# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""A client that says nothing sensible: SOCKET and COUNT are its arguments. It sends so many requests
that cannot be answered with "200 OK" and says in one line of JSON what became of them: how many were
answered, and how many connections were closed, as they have to be where no request can be told from
the next one."""

import json
import socket
import struct
import sys
import threading

DEADLINE = 20


def put(body, *headers):
    lines = ["PUT /v1/phase HTTP/1.1", "Host: x", *headers, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(path, method="GET"):
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()


ANSWERED = [
    put(b""),
    put(b"{"),
    put(b"[]"),
    put(b"null"),
    put(b"\x00\xff\xfe"),
    put(b"[" * 2000),
    put(b'{"phase":"DRAIN","self":true} trailing'),
    put(b'{"phase":"GONE","self":true}'),
    put(b'{"phase":7,"self":true}'),
    put(b'{"phase":"DR\\u0000AIN","self":true}'),
    put(b'{"phase":"DRAIN"}'),
    put(b'{"phase":"DRAIN","pid":-1}'),
    put(b'{"phase":"DRAIN","pid":99999999999999999999}'),
    put(b'{"phase":"DRAIN","self":true,"pid":1}'),
    put(b'{"phase":"DRAIN","self":true,"uid":0}'),
    put(b'{"phase":"DRAIN","self":true,"epoch":0}'),
    put(b'{"phase":"DRAIN","self":true,"reason":"' + b"x" * 56 + b'"}'),
    put(b'{"phase":"DRAIN","self":true,"reason":"\xff"}', "X-Header: " + "x" * 4000),
    get("/nothing"),
    get("/v1/phase"),
    get("/v1/events?last=x"),
    get("/v1/events?follow=1&pid=0"),
    get("/v1/events?" + "type=nothing&" * 200),
    get("/%00%ff?%zz"),
    get("/v1/subjects", "DELETE"),
    get("/v1/events", "POST"),
]

CLOSED = [
    b"",
    b"\r\n\r\n\r\n",
    b"\x00" * 4096,
    bytes(range(256)) * 16,
    b"nonsense\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /healthz",
    b"GET /healthz HTTP/9.9\r\n\r\n",
    b"GET /healthz HTTP/1.1 HTTP/1.1\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\nno colon\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\n\r\n",
    b"G\x00T /healthz HTTP/1.1\r\n\r\n",
    b"GET /" + b"x" * 100000,
    b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 10000 + b"\r\n\r\n",
    b"GET /healthz HTTP/1.1\r\n" + b"X: x\r\n" * 3000 + b"\r\n",
    b"PUT /v1/phase HTTP/1.1\r\nContent-Length: -1\r\n\r\n{}",
    b"PUT /v1/phase HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n{}",
    b"PUT /v1/phase HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n{}",
    b"PUT /v1/phase HTTP/1.1\r\nContent-Length: 100\r\n\r\n{}",
    b"PUT /v1/phase HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"PUT /v1/phase HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    b"PUT /v1/phase HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n{}\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
]

BLOCK = b"".join(ANSWERED)


def connect():
    sock = socket.socket(socket.AF_UNIX)
    # not settimeout(), which ends what MSG_WAITALL waits for
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", DEADLINE, 0))
    sock.connect(sys.argv[1])
    return sock


def whole(answers):
    """Whether this is an answer to each request of a block."""
    return answers.count(b"HTTP/1.1 ") == len(ANSWERED) and answers.endswith(b"}\n")


def refused(answers):
    return answers.count(b"HTTP/1.1 4") == len(ANSWERED)


def ask(blocks):
    """One connection, never waiting for an answer before the next request. What the answers to a
    block are, in bytes, is known after the first."""
    with connect() as sock:
        sock.sendall(BLOCK)
        first = b""
        while not whole(first):
            first += sock.recv(65536)
        assert refused(first), first

        sender = threading.Thread(target=sock.sendall, args=(BLOCK * (blocks - 1),))
        sender.start()
        for _ in range(blocks - 1):
            answers = sock.recv(len(first), socket.MSG_WAITALL)
            assert len(answers) == len(first) and refused(answers), answers
        sender.join()


def break_off(count):
    """A connection each."""
    for i in range(count):
        with connect() as sock:
            answer = b""
            try:
                sock.sendall(CLOSED[i % len(CLOSED)])
                sock.shutdown(socket.SHUT_WR)
                while data := sock.recv(65536):
                    answer += data
            except (BrokenPipeError, ConnectionResetError):
                pass
            assert b" 200 " not in answer, (CLOSED[i % len(CLOSED)], answer)


def main():
    count = int(sys.argv[2])
    closed = count // 50
    blocks = -(-(count - closed) // len(ANSWERED))
    ask(blocks)
    break_off(closed)
    print(json.dumps({"answered": blocks * len(ANSWERED), "closed": closed}))


main()
