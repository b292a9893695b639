"""Whether this machine can carry what the settings promise: checks as data.

Strategy: `_machine` reads what there is, the functions here compare it with the settings, and what comes out is a list
of `Check`: what was found, what it should be, what to change. Nothing is changed, nothing is listened on, no address is
looked up and nobody is connected to.

The law: *wrong* is what makes a node refuse to start, refuse clients below its own limits, be killed, or give a secret
away; *advice* is what works until the day of the full load or the attack. Every threshold comes from a setting or from
a constant of the part that it is about.
"""

from __future__ import annotations

import ipaddress
import math
import re
import ssl
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from starlight.auth.identity import TOKEN_SOURCES, make_authenticator, make_internal_key
from starlight.auth.limits import Limits, internal_connections
from starlight.auth.permissions import make_permissions
from starlight.config.addresses import is_loopback
from starlight.config.machine import Machine
from starlight.config.settings import Settings
from starlight.config.units import format_duration, format_size
from starlight.errors import ConfigError
from starlight.net.accept import LISTEN_BACKLOG
from starlight.net.gate import Gate
from starlight.net.tls import Certificate
from starlight.server.drain import CLOSING_SHARE
from starlight.server.node import RESERVED_FILES

__all__ = ["Check", "Verdict", "diagnose", "worst"]

Verdict = Literal["ok", "unknown", "advice", "wrong"]
"""From good to bad; `unknown` is what can't be read here."""

PROCESS_BYTES: Final = 64 * 2**20
"""A node without clients: interpreter, modules, the free chunks it keeps."""

CONNECTION_BYTES: Final = 12 * 2**10
"""An idle, logged-in connection over TLS; 6 KiB over plain TCP (docs/architecture.md, "The transport below")."""

SOCKET_FACTOR: Final = 2
"""The kernel books twice what SO_SNDBUF says, to have room for its own records: socket(7)."""

EXPIRES_SOON_S: Final = 14 * 86_400.0
"""Issuers' programs renew with a third of the lifetime left, 30 of 90 days; at 14 one of them has stopped working."""

SECRET_FILES: Final = (
    "jwt_secret_file",
    "session_secret_file",
    "session_previous_secret_file",
    "tls_key",
    "internal_key_file",
)
"""Settings that name a file nobody else may read."""

PROXY_IDLE_S: Final = {
    "HAProxy with Debian's file": 50.0,
    "Heroku's router": 55.0,
    "nginx": 60.0,
    "AWS ALB": 60.0,
    "Cloudflare": 100.0,
}
"""After how many seconds without a byte proxies cut a connection unless told otherwise, by name."""

_HANDSHAKE_STEPS: Final = 10
"""A TLS handshake takes four flights at most."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what it is, the same for every run.
        verdict: how it is.
        found: what is there.
        expected: what should be.
        change: what to do about it; empty if it is ok.
    """

    name: str
    verdict: Verdict
    found: str
    expected: str
    change: str = ""


def diagnose(settings: Settings, machine: Machine, now_s: float | None = None) -> list[Check]:
    """All checks, in the order of the report.

    Args:
        settings: what a node would be started with.
        machine: where.
        now_s: Unix seconds, for what expires; the clock's by default.
    """
    now_s = time.time() if now_s is None else now_s
    checks = [judge(settings, machine) for judge in MACHINE_CHECKS]
    return [*checks, *check_start(settings), *check_tls(settings, now_s), *check_secret_files(settings)]


def worst(checks: list[Check]) -> Verdict:
    """The worst verdict among them; what is unknown counts as ok."""
    verdicts = {check.verdict for check in checks}
    return "wrong" if "wrong" in verdicts else "advice" if "advice" in verdicts else "ok"


def _unknown(name: str, expected: str) -> Check:
    return Check(name, "unknown", "can't be read here", expected)


# --- the machine -----------------------------------------------------------------------------------------------------


def check_open_files(settings: Settings, machine: Machine) -> Check:
    """A connection is an open file; a node lowers max_connections to what there is room for, with a warning."""
    reserved = RESERVED_FILES
    if settings.internal_port is not None:
        reserved += internal_connections(machine.open_files if machine.open_files is not None else -1)
    needed = settings.max_connections + reserved
    expected = f"at least {needed}: max_connections and {reserved} of the node's own"
    if machine.open_files is None or machine.open_files >= needed:
        return Check("open files", "ok", str(machine.open_files or "no limit"), expected)
    change = (
        f"LimitNOFILE={needed} in the systemd unit, --ulimit nofile={needed} for a container, `ulimit -Hn {needed}` in "
        f"a shell; or --max-connections {max(1, machine.open_files - reserved)}"
    )
    return Check("open files", "wrong", str(machine.open_files), expected, change)


def check_backlog(settings: Settings, machine: Machine) -> Check:
    """The kernel cuts the queue of connections that wait for accept to somaxconn."""
    name, expected = "net.core.somaxconn", f"at least {LISTEN_BACKLOG}, what a node asks for"
    found = machine.sysctl(name)
    if found is None:
        return _unknown(name, expected)
    if found[0] >= min(LISTEN_BACKLOG, settings.max_connections):
        return Check(name, "ok", str(found[0]), expected)
    change = f"sysctl -w {name}={LISTEN_BACKLOG}: clients that all come back at once wait there and need not try again"
    return Check(name, "advice", str(found[0]), expected, change)


def check_half_open(settings: Settings, machine: Machine) -> Check:
    """With SYN cookies the kernel answers whatever the length of that queue; without them it drops."""
    name = "net.ipv4.tcp_max_syn_backlog"
    wanted = min(LISTEN_BACKLOG, settings.max_connections)
    expected = f"SYN cookies, or at least {wanted}"
    found, cookies = machine.sysctl(name), machine.sysctl("net.ipv4.tcp_syncookies")
    if found is None or cookies is None:
        return _unknown(name, expected)
    shown = f"{found[0]}, SYN cookies {'on' if cookies[0] else 'off'}"
    if cookies[0] or found[0] >= wanted:
        return Check(name, "ok", shown, expected)
    change = f"sysctl -w net.ipv4.tcp_syncookies=1, or sysctl -w {name}={wanted}"
    return Check(name, "advice", shown, expected, change)


def check_ports(settings: Settings, machine: Machine) -> Check:
    """Whoever connects to one address from this machine, a proxy or the load harness, needs a port for each client."""
    name = "net.ipv4.ip_local_port_range"
    expected = f"{settings.max_connections} ports for a proxy on this machine"
    found = machine.sysctl(name)
    if found is None or len(found) != 2:
        return _unknown(name, expected)
    ports = found[1] - found[0] + 1
    shown = f"{found[0]} {found[1]}: {ports} ports"
    if ports >= settings.max_connections:
        return Check(name, "ok", shown, expected)
    change = f"sysctl -w {name}='1024 65535', or let the proxy connect to several addresses, such as 127.0.0.1 to .4"
    return Check(name, "wrong" if _has_local_proxy(settings) else "advice", shown, expected, change)


def _has_local_proxy(settings: Settings) -> bool:
    for word in settings.trusted_proxies.replace(",", " ").split():
        try:
            if ipaddress.ip_network(word, strict=False).is_loopback:
                return True
        except ValueError:
            continue  # not ours to complain about: the node says so at start
    return False


def check_socket_memory(settings: Settings, machine: Machine) -> Check:
    """Above its third number the kernel makes every socket of the machine wait, whoever filled it."""
    name = "net.ipv4.tcp_mem"
    pages = -(-settings.max_connections * settings.send_buffer_bytes * SOCKET_FACTOR // machine.page_bytes)
    expected = f"a third number of at least {pages} pages: send buffers of max_connections stalled clients"
    found = machine.sysctl(name)
    if found is None or len(found) != 3:
        return _unknown(name, expected)
    shown = " ".join(map(str, found))
    if found[2] >= pages:
        return Check(name, "ok", shown, expected)
    wanted = f"{max(found[0], pages // 2)} {max(found[1], pages)} {pages * 3 // 2}"
    change = f"sysctl -w {name}='{wanted}' if the memory is there; else lower --send-buffer or --max-connections"
    return Check(name, "advice", shown, expected, change)


def check_memory(settings: Settings, machine: Machine) -> Check:
    """Outboxes, connections and the process itself have to fit, or the kernel ends the process."""
    needed = PROCESS_BYTES + settings.max_connections * CONNECTION_BYTES + settings.memory_budget_bytes
    expected = f"at least {_mebibytes(needed)}: memory_budget, max_connections and the process"
    limits = {"of this control group": machine.memory_limit_bytes, "of RAM": machine.ram_bytes}
    known = {what: limit for what, limit in limits.items() if limit is not None}
    if not known:
        return _unknown("memory", expected)
    what = min(known, key=lambda name: known[name])
    shown = f"{_mebibytes(known[what])} {what}"
    if known[what] >= needed:
        return Check("memory", "ok", shown, expected)
    spare = known[what] - PROCESS_BYTES - settings.max_connections * CONNECTION_BYTES
    lower = (
        f"--memory-budget {max(1, spare // 2**20)}MiB" if spare >= 2**20 else "--max-connections and --memory-budget"
    )
    return Check("memory", "wrong", shown, expected, f"a higher limit (MemoryMax, resources.limits.memory), or {lower}")


def check_cpus(settings: Settings, machine: Machine) -> Check:
    """A node is one thread; with less than a core of time the kernel stops it for tens of milliseconds at once."""
    expected = "a core of its own, not throttled"
    quota = "" if machine.cpu_quota is None else f", {machine.cpu_quota:g} of them as a quota"
    shown = f"{machine.cpus} processor{'s' if machine.cpus > 1 else ''}{quota}"
    if machine.cpu_quota is None or machine.cpu_quota >= 1:
        return Check("processors", "ok", shown, expected)
    change = "CPUQuota=100% or more, resources.limits.cpu of 1 or none at all"
    return Check("processors", "advice", shown, expected, change)


def check_clock(settings: Settings, machine: Machine) -> Check:
    """Tokens begin and end by the clock."""
    expected = f"within {settings.jwt_leeway_s:g} s of the issuer's; it matters with auth=jwt alone"
    if machine.is_clock_synchronised is None:
        return _unknown("clock", expected)
    if machine.is_clock_synchronised:
        return Check("clock", "ok", "synchronised", expected)
    if settings.auth != "jwt":
        return Check("clock", "ok", "not synchronised", expected)
    change = "run an NTP client: `timedatectl set-ntp true`, or chrony; in a container it is the host's"
    return Check("clock", "advice", "not synchronised", expected, change)


def check_drain(settings: Settings, machine: Machine) -> Check:
    """A drain that is too short for so many clients sends them away faster than the next node may like."""
    full_s = settings.max_connections / settings.drain_rate
    spread_s = (settings.drain_timeout_s - settings.drain_notice_s) * CLOSING_SHARE
    expected = f"{format_duration(round(full_s, 1))} to send max_connections away at drain_rate"
    shown = f"{format_duration(round(max(0.0, spread_s), 1))} of the drain time"
    if full_s <= spread_s or settings.drain_timeout_s == 0:
        return Check("drain", "ok", shown, expected)
    wanted_s = math.ceil(full_s / CLOSING_SHARE + settings.drain_notice_s)
    change = (
        f"--drain-timeout {wanted_s}s, and more for what stops the process (TimeoutStopSec, docker's --stop-timeout)"
    )
    return Check("drain", "advice", shown, expected, change)


def check_pings(settings: Settings, machine: Machine) -> Check:
    """Proxies cut a connection on which nothing is sent for a while; on a quiet one that is the time between pings."""
    least_s = min(PROXY_IDLE_S.values())
    expected = f"below {format_duration(least_s)}, the shortest idle time of common proxies"
    shown = f"every {format_duration(settings.ping_interval_s)}"
    cutting = [f"{name} ({format_duration(s)})" for name, s in PROXY_IDLE_S.items() if s <= settings.ping_interval_s]
    if not cutting:
        return Check("pings", "ok", shown, expected)
    change = (
        f"--ping-interval 25s: idle connections are cut by {', '.join(cutting)}, unless their idle times are raised "
        "(proxy_read_timeout, timeout tunnel, idle_timeout)"
    )
    return Check("pings", "advice", shown, expected, change)


MACHINE_CHECKS: Final[tuple[Callable[[Settings, Machine], Check], ...]] = (
    check_open_files,
    check_backlog,
    check_half_open,
    check_ports,
    check_socket_memory,
    check_memory,
    check_cpus,
    check_clock,
    check_drain,
    check_pings,
)


def _mebibytes(size_bytes: int) -> str:
    return format_size(size_bytes // 2**20 * 2**20)


# --- the settings and their files ------------------------------------------------------------------------------------


def check_start(settings: Settings) -> Iterator[Check]:
    """What a node makes of its settings before it listens: who comes in, and who may do what."""
    yield _attempt("authentication", lambda: _describe_authentication(settings), "what a node can check logins with")
    yield _attempt("groups", lambda: _describe_groups(settings), "groups of users that can be read")
    yield _attempt("origins and proxies", lambda: _describe_gate(settings), "pages and networks as they are written")
    yield _attempt("internal port", lambda: _describe_internal(settings), "loopback, or a key of 32 bytes or more")
    if settings.auth == "none" and settings.insecure_no_auth:
        change = "--auth jwt, unless whoever can reach this port may be any user"
        yield Check("open door", "advice", f"auth=none on {settings.host}", "tokens, or loopback only", change)
    elif settings.auth == "jwt" and not settings.session_secret_file:
        change = "--session-secret-file with `openssl rand -base64 48` in it, the same on all nodes"
        yield Check("session key", "advice", "random", "a file: with a random key a restart ends all sessions", change)
    if settings.auth == "jwt" and is_loopback(settings.host) and not settings.trusted_proxies:
        yield _advise_on_proxy(settings)
        if not settings.allowed_origins:
            change = "--allowed-origins with the origins of your pages, such as https://app.example.com"
            expected = "the origins of your pages: on loopback others have to ask for an address or localhost"
            yield Check("pages", "advice", "none named", expected, change)


def _advise_on_proxy(settings: Settings) -> Check:
    """With tokens and on loopback a node stands behind a proxy; unless that is trusted, all clients are one address."""
    limits = Limits.of(settings)
    expected = "the proxy in trusted_proxies: on loopback clients come through one"
    if not limits.connections_per_address and not limits.connection_rate:
        return Check("trusted proxies", "ok", "none, and no limits of addresses", expected)
    change = (
        "--trusted-proxies 127.0.0.1 and a proxy that sets X-Forwarded-For; else all clients share "
        f"--connections-per-address {limits.connections_per_address} and --connection-rate {limits.connection_rate}"
    )
    return Check("trusted proxies", "advice", "none", expected, change)


def _attempt(name: str, act: Callable[[], str], expected: str) -> Check:
    """What `act` says it found; its `ConfigError` is what is wrong."""
    try:
        return Check(name, "ok", act(), expected)
    except ConfigError as error:
        return Check(name, "wrong", f"{error.key}={error.value}", expected, f"{error.key}: {error.allowed}")


def _describe_authentication(settings: Settings) -> str:
    make_authenticator(settings)
    if settings.auth == "none":
        return f"none: a user is who it says, on {settings.host}"
    source = next(name for name in TOKEN_SOURCES if getattr(settings, name))
    return f"jwt with {source}" + (" (not fetched)" if source == "jwt_jwks_url" else "")


def _describe_groups(settings: Settings) -> str:
    permissions = make_permissions(settings, {})
    if permissions is None:
        return "none: everybody may do everything"
    return settings.config_file or "the default: direct messages and channels of one's own"


def _describe_gate(settings: Settings) -> str:
    Gate(settings)
    return f"pages of {settings.allowed_origins or 'the same host'}, proxies {settings.trusted_proxies or 'none'}"


def _describe_internal(settings: Settings) -> str:
    key = make_internal_key(settings)
    if settings.internal_port is None:
        return "none"
    return f"on {settings.internal_host}, {'with a key' if key else 'for reading alone'}"


def check_tls(settings: Settings, now_s: float) -> Iterator[Check]:
    """The certificate and its key, where there are any: readable, a pair, good for servers, not about to end."""
    expected = "a certificate and the key that fits it"
    try:
        certificate = Certificate.of(settings)
    except ConfigError as error:
        yield Check("TLS files", "wrong", f"{error.key}={error.value}", expected, f"{error.key}: {error.allowed}")
        return
    if certificate is None:
        return
    yield Check("TLS files", "ok", settings.tls_cert, expected)
    yield _judge_expiry(*_look_at(certificate.context, settings.tls_cert), now_s)


def _judge_expiry(ends_s: float | None, complaint: str, now_s: float) -> Check:
    name, expected = "TLS certificate", "good for more than 14 days"
    change = "have it renewed, then SIGHUP: the node reads it again"
    if ends_s is None:
        return Check(name, "wrong", complaint, expected, change)
    shown = f"ends on {time.strftime('%Y-%m-%d', time.gmtime(ends_s))}"
    if ends_s - now_s > EXPIRES_SOON_S:
        return Check(name, "ok", shown, expected)
    return Check(name, "advice" if ends_s > now_s else "wrong", shown, expected, change)


def _look_at(context: ssl.SSLContext, cert: str) -> tuple[float | None, str]:
    """When a certificate ends, or what OpenSSL has against it.

    Python reads a certificate only from a peer, so this shakes hands with itself, in memory, trusting the file.
    """
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file alone: no root has to be in it
    trusting.load_verify_locations(cert)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting.wrap_bio(down, up)
    server = context.wrap_bio(up, down, server_side=True)
    for step in range(_HANDSHAKE_STEPS):
        try:
            (server if step % 2 else client).do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return None, error.verify_message
        except ssl.SSLError as error:
            return None, (error.reason or "no handshake").lower().replace("_", " ")
        if seen := client.getpeercert():
            return float(ssl.cert_time_to_seconds(str(seen["notAfter"]))), ""
    return None, "no handshake"


def check_secret_files(settings: Settings) -> Iterator[Check]:
    """Files with secrets are nobody else's to read, and nobody else's to write."""
    for field in SECRET_FILES:
        path = getattr(settings, field, "")
        if not path:
            continue
        name, expected = re.sub("_file$", "", field).replace("_", " ") + " file", "mode 0640 or stricter"
        try:
            mode = stat.S_IMODE(Path(path).stat().st_mode)
        except OSError as error:
            reason = (error.strerror or "error").lower()
            yield Check(name, "wrong", f"{path}: {reason}", expected, f"{field}: a file that can be read")
            continue
        shown = f"{path}, mode {mode:04o}"
        if mode & 0o027:
            verdict: Verdict = "wrong" if mode & 0o007 else "advice"
            yield Check(name, verdict, shown, expected, f"chmod g-w,o= {path}")
        else:
            yield Check(name, "ok", shown, expected)
