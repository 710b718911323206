// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#define CURL_DISABLE_TYPECHECK
#include <curl/curl.h>

#include "clock.h"
#include "http_post.h"
#include "opts.h"
#include "util.h"

#define LIBCURL "libcurl.so.4"

#define CURL_CALLS(X)                                                                              \
	X(easy_cleanup) X(easy_getinfo) X(easy_init) X(easy_setopt) X(easy_strerror)               \
	X(global_cleanup) X(global_init) X(multi_add_handle) X(multi_assign) X(multi_cleanup)      \
	X(multi_info_read) X(multi_init) X(multi_remove_handle) X(multi_setopt)                    \
	X(multi_socket_action) X(slist_append) X(slist_free_all)

struct curl_calls {
#define X(name) __typeof__(curl_##name) *name;
	CURL_CALLS(X)
#undef X
};

struct http_post {
	struct curl_calls curl;
	void *library;
	struct event_base *base;
	struct event *timer;
	CURLM *multi;
};

struct http_transfer {
	struct http_post *of;
	CURL *easy;
	struct curl_slist *headers;
	http_answer_fn answer;
	void *arg;
	size_t len;
	char error[CURL_ERROR_SIZE];
	char body[HTTP_ANSWER_MAX + 1];
};

/* ---- libcurl's sockets and its timer on the loop ---- */

static void finish(struct http_post *h, CURL *easy, CURLcode code)
{
	struct http_answer answer = { 0 };
	struct http_transfer *t = NULL;
	curl_off_t retry_after = 0;
	long status = 0;

	h->curl.easy_getinfo(easy, CURLINFO_PRIVATE, &t);
	if (code == CURLE_OK) {
		h->curl.easy_getinfo(easy, CURLINFO_RESPONSE_CODE, &status);
		h->curl.easy_getinfo(easy, CURLINFO_RETRY_AFTER, &retry_after);
		h->curl.easy_getinfo(easy, CURLINFO_CONTENT_TYPE, &answer.content_type);
		answer.retry_after_s = retry_after;
	} else {
		answer.error = *t->error ? t->error : h->curl.easy_strerror(code);
	}
	answer.status = status;
	answer.code = code;
	t->body[t->len] = '\0';
	answer.body = t->body;
	answer.len = t->len;
	t->answer(&answer, t->arg);
	http_post_cancel(t);
}

static void act(struct http_post *h, curl_socket_t fd, int what)
{
	int running, left;
	CURLMsg *m;

	h->curl.multi_socket_action(h->multi, fd, what, &running);
	while ((m = h->curl.multi_info_read(h->multi, &left)))
		if (m->msg == CURLMSG_DONE)
			finish(h, m->easy_handle, m->data.result);
}

static void on_socket(evutil_socket_t fd, short what, void *arg)
{
	act(arg, fd, (what & EV_READ ? CURL_CSELECT_IN : 0) | (what & EV_WRITE ? CURL_CSELECT_OUT : 0));
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
	act(arg, CURL_SOCKET_TIMEOUT, 0);
}

static int watch_socket(CURL *easy, curl_socket_t fd, int what, void *arg, void *watched)
{
	struct http_post *h = arg;
	struct event *e = watched;

	if (e)
		event_free(e);
	e = NULL;
	if (what != CURL_POLL_REMOVE) {
		e = event_new(h->base, fd,
			EV_PERSIST | (what & CURL_POLL_IN ? EV_READ : 0) |
				(what & CURL_POLL_OUT ? EV_WRITE : 0),
			on_socket, h);
		if (!e)
			return -1;
		event_add(e, NULL);
	}
	h->curl.multi_assign(h->multi, fd, e);
	return 0;
}

static int set_timer(CURLM *multi, long ms, void *arg)
{
	struct timeval after = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };
	struct http_post *h = arg;

	if (ms < 0)
		event_del(h->timer);
	else
		event_add(h->timer, &after);
	return 0;
}

/* ---- */

static int load_library(struct http_post *h, char *why, size_t why_len)
{
	h->library = dlopen(LIBCURL, RTLD_NOW | RTLD_LOCAL);
	if (!h->library)
		return fail_with(why, why_len, -ENOENT, "cannot load libcurl (Debian's libcurl4): %s",
			dlerror());
#define X(name)                                                                                    \
	h->curl.name = (__typeof__(h->curl.name))dlsym(h->library, "curl_" #name);                 \
	if (!h->curl.name)                                                                         \
		return fail_with(why, why_len, -ENOSYS, "this libcurl has no curl_" #name);
	CURL_CALLS(X)
#undef X
	return 0;
}

int http_post_new(struct http_post **ret, struct event_base *base, char *why, size_t why_len)
{
	struct http_post *h = calloc(1, sizeof(*h));
	int err;

	snprintf(why, why_len, "out of memory");
	if (!h)
		return -ENOMEM;
	h->base = base;
	err = load_library(h, why, why_len);
	if (!err) {
		h->curl.global_init(CURL_GLOBAL_ALL);
		h->multi = h->curl.multi_init();
		h->timer = evtimer_new(base, on_timer, h);
		err = h->multi && h->timer ? 0 : -ENOMEM;
	}
	if (err) {
		http_post_free(h);
		return err;
	}
	h->curl.multi_setopt(h->multi, CURLMOPT_SOCKETFUNCTION, watch_socket);
	h->curl.multi_setopt(h->multi, CURLMOPT_SOCKETDATA, h);
	h->curl.multi_setopt(h->multi, CURLMOPT_TIMERFUNCTION, set_timer);
	h->curl.multi_setopt(h->multi, CURLMOPT_TIMERDATA, h);
	*ret = h;
	return 0;
}

void http_post_free(struct http_post *h)
{
	if (!h)
		return;
	if (h->multi)
		h->curl.multi_cleanup(h->multi);
	if (h->timer)
		event_free(h->timer);
	/* libraries below libcurl do not come back: it stays loaded */
	free(h);
}

/* What is beyond HTTP_ANSWER_MAX is read and forgotten. */
static size_t take_answer(char *data, size_t size, size_t n, void *arg)
{
	struct http_transfer *t = arg;
	size_t room = HTTP_ANSWER_MAX - t->len, len = size * n < room ? size * n : room;

	memcpy(t->body + t->len, data, len);
	t->len += len;
	return size * n;
}

static bool add_header(struct http_transfer *t, const char *header)
{
	struct curl_slist *longer = t->of->curl.slist_append(t->headers, header);

	if (longer)
		t->headers = longer;
	return longer;
}

static void set_options(struct http_transfer *t, const struct http_request *r)
{
	__typeof__(curl_easy_setopt) *set = t->of->curl.easy_setopt;
	CURL *easy = t->easy;

	set(easy, CURLOPT_PRIVATE, t);
	set(easy, CURLOPT_ERRORBUFFER, t->error);
	set(easy, CURLOPT_NOSIGNAL, 1L);
	set(easy, CURLOPT_PROTOCOLS_STR, "http,https");
	set(easy, CURLOPT_URL, r->url);
	set(easy, CURLOPT_HTTPHEADER, t->headers);
	set(easy, CURLOPT_USERAGENT, "phasewatch/" PW_VERSION);
	set(easy, CURLOPT_TIMEOUT_MS, (long)(r->timeout_ns / NS_PER_MS));
	set(easy, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)r->len);
	set(easy, CURLOPT_POSTFIELDS, r->body);
	set(easy, CURLOPT_WRITEFUNCTION, take_answer);
	set(easy, CURLOPT_WRITEDATA, t);
	if (r->ca)
		set(easy, CURLOPT_CAINFO, r->ca);
	if (r->cert)
		set(easy, CURLOPT_SSLCERT, r->cert);
	if (r->key)
		set(easy, CURLOPT_SSLKEY, r->key);
}

int http_post_send(struct http_post *h, const struct http_request *request, http_answer_fn answer,
	void *arg, struct http_transfer **ret)
{
	struct http_transfer *t = malloc(sizeof(*t));
	bool added = true;

	if (!t)
		return -ENOMEM;
	*t->error = '\0';
	t->of = h;
	t->answer = answer;
	t->arg = arg;
	t->len = 0;
	t->headers = NULL;
	t->easy = h->curl.easy_init();
	for (size_t i = 0; i < request->n_headers; i++)
		added = added && add_header(t, request->headers[i]);
	if (!t->easy || !added || !add_header(t, "Expect:")) {
		http_post_cancel(t);
		return -ENOMEM;
	}
	set_options(t, request);
	h->curl.multi_add_handle(h->multi, t->easy); /* its timer goes off at once, on the loop */
	*ret = t;
	return 0;
}

void http_post_cancel(struct http_transfer *t)
{
	if (!t)
		return;
	if (t->easy) {
		t->of->curl.multi_remove_handle(t->of->multi, t->easy);
		t->of->curl.easy_cleanup(t->easy);
	}
	t->of->curl.slist_free_all(t->headers);
	free(t);
}
