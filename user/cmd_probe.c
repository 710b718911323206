// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <string.h>
#include <sys/utsname.h>

#include "commands.h"
#include "json_out.h"
#include "kernel.h"
#include "probe.h"
#include "util.h"

struct probe_options {
	uint32_t output;
};

static const struct names output_names = { (const char *const[]){ "table", "json" }, 2 };

static const struct opt probe_table[] = {
	OPT_CHOICE(struct probe_options, output, .name = "output", .letter = 'o',
		.metavar = "FORMAT", .choices = &output_names, .fallback = "table",
		.help = "how to print it"),
	OPT_END,
};

const struct opts_spec probe_spec = {
	.name = "probe",
	.summary = "what this kernel supports, and what is on because of it",
	.details = "Loads and attaches the programs for a moment and leaves nothing behind.",
	.options = probe_table,
};

static void print_table(const struct kernel *k, const struct utsname *u)
{
	printf("kernel %s %s\n%-16s  %-27s  %-16s  %-26s  %s\n", u->release, u->machine, "PROGRAM",
		"HOOK", "RUNS", "STATE", "SERVES (OR WHAT IS MISSING)");
	for (size_t i = 0; i < k->n_hooks; i++) {
		const struct hook *h = &k->hooks[i];
		char state[64] = "on";

		if (h->superseded)
			continue;
		if (h->error)
			snprintf(state, sizeof(state), "off: %s", kernel_why_off(h));
		printf("%-16s  %-27s  %-16s  %-26s  %s\n", h->program, h->attaches_to,
			probe_runs[h->kind], state, h->error ? h->without : h->serves);
	}
}

int cmd_probe(int argc, char **argv)
{
	_cleanup_(kernel_freep) struct kernel *k = NULL;
	_cleanup_(json_free) struct json_out j = { 0 };
	struct probe_options o = { 0 };
	struct opts_args args;
	struct utsname u;
	char why[512];
	int code;

	if (!opts_read(&probe_spec, argc, argv, &o, &args, &code))
		return code;
	if (kernel_open(&k, NULL, why, sizeof(why)) < 0) {
		log_error("%s", why);
		return PW_EXIT_FAILED;
	}
	uname(&u);
	if (o.output == 0) {
		print_table(k, &u);
	} else {
		probe_write(&j, k);
		fwrite(j.text, 1, j.len, stdout);
	}
	return PW_EXIT_DONE;
}
