/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Writes JSON text, one value after the other, into a growing buffer. For the event stream, where a
 * document tree for each line would cost more than the rest of the daemon; whatever is read is read
 * with jansson. Memory errors stick: the text is then empty and `failed` set.
 */
#ifndef PW_JSON_OUT_H
#define PW_JSON_OUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct json_out {
	char *text;
	size_t len, size;
	bool failed;
	bool comma; /* the next value follows another one */
};

void json_free(struct json_out *j);
void json_reset(struct json_out *j); /* keeps the memory */

/* `key` is a literal that needs no escape, NULL in an array or at the top. */
void json_open(struct json_out *j, const char *key, char bracket);
void json_close(struct json_out *j, char bracket);
void json_u64(struct json_out *j, const char *key, uint64_t value);
void json_i64(struct json_out *j, const char *key, int64_t value);
/* What JSON has no number for is text: "NaN", "Infinity". */
void json_double(struct json_out *j, const char *key, double value);
void json_bool(struct json_out *j, const char *key, bool value);
/* Any bytes: what is no UTF-8 becomes U+FFFD. NULL writes nothing at all. */
void json_str(struct json_out *j, const char *key, const char *value);
void json_strn(struct json_out *j, const char *key, const char *value, size_t len);
/* CLOCK_REALTIME ns as RFC 3339 in UTC with nanoseconds. */
void json_time(struct json_out *j, const char *key, uint64_t realtime_ns);
/* Raw bytes, such as the end of a line. */
void json_raw(struct json_out *j, const char *bytes, size_t len);

#endif /* PW_JSON_OUT_H */
