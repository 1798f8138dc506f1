/*
 * Echo load: keeps one request in flight on each connection and checks every byte that comes back.
 *
 *   echo_load -p port -c connections -s message_size -t seconds [-w warm_up_seconds] [-i idle_connections]
 *             [-P server_pid]
 *
 * One JSON object on stdout: requests, seconds, latency percentiles in microseconds, the processor time of the
 * server (from /proc/<pid>/stat, user and kernel) and of this program, all over the measured window alone.
 * Exit status 1 and a sentence on stderr when the server loses, changes or refuses anything.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Message k of a connection is the pattern from offset k % PERIOD on, so that an answer to an older request, or to
 * another connection's, is told apart by its first byte and nothing has to be written before sending. */
#define PERIOD 251

/* Connections opened between two proofs that the server has accepted all of them: stays below any usual
 * net.core.somaxconn, because a full accept queue drops the SYN and costs one second. */
#define GROUP 100

/* Latency histogram: 64 buckets for each power of two of nanoseconds, that is a resolution of 1.6 %. */
#define SUB_BITS 6
#define BUCKETS ((64 - SUB_BITS) << SUB_BITS)

struct connection {
	int fd;
	uint32_t offset;   /* where in the pattern the current message starts */
	uint32_t sent;
	uint32_t received;
	uint64_t started;  /* nanoseconds */
};

struct cpu_time {
	double user, kernel;
};

static unsigned char *pattern, *scratch;
static uint32_t message_size = 64;
static uint64_t histogram[BUCKETS];

static void die(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

static uint64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static unsigned bucket_of(uint64_t value)
{
	unsigned shift;
	if (value < (1u << SUB_BITS))
		return (unsigned)value;
	shift = 63 - (unsigned)__builtin_clzll(value) - SUB_BITS;
	return ((shift + 1) << SUB_BITS) + (unsigned)((value >> shift) - (1u << SUB_BITS));
}

static double bucket_middle(unsigned bucket)
{
	unsigned shift = bucket >> SUB_BITS;
	if (shift == 0)
		return bucket;
	shift -= 1;
	return ((double)((1u << SUB_BITS) + (bucket & ((1u << SUB_BITS) - 1))) + 0.5) * (double)(1ull << shift);
}

static double percentile_us(uint64_t total, double share)
{
	uint64_t rank = (uint64_t)((double)total * share), seen = 0;
	for (unsigned i = 0; i < BUCKETS; i++) {
		seen += histogram[i];
		if (seen > rank)
			return bucket_middle(i) / 1000.0;
	}
	return 0;
}

/* proc_pid_stat(5): fields 14 and 15, utime and stime in clock ticks, of all threads. The second field, the name, may
 * hold blanks and ends at the last parenthesis. */
static struct cpu_time cpu_of_process(int pid)
{
	char path[64], text[1024], *field;
	unsigned long user, kernel;
	struct cpu_time result;
	FILE *file;
	size_t length;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	file = fopen(path, "r");
	if (!file)
		die("the server is gone: %s: %s", path, strerror(errno));
	length = fread(text, 1, sizeof text - 1, file);
	fclose(file);
	text[length] = 0;
	field = strrchr(text, ')');
	if (!field || sscanf(field + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel) != 2)
		die("%s does not look like proc_pid_stat(5)", path);
	result.user = (double)user / (double)sysconf(_SC_CLK_TCK);
	result.kernel = (double)kernel / (double)sysconf(_SC_CLK_TCK);
	return result;
}

static struct cpu_time cpu_of_this_process(void)
{
	struct rusage usage;
	struct cpu_time result;
	getrusage(RUSAGE_SELF, &usage);
	result.user = (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6;
	result.kernel = (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec / 1e6;
	return result;
}

static void send_rest(struct connection *c)
{
	while (c->sent < message_size) {
		ssize_t n = send(c->fd, pattern + c->offset + c->sent, message_size - c->sent, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0)
			die("send: %s", strerror(errno));
		c->sent += (uint32_t)n;
	}
}

static void start_request(struct connection *c, uint64_t time)
{
	c->offset = (c->offset + 1) % PERIOD;
	c->sent = c->received = 0;
	c->started = time;
	send_rest(c);
}

/* Takes what has arrived; 1 when the answer is complete. A read shorter than asked for has emptied the receive queue,
 * so the next byte brings a new edge; the server closing shows as the zero of a later read and is an error. */
static int receive_answer(struct connection *c)
{
	for (;;) {
		uint32_t wanted = message_size - c->received;
		ssize_t n = recv(c->fd, scratch, wanted, 0);
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			die("recv: %s", strerror(errno));
		if (n == 0)
			die("the server closed a connection after %u of %u bytes", c->received, message_size);
		if (c->received + (uint32_t)n > c->sent)
			die("the server answered more than was sent");
		if (memcmp(scratch, pattern + c->offset + c->received, (size_t)n) != 0)
			die("the server changed bytes: answer differs from request");
		c->received += (uint32_t)n;
		if (c->received == message_size)
			return 1;
		if ((uint32_t)n < wanted)
			return 0;
	}
}

static int connect_to(struct sockaddr_in *address)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		die("socket: %s", strerror(errno));
	if (connect(fd, (struct sockaddr *)address, sizeof *address) < 0)
		die("connect: %s", strerror(errno));
	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0)
		die("TCP_NODELAY: %s", strerror(errno));
	return fd;
}

/* One byte there and back on each connection of a group, blocking: all of them are accepted and alive. */
static void prove(struct connection *group, unsigned count)
{
	unsigned char byte;
	for (unsigned i = 0; i < count; i++)
		if (send(group[i].fd, "?", 1, MSG_NOSIGNAL) != 1)
			die("send: %s", strerror(errno));
	for (unsigned i = 0; i < count; i++) {
		ssize_t n = recv(group[i].fd, &byte, 1, 0);
		if (n < 0)
			die("a new connection was not answered: %s", strerror(errno));
		if (n == 0)
			die("a new connection was closed by the server");
	}
}

static struct connection *open_connections(struct sockaddr_in *address, unsigned count)
{
	struct connection *all = calloc(count ? count : 1, sizeof *all);
	struct timeval patience = { .tv_sec = 10 };
	if (!all)
		die("out of memory");
	for (unsigned first = 0; first < count; first += GROUP) {
		unsigned in_group = count - first < GROUP ? count - first : GROUP;
		for (unsigned i = first; i < first + in_group; i++) {
			all[i].fd = connect_to(address);
			all[i].offset = i % PERIOD;
			setsockopt(all[i].fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
		}
		prove(all + first, in_group);
	}
	return all;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	unsigned connections = 1, idle = 0, in_flight = 0;
	double seconds = 1, warm_up = 0.2;
	int server_pid = 0, measuring = 0, option;
	struct cpu_time server_before = { 0 }, own_before = { 0 };
	uint64_t began, begin_measuring, end_measuring, window_start = 0, time, requests = 0;
	double latency_sum = 0, latency_max = 0;

	while ((option = getopt(argc, argv, "p:c:s:t:w:i:P:")) != -1) {
		switch (option) {
		case 'p': address.sin_port = htons((uint16_t)atoi(optarg)); break;
		case 'c': connections = (unsigned)atoi(optarg); break;
		case 's': message_size = (uint32_t)atoi(optarg); break;
		case 't': seconds = atof(optarg); break;
		case 'w': warm_up = atof(optarg); break;
		case 'i': idle = (unsigned)atoi(optarg); break;
		case 'P': server_pid = atoi(optarg); break;
		default: return 2;
		}
	}
	if (!address.sin_port || !connections || !message_size)
		die("usage: echo_load -p port -c connections -s size -t seconds [-w warm_up] [-i idle] [-P pid]");
	alarm((unsigned)(seconds + warm_up) + 60);

	pattern = malloc((size_t)message_size + PERIOD);
	scratch = malloc(message_size);
	if (!pattern || !scratch)
		die("out of memory");
	for (size_t i = 0; i < (size_t)message_size + PERIOD; i++)
		pattern[i] = (unsigned char)(i % PERIOD);

	open_connections(&address, idle);
	struct connection *all = open_connections(&address, connections);
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	for (unsigned i = 0; i < connections; i++) {
		struct epoll_event interest = { .events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = &all[i] };
		if (fcntl(all[i].fd, F_SETFL, O_NONBLOCK) < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &interest) < 0)
			die("epoll_ctl: %s", strerror(errno));
	}

	began = now();
	begin_measuring = began + (uint64_t)(warm_up * 1e9);
	end_measuring = begin_measuring + (uint64_t)(seconds * 1e9);
	for (unsigned i = 0; i < connections; i++)
		start_request(&all[i], now());
	in_flight = connections;

	double window = 0;
	struct cpu_time server = { 0 }, own = { 0 };
	time = now();
	while (in_flight) {
		struct epoll_event events[512];
		int count = epoll_wait(epoll, events, 512, 10000);
		if (count < 0 && errno != EINTR)
			die("epoll_wait: %s", strerror(errno));
		if (count == 0)
			die("%u requests were not answered within 10 s", in_flight);
		for (int i = 0; i < count; i++) {
			struct connection *c = events[i].data.ptr;
			if (c->received == message_size)
				continue;
			if (c->sent < message_size)
				send_rest(c);
			if (!receive_answer(c))
				continue;
			time = now();
			if (measuring == 1) {
				uint64_t latency = time - c->started;
				histogram[bucket_of(latency)]++;
				latency_sum += (double)latency;
				if ((double)latency > latency_max)
					latency_max = (double)latency;
				requests++;
			}
			if (measuring < 2)
				start_request(c, time);
			else
				in_flight--;
		}
		if (measuring == 0 && time >= begin_measuring) {
			measuring = 1;
			window_start = time = now();
			own_before = cpu_of_this_process();
			if (server_pid)
				server_before = cpu_of_process(server_pid);
		} else if (measuring == 1 && time >= end_measuring) {
			/* The window is over: nothing new is sent, and every request still out must come back. */
			measuring = 2;
			window = (double)(now() - window_start) / 1e9;
			own = cpu_of_this_process();
			if (server_pid)
				server = cpu_of_process(server_pid);
			for (unsigned i = 0; i < connections; i++)
				if (all[i].received == message_size)
					in_flight--;
		}
	}

	printf("{\"connections\": %u, \"idle\": %u, \"size\": %u, \"requests\": %llu, \"seconds\": %.6f, ", connections, idle,
	       message_size, (unsigned long long)requests, window);
	printf("\"requests_per_second\": %.1f, ", (double)requests / window);
	printf("\"latency_us\": {\"mean\": %.2f, \"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p99_9\": %.2f, \"max\": %.2f}, ",
	       requests ? latency_sum / (double)requests / 1e3 : 0, percentile_us(requests, 0.5),
	       percentile_us(requests, 0.9), percentile_us(requests, 0.99), percentile_us(requests, 0.999),
	       latency_max / 1e3);
	if (server_pid)
		printf("\"server_cpu\": {\"user\": %.4f, \"kernel\": %.4f}, ", server.user - server_before.user,
		       server.kernel - server_before.kernel);
	printf("\"load_cpu\": {\"user\": %.4f, \"kernel\": %.4f}}\n", own.user - own_before.user,
	       own.kernel - own_before.kernel);
	return 0;
}
