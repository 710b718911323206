// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <zlib.h>

#include "google/rpc/status.pb-c.h"
#include "opentelemetry/proto/collector/logs/v1/logs_service.pb-c.h"
#include "opentelemetry/proto/collector/metrics/v1/metrics_service.pb-c.h"
#include "opentelemetry/proto/logs/v1/logs.pb-c.h"
#include "opentelemetry/proto/metrics/v1/metrics.pb-c.h"

#include "compact.h"
#include "otlp_encode.h"
#include "proto_json.h"
#include "utf8.h"
#include "util.h"

#define CHUNK (64u << 10)
#define GZIP_WINDOW (15 + 16) /* zlib.h: 16 is for gzip(1)'s header */
#define COMPACT_TIME "00:00:00.000"

static const char *const signals[] = { [OTLP_METRICS] = "metrics", [OTLP_LOGS] = "logs" };
const struct names otlp_signal_names = { signals, ARRAY_SIZE(signals) };
static const char *const protocols[] = { [OTLP_PROTOBUF] = "http/protobuf", [OTLP_JSON] = "http/json" };
const struct names otlp_protocol_names = { protocols, ARRAY_SIZE(protocols) };

/* protobuf-c's names, in short. */
typedef Opentelemetry__Proto__Common__V1__AnyValue AnyValue;
typedef Opentelemetry__Proto__Common__V1__KeyValue KeyValue;
typedef Opentelemetry__Proto__Common__V1__ArrayValue ArrayValue;
typedef Opentelemetry__Proto__Common__V1__KeyValueList KeyValueList;
typedef Opentelemetry__Proto__Common__V1__InstrumentationScope Scope;
typedef Opentelemetry__Proto__Resource__V1__Resource Resource;
typedef Opentelemetry__Proto__Metrics__V1__MetricsData MetricsData;
typedef Opentelemetry__Proto__Metrics__V1__ResourceMetrics ResourceMetrics;
typedef Opentelemetry__Proto__Metrics__V1__ScopeMetrics ScopeMetrics;
typedef Opentelemetry__Proto__Metrics__V1__Metric Metric;
typedef Opentelemetry__Proto__Metrics__V1__Gauge Gauge;
typedef Opentelemetry__Proto__Metrics__V1__Sum Sum;
typedef Opentelemetry__Proto__Metrics__V1__Histogram Histogram;
typedef Opentelemetry__Proto__Metrics__V1__NumberDataPoint NumberDataPoint;
typedef Opentelemetry__Proto__Metrics__V1__HistogramDataPoint HistogramDataPoint;
typedef Opentelemetry__Proto__Metrics__V1__Exemplar Exemplar;
typedef Opentelemetry__Proto__Logs__V1__LogsData LogsData;
typedef Opentelemetry__Proto__Logs__V1__ResourceLogs ResourceLogs;
typedef Opentelemetry__Proto__Logs__V1__ScopeLogs ScopeLogs;
typedef Opentelemetry__Proto__Logs__V1__LogRecord LogRecord;
typedef Opentelemetry__Proto__Collector__Logs__V1__ExportLogsServiceResponse LogsResponse;
typedef Opentelemetry__Proto__Collector__Metrics__V1__ExportMetricsServiceResponse MetricsResponse;
#define COMMON(name) &opentelemetry__proto__common__v1__##name##__descriptor
#define METRICS(name) &opentelemetry__proto__metrics__v1__##name##__descriptor
#define LOGS(name) &opentelemetry__proto__logs__v1__##name##__descriptor
#define ANY_VALUE(kind) OPENTELEMETRY__PROTO__COMMON__V1__ANY_VALUE__VALUE_##kind
#define CUMULATIVE                                                                                 \
	OPENTELEMETRY__PROTO__METRICS__V1__AGGREGATION_TEMPORALITY__AGGREGATION_TEMPORALITY_CUMULATIVE

/* ---- a tree of messages in memory that is freed as a whole; lack of memory sticks ---- */

struct chunk {
	struct chunk *next;
	size_t used, size;
	char data[] __attribute__((aligned(16)));
};

struct tree {
	struct chunk *chunks;
	bool failed;
};

static void tree_free(struct tree *t)
{
	struct chunk *next;

	for (; t->chunks; t->chunks = next) {
		next = t->chunks->next;
		free(t->chunks);
	}
}

/* NULL: no memory. */
static void *take(struct tree *t, size_t n)
{
	struct chunk *c = t->chunks;

	n = (n + 15) & ~(size_t)15;
	if (!c || c->size - c->used < n) {
		size_t size = n > CHUNK ? n : CHUNK;

		c = malloc(sizeof(*c) + size);
		if (!c) {
			t->failed = true;
			return NULL;
		}
		*c = (struct chunk){ .next = t->chunks, .size = size };
		t->chunks = c;
	}
	c->used += n;
	return c->data + c->used - n;
}

static void *new_message(struct tree *t, const ProtobufCMessageDescriptor *d)
{
	void *m = take(t, d->sizeof_message);

	if (m)
		protobuf_c_message_init(d, m);
	return m;
}

/* A list doubles where its length is a power of two. False: no memory. */
static bool append_item(struct tree *t, void ***list, size_t *n, void *item)
{
	if (!item)
		return false;
	if (!(*n & (*n - 1))) {
		void **longer = take(t, (*n ? 2 * *n : 1) * sizeof(*longer));

		if (!longer)
			return false;
		if (*n)
			memcpy(longer, *list, *n * sizeof(*longer));
		*list = longer;
	}
	(*list)[(*n)++] = item;
	return true;
}
#define APPEND(t, message, field, item)                                                            \
	append_item(t, (void ***)&(message)->field, &(message)->n_##field, item)

/* As the text of OpenMetrics has it: one series, one spelling. */
static char *copy_text(struct tree *t, const char *text, size_t len)
{
	char *copy = take(t, len + 1), *p = copy;
	uint32_t c;
	size_t n;

	if (!copy)
		return NULL;
	for (; len; text += n, len -= n) {
		n = utf8_decode((const unsigned char *)text, len, &c);
		if (!n || c < 0x20 || (c >= 0x7f && c < 0xa0)) {
			*p++ = '?';
			n = n ? n : 1;
			continue;
		}
		memcpy(p, text, n);
		p += n;
	}
	*p = '\0';
	return copy;
}

static AnyValue *text_value(struct tree *t, const char *text, size_t len)
{
	AnyValue *v = new_message(t, COMMON(any_value));

	if (!v)
		return NULL;
	v->value_case = ANY_VALUE(STRING_VALUE);
	v->string_value = copy_text(t, text, len);
	return v->string_value ? v : NULL;
}

static AnyValue *int_value(struct tree *t, int64_t number)
{
	AnyValue *v = new_message(t, COMMON(any_value));

	if (!v)
		return NULL;
	v->value_case = ANY_VALUE(INT_VALUE);
	v->int_value = number;
	return v;
}

static KeyValue *key_value(struct tree *t, const char *key, AnyValue *value)
{
	KeyValue *kv = value ? new_message(t, COMMON(key_value)) : NULL;

	if (!kv)
		return NULL;
	kv->key = copy_text(t, key, strlen(key));
	kv->value = value;
	return kv->key ? kv : NULL;
}

static KeyValue *key_text(struct tree *t, const char *key, const char *text)
{
	return key_value(t, key, text_value(t, text, strlen(text)));
}

static Resource *new_resource(struct tree *t, const struct otlp_resource *r)
{
	Resource *m = new_message(t, &opentelemetry__proto__resource__v1__resource__descriptor);

	for (size_t i = 0; m && i < r->n; i++)
		APPEND(t, m, attributes, key_text(t, r->attributes[i].key, r->attributes[i].value));
	return m;
}

static Scope *new_scope(struct tree *t)
{
	Scope *m = new_message(t, COMMON(instrumentation_scope));

	if (m) {
		m->name = "phasewatch";
		m->version = PW_VERSION;
	}
	return m;
}

/* Outputs are written on success only. */
static int write_tree(const struct tree *t, enum otlp_protocol protocol, const ProtobufCMessage *m,
	size_t records, struct otlp_body *ret)
{
	struct otlp_body body = { .records = records };
	struct json_out j = { 0 };

	if (t->failed)
		return -ENOMEM;
	if (protocol == OTLP_JSON) {
		json_open(&j, NULL, '{');
		proto_json_write(&j, m);
		json_close(&j, '}');
		if (j.failed) {
			json_free(&j);
			return -ENOMEM;
		}
		body.data = j.text;
		body.len = j.len;
	} else {
		body.len = protobuf_c_message_get_packed_size(m);
		body.data = malloc(body.len);
		if (!body.data)
			return -ENOMEM;
		protobuf_c_message_pack(m, body.data);
	}
	*ret = body;
	return 0;
}

/* ---- numbers ---- */

struct numbers {
	struct tree *tree;
	ScopeMetrics *scope;
	struct metric_family family;
	Metric *metric; /* of the family, once it has a sample */
	uint64_t start_ns, now_ns;
	size_t points;
};

static void on_family(const struct metric_family *family, void *arg)
{
	struct numbers *n = arg;

	n->family = *family;
	n->metric = NULL;
}

static bool set_data(struct tree *t, Metric *m, enum metric_type type)
{
	switch (type) {
	case METRIC_COUNTER:
		m->data_case = OPENTELEMETRY__PROTO__METRICS__V1__METRIC__DATA_SUM;
		m->sum = new_message(t, METRICS(sum));
		if (!m->sum)
			return false;
		m->sum->is_monotonic = true;
		m->sum->aggregation_temporality = CUMULATIVE;
		return true;
	case METRIC_HISTOGRAM:
		m->data_case = OPENTELEMETRY__PROTO__METRICS__V1__METRIC__DATA_HISTOGRAM;
		m->histogram = new_message(t, METRICS(histogram));
		if (!m->histogram)
			return false;
		m->histogram->aggregation_temporality = CUMULATIVE;
		return true;
	default:
		m->data_case = OPENTELEMETRY__PROTO__METRICS__V1__METRIC__DATA_GAUGE;
		m->gauge = new_message(t, METRICS(gauge));
		return m->gauge;
	}
}

/* Names stay as they are in the text; OTLP's unit names are UCUM's, and it has no infos. */
static Metric *metric_of(struct numbers *n)
{
	const struct metric_family *f = &n->family;
	const char *unit = f->unit ? f->unit : "";
	Metric *m = n->metric;
	char name[128];

	if (m)
		return m;
	m = new_message(n->tree, METRICS(metric));
	if (!m || !set_data(n->tree, m, f->type))
		return NULL;
	snprintf(name, sizeof(name), "%s%s", f->name, f->type == METRIC_INFO ? "_info" : "");
	m->name = copy_text(n->tree, name, strlen(name));
	m->description = copy_text(n->tree, f->help, strlen(f->help));
	unit = !strcmp(unit, "seconds") ? "s" : !strcmp(unit, "bytes") ? "By" : unit;
	m->unit = copy_text(n->tree, unit, strlen(unit));
	if (!m->name || !m->description || !m->unit || !APPEND(n->tree, n->scope, metrics, m))
		return NULL;
	n->metric = m;
	return m;
}

#define ADD_LABELS(n, point, labels, count)                                                        \
	for (size_t i_ = 0; i_ < (count); i_++)                                                    \
		if ((labels)[i_].value)                                                            \
	APPEND((n)->tree, point, attributes, key_text((n)->tree, (labels)[i_].name, (labels)[i_].value))

/* What is counted is an integer, times are not: all points of one metric are of one kind. */
static void on_number(const struct metric_label *labels, size_t count, double value, void *arg)
{
	struct numbers *n = arg;
	Metric *m = metric_of(n);
	NumberDataPoint *p = m ? new_message(n->tree, METRICS(number_data_point)) : NULL;

	if (!p)
		return;
	ADD_LABELS(n, p, labels, count);
	p->time_unix_nano = n->now_ns;
	if (n->family.type == METRIC_COUNTER)
		p->start_time_unix_nano = n->start_ns;
	if ((!n->family.unit || strcmp(n->family.unit, "seconds")) && value == floor(value) &&
		fabs(value) < 0x1p63) {
		p->value_case = OPENTELEMETRY__PROTO__METRICS__V1__NUMBER_DATA_POINT__VALUE_AS_INT;
		p->as_int = value;
	} else {
		p->value_case = OPENTELEMETRY__PROTO__METRICS__V1__NUMBER_DATA_POINT__VALUE_AS_DOUBLE;
		p->as_double = value;
	}
	if (n->family.type == METRIC_COUNTER ? APPEND(n->tree, m->sum, data_points, p) :
					       APPEND(n->tree, m->gauge, data_points, p))
		n->points++;
}

static Exemplar *new_exemplar(struct tree *t, const struct metric_exemplar *from)
{
	Exemplar *e = new_message(t, METRICS(exemplar));

	if (!e)
		return NULL;
	e->time_unix_nano = from->time_ns;
	e->value_case = OPENTELEMETRY__PROTO__METRICS__V1__EXEMPLAR__VALUE_AS_DOUBLE;
	e->as_double = from->value;
	APPEND(t, e, filtered_attributes, key_value(t, "seq", int_value(t, from->seq)));
	return e;
}

static void on_histogram(const struct metric_label *labels, size_t count,
	const struct metric_histogram *h, void *arg)
{
	struct numbers *n = arg;
	Metric *m = metric_of(n);
	HistogramDataPoint *p = m ? new_message(n->tree, METRICS(histogram_data_point)) : NULL;
	size_t buckets = h->n_bounds + 1;

	if (!p)
		return;
	ADD_LABELS(n, p, labels, count);
	p->start_time_unix_nano = n->start_ns;
	p->time_unix_nano = n->now_ns;
	p->optional_sum_case =
		OPENTELEMETRY__PROTO__METRICS__V1__HISTOGRAM_DATA_POINT__OPTIONAL_SUM_SUM;
	p->sum = h->sum;
	p->bucket_counts = take(n->tree, buckets * sizeof(*p->bucket_counts));
	p->explicit_bounds = take(n->tree, h->n_bounds * sizeof(*p->explicit_bounds));
	if (!p->bucket_counts || !p->explicit_bounds)
		return;
	memcpy(p->bucket_counts, h->counts, buckets * sizeof(*p->bucket_counts));
	memcpy(p->explicit_bounds, h->bounds, h->n_bounds * sizeof(*p->explicit_bounds));
	p->n_bucket_counts = buckets;
	p->n_explicit_bounds = h->n_bounds;
	for (size_t i = 0; i < buckets; i++) {
		p->count += h->counts[i];
		if (h->exemplars && h->exemplars[i].time_ns)
			APPEND(n->tree, p, exemplars, new_exemplar(n->tree, &h->exemplars[i]));
	}
	if (APPEND(n->tree, m->histogram, data_points, p))
		n->points++;
}

int otlp_encode_metrics(const struct otlp_resource *r, enum otlp_protocol protocol,
	otlp_collect_fn collect, void *arg, uint64_t start_ns, uint64_t now_ns,
	struct otlp_body *ret)
{
	_cleanup_(tree_free) struct tree t = { 0 };
	struct numbers n = { .tree = &t, .start_ns = start_ns, .now_ns = now_ns };
	const struct metric_sink sink = { on_family, on_number, on_histogram, &n };
	MetricsData *data = new_message(&t, METRICS(metrics_data));
	ResourceMetrics *of = new_message(&t, METRICS(resource_metrics));
	int err;

	n.scope = new_message(&t, METRICS(scope_metrics));
	if (t.failed)
		return -ENOMEM;
	of->resource = new_resource(&t, r);
	n.scope->scope = new_scope(&t);
	APPEND(&t, of, scope_metrics, n.scope);
	APPEND(&t, data, resource_metrics, of);
	err = collect(&sink, arg);
	return err ? err : write_tree(&t, protocol, &data->base, n.points, ret);
}

/* ---- events ---- */

/* Fields of an event that have a name among OpenTelemetry's; others are phasewatch.FIELD. */
static const struct {
	const char *field, *attribute; /* NULL: told in another way */
} conventions[] = {
	{ "schema", NULL },
	{ "time", NULL },
	{ "node", NULL },
	{ "type", NULL },
	{ "src.addr", "client.address" },
	{ "src.port", "client.port" },
	{ "dst.addr", "server.address" },
	{ "dst.port", "server.port" },
	{ "listener.addr", "server.address" },
	{ "listener.port", "server.port" },
	{ "process.pid", "process.pid" },
	{ "process.exe", "process.executable.path" },
	{ "process.cgroup", "process.linux.cgroup" },
	{ "code", "process.exit.code" },
	{ "k8s.namespace", "k8s.namespace.name" },
	{ "k8s.pod", "k8s.pod.name" },
	{ "k8s.container", "k8s.container.name" },
	{ "runtime.container_id", "container.id" },
};

static AnyValue *json_value(struct tree *t, const json_t *from);

static AnyValue *object_value(struct tree *t, const json_t *from)
{
	AnyValue *v = new_message(t, COMMON(any_value));
	KeyValueList *list = new_message(t, COMMON(key_value_list));
	const char *key;
	json_t *field;

	if (!v || !list)
		return NULL;
	v->value_case = ANY_VALUE(KVLIST_VALUE);
	v->kvlist_value = list;
	json_object_foreach((json_t *)from, key, field)
		APPEND(t, list, values, key_value(t, key, json_value(t, field)));
	return v;
}

static AnyValue *array_value(struct tree *t, const json_t *from)
{
	AnyValue *v = new_message(t, COMMON(any_value));
	ArrayValue *list = new_message(t, COMMON(array_value));

	if (!v || !list)
		return NULL;
	v->value_case = ANY_VALUE(ARRAY_VALUE);
	v->array_value = list;
	for (size_t i = 0; i < json_array_size(from); i++)
		APPEND(t, list, values, json_value(t, json_array_get(from, i)));
	return v;
}

/* NULL for a null, too. */
static AnyValue *json_value(struct tree *t, const json_t *from)
{
	AnyValue *v;

	switch (json_typeof(from)) {
	case JSON_OBJECT:
		return object_value(t, from);
	case JSON_ARRAY:
		return array_value(t, from);
	case JSON_STRING:
		return text_value(t, json_string_value(from), json_string_length(from));
	case JSON_INTEGER:
		return int_value(t, json_integer_value(from));
	case JSON_NULL:
		return NULL;
	default:
		break;
	}
	v = new_message(t, COMMON(any_value));
	if (!v)
		return NULL;
	if (json_is_real(from)) {
		v->value_case = ANY_VALUE(DOUBLE_VALUE);
		v->double_value = json_real_value(from);
	} else {
		v->value_case = ANY_VALUE(BOOL_VALUE);
		v->bool_value = json_is_true(from);
	}
	return v;
}

/* A program is called as its file is. */
static void add_executable(struct tree *t, LogRecord *r, const json_t *path)
{
	const char *text = json_string_value(path), *slash = text ? strrchr(text, '/') : NULL;

	if (slash && slash[1])
		APPEND(t, r, attributes, key_text(t, "process.executable.name", slash + 1));
}

static void add_address(struct tree *t, LogRecord *r, const json_t *address)
{
	const char *text = json_string_value(address);

	if (text)
		APPEND(t, r, attributes,
			key_text(t, "network.type", strchr(text, ':') ? "ipv6" : "ipv4"));
}

static void add_field(struct tree *t, LogRecord *r, const char *path, const json_t *value)
{
	char name[128];

	for (size_t i = 0; i < ARRAY_SIZE(conventions); i++)
		if (!strcmp(path, conventions[i].field)) {
			if (!conventions[i].attribute)
				return;
			snprintf(name, sizeof(name), "%s", conventions[i].attribute);
			goto named;
		}
	snprintf(name, sizeof(name), "phasewatch.%s", path);
named:
	if (!json_is_null(value))
		APPEND(t, r, attributes, key_value(t, name, json_value(t, value)));
	if (!strcmp(path, "process.exe"))
		add_executable(t, r, value);
	else if (!strcmp(path, "dst.addr") || !strcmp(path, "listener.addr"))
		add_address(t, r, value);
}

/* The parts of an event's objects are attributes each; a report is one. */
static void add_fields(struct tree *t, LogRecord *r, const json_t *event)
{
	const char *key, *part;
	json_t *value, *of;
	char path[96];

	json_object_foreach((json_t *)event, key, value) {
		if (!json_is_object(value) || !strcmp(key, "report")) {
			add_field(t, r, key, value);
			continue;
		}
		json_object_foreach(value, part, of) {
			snprintf(path, sizeof(path), "%s.%s", key, part);
			add_field(t, r, path, of);
		}
	}
	if (json_object_get(event, "dst") || json_object_get(event, "listener"))
		APPEND(t, r, attributes, key_text(t, "network.transport", "tcp"));
}

static uint64_t parse_time(const char *text)
{
	unsigned int ns;
	struct tm tm = { 0 };

	if (!text || sscanf(text, "%4d-%2d-%2dT%2d:%2d:%2d.%9uZ", &tm.tm_year, &tm.tm_mon, &tm.tm_mday,
			     &tm.tm_hour, &tm.tm_min, &tm.tm_sec, &ns) != 7)
		return 0;
	tm.tm_year -= 1900;
	tm.tm_mon--;
	return timegm(&tm) * UINT64_C(1000000000) + ns;
}

/* What should not have happened, and what nobody can be shown. */
static bool is_warning(const char *type, const char *verdict)
{
	static const char *const types[] = { "abandon", "backlog", "refused", "violation", "lost" };

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (!strcmp(type, types[i]))
			return true;
	return verdict && !strcmp(verdict, "misrouted");
}

/* The line that 'phasewatch events' shows, without the time and its columns. */
static AnyValue *body_of(struct tree *t, json_t *event)
{
	_cleanup_(freep) char *text = NULL;
	size_t len = 0, to = 0;
	FILE *out = open_memstream(&text, &len);

	if (!out)
		goto failed;
	compact_print(out, event, false);
	if (fclose(out) != 0 || !text)
		goto failed;
	for (size_t i = sizeof(COMPACT_TIME) - 1; i < len && text[i] != '\n'; i++)
		if (text[i] != ' ' || (to && text[to - 1] != ' '))
			text[to++] = text[i];
	return text_value(t, text, to);
failed:
	t->failed = true;
	return NULL;
}

static bool add_event(struct tree *t, ScopeLogs *scope, json_t *event, uint64_t now_ns)
{
	const char *type = json_string_value(json_object_get(event, "type"));
	const char *verdict = json_string_value(json_object_get(event, "verdict"));
	LogRecord *r = type ? new_message(t, LOGS(log_record)) : NULL;
	bool warning;
	char name[64];

	if (!r)
		return false;
	warning = is_warning(type, verdict);
	r->time_unix_nano = parse_time(json_string_value(json_object_get(event, "time")));
	r->observed_time_unix_nano = now_ns;
	r->severity_number = warning ?
		OPENTELEMETRY__PROTO__LOGS__V1__SEVERITY_NUMBER__SEVERITY_NUMBER_WARN :
		OPENTELEMETRY__PROTO__LOGS__V1__SEVERITY_NUMBER__SEVERITY_NUMBER_INFO;
	r->severity_text = warning ? "WARN" : "INFO";
	snprintf(name, sizeof(name), "phasewatch.%s", type);
	r->event_name = copy_text(t, name, strlen(name));
	/* for receivers from before the field of that name */
	APPEND(t, r, attributes, key_text(t, "event.name", name));
	add_fields(t, r, event);
	r->body = body_of(t, event);
	return r->event_name && APPEND(t, scope, log_records, r);
}

int otlp_encode_logs(const struct otlp_resource *r, enum otlp_protocol protocol, const char *lines,
	size_t len, uint64_t now_ns, struct otlp_body *ret)
{
	_cleanup_(tree_free) struct tree t = { 0 };
	LogsData *data = new_message(&t, LOGS(logs_data));
	ResourceLogs *of = new_message(&t, LOGS(resource_logs));
	ScopeLogs *scope = new_message(&t, LOGS(scope_logs));
	const char *end = lines + len;
	size_t n = 0;

	if (t.failed)
		return -ENOMEM;
	of->resource = new_resource(&t, r);
	scope->scope = new_scope(&t);
	APPEND(&t, of, scope_logs, scope);
	APPEND(&t, data, resource_logs, of);
	while (lines < end && !t.failed) {
		const char *newline = memchr(lines, '\n', end - lines);
		size_t length = (newline ? newline : end) - lines;
		json_t *event = json_loadb(lines, length, 0, NULL);

		if (event && add_event(&t, scope, event, now_ns))
			n++;
		json_decref(event);
		lines += length + 1;
	}
	return write_tree(&t, protocol, &data->base, n, ret);
}

/* ---- bodies ---- */

int otlp_gzip(struct otlp_body *body)
{
	z_stream z = { 0 };
	uint8_t *to = NULL;
	size_t size;

	if (deflateInit2(&z, Z_BEST_SPEED, Z_DEFLATED, GZIP_WINDOW, 8, Z_DEFAULT_STRATEGY) != Z_OK)
		return -ENOMEM;
	size = deflateBound(&z, body->len);
	to = malloc(size);
	z.next_in = body->data;
	z.avail_in = body->len;
	z.next_out = to;
	z.avail_out = size;
	if (!to || deflate(&z, Z_FINISH) != Z_STREAM_END) {
		free(to);
		deflateEnd(&z);
		return -ENOMEM;
	}
	free(body->data);
	body->data = to;
	body->len = z.total_out;
	deflateEnd(&z);
	return 0;
}

static void say(struct otlp_said *s, const char *text)
{
	snprintf(s->text, sizeof(s->text), "%s", text ? text : "");
}

static void decode_json(enum otlp_signal signal, int status, const void *body, size_t len,
	struct otlp_said *s)
{
	json_t *answer = json_loadb(body, len, 0, NULL);
	const json_t *partial = json_object_get(answer, "partialSuccess");
	const json_t *rejected = json_object_get(partial,
		signal == OTLP_LOGS ? "rejectedLogRecords" : "rejectedDataPoints");

	/* 64-bit integers are strings, and some write numbers */
	s->rejected = json_is_string(rejected) ?
		strtoull(json_string_value(rejected), NULL, 10) :
		(uint64_t)json_integer_value(rejected);
	say(s, json_string_value(status < 300 ? json_object_get(partial, "errorMessage") :
						json_object_get(answer, "message")));
	json_decref(answer);
}

static void decode_protobuf(enum otlp_signal signal, int status, const void *body, size_t len,
	struct otlp_said *s)
{
	const ProtobufCMessageDescriptor *d =
		status >= 300	      ? &google__rpc__status__descriptor :
		signal == OTLP_LOGS ? &opentelemetry__proto__collector__logs__v1__export_logs_service_response__descriptor :
				      &opentelemetry__proto__collector__metrics__v1__export_metrics_service_response__descriptor;
	ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, len, body);

	if (!m)
		return;
	if (status >= 300) {
		say(s, ((Google__Rpc__Status *)m)->message);
	} else if (signal == OTLP_LOGS && ((LogsResponse *)m)->partial_success) {
		s->rejected = ((LogsResponse *)m)->partial_success->rejected_log_records;
		say(s, ((LogsResponse *)m)->partial_success->error_message);
	} else if (signal == OTLP_METRICS && ((MetricsResponse *)m)->partial_success) {
		s->rejected = ((MetricsResponse *)m)->partial_success->rejected_data_points;
		say(s, ((MetricsResponse *)m)->partial_success->error_message);
	}
	protobuf_c_message_free_unpacked(m, NULL);
}

void otlp_decode_answer(enum otlp_signal signal, int status, const char *content_type,
	const void *body, size_t len, struct otlp_said *ret)
{
	struct otlp_said s = { 0 };

	if (content_type && !strncasecmp(content_type, "application/json", 16)) {
		decode_json(signal, status, body, len, &s);
	} else if (content_type && !strncasecmp(content_type, "application/x-protobuf", 22)) {
		decode_protobuf(signal, status, body, len, &s);
	} else if (content_type && !strncasecmp(content_type, "text/plain", 10)) {
		snprintf(s.text, sizeof(s.text), "%.*s", (int)len, (const char *)body);
		s.text[strcspn(s.text, "\r\n")] = '\0';
	}
	*ret = s;
}
