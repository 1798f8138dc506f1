/*
 * Echo load: keeps one request in flight on each connection and checks every byte that comes back.
 *
 *   echo_load -p port -c connections -s message_size -t seconds [-w warm_up_seconds] [-i idle_connections]
 *             [-P server_pid] [-H]
 *
 * Compiled with -DTLS -lssl -lcrypto: the same through TLS.
 *
 * One JSON object on stdout: requests, seconds, latency percentiles in microseconds, the processor time of the
 * server (from /proc/<pid>/stat, user and kernel) and of this program, all over the measured window alone.
 * Exit status 1 and a sentence on stderr when the server loses, changes or refuses anything.
 */
#include "load.h"

static void send_rest(struct connection *c)
{
	while (c->sent < message_size) {
		ssize_t n = give(c, pattern + c->offset + c->sent, message_size - c->sent);
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

#ifdef TLS
#define SHORT_IS_LAST 0 /* a read ends with its record, and another one may be there */
#else
#define SHORT_IS_LAST 1 /* a read shorter than asked for has emptied the receive queue: the next byte brings a new edge */
#endif

/* Takes what has arrived; 1 when the answer is complete. The server closing shows as the zero of a later read and is an
 * error. */
static int receive_answer(struct connection *c)
{
	for (;;) {
		uint32_t wanted = message_size - c->received;
		ssize_t n = take(c, scratch, wanted);
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
		if (SHORT_IS_LAST && (uint32_t)n < wanted)
			return 0;
	}
}

/* Keeps every connection busy until the window is over, and then waits for what is still out. With -H first until the
 * warm-up is over, and again when it is called again; then everything counts that was sent since, to the last answer. */
static uint64_t exchange(struct connection *all, unsigned connections, int epoll, struct window *w, int measuring)
{
	unsigned in_flight = connections;
	uint64_t time = now(), requests = 0;

	if (measuring == 1)
		begin_window(w);
	for (unsigned i = 0; i < connections; i++)
		start_request(&all[i], now());
	while (in_flight) {
		struct epoll_event events[EVENTS];
		int count = next_events(epoll, events);
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
			if (measuring == 1 || (w->hold && w->start)) {
				count_latency(time - c->started);
				requests++;
			}
			if (measuring < 2)
				start_request(c, time);
			else
				in_flight--;
		}
		/* When the window is over nothing new is sent, and every request still out must come back. */
		measuring = phase_at(w, measuring, time);
	}
	return requests;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	unsigned connections = 1, idle = 0;
	struct window window = { .seconds = 1, .warm_up = 0.2 };

	arguments(argc, argv, &address, &connections, &idle, &window);
	make_pattern();
	open_connections(&address, idle);
	struct connection *all = open_connections(&address, connections);
	int epoll = watch(all, connections, EPOLLIN | EPOLLOUT);

	report(&window, connections, idle, measured(exchange, all, connections, epoll, &window));
	return 0;
}
