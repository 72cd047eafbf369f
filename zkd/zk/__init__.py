"""ZooKeeper for zkd: one session, its watches, and nothing retried behind the caller's back.

`Session` is the whole client. The rooms below it: `link` keeps a session connected, `connection` is one
socket, `wire`, `multi` and `generic` turn requests into bytes and replies into `values`. This package is
the only importer of aiozk; it knows nothing of tasks and nodes.
"""

from zkd.zk.batch import Batch, ReadBatch
from zkd.zk.session import Session, end_session, ensure_path
from zkd.zk.values import (
    ANY_VERSION,
    CREATOR_ALL,
    WORLD_ALL,
    WORLD_READ,
    Acl,
    Check,
    Create,
    Created,
    Credentials,
    Delete,
    Event,
    EventType,
    Op,
    Perms,
    SetData,
    Stat,
    State,
    StateChange,
    Znode,
)

__all__ = [
    "ANY_VERSION",
    "CREATOR_ALL",
    "WORLD_ALL",
    "WORLD_READ",
    "Acl",
    "Batch",
    "Check",
    "Create",
    "Created",
    "Credentials",
    "Delete",
    "Event",
    "EventType",
    "Op",
    "Perms",
    "ReadBatch",
    "Session",
    "SetData",
    "Stat",
    "State",
    "StateChange",
    "Znode",
    "end_session",
    "ensure_path",
]
