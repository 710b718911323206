/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is misrouted, but by nobody who minds: probes and scrapes, as the operator names them. */
#ifndef PW_IGNORE_H
#define PW_IGNORE_H

#include "emit.h"

/* Of a verdict other than ok: says ignored if the other end (`peer`), the port or the client is. */
static __noinline int pw_excuse(
	struct pw_verdict_on *on, __u8 peer[16], __u32 port, struct pw_client *client)
{
	struct pw_control *ctl = pw_shared();
	__u64 addr[2], comm[2];
	__u32 i;

	if (!ctl || !ctl->ignores || on->verdict == PW_OK)
		return 0;
	__builtin_memcpy(addr, peer, sizeof(addr));
	__builtin_memcpy(comm, client->comm, sizeof(comm));
	for (i = 0; i < PW_IGNORE_MAX; i++) {
		__u64 *prefix = ctl->ignore.peers[i].addr, *mask = ctl->ignore.peers[i].mask;
		__u64 *name = (__u64 *)ctl->ignore.clients[i];
		/* without branches: the verifier walks each way through all turns of the loop */
		__u64 other_peer = ((addr[0] ^ prefix[0]) & mask[0]) |
				   ((addr[1] ^ prefix[1]) & mask[1]) | !(mask[0] | mask[1]);
		__u64 other_comm = (comm[0] ^ name[0]) | (comm[1] ^ name[1]) | !name[0];
		__u64 other_port = port ^ ctl->ignore.ports[i];

		if (!other_peer || !other_comm || !other_port) {
			on->verdict = PW_IGNORED;
			return 1;
		}
	}
	return 0;
}

#endif /* PW_IGNORE_H */
