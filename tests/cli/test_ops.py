"""`starlight conns`, `why`, `kick` and `drain` against nodes that run."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

import starlight
from starlight.cli import main as cli
from starlight.errors import ClientError
from tests.support.internal import KEY, serving
from tests.support.raw_client import RawClient

HOSTILE = "eve\u202e<b>[red]"


class Terminal:
    """Runs commands in this process, in a thread: the test's loop goes on."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    async def run(self, *words: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(cli.main, words)
        out, err = self._capsys.readouterr()
        assert KEY not in out + err
        assert "Traceback" not in err
        return code, out, err.removeprefix("starlight: ").rstrip("\n")


@pytest.fixture
def terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name in ("STARLIGHT_NODE", "STARLIGHT_INTERNAL_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal(capsys)


def nobody_listens() -> str:
    """A URL where nobody is."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


async def test_conns(terminal: Terminal) -> None:
    async with serving() as node, node.client("ada") as ada, node.client("bob") as bob, node.client("bob"):
        await ada.publish("news", 1)
        async with bob.join("news"):
            code, out, err = await terminal.run("conns", "--node", node.internal_url, "--sort", "messages_in")
            assert (code, err) == (0, "")
            heading, *lines = out.splitlines()
            assert heading.split()[:5] == ["ID", "USER", "ADDRESS", "CONNECTED", "CHANNELS"]
            assert sorted(line.split()[1] for line in lines) == ["ada", "bob", "bob"]
            code, out, _ = await terminal.run("conns", "--node", node.internal_url, "--user", "bob", "--json")
            rows = [json.loads(line) for line in out.splitlines()]
            assert [row["user"] for row in rows] == ["bob", "bob"]
            assert sorted(row["channels"] for row in rows) == [0, 1]
            assert all(row["address"].startswith("127.0.0.1:") for row in rows)
            code, out, err = await terminal.run("conns", "--node", node.internal_url, "--limit", "1")
            assert (code, len(out.splitlines()), err) == (0, 2, "1 of 3 connections")


async def test_conns_of_several_nodes(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as one, serving() as other, one.client("ada"), other.client("bob"):
        monkeypatch.setenv("STARLIGHT_NODE", f"{one.internal_url} {other.internal_url}")
        code, out, _ = await terminal.run("conns", "--sort", "connected", "--json")
        rows = [json.loads(line) for line in out.splitlines()]
        assert (code, {row["user"] for row in rows}) == (0, {"ada", "bob"})
        ages_s = [row["connected_s"] for row in rows]  # the nodes are asked one after another: who is older is no rule
        assert ages_s == sorted(ages_s, reverse=True)
        assert len({row["node"] for row in rows}) == 2
        assert "NODE" in (await terminal.run("conns"))[1]
        gone = nobody_listens()
        code, out, err = await terminal.run("conns", "--node", gone, "--node", one.internal_url)
        assert (code, len(out.splitlines()), err) == (2, 2, f"{gone}: connection refused")


async def test_nothing_of_a_client_is_unescaped(terminal: Terminal) -> None:
    async with serving() as node, node.client(HOSTILE):
        for words in ((), ("--json",)):
            _, out, _ = await terminal.run("conns", "--node", node.internal_url, *words)
            assert "\\u202e<b>[red]" in out
            assert out.replace("\n", "").isprintable()


async def test_kick(terminal: Terminal, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    async with serving(key_file) as node, AsyncExitStack() as stack:
        words = ("--node", node.internal_url, "--key-file", str(key_file))
        first, second = [await stack.enter_async_context(node.client("eve", reconnect=False)) for _ in range(2)]
        stays = await stack.enter_async_context(node.client("ada"))
        assert await terminal.run("kick", "eve", *words) == (0, "disconnected 2 clients of eve\n", "")
        for client in (first, second):
            with pytest.raises(ClientError) as ended:
                async with asyncio.timeout(10):
                    while True:
                        await client.publish("news", 1)
                        await asyncio.sleep(0.01)
            assert getattr(ended.value, "code", None) == 4503
        assert await stays.publish("news", 1) is not None
        assert await terminal.run("kick", "eve", *words) == (1, "disconnected 0 clients of eve\n", "")
        assert await terminal.run("kick", "ada", "--code", "4011", *words) == (0, "disconnected 1 client of ada\n", "")
        code, _, err = await terminal.run("kick", "ada", "--code", "1006", *words)
        assert (code, "4" in err) == (1, True)  # no code that may be sent: the node refuses it


async def test_why(terminal: Terminal, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    async with serving(key_file, 0, "--message-rate", "5") as node:
        words = ("--node", node.internal_url, "--key-file", str(key_file))
        assert await terminal.run("why", "ada", *words) == (1, "", "no end of ada is remembered")
        async with node.client("ada", reconnect=False), node.client(HOSTILE, reconnect=False):
            reason = "see your mail"
            assert (await terminal.run("kick", "ada", *words, "--reason", reason))[:2] == (
                0,
                "disconnected 1 client of ada\n",
            )
            assert (await terminal.run("kick", HOSTILE, *words))[0] == 0
            code, out, err = await terminal.run("why", "ada", *words)
            assert (code, err) == (0, "")
            first, *rest = out.splitlines()
            assert re.fullmatch(
                r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ada at 127\.0\.0\.1:\d+: 4503 disconnected "
                r'"see your mail", the client stays away',
                first,
            )
            asked = rf"by \S+, over the API from 127\.0\.0\.1:\d+ with the key {key_file.name}"
            assert re.fullmatch(rf"    an operator disconnected it \({asked}\)", rest[0])
            assert rest[1].startswith("    connected for ")
            code, out, err = await terminal.run("why", *words, "--json", "--since", "5m", "--code", "4503")
            rows = [json.loads(line) for line in out.splitlines()]
            assert [row["user"] for row in rows] == [HOSTILE, "ada"]
            assert rows[1]["reason"] == reason and rows[1]["cause"] == "operator" and rows[1]["node"]
            code, out, err = await terminal.run("why", *words, "--limit", "1")
            assert (code, err) == (0, "1 of 2 ends")
            assert '"eve\\u202e<b>[red]"' in out
            assert out.replace("\n", "").isprintable()
            assert (await terminal.run("why", *words, "--code", "4008"))[0] == 1


async def test_why_names_the_setting_and_what_was_unsent(terminal: Terminal, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    limits = ("--outbox-bytes", "64KiB", "--send-buffer", "4KiB", "--evict-after", "20ms")
    async with serving(key_file, 0, *limits) as node, node.client("pub") as publisher:
        words = ("--node", node.internal_url, "--key-file", str(key_file))
        slow = await RawClient.login(
            int(node.url.rpartition(":")[2].partition("/")[0]), "slow", receive_buffer_bytes=4_096
        )
        await slow.ask("join", channel="news")
        for _ in range(300):
            if await publisher.publish("news", "x" * 10_000) == 0:
                break
            await asyncio.sleep(0.005)
        code, out, _ = await terminal.run("why", "slow", *words)
        assert code == 0
        assert "4008 slow consumer, the client comes back" in out
        assert re.search(r"    unsent: \d+ messages, \S+KiB, the oldest \S+ old\n", out)
        assert "outbox_bytes" in out and "evict_after" in out
        slow.close()


ENDED = b'{"node":"n","now":1,"total":1,"ends":[{"at":%b,"code":4008,"user":"eve"}]}'


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (b"Content-Length: %d\r\n\r\n%b" % (len(ENDED % b"1e300"), ENDED % b"1e300"), 0, "-  eve at"),
        (b"Content-Length: %d\r\n\r\n%b" % (len(ENDED % b"-1e18"), ENDED % b"-1e18"), 0, "-  eve at"),
        (b"Transfer-Encoding: chunked\r\n\r\n-5\r\n", 2, "the answer is not HTTP"),
    ],
)
async def test_an_odd_node_ends_in_no_traceback(
    terminal: Terminal, tmp_path: Path, answer: bytes, code: int, says: str
) -> None:
    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + answer)
        await writer.drain()
        writer.close()

    (tmp_path / "key").write_text(KEY)
    async with await asyncio.start_server(odd, "127.0.0.1", 0) as server:
        node = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        told = await terminal.run("why", "--node", node, "--key-file", str(tmp_path / "key"))
        assert told[0] == code
        assert says in told[1] + told[2]


async def test_a_name_that_no_host_can_have(terminal: Terminal) -> None:
    node = f"http://{'a' * 64}.example"
    assert await terminal.run("conns", "--node", node) == (2, "", f"{node}: no name of a host")
    code, out, err = await terminal.run("sub", "news", "--url", f"ws://{'a' * 64}.example/ws")
    assert (code, out) == (2, "") and err.endswith("no name of a host")


async def test_a_refused_login_is_found_without_a_user(terminal: Terminal, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    async with serving(key_file) as node:
        raw = await RawClient.upgraded(int(node.url.rpartition(":")[2].partition("/")[0]))
        await raw.say("publish", channel="c", data=1)
        assert await raw.close_code() == 4501
        code, out, _ = await terminal.run("why", "--node", node.internal_url, "--key-file", str(key_file))
        assert code == 0
        assert "- at 127.0.0.1:" in out
        assert "the login was refused (the first message is not a login)" in out


async def test_what_changes_things_needs_the_key(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file, other_key = tmp_path / "key", tmp_path / "other"
    other_key.write_text("x" * 40)
    async with serving(key_file) as node, node.client("ada"):
        for command in (("kick", "ada"), ("drain",), ("why", "ada")):
            code, out, err = await terminal.run(*command, "--node", node.internal_url)
            assert (code, out) == (1, "")
            assert "401 the key is missing" in err
            assert err.endswith("--key-file names the file with the key")
            code, out, err = await terminal.run(*command, "--node", node.internal_url, "--key-file", str(other_key))
            assert (code, out) == (1, "")
            assert "the key is wrong" in err and str(other_key) in err
        monkeypatch.setenv("STARLIGHT_INTERNAL_KEY_FILE", str(key_file))
        assert (await terminal.run("kick", "ada", "--node", node.internal_url))[0] == 0


async def test_drain(terminal: Terminal, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    async with serving(key_file) as node, node.client("ada", reconnect=False):
        words = ("--node", node.internal_url, "--key-file", str(key_file))
        code, out, err = await terminal.run("drain", *words, "--wait", "20s")
        assert (code, out, err) == (0, f"{node.internal_url} drains\n", "")
        async with asyncio.timeout(20):
            assert await node.process.wait() == 0
        code, out, err = await terminal.run("drain", *words)
        assert (code, out, err) == (2, "", f"{node.internal_url}: connection refused")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("conns", "--sort", "name"), "--sort name: expected outbox, oldest, messages_in, connected"),
        (("conns", "--limit", "0"), "--limit 0: expected a whole number from 1 to 1000"),
        (("conns", "--limit", "1001"), "--limit 1001: expected a whole number from 1 to 1000"),
        (("conns", "--limit", "100000000"), "--limit 100000000: expected a whole number from 1 to 1000"),
        (("conns", "--user", "\udcff"), "USER: expected UTF-8"),
        (("why", "ada", "--code", "99"), "--code 99: expected a close code such as 4503 or 4011"),
        (("why", "ada", "--since", "soon"), "--since='soon': expected a duration"),
        (("why", "ada", "--limit", "0"), "--limit 0: expected a whole number from 1 to 1000"),
        (("kick", "ada", "--code", "99"), "--code 99: expected a close code such as 4503 or 4011"),
        (("drain", "--wait", "soon"), "--wait='soon': expected a duration"),
        (("kick", "ada", "--node", "127.0.0.1:8766"), "--node='127.0.0.1:8766': expected the URL"),
        (("kick", "ada", "--node", "http://a:b@c"), "--node='http://a:b@c': expected the URL"),
        (("kick", "ada", "--node", "http://x:99999"), "--node='http://x:99999': expected the URL"),
        (("kick", "ada", "--key-file", "/nowhere"), "--key-file='/nowhere': expected a file that can be read"),
        (("kick",), "Missing argument"),
    ],
)
async def test_wrong_words(terminal: Terminal, words: tuple[str, ...], complaint: str) -> None:
    code, out, err = await terminal.run(*words)
    assert (code, out, err[: len(complaint)]) == (2, "", complaint)
    assert "\n" not in err


async def test_a_key_with_line_breaks_is_refused_and_not_shown(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\nX-Other: 1")
    code, _, err = await terminal.run("drain", "--key-file", str(tmp_path / "key"))
    assert (code, "one key of printable ASCII" in err) == (2, True)


async def test_a_user_that_reconnects_after_4011(terminal: Terminal, tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    async with serving(key_file) as node, starlight.connect(node.url, user="ada") as ada:
        words = ("--node", node.internal_url, "--key-file", str(key_file))
        assert (await terminal.run("kick", "ada", "--code", "4011", *words))[0] == 0
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await ada.publish("news", 1) is not None
                    return
                except ClientError:
                    await asyncio.sleep(0.05)
