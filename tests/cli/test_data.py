"""`zkd data` on a cluster of two nodes."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Dev, Ran

    Zkd = Callable[..., Ran]

CSV = "id,name,x\n1,ann,0.5\n2,bob,\n3,cy,7e3\n"


@pytest.fixture
def name(zkd: Zkd) -> Iterator[str]:
    """A dataset's name that no other test uses; it is removed afterwards, if it was made."""
    name = f"t{uuid.uuid4().hex[:8]}"
    yield name
    zkd("data", "rm", name, "--yes")


@pytest.fixture
def people(zkd: Zkd, name: str, tmp_path: Path) -> str:
    (tmp_path / "people.csv").write_text(CSV)
    ran = zkd("data", "put", str(tmp_path / "people.csv"), "--name", name, "--key", "name")
    assert (ran.code, ran.out, ran.err) == (0, f"{name}@1: 3 rows, 1 part, 2 replicas\n", "")
    return name


def test_a_csv_file_that_was_put_is_got_as_csv(zkd: Zkd, people: str) -> None:
    ran = zkd("data", "get", people)
    assert ran.out.splitlines() == ["id,name,x", "1,ann,0.5", "2,bob,nan", "3,cy,7000.0"]
    assert zkd("data", "get", people, "--columns", "name").out.splitlines() == ["name", "ann", "bob", "cy"]


def test_old_versions_are_removed_and_the_newest_stay(zkd: Zkd, people: str, tmp_path: Path) -> None:
    for _ in range(3):
        assert zkd("data", "put", str(tmp_path / "people.csv"), "--name", people, "--append").code == 0
    assert zkd("data", "rm", people, "--keep", "2").out == f"2 versions of {people} removed, 2 left\n"
    assert [each["version"] for each in zkd("data", "ls", people, "--json").json] == [3, 4]
    assert zkd("data", "rm", f"{people}@3", "--keep", "2").code == 2


@pytest.mark.parametrize("ending", ["npz", "npy", "csv", "parquet", "arrow"])
def test_a_table_goes_out_and_in_through_every_kind_of_file(zkd: Zkd, name: str, tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(1)
    table = {"x": rng.random((200, 3))} if ending == "npy" else {"i": np.arange(200), "x": rng.random(200)}
    np.savez(tmp_path / "a.npz", **table)
    out = tmp_path / f"out.{ending}"
    assert zkd("data", "put", str(tmp_path / "a.npz"), "--name", name).code == 0
    assert zkd("data", "get", name, "-O", str(out)).code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"a.npz", out.name}), "nothing is left beside it"
    again = zkd("data", "put", str(out), "--name", name, "--replace", "--json")
    assert again.json["version"] == 2
    assert zkd("data", "get", name, "-O", str(tmp_path / "again.npz")).code == 0
    with np.load(tmp_path / "again.npz") as found:
        assert {key: found[key].tolist() for key in found} == {key: column.tolist() for key, column in table.items()}


def test_rows_are_appended_and_versions_listed_and_removed(zkd: Zkd, people: str, tmp_path: Path) -> None:
    assert zkd("data", "put", str(tmp_path / "people.csv"), "--name", people, "--append").code == 0
    rows = zkd("data", "ls", people, "-o", "json").json
    assert [(row["version"], row["rows"], row["parent"]) for row in rows] == [(1, 3, None), (2, 6, 1)]
    assert rows[0]["columns"] == {"id": "<i8", "name": "<U3", "x": "<f8"}
    assert people in zkd("data", "ls", "-o", "name").out.split()
    assert zkd("data", "rm", f"{people}@1").out == f"{people}@1 removed\n"
    assert [row["version"] for row in zkd("data", "ls", people, "--json").json] == [2]
    assert len(zkd("data", "get", people).out.splitlines()) == 7


def test_locate_says_the_part_and_its_nodes(zkd: Zkd, people: str) -> None:
    found = zkd("data", "locate", people, "bob", "--json").json
    assert found["part"] == 0
    assert sorted(found["nodes"]) == ["dev-1", "dev-2"]
    parts = zkd("data", "parts", people, "--json").json
    assert [(part["rows"], part["segments"], part["homes"]) for part in parts] == [(3, 1, found["nodes"])]


def test_rows_are_found_by_their_key(zkd: Zkd, people: str) -> None:
    assert zkd("data", "get", people, "--key", "bob", "--columns", "id").out == "id\n2\n"
    ran = zkd("data", "get", people, "--key", "dora")
    assert (ran.code, "has no row with the key 'dora'" in ran.err) == (3, True)


def test_repair_and_rebalance_look_on_until_all_is_well(zkd: Zkd, people: str) -> None:
    assert zkd("data", "repair", people, "--timeout", "20").out.endswith("1 dataset: every part is full\n")
    assert zkd("data", "rebalance", people, "--timeout", "20").out.endswith("every part is where it belongs\n")
    ran = zkd("data", "stat", people, "--json")
    assert (ran.code, ran.json["health"], ran.json["nodes"]) == (0, "full", {"dev-1": 1, "dev-2": 1})
    assert zkd("data", "repair", "nothing-there").code == 3


def test_verify_reads_every_copy(zkd: Zkd, people: str) -> None:
    assert zkd("data", "verify", people).out == "2 copies are good, 0 are damaged or missing\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["put", "none.csv"], 2, "none.csv: No such file or directory"),
        (["put", "{tmp}/people.csv", "--name", "{people}"], 6, "there is a dataset"),
        (["put", "{tmp}/people.csv", "--name", "../x"], 2, "name: expected 1 to 128 letters"),
        (["put", "{tmp}/people.csv", "--name", "y", "--key", "z"], 2, "key: expected one of the columns 'id'"),
        (["put", "{tmp}/people.csv", "--name", "y", "--parts", "3"], 2, "parts: expected a power of two"),
        (["put", "{tmp}/people.csv", "--name", "y", "--replicas", "9"], 5, "9 replicas need 5 nodes"),
        (["put", "{tmp}/people.csv", "--name", "{people}", "--append", "--key", "id"], 2, "--append keeps to what"),
        (["put", "{tmp}/people.csv", "--name", "y", "--dtype", "id"], 2, "expected COLUMN=DTYPE"),
        (["put", "{tmp}/people.csv", "--name", "y", "--dtype", "name=int8"], 2, "people.csv:2: column 'name'"),
        (["get", "nothing-there"], 3, "there is no dataset nothing-there"),
        (["get", "{people}@9"], 3, "there is no version 9"),
        (["get", "{people}", "--columns", "z"], 3, "has no column 'z'"),
        (["put", "people.xlsx", "--name", "{people}"], 2, "expected a file named *.csv"),
        (["get", "{people}", "-O", "x.xls"], 2, "expected a file named *.npz"),
        (["get", "{people}", "--part", "7"], 3, "has the parts 0 to 0, not 7"),
        (["rm", "{people}@1@2"], 2, "expected NAME or NAME@VERSION"),
        (["rm", "{people}"], 2, "this removes all of its"),
        (["ls", "nothing-there"], 3, "there is no dataset"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_code(
    zkd: Zkd, people: str, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    ran = zkd("data", *(text.format(tmp=tmp_path, people=people) for text in arguments))
    assert says in ran.err
    assert ran.code == code
    assert [row["name"] for row in zkd("data", "ls", "--json").json] == [people], "nothing came of it"


def test_completion_knows_the_commands() -> None:
    import subprocess
    import sys

    env = {**os.environ, "_ZKD_COMPLETE": "bash_complete", "COMP_WORDS": "zkd data re", "COMP_CWORD": "2"}
    ran = subprocess.run([sys.executable, "-m", "zkd"], env=env, capture_output=True, text=True, check=False)
    assert set(ran.stdout.split()) == {"plain,rebalance", "plain,repair"}


def test_a_shell_completes_names_of_datasets_and_their_versions(dev: Dev, people: str) -> None:
    def completed(*words: str) -> list[str]:
        line = ["zkd", "--hosts", dev.hosts, *words]
        env = {**os.environ, "_ZKD_COMPLETE": "bash_complete"}
        env |= {"COMP_WORDS": shlex.join(line), "COMP_CWORD": str(len(line) - 1)}
        ran = subprocess.run([sys.executable, "-m", "zkd"], env=env, capture_output=True, text=True, check=True)
        return [each.partition(",")[2] for each in ran.stdout.split()]

    assert completed("data", "get", people[:6]) == [people]
    assert completed("data", "stat", f"{people}@") == [f"{people}@1"]
    assert completed("run", "numpy.sum", "--dataset", people[:6]) == [people]
    assert completed("--hosts", "127.0.0.1:1", "data", "get", "") == []


def test_a_task_on_a_dataset_that_is_not_there_says_where_to_look(zkd: Zkd) -> None:
    ran = zkd("run", "numpy.sum", "--dataset", "nix")
    assert ran.code == 3
    assert "there is no dataset 'nix'" in ran.err
    assert "`zkd data ls` lists the datasets." in ran.err


def test_what_json_has_no_word_for_is_shown_to_people_and_kept_for_programs(zkd: Zkd) -> None:
    given = '{"dtype": "<f8", "shape": [3], "data": "AAAAAAAA+H8AAAAAAADwfwAAAAAAAOA/"}'
    assert zkd("run", "identity", given).out == "[NaN,Infinity,0.5]\n"
    assert '"dtype"' in zkd("run", "identity", given, "-o", "json").out
