# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The parent accepts, a child answers: one fork for each connection."""

import os
import signal

import common

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
acceptor = os.getpid()
sock = common.listener()
common.ready(sock)
while True:
    connection, _ = sock.accept()
    if os.fork() == 0:
        sock.close()
        common.answer(connection, acceptor)
        os._exit(0)
    connection.close()
