// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <errno.h>
#include <strings.h>

#include "bpf/abi.h"
#include "names.h"
#include "util.h"

#define NAMES(symbol, ...)                                                                         \
	static const char *const symbol##_list[] = { __VA_ARGS__ };                                \
	const struct names symbol = { symbol##_list, ARRAY_SIZE(symbol##_list) }

#define DECLARED_PHASES                                                                            \
	[PW_INIT] = "INIT", [PW_ACTIVE] = "ACTIVE", [PW_DRAIN] = "DRAIN", [PW_SHUTDOWN] = "SHUTDOWN"
#define SHOWN_VERDICTS [PW_MISROUTED] = "misrouted", [PW_GRACE] = "grace", [PW_IGNORED] = "ignored"
#define SHOWN_EVENT_TYPES                                                                          \
	[PW_EV_ACCEPT] = "accept", [PW_EV_CONNECT] = "connect", [PW_EV_EXIT] = "exit",             \
	[PW_EV_REQUEST] = "request", [PW_EV_ABANDON] = "abandon", [PW_EV_REFUSED] = "refused",     \
	[PW_EV_PHASE] = "phase", [PW_EV_LOST] = "lost", [PW_EV_BACKLOG] = "backlog",               \
	[PW_EV_DRAIN] = "drain", [PW_EV_VIOLATION] = "violation"

NAMES(phase_names, [PW_UNDECLARED] = "UNDECLARED", DECLARED_PHASES);
NAMES(declared_phase_names, DECLARED_PHASES);

NAMES(verdict_names, [PW_OK] = "ok", SHOWN_VERDICTS);
NAMES(shown_verdict_names, SHOWN_VERDICTS);

/* Records that are no events can be lost, and are then counted by these names. */
NAMES(event_type_names, SHOWN_EVENT_TYPES, [PW_EV_FORK] = "fork", [PW_EV_EXEC] = "exec",
	[PW_EV_DROP] = "drop", [PW_EV_UNLISTEN] = "unlisten", [PW_EV_SIGNAL] = "signal",
	[PW_EV_MOVE] = "move");
NAMES(shown_event_type_names, SHOWN_EVENT_TYPES);

NAMES(source_names, [PW_SOURCE_MAP] = "map", [PW_SOURCE_API] = "api",
	[PW_SOURCE_SDNOTIFY] = "sdnotify", [PW_SOURCE_SIGNAL] = "signal",
	[PW_SOURCE_KUBERNETES] = "kubernetes", [PW_SOURCE_LISTEN] = "listen");
NAMES(kind_names, [PW_KIND_PROCESS] = "process", [PW_KIND_CGROUP] = "cgroup");
NAMES(seen_by_names, [PW_SEEN_ACCEPT] = "accept", [PW_SEEN_FIRST_IO] = "first_io",
	[PW_SEEN_RELEASE] = "release");
NAMES(result_names, [PW_ESTABLISHED] = "established", [PW_REFUSED] = "refused",
	[PW_TIMEOUT] = "timeout", [PW_RESET] = "reset", [PW_UNREACHABLE] = "unreachable",
	[PW_ABORTED] = "aborted");

NAMES(how_names, [PW_FIN] = "fin", [PW_RST] = "rst");

NAMES(violation_names, [PW_STALE_EPOCH] = "stale_epoch", [PW_BACKWARD] = "backward",
	[PW_EXIT_WITHOUT_DRAIN] = "exit_without_drain", [PW_FLAPPING] = "flapping");

/* A value added at an enum's end without its name here does not compile. */
_Static_assert(ARRAY_SIZE(phase_names_list) == PW_PHASES, "a phase has no name");
_Static_assert(ARRAY_SIZE(verdict_names_list) == PW_VERDICTS, "a verdict has no name");
_Static_assert(ARRAY_SIZE(event_type_names_list) == PW_EV_TYPES, "an event type has no name");
_Static_assert(ARRAY_SIZE(source_names_list) == PW_SOURCES, "a source has no name");
_Static_assert(ARRAY_SIZE(violation_names_list) == PW_VIOLATIONS, "a violation has no name");
_Static_assert(ARRAY_SIZE(result_names_list) == PW_RESULTS, "a result has no name");

const char *names_name(const struct names *names, unsigned value)
{
	return value < names->count ? names->name[value] : NULL;
}

int names_parse(const struct names *names, const char *text)
{
	for (unsigned i = 0; i < names->count; i++)
		if (names->name[i] && !strcasecmp(names->name[i], text))
			return i;
	return -EINVAL;
}
