// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>

#include "event.h"
#include "names.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define V4(a, b, c, d)                                                                             \
	{                                                                                          \
		[10] = 0xff, [11] = 0xff, a, b, c, d                                               \
	}

static const struct pw_conn_record accept_record = {
	.h = { .type = PW_EV_ACCEPT, .size = sizeof(accept_record), .time_ns = 5000014000 },
	.process = { .pid = 4121,
		.ppid = 4120,
		.start_ns = 1234560000000,
		.cgroup_id = 77,
		.comm = "nginx" },
	.on = { .key = { .kind = PW_KIND_PROCESS, .id = 4120 },
		.epoch = 7,
		.since_ns = 3470000000,
		.phase = PW_DRAIN,
		.source = PW_SOURCE_API,
		.verdict = PW_MISROUTED },
	.tuple = { .saddr = V4(10, 0, 0, 9),
		.daddr = V4(10, 0, 0, 8),
		.sport = 51234,
		.dport = 8080 },
	.begin_ns = 5000000000,
	.how = PW_SEEN_ACCEPT,
};

static const struct pw_exit_record exit_record = {
	.h = { .type = PW_EV_EXIT, .size = sizeof(exit_record), .time_ns = 9000000000 },
	.process = { .pid = 4121, .start_ns = 1234560000000, .comm = "nginx" },
	.on = { .key = { .kind = PW_KIND_PROCESS, .id = 4120 },
		.epoch = 7,
		.since_ns = 3470000000,
		.phase = PW_SHUTDOWN,
		.source = PW_SOURCE_SIGNAL },
	.status = 3 << 8,
	.connections = 2,
};

static const struct event_names names = { .node = "n1",
	.subject = "frontend",
	.exe = "/usr/sbin/nginx",
	.cgroup = "/system.slice/nginx.service",
	/* 2026-11-23T12:04:26.206986Z, when this host started */
	.realtime_offset_ns = 1795435466206986000 };

/* ---- decoding ---- */

static struct event decoded(const void *record, size_t size)
{
	struct event e;

	memset(&e, 0xa5, sizeof(e));
	assert_int_equal(event_decode(record, size, &e), 0);
	return e;
}

/* Refused, and the result is not touched. */
static void assert_refused(const void *record, size_t size)
{
	/* the exact size on the heap, so that a sanitizer sees a read behind it */
	_cleanup_(freep) void *copy = malloc(size ? size : 1);
	struct event e, before;

	memcpy(copy, record, size);
	memset(&e, 0xa5, sizeof(e));
	before = e;
	assert_int_equal(event_decode(copy, size, &e), -EPROTO);
	assert_memory_equal(&e, &before, sizeof(e));
}

static void test_decode_copies_the_record(void **state)
{
	struct pw_conn_record connect = accept_record;
	struct event e = decoded(&accept_record, sizeof(accept_record));

	assert_int_equal(e.type, PW_EV_ACCEPT);
	assert_int_equal(e.seq, 0);
	assert_int_equal(e.time_ns, 5000014000);
	assert_memory_equal(&e.conn, &accept_record, sizeof(accept_record));
	assert_ptr_equal(event_process(&e), &e.conn.process);
	assert_ptr_equal(event_verdict_on(&e), &e.conn.on);

	connect.h.type = PW_EV_CONNECT;
	connect.how = PW_ABORTED;
	e = decoded(&connect, sizeof(connect));
	assert_int_equal(e.type, PW_EV_CONNECT);

	e = decoded(&exit_record, sizeof(exit_record));
	assert_int_equal(e.type, PW_EV_EXIT);
	assert_memory_equal(&e.exit, &exit_record, sizeof(exit_record));
	assert_ptr_equal(event_process(&e), &e.exit.process);
	assert_ptr_equal(event_verdict_on(&e), &e.exit.on);
}

static void test_decode_task_records(void **state)
{
	struct pw_task_record task = { .h = { .size = sizeof(task), .time_ns = 5 },
		.process = { .pid = 31, .comm = "sh" } };

	for (unsigned int type = PW_EV_FORK; type <= PW_EV_EXEC; type++) {
		struct event e;

		task.h.type = type;
		e = decoded(&task, sizeof(task));
		assert_int_equal(e.type, type);
		assert_int_equal(event_process(&e)->pid, 31);
		assert_null(event_verdict_on(&e));
	}
}

static void test_decode_refuses_what_is_truncated(void **state)
{
	for (size_t size = 0; size < sizeof(accept_record); size++)
		assert_refused(&accept_record, size);
	for (size_t size = 0; size < sizeof(exit_record); size++)
		assert_refused(&exit_record, size);
}

static void test_decode_refuses_wrong_sizes(void **state)
{
	static const uint16_t sizes[] = { 0, 1, sizeof(struct pw_record),
		sizeof(struct pw_task_record), sizeof(struct pw_exit_record),
		sizeof(struct pw_conn_record) - 1, sizeof(struct pw_conn_record) + 1, 4096,
		UINT16_MAX };
	union {
		struct pw_record h;
		struct pw_conn_record conn;
		char bytes[UINT16_MAX];
	} r = { .conn = accept_record };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		r.h.size = sizes[i];
		assert_refused(&r, sizeof(accept_record));
		assert_refused(&r, sizeof(r)); /* there would be room for it */
	}
	/* an exit record that says accept */
	r.h.size = sizeof(struct pw_exit_record);
	r.h.type = PW_EV_ACCEPT;
	assert_refused(&r, sizeof(r));
}

static void test_decode_refuses_unknown_types(void **state)
{
	/* phase and lost events are the daemon's own: the ring never has them */
	static const uint16_t types[] = { 0, PW_EV_PHASE, PW_EV_LOST, PW_EV_TYPES, PW_EV_TYPES + 1,
		0x100 | PW_EV_ACCEPT, UINT16_MAX };
	struct pw_conn_record r = accept_record;

	for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
		r.h.type = types[i];
		assert_refused(&r, sizeof(r));
		r.h.size = 0;
		assert_refused(&r, sizeof(r));
		r.h.size = sizeof(r);
	}
}

#define ASSERT_REFUSED_WITH(type, record, field, ...)                                              \
	do {                                                                                       \
		const unsigned int values_[] = { __VA_ARGS__ };                                    \
		struct type r_ = record;                                                           \
                                                                                                   \
		for (size_t i_ = 0; i_ < ARRAY_SIZE(values_); i_++) {                              \
			r_.field = values_[i_];                                                    \
			assert_refused(&r_, sizeof(r_));                                           \
		}                                                                                  \
	} while (0)

static void test_decode_refuses_values_out_of_range(void **state)
{
	struct pw_conn_record connect = accept_record;

	ASSERT_REFUSED_WITH(pw_conn_record, accept_record, on.phase, PW_PHASES, 127, 128, 255);
	ASSERT_REFUSED_WITH(pw_conn_record, accept_record, on.verdict, PW_VERDICTS, 128, 255);
	ASSERT_REFUSED_WITH(pw_conn_record, accept_record, on.source, PW_SOURCES, 128, 255);
	ASSERT_REFUSED_WITH(pw_conn_record, accept_record, on.key.kind, 0, PW_KIND_CGROUP + 1,
		0x80000001, UINT32_MAX);
	ASSERT_REFUSED_WITH(
		pw_conn_record, accept_record, how, PW_SEEN_RELEASE + 1, 0x80000000, UINT32_MAX);
	ASSERT_REFUSED_WITH(pw_exit_record, exit_record, on.phase, PW_PHASES, 255);
	ASSERT_REFUSED_WITH(pw_exit_record, exit_record, on.verdict, PW_VERDICTS, 255);
	ASSERT_REFUSED_WITH(pw_exit_record, exit_record, on.source, PW_SOURCES, 255);
	ASSERT_REFUSED_WITH(pw_exit_record, exit_record, on.key.kind, 0, 3);

	/* what is out of range for accept is a result */
	connect.h.type = PW_EV_CONNECT;
	connect.how = PW_ABORTED;
	decoded(&connect, sizeof(connect));
	ASSERT_REFUSED_WITH(pw_conn_record, connect, how, PW_RESULTS, UINT32_MAX);
}

/* A generator whose numbers are the same everywhere. */
static uint32_t noise(uint64_t *state)
{
	*state = *state * 6364136223846793005 + 1442695040888963407;
	return *state >> 33;
}

/* Whatever arrives is refused, or becomes one line of JSON. */
static void test_decode_and_write_noise(void **state)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	uint64_t seed = 20261123;
	unsigned int shown = 0;

	for (unsigned int round = 0; round < 50021; round++) {
		struct pw_conn_record r = accept_record;
		unsigned char *bytes = (unsigned char *)&r;
		size_t size = noise(&seed) % 8 ? sizeof(r) : noise(&seed) % (sizeof(r) + 1);
		struct event e;

		if (noise(&seed) % 2) {
			r.h.type = noise(&seed) % (PW_EV_TYPES + 1);
			r.h.size = noise(&seed) % 2 ? sizeof(struct pw_exit_record) : sizeof(r);
		}
		for (unsigned int n = noise(&seed) % 40; n; n--)
			bytes[noise(&seed) % sizeof(r)] = noise(&seed);
		if (event_decode(bytes, size, &e) < 0)
			continue;
		if (e.type != PW_EV_ACCEPT && e.type != PW_EV_EXIT && e.type != PW_EV_CONNECT)
			continue;
		shown++;
		json_reset(&j);
		event_write(&j, &e, &names);
		assert_ptr_equal(memchr(j.text, '\n', j.len), j.text + j.len - 1);
	}
	assert_in_range(shown, 5000, 50020);
}

/* ---- writing ---- */

static json_t *written(const struct event *e, const struct event_names *n)
{
	_cleanup_(json_free) struct json_out j = { 0 };
	json_error_t error;
	json_t *value;

	event_write(&j, e, n);
	assert_int_equal(j.text[j.len - 1], '\n');
	assert_ptr_equal(memchr(j.text, '\n', j.len), j.text + j.len - 1);
	value = json_loadb(j.text, j.len, JSON_REJECT_DUPLICATES, &error);
	if (!value)
		fail_msg("%s in %.*s", error.text, (int)j.len, j.text);
	return value;
}

/* Exactly these fields with these values: none is missing, none is there beside them. */
static void assert_written(const struct event *e, const struct event_names *n, const char *expected)
{
	json_t *value = written(e, n), *want = json_loads(expected, 0, NULL);
	char *text = json_dumps(value, JSON_SORT_KEYS);

	assert_non_null(want);
	if (!json_equal(value, want))
		fail_msg("%s is not %s", text, expected);
	free(text);
	json_decref(value);
	json_decref(want);
}

static void test_write_accept(void **state)
{
	struct event e = decoded(&accept_record, sizeof(accept_record));

	e.seq = 17;
	assert_written(&e, &names,
		"{\"schema\":1,\"time\":\"2026-11-23T12:04:31.207000000Z\",\"node\":\"n1\",\"seq\":"
		"17,"
		"\"type\":\"accept\",\"phase\":\"DRAIN\",\"phase_age_ns\":1530000000,"
		"\"verdict\":\"misrouted\",\"subject\":{\"kind\":\"process\",\"id\":4120,"
		"\"name\":\"frontend\",\"epoch\":7,\"source\":\"api\"},\"process\":{\"pid\":4121,"
		"\"start_ns\":1234560000000,\"comm\":\"nginx\",\"exe\":\"/usr/sbin/nginx\","
		"\"cgroup\":\"/system.slice/nginx.service\"},"
		"\"src\":{\"addr\":\"10.0.0.9\",\"port\":51234},"
		"\"dst\":{\"addr\":\"10.0.0.8\",\"port\":8080},"
		"\"queue_ns\":14000,\"seen_by\":\"accept\"}");
}

/* Absent, never empty or invented. */
static void test_write_leaves_out_what_is_not_known(void **state)
{
	struct event_names none = { .node = "n1" };
	struct event e = decoded(&accept_record, sizeof(accept_record));

	e.conn.on.epoch = e.conn.on.since_ns = e.conn.begin_ns = 0;
	assert_written(&e, &none,
		"{\"schema\":1,\"time\":\"1970-01-01T00:00:05.000014000Z\",\"node\":\"n1\",\"seq\":"
		"0,"
		"\"type\":\"accept\",\"phase\":\"DRAIN\",\"verdict\":\"misrouted\","
		"\"subject\":{\"kind\":\"process\",\"id\":4120,\"source\":\"api\"},"
		"\"process\":{\"pid\":4121,\"start_ns\":1234560000000,\"comm\":\"nginx\"},"
		"\"src\":{\"addr\":\"10.0.0.9\",\"port\":51234},"
		"\"dst\":{\"addr\":\"10.0.0.8\",\"port\":8080},\"seen_by\":\"accept\"}");
}

/* The kernel closed it, for somebody it does not know. */
static void test_write_without_a_process(void **state)
{
	struct event e = decoded(&accept_record, sizeof(accept_record));
	json_t *value;

	memset(&e.conn.process, 0, sizeof(e.conn.process));
	assert_null(event_process(&e));
	value = written(&e, &names);
	assert_null(json_object_get(value, "process"));
	assert_non_null(json_object_get(value, "subject"));
	json_decref(value);
}

static void test_write_connect(void **state)
{
	static const char *const results[] = { "established", "refused", "timeout", "reset",
		"unreachable", "aborted" };
	struct pw_conn_record r = accept_record;

	r.h.type = PW_EV_CONNECT;
	for (unsigned int i = 0; i < ARRAY_SIZE(results); i++) {
		struct event e;
		json_t *value;

		r.how = i;
		e = decoded(&r, sizeof(r));
		value = written(&e, &names);
		assert_string_equal(json_string_value(json_object_get(value, "type")), "connect");
		assert_string_equal(
			json_string_value(json_object_get(value, "result")), results[i]);
		assert_int_equal(json_integer_value(json_object_get(value, "connect_ns")), 14000);
		assert_null(json_object_get(value, "queue_ns"));
		assert_null(json_object_get(value, "seen_by"));
		json_decref(value);
	}
}

static void test_write_exit(void **state)
{
	struct event e = decoded(&exit_record, sizeof(exit_record));
	struct event_names none = { .node = "n1" };

	assert_written(&e, &none,
		"{\"schema\":1,\"time\":\"1970-01-01T00:00:09.000000000Z\",\"node\":\"n1\",\"seq\":"
		"0,"
		"\"type\":\"exit\",\"phase\":\"SHUTDOWN\",\"phase_age_ns\":5530000000,"
		"\"subject\":{\"kind\":\"process\",\"id\":4120,\"epoch\":7,\"source\":\"signal\"},"
		"\"process\":{\"pid\":4121,\"start_ns\":1234560000000,\"comm\":\"nginx\"},"
		"\"code\":3,\"open_connections\":2}");
}

static void test_write_exit_statuses(void **state)
{
	static const struct {
		uint32_t status;
		const char *key;
		int value;
	} cases[] = { { 0, "code", 0 }, { 255 << 8, "code", 255 }, { SIGTERM, "signal", SIGTERM },
		{ SIGSEGV | 0x80 /* dumped core */, "signal", SIGSEGV }, { 64, "signal", 64 } };

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct event e = decoded(&exit_record, sizeof(exit_record));
		json_t *value;

		e.exit.status = cases[i].status;
		value = written(&e, &names);
		assert_true(json_is_integer(json_object_get(value, cases[i].key)));
		assert_int_equal(
			json_integer_value(json_object_get(value, cases[i].key)), cases[i].value);
		/* one of the two */
		assert_true(!json_object_get(value, "code") != !json_object_get(value, "signal"));
		json_decref(value);
	}
}

static void test_write_phase(void **state)
{
	struct event e = { .type = PW_EV_PHASE,
		.seq = 3,
		.time_ns = 1000000001,
		.phase = { .key = { .kind = PW_KIND_PROCESS, .id = 4120 },
			.from = PW_ACTIVE,
			.by_comm = "sh",
			.now = { .phase = PW_DRAIN,
				.source = PW_SOURCE_API,
				.epoch = 7,
				.since_ns = 1000000000,
				.by_pid = 99,
				.by_uid = 0,
				.reason = "rolling update" } } };
	struct event_names n = { .node = "n1", .subject = "nginx" };

	assert_written(&e, &n,
		"{\"schema\":1,\"time\":\"1970-01-01T00:00:01.000000001Z\",\"node\":\"n1\",\"seq\":"
		"3,"
		"\"type\":\"phase\",\"phase\":\"DRAIN\",\"subject\":{\"kind\":\"process\",\"id\":"
		"4120,"
		"\"name\":\"nginx\",\"epoch\":7,\"source\":\"api\"},\"from\":\"ACTIVE\",\"to\":"
		"\"DRAIN\","
		"\"epoch\":7,\"source\":\"api\",\"reason\":\"rolling update\","
		"\"by\":{\"pid\":99,\"uid\":0,\"comm\":\"sh\"}}");
}

/* As whoever writes the map may have left it. */
static void test_write_hostile_declaration(void **state)
{
	struct event e = { .type = PW_EV_PHASE,
		.phase = { .key = { .kind = PW_KIND_PROCESS, .id = 1 },
			.from = 99,
			.now = { .phase = PW_DRAIN, .source = 99, .epoch = 1 } } };
	struct event_names n = { .node = "n1" };
	json_t *value;

	memset(e.phase.now.reason, '\xff', sizeof(e.phase.now.reason)); /* nor a NUL */
	value = written(&e, &n);
	assert_null(json_object_get(value, "from"));
	assert_null(json_object_get(value, "source"));
	assert_null(json_object_get(value, "by"));
	assert_int_equal(json_string_length(json_object_get(value, "reason")), 3 * PW_REASON_LEN);
	json_decref(value);
}

static void test_write_lost(void **state)
{
	struct event e = { .type = PW_EV_LOST,
		.seq = 12,
		.time_ns = 1,
		.lost = { .stage = "ring",
			.count = 15,
			.by_type = { [PW_EV_ACCEPT] = 12, [PW_EV_EXIT] = 1, [PW_EV_FORK] = 2 } } };
	struct event_names n = { .node = "n1" };

	assert_written(&e, &n,
		"{\"schema\":1,\"time\":\"1970-01-01T00:00:00.000000001Z\",\"node\":\"n1\",\"seq\":"
		"12,"
		"\"type\":\"lost\",\"count\":15,\"by_type\":{\"accept\":12,\"exit\":1,\"fork\":2},"
		"\"stage\":\"ring\"}");
	assert_null(event_process(&e));
	assert_null(event_verdict_on(&e));
}

/* Counters are in a map that others can write: even then a line stays a line of JSON. */
static void test_write_lost_of_no_type(void **state)
{
	struct event e = { .type = PW_EV_LOST, .lost = { .stage = "ring", .count = 8 } };
	struct event_names n = { .node = "n1" };

	for (unsigned int t = 0; t < PW_EV_TYPES; t++)
		e.lost.by_type[t] = 1;
	json_decref(written(&e, &n));
}

static void assert_address(const uint8_t addr[16], const char *expected)
{
	struct event e = decoded(&accept_record, sizeof(accept_record));
	json_t *value;

	memcpy(e.conn.tuple.saddr, addr, 16);
	e.conn.tuple.sport = 65535;
	value = written(&e, &names);
	assert_string_equal(
		json_string_value(json_object_get(json_object_get(value, "src"), "addr")),
		expected);
	assert_int_equal(
		json_integer_value(json_object_get(json_object_get(value, "src"), "port")), 65535);
	assert_string_equal(
		json_string_value(json_object_get(json_object_get(value, "dst"), "addr")),
		"10.0.0.8");
	json_decref(value);
}

static void test_write_addresses(void **state)
{
	assert_address((uint8_t[16])V4(127, 0, 0, 1), "127.0.0.1");
	assert_address((uint8_t[16])V4(255, 255, 255, 255), "255.255.255.255");
	assert_address((uint8_t[16])V4(0, 0, 0, 0), "0.0.0.0");
	assert_address((uint8_t[16]){ 0 }, "::");
	assert_address((uint8_t[16]){ [15] = 1 }, "::1");
	assert_address((uint8_t[16]){ 0x20, 0x01, 0x0d, 0xb8, [14] = 0x80, [15] = 0x01 },
		"2001:db8::8001");
	/* not v4-mapped: one bit differs, or only compatible */
	assert_address((uint8_t[16]){ 1, [10] = 0xff, 0xff, 10, 0, 0, 9 }, "100::ffff:a00:9");
	assert_address((uint8_t[16]){ [10] = 0xff, 0xfe, 10, 0, 0, 9 }, "::fffe:a00:9");
	assert_address((uint8_t[16]){ 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
			       0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
}

/* Clocks of two CPUs: what seems to end before it began took no time. */
static void test_write_durations_never_wrap(void **state)
{
	struct event e = decoded(&accept_record, sizeof(accept_record));
	json_t *value;

	e.conn.begin_ns = e.conn.h.time_ns + 1;
	e.conn.on.since_ns = e.conn.begin_ns + 1;
	value = written(&e, &names);
	assert_true(json_is_integer(json_object_get(value, "queue_ns")));
	assert_int_equal(json_integer_value(json_object_get(value, "queue_ns")), 0);
	assert_true(json_is_integer(json_object_get(value, "phase_age_ns")));
	assert_int_equal(json_integer_value(json_object_get(value, "phase_age_ns")), 0);
	json_decref(value);
}

/* At the close nobody knows when it was accepted. */
static void test_write_no_queue_time_at_release(void **state)
{
	static const char *const seen_by[] = { "accept", "first_io", "release" };

	for (unsigned int i = 0; i < ARRAY_SIZE(seen_by); i++) {
		struct event e = decoded(&accept_record, sizeof(accept_record));
		json_t *value;

		e.conn.how = i;
		value = written(&e, &names);
		assert_string_equal(
			json_string_value(json_object_get(value, "seen_by")), seen_by[i]);
		assert_int_equal(json_object_get(value, "queue_ns") != NULL, i != PW_SEEN_RELEASE);
		json_decref(value);
	}
}

static void test_write_hostile_comm(void **state)
{
	struct event e = decoded(&accept_record, sizeof(accept_record));
	const char *comm;
	json_t *value;

	/* as long as it can be, and without a NUL */
	memcpy(e.conn.process.comm, "a\"b\\c\n\x1b[31m\xff)x ", PW_COMM_LEN);
	value = written(&e, &names);
	comm = json_string_value(json_object_get(json_object_get(value, "process"), "comm"));
	assert_string_equal(comm, "a\"b\\c\n\x1b[31m\xef\xbf\xbd)x ");
	json_decref(value);
}

static void test_verdicts_and_sources(void **state)
{
	struct event e = decoded(&accept_record, sizeof(accept_record));

	for (unsigned int v = 0; v < PW_VERDICTS; v++)
		for (unsigned int p = 0; p < PW_PHASES; p++) {
			json_t *value;

			e.conn.on.verdict = v;
			e.conn.on.phase = p;
			value = written(&e, &names);
			assert_string_equal(json_string_value(json_object_get(value, "verdict")),
				verdict_name(v));
			assert_string_equal(
				json_string_value(json_object_get(value, "phase")), phase_name(p));
			json_decref(value);
		}
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_decode_copies_the_record),
		cmocka_unit_test(test_decode_task_records),
		cmocka_unit_test(test_decode_refuses_what_is_truncated),
		cmocka_unit_test(test_decode_refuses_wrong_sizes),
		cmocka_unit_test(test_decode_refuses_unknown_types),
		cmocka_unit_test(test_decode_refuses_values_out_of_range),
		cmocka_unit_test(test_decode_and_write_noise),
		cmocka_unit_test(test_write_accept),
		cmocka_unit_test(test_write_leaves_out_what_is_not_known),
		cmocka_unit_test(test_write_without_a_process),
		cmocka_unit_test(test_write_connect),
		cmocka_unit_test(test_write_exit),
		cmocka_unit_test(test_write_exit_statuses),
		cmocka_unit_test(test_write_phase),
		cmocka_unit_test(test_write_hostile_declaration),
		cmocka_unit_test(test_write_lost),
		cmocka_unit_test(test_write_lost_of_no_type),
		cmocka_unit_test(test_write_addresses),
		cmocka_unit_test(test_write_durations_never_wrap),
		cmocka_unit_test(test_write_no_queue_time_at_release),
		cmocka_unit_test(test_write_hostile_comm),
		cmocka_unit_test(test_verdicts_and_sources),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
