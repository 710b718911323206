// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <strings.h>

#include "names.h"
#include "signals.h"
#include "util.h"

#define ITEM_LEN 64

static const unsigned char timeline[] = {
	SIGHUP, SIGINT, SIGQUIT, SIGKILL, SIGUSR1, SIGUSR2, SIGTERM, SIGWINCH };

static unsigned int signal_by_name(const char *name)
{
	const char *abbreviation = strncasecmp(name, "SIG", 3) == 0 ? name + 3 : name;

	for (int i = 1; i < SIGRTMIN; i++)
		if (sigabbrev_np(i) && strcasecmp(sigabbrev_np(i), abbreviation) == 0)
			return i;
	return 0;
}

static int parse_item(char *item, struct pw_signal_rule *rule, char *why, size_t len)
{
	char *colon = strrchr(item, ':'), *name = colon ? colon + 1 : item;

	if (colon)
		*colon = '\0';
	if (colon && (!*item || strlen(item) >= sizeof(rule->comm)))
		return fail_with(why, len, -EINVAL, "'%s' is no program's name of 1 to %d bytes", item,
			PW_COMM_LEN - 1);
	rule->signal = signal_by_name(name);
	if (!rule->signal)
		return fail_with(why, len, -EINVAL, "'%s' is no signal, such as TERM or USR1", name);
	if (colon)
		strcpy(rule->comm, item);
	return 0;
}

int signals_parse(const char *text, struct pw_signal_rule ret[static PW_SIGNAL_RULES], char *why,
	size_t len)
{
	struct pw_signal_rule rules[PW_SIGNAL_RULES] = { 0 };
	size_t n = 0, without_phase = 0;
	char item[ITEM_LEN], *equals;
	int phase, err;

	while (*text) {
		size_t size = strcspn(text, ",");

		if (n == PW_SIGNAL_RULES)
			return fail_with(why, len, -E2BIG, "there are more than %d signals",
				PW_SIGNAL_RULES);
		if (size >= sizeof(item))
			return fail_with(why, len, -EINVAL, "'%.20s...' is no [COMM:]SIGNAL=PHASE",
				text);
		memcpy(item, text, size);
		item[size] = '\0';
		equals = strchr(item, '=');
		if (equals)
			*equals = '\0';
		err = parse_item(item, &rules[n++], why, len);
		if (err)
			return err;
		text += size;
		text += *text == ',' && text[1]; /* a comma at the end is an empty item */
		if (!equals)
			continue;
		phase = names_parse(&declared_phase_names, equals + 1);
		if (phase != PW_DRAIN && phase != PW_SHUTDOWN)
			return fail_with(why, len, -EINVAL,
				"a signal means DRAIN or SHUTDOWN, not '%s'", equals + 1);
		for (; without_phase < n; without_phase++)
			rules[without_phase].phase = phase;
	}
	if (without_phase < n)
		return fail_with(why, len, -EINVAL, "the last signal has no phase, such as TERM=DRAIN");
	memcpy(ret, rules, sizeof(rules));
	return 0;
}

__u64 signals_mask(const struct pw_signal_rule rules[static PW_SIGNAL_RULES])
{
	__u64 mask = 0;

	for (size_t i = 0; i < ARRAY_SIZE(timeline); i++)
		mask |= 1ULL << timeline[i];
	for (size_t i = 0; i < PW_SIGNAL_RULES && rules[i].signal; i++)
		mask |= 1ULL << rules[i].signal;
	return mask;
}
