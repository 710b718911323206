# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Accepts and closes at once, as fast as it can. Its argument is the address. On SIGTERM it says
how many it has accepted."""

import signal
import sys

import common

accepted = 0


def finish(*_):
    common.say(accepted=accepted)
    sys.exit(0)


signal.signal(signal.SIGTERM, finish)
sock = common.listener()
common.ready(sock)
while True:
    connection, _ = sock.accept()
    accepted += 1
    connection.close()
