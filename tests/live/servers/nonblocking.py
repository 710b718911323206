# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""One process, one epoll loop; accepts until EAGAIN."""

import os
import selectors

import common


def on_connect(sock):
    while True:
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        selector.register(connection, selectors.EVENT_READ, bytearray())


def on_data(connection, request):
    data = connection.recv(4096)
    request += data
    if common.complete(request):
        connection.sendall(common.reply(os.getpid()))
    elif data:
        return
    selector.unregister(connection)
    connection.close()


selector = selectors.DefaultSelector()
sock = common.listener()
sock.setblocking(False)
selector.register(sock, selectors.EVENT_READ)
common.ready(sock)
while True:
    for key, _ in selector.select():
        if key.fileobj is sock:
            on_connect(sock)
        else:
            on_data(key.fileobj, key.data)
