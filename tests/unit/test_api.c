// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <bpf/bpf.h>
#include <event2/event.h>

#include "api.h"
#include "declare.h"
#include "drain.h"
#include "proc.h"
#include "maps.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define NOBODY 65534

static void test_parse_listen(void **state)
{
	static const char *const good[] = { "127.0.0.1:9464", "[::1]:9464", "0.0.0.0:1",
		"[::]:65535" };
	static const char *const bad[] = { "", ":", "9464", ":9464", "127.0.0.1",
		"127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:-1", "127.0.0.1:x",
		"localhost:9464", "[::1]", "[::1", "::1:9464x", "::1:9464", "::1", "::", "1.2.3:80", "256.1.1.1:80",
		"127.0.0.1:94x4", "127.0.0.1:9464 " };
	struct sockaddr_storage addr, before;
	int len = -7;

	memset(&before, 0xa5, sizeof(before));
	addr = before;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		if (api_parse_listen(bad[i], &addr, &len) != -EINVAL)
			fail_msg("%s is taken", bad[i]);
		assert_memory_equal(&addr, &before, sizeof(addr));
		assert_int_equal(len, -7);
	}
	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(api_parse_listen(good[i], &addr, &len), 0);
	assert_int_equal(len, sizeof(struct sockaddr_in6));
	assert_int_equal(ntohs(((struct sockaddr_in6 *)&addr)->sin6_port), 65535);
}

/* ---- the server, on a real socket, with real maps and no programs ---- */

struct fixture {
	struct event_base *base;
	struct kernel k;
	struct pw_control control;
	struct proc_names *names;
	struct subjects *subjects;
	struct declare *declare;
	struct stream *stream;
	struct api_context context;
	struct workloads *workloads;
	struct metrics_of metrics;
	struct drains *drains;
	struct api *api;
	char dir[64], socket[96], listen[32];
	uint16_t port;
	pid_t pid; /* a subject in ACTIVE of epoch 7 */
	unsigned int caught_up;
	unsigned int phases;
	uint64_t seq;
};

static void on_end(const struct subject *s, bool nobody_left, void *arg)
{
}

static void on_violation(const struct subject *s, const struct event_violation *v, void *arg)
{
}

static void on_left(const struct subject *s, void *arg)
{
}

static void on_phase(const struct subject *s, const struct event_phase *p, void *arg)
{
	struct fixture *f = arg;

	f->phases++;
}

static void catch_up(void *arg)
{
	struct fixture *f = arg;

	f->caught_up++;
}

static uint16_t free_port(void)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	_cleanup_(closep) int fd = socket(AF_INET, SOCK_STREAM, 0);
	socklen_t len = sizeof(addr);

	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&addr, &len), 0);
	return ntohs(addr.sin_port);
}

/* As an earlier daemon left it. */
static void add_subject(struct fixture *f)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS };
	struct pw_declaration d = { .phase = PW_ACTIVE,
		.source = PW_SOURCE_API,
		.epoch = 7,
		.since_ns = 1000,
		.entered_ns = { 0, 1000 },
		.reason = "a \"reason\"" };
	struct pw_stats stats = { .life = 1,
		.members = 3,
		.accepts = 37,
		.inflight = 2,
		.requests_misrouted = 5 };
	struct pw_member member;
	pid_t parent = getpid();
	struct proc_stat stat;
	uint32_t tgid;

	f->pid = fork();
	if (f->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(1);
	}
	assert_int_equal(proc_read(f->pid, &stat), 0);
	key.id = tgid = f->pid;
	d.start_ns = stat.start_ns;
	member = (struct pw_member){ .subject = tgid, .start_ns = d.start_ns };
	if (f->k.phases < 0)
		return;
	assert_int_equal(bpf_map_update_elem(f->k.members, &tgid, &member, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.stats, &key, &stats, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.phases, &key, &d, BPF_ANY), 0);
	assert_int_equal(subjects_reconcile(f->subjects), 0);
}

static void start_api(struct fixture *f)
{
	char why[256];

	if (api_new(&f->api, &f->context, f->socket, f->listen, why, sizeof(why)) < 0)
		fail_msg("%s", why);
}

static int set_up(void **state)
{
	static const struct declare_options declare_options = { NULL, NO_GID, 20, 1024 };
	struct fixture *f = calloc(1, sizeof(*f));

	signal(SIGPIPE, SIG_IGN);
	make_maps(&f->k, &f->control);
	f->k.counters = -1;
	f->base = event_base_new();
	assert_int_equal(proc_names_new(&f->names), 0);
	assert_int_equal(stream_new(&f->stream), 0);
	assert_int_equal(drains_new(&f->drains), 0);
	assert_int_equal(subjects_new(&f->subjects, &f->k, f->names, 2, PW_POD_LOGS,
				 &(struct subjects_listener){ on_phase, on_end, on_violation, on_left, f }),
		0);
	assert_int_equal(declare_new(&f->declare, f->subjects, &declare_options), 0);
	assert_int_equal(workloads_new(&f->workloads, &f->k, 3), 0);
	f->metrics = (struct metrics_of){ &f->k, f->subjects, f->workloads, f->declare, f->stream };
	f->context = (struct api_context){ f->base, &f->k, f->subjects, f->declare, f->drains,
		f->stream, &f->metrics, "n1", catch_up, f };
	add_subject(f);

	strcpy(f->dir, "/tmp/phasewatch-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(chmod(f->dir, 0755), 0);
	snprintf(f->socket, sizeof(f->socket), "%s/made/socket", f->dir);
	f->port = free_port();
	snprintf(f->listen, sizeof(f->listen), "127.0.0.1:%u", f->port);
	start_api(f);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char made[80];

	api_free(f->api);
	declare_free(f->declare);
	subjects_free(f->subjects);
	drains_free(f->drains);
	workloads_free(f->workloads);
	stream_free(f->stream);
	proc_names_free(f->names);
	event_base_free(f->base);
	kill(f->pid, SIGKILL);
	waitpid(f->pid, NULL, 0);
	free_maps(&f->k);
	snprintf(made, sizeof(made), "%s/made", f->dir);
	unlink(f->socket);
	rmdir(made);
	rmdir(f->dir);
	free(f);
	return 0;
}

static struct fixture *need_maps(void **state)
{
	struct fixture *f = *state;

	if (f->k.phases < 0)
		skip();
	return f;
}

static int connect_unix(const struct fixture *f)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	strcpy(addr.sun_path, f->socket);
	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -1;
	return fd;
}

static int connect_tcp(const struct fixture *f)
{
	struct sockaddr_in addr = { .sin_family = AF_INET,
		.sin_port = htons(f->port),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0)
		return -1;
	return fd;
}

static void turn(struct fixture *f)
{
	assert_true(event_base_loop(f->base, EVLOOP_NONBLOCK) >= 0);
}

#define ANSWER_MAX (1 << 16)

/* Turns the loop until the other end closes, or until `enough` has arrived. */
static char *answer_until(struct fixture *f, int fd, const char *enough)
{
	char *text = calloc(1, ANSWER_MAX);
	size_t len = 0;
	ssize_t n;

	assert_non_null(text);
	assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	while (!enough || !strstr(text, enough)) {
		turn(f);
		n = read(fd, text + len, ANSWER_MAX - 1 - len);
		if (n == 0 || (n < 0 && errno != EAGAIN))
			break;
		len += n > 0 ? n : 0;
	}
	if (enough && !strstr(text, enough))
		fail_msg("no %s in %s", enough, text);
	return text;
}

static char *ask(struct fixture *f, int fd, const char *request)
{
	char *text;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, request, strlen(request)), strlen(request));
	text = answer_until(f, fd, NULL);
	close(fd);
	return text;
}

/* The same by a process of this user; its pid is in *pid meanwhile. */
static char *ask_as(struct fixture *f, uid_t uid, const char *request)
{
	char *text;
	int out[2];
	pid_t pid;

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		char buf[4096];
		ssize_t n;
		int fd;

		if (geteuid() == 0 && (setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, 0) < 0))
			_exit(1);
		fd = connect_unix(f);
		if (fd < 0 || write(fd, request, strlen(request)) < 0)
			_exit(1);
		while ((n = read(fd, buf, sizeof(buf))) > 0)
			if (write(out[1], buf, n) != n)
				_exit(1);
		_exit(0);
	}
	close(out[1]);
	text = answer_until(f, out[0], NULL);
	close(out[0]);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	return text;
}

static int status_of(const char *answer)
{
	int status = 0;

	if (sscanf(answer, "HTTP/1.%*d %d ", &status) != 1)
		fail_msg("no HTTP: %s", answer);
	return status;
}

static const char *body_of(const char *answer)
{
	const char *end = strstr(answer, "\r\n\r\n");

	assert_non_null(end);
	return end + 4;
}

/* Takes the answer. */
static json_t *json_of(char *answer, int status)
{
	json_error_t error;
	json_t *value;

	if (status_of(answer) != status)
		fail_msg("expected %d: %s", status, answer);
	value = json_loads(body_of(answer), JSON_REJECT_DUPLICATES, &error);
	if (!json_is_object(value))
		fail_msg("%s in %s", error.text, answer);
	free(answer);
	return value;
}

/* One sentence, which has this word. */
static void assert_error(char *answer, int status, const char *word)
{
	json_t *value = json_of(answer, status);
	const char *error = json_string_value(json_object_get(value, "error"));

	assert_int_equal(json_object_size(value), 1);
	assert_non_null(error);
	if (!strstr(error, word))
		fail_msg("no \"%s\" in: %s", word, error);
	json_decref(value);
}

static void put_request(char request[static 8192], const char *body)
{
	snprintf(request, 8192, "PUT /v1/phase HTTP/1.0\r\nContent-Length: %zu\r\n\r\n%s",
		strlen(body), body);
}

static char *put(struct fixture *f, const char *body)
{
	char request[8192];

	put_request(request, body);
	return ask(f, connect_unix(f), request);
}

static char *get(struct fixture *f, const char *target)
{
	char request[512];

	snprintf(request, sizeof(request), "GET %s HTTP/1.0\r\n\r\n", target);
	return ask(f, connect_unix(f), request);
}

static void test_healthz(void **state)
{
	struct fixture *f = *state;
	char *answer = get(f, "/healthz");

	assert_int_equal(status_of(answer), 200);
	assert_string_equal(body_of(answer), "ok\n");
	free(answer);
	answer = ask(f, connect_tcp(f), "GET /healthz HTTP/1.0\r\n\r\n");
	assert_int_equal(status_of(answer), 200);
	free(answer);
}

static void test_errors_are_json(void **state)
{
	struct fixture *f = *state;

	assert_error(get(f, "/x"), 404, "/v1/events");
	assert_error(get(f, "/v1"), 404, "/v1;");
	assert_error(get(f, "/v1/events/"), 404, "/v1/events/");
	assert_error(get(f, "/\xff\xfe%00"), 404, "there is no");
	assert_error(get(f, "/v1/phase"), 405, "/v1/phase");
	assert_error(
		ask(f, connect_unix(f), "POST /v1/phase HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}"),
		405, "/v1/phase");
	assert_error(
		ask(f, connect_unix(f), "DELETE /v1/subjects HTTP/1.0\r\n\r\n"), 405, "subjects");
	assert_error(get(f, "/v1/events?%zz"), 400, "query");
	assert_int_equal(f->caught_up, 0);
}

static void test_bad_queries(void **state)
{
	static const struct {
		const char *query, *word;
	} cases[] = {
		{ "type=fork", "type" },
		{ "type=", "query" },
		{ "type=accept&type=x", "type" },
		{ "phase=DRAINING", "phase" },
		{ "phase=3", "phase" },
		{ "verdict=ok", "verdict" },
		{ "pid=0", "pid" },
		{ "pid=-1", "pid" },
		{ "pid=4194305", "pid" },
		{ "pid=x", "pid" },
		{ "last=-1", "last" },
		{ "last=x", "last" },
		{ "last=18446744073709551616", "last" },
		{ "follow=true", "follow" },
		{ "follow=2", "follow" },
		{ "foo=1", "foo" },
		{ "Type=accept", "Type" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char target[128];

		snprintf(target, sizeof(target), "/v1/events?%s", cases[i].query);
		assert_error(get(f, target), 400, cases[i].word);
	}
}

static void test_too_many_pids(void **state)
{
	struct fixture *f = *state;
	char target[512] = "/v1/events?pid=1";

	for (int i = 1; i < FILTER_VALUES; i++)
		strcat(target, "&pid=1");
	free(get(f, target));
	strcat(target, "&pid=1");
	assert_error(get(f, target), 400, "pid");
}

static void test_bad_bodies(void **state)
{
	static const struct {
		const char *body, *word;
	} cases[] = {
		{ "", "JSON" },
		{ "[]", "JSON" },
		{ "null", "JSON" },
		{ "{", "JSON" },
		{ "\xff", "JSON" },
		{ "{}", "INIT, ACTIVE, DRAIN or SHUTDOWN" },
		{ "{\"phase\":\"DRAINING\",\"self\":true}", "DRAINING" },
		{ "{\"phase\":\"UNDECLARED\",\"self\":true}", "UNDECLARED" },
		{ "{\"phase\":3,\"self\":true}", "phase" },
		{ "{\"phase\":\"DR\\u0000AIN\",\"self\":true}", "JSON" },
		{ "{\"phase\":\"DRAIN\"}", "pid" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"parent\":true}", "one of" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"pid\":1}", "one of" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"self\":true}", "duplicate" },
		{ "{\"phase\":\"DRAIN\",\"pid\":0}", "pid" },
		{ "{\"phase\":\"DRAIN\",\"pid\":-1}", "pid" },
		{ "{\"phase\":\"DRAIN\",\"pid\":\"1\"}", "pid" },
		{ "{\"phase\":\"DRAIN\",\"pid\":4194305}", "4194304" },
		{ "{\"phase\":\"DRAIN\",\"pid\":4294967297}", "4194304" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"epoch\":0}", "epoch" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"epoch\":-1}", "epoch" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"epoch\":1.5}", "epoch" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"reason\":5}", "reason" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"reason\":"
		  "\"12345678901234567890123456789012345678901234567890123456\"}",
			"55" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"uid\":0}", "uid" },
		{ "{\"phase\":\"DRAIN\",\"self\":true,\"unit\":\"nginx\"}", "one of" },
		{ "{\"phase\":\"DRAIN\",\"cgroup\":\"/\",\"pod\":\"a/b\"}", "one of" },
		{ "{\"phase\":\"DRAIN\",\"cgroup\":\"\"}", "cgroup" },
		{ "{\"phase\":\"DRAIN\",\"unit\":5}", "unit" },
		{ "{\"phase\":\"DRAIN\",\"container\":null}", "container" },
		{ "{\"phase\":\"DRAIN\",\"pod\":[\"a\"]}", "pod" },
		{ "{\"phase\":\"INIT\",\"unit\":\"a\",\"active_on_listen\":true}", "a process" },
		{ "{\"phase\":\"DRAIN\",\"cgroup\":\"self\",\"self\":true}", "one of" },
	};
	struct fixture *f = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		assert_error(put(f, cases[i].body), 400, cases[i].word);
	assert_int_equal(f->phases, 0);
}

static void test_large_requests(void **state)
{
	struct fixture *f = *state;
	char request[20000], *answer;
	int n;

	n = sprintf(request, "PUT /v1/phase HTTP/1.0\r\nContent-Length: 5000\r\n\r\n");
	memset(request + n, ' ', 5000);
	request[n + 5000] = '\0';
	answer = ask(f, connect_unix(f), request);
	assert_int_equal(status_of(answer), 413);
	free(answer);
	memset(request, 'a', sizeof(request));
	memcpy(request, "GET /", 5);
	strcpy(request + sizeof(request) - 20, " HTTP/1.0\r\n\r\n");
	answer = ask(f, connect_unix(f), request);
	assert_int_equal(status_of(answer), 400);
	free(answer);
	free(get(f, "/healthz"));
}

static void test_declare(void **state)
{
	struct fixture *f = need_maps(state);
	char body[256];
	json_t *value, *subject;

	if (geteuid() != 0)
		skip();
	snprintf(body, sizeof(body), "{\"phase\":\"drain\",\"pid\":%d,\"reason\":\"why\"}", f->pid);
	value = json_of(put(f, body), 200);
	subject = json_object_get(value, "subject");
	assert_int_equal(json_integer_value(json_object_get(value, "schema")), 1);
	assert_string_equal(json_string_value(json_object_get(value, "from")), "ACTIVE");
	assert_string_equal(json_string_value(json_object_get(value, "to")), "DRAIN");
	assert_true(json_is_true(json_object_get(value, "changed")));
	assert_int_equal(json_integer_value(json_object_get(value, "members")), 3);
	assert_int_equal(json_integer_value(json_object_get(subject, "id")), f->pid);
	assert_int_equal(json_integer_value(json_object_get(subject, "epoch")), 7);
	json_decref(value);
	value = json_of(put(f, body), 200);
	assert_true(json_is_false(json_object_get(value, "changed")));
	json_decref(value);
	assert_int_equal(f->phases, 1);
	assert_int_equal(f->caught_up, 2);

	snprintf(body, sizeof(body), "{\"phase\":\"ACTIVE\",\"pid\":%d}", f->pid);
	assert_error(put(f, body), 409, "DRAIN");
	snprintf(body, sizeof(body), "{\"phase\":\"SHUTDOWN\",\"pid\":%d,\"epoch\":6}", f->pid);
	assert_error(put(f, body), 409, "epoch 6");
	assert_error(put(f, "{\"phase\":\"DRAIN\",\"pid\":4194304}"), 404, "4194304");
	assert_int_equal(f->phases, 1);
}

static void test_declare_by_name(void **state)
{
	struct fixture *f = *state;

	if (geteuid() != 0)
		skip();
	assert_error(put(f, "{\"phase\":\"DRAIN\",\"unit\":\"phasewatch-no-such\"}"), 404,
		"there is no unit phasewatch-no-such.service");
	assert_error(put(f, "{\"phase\":\"DRAIN\",\"container\":\"0123456789abcdef\"}"), 404,
		"there is no container 0123456789abcdef");
	assert_error(put(f, "{\"phase\":\"DRAIN\",\"container\":\"012\"}"), 400, "4 at least");
	assert_error(put(f, "{\"phase\":\"DRAIN\",\"pod\":\"frontend\"}"), 400, "NAMESPACE/NAME");
	assert_int_equal(f->phases, 0);
}

static void test_declare_this_or_a_later_phase(void **state)
{
	struct fixture *f = need_maps(state);
	char body[256];
	json_t *value;

	if (geteuid() != 0)
		skip();
	snprintf(body, sizeof(body), "{\"phase\":\"SHUTDOWN\",\"pid\":%d}", f->pid);
	json_decref(json_of(put(f, body), 200));
	snprintf(body, sizeof(body), "{\"phase\":\"DRAIN\",\"pid\":%d}", f->pid);
	assert_error(put(f, body), 409, "SHUTDOWN");
	snprintf(body, sizeof(body), "{\"phase\":\"DRAIN\",\"pid\":%d,\"or_later\":true}", f->pid);
	value = json_of(put(f, body), 200);
	assert_true(json_is_false(json_object_get(value, "changed")));
	assert_string_equal(json_string_value(json_object_get(value, "to")), "SHUTDOWN");
	assert_int_equal(json_integer_value(json_object_get(value, "inflight")), 2);
	assert_int_equal(json_integer_value(json_object_get(value, "requests_misrouted")), 5);
	json_decref(value);
	snprintf(body, sizeof(body),
		"{\"phase\":\"DRAIN\",\"pid\":%d,\"or_later\":true,\"epoch\":6}", f->pid);
	assert_error(put(f, body), 409, "epoch 6");
	assert_int_equal(f->phases, 1);
}

static void test_declare_what_is_not_yours(void **state)
{
	struct fixture *f = need_maps(state);
	char body[256], request[8192];
	json_t *value;

	if (geteuid() != 0)
		skip();
	snprintf(body, sizeof(body), "{\"phase\":\"DRAIN\",\"pid\":%d}", f->pid);
	put_request(request, body);
	assert_error(ask_as(f, NOBODY, request), 403, "not yours");
	put_request(request, "{\"phase\":\"DRAIN\",\"parent\":true}");
	assert_error(ask_as(f, NOBODY, request), 403, "not yours");
	put_request(request, "{\"phase\":\"DRAIN\",\"pid\":1}");
	assert_error(ask_as(f, NOBODY, request), 403, "process 1 ");
	/* it is told the same of what does not exist, or else it could be asked who does */
	put_request(request, "{\"phase\":\"DRAIN\",\"pid\":4194304}");
	assert_error(ask_as(f, NOBODY, request), 403, "4194304");
	put_request(request, "{\"phase\":\"DRAIN\",\"unit\":\"nginx\"}");
	assert_error(ask_as(f, NOBODY, request), 403, "may not declare for unit nginx");
	assert_int_equal(f->phases, 0);

	put_request(request, body);
	value = json_of(ask_as(f, 0, request), 200);
	json_decref(value);
	assert_int_equal(f->phases, 1);
}

static void test_declare_over_tcp(void **state)
{
	struct fixture *f = *state;
	char request[8192];

	put_request(request, "{\"phase\":\"DRAIN\",\"self\":true}");
	assert_error(ask(f, connect_tcp(f), request), 403, "Unix socket");
	assert_int_equal(f->phases, 0);
}

static void test_subjects(void **state)
{
	struct fixture *f = need_maps(state);
	json_t *value = json_of(get(f, "/v1/subjects"), 200), *all, *one;

	assert_string_equal(json_string_value(json_object_get(value, "node")), "n1");
	all = json_object_get(value, "subjects");
	assert_int_equal(json_array_size(all), 1);
	one = json_array_get(all, 0);
	assert_string_equal(json_string_value(json_object_get(one, "phase")), "ACTIVE");
	assert_string_equal(json_string_value(json_object_get(one, "reason")), "a \"reason\"");
	assert_int_equal(json_integer_value(json_object_get(one, "members")), 3);
	assert_int_equal(json_integer_value(json_object_get(one, "inflight")), 2);
	assert_int_equal(json_integer_value(json_object_get(one, "accepts")), 37);
	assert_int_equal(json_integer_value(json_object_get(one, "accepts_misrouted")), 0);
	assert_true(json_is_integer(json_object_get(one, "phase_age_ns")));
	assert_null(json_object_get(one, "settle_ns"));
	assert_null(json_object_get(one, "quiet_ns"));
	json_decref(value);
}

static size_t count_subjects(
	struct fixture *f, const char *path, const char *key, const char *query)
{
	char target[128];
	json_t *value;
	size_t n;

	snprintf(target, sizeof(target), "%s%s", path, query);
	value = json_of(get(f, target), 200);
	n = json_array_size(json_object_get(value, key));
	json_decref(value);
	return n;
}

static void test_one_subject(void **state)
{
	static const char *const bad[] = { "kind=", "kind=pod", "kind=1", "id=", "id=x", "id=-1",
		"id=18446744073709551616", "pid=1", "kind=process&foo=1" };
	struct fixture *f = need_maps(state);
	char query[64];

	snprintf(query, sizeof(query), "?kind=process&id=%d", f->pid);
	assert_int_equal(count_subjects(f, "/v1/subjects", "subjects", query), 1);
	assert_int_equal(count_subjects(f, "/v1/reports", "reports", query), 0);
	snprintf(query, sizeof(query), "?id=%d", f->pid);
	assert_int_equal(count_subjects(f, "/v1/subjects", "subjects", query), 1);
	assert_int_equal(count_subjects(f, "/v1/subjects", "subjects", "?kind=process"), 1);
	assert_int_equal(count_subjects(f, "/v1/subjects", "subjects", "?kind=cgroup"), 0);
	snprintf(query, sizeof(query), "?kind=cgroup&id=%d", f->pid);
	assert_int_equal(count_subjects(f, "/v1/subjects", "subjects", query), 0);
	assert_int_equal(
		count_subjects(f, "/v1/subjects", "subjects", "?kind=process&id=4194304"), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		char target[128];

		snprintf(target, sizeof(target), "/v1/subjects?%s", bad[i]);
		assert_error(get(f, target), 400, "quer");
		snprintf(target, sizeof(target), "/v1/reports?%s", bad[i]);
		assert_error(get(f, target), 400, "quer");
	}
}

static void publish(struct fixture *f)
{
	static const struct event_names names = { .node = "n1" };
	struct event e = {
		.type = PW_EV_EXIT,
		.seq = f->seq++,
		.exit = { .process = { .pid = 11 },
			.on = { .key = { .kind = PW_KIND_PROCESS, .id = 10 }, .phase = PW_DRAIN } }
	};

	assert_int_equal(stream_publish(f->stream, &e, &names), 0);
}

/* Occurrences. */
static unsigned int count(const char *text, const char *what)
{
	unsigned int n = 0;

	for (; (text = strstr(text, what)); text++)
		n++;
	return n;
}

static void test_recent_events(void **state)
{
	struct fixture *f = *state;
	char *answer;

	for (int i = 0; i < 23; i++)
		publish(f);
	answer = get(f, "/v1/events");
	assert_int_equal(status_of(answer), 200);
	assert_int_equal(count(body_of(answer), "\n"), 23);
	free(answer);
	answer = get(f, "/v1/events?last=5&type=exit&type=accept&phase=drain&pid=10");
	assert_int_equal(count(body_of(answer), "\n"), 5);
	assert_non_null(strstr(answer, "\"seq\":22,"));
	free(answer);
	answer = get(f, "/v1/events?type=accept");
	assert_string_equal(body_of(answer), "");
	free(answer);
}

static void test_follow(void **state)
{
	struct fixture *f = *state;
	static const char request[] = "GET /v1/events?follow=1&last=2 HTTP/1.0\r\n\r\n";
	int fd = connect_unix(f);
	char *answer;

	for (int i = 0; i < 5; i++)
		publish(f);
	assert_true(write(fd, request, strlen(request)) > 0);
	answer = answer_until(f, fd, "\"seq\":4,");
	assert_int_equal(count(answer, "\"seq\":"), 2);
	free(answer);
	publish(f);
	publish(f);
	stream_flush(f->stream);
	answer = answer_until(f, fd, "\"seq\":6,");
	assert_int_equal(count(answer, "\n"), 2); /* nothing twice, and no chunk sizes */
	free(answer);
	close(fd);
	/* gone: nobody is sent anything any more */
	for (int i = 0; i < 23; i++) {
		turn(f);
		publish(f);
		stream_flush(f->stream);
	}
	free(get(f, "/healthz"));
}

/* Followers that come and go in every state leave nothing behind: a sanitizer sees what leaks. */
static void test_followers_come_and_go(void **state)
{
	static const char *const requests[] = {
		"GET /v1/events?follow=1 HTTP/1.0\r\n\r\n",
		"GET /v1/events?follow=1&last=7 HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
		"GET /v1/events?follow=1",
		"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /v1/events?follow=1 HTTP/1.1\r\n\r\n",
		"GET /v1/events?follow=1 HTTP/1.1\r\n\r\nGET /v1/events?follow=1 HTTP/1.1\r\n\r\n",
	};
	struct fixture *f = *state;

	for (int round = 0; round < 101; round++) {
		const char *request = requests[round % ARRAY_SIZE(requests)];
		int fd = round % 2 ? connect_unix(f) : connect_tcp(f);

		assert_true(write(fd, request, strlen(request)) > 0);
		if (round % 3)
			turn(f);
		publish(f);
		stream_flush(f->stream);
		if (round % 5 == 0)
			shutdown(fd, SHUT_WR);
		if (round % 7 == 0) /* a reset */
			setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){ 1, 0 },
				sizeof(struct linger));
		if (round % 4)
			turn(f);
		close(fd);
		publish(f);
		stream_flush(f->stream);
	}
	free(get(f, "/healthz"));
}

/* Whoever follows has nothing more to say: what it sends is neither kept nor obeyed. */
static void test_follower_that_sends(void **state)
{
	static const char request[] = "GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n"
				      "PUT /v1/phase HTTP/1.1\r\nContent-Length: "
				      "31\r\n\r\n{\"phase\":\"DRAIN\",\"self\":true}\r\n";
	static const char junk[65536];
	struct fixture *f = *state;
	int fd = connect_unix(f), idle = 0;
	size_t sent = 0;

	assert_true(write(fd, request, strlen(request)) > 0);
	free(answer_until(f, fd, "\r\n\r\n"));
	while (idle < 101 && sent < 32 << 20) {
		ssize_t n = write(fd, junk, sizeof(junk));

		turn(f);
		idle = n < 0 ? idle + 1 : 0;
		sent += n > 0 ? n : 0;
	}
	assert_in_range(sent, 1, 4 << 20);
	assert_int_equal(f->phases, 0);
	publish(f);
	stream_flush(f->stream);
	free(answer_until(f, fd, "\"seq\":0,"));
	close(fd);
}

static void test_keep_alive(void **state)
{
	static const char request[] =
		"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
		"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
		"GET /v1/subjects HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
	struct fixture *f = *state;
	char *answer = ask(f, connect_unix(f), request);

	assert_int_equal(count(answer, "HTTP/1.1 200 OK\r\n"), 2);
	assert_int_equal(count(answer, "HTTP/1.1 404 "), 1);
	free(answer);
}

/* ---- too many connections ---- */

static const char healthz[] = "GET /healthz HTTP/1.0\r\n\r\n";

static void assert_healthy(struct fixture *f, int fd)
{
	char *answer = ask(f, fd, healthz);

	assert_int_equal(status_of(answer), 200);
	free(answer);
}

/* Nobody can be told apart over TCP: all are one user. */
static void test_too_many_over_tcp(void **state)
{
	struct fixture *f = *state;
	int held[256];

	for (size_t i = 0; i < ARRAY_SIZE(held); i++)
		held[i] = connect_tcp(f);
	for (int round = 0; round < 3; round++) {
		for (int i = 0; i < 7; i++)
			assert_error(ask(f, connect_tcp(f), healthz), 429, "a user is 256");
		/* no affair of root's */
		if (geteuid() == 0)
			assert_healthy(f, connect_unix(f));
		/* one goes, whether it has asked or not, and another one has its place */
		if (round % 2)
			close(held[round]);
		else
			assert_healthy(f, held[round]);
		held[round] = connect_tcp(f);
		assert_error(ask(f, connect_tcp(f), healthz), 429, "a user is 256");
	}
	for (size_t i = 0; i < ARRAY_SIZE(held); i++)
		assert_healthy(f, held[i]);
	assert_healthy(f, connect_tcp(f));
}

/* More than are taken in one go. Whoever is served makes room for the next. */
static void test_many_at_once(void **state)
{
	struct fixture *f = *state;
	int fds[301], served = 0;

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = connect_tcp(f);
		assert_true(fds[i] >= 0);
		assert_int_equal(write(fds[i], healthz, strlen(healthz)), strlen(healthz));
	}
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		char *answer = answer_until(f, fds[i], NULL);

		served += status_of(answer) == 200;
		free(answer);
		close(fds[i]);
	}
	assert_in_range(served, 256, 301);
	assert_healthy(f, connect_tcp(f));
}

/* As a user, who holds as many connections as it may and then asks with this request. */
static char *ask_as_holder(struct fixture *f, uid_t uid, const char *request)
{
	int out[2], ready[2], status;
	char *text, byte;
	pid_t pid;

	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		char buf[4096];
		ssize_t n;
		int fd;

		if (setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
			_exit(1);
		for (int i = 0; i < 256; i++)
			if (connect_unix(f) < 0)
				_exit(1);
		fd = connect_unix(f);
		if (send(fd, request, strlen(request), MSG_NOSIGNAL) < 0 ||
			write(ready[1], "", 1) < 0)
			_exit(1);
		while ((n = read(fd, buf, sizeof(buf))) > 0)
			if (write(out[1], buf, n) != n)
				_exit(1);
		_exit(n < 0); /* a reset */
	}
	close(out[1]);
	close(ready[1]);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	text = answer_until(f, out[0], NULL);
	close(out[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	return text;
}

static void test_too_many_of_a_user(void **state)
{
	struct fixture *f = *state;
	char request[8192];

	if (geteuid() != 0)
		skip();
	put_request(request, "{\"phase\":\"DRAIN\",\"pid\":1}");
	for (int round = 0; round < 3; round++)
		assert_error(ask_as_holder(f, NOBODY, request), 429, "a user is 256");
	/* what is turned away is not read */
	assert_int_equal(declare_count(f->declare, AUDIT_REFUSED), 0);
	assert_error(ask_as(f, NOBODY, request), 403, "not yours");
	assert_int_equal(declare_count(f->declare, AUDIT_REFUSED), 1);
}

/* Whoever does not take its answer and goes on asking is not read for ever. */
static void test_asker_that_sends(void **state)
{
	static const char request[] = "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n";
	static const char junk[65536];
	struct fixture *f = *state;
	int fd = connect_unix(f), idle = 0;
	size_t sent = 0;

	for (int i = 0; i < STREAM_RECENT; i++)
		publish(f);
	assert_int_equal(write(fd, request, strlen(request)), strlen(request));
	assert_int_equal(fcntl(fd, F_SETFL, O_NONBLOCK), 0);
	while (idle < 101 && sent < 32 << 20) {
		ssize_t n = write(fd, junk, sizeof(junk));

		turn(f);
		idle = n < 0 ? idle + 1 : 0;
		sent += n > 0 ? n : 0;
	}
	assert_in_range(sent, 1, 4 << 20);
	close(fd);
	free(get(f, "/healthz"));
}

/* Turns the loop until an answer begins; its status and, of one that is large, its length. */
static int peek_status(struct fixture *f, int fd, size_t *len)
{
	char head[512];
	const char *length;
	ssize_t n;

	do {
		turn(f);
		n = recv(fd, head, sizeof(head) - 1, MSG_PEEK | MSG_DONTWAIT);
	} while (n < 0 && errno == EAGAIN);
	assert_true(n > 0);
	head[n] = '\0';
	length = strstr(head, "Content-Length: ");
	*len = length ? strtoul(length + 16, NULL, 10) : 0;
	return status_of(head);
}

static int connect_as_nobody(const struct fixture *f)
{
	uid_t uid = geteuid();
	int fd;

	assert_int_equal(seteuid(uid ? uid : NOBODY), 0);
	fd = connect_unix(f);
	assert_int_equal(seteuid(uid), 0);
	return fd;
}

/* What users do not read waits in the daemon: 64 MiB of it, and then no more is made. */
static void fill_with_answers(struct fixture *f, const char *request)
{
	size_t len, all = 0, largest = 0, n = 0;
	int fds[250], status, fd;

	for (int i = 0; i < STREAM_RECENT; i++)
		publish(f);
	do {
		assert_in_range(n, 0, ARRAY_SIZE(fds) - 1);
		fds[n] = connect_as_nobody(f);
		assert_int_equal(write(fds[n], request, strlen(request)), strlen(request));
		status = peek_status(f, fds[n++], &len);
		if (status == 200) {
			all += len;
			largest = len;
		}
	} while (status == 200);
	assert_int_equal(status, 503);
	if (largest) { /* followers' answers have no length */
		assert_true(largest > 64 << 10);
		assert_in_range(all, (64 << 20) - largest + 1, 64 << 20);
	}
	assert_error(ask(f, connect_as_nobody(f), request), 503, "try again later");
	assert_healthy(f, connect_as_nobody(f)); /* small ones have room */
	if (geteuid() == 0) {
		char *answer = get(f, "/v1/events");

		assert_int_equal(status_of(answer), 200);
		free(answer);
	}
	/* one that is read, or closed, makes room for another */
	close(fds[0]);
	fd = connect_as_nobody(f);
	assert_int_equal(write(fd, request, strlen(request)), strlen(request));
	while (peek_status(f, fd, &len) == 503) {
		close(fd);
		fd = connect_as_nobody(f);
		assert_int_equal(write(fd, request, strlen(request)), strlen(request));
	}
	close(fd);
	/* the end of the API comes first, that of the answers later */
	api_free(f->api);
	f->api = NULL;
	for (size_t i = 1; i < n; i++)
		close(fds[i]);
}

static void test_answers_that_nobody_reads(void **state)
{
	static const char request[] = "GET /v1/events HTTP/1.0\r\n\r\n";

	fill_with_answers(*state, request);
}

static void test_followers_that_do_not_read(void **state)
{
	static const char request[] = "GET /v1/events?follow=1&last=5000 HTTP/1.0\r\n\r\n";

	fill_with_answers(*state, request);
}

static void test_stop_with_followers(void **state)
{
	static const char request[] = "GET /v1/events?follow=1 HTTP/1.1\r\nHost: x\r\n\r\n";
	struct fixture *f = *state;
	int fds[7], half = connect_unix(f), idle = connect_tcp(f);

	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		fds[i] = i % 2 ? connect_unix(f) : connect_tcp(f);
		assert_true(write(fds[i], request, strlen(request)) > 0);
		free(answer_until(f, fds[i], "\r\n\r\n"));
	}
	assert_int_equal(write(half, "GET /hea", 8), 8);
	turn(f);
	publish(f); /* and not flushed */
	api_free(f->api);
	f->api = NULL;
	publish(f);
	stream_flush(f->stream);
	for (size_t i = 0; i < ARRAY_SIZE(fds); i++) {
		free(answer_until(f, fds[i], NULL));
		close(fds[i]);
	}
	close(half);
	close(idle);
	assert_int_equal(access(f->socket, F_OK), -1);
}

/* ---- the socket ---- */

static void test_socket_is_for_everybody(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	assert_int_equal(stat(f->socket, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0666);
}

static void assert_not_started(
	struct fixture *f, const char *path, const char *listen, int err, const char *word)
{
	struct api *api = NULL;
	char why[256] = "";

	assert_int_equal(api_new(&api, &f->context, path, listen, why, sizeof(why)), err);
	assert_null(api);
	if (!strstr(why, word))
		fail_msg("no \"%s\" in: %s", word, why);
}

static void test_socket_that_is_served_is_left_alone(void **state)
{
	struct fixture *f = *state;

	assert_not_started(f, f->socket, "", -EADDRINUSE, f->socket);
	free(get(f, "/healthz"));
}

static void test_stale_socket_is_replaced(void **state)
{
	struct fixture *f = *state;
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd;

	api_free(f->api);
	f->api = NULL;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	strcpy(addr.sun_path, f->socket);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	close(fd);
	start_api(f);
	free(get(f, "/healthz"));
}

static void test_other_files_are_left_alone(void **state)
{
	struct fixture *f = *state;
	char path[96];
	int fd;

	snprintf(path, sizeof(path), "%s/file", f->dir);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	close(fd);
	assert_not_started(f, path, "", -EADDRINUSE, path);
	assert_int_equal(unlink(path), 0);
	assert_not_started(f, f->dir, "", -EADDRINUSE, f->dir);
}

/* The TCP address is taken: then there is no Unix socket either. */
static void test_failure_leaves_no_socket(void **state)
{
	struct fixture *f = *state;
	char path[96];

	snprintf(path, sizeof(path), "%s/other", f->dir);
	assert_not_started(f, path, f->listen, -EADDRINUSE, f->listen);
	assert_int_equal(access(path, F_OK), -1);
	assert_not_started(f, path, "nonsense", -EINVAL, "nonsense");
	assert_int_equal(access(path, F_OK), -1);
}

static void test_successors_socket_is_left_alone(void **state)
{
	struct fixture *f = *state;
	struct api *first = f->api;

	assert_int_equal(unlink(f->socket), 0);
	f->listen[0] = '\0';
	start_api(f);
	api_free(first);
	free(get(f, "/healthz"));
}

static void test_path_too_long(void **state)
{
	struct fixture *f = *state;
	char path[200];

	memset(path, 'a', sizeof(path));
	path[0] = '/';
	path[108] = '\0';
	assert_not_started(f, path, "", -ENAMETOOLONG, "107");
}

#define TEST_SERVED(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse_listen),
		TEST_SERVED(test_healthz),
		TEST_SERVED(test_errors_are_json),
		TEST_SERVED(test_bad_queries),
		TEST_SERVED(test_too_many_pids),
		TEST_SERVED(test_bad_bodies),
		TEST_SERVED(test_large_requests),
		TEST_SERVED(test_declare),
		TEST_SERVED(test_declare_by_name),
		TEST_SERVED(test_declare_this_or_a_later_phase),
		TEST_SERVED(test_declare_what_is_not_yours),
		TEST_SERVED(test_declare_over_tcp),
		TEST_SERVED(test_subjects),
		TEST_SERVED(test_one_subject),
		TEST_SERVED(test_recent_events),
		TEST_SERVED(test_follow),
		TEST_SERVED(test_followers_come_and_go),
		TEST_SERVED(test_follower_that_sends),
		TEST_SERVED(test_keep_alive),
		TEST_SERVED(test_too_many_over_tcp),
		TEST_SERVED(test_many_at_once),
		TEST_SERVED(test_too_many_of_a_user),
		TEST_SERVED(test_asker_that_sends),
		TEST_SERVED(test_answers_that_nobody_reads),
		TEST_SERVED(test_followers_that_do_not_read),
		TEST_SERVED(test_stop_with_followers),
		TEST_SERVED(test_socket_is_for_everybody),
		TEST_SERVED(test_socket_that_is_served_is_left_alone),
		TEST_SERVED(test_stale_socket_is_replaced),
		TEST_SERVED(test_other_files_are_left_alone),
		TEST_SERVED(test_failure_leaves_no_socket),
		TEST_SERVED(test_successors_socket_is_left_alone),
		TEST_SERVED(test_path_too_long),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
