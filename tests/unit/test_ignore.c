// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>

#include "ignore.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define FF4 0xff, 0xff, 0xff, 0xff
#define FF12 FF4, FF4, FF4
#define MAPPED 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff

static const struct {
	const char *text;
	uint8_t addr[16], mask[16];
} networks[] = {
	{ "10.0.0.0/8", { MAPPED, 10, 0, 0, 0 }, { FF12, 0xff, 0, 0, 0 } },
	{ "127.0.0.7", { MAPPED, 127, 0, 0, 7 }, { FF12, FF4 } },
	{ "127.0.0.7/32", { MAPPED, 127, 0, 0, 7 }, { FF12, FF4 } },
	{ "192.0.2.128/25", { MAPPED, 192, 0, 2, 128 }, { FF12, 0xff, 0xff, 0xff, 0x80 } },
	{ "172.16.0.0/12", { MAPPED, 172, 16, 0, 0 }, { FF12, 0xff, 0xf0, 0, 0 } },
	{ "192.0.2.4/31", { MAPPED, 192, 0, 2, 4 }, { FF12, 0xff, 0xff, 0xff, 0xfe } },
	/* all of IPv4, and nothing else */
	{ "0.0.0.0/0", { MAPPED, 0, 0, 0, 0 }, { FF12, 0, 0, 0, 0 } },
	{ "::1", { [15] = 1 }, { FF12, FF4 } },
	{ "2001:db8::/32", { 0x20, 0x01, 0x0d, 0xb8 }, { FF4 } },
	{ "fe80::/10", { 0xfe, 0x80 }, { 0xff, 0xc0 } },
	{ "8000::/1", { 0x80 }, { 0x80 } },
	{ "::2/127", { [15] = 2 }, { FF12, 0xff, 0xff, 0xff, 0xfe } },
	{ "::ffff:192.0.2.1", { MAPPED, 192, 0, 2, 1 }, { FF12, FF4 } },
	{ "::ffff:10.0.0.0/104", { MAPPED, 10, 0, 0, 0 }, { FF12, 0xff, 0, 0, 0 } },
	{ "0000:0000:0000:0000:0000:ffff:192.168.100.228/128", { MAPPED, 192, 168, 100, 228 },
		{ FF12, FF4 } },
	{ "2001:0db8:0000:0000:0000:0000:0000:0001/128", { 0x20, 0x01, 0x0d, 0xb8, [15] = 1 },
		{ FF12, FF4 } },
};

static void test_networks(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(networks); i++) {
		struct ignore_options o = { .peers = { 1, { networks[i].text } } };
		struct pw_ignore ignore;
		const char *bad = NULL;
		bool any = false;

		assert_int_equal(ignore_parse(&o, &ignore, &any, &bad), 0);
		assert_true(any);
		assert_memory_equal(ignore.peers[0].addr, networks[i].addr, 16);
		assert_memory_equal(ignore.peers[0].mask, networks[i].mask, 16);
	}
}

/* Each length of a prefix, against its bits one by one. */
static void test_every_mask(void **state)
{
	for (int bits = 1; bits <= 128; bits++) {
		char text[16];
		struct ignore_options o = { .peers = { 1, { text } } };
		struct pw_ignore ignore;
		const char *bad;
		bool any;

		snprintf(text, sizeof(text), "::/%d", bits);
		assert_int_equal(ignore_parse(&o, &ignore, &any, &bad), 0);
		for (int bit = 0; bit < 128; bit++) {
			uint8_t byte = ((uint8_t *)ignore.peers[0].mask)[bit / 8];

			assert_int_equal(byte >> (7 - bit % 8) & 1, bit < bits);
		}
	}
}

static void test_nothing(void **state)
{
	struct ignore_options o = { 0 };
	static const struct pw_ignore nothing;
	struct pw_ignore ignore;
	const char *bad;
	bool any = true;

	memset(&ignore, 0xff, sizeof(ignore));
	assert_int_equal(ignore_parse(&o, &ignore, &any, &bad), 0);
	assert_false(any);
	assert_memory_equal(&ignore, &nothing, sizeof(ignore));
}

/* In their order; what follows the last is empty. */
static void test_all_kinds(void **state)
{
	struct ignore_options o = {
		.peers = { 2, { "::1", "10.0.0.0/8" } },
		.ports = { 3, { "1", "8080", "65535" } },
		.clients = { 2, { "prober", "fifteen-bytes-x" } },
	};
	struct pw_ignore ignore;
	const char *bad;
	bool any = false;

	assert_int_equal(ignore_parse(&o, &ignore, &any, &bad), 0);
	assert_true(any);
	assert_int_equal(((uint8_t *)ignore.peers[0].addr)[15], 1);
	assert_int_equal(((uint8_t *)ignore.peers[1].addr)[12], 10);
	assert_int_equal(ignore.peers[2].mask[0] | ignore.peers[2].mask[1], 0);
	assert_int_equal(ignore.ports[0], 1);
	assert_int_equal(ignore.ports[1], 8080);
	assert_int_equal(ignore.ports[2], 65535);
	assert_int_equal(ignore.ports[3], 0);
	assert_string_equal(ignore.clients[0], "prober");
	assert_string_equal(ignore.clients[1], "fifteen-bytes-x");
	assert_string_equal(ignore.clients[2], "");
}

/* The kernel half compares names as 16 bytes: what follows the text must be zero. */
static void test_names_are_padded(void **state)
{
	struct ignore_options o = { .clients = { 1, { "curl" } } };
	static const char padded[PW_COMM_LEN] = "curl";
	struct pw_ignore ignore;
	const char *bad;
	bool any;

	memset(&ignore, 0xff, sizeof(ignore));
	assert_int_equal(ignore_parse(&o, &ignore, &any, &bad), 0);
	assert_memory_equal(ignore.clients[0], padded, sizeof(padded));
}

static void test_each_kind_alone_counts(void **state)
{
	const struct ignore_options alone[] = {
		{ .peers = { 1, { "::1" } } },
		{ .ports = { 1, { "80" } } },
		{ .clients = { 1, { "curl" } } },
	};

	for (size_t i = 0; i < ARRAY_SIZE(alone); i++) {
		struct pw_ignore ignore;
		const char *bad;
		bool any = false;

		assert_int_equal(ignore_parse(&alone[i], &ignore, &any, &bad), 0);
		assert_true(any);
	}
}

/* Fails, says at which value, and writes nothing else. */
static void refused(const struct ignore_options *o, int err, const char *at)
{
	struct pw_ignore ignore, before;
	const char *bad = NULL;
	bool any = false;

	memset(&ignore, 0x5a, sizeof(ignore));
	before = ignore;
	assert_int_equal(ignore_parse(o, &ignore, &any, &bad), err);
	assert_ptr_equal(bad, at);
	assert_false(any);
	assert_memory_equal(&ignore, &before, sizeof(ignore));
}

static void test_bad_networks(void **state)
{
	static const char *const bad[] = {
		"",
		"/",
		"/8",
		"nonsense",
		"10.0.0.0/",
		"10.0.0.0/33",
		"10.0.0.0/-1",
		"10.0.0.0/+8",
		"10.0.0.0/8x",
		"10.0.0.0/ 8",
		"10.0.0.0/8/8",
		"10.0.0/8",
		"256.0.0.1",
		" 10.0.0.1",
		"10.0.0.1 ",
		"::1/129",
		"::1/",
		":::",
		"[::1]",
		"fe80::1%lo",
		"::/0",
		"2001:db8::/0",
		"::ffff:10.0.0.0/8",
		"::ffff:0.0.0.0/95",
		"10.0.0.0/4294967304",
		"10.0.0.0/18446744073709551624",
		"1111:2222:3333:4444:5555:6666:7777:8888:9999:aaaa:bbbb/1",
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ignore_options o = { .peers = { 2, { "10.0.0.0/8", bad[i] } } };

		refused(&o, -EINVAL, bad[i]);
	}
}

static void test_bad_ports(void **state)
{
	static const char *const bad[] = { "", "http", "-1", "+1", "80x", "0x50", " 80" };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ignore_options o = { .ports = { 2, { "80", bad[i] } } };

		refused(&o, -EINVAL, bad[i]);
	}
}

static void test_bad_names(void **state)
{
	static const char *const bad[] = { "", "sixteen-bytes-xx", "many more than sixteen bytes" };

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct ignore_options o = { .clients = { 2, { "curl", bad[i] } } };

		refused(&o, -EINVAL, bad[i]);
	}
}

static void fill(struct opts_list *list, size_t count, const char *value)
{
	list->count = count;
	for (size_t i = 0; i < count; i++)
		list->values[i] = value;
}

static void test_as_many_as_fit(void **state)
{
	struct ignore_options o = { 0 };
	struct pw_ignore ignore;
	const char *bad;
	bool any = false;

	fill(&o.peers, PW_IGNORE_MAX, "192.0.2.1");
	fill(&o.ports, PW_IGNORE_MAX, "80");
	fill(&o.clients, PW_IGNORE_MAX, "curl");
	assert_int_equal(ignore_parse(&o, &ignore, &any, &bad), 0);
	assert_true(any);
	assert_int_equal(((uint8_t *)ignore.peers[PW_IGNORE_MAX - 1].addr)[15], 1);
	assert_int_equal(ignore.ports[PW_IGNORE_MAX - 1], 80);
	assert_string_equal(ignore.clients[PW_IGNORE_MAX - 1], "curl");
}

static void test_too_many(void **state)
{
	static const char first[] = "192.0.2.1", port[] = "80", name[] = "curl";
	struct ignore_options peers = { 0 }, ports = { 0 }, clients = { 0 };

	fill(&peers.peers, PW_IGNORE_MAX + 1, first);
	refused(&peers, -E2BIG, first);
	fill(&ports.ports, PW_IGNORE_MAX + 1, port);
	refused(&ports, -E2BIG, port);
	fill(&clients.clients, OPTS_LIST_MAX, name);
	clients.clients.values[PW_IGNORE_MAX] = "the first too many";
	refused(&clients, -E2BIG, clients.clients.values[PW_IGNORE_MAX]);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_networks),
		cmocka_unit_test(test_every_mask),
		cmocka_unit_test(test_nothing),
		cmocka_unit_test(test_all_kinds),
		cmocka_unit_test(test_names_are_padded),
		cmocka_unit_test(test_each_kind_alone_counts),
		cmocka_unit_test(test_bad_networks),
		cmocka_unit_test(test_bad_ports),
		cmocka_unit_test(test_bad_names),
		cmocka_unit_test(test_as_many_as_fit),
		cmocka_unit_test(test_too_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
