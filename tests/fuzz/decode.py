"""The decoder of messages against a slow reading by the standard library's json, what is spliced from it, and lines."""

from __future__ import annotations

import json
import random
from collections.abc import Hashable
from typing import Any

from starlight.errors import RequestError
from starlight.protocols.native._depth import is_deeper
from starlight.protocols.native._lines import Lines
from starlight.protocols.native.commands import (
    MAX_DEPTH,
    AskPresence,
    Command,
    Custom,
    Publish,
    SendBroadcast,
    SendDirect,
    decode,
)
from starlight.protocols.native.pushes import TAIL, broadcast_head, direct_head, publication_head
from starlight.protocols.native.replies import error, ok_id
from tests.fuzz.engine import Difference, mutate_bytes, smaller_bytes
from tests.support.fakes import is_utf8

REFUSED, NOT_BUILT = 107, 108
PUNCTUATION = (
    '{ } [ ] , : " \\ null true false 0 -1 1e400 -0.0 1E+2 01 1. NaN Infinity -Infinity \\u0000 \\ud800 \\udc00'
)
NAMES = (
    "type id channel to data user token limit since key ttl_ms idempotency from offset "
    "login direct join leave publish broadcast presence history refresh ping bid"
)
TOKENS = [
    *(word.encode() for word in PUNCTUATION.split()),
    *(b'"%s"' % word.encode() for word in NAMES.split()),
    *(b'"%s":' % word.encode() for word in NAMES.split()),
    *(
        b" ",
        b"\n",
        b"\t",
        b"\r",
        b"\x0b",
        b"\xa0",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"\xc3\xa9",
        b"\xff",
        b"\0",
        b"//",
    ),
    *(b"9007199254740992", b"9007199254740993", b"1" * 5_000, b"[" * 600, b"]" * 600, b'{"a":' * 511, b"}" * 511),
    *(
        b'"\\u00e9"',
        b'"\\/"',
        b'"a b"',
        b'"*"',
        b'"' + b"x" * 256 + b'"',
        b'"' + "é".encode() * 40 + b'"',
        *(b'"[[[{{"', b'"\\\\"', b'"\\"[{"', b'"]]}}"', b'"\\\\\\"{', b"[]," * 600, b'{"a":{}},' * 300, b'"[",' * 600),
        b"\r\n",
        b"\n" * 9,
        b"\r\n" * 5,
        b",}",
        b'"a":1,',
    ),
]


class NotJson(ValueError):
    """The text is not JSON as RFC 8259 has it."""


def refuse(constant: str) -> None:
    """Python reads NaN and infinities, JSON has none."""
    raise NotJson(constant)


def pairs(items: list[tuple[str, Any]]) -> dict[Any, Any]:
    """An object. What JSON's readers drop is kept under keys that no JSON text can have: the values of repeated names,
    and that a field of commands is among them."""
    fields: dict[Any, Any] = {}
    dropped = []
    for name, value in items:
        if name in fields:
            dropped.append((name, fields[name]))
        fields[name] = value
    if dropped:
        fields[DROPPED] = [value for _, value in dropped]
    if any(name in FIELDS for name, _ in dropped):
        fields[TWICE] = True
    return fields


DROPPED = ("dropped",)
TWICE = ("a field", "twice")
FIELDS = set(NAMES[: NAMES.index(" login")].split()) - {"data", "from", "offset"}


def inside(value: Any) -> list[Any] | None:
    """The values in an object or an array, those dropped too; None for a scalar."""
    if isinstance(value, dict):
        return [one for key, one in value.items() if key not in (DROPPED, TWICE)] + value.get(DROPPED, [])
    return value if isinstance(value, list) else None


def read(text: bytes) -> Any:
    """The value; numbers stay text, so that none is too large. Raises `NotJson`."""
    try:
        return json.loads(
            text.decode(), parse_constant=refuse, parse_int=Number, parse_float=Number, object_pairs_hook=pairs
        )
    except (ValueError, RecursionError) as failure:
        raise NotJson(str(failure)) from None


class Number(str):
    """A number as it is written."""


def depth(value: Any) -> int:
    """How deep a value nests; a scalar is 0."""
    deepest, todo = 0, [(value, 0)]
    while todo:
        one, level = todo.pop()
        inner = inside(one)
        if inner is not None:
            deepest = max(deepest, level + 1)
            todo += [(other, level + 1) for other in inner]
    return deepest


def has_surrogate(value: Any) -> bool:
    """Whether a lone surrogate is in any string of it."""
    todo = [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str) and any("\ud800" <= character <= "\udfff" for character in one):
            return True
        todo += inside(one) or []
        todo += [key for key in one if isinstance(key, str)] if isinstance(one, dict) else []
    return False


# ---- the other reading: what outcomes protocol.md allows for a message


def allowed(text: bytes) -> set[object]:
    """Type names of the commands that this message may be read as, and codes of the errors it may get."""
    try:
        value = read(text)
    except NotJson:
        return {REFUSED}
    if not isinstance(value, dict) or has_surrogate(value) or depth(value) > MAX_DEPTH:
        return {REFUSED}
    outcomes = outcomes_of(value)
    return outcomes | {REFUSED, NOT_BUILT} if TWICE in value else outcomes  # for what came first, it may be


CLASSES = {"direct": "SendDirect", "broadcast": "SendBroadcast", "presence": "AskPresence"}
"""The command of a type, where it is not called like it."""


def outcomes_of(fields: dict[Any, Any]) -> set[object]:
    kind = fields.get("type")
    errors: set[object] = {REFUSED} if "id" in fields and not is_id(fields["id"]) else set()
    if not is_text(kind):
        return {REFUSED}
    if kind == "history":
        return errors | {NOT_BUILT}
    if kind not in RULES:
        return errors or {"Custom"}
    for name, rule in RULES[kind].items():
        if rule is NotImplemented:
            errors |= {NOT_BUILT} if name in fields else set()
        elif not (rule(fields[name]) if name in fields else name in OPTIONAL or (kind, name) == ("login", "token")):
            errors.add(REFUSED)
    return errors or {CLASSES.get(kind, kind.capitalize())}


def is_id(value: Any) -> bool:
    if isinstance(value, Number):
        return integer(value) is not None and -(2**53) <= (integer(value) or 0) <= 2**53
    return isinstance(value, str) and len(value.encode()) <= 64


def integer(value: Any) -> int | None:
    """A JSON number without fraction and exponent, if it is short."""
    if isinstance(value, Number) and len(value) <= 20 and value.lstrip("-").isdecimal():
        return int(value)
    return None


def is_text(value: Any) -> bool:
    return isinstance(value, str) and not isinstance(value, Number)


def is_channel(value: Any) -> bool:
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.:/@#"
    return is_text(value) and 1 <= len(value) <= 255 and set(value) <= set(letters)


def is_user(value: Any) -> bool:
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}
    return is_text(value) and 1 <= len(value.encode()) <= 255 and not set(value) & controls


def is_limit(value: Any) -> bool:
    number = integer(value)
    return number is not None and 0 <= number <= 1000


def is_any(value: Any) -> bool:
    return True


OPTIONAL = {"user", "limit"}
RULES: dict[str, dict[str, Any]] = {
    "login": {
        "token": lambda value: value is None or is_text(value),
        "user": lambda value: value is None or is_user(value),
    },
    "direct": {"to": is_user, "data": is_any},
    "join": {"channel": is_channel, "since": NotImplemented},
    "leave": {"channel": is_channel},
    "publish": {
        "channel": is_channel,
        "data": is_any,
        "key": NotImplemented,
        "ttl_ms": NotImplemented,
        "idempotency": NotImplemented,
    },
    "broadcast": {"data": is_any},
    "presence": {"channel": is_channel, "limit": is_limit, "id": is_id},
    "refresh": {"token": is_text},
    "ping": {},
}


# ---- ours


class Decode:
    """The target: a case is a message."""

    name = "decode"

    def close(self) -> None:
        """Nothing is held."""

    def run(self, case: bytes) -> Hashable:
        """Compare the readings; the signature is the outcome and the error's text."""
        check_lines(case)
        check_depth(case)
        try:
            command = decode(case)
        except RequestError as refusal:
            outcome: object = int(refusal.code)
            said = str(refusal)
            check_json(error(refusal.id, refusal.code, said), "an error")
        except BaseException as failure:
            raise Difference(f"decode raised {type(failure).__name__}: {failure}") from None
        else:
            outcome, said = type(command).__name__, ""
        if not is_utf8(case):
            return (outcome, said, "not UTF-8")
        expected = allowed(case)
        if outcome not in expected:
            raise Difference(f"ours: {outcome} {said!r}; by json: {expected}")
        if isinstance(outcome, str):
            check_command(command, read(case))
        return (outcome, said)

    def mutate(self, rng: random.Random, case: bytes, other: bytes) -> bytes:
        """Changed bytes, or one field written anew."""
        if rng.random() < 0.3:
            try:
                fields = json.loads(case)
                name, value = rng.choice(NAMES.split()), rng.choice(TOKENS)
                return json.dumps({**fields, name: "?VALUE?"}).encode().replace(b'"?VALUE?"', value)
            except (ValueError, TypeError, RecursionError):
                pass
        return mutate_bytes(rng, case, other, TOKENS)[:20_000]

    smaller = staticmethod(smaller_bytes)

    def read(self, text: str) -> bytes:
        """Latin-1, so that every byte is a character and most files can be read."""
        return text.removesuffix("\n").encode("latin-1")

    def write(self, case: bytes) -> str:
        """The reverse."""
        return case.decode("latin-1") + "\n"


def check_lines(frame: bytes) -> None:
    """A frame of lines is cut as it is split at once."""
    lines = [line.removesuffix(b"\r") for line in frame.split(b"\n")]
    same(list(Lines(frame)), [line for line in lines if line], "lines")


def check_depth(text: bytes) -> None:
    """A JSON text is as deep as its value, at each limit; any other text is looked at and nothing breaks."""
    try:
        levels = depth(read(text))
    except NotJson:
        is_deeper(text, 3)
        return
    for limit in {0, 1, 2, levels - 1, levels, levels + 1, MAX_DEPTH} - {-1}:
        same(is_deeper(text, limit), levels > limit, f"deeper than {limit}")


def check_command(command: Command, fields: dict[Any, Any]) -> None:
    """Its fields are what json reads, and what is made of it for others is JSON that says the same."""
    if command.id is not None:
        same(str(command.id), str(fields["id"]), "id")
        check_json(ok_id(command.id), "a reply")
    for name in ("channel", "to", "user", "token", "type"):
        if name in fields and hasattr(command, name):
            same(getattr(command, name), fields[name], name)
    if isinstance(command, AskPresence):
        same(command.limit, int(fields.get("limit", 100)), "limit")
    if isinstance(command, Publish):
        spliced(publication_head(command.channel, "ann"), command.data, fields)
    elif isinstance(command, SendDirect):
        spliced(direct_head("ann"), command.data, fields)
    elif isinstance(command, SendBroadcast):
        spliced(broadcast_head("ann"), command.data, fields)
    elif isinstance(command, Custom):
        same(command.data is None, "data" not in fields, "data's presence")
        if command.data is not None:
            spliced(direct_head("ann"), command.data, fields)


def spliced(head: bytes, data: Any, fields: dict[Any, Any]) -> None:
    """A payload between head and tail reads as it did in its message, also where line breaks end messages."""
    for payload in (bytes(data), bytes(data).replace(b"\n", b" ").replace(b"\r", b" ")):
        message = check_json(head + payload + TAIL, "a spliced message")
        same(message["data"], fields["data"], "data")
        same(message["from"], "ann", "from")


def check_json(text: bytes, what: str) -> Any:
    try:
        return read(text)
    except NotJson as failure:
        raise Difference(f"{what} is not JSON: {failure}: {text[:200]!r}") from None


def same(ours: object, theirs: object, what: str) -> None:
    if ours != theirs:
        raise Difference(f"{what}: ours {ours!r}, by json {theirs!r}"[:500])
