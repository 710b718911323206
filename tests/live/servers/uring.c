// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * actor.py as a server whose accepts, reads, writes and closes go through io_uring:
 *
 *   uring HOW [FD]
 *
 * FD is the control socket: each message is a JSON list [method, argument...], each answer the JSON
 * of what the method returned. Without it, the exit code says if the kernel lets it have a ring.
 * HOW is how it accepts, words in any order: "null" (no address asked for), "direct" (connections
 * are no descriptors but slots of the ring's own table; so is the listener with "fixed"),
 * "multishot" (one request accepts all connections, from the first accept() on until
 * stop_accepting()), "async" (by worker threads), "sqpoll" (by the kernel's polling thread).
 */
#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <liburing.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define SLOTS 256
#define MESSAGE 65536
#define BACKLOG 512

/* Whose completion it is. */
enum request { ACCEPT = 1, STOP, OTHER };

static struct io_uring ring;
static bool null, direct, fixed, multishot, async;
static int listener = -1;
static bool accepting; /* an accept request is under way */
static unsigned int wanted, accepted;
static int connections[SLOTS]; /* descriptors, or slots of the ring's table */
static size_t n_connections;
static int lent[SLOTS]; /* descriptors that go with the next answer */
static size_t n_lent;

static int check(int ret, const char *what)
{
	if (ret < 0) {
		fprintf(stderr, "uring: %s: %s\n", what, strerror(ret == -1 ? errno : -ret));
		exit(1);
	}
	return ret;
}

/* ---- the ring ---- */

static struct io_uring_sqe *next(void)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);

	if (!sqe)
		check(-EBUSY, "io_uring_get_sqe");
	return sqe;
}

static void submit(struct io_uring_sqe *sqe, enum request of, bool is_slot)
{
	io_uring_sqe_set_data64(sqe, of);
	io_uring_sqe_set_flags(sqe, (is_slot ? IOSQE_FIXED_FILE : 0) | (async ? IOSQE_ASYNC : 0));
	check(io_uring_submit(&ring), "io_uring_submit");
}

static void on_accept(int res, bool more)
{
	accepting = more;
	if (res == -ECANCELED)
		return;
	if (accepted == SLOTS - 1)
		check(-ENFILE, "accept");
	check(res, "accept");
	/* a request of one accept names the slot itself */
	connections[n_connections++] = direct && !multishot ? (int)accepted : res;
	accepted++;
}

/* Until this request has its completion, whose result it returns. */
static int wait_for(enum request of)
{
	struct io_uring_cqe *cqe;
	enum request done;
	int res;

	do {
		check(io_uring_wait_cqe(&ring, &cqe), "io_uring_wait_cqe");
		done = io_uring_cqe_get_data64(cqe);
		res = cqe->res;
		if (done == ACCEPT)
			on_accept(res, cqe->flags & IORING_CQE_F_MORE);
		io_uring_cqe_seen(&ring, cqe);
	} while (done != of);
	return res;
}

static int run(struct io_uring_sqe *sqe, bool is_slot, const char *what)
{
	submit(sqe, OTHER, is_slot);
	return check(wait_for(OTHER), what);
}

static void begin_accept(void)
{
	static struct sockaddr_storage peer; /* the kernel writes to it while the request lives */
	static socklen_t len;
	struct sockaddr *addr = null ? NULL : (struct sockaddr *)&peer;
	socklen_t *addrlen = null ? NULL : &len;
	struct io_uring_sqe *sqe = next();

	len = sizeof(peer);
	if (multishot && direct)
		io_uring_prep_multishot_accept_direct(sqe, listener, addr, addrlen, 0);
	else if (multishot)
		io_uring_prep_multishot_accept(sqe, listener, addr, addrlen, 0);
	else if (direct)
		io_uring_prep_accept_direct(sqe, listener, addr, addrlen, 0, accepted);
	else
		io_uring_prep_accept(sqe, listener, addr, addrlen, 0);
	accepting = true;
	submit(sqe, ACCEPT, fixed);
}

/* ---- what it can be told ---- */

/* 0 where there is none. */
static int number(json_t *list, size_t i)
{
	return json_integer_value(json_array_get(list, i));
}

static json_t *do_listen(json_t *arguments)
{
	struct sockaddr_storage addr = { 0 };
	struct sockaddr_in *v4 = (struct sockaddr_in *)&addr;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&addr;
	const char *address = json_string_value(json_array_get(arguments, 0));
	socklen_t len = sizeof(addr);
	int none = 0;

	if (strchr(address, ':')) {
		addr.ss_family = AF_INET6;
		check(inet_pton(AF_INET6, address, &v6->sin6_addr) - 1, address);
	} else {
		addr.ss_family = AF_INET;
		check(inet_pton(AF_INET, address, &v4->sin_addr) - 1, address);
	}
	v4->sin_port = htons(number(arguments, 1)); /* where sin6_port is, too */
	listener = check(socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	if (addr.ss_family == AF_INET6)
		check(setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &none, sizeof(none)),
			"setsockopt");
	check(bind(listener, (struct sockaddr *)&addr, len), "bind");
	check(listen(listener, BACKLOG), "listen");
	check(getsockname(listener, (struct sockaddr *)&addr, &len), "getsockname");
	if (fixed) {
		check(io_uring_register_files_update(&ring, SLOTS - 1, &listener, 1), "fixed");
		close(listener);
		listener = SLOTS - 1;
	}
	return json_integer(ntohs(v4->sin_port));
}

static json_t *do_close_listener(json_t *arguments)
{
	struct io_uring_sqe *sqe = next();

	if (fixed)
		io_uring_prep_close_direct(sqe, listener);
	else
		io_uring_prep_close(sqe, listener);
	run(sqe, false, "close");
	return json_null();
}

static json_t *do_accept(json_t *arguments)
{
	wanted += number(arguments, 0);
	while (accepted < wanted) {
		if (!accepting)
			begin_accept();
		wait_for(ACCEPT);
	}
	return json_null();
}

static json_t *do_stop_accepting(json_t *arguments)
{
	struct io_uring_sqe *sqe = next();

	io_uring_prep_cancel64(sqe, ACCEPT, 0);
	submit(sqe, STOP, false);
	wait_for(STOP);
	while (accepting)
		wait_for(ACCEPT);
	return json_null();
}

/* "which" is a list of indices. */
static json_t *do_receive(json_t *arguments)
{
	static char buf[MESSAGE];
	json_t *which = json_array_get(arguments, 0);
	int total = number(arguments, 1), got;
	struct io_uring_sqe *sqe;

	for (size_t i = 0; i < json_array_size(which); i++)
		for (int left = total; left > 0; left -= got) {
			sqe = next();
			io_uring_prep_recv(sqe, connections[number(which, i)], buf,
				left < MESSAGE ? left : MESSAGE, 0);
			got = run(sqe, direct, "recv");
			if (got == 0)
				check(-ENODATA, "recv");
		}
	return json_null();
}

static json_t *do_send(json_t *arguments)
{
	static const char zeroes[MESSAGE];
	json_t *which = json_array_get(arguments, 0);
	int size = number(arguments, 1);
	struct io_uring_sqe *sqe;

	for (size_t i = 0; i < json_array_size(which); i++) {
		sqe = next();
		io_uring_prep_send(sqe, connections[number(which, i)], zeroes, size, 0);
		if (size > MESSAGE || run(sqe, direct, "send") != size)
			check(-EIO, "send");
	}
	return json_null();
}

/* Of those at the given indices, in ascending order, or of all. */
static json_t *do_close_connections(json_t *arguments)
{
	json_t *which = json_array_get(arguments, 0);
	size_t n = which ? json_array_size(which) : n_connections, i;
	struct io_uring_sqe *sqe;

	while (n-- > 0) {
		i = which ? (size_t)number(which, n) : n;
		sqe = next();
		if (direct)
			io_uring_prep_close_direct(sqe, connections[i]);
		else
			io_uring_prep_close(sqe, connections[i]);
		run(sqe, false, "close");
		n_connections--;
		memmove(&connections[i], &connections[i + 1],
			(n_connections - i) * sizeof(connections[0]));
	}
	return json_null();
}

static json_t *do_lend_listener(json_t *arguments)
{
	lent[n_lent++] = listener;
	return json_null();
}

static json_t *do_lend_connections(json_t *arguments)
{
	memcpy(lent, connections, n_connections * sizeof(lent[0]));
	n_lent = n_connections;
	return json_null();
}

static json_t *do_close_ring(json_t *arguments)
{
	io_uring_queue_exit(&ring);
	return json_null();
}

static json_t *do_exit(json_t *arguments)
{
	_exit(number(arguments, 0));
}

static const struct {
	const char *name;
	json_t *(*run)(json_t *arguments);
} methods[] = {
	{ "listen", do_listen },
	{ "close_listener", do_close_listener },
	{ "accept", do_accept },
	{ "stop_accepting", do_stop_accepting },
	{ "receive", do_receive },
	{ "send", do_send },
	{ "close_connections", do_close_connections },
	{ "lend_listener", do_lend_listener },
	{ "lend_connections", do_lend_connections },
	{ "close_ring", do_close_ring },
	{ "exit", do_exit },
};

static json_t *call(const char *message, size_t len)
{
	json_t *arguments = json_loadb(message, len, 0, NULL), *answer;
	const char *name = json_string_value(json_array_get(arguments, 0));

	for (size_t i = 0; name && i < sizeof(methods) / sizeof(methods[0]); i++)
		if (strcmp(methods[i].name, name) == 0) {
			json_array_remove(arguments, 0);
			answer = methods[i].run(arguments);
			json_decref(arguments);
			return answer;
		}
	check(-ENOSYS, name ? name : "a message");
	return NULL;
}

static void answer_with(int control, json_t *answer)
{
	char space[CMSG_SPACE(sizeof(lent))] = { 0 };
	char *text = json_dumps(answer, JSON_ENCODE_ANY);
	struct iovec part = { text, strlen(text) };
	struct msghdr msg = { .msg_iov = &part, .msg_iovlen = 1 };
	struct cmsghdr *c;

	if (n_lent > 0) {
		msg.msg_control = space;
		msg.msg_controllen = CMSG_SPACE(n_lent * sizeof(lent[0]));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(n_lent * sizeof(lent[0]));
		memcpy(CMSG_DATA(c), lent, n_lent * sizeof(lent[0]));
		n_lent = 0;
	}
	check(sendmsg(control, &msg, 0), "sendmsg");
	free(text);
	json_decref(answer);
}

int main(int argc, char **argv)
{
	static char message[MESSAGE];
	struct io_uring_params params = { .sq_thread_idle = 1 };
	const char *how = argc > 1 ? argv[1] : "";
	int control = argc > 2 ? atoi(argv[2]) : -1;
	ssize_t len;

	null = strstr(how, "null");
	direct = strstr(how, "direct");
	fixed = strstr(how, "fixed");
	multishot = strstr(how, "multishot");
	async = strstr(how, "async");
	params.flags = strstr(how, "sqpoll") ? IORING_SETUP_SQPOLL : 0;
	check(io_uring_queue_init_params(16, &ring, &params), "io_uring_setup");
	if (direct || fixed)
		check(io_uring_register_files_sparse(&ring, SLOTS), "register_files");
	while (control >= 0 && (len = check(recv(control, message, sizeof(message), 0), "recv")) > 0)
		answer_with(control, call(message, len));
	return 0;
}
