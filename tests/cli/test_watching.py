"""Promises of `zkd events`, `logs`, `top` and `debug bundle`, against a cluster of processes."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.cli.conftest import Dev, Ran

    Zkd = Callable[..., Ran]

TERMINAL_S = 30.0


def lines(ran: Ran) -> list[dict[str, object]]:
    return [json.loads(line) for line in ran.out.splitlines()]


def test_the_story_of_a_task_comes_from_the_tree_and_its_node(zkd: Zkd) -> None:
    hostile = "no\x1b]0;title\x07 luck"
    task = zkd("submit", "--retries", "1", "test.fail", json.dumps(hostile)).out.strip()
    assert zkd("result", task, "--wait").code == 1

    def is_whole() -> bool:
        events = [line["event"] for line in lines(zkd("logs", task, "-o", "jsonl"))]
        return events.count("run.ended") == 2 and "task.ended" in events

    wait_until(is_whole, 30.0)
    story = lines(zkd("logs", task, "-o", "jsonl"))
    by_event = {str(line["event"]): line for line in story}
    assert {"task.attempt_failed", "run.ended", "task.ended", "result.created", "task.died"} <= by_event.keys()
    assert by_event["result.created"]["status"] == "failed"
    assert [line["status"] for line in story if line["event"] == "run.ended"] == ["error", "failed"]
    assert all(str(line["of"]) in ("tree", "dev-1", "dev-2") for line in story)
    shown = zkd("logs", task)
    assert (shown.code, shown.err) == (0, "")
    assert "luck" in shown.out
    assert "\x1b" not in shown.out
    assert f"zkd retry {task}" in shown.out


def test_a_task_that_nobody_knows_has_no_story(zkd: Zkd) -> None:
    ran = zkd("logs", "nobody-knows")
    assert (ran.code, ran.out) == (3, "")
    assert "neither the tree nor any node knows of nobody-knows" in ran.err
    assert zkd("logs", "no/id").code == 2


def test_events_are_followed_as_they_happen(zkd: Zkd, dev: Dev) -> None:
    environment = os.environ | {"ZKD_HOSTS": dev.hosts, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "zkd", "events", "-w", "--last", "1", "-o", "jsonl"]
    # Whoever runs in the background, as the tests may, ignores SIGINT, and so would its children.
    listening = ["env", "--default-signal=INT", *command]
    with subprocess.Popen(listening, env=environment, stdout=subprocess.PIPE, text=True) as follower:
        try:
            assert follower.stdout is not None
            first = json.loads(follower.stdout.readline())  # of before: by now it is there
            assert set(first) == {"at_ms", "event", "of", "text", "grade"}
            found: list[tuple[str, str]] = []
            zkd("run", "test.fail", '"as asked"')
            state = "cordon"
            started = time.monotonic()
            while not {("task.died", "as asked"), ("node.state_changed", "cordoned")} <= set(found):
                assert time.monotonic() - started < 60, found
                # Once it watches, the next change is told; until then one may be the state that it begins with.
                zkd("node", state, "dev-1")
                state = "uncordon" if state == "cordon" else "cordon"
                zkd("run", "test.fail", '"as asked"')
                while select.select([follower.stdout], [], [], 1.5)[0]:
                    told = json.loads(follower.stdout.readline())
                    text = "as asked" if "as asked" in told["text"] else told["text"].rpartition(" ")[2]
                    found.append((told["event"], text))
                    if len(found) > 500:
                        break
            follower.send_signal(signal.SIGINT)
            assert follower.wait(30) == 130
        finally:
            follower.kill()
            zkd("node", "uncordon", "dev-1")


def test_top_is_plain_without_a_terminal(zkd: Zkd) -> None:
    ran = zkd("top")
    assert ran.code == 0
    assert "\x1b" not in ran.out
    assert all(word in ran.out for word in ("leader dev-", "NODE", "dev-1", "dev-2", "slots"))
    assert zkd("top", "-n", "2", "--every", "0.2").out.count("NODE") == 2


def test_top_fills_a_terminal_and_q_leaves_it_as_it_was(dev: Dev) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"ZKD_HOSTS": dev.hosts, "TERM": "xterm"}
    with closing(os.fdopen(ours, "rb+", buffering=0)) as terminal:
        before = _settings(theirs)
        command = [sys.executable, "-m", "zkd", "top"]
        with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as top:
            try:
                seen = _read_until(terminal, b"q ends")
                assert b"dev-2" in seen
                assert b"\x1b[?1049h" in seen
                terminal.write(b"q")
                assert b"\x1b[?1049l" in _read_until(terminal, b"\x1b[?1049l")
                assert top.wait(30) == 0
            finally:
                top.kill()
        assert _settings(theirs) == before
        os.close(theirs)


def _settings(terminal: int) -> list[object]:
    import termios

    return termios.tcgetattr(terminal)


def _read_until(terminal: object, wanted: bytes) -> bytes:
    seen, until = b"", time.monotonic() + TERMINAL_S
    while wanted not in seen:
        left = until - time.monotonic()
        assert left > 0, seen
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal.fileno(), 65536)  # type: ignore[attr-defined]
    return seen


def test_a_bundle_has_what_helps_and_no_secret(zkd: Zkd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "auth-of-nobody"
    secret.write_text("digest:somebody:hunter2\n")
    monkeypatch.setenv("ZKD_ZOOKEEPER__AUTH_FILE", str(secret))
    target = tmp_path / "bundle.tar.gz"
    ran = zkd("debug", "bundle", "-f", str(target))
    assert (ran.code, ran.err) == (0, "")
    assert target.stat().st_mode & 0o777 == 0o600
    with tarfile.open(target) as tar:
        files = {name.partition("/")[2]: tar.extractfile(name) for name in tar.getnames()}
        texts = {name: file.read().decode() for name, file in files.items() if file is not None}
    assert {"versions.json", "settings.json", "doctor.jsonl", "overview.json", "tree.json"} <= texts.keys()
    for node in ("dev-1", "dev-2"):
        assert f'zkd_build_info{{version="0.1.0",node="{node}"}} 1' in texts[f"nodes/{node}/metrics.txt"]
        # The last ones; the first of a node that others have used long before are gone.
        assert all(json.loads(line)["event"] for line in texts[f"nodes/{node}/log.jsonl"].splitlines())
        assert texts[f"nodes/{node}/log.jsonl"]
    assert {node["node"] for node in json.loads(texts["overview.json"])["nodes"]} == {"dev-1", "dev-2"}
    everything = "".join(texts.values())
    assert "hunter2" not in everything
    assert "auth-of-nobody" not in everything
    assert list(tmp_path.glob("*.part")) == []


def test_a_bundle_is_made_where_zookeeper_is_not(zkd: Zkd, tmp_path: Path) -> None:
    target = tmp_path / "bundle.tar.gz"
    ran = zkd("debug", "bundle", "--hosts", "127.0.0.1:1", "-f", str(target))
    assert ran.code == 0
    assert "127.0.0.1:1" in ran.err
    with tarfile.open(target) as tar:
        assert {name.partition("/")[2] for name in tar.getnames()} == {
            "versions.json",
            "settings.json",
            "doctor.jsonl",
            "errors.txt",
        }
