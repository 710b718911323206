# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""What gunicorn serves."""


def application(_, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]
