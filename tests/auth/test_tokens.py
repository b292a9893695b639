"""starlight.auth.tokens: good tokens of every algorithm, and every hostile one there is a name for, none accepted."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from starlight.auth.identity import make_verifier
from starlight.auth.tokens import ASYMMETRIC, TOKEN_LIMIT_BYTES, Claims, Rules, Verifier, key_pair
from starlight.config.settings import Settings
from starlight.errors import ConfigError, TokenRefused
from starlight.stepping import begin
from tests.support.tokens import AUDIENCE, ISSUER, SECRET, b64, claims, hmac_token, pair, token, write

DAY_S = 86_400


def verifier(**settings: Any) -> Verifier:
    source = {} if any(name.startswith("jwt_key") for name in settings) else {"jwt_secret": SECRET}
    return make_verifier(
        Settings(**{"auth": "jwt", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE, **source, **settings})
    )


def accepted(one: Verifier, text: str) -> Claims:
    found = begin(one.verify(text))
    assert isinstance(found, Claims)
    return found


@pytest.fixture(scope="module")
def rsa_verifier(tmp_path_factory: pytest.TempPathFactory) -> Verifier:
    return verifier(jwt_key_file=write(tmp_path_factory.mktemp("keys") / "rsa.pem", pair("RS256").public_pem))


# --- good ones -------------------------------------------------------------------------------------------------------


def test_what_a_good_token_says():
    found = accepted(verifier(), token("bob", groups=["trader", "news"], iat=7, jti="x"))
    assert (found.user, found.groups, found.issued, found.token_id) == ("bob", ("trader", "news"), 7, "x")
    assert 590 < found.expires - 10 - time.time() <= 600  # the leeway counts for the end, too


def test_what_a_token_may_leave_out():
    found = accepted(verifier(jwt_issuer="", jwt_audience=""), token(iat=None, jti=None, iss=None, aud=None))
    assert (found.groups, found.issued) == ((), 0)
    assert found.token_id.startswith("sha256:")


@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_secrets(alg: str):
    assert accepted(verifier(), token(alg=alg)).user == "ann"


@pytest.mark.parametrize("alg", ASYMMETRIC)
def test_public_keys(alg: str, tmp_path: Path):
    keys = pair(alg)
    path = write(tmp_path / "key.pem", keys.public_pem)
    one = verifier(jwt_key_file=path, jwt_algorithms=alg)
    assert accepted(one, token(key=keys.private, alg=alg)).user == "ann"
    with pytest.raises(TokenRefused):
        begin(one.verify(token(key=pair(alg, 1).private, alg=alg)))


def test_the_algorithms_of_a_key_are_found_by_its_kind(tmp_path: Path):
    for alg, expected in (("RS256", ("RS256", "RS384", "RS512")), ("ES384", ("ES384",)), ("EdDSA", ("EdDSA",))):
        one = verifier(jwt_key_file=write(tmp_path / alg, pair(alg).public_pem))
        assert one.rules.algorithms == expected


@pytest.mark.parametrize("header", [{"typ": "JWT"}, {"typ": "at+jwt"}, {"typ": None}, {"kid": "any"}])
def test_headers_that_are_fine(header: dict[str, Any]):
    assert accepted(verifier(), token(headers=header)).user == "ann"


def test_headers_that_ask_for_a_fetch_are_not_looked_at():
    """There is nobody at these addresses, and nobody asks."""
    evil = {"jku": "https://evil.test/keys", "x5u": "file:///etc/passwd", "jwk": {"kty": "oct", "k": "AAAA"}, "x5c": []}
    assert accepted(verifier(), token(headers=evil)).user == "ann"
    with pytest.raises(TokenRefused, match="signature"):
        begin(verifier().verify(token(key="A" * 64, headers=evil)))


@pytest.mark.parametrize(
    ("changes", "groups"),
    [({"roles": ["a", "b"]}, ("a", "b")), ({"roles": "a b"}, ("a", "b")), ({"groups": ["a"]}, ()), ({"roles": []}, ())],
)
def test_the_claim_of_groups(changes: dict[str, Any], groups: tuple[str, ...]):
    assert accepted(verifier(jwt_groups_claim="roles"), token(**changes)).groups == groups


def test_the_leeway():
    now = int(time.time())
    assert accepted(verifier(jwt_leeway_s=30), token(exp=now - 20, nbf=now + 20, iat=now + 20)).user == "ann"
    with pytest.raises(ConfigError, match="0s to 30s"):
        Settings(jwt_leeway_s=31)


# --- hostile ones ----------------------------------------------------------------------------------------------------

NOW = int(time.time())
HEAD = {"alg": "HS256", "typ": "JWT"}
RSA = pair("RS256")
GOOD = token()
PARTS = GOOD.split(".")
DEEP = '{"sub":' + "[" * 3000 + "]" * 3000 + "}"

HOSTILE: dict[str, str] = {
    # 41: no signature at all
    **{
        f"alg {name!r}": f"{b64({'alg': name, 'typ': 'JWT'})}.{b64(claims())}."
        for name in ("none", "None", "NONE", "nOnE", "none ", "", "hs256", "HS256 ", "\x00none")
    },
    "alg none with our signature": hmac_token({"alg": "none"}, claims()),
    "alg null": hmac_token({"alg": None}, claims()),
    "alg a list": hmac_token({"alg": ["HS256", "none"]}, claims()),
    "alg an object": hmac_token({"alg": {"HS256": 1}}, claims()),
    "alg missing": hmac_token({"typ": "JWT"}, claims()),
    "alg HS257": hmac_token({"alg": "HS257"}, claims()),
    "another family": token(key=RSA.private, alg="RS256"),
    # 43: what a key id may not do
    "kid a number": hmac_token({**HEAD, "kid": 7}, claims()),
    "kid a list": hmac_token({**HEAD, "kid": ["a"]}, claims()),
    "kid traversal to an empty file": hmac_token({**HEAD, "kid": "../../../../dev/null"}, claims(), b""),
    "kid SQL": hmac_token({**HEAD, "kid": "x' UNION SELECT 'key' --"}, claims(), b"key"),
    "kid a command": hmac_token({**HEAD, "kid": "|whoami"}, claims(), b"root"),
    "kid of 300 characters": hmac_token({**HEAD, "kid": "k" * 300}, claims()),
    "kid of 1 MiB": hmac_token({**HEAD, "kid": "k" * (1 << 20)}, claims()),
    "a key of its own in jwk": hmac_token({**HEAD, "jwk": {"kty": "oct", "k": b64(b"z" * 32)}}, claims(), b"z" * 32),
    "jku of another": hmac_token({**HEAD, "jku": "http://127.0.0.1:1/"}, claims(), b"z" * 32),
    "x5u of another": hmac_token({**HEAD, "x5u": "http://127.0.0.1:1/"}, claims(), b"z" * 32),
    # 44: critical headers
    "crit unknown": hmac_token({**HEAD, "crit": ["exp2"], "exp2": 1}, claims()),
    "crit empty": hmac_token({**HEAD, "crit": []}, claims()),
    "crit b64": hmac_token({**HEAD, "crit": ["b64"], "b64": True}, claims()),
    "b64 false": hmac_token({**HEAD, "crit": ["b64"], "b64": False}, claims()),
    "b64 without crit": hmac_token({**HEAD, "b64": False}, claims()),
    "compressed": hmac_token({**HEAD, "zip": "DEF"}, claims()),
    "a logout token": hmac_token({**HEAD, "typ": "logout+jwt"}, claims()),
    "a proof of possession": hmac_token({**HEAD, "typ": "dpop+jwt"}, claims()),
    "typ a number": hmac_token({**HEAD, "typ": 1}, claims()),
    # 45: times, audience, issuer
    "expired": token(exp=NOW - DAY_S),
    "expired just beyond the leeway": token(exp=NOW - 12),
    "no exp": token(exp=None),
    "exp null": hmac_token(HEAD, {**claims(), "exp": None}),
    "exp text": hmac_token(HEAD, {**claims(), "exp": str(NOW + 600)}),
    "exp true": hmac_token(HEAD, {**claims(), "exp": True}),
    "exp a list": hmac_token(HEAD, {**claims(), "exp": [NOW + 600]}),
    "exp infinite": hmac_token(HEAD, json.dumps(claims()).replace(str(claims()["exp"]), "Infinity")),
    "exp 1e400": hmac_token(HEAD, json.dumps(claims()).replace(str(claims()["exp"]), "1e400")),
    "exp NaN": hmac_token(HEAD, json.dumps(claims()).replace(str(claims()["exp"]), "NaN")),
    "exp of 5,000 digits": hmac_token(HEAD, json.dumps(claims()).replace(str(claims()["exp"]), "9" * 5000)),
    "exp beyond all time": token(exp=10**30),
    "exp negative": token(exp=-1),
    "nbf ahead": token(nbf=NOW + 3600),
    "nbf text": hmac_token(HEAD, {**claims(), "nbf": "0"}),
    "iat ahead": token(iat=NOW + 3600),
    "iat text": hmac_token(HEAD, {**claims(), "iat": "0"}),
    "aud of another": token(aud="another"),
    "aud that begins like ours": token(aud=AUDIENCE + "2"),
    "aud a part of ours": token(aud=AUDIENCE[:-1]),
    "aud a list of others": token(aud=["a", "b"]),
    "aud an object": token(aud={AUDIENCE: 1}),
    "aud with a number": token(aud=[AUDIENCE, 1]),
    "no aud": token(aud=None),
    "iss of another": token(iss="https://evil.test"),
    "iss a part of ours": token(iss=ISSUER[:-1]),
    "iss with a slash more": token(iss=ISSUER + "/"),
    "iss a list": hmac_token(HEAD, {**claims(), "iss": [ISSUER]}),
    "no iss": token(iss=None),
    # who
    "no sub": token(sub=None),
    "sub a number": hmac_token(HEAD, claims(sub=7)),
    "sub null": hmac_token(HEAD, {**claims(), "sub": None}),
    "sub empty": token(""),
    "sub with a line break": token("a\nb"),
    "sub too long": token("x" * 256),
    "sub a list": hmac_token(HEAD, claims(sub=["ann"])),
    "jti a number": hmac_token(HEAD, claims(jti=1)),
    "jti too long": token(jti="j" * 300),
    "groups an object": token(groups={"admin": True}),
    "groups of numbers": token(groups=[1]),
    "groups nested": token(groups=[["admin"]]),
    "too many groups": token(groups=["g"] * 65),
    # 47 and shapes
    "over 8 KiB": token(pad="x" * TOKEN_LIMIT_BYTES),
    "nothing": "",
    "a dot": ".",
    "two dots": "..",
    "two parts": ".".join(PARTS[:2]),
    "four parts": GOOD + ".x",
    "five parts, as if encrypted": GOOD + ".x.y",
    "signature cut": GOOD[:-2],
    "signature longer": GOOD + "AA",
    "signature empty": ".".join(PARTS[:2]) + ".",
    "signature of another token": ".".join(PARTS[:2]) + "." + token("bob").split(".")[2],
    "another payload": f"{PARTS[0]}.{b64(claims('admin'))}.{PARTS[2]}",
    "another header": f"{b64({**HEAD, 'kid': 'x'})}.{PARTS[1]}.{PARTS[2]}",
    "a wrong secret": token(key="w" * 64),
    "an empty secret": hmac_token(HEAD, claims(), b""),
    "a space before it": " " + GOOD,
    "a line break behind it": GOOD + "\n",
    "a character outside of base64": GOOD.replace(".", ".!", 1),
    "ordinary base64": GOOD.replace("_", "/").replace("-", "+") + "+",
    "not ASCII": GOOD[:-1] + "ä",
    "a bearer prefix": "Bearer " + GOOD,
    "header an array": hmac_token([HEAD], claims()),
    "header a text": hmac_token('"HS256"', claims()),
    "header not JSON": hmac_token("{alg:HS256}", claims()),
    "header not UTF-8": hmac_token(b'{"alg":"HS256","x":"\xff"}', claims()),
    "header deep": hmac_token('{"alg":"HS256","x":' + "[" * 2000 + "]" * 2000 + "}", claims()),
    "payload an array": hmac_token(HEAD, [claims()]),
    "payload a text": hmac_token(HEAD, '"ann"'),
    "payload not JSON": hmac_token(HEAD, "{"),
    "payload not UTF-8": hmac_token(HEAD, b'{"sub":"\xff"}'),
    "payload deep": hmac_token(HEAD, DEEP),
    "payload empty": hmac_token(HEAD, b""),
    "JSON serialisation": json.dumps({"protected": PARTS[0], "payload": PARTS[1], "signature": PARTS[2]}),
    "a session token of nobody": "sl1.W10.AAAA",
}


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 100
    assert accepted(verifier(), GOOD).user == "ann"  # so it is for what was changed that the others are refused


@pytest.mark.parametrize("name", HOSTILE)
def test_no_hostile_token_is_accepted(name: str):
    with pytest.raises(TokenRefused) as refusal:
        begin(verifier().verify(HOSTILE[name]))
    assert SECRET not in str(refusal.value)
    assert all(part not in str(refusal.value) for part in PARTS)


@pytest.mark.parametrize("key", ["public_pem", "public_der"])
@pytest.mark.parametrize("alg", ["HS256", "HS384", "HS512"])
def test_42_hmac_with_the_public_key_as_the_secret(rsa_verifier: Verifier, key: str, alg: str):
    import hashlib
    import hmac

    signed = f"{b64({'alg': alg, 'typ': 'JWT'})}.{b64(claims())}"
    mac = hmac.digest(getattr(RSA, key), signed.encode(), getattr(hashlib, f"sha{alg[2:]}"))
    with pytest.raises(TokenRefused, match="not allowed"):
        begin(rsa_verifier.verify(f"{signed}.{b64(mac)}"))
    assert accepted(rsa_verifier, token(key=RSA.private, alg="RS256")).user == "ann"


def test_46_one_key_id_of_two_issuers(rsa_verifier: Verifier):
    other = pair("RS256", 1)
    for issuer in (ISSUER, "https://other.test"):
        with pytest.raises(TokenRefused):
            begin(rsa_verifier.verify(token(key=other.private, alg="RS256", headers={"kid": "1"}, iss=issuer)))
    with pytest.raises(TokenRefused, match="issuer"):
        begin(rsa_verifier.verify(token(key=RSA.private, alg="RS256", headers={"kid": "1"}, iss="https://other.test")))


def test_a_token_without_a_name_is_named_by_what_was_signed():
    """So that revoking it holds, also for the second signature that every ECDSA signature has."""
    keys = pair("ES256")
    one_issuer = Verifier(key_pair(keys.public_pem, ["ES256"], "key", ""), Rules(("ES256",), ISSUER, AUDIENCE))
    text = token(key=keys.private, alg="ES256", jti=None)
    one = accepted(one_issuer, text)
    head, _, signature = text.rpartition(".")
    raw = base64.urlsafe_b64decode(signature + "==")
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    twin = raw[:32] + (order - int.from_bytes(raw[32:])).to_bytes(32)
    assert twin != raw
    assert accepted(one_issuer, f"{head}.{b64(twin)}").token_id == one.token_id
    assert accepted(one_issuer, token("bob", key=keys.private, alg="ES256", jti=None)).token_id != one.token_id


def test_47_long_tokens_are_refused_before_any_cryptography(monkeypatch: pytest.MonkeyPatch):
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("somebody looked at it")

    one = verifier()
    monkeypatch.setattr(jwt.PyJWT, "decode", never)
    monkeypatch.setattr("starlight.auth.tokens._read_header", never)
    with pytest.raises(TokenRefused, match="too long"):
        begin(one.verify("x" * (TOKEN_LIMIT_BYTES + 1)))


@given(st.text(max_size=300))
def test_any_text_is_refused(text: str):
    with pytest.raises(TokenRefused):
        begin(verifier().verify(text))


@given(st.integers(0, len(GOOD) - 1), st.characters())
def test_any_change_of_one_character_is_refused(at: int, character: str):
    changed = GOOD[:at] + character + GOOD[at + 1 :]
    if changed == GOOD:
        return
    with pytest.raises(TokenRefused):
        begin(verifier().verify(changed))


@given(st.binary(max_size=120), st.binary(max_size=120))
def test_any_header_and_payload_is_refused(header: bytes, payload: bytes):
    with pytest.raises(TokenRefused):
        begin(verifier().verify(hmac_token(header, payload)))


# --- what is no configuration ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "something to verify tokens with"),
        ({"jwt_secret": "short"}, "at least 32 bytes"),
        ({"jwt_secret": SECRET[:40], "jwt_algorithms": "HS512"}, "longer secret"),
        ({"jwt_secret": SECRET, "jwt_algorithms": "RS256"}, "some of HS256"),
        ({"jwt_secret": SECRET, "jwt_algorithms": "none"}, "some of HS256"),
        ({"jwt_secret": RSA.public_pem.decode()}, "another kind of algorithm"),
        ({"jwt_secret": SECRET, "jwt_jwks_url": "https://a.test/"}, "is set, too"),
        ({"jwt_jwks_url": "http://a.test/"}, "https URL"),
        ({"jwt_jwks_url": "file:///etc/passwd"}, "https URL"),
        ({"jwt_jwks_url": "https://user:word@a.test/"}, "https URL"),
        ({"jwt_jwks_url": "https://a.test/", "jwt_algorithms": "HS256"}, "some of RS256"),
        ({"jwt_key_file": "/nowhere/key.pem"}, "no such file"),
        ({"jwt_secret_file": "/nowhere/secret"}, "no such file"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], expected: str):
    with pytest.raises(ConfigError, match=expected) as caught:
        make_verifier(Settings(auth="jwt", **settings))
    for secret in (SECRET[:32], "short'"):
        assert secret not in str(caught.value)


def test_key_files_that_are_none(tmp_path: Path):
    from cryptography.hazmat.primitives.asymmetric import rsa

    from tests.support.tokens import Pair

    weak = Pair(rsa.generate_private_key(65537, 1024), "RS256")
    for content, expected in (
        (RSA.private_pem, "private one belongs to the issuer"),
        (b"nothing", "a public key in PEM"),
        (weak.public_pem, "at least 2048 bits"),
    ):
        with pytest.raises(ConfigError, match=expected):
            verifier(jwt_key_file=write(tmp_path / "key.pem", content))
    with pytest.raises(ConfigError, match="ES256"):
        verifier(jwt_key_file=write(tmp_path / "key.pem", RSA.public_pem), jwt_algorithms="ES256")


def test_a_secret_file_is_read_without_its_line_break(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write(tmp_path / "secret", SECRET + "\n")
    assert accepted(verifier(jwt_secret="", jwt_secret_file=path), GOOD).user == "ann"
    assert caplog.text == ""
    Path(path).chmod(0o644)
    verifier(jwt_secret="", jwt_secret_file=path)
    assert "everybody on this machine may read it" in caplog.text


def test_static_keys_never_wait():
    assert isinstance(begin(verifier().verify(GOOD)), Claims)
