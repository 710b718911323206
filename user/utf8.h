/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* In a header, because lib/ has to be one object that brings no other name along. */
#ifndef PW_UTF8_H
#define PW_UTF8_H

#include <stddef.h>
#include <stdint.h>

/*
 * Length of the UTF-8 sequence at `s` (len > 0 bytes) and its code point; 0 if it is none: cut off,
 * overlong, a surrogate, or beyond U+10FFFF.
 */
static inline size_t utf8_decode(const unsigned char *s, size_t len, uint32_t *ret)
{
	static const uint32_t smallest[] = { 0, 0, 0x80, 0x800, 0x10000 };
	uint32_t c = s[0];
	size_t n = c < 0x80 ? 1 : c < 0xc0 ? 0 : c < 0xe0 ? 2 : c < 0xf0 ? 3 : c < 0xf8 ? 4 : 0;

	if (!n || n > len)
		return 0;
	if (n > 1)
		c &= 0x7f >> n;
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (s[i] & 0x3f);
	}
	if (c < smallest[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return 0;
	*ret = c;
	return n;
}

#endif /* PW_UTF8_H */
