// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Many connections: who serves them, and who makes them and counts.
 *
 *   load serve ADDRESS [WORKERS]   says {"port": N}; WORKERS processes accept from one listener
 *   load serve-null ADDRESS        accepts with a NULL address
 *   load serve-on FD               from a listener that it inherited; says {"pid": N}
 *   load connect                   does what it reads, a line each, and says what came of it
 *
 * To '?' a server answers with its pid, at '!' it closes, as it does when the client has closed.
 * The lines:
 *
 *   open GROUP ADDRESS PORT COUNT ASKS END   so many connections, each asks so often and is then
 *                                            ended by "server" or "client", or is to "keep"
 *   ask GROUP ASKS                           those that are kept
 *   end GROUP                                reads them to the end
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096
#define AT_A_TIME 64
#define GROUPS 32
#define GROUP_MAX 2048
#define SERVERS_MAX 64
#define DEADLINE_S 20

static int check(int ret, const char *what)
{
	if (ret < 0) {
		fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
		exit(1);
	}
	return ret;
}

static struct sockaddr_in address_of(const char *address, int port)
{
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(port) };

	check(inet_pton(AF_INET, address, &to.sin_addr) - 1, address);
	return to;
}

/* ---- servers ---- */

static void watch(int epoll, int fd)
{
	struct epoll_event e = { .events = EPOLLIN, .data.fd = fd };

	check(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e), "epoll_ctl");
}

static void accept_all(int epoll, int listener, bool null)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(peer);
	int fd;

	for (;;) {
		fd = accept4(listener, null ? NULL : (struct sockaddr *)&peer, null ? NULL : &len,
			SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			break;
		watch(epoll, fd);
	}
	if (errno != EAGAIN)
		check(-1, "accept4");
}

static void answer(int fd)
{
	uint32_t pid = getpid();
	char buf[64];
	ssize_t n = read(fd, buf, sizeof(buf));

	for (ssize_t i = 0; i < n; i++) {
		if (buf[i] == '!')
			n = 0;
		else if (write(fd, &pid, sizeof(pid)) != sizeof(pid))
			n = -1; /* the client is gone */
	}
	if (n <= 0)
		close(fd);
}

static void serve(int listener, bool null)
{
	int epoll = check(epoll_create1(EPOLL_CLOEXEC), "epoll_create1"), n;
	struct epoll_event events[AT_A_TIME];

	check(fcntl(listener, F_SETFL, O_NONBLOCK), "fcntl");
	watch(epoll, listener);
	for (;;) {
		n = check(epoll_wait(epoll, events, AT_A_TIME, -1), "epoll_wait");
		for (int i = 0; i < n; i++) {
			if (events[i].data.fd == listener)
				accept_all(epoll, listener, null);
			else
				answer(events[i].data.fd);
		}
	}
}

static int listen_on(const char *address)
{
	struct sockaddr_in to = address_of(address, 0);
	int fd = check(socket(AF_INET, SOCK_STREAM, 0), "socket");
	socklen_t len = sizeof(to);

	check(bind(fd, (struct sockaddr *)&to, len), "bind");
	check(listen(fd, BACKLOG), "listen");
	check(getsockname(fd, (struct sockaddr *)&to, &len), "getsockname");
	printf("{\"port\": %d}\n", ntohs(to.sin_port));
	fflush(stdout);
	return fd;
}

static void serve_by(int workers, int listener)
{
	for (int i = 0; i < workers; i++)
		if (check(fork(), "fork") == 0)
			serve(listener, false);
	pause();
}

/* ---- clients ---- */

static struct {
	int fds[GROUP_MAX];
	size_t n;
} groups[GROUPS];

/* Of one line. */
static struct {
	size_t made, refused, fin, rst;
	struct {
		uint32_t pid;
		size_t answers;
	} by[SERVERS_MAX];
} counts;

static void count_answer(uint32_t pid)
{
	size_t i = 0;

	while (i < SERVERS_MAX && counts.by[i].pid && counts.by[i].pid != pid)
		i++;
	if (i == SERVERS_MAX)
		exit(1);
	counts.by[i].pid = pid;
	counts.by[i].answers++;
}

static void say(void)
{
	printf("{\"made\": %zu, \"refused\": %zu, \"fin\": %zu, \"rst\": %zu, \"by\": {",
		counts.made, counts.refused, counts.fin, counts.rst);
	for (size_t i = 0; i < SERVERS_MAX && counts.by[i].pid; i++)
		printf("%s\"%u\": %zu", i ? ", " : "", counts.by[i].pid, counts.by[i].answers);
	puts("}}");
	fflush(stdout);
}

static void send_to(const int *fds, size_t n, char what)
{
	for (size_t i = 0; i < n; i++)
		if (send(fds[i], &what, 1, MSG_NOSIGNAL) != 1)
			check(-1, "send");
}

static void ask(const int *fds, size_t n, int times)
{
	uint32_t pid;

	while (times-- > 0) {
		send_to(fds, n, '?');
		for (size_t i = 0; i < n; i++) {
			if (recv(fds[i], &pid, sizeof(pid), MSG_WAITALL) != sizeof(pid))
				check(-1, "recv");
			count_answer(pid);
		}
	}
}

static void read_ends(const int *fds, size_t n)
{
	ssize_t got;
	char byte;

	for (size_t i = 0; i < n; i++) {
		got = recv(fds[i], &byte, 1, 0);
		if (got == 0)
			counts.fin++;
		else if (got < 0 && errno == ECONNRESET)
			counts.rst++;
		else
			check(-1, "recv");
		close(fds[i]);
	}
}

static int connect_to(const struct sockaddr_in *to)
{
	int fd = check(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	const struct timeval deadline = { .tv_sec = DEADLINE_S };

	check(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &deadline, sizeof(deadline)), "setsockopt");
	if (connect(fd, (const struct sockaddr *)to, sizeof(*to)) == 0) {
		counts.made++;
		return fd;
	}
	if (errno != ECONNREFUSED)
		check(-1, "connect");
	counts.refused++;
	close(fd);
	return -1;
}

static void open_some(
	unsigned int group, const struct sockaddr_in *to, int count, int asks, const char *end)
{
	int fds[AT_A_TIME], fd;
	size_t n = 0;

	while (count-- > 0) {
		fd = connect_to(to);
		if (fd >= 0)
			fds[n++] = fd;
	}
	ask(fds, n, asks);
	if (strcmp(end, "server") == 0) {
		send_to(fds, n, '!');
		read_ends(fds, n);
	} else if (strcmp(end, "client") == 0) {
		while (n > 0)
			close(fds[--n]);
	} else {
		if (groups[group].n + n > GROUP_MAX)
			exit(1);
		memcpy(groups[group].fds + groups[group].n, fds, n * sizeof(fds[0]));
		groups[group].n += n;
	}
}

static void run(const char *line)
{
	int port, count, asks;
	char address[64], end[16];
	unsigned int group;
	struct sockaddr_in to;

	memset(&counts, 0, sizeof(counts));
	if (sscanf(line, "open %u %63s %d %d %d %15s", &group, address, &port, &count, &asks,
		    end) == 6 &&
		group < GROUPS) {
		to = address_of(address, port);
		for (; count > 0; count -= AT_A_TIME)
			open_some(group, &to, count < AT_A_TIME ? count : AT_A_TIME, asks, end);
	} else if (sscanf(line, "ask %u %d", &group, &asks) == 2 && group < GROUPS) {
		ask(groups[group].fds, groups[group].n, asks);
	} else if (sscanf(line, "end %u", &group) == 1 && group < GROUPS) {
		read_ends(groups[group].fds, groups[group].n);
		groups[group].n = 0;
	} else {
		fprintf(stderr, "load: what is %s", line);
		exit(1);
	}
	say();
}

int main(int argc, char **argv)
{
	const char *role = argc > 1 ? argv[1] : "", *of = argc > 2 ? argv[2] : "";
	struct rlimit files;
	char line[256];

	check(getrlimit(RLIMIT_NOFILE, &files), "getrlimit");
	files.rlim_cur = files.rlim_max;
	check(setrlimit(RLIMIT_NOFILE, &files), "setrlimit");
	if (strcmp(role, "serve") == 0 && argc > 3) {
		serve_by(atoi(argv[3]), listen_on(of));
	} else if (strcmp(role, "serve") == 0) {
		serve(listen_on(of), false);
	} else if (strcmp(role, "serve-null") == 0) {
		serve(listen_on(of), true);
	} else if (strcmp(role, "serve-on") == 0) {
		printf("{\"pid\": %d}\n", getpid());
		fflush(stdout);
		serve(atoi(of), false);
	} else if (strcmp(role, "connect") == 0) {
		while (fgets(line, sizeof(line), stdin))
			run(line);
		return 0;
	}
	return 2;
}
