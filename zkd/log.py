"""What zkd tells people: one event a line, `noun.verb_past key=value`, on stderr or in the journal.

    log = zkd.log.get(node="a")
    log.info("task.finished", task="t-1", run_s=0.2)

`configure` is for the programs `zkd daemon` and `zkd dev`; importing zkd, or running a node inside another
program, never touches logging there: events go to the structlog of that program, if it has configured one,
else to the standard logger ``zkd``, where Python shows warnings and keeps quiet about the rest.
INFO tells the cluster's story, WARNING means that someone should look, ERROR that we gave up.

The last events from INFO up are also kept in memory (`recent`), whatever the level of what is written, so that
`zkd logs` can ask a node for them.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import structlog

from zkd.journal import Journal, entry, field_name, is_stderr_the_journal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TextIO

    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Format = Literal["auto", "console", "json", "journal"]

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
PRIORITIES = {"debug": "7", "info": "6", "warning": "4", "error": "3", "critical": "2"}  # syslog's

RECENT_MAX = 1_000  # events; half a kilobyte each
TEXT_MAX = 1_000  # characters of a value that is shown again

_SECRET = re.compile(r"(?:^|_)(?:auth|password|passwd|secret|token)(?:$|_)", re.IGNORECASE)
REDACTED = "(redacted)"


class Told(msgspec.Struct, frozen=True):
    """An event that was told, as it is shown again."""

    number: int  # of this process, without gaps
    at_ms: int
    level: str
    event: str
    fields: dict[str, str]


class _Recent:
    """The last events of this process, as they came; made into text when somebody asks."""

    def __init__(self) -> None:
        self.events: deque[tuple[int, float, str, EventDict]] = deque(maxlen=RECENT_MAX)
        self.last = 0
        self.threshold = logging.DEBUG  # events below it are kept, and not written

    def __call__(self, _: WrappedLogger, method: str, event: EventDict) -> EventDict:
        level = "error" if method in ("exception", "critical") else "warning" if method == "warn" else method
        if level != "debug":
            self.last += 1
            kept = {key: value for key, value in event.items() if key not in ("exc_info", "stack_info")}  # whole frames
            self.events.append((self.last, time.time(), level, kept))
        return event


_recent = _Recent()


def recent(node: str, after: int = 0, most: int = RECENT_MAX, task: str | None = None) -> tuple[list[Told], int]:
    """The last events of this node, or of no node in particular, and the number of the last one of all.

    With `task` those alone that name it. Empty where the program around us has a structlog of its own.
    """
    fresh = min(_recent.last - after, len(_recent.events))
    found = []
    for number, at, level, event in islice(_recent.events, len(_recent.events) - max(0, fresh), None):
        if event.get("node", node) == node and (task is None or task in (event.get("id"), event.get("task"))):
            shown = {key: _text(value)[:TEXT_MAX] for key, value in event.items() if key not in ("event", "level")}
            found.append(Told(number, int(at * 1000), level, str(event.get("event", "")), shown))
    return found[-most:] if most else [], _recent.last


class Logger(structlog.make_filtering_bound_logger(logging.DEBUG)):  # type: ignore[misc]  # a class made at run time
    """The class of every logger here, so that a new level counts for those made before it as well."""


def get(**bound: Any) -> FilteringBoundLogger:
    """A logger whose events all carry `bound`."""
    if structlog.is_configured():
        return structlog.get_logger(**bound)  # type: ignore[no-any-return]
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        logging.getLogger("zkd"),
        processors=[_filter_debug, redact, _recent, structlog.stdlib.filter_by_level, _for_stdlib],
        wrapper_class=structlog.stdlib.BoundLogger,
        **bound,
    )


def configure(level: str = "info", format: Format = "auto", stream: TextIO | None = None) -> None:  # noqa: A002
    """Send the events of this process, and what its libraries log, to `stream` (stderr) or the journal."""
    stream = sys.stderr if stream is None else stream
    chosen = _detect(stream) if format == "auto" else format
    journal = Journal() if chosen == "journal" else None
    colors = chosen == "console" and stream.isatty() and not os.environ.get("NO_COLOR")
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        redact,
        _recent,
        _drop_quiet,
    ]
    if chosen == "console":
        processors.append(structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False))
        processors.append(structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=24, sort_keys=False))
    else:
        processors.append(_as_json if journal is None else _as_entry)
    structlog.configure(
        processors=processors,
        wrapper_class=Logger,
        logger_factory=(
            structlog.PrintLoggerFactory(stream) if journal is None else lambda *_: _JournalLogger(journal)
        ),
        cache_logger_on_first_use=True,
    )
    set_level(level)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


def set_level(level: str) -> None:
    """Let events of `level` and above pass, from every logger of this process and at once."""
    _recent.threshold = LEVELS[level]
    source = structlog.make_filtering_bound_logger(min(LEVELS[level], logging.INFO))
    for name, value in vars(source).items():
        if not name.startswith("__"):
            setattr(Logger, name, value)


def _detect(stream: TextIO) -> Format:
    if is_stderr_the_journal():
        return "journal"
    return "console" if stream.isatty() else "json"


# --- Processors: (logger, method, event) -> event, the last one -> what the logger writes ------------------


def redact(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Hide the values of keys that name secrets. A second line of defence: nobody should log one at all."""
    for key, value in event.items():
        if _SECRET.search(key):
            event[key] = REDACTED
        elif isinstance(value, dict):
            event[key] = redact(_, __, dict(value))
    return event


def _drop_quiet(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """End here what is below the level: it was only kept in memory."""
    if LEVELS.get(event["level"], logging.CRITICAL) < _recent.threshold:
        raise structlog.DropEvent
    return event


def _filter_debug(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Before anything is done about an event that there are thousands of a second."""
    return structlog.stdlib.filter_by_level(logger, method, event) if method == "debug" else event


def _as_json(_: WrappedLogger, __: str, event: EventDict) -> str:
    now = time.time()
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03}Z"
    line = {"time": stamp, "level": event.pop("level"), "event": event.pop("event"), **event}
    return msgspec.json.encode(line, enc_hook=_for_json).decode()


def _for_json(value: Any) -> Any:
    return repr(value)


def _as_entry(_: WrappedLogger, __: str, event: EventDict) -> bytes:
    level, name = event.pop("level"), str(event.pop("event"))
    fields = {
        "MESSAGE": _line(name, event),
        "PRIORITY": PRIORITIES[level],
        "SYSLOG_IDENTIFIER": "zkd",
        "ZKD_EVENT": name,
    }
    fields |= {field_name(key): _text(value) for key, value in event.items()}
    return entry(fields)


def _for_stdlib(_: WrappedLogger, __: str, event: EventDict) -> tuple[tuple[str], dict[str, Any]]:
    passed = {key: event.pop(key) for key in ("exc_info", "stack_info") if key in event}
    return (_line(str(event.pop("event")), event),), passed


def _line(name: str, event: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={_quoted(_text(value))}" for key, value in event.items())])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _quoted(text: str) -> str:
    return repr(text) if not text or " " in text or "\n" in text else text


class _JournalLogger:
    """What structlog calls at the end of the chain; one method a level, all the same."""

    def __init__(self, journal: Journal) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.exception = journal.send


class _Forward(logging.Handler):
    """Events of libraries (aiozk, asyncio, aiohttp) that use the standard module, on the same way out."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.ERROR)
        get().log(level, "library.logged", logger=record.name, message=record.getMessage(), exc_info=record.exc_info)
