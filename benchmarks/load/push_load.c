/*
 * Push load: takes the one message that the server sends to each connection, again and again, and checks every byte.
 *
 *   push_load -p port -c connections -s message_size -t seconds [-w warm_up_seconds] [-i idle_connections]
 *             [-P server_pid] [-H]
 *
 * A round is one message to each connection. The first connection asks for it with one byte, "!". The receivers set the
 * pace: the next round is asked for when half of them have the last one, and all of them the one before. So neither side
 * sleeps while the other works, and the server never finds two rounds to be sent, which it could send as one. Message k
 * is the pattern from offset k % PERIOD on. A request is a message received, its latency the time since its round was
 * asked for. Output and exit status as of echo_load.
 */
#include "load.h"

#define AHEAD 2 /* rounds under way, at most */

static uint64_t asked_at[AHEAD], rounds_asked, rounds_done; /* done: every connection has it */
static unsigned received[AHEAD];                            /* connections that have it, of each round under way */

static void ask(struct connection *c)
{
	asked_at[rounds_asked++ % AHEAD] = now();
	if (send(c->fd, "!", 1, MSG_NOSIGNAL) != 1)
		die("send: %s", strerror(errno));
}

/* Takes what has arrived. */
static void receive_messages(struct connection *c, unsigned connections, int counts, uint64_t *requests)
{
	for (;;) {
		uint32_t position = 0;
		ssize_t n = recv(c->fd, scratch, AHEAD * message_size, 0);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0)
			die("recv: %s", strerror(errno));
		if (n == 0)
			die("the server closed a connection after %llu messages", (unsigned long long)c->messages);
		while (position < (uint32_t)n) {
			uint32_t part = message_size - c->received;
			if (part > (uint32_t)n - position)
				part = (uint32_t)n - position;
			if (c->messages >= rounds_asked)
				die("the server sent more than was asked for");
			if (memcmp(scratch + position, pattern + c->messages % PERIOD + c->received, part) != 0)
				die("the server sent a wrong message");
			position += part;
			c->received += part;
			if (c->received < message_size)
				break;
			c->received = 0;
			if (counts) {
				count_latency(now() - asked_at[c->messages % AHEAD]);
				++*requests;
			}
			if (++received[c->messages % AHEAD] == connections) {
				received[c->messages % AHEAD] = 0;
				rounds_done++;
			}
			c->messages++;
		}
		if ((uint32_t)n < AHEAD * message_size)
			return;
	}
}

static int wants_more(unsigned connections)
{
	uint64_t under_way = rounds_asked - rounds_done;
	return under_way == 0 || (under_way == 1 && received[rounds_done % AHEAD] * 2 >= connections);
}

/* Takes one round after the other until the window is over, and then what was asked for. -H as in echo_load.c. */
static uint64_t take_rounds(struct connection *all, unsigned connections, int epoll, struct window *w, int measuring)
{
	uint64_t requests = 0;

	if (measuring == 1)
		begin_window(w);
	ask(&all[0]);
	while (rounds_done < rounds_asked) {
		struct epoll_event events[EVENTS];
		int count = next_events(epoll, events);
		if (count == 0)
			die("%u of %u connections got message %llu, and no more within 10 s", received[rounds_done % AHEAD],
			    connections, (unsigned long long)rounds_done);
		for (int i = 0; i < count; i++)
			receive_messages(events[i].data.ptr, connections, measuring == 1 || (w->hold && w->start), &requests);
		if (measuring < 2 && wants_more(connections))
			ask(&all[0]);
		measuring = phase_at(w, measuring, now());
	}
	return requests;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	unsigned connections = 1, idle = 0;
	struct window window = { .seconds = 1, .warm_up = 0.2 };

	arguments(argc, argv, &address, &connections, &idle, &window);
	if (idle)
		die("a push has no idle connections");
	make_pattern();
	free(scratch);
	scratch = malloc((size_t)AHEAD * message_size);
	if (!scratch)
		die("out of memory");
	struct connection *all = open_connections(&address, connections);
	int epoll = watch(all, connections, EPOLLIN);

	report(&window, connections, idle, measured(take_rounds, all, connections, epoll, &window));
	return 0;
}
