/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Subjects: who declared what for whom. The truth is in pw_phases, which anybody with the rights may
 * write; this keeps what was last seen of it, so that each change becomes one phase event.
 *
 *	declare: [stamp sockets and descendants, if new] -> [arm hooks] -> pw_phases -> phase event
 *
 * In this order, whoever arrives after the declaration took effect is seen.
 */
#ifndef PW_SUBJECTS_H
#define PW_SUBJECTS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "event.h"
#include "kernel.h"
#include "proc.h"
#include "select.h"

#define SUBJECT_NAME_LEN 64
/* Life cycles that a subject may begin anew within an hour: `run --flaps`. */
#define SUBJECT_FLAPS_MAX 16

struct subject {
	struct pw_subject_key key;
	struct pw_declaration now;
	char name[SUBJECT_NAME_LEN]; /* its unit, container or pod, or else its comm or the cgroup's name */
	unsigned int seen; /* the last reconciliation that found it in the map */
	bool ending;	   /* nobody is left; forgotten at the next reconciliation */
	bool untold;	   /* found as it was left: the record of its last move may be to come */
	uint64_t flaps[SUBJECT_FLAPS_MAX]; /* when it began one anew, the last ones */
	size_t n_flaps;
};

struct subjects;

/* Who wants to know. The subject is valid during the call. */
struct subjects_listener {
	void (*phase)(const struct subject *s, const struct event_phase *p, void *arg);
	/* nobody is left of it; or else it was taken out of the map */
	void (*end)(const struct subject *s, bool nobody_left, void *arg);
	void (*violation)(const struct subject *s, const struct event_violation *v, void *arg);
	/* it is forgotten, or goes by another name from here on */
	void (*left)(const struct subject *s, void *arg);
	void *arg;
};

/*
 * `flaps`: how many life cycles begun anew within an hour are fine, 1 to SUBJECT_FLAPS_MAX. `pod_logs`:
 * select.h; it has to outlive them.
 */
int subjects_new(struct subjects **ret, struct kernel *k, struct proc_names *names, size_t flaps,
	const char *pod_logs, const struct subjects_listener *listener);
void subjects_free(struct subjects *s);

/* How a caller may say what it declares for; declare_phase() finds out which that is. */
enum request_means {
	MEANS_THIS, /* as it is in the request */
	MEANS_INNER_PID, /* `pid` is the caller's number for it, in its pid namespace */
	MEANS_CALLER,
	MEANS_PARENT,
	MEANS_OWN_CGROUP,
};

struct declaration_request {
	uint32_t phase;
	enum request_means means;
	pid_t pid;	    /* what it is for: a process, or if 0 */
	const char *cgroup; /* a cgroup, as `by` says: its path, or the unit, container or pod */
	enum select_by by;
	bool or_later;	 /* a later phase is as good */
	uint64_t epoch;	    /* 0: the one in force */
	const char *reason;
	bool active_on_listen; /* with INIT, of a process: ACTIVE as soon as it listens */
	uint32_t source; /* enum pw_source */
	pid_t by_pid;	 /* from the kernel's peer credentials */
	uid_t by_uid;
};

struct declaration_result {
	const struct subject *subject; /* valid until the next call */
	uint32_t from;
	bool changed;
	struct pw_stats stats; /* just before it took effect */
};

#define WHY_LEN 1024

/*
 * -ESRCH: no such process or cgroup; -ENOTUNIQ: several such cgroups; -EPERM: not the caller's; -ESTALE:
 * old epoch or backward move; -EINVAL: no such phase; or what the kernel said. Then nothing has changed
 * and `why` has a sentence.
 */
int subjects_declare(struct subjects *s, const struct declaration_request *request,
	struct declaration_result *ret, char why[static WHY_LEN]);

/* The cgroup that the request is for. Negative errno: there is none, or several. */
int subjects_find_cgroup(
	struct subjects *s, const struct declaration_request *request, uint64_t *ret_id);

/* The kernel half has moved a subject, or made one. */
int subjects_moved(struct subjects *s, const struct pw_move_record *m);
/* A process of some subject runs another program. */
void subjects_executed(struct subjects *s, const struct pw_process *p);
/* --auto, for who listens already: each tree of them becomes a subject, ACTIVE. How many have. */
int subjects_find_listeners(struct subjects *s);

/* Compares with the map: direct writes, removals, and subjects of which nobody is left. */
int subjects_reconcile(struct subjects *s);

/* NULL if not known (any more). */
const struct subject *subjects_find(const struct subjects *s, const struct pw_subject_key *key);
/* Its name, and for a while that of one that is gone; NULL if not known. */
const char *subjects_name(const struct subjects *s, const struct pw_subject_key *key);
/* Has the next subjects_stats() know where connections are: `queued`, `unseen` and `open`. */
void subjects_look(const struct subjects *s);
/* `members` of a cgroup is how many processes are in it now. `look` is 0 if nothing can be known. */
int subjects_stats(const struct subjects *s, const struct subject *subject, struct pw_stats *ret);
/* What came and went, in full; -ENOENT: nothing yet. */
int subjects_tally(const struct subjects *s, const struct subject *subject, struct pw_tally *ret);
/* As cgroup_pids(), by the cgroup's path. */
int subjects_cgroup_pids(const struct subjects *s, const char *cgroup, pid_t **ret, size_t *n);
/* The declared process that it descends from, while that one lives; 0: none, or it is declared. */
pid_t subjects_above(struct subjects *s, pid_t pid);
void subjects_for_each(const struct subjects *s,
	void (*fn)(const struct subject *subject, void *arg), void *arg);

/* Phases only move forward within an epoch. Exposed for tests. */
enum phase_move { MOVE_FORWARD, MOVE_NONE, MOVE_NEW_EPOCH, MOVE_STALE, MOVE_BACKWARD };
enum phase_move phase_move(const struct pw_declaration *now, uint32_t phase, uint64_t epoch);

/* What the map holds after the move; `since_ns` becomes now_ns unless it is there. */
void declaration_enter(struct pw_declaration *d, uint32_t phase, uint64_t epoch, uint64_t now_ns);

/*
 * Of a subject in DRAIN or SHUTDOWN: since when nothing has arrived. Arrivals within the grace are
 * expected and leave no time behind, so it is the end of the grace at the earliest. Later than now
 * while that lasts.
 */
uint64_t declaration_quiet_since(
	const struct pw_declaration *d, const struct pw_stats *stats, uint64_t grace_ns);
/* When DRAIN was entered, or SHUTDOWN without it. */
uint64_t declaration_drain_ns(const struct pw_declaration *d);

#endif /* PW_SUBJECTS_H */
