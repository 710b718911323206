/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Drains, from the records of the kernel half to reports. Pure: the caller feeds what it sees, in
 * any order that the ring buffer gives, and publishes what has ended.
 *
 *	            DRAIN, SHUTDOWN                 nobody left, ACTIVE, new epoch, taken away
 *	(no drain) ---------------> running drain -------------------------------------> report
 *	                             ^ events, stats, losses          late events (REFUSED) ^
 *
 * One running drain a subject; the last DRAINS_KEPT reports. A record belongs to the drain of its
 * subject and epoch; one that comes after the end still counts in the report. Where memory is
 * short, what could not be kept is absent from the report, never wrong.
 */
#ifndef PW_DRAINS_H
#define PW_DRAINS_H

#include <stdint.h>

#include "event.h"
#include "report.h"

#define DRAINS_KEPT 64
/* Connections with late requests that one drain can tell apart, at 16..32 bytes each. */
#define DRAINS_CONNECTIONS (1u << 17)
/* How long after its end a report still takes notice of lost records: as long as refusals come. */
#define DRAINS_LATE_NS (60 * 1000000000ULL)

struct drains;

int drains_new(struct drains **ret);
void drains_free(struct drains *d);

/*
 * A declaration took effect, whatever its phase. `stats` are the subject's counters as of now,
 * NULL if not known. *ended becomes the report of a drain that it ended, or NULL: valid until the
 * next call that ends one. -ENOMEM: the drain that begins is not followed (one that ended is in
 * *ended anyway). A drain by signal: call this before drains_event() with the SIGNAL record, so
 * that it is in it.
 */
int drains_phase(struct drains *d, const struct event_phase *p, const char *name,
	const struct pw_stats *stats, uint64_t now_ns, const struct report **ended);

/* Any event; those that are no part of a drain are not looked at. */
void drains_event(struct drains *d, const struct event *e);

/* Counters of a subject as of now: from a timer, while drains_running(). */
void drains_stats(struct drains *d, const struct pw_subject_key *key, const struct pw_stats *stats);
size_t drains_running(const struct drains *d);

/*
 * Nobody is left (REPORT_EXITED: the end is the last EXIT record's time, or else now_ns), or
 * nobody declares it any more (REPORT_RELEASED). Call it after the ring buffer was read, with the
 * counters as they were after the last exit. NULL if it was not draining; else as *ended of
 * drains_phase().
 */
const struct report *drains_end(struct drains *d, const struct pw_subject_key *key,
	enum report_end end, const struct pw_stats *stats, uint64_t now_ns);

/* Records were lost; whose is not known. Without those that are no part of a drain (FORK, EXEC). */
void drains_lost(struct drains *d, uint64_t count, uint64_t now_ns);

/* Reports in the order of their ends, then running drains in the order of their declarations. */
void drains_for_each(const struct drains *d, void (*fn)(const struct report *r, void *arg),
	void *arg);

#endif /* PW_DRAINS_H */
