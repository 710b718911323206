/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is misrouted, but by nobody who minds: probes and scrapes, as the operator names them. */
#ifndef PW_IGNORE_H
#define PW_IGNORE_H

#include "emit.h"

static __always_inline int pw_in_prefix(__u8 addr[16], __u8 prefix[16], __u32 bits)
{
	__u32 i;

	for (i = 0; i < 16; i++) {
		__u32 here = bits > 8 * i ? bits - 8 * i : 0;
		__u8 mask = here >= 8 ? 0xff : (0xff00 >> here) & 0xff;

		if ((addr[i] ^ prefix[i]) & mask)
			return 0;
	}
	return 1;
}

static __always_inline int pw_same_comm(char a[PW_COMM_LEN], char b[PW_COMM_LEN])
{
	__u64 *x = (__u64 *)a, *y = (__u64 *)b;

	return x[0] == y[0] && x[1] == y[1];
}

/* Of a verdict other than ok: says ignored if the other end (`peer`), the port or the client is. */
static __noinline int pw_excuse(
	struct pw_verdict_on *on, __u8 peer[16], __u32 port, struct pw_client *client)
{
	struct pw_control *ctl = pw_shared();
	__u32 i;

	if (!ctl || !ctl->ignores || on->verdict == PW_OK)
		return 0;
	for (i = 0; i < PW_IGNORE_MAX; i++) {
		__u32 bits = ctl->ignore.peers[i].bits;

		if ((bits && pw_in_prefix(peer, ctl->ignore.peers[i].addr, bits)) ||
			(ctl->ignore.ports[i] && ctl->ignore.ports[i] == port) ||
			(client->pid && ctl->ignore.clients[i][0] &&
				pw_same_comm(client->comm, ctl->ignore.clients[i]))) {
			on->verdict = PW_IGNORED;
			return 1;
		}
	}
	return 0;
}

#endif /* PW_IGNORE_H */
