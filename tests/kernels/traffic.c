// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The scenario inside a guest: starts phasewatch, makes servers, declares their phases, sends them
 * connections, and writes down what happened as this program knows it. It judges nothing: that is
 * done on the host (tests/kernels/run), from what it leaves in the directory it is given:
 *
 *   facts.jsonl      one object a line, what was done
 *   ps-NAME.json, events-NAME.jsonl    what phasewatch said at that point
 *   left.txt         what was still there after `phasewatch unload`
 *   daemon.log
 *
 * This process is no subject: it is the client of all servers. A server does what it is told on a
 * socket pair, so that who accepts which connection is known.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ACTIVE_CONNECTIONS 11
#define DRAIN_CONNECTIONS 23
#define HELD_CONNECTIONS 3
#define QUEUED_CONNECTIONS 5
#define CONNECTS_ESTABLISHED 7
#define CONNECTS_REFUSED 5
#define LATE_REQUESTS 2 /* of the held ones */
#define QUESTION 41
#define EXIT_CODE 3
#define DEADLINE_S 30
#define CHANNELS 2

/* Enough for TCP to measure the rate: then a read restarts its receive-buffer clock. */
#define PAYLOAD 200000

enum how {
	ACCEPT_ADDRESS,
	ACCEPT_NULL_IO,	    /* accept4(NULL), then a read and a write */
	ACCEPT_NULL_PEER,   /* the same with much to read, then getpeername(2), as Node does */
	ACCEPT_NULL_SILENT, /* accept4(NULL), then the close */
};

static const struct {
	const char *name;
	int bytes; /* that the client sends */
} hows[] = {
	[ACCEPT_ADDRESS] = { "address", 0 },
	[ACCEPT_NULL_IO] = { "null_io", 1 },
	[ACCEPT_NULL_PEER] = { "null_peer", PAYLOAD },
	[ACCEPT_NULL_SILENT] = { "null_silent", 0 },
};

enum op {
	OP_LISTEN,  /* answers the port */
	OP_ACCEPT,  /* n connections, each served and closed; answers n */
	OP_HOLD,    /* n connections, kept */
	OP_USE,	    /* reads what the client sends on those, and asks for the peers' names */
	OP_REPLY,   /* reads a question on the first n of those, and answers it */
	OP_DROP,    /* closes those */
	OP_CONNECT, /* n times to `port`; answers how many came about */
	OP_FORK,    /* a worker that listens to channel 1; answers its pid */
	OP_EXIT,    /* with code n; no answer */
};

struct command {
	int op;
	int n;
	int port;
};

struct server {
	pid_t pid;
	int channels[CHANNELS]; /* to itself, and to the worker it forks */
	int family;
	enum how how;
	int port;
};

static FILE *facts;
static pid_t daemon_pid;

static void die(const char *what)
{
	fprintf(stderr, "traffic: %s: %s\n", what, strerror(errno));
	_exit(1); /* in a server, the lines that the director has not finished are not its own */
}

static int check(int ret, const char *what)
{
	if (ret < 0)
		die(what);
	return ret;
}

/* ---- servers ---- */

/* Loopback, for a server's family. A dual-stack listener is bound to any address. */
static socklen_t address_of(struct sockaddr_storage *to, int family, int port, bool any)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;

	memset(to, 0, sizeof(*to));
	to->ss_family = family;
	if (family == AF_INET) {
		v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		v4->sin_port = htons(port);
		return sizeof(*v4);
	}
	v6->sin6_addr = any ? in6addr_any : in6addr_loopback;
	v6->sin6_port = htons(port);
	return sizeof(*v6);
}

static int port_of(int fd)
{
	struct sockaddr_storage addr;
	socklen_t len = sizeof(addr);

	check(getsockname(fd, (struct sockaddr *)&addr, &len), "getsockname");
	if (addr.ss_family == AF_INET)
		return ntohs(((struct sockaddr_in *)&addr)->sin_port);
	return ntohs(((struct sockaddr_in6 *)&addr)->sin6_port);
}

static int bound(int family, bool any)
{
	int fd = check(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	struct sockaddr_storage addr;
	socklen_t len = address_of(&addr, family, 0, any);

	check(bind(fd, (struct sockaddr *)&addr, len), "bind");
	return fd;
}

static int accept_one(int listener, enum how how)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(peer);

	if (how == ACCEPT_ADDRESS)
		return check(accept(listener, (struct sockaddr *)&peer, &len), "accept");
	return check(accept4(listener, NULL, NULL, SOCK_CLOEXEC), "accept4");
}

static void read_from_client(int fd, int bytes)
{
	static char buf[PAYLOAD];
	ssize_t n;

	for (; bytes > 0; bytes -= n) {
		n = check(read(fd, buf, bytes), "read");
		if (n == 0)
			die("the client has closed");
	}
}

static void name_peer(int fd)
{
	struct sockaddr_storage peer;
	socklen_t len = sizeof(peer);

	check(getpeername(fd, (struct sockaddr *)&peer, &len), "getpeername");
}

static void serve_one(int listener, enum how how)
{
	int fd = accept_one(listener, how);

	read_from_client(fd, hows[how].bytes);
	if (how == ACCEPT_NULL_PEER)
		name_peer(fd);
	if (how == ACCEPT_NULL_IO)
		check(write(fd, "!", 1), "write");
	close(fd);
}

static int connect_to(int family, int port)
{
	int fd = check(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0), "socket");
	struct sockaddr_storage addr;
	socklen_t len = address_of(&addr, family, port, false);

	if (connect(fd, (struct sockaddr *)&addr, len) < 0) {
		close(fd);
		return -errno;
	}
	return fd;
}

static int connect_times(int n, int port)
{
	int established = 0, fd;

	while (n-- > 0) {
		fd = connect_to(AF_INET, port);
		if (fd < 0)
			continue;
		established++;
		close(fd);
	}
	return established;
}

static void serve(const struct server *s, const int channels[CHANNELS], int self, int listener)
{
	int held[HELD_CONNECTIONS], holds = 0, answer;
	struct command c;

	while (read(channels[self], &c, sizeof(c)) == sizeof(c)) {
		answer = c.n;
		switch (c.op) {
		case OP_LISTEN:
			listener = bound(s->family, s->family == AF_INET6);
			check(listen(listener, 64), "listen");
			answer = port_of(listener);
			break;
		case OP_ACCEPT:
			for (int i = 0; i < c.n; i++)
				serve_one(listener, s->how);
			break;
		case OP_HOLD:
			while (holds < c.n)
				held[holds++] = accept_one(listener, s->how);
			break;
		case OP_USE:
			for (int i = 0; i < holds; i++) {
				read_from_client(held[i], PAYLOAD);
				name_peer(held[i]);
			}
			break;
		case OP_REPLY:
			for (int i = 0; i < c.n; i++) {
				read_from_client(held[i], QUESTION);
				check(write(held[i], "!", 1), "write");
			}
			break;
		case OP_DROP:
			while (holds > 0)
				close(held[--holds]);
			break;
		case OP_CONNECT:
			answer = connect_times(c.n, c.port);
			break;
		case OP_FORK:
			answer = check(fork(), "fork");
			if (answer == 0) {
				serve(s, channels, 1, listener);
				_exit(0);
			}
			break;
		case OP_EXIT:
			_exit(c.n);
		}
		check(write(channels[self], &answer, sizeof(answer)), "write");
	}
}

/* What the client has open is none of a server's connections. */
static void close_others(const int keep[CHANNELS])
{
	for (int fd = 3; fd < 256; fd++)
		if (fd != keep[0] && fd != keep[1])
			close(fd);
}

static struct server spawn(int family, enum how how)
{
	struct server s = { .family = family, .how = how };
	int theirs[CHANNELS], pair[2];

	for (int i = 0; i < CHANNELS; i++) {
		check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), "socketpair");
		s.channels[i] = pair[0];
		theirs[i] = pair[1];
	}
	s.pid = check(fork(), "fork");
	if (s.pid == 0) {
		close_others(theirs);
		serve(&s, theirs, 0, -1);
		_exit(0);
	}
	for (int i = 0; i < CHANNELS; i++)
		close(theirs[i]);
	return s;
}

/* ---- the director ---- */

static void tell(const struct server *s, int channel, int op, int n, int port)
{
	struct command c = { op, n, port };

	check(write(s->channels[channel], &c, sizeof(c)), "telling a server");
}

static int answer_of(const struct server *s, int channel)
{
	int answer;

	if (read(s->channels[channel], &answer, sizeof(answer)) != sizeof(answer))
		die("a server is gone");
	return answer;
}

static int ask(const struct server *s, int op, int n, int port)
{
	tell(s, 0, op, n, port);
	return answer_of(s, 0);
}

static int run(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

static int run(const char *fmt, ...)
{
	char command[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(command, sizeof(command), fmt, args);
	va_end(args);
	return system(command);
}

static void must_run(const char *command)
{
	if (run("%s", command) != 0) {
		fprintf(stderr, "traffic: failed: %s\n", command);
		_exit(1);
	}
}

static void declare(const struct server *s, const char *phase)
{
	char command[64];

	snprintf(command, sizeof(command), "phasewatch declare %s --quiet --pid %d", phase, s->pid);
	must_run(command);
}

static void start_daemon(void)
{
	struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };

	daemon_pid = check(fork(), "fork");
	if (daemon_pid == 0) {
		int log = check(open("daemon.log", O_WRONLY | O_CREAT | O_APPEND, 0644), "log");

		dup2(log, 1);
		dup2(log, 2);
		execlp("phasewatch", "phasewatch", "run", "--listen", "", NULL);
		die("phasewatch");
	}
	for (int i = 0; run("phasewatch ps >/dev/null 2>&1") != 0; i++) {
		if (i == DEADLINE_S * 100 || waitpid(daemon_pid, NULL, WNOHANG) != 0) {
			fprintf(stderr, "traffic: the daemon does not answer\n");
			_exit(1);
		}
		nanosleep(&pause, NULL);
	}
}

static void stop_daemon(int sig)
{
	kill(daemon_pid, sig);
	check(waitpid(daemon_pid, NULL, 0), "waitpid");
}

static void send_bytes(int fd, int bytes)
{
	static const char zeros[PAYLOAD];
	ssize_t n;

	for (; bytes > 0; bytes -= n)
		n = check(write(fd, zeros, bytes), "write");
}

/* Until the end of file that tells that the server has closed it. */
static void finish_client(int fd)
{
	char byte;

	while (check(read(fd, &byte, 1), "waiting for the server's close") > 0)
		;
	close(fd);
}

/* Prints the ports that they came from, as a JSON list. */
static void connections(const struct server *s, int channel, int family, int n)
{
	int fd;

	tell(s, channel, OP_ACCEPT, n, 0);
	fputc('[', facts);
	for (int i = 0; i < n; i++) {
		fd = check(connect_to(family, s->port), "connect");
		fprintf(facts, "%s%d", i ? "," : "", port_of(fd));
		send_bytes(fd, hows[s->how].bytes);
		finish_client(fd);
	}
	fputc(']', facts);
	answer_of(s, channel);
}

static void fact_open(const char *kind, const char *name, const struct server *s)
{
	fprintf(facts, "{\"kind\":\"%s\",\"name\":\"%s\",\"how\":\"%s\",\"subject\":%d,\"port\":%d",
		kind, name, hows[s->how].name, s->pid, s->port);
}

static void fact_close(void)
{
	fputs("}\n", facts);
}

/* ---- what is tried ---- */

static const struct variant {
	const char *name;
	int family;
	int client_family;
	enum how how;
} variants[] = {
	{ "accept(address), IPv4", AF_INET, AF_INET, ACCEPT_ADDRESS },
	{ "accept(address), IPv6", AF_INET6, AF_INET6, ACCEPT_ADDRESS },
	{ "accept(address), IPv4 on IPv6", AF_INET6, AF_INET, ACCEPT_ADDRESS },
	{ "accept4(NULL), read and write", AF_INET, AF_INET, ACCEPT_NULL_IO },
	{ "accept4(NULL), read and write, IPv6", AF_INET6, AF_INET6, ACCEPT_NULL_IO },
	{ "accept4(NULL), read, getpeername", AF_INET, AF_INET, ACCEPT_NULL_PEER },
	{ "accept4(NULL), only closed", AF_INET, AF_INET, ACCEPT_NULL_SILENT },
};

#define VARIANTS (sizeof(variants) / sizeof(variants[0]))

static void try_accepts(struct server *s, const struct variant *v, const char *listener)
{
	declare(s, "ACTIVE");
	if (!s->port)
		s->port = ask(s, OP_LISTEN, 0, 0);
	fact_open("accept", v->name, s);
	fprintf(facts, ",\"listener\":\"%s\",\"address\":\"%s\",\"active\":", listener,
		v->client_family == AF_INET ? "127.0.0.1" : "::1");
	connections(s, 0, v->client_family, ACTIVE_CONNECTIONS);
	declare(s, "DRAIN");
	fputs(",\"drain\":", facts);
	connections(s, 0, v->client_family, DRAIN_CONNECTIONS);
	fact_close();
}

static void nothing(int sig)
{
	(void)sig;
}

static void rename_to(const char *comm)
{
	check(prctl(PR_SET_NAME, comm), "prctl");
}

/*
 * No DRAIN is declared: the signal is that. One means so for a program's name only; before 5.17 the
 * kernel leaves there what a longer name had before.
 */
static void try_signal(const char *name, int sig, const char *comm)
{
	struct server s;

	signal(sig, nothing); /* so that the server goes on, which inherits it, and its name */
	rename_to("a long name it had");
	rename_to(comm);
	s = spawn(AF_INET, ACCEPT_ADDRESS);
	signal(sig, SIG_DFL);
	rename_to("traffic");
	declare(&s, "ACTIVE");
	s.port = ask(&s, OP_LISTEN, 0, 0);
	fact_open("signal", name, &s);
	fprintf(facts, ",\"comm\":\"%s\",\"active\":", comm);
	connections(&s, 0, AF_INET, ACTIVE_CONNECTIONS);
	check(kill(s.pid, sig), "kill");
	fputs(",\"drain\":", facts);
	connections(&s, 0, AF_INET, DRAIN_CONNECTIONS);
	fact_close();
}

static void try_worker(const char *name, bool before)
{
	struct server s = spawn(AF_INET, ACCEPT_ADDRESS);
	int worker = 0;

	s.port = ask(&s, OP_LISTEN, 0, 0);
	if (before)
		worker = ask(&s, OP_FORK, 0, 0);
	declare(&s, "DRAIN");
	if (!before)
		worker = ask(&s, OP_FORK, 0, 0);
	fact_open("worker", name, &s);
	fprintf(facts, ",\"worker\":%d,\"drain\":", worker);
	connections(&s, 1, AF_INET, DRAIN_CONNECTIONS);
	fact_close();
}

/* Connections that the server accepts and keeps open. */
static void hold(const struct server *s, int fds[HELD_CONNECTIONS], int n)
{
	tell(s, 0, OP_HOLD, n, 0);
	for (int i = 0; i < n; i++)
		fds[i] = check(connect_to(s->family, s->port), "connect");
	answer_of(s, 0);
}

static void snapshot(const char *name)
{
	if (run("phasewatch ps -o json >ps-%s.json", name) != 0 ||
		run("phasewatch events -o json >events-%s.jsonl", name) != 0)
		die("phasewatch ps or events");
}

static void try_older_connections(void)
{
	struct server s = spawn(AF_INET, ACCEPT_ADDRESS);
	int fds[HELD_CONNECTIONS];

	s.port = ask(&s, OP_LISTEN, 0, 0);
	hold(&s, fds, HELD_CONNECTIONS);
	declare(&s, "DRAIN");
	snapshot("held");
	tell(&s, 0, OP_USE, 0, 0);
	for (int i = 0; i < HELD_CONNECTIONS; i++)
		send_bytes(fds[i], PAYLOAD);
	answer_of(&s, 0);
	ask(&s, OP_DROP, 0, 0);
	for (int i = 0; i < HELD_CONNECTIONS; i++)
		finish_client(fds[i]);
	fact_open("held", "connections older than the declaration", &s);
	fprintf(facts, ",\"connections\":%d", HELD_CONNECTIONS);
	fact_close();
}

/* They reached the accept queue before the declaration, so they are no misrouting. */
static void try_queued(const char *name, enum how how)
{
	struct server s = spawn(AF_INET, how);
	int fds[QUEUED_CONNECTIONS];

	s.port = ask(&s, OP_LISTEN, 0, 0);
	for (int i = 0; i < QUEUED_CONNECTIONS; i++)
		fds[i] = check(connect_to(AF_INET, s.port), "connect");
	declare(&s, "DRAIN");
	tell(&s, 0, OP_ACCEPT, QUEUED_CONNECTIONS, 0);
	for (int i = 0; i < QUEUED_CONNECTIONS; i++) {
		send_bytes(fds[i], hows[how].bytes);
		finish_client(fds[i]);
	}
	answer_of(&s, 0);
	fact_open("queued", name, &s);
	fact_close();
}

static void try_connects(void)
{
	int target = bound(AF_INET, false), closed = bound(AF_INET, false);
	struct server s = spawn(AF_INET, ACCEPT_ADDRESS);
	int before, established, refused;

	check(listen(target, 64), "listen");
	declare(&s, "ACTIVE");
	before = ask(&s, OP_CONNECT, ACTIVE_CONNECTIONS, port_of(target));
	declare(&s, "DRAIN");
	established = ask(&s, OP_CONNECT, CONNECTS_ESTABLISHED, port_of(target));
	refused = CONNECTS_REFUSED - ask(&s, OP_CONNECT, CONNECTS_REFUSED, port_of(closed));
	fact_open("connect", "connect", &s);
	fprintf(facts,
		",\"active\":%d,\"established\":%d,\"refused\":%d,\"target\":%d,\"closed\":%d",
		before, established, refused, port_of(target), port_of(closed));
	fact_close();
	close(target);
	close(closed);
}

static void try_exit(const char *name, int sig, int n)
{
	struct server s = spawn(AF_INET, ACCEPT_ADDRESS);
	int fds[HELD_CONNECTIONS], status;

	s.port = ask(&s, OP_LISTEN, 0, 0);
	declare(&s, "ACTIVE");
	hold(&s, fds, n);
	declare(&s, "DRAIN");
	if (sig)
		kill(s.pid, sig);
	else
		tell(&s, 0, OP_EXIT, EXIT_CODE, 0);
	check(waitpid(s.pid, &status, 0), "waitpid");
	for (int i = 0; i < n; i++)
		close(fds[i]);
	fact_open("exit", name, &s);
	if (WIFEXITED(status))
		fprintf(facts, ",\"code\":%d", WEXITSTATUS(status));
	else
		fprintf(facts, ",\"signal\":%d", WTERMSIG(status));
	fprintf(facts, ",\"connections\":%d", n);
	fact_close();
}

/* Waits for what the server did to the connection; 0 is its end. */
static int end_of(int fd)
{
	char byte;
	ssize_t n;

	while ((n = read(fd, &byte, 1)) > 0)
		;
	return n < 0 ? errno : 0;
}

/*
 * A whole drain: late requests, connections cut off, a queue that goes with its listener, questions
 * that come after the close, connects where nobody listens any more.
 */
static void try_drain(const char *name, const char *short_name, int family)
{
	struct server s = spawn(family, ACCEPT_ADDRESS);
	int held[HELD_CONNECTIONS], queued[QUEUED_CONNECTIONS], resets = 0, refused = 0;

	s.port = ask(&s, OP_LISTEN, 0, 0);
	declare(&s, "ACTIVE");
	hold(&s, held, HELD_CONNECTIONS);
	for (int i = 0; i < QUEUED_CONNECTIONS; i++)
		queued[i] = check(connect_to(family, s.port), "connect");
	declare(&s, "DRAIN");
	tell(&s, 0, OP_REPLY, LATE_REQUESTS, 0);
	for (int i = 0; i < LATE_REQUESTS; i++)
		send_bytes(held[i], QUESTION);
	answer_of(&s, 0);
	if (run("phasewatch ps -o json >ps-%s.json", short_name) != 0)
		die("phasewatch ps");
	tell(&s, 0, OP_EXIT, 0, 0);
	check(waitpid(s.pid, NULL, 0), "waitpid");
	for (int i = 0; i < QUEUED_CONNECTIONS; i++)
		resets += end_of(queued[i]) == ECONNRESET;
	for (int i = 0; i < HELD_CONNECTIONS; i++) {
		if (end_of(held[i]) != 0)
			die("the end of a held connection");
		send_bytes(held[i], QUESTION);
	}
	for (int i = 0; i < CONNECTS_REFUSED; i++)
		refused += connect_to(family, s.port) == -ECONNREFUSED;
	fact_open("drain", name, &s);
	fprintf(facts,
		",\"ps\":\"%s\",\"held\":%d,\"late\":%d,\"queued\":%d,\"resets\":%d,\"refused\":%d",
		short_name, HELD_CONNECTIONS, LATE_REQUESTS, QUEUED_CONNECTIONS, resets, refused);
	fact_close();
}

static void try_daemon_restart(void)
{
	struct server s = spawn(AF_INET, ACCEPT_ADDRESS);

	declare(&s, "DRAIN");
	s.port = ask(&s, OP_LISTEN, 0, 0);
	stop_daemon(SIGKILL);
	fact_open("restart", "while the daemon is down", &s);
	fputs(",\"drain\":", facts);
	connections(&s, 0, AF_INET, DRAIN_CONNECTIONS);
	fact_close();
	start_daemon();
	snapshot("restart");
}

/* The kernel frees programs a grace period after their last user is gone. */
static void try_unload(void)
{
	static const char list[] = "{ bpftool prog list; bpftool map list; } 2>&1 | grep pw_";
	struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };

	stop_daemon(SIGTERM);
	must_run("phasewatch unload");
	for (int i = 0; i < DEADLINE_S * 100 && run("%s >/dev/null", list) == 0; i++)
		nanosleep(&pause, NULL);
	run("{ %s; ls /sys/fs/bpf | grep phasewatch; } >left.txt", list);
	fputs("{\"kind\":\"unload\",\"name\":\"unload\"}\n", facts);
}

int main(int argc, char **argv)
{
	struct server older[VARIANTS], server;

	if (argc != 2 || chdir(argv[1]) < 0)
		die("usage: traffic DIRECTORY");
	facts = fopen("facts.jsonl", "we");
	if (!facts)
		die("facts.jsonl");
	signal(SIGPIPE, SIG_IGN);
	setlinebuf(facts);

	for (size_t i = 0; i < VARIANTS; i++) {
		older[i] = spawn(variants[i].family, variants[i].how);
		older[i].port = ask(&older[i], OP_LISTEN, 0, 0);
	}
	start_daemon();
	for (size_t i = 0; i < VARIANTS; i++) {
		try_accepts(&older[i], &variants[i], "older than the daemon");
		server = spawn(variants[i].family, variants[i].how);
		server.port = ask(&server, OP_LISTEN, 0, 0);
		try_accepts(&server, &variants[i], "older than the declaration");
		server = spawn(variants[i].family, variants[i].how);
		try_accepts(&server, &variants[i], "made by the subject");
	}
	try_signal("SIGTERM", SIGTERM, "traffic");
	try_signal("SIGUSR1", SIGUSR1, "haproxy");
	try_worker("forked before the declaration", true);
	try_worker("forked after the declaration", false);
	try_queued("accept(address)", ACCEPT_ADDRESS);
	try_queued("accept4(NULL), read and write", ACCEPT_NULL_IO);
	try_queued("accept4(NULL), read, getpeername", ACCEPT_NULL_PEER);
	try_older_connections();
	try_connects();
	try_exit("exit code, no connection open", 0, 0);
	try_exit("exit code, connections open", 0, HELD_CONNECTIONS);
	try_exit("SIGKILL, connections open", SIGKILL, HELD_CONNECTIONS);
	try_drain("a drain, IPv4", "drain4", AF_INET);
	try_drain("a drain, IPv6", "drain6", AF_INET6);
	snapshot("end");
	try_daemon_restart();
	try_unload();
	fputs("{\"kind\":\"done\"}\n", facts);
	return 0;
}
