// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <bpf/bpf.h>

#include "notify.h"
#include "opts.h"
#include "unix_socket.h"
#include "maps.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define NOBODY 65534

#define TEXT_55 "1234567890123456789012345678901234567890123456789012345"

/* ---- the parser ---- */

/* In memory of its very size: what reads on is seen by valgrind and the address sanitizer. */
static int parse(const char *data, size_t len, struct notify_message *ret, char why[static WHY_LEN])
{
	_cleanup_(freep) char *copy = malloc(len ? len : 1);

	memcpy(copy, data, len);
	why[0] = '\0';
	return notify_parse(copy, len, ret, why);
}

static void test_parse(void **state)
{
	static const struct {
		const char *text;
		struct notify_message m;
	} good[] = {
		{ "", { 0 } },
		{ "\n\n\n", { 0 } },
		{ "READY=1", { .phase = PW_ACTIVE } },
		{ "READY=1\n", { .phase = PW_ACTIVE } },
		{ "READY=1\nREADY=1\n", { .phase = PW_ACTIVE } },
		{ "READY=0", { 0 } },
		{ "READY=11", { 0 } },
		{ "READY=", { 0 } },
		{ " READY=1", { 0 } },
		{ "ready=1", { 0 } },
		{ "XREADY=1", { 0 } },
		{ "READY=1\r\n", { 0 } },
		{ "STOPPING=1", { .phase = PW_DRAIN } },
		{ "STOPPING=1\nREADY=1", { .phase = PW_DRAIN } },
		{ "READY=1\nSTOPPING=1", { .phase = PW_DRAIN } },
		{ "RELOADING=1\nMONOTONIC_USEC=8123456789", { 0 } },
		{ "RELOADING=1\nREADY=1", { .phase = PW_ACTIVE } },
		{ "X_PHASE=INIT", { .phase = PW_INIT, .by_x_phase = true } },
		{ "X_PHASE=active", { .phase = PW_ACTIVE, .by_x_phase = true } },
		{ "X_PHASE=DRAIN", { .phase = PW_DRAIN, .by_x_phase = true } },
		{ "STOPPING=1\nX_PHASE=SHUTDOWN\nREADY=1",
			{ .phase = PW_SHUTDOWN, .by_x_phase = true } },
		{ "X_PHASE=DRAIN\nX_PHASE=INIT", { .phase = PW_INIT, .by_x_phase = true } },
		{ "READY=1\nX_EPOCH=7", { .phase = PW_ACTIVE, .epoch = 7 } },
		{ "X_EPOCH=7\nX_EPOCH=9223372036854775807", { .epoch = PW_EPOCH_MAX } },
		{ "MAINPID=4121\nREADY=1", { .phase = PW_ACTIVE, .main_pid = 4121 } },
		{ "MAINPID=4194304\n", { .main_pid = 4194304 } },
		{ "MAINPID=3\nMAINPID=2", { .main_pid = 2 } },
		{ "STATUS=Ready.", { .reason = "Ready." } },
		{ "STATUS=", { 0 } },
		{ "STATUS=a=b", { .reason = "a=b" } },
		{ "STATUS=" TEXT_55, { .reason = TEXT_55 } },
		{ "STATUS=" TEXT_55 "6", { 0 } },
		{ "STATUS=short\nSTATUS=" TEXT_55 "6", { 0 } },
		{ "STATUS=one\nSTATUS=two", { .reason = "two" } },
		{ "X_REASON=" TEXT_55, { .reason = TEXT_55 } },
		{ "X_REASON=why\nSTATUS=what", { .reason = "why" } },
		{ "STATUS=what\nX_REASON=\xff\x1b[31m", { .reason = "\xff\x1b[31m" } },
		{ "WATCHDOG=1\nFDSTORE=1\nFDNAME=x\nERRNO=2\nBUSERROR=y\nEXTEND_TIMEOUT_USEC=5\n"
		  "NOTIFYACCESS=all\nBARRIER=1\nX_PHASES=1\nX_=\n=\n==\nREADY",
			{ 0 } },
	};
	char why[WHY_LEN];

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		const char *text = good[i].text;
		struct notify_message m;

		/* some send the string's own end as well */
		for (size_t end = 0; end < 2; end++) {
			memset(&m, 0xa5, sizeof(m));
			if (parse(text, strlen(text) + end, &m, why) != 0)
				fail_msg("\"%s\" is refused: %s", text, why);
			if (m.phase != good[i].m.phase || m.by_x_phase != good[i].m.by_x_phase ||
				m.main_pid != good[i].m.main_pid || m.epoch != good[i].m.epoch ||
				strcmp(m.reason, good[i].m.reason) != 0)
				fail_msg("\"%s\" is phase %u (%d) of %d, epoch %llu, \"%s\"", text,
					m.phase, m.by_x_phase, m.main_pid,
					(unsigned long long)m.epoch, m.reason);
		}
	}
}

static void assert_refused(const char *data, size_t len, const char *word)
{
	struct notify_message m, before;
	char why[WHY_LEN];

	memset(&before, 0xa5, sizeof(before));
	m = before;
	if (parse(data, len, &m, why) != -EINVAL)
		fail_msg("\"%.*s\" is taken", (int)len, data);
	if (!strstr(why, word))
		fail_msg("\"%.*s\": no \"%s\" in \"%s\"", (int)len, data, word, why);
	assert_memory_equal(&m, &before, sizeof(m));
}

static void test_parse_refuses(void **state)
{
	static const char *const bad[][2] = {
		{ "X_PHASE=", "INIT" },
		{ "X_PHASE=UNDECLARED", "no phase \"UNDECLARED\"" },
		{ "X_PHASE=2", "DRAIN" },
		{ "X_PHASE=DRAIN ", "DRAIN" },
		{ "X_PHASE=DRAINING\nX_PHASE=DRAIN", "DRAINING" },
		{ "READY=1\nX_PHASE=x", "INIT" },
		{ "X_EPOCH=", "X_EPOCH" },
		{ "X_EPOCH=0", "from 1 to 9223372036854775807" },
		{ "X_EPOCH=-1", "X_EPOCH" },
		{ "X_EPOCH=+1", "X_EPOCH" },
		{ "X_EPOCH= 1", "X_EPOCH" },
		{ "X_EPOCH=1x", "X_EPOCH=1x" },
		{ "X_EPOCH=0x1", "X_EPOCH" },
		{ "X_EPOCH=9223372036854775808", "X_EPOCH" },
		{ "X_EPOCH=99999999999999999999999999999999999999999999", "X_EPOCH" },
		{ "MAINPID=0\nREADY=1", "from 1 to 4194304" },
		{ "MAINPID=-1", "MAINPID" },
		{ "MAINPID=4194305", "MAINPID" },
		{ "MAINPID=4294967297", "MAINPID" },
		{ "MAINPID=1 ", "MAINPID" },
		{ "X_REASON=" TEXT_55 "6", "at most 55 bytes" },
	};
	char large[NOTIFY_MAX + 1];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_refused(bad[i][0], strlen(bad[i][0]), bad[i][1]);
	assert_refused("READY=1\0\0", 9, "NUL");
	assert_refused("\0READY=1", 8, "NUL");
	assert_refused("READY=1\0STOPPING=1", 18, "NUL");
	memset(large, '\n', sizeof(large));
	memcpy(large, "READY=1", 7);
	assert_refused(large, sizeof(large), "4096");
}

/* The largest message, one value, and as many lines as fit. */
static void test_parse_large(void **state)
{
	char data[NOTIFY_MAX], why[WHY_LEN];
	struct notify_message m;

	memset(data, '\n', sizeof(data));
	memcpy(data + sizeof(data) - 10, "STOPPING=1", 10);
	assert_int_equal(parse(data, sizeof(data), &m, why), 0);
	assert_int_equal(m.phase, PW_DRAIN);
	memset(data, 'x', sizeof(data));
	memcpy(data, "STATUS=", 7);
	assert_int_equal(parse(data, sizeof(data), &m, why), 0);
	assert_string_equal(m.reason, "");
	memcpy(data, "X_PHASE=", 8);
	assert_refused(data, sizeof(data), "no phase \"xxxx");
	memcpy(data, "X_EPOCH=", 8);
	assert_refused(data, sizeof(data), "X_EPOCH=xxxx");
}

/* Pieces of messages and any bytes: taken or refused, and what is taken is in range. */
static void test_parse_anything(void **state)
{
	static const char *const pieces[] = { "READY=1", "STOPPING=1", "X_PHASE=", "DRAIN", "INIT",
		"X_EPOCH=", "1", "0", "9223372036854775807", "MAINPID=", "4194304", "X_REASON=",
		"STATUS=", TEXT_55, "\n", "\n", "\n", "\n", "=", "\xff" };
	unsigned short seed[3] = { 1, 2, 3 };
	size_t taken = 0, refused = 0, declared = 0;
	char data[NOTIFY_MAX + 2], why[WHY_LEN];
	struct notify_message m;

	for (int i = 0; i < 300007; i++) {
		size_t len = 0, n = nrand48(seed) % 12;

		while (n--) {
			const char *piece = pieces[nrand48(seed) % ARRAY_SIZE(pieces)];

			memcpy(data + len, piece, strlen(piece));
			len += strlen(piece);
		}
		for (n = nrand48(seed) % 4 ? 0 : nrand48(seed) % 4; n && len; n--)
			data[nrand48(seed) % len] = nrand48(seed);
		if (i % 1009 == 0)
			for (len = NOTIFY_MAX - 2 + nrand48(seed) % 4, n = 0; n < len; n++)
				data[n] = nrand48(seed);
		if (parse(data, len, &m, why) < 0) {
			assert_true(why[0] != '\0');
			refused++;
			continue;
		}
		taken++;
		declared += m.phase != PW_UNDECLARED;
		assert_true(m.phase < PW_PHASES);
		assert_true(m.phase || !m.by_x_phase);
		assert_in_range(m.main_pid, 0, PID_MAX);
		assert_true(m.epoch <= PW_EPOCH_MAX);
		assert_true(strlen(m.reason) < PW_REASON_LEN);
	}
	assert_true(taken > 30000 && refused > 30000 && declared > 10000);
}

/* ---- the socket, with real maps and no programs ---- */

/* Sends what it is told, as some user. */
struct sender {
	pid_t pid;
	int control;
};

struct fixture {
	struct event_base *base;
	struct kernel k;
	struct pw_control control;
	struct proc_names *names;
	struct subjects *subjects;
	struct declare *declare;
	struct notify_context context;
	struct notify *notify;
	uint64_t counts[NOTIFY_RESULTS];
	struct sender senders[4];
	size_t n_senders;
	char dir[64], path[96];
	struct event_phase last; /* phase event */
	unsigned int phases, caught_up;
	int barrier; /* is to be open while something is declared; -1: none */
};

static bool hung_up(int fd)
{
	struct pollfd p = { .fd = fd };

	return poll(&p, 1, 0) > 0 && p.revents & POLLHUP;
}

static void on_left(const struct subject *s, void *arg)
{
}

static void on_phase(const struct subject *s, const struct event_phase *p, void *arg)
{
	struct fixture *f = arg;

	f->phases++;
	f->last = *p;
	assert_int_equal(f->caught_up, f->phases);
	if (f->barrier >= 0)
		assert_false(hung_up(f->barrier));
}

static void on_end(const struct subject *s, bool nobody_left, void *arg)
{
}

static void on_violation(const struct subject *s, const struct event_violation *v, void *arg)
{
}

static void catch_up(void *arg)
{
	struct fixture *f = arg;

	f->caught_up = f->phases + 1;
}

static void start(struct fixture *f)
{
	char why[256];

	if (notify_new(&f->notify, &f->context, f->path, why, sizeof(why)) < 0)
		fail_msg("%s", why);
}

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->barrier = -1;
	make_maps(&f->k, &f->control);
	f->base = event_base_new();
	assert_int_equal(proc_names_new(&f->names), 0);
	assert_int_equal(subjects_new(&f->subjects, &f->k, f->names, 2, PW_POD_LOGS,
				 &(struct subjects_listener){ on_phase, on_end, on_violation, on_left, f }),
		0);
	assert_int_equal(declare_new(&f->declare, f->subjects,
				 &(struct declare_options){ NULL, NO_GID, 1000, 1024 }),
		0);
	f->context = (struct notify_context){ f->base, f->subjects, f->declare, f->counts, catch_up,
		f };
	strcpy(f->dir, "/tmp/phasewatch-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(chmod(f->dir, 0755), 0);
	snprintf(f->path, sizeof(f->path), "%s/made/notify.sock", f->dir);
	start(f);
	*state = f;
	return 0;
}

static void end(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	char made[80];

	for (size_t i = 0; i < f->n_senders; i++) {
		end(f->senders[i].pid);
		close(f->senders[i].control);
	}
	notify_free(f->notify);
	declare_free(f->declare);
	subjects_free(f->subjects);
	proc_names_free(f->names);
	event_base_free(f->base);
	free_maps(&f->k);
	unlink(f->path);
	snprintf(made, sizeof(made), "%s/made", f->dir);
	rmdir(made);
	rmdir(f->dir);
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

static void address(struct sockaddr_un *addr, const char *path)
{
	*addr = (struct sockaddr_un){ .sun_family = AF_UNIX };
	strcpy(addr->sun_path, path);
}

/* 0 or an errno */
static int send_to(const char *path, const void *data, size_t len, const int *fds, size_t n_fds)
{
	union {
		struct cmsghdr header;
		char room[CMSG_SPACE(253 * sizeof(int))];
	} control = { 0 };
	struct iovec iov = { (void *)data, len };
	struct sockaddr_un addr;
	struct msghdr msg = { &addr, sizeof(addr), &iov, 1 };
	_cleanup_(closep) int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	address(&addr, path);
	if (n_fds) {
		control.header = (struct cmsghdr){ CMSG_LEN(n_fds * sizeof(int)), SOL_SOCKET,
			SCM_RIGHTS };
		memcpy(CMSG_DATA(&control.header), fds, n_fds * sizeof(int));
		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
	}
	return sendmsg(fd, &msg, MSG_DONTWAIT) == (ssize_t)len ? 0 : errno;
}

static void turn(struct fixture *f)
{
	assert_true(event_base_loop(f->base, EVLOOP_NONBLOCK) >= 0);
}

/* By this process; it has arrived and was looked at. */
static void say_bytes(struct fixture *f, const void *data, size_t len)
{
	assert_int_equal(send_to(f->path, data, len, NULL, 0), 0);
	turn(f);
}

static void say(struct fixture *f, const char *text)
{
	say_bytes(f, text, strlen(text));
}

static void serve(const char *path, int control)
{
	char text[NOTIFY_MAX];
	ssize_t n;

	while ((n = recv(control, text, sizeof(text), 0)) > 0) {
		int err = send_to(path, text, n, NULL, 0);

		send(control, &err, sizeof(err), 0);
	}
	_exit(0);
}

static struct sender *start_sender(struct fixture *f, uid_t uid)
{
	struct sender *s = &f->senders[f->n_senders++];
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	s->pid = fork();
	if (s->pid == 0) {
		if (setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
			_exit(1);
		close(pair[0]);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(f->path, pair[1]);
	}
	assert_true(s->pid > 0);
	close(pair[1]);
	s->control = pair[0];
	return s;
}

static void have_say(struct fixture *f, const struct sender *s, const char *text)
{
	int err = -1;

	assert_int_equal(send(s->control, text, strlen(text), 0), strlen(text));
	assert_int_equal(recv(s->control, &err, sizeof(err), 0), sizeof(err));
	assert_int_equal(err, 0);
	turn(f);
}

/* As an earlier daemon left it: ACTIVE of epoch 7. */
static void make_subject(struct fixture *f, pid_t pid)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS, .id = pid };
	struct pw_declaration d = { .phase = PW_ACTIVE, .epoch = 7, .since_ns = 1000,
		.entered_ns = { 0, 1000 } };
	struct pw_stats stats = { .life = 1, .members = 1 };
	struct pw_member member = { .subject = pid };
	struct proc_stat stat;

	assert_int_equal(proc_read(pid, &stat), 0);
	d.start_ns = member.start_ns = stat.start_ns;
	assert_int_equal(bpf_map_update_elem(f->k.members, &(uint32_t){ pid }, &member, 0), 0);
	assert_int_equal(bpf_map_update_elem(f->k.stats, &key, &stats, 0), 0);
	assert_int_equal(bpf_map_update_elem(f->k.phases, &key, &d, 0), 0);
	assert_int_equal(subjects_reconcile(f->subjects), 0);
}

static void make_member(struct fixture *f, pid_t pid, pid_t subject)
{
	struct pw_member member = { .subject = subject };
	struct proc_stat stat;

	assert_int_equal(proc_read(pid, &stat), 0);
	member.start_ns = stat.start_ns;
	assert_int_equal(bpf_map_update_elem(f->k.members, &(uint32_t){ pid }, &member, 0), 0);
}

static const struct pw_declaration *now(const struct fixture *f, pid_t pid)
{
	struct pw_subject_key key = { .kind = PW_KIND_PROCESS, .id = pid };
	const struct subject *s = subjects_find(f->subjects, &key);

	assert_non_null(s);
	return &s->now;
}

static void assert_counts(
	const struct fixture *f, uint64_t accepted, uint64_t refused, uint64_t ignored)
{
	assert_int_equal(f->counts[NOTIFY_ACCEPTED], accepted);
	assert_int_equal(f->counts[NOTIFY_REFUSED], refused);
	assert_int_equal(f->counts[NOTIFY_IGNORED], ignored);
}

static struct sender *nobody(struct fixture *f)
{
	return start_sender(f, geteuid() ? geteuid() : NOBODY);
}

static void test_life_of_a_service(void **state)
{
	struct fixture *f = need_maps(state);
	struct sender *s = nobody(f);

	make_subject(f, s->pid);
	have_say(f, s, "READY=1\nSTATUS=again");
	assert_int_equal(f->phases, 0); /* it is ACTIVE */
	have_say(f, s, "RELOADING=1\nMONOTONIC_USEC=1");
	have_say(f, s, "READY=1");
	have_say(f, s, "STOPPING=1\nSTATUS=by signal");
	assert_int_equal(f->phases, 1);
	assert_int_equal(f->last.key.id, s->pid);
	assert_int_equal(f->last.from, PW_ACTIVE);
	assert_int_equal(now(f, s->pid)->phase, PW_DRAIN);
	assert_int_equal(now(f, s->pid)->epoch, 7);
	assert_int_equal(now(f, s->pid)->source, PW_SOURCE_SDNOTIFY);
	assert_int_equal(now(f, s->pid)->by_pid, s->pid);
	assert_int_equal(now(f, s->pid)->by_uid, geteuid() ? geteuid() : NOBODY);
	assert_string_equal(now(f, s->pid)->reason, "by signal");
	assert_counts(f, 3, 0, 1);
	have_say(f, s, "READY=1"); /* backward */
	have_say(f, s, "X_PHASE=SHUTDOWN\nX_EPOCH=6"); /* stale */
	assert_int_equal(now(f, s->pid)->phase, PW_DRAIN);
	assert_counts(f, 3, 2, 1);
	have_say(f, s, "READY=1\nX_EPOCH=8");
	assert_int_equal(now(f, s->pid)->phase, PW_ACTIVE);
	assert_int_equal(now(f, s->pid)->epoch, 8);
	assert_counts(f, 4, 2, 1);
}

static void test_main_pid(void **state)
{
	struct fixture *f = need_maps(state);
	struct sender *one = nobody(f), *other = nobody(f);
	char text[64];

	make_subject(f, one->pid);
	snprintf(text, sizeof(text), "STOPPING=1\nMAINPID=%d", one->pid);
	have_say(f, other, text);
	assert_int_equal(now(f, one->pid)->phase, PW_ACTIVE);
	assert_counts(f, 0, 1, 0);
	say(f, text); /* their parent, ourselves */
	assert_int_equal(now(f, one->pid)->phase, PW_DRAIN);
	assert_int_equal(now(f, one->pid)->by_pid, getpid());
	assert_counts(f, 1, 1, 0);
	/* of oneself; the phase is what counts, MAINPID alone declares nothing */
	have_say(f, one, strchr(text, 'M'));
	assert_counts(f, 1, 1, 1);
	snprintf(text, sizeof(text), "X_PHASE=SHUTDOWN\nMAINPID=%d", one->pid);
	have_say(f, one, text);
	assert_int_equal(now(f, one->pid)->phase, PW_SHUTDOWN);
	say(f, "STOPPING=1\nMAINPID=4194304"); /* nobody has it */
	assert_counts(f, 2, 2, 1);
}

/* By the kernel's word: processes of two other users, each for each. */
static void test_users(void **state)
{
	struct fixture *f = need_maps(state);
	struct sender *s[3];
	char text[64];

	if (geteuid() != 0)
		skip();
	for (size_t i = 0; i < 3; i++) {
		s[i] = start_sender(f, i ? NOBODY - i : 0);
		make_subject(f, s[i]->pid);
	}
	for (size_t from = 3; from-- > 0;)
		for (size_t to = 0; to < 3; to++) {
			unsigned int before = f->phases;

			snprintf(text, sizeof(text), "X_PHASE=INIT\nX_EPOCH=%zu\nMAINPID=%d",
				10 + 3 * (3 - from) + to, s[to]->pid);
			have_say(f, s[from], text);
			assert_int_equal(f->phases - before, from == 0 || from == to);
		}
	assert_counts(f, 5, 4, 0);
}

static void test_workers_do_not_speak_for_their_service(void **state)
{
	struct fixture *f = need_maps(state);
	struct sender *main = nobody(f), *worker = nobody(f);

	make_subject(f, main->pid);
	make_member(f, worker->pid, main->pid);
	have_say(f, worker, "STOPPING=1");
	have_say(f, worker, "READY=1");
	assert_int_equal(now(f, main->pid)->phase, PW_ACTIVE);
	assert_counts(f, 0, 0, 2);
	/* a declared one speaks for itself, wherever it descends from */
	make_subject(f, worker->pid);
	have_say(f, worker, "STOPPING=1");
	assert_int_equal(now(f, main->pid)->phase, PW_ACTIVE);
	assert_int_equal(now(f, worker->pid)->phase, PW_DRAIN);
	assert_counts(f, 1, 0, 2);
}

/* A process of this name, of our own service, that says STOPPING and stays. */
static pid_t start_named(struct fixture *f, const char *comm)
{
	int ready[2];
	pid_t pid;

	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_NAME, comm);
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		make_member(f, getpid(), getppid());
		if (send_to(f->path, "STOPPING=1", 10, NULL, 0) == 0 && write(ready[1], "", 1) == 1)
			pause();
		_exit(1);
	}
	assert_true(pid > 0);
	close(ready[1]);
	assert_int_equal(read(ready[0], &(char){ 0 }, 1), 1);
	close(ready[0]);
	return pid;
}

/* Where it has not the right to send its parent's pid as its own. */
static void test_systemd_notify_speaks_for_its_parent(void **state)
{
	struct fixture *f = need_maps(state);
	pid_t pid;

	make_subject(f, getpid());
	pid = start_named(f, "systemd-notify0");
	turn(f);
	end(pid);
	assert_counts(f, 0, 0, 1);
	assert_int_equal(now(f, getpid())->phase, PW_ACTIVE);
	pid = start_named(f, "systemd-notify");
	turn(f);
	end(pid);
	assert_counts(f, 1, 0, 1);
	assert_int_equal(now(f, getpid())->phase, PW_DRAIN);
	assert_int_equal(now(f, getpid())->by_pid, getpid());
}

static void test_sender_that_is_gone(void **state)
{
	struct fixture *f = need_maps(state);

	make_subject(f, getpid());
	end(start_named(f, "systemd-notify"));
	turn(f);
	assert_counts(f, 0, 1, 0);
	assert_int_equal(now(f, getpid())->phase, PW_ACTIVE);
}

static void test_malformed(void **state)
{
	struct fixture *f = *state;
	char large[65536] = "READY=1\n";

	log_level = LOG_LEVEL_ERROR;
	say_bytes(f, "", 0);
	say(f, "STATUS=nothing");
	assert_counts(f, 0, 0, 2);
	say_bytes(f, "READY=1\0STOPPING=1", 18);
	say(f, "X_PHASE=2");
	say_bytes(f, large, sizeof(large));
	memset(large + 8, '\n', sizeof(large) - 8);
	say_bytes(f, large, sizeof(large));
	say_bytes(f, large, NOTIFY_MAX + 1);
	assert_counts(f, 0, 5, 2);
	log_level = LOG_LEVEL_INFO;
}

static void test_refusals_are_logged_once_a_second(void **state)
{
	_cleanup_(closep) int said = memfd_create("stderr", MFD_CLOEXEC);
	_cleanup_(closep) int before = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	struct fixture *f = *state;
	char text[4096] = "";

	dup2(said, STDERR_FILENO);
	for (int i = 0; i < 1009; i++)
		say(f, "X_PHASE=\x1b[31m");
	dup2(before, STDERR_FILENO);
	assert_counts(f, 0, 1009, 0);
	assert_true(pread(said, text, sizeof(text) - 1, 0) > 0);
	assert_non_null(strstr(text, "no phase \"\\x1b[31m\""));
	/* a slow machine may see a second pass */
	assert_true(lseek(said, 0, SEEK_CUR) < 1000);
}

static unsigned int open_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	unsigned int n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

static void make_pipes(int *reads, int *writes, size_t n)
{
	int pipes[2];

	for (size_t i = 0; i < n; i++) {
		assert_int_equal(pipe2(pipes, O_CLOEXEC), 0);
		reads[i] = pipes[0];
		writes[i] = pipes[1];
	}
}

static void close_all(const int *fds, size_t n)
{
	for (size_t i = 0; i < n; i++)
		close(fds[i]);
}

static void test_file_descriptors_are_closed(void **state)
{
	static const size_t counts[] = { 1, 2, 3, 97, 253 };
	static const char *const texts[] = { "FDSTORE=1\nFDNAME=x", "READY=1", "BARRIER=1", "",
		"X_PHASE=none", "STOPPING=1\nMAINPID=1" };
	struct fixture *f = *state;
	int reads[253], writes[253];
	unsigned int before = open_fds();

	log_level = LOG_LEVEL_ERROR;
	for (size_t i = 0; i < ARRAY_SIZE(counts); i++)
		for (size_t t = 0; t < ARRAY_SIZE(texts); t++) {
			make_pipes(reads, writes, counts[i]);
			assert_int_equal(send_to(f->path, texts[t], strlen(texts[t]), writes,
						 counts[i]), 0);
			close_all(writes, counts[i]);
			for (size_t p = 0; p < counts[i]; p++)
				assert_false(hung_up(reads[p]));
			turn(f);
			for (size_t p = 0; p < counts[i]; p++)
				assert_true(hung_up(reads[p]));
			close_all(reads, counts[i]);
			assert_int_equal(open_fds(), before);
		}
	log_level = LOG_LEVEL_INFO;
}

/* sd_notify_barrier(3): its end is the end of all before it. */
static void test_barrier(void **state)
{
	struct fixture *f = need_maps(state);
	struct sender *s = nobody(f);
	char text[64];
	int write_end;

	make_subject(f, s->pid);
	for (unsigned int i = 0; i < 7; i++) {
		snprintf(text, sizeof(text), "STOPPING=1\nX_EPOCH=%u\nMAINPID=%d", 8 + i, s->pid);
		assert_int_equal(
			send_to(f->path, text, strlen(text), &(int){ STDERR_FILENO }, i % 2), 0);
	}
	make_pipes(&f->barrier, &write_end, 1);
	assert_int_equal(send_to(f->path, "BARRIER=1", 9, &write_end, 1), 0);
	close(write_end);
	assert_false(hung_up(f->barrier));
	turn(f);
	assert_int_equal(f->phases, 7);
	assert_true(hung_up(f->barrier));
	close(f->barrier);
	assert_int_equal(now(f, s->pid)->epoch, 14);
	assert_counts(f, 7, 0, 1);
}

/* The other way round than usual: the one that takes messages is in a pid namespace of its own. */
static void test_sender_that_cannot_be_seen(void **state)
{
	struct fixture *f = *state;
	char path[128];
	int ready[2], status;
	pid_t pid;

	if (geteuid() != 0)
		skip();
	snprintf(path, sizeof(path), "%s/made/other.sock", f->dir);
	assert_int_equal(pipe2(ready, O_CLOEXEC), 0);
	pid = fork();
	if (pid == 0) {
		struct notify_context context = f->context;
		struct notify *n;
		char why[256];

		if (unshare(CLONE_NEWPID) < 0)
			_exit(2);
		pid = fork();
		if (pid > 0) {
			waitpid(pid, &status, 0);
			_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 3);
		}
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		context.base = event_base_new();
		if (notify_new(&n, &context, path, why, sizeof(why)) < 0 ||
			write(ready[1], "", 1) != 1)
			_exit(4);
		event_base_loop(context.base, EVLOOP_ONCE);
		status = f->counts[NOTIFY_REFUSED] == 1 ? 0 : 5;
		notify_free(n);
		_exit(status);
	}
	assert_int_equal(read(ready[0], &(char){ 0 }, 1), 1);
	assert_int_equal(send_to(path, "STOPPING=1\nMAINPID=1", 20, NULL, 0), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close_all(ready, 2);
}

/* ---- the socket's file ---- */

static void test_everybody_may_write(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode, S_IFSOCK | 0666);
}

static void assert_not_made(const struct fixture *f, int type, const char *path)
{
	struct unix_socket s = { .path = (char *)7 };
	char why[256] = "";

	assert_int_equal(unix_socket_make(type, path, &s, why, sizeof(why)), -EADDRINUSE);
	assert_non_null(strstr(why, path));
	assert_ptr_equal(s.path, (char *)7);
}

static void test_socket_in_use(void **state)
{
	struct fixture *f = *state;

	assert_not_made(f, SOCK_DGRAM, f->path);
	assert_not_made(f, SOCK_STREAM, f->path);
	say(f, "STATUS=still there");
	assert_counts(f, 0, 0, 1);
}

static void test_stale_socket_is_replaced(void **state)
{
	struct fixture *f = *state;
	_cleanup_(closep) int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un addr;

	notify_free(f->notify);
	f->notify = NULL;
	assert_int_equal(access(f->path, F_OK), -1);
	address(&addr, f->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	assert_not_made(f, SOCK_DGRAM, f->path);
	close(TAKE_FD(fd));
	assert_int_equal(access(f->path, F_OK), 0);
	start(f);
	say(f, "STATUS=new");
	assert_counts(f, 0, 0, 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_parse),
		cmocka_unit_test(test_parse_refuses),
		cmocka_unit_test(test_parse_large),
		cmocka_unit_test(test_parse_anything),
		cmocka_unit_test_setup_teardown(test_life_of_a_service, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_main_pid, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_users, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_workers_do_not_speak_for_their_service, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_systemd_notify_speaks_for_its_parent, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_sender_that_is_gone, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_malformed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_refusals_are_logged_once_a_second, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_file_descriptors_are_closed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_barrier, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_sender_that_cannot_be_seen, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_everybody_may_write, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_socket_in_use, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_stale_socket_is_replaced, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
