# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""Three workers that accept from their parent's listener; one that dies is replaced."""

import os

import common


def fork_worker():
    if os.fork() == 0:
        common.say(worker=os.getpid())
        common.serve(sock)


sock = common.listener()
common.ready(sock)
for _ in range(3):
    fork_worker()
while True:
    os.wait()
    fork_worker()
