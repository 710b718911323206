// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "json_out.h"
#include "text.h"

void json_free(struct json_out *j)
{
	free(j->text);
	*j = (struct json_out){ 0 };
}

void json_reset(struct json_out *j)
{
	j->len = 0;
	j->failed = j->comma = false;
}

static char *room(struct json_out *j, size_t n)
{
	size_t size = j->size ? j->size : 1024;
	char *text;

	if (j->failed)
		return NULL;
	while (size - j->len < n)
		size *= 2;
	if (size != j->size) {
		text = realloc(j->text, size);
		if (!text) {
			j->failed = true;
			j->len = 0;
			return NULL;
		}
		j->text = text;
		j->size = size;
	}
	return j->text + j->len;
}

void json_raw(struct json_out *j, const char *bytes, size_t len)
{
	char *p = room(j, len);

	if (!p)
		return;
	memcpy(p, bytes, len);
	j->len += len;
}

/* The comma and the key; then room for `n` bytes of a value. */
static char *value(struct json_out *j, const char *key, size_t n)
{
	size_t len = key ? strlen(key) : 0;
	char *p = room(j, len + 4 + n);

	if (!p)
		return NULL;
	if (j->comma)
		*p++ = ',';
	if (key) {
		*p++ = '"';
		memcpy(p, key, len);
		p += len;
		*p++ = '"';
		*p++ = ':';
	}
	j->comma = true;
	j->len = p - j->text;
	return p;
}

void json_open(struct json_out *j, const char *key, char bracket)
{
	char *p = value(j, key, 1);

	if (!p)
		return;
	*p = bracket;
	j->len++;
	j->comma = false;
}

void json_close(struct json_out *j, char bracket)
{
	json_raw(j, &bracket, 1);
	j->comma = true;
}

static size_t put_u64(char *p, uint64_t v)
{
	char digits[20];
	size_t n = 0;

	do
		digits[n++] = '0' + v % 10;
	while (v /= 10);
	for (size_t i = 0; i < n; i++)
		p[i] = digits[n - 1 - i];
	return n;
}

void json_u64(struct json_out *j, const char *key, uint64_t v)
{
	char *p = value(j, key, 20);

	if (p)
		j->len += put_u64(p, v);
}

void json_i64(struct json_out *j, const char *key, int64_t v)
{
	char *p = value(j, key, 21);

	if (!p)
		return;
	if (v < 0) {
		*p++ = '-';
		j->len++;
	}
	j->len += put_u64(p, v < 0 ? -(uint64_t)v : (uint64_t)v);
}

void json_bool(struct json_out *j, const char *key, bool v)
{
	if (value(j, key, 0))
		json_raw(j, v ? "true" : "false", v ? 4 : 5);
}

void json_double(struct json_out *j, const char *key, double v)
{
	char text[32];

	if (isfinite(v) && value(j, key, 0))
		json_raw(j, text, snprintf(text, sizeof(text), "%.17g", v));
	else if (!isfinite(v))
		json_str(j, key, isnan(v) ? "NaN" : v > 0 ? "Infinity" : "-Infinity");
}

void json_strn(struct json_out *j, const char *key, const char *text, size_t n)
{
	static const char hex[] = "0123456789abcdef";
	const unsigned char *s = (const unsigned char *)text;
	char *p = value(j, key, 6 * n + 2);
	uint32_t code;
	size_t len;

	if (!p)
		return;
	*p++ = '"';
	for (size_t i = 0; i < n; i++) {
		if (s[i] == '"' || s[i] == '\\') {
			*p++ = '\\';
			*p++ = s[i];
		} else if (s[i] < 0x20 || s[i] == 0x7f) {
			memcpy(p, "\\u00", 4);
			p[4] = hex[s[i] >> 4];
			p[5] = hex[s[i] & 15];
			p += 6;
		} else if (s[i] < 0x80) {
			*p++ = s[i];
		} else if ((len = utf8_decode(s + i, n - i, &code))) {
			memcpy(p, s + i, len);
			p += len;
			i += len - 1;
		} else {
			memcpy(p, "\\ufffd", 6);
			p += 6;
		}
	}
	*p++ = '"';
	j->len = p - j->text;
}

void json_str(struct json_out *j, const char *key, const char *text)
{
	if (text)
		json_strn(j, key, text, strlen(text));
}

static char *put_digits(char *p, unsigned int v, int width)
{
	for (int i = width; i--; v /= 10)
		p[i] = '0' + v % 10;
	return p + width;
}

void json_time(struct json_out *j, const char *key, uint64_t ns)
{
	char *p = value(j, key, 32), *start = p;
	time_t seconds = ns / 1000000000;
	struct tm tm;

	if (!p)
		return;
	gmtime_r(&seconds, &tm);
	*p++ = '"';
	p = put_digits(p, tm.tm_year + 1900, 4);
	*p++ = '-';
	p = put_digits(p, tm.tm_mon + 1, 2);
	*p++ = '-';
	p = put_digits(p, tm.tm_mday, 2);
	*p++ = 'T';
	p = put_digits(p, tm.tm_hour, 2);
	*p++ = ':';
	p = put_digits(p, tm.tm_min, 2);
	*p++ = ':';
	p = put_digits(p, tm.tm_sec, 2);
	*p++ = '.';
	p = put_digits(p, ns % 1000000000, 9);
	*p++ = 'Z';
	*p++ = '"';
	j->len += p - start;
}
