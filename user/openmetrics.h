/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Numbers as text: OpenMetrics 1.0, or what Prometheus read before that. */
#ifndef PW_OPENMETRICS_H
#define PW_OPENMETRICS_H

#include <event2/buffer.h>
#include <stdbool.h>

#include "sink.h"

#define OPENMETRICS_CONTENT_TYPE "application/openmetrics-text; version=1.0.0; charset=utf-8"
#define CLASSIC_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

struct openmetrics {
	struct evbuffer *out;
	bool classic;
	struct metric_family family; /* the last one; its texts have to outlive the next call */
};

struct metric_sink openmetrics_sink(struct openmetrics *o);
/* After the last family. */
void openmetrics_end(struct openmetrics *o);
/* Whether who asks with this Accept header (or NULL) wants the classic text. */
bool openmetrics_wants_classic(const char *accept);

#endif /* PW_OPENMETRICS_H */
