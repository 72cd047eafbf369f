"""Promises of zkd.log and zkd.journal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import structlog

from zkd import journal, log

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def own_configuration() -> Iterator[None]:
    """What a test configures ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    log.set_level("debug")
    root.handlers[:], root.level = handlers, level


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_a_json_line_where_nobody_looks() -> None:
    stream = io.StringIO()
    log.configure("info", "auto", stream)
    log.get(node="a").info("task.finished", task="t-1", run_s=0.25, value=float("nan"), odd={1, 2})
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("time")))
    assert line == {
        "level": "info",
        "event": "task.finished",
        "node": "a",
        "task": "t-1",
        "run_s": 0.25,
        "value": None,
        "odd": [1, 2],
    }


def test_an_event_is_a_readable_line_on_a_terminal() -> None:
    stream = io.StringIO()
    log.configure("info", "console", stream)
    log.get(node="a").warning("session.suspended", server="zk1:2181")
    assert re.search(r"\[warning  \] session\.suspended +node=a server=zk1:2181\n", stream.getvalue())
    assert "\x1b" not in stream.getvalue()


def test_secrets_are_hidden_at_any_depth() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    log.get(zk_auth="hunter2").info("x.y", password="hunter2", API_TOKEN="hunter2", tls={"key_secret": "hunter2"})
    assert "hunter2" not in stream.getvalue()
    log.get().info("x.y", author="shown", tokens=3)
    assert lines(stream)[-1]["author"] == "shown"


def test_events_below_the_level_cost_no_line_and_a_new_level_counts_for_old_loggers() -> None:
    stream = io.StringIO()
    log.configure("warning", "json", stream)
    old = log.get().bind(node="a")
    old.info("x.dropped")
    log.set_level("debug")
    old.debug("x.written")
    assert [line["event"] for line in lines(stream)] == ["x.written"]


def test_an_exception_is_one_line_with_its_stack() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    try:
        raise ValueError("no such thing")
    except ValueError:
        log.get().exception("node.died")
    (line,) = lines(stream)
    assert line["level"] == "error"
    assert str(line["exception"]).startswith("Traceback")
    assert str(line["exception"]).endswith("ValueError: no such thing")


def test_what_libraries_log_goes_the_same_way() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    logging.getLogger("aiozk").warning("odd %s", "answer")
    logging.getLogger("aiozk").info("chatter")
    logging.getLogger("asyncio").critical("worst")
    assert [(line["level"], line["logger"], line["message"]) for line in lines(stream)] == [
        ("warning", "aiozk", "odd answer"),
        ("error", "asyncio", "worst"),
    ]


def test_importing_and_embedding_configures_nothing() -> None:
    program = (
        "import logging, structlog, zkd.log\n"
        "assert not structlog.is_configured() and not logging.getLogger().handlers\n"
        "log = zkd.log.get(node='a')\n"
        "log.info('node.joined'); log.warning('node.lost 100%s', token='hunter2')\n"
        "assert not structlog.is_configured() and not logging.getLogger().handlers\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout, run.stderr) == ("", "node.lost 100%s node=a token=(redacted)\n")


def test_an_embedding_program_keeps_its_own_structlog() -> None:
    events: list[dict[str, object]] = []

    def keep(_: object, __: str, event: dict[str, object]) -> dict[str, object]:
        events.append(event)
        raise structlog.DropEvent

    structlog.configure(processors=[keep])
    log.get(node="a").info("node.joined")
    assert events == [{"node": "a", "event": "node.joined"}]


# --- The journal -------------------------------------------------------------------------------------------


@pytest.fixture
def journald(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The receiving end of a journal of the test's own."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(5)
        monkeypatch.setattr(journal.Journal.__init__, "__defaults__", (path,))
        yield receiver


def parse(message: bytes) -> dict[str, str]:
    """The fields of an entry, read the way journald reads them."""
    fields: dict[str, str] = {}
    while message:
        line, _, rest = message.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", rest[:8])
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[name.decode()] = value.decode()
        message = rest
    return fields


def test_journal_entries_carry_fields(journald: socket.socket) -> None:
    log.configure("info", "journal")
    log.get(node="a").error("task.lost", task="t-1", note="two\nlines=x")
    assert parse(journald.recv(65536)) == {
        "MESSAGE": "task.lost node=a task=t-1 note='two\\nlines=x'",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "zkd",
        "ZKD_EVENT": "task.lost",
        "ZKD_NODE": "a",
        "ZKD_TASK": "t-1",
        "ZKD_NOTE": "two\nlines=x",
    }


def test_an_entry_too_big_for_a_datagram_goes_as_a_sealed_file(journald: socket.socket) -> None:
    log.configure("info", "journal")
    log.get().info("x.y", text="z" * 3_000_000)
    message, files, _, _ = socket.recv_fds(journald, 16, 1)
    assert message == b""
    with open(files[0], "rb") as file:
        assert parse(os.pread(file.fileno(), 7_000_000, 0))["ZKD_TEXT"] == "z" * 3_000_000
    assert len(files) == 1


def test_a_journal_that_does_not_keep_up_or_is_gone_costs_entries_and_no_time(journald: socket.socket) -> None:
    full = journal.Journal()
    for _ in range(5000):
        full.send(b"MESSAGE=x\n")
    assert full.dropped > 0
    gone = journal.Journal("/nonexistent/socket")
    gone.send(b"MESSAGE=x\n")
    assert gone.dropped == 1


def test_the_journal_is_used_only_where_stderr_ends_in_it() -> None:
    stderr = os.fstat(2)
    assert journal.is_stderr_the_journal({"JOURNAL_STREAM": f"{stderr.st_dev}:{stderr.st_ino}"})
    assert not journal.is_stderr_the_journal({"JOURNAL_STREAM": f"{stderr.st_dev}:{stderr.st_ino + 1}"})
    assert not journal.is_stderr_the_journal({})


def test_field_names_are_such_as_journald_keeps() -> None:
    assert journal.field_name("task-id é") == "ZKD_TASK_ID_"
    assert len(journal.field_name("x" * 100)) == 64


def test_the_last_events_are_kept_whatever_is_written() -> None:
    stream = io.StringIO()
    log.configure("warning", "json", stream)
    before = log.recent("ring")[1]
    story = log.get(node="ring")
    story.debug("task.done", id="t-1")
    story.info("task.ended", id="t-1", api_token="hunter2")
    story.warning("task.unreadable", id="t-2", error="x" * 5000)
    log.get(node="other").warning("task.ended", id="t-1")
    told, last = log.recent("ring", before)
    assert [(line.level, line.event) for line in told] == [("info", "task.ended"), ("warning", "task.unreadable")]
    assert told[0].fields == {"node": "ring", "id": "t-1", "api_token": log.REDACTED}
    assert len(told[1].fields["error"]) == log.TEXT_MAX
    assert [line.event for line in log.recent("ring", before, task="t-1")[0]] == ["task.ended"]
    assert log.recent("ring", last) == ([], last)
    assert [line["event"] for line in lines(stream)] == ["task.unreadable", "task.ended"]


def test_no_more_events_are_kept_than_said() -> None:
    log.configure("error", "json", io.StringIO())
    story = log.get(node="ring")
    for number in range(log.RECENT_MAX + 10):
        story.info("x.happened", number=number)
    told, last = log.recent("ring")
    assert (len(told), told[-1].number) == (log.RECENT_MAX, last)
    assert log.recent("ring", most=3)[0] == told[-3:]
