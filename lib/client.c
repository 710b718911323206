// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "phasewatch/client.h"
#include "utf8.h"

#define US_PER_S INT64_C(1000000)
#define QUOTED_LEN (6 * PW_REASON_LEN) /* each byte may become \u00XX */
#define BODY_LEN (QUOTED_LEN + 128)
#define REQUEST_LEN (BODY_LEN + 128)
#define ANSWER_LEN 4096 /* heads are some 200 bytes, refusals less than 512 */

static _Thread_local char last_error[512];

const char *pw_last_error(void)
{
	return last_error;
}

/* Returns `err`. %m in `fmt` is its text: strerror() is not safe with threads everywhere. */
__attribute__((format(printf, 2, 3))) static int fail(int err, const char *fmt, ...)
{
	va_list args;

	errno = -err;
	va_start(args, fmt);
	vsnprintf(last_error, sizeof(last_error), fmt, args);
	va_end(args);
	return err;
}

/* ---- the request ---- */

/* The inside of a JSON string. */
static int quote(const char *s, char out[static QUOTED_LEN])
{
	size_t left = strlen(s), n;
	uint32_t c;

	if (left >= PW_REASON_LEN)
		return fail(-EINVAL, "the reason is longer than %d bytes", PW_REASON_LEN - 1);
	for (; left; left -= n, s += n) {
		n = utf8_decode((const unsigned char *)s, left, &c);
		if (!n)
			return fail(-EINVAL, "the reason is not UTF-8");
		if (c < 0x20) {
			out += sprintf(out, "\\u%04" PRIx32, c);
			continue;
		}
		if (c == '"' || c == '\\')
			*out++ = '\\';
		memcpy(out, s, n);
		out += n;
	}
	*out = '\0';
	return 0;
}

static int make_request(
	enum pw_phase phase, uint64_t epoch, const char *reason, char out[static REQUEST_LEN])
{
	static const char *const names[] = {
		[PW_INIT] = "INIT",
		[PW_ACTIVE] = "ACTIVE",
		[PW_DRAIN] = "DRAIN",
		[PW_SHUTDOWN] = "SHUTDOWN",
	};
	char quoted[QUOTED_LEN], body[BODY_LEN];
	int n, err;

	if (phase < PW_INIT || phase > PW_SHUTDOWN)
		return fail(-EINVAL, "no phase %d: expected INIT to SHUTDOWN", (int)phase);
	if (epoch > PW_EPOCH_MAX)
		return fail(-EINVAL, "epoch %" PRIu64 " is above %llu", epoch, PW_EPOCH_MAX);
	n = sprintf(body, "{\"phase\":\"%s\",\"self\":true", names[phase]);
	if (epoch)
		n += sprintf(body + n, ",\"epoch\":%" PRIu64, epoch);
	if (reason && *reason) {
		err = quote(reason, quoted);
		if (err)
			return err;
		n += sprintf(body + n, ",\"reason\":\"%s\"", quoted);
	}
	n += sprintf(body + n, "}");
	sprintf(out,
		"PUT /v1/phase HTTP/1.0\r\nHost: phasewatch\r\nContent-Type: application/json\r\n"
		"Content-Length: %d\r\n\r\n%s",
		n, body);
	return 0;
}

/* ---- the exchange ---- */

static int64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * US_PER_S + t.tv_nsec / 1000;
}

/*
 * Has the next call on this socket give up at the deadline, with EAGAIN; fails so itself if that is
 * over. (poll() would not do: there is nothing to poll for while the daemon's backlog is full.)
 */
static int set_limit(int fd, int option, int64_t deadline_us)
{
	int64_t left = deadline_us - now_us();
	struct timeval tv = { .tv_sec = left / US_PER_S, .tv_usec = left % US_PER_S };

	if (left <= 0) {
		errno = EAGAIN;
		return -1;
	}
	return setsockopt(fd, SOL_SOCKET, option, &tv, sizeof(tv));
}

static int connect_to(int fd, const struct sockaddr_un *address, int64_t deadline_us)
{
	while (set_limit(fd, SO_SNDTIMEO, deadline_us) < 0 ||
		connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
		if (errno != EINTR)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
	return 0;
}

/* The HTTP status, once the head is there as a whole; else 0. */
static int status_of(const char *answer)
{
	int status = 0;

	if (strstr(answer, "\r\n\r\n"))
		sscanf(answer, "HTTP/1.%*1[01] %3d", &status);
	return status;
}

/* Reads until the status is known, and a refusal to its end, for the text. */
static int receive(int fd, int64_t deadline_us, char answer[static ANSWER_LEN])
{
	size_t len = 0;
	ssize_t n;

	while (len < ANSWER_LEN - 1 && status_of(answer) != 200) {
		n = set_limit(fd, SO_RCVTIMEO, deadline_us);
		if (!n)
			n = recv(fd, answer + len, ANSWER_LEN - 1 - len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && !status_of(answer))
			return -ETIMEDOUT;
		if (n <= 0)
			break; /* what has come is judged, if this was a reset as well */
		len += n;
		answer[len] = '\0';
	}
	return 0;
}

/* What {"error":"…"} says. Escapes of control characters stay as they are: it is one line. */
static int refuse(int err, const char *answer)
{
	static const char key[] = "{\"error\":\"";
	const char *s = strstr(answer, key);
	size_t n = 0;

	if (!s)
		return fail(err, "the daemon answered with HTTP status %d", status_of(answer));
	for (s += strlen(key); *s && *s != '"' && n < sizeof(last_error) - 1; s++) {
		if (*s == '\\' && (s[1] == '"' || s[1] == '\\'))
			s++;
		last_error[n++] = *s;
	}
	last_error[n] = '\0';
	return err;
}

static int judge(const char *answer)
{
	int status = status_of(answer);

	switch (status) {
	case 200:
		return 0;
	case 400:
		return refuse(-EINVAL, answer);
	case 403:
		return refuse(-EPERM, answer);
	case 409:
		return refuse(-ESTALE, answer);
	case 429:
		return refuse(-EAGAIN, answer);
	}
	if (status >= 400 && status <= 599)
		return refuse(-EIO, answer);
	return fail(-EPROTO, "the answer is cut off, or it is not from phasewatch");
}

static int exchange(int fd, const struct sockaddr_un *address, int64_t deadline_us,
	const char *request, char answer[static ANSWER_LEN])
{
	int err = connect_to(fd, address, deadline_us);

	if (err)
		return err;
	/*
	 * The buffer of a new socket takes it whole. Where this fails, the daemon may have answered and
	 * closed without asking what for: it has no room for one more connection.
	 */
	send(fd, request, strlen(request), MSG_NOSIGNAL);
	return receive(fd, deadline_us, answer);
}

static const char *choose_path(const char *path)
{
	if (!path)
		path = secure_getenv("PHASEWATCH_SOCKET");
	return path && *path ? path : PW_SOCKET;
}

int pw_declare_to(const char *socket_path, unsigned int timeout_ms, enum pw_phase phase,
	uint64_t epoch, const char *reason)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	char request[REQUEST_LEN], answer[ANSWER_LEN] = "";
	const char *path = choose_path(socket_path);
	int64_t deadline_us;
	int fd, err;

	if (!timeout_ms)
		timeout_ms = PW_DECLARE_TIMEOUT_MS;
	deadline_us = now_us() + timeout_ms * INT64_C(1000);
	err = make_request(phase, epoch, reason, request);
	if (err)
		return err;
	if (strlen(path) >= sizeof(address.sun_path))
		return fail(-ENAMETOOLONG, "the path of the socket is longer than %zu bytes",
			sizeof(address.sun_path) - 1);
	strcpy(address.sun_path, path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return fail(-errno, "cannot make a socket: %m");
	err = exchange(fd, &address, deadline_us, request, answer);
	close(fd);
	if (err == -ETIMEDOUT)
		return fail(err, "the daemon at %s did not answer within %u ms", path, timeout_ms);
	if (err)
		return fail(err, "cannot connect to %s: %m", path);
	return judge(answer);
}

int pw_declare(enum pw_phase phase, uint64_t epoch, const char *reason)
{
	return pw_declare_to(NULL, 0, phase, epoch, reason);
}
