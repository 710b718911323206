// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include "target.h"
#include "util.h"

bool target_check(const struct target *t)
{
	if (!!t->pid + t->self + !!t->cgroup <= 1)
		return true;
	log_error("--pid, --self and --cgroup exclude each other: give one of them");
	return false;
}

int target_add(const struct target *t, json_t *body)
{
	if (t->pid)
		return json_object_set_new(body, "pid", json_integer(t->pid));
	if (t->cgroup)
		return json_object_set_new(body, "cgroup", json_string(t->cgroup));
	return json_object_set_new(body, "parent", json_true());
}
