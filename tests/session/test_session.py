"""session.session over a transport in memory: order, deadlines, pausing, closing; every row of the table of phases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from starlight._fanout import Core
from starlight.config.settings import Settings
from starlight.errors import CloseConnection
from starlight.protocols.spoken import SPOKEN
from starlight.session import phases
from starlight.session.session import Session, SessionHost
from tests.support.fakes import CLOSE, PING, PONG, TEXT, eventually, split_frames

LOGIN = b"login"
FRAME_WORK = 256


class FakeTransport:
    """A session's transport and the core's sink: `asked` has what it was asked, `wire` what was written."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.wire = b""
        self.has_eof = True
        self.unsent = False
        self.kernel: tuple[int, int] = (0, 0)
        self.unread = 0
        self.peername: tuple[Any, ...] | None = ("203.0.113.7", 1)
        self.sockname: tuple[Any, ...] | str | None = ("198.51.100.1", 443)

    # the core's sink
    def write(self, data: bytes) -> None:
        self.wire += data

    def get_write_buffer_size(self) -> int:
        return int(self.unsent)

    def is_closing(self) -> bool:
        return False

    # the session's transport
    def pause_reading(self) -> None:
        self.asked.append("pause")

    def stop_reading(self) -> None:
        self.asked.append("stop")

    def resume_reading(self) -> None:
        self.asked.append("resume")

    def discard_input(self) -> None:
        self.asked.append("discard")

    def write_eof(self) -> bool:
        self.asked.append("eof")
        return self.has_eof

    def has_unsent(self) -> bool:
        return self.unsent

    def progress(self) -> tuple[int, int]:
        return self.kernel

    def unread_bytes(self) -> int:
        return self.unread

    def close(self) -> None:
        self.asked.append("close")

    def abort(self, with_reset: bool) -> None:
        self.asked.append("reset" if with_reset else "abort")


class FakeHub:
    """Who says `login` is let in. `slow` and `check` wait until `may_go_on` is set; `handled` is what was handled."""

    def __init__(self) -> None:
        self.handled: list[bytes] = []
        self.disconnected: list[Any] = []
        self.may_go_on = asyncio.Event()
        self.meter: Any = None
        self.charged: list[int] = []
        self.may_frames = True
        self.cancelled: list[str] = []
        self.commands = self

    def login(self, session: Session, message: bytes) -> Awaitable[None] | None:
        if message == b"check":
            return self._later("check", session)
        if message != LOGIN:
            raise CloseConnection(4501)
        session.on_login(self._client())
        return None

    def _client(self) -> Any:
        return SimpleNamespace(user="ann", id="c1", login=SimpleNamespace(meter=self.meter), last_error=None)

    async def _later(self, what: str, session: Session | None = None) -> None:
        try:
            await self.may_go_on.wait()
        except asyncio.CancelledError:
            self.cancelled.append(what)
            raise
        if session is not None:
            session.on_login(self._client())
        else:
            self.handled.append(what.encode())

    def receive(self, client: Any, message: bytes) -> Awaitable[None] | None:
        if message == b"slow":
            return self._later("slow")
        if message == b"fail":
            raise ValueError("a bug of the application's")
        if message == b"end":
            raise CloseConnection(4503)
        self.handled.append(message)
        return None

    def count_bytes(self, client: Any, size_bytes: int) -> None:
        self.charged.append(size_bytes)

    def count_frames(self, client: Any, frames: int) -> bool:
        return self.may_frames

    def disconnect(self, client: Any) -> None:
        self.disconnected.append(client)


class Stage:
    """One session with everything that it touches."""

    def __init__(
        self,
        subprotocol: str = "starlight.v1",
        *,
        echoes: bool = False,
        turn_work: int = 1 << 40,
        **settings: Any,
    ) -> None:
        options: dict[str, Any] = {
            "login_timeout_s": 0.1, "handshake_timeout_s": 0.1, "write_timeout_s": 0.1, "ping_interval_s": 30,
            "pong_timeout_s": 5, **settings,
        }  # fmt: skip
        self.core = Core(outbox_messages=4, write_timeout_ms=100, evict_after_ms=50)
        self.core.bind(asyncio.get_running_loop())
        self.hub = FakeHub()
        self.host = SessionHost(self.core, self.hub, Settings(port=0, **options), echoes=echoes, turn_work=turn_work)
        self.host.start()
        self.subprotocol = subprotocol
        self.session = Session(self.host)
        self.transport = FakeTransport()
        self.session.begin(self.transport)

    def upgrade(self) -> None:
        encoding = SPOKEN.select([self.subprotocol])
        assert encoding is not None
        self.session.on_upgraded(self.core.subscriber(self.session, -1, self.transport, encoding.number), encoding)

    def say(self, *messages: bytes) -> None:
        """As a transport does: each message in a frame, and what handling it raises ends the session."""
        for message in messages:
            try:
                if self.session.take_frame(FRAME_WORK):
                    self.session.on_message(message, True)
            except Exception as error:
                self.session.end_for(error)

    def login(self) -> None:
        self.upgrade()
        self.say(LOGIN)
        assert self.session.phase_name == "open"

    def frames(self) -> list[tuple[int, bytes]]:
        """What was written."""
        self.core.flush()
        return list(split_frames(self.transport.wire))

    def close_code(self) -> int | None:
        closes = [payload for opcode, payload in self.frames() if opcode == CLOSE]
        return int.from_bytes(closes[0][:2], "big") if closes else None

    def end(self) -> None:
        self.session.on_lost()
        self.host.stop()
        assert {name: self.core.counters()[name] for name in ("subscribers", "outbox_bytes", "spans")} == {
            "subscribers": 0, "outbox_bytes": 0, "spans": 0
        }  # fmt: skip
        self.core.unbind()


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., Stage]]:
    stages: list[Stage] = []

    def made(*args: Any, **options: Any) -> Stage:
        stages.append(Stage(*args, **options))
        return stages[-1]

    yield made
    for stage in stages:
        stage.hub.may_go_on.set()
        await asyncio.sleep(0)
        stage.end()


Make = Callable[..., Stage]


# --- the table --------------------------------------------------------------------------------------------------------


def to_login(stage: Stage) -> None:
    stage.upgrade()


def to_refused(stage: Stage) -> None:
    stage.session.on_refused()


def to_leaving(stage: Stage) -> None:
    stage.login()
    stage.say(b"slow")
    stage.session.on_peer_close(1000, None)


def to_leaving_from_login(stage: Stage) -> None:
    stage.upgrade()
    stage.say(b"check")
    stage.session.on_peer_close(1000, None)


def to_closing(stage: Stage) -> None:
    """Its close frame is still to be written."""
    stage.login()
    stage.transport.unsent = True
    stage.core.send(stage.session.subscriber, b"x")
    stage.session.close(4503)


def to_lingering(stage: Stage) -> None:
    stage.login()
    stage.session.close(4503)
    stage.session.on_close_sent()


def to_gone(stage: Stage) -> None:
    stage.login()
    stage.session.on_lost()


WAYS_TO: dict[str, Callable[[Stage], None]] = {
    "handshake": lambda stage: None,
    "refused": to_refused,
    "login": to_login,
    "open": Stage.login,
    "leaving": to_leaving,
    "closing": to_closing,
    "lingering": to_lingering,
    "gone": to_gone,
}


async def is_due(stage: Stage) -> None:
    """Its deadline comes: all timeouts are short, but the ends of some take a second."""
    if stage.session.phase_name == "open":
        await eventually(lambda: PING in dict(stage.frames()), 3)
    elif stage.session.phase_name in ("refused", "closing", "lingering"):
        await eventually(lambda: stage.transport.asked[-1:] in (["abort"], ["reset"]), 3)
    else:
        await asyncio.sleep(0.25)


async def is_logged_in(stage: Stage) -> None:
    if stage.session.phase_name == "leaving":
        stage.hub.may_go_on.set()
        await asyncio.sleep(0.02)
        assert stage.host.counts.logins == 1
    else:
        stage.say(LOGIN)


async def is_handled(stage: Stage) -> None:
    stage.hub.may_go_on.set()
    await asyncio.sleep(0.02)


def door(happens: Callable[[Stage], object]) -> Callable[[Stage], Awaitable[None]]:
    async def opened(stage: Stage) -> None:
        happens(stage)

    return opened


DOORS: dict[str, Callable[[Stage], Awaitable[None]]] = {
    "upgrade": door(Stage.upgrade),
    "refusal": door(lambda stage: stage.session.on_refused()),
    "login": is_logged_in,
    "peer_close": door(lambda stage: stage.session.on_peer_close(1000, "enough")),
    "handled": is_handled,
    "close": door(lambda stage: stage.session.close(4503)),
    "evict": door(lambda stage: stage.session.on_evicted("slow", 1, 1, 1)),
    "close_sent": door(lambda stage: stage.session.on_close_sent()),
    "due": is_due,
    "departure": door(lambda stage: stage.session.on_departed()),
    "lost": door(lambda stage: stage.session.on_lost()),
}

ROWS = [
    (phases.PHASES[row[0]], phases.HAPPENINGS[row[1]], phases.PHASES[row[2]], phases.ACTIONS[row[3]])
    for row in phases.TABLE
]

MOVES_ON = {
    ("login", "peer_close"): "closing",  # nothing waits, so that it is handled at once
    ("open", "peer_close"): "closing",
    ("login", "due"): "closing",  # its action closes
    ("leaving", "login"): "closing",  # nothing is left to handle then
}
"""Where the action of a row brings about the next row at once: the phase in which that ends."""

EFFECTS: dict[str, Callable[[Stage], bool]] = {
    "nothing": lambda stage: True,
    "await_login": lambda stage: stage.session.take_frame(0),
    "await_silence": lambda stage: stage.session.client is not None,
    "await_peer": lambda stage: not stage.transport.asked,
    "judge_login": lambda stage: stage.close_code() == 4015,
    "judge_peer": lambda stage: PING in dict(stage.frames()),
    "finish": lambda stage: stage.close_code() == 1000,
    "answer": lambda stage: stage.close_code() == 1000 and stage.host.counts.left.shown() == {"1000": 1},
    "begin_close": lambda stage: "discard" in stage.transport.asked and stage.session.client is None,
    "say_eof": lambda stage: stage.transport.asked[-1] == "eof",
    "cut_off": lambda stage: stage.transport.asked[-1] in ("abort", "reset"),
    "cut_off_late": lambda stage: stage.transport.asked == ["abort"],
    "forget": lambda stage: stage.session.peername is None,
    "record_loss": lambda stage: stage.host.counts.left.shown() == {"1006": 1} and stage.session.peername is None,
}
"""What can be seen of an action."""


@pytest.mark.parametrize(("start", "happening", "to", "action"), ROWS, ids=lambda text: text)
async def test_every_row_of_the_table(make: Make, start: str, happening: str, to: str, action: str):
    pings = {"ping_interval_s": 0.1} if (start, happening) == ("open", "due") else {}
    stage = make(**pings)
    way = to_leaving_from_login if (start, happening) == ("leaving", "login") else WAYS_TO[start]
    way(stage)
    assert stage.session.phase_name == start
    await DOORS[happening](stage)
    expected = MOVES_ON.get((start, happening), to)
    assert stage.session.phase_name in ((expected, "lingering") if expected == "closing" else (expected,))
    assert EFFECTS[action](stage), (action, stage.transport.asked, stage.frames())


def test_the_table_has_each_row_once_and_every_phase_can_be_reached_and_left():
    assert len({row[:2] for row in ROWS}) == len(ROWS)
    assert {row[0] for row in ROWS} == set(phases.PHASES) - {"gone"}
    assert {row[2] for row in ROWS} == set(phases.PHASES)
    assert {row[1] for row in ROWS} == set(phases.HAPPENINGS)
    assert {row[3] for row in ROWS} == set(phases.ACTIONS)
    assert all((start, "lost") in {row[:2] for row in ROWS} for start in phases.PHASES if start != "gone")


@pytest.mark.parametrize("start", phases.PHASES)
@pytest.mark.parametrize("happening", phases.HAPPENINGS)
def test_what_is_not_in_the_table_raises(start: str, happening: str):
    row = phases.PHASES.index(start), phases.HAPPENINGS.index(happening)
    if (start, happening) in {known[:2] for known in ROWS}:
        to, action = phases.transition(*row)
        assert (start, happening, phases.PHASES[to], phases.ACTIONS[action]) in ROWS
    else:
        with pytest.raises(phases.IllegalTransition, match=f"{happening} in phase {start}"):
            phases.transition(*row)


@pytest.mark.parametrize(
    ("start", "happening"),
    [("handshake", "close_sent"), ("open", "refusal"), ("closing", "peer_close"), ("gone", "refusal")],
)
async def test_a_session_raises_at_an_illegal_transition_and_is_cut_off(make: Make, start: str, happening: str):
    stage = make()
    WAYS_TO[start](stage)
    with pytest.raises(phases.IllegalTransition):
        await DOORS[happening](stage)
    assert stage.session.phase_name == start
    assert stage.transport.asked[-1:] == ([] if start == "gone" else ["abort"])


@pytest.mark.parametrize("start", ["handshake", "refused", "closing", "lingering", "gone"])
async def test_close_does_nothing_where_there_is_nothing_to_close(make: Make, start: str):
    stage = make()
    WAYS_TO[start](stage)
    before = stage.frames()
    stage.session.close(4503)
    stage.session.on_departed()
    assert stage.session.phase_name == start and stage.frames() == before


# --- messages, one after the other ------------------------------------------------------------------------------------


@pytest.mark.parametrize("subprotocol", ["starlight.v1", "starlight.v1.lines"])
async def test_what_comes_behind_an_async_handler_waits_in_order(make: Make, subprotocol: str):
    stage = make(subprotocol)
    stage.login()
    messages = [b"1", b"slow", b"2", b"3"]
    stage.say(*([b"\n".join(messages)] if "lines" in subprotocol else messages), b"4")
    assert stage.hub.handled == [b"1"]
    stage.hub.may_go_on.set()
    await eventually(lambda: len(stage.hub.handled) == 5)
    assert stage.hub.handled == [b"1", b"slow", b"2", b"3", b"4"]
    assert stage.session.messages_in == 6  # the login, too


async def test_reading_stops_when_enough_waits_and_goes_on_when_half_is_handled(make: Make):
    stage = make()
    stage.login()
    stage.say(b"slow", *[b"x"] * 63)
    assert not stage.session.is_paused and stage.transport.asked == []
    stage.say(b"x")
    assert stage.session.is_paused and stage.transport.asked == ["stop"] and not stage.session.may_read()
    stage.hub.may_go_on.set()
    await eventually(lambda: len(stage.hub.handled) == 65)
    await eventually(lambda: not stage.session.is_paused)
    assert "resume" in stage.transport.asked and stage.session.may_read()


async def test_a_large_message_that_waits_stops_reading_as_well(make: Make):
    stage = make()
    stage.login()
    stage.say(b"slow", b"x" * 256 * 1024)
    assert stage.session.is_paused


async def test_more_work_than_a_share_waits_for_the_next_turn(make: Make):
    """A message in its frame is 2,304, and more if it takes long."""
    stage = make(turn_work=100_000)
    stage.login()
    stage.say(*[b"x"] * 100)
    assert 0 < len(stage.hub.handled) < 60 and stage.transport.asked[0] == "pause"
    await eventually(lambda: len(stage.hub.handled) == 100)
    assert stage.transport.asked[-1] == "resume" and stage.session.may_read()


async def test_a_fault_behind_what_waits_for_a_turn_ends_it_after_that(make: Make):
    stage = make(turn_work=100_000)
    stage.login()
    stage.say(*[b"x"] * 60)
    stage.session.fail(1007)
    assert stage.session.is_open and not stage.session.take_frame(0)
    await eventually(lambda: not stage.session.is_open)
    assert len(stage.hub.handled) == 60 and stage.close_code() == 1007


async def test_a_bug_of_a_handler_is_1011_and_a_close_of_its_own_is_its_code(
    make: Make, caplog: pytest.LogCaptureFixture
):
    for message, code in ((b"fail", 1011), (b"end", 4503)):
        stage = make()
        stage.login()
        stage.say(message, b"behind")
        assert stage.close_code() == code and stage.hub.handled == []
    logged = [record.message for record in caplog.records if record.name == "starlight.session.session"]
    assert logged == ["a message could not be handled"]


async def test_an_echo_has_no_login_and_sends_back_what_came(make: Make):
    stage = make(echoes=True)
    stage.upgrade()
    assert stage.session.phase_name == "open"
    stage.session.on_message(b"text", True)
    stage.session.on_message(b"\xff", False)
    assert stage.frames() == [(TEXT, b"text"), (2, b"\xff")]


# --- the login --------------------------------------------------------------------------------------------------------


async def test_a_refused_login_is_told_with_its_code(make: Make):
    stage = make()
    stage.upgrade()
    stage.say(b"hello", LOGIN)
    assert stage.close_code() == 4501 and stage.host.counts.refused.shown() == {"4501": 1}
    assert json.loads(stage.frames()[0][1])["type"] == "bye"


async def test_a_login_that_is_checked_has_its_time_again(make: Make):
    stage = make()
    stage.upgrade()
    stage.say(b"check")
    await asyncio.sleep(0.35)
    assert stage.session.phase_name == "login"
    stage.hub.may_go_on.set()
    await eventually(lambda: stage.session.phase_name == "open")


async def test_the_check_of_a_login_is_cancelled_when_the_peer_goes(make: Make):
    stage = make()
    stage.upgrade()
    stage.say(b"check")
    await asyncio.sleep(0)
    stage.session.on_lost()
    await eventually(lambda: stage.hub.cancelled == ["check"])


async def test_a_client_that_is_let_in_too_late_is_out_of_the_hub_again(make: Make):
    stage = make()
    stage.upgrade()
    stage.say(b"check")
    await asyncio.sleep(0)
    stage.hub.may_go_on.set()
    await asyncio.sleep(0)  # the check is done, and its task goes on in the next turn
    stage.session.close(1001)
    await asyncio.sleep(0.05)
    assert stage.session.client is None
    assert len(stage.hub.disconnected) + len(stage.hub.cancelled) == 1


async def test_a_stranger_may_send_only_so_much(make: Make):
    stage = make()
    stage.upgrade()
    assert stage.session.message_limit() == 16 * 1024
    stage.session.after_read(24 * 1024)
    assert stage.session.is_open
    stage.session.after_read(1)
    assert stage.close_code() == 1009


async def test_what_a_stranger_sends_while_it_is_checked_waits(make: Make):
    stage = make()
    stage.upgrade()
    stage.say(b"check")
    stage.session.after_read(24 * 1024 + 1)
    assert stage.session.is_open and stage.transport.asked == ["stop"]


# --- signs of life ----------------------------------------------------------------------------------------------------


async def test_without_a_pong_it_is_4012_and_a_pong_keeps_it(make: Make):
    silent, lively = (make(ping_interval_s=0.1, pong_timeout_s=0.1) for _ in range(2))
    silent.login()
    lively.login()
    for _ in range(4):
        lively.transport.wire = b""
        await eventually(lambda: PING in dict(lively.frames()), 3)
        lively.session.on_pong()
    assert lively.session.is_open and silent.close_code() == 4012
    assert lively.host.counts.unsolicited_pongs == 0
    lively.session.on_pong()
    assert lively.host.counts.unsolicited_pongs == 1


async def test_one_that_is_not_read_is_asked_of_the_kernel(make: Make):
    """Bytes received since the ping are a sign of life; nothing received and nothing acknowledged is silence."""
    lively, dead = (make(ping_interval_s=0.1, pong_timeout_s=0.1) for _ in range(2))
    for stage in (lively, dead):
        stage.login()
        stage.say(b"slow", *[b"x"] * 64)
        assert stage.session.is_paused

    async def go_on() -> None:
        received = 0
        while True:
            received += 1
            lively.transport.kernel = (received, received)
            await asyncio.sleep(0.01)

    task = asyncio.create_task(go_on())
    await eventually(lambda: not dead.session.is_open)
    await asyncio.sleep(0.3)
    task.cancel()
    assert lively.session.is_open and dead.close_code() == 4012


async def test_doubt_has_its_limit(make: Make):
    """Its kernel has the ping, and what we have not read may be its pong: for three pong timeouts, no longer."""
    stage = make(ping_interval_s=0.1, pong_timeout_s=0.1)
    stage.login()
    stage.say(b"slow", *[b"x"] * 64)
    stage.transport.unread = 1
    stage.transport.progress = iter([(0, number) for number in range(1_000)]).__next__  # type: ignore[method-assign]
    await eventually(lambda: not stage.session.is_open)
    assert sum(opcode == PING for opcode, _ in stage.frames()) == 4


async def test_a_probe_pings_once_and_says_how_long_the_peer_is_silent(make: Make):
    stage = make()
    stage.login()
    assert stage.session.silent_ms == 0
    stage.session.probe()
    stage.session.probe()
    await asyncio.sleep(0.03)
    assert stage.session.silent_ms >= 20
    assert [opcode for opcode, _ in stage.frames()].count(PING) == 1
    stage.session.give_way()
    assert stage.close_code() == 4012


async def test_a_ping_of_the_peers_is_answered(make: Make):
    stage = make()
    stage.login()
    stage.session.on_ping(b"life?", 5)
    await asyncio.sleep(0)
    assert (PONG, b"life?") in stage.frames()


# --- metering ---------------------------------------------------------------------------------------------------------


async def test_one_with_a_meter_is_charged_its_bytes_and_frames(make: Make):
    stage = make()
    stage.hub.meter = object()
    stage.upgrade()
    stage.session.on_read(10)  # a stranger has no meter
    stage.say(LOGIN)
    stage.session.on_read(20)
    assert stage.hub.charged == [20] and stage.host.bytes_in == 30
    stage.hub.may_frames = False
    stage.session.on_ping(b"", 0)
    stage.session.on_pong()
    await asyncio.sleep(0)
    assert stage.frames() == [] and stage.host.counts.unsolicited_pongs == 0


async def test_one_that_is_throttled_is_not_handled_meanwhile(make: Make):
    stage = make()
    stage.login()
    stage.session.pause_reading(0.1)
    stage.say(b"x")
    assert stage.session.is_paused and stage.transport.asked == ["stop"] and stage.hub.handled == []
    await eventually(lambda: stage.hub.handled == [b"x"])
    assert not stage.session.is_paused and stage.transport.asked[-1] == "resume"


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_a_close_is_behind_what_was_sent_then_eof_and_a_second_for_the_peer(make: Make):
    stage = make()
    stage.login()
    stage.core.send(stage.session.subscriber, b'"last"')
    stage.session.close(4503)
    assert len(stage.hub.disconnected) == 1
    await eventually(lambda: stage.session.phase_name == "lingering")
    assert [opcode for opcode, _ in stage.frames()] == [TEXT, TEXT, CLOSE]
    assert stage.transport.asked == ["discard", "eof"]
    await asyncio.sleep(0.3)
    assert stage.transport.asked == ["discard", "eof"]  # longer than the write timeout
    await eventually(lambda: stage.transport.asked[-1] == "abort", 3)


async def test_what_can_not_be_written_is_reset_after_the_write_timeout(make: Make):
    stage = make()
    stage.login()
    stage.transport.unsent = True
    stage.core.send(stage.session.subscriber, b"x" * 1_000)
    stage.session.close(4503)
    await eventually(lambda: "reset" in stage.transport.asked, 3)


async def test_where_there_is_no_eof_the_peers_close_ends_it(make: Make):
    for is_answered_first in (True, False):
        stage = make()
        stage.transport.has_eof = False
        stage.login()
        stage.session.close(4503)
        if is_answered_first:
            stage.session.on_close_answered()
        await eventually(lambda at=stage: at.session.phase_name == "lingering")  # type: ignore[misc]
        if not is_answered_first:
            assert "close" not in stage.transport.asked
            stage.session.on_close_answered()
        assert stage.transport.asked[-1] == "close"


async def test_an_eof_of_the_peers_keeps_it_open_as_long_as_something_is_left_to_write(make: Make):
    stage = make()
    stage.login()
    stage.session.close(4503)
    assert stage.session.on_eof()
    await eventually(lambda: stage.session.phase_name == "lingering")
    assert stage.transport.asked[-1] == "close" and not stage.session.on_eof()


async def test_the_linger_begins_when_the_transport_has_given_all_away(make: Make):
    stage = make()
    stage.login()
    stage.session.close(4503)
    stage.core.flush()
    stage.transport.unsent = True
    await eventually(lambda: stage.session.phase_name == "lingering")
    stage.transport.unsent = False
    stage.session.on_all_written()
    await asyncio.sleep(0.3)
    assert stage.transport.asked[-1] == "eof"  # it has a second now


async def test_a_peer_that_closes_gets_its_answer_behind_its_handler_or_after_the_write_timeout(make: Make):
    quick, slow = make(), make()
    for stage in (quick, slow):
        stage.login()
        stage.say(b"slow", b"1")
        stage.session.on_peer_close(1000, "done")
        assert stage.session.phase_name == "leaving" and stage.session.silent_ms > 1_000_000
    quick.hub.may_go_on.set()
    await eventually(lambda: quick.close_code() == 1000)
    assert quick.hub.handled == [b"slow", b"1"]
    await eventually(lambda: slow.close_code() == 1000)
    assert slow.hub.handled == []


async def test_a_slow_consumer_is_evicted_with_a_reset(make: Make):
    stage = make(write_timeout_s=5)
    stage.login()
    stage.transport.unsent = True
    for _ in range(10):
        stage.core.send(stage.session.subscriber, b"x")
    await eventually(lambda: not stage.session.is_open, 3)
    assert sum(stage.host.counts.closed.shown().values()) == 1
    await eventually(lambda: stage.transport.asked[-1] == "reset", 3)


async def test_the_end_of_a_node_cuts_all_off(make: Make):
    stages = [make() for _ in range(4)]
    for stage, way in zip(stages, ("handshake", "login", "open", "lingering"), strict=True):
        WAYS_TO[way](stage)
        stage.host.abort_handshakes()
        assert ("abort" in stage.transport.asked) == (way == "handshake")
        stage.host.stop()
        assert "abort" in stage.transport.asked


async def test_a_handler_whose_client_has_gone_goes_on_and_they_are_bounded(make: Make):
    stage = make(max_connections=1)
    sessions = [stage.session, Session(stage.host)]
    sessions[1].begin(FakeTransport())
    for session in sessions:
        transport = FakeTransport()
        encoding = SPOKEN.encodings[0]
        session.on_upgraded(stage.core.subscriber(session, -1, transport, encoding.number), encoding)
        session.on_message(LOGIN, True)
        session.on_message(b"slow", True)
    await asyncio.sleep(0)
    for session in sessions:
        session.on_lost()
    await eventually(lambda: stage.hub.cancelled == ["slow"])
    assert stage.host.counts.handlers_cancelled == 1
    stage.hub.may_go_on.set()
    await eventually(lambda: stage.hub.handled == [b"slow"])
