"""Every exception that zkd raises, in one tree.

Three kinds of trouble are kept apart. An *outcome* (a kernel failed, a task was rejected) is a value
while it travels through zkd and becomes one of the `TaskError`s only in the hands of the person who
awaits it. A *condition* (no connection, a version moved on) is a `ZooKeeperError`, mapped once at the
port in `zkd.zk`. A *bug* is an assertion and is not listed here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class ZkdError(Exception):
    """The root of all exceptions that zkd raises on purpose."""


class BadSettings(ZkdError):
    """Settings that cannot be used. The message has one line a fault, with its file and line."""


class BadRecord(ZkdError):
    """Bytes that are not the record they should be.

    `where` is a JSON path such as ``$.priority``; `expected` says what would have been right.
    """

    def __init__(self, where: str, expected: str) -> None:
        super().__init__(f"{where}: {expected}")
        self.where = where
        self.expected = expected


class NotData(ZkdError, TypeError):
    """A value that has no place in JSON. `where` is its JSON path, `reason` says what to do instead."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class BadKernel(ZkdError):
    """A kernel that cannot be registered: a bad name, a bad signature, a module that does not import."""


class NoWorkers(ZkdError):
    """A pool of workers cannot start a process; the message has what that process said."""


# --- ZooKeeper ----------------------------------------------------------------------------------------


class ZooKeeperError(ZkdError):
    """A request to ZooKeeper did not give a result. `path` is the znode it was about, if any."""

    code: int | None = None  # ZooKeeper's own error code, where the server sent one
    meaning = "ZooKeeper refused the request"

    def __init__(self, path: str | None = None, detail: str = "") -> None:
        super().__init__(f"{self.meaning}{f': {path}' if path else ''}{f' ({detail})' if detail else ''}")
        self.path = path
        self.detail = detail


class Unavailable(ZooKeeperError):
    """There is no connection now, so the request was not sent; or it was a read, and no answer came."""

    meaning = "ZooKeeper is not available, nothing was changed"


class OutcomeUnknown(ZooKeeperError):
    """The request was sent and no answer came. It may or may not have been applied: read back."""

    meaning = "connection to ZooKeeper lost before the answer came, the request may have been applied"


class SessionExpired(ZooKeeperError):
    """The session this request belongs to is over. The request was not applied."""

    code = -112
    meaning = "the ZooKeeper session has expired"


class SessionClosed(ZooKeeperError):
    """This session was closed by its own program."""

    meaning = "the ZooKeeper session was closed here"


class TooLarge(ZooKeeperError):
    """The request would exceed what a server takes in one packet; it was not sent.

    A server closes the connection on a larger one, which would look like a lost connection.
    """

    meaning = "the request is too large for ZooKeeper, it was not sent"


class NoNode(ZooKeeperError):
    code = -101
    meaning = "no such znode"


class NoAuth(ZooKeeperError):
    code = -102
    meaning = "the ACL does not allow this"


class BadVersion(ZooKeeperError):
    code = -103
    meaning = "the znode has another version than expected"


class NoChildrenForEphemerals(ZooKeeperError):
    code = -108
    meaning = "an ephemeral znode cannot have children"


class NodeExists(ZooKeeperError):
    code = -110
    meaning = "the znode exists already"


class NotEmpty(ZooKeeperError):
    code = -111
    meaning = "the znode has children"


class BadArguments(ZooKeeperError):
    code = -8
    meaning = "ZooKeeper does not accept these arguments"


class InvalidAcl(ZooKeeperError):
    code = -114
    meaning = "ZooKeeper does not accept this ACL"


class AuthFailed(ZooKeeperError):
    """The server did not accept our credentials. Trying again will not help."""

    code = -115
    meaning = "ZooKeeper did not accept the credentials"


class EphemeralOnLocalSession(ZooKeeperError):
    code = -120
    meaning = "a local session cannot create an ephemeral znode"


class NoWatcher(ZooKeeperError):
    code = -121
    meaning = "there is no such watch"


class SessionClosedRequireAuth(ZooKeeperError):
    code = -124
    meaning = "the server demands authentication and closed the session"


class QuotaExceeded(ZooKeeperError):
    code = -125
    meaning = "a quota of the ensemble is used up"


class Throttled(ZooKeeperError):
    code = -127
    meaning = "the server is overloaded and dropped the request"


class Unimplemented(ZooKeeperError):
    """The server is too old for this operation, or it is switched off there."""

    code = -6
    meaning = "the server does not offer this operation"


class ServerError(ZooKeeperError):
    """An error code without a class of its own; `code` has it. It is never retried."""

    def __init__(self, path: str | None, code: int) -> None:
        super().__init__(path, f"code {code}")
        self.code = code


class MultiFailed(ZooKeeperError):
    """A transaction was rolled back as a whole because of its operation number `index`."""

    meaning = "the transaction was rolled back"

    def __init__(self, index: int, path: str, cause: ZooKeeperError) -> None:
        super().__init__(path, f"operation {index}: {cause}")
        self.index = index
        self.cause = cause


# --- Tasks --------------------------------------------------------------------------------------------


class TaskError(ZkdError):
    """A task ended without a value. `task_id`, `node` and `attempt` say which run this is about."""

    item: int | None = None  # in `Client.map`: the index of the item this is about, or of the first in its task

    def __init__(
        self, message: str, *, task_id: str = "", node: str | None = None, attempt: int = 0, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.task_id = task_id
        self.node = node
        self.attempt = attempt
        self.kind = kind


class TaskFailed(TaskError):
    """The kernel raised, crashed or ran out of time, and no retries are left.

    `kind` is the remote exception's type (``ValueError``) or ``crash``, ``timeout``, ``node_loss``;
    `remote_traceback` has the remote stack, where there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        task_id: str = "",
        node: str | None = None,
        attempt: int = 0,
        kind: str = "",
        remote_traceback: str = "",
    ) -> None:
        super().__init__(message, task_id=task_id, node=node, attempt=attempt, kind=kind)
        self.remote_traceback = remote_traceback


class TaskRejected(TaskError):
    """The task was not accepted: the message says where it is wrong and what was expected."""


class Overloaded(TaskRejected):
    """There is as much waiting as the cluster takes. Nothing is wrong with the task: drop it again later.

    Raised before a task is dropped, where that can be known, and for one that the leader refused.
    """


class TaskCancelled(TaskError):
    """The task was cancelled before it ended."""


class TaskExpired(TaskError):
    """The task's ``not_after_s`` passed before it ended."""


class TaskNotFound(ZkdError, LookupError):
    """There is no task, result or dead letter of this id: it never was, or its result was let go."""


class ResultTimeout(ZkdError, TimeoutError):
    """No result came in the time the caller gave. The task itself goes on."""


class ResultLost(ZkdError):
    """The result's blob cannot be fetched: the nodes that hold it are gone, or its bytes are damaged."""


class DatasetNotFound(ZkdError, LookupError):
    """There is no dataset of this name, or it has no such version, column, part or key."""


class DatasetExists(ZkdError):
    """There is a dataset of this name already, or somebody else has made its next version meanwhile."""


class BadRows(ZkdError, ValueError):
    """Rows or columns that no dataset can have. `where` is a column, a file and line, or an argument; `expected`
    says what would have been right. Nothing was changed."""

    def __init__(self, where: str, expected: str) -> None:
        super().__init__(f"{where}: {expected}")
        self.where = where
        self.expected = expected


class DataUnavailable(ZkdError):
    """No node that is here has these bytes, or too few nodes took a copy. Nothing was changed."""


class DataElsewhere(DataUnavailable):
    """This node does not hold the part; `holders` say that they do, `homes` are those that should."""

    def __init__(self, message: str, part: int, holders: Sequence[str], homes: Sequence[str]) -> None:
        super().__init__(message)
        self.part = part
        self.holders = list(holders)
        self.homes = list(homes)


class DataDamaged(ZkdError):
    """Bytes that are not what their digest says, or a file that is not what its manifest says."""


class DataContradicts(DataDamaged):
    """What the tree says of a segment is not what its digest names: no copy of it will be anything else."""


class BadTraining(ZkdError):
    """Data, options or answers that a model cannot be trained from. The message says where, and what to do."""


class BadAnswers(ZkdError):
    """Answers of counters that cannot be added up: damaged, or not those of all parts, each once."""


class JobNotFound(ZkdError, LookupError):
    """There is no training job of this id."""


class JobExists(ZkdError):
    """There is a training job of this id already."""


class JobFailed(ZkdError):
    """A training job ended without a model. The message says why."""


class NoOptimum(BadTraining):
    """The loss has no single minimum: columns are collinear, or classes separable, and nothing is penalised."""


class LockTimeout(ZkdError, TimeoutError):
    """It was not our turn in the time the caller gave. Nothing of ours is left in the line."""


class LockLost(ZkdError):
    """What was held is not ours any more, or nobody can say whether it is. The message says why.

    What was done since may have run beside another holder's work: only a check of the fence can tell.
    """


class LockReentered(ZkdError, RuntimeError):
    """A task asked for what it holds already, and would have waited for itself."""


class OutcomeLost(ZkdError):
    """Nobody can tell any more whether a change was made: the answer was lost, and so was what it could be told by."""


class TermsDisagree(ZkdError, ValueError):
    """Somebody else uses this name with other terms: another number of leases, or of parties. Nothing was changed."""


class ConfigNotFound(ZkdError, LookupError):
    """There is no configuration of this name, or no such revision of it is kept."""


class ConfigConflict(ZkdError):
    """The configuration has another revision than was expected: somebody else changed it. Nothing was changed."""


class ModelNotFound(ZkdError, LookupError):
    """There is no registered model of this name, or it has no such version or alias."""


class ModelInUse(ZkdError):
    """What an alias points to cannot be removed, nor can two things be done to a model at once. Nothing was changed."""


class BadModel(ZkdError, ValueError):
    """A file or an object that is no model of ours, or one that zkd cannot express. The message says why."""


class NotPredicted(ZkdError):
    """A request for predictions that has no answer. `kind` is one word for programs:

    bad_request, not_found, too_large: it will never have one; full, busy, late (there is no time before its deadline),
    fetching, draining, unavailable: another node may have one at once, this one after `retry_after_s`; deadline: that
    passed; failed: something went wrong here.
    """

    def __init__(self, kind: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after_s = retry_after_s


def by_code(classes: Sequence[type[ZooKeeperError]]) -> dict[int, type[ZooKeeperError]]:
    return {cls.code: cls for cls in classes if cls.code is not None}


BY_CODE = by_code(ZooKeeperError.__subclasses__())


def from_code(code: int, path: str | None) -> ZooKeeperError:
    """The exception for an error code of a ZooKeeper server."""
    cls = BY_CODE.get(code)
    return ServerError(path, code) if cls is None else cls(path)
