# Connections of the engine: sockets, the RFC 6455 client side, what goes out. (_receive.pxd: what comes in;
# _protocol.pxd: what must not.)
#
#   CLOSED -> CONNECTING -> UPGRADING -> LOGIN -> JOINING -> READY -> CLOSING -> CLOSED
#             connect(2)    101          welcome  every `ok`           close sent
#
# One thread owns an Eng and everything in it; nothing here needs the GIL or touches a Python object. Memory: a Connection owns its
# buffers (`in`: a torn frame between reads; `out`: frames not yet written; `pile`: fragments, or a torn NATS operation), freed when it
# closes. `Text` pointers are borrowed from bytes objects that the Python Engine keeps alive. Failures never raise: connection_lost()
# books them and writes the first one's text to Eng.failure.

from libc.errno cimport EADDRNOTAVAIL, EAGAIN, EINPROGRESS, EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset, strerror
from starlight.loadtest._arena cimport *
from starlight.loadtest._check cimport *
from starlight.loadtest._protocol cimport *
from starlight.loadtest._stamp cimport *

cdef extern from *:
    """
    #include <arpa/inet.h>
    #include <errno.h>
    #include <netinet/in.h>
    #include <netinet/tcp.h>
    #include <poll.h>
    #include <stdio.h>
    #include <sys/epoll.h>
    #include <sys/prctl.h>
    #include <sys/socket.h>
    #include <unistd.h>
    #ifndef IP_BIND_ADDRESS_NO_PORT
    #define IP_BIND_ADDRESS_NO_PORT 24
    #endif

    /* Request ids say what was asked: + the group, + the group, + the connection's own count of publications. Ten digits each. */
    #define SL_JOIN_ID 1000000000ull
    #define SL_LEAVE_ID 2000000000ull
    #define SL_PUBLISH_ID 3000000000ull

    /* A non-blocking socket on its way to the target; -errno if it failed at once. `source` (host order, 0: any) is an IPv4 address. */
    static int sl_connect(const void *address, int length, uint32_t source, int receive_buffer) {
        int one = 1, family = ((const struct sockaddr *)address)->sa_family, error;
        int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) return -errno;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (receive_buffer) setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
        if (source && family == AF_INET) {
            struct sockaddr_in from; memset(&from, 0, sizeof from);
            from.sin_family = AF_INET; from.sin_addr.s_addr = htonl(source);
            setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
            if (bind(fd, (struct sockaddr *)&from, sizeof from) < 0) { error = errno; close(fd); return -error; }
        }
        if (connect(fd, (const struct sockaddr *)address, (socklen_t)length) < 0 && errno != EINPROGRESS) {
            error = errno; close(fd); return -error;
        }
        return fd;
    }
    static int sl_socket_error(int fd) {
        int error = 0; socklen_t n = sizeof error;
        return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &n) < 0 ? errno : error;
    }
    static void sl_reset(int fd) {
        struct linger l = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &l, sizeof l);
        close(fd);
    }
    static int sl_watch(int epoll, int operation, int fd, uint32_t events, uint64_t data) {
        struct epoll_event e; e.events = events; e.data.u64 = data;
        return epoll_ctl(epoll, operation, fd, &e);
    }
    static void sl_fail_text(char *to, size_t n, const char *what, const char *detail, size_t detail_n) {
        snprintf(to, n, "%s%.*s", what, (int)detail_n, detail);
    }
    /* Timers of this thread fire when they are due, not up to 50 us later to save wake-ups. */
    static void sl_exact_timers(void) { prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); }
    /* An epoll_wait with nanoseconds, so that a paced send isn't a millisecond late. */
    static int sl_wait(int epoll, struct epoll_event *events, int n, int64_t timeout_ns) {
        if (timeout_ns > 0) {
            struct pollfd p = {epoll, POLLIN, 0};
            struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
            if (ppoll(&p, 1, &t, NULL) <= 0) return 0;
        }
        return epoll_wait(epoll, events, n, 0);
    }
    """
    int sl_connect(const void *address, int length, uint32_t source, int receive_buffer) noexcept nogil
    int sl_socket_error(int fd) noexcept nogil
    void sl_reset(int fd) noexcept nogil
    int sl_watch(int epoll, int operation, int fd, uint32_t events, uint64_t data) noexcept nogil
    void sl_fail_text(char *to, size_t n, const char *what, const char *detail, size_t detail_n) noexcept nogil
    void sl_exact_timers() noexcept nogil
    int sl_wait(int epoll, epoll_event *events, int n, int64_t timeout_ns) noexcept nogil
    const uint64_t SL_JOIN_ID
    const uint64_t SL_LEAVE_ID
    const uint64_t SL_PUBLISH_ID
    ctypedef union epoll_data_t:
        uint64_t u64
    ctypedef struct epoll_event "struct epoll_event":
        uint32_t events
        epoll_data_t data
    const uint32_t EPOLLIN
    const uint32_t EPOLLOUT
    const uint32_t EPOLLERR
    const uint32_t EPOLLHUP
    const int EPOLL_CTL_ADD
    const int EPOLL_CTL_MOD
    const int EPOLL_CLOEXEC
    const int MSG_NOSIGNAL
    const int MSG_DONTWAIT
    const int SHUT_WR
    int epoll_create1(int flags) noexcept nogil
    Py_ssize_t sl_recv "recv"(int fd, void *to, size_t n, int flags) noexcept nogil
    Py_ssize_t sl_send "send"(int fd, const void *source, size_t n, int flags) noexcept nogil
    int sl_close "close"(int fd) noexcept nogil
    int sl_shutdown "shutdown"(int fd, int how) noexcept nogil

cdef enum:
    CLOSED = 0
    CONNECTING = 1
    UPGRADING = 2
    LOGIN = 3
    JOINING = 4
    READY_STATE = 5
    CLOSING = 6
    GIVEN_UP_STATE = 7           # closed by the server or failed, and not to be opened again

    FORM_MESSAGE = 0             # a frame is a message
    FORM_LINES = 1               # a frame is one or more messages, separated by newlines
    FORM_NATS = 2                # frames carry a stream of NATS operations

    SLOW_NOT = 0
    SLOW_STALL = 1               # reads nothing once it is ready
    SLOW_RATE = 2                # reads at most `slow_bytes` at each tick

    OUT_LIMIT = 1 << 20          # unwritten bytes at which a sender counts as blocked
    BUFFER_BYTES = 1 << 20       # the receive buffer: large reads are what makes coalesced frames cheap
    LARGEST_PILE = 1 << 23       # of one message in fragments
    LARGEST_OPERATION = 1 << 16  # of the line that begins a NATS operation
    MOST_FRAGMENTS = 1 << 16     # of one message; a server that writes each KiB of 8 MiB as one sends 8,192
    LARGEST_HELD = 1 << 30       # torn frames and unfinished messages of all connections of a process
    KEPT_ROOM = 1 << 16          # a larger buffer is given back when it is empty
    PONG_BACKLOG = 1 << 14       # with more than this unwritten, only the latest ping is answered (RFC 6455 section 5.5.3)
    MOST_BUFFERED = 1 << 30      # no buffer ever needs so much
    EVENTS_PER_TURN = 512
    PADDING_PERIOD = 4096
    MEMBER_NO = 0                # what a connection is to one of its channels
    MEMBER_ASKED = 1
    MEMBER_YES = 2
    MEMBER_LEAVING = 3
    ACK_RING = 1024

ctypedef struct Text:
    const uint8_t *bytes         # borrowed
    uint32_t size

ctypedef struct Template:        # one per group: the message around the data
    Text before
    Text after
    int32_t id_at                # where in `before` ten digits of an id go; -1: none
    int32_t size_at              # where seven digits of the size of the data go (NATS); -1: none

ctypedef struct Member:
    uint32_t group
    uint32_t state

ctypedef struct Connection:
    int fd
    uint8_t state
    uint8_t slow
    uint8_t writing              # EPOLLOUT is asked for
    uint8_t dirty                # in Eng.dirty
    uint8_t checked              # deliveries are checked one by one (else only counted)
    uint8_t present              # ready since before the first message: its count of deliveries can be judged
    uint8_t is_sender
    uint8_t in_message           # the opcode of the fragmented message under way; 0: none is
    uint8_t pong_waits           # the latest ping is answered when what is unwritten has gone
    uint8_t pong_size
    uint8_t pong[125]
    uint32_t generation          # of the socket; tells events of the one before
    uint32_t number              # over all processes
    uint32_t pending_joins
    uint32_t user_group
    uint32_t n_members
    Member *members              # into Eng.members
    Text login
    uint8_t *input
    uint8_t *out
    uint8_t *pile
    uint32_t input_size
    uint32_t input_room
    uint32_t input_needed        # with a torn frame whose length is known: its size with the header
    uint32_t out_at
    uint32_t out_size
    uint32_t out_room
    uint32_t pile_size
    uint32_t pile_room
    uint32_t fragments           # of the message under way
    Receiver receiver
    uint64_t deliveries
    int64_t started_ns
    int64_t *ack_ring            # send times of the last ACK_RING publications with an id; senders only
    uint32_t ack_sent
    uint32_t ack_seen

ctypedef struct Seen:            # one line of the log of deliveries
    uint32_t receiver            # over all processes
    uint32_t stream
    uint32_t number

ctypedef struct Eng:
    Shared shared
    Process *process
    uint64_t *counters           # process.counters
    Connection *connections
    uint32_t n_connections
    Member *members
    uint32_t first_number        # of connections[0] over all processes
    int epoll
    uint8_t *buffer
    uint32_t *dirty              # connections with unwritten bytes, at the end of the turn
    uint32_t n_dirty
    epoll_event events[512]
    # what to speak
    uint8_t address[128]
    int address_size
    uint32_t source              # first 127.0.0.x (host order), 0: no binding
    uint32_t attempts
    Text request                 # the HTTP request, with a key at key_at
    uint32_t key_at
    Text keys                    # n_keys of 24 bytes each ...
    Text accepts                 # ... and the 28 bytes that answer them
    Text protocols               # subprotocols asked for, with commas between
    uint32_t n_keys
    int form
    uint8_t opcode
    uint32_t json                # replies are our JSON
    Text welcome                 # what a reply to `login` contains
    Template *templates          # by group
    Text *joins                  # by group; empty: nothing to send
    Text *leaves
    uint32_t acks                # publications carry an id
    uint32_t sender_receives
    # what to send
    uint32_t *senders            # indices into shared.senders that live here
    uint32_t n_senders
    uint32_t next_sender
    uint32_t sizes[4096]
    uint8_t *padding
    uint32_t window              # closed model if > 0
    double gap_ns                # open model: mean distance of two messages of this process; 0: nothing to send
    uint32_t poisson
    int64_t due_ns
    uint64_t random
    uint32_t sending
    int64_t give_up_ns
    # slow readers, churn
    uint32_t *slow
    uint32_t n_slow
    uint32_t slow_bytes
    int64_t slow_tick_ns
    int64_t slow_due_ns
    int slow_receive_buffer
    double churn_gap_ns          # 0: none
    double churn_due_ns
    uint32_t churn_window        # reconnects under way at once, as fast as they go; 0: none
    double rejoin_gap_ns
    double rejoin_due_ns
    uint32_t churn_next
    uint32_t rejoin_next
    double reset_share
    # phases
    uint32_t ramping
    uint32_t ramp_next
    uint32_t connecting
    uint32_t connecting_limit
    double connect_gap_ns
    double connect_due_ns
    uint32_t traffic             # something was published since the start
    uint32_t counting            # some connections are only counted
    uint32_t spin
    uint32_t stamp_back          # where the mark was last found, from the end of the message
    int64_t measure_from_ns
    int64_t measure_until_ns
    int64_t now_ns
    Seen *log                    # what was delivered, in the order of arrival; owned; NULL: no log is kept
    uint32_t log_size
    uint32_t log_room
    uint32_t failed
    char failure[400]
    uint32_t close_codes[5000]
    uint64_t protocol_errors[24]  # by kind (_protocol.pxd)
    uint64_t held_bytes          # room of all `input` and `pile`
    uint8_t is_text              # the message at hand came as text
    char first_error[300]


cdef inline uint64_t random_next(Eng *e) noexcept nogil:
    """xorshift64*: mask keys, Poisson gaps; not for secrets."""
    e.random ^= e.random >> 12
    e.random ^= e.random << 25
    e.random ^= e.random >> 27
    return e.random * 2685821657736338717ULL


cdef inline bint grow(uint8_t **buffer, uint32_t *room, uint32_t need) noexcept nogil:
    """Make room for `need` bytes; False: out of memory."""
    cdef uint8_t *bigger
    cdef uint32_t size = room[0] if room[0] else 512
    if need <= room[0]:
        return True
    if need > MOST_BUFFERED:
        return False
    while size < need:
        size *= 2
    bigger = <uint8_t *>realloc(buffer[0], size)
    if bigger == NULL:
        return False
    buffer[0] = bigger
    room[0] = size
    return True


cdef inline bint hold(Eng *e, uint8_t **buffer, uint32_t *room, uint32_t need) noexcept nogil:
    """`grow` for what the server sends: all of that together is bounded. False: it would be too much, or there is no memory."""
    cdef uint32_t before = room[0]
    if need > before and e.held_bytes + need - before > LARGEST_HELD:
        return False
    if not grow(buffer, room, need):
        return False
    e.held_bytes += room[0] - before
    return True


cdef inline void let_go(Eng *e, uint8_t **buffer, uint32_t *room) noexcept nogil:
    """Give an empty buffer of `hold` back if it is large."""
    if room[0] > KEPT_ROOM:
        e.held_bytes -= room[0]
        free(buffer[0])
        buffer[0] = NULL
        room[0] = 0


cdef inline void mark_dirty(Eng *e, Connection *c) noexcept nogil:
    if not c.dirty and not c.writing:
        c.dirty = 1
        e.dirty[e.n_dirty] = <uint32_t>(c - e.connections)
        e.n_dirty += 1


cdef inline uint8_t *frame_begin(Eng *e, Connection *c, uint8_t opcode, uint32_t size, uint64_t *key) noexcept nogil:
    """Append a masked frame's header and reserve its payload; the caller fills it and calls sl_mask(payload, size, key). NULL: no memory."""
    cdef uint8_t *p
    cdef uint32_t mask = <uint32_t>(random_next(e) >> 32)
    cdef int i
    if c.out_at == c.out_size:
        c.out_at = c.out_size = 0
    if not grow(&c.out, &c.out_room, c.out_size + size + 14):
        return NULL
    p = c.out + c.out_size
    p[0] = 0x80 | opcode
    if size < 126:
        p[1] = 0x80 | size
        p += 2
    elif size < 65536:
        p[1] = 0x80 | 126
        p[2] = size >> 8
        p[3] = size & 255
        p += 4
    else:
        p[1] = 0x80 | 127
        for i in range(8):
            p[2 + i] = (<uint64_t>size >> (56 - 8 * i)) & 255
        p += 10
    memcpy(p, &mask, 4)
    key[0] = <uint64_t>mask << 32 | mask
    p += 4
    c.out_size = <uint32_t>(p - c.out) + size
    mark_dirty(e, c)
    return p


cdef inline void send_frame(Eng *e, Connection *c, uint8_t opcode, const uint8_t *payload, uint32_t size) noexcept nogil:
    cdef uint64_t key
    cdef uint8_t *p = frame_begin(e, c, opcode, size, &key)
    if p != NULL and size:
        memcpy(p, payload, size)
        sl_mask(p, size, key)


cdef inline void put_digits(uint8_t *p, uint64_t value, int digits) noexcept nogil:
    cdef int i
    for i in range(digits):
        p[digits - 1 - i] = 48 + value % 10
        value //= 10


cdef inline void release_buffers(Connection *c) noexcept nogil:
    free(c.input)
    free(c.out)
    free(c.pile)
    c.input = c.out = c.pile = NULL
    c.input_size = c.input_room = c.out_at = c.out_size = c.out_room = c.pile_size = c.pile_room = 0
    c.in_message = c.pong_waits = 0
    c.input_needed = c.fragments = 0


cdef inline void leave_all(Eng *e, Connection *c) noexcept nogil:
    """The connection is gone or going: nobody waits for it any more."""
    cdef uint32_t i
    cdef Stream *s
    group_leave(&e.shared, &c.receiver, 0, e.counters, PAIR_LEFT)
    group_leave(&e.shared, &c.receiver, c.user_group, e.counters, PAIR_LEFT)
    for i in range(c.n_members):
        if c.members[i].state != MEMBER_NO:
            group_leave(&e.shared, &c.receiver, c.members[i].group, e.counters, PAIR_LEFT)
            c.members[i].state = MEMBER_NO
    c.present = 0
    if c.is_sender:
        for i in range(e.shared.n_streams):
            s = &e.shared.streams[i]
            if e.shared.senders[s.sender].connection == c.number:
                s.gone = 1


cdef inline void connection_end(Eng *e, Connection *c, uint8_t state, bint reset) noexcept nogil:
    """Free the socket and everything of this life of the connection; `state` is CLOSED (may be opened again) or GIVEN_UP_STATE."""
    if c.fd >= 0:
        if reset:
            sl_reset(c.fd)
        else:
            sl_close(c.fd)
        e.counters[OPEN] -= 1
    c.fd = -1
    if c.state == READY_STATE:
        e.counters[READY] -= 1
    if c.state >= CONNECTING and c.state < READY_STATE:
        e.connecting -= 1
    if c.state >= LOGIN:
        leave_all(e, c)
    c.state = state
    c.generation += 1
    c.writing = 0
    e.held_bytes -= <uint64_t>c.input_room + c.pile_room
    release_buffers(c)


cdef inline void connection_lost(Eng *e, Connection *c, const char *what, const char *detail, size_t detail_size) noexcept nogil:
    """A connection ended that should not have. While ramping that is a failure of the target; later it is booked."""
    if not e.failed:
        e.failed = 1
        sl_fail_text(e.failure, 400, what, detail, detail_size)
    if c.state < READY_STATE:
        e.counters[CONNECT_FAILURES] += 1
        connection_end(e, c, GIVEN_UP_STATE if e.ramping else CLOSED, False)
    else:
        e.counters[CLOSED_BY_SERVER] += 1
        connection_end(e, c, GIVEN_UP_STATE, False)


cdef inline void connection_lost_errno(Eng *e, Connection *c, const char *what, int error) noexcept nogil:
    cdef const char *text = strerror(error)
    cdef size_t n = 0
    while text[n]:
        n += 1
    connection_lost(e, c, what, text, n)


cdef inline void connection_broken(Eng *e, Connection *c, int kind) noexcept nogil:
    """The server broke the protocol: count it by its kind, say so in a close frame if the kernel takes one, and end the connection."""
    cdef const char *text = sl_kind_text(kind)
    cdef uint16_t code = <uint16_t>sl_kind_code(kind)
    cdef uint8_t close[8]
    cdef size_t n = 0
    e.protocol_errors[kind] += 1
    if c.state == CLOSING:
        connection_end(e, c, CLOSED, False)
        return
    if code and c.out_at == c.out_size:    # else it would stand inside a frame of ours
        memset(close, 0, 8)                # a mask of zeros
        close[0] = 0x88
        close[1] = 0x82
        close[6] = code >> 8
        close[7] = code & 255
        sl_send(c.fd, close, 8, MSG_NOSIGNAL | MSG_DONTWAIT)
    while text[n]:
        n += 1
    connection_lost(e, c, b"the server broke the protocol: ", text, n)


cdef inline uint64_t event_data(Eng *e, Connection *c) noexcept nogil:
    return <uint64_t>c.generation << 32 | <uint64_t>(c - e.connections)


cdef inline void watch(Eng *e, Connection *c, uint32_t events) noexcept nogil:
    sl_watch(e.epoll, EPOLL_CTL_MOD, c.fd, events, event_data(e, c))


cdef inline uint32_t wanted(Connection *c) noexcept nogil:
    """The events to wait for: a slow reader that is ready is read by the clock, not by epoll."""
    cdef uint32_t events = 0 if c.slow and c.state == READY_STATE else EPOLLIN
    return events | EPOLLOUT if c.writing else events


cdef inline void connection_open(Eng *e, Connection *c) noexcept nogil:
    """Begin to connect. Every 20,000 attempts take the next source address, so that 28,000 ports never run out."""
    cdef uint32_t source = 0
    cdef int fd, tries
    for tries in range(3):
        if e.source:
            source = e.source + (e.attempts // 20000) % 200
        e.attempts += 1
        fd = sl_connect(e.address, e.address_size, source, e.slow_receive_buffer if c.slow else 0)
        if fd != -EADDRNOTAVAIL:
            break
        e.attempts += 20000
    c.started_ns = sl_now()
    c.state = CONNECTING
    e.connecting += 1
    if fd < 0:
        c.fd = -1
        connection_lost_errno(e, c, b"cannot connect: ", -fd)
        return
    c.fd = fd
    e.counters[OPEN] += 1
    c.writing = 1
    c.receiver.counted = (c.checked or e.window > 0) and not c.slow
    sl_watch(e.epoll, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT, event_data(e, c))


cdef inline void late_pong(Eng *e, Connection *c) noexcept nogil:
    """Append the pong that waited until there was nothing else to write. For flush_connection, which writes it at once."""
    cdef uint8_t dirty = c.dirty
    c.pong_waits = 0
    c.dirty = 1                            # not once more into Eng.dirty, which may just be walked through
    send_frame(e, c, 10, c.pong, c.pong_size)
    c.dirty = dirty


cdef inline void answer_ping(Eng *e, Connection *c, const uint8_t *p, uint8_t size) noexcept nogil:
    """A pong at once, or in place of the one that waits: a peer that sends pings and reads nothing costs 125 bytes."""
    if c.out_size - c.out_at <= PONG_BACKLOG and not c.pong_waits:
        send_frame(e, c, 10, p, size)
        return
    c.pong_waits = 1
    c.pong_size = size
    if size:
        memcpy(c.pong, p, size)


cdef inline void flush_connection(Eng *e, Connection *c) noexcept nogil:
    """Write what there is; whatever the kernel doesn't take waits for EPOLLOUT."""
    cdef Py_ssize_t n
    while c.out_at < c.out_size or c.pong_waits:
        if c.out_at == c.out_size:
            late_pong(e, c)
            continue
        n = sl_send(c.fd, c.out + c.out_at, c.out_size - c.out_at, MSG_NOSIGNAL | MSG_DONTWAIT)
        e.counters[SENDS] += 1
        if n < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                break
            if c.state == CLOSING:
                connection_end(e, c, CLOSED, False)
            else:
                connection_lost_errno(e, c, b"sending failed: ", errno)
            return
        c.out_at += <uint32_t>n
    if c.out_at == c.out_size:
        c.out_at = c.out_size = 0
        if c.writing:
            c.writing = 0
            watch(e, c, wanted(c))
        return
    if c.out_at > 65536 and c.out_at * 2 > c.out_size:
        memmove(c.out, c.out + c.out_at, c.out_size - c.out_at)
        c.out_size -= c.out_at
        c.out_at = 0
    if not c.writing:
        c.writing = 1
        watch(e, c, wanted(c))


cdef inline void flush_dirty(Eng *e) noexcept nogil:
    cdef uint32_t i
    cdef Connection *c
    for i in range(e.n_dirty):
        c = &e.connections[e.dirty[i]]
        c.dirty = 0
        if c.fd >= 0 and not c.writing:
            flush_connection(e, c)
    e.n_dirty = 0


cdef inline void connection_close(Eng *e, Connection *c, bint reset) noexcept nogil:
    """Our side ends it: by a close frame (then the peer's EOF is awaited) or by a reset."""
    cdef uint8_t code[2]
    if c.state == READY_STATE and not reset:
        code[0] = 0x03
        code[1] = 0xE8
        leave_all(e, c)
        e.counters[READY] -= 1
        c.state = CLOSING
        c.started_ns = e.now_ns
        send_frame(e, c, 8, code, 2)
        watch(e, c, wanted(c))
        return
    if c.state != CLOSED and c.state != GIVEN_UP_STATE:
        connection_end(e, c, CLOSED, reset)


cdef inline void send_request(Eng *e, Connection *c) noexcept nogil:
    """The HTTP upgrade, with one of the prepared keys."""
    cdef uint32_t key = c.number % e.n_keys
    if not grow(&c.out, &c.out_room, e.request.size):
        return
    memcpy(c.out, e.request.bytes, e.request.size)
    memcpy(c.out + e.key_at, e.keys.bytes + 24 * key, 24)
    c.out_size = e.request.size
    c.state = UPGRADING
    flush_connection(e, c)


cdef inline int publish(Eng *e, Sender *sender, int64_t intended_ns) noexcept nogil:
    """The sender's next message. 1: written to its buffer; 0: it is blocked; -1: its connection is gone."""
    cdef Connection *c = &e.connections[sender.connection - e.first_number]
    cdef uint32_t stream = e.shared.order[sender.first_stream + sender.position]
    cdef Stream *s = &e.shared.streams[stream]
    cdef Template *t = &e.templates[s.group]
    cdef uint32_t size = e.sizes[(sender.sent * 31 + sender.connection) & 4095]
    cdef uint32_t number = s.sent
    cdef Entry *entry = &e.shared.entries[s.ring + (number & s.mask)]
    cdef int32_t expected = <int32_t>sl_load32(&e.shared.groups[s.group].members)
    cdef uint64_t key
    cdef uint8_t *p
    cdef uint8_t *start
    if c.state != READY_STATE:
        return -1
    if c.out_size - c.out_at > OUT_LIMIT:
        e.counters[BLOCKED] += 1
        return 0
    if s.group == 0 and not e.sender_receives and c.receiver.counted:
        expected -= 1
    start = p = frame_begin(e, c, e.opcode, t.before.size + size + t.after.size, &key)
    if p == NULL:
        return 0
    e.traffic = 1
    memcpy(p, t.before.bytes, t.before.size)
    if t.id_at >= 0:
        put_digits(p + t.id_at, SL_PUBLISH_ID + <uint64_t>c.ack_sent, 10)
        if c.ack_ring != NULL:
            c.ack_ring[c.ack_sent & (ACK_RING - 1)] = e.now_ns
        c.ack_sent += 1
    if t.size_at >= 0:
        put_digits(p + t.size_at, size, 7)
    p += t.before.size
    stamp_write(p, size, stream, number, e.padding + (number * 61 + stream * 17) % PADDING_PERIOD)
    memcpy(p + size, t.after.bytes, t.after.size)
    sl_mask(start, t.before.size + size + t.after.size, key)
    entry.intended_ns = intended_ns
    entry.sent_ns = e.now_ns
    entry.number = number
    entry.size = size
    entry.remaining = expected
    s.sent = number + 1
    sender.sent += 1
    sender.position = sender.position + 1 if sender.position + 1 < sender.streams else 0
    e.counters[SENT] += 1
    if expected <= 0:
        sl_add32(&sender.done, 1)
    return 1
