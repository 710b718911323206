// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "bpf/abi.h"
#include "filter.h"
#include "names.h"
#include "opts.h"
#include "proc.h"

static int set_bit(uint32_t *mask, const struct names *names, const char *value)
{
	int i = names_parse(names, value);

	if (i < 0)
		return i;
	*mask |= 1u << i;
	return 0;
}

static int add_pid(struct filter *f, const char *value)
{
	uint64_t number;
	int err = parse_u64(value, &number);

	if (err)
		return err;
	if (number < 1 || number > PID_MAX || f->n_pids == FILTER_VALUES)
		return -ERANGE;
	f->pids[f->n_pids++] = number;
	return 0;
}

static int add_subject(struct filter *f, const char *value)
{
	if (!*value)
		return -EINVAL;
	if (strlen(value) >= FILTER_TEXT || f->n_subjects == FILTER_VALUES)
		return -ERANGE;
	strcpy(f->subjects[f->n_subjects++], value);
	return 0;
}

/* Digits after the point, as nanoseconds; moves behind them. */
static uint64_t parse_fraction(const char **text)
{
	uint64_t ns = 0, unit = NS_PER_S / 10;

	for (; isdigit((unsigned char)**text); (*text)++, unit /= 10)
		ns += (**text - '0') * unit;
	return ns;
}

/* Z, or +01:00: seconds that local time is ahead. */
static int parse_offset(const char *text, int *ret)
{
	unsigned int hours, minutes;
	int end = 0;

	if (strcmp(text, "Z") == 0 || strcmp(text, "z") == 0) {
		*ret = 0;
		return 0;
	}
	if ((*text != '+' && *text != '-') || !isdigit((unsigned char)text[1]) ||
		sscanf(text + 1, "%2u:%2u%n", &hours, &minutes, &end) != 2 || end != 5 ||
		text[6] || hours > 23 || minutes > 59)
		return -EINVAL;
	*ret = (hours * 60 + minutes) * 60 * (*text == '-' ? -1 : 1);
	return 0;
}

static int parse_rfc3339(const char *text, uint64_t *ret_ns)
{
	struct tm tm = { 0 };
	uint64_t ns = 0;
	time_t seconds;
	int ahead;

	/* which strptime() is not strict about */
	if (strspn(text, "0123456789") != 4 || strlen(text) < sizeof("2026-01-02T03:04:05"))
		return -EINVAL;
	text = strptime(text, "%Y-%m-%d", &tm);
	if (!text || (*text != 'T' && *text != 't'))
		return -EINVAL;
	text = strptime(text + 1, "%H:%M:%S", &tm);
	if (!text)
		return -EINVAL;
	if (*text == '.') {
		text++;
		if (!isdigit((unsigned char)*text))
			return -EINVAL;
		ns = parse_fraction(&text);
	}
	if (parse_offset(text, &ahead) < 0)
		return -EINVAL;
	seconds = timegm(&tm) - ahead;
	if (seconds < 0 || (uint64_t)seconds > UINT64_MAX / NS_PER_S - 1)
		return -ERANGE;
	*ret_ns = seconds * NS_PER_S + ns;
	return 0;
}

int filter_parse_time(const char *text, uint64_t now_ns, uint64_t *ret_ns)
{
	uint64_t ago;
	int err;

	if (strchr(text, '-'))
		return parse_rfc3339(text, ret_ns);
	err = parse_duration(text, &ago);
	if (!err)
		*ret_ns = ago < now_ns ? now_ns - ago : 0;
	return err;
}

int filter_set(struct filter *f, const char *name, const char *value, uint64_t now_ns)
{
	if (strcmp(name, "type") == 0)
		return set_bit(&f->types, &shown_event_type_names, value);
	if (strcmp(name, "phase") == 0)
		return set_bit(&f->phases, &phase_names, value);
	if (strcmp(name, "verdict") == 0)
		return set_bit(&f->verdicts, &shown_verdict_names, value);
	if (strcmp(name, "pid") == 0)
		return add_pid(f, value);
	if (strcmp(name, "subject") == 0)
		return add_subject(f, value);
	if (strcmp(name, "since") == 0)
		return filter_parse_time(value, now_ns, &f->since_ns);
	return -ENOENT;
}

static bool has_pid(const struct filter *f, pid_t pid)
{
	for (size_t i = 0; i < f->n_pids; i++)
		if (f->pids[i] == pid)
			return true;
	return false;
}

bool filter_is_subject(const char *wanted, uint64_t id, const char *name)
{
	size_t len = name ? strlen(name) : 0;
	char digits[24];

	snprintf(digits, sizeof(digits), "%" PRIu64, id);
	if (strcmp(wanted, digits) == 0 || (name && strcmp(wanted, name) == 0))
		return true;
	if (name && strncmp(wanted, name, len) != 0)
		return false;
	wanted += len;
	return *wanted == '[' && strncmp(wanted + 1, digits, strlen(digits)) == 0 &&
	       strcmp(wanted + 1 + strlen(digits), "]") == 0;
}

static bool has_subject(const struct filter *f, const struct event_gist *g)
{
	for (size_t i = 0; i < f->n_subjects; i++)
		if (g->subject_id && filter_is_subject(f->subjects[i], g->subject_id, g->subject_name))
			return true;
	return false;
}

bool filter_passes(const struct filter *f, const struct event_gist *g)
{
	if (g->time_ns < f->since_ns)
		return false;
	if (g->type == PW_EV_LOST)
		return true;
	return (!f->types || f->types >> g->type & 1) && (!f->phases || f->phases >> g->phase & 1) &&
	       (!f->verdicts || f->verdicts >> g->verdict & 1) &&
	       (!f->n_pids || has_pid(f, g->pid) || has_pid(f, g->subject)) &&
	       (!f->n_subjects || has_subject(f, g));
}

/* 0, as where there is none, for a name that a newer daemon may know. */
static unsigned int value_of(const json_t *event, const char *key, const struct names *names)
{
	const char *text = json_string_value(json_object_get(event, key));
	int value = text ? names_parse(names, text) : 0;

	return value > 0 ? value : 0;
}

static uint64_t number_of(const json_t *object, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(object, key));

	return value > 0 ? value : 0;
}

bool filter_read(const json_t *event, struct event_gist *ret)
{
	const json_t *subject = json_object_get(event, "subject");
	const char *kind = json_string_value(json_object_get(subject, "kind"));
	const char *time = json_string_value(json_object_get(event, "time"));
	uint64_t pid = number_of(json_object_get(event, "process"), "pid");

	*ret = (struct event_gist){ .type = value_of(event, "type", &shown_event_type_names),
		.phase = value_of(event, "phase", &phase_names),
		.verdict = value_of(event, "verdict", &verdict_names),
		.subject_id = number_of(subject, "id"),
		.subject_name = json_string_value(json_object_get(subject, "name")),
		.pid = pid <= PID_MAX ? pid : 0 };
	if (!json_is_string(json_object_get(event, "type")) || !time || parse_rfc3339(time, &ret->time_ns) < 0)
		return false;
	if (kind && names_parse(&kind_names, kind) == PW_KIND_PROCESS && ret->subject_id <= PID_MAX)
		ret->subject = ret->subject_id;
	return true;
}
