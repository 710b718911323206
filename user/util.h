/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Automatic cleanup, ownership transfer, and the log: what every file needs. */
#ifndef PW_UTIL_H
#define PW_UTIL_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define _cleanup_(fn) __attribute__((__cleanup__(fn)))
#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* Hands over what an automatically cleaned variable holds. */
#define TAKE_PTR(p)                                                                                \
	({                                                                                         \
		__typeof__(p) taken_ = (p);                                                        \
		(p) = NULL;                                                                        \
		taken_;                                                                            \
	})
#define TAKE_FD(fd)                                                                                \
	({                                                                                         \
		int taken_ = (fd);                                                                 \
		(fd) = -1;                                                                         \
		taken_;                                                                            \
	})

static inline void freep(void *p)
{
	free(*(void **)p);
}

static inline void closep(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}

static inline void closedirp(DIR **dir)
{
	if (*dir)
		closedir(*dir);
}

/* Puts a sentence into `why` and returns `err`: for the caller, who logs it or answers with it. */
int fail_with(char *why, size_t size, int err, const char *fmt, ...) __attribute__((format(printf, 4, 5)));

/* Exit codes of every command. */
enum exit_code {
	PW_EXIT_DONE = 0,
	PW_EXIT_FAILED = 1,
	PW_EXIT_USAGE = 2,
	PW_EXIT_UNREACHABLE = 3,
	PW_EXIT_REFUSED = 4,
	PW_EXIT_TIMEOUT = 5,
};

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARNING, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* One line on stderr, prefixed with "phasewatch: ". The level is the program's only global. */
extern enum log_level log_level;
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warning(...) log_line(LOG_LEVEL_WARNING, __VA_ARGS__)
#define log_info(...) log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif /* PW_UTIL_H */
