/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A kernel half of real maps without programs: what the daemon's parts need to work on. */
#ifndef PW_TESTS_MAPS_H
#define PW_TESTS_MAPS_H

#include <errno.h>
#include <stdlib.h>
#include <bpf/bpf.h>

#include "kernel.h"
#include "util.h"

#define MAP_ENTRIES 1021

static inline int hash_map(const char *name, size_t key, size_t value)
{
	return bpf_map_create(BPF_MAP_TYPE_HASH, name, key, value, MAP_ENTRIES, NULL);
}

/* k->phases is negative if that is not allowed here. */
static inline void make_maps(struct kernel *k, struct pw_control *control)
{
	k->phases =
		hash_map("t_phases", sizeof(struct pw_subject_key), sizeof(struct pw_declaration));
	k->stats = hash_map("t_stats", sizeof(struct pw_subject_key), sizeof(struct pw_stats));
	k->tallies = hash_map("t_tallies", sizeof(struct pw_subject_key), sizeof(struct pw_tally));
	k->workloads = calloc(1 + PW_WORKLOADS, sizeof(*k->workloads));
	k->members = hash_map("t_members", sizeof(uint32_t), sizeof(struct pw_member));
	k->control = control;
	/* every hook is off: nothing is attached on demand */
	k->private = calloc(1, 4096);
	for (size_t i = 0; i < KERNEL_HOOKS_MAX; i++)
		k->hooks[i].error = -ENOENT;
}

static inline void free_maps(struct kernel *k)
{
	closep(&k->phases);
	closep(&k->stats);
	closep(&k->tallies);
	free(k->workloads);
	closep(&k->members);
	free(k->private);
}

#endif /* PW_TESTS_MAPS_H */
