/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where numbers go: families of samples, one after the other, as metrics.c hands them to whoever
 * writes them down (OpenMetrics text, OTLP). What is pointed to is valid during the call only.
 */
#ifndef PW_SINK_H
#define PW_SINK_H

#include <stddef.h>
#include <stdint.h>

enum metric_type { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM, METRIC_INFO };

struct metric_family {
	const char *name; /* without the suffix that its type asks for: _total, _info, _bucket */
	const char *unit; /* "seconds", "bytes": the name ends with it; else NULL */
	const char *help;
	enum metric_type type;
};

struct metric_label {
	const char *name, *value; /* value NULL: this sample has it not */
};

/* An event that is in a bucket. */
struct metric_exemplar {
	uint64_t seq; /* of the event */
	double value;
	uint64_t time_ns; /* CLOCK_REALTIME; 0: there is none */
};

struct metric_histogram {
	const double *bounds; /* upper ones, rising; the last bucket has none */
	size_t n_bounds;
	const uint64_t *counts; /* of each bucket on its own: n_bounds + 1 */
	double sum;
	const struct metric_exemplar *exemplars; /* n_bounds + 1, or NULL */
};

struct metric_sink {
	void (*family)(const struct metric_family *family, void *arg);
	/* Of the last family; of counters and gauges, and 1 for an info. */
	void (*number)(const struct metric_label *labels, size_t n, double value, void *arg);
	void (*histogram)(const struct metric_label *labels, size_t n,
		const struct metric_histogram *h, void *arg);
	void *arg;
};

#endif /* PW_SINK_H */
