// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>

#include "client.h"
#include "clock.h"
#include "opts.h"
#include "server.h"

#define OK "HTTP/1.0 200 OK\r\n"

static struct client_request to(const struct server *s)
{
	return (struct client_request){ .socket = s->path, .method = "GET", .target = "/x" };
}

/* The body's lines, joined, and what ended them. */
static int all_lines(struct client *client, char *text, size_t size)
{
	const char *lines;
	size_t len, used = 0;
	int r;

	while ((r = client_lines(client, &lines, &len)) > 0) {
		assert_true(used + len < size);
		assert_int_equal(lines[len - 1], '\n');
		memcpy(text + used, lines, len);
		used += len;
	}
	text[used] = '\0';
	return r;
}

static int request_fails_with(const char *answer)
{
	struct server s = { .chunks = { answer } };
	struct client *client = NULL;
	struct client_request request;
	int r;

	server_start(&s);
	request = to(&s);
	r = client_request(&request, &client);
	assert_null(client);
	server_stop(&s);
	return r;
}

static void test_request_as_sent(void **state)
{
	struct server s = { .chunks = { OK "\r\n" } };
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request;

	server_start(&s);
	request = (struct client_request){
		.socket = s.path, .method = "PUT", .target = "/v1/phase", .body = "{\"a\":1}"
	};
	assert_int_equal(client_request(&request, &client), 0);
	assert_int_equal(client_status(client), 200);
	server_stop(&s);
	assert_string_equal(s.request, "PUT /v1/phase HTTP/1.0\r\nHost: phasewatch\r\n"
				       "Content-Type: application/json\r\n"
				       "Content-Length: 7\r\n\r\n{\"a\":1}");
}

static void lines_are(struct server *s, const char *expected, int end)
{
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request;
	char text[256];

	server_start(s);
	request = to(s);
	assert_int_equal(client_request(&request, &client), 0);
	assert_int_equal(all_lines(client, text, sizeof(text)), end);
	assert_string_equal(text, expected);
	client_free(TAKE_PTR(client));
	server_stop(s);
}

static void test_lines_until_close(void **state)
{
	struct server s = { .chunks = { OK "\r\na\nb", "c\n", "d\n" } };

	lines_are(&s, "a\nbc\nd\n", 0);
}

static void test_head_in_pieces(void **state)
{
	struct server s = { .chunks = { "HTTP/1.", "1 200 OK\r\nX: y\r", "\n\r\na", "\n" } };

	lines_are(&s, "a\n", 0);
}

static void test_content_length_ends_the_body(void **state)
{
	struct server beyond = { .chunks = { OK "content-length: 2\r\n\r\na\nbeyond\n" } };
	struct server open = { .chunks = { OK "Content-Length:4\r\n\r\na\n", "b\n" },
		.silent = true };
	struct server empty = { .chunks = { OK "Content-Length: 0\r\n\r\n" }, .silent = true };

	lines_are(&beyond, "a\n", 0);
	lines_are(&open, "a\nb\n", 0);
	lines_are(&empty, "", 0);
}

static void test_body_that_is_cut_off(void **state)
{
	struct server line = { .chunks = { OK "\r\na\nb" } };
	struct server length = { .chunks = { OK "Content-Length: 9\r\n\r\na\n" } };

	lines_are(&line, "a\n", -EPROTO);
	lines_are(&length, "a\n", -EPROTO);
}

/* Whole lines are handed out although the answer goes on. */
static void test_lines_do_not_wait_for_more(void **state)
{
	struct server s = { .chunks = { OK "\r\na\nb\npart" }, .silent = true };
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request;
	const char *lines;
	size_t len;

	server_start(&s);
	request = to(&s);
	request.follow = true;
	assert_int_equal(client_request(&request, &client), 0);
	assert_int_equal(client_lines(client, &lines, &len), 1);
	assert_int_equal(len, 4);
	assert_memory_equal(lines, "a\nb\n", 4);
	client_free(TAKE_PTR(client));
	server_stop(&s);
}

static char *repeated(char c, size_t len)
{
	char *text = malloc(len);

	assert_non_null(text);
	memset(text, c, len);
	return text;
}

static void test_long_lines(void **state)
{
	const size_t len = 300000;
	_cleanup_(freep) char *text = repeated('x', len);
	struct server s = { .chunks = { OK "\r\nfirst\n", text, "\n" }, .sizes = { 0, len } };
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request;
	const char *lines;
	size_t n, sum = 0;

	server_start(&s);
	request = to(&s);
	assert_int_equal(client_request(&request, &client), 0);
	while (client_lines(client, &lines, &n) > 0)
		sum += n;
	assert_int_equal(sum, strlen("first\n") + len + 1);
	server_stop(&s);
}

static void test_endless_line(void **state)
{
	const size_t len = (size_t)3 << 20;
	_cleanup_(freep) char *text = repeated('x', len);
	struct server s = { .chunks = { OK "\r\n", text }, .sizes = { 0, len } };
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request;
	const char *lines;
	size_t n;

	server_start(&s);
	request = to(&s);
	assert_int_equal(client_request(&request, &client), 0);
	assert_int_equal(client_lines(client, &lines, &n), -EMSGSIZE);
	client_free(TAKE_PTR(client));
	server_stop(&s);
}

static void test_endless_head(void **state)
{
	const size_t len = (size_t)1 << 20;
	_cleanup_(freep) char *text = repeated('x', len);
	struct server s = { .chunks = { OK, text }, .sizes = { 0, len } };
	struct client *client = NULL;
	struct client_request request;

	server_start(&s);
	request = to(&s);
	assert_int_equal(client_request(&request, &client), -EPROTO);
	assert_null(client);
	server_stop(&s);
}

static void test_answers_that_are_not_http(void **state)
{
	static const char *const answers[] = { "", "\r\n\r\n", "hello\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n", "HTTP/1.0 20 OK\r\n\r\n", "HTTP/1.0 999 OK\r\n\r\n",
		"HTTP/1.0 -20 OK\r\n\r\n", "HTTP/1.0  OK\r\n\r\n", OK, OK "X: y\r\n",
		OK "Content-Length: -1\r\n\r\n", OK "Content-Length: 1 2\r\n\r\n",
		OK "Content-Length: 18446744073709551616\r\n\r\n" };

	for (size_t i = 0; i < ARRAY_SIZE(answers); i++)
		assert_int_equal(request_fails_with(answers[i]), -EPROTO);
}

static void json_is(const char *body, int result)
{
	struct server s = { .chunks = { OK "\r\n", body } };
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request;
	json_t *json = NULL;

	server_start(&s);
	request = to(&s);
	assert_int_equal(client_request(&request, &client), 0);
	assert_int_equal(client_json(client, &json), result);
	assert_true(!json == !!result);
	json_decref(json);
	server_stop(&s);
}

static void test_json(void **state)
{
	json_is("{\"a\":[1]}\n", 0);
	json_is("{\"a\":\"\\u0000\"}", 0);
	json_is("", -EPROTO);
	json_is("[]", -EPROTO);
	json_is("{\"a\":", -EPROTO);
	json_is("{} x", -EPROTO);
}

static void test_no_daemon(void **state)
{
	char path[200] = "/tmp/";
	struct client_request request = {
		.socket = "/tmp/pw-client-none/sock", .method = "GET", .target = "/"
	};
	struct client *client = NULL;

	assert_int_equal(client_request(&request, &client), -ENOENT);
	request.socket = "/dev/null";
	assert_int_equal(client_request(&request, &client), -ECONNREFUSED);
	request.socket = memset(path, 'x', sizeof(path) - 1);
	assert_int_equal(client_request(&request, &client), -ENAMETOOLONG);
	assert_null(client);
	request.socket = "/tmp/pw-client-none/sock";
	assert_int_equal(client_call(&request, &client), PW_EXIT_UNREACHABLE);
	assert_null(client);
}

static void call_exits_with(const char *answer, int code)
{
	struct server s = { .chunks = { answer } };
	_cleanup_(client_freep) struct client *client = NULL;
	struct client_request request;

	server_start(&s);
	request = to(&s);
	assert_int_equal(client_call(&request, &client), code);
	assert_true(!client == !!code);
	server_stop(&s);
}

static void test_exit_codes(void **state)
{
	call_exits_with(OK "\r\n", PW_EXIT_DONE);
	call_exits_with("HTTP/1.0 400 X\r\n\r\n{\"error\":\"bad\"}", PW_EXIT_USAGE);
	call_exits_with("HTTP/1.0 403 X\r\n\r\n{\"error\":\"\\u001b[2J\"}", PW_EXIT_REFUSED);
	call_exits_with("HTTP/1.0 409 X\r\n\r\n{\"error\":7}", PW_EXIT_REFUSED);
	call_exits_with("HTTP/1.0 429 X\r\n\r\n{\"error\":\"later\"}", PW_EXIT_REFUSED);
	call_exits_with("HTTP/1.0 404 X\r\n\r\n[]", PW_EXIT_FAILED);
	call_exits_with("HTTP/1.0 500 X\r\n\r\n", PW_EXIT_FAILED);
	call_exits_with("hello\r\n\r\n", PW_EXIT_FAILED);
}

/* It has no room for one more connection, says so and closes, while the request is being sent. */
static void test_daemon_that_does_not_listen(void **state)
{
	struct server s = { .deaf = true,
		.chunks = { "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 7\r\n\r\n{\"a\":1}" } };
	_cleanup_(freep) char *body = calloc(1, (1 << 20) + 1);
	struct client_request request;
	struct client *client = NULL;
	json_t *answer;
	int r;

	memset(body, ' ', 1 << 20); /* more than a socket holds */
	server_start(&s);
	request = to(&s);
	request.body = body;
	assert_int_equal(client_request(&request, &client), 0);
	assert_int_equal(client_status(client), 429);
	assert_int_equal(client_json(client, &answer), 0);
	assert_int_equal(json_integer_value(json_object_get(answer, "a")), 1);
	json_decref(answer);
	client_free(client);
	server_stop(&s);

	/* and if it says nothing */
	s = (struct server){ .deaf = true };
	server_start(&s);
	r = client_request(&request, &client);
	assert_true(r == -EPIPE || r == -ECONNRESET);
	server_stop(&s);
}

static void test_silent_daemon_times_out(void **state)
{
	struct server s = { .silent = true };
	struct client_request request;
	struct client *client = NULL;

	server_start(&s);
	request = to(&s);
	assert_int_equal(client_call(&request, &client), PW_EXIT_TIMEOUT);
	assert_null(client);
	server_stop(&s);
}

static void test_own_time_limit(void **state)
{
	struct server s = { .silent = true };
	struct client_request request;
	struct client *client = NULL;
	uint64_t begin_ns = clock_boot_ns(), took_ns;

	server_start(&s);
	request = to(&s);
	request.timeout_ms = 70;
	assert_int_equal(client_request(&request, &client), -ETIMEDOUT);
	took_ns = clock_boot_ns() - begin_ns;
	assert_in_range(took_ns, 70 * NS_PER_MS, CLIENT_TIMEOUT_S * NS_PER_S - 1);
	server_stop(&s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_request_as_sent),
		cmocka_unit_test(test_lines_until_close),
		cmocka_unit_test(test_head_in_pieces),
		cmocka_unit_test(test_content_length_ends_the_body),
		cmocka_unit_test(test_body_that_is_cut_off),
		cmocka_unit_test(test_lines_do_not_wait_for_more),
		cmocka_unit_test(test_long_lines),
		cmocka_unit_test(test_endless_line),
		cmocka_unit_test(test_endless_head),
		cmocka_unit_test(test_answers_that_are_not_http),
		cmocka_unit_test(test_json),
		cmocka_unit_test(test_no_daemon),
		cmocka_unit_test(test_exit_codes),
		cmocka_unit_test(test_daemon_that_does_not_listen),
		cmocka_unit_test(test_silent_daemon_times_out),
		cmocka_unit_test(test_own_time_limit),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
