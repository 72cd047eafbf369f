"""What the commands do, on a cluster of two nodes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import numpy as np
import pytest

import zkd as library
from tests.cli.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.cli.conftest import Dev, Ran

    Zkd = Callable[..., Ran]


def submit(zkd: Zkd, tmp_path: Path, **task: object) -> str:
    file = tmp_path / "task.json"
    file.write_text(json.dumps(task))
    ran = zkd("submit", "-f", str(file))
    assert ran.code == 0, ran.err
    return ran.out.strip()


# --- one task -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "out"),
    [
        (["numpy.sum", "[1, 2, 3]"], "6\n"),
        (["numpy.linspace", "0", "1", "-k", "num=3"], "[0.0,0.5,1.0]\n"),
        (["numpy.add", "1", "2", "-o", "json"], "3\n"),
    ],
)
def test_run_prints_the_value(zkd: Zkd, arguments: list[str], out: str) -> None:
    ran = zkd("run", *arguments)
    assert (ran.code, ran.out, ran.err) == (0, out, "")


def test_run_works_on_the_parts_of_a_dataset(zkd: Zkd, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("k,v\n" + "".join(f"{number % 3},{number}\n" for number in range(100)))
    assert zkd("data", "put", str(tmp_path / "t.csv"), "--name", "partly", "--parts", "4").code == 0
    summed = ["--dataset", "partly", "--columns", "k, v", "--combine", "combine_group_sums", "-o", "json"]
    ran = zkd("run", "group_sums", *summed)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out) == {"keys": [0, 1, 2], "counts": [34, 33, 33], "sums": [[1683, 1617, 1650]]}
    rows = zkd("run", "numpy.size", "--dataset", "partly", "--columns", "v", "-o", "json")
    assert sum(json.loads(rows.out)) == 100
    some = zkd("run", "numpy.size", "--dataset", "partly", "--columns", "v", "--part", "3", "--part", "0", "-o", "json")
    assert json.loads(some.out) == [json.loads(rows.out)[3], json.loads(rows.out)[0]]
    bad = zkd("run", "numpy.size", "--dataset", "partly", "--columns", "w")
    assert bad.code != 0
    assert "expected one of k, v, the columns of partly@1, got 'w'" in bad.err
    assert zkd("data", "rm", "partly", "--yes").code == 0  # the cluster is others', too
    assert zkd("run", "numpy.size", "--columns", "v").code != 0


def test_run_reads_and_writes_files(zkd: Zkd, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.eye(40) * 2)
    (tmp_path / "b.json").write_text(json.dumps([1.0] * 40))
    ran = zkd("run", "numpy.matmul", f"@{tmp_path}/a.npy", f"@{tmp_path}/b.json", "-O", f"{tmp_path}/x.npy")
    assert ran.code == 0, ran.err
    assert np.array_equal(np.load(tmp_path / "x.npy"), np.full(40, 2.0))


def test_run_of_a_failing_kernel_shows_its_traceback_and_exits_1(zkd: Zkd) -> None:
    ran = zkd("run", "test.fail", "so it goes")
    assert ran.code == 1
    assert ran.out == ""
    assert "ValueError: so it goes" in ran.err
    assert "raise ValueError(message)" in ran.err


def test_run_of_an_unknown_kernel_exits_1_and_proposes(zkd: Zkd) -> None:
    ran = zkd("run", "numpy.summ", "[1]")
    assert ran.code == 1
    assert "kernel" in ran.err


def test_run_that_takes_too_long_exits_4_and_leaves_nothing(zkd: Zkd) -> None:
    ran = zkd("run", "test.nap", "30", "--timeout", "0.3")
    assert ran.code == 4
    assert "no value of test.nap after 0.3 s; the task is cancelled" in ran.err
    wait_until(lambda: zkd("get", "tasks").out == "")


def test_run_takes_negative_numbers(zkd: Zkd) -> None:
    ran = zkd("run", "numpy.add", "-1", "-2.5e1")
    assert (ran.code, ran.out) == (0, "-26.0\n")
    assert zkd("run", "numpy.add", "-x", "1").code == 2


@pytest.mark.parametrize("text", ["[1, 2, 3", '{"a": 1,}', '"a', '{"a": 1, "a": 2}'])
def test_an_argument_that_is_nearly_json_is_refused_and_not_taken_for_text(zkd: Zkd, text: str) -> None:
    ran = zkd("run", "identity", text)
    assert (ran.code, ran.out) == (2, "")
    assert text in ran.err


def test_run_refuses_a_file_that_cannot_be_written_before_it_drops_the_task(zkd: Zkd, tmp_path: Path) -> None:
    before = zkd("get", "results", "-o", "name").out
    for path, words in ((f"{tmp_path}/no/x.npy", "there is no directory"), ("x.txt", "expected a file named")):
        ran = zkd("run", "test.fail", "it ran", "-O", path)
        assert (ran.code, words in ran.err) == (2, True)
    assert zkd("get", "results", "-o", "name").out == before


@pytest.mark.parametrize("bad", [["-k", "novalue"], ["@/does/not/exist.npy"], ["--label", "x"], ["--priority", "x"]])
def test_run_with_bad_arguments_exits_2(zkd: Zkd, bad: list[str]) -> None:
    ran = zkd("run", "numpy.sum", *bad)
    assert ran.code == 2
    assert ran.out == ""


def test_submit_result_and_prefixes(zkd: Zkd, tmp_path: Path) -> None:
    task = submit(zkd, tmp_path, kernel="numpy.sum", args=[[1, 2, 3]])
    assert zkd("result", task, "--wait").out == "6\n"
    assert zkd("result", task[:-1], "--timeout", "5").code in (0, 2)  # unless another id begins so, too
    ran = zkd("describe", "result", task, "-o", "json")
    assert (ran.json["id"], ran.json["status"], ran.json["value"]) == (task, "done", 6)
    assert "It is done" in zkd("why", task).out


def test_submit_wait_prints_the_value_and_the_id_aside(zkd: Zkd, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"kernel": "numpy.sum", "args": [[1, 2]]}')
    ran = zkd("submit", "-f", f"{tmp_path}/t.json", "--wait", "--timeout", "10")
    assert (ran.code, ran.out) == (0, "3\n")
    assert re.fullmatch(r"t-[0-9a-f]{16}-\d+\n", ran.err)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "expected JSON"), ('{"kernel": "k", "priorty": 1}', "$.priorty: unknown field"), ("", "nothing")],
)
def test_submit_of_what_is_no_task_exits_2_and_says_where(zkd: Zkd, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.json").write_text(text)
    ran = zkd("submit", "-f", f"{tmp_path}/t.json")
    assert ran.code == 2
    assert words in ran.err
    assert "zkd schema task" in ran.err


def test_cancel_stops_a_running_task_and_the_second_time_says_so(zkd: Zkd, tmp_path: Path) -> None:
    task = submit(zkd, tmp_path, kernel="test.nap", args=[30])
    wait_until(lambda: "runs on" in zkd("why", task).out or "assigned" in zkd("why", task).out)
    ran = zkd("cancel", task)
    assert (ran.code, ran.out) == (0, f"{task} cancelled\n")
    wait_until(lambda: zkd("get", "results", task).code == 0)
    ran = zkd("cancel", task)
    assert ran.code == 6
    assert "had ended before: cancelled" in ran.err
    assert zkd("result", task).code == 1


def test_a_dead_task_can_be_looked_at_and_retried(zkd: Zkd, tmp_path: Path) -> None:
    task = submit(zkd, tmp_path, kernel="test.fail", args=["again"])
    ran = zkd("result", task, "--wait")
    assert ran.code == 1
    row = zkd("get", "dead", task, "-o", "json").json[0]
    assert (row["id"], row["kernel"], row["error"]) == (task, "test.fail", "ValueError: again")
    assert "failed on dev-" in zkd("why", task).out
    assert "attempts" not in zkd("why", task).out  # there was one
    text = zkd("describe", "task", task).out
    assert "test.fail" in text
    assert "raise ValueError(message)" in text
    ran = zkd("retry", task)
    assert (ran.code, ran.out) == (0, f"{task} dropped again\n")
    assert zkd("result", task, "--wait").code == 1


def test_a_task_without_result_says_what_it_waits_for(zkd: Zkd, tmp_path: Path) -> None:
    task = submit(zkd, tmp_path, kernel="numpy.sum", args=[[1]], labels={"planet": "mars"})
    ran = zkd("result", task)
    assert ran.code == 4
    assert "carries the labels planet=mars" in ran.err
    assert zkd("why", task, "-o", "json").json["id"] == task
    assert zkd("result", task, "--timeout", "0.05").code == 4
    row = zkd("get", "tasks", task, "-o", "json").json[0]
    assert (row["state"], row["kernel"], row["node"]) == ("waiting", "numpy.sum", None)
    zkd("cancel", task)


@pytest.mark.parametrize("command", ["result", "cancel", "why", "retry"])
def test_an_unknown_task_exits_3(zkd: Zkd, command: str) -> None:
    ran = zkd(command, "t-nobody")
    assert ran.code == 3
    assert "t-nobody" in ran.err
    assert f"`zkd get {'dead' if command == 'retry' else 'tasks'}`" in ran.err


# --- what is there ------------------------------------------------------------------------------------


def test_get_nodes_in_every_format(zkd: Zkd) -> None:
    wait_until(lambda: all(row["uptime_s"] for row in zkd("get", "nodes", "-o", "json").json))
    assert "ADDRESS" in zkd("get", "nodes", "-o", "wide").out
    lines = zkd("get", "nodes").out.splitlines()
    assert "ADDRESS" not in lines[0]
    assert lines[0].split()[:4] == ["NODE", "STATE", "LEADS", "SLOTS"]
    assert [line.split()[0] for line in lines[1:]] == ["dev-1", "dev-2"]
    rows = zkd("get", "nodes", "-o", "json").json
    assert [row["node"] for row in rows] == ["dev-1", "dev-2"]
    assert sum(row["leads"] for row in rows) == 1
    assert [json.loads(line)["slots"] for line in zkd("get", "nodes", "-o", "jsonl").out.splitlines()] == [1, 1]
    assert zkd("get", "nodes", "-o", "name").out == "dev-1\ndev-2\n"
    assert zkd("get", "nodes", "dev-2", "-o", "name").out == "dev-2\n"
    assert zkd("get", "nodes", "dev-").code == 2  # two begin so
    assert zkd("get", "nodes", "mars").code == 3


def test_programs_get_numbers_where_people_get_units(zkd: Zkd, tmp_path: Path) -> None:
    task = submit(zkd, tmp_path, kernel="numpy.sum", args=[[1]])
    zkd("result", task, "--wait")
    row = zkd("get", "results", task, "-o", "json").json[0]
    assert (type(row["age_s"]), type(row["size_bytes"])) == (float, int)
    assert re.search(r" \d+s +-$", zkd("get", "results", task).out)
    assert re.search(r" \d+ B ", zkd("get", "results", task, "-o", "wide").out)
    node = zkd("get", "nodes", "dev-1", "-o", "json").json[0]
    assert node["memory_bytes"] > 1 << 20
    assert " MiB " in zkd("get", "nodes", "dev-1").out


def test_a_table_fits_a_terminal_of_80_columns(zkd: Zkd, dev: Dev, tmp_path: Path) -> None:
    def on_terminal(*arguments: str) -> list[str]:
        main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        env = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "zkd", "--hosts", dev.hosts, *arguments]
        with subprocess.Popen(command, stdin=side, stdout=side, stderr=side, env=env):
            os.close(side)
            text = b""
            with contextlib.suppress(OSError):  # how a terminal says that the other side is closed
                while read := os.read(main, 4096):
                    text += read
        os.close(main)
        return re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).splitlines()

    lines = [line for line in on_terminal("get", "nodes") if line]
    assert len(lines) == 3
    assert " ".join(lines[0].split()) == "NODE STATE LEADS SLOTS USED QUEUED DONE FAILED MEMORY UPTIME"
    assert lines[1].startswith("dev-1  active")
    # What is too wide for that is a line a row all the same, with no id cut: the terminal folds it.
    task = submit(zkd, tmp_path, kernel="test.fail", args=["a message of some length that says what went wrong"])
    assert zkd("result", task, "--wait").code == 1
    lines = [line for line in on_terminal("get", "dead") if line]
    assert re.fullmatch(r"ID +KERNEL +ATTEMPTS +AT +ERROR", lines[0])
    line = next(line for line in lines if line.startswith(f"{task} "))
    assert line.endswith("ValueError: a message of some length that says what went wrong")
    assert on_terminal("run", "numpy.eye", "2") == ["[[1. 0.]", " [0. 1.]]"]


def test_pipes_get_plain_text(zkd: Zkd) -> None:
    for command in (["get", "nodes"], ["status"], ["doctor"], ["get", "kernels", "numpy.sum"]):
        assert not re.search(r"[\x1b\u2500-\u257f]", zkd(*command).out)


def test_get_kernels_of_the_cluster_and_of_this_machine(zkd: Zkd, monkeypatch: pytest.MonkeyPatch) -> None:
    row = zkd("get", "kernels", "test.nap", "-o", "json").json[0]
    assert (row["name"], row["nodes"]) == ("test.nap", "all")
    monkeypatch.setenv("ZKD_HOSTS", "127.0.0.1:1")
    monkeypatch.setattr("zkd.cli.connection.CONNECT_TIMEOUT_S", 0.2)
    ran = zkd("get", "kernels")
    assert (ran.code, "--local" in ran.err) == (5, True)
    ran = zkd("get", "kernels", "numpy.sum", "--local", "-o", "json")
    assert ran.json[0]["name"] == "numpy.sum"
    assert zkd("get", "kernels", "test.nap", "--local").code == 3


def test_describe(zkd: Zkd) -> None:
    node = zkd("describe", "node", "dev-1", "-o", "json").json
    assert (node["node"], node["is_here"], node["slots"]) == ("dev-1", True, 1)
    assert "kernels" in zkd("describe", "node", "dev-1").out
    kernel = zkd("describe", "kernel", "numpy.linspace", "-o", "json").json
    assert "num" in kernel["signature"]
    assert zkd("describe", "kernel", "no.such").code == 3


def test_status_counts(zkd: Zkd) -> None:
    text = zkd("status").out
    assert re.search(r"^leader: +dev-[12], epoch \d+$", text, re.MULTILINE)
    assert re.search(r"^slots: +\d of 2 in use$", text, re.MULTILINE)
    found = zkd("status", "-o", "json").json
    assert (len(found["nodes"]), found["slots"], type(found["tasks"])) == (2, 2, int)
    assert found["leader"] in ("dev-1", "dev-2")


def test_doctor_finds_a_healthy_cluster(zkd: Zkd) -> None:
    ran = zkd("doctor", "-o", "json")
    assert ran.code == 0
    found = {row["check"]: row for row in ran.json}
    for check in ("zookeeper", "round trip", "persistent watches", "packet size", "nodes", "leader", "BLAS threads"):
        assert found[check]["verdict"] in ("ok", "warning"), found[check]
    assert zkd("doctor").out.startswith("ok ")


def test_interrupting_run_cancels_the_task_and_exits_130(zkd: Zkd, dev: Dev) -> None:
    before = set(zkd("get", "tasks", "-o", "name").out.split())
    command = [sys.executable, "-m", "zkd", "--hosts", dev.hosts, "run", "test.nap", "60"]
    # Whoever runs in the background, as the tests may, ignores SIGINT, and so would its children.
    listening = ["env", "--default-signal=INT", *command]
    child = subprocess.Popen(listening, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until(lambda: bool(set(zkd("get", "tasks", "-o", "name").out.split()) - before))
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=20)
    assert (child.returncode, out, err.strip()) == (130, b"", b"interrupted")
    wait_until(lambda: set(zkd("get", "tasks", "-o", "name").out.split()) <= before)


def test_a_drain_waits_for_what_runs(zkd: Zkd, tmp_path: Path) -> None:
    task = submit(zkd, tmp_path, kernel="test.nap", args=[4], node="dev-1")
    wait_until(lambda: "runs on dev-1" in zkd("why", task).out)
    ran = zkd("node", "drain", "dev-1", "--wait", "--timeout", "0.3")
    assert (ran.code, ran.out) == (4, "dev-1 draining\n")
    assert zkd("node", "drain", "dev-1", "--wait", "--timeout", "30").code == 0
    assert "It is done" in zkd("why", task).out
    assert zkd("node", "uncordon", "dev-1").code == 0


def test_a_node_is_cordoned_drained_and_put_back(zkd: Zkd) -> None:
    assert zkd("node", "cordon", "dev-2").out == "dev-2 cordoned\n"
    assert zkd("get", "nodes", "dev-2", "-o", "json").json[0]["state"] == "cordoned"
    ran = zkd("node", "drain", "dev-2", "--wait", "--timeout", "20", "--reason", "new disk")
    assert (ran.code, ran.out) == (0, "dev-2 draining\ndev-2 drained\n")
    assert zkd("describe", "node", "dev-2", "-o", "json").json["wanted"]["reason"] == "new disk"
    assert zkd("node", "uncordon", "dev-2").out == "dev-2 active\n"
    assert zkd("run", "numpy.sum", "[1]", "--node", "dev-2", "--timeout", "20").out == "1\n"
    assert zkd("node", "drain", "mars").code == 3


# --- without a cluster --------------------------------------------------------------------------------


def test_schema_prints_what_programs_read(zkd: Zkd) -> None:
    assert zkd("schema", "task").json["title"] == "zkd task"
    assert "result" in zkd("schema").out
    assert zkd("schema", "nonsense").code == 3


def test_no_zookeeper_exits_5_and_says_what_to_do(zkd: Zkd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkd.cli.connection.CONNECT_TIMEOUT_S", 0.2)
    for command in (["get", "nodes"], ["status"], ["run", "numpy.sum", "[1]"], ["doctor"]):
        ran = zkd("--hosts", "127.0.0.1:1", *command)
        assert ran.code == 5, ran
        assert "127.0.0.1:1" in ran.out + ran.err
        assert "zkd dev" in ran.out + ran.err


def test_bad_settings_exit_78_and_name_the_line(zkd: Zkd, tmp_path: Path) -> None:
    (tmp_path / "zkd.toml").write_text("[zookeeper]\nsession_timeout_s = 0.2\n")
    ran = zkd("--config", f"{tmp_path}/zkd.toml", "status")
    assert ran.code == 78
    assert "zkd.toml:2" in ran.err


def test_an_unknown_command_proposes_one(zkd: Zkd) -> None:
    ran = zkd("statsu")
    assert ran.code == 2
    assert "zkd status" in ran.err


def test_a_root_of_ones_own_is_another_cluster(zkd: Zkd) -> None:
    ran = zkd("status", "--root", "/elsewhere")
    assert ran.code == 0
    assert re.search(r"^leader: +nobody$", ran.out, re.MULTILINE)


async def test_a_malformed_task_that_nobody_has_refused_yet_is_a_row_like_others(dev: Dev, zkd: Zkd) -> None:
    async with library.Client(dev.hosts, root="/elsewhere") as client:
        await client.submit("numpy.sum", [1])
        await client.session.create(client.paths.task("bad"), b"{")
    ran = await asyncio.to_thread(zkd, "--root", "/elsewhere", "get", "tasks")
    assert (ran.code, ran.err) == (0, "")
    assert re.search(r"^bad +- +malformed +- ", ran.out, re.MULTILINE)
    assert re.search(r"^t-\S+ +numpy.sum +waiting ", ran.out, re.MULTILINE)


def test_run_says_what_it_waits_for_and_takes_its_task_back(zkd: Zkd) -> None:
    ran = zkd("run", "echo", "1", "--node", "nowhere", "--timeout", "5")
    assert ran.code == 4
    assert "nowhere" in ran.err
    assert zkd("get", "tasks", "-o", "name").out == ""
