"""Settings: TOML file, environment and command line in, one frozen value out.

Defaults < file < environment (`ZKD_WORKERS__THREADS`, short `ZKD_HOSTS` and `ZKD_ROOT`) < overrides from the
command line. Every fault is found in one pass and raised as one `BadSettings`, a line each, with the place it
came from. A setting exists only where somebody would set it; the rest are constants beside the code they rule.

This room reads one file and never a secret: `auth_file` and the TLS keys are names of files, which
`zkd.credentials` opens when a connection is made.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct, field

from zkd.errors import BadSettings
from zkd.paths import DEFAULT_ROOT, NAME_RULE, Paths, is_name
from zkd.sources import Given, from_env, from_file, from_overrides

DEFAULT_PATH = Path("/etc/zkd/zkd.toml")

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:,/\[\]]+)(?::(\d{1,5}))?")


# --- What a value has to be; each returns the value to keep, or raises ValueError with the expectation ----


def _hosts(value: str) -> str:
    hosts = [host.strip() for host in value.split(",")]
    for host in hosts:
        match = _HOST.fullmatch(host)
        if match is None or not 0 < int(match[2] or 2181) < 65536:
            raise ValueError("expected `host:port,host:port,...` without a path (that is `root`)")
    return ",".join(hosts)


def _root(value: str) -> str:
    return Paths(value).root


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(f"expected {NAME_RULE}")
    return value


def address(value: str) -> tuple[str, int]:
    """The host and the port of ``HOST:PORT``; port 0 is any free one."""
    match = _HOST.fullmatch(value)
    if match is None or match[2] is None or int(match[2]) > 65535:
        raise ValueError("expected `HOST:PORT`, such as 127.0.0.1:8080 or [::]:0")
    return match[1].strip("[]"), int(match[2])


def _address(value: str) -> str:
    address(value)
    return value


def _size(value: int | str) -> int:
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None or match[2] not in _UNITS:
        raise ValueError('expected bytes, as a number or such as "2GiB" or "512MiB"')
    return int(min(float(match[1]), 2.0**63) * _UNITS[match[2]])  # a number of 400 digits is infinite as a float


def _path(value: str) -> Path:
    return Path(value).expanduser().absolute()


def _paths(value: list[str]) -> list[Path]:
    return [_path(each) for each in value]


def machine_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Of the memory that this process may use: the machine's, or what its container or service is allowed, if less."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        own = cgroups / (proc / "self/cgroup").read_text().partition("0::/")[2].splitlines()[0]
    except (OSError, IndexError):
        own = cgroups  # no cgroup of the second kind, or none that is named
    for directory in (own, *own.parents):
        try:
            least = min(least, int((directory / "memory.max").read_text()))
        except (OSError, ValueError):  # "max", or not there
            continue
    return least


def default_name() -> str:
    return socket.gethostname()


def default_slots() -> int:
    # What this process may use, not what the machine has: a container or CPUAffinity= gives less.
    return len(os.sched_getaffinity(0))


def default_data_dir(env: Mapping[str, str] = os.environ) -> Path:
    if env.get("STATE_DIRECTORY"):
        return Path(env["STATE_DIRECTORY"].split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/zkd")
    return Path(env.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "zkd"


# --- The settings ----------------------------------------------------------------------------------------

# What the tree may say for many nodes at once (`zkd.core.config`). A node's identity, its addresses and files, the
# ensemble and credentials, whatever names code or places to open, and whom it lets in, is for its own machine to say.
CENTRAL = Meta(extra={"central": True})
# A change of these is applied at once; a change of any other waits for a restart, and says so.
LIVE_HERE = Meta(extra={"live": True})
LIVE = Meta(extra={"live": True, "central": True})


def _check(check: Callable[[Any], object]) -> Meta:
    return Meta(extra={"check": check})


Seconds = Annotated[float, Meta(gt=0, le=10 * 365 * 86400)]


Module = Annotated[str, Meta(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]


class Tls(Struct, frozen=True, kw_only=True):
    """`[zookeeper.tls]`, `[node.tls]`: present means that connections are encrypted.

    A node serves its data with `cert`, and with a `ca` to those only who show a certificate of that authority.
    """

    ca: str | None = None  # PEM file of the authorities to trust; the system's own if absent
    cert: str | None = None  # PEM file of our certificate, where the other side asks for one
    key: str | None = None  # PEM file of its key, if not in `cert`
    verify_hostname: bool = True  # off only where certificates carry other names


Identity = Annotated[str, Meta(pattern=r"^(world:anyone|digest:[^:\s]+:[A-Za-z0-9+/]{27}=|(ip|x509|sasl):\S.*)$")]


class Access(Struct, frozen=True, kw_only=True):
    """`[zookeeper.access]`: identities as ZooKeeper writes them, scheme:id. Present means that the tree is not open.

    The same on all nodes and for all clients; `zkd init` gives what is there already its ACLs. See docs/security.md.
    """

    daemons: Annotated[list[Identity], Meta(min_length=1)]  # all rights
    operators: list[Identity] = []  # all rights
    submitters: list[Identity] = []  # drop work and data, read results
    readers: list[Identity] = []  # read


class ZooKeeper(Struct, frozen=True, kw_only=True):
    """`[zookeeper]`: the ensemble."""

    hosts: Annotated[str, _check(_hosts)] = "127.0.0.1:2181"
    root: Annotated[str, _check(_root)] = DEFAULT_ROOT  # several clusters may share an ensemble
    # The server bounds it to 2..20 of its ticks. Shorter finds dead nodes sooner, longer survives longer pauses.
    session_timeout_s: Annotated[float, Meta(ge=1, le=600)] = 6.0
    auth_file: str | None = None  # lines of scheme:user:password
    tls: Tls | None = None
    access: Access | None = None


class Node(Struct, frozen=True, kw_only=True):
    """`[node]`: this daemon."""

    name: Annotated[str, _check(_name)] = field(default_factory=default_name)
    slots: Annotated[int, Meta(ge=1, le=4096), CENTRAL] = field(default_factory=default_slots)  # worker processes
    data_dir: Annotated[Path, _check(_path)] = field(default_factory=default_data_dir)
    # Bytes for all its kernels together; if not said, `workers.memory` for each slot, if that is said.
    memory: Annotated[int, Meta(ge=64 * 2**20, le=2**62), _check(_size), CENTRAL] | None = None
    labels: dict[str, str] = {}  # tasks may ask for them
    zone: str | None = None  # copies of data go to distinct zones
    http: Annotated[str, _check(_address)] = "127.0.0.1:0"  # other nodes fetch data here: give an address they reach
    tls: Tls | None = None  # of all that goes by HTTP; on all nodes and clients, or on none
    # Who sees the page at `/`: whoever reaches `http`, as with /metrics; who knows the cluster's token; nobody.
    dashboard: Annotated[Literal["open", "token", "off"], LIVE_HERE] = "open"
    drain_timeout_s: Annotated[Seconds, LIVE] = 60.0  # what still runs then is handed back


class Workers(Struct, frozen=True, kw_only=True):
    """`[workers]`: the processes that run kernels."""

    modules: list[Module] = []  # Python modules with @zkd.kernel functions
    # Bytes that one worker may allocate.
    memory: Annotated[int, Meta(ge=64 * 2**20, le=2**62), _check(_size), CENTRAL] | None = None
    recycle_tasks: Annotated[int, Meta(ge=1, le=2**62), CENTRAL] = 10_000  # replaced by a fresh process after so many
    recycle_age_s: Annotated[Seconds, CENTRAL] = 86400.0
    threads: Annotated[int, Meta(ge=1, le=1024), CENTRAL] = 1  # of BLAS in each; more than one pays with few slots only
    sandbox: bool = False  # Landlock: kernels change files below `writable` alone, use no TCP, signal nobody
    writable: Annotated[list[Path], _check(_paths)] = []  # what is not there when a worker starts is not


class Tasks(Struct, frozen=True, kw_only=True):
    """`[tasks]`: what holds for tasks that do not say."""

    timeout_s: Annotated[Seconds, LIVE] = 3600.0  # of one attempt
    result_ttl_s: Annotated[Seconds, LIVE] = 3600.0
    dead_ttl_s: Annotated[Seconds, LIVE] = 7 * 86400.0
    # What may wait or run in the whole cluster, by the settings of the node that leads; more is refused as it comes.
    # A ZooKeeper server with its stock heap of 1 GB had 0.8 kB a waiting task beside the bytes of the task itself.
    queue_max: Annotated[int, Meta(ge=1, le=2**62), LIVE] = 250_000
    queue_bytes_max: Annotated[int, Meta(ge=1, le=2**62), _check(_size), LIVE] = 256 * 2**20
    # Results beyond these go before their time, the next to end first, none in its first minute.
    results_max: Annotated[int, Meta(ge=1, le=2**62), LIVE] = 250_000
    results_bytes_max: Annotated[int, Meta(ge=1, le=2**62), _check(_size), LIVE] = 256 * 2**20


class Data(Struct, frozen=True, kw_only=True):
    """`[data]`: the parts of datasets that this node keeps."""

    weight: Annotated[float, Meta(ge=0, le=1_000_000), CENTRAL] = 1.0  # its share beside other nodes'; 0: it keeps none
    # A lost node's parts are copied elsewhere after this long, by the settings of the node that leads. A restart
    # should take less.
    grace_s: Annotated[Seconds, LIVE] = 60.0
    # Bytes a second that this node fetches to mend or move copies, and reads to look for rotten ones.
    repair_bytes_s: Annotated[int, Meta(ge=2**10, le=2**62), _check(_size), LIVE] = 100 * 2**20
    # file:///… and s3://… that tasks on datasets there may be given data from: these, and what is below them. Such a
    # URL stands in the tree; a node opens none that its operator did not name.
    stores: Annotated[list[str], LIVE_HERE] = []
    scrub_bytes_s: Annotated[int, Meta(ge=2**10, le=2**62), _check(_size), LIVE] = 20 * 2**20


class Training(Struct, frozen=True, kw_only=True):
    """`[training]`: rounds over the parts that lie here, and jobs that this node coordinates."""

    coordinate: Annotated[bool, LIVE] = True  # off: this node computes partials, others open the rounds
    # Processes that compute; if not said, `node.slots`.
    workers: Annotated[int, Meta(ge=1, le=4096), CENTRAL] | None = None
    # Bytes of rows that these keep ready between rounds, together; if not said, a quarter of the machine's. What does
    # not fit is read anew each round.
    memory: Annotated[int, Meta(ge=64 * 2**20, le=2**62), _check(_size), CENTRAL] | None = None
    jobs_max: Annotated[int, Meta(ge=1, le=1000), LIVE] = 4  # that this node coordinates at a time
    checkpoint_s: Annotated[Seconds, LIVE] = 5.0  # a lost coordinator's rounds since then are done again
    replicas: Annotated[int, Meta(ge=1, le=16), LIVE] = 2  # nodes that have a checkpoint before it counts


class Serving(Struct, frozen=True, kw_only=True):
    """`[serving]`: the processes that answer requests for predictions."""

    processes: Annotated[int, Meta(ge=1, le=256), CENTRAL] = 1  # started with the first request, ended when idle
    threads: Annotated[int, Meta(ge=1, le=1024), CENTRAL] = 1  # of BLAS in each
    # Bytes of models that are open at a time, mapped and shared by all processes; if not said, an eighth of the
    # machine's. The one used longest ago goes first.
    memory: Annotated[int, Meta(ge=2**20, le=2**62), _check(_size), CENTRAL] | None = None
    # Batches of one model at a time; if not said, as many as fit.
    concurrency: Annotated[int, Meta(ge=1, le=1024), CENTRAL] | None = None
    queue_max: Annotated[int, Meta(ge=1, le=1_000_000), CENTRAL] = 1000  # requests that wait for one model
    queue_bytes_max: Annotated[int, Meta(ge=2**20, le=2**62), _check(_size), CENTRAL] = (
        64 * 2**20
    )  # of requests, in all
    target_ms: Annotated[float, Meta(gt=0, le=60_000), CENTRAL] = 10.0  # batches grow until one takes this long
    deadline_ms: Annotated[float, Meta(gt=0, le=60_000), LIVE] = 1000.0  # of requests that say none


class Log(Struct, frozen=True, kw_only=True):
    """`[log]`: what the daemon tells, on stderr."""

    level: Annotated[Literal["debug", "info", "warning", "error"], LIVE] = "info"
    format: Literal["auto", "console", "json", "journal"] = "auto"  # auto: journal, terminal or JSON lines, as found


class Settings(Struct, frozen=True, kw_only=True):
    """Everything a daemon or a client can be told. `Settings()` is good for a ZooKeeper on this machine."""

    zookeeper: ZooKeeper = field(default_factory=ZooKeeper)
    node: Node = field(default_factory=Node)
    workers: Workers = field(default_factory=Workers)
    tasks: Tasks = field(default_factory=Tasks)
    data: Data = field(default_factory=Data)
    training: Training = field(default_factory=Training)
    serving: Serving = field(default_factory=Serving)
    log: Log = field(default_factory=Log)


class Key(Struct, frozen=True):
    """One setting, as found by walking over the structs above."""

    type: Any
    check: Callable[[Any], object] | None
    is_live: bool
    is_central: bool


def _walk(cls: type[Struct], prefix: str, keys: dict[str, Key], sections: dict[str, type[Struct]]) -> None:
    for name, hint in get_type_hints(cls, include_extras=True).items():
        inner = next((part for part in (hint, *get_args(hint)) if _is_section(part)), None)
        if inner is not None:
            sections[prefix + name] = inner
            _walk(inner, f"{prefix}{name}.", keys, sections)
            continue
        extras = [meta.extra or {} for meta in _metas(hint)]
        check = next((extra["check"] for extra in extras if "check" in extra), None)
        is_live, is_central = (any(word in extra for extra in extras) for word in ("live", "central"))
        keys[prefix + name] = Key(hint, check, is_live, is_central)


def _is_section(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Struct)


def _metas(hint: Any) -> list[Meta]:
    own = [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Meta)]
    return own + [meta for part in get_args(hint) for meta in _metas(part)]


KEYS: dict[str, Key] = {}
SECTIONS: dict[str, type[Struct]] = {}
_walk(Settings, "", KEYS, SECTIONS)


# --- Loading ---------------------------------------------------------------------------------------------


def load(
    path: Path | None = None, env: Mapping[str, str] = os.environ, overrides: Mapping[str, Any] | None = None
) -> Settings:
    """The settings from `path` (None: no file), `env` and `overrides` (``{"zookeeper.hosts": "a:2181"}``).

    Raises `BadSettings` with every fault, a line each.
    """
    return load_with_origins(path, env, overrides)[0]


def load_with_origins(
    path: Path | None = None, env: Mapping[str, str] = os.environ, overrides: Mapping[str, Any] | None = None
) -> tuple[Settings, dict[str, str]]:
    """The settings, and for every key where its value came from (``default`` where nobody gave one)."""
    faults: list[str] = []
    given = {
        "node.data_dir": Given(str(default_data_dir(env)), "default"),
        "node.name": Given(default_name(), "default"),
    }
    given |= from_file(path, KEYS, SECTIONS, faults) if path is not None else {}
    given |= from_env(env, KEYS, faults)
    given |= from_overrides(overrides or {}, KEYS, faults)
    values: dict[str, Any] = {}
    for key in given:
        if key in KEYS:
            try:
                values[key] = _value(KEYS[key], given[key])
            except (ValueError, msgspec.ValidationError) as error:
                faults.append(f"{given[key].origin}: {key}: {error} (is {given[key].value!r})")
    if faults:
        raise BadSettings("\n".join(faults))
    settings: Settings = _build(Settings, "", values, set(given))
    return settings, {key: given[key].origin if key in given else "default" for key in KEYS}


def _value(key: Key, given: Given) -> Any:
    value = str(given.value) if isinstance(given.value, Path) else given.value
    if given.is_text:
        value = _from_text(key, value)
    if key.check is not None:
        asks = get_type_hints(key.check)["value"]
        value = key.check(msgspec.convert(value, asks, strict=not given.is_text))
    choices = _choices(key.type)
    if choices and value not in choices:
        raise ValueError(f"expected one of {', '.join(choices)}")
    return msgspec.convert(value, key.type, strict=not given.is_text)


def _choices(hint: Any) -> tuple[str, ...]:
    """The words of a `Literal`."""
    if get_origin(hint) is Annotated:
        return _choices(get_args(hint)[0])
    return get_args(hint) if get_origin(hint) is Literal else ()


def _from_text(key: Key, text: str) -> Any:
    """Lists are written ``a,b`` and tables ``rack=r1,gpu=no`` where only text can be given."""
    kind = get_origin(get_args(key.type)[0] if get_origin(key.type) is Annotated else key.type)
    if kind is list:
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is dict:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("expected `name=value,name=value`")
        return {name.strip(): value.strip() for name, _, value in pairs}
    return text


def _build(cls: type[Struct], prefix: str, values: Mapping[str, Any], given: set[str]) -> Any:
    fields: dict[str, Any] = {}
    for name in cls.__struct_fields__:
        key = prefix + name
        if key in values:
            fields[name] = values[key]
        elif key in SECTIONS and any(each == key or each.startswith(f"{key}.") for each in given):
            fields[name] = _build(SECTIONS[key], f"{key}.", values, given)
    return cls(**fields)


def flat(settings: Settings) -> dict[str, Any]:
    """Every setting by its dotted key, in the order of this file; a section that is not there gives None."""
    values: dict[str, Any] = {}
    for key in [*SECTIONS, *KEYS]:
        value: Any = settings
        for name in key.split("."):
            value = getattr(value, name, None)
        values[key] = value
    return {key: value for key, value in values.items() if key in KEYS or value is None}


def changed(old: Settings, new: Settings) -> tuple[list[str], list[str]]:
    """The keys whose values differ: those that a running daemon applies, and those that need a restart."""
    before, after = flat(old), flat(new)
    keys = [key for key in {**before, **after} if before.get(key, ...) != after.get(key, ...)]
    return [key for key in keys if _is_live(key)], [key for key in keys if not _is_live(key)]


def _is_live(key: str) -> bool:
    return key in KEYS and KEYS[key].is_live


def with_live(old: Settings, new: Settings) -> Settings:
    """`old` with the live values of `new`: what a running daemon has after a reload."""
    values = flat(new)
    return with_values(old, {key: values[key] for key in KEYS if _is_live(key)})


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with other values for keys such as ``tasks.timeout_s``."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    replaced = {name: msgspec.structs.replace(getattr(settings, name), **given) for name, given in sections.items()}
    return msgspec.structs.replace(settings, **replaced)


def value_of(key: str, value: Any, *, is_text: bool = False) -> Any:
    """What the setting `key` becomes when somebody gives it `value`. Raises `ValueError` with what was expected."""
    return _value(KEYS[key], Given(value, "", is_text))
