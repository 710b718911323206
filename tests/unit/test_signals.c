// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <signal.h>
#include <string.h>

#include "signals.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

struct expected {
	const char *text;
	struct pw_signal_rule rules[PW_SIGNAL_RULES];
};

static void test_rules(void **state)
{
	static const struct expected all[] = {
		{ "", { { "", 0, 0 } } },
		{ "TERM=DRAIN", { { "", SIGTERM, PW_DRAIN } } },
		{ "sigterm=drain", { { "", SIGTERM, PW_DRAIN } } },
		{ "TERM,QUIT,INT=DRAIN", { { "", SIGTERM, PW_DRAIN }, { "", SIGQUIT, PW_DRAIN },
						 { "", SIGINT, PW_DRAIN } } },
		{ "nginx:QUIT=DRAIN,nginx:TERM=SHUTDOWN", { { "nginx", SIGQUIT, PW_DRAIN },
								  { "nginx", SIGTERM, PW_SHUTDOWN } } },
		{ "TERM=DRAIN,haproxy:USR1,apache2:WINCH=SHUTDOWN",
			{ { "", SIGTERM, PW_DRAIN }, { "haproxy", SIGUSR1, PW_SHUTDOWN },
				{ "apache2", SIGWINCH, PW_SHUTDOWN } } },
		/* a name may have a colon of its own */
		{ "a:b:USR2=DRAIN", { { "a:b", SIGUSR2, PW_DRAIN } } },
		{ "fifteen-bytes-x:HUP=DRAIN", { { "fifteen-bytes-x", SIGHUP, PW_DRAIN } } },
		{ SIGNALS_DEFAULT, { { "", SIGTERM, PW_DRAIN }, { "", SIGQUIT, PW_DRAIN },
					   { "", SIGINT, PW_DRAIN }, { "haproxy", SIGUSR1, PW_DRAIN },
					   { "apache2", SIGWINCH, PW_DRAIN },
					   { "httpd", SIGWINCH, PW_DRAIN } } },
	};

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct pw_signal_rule rules[PW_SIGNAL_RULES];
		char why[256];

		memset(rules, 0xa5, sizeof(rules));
		if (signals_parse(all[i].text, rules, why, sizeof(why)) != 0)
			fail_msg("%s: %s", all[i].text, why);
		assert_memory_equal(rules, all[i].rules, sizeof(rules));
	}
}

static void test_what_is_none(void **state)
{
	static const struct {
		const char *text, *word;
		int err;
	} bad[] = {
		{ "TERM", "no phase", -EINVAL },
		{ "TERM=DRAIN,QUIT", "no phase", -EINVAL },
		{ "TERM=DRAIN,", "''", -EINVAL },
		{ ",TERM=DRAIN", "''", -EINVAL },
		{ "=DRAIN", "''", -EINVAL },
		{ "TERM=", "''", -EINVAL },
		{ "TERM=ACTIVE", "'ACTIVE'", -EINVAL },
		{ "TERM=INIT", "'INIT'", -EINVAL },
		{ "TERM=UNDECLARED", "'UNDECLARED'", -EINVAL },
		{ "TERM=DRAIN=DRAIN", "'DRAIN=DRAIN'", -EINVAL },
		{ "BOGUS=DRAIN", "'BOGUS'", -EINVAL },
		{ "15=DRAIN", "'15'", -EINVAL },
		{ "TERM =DRAIN", "'TERM '", -EINVAL },
		{ "nginx:=DRAIN", "''", -EINVAL },
		{ ":TERM=DRAIN", "''", -EINVAL },
		{ "sixteen-bytes-xx:TERM=DRAIN", "'sixteen-bytes-xx'", -EINVAL },
		{ "a-name-that-is-much-longer-than-any-program-may-have-in-the-kernel:TERM=DRAIN",
			"a-name-that-is-much-", -EINVAL },
		{ "TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,TERM,"
		  "TERM=DRAIN", "16", -E2BIG },
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct pw_signal_rule rules[PW_SIGNAL_RULES], before[PW_SIGNAL_RULES];
		char why[256] = "";

		memset(before, 0xa5, sizeof(before));
		memcpy(rules, before, sizeof(rules));
		if (signals_parse(bad[i].text, rules, why, sizeof(why)) != bad[i].err ||
			!strstr(why, bad[i].word))
			fail_msg("%s: %s", bad[i].text, why);
		assert_memory_equal(rules, before, sizeof(rules));
	}
}

static void test_mask(void **state)
{
	struct pw_signal_rule rules[PW_SIGNAL_RULES] = { { "", SIGUSR1, PW_DRAIN },
		{ "", SIGALRM, PW_DRAIN } };
	__u64 without = signals_mask((struct pw_signal_rule[PW_SIGNAL_RULES]){ 0 });

	assert_int_equal(without >> SIGTERM & 1, 1);
	assert_int_equal(without >> SIGKILL & 1, 1);
	assert_int_equal(without >> SIGALRM & 1, 0);
	assert_int_equal(without >> SIGCHLD & 1, 0);
	assert_int_equal(signals_mask(rules), without | 1ULL << SIGALRM);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rules),
		cmocka_unit_test(test_what_is_none),
		cmocka_unit_test(test_mask),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
