# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Three threads that accept from one listener, and one more for each connection."""

import os
import threading

import common


def accept(sock):
    while True:
        connection, _ = sock.accept()
        threading.Thread(target=common.answer, args=(connection, os.getpid())).start()


sock = common.listener()
acceptors = [threading.Thread(target=accept, args=(sock,)) for _ in range(3)]
for acceptor in acceptors:
    acceptor.start()
common.ready(sock)
for acceptor in acceptors:
    acceptor.join()
