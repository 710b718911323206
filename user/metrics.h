/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The counters as OpenMetrics text. */
#ifndef PW_METRICS_H
#define PW_METRICS_H

#include <event2/buffer.h>

#include "declare.h"
#include "kernel.h"
#include "subjects.h"

#define METRICS_CONTENT_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"

struct metrics_of {
	const struct kernel *kernel;
	const struct subjects *subjects;
	const struct declare *declare;
	const uint64_t *notified; /* messages by enum notify_result, or NULL */
	uint64_t turned_away;	  /* connections to the API */
};

int metrics_write(struct evbuffer *out, const struct metrics_of *of);

#endif /* PW_METRICS_H */
