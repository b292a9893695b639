"""The last resort: the process ends although its Python can't run any more.

Strategy: a handler in an endless loop never lets the loop see a signal, and one that loops inside of C (a regular
expression, a sum of a long range) holds the GIL as well, so no thread of Python's could end the process either. So the
signals are seen here first, by a handler in C that goes on to the one it replaced, and one thread without Python waits
for two things: a second signal, after which all else has `ORDERLY_S` to end the process, and a deadline. It writes one
line to the log's descriptor and ends the process by ``_exit``: no atexit handlers, no waiting for threads.

Lifetimes: what is here belongs to the process and is never freed; lines that are replaced stay, as the thread may be
reading them (two or three a process). The handler calls only what POSIX allows in one. A child made by fork has the
handler and not the thread: there the handler only goes on to the one it replaced.
"""

from cpython.exc cimport PyErr_SetFromErrno
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy
from posix.signal cimport sigaddset, sigemptyset, sigfillset, sigset_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, nanosleep, timespec
from posix.unistd cimport _exit, getpid, pid_t, read, write

ctypedef void (*handler_t)(int) noexcept nogil

cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int count, int flags)
    enum: EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    enum: POLLIN, POLLOUT
    int poll(pollfd* fds, unsigned long number, int timeout_ms)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    int pthread_create(pthread_t* thread, void* attributes, void* (*start)(void*) noexcept nogil, void* argument)
    int pthread_detach(pthread_t thread)
    int pthread_sigmask(int how, const sigset_t* wanted, sigset_t* before)

cdef extern from "<signal.h>" nogil:
    enum: SIG_BLOCK, SA_RESTART, SA_ONSTACK
    handler_t SIG_DFL, SIG_IGN
    ctypedef struct sigaction_t "struct sigaction":
        handler_t sa_handler
        sigset_t sa_mask
        int sa_flags
    int sigaction(int number, const sigaction_t* wanted, sigaction_t* before)

cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct tm:
        pass
    time_t time(time_t* place)
    tm* gmtime_r(const time_t* when, tm* place)
    size_t strftime(char* text, size_t size_bytes, const char* format, const tm* when)

cdef extern from *:
    """
    #define starlight_add(place) __atomic_add_fetch(place, 1, __ATOMIC_SEQ_CST)
    #define starlight_get(place) __atomic_load_n(place, __ATOMIC_SEQ_CST)
    #define starlight_set(place, value) __atomic_store_n(place, value, __ATOMIC_SEQ_CST)
    """
    int add "starlight_add"(int* place) noexcept nogil
    int get_int "starlight_get"(int* place) noexcept nogil
    int64_t get_ns "starlight_get"(int64_t* place) noexcept nogil
    char* get_text "starlight_get"(char** place) noexcept nogil
    void set_int "starlight_set"(int* place, int value) noexcept nogil
    void set_ns "starlight_set"(int64_t* place, int64_t value) noexcept nogil
    void set_text "starlight_set"(char** place, char* value) noexcept nogil

cdef enum:
    NUMBERS = 65
    LINE_BYTES = 4096  # a pipe that is writable takes so many without waiting (PIPE_BUF)
    SECOND_NS = 1000000000
    ORDERLY_NS = 250000000

ORDERLY_S = ORDERLY_NS / 1e9

cdef pid_t owner = 0  # whose thread is running; 0: nobody's
cdef int wake_fd = -1  # an eventfd, by which the handler wakes the thread
cdef int signals_seen = 0
cdef int second_number = 0  # of the second signal or one after it
cdef int64_t deadline_ns = 0  # CLOCK_MONOTONIC; 0: none
cdef int64_t leave_after_ns = 0  # the first signal sets a deadline so far away
cdef int log_fd = -1
cdef int late_status = 1
cdef char* second_line = NULL  # formats of strftime; NULL: no line
cdef char* late_line = NULL
cdef sigaction_t replaced[NUMBERS]


cdef int64_t now_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <int64_t>now.tv_sec * SECOND_NS + now.tv_nsec


cdef void wake() noexcept nogil:
    cdef uint64_t one = 1
    write(wake_fd, &one, sizeof(one))


cdef void on_signal(int number) noexcept nogil:
    cdef int error = errno
    if getpid() == owner:
        if add(&signals_seen) > 1:
            set_int(&second_number, number)
        elif get_ns(&deadline_ns) == 0:
            set_ns(&deadline_ns, now_ns() + get_ns(&leave_after_ns))
        wake()
    if replaced[number].sa_handler != SIG_DFL and replaced[number].sa_handler != SIG_IGN:
        replaced[number].sa_handler(number)
    restore_errno(error)


cdef extern from *:
    """
    #define starlight_errno(value) (errno = (value))
    """
    void restore_errno "starlight_errno"(int value) noexcept nogil


cdef void leave(int status, char* line) noexcept nogil:
    """Write the line, if that needs no waiting, and end the process."""
    cdef char text[LINE_BYTES]
    cdef pollfd target
    cdef tm when
    cdef time_t seconds = time(NULL)
    cdef size_t size_bytes
    target.fd, target.events, target.revents = log_fd, POLLOUT, 0
    if line != NULL and log_fd >= 0 and poll(&target, 1, 0) == 1 and target.revents & POLLOUT:
        gmtime_r(&seconds, &when)
        size_bytes = strftime(text, LINE_BYTES, line, &when)
        write(log_fd, text, size_bytes)
    _exit(status)


cdef void* keep_watch(void* unused) noexcept nogil:
    """The thread: waits for a second signal or the deadline, whichever comes first. It never ends."""
    cdef sigset_t everything
    cdef pollfd waker
    cdef uint64_t times
    cdef int64_t left_ns
    cdef int timeout_ms
    cdef timespec pause
    sigfillset(&everything)
    pthread_sigmask(SIG_BLOCK, &everything, NULL)  # signals are for Python's threads
    while True:
        timeout_ms = -1
        if get_ns(&deadline_ns):
            left_ns = get_ns(&deadline_ns) - now_ns()
            timeout_ms = <int>min(max(left_ns // 1000000 + 1, 0), 3600000)
        waker.fd, waker.events, waker.revents = wake_fd, POLLIN, 0
        if poll(&waker, 1, timeout_ms) > 0:
            read(wake_fd, &times, sizeof(times))
        if get_int(&second_number):
            pause.tv_sec, pause.tv_nsec = 0, ORDERLY_NS
            nanosleep(&pause, NULL)
            leave(128 + get_int(&second_number), get_text(&second_line))
        if get_ns(&deadline_ns) and now_ns() >= get_ns(&deadline_ns):
            leave(get_int(&late_status), get_text(&late_line))
    return NULL


cdef char* kept(bytes line) except NULL:
    """A copy of a line that is never freed."""
    cdef size_t size_bytes = len(line) + 1
    cdef char* copy = <char*>malloc(size_bytes)
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <char*>line, size_bytes)
    return copy


cdef int start_thread() except -1:
    global owner, wake_fd
    cdef pthread_t thread
    if owner == getpid():
        return 0
    wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if wake_fd < 0:
        PyErr_SetFromErrno(OSError)
    set_int(&signals_seen, 0)
    set_int(&second_number, 0)
    set_ns(&deadline_ns, 0)
    if pthread_create(&thread, NULL, keep_watch, NULL):
        raise RuntimeError("a thread could not be started")
    pthread_detach(thread)
    owner = getpid()
    return 0


def arm(numbers, double leave_after_s, int fd, bytes second, bytes late, int status):
    global log_fd
    set_int(&signals_seen, 0)
    set_int(&second_number, 0)
    set_ns(&deadline_ns, 0)
    set_ns(&leave_after_ns, <int64_t>(leave_after_s * SECOND_NS))
    log_fd = fd
    set_text(&second_line, kept(second))
    change_late(late, status)
    start_thread()
    take(numbers)


def take(numbers):
    cdef sigaction_t ours, before
    cdef int number, other
    for number in numbers:
        if not 0 < number < NUMBERS:
            raise ValueError(f"{number} is not a signal")
        sigemptyset(&ours.sa_mask)
        for other in numbers:
            sigaddset(&ours.sa_mask, other)
        ours.sa_handler = on_signal
        ours.sa_flags = SA_RESTART | SA_ONSTACK
        if sigaction(number, NULL, &before):
            PyErr_SetFromErrno(OSError)
        if before.sa_handler == on_signal:
            continue
        replaced[number] = before
        if sigaction(number, &ours, NULL):
            PyErr_SetFromErrno(OSError)


def change_late(bytes late, int status):
    set_text(&late_line, kept(late))
    set_int(&late_status, status)


def change_leave_after(double leave_after_s):
    set_ns(&leave_after_ns, <int64_t>(leave_after_s * SECOND_NS))


def leave_within(double seconds):
    if get_ns(&deadline_ns) == 0:
        set_ns(&deadline_ns, now_ns() + <int64_t>(seconds * SECOND_NS))
        wake()


def is_signalled():
    return get_int(&signals_seen) > 0


def disarm():
    set_ns(&deadline_ns, 0)
    if wake_fd >= 0:
        wake()
