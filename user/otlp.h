/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Pushes numbers, every so often, and events, as they come, to receivers of the OpenTelemetry
 * protocol: one request of each signal at a time, again and again with growing pauses while the
 * receiver is not there or says so (429, 502, 503, 504). Numbers that are not delivered when new ones
 * are due are dropped for these. Events wait, up to OTLP_QUEUE_BYTES; when that is full newer ones are
 * dropped, and a `lost` event in their place counts them. Nothing here blocks.
 */
#ifndef PW_OTLP_H
#define PW_OTLP_H

#include <event2/event.h>

#include "otlp_options.h"
#include "stream.h"

#define OTLP_QUEUE_BYTES (8u << 20)
#define OTLP_BATCH 512 /* events a request, as OpenTelemetry's own exporters have it */

/* Why something is not delivered. */
enum otlp_reason {
	OTLP_QUEUE_FULL,
	OTLP_SUPERSEDED, /* newer numbers were due */
	OTLP_REJECTED,	 /* the whole request, by another status */
	OTLP_PARTIAL,	 /* a part of one that was accepted */
	OTLP_MEMORY,
	OTLP_REASONS,
};

extern const struct names otlp_reason_names;

struct otlp_stats {
	struct {
		uint64_t exported; /* data points, or events */
		uint64_t dropped[OTLP_REASONS];
		uint64_t retries; /* requests that were sent once more */
		uint64_t queued;
	} signals[OTLP_SIGNALS];
};

/* The pauses between tries; for tests others than OTLP_PAUSES. */
struct otlp_pauses {
	uint64_t first_ns, longest_ns;
	uint64_t batch_ns; /* how long an event waits for others */
};

#define OTLP_PAUSES { .first_ns = NS_PER_S, .longest_ns = 30 * NS_PER_S, .batch_ns = NS_PER_S }

struct otlp_context {
	struct event_base *base;
	struct stream *stream;
	otlp_collect_fn collect;
	void *arg; /* for it */
	uint64_t start_ns; /* CLOCK_REALTIME: since when it counts */
	struct otlp_pauses pauses;
};

struct otlp;

/* `settings` stay valid. */
int otlp_new(struct otlp **ret, const struct otlp_context *context,
	const struct otlp_settings *settings, char *why, size_t why_len);
/* What has not been delivered by then is lost; says how much that is. */
void otlp_free(struct otlp *o);

/*
 * Sends what there is, the numbers once more, and then calls done(arg): from the loop, also when it
 * could not be delivered, at once if all is delivered or `o` is NULL.
 */
void otlp_finish(struct otlp *o, void (*done)(void *arg), void *arg);

void otlp_stats(const struct otlp *o, struct otlp_stats *ret);
/* The same as numbers; nothing if `o` is NULL. */
void otlp_collect(const struct otlp *o, const struct metric_sink *sink);

#endif /* PW_OTLP_H */
