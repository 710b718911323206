# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""PORT COUNT: so many connections to 127.0.0.1, at most 64 at a time, each read to its end. Says
how many of them the server has closed in good order."""

import selectors
import socket
import sys

AT_A_TIME = 64


def begin():
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex(("127.0.0.1", port))
    selector.register(sock, selectors.EVENT_READ)


port, left = int(sys.argv[1]), int(sys.argv[2])
done = 0
selector = selectors.DefaultSelector()
for _ in range(min(AT_A_TIME, left)):
    begin()
    left -= 1
while selector.get_map():
    for key, _ in selector.select():
        if key.fileobj.recv(1) == b"":
            done += 1
        selector.unregister(key.fileobj)
        key.fileobj.close()
        if left:
            begin()
            left -= 1
print(done)
