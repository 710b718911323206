// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <jansson.h>
#include <string.h>

#include "stream.h"
#include "names.h"
#include "util.h"

/* after our own: it has macros with plain names */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

static const struct event_names names = { .node = "n1" };
static const struct filter everything = { 0 };

struct gist {
	enum pw_event_type type;
	uint8_t phase;
	uint8_t verdict;
	pid_t pid;
	pid_t subject;
};

static void publish_gist(struct stream *s, uint64_t seq, const struct gist *g)
{
	struct pw_verdict_on on = { .key = { .kind = PW_KIND_PROCESS, .id = g->subject },
		.phase = g->phase,
		.verdict = g->verdict };
	struct pw_process process = { .pid = g->pid, .comm = "x" };
	struct event e = { .type = g->type, .seq = seq, .time_ns = seq * 1000 };

	switch (g->type) {
	case PW_EV_ACCEPT:
	case PW_EV_CONNECT:
		e.conn.h.type = g->type;
		e.conn.on = on;
		e.conn.process = process;
		break;
	case PW_EV_EXIT:
		e.exit.on = on;
		e.exit.process = process;
		break;
	case PW_EV_PHASE:
		e.phase.key = on.key;
		e.phase.now.phase = g->phase;
		break;
	default:
		fail_msg("no such event");
	}
	assert_int_equal(stream_publish(s, &e, &names), 0);
}

static void publish(struct stream *s, uint64_t seq)
{
	static const struct gist accept = { PW_EV_ACCEPT, PW_DRAIN, PW_MISROUTED, 11, 10 };

	publish_gist(s, seq, &accept);
}

/* `count` records that the ring had no room for: they stand for as many sequence numbers. */
static void publish_lost(struct stream *s, uint64_t seq, uint64_t count)
{
	struct event e = { .type = PW_EV_LOST,
		.seq = seq,
		.time_ns = seq * 1000,
		.lost = { .stage = "ring", .count = count, .by_type = { [PW_EV_EXIT] = count } } };

	assert_int_equal(stream_publish(s, &e, &names), 0);
}

/* The lines in the buffer, parsed; it is empty then. */
static json_t *lines(struct evbuffer *b)
{
	json_t *all = json_array();
	char *line;
	size_t len;

	while ((line = evbuffer_readln(b, &len, EVBUFFER_EOL_LF))) {
		json_error_t error;
		json_t *value = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);

		if (!value)
			fail_msg("%s in %s", error.text, line);
		assert_int_equal(json_array_append_new(all, value), 0);
		free(line);
	}
	assert_int_equal(evbuffer_get_length(b), 0); /* no half line */
	return all;
}

static uint64_t number(const json_t *line, const char *key)
{
	assert_true(json_is_integer(json_object_get(line, key)));
	return json_integer_value(json_object_get(line, key));
}

/* Takes the lines and checks their sequence numbers. */
static void assert_seqs(struct evbuffer *b, size_t n, const uint64_t *seqs)
{
	json_t *all = lines(b);

	assert_int_equal(json_array_size(all), n);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(number(json_array_get(all, i), "seq"), seqs[i]);
	json_decref(all);
}

#define ASSERT_SEQS(b, ...)                                                                        \
	do {                                                                                       \
		const uint64_t seqs_[] = { __VA_ARGS__ };                                          \
		assert_seqs(b, ARRAY_SIZE(seqs_), seqs_);                                          \
	} while (0)

/* first..last, each once. */
static void assert_range(struct evbuffer *b, uint64_t first, uint64_t last)
{
	json_t *all = lines(b);

	assert_int_equal(json_array_size(all), last - first + 1);
	for (uint64_t seq = first; seq <= last; seq++)
		assert_int_equal(number(json_array_get(all, seq - first), "seq"), seq);
	json_decref(all);
}

struct sink {
	struct evbuffer *got;
	size_t waiting; /* what the other end has not taken, as far as the stream is told */
	unsigned int sends;
	struct follower *follower;
};

static void sink_send(struct evbuffer *data, void *arg)
{
	struct sink *sink = arg;

	sink->sends++;
	assert_int_equal(evbuffer_add_buffer(sink->got, data), 0);
}

static size_t sink_backlog(void *arg)
{
	const struct sink *sink = arg;

	return sink->waiting;
}

static void sink_free(struct sink *sink)
{
	evbuffer_free(sink->got);
}

static void sink_follow(struct sink *sink, struct stream *s, const struct filter *filter)
{
	*sink = (struct sink){ .got = evbuffer_new() };
	assert_non_null(sink->got);
	assert_int_equal(
		stream_follow(s, filter, STREAM_LINES, sink_send, sink_backlog, sink, &sink->follower), 0);
}

static int set_up(void **state)
{
	return stream_new((struct stream **)state);
}

static int tear_down(void **state)
{
	stream_free(*state);
	return 0;
}

static void assert_recent(struct stream *s, const struct filter *f, size_t last,
	uint64_t first_seq, uint64_t last_seq)
{
	struct evbuffer *out = evbuffer_new();

	stream_recent(s, f, STREAM_LINES, last, out);
	assert_range(out, first_seq, last_seq);
	evbuffer_free(out);
}

static void assert_none(struct stream *s, const struct filter *f, size_t last)
{
	struct evbuffer *out = evbuffer_new();

	stream_recent(s, f, STREAM_LINES, last, out);
	assert_int_equal(evbuffer_get_length(out), 0);
	evbuffer_free(out);
}

static void test_recent(void **state)
{
	struct stream *s = *state;

	assert_none(s, &everything, SIZE_MAX);
	for (uint64_t seq = 1; seq <= 23; seq++)
		publish(s, seq);
	assert_recent(s, &everything, SIZE_MAX, 1, 23);
	assert_recent(s, &everything, 24, 1, 23);
	assert_recent(s, &everything, 23, 1, 23);
	assert_recent(s, &everything, 22, 2, 23);
	assert_recent(s, &everything, 1, 23, 23);
	assert_none(s, &everything, 0);
	/* reading takes nothing away */
	assert_recent(s, &everything, SIZE_MAX, 1, 23);
}

static void test_recent_is_bounded(void **state)
{
	struct stream *s = *state;

	for (uint64_t seq = 0; seq < STREAM_RECENT; seq++)
		publish(s, seq);
	assert_recent(s, &everything, SIZE_MAX, 0, STREAM_RECENT - 1);
	publish(s, STREAM_RECENT);
	assert_recent(s, &everything, SIZE_MAX, 1, STREAM_RECENT);
	for (uint64_t seq = STREAM_RECENT + 1; seq < 3 * STREAM_RECENT + 37; seq++)
		publish(s, seq);
	assert_recent(s, &everything, SIZE_MAX, 2 * STREAM_RECENT + 37, 3 * STREAM_RECENT + 36);
	assert_recent(
		s, &everything, STREAM_RECENT + 1, 2 * STREAM_RECENT + 37, 3 * STREAM_RECENT + 36);
	assert_recent(s, &everything, 101, 3 * STREAM_RECENT - 64, 3 * STREAM_RECENT + 36);
}

/* A short line takes the place of a long one, and the other way round. */
static void test_recent_of_all_lengths(void **state)
{
	struct event e = { .type = PW_EV_PHASE,
		.phase = { .key = { .kind = PW_KIND_PROCESS, .id = 1 },
			.now = { .phase = PW_INIT } } };
	struct stream *s = *state;
	char subject[2000];
	struct event_names n = { .node = "n1", .subject = subject };
	struct evbuffer *out = evbuffer_new();
	json_t *all;

	for (size_t i = 0; i < 3 * STREAM_RECENT; i++) {
		size_t len = i * 7919 % (sizeof(subject) - 1);

		memset(subject, 'x', len);
		subject[len] = '\0';
		e.seq = i;
		assert_int_equal(stream_publish(s, &e, &n), 0);
	}
	stream_recent(s, &everything, STREAM_LINES, SIZE_MAX, out);
	all = lines(out);
	assert_int_equal(json_array_size(all), STREAM_RECENT);
	for (size_t i = 0; i < STREAM_RECENT; i++) {
		size_t seq = 2 * STREAM_RECENT + i;
		const json_t *line = json_array_get(all, i);

		assert_int_equal(number(line, "seq"), seq);
		assert_int_equal(json_string_length(
					 json_object_get(json_object_get(line, "subject"), "name")),
			seq * 7919 % (sizeof(subject) - 1));
	}
	json_decref(all);
	evbuffer_free(out);
}

static void test_filters(void **state)
{
	static const struct gist gists[] = {
		{ PW_EV_ACCEPT, PW_DRAIN, PW_MISROUTED, 11, 10 },
		{ PW_EV_ACCEPT, PW_DRAIN, PW_GRACE, 12, 10 },
		{ PW_EV_CONNECT, PW_SHUTDOWN, PW_MISROUTED, 12, 10 },
		{ PW_EV_EXIT, PW_SHUTDOWN, PW_MISROUTED, 11, 10 },
		{ PW_EV_PHASE, PW_DRAIN, 0, 0, 20 },
		{ PW_EV_ACCEPT, PW_INIT, PW_MISROUTED, 20, 20 },
		{ PW_EV_ACCEPT, PW_UNDECLARED, PW_OK, 31, 30 },
	};
	static const uint32_t accept = 1u << PW_EV_ACCEPT, connect = 1u << PW_EV_CONNECT,
			      phase = 1u << PW_EV_PHASE, drain = 1u << PW_DRAIN,
			      shutdown = 1u << PW_SHUTDOWN, misrouted = 1u << PW_MISROUTED,
			      grace = 1u << PW_GRACE;
	const struct {
		struct filter filter;
		const char *pass; /* one letter an event of the table */
	} cases[] = {
		{ { 0 }, "yyyyyyy" },
		{ { .types = accept }, "yy...yy" },
		{ { .types = accept | connect }, "yyy..yy" }, /* OR within a key */
		{ { .phases = drain }, "yy..y.." },
		{ { .phases = drain | shutdown }, "yyyyy.." },
		{ { .phases = 1u << PW_UNDECLARED }, "......y" },
		/* an exit or phase event has no verdict */
		{ { .verdicts = misrouted }, "y.y..y." },
		{ { .verdicts = misrouted | grace }, "yyy..y." },
		{ { .types = accept, .phases = drain }, "yy....." }, /* AND between them */
		{ { .types = accept | connect, .phases = drain | shutdown, .verdicts = misrouted },
			"y.y...." },
		{ { .types = phase, .phases = drain }, "....y.." },
		{ { .types = phase, .verdicts = misrouted }, "......." },
		/* the process's, or its subject's */
		{ { .n_pids = 1, .pids = { 11 } }, "y..y..." },
		{ { .n_pids = 1, .pids = { 10 } }, "yyyy..." },
		{ { .n_pids = 2, .pids = { 11, 20 } }, "y..yyy." },
		{ { .n_pids = 1, .pids = { 99 } }, "......." },
		{ { .types = accept, .n_pids = 2, .pids = { 12, 20 } }, ".y...y." },
	};
	struct stream *s = *state;
	struct sink sinks[ARRAY_SIZE(cases)];

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
		sink_follow(&sinks[i], s, &cases[i].filter);
	for (size_t g = 0; g < ARRAY_SIZE(gists); g++)
		publish_gist(s, g, &gists[g]);
	stream_flush(s);

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		struct evbuffer *recent = evbuffer_new();
		uint64_t seqs[ARRAY_SIZE(gists)];
		size_t n = 0;

		for (size_t g = 0; g < ARRAY_SIZE(gists); g++)
			if (cases[i].pass[g] == 'y')
				seqs[n++] = g;
		stream_recent(s, &cases[i].filter, STREAM_LINES, SIZE_MAX, recent);
		assert_seqs(recent, n, seqs);
		assert_seqs(sinks[i].got, n, seqs);
		/* the last of those that pass, not what passes of the last */
		for (size_t last = 0; last <= n; last++) {
			stream_recent(s, &cases[i].filter, STREAM_LINES, last, recent);
			assert_seqs(recent, last, seqs + n - last);
		}
		evbuffer_free(recent);
		sink_free(&sinks[i]);
	}
}

static void test_a_full_list_of_pids(void **state)
{
	struct filter f = { .n_pids = FILTER_VALUES };
	struct gist g = { PW_EV_EXIT, PW_DRAIN, 0, 0, 5 };
	struct stream *s = *state;

	for (size_t i = 0; i < FILTER_VALUES; i++)
		f.pids[i] = 1000 + i;
	for (size_t i = 0; i <= FILTER_VALUES; i++) {
		g.pid = 1000 + i;
		publish_gist(s, i, &g);
	}
	assert_recent(s, &f, SIZE_MAX, 0, FILTER_VALUES - 1);
}

/* A cgroup's id that happens to be a process's is not asked for by --pid. */
static void test_pid_is_no_cgroup(void **state)
{
	struct event e = {
		.type = PW_EV_ACCEPT,
		.conn = { .h = { .type = PW_EV_ACCEPT },
			.process = { .pid = 3 },
			.on = { .key = { .kind = PW_KIND_CGROUP, .id = 77 }, .phase = PW_DRAIN } }
	};
	struct stream *s = *state;

	assert_int_equal(stream_publish(s, &e, &names), 0);
	assert_none(s, &(struct filter){ .n_pids = 1, .pids = { 77 } }, SIZE_MAX);
	assert_recent(s, &(struct filter){ .n_pids = 1, .pids = { 3 } }, SIZE_MAX, 0, 0);
}

static void test_lost_events_always_pass(void **state)
{
	const struct filter f = { .types = 1u << PW_EV_CONNECT,
		.phases = 1u << PW_INIT,
		.verdicts = 1u << PW_GRACE,
		.n_pids = 1,
		.pids = { 5 } };
	struct stream *s = *state;
	struct sink sink;

	sink_follow(&sink, s, &f);
	publish(s, 1);
	publish_lost(s, 2, 12);
	publish(s, 14);
	stream_flush(s);
	assert_range(sink.got, 2, 2);
	assert_recent(s, &f, SIZE_MAX, 2, 2);
	sink_free(&sink);
}

static void test_followers_get_each_event_once(void **state)
{
	struct stream *s = *state;
	struct sink early, late;

	publish(s, 1);
	stream_flush(s);
	sink_follow(&early, s, &everything);
	publish(s, 2);
	publish(s, 3);
	assert_int_equal(early.sends, 0); /* once for each batch */
	stream_flush(s);
	assert_int_equal(early.sends, 1);
	assert_range(early.got, 2, 3);

	sink_follow(&late, s, &everything);
	stream_flush(s);
	assert_int_equal(early.sends, 1); /* there is nothing to send */
	assert_int_equal(late.sends, 0);
	publish(s, 4);
	stream_flush(s);
	assert_range(early.got, 4, 4);
	assert_range(late.got, 4, 4);

	stream_unfollow(s, early.follower);
	publish(s, 5);
	stream_flush(s);
	assert_int_equal(evbuffer_get_length(early.got), 0);
	assert_range(late.got, 5, 5);
	sink_free(&early);
	sink_free(&late);
}

/* What is recent and what follows: nothing twice, nothing in between. */
static void test_recent_then_follow(void **state)
{
	struct stream *s = *state;
	struct sink sink;

	for (uint64_t seq = 0; seq < 37; seq++)
		publish(s, seq);
	stream_flush(s);
	sink_follow(&sink, s, &everything);
	stream_recent(s, &everything, STREAM_LINES, SIZE_MAX, sink.got);
	for (uint64_t seq = 37; seq < 101; seq++)
		publish(s, seq);
	stream_flush(s);
	assert_range(sink.got, 0, 100);
	sink_free(&sink);
}

static void test_unfollow_with_events_queued(void **state)
{
	struct stream *s = *state;
	struct sink gone, left;

	sink_follow(&gone, s, &everything);
	sink_follow(&left, s, &everything);
	publish(s, 1);
	stream_unfollow(s, gone.follower);
	stream_flush(s);
	assert_int_equal(gone.sends, 0);
	assert_range(left.got, 1, 1);
	sink_free(&gone);
	sink_free(&left); /* the stream ends before its follower */
}

/* The next line: a `lost` event of the follower's own, with these numbers. */
static void assert_missed(const json_t *line, uint64_t seq, uint64_t count)
{
	assert_string_equal(json_string_value(json_object_get(line, "type")), "lost");
	assert_string_equal(json_string_value(json_object_get(line, "stage")), "subscriber");
	assert_string_equal(json_string_value(json_object_get(line, "node")), "n1");
	assert_int_equal(number(line, "seq"), seq);
	assert_int_equal(number(line, "count"), count);
}

static void test_slow_follower_is_told(void **state)
{
	static const struct gist exit_gist = { PW_EV_EXIT, PW_DRAIN, 0, 11, 10 };
	struct stream *s = *state;
	const json_t *by_type;
	struct sink slow, other;
	json_t *all;

	sink_follow(&slow, s, &everything);
	sink_follow(&other, s, &everything);
	publish(s, 1);
	stream_flush(s);
	assert_range(slow.got, 1, 1);

	slow.waiting = STREAM_BACKLOG; /* not more than may wait */
	publish(s, 2);
	stream_flush(s);
	assert_range(slow.got, 2, 2);

	slow.waiting = STREAM_BACKLOG + 1;
	publish(s, 3);
	publish(s, 4);
	stream_flush(s);
	publish_gist(s, 5, &exit_gist);
	stream_flush(s);
	stream_flush(s);
	assert_int_equal(evbuffer_get_length(slow.got), 0);
	publish(s, 6); /* queued while it is slow, sent when it is not */
	slow.waiting = 0;
	stream_flush(s);
	publish(s, 7);
	stream_flush(s);

	all = lines(slow.got);
	assert_int_equal(json_array_size(all), 3);
	assert_missed(json_array_get(all, 0), 3, 3);
	by_type = json_object_get(json_array_get(all, 0), "by_type");
	assert_int_equal(json_object_size(by_type), 2);
	assert_int_equal(number(by_type, "accept"), 2);
	assert_int_equal(number(by_type, "exit"), 1);
	assert_int_equal(number(json_array_get(all, 1), "seq"), 6);
	assert_int_equal(number(json_array_get(all, 2), "seq"), 7);
	json_decref(all);
	/* the others miss nothing, and nobody is told of it afterwards */
	assert_range(other.got, 1, 7);
	assert_recent(s, &everything, SIZE_MAX, 1, 7);
	sink_free(&slow);
	sink_free(&other);
}

/* Told as soon as there is room, even if nothing new happens; and each time anew. */
static void test_slow_follower_is_told_without_events(void **state)
{
	struct stream *s = *state;
	struct sink slow;
	json_t *all;

	sink_follow(&slow, s, &everything);
	for (uint64_t seq = 0; seq < 46; seq += 23) {
		slow.waiting = SIZE_MAX;
		for (uint64_t i = 0; i < 23; i++)
			publish(s, seq + i);
		stream_flush(s);
		slow.waiting = 0;
		stream_flush(s);
		all = lines(slow.got);
		assert_int_equal(json_array_size(all), 1);
		assert_missed(json_array_get(all, 0), seq, 23);
		json_decref(all);
		stream_flush(s);
		assert_int_equal(evbuffer_get_length(slow.got), 0);
	}
	sink_free(&slow);
}

/* Only what it asked for was missed. */
static void test_slow_follower_with_a_filter(void **state)
{
	const struct filter exits = { .types = 1u << PW_EV_EXIT };
	static const struct gist exit_gist = { PW_EV_EXIT, PW_DRAIN, 0, 11, 10 };
	struct stream *s = *state;
	struct sink slow;
	json_t *all;

	sink_follow(&slow, s, &exits);
	slow.waiting = SIZE_MAX;
	publish(s, 1);
	stream_flush(s);
	publish(s, 2);
	publish_gist(s, 3, &exit_gist);
	publish(s, 4);
	publish_gist(s, 5, &exit_gist);
	stream_flush(s);
	slow.waiting = 0;
	stream_flush(s);
	all = lines(slow.got);
	assert_int_equal(json_array_size(all), 1);
	assert_missed(json_array_get(all, 0), 3, 2);
	json_decref(all);
	sink_free(&slow);
}

/* The many share what a few may have. */
static void test_many_slow_followers(void **state)
{
	struct stream *s = *state;
	struct sink sinks[101];
	size_t share = STREAM_BACKLOGS / ARRAY_SIZE(sinks);
	json_t *all;

	for (size_t i = 0; i < ARRAY_SIZE(sinks); i++) {
		sink_follow(&sinks[i], s, &everything);
		sinks[i].waiting = share + i % 2;
	}
	publish(s, 1);
	stream_flush(s);
	for (size_t i = 0; i < ARRAY_SIZE(sinks); i++) {
		if (i % 2)
			assert_int_equal(evbuffer_get_length(sinks[i].got), 0);
		else
			assert_range(sinks[i].got, 1, 1);
		if (i >= 8)
			stream_unfollow(s, sinks[i].follower);
	}
	for (size_t i = 0; i < 8; i++)
		sinks[i].waiting = STREAM_BACKLOG;
	stream_flush(s);
	all = lines(sinks[7].got);
	assert_missed(json_array_get(all, 0), 1, 1);
	json_decref(all);
	for (size_t i = 0; i < ARRAY_SIZE(sinks); i++)
		sink_free(&sinks[i]);
}

/* Delivered and lost leave no gap: a `lost` event that is missed counts what it counted. */
static void test_seq_is_gapless_over_delivered_and_lost(void **state)
{
	struct stream *s = *state;
	uint64_t seq = 0, expected = 0;
	struct sink slow;
	json_t *all, *line;
	size_t i;

	sink_follow(&slow, s, &everything);
	for (unsigned int batch = 0; batch < 101; batch++) {
		slow.waiting = batch % 7 < 3 ? SIZE_MAX : 0;
		for (i = 0; i < batch % 5; i++)
			publish(s, seq++);
		if (batch % 4 == 0) {
			publish_lost(s, seq, 12);
			seq += 12;
		}
		stream_flush(s);
	}
	slow.waiting = 0;
	stream_flush(s);

	all = lines(slow.got);
	json_array_foreach(all, i, line)
	{
		bool lost = json_object_get(line, "count") != NULL;

		assert_int_equal(number(line, "seq"), expected);
		expected += lost ? number(line, "count") : 1;
	}
	assert_int_equal(expected, seq);
	json_decref(all);
	sink_free(&slow);
}

static void assert_resumed(struct stream *s, uint64_t after, uint64_t next, uint64_t lost_from,
	uint64_t lost, uint64_t first, uint64_t last)
{
	struct evbuffer *out = evbuffer_new();
	json_t *line;
	char *text;

	stream_resume(s, &everything, STREAM_LINES, after, next, "n1", SIZE_MAX, out);
	if (lost) {
		text = evbuffer_readln(out, NULL, EVBUFFER_EOL_LF);
		line = json_loads(text, 0, NULL);
		assert_string_equal(json_string_value(json_object_get(line, "type")), "lost");
		assert_string_equal(json_string_value(json_object_get(line, "stage")), "history");
		assert_string_equal(json_string_value(json_object_get(line, "node")), "n1");
		assert_int_equal(number(line, "seq"), lost_from);
		assert_int_equal(number(line, "count"), lost);
		json_decref(line);
		free(text);
	}
	if (first <= last)
		assert_range(out, first, last);
	assert_int_equal(evbuffer_get_length(out), 0);
	evbuffer_free(out);
}

static void test_resume(void **state)
{
	struct stream *s = *state;

	assert_resumed(s, 4, 5, 0, 0, 1, 0); /* a daemon that took over, and nothing has come since */
	assert_resumed(s, 4, 9, 5, 4, 1, 0);
	for (uint64_t seq = 10; seq < 10 + STREAM_RECENT + 7; seq++)
		publish(s, seq);
	assert_resumed(s, 9, 4113, 10, 7, 17, 4112);
	assert_resumed(s, 15, 4113, 16, 1, 17, 4112);
	assert_resumed(s, 16, 4113, 0, 0, 17, 4112);
	assert_resumed(s, 4111, 4113, 0, 0, 4112, 4112);
	assert_resumed(s, 4112, 4113, 0, 0, 1, 0);
	assert_resumed(s, 4113, 4113, 0, 17, 17, 4112); /* numbers that have begun anew */
	assert_resumed(s, UINT64_MAX, 4113, 0, 17, 17, 4112);
}

/* The id of a lost event is the last number that it stands for: nothing is lost twice. */
static void test_sse(void **state)
{
	struct stream *s = *state;
	struct sink sink = { .got = evbuffer_new() };
	struct evbuffer *out = evbuffer_new();
	char *text;

	assert_int_equal(stream_follow(s, &everything, STREAM_SSE, sink_send, sink_backlog, &sink,
				 &sink.follower), 0);
	publish(s, 1);
	publish_lost(s, 2, 5);
	stream_flush(s);
	stream_recent(s, &everything, STREAM_SSE, SIZE_MAX, out);
	assert_int_equal(evbuffer_get_length(out), evbuffer_get_length(sink.got));
	assert_memory_equal(evbuffer_pullup(out, -1), evbuffer_pullup(sink.got, -1),
		evbuffer_get_length(out));
	evbuffer_add(out, "", 1);
	text = (char *)evbuffer_pullup(out, -1);
	assert_ptr_equal(strstr(text, "id: 1\nevent: accept\ndata: {"), text);
	assert_non_null(strstr(text, "}\n\nid: 6\nevent: lost\ndata: {"));
	assert_string_equal(text + strlen(text) - 3, "}\n\n");
	evbuffer_drain(out, -1);
	stream_resume(s, &everything, STREAM_SSE, 6, 7, "n1", SIZE_MAX, out);
	assert_int_equal(evbuffer_get_length(out), 0);

	sink.waiting = STREAM_BACKLOG + 1;
	evbuffer_drain(sink.got, -1);
	publish(s, 7);
	publish(s, 8);
	stream_flush(s);
	sink.waiting = 0;
	publish(s, 9);
	stream_flush(s);
	evbuffer_add(sink.got, "", 1);
	text = (char *)evbuffer_pullup(sink.got, -1);
	assert_ptr_equal(strstr(text, "id: 8\nevent: lost\n"), text);
	assert_non_null(strstr(text, "\"seq\":7,\"type\":\"lost\",\"count\":2,"));
	assert_non_null(strstr(text, "\n\nid: 9\nevent: accept\n"));
	evbuffer_free(out);
	sink_free(&sink);
}

int main(void)
{
	static const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_recent, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_recent_is_bounded, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_recent_of_all_lengths, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_filters, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_a_full_list_of_pids, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_pid_is_no_cgroup, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_lost_events_always_pass, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_followers_get_each_event_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_recent_then_follow, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_unfollow_with_events_queued, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_slow_follower_is_told, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_slow_follower_is_told_without_events, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_slow_follower_with_a_filter, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_many_slow_followers, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_seq_is_gapless_over_delivered_and_lost, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_resume, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_sse, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
