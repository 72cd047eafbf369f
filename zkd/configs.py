"""Records of the central configuration, as they stand below ``config/`` and in a node's heartbeat.

Every change writes the head in the same transaction, at the version that was read. So changes come one after the
other, and who finds the head unchanged around a read has read one revision and not parts of two.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Raw, Struct

HEAD_BYTES_MAX = 256 * 1024  # it names the layers: some 5,000
LAYER_BYTES_MAX = 64 * 1024  # some thousand settings; there are not fifty
APP_BYTES_MAX = 512 * 1024  # leaves room for the same text twice in one transaction of 1 MiB, less what surrounds it
REVISIONS_KEPT = 100  # of the settings, and of each program's configuration

Revision = Annotated[int, Meta(ge=1, le=2**53)]
Values = dict[str, Any]  # by dotted key, as in the settings file: {"tasks.timeout_s": 600}


class ConfigHead(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What stands at ``config``. A newer form has other fields, and is refused by those who do not know it.

    `layers` says which there are, and the revision that changed each last: one that is removed or put there by itself
    is found out, and does not silently count. Without it, as people write by hand, any will do.
    """

    revision: Revision
    layers: dict[str, int] | None = None
    id: str = ""  # of the change that made it, by which its author finds it again
    zkd: str = ""  # version of the program that wrote it


class ConfigLayer(Struct, frozen=True, forbid_unknown_fields=True):
    """What stands at ``config/cluster``, ``config/labels/<name=value>``, ``config/nodes/<node>``."""

    revision: Revision  # that changed it last
    values: Values


class ConfigChange(Struct, frozen=True, omit_defaults=True):
    """One layer before and after; None where it was not, or is not any more."""

    layer: str
    before: Values | None = None
    after: Values | None = None


class ConfigRevision(Struct, frozen=True, omit_defaults=True):
    """What stands at ``config/history/<n>``: who changed what, when and why."""

    revision: Revision
    changes: list[ConfigChange]
    at: str = ""  # for people
    by: str = ""
    why: str = ""
    id: str = ""
    zkd: str = ""


class AppConfig(Struct, frozen=True, omit_defaults=True):
    """What stands at ``config/apps/<name>``, and at ``config/apps/<name>/<n>`` for each revision of it."""

    revision: Revision
    value: Raw
    at: str = ""
    by: str = ""
    why: str = ""
    id: str = ""


class OwnValue(Struct, frozen=True):
    """What a node's own machine says for a setting, and where. The tree cannot override it."""

    value: Any
    origin: str


class ConfigStanding(Struct, frozen=True, omit_defaults=True):
    """How far a node is with the central configuration; a part of its heartbeat."""

    revision: int = 0  # whose values it has taken over; 0: nothing was ever said
    source: Literal["tree", "disk", "none"] = "none"  # disk: what it kept from its former life
    refused: int | None = None  # the revision that it did not take; 0: one whose number cannot be read
    faults: list[str] = []  # why
    need_restart: list[str] = []  # settings that were taken over and hold from its next start on
    own: dict[str, OwnValue] = {}  # of those that could be said centrally
