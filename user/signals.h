/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Which signals mean which phase, as `run --signals` says it. */
#ifndef PW_SIGNALS_H
#define PW_SIGNALS_H

#include <stddef.h>

#include "bpf/abi.h"

/* HAProxy and Apache have signals of their own for a graceful end. */
#define SIGNALS_DEFAULT "TERM,QUIT,INT,haproxy:USR1,apache2:WINCH,httpd:WINCH=DRAIN"

/*
 * [COMM:]SIGNAL,...=PHASE,...: a signal's phase is the next one that is named. PHASE is DRAIN or
 * SHUTDOWN; "" is no rule at all. -EINVAL or -E2BIG, and `why` has a sentence.
 */
int signals_parse(const char *text, struct pw_signal_rule ret[static PW_SIGNAL_RULES], char *why,
	size_t why_len);

/* Those of the rules, and those that a drain's timeline tells of. */
__u64 signals_mask(const struct pw_signal_rule rules[static PW_SIGNAL_RULES]);

#endif /* PW_SIGNALS_H */
