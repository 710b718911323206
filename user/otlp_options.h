/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Where numbers and events are pushed to, and how: from the options of `run` and the environment
 * variables that OpenTelemetry has for it. An option beats the variables, and one for a single signal
 * (OTEL_EXPORTER_OTLP_LOGS_...) beats the one for all.
 */
#ifndef PW_OTLP_OPTIONS_H
#define PW_OTLP_OPTIONS_H

#include <stdbool.h>

#include "opts.h"
#include "otlp_encode.h"

#define OTLP_HEADERS (2 * OPTS_LIST_MAX)

extern const struct names otlp_compression_names;

/* As on the command line; NULL and 0: not given. */
struct otlp_options {
	const char *endpoint;
	uint32_t protocol;    /* enum otlp_protocol */
	uint32_t compression; /* of otlp_compression_names */
	struct opts_list headers;
	const char *ca, *cert, *key;
	uint64_t interval_ns;
	uint64_t timeout_ns;
};

struct otlp_target {
	char *url; /* NULL: this signal is not pushed */
	enum otlp_protocol protocol;
	bool gzip;
	const char *ca, *cert, *key;
	uint64_t timeout_ns;
	size_t n_headers;
	char *headers[OTLP_HEADERS]; /* "Name: value" */
};

struct otlp_settings {
	struct otlp_target targets[OTLP_SIGNALS];
	struct otlp_resource resource;
	uint64_t interval_ns;
	char *attributes; /* what `resource` points into */
};

/*
 * `node` is this host's name, and `node_name` the one that Kubernetes has for it, or NULL; they and
 * the options stay valid. -EINVAL, or -EACCES for a file: `why` has a sentence.
 */
int otlp_settings_read(const struct otlp_options *o, const char *node, const char *node_name,
	struct otlp_settings *ret, char *why, size_t why_len);
void otlp_settings_free(struct otlp_settings *s);
bool otlp_settings_on(const struct otlp_settings *s);

#endif /* PW_OTLP_OPTIONS_H */
