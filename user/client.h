/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * One blocking HTTP/1.0 request to the daemon over its Unix socket, and the answer as a stream.
 *
 *	_cleanup_(client_freep) struct client *client = NULL;
 *	int code = client_call(&request, &client);
 *
 *	if (code)
 *		return code;
 *	... client_json() or client_body() or, again and again, client_lines()
 */
#ifndef PW_CLIENT_H
#define PW_CLIENT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

/* How long the daemon may stay silent before a request has failed. */
#define CLIENT_TIMEOUT_S 5

static inline void json_freep(json_t **json)
{
	json_decref(*json);
}

struct client_request {
	const char *socket; /* path */
	const char *method;
	const char *target; /* path and query, already encoded */
	const char *body; /* JSON, or NULL */
	bool follow; /* once the answer has begun, wait for more of it without limit */
	unsigned int timeout_ms; /* 0: CLIENT_TIMEOUT_S */
};

struct client;

/*
 * Sends the request and reads the answer's head. The caller owns *ret. Fails with what connect(2)
 * says (-ENOENT, -ECONNREFUSED, -EACCES, ...), -ETIMEDOUT, or -EPROTO if the answer is not HTTP.
 */
int client_request(const struct client_request *request, struct client **ret);
void client_free(struct client *client);
void client_freep(struct client **client);

/* The HTTP status, 100..599. */
int client_status(const struct client *client);

/*
 * What has arrived: one or more whole lines, each with its newline. Returns 1 and the lines, which
 * are valid until the next call; 0 at the end; -EPROTO if the end comes in the middle of a line,
 * -EMSGSIZE if a line is longer than 1 MiB, -ETIMEDOUT, or what read(2) says.
 */
int client_lines(struct client *client, const char **ret, size_t *ret_len);

/* The rest of the body, valid until the next call. -EMSGSIZE if it is larger than 64 MiB. */
int client_body(struct client *client, const char **ret, size_t *ret_len);

/* The same, parsed: a JSON object, owned by the caller. -EPROTO if it is none. */
int client_json(struct client *client, json_t **ret);

/*
 * For commands. client_call() is client_request() that has logged what went wrong, a refusal by the
 * daemon included; client_failed() logs that reading the answer failed with `error`. Both return the
 * command's exit code.
 */
int client_call(const struct client_request *request, struct client **ret);
int client_failed(const struct client_request *request, int error);

#endif /* PW_CLIENT_H */
