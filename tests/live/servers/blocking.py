# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""One process, one blocking accept."""

import common

sock = common.listener()
common.ready(sock)
common.accept_forever(sock)
