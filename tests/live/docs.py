# SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
"""The snippets that the documentation shows, to be run as they are."""

import re

from harness import REPO

BLOCK = re.compile(r"^<!-- test: (\S+) -->\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page):
    """The fenced blocks of docs/`page` by the name in the comment above each: <!-- test: NAME -->.
    There is none without."""
    text = (REPO / "docs" / page).read_text()
    found = dict(BLOCK.findall(text))
    fences = len(re.findall(r"^ *(```|~~~)", text, re.MULTILINE))
    assert 2 * len(found) == fences, f"{page}: a block without a name of its own"
    return found


def snippet(page, name, path):
    """Writes a snippet into the file `path`."""
    path.write_text(snippets(page)[name])
    return path
