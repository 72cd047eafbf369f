"""One decode and one check a call; items are one call each, rejected together or not at all."""

from __future__ import annotations

import contextvars
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from zkd.arrays import save_npy, to_json
from zkd.errors import BadRecord
from zkd.kernels import CurrentTask, NotInTask, call, call_items, current_task, load, of, report, running

ran: list[Any] = []


def note(x: int, times: int = 1, *, sign: bool = False) -> int:
    ran.append(x)
    return -x * times if sign else x * times


def fail(x: int) -> int:
    if x == 2:
        raise ValueError("two")
    return x


def length(x: npt.NDArray[np.float64]) -> int:
    return x.size


def nothing() -> int:
    return 1


REGISTRY = of([note, fail, length, nothing])


@pytest.fixture(autouse=True)
def forget() -> None:
    ran.clear()


def test_items_are_the_first_argument_in_their_order() -> None:
    assert call_items(REGISTRY, "note", b"[1,2,3]") == [1, 2, 3]
    assert call_items(REGISTRY, "note", b"[1,2,3]", b"[10]") == [10, 20, 30]
    assert call_items(REGISTRY, "note", b"[1,2,3]", b"[]", b'{"times":2,"sign":true}') == [-2, -4, -6]
    assert call_items(REGISTRY, "note", b"[]") == []
    assert call_items(REGISTRY, "length", b"[[1],[1,2],[]]") == [1, 2, 0]


@pytest.mark.parametrize(
    ("items", "args", "kwargs", "where"),
    [
        (b'[1,2,"x"]', b"[]", b"{}", "$.items[2]"),
        (b"[1,null]", b"[]", b"{}", "$.items[1]"),
        (b"{}", b"[]", b"{}", "$.items"),
        (b"3", b"[]", b"{}", "$.items"),
        (b"[1", b"[]", b"{}", "$.items"),
        (b'[{"dtype":"O","shape":[],"data":""}]', b"[]", b"{}", "$.items[0].dtype"),
        (b"[1]", b'["x"]', b"{}", "$.args[0]"),
        (b"[1]", b"[1,2]", b"{}", "$.args[1]"),
        (b"[1]", b"[]", b'{"x":1}', "$.kwargs.x"),
        (b"[1]", b"[]", b'{"y":1}', "$.kwargs.y"),
        (b"[1]", b"{}", b"{}", "$.args"),
        (b"[1]", b"[]", b"[]", "$.kwargs"),
    ],
)
def test_one_bad_item_rejects_all_before_any_runs(items: bytes, args: bytes, kwargs: bytes, where: str) -> None:
    with pytest.raises(BadRecord) as refused:
        call_items(REGISTRY, "note", items, args, kwargs)
    assert refused.value.where == where
    assert ran == []


def test_a_kernel_without_parameters_takes_no_items() -> None:
    with pytest.raises(BadRecord) as refused:
        call_items(REGISTRY, "nothing", b"[1]")
    assert refused.value.where == "$.items"
    assert call(REGISTRY, "nothing") == 1


def test_the_exception_of_a_kernel_goes_through_and_names_its_item() -> None:
    with pytest.raises(ValueError, match="two") as raised:
        call_items(REGISTRY, "fail", b"[0,1,2,3]")
    assert raised.value.__notes__ == ["raised by item 2 of 4"]
    with pytest.raises(ValueError, match="two") as raised:
        call(REGISTRY, "fail", b"[2]")
    assert not hasattr(raised.value, "__notes__")


def test_files_stand_for_large_arguments(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    save_npy(np.zeros(5000), path)
    sha = "a" * 64
    ref = to_json({"blob": sha, "size": path.stat().st_size, "format": "npy"})
    assert call(REGISTRY, "length", b"[" + ref + b"]", b"{}", {sha: str(path)}) == 5000
    assert call_items(REGISTRY, "length", b"[" + ref + b",[1]]", files={sha: str(path)}) == [5000, 1]
    with pytest.raises(BadRecord) as refused:
        call(REGISTRY, "length", b"[" + ref + b"]")
    assert refused.value.where == "$.args[0].blob"


# --- the current task ---------------------------------------------------------------------------------


def test_a_kernel_knows_its_task_only_while_it_runs() -> None:
    task = CurrentTask("t-1", 2, "f-7")
    with pytest.raises(NotInTask, match="inside a kernel"):
        current_task()
    with running(task):
        assert current_task() == task
        with running(CurrentTask("t-2", 1, "f-8")):
            assert current_task().id == "t-2"
        assert current_task() is task
    with pytest.raises(NotInTask):
        current_task()


def test_the_task_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), running(CurrentTask("t", 1, "f")):
        raise KeyError
    with pytest.raises(NotInTask):
        current_task()


def test_a_report_reaches_the_worker_and_nobody_outside() -> None:
    said: list[Any] = []
    report(0.5, "nobody hears")
    with running(CurrentTask("t", 1, "f", lambda fraction, note: said.append((fraction, note)))):
        report(0.25)
        report(1, "two\nlines " + "x" * 1000)
        report(note="only words")
        for bad in (-0.1, 1.1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="0 to 1"):
                report(bad)
    assert said[0] == (0.25, None)
    assert said[1][1].startswith("two lines xxx")
    assert len(said[1][1]) == 256
    assert said[2] == (None, "only words")
    assert len(said) == 3


def test_a_thread_of_a_kernel_sees_the_task_through_its_context() -> None:
    seen: list[str] = []
    with running(CurrentTask("t", 1, "f")):
        inside = contextvars.copy_context()
        thread = threading.Thread(target=inside.run, args=(lambda: seen.append(current_task().id),))
        thread.start()
        thread.join(5)
    assert seen == ["t"]


def test_sleep_reports_how_far_it_is() -> None:
    said: list[float | None] = []
    with running(CurrentTask("t", 1, "f", lambda fraction, note: said.append(fraction))):
        assert call(load(installed=False), "sleep", b"[0.12]") == 0.12
    assert said
    assert all(fraction is not None and 0 <= fraction <= 1 for fraction in said)
    with pytest.raises(BadRecord, match=">= 0"):
        call(load(installed=False), "sleep", b"[-1]")
