"""`zkd config`, on a cluster of two nodes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Ran

    Zkd = Callable[..., Ran]


@pytest.fixture(autouse=True)
def clean(zkd: Zkd) -> Iterator[None]:
    """Nothing is said, before and after."""
    zkd("config", "rollback", "0")
    yield
    zkd("config", "rollback", "0")
    for name in zkd("config", "app", "ls", "-o", "name").out.split():
        zkd("config", "app", "rm", name)


def done(ran: Ran) -> str:
    assert ran.code == 0, ran.err
    return ran.out


def revision(zkd: Zkd) -> int:
    found: int = zkd("config", "show", "--json").json["revision"]
    return found


def test_a_setting_is_said_and_followed(zkd: Zkd) -> None:
    ran = zkd("config", "set", "tasks.timeout_s=600", "data.repair_bytes_s=1MiB", "--why", "long fits", "--wait", "30")
    assert done(ran) == f"revision {revision(zkd)}; followed by 2 of 2 nodes\n"
    assert done(zkd("config", "get", "tasks.timeout_s")) == "600\n"
    assert zkd("config", "get", "data.repair_bytes_s", "--json").json == {"data.repair_bytes_s": 2**20}
    assert [row["state"] for row in zkd("config", "status", "--json").json] == ["current", "current"]
    entry = zkd("config", "history", "-n", "1", "--json").json[0]
    assert entry["why"] == "long fits"
    assert "long fits" in done(zkd("config", "history", "-n", "1"))
    assert done(zkd("config", "set", "tasks.timeout_s", "600")).startswith("nothing changed")


def test_nodes_and_labels_can_have_their_own_and_explain_says_whose_holds(zkd: Zkd) -> None:
    done(zkd("config", "set", "data.grace_s=10", "--wait", "0"))
    done(zkd("config", "set", "data.grace_s=20", "--label", "path=/a b", "--wait", "0"))
    done(zkd("config", "set", "data.grace_s=30", "--node", "dev-1", "--wait", "30"))
    found = zkd("config", "explain", "data.grace_s", "--json").json
    assert found["said"] == {"cluster": 10, "label path=/a b": 20, "node dev-1": 30}
    assert found["nodes"] == {
        "dev-1": {"value": 30, "origin": "node dev-1"},
        "dev-2": {"value": 10, "origin": "cluster"},
    }
    assert (found["is_live"], found["is_central"], found["default"]) == (True, True, "60")
    shown = {row["key"]: row["origin"] for row in zkd("config", "show", "--node", "dev-1", "--json").json}
    assert (shown["data.grace_s"], shown["tasks.timeout_s"], shown["node.slots"]) == (
        "node dev-1", "default", "command line",
    )  # fmt: skip
    assert "on dev-2: 10 (cluster)" in done(zkd("config", "explain", "data.grace_s"))
    assert "each machine's own settings" in done(zkd("config", "explain", "zookeeper.hosts"))
    done(zkd("config", "unset", "data.grace_s", "--node", "dev-1", "--wait", "0"))
    assert zkd("config", "get", "data.grace_s", "--node", "dev-1").code == 3


def test_what_the_machine_says_and_what_needs_a_restart_is_told_at_once(zkd: Zkd) -> None:
    out = done(zkd("config", "set", "node.slots=3", "workers.threads=2", "--wait", "30"))
    assert "dev-1 needs a restart for workers.threads\n" in out
    assert "dev-1 says itself, and that holds: node.slots (command line)\n" in out
    assert {row["state"] for row in zkd("config", "status", "--json").json} == {"restart"}


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["set", "tasks.tmeout_s=1", "node.name=x", "tasks.timeout_s=-1"], 78, "`tasks.timeout_s`?\nnode.name: "),
        (["set", "tasks.timeout_s=-1"], 78, "tasks.timeout_s: Expected `float` > 0.0 (is -1)"),
        (["set", "tasks.timeout_s"], 2, "expected KEY=VALUE"),
        (["set", "tasks.timeout_s=1", "tasks.timeout_s=2"], 2, "each setting once"),
        (["set", "tasks.timeout_s=1", "--node", "a", "--label", "b=c"], 2, "not both"),
        (["set", "tasks.timeout_s=1", "--label", "gpu"], 2, "expected name=value"),
        (["set", "tasks.timeout_s=1", "--node", "a/b"], 2, "expected the name of a node"),
        (["set", "tasks.timeout_s=1", "--expect", "999999"], 6, "expected revision 999999"),
        (["rollback", "999999"], 3, "there is no revision 999999"),
        (["explain", "tasks.timeouts"], 3, "did you mean `tasks.timeout_s`?"),
        (["show", "--node", "nobody"], 3, "there is no node nobody"),
        (["app", "get", "nobody"], 3, "there is no config nobody"),
        (["app", "set", "web", "{"], 2, "truncated"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_nothing_changes(zkd: Zkd, arguments: list[str], code: int, told: str) -> None:
    before = revision(zkd)
    ran = zkd("config", *arguments)
    assert ran.code == code
    assert told in ran.err
    assert revision(zkd) == before


def test_a_file_is_applied_whole_compared_and_taken_back(zkd: Zkd, tmp_path: Path) -> None:
    file = tmp_path / "central.toml"
    file.write_text(
        '[cluster]\ntasks.timeout_s = 5\ndata.repair_bytes_s = "1MiB"\n[cluster.log]\nlevel = "info"\n'
        '[labels."gpu=yes"]\nnode.slots = 4\n[nodes.dev-9]\nlog.level = "debug"\n'
    )
    dry = zkd("config", "apply", str(file), "--dry-run", "--json").json
    assert [(row["layer"], row["key"], row["after"]) for row in dry][-1] == ("nodes/dev-9", "log.level", "debug")
    assert zkd("config", "show", "--json").json["cluster"] == {}
    done(zkd("config", "apply", str(file), "--wait", "0"))
    applied = zkd("config", "show", "--json").json
    assert applied["cluster"] == {"data.repair_bytes_s": 2**20, "log.level": "info", "tasks.timeout_s": 5}
    assert (applied["labels"], applied["nodes"]) == ({"gpu=yes": {"node.slots": 4}}, {"dev-9": {"log.level": "debug"}})
    done(zkd("config", "set", "tasks.timeout_s=6", "--wait", "0"))
    assert done(zkd("config", "diff", str(applied["revision"]))) == (
        "cluster\n  - tasks.timeout_s = 5\n  + tasks.timeout_s = 6\n"
    )
    done(zkd("config", "rollback", str(applied["revision"]), "--wait", "0"))
    again = zkd("config", "show", "--json")
    assert again.json == applied | {"revision": applied["revision"] + 2}
    (tmp_path / "again.json").write_text(again.out)
    assert done(zkd("config", "apply", str(tmp_path / "again.json"))).startswith("nothing changed")
    for text, told in (
        ("[cluster]\ntasks.x = 1\n[node.a]\n", "node: expected a table cluster, labels or nodes"),
        ("[cluster\n", "expected TOML"),
        ('[labels.gpu]\nlog.level = "info"\n', "expected a label such as"),
        ("cluster = 3\n", "expected a table, got 3"),
        ('{"cluster": {}, "cluster": {}}', "expected each name once"),
    ):
        file.write_text(text)
        ran = zkd("config", "apply", str(file))
        assert (ran.code, told in ran.err) == (78, True), ran.err


def test_all_of_it_can_be_edited(zkd: Zkd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done(zkd("config", "set", "tasks.timeout_s=600", "--wait", "0"))
    done(zkd("config", "set", "log.level=info", "--label", 'na"me=ä', "--wait", "0"))
    monkeypatch.setenv("VISUAL", "true")
    assert done(zkd("config", "edit")) == "nothing changed\n"
    monkeypatch.setenv("VISUAL", "sed -i s/600/700/")
    done(zkd("config", "edit", "--wait", "0"))
    found = zkd("config", "show", "--json").json
    assert (found["cluster"], found["labels"]) == ({"tasks.timeout_s": 700}, {'na"me=ä': {"log.level": "info"}})
    other = tmp_path / "editor"
    other.write_text(f"#!/bin/sh\n{sys.executable} -m zkd config set data.grace_s=5 --wait 0\nsed -i s/700/800/ $1\n")
    other.chmod(0o755)
    monkeypatch.setenv("VISUAL", str(other))
    ran = zkd("config", "edit")
    assert (ran.code, "somebody" in ran.err or "it is" in ran.err) == (6, True)
    assert done(zkd("config", "get", "tasks.timeout_s")) == "700\n"


def test_a_program_s_configuration_is_set_compared_and_taken_back(zkd: Zkd, tmp_path: Path) -> None:
    (tmp_path / "web.json").write_text(json.dumps({"a": [1, 2]}))
    assert done(zkd("config", "app", "set", "web", f"@{tmp_path}/web.json")) == "revision 1\n"
    assert done(zkd("config", "app", "set", "web", '{"a": [1, 3]}', "--expect", "1")) == "revision 2\n"
    assert done(zkd("config", "app", "diff", "web", "1")) == "$.a[1]: 2 -> 3\n"
    assert done(zkd("config", "app", "rollback", "web", "1")) == "revision 3\n"
    assert done(zkd("config", "app", "get", "web")) == '{"a":[1,2]}\n'
    assert done(zkd("config", "app", "get", "web", "--revision", "2")) == '{"a":[1,3]}\n'
    rows: list[dict[str, Any]] = zkd("config", "app", "history", "web", "--json").json
    assert [(row["revision"], row["why"]) for row in rows] == [(3, "rollback to 1"), (2, ""), (1, "")]
    assert done(zkd("config", "app", "ls", "-o", "name")) == "web\n"
