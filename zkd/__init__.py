"""zkd: numeric work on the nodes of a ZooKeeper ensemble. Drop a task znode, read its result.

    async with zkd.Client("zk1:2181,zk2:2181,zk3:2181") as client:
        total = await client.run("numpy.sum", [1, 2, 3])

The names below are loaded when they are first used, so that ``import zkd`` costs nothing: neither the daemon
nor ``zkd --help`` should ever load numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from zkd.client import Client
    from zkd.client.handles import Handle, TaskStatus
    from zkd.client.job_status import JobStatus
    from zkd.client.model import Model
    from zkd.client.schedules import Cron, Every, Scheduled
    from zkd.client.training_job import TrainingJob
    from zkd.daemon import Daemon
    from zkd.errors import (
        BadKernel,
        BadRecord,
        BadSettings,
        BadTraining,
        ConfigConflict,
        ConfigNotFound,
        JobExists,
        JobFailed,
        JobNotFound,
        LockLost,
        LockReentered,
        LockTimeout,
        Overloaded,
        ResultLost,
        ResultTimeout,
        TaskCancelled,
        TaskError,
        TaskExpired,
        TaskFailed,
        TaskNotFound,
        TaskRejected,
        TermsDisagree,
        Unavailable,
        ZkdError,
        ZooKeeperError,
    )
    from zkd.kernels import current_task, kernel, report
    from zkd.settings import Settings

_HOME = {
    "Client": "zkd.client",
    "Daemon": "zkd.daemon",
    "Handle": "zkd.client.handles",
    "TaskStatus": "zkd.client.handles",
    **dict.fromkeys(("Cron", "Every", "Scheduled"), "zkd.client.schedules"),
    "JobStatus": "zkd.client.job_status",
    "Model": "zkd.client.model",
    "TrainingJob": "zkd.client.training_job",
    "Settings": "zkd.settings",
    "current_task": "zkd.kernels",
    "kernel": "zkd.kernels",
    "report": "zkd.kernels",
    **dict.fromkeys(
        (
            "BadKernel",
            "BadRecord",
            "BadSettings",
            "BadTraining",
            "ConfigConflict",
            "ConfigNotFound",
            "JobExists",
            "JobFailed",
            "JobNotFound",
            "LockLost",
            "LockReentered",
            "LockTimeout",
            "Overloaded",
            "ResultLost",
            "ResultTimeout",
            "TaskCancelled",
            "TaskError",
            "TaskExpired",
            "TaskFailed",
            "TaskNotFound",
            "TaskRejected",
            "TermsDisagree",
            "Unavailable",
            "ZkdError",
            "ZooKeeperError",
        ),
        "zkd.errors",
    ),
}

__all__ = [
    "BadKernel",
    "BadRecord",
    "BadSettings",
    "BadTraining",
    "Client",
    "ConfigConflict",
    "ConfigNotFound",
    "Cron",
    "Daemon",
    "Every",
    "Handle",
    "JobExists",
    "JobFailed",
    "JobNotFound",
    "JobStatus",
    "LockLost",
    "LockReentered",
    "LockTimeout",
    "Model",
    "Overloaded",
    "ResultLost",
    "ResultTimeout",
    "Scheduled",
    "Settings",
    "TaskCancelled",
    "TaskError",
    "TaskExpired",
    "TaskFailed",
    "TaskNotFound",
    "TaskRejected",
    "TaskStatus",
    "TermsDisagree",
    "TrainingJob",
    "Unavailable",
    "ZkdError",
    "ZooKeeperError",
    "__version__",
    "current_task",
    "kernel",
    "report",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'zkd' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
