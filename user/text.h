/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Text from elsewhere: UTF-8 or not, harmless on a terminal or not. */
#ifndef PW_TEXT_H
#define PW_TEXT_H

#include <stddef.h>
#include <stdio.h>

#include "utf8.h"

/*
 * Text with each byte of a control or direction-changing character, of invalid UTF-8, and each
 * backslash as \xNN. Returns the number of columns it took.
 */
size_t put_text(FILE *out, const char *text, size_t len);

#endif /* PW_TEXT_H */
