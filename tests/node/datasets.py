"""Datasets written by hand, as any ZooKeeper client could: manifests and chunks in the tree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from blake3 import blake3

from zkd.manifests import CHUNK_PARTS, Keeper
from zkd.paths import NodeId
from zkd.zk import Create, Session, SetData, ensure_path

Part = list[tuple[str, int, int]]  # id, rows, size of each segment


def rank(name: str, parts: int, replicas: int, keepers: Sequence[Keeper]) -> list[tuple[NodeId, ...]]:
    """Not zkd's own placement, so that nothing here depends on it: the nodes by turns."""
    names = sorted(keeper.node for keeper in keepers)
    return [tuple(names[(part + n) % len(names)] for n in range(min(replicas, len(names)))) for part in range(parts)]


def segment(number: int, rows: int = 10) -> tuple[str, int, int]:
    return blake3(str(number).encode()).hexdigest(), rows, 100


def manifest(name: str, version: int, parts: Sequence[Part], **fields: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest, and its chunks by digest."""
    chunks: dict[str, bytes] = {}
    for start in range(0, len(parts), CHUNK_PARTS):
        text = json.dumps(list(parts[start : start + CHUNK_PARTS])).encode()
        chunks[blake3(text).hexdigest()] = text
    segments = [each for part in parts for each in part]
    digests = [
        blake3(json.dumps(list(parts[start : start + CHUNK_PARTS])).encode()).hexdigest()
        for start in range(0, len(parts), CHUNK_PARTS)
    ]
    return {
        "name": name,
        "version": version,
        "parts": len(parts),
        "replicas": 2,
        "columns": [{"name": "x", "dtype": "<f8"}],
        "rows": sum(rows for _, rows, _ in segments),
        "size": sum(size for _, _, size in segments),
        "chunks": digests,
    } | fields, chunks


async def publish(session: Session, root: str, text: dict[str, Any], chunks: dict[str, bytes]) -> None:
    """Chunks first, then the version and the head in one transaction."""
    path, version = f"{root}/datasets/{text['name']}", text["version"]
    for directory in ("versions", "chunks", "writers"):
        await ensure_path(session, f"{path}/{directory}")
    for digest, data in chunks.items():
        if await session.exists(f"{path}/chunks/{digest}") is None:
            await session.create(f"{path}/chunks/{digest}", data)
    head = json.dumps({"current": version}).encode()
    await session.multi(
        [Create(f"{path}/versions/{version}", json.dumps(text).encode()), SetData(path, head, -1)],
    )


async def remove(session: Session, path: str) -> None:
    """With everything below it."""
    for child in await session.children(path):
        await remove(session, f"{path}/{child}")
    await session.delete(path, -1)
