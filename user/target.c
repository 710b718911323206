// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include "client.h"
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

static int add_target(const struct target *t, json_t *body)
{
	if (!t)
		return json_object_set_new(body, "self", json_true());
	if (t->pid)
		return json_object_set_new(body, "pid", json_integer(t->pid));
	for (int by = 0; by < SELECT_WAYS; by++)
		if (t->cgroup[by])
			return json_object_set_new(
				body, names_name(&select_names, by), json_string(t->cgroup[by]));
	return json_object_set_new(body, "parent", json_true());
}

char *target_declare(const struct target *t, enum pw_phase phase, uint64_t epoch,
	const char *reason, const char *flag)
{
	_cleanup_(json_freep) json_t *body = json_object();
	int r = json_object_set_new(body, "phase", json_string(phase_name(phase)));

	if (!r)
		r = add_target(t, body);
	if (!r && flag)
		r = json_object_set_new(body, flag, json_true());
	if (!r && epoch)
		r = json_object_set_new(body, "epoch", json_integer(epoch));
	if (!r && reason)
		r = json_object_set_new(body, "reason", json_string(reason));
	if (!r)
		return json_dumps(body, JSON_COMPACT);
	log_error("expected text in UTF-8");
	return NULL;
}
