// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <jansson.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <bpf/bpf.h>

#include "clock.h"
#include "declare.h"
#include "opts.h"
#include "proc.h"
#include "maps.h"
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

/* ---- the door, with real maps and no programs: subjects are those of an earlier daemon ---- */

#define RATE 1 /* a second, and five at once: the tests take no second */
#define SUBJECTS 3
#define ADMINS 4711

struct fixture {
	struct kernel k;
	struct pw_control control;
	struct proc_names *names;
	struct subjects *subjects;
	struct audit *audit;
	struct declare *declare;
	char dir[64], path[96];
	pid_t children[8];
	size_t n_children;
	int err;
};

static void on_end(const struct subject *s, bool nobody_left, void *arg)
{
}

static void on_left(const struct subject *s, void *arg)
{
}

static void on_phase(const struct subject *s, const struct event_phase *p, void *arg)
{
	struct fixture *f = arg;

	declare_moved(f->declare, s, p);
}

static void on_violation(const struct subject *s, const struct event_violation *v, void *arg)
{
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct audit_options log = { f->path, 0, 1 };
	struct declare_options o = { NULL, ADMINS, RATE, SUBJECTS };
	char why[256];

	make_maps(&f->k, &f->control);
	strcpy(f->dir, "/tmp/phasewatch-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->path, sizeof(f->path), "%s/audit.jsonl", f->dir);
	assert_int_equal(audit_new(&f->audit, &log, "n1", why, sizeof(why)), 0);
	o.audit = f->audit;
	assert_int_equal(proc_names_new(&f->names), 0);
	assert_int_equal(subjects_new(&f->subjects, &f->k, f->names, 2, PW_POD_LOGS,
				 &(struct subjects_listener){ on_phase, on_end, on_violation, on_left, f }),
		0);
	assert_int_equal(declare_new(&f->declare, f->subjects, &o), 0);
	f->err = -1;
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;

	declare_free(f->declare);
	subjects_free(f->subjects);
	proc_names_free(f->names);
	audit_free(f->audit);
	for (size_t i = 0; i < f->n_children; i++) {
		kill(f->children[i], SIGKILL);
		waitpid(f->children[i], NULL, 0);
	}
	free_maps(&f->k);
	unlink(f->path);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static struct fixture *need_maps(void **state)
{
	struct fixture *f = *state;

	if (f->k.phases < 0)
		skip();
	return f;
}

static pid_t start_child(struct fixture *f, uid_t uid)
{
	pid_t parent = getpid(), pid = fork();
	struct proc_stat s;

	assert_true(pid >= 0);
	if (pid == 0) {
		if (geteuid() == 0)
			become((struct ids){ uid, uid });
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		while (getppid() == parent)
			pause();
		_exit(1);
	}
	assert_in_range(f->n_children, 0, ARRAY_SIZE(f->children) - 1);
	f->children[f->n_children++] = pid;
	do /* it becomes the user's in its own time */
		assert_int_equal(proc_read(pid, &s), 0);
	while (geteuid() == 0 && s.euid != uid);
	return pid;
}

/* As an earlier daemon left it: ACTIVE of epoch 7. */
static pid_t add_subject(struct fixture *f, uid_t by_uid)
{
	struct pw_declaration d = { .phase = PW_ACTIVE,
		.source = PW_SOURCE_API,
		.epoch = 7,
		.since_ns = 1000,
		.by_uid = by_uid,
		.by_pid = 1 };
	struct pw_stats stats = { .life = 1, .members = 1 };
	pid_t pid = start_child(f, 0);
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS, .id = pid };
	struct pw_member member = { .subject = pid };
	struct proc_stat stat;
	uint32_t tgid = pid;

	assert_int_equal(proc_read(pid, &stat), 0);
	member.start_ns = d.start_ns = stat.start_ns;
	assert_int_equal(bpf_map_update_elem(f->k.members, &tgid, &member, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.stats, &key, &stats, BPF_ANY), 0);
	assert_int_equal(bpf_map_update_elem(f->k.phases, &key, &d, BPF_ANY), 0);
	assert_int_equal(subjects_reconcile(f->subjects), 0);
	return pid;
}

static int declare(struct fixture *f, const struct declarer *who, struct declaration_request r,
	const char *word)
{
	struct declaration_result result;
	char why[WHY_LEN] = "";
	int err;

	err = declare_phase(f->declare, who, &r, &result, why);
	if (word && !strstr(why, word))
		fail_msg("no \"%s\" in: %s", word, why);
	return err;
}

/* By a user who may not: the only question is how it is refused. */
static int declare_init(struct fixture *f, uid_t uid, const char *word)
{
	return declare(f, &(struct declarer){ 1, uid, uid, PW_SOURCE_API },
		(struct declaration_request){ .phase = PW_DRAIN, .pid = 1 }, word);
}

/* All lines of the audit log since the last time, in an array. */
static json_t *audited(struct fixture *f)
{
	FILE *in = fopen(f->path, "re");
	json_t *all = json_array(), *line;

	assert_non_null(in);
	while ((line = json_loadf(in, JSON_REJECT_DUPLICATES | JSON_DISABLE_EOF_CHECK, NULL)))
		json_array_append_new(all, line);
	assert_int_equal(fgetc(in), EOF);
	fclose(in);
	assert_int_equal(truncate(f->path, 0), 0);
	return all;
}

static const char *text_of(const json_t *line, const char *object, const char *key)
{
	const json_t *in = object ? json_object_get(line, object) : line;

	return json_string_value(json_object_get(in, key));
}

static json_int_t number_of(const json_t *line, const char *object, const char *key)
{
	const json_t *in = object ? json_object_get(line, object) : line;

	return json_integer_value(json_object_get(in, key));
}

/* The only line since the last time. */
static json_t *audited_once(struct fixture *f, const char *verdict)
{
	json_t *all = audited(f), *line;

	assert_int_equal(json_array_size(all), 1);
	line = json_incref(json_array_get(all, 0));
	assert_string_equal(text_of(line, NULL, "verdict"), verdict);
	json_decref(all);
	return line;
}

static void listen_to_stderr(struct fixture *f)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/said", f->dir);
	fd = open(path, O_CREAT | O_TRUNC | O_RDWR | O_CLOEXEC, 0600);
	assert_int_equal(unlink(path), 0);
	fflush(stderr);
	f->err = dup(2);
	assert_int_equal(dup2(fd, 2), 2);
	close(fd);
}

/* How many lines were said since. */
static unsigned int said(struct fixture *f)
{
	static char text[1 << 16];
	unsigned int lines = 0;
	ssize_t n;

	fflush(stderr);
	n = pread(2, text, sizeof(text) - 1, 0);
	assert_in_range(n, 0, sizeof(text) - 2);
	assert_int_equal(dup2(f->err, 2), 2);
	close(f->err);
	for (ssize_t i = 0; i < n; i++)
		lines += text[i] == '\n';
	return lines;
}

/* ---- the audit log ---- */

static void test_refusal_is_audited(void **state)
{
	struct fixture *f = need_maps(state);
	pid_t pid = add_subject(f, 0);
	json_t *line;

	assert_int_equal(declare(f, &(struct declarer){ getpid(), NOBODY, 77, PW_SOURCE_SDNOTIFY },
				 (struct declaration_request){
					 .phase = PW_DRAIN, .pid = pid, .reason = "mine \"now\"" },
				 "not yours"),
		-EPERM);
	line = audited_once(f, "refused");
	assert_int_equal(number_of(line, "who", "pid"), getpid());
	assert_int_equal(number_of(line, "who", "uid"), NOBODY);
	assert_int_equal(number_of(line, "who", "gid"), 77);
	/* it is not the user's process that has this pid: of it nothing is told */
	assert_null(text_of(line, "who", "comm"));
	assert_string_equal(text_of(line, "subject", "kind"), "process");
	assert_int_equal(number_of(line, "subject", "id"), pid);
	assert_non_null(text_of(line, "subject", "name"));
	assert_string_equal(text_of(line, NULL, "from"), "ACTIVE");
	assert_string_equal(text_of(line, NULL, "to"), "DRAIN");
	assert_int_equal(number_of(line, NULL, "epoch"), 7);
	assert_string_equal(text_of(line, NULL, "source"), "sdnotify");
	assert_string_equal(text_of(line, NULL, "reason"), "mine \"now\"");
	assert_non_null(strstr(text_of(line, NULL, "why"), "not yours"));
	json_decref(line);
	assert_int_equal(declare_count(f->declare, AUDIT_REFUSED), 1);
}

static void test_declaration_is_audited_once(void **state)
{
	struct fixture *f = need_maps(state);
	const struct declarer root = { getpid(), 0, 0, PW_SOURCE_API };
	pid_t pid = add_subject(f, 0);
	const struct declaration_request r = { .phase = PW_DRAIN, .pid = pid };
	char comm[16];
	json_t *line;

	if (geteuid() != 0)
		skip();
	assert_int_equal(declare(f, &root, r, NULL), 0);
	line = audited_once(f, "accepted");
	assert_string_equal(text_of(line, NULL, "from"), "ACTIVE");
	assert_string_equal(text_of(line, NULL, "to"), "DRAIN");
	assert_int_equal(prctl(PR_GET_NAME, comm), 0);
	assert_string_equal(text_of(line, "who", "comm"), comm);
	assert_null(json_object_get(line, "by"));
	assert_null(json_object_get(line, "why"));
	json_decref(line);

	assert_int_equal(declare(f, &root, r, NULL), 0);
	line = audited_once(f, "unchanged");
	assert_string_equal(text_of(line, NULL, "from"), "DRAIN");
	assert_string_equal(text_of(line, NULL, "to"), "DRAIN");
	json_decref(line);

	/* what subjects_declare() refuses */
	assert_int_equal(
		declare(f, &root, (struct declaration_request){ .phase = PW_ACTIVE, .pid = pid },
			"go back"),
		-ESTALE);
	line = audited_once(f, "refused");
	assert_string_equal(text_of(line, NULL, "from"), "DRAIN");
	assert_string_equal(text_of(line, NULL, "to"), "ACTIVE");
	json_decref(line);
	assert_int_equal(declare(f, &root,
				 (struct declaration_request){ .phase = PW_ACTIVE, .pid = 4194304 },
				 "no process"),
		-ESRCH);
	line = audited_once(f, "refused");
	assert_int_equal(number_of(line, "subject", "id"), 4194304);
	assert_null(text_of(line, "subject", "name"));
	json_decref(line);
	for (int v = 0; v < AUDIT_VERDICTS; v++)
		assert_int_equal(declare_count(f->declare, v), v == AUDIT_REFUSED ? 2 : 1);
}

static void test_cgroups_are_for_admins(void **state)
{
	struct fixture *f = *state;
	const struct declaration_request r = { .phase = PW_DRAIN, .cgroup = "/no/such/cgroup" };
	json_t *line;

	assert_int_equal(declare(f, &(struct declarer){ 1, NOBODY, NOBODY, PW_SOURCE_API }, r,
				 "/no/such/cgroup"),
		-EPERM);
	line = audited_once(f, "refused");
	assert_string_equal(text_of(line, "subject", "kind"), "cgroup");
	assert_string_equal(text_of(line, "subject", "name"), "/no/such/cgroup");
	assert_null(json_object_get(json_object_get(line, "subject"), "id"));
	assert_null(json_object_get(line, "from"));
	json_decref(line);
	assert_int_equal(
		declare(f, &(struct declarer){ 1, NOBODY, ADMINS, PW_SOURCE_API }, r, "no cgroup"),
		-ESRCH);
	json_decref(audited_once(f, "refused"));
}

/* Of a caller in a pid namespace that is not below ours the kernel tells no pid. */
static void test_caller_that_cannot_be_seen(void **state)
{
	struct fixture *f = *state;
	json_t *line;

	assert_int_equal(
		declare(f, &(struct declarer){ 0, NOBODY, NOBODY, PW_SOURCE_API },
			(struct declaration_request){ .phase = PW_DRAIN, .pid = 0 }, "namespace"),
		-EPERM);
	line = audited_once(f, "refused");
	assert_null(json_object_get(json_object_get(line, "who"), "pid"));
	assert_int_equal(number_of(line, "who", "uid"), NOBODY);
	json_decref(line);
}

static void write_to_map(struct fixture *f, pid_t pid, uint32_t phase, uint32_t source)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS, .id = pid };
	struct pw_declaration d;

	assert_int_equal(bpf_map_lookup_elem(f->k.phases, &key, &d), 0);
	d.phase = phase;
	d.source = source;
	d.by_uid = 12;
	d.by_pid = 4194304;
	assert_int_equal(bpf_map_update_elem(f->k.phases, &key, &d, BPF_ANY), 0);
}

/* Whatever source it claims: what did not come through the door is audited behind it. */
static void test_what_was_written_to_the_map(void **state)
{
	struct fixture *f = need_maps(state);
	pid_t pid = add_subject(f, 0);
	json_t *line, *all;

	write_to_map(f, pid, PW_DRAIN, PW_SOURCE_API);
	assert_int_equal(subjects_reconcile(f->subjects), 0);
	line = audited_once(f, "accepted");
	assert_string_equal(text_of(line, NULL, "from"), "ACTIVE");
	assert_string_equal(text_of(line, NULL, "to"), "DRAIN");
	assert_string_equal(text_of(line, NULL, "source"), "api");
	assert_int_equal(number_of(line, "who", "uid"), 12);
	assert_int_equal(number_of(line, "who", "pid"), 4194304);
	assert_null(json_object_get(json_object_get(line, "who"), "gid"));
	json_decref(line);
	assert_int_equal(subjects_reconcile(f->subjects), 0);
	all = audited(f);
	assert_int_equal(json_array_size(all), 0);
	json_decref(all);
	if (geteuid() != 0)
		return;

	/* seen as somebody declares: one line of each */
	write_to_map(f, pid, PW_INIT, PW_SOURCE_MAP);
	assert_int_equal(
		declare(f, &(struct declarer){ getpid(), 0, 0, PW_SOURCE_API },
			(struct declaration_request){ .phase = PW_ACTIVE, .pid = pid }, NULL),
		0);
	all = audited(f);
	assert_int_equal(json_array_size(all), 2);
	line = json_array_get(all, 0);
	assert_string_equal(text_of(line, NULL, "source"), "map");
	assert_string_equal(text_of(line, NULL, "to"), "INIT");
	line = json_array_get(all, 1);
	assert_string_equal(text_of(line, NULL, "source"), "api");
	assert_string_equal(text_of(line, NULL, "from"), "INIT");
	json_decref(all);
}

/* ---- who may ---- */

static void test_admins(void **state)
{
	struct fixture *f = *state;
	const struct declarer no = { 1, NOBODY, NOBODY, PW_SOURCE_API };
	struct declarer yes = no;

	assert_false(declare_is_admin(f->declare, &no));
	yes.gid = ADMINS;
	assert_true(declare_is_admin(f->declare, &yes));
	yes = no;
	yes.uid = 0;
	assert_true(declare_is_admin(f->declare, &yes));
}

/* A connection whose other end is a process of this user with these groups, which then ends. */
static int connection_of(uid_t uid, const gid_t *groups, size_t n, pid_t *pid)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), fd;
	socklen_t len = sizeof(addr);

	assert_int_equal(bind(listener, (struct sockaddr *)&addr, sizeof(sa_family_t)), 0);
	assert_int_equal(listen(listener, 1), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&addr, &len), 0);
	*pid = fork();
	if (*pid == 0) {
		fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (setgroups(n, groups) < 0 || setgid(uid) < 0 || setuid(uid) < 0 ||
			connect(fd, (struct sockaddr *)&addr, len) < 0)
			_exit(1);
		pause();
	}
	fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	assert_true(fd > 0);
	close(listener);
	return fd;
}

static void test_supplementary_groups(void **state)
{
	static gid_t many[1001];
	static const struct {
		gid_t groups[3];
		size_t n;
		bool admin;
	} cases[] = {
		{ { 0 }, 0, false },
		{ { ADMINS }, 1, true },
		{ { ADMINS - 1, 0, ADMINS + 1 }, 3, false },
		{ { 5, 6, ADMINS }, 3, true },
	};
	struct fixture *f = *state;
	struct declarer who = { 1, NOBODY, NOBODY, PW_SOURCE_API };
	pid_t pid;

	if (geteuid() != 0)
		skip();
	for (size_t i = 0; i <= ARRAY_SIZE(cases); i++) {
		bool last = i == ARRAY_SIZE(cases);

		for (size_t g = 0; last && g < ARRAY_SIZE(many); g++)
			many[g] = ADMINS + ARRAY_SIZE(many) - 1 - g;
		who.sock = last ? connection_of(NOBODY, many, ARRAY_SIZE(many), &pid)
				: connection_of(NOBODY, cases[i].groups, cases[i].n, &pid);
		assert_int_equal(declare_is_admin(f->declare, &who), last ? true : cases[i].admin);
		close(who.sock);
		kill(pid, SIGKILL);
		assert_int_equal(waitpid(pid, NULL, 0), pid);
	}
	/* of a datagram nothing is known */
	who.sock = 0;
	assert_false(declare_is_admin(f->declare, &who));
}

/* Even if its pid is that of another process of the user's by now, as `stand_in` plays here. */
static void test_connection_of_somebody_who_has_ended(void **state)
{
	struct fixture *f = *state;
	pid_t stand_in, pid;
	struct declarer who;
	socklen_t len = sizeof(int);
	json_t *line;
	int pidfd;

	if (geteuid() != 0)
		skip();
	stand_in = start_child(f, NOBODY);
	who = (struct declarer){ stand_in, NOBODY, NOBODY, PW_SOURCE_API };
	who.sock = connection_of(NOBODY, NULL, 0, &pid);
	if (getsockopt(who.sock, SOL_SOCKET, 77 /* SO_PEERPIDFD */, &pidfd, &len) < 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		close(who.sock);
		skip(); /* before 6.5 */
	}
	close(pidfd);
	for (int round = 0; round < 2; round++) {
		assert_int_equal(kill(pid, SIGKILL), 0);
		/* not reaped, reaped */
		assert_int_equal(waitid(P_PID, pid, &(siginfo_t){ 0 }, WEXITED | WNOWAIT), 0);
		if (round)
			assert_int_equal(waitpid(pid, NULL, 0), pid);
		assert_int_equal(
			declare(f, &who,
				(struct declaration_request){ .phase = PW_DRAIN, .pid = stand_in },
				"has ended"),
			-EPERM);
		line = audited_once(f, "refused");
		assert_int_equal(number_of(line, "who", "pid"), stand_in);
		assert_null(text_of(line, "who", "comm")); /* is the stand-in's */
		json_decref(line);
	}
	close(who.sock);
}

/* ---- limits ---- */

static void test_rate(void **state)
{
	struct fixture *f = *state;
	json_t *all, *line;

	for (int i = 0; i < 5 * RATE; i++)
		assert_int_equal(declare_init(f, NOBODY, "not yours"), -EPERM);
	for (int i = 0; i < 101; i++)
		assert_int_equal(
			declare_init(f, NOBODY, "limit is 1 a second, 5 at once; try"), -EAGAIN);
	/* that is no other user's, nor root's, nor an admin's affair */
	assert_int_equal(declare_init(f, NOBODY - 1, "not yours"), -EPERM);
	for (int i = 0; i < 101; i++) {
		const struct declaration_request r = { .phase = PW_DRAIN, .pid = 4194304 };

		assert_int_equal(
			declare(f, &(struct declarer){ 1, 0, 0, PW_SOURCE_API }, r, "no process"),
			-ESRCH);
		assert_int_equal(declare(f, &(struct declarer){ 1, NOBODY, ADMINS, PW_SOURCE_API },
					 r, "no process"),
			-ESRCH);
	}
	json_decref(audited(f));
	/* what was too often is told in sum, once */
	declare_tick(f->declare);
	declare_tick(f->declare);
	all = audited(f);
	assert_int_equal(json_array_size(all), 1);
	line = json_array_get(all, 0);
	assert_string_equal(text_of(line, NULL, "verdict"), "refused");
	assert_int_equal(number_of(line, NULL, "count"), 101);
	assert_int_equal(number_of(line, "who", "uid"), NOBODY);
	assert_null(json_object_get(line, "subject"));
	json_decref(all);
	assert_int_equal(declare_count(f->declare, AUDIT_REFUSED), 5 + 101 + 1 + 202);
}

/* After a while there is one more. */
static void test_rate_comes_back(void **state)
{
	struct fixture *f = *state;
	struct timespec wait = { .tv_nsec = 5000000 };
	int refused = 0, err;

	for (int i = 0; i < 5 * RATE; i++)
		assert_int_equal(declare_init(f, NOBODY, "not yours"), -EPERM);
	while ((err = declare_init(f, NOBODY, NULL)) == -EAGAIN && refused++ < 1000)
		nanosleep(&wait, NULL);
	assert_int_equal(err, -EPERM);
	assert_in_range(refused, 1, 300);
	assert_int_equal(declare_init(f, NOBODY, NULL), -EAGAIN);
}

/* Generations of processes; the last one's pid. They end with the first. */
static pid_t start_generations(struct fixture *f, int n)
{
	pid_t parent, last;
	int told[2];

	assert_int_equal(pipe2(told, O_CLOEXEC), 0);
	parent = getpid();
	last = fork();
	assert_true(last >= 0);
	f->children[f->n_children++] = last;
	while (last == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		parent = getpid();
		if (--n > 0 && fork() == 0)
			continue;
		if (n == 0 && write(told[1], &parent, sizeof(parent)) < 0)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(told[0], &last, sizeof(last)), sizeof(last));
	close(told[0]);
	close(told[1]);
	return last;
}

/* What takes long counts for several: here, to find that a process is no descendant. */
static void test_slow_declarations(void **state)
{
	struct fixture *f = *state;
	const struct declare_options o = { f->audit, NO_GID, 1000, SUBJECTS };
	const struct declarer who = { start_child(f, NOBODY), NOBODY, NOBODY, PW_SOURCE_API };
	struct declaration_request r = { .phase = PW_DRAIN, .pid = start_generations(f, 301) };
	uint64_t begin_ns, took_ns;
	struct declaration_result ret;
	char why[WHY_LEN];
	int n = 0;

	if (geteuid() != 0)
		skip();
	declare_free(f->declare);
	assert_int_equal(declare_new(&f->declare, f->subjects, &o), 0);
	listen_to_stderr(f);
	begin_ns = clock_boot_ns();
	while (declare_phase(f->declare, &who, &r, &ret, why) == -EPERM)
		n++;
	took_ns = clock_boot_ns() - begin_ns;
	said(f);
	/* one second of the five that it could have declared at once, and its share of that second */
	assert_in_range(took_ns, NS_PER_S * 9 / 10, 2 * NS_PER_S);
	assert_in_range(n, 1, 4000);
}

/* More users than are remembered: none of them gets more than its share by making others forgotten. */
static void test_many_users(void **state)
{
	struct fixture *f = *state;
	unsigned int passed = 0;

	for (uid_t uid = 1000; uid < 1256; uid++)
		for (int i = 0; i < 5 * RATE; i++)
			assert_int_equal(declare_init(f, uid, "not yours"), -EPERM);
	for (uid_t uid = 2000; uid < 5000; uid++)
		passed += declare_init(f, uid, NULL) != -EAGAIN;
	/* as many as the first ones got tokens meanwhile */
	assert_in_range(passed, 0, 256 * 2);
	json_decref(audited(f));
	/* those who were forgotten are told before they are */
	declare_tick(f->declare);
	assert_int_equal(declare_count(f->declare, AUDIT_REFUSED), 256 * 5 + 3000);
}

static void test_subjects_of_a_user(void **state)
{
	struct fixture *f = need_maps(state);
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS };
	pid_t own, declared[SUBJECTS];
	struct declarer who;

	if (geteuid() != 0)
		skip();
	for (size_t i = 0; i < SUBJECTS; i++)
		declared[i] = add_subject(f, NOBODY);
	add_subject(f, NOBODY - 1);
	own = start_child(f, NOBODY);
	who = (struct declarer){ own, NOBODY, NOBODY, PW_SOURCE_API };
	assert_int_equal(
		declare(f, &who, (struct declaration_request){ .phase = PW_DRAIN, .pid = own },
			"has declared 3 processes: the limit is 3; try again when one has ended"),
		-EDQUOT);
	json_decref(audited_once(f, "refused"));
	/* one that is there already may move; here it is not the user's, which is found out before */
	assert_int_equal(
		declare(f, &who,
			(struct declaration_request){ .phase = PW_DRAIN, .pid = declared[0] },
			"not yours"),
		-EPERM);
	key.id = declared[0];
	assert_int_equal(bpf_map_delete_elem(f->k.phases, &key), 0);
	assert_int_equal(subjects_reconcile(f->subjects), 0);
	/* what stops it now is that there are no programs here */
	assert_int_not_equal(
		declare(f, &who, (struct declaration_request){ .phase = PW_DRAIN, .pid = own },
			NULL),
		-EDQUOT);
}

/* A flood of refusals is a few lines, and then one in a while that counts the rest. */
static void test_refusals_do_not_flood_stderr(void **state)
{
	struct fixture *f = *state;
	unsigned int lines;

	listen_to_stderr(f);
	for (uid_t uid = 1000; uid < 1100; uid++)
		for (int i = 0; i < 101; i++)
			declare_init(f, uid, NULL);
	for (int i = 0; i < 7; i++)
		declare_tick(f->declare);
	lines = said(f);
	assert_in_range(lines, 10, 20);
	/* and all of them are in the audit log */
	json_decref(audited(f));
	assert_int_equal(declare_count(f->declare, AUDIT_REFUSED), 100 * 101);
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_may_declare_oneself_and_descendants),
		cmocka_unit_test(test_may_declare_a_parent_of_the_same_user_only),
		cmocka_unit_test(test_may_not_declare_nobody),
		cmocka_unit_test(test_may_declare_nothing_when_gone),
		cmocka_unit_test(test_may_not_declare_with_a_reused_pid),
		TEST(test_refusal_is_audited),
		TEST(test_declaration_is_audited_once),
		TEST(test_cgroups_are_for_admins),
		TEST(test_caller_that_cannot_be_seen),
		TEST(test_what_was_written_to_the_map),
		TEST(test_admins),
		TEST(test_supplementary_groups),
		TEST(test_connection_of_somebody_who_has_ended),
		TEST(test_rate),
		TEST(test_rate_comes_back),
		TEST(test_slow_declarations),
		TEST(test_many_users),
		TEST(test_subjects_of_a_user),
		TEST(test_refusals_do_not_flood_stderr),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
