"""examples/client.js in Node against servers that say anything, slow tokens, dead lines; as test_client_hostile.py."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import starlight
from tests.client.test_hostile import DEEP, ODD
from tests.e2e.test_client_js import application, needs_node, run_js
from tests.support import scripted_server as support_server
from tests.support.fakes import eventually
from tests.support.scripted_server import ScriptedServer
from tests.support.tokens import SECRET, token

pytestmark = needs_node

MORE = """
const until = async (condition) => {
  for (let look = 0; look < 2000 && !condition(); look++) await new Promise((wake) => setTimeout(wake, 10));
  if (!condition()) throw new Error("it never came true: " + condition);
};
const states = [];
const onState = (state, detail) => states.push([state, detail?.code ?? null, detail?.delayMs ?? null]);
const seen = (state, code = null) => states.some(([one, its]) => one === state && its === code);
const tellReady = (client) => client.request("ready").catch(() => {}); // what happens next is up to the test
const fast = { backoffMs: 10, backoffMaxMs: 50, onState };
"""


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with support_server.scripted_server() as running:
        yield running


async def play(tmp_path: Path, url: str, script: str, *words: str) -> list[list[Any]]:
    return await run_js(tmp_path, url, MORE + script, *words)


async def test_nothing_a_server_says_ends_the_client(tmp_path: Path, server: ScriptedServer) -> None:
    script = """
    const messages = [];
    const onMessage = (message) => { messages.push(message); if (message.data === "throw") throw new Error("mine"); };
    const client = await connect(url, { user: "ada", onMessage, onState });
    await client.join("news", () => { throw new Error("mine, too"); });
    await client.request("ready");
    await until(() => messages.some(({ data }) => data === "still here"));
    await client.publish("news", 1);
    say(client.unreadableMessages > 5, client.welcome.user, states.length);
    client.close();
    """
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    for message in ODD:
        await server.push_text(message.replace(b"\xff", b"?"))
    await server.push({"type": "server", "data": "throw"})
    await server.push({"type": "server", "data": "still here"})
    assert await running == [[True, "ada", 1]]


@pytest.mark.parametrize(
    "reply",
    [
        b'{"type":"ok","id":%d,"data":nope}',
        b'{"type":"ok","data":nope,"id":%d}',
        b'{"type":"ok","id":%d,"data":' + DEEP,
    ],
)
async def test_a_reply_that_cannot_be_read_fails_its_request_at_once(
    tmp_path: Path, server: ScriptedServer, reply: bytes
) -> None:
    script = """
    const client = await connect(url, { user: "ada", timeoutMs: 25_000 });
    await refusal(client.request("bid"));
    say(client.unreadableMessages);
    client.close();
    """
    server.silent_about.add("bid")
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("bid"), 20)
    await server.push_text(reply.replace(b"%d", str(server.seen("bid")[0]["id"]).encode()))
    assert await running == [["ReplyUnreadable", None], [1]]


@pytest.mark.parametrize(
    ("retry", "most_ms"), [("-1e9", 1), ("1e15", 60_001), ("1" + "0" * 400, 60_001), ('"x"', 1), ("null", 1), ("[]", 1)]
)
async def test_any_retry_is_held_to_a_minute(tmp_path: Path, server: ScriptedServer, retry: str, most_ms: int) -> None:
    script = """
    const client = await connect(url, { user: "ada", onState, backoffMs: 0.1, backoffMaxMs: 0.5 });
    tellReady(client);
    await until(() => states.length > 1);
    say(states[1]);
    client.close();
    """
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    await server.push_text(b'{"type":"bye","code":1012,"reason":"","retry_ms":%b}' % retry.encode())
    for connection in server.connections:
        await connection.close(1012)
    [[(state, code, delay_ms)]] = await running
    assert (state, code) == ("reconnecting", 1012)
    assert most_ms - 1 <= delay_ms <= most_ms


async def test_one_message_over_the_limit_is_refused_here_and_nothing_else_is_lost(tmp_path: Path) -> None:
    script = """
    const client = await connect(url, { user: "ada", onState });
    const [got, done] = next();
    await client.join("news", ({ data }) => done(data));
    await refusal(client.publish("news", "x".repeat(70_000)));
    await refusal(client.publish("news", "é".repeat(33_000))); // fewer characters than bytes
    await refusal(client.publish("news", 1n));
    await client.publish("news", "x".repeat(65_400)).then(({ subscribers }) => say(subscribers));
    say((await got).length, states.length, client.welcome.limits.message_bytes);
    client.close();
    """
    async with application().serve() as node:
        said = await play(tmp_path, node.url, script)
    assert said == [["MessageTooBig", None]] * 2 + [["TypeError", None], [1], [65_400, 1, 65_536]]


async def test_no_socket_is_open_while_a_token_is_fetched(tmp_path: Path) -> None:
    """The node gives a login 0.3 s, the token takes longer, at the first login and when the client comes back."""
    script = """
    const tokens = process.argv.slice(3);
    let number = 0;
    const slow = () => new Promise((done) => setTimeout(() => done(tokens[number++]), 1000));
    const client = await connect(url, { token: slow, ...fast });
    await until(() => number === 2 && states.at(-1)[0] === "connected");
    say(...states.map(([state, code]) => [state, code]));
    client.close();
    """
    app = starlight.Starlight(port=0, drain_timeout_s=2, auth="jwt", jwt_secret=SECRET, login_timeout_s=0.3)
    tokens = [token("ada", iss=None, aud=None, jti=f"t{number}") for number in range(2)]
    async with app.serve() as first:
        running = asyncio.create_task(play(tmp_path, first.url, script, *tokens))
        await eventually(lambda: first.hub.counters()["clients"] == 1, 20)
        port = first.port
        for client in list(first.hub.clients()):
            client.connection.close(4011, None, 10)
    async with app.serve(port=port) as second:  # another run has another key for its sessions
        [said] = await running
        assert second.acceptor.counts.refused[4015] == 0
    assert said[0] == ["connected", None] and said[-1] == ["connected", None]
    assert not [code for _, code in said if code is not None and code >= 4500]


@pytest.mark.parametrize("code", [4015, 4016])
async def test_a_login_timeout_and_the_connection_limit_are_tried_again(
    tmp_path: Path, server: ScriptedServer, code: int
) -> None:
    script = """
    const client = await connect(url, { user: "ada", ...fast });
    const [got, done] = next();
    await client.join("news", ({ data }) => done(data));
    tellReady(client);
    await until(() => seen("reconnecting", Number(process.argv[3])));
    await client.publish("news", "back");
    say(await got);
    client.close();
    """
    running = asyncio.create_task(play(tmp_path, server.url, script, str(code)))
    await eventually(lambda: server.seen("ready"), 20)
    server.close_logins_with = code
    server.drop_all()
    await eventually(lambda: len(server.seen("login")) >= 3, 20)
    server.close_logins_with = None
    assert await running == [["back"]]


async def test_a_token_that_fails_is_asked_for_again(tmp_path: Path, server: ScriptedServer) -> None:
    script = """
    const answers = ["first", () => { throw new Error("away"); }, () => Promise.reject("odd"), 5, undefined, "second"];
    const token = async () => { const one = answers.shift(); return typeof one === "function" ? one() : one; };
    const client = await connect(url, { token, ...fast });
    tellReady(client);
    await until(() => !answers.length && states.at(-1)[0] === "connected");
    say(states.filter(([state]) => state === "reconnecting").length);
    client.close();
    await refusal(connect(url, { token: () => { throw Object.assign(new Error(), { name: "Mine" }); } }));
    """
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    server.drop_all()
    assert await running == [[5], ["Mine", None]]
    assert [command["token"] for command in server.seen("login")] == ["first", "second"]


async def test_a_token_that_fails_behind_a_session_that_is_refused(tmp_path: Path, server: ScriptedServer) -> None:
    script = """
    const answers = ["first", null, null, "second"];
    const client = await connect(url, { token: () => answers.shift(), ...fast });
    tellReady(client);
    await until(() => !answers.length && states.at(-1)[0] === "connected");
    say("back");
    client.close();
    """
    server.session = "a session"
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    server.refuse_tokens.add("a session")
    server.drop_all()
    assert await running == [["back"]]
    assert [command["token"] for command in server.seen("login")] == ["first", "a session", "second"]


async def test_close_is_final_while_a_token_is_fetched(tmp_path: Path, server: ScriptedServer) -> None:
    script = """
    let release, asked = 0;
    const token = () => (++asked === 1 ? "first" : new Promise((done) => { release = done; }));
    const client = await connect(url, { token, ...fast });
    tellReady(client);
    await until(() => release);
    client.close();
    await refusal(client.ping());
    release("late");
    await new Promise((wake) => setTimeout(wake, 500));
    say(...states.map(([state]) => state));
    """
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    server.drop_all()
    assert await running == [["ConnectionLost", 1000], ["connected", "reconnecting", "closed"]]
    assert server.opened == 1


async def test_close_is_final_while_it_waits_and_while_it_connects(tmp_path: Path, server: ScriptedServer) -> None:
    script = """
    const waits = await connect(url, { user: "ada", onState, backoffMs: 1e9, backoffMaxMs: 1e9 });
    tellReady(waits);
    await until(() => states.length > 1);
    waits.close();
    states.length = 0;
    const connects = await connect(url, { user: "bob", ...fast });
    tellReady(connects);
    await until(() => states.length > 1);
    await new Promise((wake) => setTimeout(wake, 300)); // its login is under way, and never answered
    const asking = connects.publish("news", 1);
    connects.close();
    await refusal(asking);
    await new Promise((wake) => setTimeout(wake, 300));
    say(states.at(-1).slice(0, 2), states.filter(([state]) => state === "closed").length);
    await refusal(connect(url, { user: "eve" }));
    """
    running = asyncio.create_task(play(tmp_path, server.url, script))
    for n_ready in (1, 2):
        await eventually(lambda n=n_ready: len(server.seen("ready")) == n, 20)
        if n_ready == 2:
            server.silent_about.add("login")
        server.drop_all()
    await eventually(lambda: len(server.seen("login")) == 4, 20)  # eve's, who shows that the script went on
    server.drop_all()
    said = await running
    assert said[:2] == [["ConnectionLost", 1000], [["closed", 1000], 1]]
    assert [login["user"] for login in server.seen("login")] == ["ada", "bob", "bob", "eve"]


async def test_six_hundred_channels_survive_a_loss_on_a_node_with_rates(tmp_path: Path) -> None:
    script = """
    const client = await connect(url, { user: "ada", ...fast });
    const heard = new Set();
    for (let number = 0; number < 600; number++) {
      await client.join("c" + number, ({ channel }) => heard.add(channel)).catch(() => number--);
      if (number % 50 === 49) await new Promise((wake) => setTimeout(wake, 260));
    }
    await client.request("end me", 4011).catch(() => {});
    await until(() => states.filter(([state]) => state === "connected").length === 2);
    await client.request("tell all");
    await until(() => heard.size === 600);
    say(client.welcome.limits.message_rate, heard.size);
    client.close();
    """
    app = application()

    @app.on("tell all")
    def tell_all(client: Any, data: object) -> int:
        return sum(app.publish(f"c{number}", 1) for number in range(600))

    async with app.serve(message_rate=200, byte_rate_bytes=2**20) as node:
        assert await play(tmp_path, node.url, script) == [[200, 600]]
        assert node.acceptor.counts.closed[4013] == 0


async def test_what_is_refused_when_joining_again_is_told_once_and_a_rate_is_waited_for(
    tmp_path: Path, server: ScriptedServer
) -> None:
    script = """
    const told = [], heard = [];
    const client = await connect(url, { user: "ada", ...fast, onMessage: (message) => told.push(message) });
    for (const name of ["a", "b", "c", "d"]) await client.join(name, ({ channel }) => heard.push(channel));
    tellReady(client);
    await until(() => states.length === 3);
    await until(() => told.length && heard.length === 3);
    say(told.map(({ type, channel, code }) => [type, channel, code]), heard.sort());
    client.close();
    """
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    server.answer_joins_with = [111]
    server.refuse_joins_once = {"b": 103, "c": 111}
    server.drop_all()
    await eventually(lambda: server.joined == {"a", "c", "d"}, 20)
    for name in ("a", "b", "c", "d"):
        await server.push({"type": "publication", "channel": name, "data": 1})
    assert await running == [[[["error", "b", 103]], ["a", "c", "d"]]]


async def test_it_names_the_connection_before_and_hears_how_that_ended(tmp_path: Path, server: ScriptedServer) -> None:
    script = """
    const client = await connect(url, { user: "ada", ...fast });
    say(client.previous);
    tellReady(client);
    await until(() => states.length === 3);
    say(client.previous);
    client.close();
    """
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    server.welcome = {"previous": {"code": 4008, "reason": "slow consumer", "at": 5}}
    server.drop_all()
    assert await running == [[None], [{"code": 4008, "reason": "slow consumer", "at": 5}]]
    assert [login.get("previous") for login in server.seen("login")] == [None, "c1"]


async def test_a_silent_line_is_given_up_without_its_close_and_a_live_one_is_kept(
    tmp_path: Path, server: ScriptedServer
) -> None:
    script = """
    const client = await connect(url, { user: "ada", ...fast });
    await new Promise((wake) => setTimeout(wake, 2500)); // longer than ping and pong: it asks and is answered
    say(states.length);
    tellReady(client);
    await until(() => states.length === 3);
    say((await client.ping()).type, ...states.map(([state, code]) => [state, code]));
    process.exit(0); // the dead line's socket would keep it
    """
    server.welcome = {"ping": 0.5, "pong": 1.5}
    running = asyncio.create_task(play(tmp_path, server.url, script))
    await eventually(lambda: server.seen("ready"), 20)
    swallowed = server.connections
    for connection in swallowed:
        connection.transport.pause_reading()
    expected = [["connected", None], ["reconnecting", 1006], ["connected", None]]
    assert await running == [[1], ["pong", *expected]]
    for connection in swallowed:
        connection.transport.abort()


@pytest.mark.parametrize("event", ["online", "visibilitychange"])
async def test_the_network_or_the_page_that_is_back_ends_the_wait_and_checks_the_line(
    tmp_path: Path, server: ScriptedServer, event: str
) -> None:
    script = """
    const page = new EventTarget(), window = new EventTarget(), event = process.argv[3];
    globalThis.document = Object.assign(page, { visibilityState: "visible" });
    globalThis.addEventListener = window.addEventListener.bind(window);
    globalThis.removeEventListener = window.removeEventListener.bind(window);
    const wake = () => (event === "online" ? window : page).dispatchEvent(new Event(event));
    const client = await connect(url, { user: "ada", onState, backoffMs: 1e9, backoffMaxMs: 1e9 });
    tellReady(client);
    await until(() => states.length === 2);
    document.visibilityState = "hidden";
    page.dispatchEvent(new Event("visibilitychange"));
    await new Promise((wake) => setTimeout(wake, 200));
    say(states.length);
    if (event === "visibilitychange") document.visibilityState = "visible"; // a network may be back for a hidden page
    wake();
    await until(() => states.length === 3);
    client.request("swallow").catch(() => {});
    await new Promise((wake) => setTimeout(wake, 300));
    wake();
    await until(() => states.length === 4); // seen to be dead, long before its ping is due
    wake();
    await until(() => states.length === 5);
    client.close();
    wake();
    await new Promise((wake) => setTimeout(wake, 200));
    say(...states.map(([state]) => state));
    process.exit(0); // the dead line's socket would keep it
    """
    server.welcome = {"ping": 3600, "pong": 0.5}
    running = asyncio.create_task(play(tmp_path, server.url, script, event))
    await eventually(lambda: server.seen("ready"), 20)
    server.drop_all()
    server.silent_about.add("swallow")
    await eventually(lambda: server.seen("swallow"), 20)
    swallowed = server.connections
    for connection in swallowed:
        connection.transport.pause_reading()
    expected = ["connected", "reconnecting", "connected", "reconnecting", "connected", "closed"]
    assert await running == [[2], expected]
    assert server.opened == 3
    for connection in swallowed:
        connection.transport.abort()
