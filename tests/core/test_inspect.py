"""starlight._inspect: what is read in the core, over socket pairs."""

from __future__ import annotations

from starlight._inspect import channel_counts, flush_histograms, members, over_budget, split
from tests.support.fakes import Stage


def test_a_channel_counts_publications_and_deliveries():
    stage = Stage()
    ann, bob = stage.member("ann"), stage.member("bob")
    channel = stage.core.channel()
    assert channel_counts(channel) == (0, 0, 0)
    channel.join(ann.client.subscriber)
    stage.core.publish(channel, b"1", b"", b"")
    channel.join(bob.client.subscriber)
    for _ in range(3):
        stage.core.publish(channel, b"2", b"", b"")
    assert channel_counts(channel) == (2, 4, 1 + 3 * 2)
    assert set(members(channel)) == {ann.client.subscriber, bob.client.subscriber}
    assert stage.core.counters()["publications_total"] == 4
    channel.leave(ann.client.subscriber)
    assert members(channel) == [bob.client.subscriber]
    stage.close()


def test_split_tells_written_waiting_queued_and_gone():
    stage = Stage()
    ann, bob, cat = stage.member("ann"), stage.member("bob"), stage.member("cat")
    subscribers = [member.client.subscriber for member in (ann, bob, cat)]
    for subscriber in subscribers:
        stage.core.send(subscriber, b"hello")
    assert split(subscribers) == (0, 0, 0, subscribers)
    stage.core.flush()
    assert split(subscribers) == (3, 0, 0, [])
    stage.core.send(bob.client.subscriber, b"more")
    stage.core.script_sends(b"\x00" * 4)  # EAGAIN
    cat.leave_hub()
    stage.core.flush()
    assert split(subscribers) == (1, 1, 1, [])
    assert stage.core.counters()["oldest_ms"] >= 0
    stage.members.remove(cat)
    stage.close()


def test_flushes_are_counted_by_powers_of_two():
    stage = Stage()
    ann = stage.member("ann")
    (before_us, _), (before, sum_before) = flush_histograms(stage.core)
    stage.core.send(ann.client.subscriber, b"x" * 254)  # and 4 bytes of header: 258, the first above 256
    stage.core.flush()
    stage.core.flush()  # nothing to write: doesn't count
    (after_us, sum_us), (after, sum_after) = flush_histograms(stage.core)
    assert [new - old for new, old in zip(after, before, strict=True)] == [int(power == 9) for power in range(32)]
    assert sum_after - sum_before == 258
    assert sum(after_us) - sum(before_us) == 1 and sum_us >= 0
    stage.core.send(ann.client.subscriber, b"x" * 252)  # and 4: 256
    stage.core.flush()
    assert flush_histograms(stage.core)[1][0][8] == before[8] + 1
    stage.close()


def test_over_budget():
    stage = Stage()
    assert not over_budget(stage.core)
