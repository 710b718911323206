// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#include "audit.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define NOBODY 65534
#define MIB (1 << 20)

/* Each test has a directory of its own. What it says on stderr is in `said` of it. */
struct fixture {
	char dir[64], path[96], said[96];
	struct audit *audit;
	int tree, err;
};

static int set_up(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	strcpy(f->dir, "/tmp/phasewatch-test-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(chmod(f->dir, 0755), 0);
	snprintf(f->path, sizeof(f->path), "%s/audit.jsonl", f->dir);
	snprintf(f->said, sizeof(f->said), "%s/said", f->dir);
	f->tree = open(f->dir, O_DIRECTORY | O_CLOEXEC);
	*state = f;
	return 0;
}

static int tear_down(void **state)
{
	struct fixture *f = *state;
	DIR *dir = fdopendir(f->tree);
	struct dirent *e;

	audit_free(f->audit);
	while ((e = readdir(dir)))
		if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..") &&
			unlinkat(f->tree, e->d_name, 0) < 0)
			unlinkat(f->tree, e->d_name, AT_REMOVEDIR);
	closedir(dir);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static int start(struct fixture *f, uint64_t size, uint32_t keep, char why[256])
{
	const struct audit_options o = { f->path, size, keep };

	return audit_new(&f->audit, &o, "n1", why, 256);
}

static void started(struct fixture *f, uint64_t size, uint32_t keep)
{
	char why[256];

	if (start(f, size, keep, why) < 0)
		fail_msg("%s", why);
}

static void refused(struct fixture *f, int err, const char *word)
{
	char why[256] = "";

	assert_int_equal(start(f, 0, 1, why), err);
	assert_null(f->audit);
	assert_non_null(strstr(why, f->path));
	if (!strstr(why, word))
		fail_msg("no \"%s\" in: %s", word, why);
}

/* A record whose number can be told from its line, which has this many bytes. */
static void write_number(struct fixture *f, unsigned int number, size_t len)
{
	static const char rest[] =
		"{\"schema\":1,\"time\":\"2026-01-01T00:00:00.000000000Z\",\"node\":\"n1\","
		"\"verdict\":"
		"\"refused\",\"epoch\":1000000,\"source\":\"map\",\"reason\":\"\"}\n";
	char reason[8192] = "";

	assert_in_range(len, sizeof(rest), sizeof(reason));
	memset(reason, 'x', len - strlen(rest));
	audit_write(f->audit,
		&(struct audit_record){
			.verdict = AUDIT_REFUSED, .epoch = 1000000 + number, .reason = reason });
}

static char *read_file(const char *path)
{
	char *text = calloc(1, MIB);
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		fail_msg("%s: %s", path, strerror(errno));
	assert_in_range(read(fd, text, MIB - 1), 0, MIB - 2);
	close(fd);
	return text;
}

/* The numbers of the lines in this file, which are all whole, or of PATH.`older`. */
static size_t numbers_in(const struct fixture *f, unsigned int older, unsigned int *ret, size_t max)
{
	char path[128], *text, *line, *rest;
	size_t n = 0;

	snprintf(path, sizeof(path), older ? "%s.%u" : "%s", f->path, older);
	rest = text = read_file(path);
	while ((line = strsep(&rest, "\n")) && rest) {
		json_t *value = json_loads(line, JSON_REJECT_DUPLICATES, NULL);

		if (!json_is_object(value))
			fail_msg("no object: %s", line);
		assert_in_range(n, 0, max - 1);
		ret[n++] = json_integer_value(json_object_get(value, "epoch")) - 1000000;
		json_decref(value);
	}
	assert_string_equal(line, ""); /* after the last newline */
	free(text);
	return n;
}

static void assert_numbers(
	const struct fixture *f, unsigned int older, unsigned int first, size_t n)
{
	unsigned int numbers[1024];

	assert_int_equal(numbers_in(f, older, numbers, ARRAY_SIZE(numbers)), n);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(numbers[i], first + i);
}

static bool there_is(const struct fixture *f, const char *suffix)
{
	char path[128];

	snprintf(path, sizeof(path), "%s%s", f->path, suffix);
	return access(path, F_OK) == 0;
}

static void listen_to_stderr(struct fixture *f)
{
	int fd = open(f->said, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);

	fflush(stderr);
	f->err = dup(2);
	assert_int_equal(dup2(fd, 2), 2);
	close(fd);
}

/* How many lines were said since. */
static unsigned int said(struct fixture *f, const char *word)
{
	unsigned int lines = 0;
	char *text;

	fflush(stderr);
	assert_int_equal(dup2(f->err, 2), 2);
	close(f->err);
	text = read_file(f->said);
	for (const char *p = text; (p = strchr(p, '\n')); p++)
		lines++;
	if (lines && !strstr(text, word))
		fail_msg("no \"%s\" in: %s", word, text);
	free(text);
	return lines;
}

/* ---- lines ---- */

static json_t *only_line(const struct fixture *f)
{
	char *text = read_file(f->path);
	json_t *value;

	assert_ptr_equal(strchr(text, '\n'), text + strlen(text) - 1);
	value = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	assert_true(json_is_object(value));
	free(text);
	return value;
}

static void test_a_line(void **state)
{
	static const struct audit_who who = { 11, 1000, 100, "nginx", "/usr/sbin/nginx", "/a/b" };
	const struct audit_record r = { .verdict = AUDIT_REFUSED,
		.who = &who,
		.by_pid = 12,
		.by_comm = "sh",
		.key = { .kind = PW_KIND_PROCESS, .id = 13 },
		.name = "web",
		.from = "ACTIVE",
		.to = "DRAIN",
		.epoch = 7,
		.source = PW_SOURCE_SDNOTIFY,
		.reason = "rolling",
		.why = "not yours",
		.count = 5 };
	struct fixture *f = *state;
	json_t *line, *expected;

	started(f, 0, 1);
	audit_write(f->audit, &r);
	line = only_line(f);
	assert_true(json_is_string(json_object_get(line, "time")));
	json_object_del(line, "time");
	expected = json_pack("{s:i,s:s,s:s,s:{s:i,s:i,s:i,s:s,s:s,s:s},s:{s:i,s:s},s:{s:s,s:i,s:s},"
			     "s:s,s:s,s:i,s:s,s:s,s:s,s:i}",
		"schema", 1, "node", "n1", "verdict", "refused", "who", "pid", 11, "uid", 1000,
		"gid", 100, "comm", "nginx", "exe", "/usr/sbin/nginx", "cgroup", "/a/b", "by",
		"pid", 12, "comm", "sh", "subject", "kind", "process", "id", 13, "name", "web",
		"from", "ACTIVE", "to", "DRAIN", "epoch", 7, "source", "sdnotify", "reason",
		"rolling", "why", "not yours", "count", 5);
	assert_non_null(expected);
	assert_true(json_equal(line, expected));
	json_decref(expected);
	json_decref(line);
}

static void test_what_is_not_known_is_absent(void **state)
{
	static const struct audit_who who = { 0, 1000, (gid_t)-1, "", "", "" };
	const struct audit_record r = { .verdict = AUDIT_ACCEPTED,
		.who = &who,
		.reason = "",
		.key = { .kind = PW_KIND_CGROUP },
		.name = "",
		.to = "INIT",
		.count = 1 };
	struct fixture *f = *state;
	json_t *line, *expected;

	started(f, 0, 1);
	audit_write(f->audit, &r);
	line = only_line(f);
	json_object_del(line, "time");
	expected = json_pack("{s:i,s:s,s:s,s:{s:i},s:{s:s},s:s,s:s}", "schema", 1, "node", "n1",
		"verdict", "accepted", "who", "uid", 1000, "subject", "kind", "cgroup", "to",
		"INIT", "source", "map");
	assert_true(json_equal(line, expected));
	json_decref(expected);
	json_decref(line);
}

static void test_time(void **state)
{
	struct fixture *f = *state;
	time_t before = time(NULL);
	struct tm tm = { 0 };
	const char *text;
	json_t *line;
	char *end;

	started(f, 0, 1);
	audit_write(f->audit, &(struct audit_record){ .verdict = AUDIT_ACCEPTED });
	line = only_line(f);
	text = json_string_value(json_object_get(line, "time"));
	end = strptime(text, "%Y-%m-%dT%H:%M:%S.", &tm);
	assert_non_null(end);
	assert_int_equal(strspn(end, "0123456789"), 9);
	assert_string_equal(end + 9, "Z");
	assert_in_range(timegm(&tm), before, time(NULL));
	json_decref(line);
}

/* Whatever a process calls itself, it is one line, and its end is ours. */
static void test_hostile_text(void **state)
{
	static const char nasty[] = "\"},\n{\"verdict\":\"accepted\"}\r\n\\\x1b[2J\xff\xc0\x80\x7f";
	struct audit_who who = { 11, 1000, 100 };
	const struct audit_record r = { .verdict = AUDIT_REFUSED,
		.who = &who,
		.name = nasty,
		.reason = nasty,
		.why = nasty,
		.key = { .kind = PW_KIND_PROCESS, .id = 1 } };
	struct fixture *f = *state;
	json_t *line;
	char *text;

	memset(who.exe, 1, sizeof(who.exe) - 1);
	memset(who.cgroup, 0xff, sizeof(who.cgroup) - 1);
	strcpy(who.comm, "\n\n\"\\");
	started(f, 0, 1);
	audit_write(f->audit, &r);
	line = only_line(f);
	assert_string_equal(json_string_value(json_object_get(line, "verdict")), "refused");
	assert_string_equal(
		json_string_value(json_object_get(json_object_get(line, "who"), "comm")),
		"\n\n\"\\");
	json_decref(line);
	text = read_file(f->path);
	for (const char *p = text; *p; p++)
		assert_true(*p == '\n' || (unsigned char)*p >= ' ');
	free(text);
}

static void test_who(void **state)
{
	struct audit_who who = { getpid(), geteuid(), getegid() }, none;
	char exe[PATH_MAX] = "", comm[16];

	audit_who_read(&who);
	assert_true(readlink("/proc/self/exe", exe, sizeof(exe) - 1) > 0);
	assert_string_equal(who.exe, exe);
	assert_int_equal(prctl(PR_GET_NAME, comm), 0);
	assert_string_equal(who.comm, comm);
	assert_true(!who.cgroup[0] || who.cgroup[0] == '/');

	/* another user's by now; gone; not to be seen */
	for (int i = 0; i < 3; i++) {
		who = (struct audit_who){ (pid_t[]){ getpid(), 4194304, 0 }[i],
			geteuid() + (i == 0), getegid() };
		none = who;
		audit_who_read(&who);
		assert_memory_equal(&who, &none, sizeof(who));
	}
}

/* ---- the file ---- */

static void test_mode_whatever_the_umask(void **state)
{
	static const mode_t umasks[] = { 0, 022, 0277, 0777 };
	struct fixture *f = *state;
	struct stat st;

	for (size_t i = 0; i < ARRAY_SIZE(umasks); i++) {
		mode_t before = umask(umasks[i]);

		started(f, 0, 1);
		umask(before);
		assert_int_equal(stat(f->path, &st), 0);
		assert_int_equal(st.st_mode, S_IFREG | 0600);
		audit_free(TAKE_PTR(f->audit));
		assert_int_equal(unlink(f->path), 0);
	}
}

/* Whoever lets a group read it has said so. */
static void test_existing_file_is_added_to(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	started(f, 0, 1);
	write_number(f, 0, 300);
	audit_free(TAKE_PTR(f->audit));
	assert_int_equal(chmod(f->path, 0640), 0);
	started(f, 0, 1);
	write_number(f, 1, 300);
	assert_numbers(f, 0, 0, 2);
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode, S_IFREG | 0640);
}

static void test_symbolic_link(void **state)
{
	struct fixture *f = *state;
	char victim[128];
	struct stat st;
	int fd;

	snprintf(victim, sizeof(victim), "%s/victim", f->dir);
	assert_int_equal(symlink(victim, f->path), 0);
	refused(f, -ELOOP, "symbolic link");
	assert_int_equal(access(victim, F_OK), -1);
	fd = open(victim, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_int_equal(write(fd, "secret", 6), 6);
	close(fd);
	refused(f, -ELOOP, "symbolic link");
	assert_int_equal(stat(victim, &st), 0);
	assert_int_equal(st.st_size, 6);
}

static void test_no_regular_file(void **state)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	struct fixture *f = *state;
	int fd;

	assert_int_equal(mkfifo(f->path, 0600), 0);
	refused(f, -EINVAL, "no regular file"); /* and is not waited for */
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(mkdir(f->path, 0700), 0);
	refused(f, -EISDIR, "directory");
	assert_int_equal(rmdir(f->path), 0);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	strcpy(addr.sun_path, f->path);
	assert_int_equal(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	refused(f, -ENXIO, f->path);
	close(fd);
	strcpy(f->path, "/dev/full");
	refused(f, -EINVAL, "no regular file");
}

static void make_file(const char *path, uid_t uid)
{
	int fd = open(path, O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0600);

	assert_true(fd >= 0);
	if (uid)
		assert_int_equal(fchown(fd, uid, uid), 0);
	close(fd);
}

static void test_file_of_somebody_else(void **state)
{
	struct fixture *f = *state;

	if (geteuid() != 0)
		skip();
	make_file(f->path, NOBODY);
	refused(f, -EINVAL, "another user's");
}

static void test_file_with_a_second_name(void **state)
{
	struct fixture *f = *state;
	char victim[128];

	snprintf(victim, sizeof(victim), "%s/victim", f->dir);
	make_file(victim, 0);
	assert_int_equal(link(victim, f->path), 0);
	refused(f, -EINVAL, "second name");
}

static void test_directory_that_is_not_there(void **state)
{
	struct fixture *f = *state;

	strcat(f->dir, "x");
	snprintf(f->path, sizeof(f->path), "%s/audit.jsonl", f->dir);
	refused(f, -ENOENT, "No such file or directory");
	f->dir[strlen(f->dir) - 1] = '\0';
}

static void test_removed_file(void **state)
{
	struct fixture *f = *state;

	started(f, 0, 1);
	write_number(f, 0, 300);
	assert_int_equal(unlink(f->path), 0);
	write_number(f, 1, 300);
	write_number(f, 2, 300);
	assert_numbers(f, 0, 1, 2);
	assert_int_equal(audit_lost(f->audit), 0);
}

/* logrotate's copytruncate. */
static void test_truncated_file(void **state)
{
	struct fixture *f = *state;

	started(f, 0, 1);
	write_number(f, 0, 300);
	assert_int_equal(truncate(f->path, 0), 0);
	write_number(f, 1, 300);
	assert_numbers(f, 0, 1, 1);
}

/* logrotate's create: until it says so, the old file is the one. */
static void test_moved_file(void **state)
{
	struct fixture *f = *state;
	char moved[128];

	started(f, 0, 1);
	snprintf(moved, sizeof(moved), "%s.7", f->path);
	write_number(f, 0, 300);
	assert_int_equal(rename(f->path, moved), 0);
	make_file(f->path, 0);
	write_number(f, 1, 300);
	assert_numbers(f, 7, 0, 2);
	listen_to_stderr(f);
	audit_reopen(f->audit);
	write_number(f, 2, 300);
	assert_int_equal(said(f, ""), 0);
	assert_numbers(f, 7, 0, 2);
	assert_numbers(f, 0, 2, 1);
}

static void test_half_line_of_another_time(void **state)
{
	struct fixture *f = *state;
	char *text;
	int fd;

	started(f, 0, 1);
	write_number(f, 0, 300);
	audit_free(TAKE_PTR(f->audit));
	fd = open(f->path, O_WRONLY | O_APPEND | O_CLOEXEC);
	assert_int_equal(write(fd, "{\"schema\":1,\"ti", 15), 15);
	close(fd);
	started(f, 0, 1);
	write_number(f, 1, 300);
	write_number(f, 2, 300);
	text = read_file(f->path);
	assert_int_equal(strlen(text), 300 + 16 + 600);
	assert_memory_equal(text + 300, "{\"schema\":1,\"ti\n{\"schema\":1,\"time", 33);
	free(text);
}

/* ---- rotation ---- */

static void test_rotation(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	started(f, 1000, 2);
	for (unsigned int i = 0; i < 23; i++)
		write_number(f, i, 300);
	/* three lines each: 0-2 to 12-14 are gone */
	assert_numbers(f, 2, 15, 3);
	assert_numbers(f, 1, 18, 3);
	assert_numbers(f, 0, 21, 2);
	assert_false(there_is(f, ".3"));
	assert_int_equal(stat(f->path, &st), 0);
	assert_int_equal(st.st_mode, S_IFREG | 0600);
	assert_int_equal(audit_lost(f->audit), 0);
}

/* To the byte, over a restart, and a line that is too long for any file. */
static void test_when_it_rotates(void **state)
{
	struct fixture *f = *state;

	started(f, 600, 4);
	write_number(f, 9, 4000);
	assert_false(there_is(f, ".1"));
	assert_int_equal(truncate(f->path, 0), 0);
	write_number(f, 0, 300);
	write_number(f, 1, 300);
	assert_false(there_is(f, ".1"));
	write_number(f, 2, 300);
	assert_true(there_is(f, ".1"));
	audit_free(TAKE_PTR(f->audit));
	started(f, 600, 4);
	write_number(f, 3, 301);
	assert_numbers(f, 2, 0, 2);
	assert_numbers(f, 1, 2, 1);
	write_number(f, 4, 4000);
	write_number(f, 5, 4000);
	assert_numbers(f, 2, 3, 1);
	assert_numbers(f, 1, 4, 1);
	assert_numbers(f, 0, 5, 1);
}

static void test_no_rotation(void **state)
{
	struct fixture *f = *state;

	started(f, 0, 4);
	for (unsigned int i = 0; i < 101; i++)
		write_number(f, i, 4000);
	assert_numbers(f, 0, 0, 101);
	assert_false(there_is(f, ".1"));
}

static void test_rotation_over_a_link(void **state)
{
	struct fixture *f = *state;
	char victim[128], first[128];
	struct stat st;

	snprintf(victim, sizeof(victim), "%s/victim", f->dir);
	snprintf(first, sizeof(first), "%s.1", f->path);
	make_file(victim, 0);
	assert_int_equal(symlink(victim, first), 0);
	started(f, 300, 1);
	for (unsigned int i = 0; i < 3; i++)
		write_number(f, i, 300);
	assert_int_equal(lstat(first, &st), 0);
	assert_true(S_ISREG(st.st_mode));
	assert_int_equal(stat(victim, &st), 0);
	assert_int_equal(st.st_size, 0);
	assert_numbers(f, 1, 1, 1);
}

/* Better a file that is too large than no line: said once, and tried again each time. */
static void test_rotation_that_fails(void **state)
{
	struct fixture *f = *state;
	char first[128];

	snprintf(first, sizeof(first), "%s.1", f->path);
	assert_int_equal(mkdir(first, 0700), 0);
	started(f, 600, 1);
	listen_to_stderr(f);
	for (unsigned int i = 0; i < 23; i++)
		write_number(f, i, 300);
	assert_int_equal(said(f, "rotate"), 1);
	assert_numbers(f, 0, 0, 23);
	assert_int_equal(audit_lost(f->audit), 0);
	assert_int_equal(rmdir(first), 0);
	write_number(f, 23, 300);
	assert_numbers(f, 1, 0, 23);
	assert_numbers(f, 0, 23, 1);
}

/* ---- what cannot be written ---- */

/* Somebody puts a link there meanwhile. */
static void test_path_that_becomes_a_link(void **state)
{
	struct fixture *f = *state;
	char victim[128];
	struct stat st;

	snprintf(victim, sizeof(victim), "%s/victim", f->dir);
	make_file(victim, 0);
	started(f, 0, 1);
	assert_int_equal(unlink(f->path), 0);
	assert_int_equal(symlink(victim, f->path), 0);
	listen_to_stderr(f);
	for (unsigned int i = 0; i < 7; i++)
		write_number(f, i, 300);
	audit_reopen(f->audit);
	assert_int_equal(said(f, "symbolic link"), 1);
	assert_int_equal(audit_lost(f->audit), 7);
	assert_int_equal(stat(victim, &st), 0);
	assert_int_equal(st.st_size, 0);

	assert_int_equal(unlink(f->path), 0);
	listen_to_stderr(f);
	write_number(f, 7, 300);
	write_number(f, 8, 300);
	assert_int_equal(said(f, "7 lines are missing"), 1);
	assert_numbers(f, 0, 7, 2);
	assert_int_equal(audit_lost(f->audit), 7);
}

static void limit_files(rlim_t bytes)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = bytes < limit.rlim_max ? bytes : limit.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

/* A write that stops in the middle leaves nothing. */
static void test_file_that_may_not_grow(void **state)
{
	struct fixture *f = *state;

	signal(SIGXFSZ, SIG_IGN);
	started(f, 0, 1);
	for (unsigned int i = 0; i < 3; i++)
		write_number(f, i, 300);
	listen_to_stderr(f);
	limit_files(1000);
	for (unsigned int i = 0; i < 7; i++)
		write_number(f, 0, 300);
	limit_files(RLIM_INFINITY);
	assert_int_equal(said(f, "cannot write"), 1);
	assert_int_equal(audit_lost(f->audit), 7);
	assert_numbers(f, 0, 0, 3);
	listen_to_stderr(f);
	write_number(f, 3, 300);
	assert_int_equal(said(f, "7 lines are missing"), 1);
	assert_numbers(f, 0, 0, 4);
}

/* Nor in a file that may only be added to: there the half line stands by itself. */
static void test_file_that_cannot_be_cut(void **state)
{
	struct fixture *f = *state;
	_cleanup_(closep) int fd = -1;
	int flags = FS_APPEND_FL;
	char *text;

	signal(SIGXFSZ, SIG_IGN);
	started(f, 0, 1);
	write_number(f, 0, 300);
	fd = open(f->path, O_RDONLY | O_CLOEXEC);
	if (ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0)
		skip(); /* not on this file system */
	listen_to_stderr(f);
	limit_files(400);
	write_number(f, 1, 300);
	write_number(f, 2, 300);
	limit_files(RLIM_INFINITY);
	write_number(f, 3, 300);
	write_number(f, 4, 300);
	said(f, "cannot write");
	flags = 0;
	assert_int_equal(ioctl(fd, FS_IOC_SETFLAGS, &flags), 0);
	assert_int_equal(audit_lost(f->audit), 2);
	text = read_file(f->path);
	assert_int_equal(strlen(text), 300 + 101 + 600);
	assert_memory_equal(text + 400, "\n{\"schema\"", 10);
	free(text);
}

/* Whether it could be done. */
static bool on_a_small_disk(struct fixture *f, void (*test)(struct fixture *f))
{
	if (mount("none", f->dir, "tmpfs", 0, "size=32k,nr_inodes=32") < 0)
		return false;
	test(f);
	audit_free(TAKE_PTR(f->audit));
	assert_int_equal(umount(f->dir), 0);
	return true;
}

static void fill_disk(struct fixture *f)
{
	static const char page[4096];
	char ballast[96];
	int fd;

	snprintf(ballast, sizeof(ballast), "%s/ballast", f->dir);
	fd = open(ballast, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	while (write(fd, page, sizeof(page)) > 0)
		;
	assert_int_equal(errno, ENOSPC);
	close(fd);
}

static void empty_disk(struct fixture *f)
{
	char ballast[96];

	snprintf(ballast, sizeof(ballast), "%s/ballast", f->dir);
	assert_int_equal(unlink(ballast), 0);
}

static void write_to_a_full_disk(struct fixture *f)
{
	unsigned int numbers[64], n = 0, before;

	started(f, 0, 1);
	write_number(f, n++, 300);
	fill_disk(f);
	/* what is left of its page, and half a line more */
	while (!audit_lost(f->audit) && n < 64)
		write_number(f, n++, 300);
	assert_int_equal(n, 4096 / 300 + 1);
	for (int i = 0; i < 36; i++)
		write_number(f, 0, 300);
	assert_int_equal(audit_lost(f->audit), 37);
	assert_int_equal(numbers_in(f, 0, numbers, ARRAY_SIZE(numbers)), n - 1);
	empty_disk(f);
	before = n - 1;
	for (unsigned int i = 0; i < 7; i++)
		write_number(f, before + i, 300);
	assert_int_equal(audit_lost(f->audit), 37);
	assert_numbers(f, 0, 0, before + 7);
}

/* What was there when the disk became full is not rotated away by lines that are not written. */
static void rotate_on_a_full_disk(struct fixture *f)
{
	started(f, 4096, 2);
	for (unsigned int i = 0; i < 13; i++)
		write_number(f, i, 300);
	fill_disk(f);
	for (int i = 0; i < 101; i++)
		write_number(f, 0, 300);
	assert_int_equal(audit_lost(f->audit), 101);
	assert_numbers(f, 1, 0, 13);
	assert_numbers(f, 0, 0, 0);
	assert_false(there_is(f, ".2"));
}

/* A node whose disk is full is observed all the same. */
static void start_on_a_full_disk(struct fixture *f)
{
	char other[128] = "";
	int fd, n = 0;

	do {
		snprintf(other, sizeof(other), "%s/%d", f->dir, n++);
		fd = open(other, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	} while (fd >= 0 && close(fd) == 0);
	assert_int_equal(errno, ENOSPC);
	started(f, 0, 1);
	write_number(f, 0, 300);
	assert_int_equal(audit_lost(f->audit), 1);
	snprintf(other, sizeof(other), "%s/0", f->dir);
	assert_int_equal(unlink(other), 0);
	write_number(f, 0, 300);
	assert_numbers(f, 0, 0, 1);
}

static void test_full_disk(void **state)
{
	static void (*const tests[])(struct fixture * f) = { write_to_a_full_disk,
		rotate_on_a_full_disk, start_on_a_full_disk };

	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		skip(); /* no rights */
	for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
		if (!on_a_small_disk(*state, tests[i]))
			skip();
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_a_line),
		TEST(test_what_is_not_known_is_absent),
		TEST(test_time),
		TEST(test_hostile_text),
		cmocka_unit_test(test_who),
		TEST(test_mode_whatever_the_umask),
		TEST(test_existing_file_is_added_to),
		TEST(test_symbolic_link),
		TEST(test_no_regular_file),
		TEST(test_file_of_somebody_else),
		TEST(test_file_with_a_second_name),
		TEST(test_directory_that_is_not_there),
		TEST(test_removed_file),
		TEST(test_truncated_file),
		TEST(test_moved_file),
		TEST(test_half_line_of_another_time),
		TEST(test_rotation),
		TEST(test_when_it_rotates),
		TEST(test_no_rotation),
		TEST(test_rotation_over_a_link),
		TEST(test_rotation_that_fails),
		TEST(test_path_that_becomes_a_link),
		TEST(test_file_that_may_not_grow),
		TEST(test_file_that_cannot_be_cut),
		TEST(test_full_disk),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
