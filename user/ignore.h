/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* --ignore-peer, --ignore-port, --ignore-client: traffic that is no user's. */
#ifndef PW_IGNORE_H
#define PW_IGNORE_H

#include <stdbool.h>

#include "bpf/abi.h"
#include "opts.h"

struct ignore_options {
	struct opts_list peers;	  /* CIDR, or an address */
	struct opts_list ports;	  /* checked by their table */
	struct opts_list clients; /* names of programs */
};

/*
 * What the kernel half gets of them. On failure -EINVAL or -E2BIG, and `bad` is the value at fault.
 * `any`: whether there is anything to ignore.
 */
int ignore_parse(const struct ignore_options *o, struct pw_ignore *ret, bool *any, const char **bad);

#endif /* PW_IGNORE_H */
