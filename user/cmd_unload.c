// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include "commands.h"
#include "kernel.h"
#include "util.h"

struct unload_options {
	const char *pin_dir;
};

static const struct opt unload_table[] = {
	OPT_STRING(struct unload_options, pin_dir, .name = "pin-dir", .metavar = "DIR", .min = 1,
		.max = 255, .fallback = PW_PIN_DIR, .help = "where maps and links are pinned"),
	OPT_END,
};

const struct opts_spec unload_spec = {
	.name = "unload",
	.summary = "detach the kernel half and remove all pins",
	.options = unload_table,
};

int cmd_unload(int argc, char **argv)
{
	struct unload_options o = { 0 };
	struct opts_args args;
	char why[512];
	bool removed;
	int code;

	if (!opts_read(&unload_spec, argc, argv, &o, &args, &code))
		return code;
	if (kernel_unload(o.pin_dir, &removed, why, sizeof(why)) < 0) {
		log_error("%s", why);
		return PW_EXIT_FAILED;
	}
	puts(removed ? "unloaded" : "nothing was loaded");
	return PW_EXIT_DONE;
}
