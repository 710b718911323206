# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Accepts from a listener that it inherited: its argument is the descriptor."""

import os
import socket
import sys

import common

sock = socket.socket(fileno=int(sys.argv[1]))
common.say(pid=os.getpid())
common.accept_forever(sock)
