// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <jansson.h>
#include <string.h>
#include <zlib.h>

#include "opentelemetry/proto/logs/v1/logs.pb-c.h"
#include "opentelemetry/proto/metrics/v1/metrics.pb-c.h"
#include "otlp_encode.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#define START 1000000000000000001
#define NOW 1800000000123456789

static const struct otlp_resource resource = {
	.n = 2, .attributes = { { "service.name", "phasewatch" }, { "host.name", "n1" } }
};

/* ---- numbers ---- */

static int one_of_each(const struct metric_sink *sink, void *arg)
{
	static const double bounds[] = { 0.5, 2 };
	static const uint64_t counts[] = { 3, 0, 4 };
	static const struct metric_exemplar exemplars[] = { { 17, 0.25, 99 }, { 0 }, { 0 } };
	const struct metric_label labels[] = { { "phase", "DRAIN" }, { "namespace", NULL },
		{ "workload", "a\xff\x01z" } };

	sink->family(&(struct metric_family){ "pw_things", NULL, "Things.", METRIC_COUNTER }, sink->arg);
	sink->number(labels, 3, 9007199254740993, sink->arg);
	sink->number(NULL, 0, 0, sink->arg);
	sink->family(&(struct metric_family){ "pw_none", NULL, "No sample.", METRIC_GAUGE }, sink->arg);
	sink->family(&(struct metric_family){ "pw_age_seconds", "seconds", "Age.", METRIC_GAUGE }, sink->arg);
	sink->number(NULL, 0, 3, sink->arg);
	sink->family(&(struct metric_family){ "pw_ring_bytes", "bytes", "Ring.", METRIC_GAUGE }, sink->arg);
	sink->number(NULL, 0, -2, sink->arg);
	sink->family(&(struct metric_family){ "pw_build", NULL, "What.", METRIC_INFO }, sink->arg);
	sink->number(labels, 1, 1, sink->arg);
	sink->family(&(struct metric_family){ "pw_delay_seconds", "seconds", "Delay.", METRIC_HISTOGRAM },
		sink->arg);
	sink->histogram(labels, 1, &(struct metric_histogram){ bounds, 2, counts, 12.5, exemplars },
		sink->arg);
	return 0;
}

static void test_metrics_in_json(void **state)
{
	static const char expected[] =
		"{\"resourceMetrics\":[{\"resource\":{\"attributes\":["
		"{\"key\":\"service.name\",\"value\":{\"stringValue\":\"phasewatch\"}},"
		"{\"key\":\"host.name\",\"value\":{\"stringValue\":\"n1\"}}]},"
		"\"scopeMetrics\":[{\"scope\":{\"name\":\"phasewatch\",\"version\":\"" PW_VERSION "\"},"
		"\"metrics\":["
		"{\"name\":\"pw_things\",\"description\":\"Things.\",\"sum\":{\"dataPoints\":["
		"{\"startTimeUnixNano\":\"1000000000000000001\",\"timeUnixNano\":\"1800000000123456789\","
		"\"asInt\":\"9007199254740992\",\"attributes\":["
		"{\"key\":\"phase\",\"value\":{\"stringValue\":\"DRAIN\"}},"
		"{\"key\":\"workload\",\"value\":{\"stringValue\":\"a??z\"}}]},"
		"{\"startTimeUnixNano\":\"1000000000000000001\",\"timeUnixNano\":\"1800000000123456789\","
		"\"asInt\":\"0\"}],"
		"\"aggregationTemporality\":2,\"isMonotonic\":true}},"
		"{\"name\":\"pw_age_seconds\",\"description\":\"Age.\",\"unit\":\"s\",\"gauge\":{\"dataPoints\":["
		"{\"timeUnixNano\":\"1800000000123456789\",\"asDouble\":3}]}},"
		"{\"name\":\"pw_ring_bytes\",\"description\":\"Ring.\",\"unit\":\"By\",\"gauge\":{\"dataPoints\":["
		"{\"timeUnixNano\":\"1800000000123456789\",\"asInt\":\"-2\"}]}},"
		"{\"name\":\"pw_build_info\",\"description\":\"What.\",\"gauge\":{\"dataPoints\":["
		"{\"timeUnixNano\":\"1800000000123456789\",\"asInt\":\"1\",\"attributes\":["
		"{\"key\":\"phase\",\"value\":{\"stringValue\":\"DRAIN\"}}]}]}},"
		"{\"name\":\"pw_delay_seconds\",\"description\":\"Delay.\",\"unit\":\"s\",\"histogram\":{"
		"\"dataPoints\":[{\"startTimeUnixNano\":\"1000000000000000001\","
		"\"timeUnixNano\":\"1800000000123456789\",\"count\":\"7\",\"sum\":12.5,"
		"\"bucketCounts\":[\"3\",\"0\",\"4\"],\"explicitBounds\":[0.5,2],"
		"\"exemplars\":[{\"timeUnixNano\":\"99\",\"asDouble\":0.25,\"filteredAttributes\":["
		"{\"key\":\"seq\",\"value\":{\"intValue\":\"17\"}}]}],"
		"\"attributes\":[{\"key\":\"phase\",\"value\":{\"stringValue\":\"DRAIN\"}}]}],"
		"\"aggregationTemporality\":2}}"
		"]}]}]}";
	struct otlp_body body;

	assert_int_equal(otlp_encode_metrics(&resource, OTLP_JSON, one_of_each, NULL, START, NOW, &body), 0);
	assert_int_equal(body.records, 6);
	assert_int_equal(body.len, sizeof(expected) - 1);
	assert_memory_equal(body.data, expected, body.len);
	free(body.data);
}

static void test_metrics_in_protobuf(void **state)
{
	Opentelemetry__Proto__Metrics__V1__MetricsData *data;
	Opentelemetry__Proto__Metrics__V1__ScopeMetrics *scope;
	Opentelemetry__Proto__Metrics__V1__HistogramDataPoint *h;
	struct otlp_body body;

	assert_int_equal(
		otlp_encode_metrics(&resource, OTLP_PROTOBUF, one_of_each, NULL, START, NOW, &body), 0);
	assert_int_equal(body.records, 6);
	data = opentelemetry__proto__metrics__v1__metrics_data__unpack(NULL, body.len, body.data);
	assert_non_null(data);
	scope = data->resource_metrics[0]->scope_metrics[0];
	assert_int_equal(scope->n_metrics, 5);
	assert_true(scope->metrics[0]->sum->data_points[0]->as_int == 9007199254740992);
	h = scope->metrics[4]->histogram->data_points[0];
	assert_true(h->count == 7 && h->sum == 12.5 && h->n_bucket_counts == 3 && h->n_explicit_bounds == 2);
	opentelemetry__proto__metrics__v1__metrics_data__free_unpacked(data, NULL);
	free(body.data);
}

static int fails(const struct metric_sink *sink, void *arg)
{
	return -EIO;
}

static void test_no_numbers(void **state)
{
	struct otlp_body body = { .len = 7 };

	assert_int_equal(otlp_encode_metrics(&resource, OTLP_JSON, fails, NULL, START, NOW, &body), -EIO);
	assert_int_equal(body.len, 7);
}

/* A request with many of everything: lists grow, memory comes in chunks, a text is larger than one. */
static int many(const struct metric_sink *sink, void *arg)
{
	static char large[100001];
	const struct metric_label labels[] = { { "large", large } };

	memset(large, 'x', sizeof(large) - 1);
	sink->family(&(struct metric_family){ "pw_many", NULL, "Many.", METRIC_COUNTER }, sink->arg);
	for (int i = 0; i < 5000; i++)
		sink->number(labels, i == 4321, i, sink->arg);
	return 0;
}

static void test_many_metrics(void **state)
{
	Opentelemetry__Proto__Metrics__V1__MetricsData *data;
	Opentelemetry__Proto__Metrics__V1__Sum *sum;
	struct otlp_body body;

	assert_int_equal(otlp_encode_metrics(&resource, OTLP_PROTOBUF, many, NULL, START, NOW, &body), 0);
	assert_int_equal(body.records, 5000);
	data = opentelemetry__proto__metrics__v1__metrics_data__unpack(NULL, body.len, body.data);
	assert_non_null(data);
	sum = data->resource_metrics[0]->scope_metrics[0]->metrics[0]->sum;
	assert_int_equal(sum->n_data_points, 5000);
	for (int i = 0; i < 5000; i++)
		assert_int_equal(sum->data_points[i]->as_int, i);
	assert_int_equal(strlen(sum->data_points[4321]->attributes[0]->value->string_value), 100000);
	opentelemetry__proto__metrics__v1__metrics_data__free_unpacked(data, NULL);
	free(body.data);
}

/* ---- events ---- */

static json_t *encode_line(const char *line)
{
	struct otlp_body body;
	json_t *request, *record;

	assert_int_equal(otlp_encode_logs(&resource, OTLP_JSON, line, strlen(line), NOW, &body), 0);
	assert_int_equal(body.records, 1);
	request = json_loadb(body.data, body.len, JSON_REJECT_DUPLICATES, NULL);
	assert_non_null(request);
	record = json_array_get(json_object_get(json_array_get(json_object_get(json_array_get(
		json_object_get(request, "resourceLogs"), 0), "scopeLogs"), 0), "logRecords"), 0);
	json_incref(record);
	json_decref(request);
	free(body.data);
	return record;
}

/* Its attribute, as {"intValue":"7"}, in text; asserts that there is just one, or with NULL none. */
static void assert_attribute(const json_t *record, const char *key, const char *expected)
{
	const json_t *attributes = json_object_get(record, "attributes"), *found = NULL;
	char *text;

	for (size_t i = 0; i < json_array_size(attributes); i++) {
		const json_t *one = json_array_get(attributes, i);

		if (strcmp(json_string_value(json_object_get(one, "key")), key))
			continue;
		assert_null(found);
		found = json_object_get(one, "value");
	}
	if (!expected) {
		assert_null(found);
		return;
	}
	if (!found)
		fail_msg("there is no %s", key);
	text = json_dumps(found, JSON_COMPACT);
	assert_string_equal(text, expected);
	free(text);
}

static const char *text_of(const json_t *record, const char *key)
{
	return json_string_value(json_object_get(record, key));
}

static void test_an_event(void **state)
{
	json_t *r = encode_line(
		"{\"schema\":1,\"time\":\"2026-11-25T06:02:33.754000001Z\",\"node\":\"n1\",\"seq\":7,"
		"\"type\":\"accept\",\"phase\":\"DRAIN\",\"phase_age_ns\":700000,\"verdict\":\"misrouted\","
		"\"subject\":{\"kind\":\"process\",\"id\":4463,\"name\":\"nginx\",\"epoch\":1,\"source\":\"api\"},"
		"\"process\":{\"pid\":4464,\"start_ns\":5,\"comm\":\"nginx\",\"exe\":\"/usr/sbin/nginx\","
		"\"cgroup\":\"/x\"},\"k8s\":{\"namespace\":\"ns\",\"pod\":\"p\",\"container\":\"c\"},"
		"\"runtime\":{\"container_id\":\"abc\"},\"src\":{\"addr\":\"10.0.0.9\",\"port\":1},"
		"\"dst\":{\"addr\":\"10.0.0.8\",\"port\":80},\"client\":{\"pid\":9,\"comm\":\"haproxy\"},"
		"\"queue_ns\":20000,\"seen_by\":\"accept\",\"new_one\":true,\"nothing\":null}\n");

	assert_string_equal(text_of(r, "timeUnixNano"), "1795586553754000001");
	assert_string_equal(text_of(r, "observedTimeUnixNano"), "1800000000123456789");
	assert_int_equal(json_integer_value(json_object_get(r, "severityNumber")), 13);
	assert_string_equal(text_of(r, "severityText"), "WARN");
	assert_string_equal(text_of(r, "eventName"), "phasewatch.accept");
	assert_string_equal(text_of(json_object_get(r, "body"), "stringValue"),
		"accept nginx[4464] nginx[4463] DRAIN +0.7ms 10.0.0.9:1 -> 10.0.0.8:80 queue 20us haproxy[9]");
	assert_attribute(r, "event.name", "{\"stringValue\":\"phasewatch.accept\"}");
	assert_attribute(r, "client.address", "{\"stringValue\":\"10.0.0.9\"}");
	assert_attribute(r, "client.port", "{\"intValue\":\"1\"}");
	assert_attribute(r, "server.address", "{\"stringValue\":\"10.0.0.8\"}");
	assert_attribute(r, "server.port", "{\"intValue\":\"80\"}");
	assert_attribute(r, "network.transport", "{\"stringValue\":\"tcp\"}");
	assert_attribute(r, "network.type", "{\"stringValue\":\"ipv4\"}");
	assert_attribute(r, "process.pid", "{\"intValue\":\"4464\"}");
	assert_attribute(r, "process.executable.path", "{\"stringValue\":\"/usr/sbin/nginx\"}");
	assert_attribute(r, "process.executable.name", "{\"stringValue\":\"nginx\"}");
	assert_attribute(r, "process.linux.cgroup", "{\"stringValue\":\"/x\"}");
	assert_attribute(r, "phasewatch.process.comm", "{\"stringValue\":\"nginx\"}");
	assert_attribute(r, "container.id", "{\"stringValue\":\"abc\"}");
	assert_attribute(r, "k8s.namespace.name", "{\"stringValue\":\"ns\"}");
	assert_attribute(r, "k8s.pod.name", "{\"stringValue\":\"p\"}");
	assert_attribute(r, "k8s.container.name", "{\"stringValue\":\"c\"}");
	assert_attribute(r, "phasewatch.seq", "{\"intValue\":\"7\"}");
	assert_attribute(r, "phasewatch.verdict", "{\"stringValue\":\"misrouted\"}");
	assert_attribute(r, "phasewatch.subject.name", "{\"stringValue\":\"nginx\"}");
	assert_attribute(r, "phasewatch.client.comm", "{\"stringValue\":\"haproxy\"}");
	assert_attribute(r, "phasewatch.queue_ns", "{\"intValue\":\"20000\"}");
	assert_attribute(r, "phasewatch.new_one", "{\"boolValue\":true}");
	assert_attribute(r, "phasewatch.nothing", NULL);
	assert_attribute(r, "phasewatch.schema", NULL);
	assert_attribute(r, "phasewatch.time", NULL);
	assert_attribute(r, "phasewatch.type", NULL);
	json_decref(r);
}

static void test_other_events(void **state)
{
	json_t *r = encode_line("{\"type\":\"backlog\",\"dropped\":3,\"listener\":{\"addr\":\"::1\",\"port\":80}}\n");

	assert_string_equal(text_of(r, "severityText"), "WARN");
	assert_attribute(r, "server.address", "{\"stringValue\":\"::1\"}");
	assert_attribute(r, "network.type", "{\"stringValue\":\"ipv6\"}");
	assert_attribute(r, "network.transport", "{\"stringValue\":\"tcp\"}");
	json_decref(r);
	r = encode_line("{\"type\":\"exit\",\"code\":3}\n");
	assert_string_equal(text_of(r, "severityText"), "INFO");
	assert_attribute(r, "process.exit.code", "{\"intValue\":\"3\"}");
	assert_attribute(r, "network.transport", NULL);
	json_decref(r);
	r = encode_line("{\"type\":\"drain\",\"report\":{\"a\":[1,{\"b\":2.5}]}}\n");
	assert_attribute(r, "phasewatch.report",
		"{\"kvlistValue\":{\"values\":[{\"key\":\"a\",\"value\":{\"arrayValue\":{\"values\":"
		"[{\"intValue\":\"1\"},{\"kvlistValue\":{\"values\":[{\"key\":\"b\",\"value\":"
		"{\"doubleValue\":2.5}}]}}]}}}]}}");
	json_decref(r);
}

static void test_severities(void **state)
{
	static const struct {
		const char *line, *severity;
	} cases[] = {
		{ "{\"type\":\"accept\",\"verdict\":\"grace\"}\n", "INFO" },
		{ "{\"type\":\"request\",\"verdict\":\"ignored\"}\n", "INFO" },
		{ "{\"type\":\"connect\",\"verdict\":\"misrouted\"}\n", "WARN" },
		{ "{\"type\":\"abandon\"}\n", "WARN" },
		{ "{\"type\":\"refused\"}\n", "WARN" },
		{ "{\"type\":\"violation\"}\n", "WARN" },
		{ "{\"type\":\"lost\"}\n", "WARN" },
		{ "{\"type\":\"phase\"}\n", "INFO" },
		{ "{\"type\":\"drain\"}\n", "INFO" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		json_t *r = encode_line(cases[i].line);

		assert_string_equal(text_of(r, "severityText"), cases[i].severity);
		json_decref(r);
	}
}

/* What is no event is left out. */
static void test_many_lines(void **state)
{
	static const char text[] = "{\"type\":\"exit\"}\nnonsense\n{\"x\":1}\n\n{\"type\":\"phase\"}\n";
	Opentelemetry__Proto__Logs__V1__LogsData *data;
	Opentelemetry__Proto__Logs__V1__ScopeLogs *scope;
	struct otlp_body body;

	assert_int_equal(otlp_encode_logs(&resource, OTLP_PROTOBUF, text, strlen(text), NOW, &body), 0);
	assert_int_equal(body.records, 2);
	data = opentelemetry__proto__logs__v1__logs_data__unpack(NULL, body.len, body.data);
	assert_non_null(data);
	scope = data->resource_logs[0]->scope_logs[0];
	assert_int_equal(scope->n_log_records, 2);
	assert_string_equal(scope->log_records[1]->event_name, "phasewatch.phase");
	opentelemetry__proto__logs__v1__logs_data__free_unpacked(data, NULL);
	free(body.data);
}

/* ---- bodies ---- */

static void test_gzip(void **state)
{
	struct otlp_body body;
	uint8_t plain[8192];
	z_stream z = { 0 };
	void *copy;
	size_t len;

	assert_int_equal(otlp_encode_metrics(&resource, OTLP_JSON, one_of_each, NULL, START, NOW, &body), 0);
	len = body.len;
	copy = malloc(len);
	memcpy(copy, body.data, len);
	assert_int_equal(otlp_gzip(&body), 0);
	assert_true(body.len < len);
	assert_int_equal(body.records, 6);
	assert_int_equal(inflateInit2(&z, 15 + 16), Z_OK);
	z.next_in = body.data;
	z.avail_in = body.len;
	z.next_out = plain;
	z.avail_out = sizeof(plain);
	assert_int_equal(inflate(&z, Z_FINISH), Z_STREAM_END);
	assert_int_equal(z.total_out, len);
	assert_memory_equal(plain, copy, len);
	inflateEnd(&z);
	free(copy);
	free(body.data);
}

static void assert_said(enum otlp_signal signal, int status, const char *type, const char *body,
	size_t len, uint64_t rejected, const char *text)
{
	struct otlp_said said;

	otlp_decode_answer(signal, status, type, body, len, &said);
	assert_int_equal(said.rejected, rejected);
	assert_string_equal(said.text, text);
}

static void test_answers(void **state)
{
	static const char partial[] = "\x0a\x06\x08\x05\x12\x02no", status[] = "\x08\x03\x12\x03"
										  "bad";
	static const char json[] = "{\"partialSuccess\":{\"rejectedDataPoints\":\"5\",\"errorMessage\":\"no\"}}";
	static const char number[] = "{\"partialSuccess\":{\"rejectedLogRecords\":5}}";
	static const char message[] = "{\"code\":3,\"message\":\"bad\"}";
	const char *protobuf = "application/x-protobuf";

	assert_said(OTLP_LOGS, 200, protobuf, partial, sizeof(partial) - 1, 5, "no");
	assert_said(OTLP_METRICS, 200, protobuf, partial, sizeof(partial) - 1, 5, "no");
	assert_said(OTLP_LOGS, 200, protobuf, "", 0, 0, "");
	assert_said(OTLP_LOGS, 400, protobuf, status, sizeof(status) - 1, 0, "bad");
	assert_said(OTLP_LOGS, 200, protobuf, partial, 3, 0, "");
	assert_said(OTLP_METRICS, 200, "application/json; charset=utf-8", json, strlen(json), 5, "no");
	assert_said(OTLP_LOGS, 200, "application/json", json, strlen(json), 0, "no");
	assert_said(OTLP_LOGS, 200, "application/json", number, strlen(number), 5, "");
	assert_said(OTLP_LOGS, 500, "application/json", message, strlen(message), 0, "bad");
	assert_said(OTLP_LOGS, 200, "application/json", "{", 1, 0, "");
	assert_said(OTLP_LOGS, 502, "text/plain", "one\r\ntwo", 8, 0, "one");
	assert_said(OTLP_LOGS, 502, "text/html", "<html>", 6, 0, "");
	assert_said(OTLP_LOGS, 502, NULL, "", 0, 0, "");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_metrics_in_json),
		cmocka_unit_test(test_metrics_in_protobuf),
		cmocka_unit_test(test_no_numbers),
		cmocka_unit_test(test_many_metrics),
		cmocka_unit_test(test_an_event),
		cmocka_unit_test(test_other_events),
		cmocka_unit_test(test_severities),
		cmocka_unit_test(test_many_lines),
		cmocka_unit_test(test_gzip),
		cmocka_unit_test(test_answers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
