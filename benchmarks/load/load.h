/*
 * What the loads share: connections, the pattern that messages are taken from, the latency histogram, processor time,
 * and the end of their reports.
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
#ifdef TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#endif

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
#ifdef TLS
	SSL *tls;
#endif
	uint32_t offset;   /* where in the pattern the current message starts */
	uint32_t sent;
	uint32_t received;
	uint64_t started;  /* of the echo: nanoseconds */
	uint64_t messages; /* of the push: received so far */
};

struct cpu_time {
	double user, kernel;
};

/* What both take from the command line, and the window that is measured. */
struct window {
	double seconds, warm_up, took;
	int server_pid, hold;
	uint64_t begin, start, end; /* nanoseconds: when the warm-up is over, and of the window itself */
	struct cpu_time server, own;       /* at its start, and in the end what it used */
};

static unsigned char *pattern, *scratch;
static uint32_t message_size = 64;
static uint64_t histogram[BUCKETS];
static double latency_sum, latency_max;

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

/* Compiled with -DTLS everything goes through that: the results of give() and take() are those of send(2) and recv(2). */
#ifdef TLS
static void start_tls(struct connection *c)
{
	static SSL_CTX *context;
	if (!context) {
		/* A certificate made for this run is not verified; what matters is what goes over the wire. */
		context = SSL_CTX_new(TLS_client_method());
		SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
		signal(SIGPIPE, SIG_IGN);
	}
	c->tls = SSL_new(context);
	if (!c->tls || !SSL_set_fd(c->tls, c->fd) || SSL_connect(c->tls) != 1)
		die("TLS handshake: %s", ERR_reason_error_string(ERR_get_error()));
}

static ssize_t result_of(SSL *tls, int n)
{
	if (n > 0)
		return n;
	switch (SSL_get_error(tls, n)) {
	case SSL_ERROR_WANT_READ:
	case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
	case SSL_ERROR_ZERO_RETURN: return 0;
	case SSL_ERROR_SYSCALL: return -1;
	default: die("TLS: %s", ERR_reason_error_string(ERR_get_error()));
	}
	return -1;
}

static ssize_t give(struct connection *c, const void *bytes, uint32_t n)
{
	return result_of(c->tls, SSL_write(c->tls, bytes, (int)n));
}

static ssize_t take(struct connection *c, void *room, uint32_t n)
{
	return result_of(c->tls, SSL_read(c->tls, room, (int)n));
}
#else
static void start_tls(struct connection *c) { (void)c; }

static ssize_t give(struct connection *c, const void *bytes, uint32_t n)
{
	return send(c->fd, bytes, n, MSG_NOSIGNAL);
}

static ssize_t take(struct connection *c, void *room, uint32_t n)
{
	return recv(c->fd, room, n, 0);
}
#endif

/* One byte there and back on each connection of a group, blocking: all of them are accepted and alive. */
static void prove(struct connection *group, unsigned count)
{
	unsigned char byte;
	for (unsigned i = 0; i < count; i++)
		if (give(&group[i], "?", 1) != 1)
			die("send: %s", strerror(errno));
	for (unsigned i = 0; i < count; i++) {
		ssize_t n = take(&group[i], &byte, 1);
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
			start_tls(&all[i]);
		}
		prove(all + first, in_group);
	}
	return all;
}

static void make_pattern(void)
{
	pattern = malloc((size_t)message_size + PERIOD);
	scratch = malloc(message_size);
	if (!pattern || !scratch)
		die("out of memory");
	for (size_t i = 0; i < (size_t)message_size + PERIOD; i++)
		pattern[i] = (unsigned char)(i % PERIOD);
}

/* Every edge of every connection, by one epoll descriptor. */
static int watch(struct connection *all, unsigned connections, uint32_t events)
{
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	for (unsigned i = 0; i < connections; i++) {
		struct epoll_event interest = { .events = events | EPOLLET, .data.ptr = &all[i] };
		if (fcntl(all[i].fd, F_SETFL, O_NONBLOCK) < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, all[i].fd, &interest) < 0)
			die("epoll_ctl: %s", strerror(errno));
	}
	return epoll;
}

static void count_latency(uint64_t nanoseconds)
{
	histogram[bucket_of(nanoseconds)]++;
	latency_sum += (double)nanoseconds;
	if ((double)nanoseconds > latency_max)
		latency_max = (double)nanoseconds;
}

static void begin_warm_up(struct window *w)
{
	w->begin = now() + (uint64_t)(w->warm_up * 1e9);
}

static void hold(void)
{
	char byte;
	fflush(stdout);
	if (read(0, &byte, 1) < 0)
		die("stdin: %s", strerror(errno));
}

/* With -H: when it is warm and nothing is under way any more, it says so and goes on when a byte comes on stdin. In
 * between somebody attaches to the server what counts its system calls. And when everything has been printed it waits
 * once more, since to close the connections would cost the server calls. */
static void say_ready(void)
{
	printf("ready\n");
	hold();
}

static void begin_window(struct window *w)
{
	w->start = now();
	w->end = w->start + (uint64_t)(w->seconds * 1e9);
	w->own = cpu_of_this_process();
	if (w->server_pid)
		w->server = cpu_of_process(w->server_pid);
}

static void end_window(struct window *w)
{
	struct cpu_time before = w->own, now_used = cpu_of_this_process();
	w->took = (double)(now() - w->start) / 1e9;
	w->own = (struct cpu_time){ now_used.user - before.user, now_used.kernel - before.kernel };
	if (w->server_pid) {
		before = w->server;
		now_used = cpu_of_process(w->server_pid);
		w->server = (struct cpu_time){ now_used.user - before.user, now_used.kernel - before.kernel };
	}
}

/* What comes after this phase, of which there are 0 the warm-up, 1 the window, and 2 what is still out. */
static int phase_at(struct window *w, int measuring, uint64_t time)
{
	if (measuring == 0 && time >= w->begin) {
		if (w->hold)
			return 2;
		begin_window(w);
		return 1;
	}
	if (measuring == 1 && time >= w->end) {
		end_window(w);
		return 2;
	}
	return measuring;
}

#define EVENTS 512

/* 0 when none comes within 10 s, less when a signal came. */
static int next_events(int epoll, struct epoll_event *events)
{
	int count = epoll_wait(epoll, events, EVENTS, 10000);
	if (count < 0 && errno != EINTR)
		die("epoll_wait: %s", strerror(errno));
	return count;
}

/* Runs this load, beginning with the warm-up; with -H once more from the window on. How many requests that made. */
static uint64_t measured(uint64_t (*load)(struct connection *, unsigned, int, struct window *, int),
			 struct connection *all, unsigned connections, int epoll, struct window *w)
{
	begin_warm_up(w);
	uint64_t requests = load(all, connections, epoll, w, 0);
	if (w->hold) {
		say_ready();
		requests = load(all, connections, epoll, w, 1);
	}
	return requests;
}

static void report(const struct window *w, unsigned connections, unsigned idle, uint64_t requests)
{
	printf("{\"connections\": %u, \"idle\": %u, \"size\": %u, \"requests\": %llu, \"seconds\": %.6f, ", connections, idle,
	       message_size, (unsigned long long)requests, w->took);
	printf("\"requests_per_second\": %.1f, ", (double)requests / w->took);
	printf("\"latency_us\": {\"mean\": %.2f, \"p50\": %.2f, \"p90\": %.2f, \"p99\": %.2f, \"p99_9\": %.2f, \"max\": %.2f}, ",
	       requests ? latency_sum / (double)requests / 1e3 : 0, percentile_us(requests, 0.5),
	       percentile_us(requests, 0.9), percentile_us(requests, 0.99), percentile_us(requests, 0.999),
	       latency_max / 1e3);
	if (w->server_pid)
		printf("\"server_cpu\": {\"user\": %.4f, \"kernel\": %.4f}, ", w->server.user, w->server.kernel);
	printf("\"load_cpu\": {\"user\": %.4f, \"kernel\": %.4f}}\n", w->own.user, w->own.kernel);
	if (w->hold)
		hold();
}

/* -p port -c connections -s size -t seconds -w warm_up -i idle -P server_pid -H, the same for both. */
static void arguments(int argc, char **argv, struct sockaddr_in *address, unsigned *connections, unsigned *idle,
		      struct window *w)
{
	int option;
	while ((option = getopt(argc, argv, "p:c:s:t:w:i:P:H")) != -1) {
		switch (option) {
		case 'p': address->sin_port = htons((uint16_t)atoi(optarg)); break;
		case 'c': *connections = (unsigned)atoi(optarg); break;
		case 's': message_size = (uint32_t)atoi(optarg); break;
		case 't': w->seconds = atof(optarg); break;
		case 'w': w->warm_up = atof(optarg); break;
		case 'i': *idle = (unsigned)atoi(optarg); break;
		case 'P': w->server_pid = atoi(optarg); break;
		case 'H': w->hold = 1; break;
		default: exit(2);
		}
	}
	if (!address->sin_port || !*connections || !message_size)
		die("usage: %s -p port -c connections -s size -t seconds [-w warm_up] [-i idle] [-P pid] [-H]", argv[0]);
	alarm((unsigned)(w->seconds + w->warm_up) + 60);
}
