"""channels.commands over the real core: every command of the protocol, what its sender hears and what the others do."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest

from starlight import ChannelOptions
from starlight.auth.limits import FAULTS_LIMIT
from starlight.channels.client import Client
from starlight.channels.options import OptionsByPattern
from starlight.protocols.native.commands import Command
from tests.support.fakes import Member, Stage, error, publication, without_text


def test_every_command_has_a_method(stage: Stage):
    assert set(stage.hub.commands._methods) == set(get_args(Command))


def test_messages_larger_than_a_chunk_pass(stage: Stage, ann: Member):
    ann.ask("join", channel="c")
    data = "x" * 300_000
    ann.hub.commands.receive(ann.client, orjson.dumps({"type": "publish", "channel": "c", "data": data}))
    assert ann.heard() == [publication("c", "ann", data)]


def test_a_second_login_ends_with_4501(ann: Member):
    assert ann.close_code("login", user="ann") == 4501
    assert ann.close_code("login", user="eve", id=1) == 4501


# --- replies ---------------------------------------------------------------------------------------------------------


def test_success_without_id_is_silent_and_a_failure_is_an_error_without_id(ann: Member):
    ann.say("join", channel="c")
    ann.say("leave", channel="c")
    ann.say("publish", channel="c", data=1)
    assert ann.heard() == []
    ann.say("nonsense")
    assert [without_text(message) for message in ann.heard()] == [error(104, "unknown_type")]


@pytest.mark.parametrize("id", [0, -5, 2**53, "a", "x" * 64])
def test_ids_come_back_as_they_were(ann: Member, id: object):
    for type in ("leave", "ping", "nonsense"):
        ann.say(type, channel="c", id=id)
        assert [message["id"] for message in ann.heard()] == [id]


@pytest.mark.parametrize("id", [None, 1.5, True, [], 2**53 + 1, "x" * 65])
def test_a_wrong_id_is_107_without_id(ann: Member, id: object):
    ann.say("ping", id=id)
    [reply] = ann.heard()
    assert without_text(reply) == error(107, "bad_request")


def test_ping_is_answered_with_and_without_id(ann: Member):
    ann.say("ping")
    ann.say("ping", id="p")
    assert ann.heard() == [{"type": "pong"}, {"type": "pong", "id": "p"}]


def test_replies_come_in_the_order_of_requests(ann: Member):
    for number in range(50):
        ann.say(("ping", "leave", "publish", "nonsense")[number % 4] if number < 44 else "ping",
                channel="c", data=number, id=number)  # fmt: skip
    assert [message["id"] for message in ann.heard()] == list(range(50))


@pytest.mark.parametrize("message", [b"", b"{", b"[]", b"1", b"null", b'"x"', b'{"id":1}', b'{"type":5}'])
def test_bad_messages_after_login_are_107_and_the_connection_stays(ann: Member, message: bytes):
    assert ann.hub.commands.receive(ann.client, message) is None
    [reply] = ann.heard()
    assert reply["code"] == 107
    assert ann.ask("ping") == {"type": "pong"}


@pytest.mark.parametrize(
    ("type", "fields"),
    [
        ("history", {"channel": "c"}),
        ("join", {"channel": "c", "since": {"epoch": "e", "offset": 1}}),
        ("publish", {"channel": "c", "data": 1, "key": "k"}),
        ("publish", {"channel": "c", "data": 1, "ttl_ms": 5}),
        ("publish", {"channel": "c", "data": 1, "idempotency": "i"}),
    ],
)
def test_what_is_not_built_is_108_and_does_nothing(ann: Member, bob: Member, type: str, fields: dict[str, Any]):
    bob.ask("join", channel="c")
    assert without_text(ann.ask(type, **fields)) == error(108, "not_available")
    assert bob.heard() == []
    assert ann.client.channels == []


# --- channels --------------------------------------------------------------------------------------------------------


def test_join_publish_leave(ann: Member, bob: Member):
    assert ann.ask("join", channel="news") == {"type": "ok", "channel": "news"}
    reply = bob.ask("publish", channel="news", data={"a": [1, None]})
    assert reply == {"type": "ok", "subscribers": 1, "scope": "node"}
    assert ann.heard() == [publication("news", "bob", {"a": [1, None]})]
    assert bob.heard() == []
    assert ann.ask("leave", channel="news") == {"type": "ok"}
    assert bob.ask("publish", channel="news", data=2) == {"type": "ok", "subscribers": 0, "scope": "node"}
    assert ann.heard() == []


def test_joining_twice_is_105_and_leaving_a_channel_not_joined_is_ok(ann: Member):
    ann.ask("join", channel="c")
    assert without_text(ann.ask("join", channel="c")) == error(105, "already_joined")
    assert ann.client.channels == ["c"]
    assert ann.ask("leave", channel="c") == {"type": "ok"}
    assert ann.ask("leave", channel="c") == {"type": "ok"}
    assert ann.ask("leave", channel="never") == {"type": "ok"}
    assert ann.ask("join", channel="c") == {"type": "ok", "channel": "c"}


def test_senders_own_publication_precedes_its_ok(ann: Member):
    ann.ask("join", channel="c")
    ann.say("publish", channel="c", data="x", id=9)
    assert ann.heard() == [
        publication("c", "ann", "x"),
        {"type": "ok", "id": 9, "subscribers": 1, "scope": "node"},
    ]


def test_joins_ok_precedes_publications_and_none_follows_the_ok_of_leave(ann: Member, bob: Member):
    bob.say("publish", channel="c", data=0)
    ann.say("join", channel="c", id=1)
    bob.say("publish", channel="c", data=1)
    ann.say("leave", channel="c", id=2)
    bob.say("publish", channel="c", data=2)
    assert ann.heard() == [{"type": "ok", "id": 1, "channel": "c"}, publication("c", "bob", 1), {"type": "ok", "id": 2}]


def test_payload_bytes_are_spliced_through_as_they_came(stage: Stage, ann: Member, bob: Member):
    ann.ask("join", channel="c")
    data = b'{ "n" : 1.00 , "big":123456789012345678901234567890, "s":"\\u00e9\\ud83e\\udd8a" }'
    stage.hub.commands.receive(
        bob.client, b'{"from":"eve","offset":7,"data":' + data + b',"channel":"c","type":"publish"}'
    )
    [(_, payload)] = ann.connection.received()
    assert payload == b'{"type":"publication","channel":"c","from":"bob","data":' + data + b"}"


def test_null_is_data_and_missing_data_is_107(ann: Member):
    ann.ask("join", channel="c")
    ann.say("publish", channel="c", data=None)
    assert ann.heard() == [publication("c", "ann", None)]
    for type, fields in (("publish", {"channel": "c"}), ("direct", {"to": "ann"}), ("broadcast", {})):
        assert without_text(ann.ask(type, **fields)) == error(107, "bad_request")


@pytest.mark.parametrize("channel", ["", "x" * 256, "a b", "a*", ">", "a\0", "ä", 5, None])
def test_wrong_channel_names_are_107(ann: Member, channel: object):
    for type in ("join", "leave", "publish", "presence"):
        assert ann.ask(type, channel=channel, data=1)["code"] == 107


def test_a_client_of_many_channels_publishes_under_each_ones_name(ann: Member):
    names = [f"c{number}" for number in range(100)]
    for name in names:
        ann.say("join", channel=name)
    for name in names * 2:
        ann.say("publish", channel=name, data=name)
    ann.say("broadcast", data="all")
    heard = ann.heard()
    assert heard[:-1] == [publication(name, "ann", name) for name in names * 2]
    assert heard[-1] == {"type": "broadcast", "from": "ann", "data": "all"}


def joining(*names: str) -> list[dict[str, str]]:
    return [{"channel": name} for name in names]


def outcome(item: dict[str, Any]) -> tuple[str, int | None]:
    error = item.get("error")
    if error is not None:
        assert sorted(error) == ["code", "message", "name"] and error["message"]
    return item["channel"], None if error is None else error["code"]


def test_a_join_of_several_channels_is_one_ok_and_a_bad_one_fails_alone():
    options = OptionsByPattern({"full": ChannelOptions(clients_limit=1)})
    stage = Stage(channels_limit=5, options=options, name_limit_bytes=8)
    ann, bob = stage.member("ann"), stage.member("bob")
    ann.ask("join", channel="had")
    bob.ask("join", channel="full")
    items = [*joining("a", "had", "b", "no such name", "a", "full", "too-long-a-name"), {"channel": "c", "since": None}]
    items += joining("d", "e", "f")
    reply = ann.ask("join", channels=items)
    assert (reply["type"], sorted(reply)) == ("ok", ["channels", "type"])
    assert [outcome(item) for item in reply["channels"]] == [
        ("a", None), ("had", 105), ("b", None), ("no such name", 107), ("a", 105), ("full", 106),
        ("too-long-a-name", 107), ("c", 108), ("d", None), ("e", None), ("f", 106),
    ]  # fmt: skip
    assert reply["channels"][3]["error"]["name"] == "bad_request"
    assert ann.client.channels == ["had", "a", "b", "d", "e"]
    assert stage.hub.counts.errors[107] == 2
    stage.close()


def test_the_ok_of_several_joins_precedes_what_is_published_in_them(ann: Member, bob: Member):
    ann.say("join", channels=joining("a", "b"), id=1)
    bob.ask("publish", channel="b", data=1)
    bob.ask("publish", channel="a", data=2)
    told = ann.heard()
    assert [message["type"] for message in told] == ["ok", "publication", "publication"]
    assert [message["data"] for message in told[1:]] == [1, 2]


def test_several_joins_without_an_id_tell_only_what_failed(ann: Member):
    ann.say("join", channels=joining("a", "!", "b"))
    [told] = ann.heard()
    assert without_text(told) == error(107, "bad_request")
    assert ann.client.channels == ["a", "b"]


def test_many_refused_channels_in_one_join_are_one_fault(stage: Stage, ann: Member):
    for _ in range(FAULTS_LIMIT):
        assert len(ann.ask("join", channels=joining(*(f"! {number}" for number in range(256))))["channels"]) == 256
    assert ann.close_code("join", channels=joining("!")) == 4509


@pytest.mark.parametrize(
    "fields",
    [
        {"channels": []},
        {"channels": joining(*map(str, range(257)))},
        {"channels": {}},
        {"channels": "a"},
        {"channels": ["a"]},
        {"channels": [{}]},
        {"channels": [{"channel": "a"}, {"channel": 5}]},
        {"channels": [{"channel": "a"}, {"channel": None}]},
        {"channels": None},
        {"channels": joining("a"), "channel": "b"},
    ],
)
def test_a_list_of_channels_that_is_none_is_107_as_a_whole(ann: Member, fields: dict[str, Any]):
    assert without_text(ann.ask("join", **fields)) == error(107, "bad_request")
    assert ann.client.channels == []


def test_more_channels_than_a_client_may_join_are_106():
    stage = Stage(channels_limit=3)
    ann = stage.member("ann")
    for number in range(3):
        assert ann.ask("join", channel=f"c{number}")["type"] == "ok"
    assert without_text(ann.ask("join", channel="c3")) == error(106, "limit_exceeded")
    ann.ask("leave", channel="c0")
    assert ann.ask("join", channel="c3")["type"] == "ok"
    stage.close()


# --- direct and broadcast --------------------------------------------------------------------------------------------


def test_direct_reaches_every_client_of_the_user(stage: Stage, ann: Member, bob: Member):
    second = stage.member("bob")
    assert ann.ask("direct", to="bob", data="hi") == {"type": "ok", "clients": 2}
    for member in (bob, second):
        assert member.heard() == [{"type": "direct", "from": "ann", "data": "hi"}]
    second.leave_hub()
    assert ann.ask("direct", to="bob", data="hi") == {"type": "ok", "clients": 1}


def test_direct_to_oneself_counts_and_precedes_the_ok(stage: Stage, ann: Member):
    ann.say("direct", to="ann", data=1, id=1)
    assert ann.heard() == [{"type": "direct", "from": "ann", "data": 1}, {"type": "ok", "id": 1, "clients": 1}]


def test_direct_to_an_absent_user_is_120_and_never_counts_as_a_fault(ann: Member):
    for _ in range(5 * FAULTS_LIMIT):
        assert without_text(ann.ask("direct", to="nobody", data=1)) == error(120, "not_connected")


def test_broadcast_reaches_everyone_once_the_sender_included(stage: Stage, ann: Member, bob: Member):
    second = stage.member("bob")
    ann.say("broadcast", data=[1], id=3)
    message = {"type": "broadcast", "from": "ann", "data": [1]}
    assert ann.heard() == [message, {"type": "ok", "id": 3, "clients": 3}]
    assert bob.heard() == second.heard() == [message]


def test_messages_of_one_sender_keep_their_order_across_all_ways(ann: Member, bob: Member):
    bob.ask("join", channel="c")
    for number in range(0, 300, 3):
        ann.say("direct", to="bob", data=number)
        ann.say("publish", channel="c", data=number + 1)
        ann.say("broadcast", data=number + 2)
    assert [message["data"] for message in bob.heard()] == list(range(300))


# --- presence --------------------------------------------------------------------------------------------------------


def test_presence_lists_users_once_and_counts_clients(stage: Stage, ann: Member, bob: Member):
    members = [ann, bob, stage.member("bob")]
    for member in members:
        member.say("join", channel="c")
    assert ann.ask("presence", channel="c") == {"type": "ok", "users": ["ann", "bob"], "clients": 3}
    assert ann.ask("presence", channel="c", limit=1) == {"type": "ok", "users": ["ann"], "clients": 3}
    assert ann.ask("presence", channel="empty") == {"type": "ok", "users": [], "clients": 0}


def test_presence_names_100_users_unless_told_otherwise(stage: Stage, ann: Member):
    for number in range(120):
        stage.member(f"user{number}").say("join", channel="c")
    assert len(ann.ask("presence", channel="c")["users"]) == 100
    assert len(ann.ask("presence", channel="c", limit=1_000)["users"]) == 120
    assert ann.ask("presence", channel="c")["clients"] == 120
    assert ann.ask("presence", channel="c", limit=1_001)["code"] == 107


@pytest.mark.parametrize("is_there", [False, True])
def test_presence_is_108_where_the_channel_has_none(is_there: bool):
    options = OptionsByPattern({"big:*": ChannelOptions(presence=False), "quiet": ChannelOptions()})
    stage = Stage(options=options)
    ann = stage.member("ann")
    if is_there:
        ann.ask("join", channel="big:1")
        assert stage.hub.channels["big:1"].presence is None
    assert without_text(ann.ask("presence", channel="big:1")) == error(108, "not_available")
    assert ann.ask("presence", channel="quiet")["type"] == "ok"
    stage.close()


def test_a_channel_that_announces_keeps_its_users_to_itself_without_presence():
    options = OptionsByPattern({"c": ChannelOptions(presence=False, announce="users", announce_delay=0)})
    stage = Stage(options=options)
    ann, bob = stage.member("ann"), stage.member("bob")
    ann.ask("join", channel="c")
    bob.ask("join", channel="c")
    assert ann.heard() == [{"type": "joined", "channel": "c", "user": "bob"}]
    assert ann.ask("presence", channel="c")["code"] == 108
    stage.close()


def test_presence_needs_an_id(ann: Member):
    ann.say("presence", channel="c")
    assert [message["code"] for message in ann.heard()] == [107]


# --- permissions and faults ------------------------------------------------------------------------------------------


class ReadOnly:
    """Lets the user root do everything and everybody else listen to public channels."""

    def allows(self, client: Client, action: str, name: str) -> bool:
        return client.user == "root" or (action in ("join", "presence") and name.startswith("public:"))


def test_what_is_not_permitted_is_103_whether_the_channel_exists_or_not():
    stage = Stage(permissions=ReadOnly())
    root, ann = stage.member("root"), stage.member("ann")
    root.ask("join", channel="secret")
    for channel in ("secret", "nothing"):
        refused = [ann.ask(type, channel=channel, data=1) for type in ("join", "publish", "presence")]
        assert [without_text(reply) for reply in refused] == [error(103, "permission_denied")] * 3
    assert ann.ask("direct", to="root", data=1) == ann.ask("direct", to="nobody", data=1)
    assert ann.ask("broadcast", data=1)["code"] == 103
    assert ann.ask("join", channel="public:news")["type"] == "ok"
    assert root.ask("publish", channel="public:news", data=1)["subscribers"] == 1
    stage.close()


def test_one_fault_more_than_20_in_10_s_ends_with_4509_after_its_reply(stage: Stage, ann: Member):
    for _ in range(FAULTS_LIMIT):
        assert ann.close_code("nonsense") is None
    assert ann.close_code("nonsense", id=21) == 4509
    heard = ann.heard()
    assert len(heard) == 21
    assert heard[-1]["id"] == 21


def test_faults_that_come_slowly_never_add_up(stage: Stage, ann: Member):
    for _ in range(10 * FAULTS_LIMIT):
        assert ann.hub.commands.receive(ann.client, b"not json") is None
        stage.now_s += 0.5
    stage.now_s -= 0.1
    assert ann.close_code("nonsense") == 4509  # the 21st within 9.9 s


def test_only_the_faults_of_protocol_md_count(stage: Stage, ann: Member):
    ann.ask("join", channel="c")
    for _ in range(3 * FAULTS_LIMIT):
        assert ann.ask("join", channel="c")["code"] == 105
        assert ann.ask("history", channel="c")["code"] == 108
        assert ann.ask("direct", to="nobody", data=0)["code"] == 120
