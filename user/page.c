// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>

#include "page.h"
#include "util.h"

__asm__(".pushsection .rodata\n"
	"page_text: .incbin \"user/status.html\"\n"
	"	.byte 0\n"
	".popsection\n");
extern const char page_text[] __attribute__((visibility("hidden")));

int page_write(struct evbuffer *out, const char *nonce)
{
	const struct {
		const char *mark, *value;
	} values[] = { { "@NONCE@", nonce }, { "@VERSION@", PW_VERSION } };
	const char *text = page_text, *mark;

	while ((mark = strchr(text, '@'))) {
		const char *value = NULL;

		evbuffer_add(out, text, mark - text);
		for (size_t i = 0; i < ARRAY_SIZE(values); i++)
			if (strncmp(mark, values[i].mark, strlen(values[i].mark)) == 0) {
				value = values[i].value;
				text = mark + strlen(values[i].mark);
			}
		if (!value)
			return -EINVAL;
		evbuffer_add(out, value, strlen(value));
	}
	return evbuffer_add(out, text, strlen(text)) < 0 ? -ENOMEM : 0;
}
