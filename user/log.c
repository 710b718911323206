// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <stdarg.h>
#include <string.h>

#include "text.h"
#include "util.h"

enum log_level log_level = LOG_LEVEL_INFO;

/* Messages quote arguments and names of processes: nothing in them may reach the terminal raw. */
void log_line(enum log_level level, const char *fmt, ...)
{
	char text[1024];
	va_list args;

	if (level > log_level)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	flockfile(stderr);
	fputs("phasewatch: ", stderr);
	put_text(stderr, text, strlen(text));
	putc('\n', stderr);
	funlockfile(stderr);
}

int fail_with(char *why, size_t size, int err, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, size, fmt, args);
	va_end(args);
	return err;
}
