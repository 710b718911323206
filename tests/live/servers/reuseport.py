# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Three workers, each with a listener of its own on one port (SO_REUSEPORT)."""

import os
import sys

import common

# Holds the port without listening on it.
holder = common.bound(sys.argv[1], reuseport=True)
port = holder.getsockname()[1]
read_end, write_end = os.pipe()
for _ in range(3):
    if os.fork() == 0:
        sock = common.listener(port=port, reuseport=True)
        os.write(write_end, b"x")
        common.serve(sock)
for _ in range(3):
    os.read(read_end, 1)
common.ready(holder)
while True:
    os.wait()
