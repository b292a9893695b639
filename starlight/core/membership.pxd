# Membership: who is in a channel, kept on both sides.
#
#   channel.members[i] = (subscriber, m)  <-->  subscriber.memberships[m] = (channel, i)
#
# Law: each side holds the other's place, so that joining and leaving are O(1): the last one moves into the gap. A join comes
# behind what the run holds already, a leave behind all that was published before it. A channel's list of encodings holds each
# at most once and counts its members; a core has no more encodings than the list has room for.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from starlight.core.arena cimport checked_realloc
from starlight.core.encoding cimport MAX_ENCODINGS
from starlight.core.outbox cimport membership_t, subscriber_t
from starlight.core.records cimport INLINE_SLOTS, channel_t, core_t, member_t, slot_t
from starlight.core.run cimport clear_part, settle, settle_member


cdef inline uint32_t slot_of(core_t* c, channel_t* channel, uint8_t encoding) noexcept nogil:
    """The place of an encoding in the channel's list, at its end if it is new."""
    cdef uint32_t slot
    cdef slot_t* grown
    for slot in range(channel.n_slots):
        if channel.slots[slot].encoding == encoding:
            return slot
    slot = channel.n_slots
    if slot == INLINE_SLOTS:
        grown = <slot_t*>checked_realloc(NULL, MAX_ENCODINGS * sizeof(slot_t))
        memcpy(grown, channel.inline_slots, sizeof(channel.inline_slots))
        channel.slots = grown
    channel.slots[slot].encoding = encoding
    channel.slots[slot].n_members = 0
    channel.n_slots += 1
    if c.run.channel == channel:                         # the run has nothing in it
        clear_part(&c.run, slot)
    return slot


cdef inline void channel_add(core_t* c, channel_t* channel, subscriber_t* sub) noexcept nogil:
    cdef membership_t* membership
    cdef member_t* member
    cdef uint32_t slot = slot_of(c, channel, sub.encoding)
    if channel.n_members == channel.capacity:
        channel.capacity = channel.capacity * 2 if channel.capacity else 1   # very many channels have one member
        channel.members = <member_t*>checked_realloc(channel.members, channel.capacity * sizeof(member_t))
    if sub.n_memberships == sub.membership_capacity:
        sub.membership_capacity = sub.membership_capacity * 2 if sub.membership_capacity else 2
        sub.memberships = <membership_t*>checked_realloc(sub.memberships, sub.membership_capacity * sizeof(membership_t))
    member = &channel.members[channel.n_members]
    member.sub = sub
    member.membership = sub.n_memberships
    member.slot = slot
    membership = &sub.memberships[sub.n_memberships]
    membership.channel = channel
    membership.index = channel.n_members
    membership.number = c.n_joins
    c.n_joins += 1
    channel.n_members += 1
    channel.slots[slot].n_members += 1
    sub.n_memberships += 1
    c.n_memberships += 1
    if c.run.channel == channel:                         # what the run already holds came before this join
        sub.run_id = c.run.id
        sub.run_seen = c.run.parts[slot].end


cdef inline void channel_remove(core_t* c, subscriber_t* sub, uint32_t slot) noexcept nogil:
    """Swap-remove on both sides, O(1); what was published before the leaving is delivered."""
    cdef channel_t* channel = <channel_t*>sub.memberships[slot].channel
    cdef uint32_t index = sub.memberships[slot].index
    cdef member_t* moved
    cdef membership_t* other
    if c.run.channel == channel:
        settle_member(c, &channel.members[index])
        if channel.n_members == 1:
            settle(c)
    channel.n_members -= 1
    channel.slots[channel.members[index].slot].n_members -= 1
    if index != channel.n_members:
        moved = &channel.members[index]
        moved[0] = channel.members[channel.n_members]
        moved.sub.memberships[moved.membership].index = index
    sub.n_memberships -= 1
    if slot != sub.n_memberships:
        other = &sub.memberships[slot]
        other[0] = sub.memberships[sub.n_memberships]
        (<channel_t*>other.channel).members[other.index].membership = slot
    c.n_memberships -= 1
    if channel.capacity > 64 and channel.n_members < channel.capacity // 4:
        channel.capacity //= 2
        channel.members = <member_t*>checked_realloc(channel.members, channel.capacity * sizeof(member_t))
