// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "ignore.h"

/* IPv4 as ::ffff:a.b.c.d, 96 bits longer; without /BITS one address. */
static int parse_cidr(const char *text, uint8_t addr[16], uint32_t *bits)
{
	char copy[INET6_ADDRSTRLEN + sizeof("/128") - 1], *slash;
	uint64_t given;
	int own = 128;

	if (strlen(text) >= sizeof(copy))
		return -EINVAL;
	strcpy(copy, text);
	slash = strchr(copy, '/');
	if (slash)
		*slash++ = '\0';
	memset(addr, 0, 16);
	if (inet_pton(AF_INET, copy, addr + 12) == 1) {
		addr[10] = addr[11] = 0xff;
		own = 32;
	} else if (inet_pton(AF_INET6, copy, addr) != 1) {
		return -EINVAL;
	}
	given = own;
	if (slash && (parse_u64(slash, &given) < 0 || given > (uint64_t)own))
		return -EINVAL;
	*bits = given + (128 - own);
	/* ::ffff:10.0.0.0/8 is a slip, and would be all of IPv4 and more */
	if (*bits < 96 && IN6_IS_ADDR_V4MAPPED(addr))
		return -EINVAL;
	return *bits ? 0 : -EINVAL; /* ::/0 would be everybody */
}

static void make_mask(uint8_t mask[16], uint32_t bits)
{
	for (size_t i = 0; i < 16; i++, bits -= bits < 8 ? bits : 8)
		mask[i] = bits < 8 ? 0xff00 >> bits : 0xff;
}

int ignore_parse(const struct ignore_options *o, struct pw_ignore *ret, bool *any, const char **bad)
{
	const struct opts_list *lists[] = { &o->peers, &o->ports, &o->clients };
	struct pw_ignore ignore = { 0 };
	uint64_t port;
	uint32_t bits;

	for (size_t i = 0; i < sizeof(lists) / sizeof(*lists); i++)
		if (lists[i]->count > PW_IGNORE_MAX) {
			*bad = lists[i]->values[PW_IGNORE_MAX];
			return -E2BIG;
		}
	for (size_t i = 0; i < o->peers.count; i++) {
		*bad = o->peers.values[i];
		if (parse_cidr(*bad, (uint8_t *)ignore.peers[i].addr, &bits) < 0)
			return -EINVAL;
		make_mask((uint8_t *)ignore.peers[i].mask, bits);
	}
	for (size_t i = 0; i < o->ports.count; i++) {
		*bad = o->ports.values[i];
		if (parse_u64(*bad, &port) < 0)
			return -EINVAL;
		ignore.ports[i] = port;
	}
	for (size_t i = 0; i < o->clients.count; i++) {
		*bad = o->clients.values[i];
		if (!**bad || strlen(*bad) >= PW_COMM_LEN)
			return -EINVAL;
		strcpy(ignore.clients[i], *bad);
	}
	*any = o->peers.count + o->ports.count + o->clients.count > 0;
	*ret = ignore;
	return 0;
}
