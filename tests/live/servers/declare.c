// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Declares each argument PHASE:EPOCH:REASON; one line tells the process, the result and the error.
 * After an argument "fork" it is a child that goes on.
 */
#include <phasewatch/client.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		unsigned long long epoch;
		int phase, status, at;

		if (strcmp(argv[i], "fork") == 0) {
			fflush(stdout);
			if (fork() > 0)
				return wait(&status) < 0 || status != 0;
			continue;
		}
		if (sscanf(argv[i], "%d:%llu:%n", &phase, &epoch, &at) != 2)
			return 2;
		status = pw_declare((enum pw_phase)phase, epoch, argv[i] + at);
		printf("%d %d %s\n", (int)getpid(), status, status ? pw_last_error() : "");
	}
	return 0;
}
