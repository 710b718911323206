// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include "maps.h"

struct pw_phases_map pw_phases SEC(".maps");
struct pw_members_map pw_members SEC(".maps");
struct pw_exited_map pw_exited SEC(".maps");
struct pw_stats_map pw_stats SEC(".maps");
struct pw_tallies_map pw_tallies SEC(".maps");
struct pw_conns_map pw_conns SEC(".maps");
struct pw_connects_map pw_connects SEC(".maps");
struct pw_ports_map pw_ports SEC(".maps");
struct pw_gone_map pw_gone SEC(".maps");
struct pw_closed_map pw_closed SEC(".maps");
struct pw_clients_map pw_clients SEC(".maps");
struct pw_counters_map pw_counters SEC(".maps");
struct pw_control_map pw_control SEC(".maps");
struct pw_workloads_map pw_workloads SEC(".maps");
struct pw_events_map pw_events SEC(".maps");

char LICENSE[] SEC("license") = "Dual BSD/GPL";
