"""A real Apache ZooKeeper as child processes of this one: a single server, or an ensemble.

For `zkd dev --zookeeper`, benchmarks and every integration test. It finds Debian's jars or those of
`ZOOKEEPER_HOME`, writes a `zoo.cfg` into a directory of its own, and starts a small JVM on free ports of
127.0.0.1. The defaults are for tests (short ticks, no fsync); a benchmark that quotes figures sets
`force_sync=True` and says so.

Everything here is plain blocking code with deadlines, so that fixtures, threads and programs can use it
alike. A server dies with the process that started it (from its main thread), however that one ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from zkd.errors import ZkdError
from zkd.zk.jvm import ApacheMissing, class_path, dies_with_us, free_port, java

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "ApacheFailed",
    "ApacheMissing",
    "ApacheServer",
    "Ensemble",
    "Flags",
    "Member",
    "Tls",
    "ask",
    "class_path",
    "dies_with_us",
    "ensemble",
    "free_port",
    "java",
]

MAIN = "org.apache.zookeeper.server.quorum.QuorumPeerMain"

# Measured on two cores: from 0.52 s to 0.40 s until it answers, and from 65 to 57 MiB. A server that runs for
# long is better off with all of the JVM's compilers: `Flags.long_lived`.
JVM_FLAGS = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData", "-Xss512k", "-Xmx256m")

START_S = 30.0  # 0.4 s on an idle machine; a loaded CI machine has taken 8 s
POLL_S = 0.02


class ApacheFailed(ZkdError):
    """The server ended, or did not serve in time. The message ends with the last lines of its log."""


@dataclass(frozen=True)
class Tls:
    """A TLS port beside the plain one, with Java key stores (PKCS12 or JKS) as ZooKeeper wants them."""

    keystore: Path
    truststore: Path
    password: str
    client_auth: str = "need"  # need | want | none


@dataclass(frozen=True)
class Member:
    """One server's place in an ensemble: its number, and the `server.N` lines that all members share."""

    number: int
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Flags:
    """How a server is to be run. All of an ensemble's servers have the same flags."""

    tick_ms: int = 200  # session timeouts are between 2 ticks and `max_session_ms`
    max_session_ms: int = 60_000
    force_sync: bool = False
    extended_types: bool = True  # TTL nodes
    container_check_ms: int = 500  # also the pace at which TTL nodes are removed
    jute_max_buffer: int | None = None
    netty: bool = False
    tls: Tls | None = None
    heap: str | None = None
    long_lived: bool = False  # the JVM as an operator would run it, not one that starts fast
    log_level: str = "info"
    config: Mapping[str, str] = field(default_factory=dict)  # further lines of zoo.cfg
    properties: Mapping[str, str] = field(default_factory=dict)  # further -D of the JVM


class ApacheServer:
    """One ZooKeeper server process. `directory` keeps its data, configuration and log."""

    def __init__(
        self,
        directory: Path | str | None = None,
        *,
        port: int = 0,
        flags: Flags | None = None,
        member: Member | None = None,
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        """`host` is the address it listens on; `prefix` goes before the command, to run it somewhere else: in a
        network namespace, say."""
        self._own_directory = directory is None
        self.directory = Path(directory or tempfile.mkdtemp(prefix="zkd-apache-"))
        self.flags = flags or Flags()
        self.member = member
        self.host = host
        self.prefix = tuple(prefix)
        self.port = port or free_port()
        self.tls_port = free_port() if self.flags.tls else None
        self.log_path = self.directory / "zookeeper.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def connect_string(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the process; `wait_until_serving` tells when it answers."""
        assert not self.is_running, f"the server on port {self.port} runs already"
        jvm = [java(), *self._jvm_flags(), "-cp", class_path(), MAIN, str(self._write_config())]
        command = [*dies_with_us(), *self.prefix, *jvm]
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory, start_new_session=True
            )

    def wait_until_serving(self, timeout_s: float = START_S) -> None:
        """Return when `srvr` names a mode (standalone, leader, follower, observer) and the TLS port is open."""
        deadline = time.monotonic() + timeout_s
        while not (self.mode() and (self.tls_port is None or is_open(self.tls_port, self.host))):
            if not self.is_running:
                raise ApacheFailed(f"ZooKeeper on port {self.port} ended by itself:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise ApacheFailed(f"ZooKeeper on port {self.port} did not serve in {timeout_s} s:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def mode(self) -> str:
        """`standalone`, `leader`, `follower`, `observer`, or the empty string when it does not serve."""
        answer = ask(self.port, b"srvr", host=self.host)
        return next((line[6:] for line in answer.splitlines() if line.startswith("Mode: ")), "")

    def kill(self) -> None:
        """kill -9, and wait for the process to be gone."""
        self._end(signal.SIGKILL)

    def stop(self, grace_s: float = 5.0) -> None:
        """An orderly stop (SIGTERM), made certain after `grace_s`."""
        self._end(signal.SIGTERM, grace_s)

    def restart(self) -> None:
        """Stop, and start on the same port and data; returns when it serves."""
        self.stop()
        self.start()
        self.wait_until_serving()

    def pause(self) -> None:
        """Freeze the process: its connections stay open and nobody answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        # The signal takes effect a little later, thread by thread; this returns when all have stopped.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def log_tail(self, lines: int = 20) -> str:
        if not self.log_path.exists():
            return "(no log)"
        return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])

    def remove(self) -> None:
        """Kill the server and remove its directory, if that was made here."""
        self.kill()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_serving()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()

    def _end(self, how: signal.Signals, grace_s: float = 5.0) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)  # a paused process would not see a SIGTERM
            self._process.send_signal(how)
            try:
                self._process.wait(grace_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = None

    def _write_config(self) -> Path:
        flags = self.flags
        data = self.directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = {
            "tickTime": str(flags.tick_ms),
            "maxSessionTimeout": str(flags.max_session_ms),
            "maxClientCnxns": "0",
            "dataDir": str(data),
            "clientPort": str(self.port),
            "clientPortAddress": self.host,
            "admin.enableServer": "false",
            "4lw.commands.whitelist": "*",
            "extendedTypesEnabled": str(flags.extended_types).lower(),
        }
        if flags.tls:
            config |= {
                "secureClientPort": str(self.tls_port),
                "secureClientPortAddress": self.host,
                "ssl.keyStore.location": str(flags.tls.keystore),
                "ssl.keyStore.password": flags.tls.password,
                "ssl.trustStore.location": str(flags.tls.truststore),
                "ssl.trustStore.password": flags.tls.password,
                "ssl.clientAuth": flags.tls.client_auth,
            }
        if self.member:
            (data / "myid").write_text(f"{self.member.number}\n")
            config |= {"initLimit": "50", "syncLimit": "25"}
            config |= dict(line.split("=", 1) for line in self.member.lines)
        config |= flags.config
        path = self.directory / "zoo.cfg"
        path.write_text("".join(f"{key}={value}\n" for key, value in config.items()))
        return path

    def _jvm_flags(self) -> list[str]:
        flags = self.flags
        properties = {
            "zookeeper.forceSync": "yes" if flags.force_sync else "no",
            "zookeeper.extendedTypesEnabled": str(flags.extended_types).lower(),
            "znode.container.checkIntervalMs": str(flags.container_check_ms),
            "org.slf4j.simpleLogger.defaultLogLevel": flags.log_level,
            "org.slf4j.simpleLogger.showDateTime": "true",
            "org.slf4j.simpleLogger.dateTimeFormat": "HH:mm:ss.SSS",
        }
        if flags.jute_max_buffer is not None:
            properties["jute.maxbuffer"] = str(flags.jute_max_buffer)
        if flags.netty or flags.tls:
            properties["zookeeper.serverCnxnFactory"] = "org.apache.zookeeper.server.NettyServerCnxnFactory"
        properties |= flags.properties
        heap = [f"-Xmx{flags.heap}"] if flags.heap else []
        return [
            *(() if flags.long_lived else JVM_FLAGS),
            *heap,
            *(f"-D{key}={value}" for key, value in properties.items()),
        ]


class Ensemble:
    """Several servers that elect a leader. A context manager: serving inside, gone after."""

    def __init__(self, servers: Sequence[ApacheServer]) -> None:
        self.servers = list(servers)

    @property
    def connect_string(self) -> str:
        return ",".join(server.connect_string for server in self.servers)

    def leader(self, timeout_s: float = START_S) -> ApacheServer:
        """The server that leads now; waits for an election to end."""
        deadline = time.monotonic() + timeout_s
        while True:
            for server in self.servers:
                if server.is_running and server.mode() == "leader":
                    return server
            if time.monotonic() > deadline:
                raise ApacheFailed(f"no leader among {self.connect_string} in {timeout_s} s")
            time.sleep(POLL_S)

    def followers(self) -> list[ApacheServer]:
        return [server for server in self.servers if server.is_running and server.mode() == "follower"]

    def start(self) -> None:
        for server in self.servers:
            server.start()

    def wait_until_serving(self, timeout_s: float = START_S) -> None:
        for server in self.servers:
            server.wait_until_serving(timeout_s)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def remove(self) -> None:
        for server in self.servers:
            server.remove()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_until_serving()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.remove()


def ensemble(
    size: int = 3,
    directory: Path | str | None = None,
    *,
    flags: Flags | None = None,
    places: Sequence[tuple[str, Sequence[str]]] = (),
) -> Ensemble:
    """An ensemble of `size` servers, not started yet. `places`: the `host` and `prefix` of each."""
    members = range(1, size + 1)
    places = places or [("127.0.0.1", ())] * size
    ports = {number: free_port() for number in members}
    lines = tuple(
        f"server.{number}={host}:{free_port()}:{free_port()}:participant;{host}:{ports[number]}"
        for number, (host, _) in zip(members, places, strict=True)
    )
    servers = []
    for number, (host, prefix) in zip(members, places, strict=True):
        home = Path(directory) / f"server-{number}" if directory else None
        if home:
            home.mkdir(parents=True, exist_ok=True)
        member = Member(number, lines)
        servers.append(ApacheServer(home, port=ports[number], flags=flags, member=member, host=host, prefix=prefix))
    return Ensemble(servers)


def ask(port: int, word: bytes, timeout_s: float = 1.0, host: str = "127.0.0.1") -> str:
    """The answer to a four-letter word, or the empty string when nobody gives one in time."""
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(word)
            answer = b""
            while part := connection.recv(65_536):
                answer += part
            return answer.decode(errors="replace")
    except OSError:
        return ""


def is_open(port: int, host: str = "127.0.0.1") -> bool:
    try:
        with socket.create_connection((host, port), 1.0):
            return True
    except OSError:
        return False
