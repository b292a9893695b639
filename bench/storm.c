// Bad guests: connects to a server on this machine, sends what it is told to in one packet, waits for the end, and again.
//
//     storm PORT RATE SOURCES FILE      RATE a second, 0: as fast as it goes; SOURCES addresses 127.0.2.1, 127.0.2.2, ...
//
// FILE holds the bytes of one visit (an upgrade request with a bad login behind it). Runs until SIGTERM or for SECONDS_LIMIT
// and prints what became of the visits as JSON: `upgraded` were let in and closed with `code_4500` or otherwise, `refused`
// were closed before any byte came, `failed` could not even connect, `late` heard nothing for a second.
// One thread, epoll, at most VISITS at once; every connection is ended with a reset, so that no port waits.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define VISITS 256
#define SECONDS_LIMIT 300
#define LATE_NS 1000000000LL
#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

struct visit {
    int fd;
    int is_sent;
    int n_heard;
    int64_t began_ns;
    unsigned char heard[512];
};

static struct visit visits[VISITS];
static int free_visits[VISITS], n_free;
static char guest[65536];
static int guest_bytes, epoll_fd;
static long made, upgraded, code_4500, refused, failed, late;
static volatile sig_atomic_t is_over;

static void stop(int signal) { is_over = 1; }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void end(struct visit *v) {
    struct linger reset = {1, 0};
    setsockopt(v->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(v->fd);
    v->fd = -1;
    free_visits[n_free++] = v - visits;
}

static void judge(struct visit *v) {
    if (v->n_heard == 0)
        refused++;
    else if (memmem(v->heard, v->n_heard, " 101 ", 5)) {
        upgraded++;
        if (memmem(v->heard, v->n_heard, "\x11\x94", 2)) code_4500++;
    } else
        failed++;
    end(v);
}

static void begin(int port, int sources) {
    struct visit *v = &visits[free_visits[--n_free]];
    int one = 1;
    struct sockaddr_in from = {.sin_family = AF_INET}, to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int n = made++ % sources;
    from.sin_addr.s_addr = htonl(0x7F000201 + n / 250 * 256 + n % 250);
    to.sin_addr.s_addr = htonl(0x7F000001);
    v->is_sent = v->n_heard = 0;
    v->began_ns = now_ns();
    v->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(v->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    setsockopt(v->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = v};
    if (bind(v->fd, (struct sockaddr *)&from, sizeof from) || (connect(v->fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS)
        || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, v->fd, &event)) {
        failed++;
        end(v);
    }
}

static void go_on(struct visit *v, uint32_t events) {
    if (!v->is_sent) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(v->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            error == ECONNRESET ? refused++ : failed++;
            return end(v);
        }
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = v};
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, v->fd, &event);
        v->is_sent = 1;
        if (send(v->fd, guest, guest_bytes, MSG_NOSIGNAL) < 0) return judge(v);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        for (;;) {
            int room = sizeof v->heard - v->n_heard;
            ssize_t n = recv(v->fd, v->heard + v->n_heard, room, 0);
            if (n < 0 && errno == EAGAIN) return;
            if (n <= 0 || n == room) return judge(v);
            v->n_heard += n;
        }
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    int port = atoi(argv[1]), sources = atoi(argv[3]);
    double rate = atof(argv[2]);
    FILE *file = fopen(argv[4], "rb");
    if (!file || sources < 1) return 2;
    guest_bytes = fread(guest, 1, sizeof guest, file);
    signal(SIGTERM, stop);
    epoll_fd = epoll_create1(0);
    for (int i = 0; i < VISITS; i++) free_visits[n_free++] = i, visits[i].fd = -1;
    int64_t start_ns = now_ns(), swept_ns = start_ns, at_ns = start_ns;
    while (!is_over && at_ns - start_ns < SECONDS_LIMIT * 1000000000LL) {
        double due = rate ? (at_ns - start_ns) / 1e9 * rate : 1e18;
        for (int i = 0; i < VISITS && n_free && made < due; i++) begin(port, sources);
        struct epoll_event events[VISITS];
        int n = epoll_wait(epoll_fd, events, VISITS, 1);
        for (int i = 0; i < n; i++) go_on(events[i].data.ptr, events[i].events);
        at_ns = now_ns();
        if (at_ns - swept_ns > LATE_NS / 4) {
            swept_ns = at_ns;
            for (int i = 0; i < VISITS; i++)
                if (visits[i].fd >= 0 && at_ns - visits[i].began_ns > LATE_NS) {
                    late++;
                    end(&visits[i]);
                }
        }
    }
    printf("{\"seconds\":%.3f,\"made\":%ld,\"upgraded\":%ld,\"code_4500\":%ld,\"refused\":%ld,\"failed\":%ld,\"late\":%ld}\n",
           (at_ns - start_ns) / 1e9, made, upgraded, code_4500, refused, failed, late);
    return 0;
}
