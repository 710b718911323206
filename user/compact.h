/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Events for people: one line each, in fixed columns, and the pieces such lines are made of. What an
 * event holds is not trusted: a field that is absent or of a wrong type is left out, and nothing in
 * it reaches the terminal as a control character.
 */
#ifndef PW_COMPACT_H
#define PW_COMPACT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Writes the event's line, with its newline. Times are shown in the local time zone. */
void compact_print(FILE *out, json_t *event, bool colour);

/* The pieces. Each returns the number of columns it took. */

/* 740ns, 14us, 0.9ms, 1.530s, 2m05s, 3h07m, 4d11h; cut, not rounded. */
size_t put_duration(FILE *out, uint64_t ns);

/* An event's or a table's "subject": nginx[4120] for a process, else its name. */
size_t put_subject(FILE *out, const json_t *subject);

/* A field as a number that is not negative; false if there is none. */
bool get_u64(const json_t *object, const char *key, uint64_t *ret);

#endif /* PW_COMPACT_H */
