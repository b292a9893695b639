"""The settings of a node: each with its unit, its default and the reason for it.

Values come from keyword arguments (the CLI's flags, `Starlight(...)`), then from the environment as
``STARLIGHT_<FIELD>``, then from the TOML file that `config_file` names, where the fields are the top-level keys, then
from the defaults here. Sizes are written ``64KiB``, ``1MB`` or plain bytes, durations ``250ms``, ``10s``, ``2m`` or
plain seconds, everywhere alike. A wrong value raises `ConfigError`, which names the setting, where it was set, the
value and what is allowed; nothing is ever clamped silently. All that is wrong is told at once.

A new field is a flag, a variable, a key of the file and a line of the help and the documentation by itself; see
`config_types` for the markers.
"""

import os
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

from pydantic import BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from starlight.config.fields import (
    ENV_PREFIX,
    HIDDEN,
    RELOADS,
    DryRuns,
    Duration,
    Entry,
    FileName,
    Flag,
    Host,
    Panel,
    Shown,
    Size,
    TextList,
    Url,
    UrlPath,
    is_optional,
)
from starlight.config.file import TABLES, ConfigFile, nearest
from starlight.errors import ConfigError

__all__ = [
    "Origin",
    "Settings",
    "allowed",
    "entries",
    "hidden_errors",
    "origins",
    "unknown_variables",
    "written",
]

OTHER_VARIABLES: Final = {
    "STARLIGHT_URL": "the server that `starlight sub`, `pub` and `send` connect to",
    "STARLIGHT_USER": "the user they log in as",
    "STARLIGHT_TOKEN": "the token they log in with",
    "STARLIGHT_NODE": "the internal ports that `starlight top`, `conns`, `why`, `kick` and `drain` ask, with spaces "
    "between",
    "STARLIGHT_BUILD": "how the compiled modules are built: release, debug or a sanitizer",
    "STARLIGHT_ANNOTATE": "writes the compiler's annotated sources when building",
}
"""Variables that are no settings of a node, and what they are for."""


class Settings(BaseSettings):
    """What a node runs with; immutable.

    Raises:
        ConfigError: for the first wrong value or name; its `others` are the rest.
    """

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True, validate_default=False)

    host: Annotated[Host, Panel("Address")] = Field(
        "127.0.0.1",
        min_length=1,
        max_length=255,
        description="Address to listen on. Loopback, so that nothing is open to a network before somebody says so. "
        "0.0.0.0 is every address of IPv4, :: those of IPv6 as well.",
    )
    port: int = Field(
        8765,
        ge=0,
        le=65_535,
        description="Port to listen on; 0 picks a free one. Above 1023, so that no privileges are needed.",
    )
    reuse_port: bool = Field(
        False,
        description="Let the next process listen on the port before this one ends. By SO_REUSEPORT. Off: a second "
        "process on the port is then most likely a mistake, and any of the same user could take connections.",
    )
    path: UrlPath = Field("/ws", description="Path of the WebSocket endpoint. Any other path is answered with 404.")
    node_name: Annotated[str, Shown("host and port")] = Field(
        "",
        max_length=255,
        description="What the node is called in log and metrics. Clients are not told, they see a random "
        "name of each run.",
    )
    config_file: Annotated[FileName, Flag("--config"), RELOADS] = Field(
        "",
        max_length=4096,
        description="TOML file with settings, groups of users and options of channels. Its keys are the names of the "
        "settings; [groups.<name>] tables say what users may do, [channels.<pattern>] tables what channels are like. "
        "From the working directory, as are file names in it. None: no groups, no options, and no settings but flags "
        "and variables.",
    )
    tls_cert: Annotated[FileName, Panel("TLS"), RELOADS] = Field(
        "",
        max_length=4096,
        description="PEM file with certificate and chain, for wss. It needs tls_key; both are read again at SIGHUP.",
    )
    tls_key: Annotated[FileName, RELOADS] = Field(
        "", max_length=4096, description="PEM file with the private key of tls_cert. Not encrypted."
    )
    auth: Annotated[Literal["none", "jwt"], Panel("Who may come in")] = Field(
        "none",
        description="How a client proves who it is. With none the user it names is believed; jwt wants a signed token.",
    )
    insecure_no_auth: bool = Field(
        False,
        description="Let anybody in from any network with auth none. Off: a node that others than this machine can "
        "reach and that believes everybody is open.",
    )
    jwt_secret: Annotated[SecretStr, RELOADS] = Field(
        SecretStr(""),
        description="Secret of HS256, HS384 and HS512 tokens. From the environment or code only: a command line can "
        "be read by everybody on the machine, and configuration files are copied around. At least 32 bytes, as long "
        "as the hash.",
    )
    jwt_secret_file: Annotated[FileName, RELOADS] = Field(
        "",
        max_length=4096,
        description="File with the secret of HS256, HS384 and HS512 tokens. Line breaks at its end are cut.",
    )
    jwt_key_file: Annotated[FileName, RELOADS] = Field(
        "", max_length=4096, description="File with the public key of RS, PS, ES and EdDSA tokens. In PEM."
    )
    jwt_jwks_url: Annotated[Url, RELOADS] = Field(
        "",
        max_length=2048,
        description="The issuer's key set. An https URL (http on this machine only); fetched at need and every 10 "
        "minutes.",
    )
    jwt_algorithms: Annotated[TextList, Shown("what fits the key"), RELOADS] = Field(
        "",
        max_length=255,
        description="Algorithms to accept, with commas. Never both kinds, secret and public.",
    )
    jwt_issuer: Annotated[str, Shown("any"), RELOADS] = Field(
        "", max_length=2048, description="The only issuer (iss) to accept. Without it the tokens of any are good."
    )
    jwt_audience: Annotated[str, RELOADS] = Field(
        "",
        max_length=2048,
        description="What tokens must be meant for (aud). Without it tokens with an audience are for somebody else.",
    )
    jwt_leeway_s: Annotated[Duration, RELOADS] = Field(
        10.0,
        ge=0,
        le=30,
        description="How far the issuer's clock may be off. Synchronised clocks differ by less than a second; 10 s "
        "forgives one that is not.",
    )
    jwt_groups_claim: Annotated[str, RELOADS] = Field(
        "groups", min_length=1, max_length=255, description="The claim that names the user's groups."
    )
    session_secret_file: Annotated[FileName, Shown("random"), RELOADS] = Field(
        "",
        max_length=4096,
        description="File with the key of session tokens, the same for all nodes. A random key ends all sessions at a "
        "restart.",
    )
    session_previous_secret_file: Annotated[FileName, RELOADS] = Field(
        "",
        max_length=4096,
        description="File with another key whose session tokens are good, but which signs none. The one before, so "
        "that a change of keys sends nobody away; until session_ttl has passed.",
    )
    session_ttl_s: Annotated[Duration, RELOADS] = Field(
        3_600.0,
        ge=1,
        le=86_400,
        description="How long a login lasts at most before it needs a fresh token. An hour: what somebody loses who "
        "was sent away, and how long a stolen session token is good.",
    )
    allowed_origins: Annotated[TextList, Shown("same host"), RELOADS] = Field(
        "",
        max_length=65_536,
        description="Pages that may connect, with commas. Origins such as https://app.example.com, "
        "https://*.example.com, capacitor://localhost, chrome-extension://<id>, file://, null, or * for any; by "
        "default pages of the host they connect to, which on loopback has to be an address or localhost.",
    )
    trusted_proxies: Annotated[TextList, RELOADS] = Field(
        "",
        max_length=65_536,
        description="Proxies whose X-Forwarded-For is believed. Addresses or networks, with commas. None, as anybody "
        "can send that header.",
    )
    max_connections: Annotated[int, Panel("How much is let in")] = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Connections at once. More are refused at accept. Keep it below the limit of open files.",
    )
    connections_per_user: Annotated[int, Shown("{} with tokens"), RELOADS] = Field(
        20,
        ge=0,
        le=1_000_000,
        description="Connections of one user at once. 4016 beyond. A person has some devices and tabs; at the limit, "
        "those that don't answer a ping within 3 s make room. 0: no limit, as is the default with auth none.",
    )
    connections_per_address: Annotated[int, Shown("{} with tokens"), RELOADS] = Field(
        500,
        ge=0,
        le=1_000_000,
        description="Connections of one address (IPv6: /64) at once. Refused at accept beyond. An office behind one "
        "address has hundreds of people. 0: no limit, as is the default with auth none.",
    )
    connection_rate: Annotated[int, Shown("{} with tokens"), RELOADS] = Field(
        50,
        ge=0,
        le=100_000,
        description="New connections of one address a second. Two seconds' worth at once; refused at accept beyond. "
        "50 cost a hundredth of a core. 0: no limit, as is the default with auth none.",
    )
    message_rate: Annotated[int, Shown("{} with tokens"), RELOADS] = Field(
        200,
        ge=0,
        le=1_000_000,
        description="Messages of one client a second. Control frames, fragments and empty lines count as well. Two "
        "seconds' worth at once; 111 beyond, then 4013. Nobody types or drags faster; programs may. 0: no limit, as is "
        "the default with auth none.",
    )
    byte_rate_bytes: Annotated[Size, Shown("{} with tokens"), RELOADS] = Field(
        2**20,
        ge=0,
        le=2**30,
        description="Bytes read from one client a second. Two seconds' worth at once, as for messages. 1 MiB is 8 "
        "Mbit/s from each. 0: no limit, as is the default with auth none.",
    )
    read_limit_bytes: Size = Field(
        64 * 2**10,
        ge=128,
        le=64 * 2**20,
        description="The largest message, or frame of lines, a client may send. 1009 above it. Read buffers grow to it "
        "and do not shrink, so it also bounds idle memory.",
    )
    channels_per_client: Annotated[int, RELOADS] = Field(
        1_000,
        ge=1,
        le=1_000_000,
        description="Channels one client may have joined. 106 beyond. A membership takes about 90 bytes, 400 to 620 "
        "if nobody else is in the channel; people use tens of channels, programs rarely hundreds.",
    )
    name_limit_bytes: Annotated[int, RELOADS] = Field(
        255,
        ge=8,
        le=255,
        description="The longest name of a user or channel, in bytes. 255 is the protocol's limit; channels that "
        "nobody is in cost nothing, so lower it only where names are stored elsewhere.",
    )
    outbox_messages: Annotated[int, Panel("Slow consumers and memory")] = Field(
        256,
        ge=1,
        le=1_000_000,
        description="Messages an outbox may hold while its client takes nothing. Beyond, it is evicted (4008) after "
        "evict_after. A client that reads is not, until its oldest message has waited for write_timeout. "
        "256 is the buffer of the channel that the Go pattern gives each client.",
    )
    outbox_bytes: Annotated[Size, Flag("--outbox-bytes")] = Field(
        2**20,
        ge=2**10,
        le=2**30,
        description="Bytes an outbox may hold while its client takes nothing. As for messages. 1 MiB is 256 messages "
        "of 4 KiB. A burst may pass it, so memory_budget is what bounds all outboxes together.",
    )
    evict_after_s: Duration = Field(
        0.5,
        ge=0,
        le=60,
        description="How long a client over a limit of its outbox may take nothing. It counts from the last byte that "
        "its socket took. 500 ms is longer than a retransmission on a mobile line, and a client that reads "
        "nothing is gone before it costs much; 0 evicts it at the limit.",
    )
    memory_budget_bytes: Size = Field(
        512 * 2**20,
        ge=2**20,
        le=2**40,
        description="Memory for all outboxes together. Counted in whole chunks; the largest outboxes go first. One "
        "outbox may pass its own limits while its client reads, so this bounds the process. Half of a 1 GiB "
        "container.",
    )
    send_buffer_bytes: Size = Field(
        64 * 2**10,
        ge=4 * 2**10,
        le=64 * 2**20,
        description="The kernel's send buffer (SO_SNDBUF) of each connection. At the kernel's own choice a stalled "
        "reader takes 4 MiB before it is noticed, at 64 KiB about 230 KiB.",
    )
    coalesce_delay_s: Duration = Field(
        0.0,
        ge=0,
        le=1,
        description="How much longer a loop turn collects before it writes. 0 adds no latency: what is read in one "
        "turn is written together anyway.",
    )
    dry_run: Annotated[DryRuns, RELOADS] = Field(
        "",
        max_length=255,
        description="Limits that are not enforced, only counted and logged. Some of evict (outboxes), rates (messages) "
        "and connections (of a user or address), with commas: to see on a node that serves what they would do. Never "
        "the memory budget, the write timeout, max_connections or logins. None, as limits are there to hold.",
    )
    handshake_timeout_s: Annotated[Duration, Panel("Times")] = Field(
        5.0,
        ge=0.01,
        le=300,
        description="From accept to the end of the HTTP request. A browser needs milliseconds.",
    )
    login_timeout_s: Duration = Field(
        5.0,
        ge=0.01,
        le=300,
        description="From the handshake to the login message; 4015 after it. Then for an application's check of it, "
        "and for its on_connect: 1013.",
    )
    ping_interval_s: Duration = Field(
        25.0,
        ge=0.01,
        le=3_600,
        description="Between two pings to a client. 25 s is below the 30 s at which the strictest proxies cut an idle "
        "connection.",
    )
    pong_timeout_s: Duration = Field(
        10.0,
        ge=0.01,
        le=300,
        description="How long the pong to a ping may take. 4012 after it. Covers a change of mobile network.",
    )
    write_timeout_s: Duration = Field(
        10.0,
        ge=0.01,
        le=300,
        description="How long a socket may take nothing at all. 4009 after it. Also how long the oldest message of a "
        "client over its limits may wait, however it reads: 4008. 10 s is what a person may wait behind a "
        "burst on a slow line.",
    )
    drain_timeout_s: Annotated[Duration, Panel("Drain"), RELOADS] = Field(
        10.0,
        ge=0,
        le=3_600,
        description="How long SIGTERM waits for outboxes to empty. Then it leaves anyway. Below the 30 s that "
        "Kubernetes waits. 0 leaves at once.",
    )
    drain_notice_s: Annotated[Duration, RELOADS] = Field(
        0.0,
        ge=0,
        le=3_600,
        description="How long of the drain a node only says that it isn't ready. It goes on as ever, and then listens "
        "no more. 0 where nobody asks; else what a load balancer needs to notice: its interval times the failures it "
        "waits for.",
    )
    drain_rate: Annotated[int, RELOADS] = Field(
        1_500,
        ge=1,
        le=1_000_000,
        description="Connections a draining node closes a second at most. 1,500 logins a second are a third of a core "
        "where the clients go; a full node of 10,000 is empty in 7 s of its drain_timeout.",
    )
    internal_host: Annotated[Host, Panel("Internal port")] = Field(
        "127.0.0.1",
        min_length=1,
        max_length=255,
        description="Address of the port for health, metrics and control. Any but a loopback one needs "
        "internal_key_file, as the port tells who is connected.",
    )
    internal_port: Annotated[int | None, Shown("none")] = Field(
        None,
        ge=0,
        le=65_535,
        description="Port for health, metrics and control; 0 picks a free one. None: there is no such port, and "
        "nothing is imported or measured for it.",
    )
    internal_key_file: Annotated[FileName, RELOADS] = Field(
        "",
        max_length=4096,
        description="File with the bearer key for whatever changes things over the internal port. At least 32 bytes. "
        "None: that port only tells.",
    )
    log_format: Annotated[Literal["auto", "console", "json"], Panel("Log")] = Field(
        "auto", description="How log lines are written. With auto: console on a terminal, json everywhere else."
    )
    log_file: Annotated[FileName, Shown("stderr")] = Field(
        "",
        max_length=4096,
        description="File that the log is appended to, instead of stderr. Opened again at SIGUSR1 and SIGHUP, and "
        "within a second of being renamed, so that it can be rotated.",
    )
    log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
        RELOADS,
    ] = Field("info", description="The least severe line to log.")

    def __init__(self, **values: Any) -> None:
        errors: list[ConfigError] = []
        try:
            sources = Sources.of(values)
            errors += sources.misplaced()
        except ConfigError as error:  # of the file; what else is wrong is told with it
            errors.append(error)
            sources = Sources.of({**values, "config_file": ""})
        try:
            super().__init__(**values, **sources.file_values())
        except ValidationError as failure:
            told = {error.field for error in errors} & {"config_file"}
            found = [_config_error(detail, sources) for detail in failure.errors(include_url=False)]
            errors += [error for error in found if error.field not in told]
        if errors:
            raise ConfigError.all_of(errors)

    @field_validator("*", mode="before")
    @classmethod
    def _plain_values(cls, value: Any, info: ValidationInfo) -> Any:
        """An empty text is None where that may be: no variable or file can say None. And true is no number."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if value == "" and is_optional(annotation):
            return None
        if isinstance(value, bool) and annotation is not bool:  # pydantic would read true as 1
            raise ValueError("true or false is meant for a switch")
        return value

    def reloaded(self, new: "Settings") -> Self:
        """These settings with what SIGHUP may change taken from others; what was set on purpose stays known."""
        names = {entry.name for entry in entries() if entry.reloads}
        values = {name: getattr(new if name in names else self, name) for name in type(self).model_fields}
        fields_set = (self.model_fields_set - names) | (new.model_fields_set & names)
        return self.model_construct(fields_set, **values)


class Origin(NamedTuple):
    """Where the value of a setting comes from.

    Attributes:
        kind: which of the sources.
        key: as the user wrote it: ``outbox_bytes``, ``STARLIGHT_OUTBOX_BYTES``, ``starlight.toml:7: outbox_bytes``.
        value: what the user wrote; None for a default.
    """

    kind: Literal["argument", "variable", "file", "default"]
    key: str
    value: object


class Sources(NamedTuple):
    """Where the values of one `Settings` come from, the first one first.

    Attributes:
        arguments: by field.
        variables: names and values of environment variables by field.
        file: None without one.
    """

    arguments: Mapping[str, Any]
    variables: Mapping[str, tuple[str, str]]
    file: ConfigFile | None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """What there is besides the arguments. Raises `ConfigError` for a file that can't be read."""
        variables = {}
        for name, value in os.environ.items():
            if name.upper().startswith(ENV_PREFIX):  # pydantic-settings doesn't mind the case either
                variables[name[len(ENV_PREFIX) :].lower()] = (name, value)
        key, path = "config_file", arguments.get("config_file")
        if "config_file" not in arguments:
            key, path = variables.get("config_file", (key, ""))
        return cls(arguments, variables, ConfigFile.read(path, key) if isinstance(path, str) and path else None)

    def origin(self, field: str) -> Origin:
        """Where the value of a field (or what stands in its place) comes from."""
        if field in self.arguments:
            return Origin("argument", field, self.arguments[field])
        if field in self.variables:
            return Origin("variable", *self.variables[field])
        if self.file is not None and field in self.file.settings:
            return Origin("file", self.file.place(field), self.file.settings[field])
        return Origin("default", field, None)

    def file_values(self) -> dict[str, Any]:
        """What the file says and nothing that goes before it does; what may not stand there left out."""
        if self.file is None:
            return {}
        hidden = {"config_file", *self.arguments, *(name for name in self.variables if name in Settings.model_fields)}
        return {
            name: value for name, value in self.file.settings.items() if name not in hidden and name not in _secrets()
        }

    def misplaced(self) -> list[ConfigError]:
        """Settings that may not stand in a file, and do."""
        if self.file is None:
            return []
        errors = []
        for name in self.file.settings:
            if name in _secrets():
                rule = f"no secret in this file; {name}_file names a file of its own"
                errors.append(ConfigError(self.file.place(name), HIDDEN, rule, name))
            elif name == "config_file":
                value = self.file.settings[name]
                errors.append(ConfigError(self.file.place(name), value, "no other file to be named in here", name))
        return errors


def origins(arguments: Mapping[str, Any]) -> dict[str, Origin]:
    """Where each field of `Settings(**arguments)` comes from. Raises `ConfigError` as that does for the file."""
    sources = Sources.of(arguments)
    return {name: sources.origin(name) for name in Settings.model_fields}


def hidden_errors(arguments: Mapping[str, Any]) -> list[ConfigError]:
    """What is wrong in the file with values that something else goes before, so that nobody else would notice."""
    sources = Sources.of(arguments)
    if sources.file is None:
        return []
    shown = sources.file_values()
    hidden = {
        name: value
        for name, value in sources.file.settings.items()
        if name in Settings.model_fields and name not in shown and name not in _secrets() and name != "config_file"
    }
    try:
        Settings(_env_prefix="\0", config_file="", **hidden)
    except ConfigError as error:
        return [
            ConfigError(sources.file.place(one.key), one.value, one.allowed, one.key) for one in (error, *error.others)
        ]
    return []


def written(arguments: Mapping[str, Any], without: Iterable[str]) -> Settings:
    """The settings of some arguments, the environment and the file, but for some fields, which have their defaults.

    Raises `ConfigError` if one of the others is wrong, too.
    """
    left_out = {*without, "config_file"}
    try:
        sources = Sources.of(arguments)
    except ConfigError:
        sources = Sources.of({**arguments, "config_file": ""})
    found = {name: sources.origin(name) for name in Settings.model_fields if name not in left_out}
    values = {name: origin.value for name, origin in found.items() if origin.kind != "default"}
    return Settings(_env_prefix="\0", config_file="", **values)


def _config_error(detail: Any, sources: Sources) -> ConfigError:
    """One of pydantic's complaints, in terms of what the user wrote."""
    field = str(detail["loc"][0])
    origin = sources.origin(field)
    if field not in Settings.model_fields:
        tables = TABLES if origin.kind == "file" else {}
        rule = "the name of a setting" + (f", {' or '.join(tables.values())}" if tables else "")
        return ConfigError(origin.key, origin.value, rule + nearest(field, [*Settings.model_fields, *tables]), field)
    value = HIDDEN if field in _secrets() else origin.value
    rule = allowed(field)
    choices = next(entry.choices for entry in entries() if entry.name == field)
    if choices:
        rule += nearest(str(value), choices)
    if origin.kind == "variable" and str(value).startswith(("tcp://", "udp://")):
        rule += "; Kubernetes sets this variable for a Service named starlight unless enableServiceLinks is false"
    return ConfigError(origin.key, value, rule, field)


_SERVICE_LINK: Final = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?|_PORT_\d+_(TCP|UDP)(_\w+)?")


def unknown_variables(names: Iterable[str]) -> list[str]:
    """A line for each name of a variable that begins with ``STARLIGHT_`` and that nothing reads.

    Lines and not errors: an environment is shared, and Kubernetes puts variables of its own into it, which are passed
    over here.
    """
    known = [entry.variable for entry in entries()] + list(OTHER_VARIABLES)
    return [
        f"{name}: no such variable{nearest(name, known, ENV_PREFIX)}"
        for name in sorted(names)
        if name.upper().startswith(ENV_PREFIX) and name.upper() not in known and not _SERVICE_LINK.search(name)
    ]


@cache
def entries() -> list[Entry]:
    """All settings in their order, as people meet them."""
    found: list[Entry] = []
    panel = ""
    for name, info in Settings.model_fields.items():
        panel = next((item.title for item in info.metadata if isinstance(item, Panel)), panel)
        found.append(Entry(name, info, panel))
    return found


def _secrets() -> set[str]:
    return {name for name, info in Settings.model_fields.items() if info.annotation is SecretStr}


def allowed(field: str) -> str:
    """What a field of `Settings` may be, for error messages: kind and bounds."""
    return next(entry.allowed for entry in entries() if entry.name == field)
