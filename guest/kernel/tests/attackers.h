/* SPDX-License-Identifier: GPL-2.0 */
#ifndef ATTACKERS_H
#define ATTACKERS_H

#include "harness.h"

/* What there is to send and to write. */
extern char block[64 * 1024];

/* Keeps what it has. */
int sated(const char *what, long count);

void many_descriptors(void);

/* Until there is no room for more. */
void fill(int fd, size_t bytes);

int unix_sockets(void);
int netlink_sockets(void);
int packet_rings(void);
int tcp_sockets(void);
int udp_sockets(void);
int raw_sockets(void);
int packet_sockets(void);
int ping_sockets(void);
int error_queues(void);
int corked_sockets(void);
int filters(void);
int options(void);
int fanouts(void);

#endif /* ATTACKERS_H */
