"""The compiled engine: connections, frames, schedule and delivery checks of one process, without the GIL and without Python objects.

This file is only its Python face. The parts, bottom up: `_stamp.pxd` (what a message carries), `_arena.pxd` (what processes share, the
histogram), `_check.pxd` (the delivery checker), `_protocol.pxd` (what a server must not do), `_net.pxd` (sockets and sending),
`_receive.pxd` (receiving), `_loop.pxd` (the loop).
One thread uses an Engine; Arena's reading methods may be called from any thread of any process while engines run.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from starlight.loadtest._loop cimport *
from starlight.loadtest._stamp cimport stamp_find, stamp_write

cdef extern from *:
    """
    #include <sys/mman.h>
    static void *sl_shared(size_t n) {
        void *p = mmap(NULL, n ? n : 1, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    """
    void *sl_shared(size_t n)
    int munmap(void *p, size_t n)

sl_stamp_init()

COUNTER_NAMES = (
    "sent", "deliveries", "bytes_received", "checked", "replies", "acks", "errors", "connects", "connect_failures",
    "closed_by_server", "churned", "rejoins", "lost", "duplicates", "reordered", "misdelivered", "damaged", "unexpected",
    "clipped", "given_up", "blocked", "slow_deliveries", "turns", "idle_ns", "preempted_ns", "cpu_ns", "receives", "sends",
    "ready", "open", "counted_expected", "counted", "overdue", "pings", "unlogged",
)
HISTOGRAM_NAMES = ("intended", "actual", "connect", "ack")
RAMP = PHASE_RAMP
TRAFFIC = PHASE_TRAFFIC
SETTLE = PHASE_SETTLE
CLOSE = PHASE_CLOSE
IDLE = PHASE_IDLE
MAX_STREAMS = 1 << 18
PROTOCOL_ERRORS = tuple((<bytes>sl_kind_text(kind)).decode() for kind in range(SL_KINDS))
LEAST_DATA_BYTES = 16
MOST_DATA_BYTES = 1 << 18


def now_ns() -> int:
    """The engine's clock (CLOCK_MONOTONIC)."""
    return sl_now()


def make_data(unsigned int stream, unsigned int number, unsigned int size, bytes padding = b"") -> bytes:
    """The data of a message: a JSON string of `size` (16 or more) bytes that carries stream, number and checksum."""
    if size < LEAST_DATA_BYTES or size > MOST_DATA_BYTES:
        raise ValueError(f"size of data: {size}, expected {LEAST_DATA_BYTES} to {MOST_DATA_BYTES} bytes")
    fill = (padding or b"0123456789abcdef") * (size // (len(padding) or 16) + 1)
    result = PyBytes_FromStringAndSize(NULL, size)
    stamp_write(<uint8_t *>PyBytes_AS_STRING(result), size, stream, number, <const uint8_t *>PyBytes_AS_STRING(fill))
    return result


def read_data(bytes message not None) -> tuple[int, int, bool] | None:
    """(stream, number, undamaged) of the first stamp in a message; None if there is none."""
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(message)
    cdef const uint8_t *mark = stamp_find(p, PyBytes_GET_SIZE(message))
    cdef uint32_t stream, number, checksum
    cdef Py_ssize_t start
    if mark == NULL:
        return None
    sl_get(mark + 1, &stream, &number, &checksum)
    start = message.rfind(b'"', 0, mark - p)
    if start < 0:
        return stream, number, False
    return stream, number, sl_checksum(p + start, (mark - p) - start + 9) == checksum


cdef void fill_streams(Shared *shared, list streams, uint64_t ring):
    """Write the streams, the streams of every group and the order of every sender."""
    cdef uint32_t i, at
    for i in range(shared.n_streams):
        sender, group = streams[i]
        shared.streams[i].sender = sender
        shared.streams[i].group = group
        shared.streams[i].ring = ring * i
        shared.streams[i].mask = <uint32_t>(ring - 1)
        shared.groups[<uint32_t>group].streams += 1
    at = 0
    for i in range(shared.n_groups):
        shared.groups[i].first_stream = at
        at += shared.groups[i].streams
        shared.groups[i].streams = 0
    for i in range(shared.n_streams):
        g = shared.streams[i].group
        shared.group_streams[shared.groups[g].first_stream + shared.groups[g].streams] = i
        shared.groups[g].streams += 1


cdef class Arena:
    """What all processes of a run share: streams, messages under way, counters, histograms. Made before any fork; see arena notes in `_arena.pxd`."""

    cdef Shared shared
    cdef uint64_t ring
    cdef uint64_t *before            # slots at the last interval()
    cdef list sizes

    def __cinit__(self, int groups, list streams, list orders, list sender_connections, int processes, int ring = 0):
        cdef uint32_t i, at = 0
        if len(streams) > MAX_STREAMS:
            raise ValueError(f"{len(streams)} streams, at most {MAX_STREAMS} fit into the stamp")
        if any(not (0 <= sender < len(orders) and 0 <= group < groups) for sender, group in streams):
            raise ValueError("a stream of an unknown sender or group")
        if any(not 0 <= stream < len(streams) for order in orders for stream in order):
            raise ValueError("an unknown stream in an order")
        if not ring:
            ring = 1 << 20
            while ring > 64 and ring * len(streams) > 1 << 21:
                ring //= 2
        self.ring = ring
        self.sizes = []
        self.shared.n_groups = groups
        self.shared.n_streams = len(streams)
        self.shared.n_senders = len(orders)
        self.shared.n_processes = processes
        self.shared.control = <Control *>self.map(sizeof(Control))
        self.shared.groups = <Group *>self.map(groups * sizeof(Group))
        self.shared.streams = <Stream *>self.map(len(streams) * sizeof(Stream))
        self.shared.group_streams = <uint32_t *>self.map(len(streams) * 4)
        self.shared.senders = <Sender *>self.map(len(orders) * sizeof(Sender))
        self.shared.order = <uint32_t *>self.map(sum(len(order) for order in orders) * 4)
        self.shared.entries = <Entry *>self.map(self.ring * len(streams) * sizeof(Entry))
        self.shared.processes = <Process *>self.map(processes * sizeof(Process))
        self.before = <uint64_t *>calloc(HISTOGRAM_SLOTS, 8)
        if self.before == NULL:
            raise MemoryError
        fill_streams(&self.shared, streams, self.ring)
        for i in range(self.shared.n_senders):
            order = orders[i]
            self.shared.senders[i].connection = sender_connections[i]
            self.shared.senders[i].first_stream = at
            self.shared.senders[i].streams = len(order)
            for stream in order:
                self.shared.order[at] = stream
                at += 1

    cdef void *map(self, size_t n) except NULL:
        cdef void *p = sl_shared(n)
        if p == NULL:
            raise MemoryError
        self.sizes.append((<size_t>p, n or 1))
        return p

    def __dealloc__(self):
        free(self.before)
        for address, n in self.sizes or ():
            munmap(<void *><size_t>address, n)

    def stop(self) -> None:
        """Let every engine leave its loop at the next turn."""
        self.shared.control.stop = 1

    def resume(self) -> None:
        """Take stop() back, so that what is under way can still arrive."""
        self.shared.control.stop = 0

    def under_way(self) -> int:
        """Messages that somebody still waits for."""
        cdef uint32_t i
        cdef int64_t n = 0
        for i in range(self.shared.n_senders):
            n += <int32_t>(self.shared.senders[i].sent - self.shared.senders[i].done)
        return n

    def counters(self, int process = -1) -> dict[str, int]:
        """The counters of one process, or their sums."""
        cdef int i
        total = dict.fromkeys(COUNTER_NAMES, 0)
        for i in range(self.shared.n_processes):
            if process in (-1, i):
                for at, name in enumerate(COUNTER_NAMES):
                    total[name] += self.shared.processes[i].counters[<int>at]
        return total

    def histogram(self, int which) -> list[tuple[int, int]]:
        """(slot, count) of the slots that are not empty, summed over the processes; slots are those of HdrHistogram(1, 3600 * 10**9, 3)."""
        cdef uint64_t n
        cdef int slot, i
        result = []
        for slot in range(HISTOGRAM_SLOTS):
            n = 0
            for i in range(self.shared.n_processes):
                n += self.shared.processes[i].slots[which][slot]
            if n:
                result.append((slot, n))
        return result

    def interval(self, int which) -> tuple[int, int, int, int]:
        """(count, p50, p99, max) in ns of what was recorded since the last call."""
        cdef uint64_t n, total = 0, seen = 0
        cdef int64_t middle = 0, high = 0, top = 0
        cdef int slot, i
        cdef uint64_t *delta = <uint64_t *>malloc(HISTOGRAM_SLOTS * 8)
        if delta == NULL:
            raise MemoryError
        for slot in range(HISTOGRAM_SLOTS):
            n = 0
            for i in range(self.shared.n_processes):
                n += self.shared.processes[i].slots[which][slot]
            delta[slot] = n - self.before[slot] if n >= self.before[slot] else n
            self.before[slot] = n
            total += delta[slot]
        for slot in range(HISTOGRAM_SLOTS):
            if delta[slot]:
                seen += delta[slot]
                top = histogram_value(slot)
                if middle == 0 and seen * 2 >= total:
                    middle = top
                if high == 0 and seen * 100 >= total * 99:
                    high = top
        free(delta)
        return total, middle, high, top


cdef class Engine:
    """One process's connections and its share of the traffic. See engine.pyi for the meaning of each argument."""

    cdef Eng *e
    cdef Arena arena
    cdef list keep                   # bytes objects whose memory the Eng points into

    def __cinit__(self, Arena arena not None, int process, int first_number, list connections):
        self.arena = arena
        self.keep = []
        self.e = <Eng *>calloc(1, sizeof(Eng))
        if self.e == NULL:
            raise MemoryError
        self.e.epoll = -1
        self.e.shared = arena.shared
        self.e.process = &arena.shared.processes[process]
        self.e.counters = self.e.process.counters
        self.e.first_number = first_number
        self.e.random = 0x9E3779B97F4A7C15 + <uint64_t>process
        self.e.stamp_back = 16
        self.e.give_up_ns = 2000000000
        self.allocate(connections)
        self.e.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.e.epoll < 0:
            raise OSError(errno, "epoll_create1")

    cdef int allocate(self, list connections) except -1:
        cdef Eng *e = self.e
        cdef uint32_t i, at = 0
        e.n_connections = len(connections)
        e.connections = <Connection *>calloc(e.n_connections + 1, sizeof(Connection))
        e.members = <Member *>calloc(sum(len(c[1]) for c in connections) + 1, sizeof(Member))
        e.dirty = <uint32_t *>malloc((e.n_connections + 1) * 4)
        e.slow = <uint32_t *>malloc((e.n_connections + 1) * 4)
        e.senders = <uint32_t *>malloc((e.shared.n_senders + 1) * 4)
        e.templates = <Template *>calloc(e.shared.n_groups, sizeof(Template))
        e.joins = <Text *>calloc(e.shared.n_groups, sizeof(Text))
        e.leaves = <Text *>calloc(e.shared.n_groups, sizeof(Text))
        e.buffer = <uint8_t *>malloc(BUFFER_BYTES)
        if not (e.connections and e.members and e.dirty and e.slow and e.senders and e.templates and e.joins and e.leaves and e.buffer):
            raise MemoryError
        for i in range(e.n_connections):
            e.connections[i].fd = -1           # before anything can raise: __dealloc__ closes what is open
        for i in range(e.n_connections):
            user_group, channels, login, slow, checked = connections[i]
            self.fill_connection(&e.connections[i], i, user_group, login, slow, checked)
            e.connections[i].members = e.members + at
            e.connections[i].n_members = len(channels)
            for channel in channels:
                e.members[at].group = channel
                at += 1
        for i in range(e.shared.n_senders):
            if e.first_number <= e.shared.senders[i].connection < e.first_number + e.n_connections:
                e.senders[e.n_senders] = i
                e.n_senders += 1
                e.connections[e.shared.senders[i].connection - e.first_number].is_sender = 1
        return 0

    cdef int fill_connection(self, Connection *c, uint32_t i, user_group, login, slow, checked) except -1:
        c.number = self.e.first_number + i
        c.user_group = user_group
        c.slow = slow
        c.checked = checked
        if not checked:
            self.e.counting = 1
        if slow:
            self.e.slow[self.e.n_slow] = i
            self.e.n_slow += 1
        self.text(&c.login, login)
        return 0

    cdef int text(self, Text *to, bytes value) except -1:
        self.keep.append(value)
        to.bytes = <const uint8_t *>PyBytes_AS_STRING(value)
        to.size = <uint32_t>PyBytes_GET_SIZE(value)
        return 0

    def __dealloc__(self):
        cdef Eng *e = self.e
        cdef uint32_t i
        if e == NULL:
            return
        if e.connections != NULL:
            for i in range(e.n_connections):
                if e.connections[i].fd >= 0:
                    sl_close(e.connections[i].fd)
                release_buffers(&e.connections[i])
                receiver_free(&e.connections[i].receiver)
                free(e.connections[i].ack_ring)
        if e.epoll >= 0:
            sl_close(e.epoll)
        for p in (<size_t>e.connections, <size_t>e.members, <size_t>e.dirty, <size_t>e.slow, <size_t>e.senders, <size_t>e.templates,
                  <size_t>e.joins, <size_t>e.leaves, <size_t>e.buffer, <size_t>e.padding, <size_t>e.log):
            free(<void *><size_t>p)
        free(e)

    def set_target(self, bytes address not None, bytes request not None, int key_at, list keys not None, int source,
                   bytes protocols not None = b"") -> None:
        if len(address) > 128:
            raise ValueError("socket address too long")
        memcpy(self.e.address, PyBytes_AS_STRING(address), len(address))
        self.e.address_size = <int>len(address)
        self.text(&self.e.request, request)
        self.text(&self.e.protocols, protocols)
        self.e.key_at = key_at
        self.text(&self.e.keys, b"".join(key for key, _ in keys))
        self.text(&self.e.accepts, b"".join(accept for _, accept in keys))
        self.e.n_keys = len(keys)
        self.e.source = <uint32_t>source

    def set_dialect(self, *, int form, int opcode, bint json, bytes welcome not None, list templates not None, dict joins not None,
                    dict leaves not None, bint sender_receives, bint acks) -> None:
        cdef Template *t
        cdef uint32_t i
        self.e.form = form
        self.e.opcode = opcode
        self.e.json = json
        self.e.sender_receives = sender_receives
        self.e.acks = acks
        self.text(&self.e.welcome, welcome)
        for group, template in enumerate(templates):
            if template is not None:
                before, after, id_at, size_at = template
                t = &self.e.templates[<int>group]
                self.text(&t.before, before)
                self.text(&t.after, after)
                t.id_at = id_at
                t.size_at = size_at
        for group, message in joins.items():
            self.text(&self.e.joins[<int>group], message)
        for group, message in leaves.items():
            self.text(&self.e.leaves[<int>group], message)
        if acks:
            for i in range(self.e.n_connections):
                if self.e.connections[i].is_sender and self.e.connections[i].ack_ring == NULL:
                    self.e.connections[i].ack_ring = <int64_t *>calloc(ACK_RING, 8)

    def set_sender_receives(self, bint value) -> None:
        """What the probe found out; a probe that still waits for its own sender is settled."""
        cdef uint32_t i
        cdef Sender *s
        self.e.sender_receives = value
        for i in range(self.e.n_senders):
            s = &self.e.shared.senders[self.e.senders[i]]
            s.done = s.sent

    def set_load(self, *, int window, double rate_per_s, bint poisson, list sizes not None, bytes padding not None, bint spin,
                 double give_up_s, uint64_t seed) -> None:
        cdef int i
        self.e.random += seed * 0x9E3779B97F4A7C15ULL
        self.e.random |= 1                     # xorshift never leaves zero
        if len(padding) < max(sizes) + PADDING_PERIOD:
            raise ValueError("padding is too short")
        self.e.window = window
        self.e.gap_ns = 1e9 / rate_per_s if rate_per_s > 0 and self.e.n_senders else 0.0
        self.e.poisson = poisson
        self.e.spin = spin
        self.e.give_up_ns = <int64_t>(give_up_s * 1e9)
        for i in range(4096):
            self.e.sizes[i] = sizes[i % len(sizes)]
        free(self.e.padding)
        self.e.padding = <uint8_t *>malloc(len(padding))
        if self.e.padding == NULL:
            raise MemoryError
        memcpy(self.e.padding, PyBytes_AS_STRING(padding), len(padding))

    def set_slow(self, int slow_bytes, int tick_ns, int receive_buffer_bytes) -> None:
        self.e.slow_bytes = slow_bytes
        self.e.slow_tick_ns = tick_ns
        self.e.slow_receive_buffer = receive_buffer_bytes

    def set_churn(self, *, double per_s, int window, double reset_share, double rejoins_per_s) -> None:
        self.e.churn_gap_ns = 1e9 / per_s if per_s > 0 else 0.0
        self.e.churn_window = window
        self.e.reset_share = reset_share
        self.e.rejoin_gap_ns = 1e9 / rejoins_per_s if rejoins_per_s > 0 else 0.0

    def set_ramp(self, int connecting_limit, double per_s) -> None:
        self.e.connecting_limit = connecting_limit
        self.e.connect_gap_ns = 1e9 / per_s if per_s > 0 else 0.0

    def set_measure(self, int64_t from_ns, int64_t until_ns) -> None:
        """Latencies count for messages intended within [from_ns, until_ns); forget those recorded so far."""
        self.e.measure_from_ns = from_ns
        self.e.measure_until_ns = until_ns
        memset(self.e.process.slots[INTENDED], 0, HISTOGRAM_SLOTS * 8)
        memset(self.e.process.slots[ACTUAL], 0, HISTOGRAM_SLOTS * 8)
        memset(self.e.process.slots[ACK], 0, HISTOGRAM_SLOTS * 8)

    def log_deliveries(self, uint32_t most) -> None:
        """Keep a log of the checked deliveries from now on, of at most so many (12 bytes each); what is more is counted as `unlogged`."""
        self.e.log_size = self.e.log_room = 0
        free(self.e.log)
        self.e.log = <Seen *>malloc(most * sizeof(Seen))
        if self.e.log == NULL:
            raise MemoryError
        self.e.log_room = most

    def deliveries_log(self) -> bytes:
        """The log: 32-bit receiver, stream and number of each delivery, in the order of arrival."""
        return PyBytes_FromStringAndSize(<const char *>self.e.log, self.e.log_size * sizeof(Seen))

    def start_schedule(self) -> None:
        """The open model's first message, churn and slow ticks are due now."""
        self.e.due_ns = self.e.slow_due_ns = self.e.now_ns = sl_now()
        self.e.churn_due_ns = self.e.rejoin_due_ns = <double>self.e.due_ns

    def run(self, int phase, double seconds) -> None:
        """Run a phase for at most `seconds`."""
        cdef int64_t until = sl_now() + <int64_t>(seconds * 1e9)
        if phase == PHASE_RAMP:
            self.e.connect_due_ns = <double>sl_now()
        with nogil:
            run_phase(self.e, phase, until)
        if phase == PHASE_TRAFFIC and self.e.gap_ns > 0 and not self.e.window:
            self.e.counters[OVERDUE] = <uint64_t>((sl_now() - self.e.due_ns) / self.e.gap_ns) if sl_now() > self.e.due_ns else 0

    def publish_one(self) -> bool:
        """One message of the first local sender (the probe before the traffic). False if it could not be sent."""
        if not self.e.n_senders:
            return False
        self.e.now_ns = sl_now()
        sent = publish(self.e, &self.e.shared.senders[self.e.senders[0]], self.e.now_ns) == 1
        flush_dirty(self.e)
        return sent

    def count_only(self, list indices not None) -> None:
        """From now on these connections (local indices) are only counted, not checked: their part of the traffic costs a header walk."""
        cdef Connection *c
        for index in indices:
            c = &self.e.connections[<int>index]
            if not c.checked:
                continue
            if self.e.window == 0 and c.receiver.counted and c.state == READY_STATE:
                self.uncount(c)
            c.checked = 0
            self.e.counting = 1

    cdef void uncount(self, Connection *c):
        """Nobody waits for this receiver any more (its pairs stay, unused)."""
        cdef uint32_t i
        present = c.present
        group_leave(&self.e.shared, &c.receiver, 0, self.e.counters, PAIR_LEFT)
        group_leave(&self.e.shared, &c.receiver, c.user_group, self.e.counters, PAIR_LEFT)
        for i in range(c.n_members):
            group_leave(&self.e.shared, &c.receiver, c.members[i].group, self.e.counters, PAIR_LEFT)
        c.present = present
        c.receiver.counted = 0

    def finish(self) -> None:
        """Book what is lost. Called once, after the settle phase."""
        cdef uint32_t i, k
        cdef Connection *c
        cdef uint64_t expected
        for i in range(self.e.n_connections):
            c = &self.e.connections[i]
            if not c.checked:
                if c.present and not c.slow and c.state == READY_STATE:
                    expected = self.expected(c)
                    self.e.counters[COUNTED_EXPECTED] += expected
                    self.e.counters[COUNTED] += c.deliveries
                    if expected > c.deliveries:
                        self.e.counters[LOST] += expected - c.deliveries
                    else:
                        self.e.counters[DUPLICATES] += c.deliveries - expected
                continue
            owes = c.state == READY_STATE and not c.slow
            self.e.counters[LOST] += group_finish(&self.e.shared, &c.receiver, 0, owes and self.owes_own(c))
            self.e.counters[LOST] += group_finish(&self.e.shared, &c.receiver, c.user_group, owes)
            for k in range(c.n_members):
                self.e.counters[LOST] += group_finish(&self.e.shared, &c.receiver, c.members[k].group, owes)

    cdef bint owes_own(self, Connection *c):
        """A sender that does not hear itself has no tail in its own streams; its peers' streams are judged like everyone's."""
        cdef uint32_t i, stream
        cdef Group *g = &self.e.shared.groups[0]
        cdef Pair *pair
        if self.e.sender_receives or not c.is_sender:
            return True
        for i in range(g.streams):
            stream = self.e.shared.group_streams[g.first_stream + i]
            pair = pair_find(&c.receiver, stream)
            if pair != NULL and self.e.shared.senders[self.e.shared.streams[stream].sender].connection == c.number:
                pair.state = PAIR_LEFT
        return True

    cdef uint64_t expected(self, Connection *c):
        cdef uint64_t n = self.group_sent(0, c) + self.group_sent(c.user_group, c)
        cdef uint32_t i
        for i in range(c.n_members):
            n += self.group_sent(c.members[i].group, c)
        return n

    cdef uint64_t group_sent(self, uint32_t group, Connection *c):
        cdef Group *g = &self.e.shared.groups[group]
        cdef Stream *s
        cdef uint64_t n = 0
        cdef uint32_t i
        for i in range(g.streams):
            s = &self.e.shared.streams[self.e.shared.group_streams[g.first_stream + i]]
            if group != 0 or self.e.sender_receives or self.e.shared.senders[s.sender].connection != c.number:
                n += s.sent
        return n

    def deliveries_of(self, int index) -> int:
        """Deliveries so far at one connection (local index)."""
        return self.e.connections[index].deliveries

    def close_all(self) -> None:
        """Send every close frame; a CLOSE phase then waits for the peers."""
        cdef uint32_t i
        self.e.now_ns = sl_now()
        for i in range(self.e.n_connections):
            connection_close(self.e, &self.e.connections[i], False)
        flush_dirty(self.e)

    def abandon(self) -> None:
        """Close whatever is still open, at once."""
        cdef uint32_t i
        for i in range(self.e.n_connections):
            if self.e.connections[i].fd >= 0:
                connection_end(self.e, &self.e.connections[i], CLOSED, False)

    def failure(self) -> str:
        """Why the first connection ended that should not have; empty if none did."""
        return (<bytes>self.e.failure).decode("utf-8", "replace") if self.e.failed else ""

    def first_error(self) -> str:
        """The first error reply, as received; empty if there was none."""
        return (<bytes>self.e.first_error).decode("utf-8", "replace")

    def protocol_errors(self) -> dict[str, int]:
        """How often the server broke the protocol, by kind (PROTOCOL_ERRORS)."""
        return {name: self.e.protocol_errors[<int>kind] for kind, name in enumerate(PROTOCOL_ERRORS) if self.e.protocol_errors[<int>kind]}

    def close_codes(self) -> dict[int, int]:
        """Close codes by which the server ended connections (1006: without a close frame)."""
        return {code: self.e.close_codes[code] for code in range(5000) if self.e.close_codes[code]}


cdef class Checker:
    """The engine's delivery checker without a network: for tests, and to check it against the Python model in checker.py."""

    cdef Arena arena
    cdef Receiver *receivers
    cdef int n_receivers
    cdef uint64_t counters[64]

    def __cinit__(self, int groups, list streams, int receivers):
        self.arena = Arena(groups, streams, [[i] for i in range(len(streams))], [0] * len(streams), 1, 1024)
        self.n_receivers = receivers
        self.receivers = <Receiver *>calloc(receivers, sizeof(Receiver))
        if self.receivers == NULL:
            raise MemoryError
        for i in range(receivers):
            self.receivers[<int>i].counted = 1

    def __dealloc__(self):
        cdef int i
        if self.receivers != NULL:
            for i in range(self.n_receivers):
                receiver_free(&self.receivers[i])
        free(self.receivers)

    def join(self, int receiver, int group) -> None:
        group_enter(&self.arena.shared, &self.receivers[receiver], group)
        group_joined(&self.arena.shared, &self.receivers[receiver], group)

    def leave(self, int receiver, int group) -> None:
        group_leave(&self.arena.shared, &self.receivers[receiver], group, self.counters, PAIR_LEFT)

    def sent(self, int stream) -> int:
        """One more message of a stream; its number."""
        number = self.arena.shared.streams[stream].sent
        self.arena.shared.streams[stream].sent = number + 1
        return number

    def received(self, int receiver, bytes message) -> None:
        found = read_data(message)
        if found is None or not found[2] or found[0] >= self.arena.shared.n_streams:
            self.counters[DAMAGED] += 1
        else:
            deliver(&self.arena.shared, &self.receivers[receiver], found[0], found[1], self.counters)

    def finish(self) -> dict[str, int]:
        """The verdict."""
        cdef int i
        cdef uint32_t group
        for i in range(self.n_receivers):
            for group in range(self.arena.shared.n_groups):
                self.counters[LOST] += group_finish(&self.arena.shared, &self.receivers[i], group, True)
        return {name: self.counters[<int>at] for at, name in enumerate(COUNTER_NAMES)
                if name in ("lost", "duplicates", "reordered", "misdelivered", "damaged")}
