/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* All numbers of the daemon and the kernel half, by workload where they have one. */
#ifndef PW_METRICS_H
#define PW_METRICS_H

#include "declare.h"
#include "kernel.h"
#include "otlp.h"
#include "sink.h"
#include "stream.h"
#include "subjects.h"
#include "workloads.h"

struct metrics_of {
	const struct kernel *kernel;
	const struct subjects *subjects;
	struct workloads *workloads;
	const struct declare *declare;
	const struct stream *stream;
	const uint64_t *notified; /* messages by enum notify_result, or NULL */
	uint64_t turned_away;	  /* connections to the API */
	const struct otlp *otlp;  /* or NULL */
	/* what no workload had so far, for this module's own use: zero at first */
	struct pw_tally rest;
};

/* -ENOMEM, or what the kernel said; then nothing has been handed on. */
int metrics_collect(struct metrics_of *of, const struct metric_sink *sink);

#endif /* PW_METRICS_H */
