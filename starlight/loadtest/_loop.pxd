# The engine's loop: what to send and when, who reconnects, who reads slowly, and when a phase is over.
#
# One turn: schedule -> churn -> reconnects -> slow readers -> write -> poll -> read. Every phase ends at a time given by the caller.

from libc.math cimport log
from starlight.loadtest._receive cimport *

cdef extern from *:
    """
    #define SL_TURN_NS 20000ll             /* an empty turn takes less; the rest of a longer one was taken by somebody else */
    #define SL_CLOSE_NS 1000000000ll       /* for the peer's answer to a close */
    #define SL_CONNECT_NS 10000000000ll    /* from connect(2) to ready */
    #define SL_SWEEP_NS 250000000ll
    """
    const int64_t SL_TURN_NS
    const int64_t SL_CLOSE_NS
    const int64_t SL_CONNECT_NS
    const int64_t SL_SWEEP_NS

cdef enum:
    PHASE_RAMP = 0               # until every connection is ready (or one failed)
    PHASE_TRAFFIC = 1            # until the time is up
    PHASE_SETTLE = 2             # nothing is sent; until every delivery has arrived
    PHASE_CLOSE = 3              # until every connection is closed
    PHASE_IDLE = 4               # nothing is sent; until the time is up
    SCAN_PER_TURN = 64
    SENDS_PER_TURN = 1024


cdef inline bint pump_open(Eng *e) noexcept nogil:
    """Open model: send whatever is due, each with the time it was due at."""
    cdef uint32_t tries = 0
    cdef uint32_t budget = SENDS_PER_TURN
    cdef int result
    cdef bint worked = False
    while e.due_ns <= e.now_ns and budget and tries < e.n_senders:
        result = publish(e, &e.shared.senders[e.senders[e.next_sender]], e.due_ns)
        if result == 0:
            break
        e.next_sender = e.next_sender + 1 if e.next_sender + 1 < e.n_senders else 0
        if result < 0:
            tries += 1
            continue
        tries = 0
        budget -= 1
        worked = True
        if e.poisson:
            e.due_ns += <int64_t>(-log((<double>(random_next(e) >> 11) + 1.0) / 9007199254740993.0) * e.gap_ns)
        else:
            e.due_ns += <int64_t>e.gap_ns
    return worked


cdef inline bint pump_closed(Eng *e) noexcept nogil:
    """Closed model: keep `window` messages of every sender under way."""
    cdef uint32_t i, done
    cdef int32_t under_way
    cdef Sender *s
    cdef bint worked = False
    for i in range(e.n_senders):
        s = &e.shared.senders[e.senders[i]]
        done = sl_load32(&s.done)
        under_way = <int32_t>(s.sent - done)
        if done != s.done_seen:
            s.done_seen = done
            s.progress_ns = e.now_ns
        if under_way >= <int32_t>e.window:
            if e.now_ns - s.progress_ns > e.give_up_ns:
                e.counters[GIVEN_UP] += under_way
                sl_add32(&s.done, under_way)
                s.progress_ns = e.now_ns
            continue
        if under_way <= 0:
            s.progress_ns = e.now_ns
        while under_way < <int32_t>e.window:
            if publish(e, s, e.now_ns) <= 0:
                break
            under_way += 1
            worked = True
    return worked


cdef inline bint reconnect(Eng *e) noexcept nogil:
    """Open connections that are closed, within the pace and the number allowed to be connecting at once."""
    cdef uint32_t scanned
    cdef Connection *c
    cdef bint worked = False
    for scanned in range(SCAN_PER_TURN if SCAN_PER_TURN < e.n_connections else e.n_connections):
        if e.connecting >= e.connecting_limit or (e.connect_gap_ns > 0 and e.connect_due_ns > e.now_ns):
            break
        c = &e.connections[e.ramp_next]
        e.ramp_next = e.ramp_next + 1 if e.ramp_next + 1 < e.n_connections else 0
        if c.state == CLOSED:
            connection_open(e, c)
            e.connect_due_ns += e.connect_gap_ns
            worked = True
    return worked


cdef inline bint churn_one(Eng *e) noexcept nogil:
    """Close the next connection that may be churned. False: there is none."""
    cdef uint32_t tries
    cdef Connection *c
    cdef bint reset
    for tries in range(e.n_connections):
        c = &e.connections[e.churn_next]
        e.churn_next = e.churn_next + 1 if e.churn_next + 1 < e.n_connections else 0
        if c.state == READY_STATE and not c.is_sender and not c.slow:
            reset = <double>(random_next(e) >> 11) / 9007199254740992.0 < e.reset_share
            e.counters[CHURNED] += 1
            connection_close(e, c, reset)
            return True
    return False


cdef inline bint churn(Eng *e) noexcept nogil:
    cdef uint32_t budget = SCAN_PER_TURN
    cdef bint worked = False
    while e.churn_gap_ns > 0 and e.churn_due_ns <= e.now_ns and budget:
        e.churn_due_ns += e.churn_gap_ns
        budget -= 1
        worked = churn_one(e) or worked
    while e.churn_window and budget and e.n_connections - e.counters[READY] - e.counters[CLOSED_BY_SERVER] < e.churn_window:
        budget -= 1
        if not churn_one(e):
            break
        worked = True
    return worked


cdef inline bint rejoin_one(Eng *e) noexcept nogil:
    """The next connection that may leaves one of its channels, and joins it again when the leave is confirmed."""
    cdef uint32_t tries, i
    cdef Connection *c
    cdef Member *m
    for tries in range(e.n_connections):
        c = &e.connections[e.rejoin_next]
        e.rejoin_next = e.rejoin_next + 1 if e.rejoin_next + 1 < e.n_connections else 0
        if c.state != READY_STATE or c.slow or not c.n_members:
            continue
        m = &c.members[random_next(e) % c.n_members]
        if m.state == MEMBER_YES:
            m.state = MEMBER_LEAVING
            c.present = 0
            group_leave(&e.shared, &c.receiver, m.group, e.counters, PAIR_LEAVING)
            send_frame(e, c, e.opcode, e.leaves[m.group].bytes, e.leaves[m.group].size)
            e.counters[REJOINS] += 1
            return True
    return False


cdef inline bint rejoin(Eng *e) noexcept nogil:
    cdef uint32_t budget = SCAN_PER_TURN
    cdef bint worked = False
    while e.rejoin_gap_ns > 0 and e.rejoin_due_ns <= e.now_ns and budget:
        e.rejoin_due_ns += e.rejoin_gap_ns
        budget -= 1
        worked = rejoin_one(e) or worked
    return worked


cdef inline bint read_slowly(Eng *e) noexcept nogil:
    """A tick of the slow readers: each takes at most slow_bytes. Ticks that were missed are not made up for."""
    cdef uint32_t i
    cdef Connection *c
    if not e.n_slow or e.slow_bytes == 0 or e.slow_due_ns > e.now_ns:
        return False
    e.slow_due_ns += e.slow_tick_ns
    if e.slow_due_ns <= e.now_ns:
        e.slow_due_ns = e.now_ns + e.slow_tick_ns
    for i in range(e.n_slow):
        c = &e.connections[e.slow[i]]
        if c.state == READY_STATE and c.slow == SLOW_RATE:
            read_connection(e, c, e.slow_bytes)
    return True


cdef inline void sweep(Eng *e) noexcept nogil:
    """Deadlines: of connecting and logging in (10 s), of the peer's answer to a close (1 s)."""
    cdef uint32_t i
    cdef Connection *c
    for i in range(e.n_connections):
        c = &e.connections[i]
        if c.state == CLOSING and e.now_ns - c.started_ns > SL_CLOSE_NS:
            connection_end(e, c, CLOSED, True)
        elif CONNECTING <= c.state < READY_STATE and e.now_ns - c.started_ns > SL_CONNECT_NS:
            if c.state == CONNECTING:
                connection_lost(e, c, b"connecting took over 10 s", b"", 0)
            elif c.state == UPGRADING:
                connection_lost(e, c, b"the target did not answer the upgrade within 10 s", b"", 0)
            else:
                connection_lost(e, c, b"the server did not answer the login or a join within 10 s", b"", 0)


cdef inline void take_event(Eng *e, uint64_t data, uint32_t events) noexcept nogil:
    cdef Connection *c = &e.connections[<uint32_t>data]
    cdef uint32_t generation = <uint32_t>(data >> 32)
    cdef int error
    if c.generation != generation or c.fd < 0:
        return
    if events & EPOLLOUT:
        if c.state == CONNECTING:
            error = sl_socket_error(c.fd)
            if error:
                connection_lost_errno(e, c, b"cannot connect: ", error)
                return
            send_request(e, c)
        else:
            flush_connection(e, c)
        if c.generation != generation:
            return
    elif c.state == CONNECTING and events & (EPOLLERR | EPOLLHUP):
        error = sl_socket_error(c.fd)
        connection_lost_errno(e, c, b"cannot connect: ", error)
        return
    if events & (EPOLLIN | EPOLLERR | EPOLLHUP) and c.state > CONNECTING:
        read_connection(e, c, 0)


cdef inline bint arrived(Eng *e) noexcept nogil:
    """Has every message of every process been delivered to all who were owed it?"""
    cdef uint32_t i
    cdef Sender *s
    for i in range(e.shared.n_senders):
        s = &e.shared.senders[i]
        if <int32_t>(s.sent - sl_load32(&s.done)) > 0:
            return False
    return e.n_dirty == 0


cdef inline bint phase_over(Eng *e, int phase) noexcept nogil:
    if phase == PHASE_RAMP:
        return e.failed or e.counters[READY] == e.n_connections
    if phase == PHASE_SETTLE:
        return arrived(e)
    if phase == PHASE_CLOSE:
        return e.counters[OPEN] == 0
    return False


cdef inline int64_t time_to_wait(Eng *e, int64_t until_ns) noexcept nogil:
    """How long the poll may sleep; at most 10 ms, so that a stop is seen."""
    cdef int64_t wake = e.now_ns + 10000000
    if until_ns < wake:
        wake = until_ns
    if e.sending and e.gap_ns > 0 and e.due_ns < wake:
        wake = e.due_ns
    if e.n_slow and e.slow_bytes and e.slow_due_ns < wake:
        wake = e.slow_due_ns
    if e.sending and e.churn_gap_ns > 0 and e.churn_due_ns < wake:
        wake = <int64_t>e.churn_due_ns
    if e.sending and e.rejoin_gap_ns > 0 and e.rejoin_due_ns < wake:
        wake = <int64_t>e.rejoin_due_ns
    if e.ramping and e.connecting < e.connecting_limit and e.connect_gap_ns > 0 and e.connect_due_ns < wake:
        wake = <int64_t>e.connect_due_ns
    return wake - e.now_ns if wake > e.now_ns else 0


cdef inline void run_phase(Eng *e, int phase, int64_t until_ns) noexcept nogil:
    """Turn until the phase is over, the time is up or somebody asks to stop."""
    cdef int64_t began, wait_began, idle, swept
    cdef int64_t cpu = sl_thread_cpu()
    cdef bint worked
    cdef int i, n
    sl_exact_timers()
    e.now_ns = swept = sl_now()
    e.ramping = phase == PHASE_RAMP
    e.sending = phase == PHASE_TRAFFIC
    while e.now_ns < until_ns and not sl_load32(&e.shared.control.stop) and not phase_over(e, phase):
        began = e.now_ns
        worked = False
        if e.sending:
            if e.window:
                worked = pump_closed(e)
            elif e.gap_ns > 0:
                worked = pump_open(e)
            worked = churn(e) or worked
            worked = rejoin(e) or worked
        if e.ramping or (e.sending and (e.churn_gap_ns > 0 or e.churn_window)):
            worked = reconnect(e) or worked
        worked = read_slowly(e) or worked
        worked = worked or e.n_dirty > 0
        flush_dirty(e)
        wait_began = sl_now() if not e.spin else began
        e.now_ns = wait_began
        n = sl_wait(e.epoll, e.events, EVENTS_PER_TURN, 0 if e.spin or worked else time_to_wait(e, until_ns))
        e.counters[TURNS] += 1
        e.now_ns = sl_now()
        if n <= 0 and not worked:
            idle = e.now_ns - wait_began
            if e.spin and idle > SL_TURN_NS:
                e.counters[PREEMPTED_NS] += idle - SL_TURN_NS
                idle = SL_TURN_NS
            e.counters[IDLE_NS] += idle
        elif not e.spin and not worked and e.now_ns - wait_began > SL_TURN_NS:
            e.counters[IDLE_NS] += e.now_ns - wait_began
        for i in range(n):
            take_event(e, e.events[i].data.u64, e.events[i].events)
        if e.now_ns - swept > SL_SWEEP_NS:
            swept = e.now_ns
            sweep(e)
    flush_dirty(e)
    e.counters[CPU_NS] += sl_thread_cpu() - cpu
    e.ramping = e.sending = 0
