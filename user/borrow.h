/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Another process's sockets, in our own hands: for kernels whose iterators cannot give them. */
#ifndef PW_BORROW_H
#define PW_BORROW_H

#include <sys/types.h>

/*
 * Calls `each` with a duplicate of every TCP socket that the process has open and its state
 * (netinet/tcp.h), but closed ones; the duplicate is gone afterwards. A process that is gone, or
 * whose files may not be read, has none.
 */
void borrow_tcp_sockets(pid_t pid, void (*each)(int fd, int state, void *arg), void *arg);

#endif /* PW_BORROW_H */
