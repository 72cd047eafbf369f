"""Promises of zkd.settings, its sources, and the secrets it names."""

from __future__ import annotations

import datetime
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from zkd import credentials, settings
from zkd.core.setting_table import table
from zkd.daemon import memory_of
from zkd.errors import BadSettings
from zkd.settings import KEYS, Access, Node, Settings, Tls, ZooKeeper, changed, flat, load, load_with_origins

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "zkd.toml"
        path.write_text(text)
        return path

    return write


def faults(path: Path | None = None, env: dict[str, str] | None = None, overrides: dict | None = None) -> list[str]:
    with pytest.raises(BadSettings) as caught:
        load(path, env or {}, overrides)
    return [line.replace(f"{path}:", "zkd.toml:") for line in str(caught.value).splitlines()]


def test_nothing_given_is_good_for_a_zookeeper_on_this_machine() -> None:
    assert load(None, {}).zookeeper == ZooKeeper(hosts="127.0.0.1:2181", root="/zkd")


def test_a_file_sets_values(write: Callable[[str], Path]) -> None:
    path = write(
        """
        [zookeeper]
        hosts = "zk1:2181, zk2,[::1]:2182"
        tls = { ca = "/ca.pem" }
        [node]
        labels = { rack = "r1" }
        [workers]
        memory = "1.5GiB"
        modules = ["my.kernels"]
        """
    )
    read = load(path, {})
    assert read.zookeeper == ZooKeeper(hosts="zk1:2181,zk2,[::1]:2182", tls=Tls(ca="/ca.pem"))
    assert read.node.labels == {"rack": "r1"}
    assert (read.workers.memory, read.workers.modules) == (1536 * 2**20, ["my.kernels"])


def test_command_line_beats_environment_beats_file_beats_default(write: Callable[[str], Path]) -> None:
    path = write("[workers]\nthreads = 2\nrecycle_tasks = 2\n[node]\nslots = 2\n")
    env = {"ZKD_WORKERS__THREADS": "3", "ZKD_WORKERS__RECYCLE_TASKS": "3", "ZKD_ROOT": "/other"}
    read, origins = load_with_origins(path, env, {"workers.threads": 4, "log.level": None})
    assert (read.workers.threads, read.workers.recycle_tasks, read.node.slots, read.log.level) == (4, 3, 2, "info")
    assert origins["workers.threads"] == "command line"
    assert origins["workers.recycle_tasks"] == "$ZKD_WORKERS__RECYCLE_TASKS"
    assert origins["node.slots"] == f"{path}:5"
    assert origins["zookeeper.root"] == "$ZKD_ROOT"
    assert origins["log.level"] == "default"


def test_lists_and_tables_can_be_written_in_the_environment() -> None:
    read = load(None, {"ZKD_WORKERS__MODULES": "a.b, c", "ZKD_NODE__LABELS": "rack=r1,gpu=no"})
    assert read.workers.modules == ["a.b", "c"]
    assert read.node.labels == {"rack": "r1", "gpu": "no"}


def test_an_empty_variable_counts_as_absent_and_foreign_ones_are_left_alone() -> None:
    assert load(None, {"ZKD_NODE__ZONE": "", "ZKD_COLOR": "never"}).node.zone is None


def test_every_fault_is_told_at_once_with_its_place(write: Callable[[str], Path]) -> None:
    path = write(
        """[zookeeper]
hosts = "a:2181/zkd"
session_timeout_s = 0.2
[worker]
threads = 2
[workers]
thredas = 3
threads = 'four'
memory = "2 Gigs"
[tasks]
timeout_s = nan
[node]
http = 8080
"""
    )
    found = faults(path, {"ZKD_WORKERS__RECYCLE": "3"}, {"hosts": "a"})
    assert sorted(found) == sorted(
        [
            "zkd.toml:4: worker: unknown setting; did you mean `workers`?",
            "zkd.toml:7: workers.thredas: unknown setting; did you mean `workers.threads`?",
            "$ZKD_WORKERS__RECYCLE: workers.recycle: unknown setting; did you mean `workers.recycle_tasks`?",
            "command line: hosts: unknown setting; did you mean `zookeeper.hosts`?",
            "zkd.toml:2: zookeeper.hosts: expected `host:port,host:port,...` without a path (that is `root`)"
            " (is 'a:2181/zkd')",
            "zkd.toml:3: zookeeper.session_timeout_s: Expected `float` >= 1.0 (is 0.2)",
            "zkd.toml:8: workers.threads: Expected `int`, got `str` (is 'four')",
            'zkd.toml:9: workers.memory: expected bytes, as a number or such as "2GiB" or "512MiB" (is \'2 Gigs\')',
            "zkd.toml:11: tasks.timeout_s: Expected `float` > 0.0 (is nan)",
            "zkd.toml:13: node.http: Expected `str`, got `int` (is 8080)",
        ]
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("zookeeper.hosts", ""),
        ("zookeeper.hosts", "a,,b"),
        ("zookeeper.hosts", "a:0"),
        ("zookeeper.hosts", "a:70000"),
        ("zookeeper.root", "zkd"),
        ("zookeeper.root", "/a//b"),
        ("zookeeper.session_timeout_s", "inf"),
        ("node.name", "a/b"),
        ("node.name", ""),
        ("node.slots", "0"),
        ("node.slots", True),
        ("node.http", "localhost"),
        ("node.http", "h:65536"),
        ("node.labels", "rack"),
        ("node.labels", {"rack": 1}),
        ("workers.memory", "1MiB"),
        ("workers.memory", "-1"),
        ("workers.modules", "os; import x"),
        ("workers.modules", ["a..b"]),
        ("log.level", "trace"),
        ("log.format", 1),
    ],
)
def test_a_bad_value_is_refused(key: str, value: object) -> None:
    (fault,) = faults(overrides={key: value})
    assert fault.startswith(f"command line: {key}: ")
    assert fault.endswith(f"(is {value!r})")


def test_a_word_that_is_none_of_a_few_is_answered_with_them() -> None:
    assert faults(overrides={"log.level": "loud"}) == [
        "command line: log.level: expected one of debug, info, warning, error (is 'loud')"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[node]\nslots = \n", "zkd.toml:2: expected TOML: Invalid value"),
        ("[node]\nslots = 1\nslots = 2\n", "zkd.toml:3: expected TOML: Cannot overwrite a value"),
        ('[node]\nname = "a', "zkd.toml:2: expected TOML: Unterminated string"),
        ("node = 3\n", "zkd.toml:1: node: expected a table [node], got 3"),
        ("[[node]]\n", "zkd.toml:1: node: expected a table [node], got [{}]"),
        ("[node]\nlabels = {a=1}\n[zookeeper]\ntls = {verfy_hostname=false}\n", None),
    ],
)
def test_a_file_that_is_not_right_is_refused_by_line(
    write: Callable[[str], Path], text: str, expected: str | None
) -> None:
    found = faults(write(text))
    if expected is None:
        assert found[0] == (
            "zkd.toml:4: zookeeper.tls.verfy_hostname: unknown setting; did you mean `zookeeper.tls.verify_hostname`?"
        )
    else:
        assert found == [expected]


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in faults(tmp_path / "none.toml")[0]
    (tmp_path / "latin.toml").write_bytes(b'a = "\xe9"')
    assert "expected UTF-8, got byte 0xe9 at offset 5" in faults(tmp_path / "latin.toml")[0]


def test_an_empty_tls_table_encrypts(write: Callable[[str], Path]) -> None:
    assert load(write("[zookeeper.tls]\n"), {}).zookeeper.tls == Tls()


def test_memory_is_what_a_container_or_service_may_use(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroups / "system.slice/zkd.service").mkdir(parents=True)
    whole = settings.machine_bytes(proc, cgroups)
    assert whole == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    (proc / "self/cgroup").write_text("0::/system.slice/zkd.service\n")
    (cgroups / "system.slice/zkd.service/memory.max").write_text("max\n")
    assert settings.machine_bytes(proc, cgroups) == whole
    (cgroups / "system.slice/memory.max").write_text("1073741824\n")
    assert settings.machine_bytes(proc, cgroups) == 2**30
    (cgroups / "system.slice/zkd.service/memory.max").write_text("536870912\n")
    assert settings.machine_bytes(proc, cgroups) == 2**29
    (proc / "self/cgroup").write_text("0::/\n")  # in a container, which sees its own as the root
    (cgroups / "memory.max").write_text("268435456\n")
    assert settings.machine_bytes(proc, cgroups) == 2**28


def test_data_lies_where_systemd_says_else_in_the_usual_place(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(None, {"STATE_DIRECTORY": "/var/lib/private/zkd:/x"}).node.data_dir == Path("/var/lib/private/zkd")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert load(None, {}).node.data_dir == Path("/var/lib/zkd")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert load(None, {"XDG_STATE_HOME": "/home/u/state"}).node.data_dir == Path("/home/u/state/zkd")


def test_addresses_are_host_and_port() -> None:
    assert settings.address("[::1]:80") == ("::1", 80)
    assert settings.address("node-1.lan:0") == ("node-1.lan", 0)


def test_a_change_is_live_or_needs_a_restart() -> None:
    old = load(None, {})
    new = load(None, {"ZKD_LOG__LEVEL": "debug", "ZKD_NODE__SLOTS": "77", "ZKD_ZOOKEEPER__TLS__CA": "/ca"})
    live, restart = changed(old, new)
    assert live == ["log.level"]
    assert set(restart) == {"node.slots", "zookeeper.tls", "zookeeper.tls.ca", "zookeeper.tls.verify_hostname"}
    assert changed(old, old) == ([], [])
    applied = settings.with_live(old, new)
    assert applied.log.level == "debug"
    assert applied.node == old.node


def test_flat_lists_every_setting() -> None:
    zookeeper = ZooKeeper(tls=Tls(), access=Access(daemons=["world:anyone"]))
    assert set(flat(Settings(zookeeper=zookeeper, node=Node(tls=Tls())))) == set(KEYS)


# --- Secrets -----------------------------------------------------------------------------------------------


def test_credentials_come_from_a_path_or_from_systemd(tmp_path: Path) -> None:
    (tmp_path / "zk-auth").write_text("# ours\ndigest:zkd:pass:word\n\nsasl:a:b\n")
    pairs = [("digest", b"zkd:pass:word"), ("sasl", b"a:b")]
    assert credentials.read_auth(ZooKeeper(auth_file=str(tmp_path / "zk-auth")), {}) == pairs
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert credentials.read_auth(ZooKeeper(auth_file="credential:zk-auth"), env) == pairs
    assert credentials.read_auth(ZooKeeper(), {}) == []


@pytest.mark.parametrize("name", ["credential:../passwd", "credential:", "credential:.x"])
def test_a_credential_is_a_plain_name(name: str) -> None:
    with pytest.raises(BadSettings, match="plain name"):
        credentials.read_auth(ZooKeeper(auth_file=name), {"CREDENTIALS_DIRECTORY": "/run"})


def test_a_bad_secret_is_named_and_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "zk-auth"
    path.write_text("digest:fine:fine\nhunter2\n")
    with pytest.raises(BadSettings, match=":2: expected scheme:user:password") as caught:
        credentials.read_auth(ZooKeeper(auth_file=str(path)))
    assert "hunter2" not in str(caught.value)
    with pytest.raises(BadSettings, match="No such file"):
        credentials.read_auth(ZooKeeper(auth_file=str(tmp_path / "none")))
    with pytest.raises(BadSettings, match="LoadCredential=zk-auth:"):
        credentials.read_auth(ZooKeeper(auth_file="credential:zk-auth"), {})
    path.write_text("# nothing\n")
    with pytest.raises(BadSettings, match="got none"):
        credentials.read_auth(ZooKeeper(auth_file=str(path)))


def test_tls_verifies_unless_told_otherwise(tmp_path: Path) -> None:
    cert = self_signed(tmp_path)
    assert credentials.tls_context(None) is None
    context = credentials.tls_context(Tls(ca=str(cert), cert=str(cert)))
    assert context is not None
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    lenient = credentials.tls_context(Tls(ca=str(cert), verify_hostname=False))
    assert lenient is not None
    assert not lenient.check_hostname
    assert lenient.verify_mode is ssl.CERT_REQUIRED


def test_bad_tls_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no")
    for tls, key in [(Tls(ca=str(bad)), "ca"), (Tls(cert=str(bad)), "cert"), (Tls(key=str(bad)), "key")]:
        with pytest.raises(BadSettings, match=rf"zookeeper\.tls\.{key}: "):
            credentials.tls_context(tls)


def test_a_node_shows_a_certificate_and_with_an_authority_asks_for_one(tmp_path: Path) -> None:
    cert = self_signed(tmp_path)
    assert credentials.serving_context(None) is None
    for ca, mode in ((None, ssl.CERT_NONE), (str(cert), ssl.CERT_REQUIRED)):
        context = credentials.serving_context(Tls(ca=ca, cert=str(cert)))
        assert context is not None
        assert context.verify_mode is mode
    with pytest.raises(BadSettings, match=r"node\.tls\.cert: expected the file"):
        credentials.serving_context(Tls(ca=str(cert)))
    with pytest.raises(BadSettings, match=r"node\.tls\.ca: .*expected a PEM file"):
        credentials.tls_context(Tls(ca="/none"), section="node.tls")


def self_signed(directory: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "zkd")])
    now = datetime.datetime.now(datetime.UTC)
    end = now + datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, end)
    cert = builder.sign(key, hashes.SHA256())
    path = directory / "cert.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(cert.public_bytes(serialization.Encoding.PEM) + private)
    return path


def test_a_node_offers_the_memory_of_all_its_workers_unless_it_says_otherwise() -> None:
    def offered(**given: object) -> int | None:
        return memory_of(load(None, {}, {key.replace("__", "."): value for key, value in given.items()}))

    assert offered() is None
    assert offered(node__slots=4, workers__memory="1GiB") == 4 * 2**30
    assert offered(node__slots=4, workers__memory="1GiB", node__memory="3GiB") == 3 * 2**30
    assert offered(node__memory="3GiB") == 3 * 2**30


def test_the_documentation_has_every_setting_as_the_program_knows_it() -> None:
    text = (Path(__file__).parent.parent / "docs" / "configuration.md").read_text()
    rows = text.split("<!-- settings -->")[1].split("\n\n")[1].splitlines()[2:]
    documented = [[cell.strip().strip("`") for cell in row.split("|")[1:-2]] for row in rows]
    for row, known in zip(documented, table(), strict=False):
        expected = [known.key, known.kind, known.default, "yes" * known.is_central, ["restart", "live"][known.is_live]]
        assert row == expected, f"docs/configuration.md: expected a row | {' | '.join(expected)} | meaning |"
    assert [row[0] for row in documented] == [known.key for known in table()]
