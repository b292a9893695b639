# What comes in: reads, the HTTP answer, frames, and what a message means.
#
#   read_connection -> handshake_answer (once) -> walk (frames) -> take_message -> take_stamped | take_reply
#                                                             \-> odd_frame (fragments, control frames)
#
# Reads are large (1 MiB buffer, one per engine); a torn frame at the end is kept in Connection.input and put before the next read. Only
# headers are parsed; of a message only its stamp is looked at, at the distance from the end where the last one had it.

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memmove
from starlight.loadtest._arena cimport *
from starlight.loadtest._check cimport *
from starlight.loadtest._net cimport *
from starlight.loadtest._protocol cimport *
from starlight.loadtest._stamp cimport *

cdef extern from "string.h" nogil:
    void *memmem(const void *where, size_t n, const void *what, size_t m)


cdef inline bint contains(const uint8_t *p, Py_ssize_t n, const char *what, Py_ssize_t size) noexcept nogil:
    return memmem(p, n, what, size) != NULL


cdef inline bint starts(const uint8_t *p, const uint8_t *end, const char *what, Py_ssize_t size) noexcept nogil:
    return end - p >= size and memcmp(p, what, size) == 0


# ---- login, joins, replies

cdef inline void become_ready(Eng *e, Connection *c) noexcept nogil:
    c.state = READY_STATE
    e.connecting -= 1
    e.counters[READY] += 1
    e.counters[CONNECTS] += 1
    c.present = not e.traffic
    if e.now_ns >= e.measure_from_ns and e.now_ns < e.measure_until_ns or e.ramping:
        histogram_record(e.process.slots[CONNECT], e.now_ns - c.started_ns)
    if c.slow:
        watch(e, c, wanted(c))


cdef inline void begin_joins(Eng *e, Connection *c) noexcept nogil:
    """Logged in. Ask for all channels at once; where nothing confirms a join, it holds at once."""
    cdef uint32_t i, group
    group_joined(&e.shared, &c.receiver, 0)
    group_joined(&e.shared, &c.receiver, c.user_group)
    c.state = JOINING
    c.pending_joins = 0
    for i in range(c.n_members):
        group = c.members[i].group
        group_enter(&e.shared, &c.receiver, group)
        if e.json:
            c.members[i].state = MEMBER_ASKED
            c.pending_joins += 1
            send_frame(e, c, e.opcode, e.joins[group].bytes, e.joins[group].size)
        else:
            c.members[i].state = MEMBER_YES
            group_joined(&e.shared, &c.receiver, group)
    if c.pending_joins == 0:
        become_ready(e, c)


cdef inline void upgraded(Eng *e, Connection *c) noexcept nogil:
    c.state = LOGIN
    if e.traffic and e.welcome.size == 0:
        c.receiver.counted = 0             # nothing says when the server has registered it: owed only from its first message on
    group_enter(&e.shared, &c.receiver, 0)
    group_enter(&e.shared, &c.receiver, c.user_group)
    if c.login.size:
        send_frame(e, c, e.opcode, c.login.bytes, c.login.size)
    if e.welcome.size == 0:
        begin_joins(e, c)


cdef inline uint64_t reply_id(const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """The integer `id` of a reply, 0 if it has none."""
    cdef const uint8_t *at = <const uint8_t *>memmem(p, n, b'"id":', 5)
    cdef uint64_t value = 0
    if at == NULL:
        return 0
    at += 5
    while at < p + n and at[0] == 32:
        at += 1
    while at < p + n and 48 <= at[0] <= 57:
        value = value * 10 + at[0] - 48
        at += 1
    return value


cdef inline void member_changed(Eng *e, Connection *c, uint32_t group, bint joined) noexcept nogil:
    cdef uint32_t i
    for i in range(c.n_members):
        if c.members[i].group != group:
            continue
        if joined and c.members[i].state == MEMBER_ASKED:
            c.members[i].state = MEMBER_YES
            group_joined(&e.shared, &c.receiver, group)
            if c.state == JOINING:
                c.pending_joins -= 1
                if c.pending_joins == 0:
                    become_ready(e, c)
        elif not joined and c.members[i].state == MEMBER_LEAVING:
            # Left: anything that still comes is misdelivered. Then back in.
            group_leave(&e.shared, &c.receiver, group, e.counters, PAIR_LEFT)
            c.members[i].state = MEMBER_ASKED
            group_enter(&e.shared, &c.receiver, group)
            send_frame(e, c, e.opcode, e.joins[group].bytes, e.joins[group].size)
        return


cdef inline void take_ok(Eng *e, Connection *c, uint64_t identity) noexcept nogil:
    if identity >= SL_PUBLISH_ID:
        identity -= SL_PUBLISH_ID
        if identity != c.ack_seen or identity >= c.ack_sent:
            e.counters[UNEXPECTED] += 1                # replies come in request order, each exactly once
            return
        c.ack_seen += 1
        e.counters[ACKS] += 1
        if c.ack_ring != NULL and c.ack_sent - identity <= ACK_RING and e.now_ns < e.measure_until_ns:
            histogram_record(e.process.slots[ACK], e.now_ns - c.ack_ring[identity & (ACK_RING - 1)])
    elif identity >= SL_LEAVE_ID:
        member_changed(e, c, <uint32_t>(identity - SL_LEAVE_ID), False)
    elif identity >= SL_JOIN_ID:
        member_changed(e, c, <uint32_t>(identity - SL_JOIN_ID), True)


cdef inline void note_error(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n) noexcept nogil:
    e.counters[ERRORS] += 1
    if e.first_error[0] == 0:
        sl_fail_text(e.first_error, 300, b"", <const char *>p, n)


cdef inline void answer(Eng *e, Connection *c, const uint8_t *p, uint32_t size) noexcept nogil:
    """Answer a protocol's own ping. A server that asks and asks without reading is one that breaks it."""
    if c.out_size - c.out_at > OUT_LIMIT:
        connection_broken(e, c, UNREAD_ANSWERS)
        return
    send_frame(e, c, e.opcode, p, size)


cdef inline void take_reply(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """A message without a stamp."""
    cdef const uint8_t *at
    cdef uint64_t identity
    e.counters[REPLIES] += 1
    if e.is_text and not sl_is_utf8(p, n):
        connection_broken(e, c, TEXT_ENCODING)
        return
    if c.state == LOGIN:
        if contains(p, n, <const char *>e.welcome.bytes, e.welcome.size):
            begin_joins(e, c)
        elif contains(p, n, b'"error"', 7) or contains(p, n, b'"bye"', 5):
            connection_lost(e, c, b"the server refused the login: ", <const char *>p, n)
        return
    if not e.json:
        if n == 1 and p[0] == 50:
            answer(e, c, b"3", 1)                      # Engine.IO asks whether we are alive
        elif e.traffic:
            e.counters[DAMAGED] += 1                   # a plain echo or broadcast server has nothing of its own to say, but a greeting
        return
    at = <const uint8_t *>memmem(p, n if n < 200 else 200, b'"type":', 7)
    if at == NULL or p + n - at < 9:
        e.counters[DAMAGED] += 1
        return
    at += 8 if at[7] == 34 else 9
    if starts(at, p + n, b"ok\"", 3):
        identity = reply_id(p, n)
        take_ok(e, c, identity)
    elif starts(at, p + n, b"erro", 4):
        identity = reply_id(p, n)
        if identity >= SL_PUBLISH_ID and identity - SL_PUBLISH_ID == c.ack_seen:
            c.ack_seen += 1
        note_error(e, c, p, n)
        if c.state == JOINING:
            connection_lost(e, c, b"the server refused a join: ", <const char *>p, n)
    elif starts(at, p + n, b"publ", 4) or starts(at, p + n, b"dire", 4) or starts(at, p + n, b"broa", 4):
        e.counters[DAMAGED] += 1                       # a delivery whose stamp is destroyed


# ---- deliveries

cdef inline void log_delivery(Eng *e, Connection *c, uint32_t stream, uint32_t number) noexcept nogil:
    """One more line of the log; when it is full the rest is counted."""
    if e.log_size == e.log_room:
        e.counters[UNLOGGED] += 1
        return
    e.log[e.log_size].receiver = c.number
    e.log[e.log_size].stream = stream
    e.log[e.log_size].number = number
    e.log_size += 1


cdef inline void damaged(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """What looked like a delivery and is none; now its text is looked at too."""
    e.counters[DAMAGED] += 1
    if e.is_text and not sl_is_utf8(p, n):
        connection_broken(e, c, TEXT_ENCODING)


cdef inline void take_stamped(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n, const uint8_t *mark, int64_t now) noexcept nogil:
    """A delivery. `p` is where the message begins, `mark` where its stamp does; there is a byte behind the stamp."""
    cdef uint32_t stream, number, checksum, size
    cdef Stream *s
    cdef Entry *entry
    cdef const uint8_t *start
    if c.state == CLOSING:
        return                                         # we have left; what was on the way is nobody's concern
    c.deliveries += 1
    e.counters[DELIVERIES] += 1
    if not c.checked and e.window == 0:
        return
    if sl_get(mark + 1, &stream, &number, &checksum) or stream >= e.shared.n_streams:
        damaged(e, c, p, n)
        return
    s = &e.shared.streams[stream]
    entry = &e.shared.entries[s.ring + (number & s.mask)]
    if not c.checked:
        settle(&e.shared, stream, number)              # closed model: every delivery completes its message
        return
    if sl_likely(entry.number == number and entry.size >= 16):     # an entry that was never written is all zeros
        size = entry.size
    else:
        start = mark - 1
        while start > p and start[0] != 34:
            start -= 1
        size = <uint32_t>(mark - start) + 15
    start = mark + 15 - size
    if start < p or start[0] != 34 or mark[14] not in (34, 92) or sl_checksum(start, size - 6) != checksum:
        damaged(e, c, p, n)
        return
    e.counters[CHECKED] += 1
    deliver(&e.shared, &c.receiver, stream, number, e.counters)
    if e.log_room:
        log_delivery(e, c, stream, number)
    if c.slow:
        e.counters[SLOW_DELIVERIES] += 1
        return
    if sl_unlikely(entry.number != number):
        e.counters[CLIPPED] += 1                       # older than the ring remembers
        return
    if entry.intended_ns >= e.measure_from_ns and entry.intended_ns < e.measure_until_ns:
        histogram_record(e.process.slots[INTENDED], now - entry.intended_ns)
        histogram_record(e.process.slots[ACTUAL], now - entry.sent_ns)


cdef inline void take_message(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    cdef const uint8_t *mark
    if sl_likely(n >= <Py_ssize_t>e.stamp_back and p[n - e.stamp_back] == 0x7E and c.state >= LOGIN):
        take_stamped(e, c, p, n, p + n - e.stamp_back, now)
        return
    mark = stamp_find(p, n)
    if mark == NULL:
        take_reply(e, c, p, n)
        return
    e.stamp_back = <uint32_t>(p + n - mark)
    take_stamped(e, c, p, n, mark, now)


cdef inline void take_lines(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    cdef const uint8_t *end = p + n
    cdef const uint8_t *stop
    while p < end and c.fd >= 0:
        stop = <const uint8_t *>memchr(p, 10, end - p)
        if stop == NULL:
            stop = end
        if stop > p:
            take_message(e, c, p, stop - p, now)
        p = stop + 1


cdef inline Py_ssize_t nats_operations(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    """Take whole NATS operations; returns the bytes taken."""
    cdef const uint8_t *start = p
    cdef const uint8_t *end = p + n
    cdef const uint8_t *line
    cdef const uint8_t *digit
    cdef uint32_t size, scale
    while p < end and c.fd >= 0:
        line = <const uint8_t *>memchr(p, 10, end - p)
        if line == NULL and end - p <= LARGEST_OPERATION:
            break
        if line == NULL:
            connection_broken(e, c, NATS_OPERATION)
            break
        if p[0] == 77:                                 # MSG <subject> <sid> <size>\r\n<payload>\r\n
            size = 0
            scale = 1
            digit = line - 1                           # the \r
            while digit > p + 1 and 48 <= (digit - 1)[0] <= 57 and scale < 10000000:
                digit -= 1
                size += (digit[0] - 48) * scale
                scale *= 10
            if scale == 1 or digit <= p + 1 or (digit - 1)[0] != 32 or (line - 1)[0] != 13:
                connection_broken(e, c, NATS_OPERATION)
                break
            if end - line - 1 < <Py_ssize_t>size + 2:
                break
            if line[1 + size] != 13 or line[2 + size] != 10:
                connection_broken(e, c, NATS_OPERATION)
                break
            take_message(e, c, line + 1, size, now)
            p = line + 1 + size + 2
            continue
        if line - p >= 4 and memcmp(p, b"PING", 4) == 0:
            answer(e, c, b"PONG\r\n", 6)
        elif line - p >= 4 and memcmp(p, b"PONG", 4) == 0:
            if c.state == LOGIN:
                begin_joins(e, c)
        elif p[0] == 45:                               # -ERR
            note_error(e, c, p, line - p)
            if c.state < READY_STATE:
                connection_lost(e, c, b"the server refused the login: ", <const char *>p, line - p)
        p = line + 1
    return p - start


cdef inline void take_nats(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    """Frames are not messages here: an operation may span several."""
    cdef Py_ssize_t taken
    if c.pile_size == 0:
        taken = nats_operations(e, c, p, n, now)
        p += taken
        n -= taken
    if n == 0 or c.fd < 0:
        return
    if c.pile_size + n > LARGEST_PILE:
        connection_broken(e, c, LONG_MESSAGE)
        return
    if not hold(e, &c.pile, &c.pile_room, c.pile_size + <uint32_t>n):
        connection_broken(e, c, UNFINISHED)
        return
    memcpy(c.pile + c.pile_size, p, n)
    c.pile_size += <uint32_t>n
    taken = nats_operations(e, c, c.pile, c.pile_size, now)
    if c.fd >= 0:
        c.pile_size -= <uint32_t>taken
        if c.pile_size:
            memmove(c.pile, c.pile + taken, c.pile_size)
        else:
            let_go(e, &c.pile, &c.pile_room)


cdef inline void take_payload(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    if e.form == FORM_MESSAGE:
        take_message(e, c, p, n, now)
    elif e.form == FORM_LINES:
        take_lines(e, c, p, n, now)
    else:
        take_nats(e, c, p, n, now)


# ---- frames

cdef inline void take_close(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """The close frame: a reply to ours, or the server's own."""
    cdef uint32_t code = 1005
    cdef char text[64]
    cdef int fault = close_fault(p, n)
    if fault != NO_FAULT:
        connection_broken(e, c, fault)
        return
    if n >= 2:
        code = <uint32_t>p[0] << 8 | p[1]
    if c.state == CLOSING:
        connection_end(e, c, CLOSED, False)
        return
    e.close_codes[code] += 1
    sl_fail_text(text, 64, b"the server closed the connection: ", b"", 0)
    put_digits(<uint8_t *>text + 34, code, 4)
    text[38] = 32
    text[39] = 0
    send_frame(e, c, 8, p, 2 if n >= 2 else 0)
    flush_connection(e, c)
    if c.fd >= 0:
        connection_lost(e, c, text, <const char *>p + (2 if n > 2 else 0), n - 2 if n > 2 else 0)


cdef inline void take_fragment(Eng *e, Connection *c, uint8_t first, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    """A piece of a message: kept until the last one has come. NATS reads a stream, so there it is taken at once."""
    cdef uint32_t size
    cdef uint32_t generation = c.generation
    if first & 15:
        c.in_message = first & 15
        c.fragments = 0
    c.fragments += 1
    if c.fragments > MOST_FRAGMENTS:
        connection_broken(e, c, MANY_FRAGMENTS)
        return
    if e.form == FORM_NATS:
        if first & 0x80:
            c.in_message = 0
        take_nats(e, c, p, n, now)
        return
    if c.pile_size + n > LARGEST_PILE:
        connection_broken(e, c, LONG_MESSAGE)
        return
    if not hold(e, &c.pile, &c.pile_room, c.pile_size + <uint32_t>n + 1):  # at least one byte: it is never NULL
        connection_broken(e, c, UNFINISHED)
        return
    memcpy(c.pile + c.pile_size, p, n)
    c.pile_size += <uint32_t>n
    if first & 0x80:
        size = c.pile_size
        e.is_text = c.in_message == 1
        c.pile_size = 0
        c.in_message = 0
        take_payload(e, c, c.pile, size, now)
        if c.generation == generation:
            let_go(e, &c.pile, &c.pile_room)


cdef inline void odd_frame(Eng *e, Connection *c, uint8_t first, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    """Everything but an unfragmented data frame of the expected kind. Its header has been judged."""
    cdef uint8_t opcode = first & 15
    if opcode == 8:
        take_close(e, c, p, n)
    elif opcode == 9:
        e.counters[PINGS] += 1
        answer_ping(e, c, p, <uint8_t>n)
    elif opcode == 10:
        pass
    elif first & 0x80 and opcode != 0:
        e.is_text = opcode == 1
        take_payload(e, c, p, n, now)                  # binary where text was expected, or the other way round
    else:
        take_fragment(e, c, first, p, n, now)


cdef inline Py_ssize_t walk(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n, int64_t now) noexcept nogil:
    """Take the whole frames of p[0:n]; returns the bytes taken. The caller looks at c.fd and the generation afterwards."""
    cdef const uint8_t *start = p
    cdef const uint8_t *end = p + n
    cdef uint64_t size
    cdef uint32_t header, i
    cdef uint32_t generation = c.generation
    cdef uint8_t expected = 0x80 | e.opcode
    cdef int fault
    c.input_needed = 0
    while end - p >= 2:
        size = p[1]
        header = 2
        if sl_unlikely(p[0] != expected or size > 127 or c.in_message):
            fault = header_fault(p[0], p[1], c.in_message != 0)
            if fault != NO_FAULT:
                connection_broken(e, c, fault)
                break
        if size >= 126:
            if size == 126:
                if end - p < 4:
                    break
                size = <uint64_t>p[2] << 8 | p[3]
                header = 4
            else:
                if end - p < 10:
                    break
                size = 0
                for i in range(8):
                    size = size << 8 | p[2 + i]
                header = 10
            fault = length_fault(p[1], size)
            if fault != NO_FAULT:
                connection_broken(e, c, fault)
                break
        if <uint64_t>(end - p) < header + size:
            c.input_needed = <uint32_t>(header + size)
            break
        sl_prefetch(p + 512)
        if sl_likely(p[0] == expected):
            e.is_text = e.opcode == 1
            if sl_likely(e.form == FORM_MESSAGE):
                take_message(e, c, p + header, size, now)
            else:
                take_payload(e, c, p + header, size, now)
        else:
            odd_frame(e, c, p[0], p + header, size, now)
        p += header + size
        if c.generation != generation:
            break
    return p - start


cdef inline Py_ssize_t handshake_answer(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t n) noexcept nogil:
    """The answer to the upgrade: bytes taken, 0 if it isn't whole yet (or was bad: then the connection is gone)."""
    cdef const uint8_t *end = <const uint8_t *>memmem(p, n, b"\r\n\r\n", 4)
    cdef uint32_t key = c.number % e.n_keys
    cdef char text[400]
    cdef size_t size = 0
    cdef int fault
    if memcmp(p, b"HTTP/1.", n if n < 7 else 7) != 0:
        e.protocol_errors[NOT_HTTP] += 1
        connection_lost(e, c, b"the target does not speak HTTP/1.1", b"", 0)
        return 0
    if (n if end == NULL else end + 4 - p) > LARGEST_ANSWER:
        connection_broken(e, c, LONG_ANSWER)
        return 0
    if end == NULL:
        return 0
    if end - p < 12 or memcmp(p + 8, b" 101", 4) != 0 or end - p > 12 and p[12] != 32 and p[12] != 13:
        sl_refusal(text, 400, p, end - p)
        while text[size]:
            size += 1
        connection_lost(e, c, b"the target refused the upgrade: ", text, size)
        return 0
    fault = answer_fault(p, end, e.accepts.bytes + ACCEPT_BYTES * key, e.protocols.bytes, e.protocols.size)
    if fault != NO_FAULT:
        connection_broken(e, c, fault)
        return 0
    upgraded(e, c)
    return end + 4 - p


cdef inline void keep_input(Eng *e, Connection *c, const uint8_t *p, Py_ssize_t at, Py_ssize_t n) noexcept nogil:
    """Keep a torn frame, or more of it, until the next read: p[0:n] goes to `at`."""
    if not hold(e, &c.input, &c.input_room, <uint32_t>(at + n)):
        connection_broken(e, c, UNFINISHED)
        return
    memcpy(c.input + at, p, n)
    c.input_size = <uint32_t>(at + n)


cdef inline void read_connection(Eng *e, Connection *c, Py_ssize_t limit) noexcept nogil:
    """One read of at most `limit` bytes (0: as much as fits), then whatever frames are whole."""
    cdef uint8_t *buffer = e.buffer
    cdef Py_ssize_t have = c.input_size
    cdef Py_ssize_t n, taken
    cdef Py_ssize_t room = BUFFER_BYTES - have
    cdef uint32_t generation = c.generation
    cdef int64_t now
    while True:
        n = sl_recv(c.fd, buffer + have, limit if 0 < limit < room else room, MSG_DONTWAIT)
        if n >= 0 or errno != EINTR:
            break
    e.counters[RECEIVES] += 1
    if n <= 0:
        if n < 0 and errno == EAGAIN:
            return
        if c.state == CLOSING:
            connection_end(e, c, CLOSED, False)
        elif n < 0:
            connection_lost_errno(e, c, b"the connection broke: ", errno)
        elif c.state == UPGRADING and have == 0:
            connection_lost(e, c, b"the target closed the connection instead of answering the upgrade", b"", 0)
        else:
            e.close_codes[1006] += 1
            connection_lost(e, c, b"the server closed the connection without a close frame", b"", 0)
        return
    now = e.now_ns = sl_now()
    e.counters[BYTES_RECEIVED] += <uint64_t>n
    if have + n < c.input_needed:                      # a frame that comes in drops is not copied for each of them
        keep_input(e, c, buffer + have, have, n)
        return
    if have:
        memcpy(buffer, c.input, have)
    n += have
    taken = 0
    if c.state == UPGRADING:
        taken = handshake_answer(e, c, buffer, n)
    if c.state > UPGRADING and c.generation == generation:
        taken += walk(e, c, buffer + taken, n - taken, now)
    if c.generation != generation:
        return
    n -= taken
    c.input_size = 0
    if n > 0:
        keep_input(e, c, buffer + taken, 0, n)
    else:
        let_go(e, &c.input, &c.input_room)
