"""Exit codes, and errors as people should read them: what, where, and what to do next. On stderr, always."""

from __future__ import annotations

import os
import sys
from enum import IntEnum
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from types import TracebackType


class Exit(IntEnum):
    OK = 0
    TASK_FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMED_OUT = 4
    UNREACHABLE = 5
    CONFLICT = 6
    BUG = 70
    OVERLOADED = 75
    NO_PERMISSION = 77
    BAD_CONFIG = 78
    INTERRUPTED = 130
    TERMINATED = 143


class Stop(Exception):
    """End the command with this code, saying this."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code


def tell(error: BaseException) -> int:
    """Say on stderr what went wrong and what to do about it; the exit code."""
    if isinstance(error, Stop):
        if str(error):
            click.echo(str(error), err=True)
        return error.code
    code, advice = _verdict(error)
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    click.echo(f"{_red('error')}: {text}", err=True)
    if advice:
        click.echo(f"  {advice}", err=True)
    return code


def _verdict(error: BaseException) -> tuple[Exit, str]:
    from zkd import errors as e

    table: list[tuple[type[BaseException] | tuple[type[BaseException], ...], Exit, str]] = [
        (e.TaskFailed, Exit.TASK_FAILED, _after_failure(error)),
        (e.Overloaded, Exit.OVERLOADED, "`zkd status` shows what there is; the task itself is fine."),
        (e.TaskError, *_without_value(error)),
        (e.ResultLost, Exit.TASK_FAILED, "Run the task again; a result's file lives only as long as its node."),
        (e.TaskNotFound, Exit.NOT_FOUND, "`zkd get tasks`, `zkd get results` and `zkd get dead` list what there is."),
        (e.DatasetNotFound, Exit.NOT_FOUND, "`zkd data ls` lists the datasets, `zkd data stat NAME` what is in one."),
        (e.DatasetExists, Exit.CONFLICT, ""),
        (e.ConfigNotFound, Exit.NOT_FOUND, "`zkd config history` lists what is kept."),
        (e.ConfigConflict, Exit.CONFLICT, "`zkd config show` says what there is now."),
        (e.ModelNotFound, Exit.NOT_FOUND, "`zkd model ls` lists the models, `zkd model ls NAME` the versions of one."),
        (e.ModelInUse, Exit.CONFLICT, ""),
        (e.BadModel, Exit.USAGE, ""),
        (e.NotPredicted, _without_answer(error), "`zkd get nodes` shows who is here."),
        (e.BadRows, Exit.USAGE, ""),
        (e.BadTraining, Exit.USAGE, ""),
        (e.JobNotFound, Exit.NOT_FOUND, "`zkd train ls` lists the jobs."),
        (e.JobExists, Exit.CONFLICT, ""),
        (e.JobFailed, Exit.TASK_FAILED, ""),
        (e.DataUnavailable, Exit.UNREACHABLE, "`zkd data stat NAME` shows the copies, `zkd get nodes` who is here."),
        (e.DataDamaged, Exit.TASK_FAILED, "`zkd data verify NAME` has every copy looked at."),
        (e.LockTimeout, Exit.TIMED_OUT, "`zkd lock ls` shows who holds what, and who waits."),
        ((e.LockLost, e.OutcomeLost, e.TermsDisagree), Exit.CONFLICT, ""),
        (e.ResultTimeout, Exit.TIMED_OUT, "`zkd why ID` says what it waits for."),
        (e.BadSettings, Exit.BAD_CONFIG, ""),
        ((e.NoAuth, e.AuthFailed, e.InvalidAcl, e.SessionClosedRequireAuth), Exit.NO_PERMISSION,
         "Give credentials: zookeeper.auth_file in the settings file (--config)."),
        ((e.Unavailable, e.OutcomeUnknown, e.SessionExpired), Exit.UNREACHABLE,
         "Is ZooKeeper there? --hosts or $ZKD_HOSTS says where; `zkd doctor` looks closer; `zkd dev` starts one."),
        (e.NoNode, Exit.NOT_FOUND, "Has a daemon ever run below this --root? `zkd doctor` looks."),
        ((e.BadVersion, e.NodeExists, e.NotEmpty), Exit.CONFLICT, "Somebody else changed it meanwhile; look again."),
        ((e.BadRecord, e.NotData, e.TooLarge), Exit.USAGE, "`zkd schema task` says what a task looks like."),
        (e.ZooKeeperError, Exit.UNREACHABLE, ""),
        (e.ZkdError, Exit.BAD_CONFIG, ""),
        (TimeoutError, Exit.TIMED_OUT, ""),
        (PermissionError, Exit.NO_PERMISSION, ""),
        (FileNotFoundError, Exit.USAGE, ""),
    ]  # fmt: skip
    for kinds, code, advice in table:
        if isinstance(error, kinds):
            return code, advice
    return Exit.USAGE, ""


def _without_value(error: BaseException) -> tuple[Exit, str]:
    if getattr(error, "kind", "") == "dataset" and "$.dataset" in str(error):
        return Exit.NOT_FOUND, "`zkd data ls` lists the datasets."
    return Exit.TASK_FAILED, ""


def _without_answer(error: BaseException) -> Exit:
    kind = getattr(error, "kind", "")
    return {"deadline": Exit.TIMED_OUT, "full": Exit.OVERLOADED}.get(kind, Exit.TASK_FAILED)


def crash(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """What Python calls for an exception that nobody expected: show it all, and exit as a bug does."""
    sys.__excepthook__(kind, error, traceback)
    click.echo("This is a bug in zkd; please report it with the lines above.", err=True)
    raise SystemExit(Exit.BUG)


def _after_failure(error: BaseException) -> str:
    trace = getattr(error, "remote_traceback", "").rstrip()
    return trace.replace("\n", "\n  ") if trace else ""


def _red(text: str) -> str:
    return click.style(text, fg="red", bold=True) if _has_colour() else text


def _has_colour() -> bool:
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")
