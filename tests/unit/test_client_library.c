// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>

#include "clock.h"
#include "phasewatch/client.h"
#include "server.h"

#define OK "HTTP/1.0 200 OK\r\n"
#define LIMIT_MS 100
/* The machine may be busy, yet this is less than any limit that was not kept. */
#define LATE_MS 1500

/*
 * Stands before libc's, on the library's way to it: there is no other place to see the socket, to
 * make sure that the other end is closed before something is sent, or not to disturb a daemon that
 * runs here.
 */
static struct {
	bool only_look, until_hangup;
	char path[108];
} on_connect;

int connect(int fd, const struct sockaddr *address, socklen_t len)
{
	struct pollfd hangup = { .fd = fd };
	long r;

	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	if (on_connect.only_look) {
		strcpy(on_connect.path, ((const struct sockaddr_un *)address)->sun_path);
		errno = ECONNREFUSED;
		return -1;
	}
	r = syscall(SYS_connect, fd, address, len);
	if (on_connect.until_hangup)
		poll(&hangup, 1, -1);
	return r;
}

static int declare_at(const char *path)
{
	return pw_declare_to(path, 0, PW_DRAIN, 0, NULL);
}

/* Without waiting for more than the answer. */
static int result_of(struct server *s)
{
	uint64_t since = clock_boot_ns();
	int r;

	server_start(s);
	r = declare_at(s->path);
	server_stop(s);
	assert_in_range(clock_boot_ns() - since, 0, PW_DECLARE_TIMEOUT_MS * 1000000ULL);
	return r;
}

static int result_of_answer(const char *answer)
{
	struct server s = { .chunks = { answer } };

	return result_of(&s);
}

/* ---- what is sent ---- */

static void test_request_as_sent(void **state)
{
	struct server bare = { .chunks = { OK "\r\n" } }, full = { .chunks = { OK "\r\n" } };

	server_start(&bare);
	assert_int_equal(pw_declare_to(bare.path, 0, PW_INIT, 0, ""), 0);
	server_stop(&bare);
	assert_string_equal(bare.request, "PUT /v1/phase HTTP/1.0\r\nHost: phasewatch\r\n"
					  "Content-Type: application/json\r\n"
					  "Content-Length: 28\r\n\r\n"
					  "{\"phase\":\"INIT\",\"self\":true}");
	server_start(&full);
	assert_int_equal(
		pw_declare_to(full.path, 0, PW_SHUTDOWN, PW_EPOCH_MAX, "rolling update"), 0);
	server_stop(&full);
	assert_string_equal(strstr(full.request, "\r\n\r\n") + 4,
		"{\"phase\":\"SHUTDOWN\",\"self\":true,\"epoch\":9223372036854775807,"
		"\"reason\":\"rolling update\"}");
}

/* A JSON parser reads what was meant, and the length is right. */
static void reason_arrives(const char *reason)
{
	struct server s = { .chunks = { OK "\r\n" } };
	json_error_t error;
	const char *body;
	json_t *json;

	server_start(&s);
	assert_int_equal(pw_declare_to(s.path, 0, PW_DRAIN, 7, reason), 0);
	server_stop(&s);
	body = strstr(s.request, "\r\n\r\n") + 4;
	json = json_loads(body, JSON_REJECT_DUPLICATES, &error);
	if (!json)
		fail_msg("%s: %s", body, error.text);
	assert_int_equal(json_object_size(json), 4);
	assert_string_equal(json_string_value(json_object_get(json, "phase")), "DRAIN");
	assert_true(json_is_true(json_object_get(json, "self")));
	assert_int_equal(json_integer_value(json_object_get(json, "epoch")), 7);
	assert_string_equal(json_string_value(json_object_get(json, "reason")), reason);
	json_decref(json);
}

static void test_reasons(void **state)
{
	char longest[PW_REASON_LEN] = "";

	reason_arrives("\"},\"phase\":\"ACTIVE\",\"x\":{\"");
	reason_arrives("\\\",\\u0000\\");
	reason_arrives("</script>\r\n\r\nGET / HTTP/1.0\r\n\r\n");
	reason_arrives("%s%n\x1b[2J\x7f");
	reason_arrives("\xc2\x80 \xed\x9f\xbf \xef\xbf\xbf \xf0\x9f\x98\x80 \xf4\x8f\xbf\xbf");
	for (int c = 1; c < 0x80; c++) {
		memset(longest, c, sizeof(longest) - 1);
		reason_arrives(longest);
	}
}

/* Nobody is asked: there is no daemon, and that is not what they fail for. */
static void test_arguments_out_of_range(void **state)
{
	static const char *const reasons[] = { "\x80", "\xbf", "x\xc3", "\xc3(", "\xc0\xaf",
		"\xe2\x82", "\xe0\x80\xaf", "\xed\xa0\x80", "\xf0\x80\x80\xaf", "\xf4\x90\x80\x80",
		"\xf8\x88\x80\x80\x80", "\xff" };
	static const int phases[] = { PW_UNDECLARED, PW_SHUTDOWN + 1, -1, 1 << 30 };
	char too_long[PW_REASON_LEN + 1] = "";

	for (size_t i = 0; i < ARRAY_SIZE(reasons); i++) {
		assert_int_equal(pw_declare_to("/none", 0, PW_DRAIN, 0, reasons[i]), -EINVAL);
		assert_string_equal(pw_last_error(), "the reason is not UTF-8");
	}
	for (size_t i = 0; i < ARRAY_SIZE(phases); i++)
		assert_int_equal(pw_declare_to("/none", 0, phases[i], 0, NULL), -EINVAL);
	assert_string_equal(pw_last_error(), "no phase 1073741824: expected INIT to SHUTDOWN");
	assert_int_equal(pw_declare_to("/none", 0, PW_DRAIN, PW_EPOCH_MAX + 1, NULL), -EINVAL);
	assert_string_equal(
		pw_last_error(), "epoch 9223372036854775808 is above 9223372036854775807");
	memset(too_long, 'x', PW_REASON_LEN);
	assert_int_equal(pw_declare_to("/none", 0, PW_DRAIN, 0, too_long), -EINVAL);
	assert_string_equal(pw_last_error(), "the reason is longer than 55 bytes");
}

/* ---- what is answered ---- */

static char *repeated(char c, size_t len)
{
	char *text = malloc(len);

	assert_non_null(text);
	memset(text, c, len);
	return text;
}

static void test_accepted(void **state)
{
	const size_t len = (size_t)1 << 20;
	_cleanup_(freep) char *text = repeated('x', len);
	struct server pieces = { .chunks = { "HTTP/1.", "1 200 OK\r\nX: y\r", "\n\r", "\n" } };
	struct server open = { .chunks = { OK "Content-Length: 9\r\n\r\n{" }, .silent = true };
	struct server huge = { .chunks = { OK "\r\n", text }, .sizes = { 0, len } };

	assert_int_equal(result_of_answer(OK "\r\n{\"schema\":1}\n"), 0);
	assert_int_equal(result_of(&pieces), 0);
	assert_int_equal(result_of(&open), 0);
	assert_int_equal(result_of(&huge), 0);
}

static void refused(const char *answer, int error, const char *text)
{
	assert_int_equal(result_of_answer(answer), error);
	assert_string_equal(pw_last_error(), text);
}

static void test_refusals(void **state)
{
	refused("HTTP/1.1 400 Bad\r\n\r\n{\"error\":\"no\"}\n", -EINVAL, "no");
	refused("HTTP/1.0 403 X\r\n\r\n{\"error\":\"not yours\"}", -EPERM, "not yours");
	refused("HTTP/1.0 409 X\r\n\r\n{\"error\":\"a \\\"b\\\" \\\\c\\\\\"}", -ESTALE,
		"a \"b\" \\c\\");
	refused("HTTP/1.0 409 X\r\n\r\n{\"error\":\"\\u001b[2J\\n\"}", -ESTALE, "\\u001b[2J\\n");
	refused("HTTP/1.0 404 X\r\n\r\n{\"error\":\"\"}", -EIO, "");
	refused("HTTP/1.0 500 X\r\n\r\n", -EIO, "the daemon answered with HTTP status 500");
	refused("HTTP/1.0 403 X\r\n\r\n[]", -EPERM, "the daemon answered with HTTP status 403");
	refused("HTTP/1.0 403 X\r\n\r\n{\"error\":\"cut\\", -EPERM, "cut\\");
}

static void test_huge_refusal(void **state)
{
	const size_t len = (size_t)1 << 20;
	_cleanup_(freep) char *text = repeated('x', len);
	struct server s = { .chunks = { "HTTP/1.0 403 X\r\n\r\n{\"error\":\"", text },
		.sizes = { 0, len } };

	assert_int_equal(result_of(&s), -EPERM);
	assert_int_equal(strlen(pw_last_error()), 511);
}

static void test_answers_that_are_none(void **state)
{
	static const char *const answers[] = { "", "\r\n\r\n", "hello\r\n\r\n",
		"HTTP/2.0 200 OK\r\n\r\n", "HTTP/1.0 20 OK\r\n\r\n", "HTTP/1.0 999 OK\r\n\r\n",
		"HTTP/1.0 -200 OK\r\n\r\n", "HTTP/1.0 OK\r\n\r\n", "HTTP/1.0 302 X\r\n\r\n",
		" " OK "\r\n", OK, OK "X: y\r\n", "HTTP/1.0 403 X\r\n" };
	const size_t len = (size_t)1 << 20;
	_cleanup_(freep) char *text = repeated('x', len), *zeros = repeated('\0', len);
	struct server head = { .chunks = { OK, text }, .sizes = { 0, len } };
	struct server nothing = { .chunks = { zeros, OK "\r\n" }, .sizes = { len } };

	for (size_t i = 0; i < ARRAY_SIZE(answers); i++) {
		assert_int_equal(result_of_answer(answers[i]), -EPROTO);
		assert_string_equal(
			pw_last_error(), "the answer is cut off, or it is not from phasewatch");
	}
	assert_int_equal(result_of(&head), -EPROTO);
	assert_int_equal(result_of(&nothing), -EPROTO);
}

/* Sending to it would raise SIGPIPE, which ends this program. */
static void test_closed_at_once(void **state)
{
	struct server s = { .deaf = true };

	on_connect.until_hangup = true;
	assert_int_equal(result_of(&s), -EPROTO);
	s = (struct server){ .deaf = true,
		.chunks = { "HTTP/1.1 429 X\r\n\r\n{\"error\":\"too many connections\"}" } };
	assert_int_equal(result_of(&s), -EAGAIN);
	assert_string_equal(pw_last_error(), "too many connections");
	on_connect.until_hangup = false;
}

/* ---- the limit of time ---- */

static int result_in_time(const char *path, unsigned int timeout_ms)
{
	uint64_t since = clock_boot_ns(), ms;
	int r = pw_declare_to(path, timeout_ms, PW_DRAIN, 0, NULL);

	ms = (clock_boot_ns() - since + 999999) / 1000000;
	if (!timeout_ms)
		timeout_ms = PW_DECLARE_TIMEOUT_MS;
	assert_in_range(ms, timeout_ms, timeout_ms + LATE_MS);
	return r;
}

static void in_time(struct server *s, unsigned int timeout_ms, int result)
{
	server_start(s);
	assert_int_equal(result_in_time(s->path, timeout_ms), result);
	server_stop(s);
}

static void test_silent_daemon(void **state)
{
	struct server silent = { .silent = true }, default_limit = { .silent = true };
	struct server head = { .chunks = { OK }, .silent = true };
	struct server refusal = { .chunks = { "HTTP/1.0 403 X\r\n\r\n{\"error\":\"a" },
		.silent = true };
	char text[200];

	in_time(&silent, LIMIT_MS, -ETIMEDOUT);
	snprintf(text, sizeof(text), "the daemon at %s did not answer within 100 ms", silent.path);
	assert_string_equal(pw_last_error(), text);
	in_time(&head, LIMIT_MS, -ETIMEDOUT);
	in_time(&refusal, LIMIT_MS, -EPERM);
	assert_string_equal(pw_last_error(), "a");
	in_time(&default_limit, 0, -ETIMEDOUT);
}

/* It is for all that is read, not for each piece. */
static void test_dripping_daemon(void **state)
{
	_cleanup_(freep) char *text = repeated('x', 1000);
	struct server s = { .chunks = { text }, .sizes = { 1000 }, .drip_ms = 10 };

	in_time(&s, LIMIT_MS, -ETIMEDOUT);
}

/* Nobody accepts, and the backlog is full. */
struct hanging {
	struct sockaddr_un address;
	char dir[32];
	int fds[2];
};

static void hanging_start(struct hanging *h)
{
	*h = (struct hanging){ .address = { .sun_family = AF_UNIX },
		.dir = "/tmp/pw-client-XXXXXX" };
	assert_non_null(mkdtemp(h->dir));
	snprintf(h->address.sun_path, sizeof(h->address.sun_path), "%s/sock", h->dir);
	for (int i = 0; i < 2; i++)
		h->fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(h->fds[0], (struct sockaddr *)&h->address, sizeof(h->address)), 0);
	assert_int_equal(listen(h->fds[0], 0), 0);
	assert_int_equal(connect(h->fds[1], (struct sockaddr *)&h->address, sizeof(h->address)), 0);
}

static void hanging_stop(struct hanging *h)
{
	for (int i = 0; i < 2; i++)
		close(h->fds[i]);
	unlink(h->address.sun_path);
	rmdir(h->dir);
}

static void test_daemon_that_hangs(void **state)
{
	struct hanging hanging;

	hanging_start(&hanging);
	assert_int_equal(result_in_time(hanging.address.sun_path, LIMIT_MS), -ETIMEDOUT);
	hanging_stop(&hanging);
}

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
	alarms++;
}

static void alarms_every(int us)
{
	struct sigaction action = { .sa_handler = on_alarm };
	struct itimerval every = { { 0, us }, { 0, us } };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
}

/* Signals neither end a call nor give it more time. */
static void test_signals(void **state)
{
	struct server slow = { .chunks = { OK "\r\n" }, .drip_ms = 10 };
	struct server silent = { .silent = true };
	struct hanging hanging;

	server_start(&slow);
	server_start(&silent);
	hanging_start(&hanging);
	alarms_every(3000);
	assert_int_equal(declare_at(slow.path), 0);
	assert_true(alarms >= 7);
	assert_int_equal(result_in_time(silent.path, LIMIT_MS), -ETIMEDOUT);
	assert_int_equal(result_in_time(hanging.address.sun_path, LIMIT_MS), -ETIMEDOUT);
	alarms_every(0);
	server_stop(&slow);
	server_stop(&silent);
	hanging_stop(&hanging);
}

/* ---- where it is asked ---- */

static void test_no_daemon(void **state)
{
	char path[200] = "/tmp/";

	assert_int_equal(declare_at("/tmp/pw-client-none/sock"), -ENOENT);
	assert_string_equal(pw_last_error(),
		"cannot connect to /tmp/pw-client-none/sock: No such file or directory");
	assert_int_equal(declare_at("/dev/null"), -ECONNREFUSED);
	assert_string_equal(pw_last_error(), "cannot connect to /dev/null: Connection refused");
	memset(path, 'x', 108);
	assert_int_equal(declare_at(path), -ENAMETOOLONG);
	assert_string_equal(pw_last_error(), "the path of the socket is longer than 107 bytes");
	path[107] = '\0';
	assert_int_equal(declare_at(path), -ENOENT);
}

static const char *asked(const char *path)
{
	on_connect.only_look = true;
	assert_int_equal(declare_at(path), -ECONNREFUSED);
	on_connect.only_look = false;
	return on_connect.path;
}

static void test_choice_of_socket(void **state)
{
	unsetenv("PHASEWATCH_SOCKET");
	assert_string_equal(asked(NULL), "/run/phasewatch/phasewatch.sock");
	setenv("PHASEWATCH_SOCKET", "", 1);
	assert_string_equal(asked(NULL), "/run/phasewatch/phasewatch.sock");
	setenv("PHASEWATCH_SOCKET", "/environment", 1);
	assert_string_equal(asked(NULL), "/environment");
	assert_string_equal(asked("/argument"), "/argument");
	on_connect.only_look = true;
	assert_int_equal(pw_declare(PW_ACTIVE, 0, NULL), -ECONNREFUSED);
	on_connect.only_look = false;
	assert_string_equal(on_connect.path, "/environment");
}

/* ---- who asks ---- */

#define THREADS 7

struct asker {
	struct server server;
	pthread_t thread;
	pthread_barrier_t *all;
	char answer[64];
	int result;
	char error[32];
};

static void *ask(void *arg)
{
	struct asker *a = arg;

	pthread_barrier_wait(a->all);
	a->result = declare_at(a->server.path);
	pthread_barrier_wait(a->all);
	snprintf(a->error, sizeof(a->error), "%s", pw_last_error());
	return NULL;
}

static void test_threads(void **state)
{
	struct asker askers[THREADS] = { 0 };
	pthread_barrier_t all;

	declare_at("/dev/null");
	pthread_barrier_init(&all, NULL, THREADS);
	for (int i = 0; i < THREADS; i++) {
		snprintf(askers[i].answer, sizeof(askers[i].answer),
			"HTTP/1.0 %d X\r\n\r\n{\"error\":\"thread %d\"}", i % 2 ? 403 : 409, i);
		askers[i].server.chunks[0] = askers[i].answer;
		askers[i].all = &all;
		server_start(&askers[i].server);
		pthread_create(&askers[i].thread, NULL, ask, &askers[i]);
	}
	for (int i = 0; i < THREADS; i++) {
		char text[32];

		pthread_join(askers[i].thread, NULL);
		server_stop(&askers[i].server);
		snprintf(text, sizeof(text), "thread %d", i);
		assert_string_equal(askers[i].error, text);
		assert_int_equal(askers[i].result, i % 2 ? -EPERM : -ESTALE);
	}
	pthread_barrier_destroy(&all);
	assert_string_equal(pw_last_error(), "cannot connect to /dev/null: Connection refused");
}

/* ---- what is left ---- */

static int open_files(void)
{
	DIR *dir = opendir("/proc/self/fd");
	int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static int open_files_before;

static int set_up(void **state)
{
	open_files_before = open_files();
	return 0;
}

static int tear_down(void **state)
{
	return open_files() != open_files_before;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_request_as_sent),
		cmocka_unit_test(test_reasons),
		cmocka_unit_test(test_arguments_out_of_range),
		cmocka_unit_test(test_accepted),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_huge_refusal),
		cmocka_unit_test(test_answers_that_are_none),
		cmocka_unit_test(test_closed_at_once),
		cmocka_unit_test(test_silent_daemon),
		cmocka_unit_test(test_dripping_daemon),
		cmocka_unit_test(test_daemon_that_hangs),
		cmocka_unit_test(test_signals),
		cmocka_unit_test(test_no_daemon),
		cmocka_unit_test(test_choice_of_socket),
		cmocka_unit_test(test_threads),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
