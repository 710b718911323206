/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the files of the API share. */
#ifndef PW_API_INTERNAL_H
#define PW_API_INTERNAL_H

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>

#include "api.h"
#include "holders.h"
#include "unix_socket.h"

/* Connections taken in one go, and how long the others then have their turn: whoever connects all
 * the time does not keep the loop busy, and who waits behind has not long to wait. */
#define ACCEPTS 64
#define REST_US 5000

/* Outlives the API while libevent has answers in its hands. */
struct waiting {
	size_t bytes, answers;
	bool orphan;
};

struct api {
	struct api_context c;
	struct evhttp *http;
	struct evconnlistener *listeners[2];
	struct unix_socket socket;
	struct holders *holders;
	struct bufferevent *accepted[ACCEPTS]; /* and not screened yet */
	size_t n_accepted;
	struct event *screen, *rest;
	struct waiting *waiting;
};

static inline void evbuffer_freep(struct evbuffer **b)
{
	if (*b)
		evbuffer_free(*b);
}

void reply(struct evhttp_request *req, int status, const char *type, struct evbuffer *body);
void reply_error(struct evhttp_request *req, int status, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* Whether there is room for an answer, which ends with a newline; else that is the answer. */
bool may_wait(struct api *api, struct evhttp_request *req, struct evbuffer *body);

/* api_events.c */
void get_events(struct api *api, struct evhttp_request *req, const struct evkeyvalq *query);

#endif /* PW_API_INTERNAL_H */
