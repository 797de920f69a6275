/* Round trips of "get config" (request 6, 50-ipc.md) over libqb, at the speed of C.
 *
 *     cc -O2 -o ipc_roundtrip ipc_roundtrip.c -lqb
 *     ipc_roundtrip NAME PATH COUNT [RATE]
 *
 * NAME is the service's, PATH a file in the tree. With RATE, one request each 1/RATE seconds instead of one after the
 * other. Prints a JSON object: bytes of the file, and microseconds: minimum, median, mean, p99, maximum.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <qb/qbipcc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

#define BUFFER (1024 * 1024 + 4096)
#define TIMEOUT_MS 10000

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	if (argc < 4 || argc > 5) {
		fprintf(stderr, "usage: %s NAME PATH COUNT [RATE]\n", argv[0]);
		return 2;
	}
	const char *path = argv[2];
	long count = atol(argv[3]);
	double interval = argc > 4 ? 1e6 / atof(argv[4]) : 0;
	double *times = calloc(count > 0 ? count : 1, sizeof *times), sum = 0;
	char *reply = malloc(BUFFER);
	qb_ipcc_connection_t *connection = qb_ipcc_connect(argv[1], BUFFER);

	if (count < 1 || !times || !reply || !connection) {
		fprintf(stderr, "cannot connect to %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	struct qb_ipc_request_header request = {.id = 6, .size = sizeof request + strlen(path) + 1};
	struct iovec parts[] = {{&request, sizeof request}, {(void *)path, strlen(path) + 1}};
	struct qb_ipc_response_header *header = (void *)reply;

	for (long i = 0; i < count; i++) {
		double start = now();
		ssize_t size = qb_ipcc_sendv_recv(connection, parts, 2, reply, BUFFER, TIMEOUT_MS);

		times[i] = now() - start;
		sum += times[i];
		if (size < (ssize_t)sizeof *header || header->error) {
			fprintf(stderr, "request %ld: size %zd, error %d\n", i, size, size < 0 ? 0 : header->error);
			return 1;
		}
		double rest = interval - times[i];
		if (rest > 0) {
			struct timespec pause = {rest / 1e6, (long)(rest * 1e3) % 1000000000L};
			nanosleep(&pause, NULL);
		}
	}
	long bytes = header->size - (long)sizeof *header;
	qb_ipcc_disconnect(connection);
	qsort(times, count, sizeof *times, ascending);
	printf("{\"count\": %ld, \"bytes\": %ld, \"minimum\": %.1f, \"median\": %.1f, \"mean\": %.1f, \"p99\": %.1f, "
	       "\"maximum\": %.1f}\n", count, bytes, times[0], times[count / 2], sum / count, times[count * 99 / 100],
	       times[count - 1]);
	return 0;
}
