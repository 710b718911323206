// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "bpf/abi.h"
#include "names.h"

static void test_every_value_has_its_name(void **state)
{
	assert_string_equal(phase_name(PW_UNDECLARED), "UNDECLARED");
	assert_string_equal(phase_name(PW_SHUTDOWN), "SHUTDOWN");
	assert_string_equal(source_name(PW_SOURCE_MAP), "map");
	assert_string_equal(source_name(PW_SOURCE_KUBERNETES), "kubernetes");
	assert_string_equal(kind_name(PW_KIND_PROCESS), "process");
	assert_string_equal(kind_name(PW_KIND_CGROUP), "cgroup");
	assert_string_equal(verdict_name(PW_OK), "ok");
	assert_string_equal(verdict_name(PW_IGNORED), "ignored");
	assert_string_equal(seen_by_name(PW_SEEN_FIRST_IO), "first_io");
	assert_string_equal(result_name(PW_ABORTED), "aborted");
	assert_string_equal(event_type_name(PW_EV_ACCEPT), "accept");
	assert_string_equal(event_type_name(PW_EV_LOST), "lost");
}

static void test_other_values_have_none(void **state)
{
	assert_null(phase_name(PW_PHASES));
	assert_null(phase_name(UINT_MAX));
	assert_null(kind_name(0));
	assert_null(event_type_name(0));
	assert_null(result_name(PW_RESULTS));
}

static void test_parse_inverts_name(void **state)
{
	for (unsigned i = 0; i < PW_PHASES; i++)
		assert_int_equal(phase_parse(phase_name(i)), i);
	for (unsigned i = 1; i < PW_EV_TYPES; i++)
		assert_int_equal(names_parse(&event_type_names, event_type_name(i)), i);
}

static void test_parse_ignores_case_only(void **state)
{
	assert_int_equal(phase_parse("drain"), PW_DRAIN);
	assert_int_equal(phase_parse("Drain"), PW_DRAIN);
	assert_int_equal(phase_parse(""), -EINVAL);
	assert_int_equal(phase_parse("DRAI"), -EINVAL);
	assert_int_equal(phase_parse("DRAIN "), -EINVAL);
	assert_int_equal(phase_parse("3"), -EINVAL);
}

static void test_subsets(void **state)
{
	assert_int_equal(names_parse(&declared_phase_names, "UNDECLARED"), -EINVAL);
	assert_int_equal(names_parse(&declared_phase_names, "INIT"), PW_INIT);
	assert_int_equal(names_parse(&shown_verdict_names, "ok"), -EINVAL);
	assert_int_equal(names_parse(&shown_verdict_names, "grace"), PW_GRACE);
	assert_int_equal(names_parse(&shown_event_type_names, "fork"), -EINVAL);
	assert_int_equal(names_parse(&shown_event_type_names, "lost"), PW_EV_LOST);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_value_has_its_name),
		cmocka_unit_test(test_other_values_have_none),
		cmocka_unit_test(test_parse_inverts_name),
		cmocka_unit_test(test_parse_ignores_case_only),
		cmocka_unit_test(test_subsets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
