// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <stdarg.h>

#include "util.h"

enum log_level log_level = LOG_LEVEL_INFO;

void log_line(enum log_level level, const char *fmt, ...)
{
	va_list args;

	if (level > log_level)
		return;
	flockfile(stderr);
	fputs("phasewatch: ", stderr);
	va_start(args, fmt);
	vfprintf(stderr, fmt, args);
	va_end(args);
	putc('\n', stderr);
	funlockfile(stderr);
}

int fail(char *why, size_t size, int err, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, size, fmt, args);
	va_end(args);
	return err;
}
