"""channels.hub over the real core: who comes and goes, membership, and what the application pushes."""

from __future__ import annotations

import gc
from typing import Any

import pytest

from starlight import ChannelOptions
from starlight.channels.options import OptionsByPattern
from starlight.errors import CloseConnection
from tests.support.fakes import Member, Stage, publication

# --- login -----------------------------------------------------------------------------------------------------------


def test_welcome_names_user_client_node_and_the_pings(ann: Member):
    assert ann.welcome == {
        "type": "welcome", "user": "ann", "client": "n1-1", "node": "n1", "session": None, "expires": None,
        "ping": 25, "pong": 10,
        "limits": {"message_bytes": None, "channels": 1000, "message_rate": None, "byte_rate": None},
    }  # fmt: skip


def test_welcome_echoes_the_id_and_users_may_have_any_letters(stage: Stage):
    connection = stage.connection()
    message = '{"type":"login","user":"Zoë 🦊","id":"first"}'
    assert stage.hub.login(connection, message.encode()) is None
    client = connection.client
    assert client is not None
    [welcome] = connection.messages()
    assert (welcome["id"], welcome["user"], client.user) == ("first", "Zoë 🦊", "Zoë 🦊")
    connection.destroy()
    stage.hub.disconnect(client)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"hello",
        b"[]",
        b"17",
        b'{"type":"login"}',
        b'{"type":"login","token":"abc"}',
        b'{"type":"login","user":null}',
        b'{"type":"login","user":""}',
        b'{"type":"login","user":"a\\u0000b"}',
        b'{"type":"login","user":"a\\nb"}',
        b'{"type":"login","user":"' + b"x" * 256 + b'"}',
        b'{"type":"login","user":"ann","id":1.5}',
        b'{"type":"join","channel":"c"}',
        b'{"type":"ping"}',
        b'{"type":"bid","data":1}',
    ],
)
def test_whatever_is_no_proper_login_ends_with_4501(stage: Stage, message: bytes):
    connection = stage.connection()
    with pytest.raises(CloseConnection) as end:
        stage.hub.login(connection, message)
    assert end.value.code == 4501
    assert connection.messages() == []
    assert stage.hub.counters() == {"users": 0, "clients": 0, "channels": 0}
    connection.destroy()


# --- membership ----------------------------------------------------------------------------------------------------


def test_channels_joined_and_left_leave_nothing_behind(stage: Stage, ann: Member):
    def objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    ann.say("join", channel="warm")
    ann.say("leave", channel="warm")
    before = objects()
    for number in range(5_000):
        ann.say("publish", channel=f"c{number}", data=1)
        ann.say("join", channel=f"c{number}")
        ann.say("leave", channel=f"c{number}")
    assert stage.hub.counters()["channels"] == 0
    assert stage.core.counters()["channels"] == 0
    assert objects() - before < 100


def test_a_joined_member_that_goes_takes_its_channels_along(stage: Stage, ann: Member, bob: Member):
    for member in (ann, bob):
        member.say("join", channel="both")
    ann.say("join", channel="mine")
    ann.leave_hub()
    assert stage.hub.counters() == {"users": 1, "clients": 1, "channels": 1}
    assert bob.ask("publish", channel="both", data=1)["subscribers"] == 1
    ann.hub.disconnect(ann.client)  # a second time does nothing
    assert stage.hub.counters()["users"] == 1


def test_everything_is_zero_when_all_have_gone():
    stage = Stage()
    for number in range(50):
        member = stage.member(f"user{number % 20}")
        member.say("join", channel=f"c{number % 7}")
        member.say("publish", channel=f"c{number % 7}", data=number)
    stage.close()
    assert stage.hub.counters() == {"users": 0, "clients": 0, "channels": 0}
    assert stage.core.counters()["memberships"] == 0


def test_a_record_may_outlive_its_members(stage: Stage, ann: Member, bob: Member):
    ann.say("join", channel="c")
    record = stage.hub.channels["c"]
    record.is_held = True
    ann.say("leave", channel="c")
    assert stage.hub.channels["c"] is record
    assert bob.ask("publish", channel="c", data=1)["subscribers"] == 0
    assert bob.ask("presence", channel="c")["users"] == []
    assert stage.hub.counts.unheard == 1
    bob.ask("join", channel="c")
    assert stage.hub.channels["c"] is record and len(record.members) == 1
    bob.leave_hub()
    assert stage.hub.counters()["channels"] == 1
    record.is_held = False
    stage.hub.release(record)
    assert stage.hub.counters()["channels"] == 0


def test_channels_of_a_client_come_in_the_order_of_joining(stage: Stage, ann: Member):
    names = [f"c{number}" for number in range(20)]
    for name in names:
        ann.say("join", channel=name)
    for number in (3, 0, 11):
        ann.say("leave", channel=f"c{number}")
    ann.say("join", channel="c3")
    expected = [name for name in names if name not in ("c3", "c0", "c11")] + ["c3"]
    assert (ann.client.channels, ann.client.n_channels) == (expected, 18)
    ann.leave_hub()
    assert (ann.client.channels, ann.client.n_channels) == ([], 0)


def test_a_client_that_has_gone_enters_no_channel(stage: Stage, ann: Member):
    """The authorize hook may end the client it is asked about, and allow what it asked for."""
    ann.connection.close(1000)
    ann.hub.disconnect(ann.client)
    stage.hub.enter(ann.client, stage.hub.open("c"))
    assert stage.hub.channels == {}


def options(**channels: dict[str, Any]) -> OptionsByPattern:
    return OptionsByPattern({name: ChannelOptions(**given) for name, given in channels.items()})


def review(stage: Stage, changed: OptionsByPattern) -> None:
    """What a reload does, once it has made these options."""
    stage.hub.options = changed
    assert True not in list(stage.hub.review(lambda: 0, rates=False))


def test_changed_options_hold_for_channels_that_there_are(stage: Stage):
    ann, bob, second = stage.member("ann"), stage.member("bob"), stage.member("bob")
    for member in (ann, bob, second):
        member.say("join", channel="c")
    record = stage.hub.channels["c"]
    review(stage, options(c={"presence": False}))
    assert record.presence is None
    assert ann.ask("presence", channel="c")["code"] == 108
    review(stage, options(c={"announce": "users", "announce_delay": 0, "clients_limit": 3}))
    reply = ann.ask("presence", channel="c")
    assert (set(reply["users"]), reply["clients"]) == ({"ann", "bob"}, 3)
    assert stage.member("eve").ask("join", channel="c")["code"] == 106
    bob.say("leave", channel="c")
    assert ann.heard() == []  # the other client of bob is here
    second.leave_hub()
    assert ann.heard() == [{"type": "left", "channel": "c", "user": "bob"}]
    ann.leave_hub()
    assert stage.hub.channels == {}


def test_who_was_leaving_is_forgotten_where_nobody_is_announced_any_more():
    timers: list[Any] = []
    stage = Stage(options=options(c={"announce": "users"}), later=lambda *timer: timers.append(timer))
    ann, bob = stage.member("ann"), stage.member("bob")
    for member in (ann, bob):
        member.say("join", channel="c")
    bob.say("leave", channel="c")
    assert ann.ask("presence", channel="c")["users"] == ["ann", "bob"]
    review(stage, options())
    assert ann.ask("presence", channel="c")["users"] == ["ann"]
    [(_, on_timer)] = timers
    stage.now_s += 5
    on_timer()
    assert ann.heard() == []
    stage.close()


# --- pushes of the application ---------------------------------------------------------------------------------------


def test_pushes(stage: Stage, ann: Member, bob: Member):
    second = stage.member("ann")
    bob.ask("join", channel="c")
    assert stage.hub.push_to_user("ann", b"1") == 2
    assert stage.hub.push_to_user("nobody", b"1") == 0
    assert stage.hub.push_to_channel("c", b"2") == 1
    assert stage.hub.push_to_channel("nothing", b"2") == 0
    assert stage.hub.push_to_everyone(b"3") == 3
    everyone = {"type": "broadcast", "from": None, "data": 3}
    assert ann.heard() == second.heard() == [{"type": "server", "data": 1}, everyone]
    assert bob.heard() == [publication("c", None, 2), everyone]
    with pytest.raises(ValueError, match="channel name"):
        stage.hub.push_to_channel("a b", b"2")


def test_a_client_can_be_pushed_to_alone_and_remembers_what_the_application_wants(stage: Stage, ann: Member):
    second = stage.member("ann")
    ann.client.send({"only": "you"})
    ann.client.data["score"] = 3
    assert ann.heard() == [{"type": "server", "data": {"only": "you"}}]
    assert second.heard() == []
    assert (ann.client.data, second.client.data) == ({"score": 3}, {})
    with pytest.raises(TypeError):
        ann.client.send(object())


def test_nothing_is_sent_to_a_client_that_is_gone(stage: Stage, ann: Member):
    ann.leave_hub()
    ann.client.send(1)
    assert stage.hub.push_to_user("ann", b"1") == 0


def test_a_channel_outlives_a_member_that_the_core_has_dropped_until_the_hub_is_told(stage: Stage):
    ann, bob = stage.member("ann"), stage.member("bob")
    for member in (ann, bob):
        assert member.ask("join", channel="c")["type"] == "ok"
    stage.core.detach(ann.connection.subscriber)
    assert bob.ask("leave", channel="c")["type"] == "ok"
    assert stage.hub.counters()["channels"] == 1
    stage.hub.disconnect(ann.client)
    assert stage.hub.counters()["channels"] == 0
