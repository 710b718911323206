# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""One process, one epoll loop."""

import common

sock = common.listener()
common.ready(sock)
common.serve(sock)
