// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* Processes of which two threads each listen at the same moment; each says its pid. They end with it. */
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

static int ready;

static void *listens(void *arg)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	__atomic_add_fetch(&ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&ready, __ATOMIC_SEQ_CST) < 2)
		;
	if (listen(fd, 1) < 0)
		abort();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;

	for (int i = 0; i < atoi(argv[1]); i++) {
		if (fork())
			continue;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		pthread_create(&thread, NULL, listens, NULL);
		listens(NULL);
		pthread_join(thread, NULL);
		dprintf(1, "%d\n", getpid());
		pause();
	}
	pause();
	return 0;
}
