# Deadlines: a timing wheel with one intrusive node per connection, so that ten thousand pings cost a few list operations and
# setting or moving a deadline is O(1) (Varghese & Lauck, "Hashed and hierarchical timing wheels", 1987, scheme 6).
#
# Law: a node is in at most one list; `owner` is borrowed from the connection that embeds the node, which unlinks it before it
# goes. Deadlines beyond the wheel's turn stay in their slot and are passed over until they are due.

from libc.stdint cimport uint32_t, uint64_t

cdef enum:
    WHEEL_TICK_MS = 50           # precision of every deadline; half the shortest sensible evict-after
    WHEEL_SLOTS = 1024           # 51 s a turn: all default deadlines fit into one

ctypedef struct deadline_t:
    deadline_t* previous
    deadline_t* next             # NULL: not in the wheel
    uint64_t due_ms
    void* owner                  # PyObject*, borrowed: see the law

ctypedef struct wheel_t:
    deadline_t slots[WHEEL_SLOTS]    # list heads
    uint64_t now_tick            # every tick up to here was handled


cdef inline void list_init(deadline_t* head) noexcept nogil:
    head.previous = head.next = head


cdef inline void wheel_init(wheel_t* wheel, uint64_t now_ms) noexcept nogil:
    cdef int i
    for i in range(WHEEL_SLOTS):
        list_init(&wheel.slots[i])
    wheel.now_tick = now_ms // WHEEL_TICK_MS


cdef inline void deadline_clear(deadline_t* node) noexcept nogil:
    if node.next != NULL:
        node.previous.next = node.next
        node.next.previous = node.previous
        node.next = node.previous = NULL


cdef inline void list_append(deadline_t* head, deadline_t* node) noexcept nogil:
    node.previous = head.previous
    node.next = head
    head.previous.next = node
    head.previous = node


cdef inline void deadline_set(wheel_t* wheel, deadline_t* node, uint64_t due_ms) noexcept nogil:
    """Move the node to its new slot; a time already past is due with the next tick."""
    cdef uint64_t tick = (due_ms + WHEEL_TICK_MS - 1) // WHEEL_TICK_MS
    deadline_clear(node)
    node.due_ms = due_ms
    list_append(&wheel.slots[max(tick, wheel.now_tick + 1) % WHEEL_SLOTS], node)


cdef inline void wheel_collect(wheel_t* wheel, uint64_t now_ms, deadline_t* due) noexcept nogil:
    """Move every node that is due to the list `due`."""
    cdef uint64_t tick = now_ms // WHEEL_TICK_MS
    cdef uint32_t steps = 0
    cdef deadline_t* head
    cdef deadline_t* node
    cdef deadline_t* following
    while wheel.now_tick < tick and steps < WHEEL_SLOTS:
        wheel.now_tick += 1
        steps += 1
        head = &wheel.slots[wheel.now_tick % WHEEL_SLOTS]
        node = head.next
        while node != head:
            following = node.next
            if node.due_ms <= now_ms:
                deadline_clear(node)
                list_append(due, node)
            node = following
    wheel.now_tick = tick
