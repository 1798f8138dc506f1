/*
 * kqueue(2) for Linux over epoll(7), as small as gaio's kqueue backend needs it: EVFILT_READ and EVFILT_WRITE on
 * descriptors, in struct kevent's classic form of 32 bytes. There is no EVFILT_USER.
 *
 *     cc -shared -fPIC -O1 -pthread -o libkqueue.so tests/kqueue/library.c
 *     GAIO_KQUEUE_LIBRARY=$PWD/libkqueue.so python3 -m tests --backend kqueue
 *
 * It proves the way through ctypes: symbols, signatures, structures, errno, and calls with and without the GIL.
 * tests/simulated_kqueue.py does the same without a compiler, and can be told to misbehave.
 *
 * Knotes are kept by descriptor number. Every event asks for at most two entries of the event list, so half as many
 * are taken from epoll as there is room for: an edge that found no room would be lost.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EVFILT_READ (-1)
#define EVFILT_WRITE (-2)
#define EV_ADD 0x0001
#define EV_DELETE 0x0002
#define EV_CLEAR 0x0020
#define EV_EOF 0x8000

struct kevent {
    uintptr_t ident;
    short filter;
    unsigned short flags;
    unsigned int fflags;
    intptr_t data;
    void *udata;
};

#define MAX_FD 65536
#define MAX_EVENTS 512

struct knote {
    int registered;
    unsigned short flags;
    void *udata;
};

struct kqueue {
    struct knote knotes[MAX_FD][2]; /* by descriptor, then 0 to read and 1 to write */
};

static struct kqueue *queues[MAX_FD]; /* by the descriptor of their epoll; one that was closed waits for its reuse */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int kqueue(void) {
    int kq = epoll_create1(0);
    if (kq < 0)
        return -1;
    struct kqueue *queue = kq < MAX_FD ? calloc(1, sizeof *queue) : NULL;
    if (queue == NULL) {
        close(kq);
        errno = ENOMEM;
        return -1;
    }
    pthread_mutex_lock(&lock);
    free(queues[kq]);
    queues[kq] = queue;
    pthread_mutex_unlock(&lock);
    return kq;
}

/* Tell epoll what the knotes of this descriptor want together. Returns 0 or an errno. */
static int arm(int kq, struct knote *knotes, int fd) {
    struct epoll_event event = {.events = 0, .data.fd = fd};
    int cleared = 1;
    for (int way = 0; way < 2; way++) {
        if (!knotes[way].registered)
            continue;
        event.events |= way == 0 ? EPOLLIN | EPOLLPRI | EPOLLRDHUP : EPOLLOUT;
        cleared &= (knotes[way].flags & EV_CLEAR) != 0;
    }
    if (event.events == 0) {
        epoll_ctl(kq, EPOLL_CTL_DEL, fd, NULL);
        return 0;
    }
    if (cleared)
        event.events |= EPOLLET;
    if (epoll_ctl(kq, EPOLL_CTL_MOD, fd, &event) == 0)
        return 0;
    if (errno == ENOENT && epoll_ctl(kq, EPOLL_CTL_ADD, fd, &event) == 0)
        return 0;
    return errno;
}

static int change(int kq, const struct kevent *entry) {
    if (entry->filter != EVFILT_READ && entry->filter != EVFILT_WRITE)
        return EINVAL;
    if (entry->ident >= MAX_FD)
        return EBADF;
    int fd = (int)entry->ident;
    struct knote *knotes = queues[kq]->knotes[fd];
    struct knote *knote = &knotes[entry->filter == EVFILT_WRITE];
    if (entry->flags & EV_ADD) {
        if (fcntl(fd, F_GETFD) < 0)
            return EBADF;
        *knote = (struct knote){1, entry->flags & EV_CLEAR, entry->udata};
        int failed = arm(kq, knotes, fd);
        if (failed)
            knote->registered = 0;
        return failed;
    }
    if (!knote->registered)
        return ENOENT;
    if (entry->flags & EV_DELETE) {
        knote->registered = 0;
        return arm(kq, knotes, fd);
    }
    return 0;
}

static int report(struct kqueue *queue, const struct epoll_event *event, struct kevent *entries) {
    int fd = event->data.fd, count = 0;
    struct knote *reads = &queue->knotes[fd][0], *writes = &queue->knotes[fd][1];
    if (reads->registered && event->events & (EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
        int bytes = 1; /* of a listening socket, which counts connections */
        ioctl(fd, FIONREAD, &bytes);
        unsigned short flags = event->events & (EPOLLRDHUP | EPOLLHUP) ? EV_EOF : 0;
        /* FIONREAD stops at an urgent mark, where a kqueue counts on. */
        intptr_t data = bytes + (event->events & EPOLLPRI ? 1 : 0);
        entries[count++] = (struct kevent){fd, EVFILT_READ, reads->flags | flags, 0, data, reads->udata};
    }
    if (writes->registered && event->events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) {
        unsigned short flags = event->events & (EPOLLHUP | EPOLLERR) ? EV_EOF : 0;
        entries[count++] = (struct kevent){fd, EVFILT_WRITE, writes->flags | flags, 0, 1, writes->udata};
    }
    return count;
}

static int64_t milliseconds_until(const struct timespec *end) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t left = (end->tv_sec - now.tv_sec) * 1000000000LL + end->tv_nsec - now.tv_nsec;
    left = left > 0 ? (left + 999999) / 1000000 : 0;
    return left < INT32_MAX ? left : INT32_MAX;
}

int kevent(int kq, const struct kevent *changelist, int nchanges, struct kevent *eventlist, int nevents,
           const struct timespec *timeout) {
    if (kq < 0 || kq >= MAX_FD || queues[kq] == NULL) {
        errno = EBADF;
        return -1;
    }
    pthread_mutex_lock(&lock);
    int failed = 0;
    for (int index = 0; index < nchanges && !failed; index++)
        failed = change(kq, &changelist[index]);
    pthread_mutex_unlock(&lock);
    if (failed) { /* without EV_ERROR in the event list, which gaio does not ask for */
        errno = failed;
        return -1;
    }
    if (nevents == 0)
        return 0;
    if (nevents < 2) {
        errno = EINVAL;
        return -1;
    }
    struct timespec end;
    if (timeout != NULL) {
        clock_gettime(CLOCK_MONOTONIC, &end);
        end.tv_sec += timeout->tv_sec + (end.tv_nsec + timeout->tv_nsec) / 1000000000;
        end.tv_nsec = (end.tv_nsec + timeout->tv_nsec) % 1000000000;
    }
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int room = nevents / 2 < MAX_EVENTS ? nevents / 2 : MAX_EVENTS;
        int left = timeout == NULL ? -1 : (int)milliseconds_until(&end);
        int ready = epoll_wait(kq, events, room, left);
        if (ready < 0)
            return -1;
        int count = 0;
        pthread_mutex_lock(&lock);
        for (int index = 0; index < ready; index++)
            count += report(queues[kq], &events[index], &eventlist[count]);
        pthread_mutex_unlock(&lock);
        if (count > 0 || (timeout != NULL && left == 0))
            return count;
    }
}
