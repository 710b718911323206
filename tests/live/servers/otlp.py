# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""An OTLP/HTTP receiver that keeps what it gets, and answers as it is told."""

import contextlib
import gzip
import http.server
import ssl
import threading
import time
from collections import Counter

PROTOBUF = "application/x-protobuf"


class Receiver:
    """Keeps (path, headers, body) of each request in `got`. `answer` is (status, headers, body), or
    "close" (without an answer), "hang" (until stop()), or a function that gives one of these."""

    def __init__(self, port, certificate=None, key=None, client_ca=None):
        self.port = port
        self.tls = certificate and (certificate, key, client_ca)
        self.answer = (200, {}, b"")
        self.got = []
        self.answered = Counter()
        self.stopping = threading.Event()
        self.server = None

    @property
    def url(self):
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    def start(self):
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                receiver.handle(self)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                receiver.answered["error"] += 1

        self.server = Server(("127.0.0.1", self.port), Handler)
        if self.tls:
            certificate, key, client_ca = self.tls
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            if client_ca:
                context.load_verify_locations(client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self):
        self.stopping.set()
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def handle(self, request):
        body = request.rfile.read(int(request.headers["Content-Length"]))
        if request.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        self.got.append((request.path, dict(request.headers), body, time.monotonic()))
        answer = self.answer(request.path) if callable(self.answer) else self.answer
        self.answered[answer if isinstance(answer, str) else answer[0]] += 1
        if answer == "hang":
            self.stopping.wait()
        if isinstance(answer, str):
            request.close_connection = True
            return
        status, headers, text = answer
        request.send_response(status)
        for name, value in {"Content-Type": PROTOBUF, **headers}.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(text)))
        request.end_headers()
        with contextlib.suppress(OSError):
            request.wfile.write(text)

    def bodies(self, signal):
        return [body for path, _, body, _ in list(self.got) if path.endswith(f"/v1/{signal}")]
