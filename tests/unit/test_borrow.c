// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "borrow.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

struct seen {
	int n;
	struct {
		int fd, state;
		ino_t ino;
		bool is_open;
	} sockets[8];
};

static void see(int fd, int tcp_state, void *arg)
{
	struct seen *seen = arg;
	struct stat st = { 0 };

	if (seen->n < (int)ARRAY_SIZE(seen->sockets)) {
		seen->sockets[seen->n].is_open = fstat(fd, &st) == 0;
		seen->sockets[seen->n].fd = fd;
		seen->sockets[seen->n].state = tcp_state;
		seen->sockets[seen->n].ino = st.st_ino;
	}
	seen->n++;
}

static ino_t ino_of(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return st.st_ino;
}

/* The state in which that socket was handed out; -1: it was not. */
static int state_of(const struct seen *seen, ino_t ino)
{
	for (int i = 0; i < seen->n; i++)
		if (seen->sockets[i].ino == ino)
			return seen->sockets[i].state;
	return -1;
}

static int tcp(void)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	return fd;
}

static int tcp_listener(struct sockaddr_in *addr)
{
	socklen_t len = sizeof(*addr);
	int fd = tcp();

	*addr = (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	assert_int_equal(bind(fd, (struct sockaddr *)addr, len), 0);
	assert_int_equal(listen(fd, 8), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)addr, &len), 0);
	return fd;
}

/* A child that has what we have open now. It ends with us, should a check fail meanwhile. */
static pid_t fork_holder(void)
{
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void end(pid_t pid)
{
	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

enum {
	LISTENER,
	CONNECTED,
	ACCEPTED,
	UNCONNECTED,
	UDP,
	UNIX,
	PIPE_OUT,
	PIPE_IN,
	ALL,
};

static void test_what_is_handed_out(void **state)
{
	struct seen seen = { 0 };
	struct sockaddr_in addr;
	ino_t inos[ALL];
	int fds[ALL];
	pid_t pid;

	fds[LISTENER] = tcp_listener(&addr);
	fds[CONNECTED] = tcp();
	assert_int_equal(connect(fds[CONNECTED], (struct sockaddr *)&addr, sizeof(addr)), 0);
	fds[ACCEPTED] = accept(fds[LISTENER], NULL, NULL);
	assert_true(fds[ACCEPTED] >= 0);
	fds[UNCONNECTED] = tcp();
	fds[UDP] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	fds[UNIX] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_true(fds[UDP] >= 0 && fds[UNIX] >= 0);
	assert_int_equal(pipe(fds + PIPE_OUT), 0);
	pid = fork_holder();
	for (int i = 0; i < ALL; i++) {
		inos[i] = ino_of(fds[i]);
		close(fds[i]);
	}
	borrow_tcp_sockets(pid, see, &seen);
	end(pid);
	assert_int_equal(seen.n, 3);
	assert_int_equal(state_of(&seen, inos[LISTENER]), TCP_LISTEN);
	assert_int_equal(state_of(&seen, inos[CONNECTED]), TCP_ESTABLISHED);
	assert_int_equal(state_of(&seen, inos[ACCEPTED]), TCP_ESTABLISHED);
}

/* While it is looked at, the duplicate is open; it must not add up. */
static void test_duplicates_are_closed(void **state)
{
	struct seen seen = { 0 };
	struct sockaddr_in addr;
	int fd = tcp_listener(&addr);
	pid_t pid = fork_holder();

	close(fd);
	borrow_tcp_sockets(pid, see, &seen);
	end(pid);
	assert_int_equal(seen.n, 1);
	assert_true(seen.sockets[0].is_open);
	assert_int_equal(fcntl(seen.sockets[0].fd, F_GETFD), -1);
	assert_int_equal(errno, EBADF);
}

static void test_own_sockets(void **state)
{
	struct seen seen = { 0 };
	struct sockaddr_in addr;
	int fd = tcp_listener(&addr);

	borrow_tcp_sockets(getpid(), see, &seen);
	assert_int_equal(state_of(&seen, ino_of(fd)), TCP_LISTEN);
	assert_true(seen.sockets[0].fd != fd);
	close(fd);
}

static void test_process_that_is_gone(void **state)
{
	struct seen seen = { 0 };
	struct sockaddr_in addr;
	int fd = tcp_listener(&addr);
	pid_t pid = fork_holder();
	siginfo_t info;

	assert_int_equal(kill(pid, SIGKILL), 0);
	assert_int_equal(waitid(P_PID, pid, &info, WEXITED | WNOWAIT), 0);
	/* a zombie has no files any more */
	borrow_tcp_sockets(pid, see, &seen);
	assert_int_equal(seen.n, 0);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	borrow_tcp_sockets(pid, see, &seen);
	assert_int_equal(seen.n, 0);
	close(fd);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_handed_out),
		cmocka_unit_test(test_duplicates_are_closed),
		cmocka_unit_test(test_own_sockets),
		cmocka_unit_test(test_process_that_is_gone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
