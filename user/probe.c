// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <sys/utsname.h>

#include "probe.h"

const char *const probe_runs[] = { "always", "always", "while draining", "by the daemon" };

void probe_write(struct json_out *j, const struct kernel *k)
{
	struct utsname u;

	uname(&u);
	json_open(j, NULL, '{');
	json_u64(j, "schema", 1);
	json_str(j, "kernel", u.release);
	json_str(j, "machine", u.machine);
	json_open(j, "hooks", '[');
	for (size_t i = 0; i < k->n_hooks; i++) {
		const struct hook *h = &k->hooks[i];

		if (h->superseded)
			continue;
		json_open(j, NULL, '{');
		json_str(j, "program", h->program);
		json_str(j, "hook", h->attaches_to);
		json_str(j, "runs", probe_runs[h->kind]);
		json_bool(j, "on", !h->error);
		if (h->error)
			json_str(j, "reason", kernel_why_off(h));
		json_str(j, "serves", h->serves);
		json_str(j, "without", h->without);
		json_close(j, '}');
	}
	json_close(j, ']');
	json_close(j, '}');
	json_raw(j, "\n", 1);
}
