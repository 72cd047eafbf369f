"""A program's own configuration: of its own type or not at all, followed through whatever happens to connections."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from zkd.client import Client
from zkd.configs import APP_BYTES_MAX
from zkd.errors import BadRecord, ConfigConflict, ConfigNotFound, SessionClosed
from zkd.zk import generic
from zkd.zk.server import EmbeddedServer, Op

if TYPE_CHECKING:
    from collections.abc import Callable

WITHIN_S = 30.0


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    low: Annotated[float, msgspec.Meta(ge=0)]
    high: float = 1.0
    names: list[str] = []

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"expected low <= high, got {self.low} > {self.high}")


@dataclasses.dataclass
class Plain:
    count: int
    inner: dict[str, Range] = dataclasses.field(default_factory=dict)


@pytest.fixture
async def client(embedded: EmbeddedServer) -> AsyncIterator[Client]:
    async with Client(embedded.connect_string, connect_timeout_s=WITHIN_S) as client:
        yield client


async def by_hand(client: Client, name: str, data: bytes) -> None:
    """Write as anybody could."""
    path = client.paths.app_config(name)
    if await client.session.exists(path) is None:
        await client.session.create(path, data)
    else:
        await client.session.set(path, data, -1)


async def following(values: AsyncGenerator[Any]) -> Any:
    async with asyncio.timeout(WITHIN_S):
        return await anext(values)


@pytest.mark.parametrize(
    "value", [Range(0.25, names=["a"]), Plain(3, {"x": Range(0.5)}), {"a": [1, None, True]}, 7, "text", [], None]
)
async def test_a_value_comes_back_as_its_own_type(client: Client, value: Any) -> None:
    assert await client.config.set("app", value, why="test") == 1
    kind: Any = type(value) if isinstance(value, Range | Plain) else Any
    assert await client.config.get("app", type=kind) == value
    entry = await client.config.entry("app", type=kind)
    assert (entry.value, entry.revision, entry.why) == (value, 1, "test")
    assert await client.config.names() == ["app"]


@pytest.mark.parametrize(
    ("value", "kind", "told"),
    [
        ({"low": -1}, Range, r"\$\.low: expected `float` >= 0\.0"),
        ({"low": 2, "high": 1}, Range, "expected low <= high, got 2.0 > 1.0"),
        ({"low": 0, "hihg": 1}, Range, "unknown field `hihg`"),
        (Plain(count="3"), None, r"\$\.count: expected `int`, got `str`"),  # type: ignore[arg-type]
        ({"x": [1.0, float("nan")]}, None, r"\$\.x\[1\]: expected a number that JSON has, got nan"),
        ({"x": object()}, None, "expected a value that JSON can hold"),
        ("x" * APP_BYTES_MAX, None, "expected at most 524288 bytes"),
    ],
)
async def test_what_is_not_of_its_type_is_never_written(client: Client, value: Any, kind: Any, told: str) -> None:
    with pytest.raises(BadRecord, match=told):
        await client.config.set("app", value, type=kind)
    assert await client.session.exists(client.paths.config_apps) is None
    with pytest.raises(BadRecord, match="expected a name of"):
        await client.config.set("../tasks", 1)


async def test_what_is_not_there_is_told_or_replaced_by_a_default(client: Client) -> None:
    with pytest.raises(ConfigNotFound, match="there is no config app below /zkd"):
        await client.config.get("app", type=Range)
    assert await client.config.get("app", type=Range, default=Range(0.5)) == Range(0.5)
    assert not await client.config.remove("app")
    assert await client.config.history("app") == []


HOSTILE = [
    b"junk", b"\xff", b"[" * 100_000, b"x" * 900_000, b'{"revision":1}', b'{"revision":0,"value":{"low":0}}',
    b'{"revision":9,"value":{"low":-1}}', b'{"revision":9,"value":{"low":0,"low":1}}', b'{"revision":9,"value":"x"}',
    b'{"revision":9,"value":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}",
]  # fmt: skip


async def test_a_program_that_watches_sees_valid_values_only(client: Client) -> None:
    told: list[str] = []
    async with aclosing(client.config.watch("app", type=Range, refused=told.append)) as values:
        first = asyncio.ensure_future(following(values))  # it may watch before there is anything
        await client.config.set("app", Range(0.1))
        assert await first == Range(0.1)
        for count, data in enumerate(HOSTILE, 1):
            waiting = asyncio.ensure_future(following(values))
            await by_hand(client, "app", data)
            with pytest.raises(BadRecord):
                await client.config.get("app", type=Range)
            async with asyncio.timeout(WITHIN_S):
                while len(told) < count:
                    await asyncio.sleep(0.01)
            await client.config.set("app", Range(0.1, names=[str(count)]))
            assert (await waiting).names == [str(count)]
        waiting = asyncio.ensure_future(following(values))
        assert await client.config.remove("app")
        await client.config.set("app", Range(0.5))
        assert await waiting == Range(0.5), "what was removed came back"
    assert len(told) == len(HOSTILE)


async def test_watching_goes_on_after_lost_connections_sessions_and_watches(
    client: Client, embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = client.paths.app_config("app")

    async def forget_watches() -> None:
        monkeypatch.setattr("zkd.client.config.LOOK_AGAIN_S", 0.5)
        request = generic.protocol.RemoveWatchesRequest(path=path, type=generic.ANY_WATCH)
        await client.session._ask(request, path, None, None)

    async with Client(embedded.connect_string) as other, aclosing(client.config.watch("app", type=int)) as values:
        await other.config.set("app", 0)
        assert await following(values) == 0
        faults: list[Callable[[], Any]] = [
            lambda: embedded.expire(client.session.session_id),
            lambda: embedded.cut_before(Op.GET_DATA, path=path),
            lambda: embedded.cut_after(Op.MULTI, path=path),
            lambda: embedded.expire(client.session.session_id),
            forget_watches,
        ]
        for number, fault in enumerate(faults, 1):
            done = fault()
            if done is not None:
                await done
            waiting = asyncio.ensure_future(following(values))
            await other.config.set("app", number)
            assert await waiting == number
        assert [entry.value for entry in await other.config.history("app")] == [5, 4, 3, 2, 1, 0], "each written once"


async def test_a_watch_ends_with_its_client(embedded: EmbeddedServer) -> None:
    async with Client(embedded.connect_string) as client:
        values = client.config.watch("app")
        await client.config.set("app", 1)
        assert await following(values) == 1
        waiting = asyncio.ensure_future(following(values))
        await asyncio.sleep(0)
    with pytest.raises(SessionClosed):
        await waiting


async def test_watchers_of_one_name_do_not_disturb_each_other(client: Client) -> None:
    await client.config.set("app", 0)
    stays = client.config.watch("app", type=int)
    assert await following(stays) == 0
    for number in range(1, 6):
        async with aclosing(client.config.watch("app", type=int)) as goes:
            assert await following(goes) == number - 1
            leaving = asyncio.ensure_future(goes.aclose())
            await client.config.set("app", number)
            await leaving
        assert await following(stays) == number
    await stays.aclose()


async def test_writers_at_once_lose_nothing(client: Client, embedded: EmbeddedServer) -> None:
    async with Client(embedded.connect_string) as other:
        numbers = await asyncio.gather(
            *(who.config.set("app", number) for number, who in enumerate([client, other] * 5))
        )
    history = await client.config.history("app")
    assert sorted(numbers) == list(range(1, 11))
    assert {entry.revision: entry.value for entry in history} == dict(zip(numbers, range(10), strict=True))
    with pytest.raises(ConfigConflict, match="expected revision 3, it is 10"):
        await client.config.set("app", 1, expect=3)
    assert await client.config.set("app", 1, expect=10) == 11
    with pytest.raises(ConfigConflict):
        await client.config.set("app", 1, expect=0)


async def test_revisions_can_be_compared_and_gone_back_to(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zkd.client.config.REVISIONS_KEPT", 3)
    for number in range(1, 6):
        await client.config.set("app", Range(0, number, names=["a"] * number))
    assert await client.config.diff("app", 4) == [("$.high", 4.0, 5.0), ("$.names[4]", None, "a")]
    assert await client.config.rollback("app", 3, type=Range) == 6
    assert await client.config.get("app", type=Range) == Range(0, 3, names=["a"] * 3)
    assert [entry.revision for entry in await client.config.history("app")] == [6, 5, 4]
    with pytest.raises(ConfigNotFound, match="no revision 2 of config app"):
        await client.config.rollback("app", 2)
    with pytest.raises(BadRecord):
        await client.config.rollback("app", 4, type=int)
    assert (await client.config.entry("app")).revision == 6
