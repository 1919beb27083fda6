#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "workers.h"

#define STUCK_SECONDS 10
#define WATCH_MS      50

static void report(const struct workers *workers, unsigned number, const char *what, int status)
{
	char text[160] = "";

	workers->describe(workers->owner, &workers->progress[number], text);
	fprintf(stderr, "%s: worker %u %s (wait status %#x): %s\n", workers->program, number, what, (unsigned)status,
	        text);
}

static pid_t start(const struct workers *workers, unsigned number)
{
	pid_t pid = fork();

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	int error = workers->work(workers->owner, number);
	if (error)
		fprintf(stderr, "%s: worker %u: %s\n", workers->program, number, strerror(-error));
	fflush(NULL);
	_exit(error ? 1 : 0);
}

static time_t seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec;
}

bool workers_run(const struct workers *workers)
{
	pid_t pid[WORKERS_MAX];
	uint64_t seen[WORKERS_MAX] = {0};
	time_t since[WORKERS_MAX];
	unsigned running = workers->count;
	bool well = true;

	fflush(NULL);
	for (unsigned i = 0; i < workers->count; i++) {
		pid[i] = start(workers, i);
		since[i] = seconds();
	}
	while (running) {
		nanosleep(&(struct timespec){0, WATCH_MS * 1000000l}, NULL);
		for (unsigned i = 0; i < workers->count; i++) {
			uint64_t cases = workers->progress[i].cases;
			int status = 0;

			if (!pid[i])
				continue;
			if (pid[i] < 0 || waitpid(pid[i], &status, WNOHANG) != 0) {
				pid[i] = 0;
				running--;
				if (status)
					report(workers, i, "ended", status);
				well &= !status;
			} else if (cases != seen[i]) {
				seen[i] = cases;
				since[i] = seconds();
			} else if (seconds() - since[i] > STUCK_SECONDS) {
				report(workers, i, "is stuck", 0);
				kill(pid[i], SIGKILL);
				since[i] = seconds();
			}
		}
	}
	return well;
}
