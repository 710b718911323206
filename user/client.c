// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include "client.h"
#include "opts.h"
#include "util.h"

#define BUFFER_MIN ((size_t)64 << 10)
#define HEAD_MAX ((size_t)16 << 10)
#define LINE_LEN_MAX ((size_t)1 << 20)
#define BODY_MAX ((size_t)64 << 20)

/*
 * buf[begin..end) has arrived and is not handed out. `left` is how much of the body is still to be
 * read from the socket: without a Content-Length, all until the daemon closes.
 */
struct client {
	int fd;
	int status;
	bool sized;
	uint64_t left;
	size_t begin, end, size;
	char *buf;
};

void client_free(struct client *client)
{
	if (!client)
		return;
	closep(&client->fd);
	free(client->buf);
	free(client);
}

void client_freep(struct client **client)
{
	client_free(*client);
}

int client_status(const struct client *client)
{
	return client->status;
}

/* The socket's time limits turn into EAGAIN. */
static int io_error(void)
{
	return errno == EAGAIN || errno == EINPROGRESS ? -ETIMEDOUT : -errno;
}

static int set_timeout(int fd, int option, unsigned int ms)
{
	struct timeval tv = { .tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000 };

	return setsockopt(fd, SOL_SOCKET, option, &tv, sizeof(tv)) ? -errno : 0;
}

static unsigned int timeout_ms(const struct client_request *request)
{
	return request->timeout_ms ? request->timeout_ms : CLIENT_TIMEOUT_S * 1000;
}

static int open_socket(const struct client_request *request, int *ret)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	_cleanup_(closep) int fd = -1;
	int r;

	if (strlen(request->socket) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	strcpy(address.sun_path, request->socket);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	r = set_timeout(fd, SO_RCVTIMEO, timeout_ms(request));
	if (!r)
		r = set_timeout(fd, SO_SNDTIMEO, timeout_ms(request));
	if (r)
		return r;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return io_error();
	*ret = TAKE_FD(fd);
	return 0;
}

static int send_all(int fd, const char *data, size_t len)
{
	while (len) {
		ssize_t n = send(fd, data, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return io_error();
		data += n;
		len -= n;
	}
	return 0;
}

static int send_request(int fd, const struct client_request *request)
{
	const char *body = request->body ? request->body : "";
	_cleanup_(freep) char *text = NULL;
	int len;

	len = asprintf(&text,
		"%s %s HTTP/1.0\r\nHost: phasewatch\r\nContent-Type: application/json\r\n"
		"Content-Length: %zu\r\n\r\n%s",
		request->method, request->target, strlen(body), body);
	if (len < 0) {
		text = NULL;
		return -ENOMEM;
	}
	return send_all(fd, text, len);
}

/* Makes room for at least one more byte; the unread bytes never exceed `max`. */
static int make_room(struct client *c, size_t max)
{
	size_t used = c->end - c->begin;
	size_t size;
	char *buf;

	if (used >= max)
		return -EMSGSIZE;
	if (c->end < c->size)
		return 0;
	if (c->begin) {
		memmove(c->buf, c->buf + c->begin, used);
		c->begin = 0;
		c->end = used;
	}
	if (c->end < c->size / 2)
		return 0;
	size = c->size ? 2 * c->size : BUFFER_MIN;
	buf = realloc(c->buf, size);
	if (!buf)
		return -ENOMEM;
	c->buf = buf;
	c->size = size;
	return 0;
}

/* Reads what is there. Returns 1, or 0 at the end of the body. */
static int fill(struct client *c, size_t max)
{
	size_t room;
	ssize_t n;
	int r;

	if (!c->left)
		return 0;
	r = make_room(c, max);
	if (r)
		return r;
	room = c->size - c->end;
	do {
		n = read(c->fd, c->buf + c->end, room < c->left ? room : c->left);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return io_error();
	if (!n)
		return c->sized ? -EPROTO : 0;
	if (c->sized)
		c->left -= n;
	c->end += n;
	return 1;
}

static int parse_status(const char *line, int *ret)
{
	char code[4];
	uint64_t status;

	if (sscanf(line, "HTTP/1.%*1[01] %3[0-9]", code) != 1 || parse_u64(code, &status))
		return -EPROTO;
	if (status < 100 || status > 599)
		return -EPROTO;
	*ret = status;
	return 0;
}

static int parse_header(struct client *c, const char *line)
{
	static const char length[] = "Content-Length:";

	if (strncasecmp(line, length, strlen(length)))
		return 0;
	line += strlen(length);
	line += strspn(line, " \t");
	if (parse_u64(line, &c->left))
		return -EPROTO;
	c->sized = true;
	return 0;
}

/* What of the body came with the head counts against its length; what is beyond is not its. */
static void clip_to_length(struct client *c)
{
	size_t used = c->end - c->begin;

	if (!c->sized)
		return;
	if (used > c->left)
		c->end = c->begin + c->left;
	c->left -= c->end - c->begin;
}

static int parse_head(struct client *c, char *head)
{
	char *line = strsep(&head, "\n");
	int r = parse_status(line, &c->status);

	while (!r && (line = strsep(&head, "\n"))) {
		line[strcspn(line, "\r")] = '\0';
		r = parse_header(c, line);
	}
	return r;
}

static int read_head(struct client *c)
{
	char *head, *end;
	int r;

	for (;;) {
		r = fill(c, HEAD_MAX);
		if (r <= 0)
			return !r || r == -EMSGSIZE ? -EPROTO : r;
		head = c->buf + c->begin;
		end = memmem(head, c->end - c->begin, "\r\n\r\n", 4);
		if (end)
			break;
	}
	*end = '\0';
	c->begin += end + 4 - head;
	r = parse_head(c, head);
	clip_to_length(c);
	return r;
}

int client_request(const struct client_request *request, struct client **ret)
{
	_cleanup_(client_freep) struct client *c = calloc(1, sizeof(*c));
	int r, sent;

	if (!c)
		return -ENOMEM;
	c->fd = -1;
	c->left = UINT64_MAX;
	r = open_socket(request, &c->fd);
	if (r)
		return r;
	/* a daemon that takes no more connections answers and closes before it is asked */
	sent = send_request(c->fd, request);
	if (sent && sent != -EPIPE && sent != -ECONNRESET)
		return sent;
	r = read_head(c);
	if (!r && request->follow)
		r = set_timeout(c->fd, SO_RCVTIMEO, 0);
	if (r)
		return sent ? sent : r;
	*ret = TAKE_PTR(c);
	return 0;
}

int client_lines(struct client *c, const char **ret, size_t *ret_len)
{
	for (;;) {
		char *begin = c->buf + c->begin;
		char *newline = memrchr(begin, '\n', c->end - c->begin);
		int r;

		if (newline) {
			*ret = begin;
			*ret_len = newline + 1 - begin;
			c->begin += *ret_len;
			return 1;
		}
		r = fill(c, LINE_LEN_MAX);
		if (!r && c->end > c->begin)
			return -EPROTO;
		if (r <= 0)
			return r;
	}
}

int client_body(struct client *c, const char **ret, size_t *ret_len)
{
	int r;

	do {
		r = fill(c, BODY_MAX);
	} while (r > 0);
	if (r)
		return r;
	*ret = c->buf + c->begin;
	*ret_len = c->end - c->begin;
	c->begin = c->end;
	return 0;
}

int client_json(struct client *client, json_t **ret)
{
	const char *body;
	json_t *value;
	size_t len;
	int r;

	r = client_body(client, &body, &len);
	if (r)
		return r;
	value = json_loadb(body, len, JSON_ALLOW_NUL, NULL);
	if (!json_is_object(value)) {
		json_decref(value);
		return -EPROTO;
	}
	*ret = value;
	return 0;
}

int client_failed(const struct client_request *request, int error)
{
	const char *path = request->socket;

	switch (error) {
	case -ETIMEDOUT:
		log_error("the daemon at %s did not answer within %g s", path,
			timeout_ms(request) / 1e3);
		return PW_EXIT_TIMEOUT;
	case -EPROTO:
	case -EMSGSIZE:
		log_error("the answer from %s is cut off, or it is not from phasewatch", path);
		return PW_EXIT_FAILED;
	case -EACCES:
		log_error("may not connect to %s (%s); run as root or join the socket's group",
			path, strerror(-error));
		return PW_EXIT_UNREACHABLE;
	default:
		log_error("no daemon at %s (%s); start one with 'phasewatch run'", path,
			strerror(-error));
		return PW_EXIT_UNREACHABLE;
	}
}

static void log_refusal(const struct client *client, const json_t *answer)
{
	const char *error = json_string_value(json_object_get(answer, "error"));

	if (error)
		log_error("%s", error);
	else
		log_error("the daemon answered with HTTP status %d", client->status);
}

static int status_exit_code(int status)
{
	switch (status) {
	case 200:
		return PW_EXIT_DONE;
	case 400:
		return PW_EXIT_USAGE;
	case 403:
	case 409:
	case 429:
		return PW_EXIT_REFUSED;
	default:
		return PW_EXIT_FAILED;
	}
}

int client_call(const struct client_request *request, struct client **ret)
{
	_cleanup_(client_freep) struct client *client = NULL;
	json_t *answer = NULL;
	int code, r;

	r = client_request(request, &client);
	if (r)
		return client_failed(request, r);
	code = status_exit_code(client->status);
	if (code) {
		client_json(client, &answer);
		log_refusal(client, answer);
		json_decref(answer);
		return code;
	}
	*ret = TAKE_PTR(client);
	return 0;
}
