// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <stdbool.h>

#include "text.h"
#include "util.h"

/* What could move the cursor, hide text or change its direction: C0, C1, and invisible formats. */
static bool is_unsafe(uint32_t c)
{
	static const struct {
		uint32_t first, last;
	} ranges[] = {
		{ 0x00, 0x1f },
		{ '\\', '\\' },
		{ 0x7f, 0x9f },
		{ 0xad, 0xad },
		{ 0x61c, 0x61c },
		{ 0x200b, 0x200f },
		{ 0x2028, 0x202e },
		{ 0x2060, 0x206f },
		{ 0xfeff, 0xfeff },
		{ 0xfff9, 0xfffb },
		{ 0xe0000, 0xe0fff },
	};

	for (size_t i = 0; i < ARRAY_SIZE(ranges); i++)
		if (c >= ranges[i].first && c <= ranges[i].last)
			return true;
	return false;
}

size_t put_text(FILE *out, const char *text, size_t len)
{
	size_t columns = 0;

	while (len) {
		uint32_t c = 0;
		size_t n = utf8_decode((const unsigned char *)text, len, &c);

		if (n && !is_unsafe(c)) {
			fwrite(text, 1, n, out);
			columns++;
		} else {
			n = n ? n : 1;
			for (size_t i = 0; i < n; i++)
				columns += fprintf(out, "\\x%02x", (unsigned char)text[i]);
		}
		text += n;
		len -= n;
	}
	return columns;
}
