"""`zkd model` on a cluster of two nodes."""

from __future__ import annotations

import pickle
import uuid
from typing import TYPE_CHECKING

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from tests.cli.conftest import wait_until
from zkd.models.from_sklearn import trained_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.cli.conftest import Ran

    Zkd = Callable[..., Ran]

IRIS = load_iris()


@pytest.fixture(scope="module")
def iris(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fitted = LogisticRegression(max_iter=200).fit(IRIS.data, np.array(IRIS.target_names)[IRIS.target])
    path = tmp_path_factory.mktemp("models") / "iris.zkd"
    path.write_bytes(trained_of(fitted, features=["sl", "sw", "pl", "pw"]).write())
    return path


@pytest.fixture
def name(zkd: Zkd) -> Iterator[str]:
    name = f"m{uuid.uuid4().hex[:8]}"
    yield name
    zkd("model", "rm", name, "--yes")


def test_a_model_is_pushed_shown_served_compared_and_removed(zkd: Zkd, name: str, iris: Path, tmp_path: Path) -> None:
    ran = zkd("model", "push", name, str(iris), "--metric", "accuracy=0.97", "--note", "of the flowers")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{name}@1: softmax, ")
    assert zkd("model", "push", name, str(iris), "--json").json["model"] == f"{name}@2"
    row = next(row for row in zkd("model", "ls", "--json").json if row["name"] == name)
    assert (row["newest"], row["versions"], row["kind"]) == (2, 2, "softmax")
    assert zkd("model", "alias", f"{name}@live", "1").out == f"{name}@live: 1\n"
    assert zkd("model", "canary", f"{name}@live", "--percent", "5", "--shadow").out == (
        f"{name}@live: 1 (canary 2, 5% shadow)\n"
    )
    wait_until(lambda: len(zkd("model", "canary", f"{name}@live", "--show", "--json").json) == 2)
    row = zkd("model", "canary", f"{name}@live", "--show", "--json").json[0]
    assert (row["node"], row["version"], row["beside"], row["requests"], row["differed"]) == (
        "dev-1",
        2,
        1,
        0,
        "0 of 0",
    )
    assert zkd("model", "promote", f"{name}@live", "--why", "it did well").out == f"{name}@live: 2\n"
    wait_until(lambda: zkd("model", "canary", f"{name}@live", "--show", "--json").json == [])
    ran = zkd("model", "canary", f"{name}@live", "--show")
    assert (ran.code, "no node tells of a canary" in ran.err, "it did well" in ran.err) == (0, True, True)
    assert zkd("model", "rollback", f"{name}@live").out == f"{name}@live: 1\n"
    shown = zkd("model", "show", f"{name}@live", "--json").json
    assert (shown["model"], shown["features"], shown["nodes"]) == (
        f"{name}@1",
        ["sl", "sw", "pl", "pw"],
        ["dev-1", "dev-2"],
    )
    assert (shown["classes"], shown["metrics"]) == (["setosa", "versicolor", "virginica"], {"accuracy": 0.97})
    assert [move["version"] for move in shown["history"]["live"]] == [1, 1, 2, 1]
    text = zkd("model", "show", f"{name}@live").out
    assert "of the flowers" in text
    assert "it did well" in text
    assert zkd("model", "diff", f"{name}@1", name).out == "metric accuracy: 0.97 -> -\n"
    assert zkd("model", "diff", f"{name}@1", f"{name}@1").out == "They are the same.\n"
    assert zkd("model", "diff", f"{name}@1", name, "--json").json["largest"] == 0.0
    assert zkd("model", "pull", name, "-O", str(tmp_path / "out.zkd")).code == 0
    assert (tmp_path / "out.zkd").read_bytes() == iris.read_bytes()
    assert zkd("model", "rm", f"{name}@1").code == 6
    assert zkd("model", "rm", f"{name}@live").out == f"{name}@live removed\n"
    assert zkd("model", "rm", f"{name}@1").code == 0
    assert zkd("model", "ls", name, "-o", "name").out == f"{name}@2\n"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["push", "m"], 2, "expected a FILE or --job"),
        (["push", "m", "none.zkd"], 2, "none.zkd: No such file or directory"),
        (["push", "m", "{tmp}/model.pkl"], 2, "model.pkl is a pickle; zkd runs no code of a model"),
        (["push", "m", "{tmp}/model.joblib"], 2, "is a joblib file"),
        (["push", "m", "{tmp}/renamed.zkd"], 2, "renamed.zkd: this is a pickle"),
        (["push", "m", "{tmp}/cut.zkd"], 2, "expected two places in"),
        (["push", "m", "{tmp}/claims.zkd"], 2, "expected two places in"),
        (["push", "../m", "{iris}"], 2, "name: expected 1 to 128 letters"),
        (["push", "m", "{iris}", "--metric", "x"], 2, "expected NAME=NUMBER"),
        (["push", "m", "{iris}", "--metric", "x=nan"], 2, "expected a finite number"),
        (["push", "m", "--job", "nobody"], 3, "there is no job nobody"),
        (["show", "nobody"], 3, "there is no model nobody"),
        (["alias", "nobody@live"], 3, "there is no model nobody"),
        (["alias", "nobody"], 2, "expected NAME@ALIAS"),
        (["rollback", "nobody@live"], 3, "there is no model nobody"),
        (["rm", "nobody@1"], 3, "there is no model nobody"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_code(
    zkd: Zkd, iris: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    good = iris.read_bytes()
    for ending in ("pkl", "joblib"):
        (tmp_path / f"model.{ending}").write_bytes(good)  # its name is enough
    (tmp_path / "renamed.zkd").write_bytes(pickle.dumps(LogisticRegression()))
    (tmp_path / "cut.zkd").write_bytes(good[:-100])
    (tmp_path / "claims.zkd").write_bytes(claiming(10 * 2**30))
    ran = zkd("model", *(text.format(tmp=tmp_path, iris=iris) for text in arguments))
    assert (ran.code, says in ran.err) == (code, True), ran.err


def claiming(size: int) -> bytes:
    """1 kB that says it has an array of so many bytes."""
    header = b'{"layers.0":{"dtype":"F64","shape":[%d],"data_offsets":[0,%d]}}' % (size // 8, size)
    header += b" " * (-len(header) % 8)
    return (len(header).to_bytes(8, "little") + header).ljust(1024, b"\0")
