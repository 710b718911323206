// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "holders.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define EACH 5
#define ALL 13

static int new_socket(void)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	return fd;
}

static int set_up(void **state)
{
	return holders_new((struct holders **)state, EACH, ALL);
}

static int tear_down(void **state)
{
	holders_free(*state);
	return 0;
}

static void test_each_and_all(void **state)
{
	static const struct {
		uid_t uid;
		int err;
	} steps[] = { { 7, 0 }, { 7, 0 }, { 7, 0 }, { 7, 0 }, { 7, 0 }, { 7, -EUSERS }, { -1, 0 },
		{ -1, 0 }, { -1, 0 }, { -1, 0 }, { -1, 0 }, { -1, -EUSERS }, { 8, 0 }, { 8, 0 },
		{ 8, 0 }, { 8, -EBUSY }, { 9, -EBUSY }, { 7, -EUSERS } };
	int fds[ARRAY_SIZE(steps)];

	for (size_t i = 0; i < ARRAY_SIZE(steps); i++) {
		fds[i] = new_socket();
		assert_int_equal(holders_add(*state, fds[i], steps[i].uid), steps[i].err);
	}
	/* none that was refused counts */
	close(fds[0]);
	assert_int_equal(holders_add(*state, fds[5], 7), 0);
	assert_int_equal(holders_add(*state, fds[15], 8), -EBUSY);
	for (size_t i = 1; i < ARRAY_SIZE(steps); i++)
		close(fds[i]);
}

/* Its file descriptor is another's by now: a connection, a file, or a user's who is not limited. */
static void test_closed(void **state)
{
	int fds[EACH], other;

	for (int i = 0; i < EACH; i++) {
		fds[i] = new_socket();
		assert_int_equal(holders_add(*state, fds[i], 7), 0);
	}
	for (int i = 0; i < EACH; i++) {
		other = i % 2 ? new_socket() : open("/dev/null", O_RDONLY | O_CLOEXEC);
		assert_true(other >= 0);
		assert_int_equal(dup2(other, fds[i]), fds[i]);
		close(other);
		other = new_socket();
		assert_int_equal(holders_add(*state, other, 7), 0);
		assert_int_equal(holders_add(*state, fds[i], 7), -EUSERS);
		close(fds[i]);
		fds[i] = other;
	}
	for (int i = 0; i < EACH; i++)
		close(fds[i]);
}

static void test_comings_and_goings(void **state)
{
	for (int i = 0; i < 1001; i++) {
		int fds[EACH], many = 1 + i % EACH;

		for (int k = 0; k < many; k++) {
			fds[k] = new_socket();
			assert_int_equal(holders_add(*state, fds[k], i % 3), 0);
		}
		for (int k = 0; k < many; k++)
			close(fds[k]);
	}
}

static void test_no_file_descriptor(void **state)
{
	assert_int_equal(holders_add(*state, -1, 7), -EBADF);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_each_and_all),
		TEST(test_closed),
		TEST(test_comings_and_goings),
		TEST(test_no_file_descriptor),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
