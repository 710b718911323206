// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "opts.h"
#include "report.h"
#include "util.h"

#define DECLARED (1000 * NS_PER_S)
#define AFTER(ms) (DECLARED + (ms)*NS_PER_MS)
#define REALTIME 1795435469677000000 /* 2026-11-23T12:04:29.677Z */

static void use_client(struct report *r, const char *comm, uint32_t pid, unsigned int times)
{
	struct report_client client = { .pid = pid };

	memcpy(client.comm, comm, strnlen(comm, sizeof(client.comm)));
	if (!r->clients)
		r->clients = calloc(1, sizeof(*r->clients));
	while (times--)
		top_add(r->clients, &client, sizeof(client));
}

static void use_peer(struct report *r, const uint8_t addr[16], unsigned int times)
{
	if (!r->peers)
		r->peers = calloc(1, sizeof(*r->peers));
	while (times--)
		top_add(r->peers, addr, 16);
}

static const uint8_t peer[16] = { [10] = 0xff, 0xff, 10, 0, 0, 12 };
static const uint8_t peer6[16] = { 0xfe, 0x80, [15] = 1 };

/* The one that the documentation shows. */
static struct report example(void)
{
	struct report r = {
		.key = { .kind = PW_KIND_PROCESS, .id = 4120 },
		.name = "frontend",
		.drain = { .time_ns = DECLARED, .by_pid = 4099, .phase = PW_DRAIN,
			.source = PW_SOURCE_API, .epoch = 7, .by_comm = "deploy-hook",
			.reason = "rolling update" },
		.watched_ns = AFTER(0) + 9000,
		.end = REPORT_EXITED,
		.ended_ns = AFTER(9223),
		.exit_ns = AFTER(9223),
		.has_stats = true,
		.last_is_final = true,
		.first = { .accepts = 1847, .requests = 10, .inflight = 83, .members = 4, .look = 1,
			.unseen = 1, .open = 87 },
		.last = { .accepts = 1904, .requests = 240, .last_released_ns = AFTER(9222),
			.last_misrouted_ns = AFTER(2310) },
		.accepts = { [PW_MISROUTED] = 57 },
		.requests = { [PW_MISROUTED] = 212 },
		.requests_too_late = 7,
		.request_connections = 31,
		.connects = { [PW_MISROUTED] = 5 },
		.connects_failed = 1,
		.refused = 11,
		.refused_after_ns = 6100 * NS_PER_MS,
		.dropped = 3,
		.half_open = 1,
		.abandoned = { [PW_FIN] = 1, [PW_RST] = 1 },
		.abandoned_busy = 1,
		.first_misrouted_ns = AFTER(4),
		.last_misrouted_ns = AFTER(2310),
		.signals = { { AFTER(5000), SIGTERM, 1, "systemd" } },
		.n_signals = 1,
		.ports = { { AFTER(5002), 1, 3, 8080 } },
		.n_ports = 1,
	};

	r.queue = calloc(1, sizeof(*r.queue));
	for (unsigned int i = 0; i < 56; i++)
		histogram_record(r.queue, 12000);
	histogram_record(r.queue, 900000);
	use_client(&r, "haproxy", 911, 271);
	use_peer(&r, peer, 8);
	use_peer(&r, peer6, 1);
	return r;
}

/* As the daemon writes it; the caller's. Frees what the report points to. */
static char *json_of(struct report *r)
{
	struct json_out j = { 0 };

	r->realtime_offset_ns = REALTIME - DECLARED;
	report_write(&j, NULL, r, AFTER(3000));
	json_raw(&j, "", 1);
	assert_false(j.failed);
	report_clear(r);
	return j.text;
}

static json_t *parsed(struct report *r)
{
	_cleanup_(freep) char *text = json_of(r);
	json_error_t error;
	json_t *value = json_loads(text, JSON_REJECT_DUPLICATES, &error);

	if (!value)
		fail_msg("%s in %s", error.text, text);
	return value;
}

static void written_as(struct report r, const char *expected)
{
	_cleanup_(freep) char *text = json_of(&r);

	assert_string_equal(text, expected);
}

static char *printed(const json_t *report, void (*print)(FILE *out, const json_t *report))
{
	char *text;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	print(out, report);
	fclose(out);
	return text;
}

static void json_shown(const char *json, const char *expected)
{
	json_t *report = json_loads(json, JSON_ALLOW_NUL, NULL);
	_cleanup_(freep) char *text = printed(report, report_print_text);

	assert_non_null(report);
	json_decref(report);
	assert_string_equal(text, expected);
}

static void shown(struct report r, const char *expected)
{
	json_t *report = parsed(&r);
	_cleanup_(freep) char *text = printed(report, report_print_text);

	json_decref(report);
	assert_string_equal(text, expected);
}

static void test_json(void **state)
{
	written_as(example(),
		"{\"subject\":{\"kind\":\"process\",\"id\":4120,\"name\":\"frontend\",\"epoch\":7,"
		"\"source\":\"api\"},\"running\":false,"
		"\"declared\":\"2026-11-23T12:04:29.677000000Z\",\"reason\":\"rolling update\","
		"\"by\":{\"pid\":4099,\"uid\":0,\"comm\":\"deploy-hook\"},\"processes\":4,"
		"\"duration_ns\":9223000000,\"end\":\"exited\",\"settle_ns\":2310000000,"
		"\"timeline\":[{\"at_ns\":0,\"what\":\"DRAIN declared\","
		"\"detail\":\"by deploy-hook[4099] uid 0, \\\"rolling update\\\"\"},"
		"{\"at_ns\":4000000,\"what\":\"first misrouted\"},"
		"{\"at_ns\":2310000000,\"what\":\"last misrouted\","
		"\"detail\":\"settle time 2.310s\"},"
		"{\"at_ns\":5000000000,\"what\":\"SIGTERM\",\"detail\":\"from systemd[1]\"},"
		"{\"at_ns\":5002000000,\"what\":\"listener closed\","
		"\"detail\":\"port 8080, 3 in the backlog dropped\"},"
		"{\"at_ns\":9222000000,\"what\":\"last connection closed\"},"
		"{\"at_ns\":9223000000,\"what\":\"last process gone\",\"detail\":\"exit 0\"}],"
		"\"arrivals\":{\"accepts\":1904,\"misrouted\":57,\"grace\":0,\"ignored\":0},"
		"\"requests\":{\"misrouted\":212,\"grace\":0,\"ignored\":0,\"too_late\":7,"
		"\"connections\":31,"
		"\"total\":230},\"inflight\":{\"start\":84,\"start_tcp\":87,\"end\":2,\"end_tcp\":5},"
		"\"abandoned\":{\"total\":2,\"busy\":1,\"fin\":1,\"rst\":1},\"backlog_dropped\":3,\"half_open\":1,"
		"\"refused\":{\"count\":11,\"last_after_ns\":6100000000},"
		"\"connects\":{\"misrouted\":5,\"grace\":0,\"ignored\":0,\"failed\":1},"
		"\"queue\":{\"p50_ns\":12031,\"p99_ns\":900000,\"max_ns\":900000},"
		"\"clients\":[{\"comm\":\"haproxy\",\"pid\":911,\"count\":271}],"
		"\"peers\":[{\"addr\":\"10.0.0.12\",\"count\":8},"
		"{\"addr\":\"fe80::1\",\"count\":1}]}");
}

#define HEAD(extent, took)                                                                         \
	"Drain of frontend[4120] (" extent ")    2026-11-23 12:04:29.677  " took "\n"
#define DECLARED_LINE(what) "  +0.000s  " what "by deploy-hook[4099] uid 0, \"rolling update\"\n"

static void test_text(void **state)
{
	shown(example(),
		HEAD("4 processes, epoch 7", "9.223s")
		DECLARED_LINE("DRAIN declared          ")
		"  +0.004s  first misrouted\n"
		"  +2.310s  last misrouted          settle time 2.310s\n"
		"  +5.000s  SIGTERM                 from systemd[1]\n"
		"  +5.002s  listener closed         port 8080, 3 in the backlog dropped\n"
		"  +9.222s  last connection closed\n"
		"  +9.223s  last process gone       exit 0\n"
		"  new connections   57 of 1 904 (2.99 %)    queue p50 12us  p99 0.9ms\n"
		"  late requests     212 of 230 (92.17 %) on 31 connections, 7 after the close: "
		"reset\n"
		"  in flight         84 at the start (87 in TCP), 2 at the end: 2 abandoned (1 busy; 1 reset, "
		"1 closed)\n"
		"  backlog           3 dropped, never accepted, 1 in the handshake\n"
		"  refused           11, the last 6.100s after its listener was closed\n"
		"  connects out      5, 1 failed\n"
		"  from              haproxy[911] 271   10.0.0.12 8   fe80::1 1\n");
}

static void test_markdown(void **state)
{
	struct report r = example();
	json_t *report = parsed(&r);
	_cleanup_(freep) char *text = printed(report, report_print_markdown);

	json_decref(report);
	assert_string_equal(text,
		"### Drain of frontend\\[4120\\]\n"
		"\n"
		"| declared | took | extent |\n"
		"| --- | --- | --- |\n"
		"| 2026-11-23 12:04:29.677 UTC | 9.223s | 4 processes, epoch 7 |\n"
		"\n"
		"| at | what | detail |\n"
		"| ---: | --- | --- |\n"
		"| +0.000s | DRAIN declared | "
		"by deploy-hook\\[4099\\] uid 0, \"rolling update\" |\n"
		"| +0.004s | first misrouted |  |\n"
		"| +2.310s | last misrouted | settle time 2.310s |\n"
		"| +5.000s | SIGTERM | from systemd\\[1\\] |\n"
		"| +5.002s | listener closed | port 8080, 3 in the backlog dropped |\n"
		"| +9.222s | last connection closed |  |\n"
		"| +9.223s | last process gone | exit 0 |\n"
		"\n"
		"| cost | |\n"
		"| --- | --- |\n"
		"| new connections | 57 of 1 904 (2.99 %)    queue p50 12us  p99 0.9ms |\n"
		"| late requests | 212 of 230 (92.17 %) on 31 connections, 7 after the close: reset |\n"
		"| in flight | 84 at the start (87 in TCP), 2 at the end: "
		"2 abandoned (1 busy; 1 reset, 1 closed) |\n"
		"| backlog | 3 dropped, never accepted, 1 in the handshake |\n"
		"| refused | 11, the last 6.100s after its listener was closed |\n"
		"| connects out | 5, 1 failed |\n"
		"| from | haproxy\\[911\\] 271   10.0.0.12 8   fe80::1 1 |\n");
}

static struct report minimal(void)
{
	return (struct report){ .key = { .kind = PW_KIND_CGROUP, .id = 77 },
		.drain = { .time_ns = DECLARED, .phase = PW_DRAIN, .source = PW_SOURCE_MAP,
			.epoch = 1 },
		.watched_ns = DECLARED };
}

static void test_a_running_drain_of_which_little_is_known(void **state)
{
	written_as(minimal(),
		"{\"subject\":{\"kind\":\"cgroup\",\"id\":77,\"epoch\":1,\"source\":\"map\"},"
		"\"running\":true,\"declared\":\"2026-11-23T12:04:29.677000000Z\","
		"\"duration_ns\":3000000000,"
		"\"timeline\":[{\"at_ns\":0,\"what\":\"DRAIN declared\","
		"\"detail\":\"source map\"}],"
		"\"arrivals\":{\"misrouted\":0,\"grace\":0,\"ignored\":0},"
		"\"requests\":{\"misrouted\":0,\"grace\":0,\"ignored\":0,\"too_late\":0,\"connections\":0},"
		"\"abandoned\":{\"total\":0,\"busy\":0,\"fin\":0,\"rst\":0},\"backlog_dropped\":0,\"half_open\":0,"
		"\"refused\":{\"count\":0},"
		"\"connects\":{\"misrouted\":0,\"grace\":0,\"ignored\":0,\"failed\":0}}");
	shown(minimal(),
		"Drain of [77] (epoch 1)    2026-11-23 12:04:29.677  3.000s so far\n"
		"  +0.000s  DRAIN declared  source map\n"
		"  new connections   none\n"
		"  late requests     none\n"
		"  in flight         not known\n"
		"  refused           none\n");
}

static void test_a_clean_drain(void **state)
{
	struct report r = minimal();

	strcpy(r.name, "web.slice");
	r.end = REPORT_EXITED;
	r.ended_ns = r.exit_ns = AFTER(750);
	r.exit_status = SIGKILL;
	r.has_stats = r.last_is_final = true;
	r.first = (struct pw_stats){ .accepts = 1000, .inflight = 1, .members = 1 };
	r.last = (struct pw_stats){ .accepts = 1000, .last_released_ns = AFTER(-1),
		.last_misrouted_ns = AFTER(-10) };
	shown(r, "Drain of web.slice (1 process, epoch 1)    2026-11-23 12:04:29.677  750.0ms\n"
		 "  +0.000s  DRAIN declared     source map\n"
		 "  +0.750s  last process gone  killed by SIGKILL\n"
		 "  new connections   0 of 1 000\n"
		 "  late requests     none\n"
		 "  in flight         1 at the start, 0 at the end\n"
		 "  refused           none\n");
}

static void test_every_other_line(void **state)
{
	static const uint64_t first = 40;
	struct report r = minimal();
	char name[PW_COMM_LEN];

	strcpy(r.name, "web");
	r.shutdown = (struct report_declared){ .time_ns = AFTER(1000), .phase = PW_SHUTDOWN,
		.source = PW_SOURCE_SIGNAL, .epoch = 1, .reason = "why" };
	r.watched_ns = AFTER(62005);
	r.has_stats = true;
	r.first = (struct pw_stats){ .accepts = 2000000, .inflight = -1, .requests = first };
	r.last = (struct pw_stats){ .accepts = 2000100, .inflight = 1000000,
		.requests = first + 3 };
	r.accepts_before = 100;
	r.accepts[PW_MISROUTED] = 100;
	r.accepts[PW_GRACE] = 1234;
	r.accepts[PW_IGNORED] = 5;
	r.last_grace_ns = AFTER(20);
	r.last_misrouted_ns = r.first_misrouted_ns = AFTER(30);
	r.requests[PW_MISROUTED] = 1;
	r.requests[PW_IGNORED] = 2;
	r.request_connections = 1;
	r.connects[PW_GRACE] = 1;
	r.abandoned[PW_FIN] = 1;
	r.signals[0] = (struct report_signal){ .time_ns = AFTER(3), .signal = 60 };
	r.n_signals = 1;
	r.ports[0] = (struct report_port){ AFTER(700), 3, 0, 443 };
	r.ports[1] = (struct report_port){ 0, 0, 8, 80 };
	r.ports[2] = (struct report_port){ AFTER(701), 1, 2, 0 };
	r.n_ports = 3;
	r.dropped = 10;
	r.lost = 12;
	for (unsigned int i = 0; i < 12; i++) {
		snprintf(name, sizeof(name), "client%02u", i);
		use_client(&r, name, i, 20 - i);
	}
	shown(r, "Drain of web (epoch 1)    2026-11-23 12:04:29.677  3.000s so far\n"
		 "  +0.000s  DRAIN declared     source map\n"
		 "  +0.003s  signal 60\n"
		 "  +0.020s  last expected      in the grace time\n"
		 "  +0.030s  first misrouted\n"
		 "  +0.030s  last misrouted     settle time 30.0ms\n"
		 "  +0.700s  listener closed    port 443, the last of 3\n"
		 "  +0.701s  listener closed    other ports, 2 in the backlog dropped\n"
		 "  +1.000s  SHUTDOWN declared  source signal, \"why\"\n"
		 "  new connections   100 of 2 000 000 (<0.01 %), 1 234 in the grace "
		 "time, 5 ignored\n"
		 "  late requests     1 of 3 (33.33 %) on 1 connection, 2 ignored\n"
		 "  in flight         0 at the start, 1 000 000 now: 1 abandoned (1 closed)\n"
		 "  backlog           10 dropped, never accepted\n"
		 "  refused           none\n"
		 "  connects out      0, 1 in the grace time\n"
		 "  from              client00[0] 20   client01[1] 19   client02[2] 18   "
		 "client03[3] 17   client04[4] 16   client05[5] 15   client06[6] 14   "
		 "client07[7] 13   others 42\n"
		 "  watched           only from +1m02s on: what was seen before is not in these "
		 "numbers\n"
		 "  lost              12 records: numbers may be too low\n");
}

static void test_undrained(void **state)
{
	struct report r = minimal();

	strcpy(r.name, "web");
	r.end = REPORT_UNDRAINED;
	r.ended_ns = AFTER(3600 * 1000);
	r.next = (struct report_declared){ .time_ns = AFTER(3600 * 1000), .by_pid = 9,
		.by_uid = 1000, .by_comm = "sh", .phase = PW_ACTIVE, .epoch = 2 };
	r.has_stats = r.last_is_final = true;
	r.first.inflight = 3;
	r.last.inflight = 4;
	r.abandoned[PW_RST] = 2;
	shown(r, "Drain of web (epoch 1)    2026-11-23 12:04:29.677  1h00m\n"
		 "  +0.000s  DRAIN declared   source map\n"
		 "   +1h00m  ACTIVE declared  by sh[9] uid 1000\n"
		 "  new connections   none\n"
		 "  late requests     none\n"
		 "  in flight         3 at the start, 4 at the end: 2 abandoned (2 reset)\n"
		 "  refused           none\n");
}

static void test_released(void **state)
{
	struct report r = minimal();

	r.end = REPORT_RELEASED;
	r.ended_ns = AFTER(5);
	shown(r, "Drain of [77] (epoch 1)    2026-11-23 12:04:29.677  5.0ms\n"
		 "  +0.000s  DRAIN declared    source map\n"
		 "  +0.005s  declaration gone\n"
		 "  new connections   none\n"
		 "  late requests     none\n"
		 "  in flight         not known\n"
		 "  refused           none\n");
}

static void assert_u64(const json_t *report, const char *object, const char *key, uint64_t expected)
{
	const json_t *in = object ? json_object_get(report, object) : report;
	const json_t *value = json_object_get(in, key);

	if (!json_is_integer(value))
		fail_msg("no %s.%s", object ? object : "", key);
	assert_int_equal(json_integer_value(value), expected);
}

/* Where records are missing the kernel's counters stand in, and only there. */
static void test_losses_are_filled_in(void **state)
{
	struct report r = minimal();
	json_t *report;

	r.has_stats = true;
	r.end = REPORT_EXITED;
	r.ended_ns = AFTER(900);
	r.first = (struct pw_stats){ .accepts_misrouted = 5, .requests_misrouted = 6,
		.connects_misrouted = 7 };
	r.last = (struct pw_stats){ .accepts_misrouted = 105, .requests_misrouted = 206,
		.connects_misrouted = 307, .accepts = 80, .last_misrouted_ns = AFTER(800) };
	r.accepts[PW_MISROUTED] = 90;
	r.requests[PW_MISROUTED] = 250;
	r.connects[PW_MISROUTED] = 299;
	r.last_misrouted_ns = AFTER(700);
	report = parsed(&r);
	assert_u64(report, "arrivals", "misrouted", 90);
	assert_u64(report, "arrivals", "accepts", 90);
	assert_u64(report, "connects", "misrouted", 299);
	assert_u64(report, NULL, "settle_ns", 800 * NS_PER_MS);
	assert_null(json_object_get(report, "lost"));
	json_decref(report);

	r.lost = 11;
	r.last.last_misrouted_ns = AFTER(1000); /* after the end: of the next phase */
	report = parsed(&r);
	assert_u64(report, "arrivals", "misrouted", 100);
	assert_u64(report, "requests", "misrouted", 250);
	assert_u64(report, "connects", "misrouted", 300);
	assert_u64(report, NULL, "settle_ns", 700 * NS_PER_MS);
	assert_u64(report, NULL, "lost", 11);
	json_decref(report);
}

static void test_what_is_not_known_is_absent(void **state)
{
	struct report r = example();
	json_t *report;

	r.request_connections_unknown = true;
	r.last_is_final = false;
	r.end = REPORT_EXITED;
	report = parsed(&r);
	assert_null(json_object_get(json_object_get(report, "requests"), "connections"));
	assert_null(json_object_get(json_object_get(report, "inflight"), "end"));
	assert_u64(report, "inflight", "start", 84);
	json_decref(report);
}

static void test_many_peers(void **state)
{
	struct report r = minimal();
	uint8_t addr[16] = { 0xfd };
	uint64_t sum = 0;
	json_t *report, *peers;

	for (unsigned int i = 0; i < 1000; i++) {
		addr[14] = i >> 8;
		addr[15] = i;
		use_peer(&r, addr, 1);
	}
	use_peer(&r, peer, 500);
	report = parsed(&r);
	peers = json_object_get(report, "peers");
	assert_in_range(json_array_size(peers), 1, 16);
	assert_string_equal(json_string_value(json_object_get(json_array_get(peers, 0), "addr")),
		"10.0.0.12");
	for (size_t i = 0; i < json_array_size(peers); i++)
		sum += json_integer_value(json_object_get(json_array_get(peers, i), "count"));
	assert_u64(report, NULL, "peers_other", 1500 - sum);
	json_decref(report);
}

static void test_nothing_controls_the_terminal(void **state)
{
	struct report r = minimal();

	strcpy(r.name, "a\nb");
	strcpy(r.drain.reason, "\x1b[2J\"\xe2\x80\xae");
	strcpy(r.drain.by_comm, "\r\\|`x`");
	r.drain.by_pid = 1;
	use_client(&r, "\x1b]0;x\a\xff", 5, 1);
	use_client(&r, "sixteen bytes!!!", 6, 1);
	shown(r, "Drain of a\\x0ab (epoch 1)    2026-11-23 12:04:29.677  3.000s so far\n"
		 "  +0.000s  DRAIN declared  by \\x0d\\x5c|`x`[1] uid 0, "
		 "\"\\x1b[2J\"\\xe2\\x80\\xae\"\n"
		 "  new connections   none\n"
		 "  late requests     none\n"
		 "  in flight         not known\n"
		 "  refused           none\n"
		 "  from              \\x1b]0;x\\x07\xef\xbf\xbd[5] 1   sixteen bytes!!![6] 1\n");
}

static void test_nothing_breaks_the_table(void **state)
{
	static const char *const json =
		"{\"subject\":{\"kind\":\"cgroup\",\"name\":\"<b>*x*\\n# y\"},"
		"\"timeline\":[{\"at_ns\":1,\"what\":\"a|b\","
		"\"detail\":\"[l](u) `c` ~s~ \\\\ &lt;\"}]}";
	json_t *report = json_loads(json, 0, NULL);
	_cleanup_(freep) char *text = printed(report, report_print_markdown);

	json_decref(report);
	assert_non_null(strstr(text, "### Drain of \\<b\\>\\*x\\*\\\\x0a\\# y\n"));
	assert_non_null(strstr(text,
		"\n| +0.000s | a\\|b | \\[l\\](u) \\`c\\` \\~s\\~ \\\\x5c \\&lt; |\n"));
}

static void test_ill_typed_fields(void **state)
{
	static const char *const core = "  new connections   none\n"
					"  late requests     none\n"
					"  in flight         not known\n"
					"  refused           none\n";
	static const char *const lines[] = {
		"{}",
		"{\"subject\":5,\"timeline\":{},\"declared\":[],\"duration_ns\":-1}",
		"{\"arrivals\":[],\"requests\":\"x\",\"inflight\":7,\"abandoned\":null,"
		"\"refused\":{\"count\":\"many\"},\"clients\":{},\"peers\":3,\"lost\":1.5,"
		"\"queue\":7,\"declared\":\"yesterday\",\"processes\":true}",
	};
	char expected[512];

	snprintf(expected, sizeof(expected), "Drain of \n%s", core);
	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		json_shown(lines[i], expected);
	snprintf(expected, sizeof(expected), "Drain of \n  +0.000s  ?\n  +0.000s  x\n%s"
					     "  from              ? 0   ? 0\n", core);
	json_shown("{\"timeline\":[7,{\"what\":\"x\",\"detail\":9}],\"clients\":[1,{}]}", expected);
}

static void test_local_time(void **state)
{
	setenv("TZ", "IST-5:30", 1);
	tzset();
	json_shown("{\"declared\":\"2026-11-23T20:04:31.207123456Z\",\"duration_ns\":5}",
		"Drain of     2026-11-24 01:34:31.207  5ns\n"
		"  new connections   none\n"
		"  late requests     none\n"
		"  in flight         not known\n"
		"  refused           none\n");
	setenv("TZ", "UTC", 1);
	tzset();
}

static void test_whose(void **state)
{
	static const struct {
		const char *subject;
		bool matches;
	} cases[] = {
		{ "nginx", true },
		{ "nginx[4120]", true },
		{ "4120", true },
		{ "[4120]", false },
		{ "", false },
		{ "ngin", false },
		{ "nginx[412]", false },
		{ "412", false },
		{ "04120", false },
	};
	json_t *report = json_loads(
		"{\"subject\":{\"kind\":\"process\",\"id\":4120,\"name\":\"nginx\"}}", 0, NULL);
	json_t *empty = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		assert_int_equal(report_is_of(report, cases[i].subject), cases[i].matches);
		assert_false(report_is_of(empty, cases[i].subject));
	}
	json_decref(report);
	json_decref(empty);
}

static int use_utc(void **state)
{
	setenv("TZ", "UTC", 1);
	tzset();
	return 0;
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_text),
		cmocka_unit_test(test_markdown),
		cmocka_unit_test(test_a_running_drain_of_which_little_is_known),
		cmocka_unit_test(test_a_clean_drain),
		cmocka_unit_test(test_every_other_line),
		cmocka_unit_test(test_undrained),
		cmocka_unit_test(test_released),
		cmocka_unit_test(test_losses_are_filled_in),
		cmocka_unit_test(test_what_is_not_known_is_absent),
		cmocka_unit_test(test_many_peers),
		cmocka_unit_test(test_nothing_controls_the_terminal),
		cmocka_unit_test(test_nothing_breaks_the_table),
		cmocka_unit_test(test_ill_typed_fields),
		cmocka_unit_test(test_local_time),
		cmocka_unit_test(test_whose),
	};

	return cmocka_run_group_tests(tests, use_utc, NULL);
}
