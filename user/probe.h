/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#ifndef PW_PROBE_H
#define PW_PROBE_H

#include "json_out.h"
#include "kernel.h"

/* When a hook's program runs, in words; by enum hook_kind. */
extern const char *const probe_runs[];

/* What this kernel supports, and what is on because of it: one JSON object, as a line. */
void probe_write(struct json_out *j, const struct kernel *k);

#endif /* PW_PROBE_H */
