/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a command's declaration is for: its options, and the request's fields that they become. Without
 * any it is the process that runs the command.
 */
#ifndef PW_TARGET_H
#define PW_TARGET_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "opts.h"
#include "phasewatch/phase.h"
#include "select.h"

struct target {
	uint32_t pid;
	const char *cgroup[SELECT_WAYS];
	bool self;
};

/* Rows of a table; `field` is a struct target. */
#define OPT_TARGET(type, field)                                                                    \
	OPT_U32(type, field.pid, .name = "pid", .metavar = "N", .min = 1, .max = PID_MAX,          \
		.help = "the process, with its descendants"),                                      \
	OPT_STRING(type, field.cgroup[SELECT_PATH], .name = "cgroup", .metavar = "PATH",           \
		.min = 1, .max = 4095,                                                             \
		.help = "a cgroup with its subtree (admins only), or self: this command's"),         \
	OPT_STRING(type, field.cgroup[SELECT_UNIT], .name = "unit", .metavar = "NAME", .min = 1,   \
		.max = 255, .help = "a systemd unit, such as nginx (admins only)"),                  \
	OPT_STRING(type, field.cgroup[SELECT_CONTAINER], .name = "container", .metavar = "ID",     \
		.min = 4, .max = 127,                                                              \
		.help = "a container, by its id or the first digits of it (admins only)"),           \
	OPT_STRING(type, field.cgroup[SELECT_POD], .name = "pod", .metavar = "NS/NAME", .min = 3,  \
		.max = 255, .help = "a Kubernetes pod on this node (admins only)"),                  \
	OPT_FLAG(type, field.self, .name = "self",                                                 \
		.help = "the process that runs this command, such as a shell script (default)")

/* False, and logged: several are given. */
bool target_check(const struct target *target);

/*
 * The body of a declaration for it (NULL: for this very process), the caller's. `flag` is a field that
 * is true, or NULL; epoch 0 and reason NULL are not given. NULL, and logged: a text is not UTF-8, or
 * no memory.
 */
char *target_declare(const struct target *target, enum pw_phase phase, uint64_t epoch,
	const char *reason, const char *flag);

#endif /* PW_TARGET_H */
