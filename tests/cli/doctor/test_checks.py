"""Checks are functions of values: each threshold from both sides; files and certificates are real ones."""

from __future__ import annotations

import datetime
import json
import os
import re
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from starlight.auth.limits import INTERNAL_CONNECTIONS
from starlight.cli import main as cli
from starlight.cli.doctor import checks as doctor
from starlight.cli.doctor import command as cli_doctor
from starlight.cli.doctor.checks import Check, diagnose, worst
from starlight.config.machine import Machine
from starlight.config.settings import Settings
from starlight.net.accept import LISTEN_BACKLOG
from starlight.server.node import RESERVED_FILES
from tests.support.tls import write_certificate

GIB = 2**30
GOOD = Machine(
    open_files=100_000,
    sysctls={
        "net.core.somaxconn": (4096,),
        "net.ipv4.tcp_max_syn_backlog": (512,),
        "net.ipv4.tcp_syncookies": (1,),
        "net.ipv4.ip_local_port_range": (32768, 60999),
        "net.ipv4.tcp_mem": (286_000, 382_000, 572_000),
    },
    ram_bytes=24 * GIB,
    cpus=2,
    is_clock_synchronised=True,
)


def machine(**changes: object) -> Machine:
    """A good machine with some of it changed; `sysctls` are added to its own."""
    values = {name: getattr(GOOD, name) for name in Machine.__slots__} | changes
    values["sysctls"] = {**GOOD.sysctls, **changes.get("sysctls", {})}  # type: ignore[dict-item]
    return Machine(**values)


def named(checks: list[Check], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


def test_a_good_machine_with_the_defaults_is_ok():
    checks = diagnose(Settings(), GOOD)
    assert [check.verdict for check in checks] == ["ok"] * len(checks)
    assert worst(checks) == "ok"


INTERNAL_FILES = RESERVED_FILES + INTERNAL_CONNECTIONS
LOCAL_JWT = {"auth": "jwt", "jwt_secret": "s" * 64}


def test_a_machine_that_tells_nothing_is_unknown_and_not_wrong():
    checks = diagnose(Settings(), Machine())
    assert {check.verdict for check in checks} == {"ok", "unknown"}
    assert worst(checks) == "ok"


def test_names_are_unique_and_every_complaint_says_what_to_do():
    settings = Settings(auth="jwt", jwt_key_file="/nowhere", tls_cert="/nowhere", tls_key="/nowhere")
    bad = machine(
        open_files=10, ram_bytes=1, cpu_quota=0.5, is_clock_synchronised=False,
        sysctls={
            "net.core.somaxconn": (128,), "net.ipv4.tcp_max_syn_backlog": (128,), "net.ipv4.tcp_syncookies": (0,),
            "net.ipv4.ip_local_port_range": (1, 10), "net.ipv4.tcp_mem": (1, 2, 3),
        },
    )  # fmt: skip
    checks = diagnose(settings, bad)
    assert len({check.name for check in checks}) == len(checks)
    assert worst(checks) == "wrong"
    for check in checks:
        assert bool(check.change) == (check.verdict in ("advice", "wrong")), check


@pytest.mark.parametrize(
    ("name", "settings", "found", "verdict"),
    [
        ("open files", {"max_connections": 1_000}, {"open_files": 1_000 + RESERVED_FILES}, "ok"),
        ("open files", {"max_connections": 1_000}, {"open_files": 999 + RESERVED_FILES}, "wrong"),
        ("open files", {"max_connections": 1_000_000}, {"open_files": None}, "ok"),
        ("open files", {"max_connections": 9_000, "internal_port": 0}, {"open_files": 9_000 + INTERNAL_FILES}, "ok"),
        ("open files", {"max_connections": 9_000, "internal_port": 0}, {"open_files": 8_999 + INTERNAL_FILES}, "wrong"),
        ("net.core.somaxconn", {}, {"sysctls": {"net.core.somaxconn": (LISTEN_BACKLOG - 1,)}}, "advice"),
        ("net.core.somaxconn", {"max_connections": 128}, {"sysctls": {"net.core.somaxconn": (128,)}}, "ok"),
        ("net.ipv4.tcp_max_syn_backlog", {}, {"sysctls": {"net.ipv4.tcp_syncookies": (0,)}}, "advice"),
        (
            "net.ipv4.tcp_max_syn_backlog",
            {},
            {"sysctls": {"net.ipv4.tcp_syncookies": (0,), "net.ipv4.tcp_max_syn_backlog": (4096,)}},
            "ok",
        ),
        ("net.ipv4.ip_local_port_range", {"max_connections": 28_232}, {}, "ok"),
        ("net.ipv4.ip_local_port_range", {"max_connections": 28_233}, {}, "advice"),
        ("net.ipv4.ip_local_port_range", {"max_connections": 28_233, "trusted_proxies": "127.0.0.1"}, {}, "wrong"),
        ("net.ipv4.ip_local_port_range", {"max_connections": 28_233, "trusted_proxies": "10.0.0.0/8"}, {}, "advice"),
        ("net.ipv4.tcp_mem", {"send_buffer_bytes": "64KiB"}, {"sysctls": {"net.ipv4.tcp_mem": (1, 2, 320_000)}}, "ok"),
        (
            "net.ipv4.tcp_mem",
            {"send_buffer_bytes": "64KiB"},
            {"sysctls": {"net.ipv4.tcp_mem": (1, 2, 319_999)}},
            "advice",
        ),
        ("memory", {}, {"memory_limit_bytes": GIB}, "ok"),
        ("memory", {}, {"memory_limit_bytes": GIB // 2}, "wrong"),
        ("memory", {"memory_budget_bytes": "256MiB"}, {"memory_limit_bytes": GIB // 2}, "ok"),
        ("memory", {"memory_budget_bytes": "30GiB"}, {}, "wrong"),
        ("processors", {}, {"cpu_quota": 0.5}, "advice"),
        ("processors", {}, {"cpu_quota": 1.0, "cpus": 1}, "ok"),
        ("drain", {"drain_rate": 1_000, "drain_timeout_s": 13}, {}, "ok"),
        ("drain", {"drain_rate": 1_000, "drain_timeout_s": 12}, {}, "advice"),
        ("drain", {"drain_rate": 1_000, "drain_timeout_s": 13, "drain_notice_s": 1}, {}, "advice"),
        ("drain", {"drain_rate": 1, "drain_timeout_s": 0}, {}, "ok"),
        ("pings", {}, {}, "ok"),
        ("pings", {"ping_interval_s": 49}, {}, "ok"),
        ("pings", {"ping_interval_s": 50}, {}, "advice"),
        ("pings", {"ping_interval_s": 75}, {}, "advice"),
        ("trusted proxies", LOCAL_JWT, {}, "advice"),
        ("trusted proxies", {**LOCAL_JWT, "connections_per_address": 0, "connection_rate": 0}, {}, "ok"),
        ("pages", LOCAL_JWT, {}, "advice"),
        ("clock", {}, {"is_clock_synchronised": False}, "ok"),
        ("clock", {"auth": "jwt"}, {"is_clock_synchronised": False}, "advice"),
    ],
)
def test_thresholds(name: str, settings: dict[str, object], found: dict[str, object], verdict: str):
    settings = {"max_connections": 10_000, **settings}
    assert named(diagnose(Settings(**settings), machine(**found)), name).verdict == verdict


def test_pings_that_a_proxy_does_not_wait_for_name_the_proxies_and_what_to_set():
    check = named(diagnose(Settings(ping_interval_s=75), machine()), "pings")
    assert all(word in check.change for word in ("nginx (1m)", "AWS ALB (1m)", "HAProxy", "--ping-interval 25s"))
    assert "Cloudflare" not in check.change


@pytest.mark.parametrize(
    "changes",
    [{"host": "0.0.0.0"}, {"auth": "none"}, {"trusted_proxies": "127.0.0.1", "allowed_origins": "https://a.test"}],
)
def test_what_stands_behind_no_proxy_or_knows_it_gets_no_advice_on_it(changes: dict[str, str]):
    names = {check.name for check in diagnose(Settings(**{**LOCAL_JWT, **changes}), machine())}
    assert not names & {"trusted proxies", "pages"}


def test_the_budget_that_is_proposed_would_do():
    small = machine(memory_limit_bytes=GIB // 2)
    change = named(diagnose(Settings(), small), "memory").change
    proposed = re.search(r"--memory-budget (\S+)", change)
    assert proposed
    assert named(diagnose(Settings(memory_budget_bytes=proposed[1]), small), "memory").verdict == "ok"


def test_the_drain_that_is_proposed_would_do():
    settings = {"max_connections": 50_000, "drain_notice_s": 2}
    change = named(diagnose(Settings(**settings), GOOD), "drain").change
    proposed = re.search(r"--drain-timeout (\d+)s", change)
    assert proposed
    assert named(diagnose(Settings(**settings, drain_timeout_s=proposed[1]), GOOD), "drain").verdict == "ok"


def test_the_socket_memory_that_is_proposed_would_do():
    few = machine(sysctls={"net.ipv4.tcp_mem": (100, 200, 300)})
    change = named(diagnose(Settings(), few), "net.ipv4.tcp_mem").change
    proposed = re.search(r"'(\d+) (\d+) (\d+)'", change)
    assert proposed
    enough = machine(sysctls={"net.ipv4.tcp_mem": tuple(map(int, proposed.groups()))})
    assert named(diagnose(Settings(), enough), "net.ipv4.tcp_mem").verdict == "ok"


# --- files -----------------------------------------------------------------------------------------------------------


def write_secret(path: Path, mode: int = 0o600, length: int = 48) -> str:
    path.write_text("x" * length)
    path.chmod(mode)
    return str(path)


def certificate_for(directory: Path, days: float, since: float = 0.0) -> dict[str, str]:
    """Settings with a certificate that is good from `since` days ago for so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "doctor")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=since)).not_valid_after(now + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (directory / "cert.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (directory / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (directory / "key.pem").chmod(0o600)
    return {"tls_cert": str(directory / "cert.pem"), "tls_key": str(directory / "key.pem")}


@pytest.mark.parametrize(
    ("days", "verdict", "found"),
    [(90, "ok", "ends on 20"), (13, "advice", "ends on 20"), (-1, "wrong", "certificate has expired")],
)
def test_when_a_certificate_ends(tmp_path: Path, days: int, verdict: str, found: str):
    checks = diagnose(Settings(**certificate_for(tmp_path, days, since=10)), GOOD)
    assert named(checks, "TLS files").verdict == "ok"
    check = named(checks, "TLS certificate")
    assert (check.verdict, check.found.startswith(found)) == (verdict, True), check


def test_a_certificate_of_tomorrow(tmp_path: Path):
    check = named(diagnose(Settings(**certificate_for(tmp_path, 90, since=-1)), GOOD), "TLS certificate")
    assert (check.verdict, check.found) == ("wrong", "certificate is not yet valid")


def test_its_end_is_told_in_utc(tmp_path: Path):
    check = named(diagnose(Settings(**certificate_for(tmp_path, 90, since=1)), GOOD), "TLS certificate")
    ends = time.gmtime(time.time() + 90 * 86_400)
    assert check.found == f"ends on {time.strftime('%Y-%m-%d', ends)}"


def test_a_key_that_does_not_fit(tmp_path: Path):
    (tmp_path / "other").mkdir()
    cert = write_certificate(tmp_path)[0]
    key = write_certificate(tmp_path / "other", number=1)[1]
    checks = diagnose(Settings(tls_cert=cert, tls_key=key), GOOD)
    assert named(checks, "TLS files").verdict == "wrong"
    assert "TLS certificate" not in {check.name for check in checks}


def test_a_certificate_without_its_key(tmp_path: Path):
    cert = write_certificate(tmp_path)[0]
    assert named(diagnose(Settings(tls_cert=cert), GOOD), "TLS files").verdict == "wrong"


@pytest.mark.parametrize(
    ("mode", "verdict"), [(0o600, "ok"), (0o640, "ok"), (0o440, "ok"), (0o660, "advice"), (0o644, "wrong")]
)
def test_who_may_read_a_secret(tmp_path: Path, mode: int, verdict: str):
    path = write_secret(tmp_path / "secret", mode)
    checks = diagnose(Settings(auth="jwt", jwt_secret_file=path, session_secret_file=path), GOOD)
    for name in ("jwt secret file", "session secret file"):
        assert named(checks, name).verdict == verdict
    assert "x" * 32 not in repr(checks)


def test_the_change_that_is_proposed_for_a_mode_would_do(tmp_path: Path):
    path = write_secret(tmp_path / "secret", 0o666)
    settings = Settings(auth="jwt", jwt_secret_file=path)
    change = named(diagnose(settings, GOOD), "jwt secret file").change
    assert os.system(change) == 0
    assert named(diagnose(settings, GOOD), "jwt secret file").verdict == "ok"


def test_a_secret_file_that_is_not_there(tmp_path: Path):
    checks = diagnose(Settings(auth="jwt", jwt_secret_file=str(tmp_path / "none")), GOOD)
    assert named(checks, "jwt secret file").verdict == named(checks, "authentication").verdict == "wrong"


def test_tokens_without_anything_to_check_them_with():
    check = named(diagnose(Settings(auth="jwt"), GOOD), "authentication")
    assert check.verdict == "wrong" and "jwt_secret_file" in check.change


def test_a_random_session_key_is_advice(tmp_path: Path):
    path = write_secret(tmp_path / "secret")
    assert named(diagnose(Settings(auth="jwt", jwt_secret_file=path), GOOD), "session key").verdict == "advice"


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"internal_port": 0}, "ok"),
        ({"internal_host": "0.0.0.0"}, "ok"),
        ({"internal_port": 0, "internal_host": "0.0.0.0"}, "wrong"),
        ({"internal_port": 0, "internal_key_file": "/nowhere"}, "wrong"),
    ],
)
def test_the_internal_port(settings: dict[str, object], verdict: str):
    assert named(diagnose(Settings(**settings), GOOD), "internal port").verdict == verdict


def test_origins_and_proxies():
    assert named(diagnose(Settings(trusted_proxies="10.0.0.0/8"), GOOD), "origins and proxies").verdict == "ok"
    for wrong in ({"trusted_proxies": "proxy"}, {"allowed_origins": "app"}):
        assert named(diagnose(Settings(**wrong), GOOD), "origins and proxies").verdict == "wrong"


def test_an_open_door():
    assert named(diagnose(Settings(host="0.0.0.0"), GOOD), "authentication").verdict == "wrong"
    checks = diagnose(Settings(host="0.0.0.0", insecure_no_auth=True), GOOD)
    assert (named(checks, "authentication").verdict, named(checks, "open door").verdict) == ("ok", "advice")


def test_groups(tmp_path: Path):
    path = tmp_path / "starlight.toml"
    path.write_text("[groups.default]\nsubscribe = ['news']\n")
    assert named(diagnose(Settings(config_file=str(path)), GOOD), "groups").verdict == "ok"
    assert named(diagnose(Settings(), GOOD), "groups").found == "none: everybody may do everything"
    path.write_text("[groups.default]\nsubscribes = ['news']\n")
    check = named(diagnose(Settings(config_file=str(path)), GOOD), "groups")
    assert check.verdict == "wrong" and "subscribe" in check.change


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_flags_it_names_exist(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["serve", "--help"]) == 0
    known = capsys.readouterr().out
    source = Path(doctor.__file__).read_text()
    for flag in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", source)) - {"--ulimit", "--stop-timeout"}:
        assert f"{flag} " in known, flag


def test_the_command_takes_the_words_of_serve(capsys: pytest.CaptureFixture[str]):
    code = cli.main(["doctor", "--max-connections", "1000", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == (1 if report["verdict"] == "wrong" else 0)
    (files,) = [check for check in report["checks"] if check["name"] == "open files"]
    assert files["expected"].startswith(f"at least {1000 + RESERVED_FILES}")


def test_the_command_says_in_text_what_to_change(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["doctor", "--auth", "jwt"]) == 1
    out, err = capsys.readouterr()
    assert re.search(r"^wrong +authentication +auth=jwt$", out, re.MULTILINE)
    assert re.search(r"^ +change: auth: something to verify tokens with", out, re.MULTILINE)
    assert out.splitlines()[-1].endswith("wrong")
    assert err == ""


def test_settings_that_are_none_are_exit_2(capsys: pytest.CaptureFixture[str]):
    assert cli.main(["doctor", "--outbox-bytes", "many"]) == 2
    assert capsys.readouterr().err.startswith("starlight: --outbox-bytes many: expected a size")


def test_nothing_in_a_file_name_reaches_the_terminal():
    shown = cli_doctor.to_text([Check("a", "wrong", "\x1b[31mred", "b", "c")])
    assert "\x1b" not in shown
