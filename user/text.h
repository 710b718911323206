/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Text from elsewhere: UTF-8 or not, harmless on a terminal or not. */
#ifndef PW_TEXT_H
#define PW_TEXT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/*
 * Length of the UTF-8 sequence at `s` (len > 0 bytes) and its code point; 0 if it is none: cut off,
 * overlong, a surrogate, or beyond U+10FFFF.
 */
size_t utf8_decode(const unsigned char *s, size_t len, uint32_t *ret);

/*
 * Text with each byte of a control or direction-changing character, of invalid UTF-8, and each
 * backslash as \xNN. Returns the number of columns it took.
 */
size_t put_text(FILE *out, const char *text, size_t len);

#endif /* PW_TEXT_H */
