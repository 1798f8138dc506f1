/*
 * The floor: a plain echo server in C over level-triggered epoll, one thread, one receive and one send a request.
 *
 *   epoll_server life_in_seconds     prints {"port": N} and serves until killed or until its life is over
 *
 * Level-triggered because that is one receive a request: an edge-triggered server has to read on until EAGAIN.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define BUFFER_SIZE 65536
#define MAX_EVENTS 512

/* What a peer that reads slowly has not taken yet. While there is some, the connection is not read. */
struct connection {
	int fd;
	char *rest;
	size_t rest_start, rest_end;
};

static char buffer[BUFFER_SIZE];
static int epoll;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void wait_for(struct connection *c, uint32_t events)
{
	struct epoll_event interest = { .events = events, .data.ptr = c };
	if (epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &interest) < 0)
		fail("epoll_ctl");
}

static void drop(struct connection *c)
{
	close(c->fd);
	free(c->rest);
	free(c);
}

static void accept_all(int listener)
{
	for (;;) {
		int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0) {
			if (errno == EAGAIN || errno == ECONNABORTED)
				return;
			fail("accept4");
		}
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
		struct connection *c = calloc(1, sizeof *c);
		if (!c)
			fail("calloc");
		c->fd = fd;
		struct epoll_event interest = { .events = EPOLLIN, .data.ptr = c };
		if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &interest) < 0)
			fail("epoll_ctl");
	}
}

static void echo(struct connection *c)
{
	ssize_t got = recv(c->fd, buffer, sizeof buffer, 0), sent;
	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		drop(c);
		return;
	}
	sent = send(c->fd, buffer, (size_t)got, MSG_NOSIGNAL);
	if (sent < 0 && errno != EAGAIN) {
		drop(c);
		return;
	}
	if (sent < 0)
		sent = 0;
	if (sent < got) {
		c->rest_end = (size_t)(got - sent);
		c->rest_start = 0;
		c->rest = malloc(c->rest_end);
		if (!c->rest)
			fail("malloc");
		memcpy(c->rest, buffer + sent, c->rest_end);
		wait_for(c, EPOLLOUT);
	}
}

static void flush(struct connection *c)
{
	ssize_t sent = send(c->fd, c->rest + c->rest_start, c->rest_end - c->rest_start, MSG_NOSIGNAL);
	if (sent < 0 && errno == EAGAIN)
		return;
	if (sent < 0) {
		drop(c);
		return;
	}
	c->rest_start += (size_t)sent;
	if (c->rest_start == c->rest_end) {
		free(c->rest);
		c->rest = NULL;
		wait_for(c, EPOLLIN);
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t length = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (argc != 2 || atoi(argv[1]) <= 0) {
		fprintf(stderr, "usage: epoll_server life_in_seconds\n");
		return 2;
	}
	alarm((unsigned)atoi(argv[1]));
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (listener < 0 || epoll < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
	    listen(listener, 4096) < 0 || getsockname(listener, (struct sockaddr *)&address, &length) < 0)
		fail("listener");
	struct epoll_event interest = { .events = EPOLLIN, .data.ptr = NULL };
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &interest) < 0)
		fail("epoll_ctl");
	printf("{\"port\": %d}\n", ntohs(address.sin_port));
	fflush(stdout);

	for (;;) {
		struct epoll_event events[MAX_EVENTS];
		int count = epoll_wait(epoll, events, MAX_EVENTS, -1);
		if (count < 0 && errno != EINTR)
			fail("epoll_wait");
		for (int i = 0; i < count; i++) {
			struct connection *c = events[i].data.ptr;
			if (!c)
				accept_all(listener);
			else if (c->rest)
				flush(c);
			else
				echo(c);
		}
	}
}
