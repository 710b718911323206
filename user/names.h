/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The words of the interface: one table for each enum of phasewatch/phase.h and bpf/abi.h. JSON, the
 * query string, labels and the command line all spell them this way: phases in capitals, everything
 * else in lower case.
 */
#ifndef PW_NAMES_H
#define PW_NAMES_H

/* Indexed by value. A hole (NULL) is a value that has no name there. */
struct names {
	const char *const *name;
	unsigned count;
};

extern const struct names phase_names;
extern const struct names source_names;
extern const struct names kind_names;
extern const struct names verdict_names;
extern const struct names seen_by_names;
extern const struct names result_names;
extern const struct names event_type_names;
extern const struct names how_names;
extern const struct names violation_names;

/* Subsets: what may be declared, and what can appear in an event. */
extern const struct names declared_phase_names;
extern const struct names shown_verdict_names;
extern const struct names shown_event_type_names;

/* NULL for a value without a name: what is not known is left out, never invented. */
const char *names_name(const struct names *names, unsigned value);

/* Ignores case. Returns the value, or -EINVAL if no value has that name. */
int names_parse(const struct names *names, const char *text);

static inline const char *phase_name(unsigned value)
{
	return names_name(&phase_names, value);
}

static inline const char *source_name(unsigned value)
{
	return names_name(&source_names, value);
}

static inline const char *kind_name(unsigned value)
{
	return names_name(&kind_names, value);
}

static inline const char *verdict_name(unsigned value)
{
	return names_name(&verdict_names, value);
}

static inline const char *seen_by_name(unsigned value)
{
	return names_name(&seen_by_names, value);
}

static inline const char *result_name(unsigned value)
{
	return names_name(&result_names, value);
}

static inline const char *how_name(unsigned value)
{
	return names_name(&how_names, value);
}

static inline const char *event_type_name(unsigned value)
{
	return names_name(&event_type_names, value);
}

/* Knows UNDECLARED (0) as well; who takes declarations parses declared_phase_names. */
static inline int phase_parse(const char *text)
{
	return names_parse(&phase_names, text);
}

#endif /* PW_NAMES_H */
