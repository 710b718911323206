/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Numbers and events as requests of the OpenTelemetry protocol (OTLP/HTTP), and what a receiver
 * answers. Pure. The messages are in proto/: a tree of them is built, then written either way.
 */
#ifndef PW_OTLP_ENCODE_H
#define PW_OTLP_ENCODE_H

#include <stddef.h>
#include <stdint.h>

#include "names.h"
#include "sink.h"

enum otlp_signal { OTLP_METRICS, OTLP_LOGS, OTLP_SIGNALS };
enum otlp_protocol { OTLP_PROTOBUF = 1, OTLP_JSON };

extern const struct names otlp_signal_names;
extern const struct names otlp_protocol_names;

#define OTLP_ATTRIBUTES 64

/* What the numbers and events come from. */
struct otlp_resource {
	size_t n;
	struct {
		const char *key, *value;
	} attributes[OTLP_ATTRIBUTES];
};

/* A request's body; `data` is malloc'ed. */
struct otlp_body {
	void *data;
	size_t len;
	size_t records; /* data points, or log records */
};

typedef int (*otlp_collect_fn)(const struct metric_sink *sink, void *arg);

/* Times are CLOCK_REALTIME; counters began at `start_ns`. What `collect` returns, or -ENOMEM. */
int otlp_encode_metrics(const struct otlp_resource *r, enum otlp_protocol protocol,
	otlp_collect_fn collect, void *arg, uint64_t start_ns, uint64_t now_ns,
	struct otlp_body *ret);
/* `lines` are events as event_write() writes them. */
int otlp_encode_logs(const struct otlp_resource *r, enum otlp_protocol protocol, const char *lines,
	size_t len, uint64_t now_ns, struct otlp_body *ret);
/* The body as gzip(1) would have it, in place. */
int otlp_gzip(struct otlp_body *body);

/* What a receiver says beside its status; `text` is "" if it gives no words. */
struct otlp_said {
	uint64_t rejected; /* of the records */
	char text[256];
};
void otlp_decode_answer(enum otlp_signal signal, int status, const char *content_type,
	const void *body, size_t len, struct otlp_said *ret);

#endif /* PW_OTLP_ENCODE_H */
