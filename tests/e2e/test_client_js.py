"""examples/client.js in Node, against a real node. Skipped where Node 20 or newer is missing."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import starlight
from starlight.close_codes import reconnect_policy
from starlight.errors import CloseConnection
from tests.support.fakes import eventually
from tests.support.scripted_server import scripted_server
from tests.support.tokens import SECRET, token

CLIENT = Path(__file__).parents[2] / "examples" / "client.js"


def _node_command() -> list[str]:
    """How to run a module in Node with a global WebSocket: behind a flag in 20, by default from 22."""
    node = shutil.which("node")
    if node is None:
        return []
    version = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    major = int(version.lstrip("v").split(".")[0])
    if major < 20:
        return []
    return [node, *(["--experimental-websocket"] if major < 22 else []), "--no-warnings"]


NODE = _node_command()
needs_node = pytest.mark.skipif(not NODE, reason="Node.js 20 or newer is not installed")

PRELUDE = """
import { connect } from "./client.mjs";
const [url] = process.argv.slice(2);
const say = (...words) => console.log(JSON.stringify(words));
const next = () => { let done; const promise = new Promise((resolve) => { done = resolve; }); return [promise, done]; };
const refusal = (promise) => promise.then(() => say("no refusal"), (error) => say(error.name, error.code ?? null));
"""


async def run_js(tmp_path: Path, url: str, script: str, *words: str) -> list[list[Any]]:
    """Run a script with the client beside it, and words for its command line; returns what it said."""
    shutil.copy(CLIENT, tmp_path / "client.mjs")
    (tmp_path / "script.mjs").write_text(PRELUDE + script)
    process = await asyncio.create_subprocess_exec(
        *NODE,
        str(tmp_path / "script.mjs"),
        url,
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    return [json.loads(line) for line in out.decode().splitlines()]


def application() -> starlight.Starlight:
    app = starlight.Starlight(port=0, drain_timeout_s=2)

    @app.on("double")
    def double(client: Any, number: int) -> int:
        return number * 2

    @app.on("end me")
    def end(client: Any, code: int) -> None:
        raise CloseConnection(code)

    return app


@needs_node
@pytest.mark.parametrize("lines", ["true", "false"])
async def test_every_kind_of_message(tmp_path: Path, lines: str) -> None:
    script = """
    const messages = [];
    const client = await connect(url, { user: "ada", lines: LINES, onMessage: (message) => messages.push(message) });
    say("welcome", client.welcome.user);
    const [got, done] = next();
    const seen = [];
    await client.join("news", ({ from, data }) => { seen.push(data); if (seen.length === 100) done(from); });
    await Promise.all(Array.from({ length: 100 }, (_, number) => client.publish("news", number)));
    say(await got, seen.every((data, number) => data === number));
    say((await client.direct("ada", { deep: [1] })).clients, (await client.broadcast("b")).clients);
    say(messages.map(({ type, from, data }) => [type, from, data]));
    say(await client.request("double", 21), (await client.presence("news")).users, (await client.ping()).type);
    await refusal(client.direct("nobody", 1));
    const raw = new WebSocket(url);
    raw.onopen = () => {
      raw.send('{"type":"login","user":"bob"}');
      raw.send('{"type":"publish","channel":"news","data":[1,\\n2],"id":1}');
    };
    await new Promise((done) => { raw.onmessage = ({ data }) => JSON.parse(data).type === "ok" && done(); });
    await client.ping();
    say(seen.at(-1));
    raw.close();
    await client.leave("news");
    await client.publish("news", "unheard");
    say(seen.length);
    client.close();
    await refusal(client.publish("news", 1));
    """
    async with application().serve() as node:
        said = await run_js(tmp_path, node.url, script.replace("LINES", lines))
    assert said == [
        ["welcome", "ada"],
        ["ada", True],
        [1, 1],
        [[["direct", "ada", {"deep": [1]}], ["broadcast", "ada", "b"]]],
        [42, ["ada"], "pong"],
        ["not_connected", 120],
        [[1, 2]],
        [101],
        ["ConnectionLost", 1000],
    ]


@needs_node
async def test_comes_back_by_close_code_and_joins_again(tmp_path: Path) -> None:
    script = """
    const states = [];
    const client = await connect(url, {
      user: "ada", backoffMs: 10, onState: (state, detail) => states.push([state, detail?.code ?? null]),
    });
    for (const code of [4011, 4008]) {
      const [got, done] = next();
      await client.join("news" + code, ({ data }) => done(data));
      await refusal(client.request("end me", code));
      await client.publish("news" + code, "after " + code); // waits for the next connection
      say(await got);
    }
    await refusal(client.request("end me", 4509));
    await refusal(client.ping());
    say(...states);
    """
    async with application().serve() as node:
        said = await run_js(tmp_path, node.url, script)
    assert said == [
        ["ConnectionLost", 4011],
        ["after 4011"],
        ["ConnectionLost", 4008],
        ["after 4008"],
        ["ConnectionLost", 4509],
        ["ConnectionLost", 4509],
        [
            ["connected", None],
            ["reconnecting", 4011],
            ["connected", None],
            ["reconnecting", 4008],
            ["connected", None],
            ["closed", 4509],
        ],
    ]


@needs_node
async def test_the_first_connection_fails_at_once(tmp_path: Path) -> None:
    async with scripted_server() as server:
        server.close_logins_with = 1013  # a code that reconnects, later on
        said = await run_js(tmp_path, server.url, 'await refusal(connect(url, { user: "ada" }));')
        assert (said, server.opened) == ([["ConnectionLost", 1013]], 1)


@needs_node
async def test_a_token_function_is_asked_at_each_login(tmp_path: Path) -> None:
    script = """
    let number = 0;
    const [lost, done] = next();
    const client = await connect(url, {
      token: async () => "token " + ++number, backoffMs: 10, onState: (state) => state === "reconnecting" && done(),
    });
    say("ready");
    await lost;
    await client.ping();
    client.close();
    """
    async with scripted_server() as server:
        running = asyncio.create_task(run_js(tmp_path, server.url, script))
        await eventually(lambda: server.seen("login"), 20)
        await server.close_all(4014)
        await running
        assert [login["token"] for login in server.seen("login")] == ["token 1", "token 2"]


@needs_node
async def test_renews_its_login_and_comes_back_with_the_session(tmp_path: Path) -> None:
    script = """
    let number = 0;
    const states = [], tokens = process.argv.slice(3);
    const [back, done] = next();
    const client = await connect(url, {
      token: () => tokens[number++], backoffMs: 10,
      onState: (state, detail) => { states.push([state, detail?.code ?? null]); if (states.length === 3) done(); },
    });
    const { expires } = client.welcome;
    while (number < 5) await new Promise((wake) => setTimeout(wake, 50)); // `expiring` comes at once, and again
    await client.ping();
    await refusal(client.request("end me", 4011));
    await back;
    say(number, client.welcome.user, client.welcome.expires > expires, ...states);
    await refusal(client.refresh("nonsense"));
    client.close();
    """
    app = application()
    resumed = []
    app.on_login(lambda client, login: resumed.append(client.is_resumed))
    tokens = [token("ada", iss=None, aud=None, jti=f"t{number}") for number in range(50)]
    async with app.serve(auth="jwt", jwt_secret=SECRET, session_ttl_s=4) as node:
        said = await run_js(tmp_path, node.url, script, *tokens)
    # the states in between may be followed by a renewal or two more, which is not to be counted
    assert said[0] == ["ConnectionLost", 4011]
    assert said[1][0] >= 5
    assert said[1][1:] == ["ada", True, ["connected", None], ["reconnecting", 4011], ["connected", None]]
    assert said[2] == ["unauthorized", 101]
    assert resumed == [False, True]


@needs_node
async def test_a_session_that_is_refused_gives_way_to_a_token(tmp_path: Path) -> None:
    script = """
    let number = 0;
    const client = await connect(url, { token: () => "token " + ++number, backoffMs: 10 });
    say("ready");
    while (number < 2) await new Promise((wake) => setTimeout(wake, 20));
    await client.ping();
    client.close();
    """
    async with scripted_server() as server:
        server.session = "a session"
        running = asyncio.create_task(run_js(tmp_path, server.url, script))
        await eventually(lambda: server.seen("login"), 20)
        server.refuse_tokens.add("a session")
        await server.close_all(4011)
        await running
        assert [login["token"] for login in server.seen("login")] == ["token 1", "a session", "token 2"]


def test_it_needs_no_build_and_its_lines_stay_short() -> None:
    lines = CLIENT.read_text().splitlines()
    assert "import " not in "\n".join(line for line in lines if not line.startswith("//"))
    assert max(map(len, lines)) <= 120


@needs_node
async def test_its_rule_for_close_codes_is_the_tables(tmp_path: Path) -> None:
    script = """
    import { policy } from "./client.mjs";
    const codes = JSON.parse(process.argv[3]);
    say(...codes.map(policy));
    """
    codes = [*range(990, 1020), 2000, 3000, *range(3990, 5010)]
    [said] = await run_js(tmp_path, "unused", script, json.dumps(codes))
    assert said == [reconnect_policy(code) for code in codes]
