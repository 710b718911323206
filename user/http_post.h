/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * HTTP requests on the daemon's loop, by libcurl, which looks up names in threads of its own: nothing
 * here blocks. libcurl and what comes with it are 6 MB and 4 ms for each start of the program (`time
 * phasewatch --help` with and without), so they are loaded only where there is somebody to post to.
 */
#ifndef PW_HTTP_POST_H
#define PW_HTTP_POST_H

#include <event2/event.h>
#include <stddef.h>
#include <stdint.h>

#define HTTP_ANSWER_MAX (64u << 10) /* bytes of an answer that are looked at */

struct http_post;
struct http_transfer;

struct http_request {
	const char *url;
	const char *const *headers; /* n of them, as "Name: value" */
	size_t n_headers;
	const char *ca, *cert, *key; /* files; NULL: the system's, none */
	uint64_t timeout_ns;
	const void *body; /* stays valid until the answer */
	size_t len;
};

struct http_answer {
	int status;	   /* 0: there was none */
	const char *error; /* why, then */
	int code;	   /* of libcurl's, for the same */
	uint64_t retry_after_s;
	const char *content_type; /* or NULL */
	const char *body;	  /* ends with NUL */
	size_t len;
};

/* Called from the loop, once for each request that was not cancelled. */
typedef void (*http_answer_fn)(const struct http_answer *answer, void *arg);

/* `why`: a sentence. */
int http_post_new(struct http_post **ret, struct event_base *base, char *why, size_t why_len);
/* Transfers are over before. */
void http_post_free(struct http_post *h);

int http_post_send(struct http_post *h, const struct http_request *request, http_answer_fn answer,
	void *arg, struct http_transfer **ret);
/* Before its answer; NULL is none. */
void http_post_cancel(struct http_transfer *t);

#endif /* PW_HTTP_POST_H */
