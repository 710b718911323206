// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <math.h>
#include <string.h>

#include "openmetrics.h"
#include "utf8.h"
#include "util.h"

static const char *suffix_of(const struct openmetrics *o)
{
	return o->family.type == METRIC_COUNTER ? "_total" : o->family.type == METRIC_INFO ? "_info" : "";
}

/* In the classic text a family is called as its samples are, and there is no type for an info. */
static void add_family(const struct metric_family *f, void *arg)
{
	static const char *const types[] = { [METRIC_COUNTER] = "counter", [METRIC_GAUGE] = "gauge",
		[METRIC_HISTOGRAM] = "histogram", [METRIC_INFO] = "info" };
	struct openmetrics *o = arg;
	const char *suffix;

	o->family = *f;
	suffix = o->classic ? suffix_of(o) : "";
	evbuffer_add_printf(o->out, "# TYPE %s%s %s\n", f->name, suffix,
		o->classic && f->type == METRIC_INFO ? "gauge" : types[f->type]);
	if (f->unit && !o->classic)
		evbuffer_add_printf(o->out, "# UNIT %s %s\n", f->name, f->unit);
	evbuffer_add_printf(o->out, "# HELP %s%s ", f->name, suffix);
	for (const char *at = f->help; *at; at++) /* in the classic text a quote stands for itself */
		evbuffer_add_printf(o->out, *at == '\\' || (*at == '"' && !o->classic) ? "\\%c" : "%c", *at);
	evbuffer_add(o->out, "\n", 1);
}

/*
 * A name may be anything that a process calls itself, and this may be shown on a terminal: what is no
 * UTF-8, or controls something, becomes a question mark.
 */
static void add_value(struct evbuffer *out, const char *value)
{
	size_t left = strlen(value), n;
	uint32_t c;

	for (; left; value += n, left -= n) {
		n = utf8_decode((const unsigned char *)value, left, &c);
		if (!n || c < 0x20 || (c >= 0x7f && c < 0xa0)) {
			evbuffer_add(out, "?", 1);
			n = n ? n : 1;
			continue;
		}
		if (c == '"' || c == '\\')
			evbuffer_add(out, "\\", 1);
		evbuffer_add(out, value, n);
	}
}

static void add_labels(
	struct evbuffer *out, const struct metric_label *labels, size_t n, const char *le)
{
	const char *before = "{";

	for (size_t i = 0; i < n; i++) {
		if (!labels[i].value)
			continue;
		evbuffer_add_printf(out, "%s%s=\"", before, labels[i].name);
		add_value(out, labels[i].value);
		evbuffer_add(out, "\"", 1);
		before = ",";
	}
	if (le)
		evbuffer_add_printf(out, "%sle=\"%s\"", before, le);
	if (le || *before == ',')
		evbuffer_add(out, "}", 1);
}

static void add_number(struct evbuffer *out, double value)
{
	if (value == floor(value) && fabs(value) < 1e18)
		evbuffer_add_printf(out, " %.0f", value);
	else
		evbuffer_add_printf(out, " %.17g", value);
}

static void add_sample(const struct metric_label *labels, size_t n, double value, void *arg)
{
	struct openmetrics *o = arg;

	evbuffer_add_printf(o->out, "%s%s", o->family.name, suffix_of(o));
	add_labels(o->out, labels, n, NULL);
	add_number(o->out, value);
	evbuffer_add(o->out, "\n", 1);
}

static void add_exemplar(struct openmetrics *o, const struct metric_exemplar *e)
{
	if (o->classic || !e->time_ns)
		return;
	evbuffer_add_printf(o->out, " # {seq=\"%llu\"} %.9g %llu.%03llu", (unsigned long long)e->seq,
		e->value, (unsigned long long)e->time_ns / 1000000000,
		(unsigned long long)e->time_ns / 1000000 % 1000);
}

static void add_histogram(
	const struct metric_label *labels, size_t n, const struct metric_histogram *h, void *arg)
{
	struct openmetrics *o = arg;
	uint64_t sum = 0;
	char le[32];

	for (size_t i = 0; i <= h->n_bounds; i++) {
		sum += h->counts[i];
		if (i == h->n_bounds)
			strcpy(le, "+Inf");
		else
			snprintf(le, sizeof(le), h->bounds[i] == floor(h->bounds[i]) ? "%.1f" : "%.9g",
				h->bounds[i]);
		evbuffer_add_printf(o->out, "%s_bucket", o->family.name);
		add_labels(o->out, labels, n, le);
		add_number(o->out, sum);
		if (h->exemplars)
			add_exemplar(o, &h->exemplars[i]);
		evbuffer_add(o->out, "\n", 1);
	}
	evbuffer_add_printf(o->out, "%s_count", o->family.name);
	add_labels(o->out, labels, n, NULL);
	add_number(o->out, sum);
	evbuffer_add_printf(o->out, "\n%s_sum", o->family.name);
	add_labels(o->out, labels, n, NULL);
	add_number(o->out, h->sum);
	evbuffer_add(o->out, "\n", 1);
}

struct metric_sink openmetrics_sink(struct openmetrics *o)
{
	return (struct metric_sink){ add_family, add_sample, add_histogram, o };
}

void openmetrics_end(struct openmetrics *o)
{
	if (!o->classic)
		evbuffer_add_printf(o->out, "# EOF\n");
}

/* Prometheus names both and prefers the first; who names neither can read it as well. */
bool openmetrics_wants_classic(const char *accept)
{
	return accept && strcasestr(accept, "text/plain") &&
	       !strcasestr(accept, "application/openmetrics-text");
}
