/* null_sink: preloaded under the benches of the core, so that they measure the core and not the kernel.
 *
 * A send to a descriptor of NULL_FD or above takes everything and does nothing; all others go to the kernel as they are.
 * The same library lets Python switch callgrind on and off (no-ops outside valgrind), and is empty of that where
 * valgrind's header isn't installed.
 *
 * Build: gcc -O2 -shared -fPIC -o null_sink.so null_sink.c     Use: LD_PRELOAD=./null_sink.so
 */
#define _GNU_SOURCE
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__has_include) && __has_include(<valgrind/callgrind.h>)
#include <valgrind/callgrind.h>
#define ASK(request) request
#else
#define ASK(request) (void)0
#endif

enum { NULL_FD = 1 << 30 };

ssize_t send(int fd, const void *data, size_t length, int flags) {
    if (fd >= NULL_FD) return (ssize_t)length;
    return syscall(SYS_sendto, fd, data, length, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (fd < NULL_FD) return syscall(SYS_sendmsg, fd, message, flags);
    ssize_t length = 0;
    for (size_t i = 0; i < message->msg_iovlen; i++) length += (ssize_t)message->msg_iov[i].iov_len;
    return length;
}

void null_sink_start(void) { ASK(CALLGRIND_START_INSTRUMENTATION); ASK(CALLGRIND_ZERO_STATS); }

/* The counts since the start go to a file of their own, in which `name` stands as the reason for the dump. */
void null_sink_dump(const char *name) { ASK(CALLGRIND_DUMP_STATS_AT(name)); ASK(CALLGRIND_STOP_INSTRUMENTATION); (void)name; }
