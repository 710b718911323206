/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Events as lines of JSON on a file descriptor: `run --stdout`. Who reads too slowly misses events, and
 * is told so by a `lost` event, as any follower. Nothing here blocks.
 */
#ifndef PW_LINES_OUT_H
#define PW_LINES_OUT_H

#include <event2/event.h>

#include "stream.h"

struct lines_out;

/*
 * `fd` stays the caller's, and is not made non-blocking where that can be helped: others may write to
 * the same file. -EBADF: it is not open.
 */
int lines_out_new(struct lines_out **ret, struct event_base *base, struct stream *s, int fd);
/* Writes what can be written at once. */
void lines_out_free(struct lines_out *o);

#endif /* PW_LINES_OUT_H */
