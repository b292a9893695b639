# Membership: who is in a channel, kept on both sides.
#
#   channel.members[i] = (subscriber, m)  <-->  subscriber.memberships[m] = (channel, i)
#
# Law: each side holds the other's place, so that joining and leaving are O(1): the last one moves into the gap. A join comes
# behind what the run holds already, a leave behind all that was published before it.

from libc.stdint cimport uint32_t
from starlight.core.arena cimport checked_realloc
from starlight.core.outbox cimport membership_t, subscriber_t
from starlight.core.records cimport channel_t, core_t, member_t
from starlight.core.run cimport settle, settle_member


cdef inline void channel_add(core_t* c, channel_t* channel, subscriber_t* sub) noexcept nogil:
    cdef membership_t* membership
    if channel.n_members == channel.capacity:
        channel.capacity = channel.capacity * 2 if channel.capacity else 1   # very many channels have one member
        channel.members = <member_t*>checked_realloc(channel.members, channel.capacity * sizeof(member_t))
    if sub.n_memberships == sub.membership_capacity:
        sub.membership_capacity = sub.membership_capacity * 2 if sub.membership_capacity else 2
        sub.memberships = <membership_t*>checked_realloc(sub.memberships, sub.membership_capacity * sizeof(membership_t))
    channel.members[channel.n_members].sub = sub
    channel.members[channel.n_members].membership = sub.n_memberships
    membership = &sub.memberships[sub.n_memberships]
    membership.channel = channel
    membership.index = channel.n_members
    channel.n_members += 1
    channel.n_form[sub.form] += 1
    sub.n_memberships += 1
    c.n_memberships += 1
    if c.run.channel == channel:                         # what the run already holds came before this join
        sub.run_id = c.run.id
        sub.run_seen = c.run.end[sub.form]


cdef inline void channel_remove(core_t* c, subscriber_t* sub, uint32_t slot) noexcept nogil:
    """Swap-remove on both sides, O(1); what was published before the leaving is delivered."""
    cdef channel_t* channel = <channel_t*>sub.memberships[slot].channel
    cdef uint32_t index = sub.memberships[slot].index
    cdef member_t* moved
    cdef membership_t* other
    if c.run.channel == channel:
        settle_member(c, sub)
        if channel.n_members == 1:
            settle(c)
    channel.n_members -= 1
    channel.n_form[sub.form] -= 1
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
