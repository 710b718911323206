// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <ctype.h>
#include <errno.h>
#include <event2/http.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "otlp_options.h"
#include "util.h"

#define INTERVAL_NS (60 * NS_PER_S) /* these two are OpenTelemetry's own */
#define TIMEOUT_NS (10 * NS_PER_S)
#define GENERIC "OTEL_EXPORTER_OTLP_"

static const char *const compressions[] = { [1] = "none", [2] = "gzip" };
const struct names otlp_compression_names = { compressions, ARRAY_SIZE(compressions) };

static const char *const infixes[] = { [OTLP_METRICS] = "METRICS_", [OTLP_LOGS] = "LOGS_" };
static const char *const paths[] = { [OTLP_METRICS] = "/v1/metrics", [OTLP_LOGS] = "/v1/logs" };

/* What is read, and what for; `name` is the variable that was found. */
struct reading {
	const struct otlp_options *options;
	enum otlp_signal signal;
	char name[64];
	char *why;
	size_t why_len;
};

#define REFUSE(r, err, ...) fail_with((r)->why, (r)->why_len, err, __VA_ARGS__)

/* A variable that is empty is one that is not set. */
static const char *variable(struct reading *r, const char *what)
{
	const char *value;

	snprintf(r->name, sizeof(r->name), GENERIC "%s%s", infixes[r->signal], what);
	value = getenv(r->name);
	if (value && *value)
		return value;
	snprintf(r->name, sizeof(r->name), GENERIC "%s", what);
	value = getenv(r->name);
	return value && *value ? value : NULL;
}

/* Without a name and password in it: it is logged. */
static bool is_url(const char *text)
{
	struct evhttp_uri *uri = evhttp_uri_parse(text);
	const char *scheme = uri ? evhttp_uri_get_scheme(uri) : NULL;
	const char *host = uri ? evhttp_uri_get_host(uri) : NULL;
	bool good = scheme && host && *host && (!strcasecmp(scheme, "http") || !strcasecmp(scheme, "https")) &&
		    !evhttp_uri_get_userinfo(uri) && !evhttp_uri_get_fragment(uri);

	if (uri)
		evhttp_uri_free(uri);
	return good;
}

static bool is_off(enum otlp_signal signal)
{
	const char *exporter = getenv(signal == OTLP_LOGS ? "OTEL_LOGS_EXPORTER" : "OTEL_METRICS_EXPORTER");
	const char *disabled = getenv("OTEL_SDK_DISABLED");

	return (exporter && !strcasecmp(exporter, "none")) || (disabled && !strcasecmp(disabled, "true"));
}

/* A base gets the signal's path; the variable of one signal is the whole URL. */
static int read_endpoint(struct reading *r, struct otlp_target *to)
{
	const char *origin = "--otlp-endpoint", *url = r->options->endpoint;
	size_t len;
	bool whole;

	if (!url) {
		url = is_off(r->signal) ? NULL : variable(r, "ENDPOINT");
		origin = r->name;
	}
	if (!url || !*url)
		return 0;
	if (!is_url(url))
		return REFUSE(r, -EINVAL, "%s '%.200s' is no URL such as http://127.0.0.1:4318", origin, url);
	whole = origin == r->name &&
		!strncmp(origin + sizeof(GENERIC) - 1, infixes[r->signal], strlen(infixes[r->signal]));
	len = strlen(url);
	while (!whole && url[len - 1] == '/')
		len--;
	if (asprintf(&to->url, "%.*s%s", (int)len, url, whole ? "" : paths[r->signal]) < 0) {
		to->url = NULL;
		return REFUSE(r, -ENOMEM, "out of memory");
	}
	return 0;
}

/* An enum's value, of the option or a variable; 0: neither is given. */
static int read_choice(
	struct reading *r, uint32_t option, const char *what, const struct names *names, uint32_t *ret)
{
	const char *value = option ? NULL : variable(r, what);
	int choice = value ? names_parse(names, value) : (int)option;

	if (choice < 0)
		return REFUSE(r, -EINVAL, "%s '%.80s': expected %s or %s", r->name, value,
			names->name[1], names->name[2]);
	*ret = choice;
	return 0;
}

static int read_ms(struct reading *r, const char *name, const char *value, uint64_t *ret_ns)
{
	uint64_t ms;

	if (parse_u64(value, &ms) < 0 || !ms || ms > 3600 * 1000)
		return REFUSE(r, -EINVAL, "%s '%.80s': expected milliseconds, 1..3600000", name, value);
	*ret_ns = ms * NS_PER_MS;
	return 0;
}

static int read_file(
	struct reading *r, const char *option, const char *value, const char *what, const char **ret)
{
	if (value)
		snprintf(r->name, sizeof(r->name), "%s", option);
	else
		value = variable(r, what);
	if (value && access(value, R_OK) < 0)
		return REFUSE(r, -EACCES, "%s: cannot read %.200s: %s", r->name, value, strerror(errno));
	*ret = value;
	return 0;
}

/* RFC 9110: a name is a token; a value has no control characters. */
static bool is_header(const char *name, size_t len, const char *value)
{
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("!#$%&'*+-.^_`|~", name[i]))
			return false;
	for (; *value; value++)
		if ((unsigned char)*value < 0x20 || *value == 0x7f)
			return false;
	return len;
}

/* Replaces one of the same name: options come last. */
static int set_header(
	struct reading *r, const char *origin, const char *name, size_t len, const char *value,
	struct otlp_target *to)
{
	size_t i = 0;
	char *header;

	if (!is_header(name, len, value))
		return REFUSE(r, -EINVAL, "%s: '%.*s' is no name of a header, or its value is none", origin,
			(int)(len < 80 ? len : 80), name);
	while (i < to->n_headers && (strncasecmp(to->headers[i], name, len) || to->headers[i][len] != ':'))
		i++;
	if (i == OTLP_HEADERS)
		return REFUSE(r, -EINVAL, "%s: there are more than %d headers", origin, OTLP_HEADERS);
	if (asprintf(&header, "%.*s: %s", (int)len, name, value) < 0)
		return REFUSE(r, -ENOMEM, "out of memory");
	if (i == to->n_headers)
		to->n_headers++;
	else
		free(to->headers[i]);
	to->headers[i] = header;
	return 0;
}

/*
 * Takes KEY=VALUE from a list as W3C Baggage has it: pairs with commas between them, spaces around
 * them, values percent-encoded. NULL: that was the last one; `*key` is NULL where it is no pair.
 */
static char *take_pair(char **list, char **key)
{
	char *pair = strsep(list, ","), *value, *end;

	while (pair && !*(pair += strspn(pair, " \t")))
		pair = strsep(list, ",");
	if (!pair)
		return NULL;
	value = strchr(pair, '=');
	*key = value && value > pair ? pair : NULL;
	if (!*key)
		return pair;
	*value++ = '\0';
	value += strspn(value, " \t");
	for (end = value + strlen(value); end > value && strchr(" \t", end[-1]); end--)
		;
	*end = '\0';
	for (end = *key + strlen(*key); end > *key && strchr(" \t", end[-1]); end--)
		;
	*end = '\0';
	end = evhttp_uridecode(value, 0, NULL);
	if (end) /* never longer */
		strcpy(value, end);
	free(end);
	return value;
}

static int read_headers(struct reading *r, struct otlp_target *to)
{
	const char *list = variable(r, "HEADERS");
	_cleanup_(freep) char *copy = list ? strdup(list) : NULL;
	char *rest = copy, *key, *value;
	int err;

	while (rest && (value = take_pair(&rest, &key))) {
		if (!key)
			return REFUSE(r, -EINVAL, "%s: expected NAME=VALUE,... and not '%.80s'", r->name, value);
		err = set_header(r, r->name, key, strlen(key), value, to);
		if (err)
			return err;
	}
	for (size_t i = 0; i < r->options->headers.count; i++) {
		const char *text = r->options->headers.values[i], *equals = strchr(text, '=');

		if (!equals)
			return REFUSE(r, -EINVAL, "--otlp-header '%.80s': expected NAME=VALUE", text);
		err = set_header(r, "--otlp-header", text, equals - text, equals + 1, to);
		if (err)
			return err;
	}
	return 0;
}

static int read_timeout(struct reading *r, struct otlp_target *to)
{
	const char *value = r->options->timeout_ns ? NULL : variable(r, "TIMEOUT");

	to->timeout_ns = r->options->timeout_ns ? r->options->timeout_ns : TIMEOUT_NS;
	return value ? read_ms(r, r->name, value, &to->timeout_ns) : 0;
}

static int read_files(struct reading *r, struct otlp_target *to)
{
	const struct otlp_options *o = r->options;
	int err = read_file(r, "--otlp-ca", o->ca, "CERTIFICATE", &to->ca);

	if (!err)
		err = read_file(r, "--otlp-cert", o->cert, "CLIENT_CERTIFICATE", &to->cert);
	if (!err)
		err = read_file(r, "--otlp-key", o->key, "CLIENT_KEY", &to->key);
	if (!err && !to->cert != !to->key)
		return REFUSE(r, -EINVAL, "a client's certificate and its key go together: "
			"--otlp-%s is missing", to->cert ? "key" : "cert");
	return err;
}

static int read_target(struct reading *r, struct otlp_target *to)
{
	uint32_t protocol = 0, compression = 0;
	int err = read_endpoint(r, to);

	if (err || !to->url)
		return err;
	err = read_choice(r, r->options->protocol, "PROTOCOL", &otlp_protocol_names, &protocol);
	if (!err)
		err = read_choice(r, r->options->compression, "COMPRESSION", &otlp_compression_names,
			&compression);
	to->protocol = protocol ? protocol : OTLP_PROTOBUF;
	to->gzip = compression == 2;
	if (!err)
		err = read_files(r, to);
	if (!err)
		err = read_timeout(r, to);
	return err ? err : read_headers(r, to);
}

/* The last one that says so is right. */
static bool set_attribute(struct otlp_resource *r, const char *key, const char *value)
{
	size_t i = 0;

	if (!value)
		return true;
	while (i < r->n && strcmp(r->attributes[i].key, key))
		i++;
	if (i == OTLP_ATTRIBUTES)
		return false;
	r->attributes[i].key = key;
	r->attributes[i].value = value;
	r->n += i == r->n;
	return true;
}

static int read_resource(struct reading *r, const char *node, const char *node_name,
	struct otlp_settings *s)
{
	const char *list = getenv("OTEL_RESOURCE_ATTRIBUTES"), *service = getenv("OTEL_SERVICE_NAME");
	char *rest, *key, *value;

	set_attribute(&s->resource, "service.name", "phasewatch");
	set_attribute(&s->resource, "service.version", PW_VERSION);
	set_attribute(&s->resource, "service.instance.id", node);
	set_attribute(&s->resource, "host.name", node);
	set_attribute(&s->resource, "os.type", "linux");
	set_attribute(&s->resource, "k8s.node.name", node_name);
	s->attributes = strdup(list ? list : "");
	for (rest = s->attributes; rest && (value = take_pair(&rest, &key));) {
		if (!key)
			return REFUSE(r, -EINVAL,
				"OTEL_RESOURCE_ATTRIBUTES: expected KEY=VALUE,... and not '%.80s'", value);
		if (!set_attribute(&s->resource, key, value))
			return REFUSE(r, -EINVAL, "OTEL_RESOURCE_ATTRIBUTES: there are more than %d",
				OTLP_ATTRIBUTES);
	}
	set_attribute(&s->resource, "service.name", service && *service ? service : NULL);
	return 0;
}

int otlp_settings_read(const struct otlp_options *o, const char *node, const char *node_name,
	struct otlp_settings *ret, char *why, size_t why_len)
{
	struct reading r = { .options = o, .why = why, .why_len = why_len };
	const char *interval = getenv("OTEL_METRIC_EXPORT_INTERVAL");
	struct otlp_settings s = { .interval_ns = o->interval_ns ? o->interval_ns : INTERVAL_NS };
	int err = 0;

	for (; !err && r.signal < OTLP_SIGNALS; r.signal++)
		err = read_target(&r, &s.targets[r.signal]);
	if (!err && otlp_settings_on(&s)) {
		err = read_resource(&r, node, node_name, &s);
		if (!err && !o->interval_ns && interval && *interval)
			err = read_ms(&r, "OTEL_METRIC_EXPORT_INTERVAL", interval, &s.interval_ns);
	}
	if (err)
		otlp_settings_free(&s);
	else
		*ret = s;
	return err;
}

void otlp_settings_free(struct otlp_settings *s)
{
	for (unsigned int i = 0; i < OTLP_SIGNALS; i++) {
		free(s->targets[i].url);
		for (size_t h = 0; h < s->targets[i].n_headers; h++)
			free(s->targets[i].headers[h]);
	}
	free(s->attributes);
	*s = (struct otlp_settings){ 0 };
}

bool otlp_settings_on(const struct otlp_settings *s)
{
	return s->targets[OTLP_METRICS].url || s->targets[OTLP_LOGS].url;
}
