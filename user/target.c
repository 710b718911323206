// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include "target.h"
#include "util.h"

bool target_check(const struct target *t)
{
	int given = !!t->pid + t->self;

	for (int by = 0; by < SELECT_WAYS; by++)
		given += !!t->cgroup[by];
	if (given <= 1)
		return true;
	log_error("--pid, --cgroup, --unit, --container, --pod, --self exclude each other: give one");
	return false;
}

int target_add(const struct target *t, json_t *body)
{
	if (t->pid)
		return json_object_set_new(body, "pid", json_integer(t->pid));
	for (int by = 0; by < SELECT_WAYS; by++)
		if (t->cgroup[by])
			return json_object_set_new(
				body, names_name(&select_names, by), json_string(t->cgroup[by]));
	return json_object_set_new(body, "parent", json_true());
}
