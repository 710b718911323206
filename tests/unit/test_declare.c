// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "declare.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define NOBODY 65534

static bool may(pid_t peer, uid_t uid, pid_t pid)
{
	return declare_may(&(struct declarer){ .pid = peer, .uid = uid }, pid);
}

struct ids {
	uid_t real, effective;
};

static void become(struct ids ids)
{
	if (geteuid() == 0 && (setresgid(ids.real, ids.real, ids.real) < 0 ||
				      setresuid(ids.real, ids.effective, 0) < 0))
		_exit(1);
}

/* Parent, child, grandchild as these users; each stays until it is ended. */
static void start_family(const struct ids ids[3], pid_t pids[3])
{
	pid_t pid, test = getpid();
	int told[2];

	assert_int_equal(pipe2(told, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		for (int i = 0; i < 3; i++) {
			pid = getpid();
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			if (i == 0 && getppid() != test)
				_exit(1);
			/* the next one is forked while it is still allowed to become anybody */
			if (i < 2 && fork() == 0)
				continue;
			become(ids[i]);
			prctl(PR_SET_PDEATHSIG, SIGKILL); /* is cleared by that */
			if (write(told[1], &(pid_t[]){ i, pid }, 2 * sizeof(pid)) < 0)
				_exit(1);
			for (;;)
				pause();
		}
	}
	for (int i = 0; i < 3; i++) {
		pid_t one[2];

		assert_int_equal(read(told[0], one, sizeof(one)), sizeof(one));
		pids[one[0]] = one[1];
	}
	close(told[0]);
	close(told[1]);
}

static void end_family(const pid_t pids[3])
{
	for (int i = 2; i >= 0; i--)
		kill(pids[i], SIGKILL);
	assert_int_equal(waitpid(pids[0], NULL, 0), pids[0]);
}

static void test_may_declare_oneself_and_descendants(void **state)
{
	uid_t uid = geteuid() ? geteuid() : NOBODY;
	const struct ids ids[3] = { { uid, uid }, { uid, uid }, { uid, uid } };
	pid_t family[3], others[3];

	start_family(ids, family);
	start_family(ids, others);
	for (int peer = 0; peer < 3; peer++)
		for (int target = 0; target < 3; target++) {
			/* downwards any distance, upwards to the parent of the same user */
			assert_int_equal(may(family[peer], uid, family[target]),
				target >= peer - 1);
			assert_false(may(family[peer], uid, others[target]));
		}
	end_family(family);
	end_family(others);
}

static void test_may_declare_a_parent_of_the_same_user_only(void **state)
{
	static const struct ids of_root[3] = { { 0, 0 }, { NOBODY, NOBODY }, { NOBODY, NOBODY } };
	/* a set-user-ID program: the user started it, and may not speak for it */
	static const struct ids privileged[3] = { { NOBODY, 0 }, { NOBODY, NOBODY } };
	static const struct ids unprivileged[3] = { { 0, NOBODY }, { NOBODY, NOBODY } };
	static const struct ids another[3] = { { 1000, 1000 }, { NOBODY, NOBODY } };
	const struct ids *all[] = { of_root, privileged, unprivileged, another };

	if (geteuid() != 0)
		skip();
	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		pid_t family[3];

		start_family(all[i], family);
		assert_false(may(family[1], NOBODY, family[0]));
		assert_true(may(family[1], NOBODY, family[2]));
		assert_true(may(family[1], 0, family[0])); /* root, whoever it is */
		end_family(family);
	}
}

static void test_may_not_declare_nobody(void **state)
{
	assert_false(may(getpid(), NOBODY, 4194304));
	assert_false(may(4194304, NOBODY, getpid()));
	assert_false(may(getpid(), NOBODY, 1));
	assert_false(may(1, NOBODY, 0));
}

/* Who connected is gone: nobody speaks for it. */
static void test_may_declare_nothing_when_gone(void **state)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	assert_int_equal(waitid(P_PID, pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT), 0);
	assert_false(may(pid, NOBODY, getpid())); /* a zombie */
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_false(may(pid, NOBODY, getpid()));
}

/*
 * Who connected handed the connection on and ended, and its pid came round: the credentials of the
 * connection are not those of the process that has it now.
 */
static void test_may_not_declare_with_a_reused_pid(void **state)
{
	const uid_t other = geteuid() == NOBODY ? NOBODY - 1 : NOBODY;
	static const struct ids privileged[3] = { { NOBODY, 0 }, { NOBODY, 0 }, { NOBODY, 0 } };
	pid_t family[3];

	assert_false(may(getpid(), other, getpid()));
	assert_false(may(getppid(), other, getpid()));
	if (geteuid() != 0)
		return;
	start_family(privileged, family);
	for (int i = 0; i < 3; i++)
		assert_false(may(family[i], NOBODY, family[i]));
	end_family(family);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_may_declare_oneself_and_descendants),
		cmocka_unit_test(test_may_declare_a_parent_of_the_same_user_only),
		cmocka_unit_test(test_may_not_declare_nobody),
		cmocka_unit_test(test_may_declare_nothing_when_gone),
		cmocka_unit_test(test_may_not_declare_with_a_reused_pid),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
