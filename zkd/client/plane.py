"""The data plane as a program uses it: one HTTP session for all that it reads from nodes and sends to them."""

from __future__ import annotations

import time
from functools import cached_property
from typing import TYPE_CHECKING

from blake3 import blake3

from zkd.client.reading import READS_AT_ONCE, Reading
from zkd.errors import BadRecord, DataUnavailable

if TYPE_CHECKING:
    import aiohttp

    from zkd.client.client import Client
    from zkd.jobs import FileRef
    from zkd.net.remote import Remote
    from zkd.paths import JobId, NodeId

TOKEN_KNOWN_S = 30.0


class Plane:
    """Opened when it is first needed."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.reads_at_once = READS_AT_ONCE
        self._is_open = False
        self._known: tuple[float, str] | None = None
        self._remotes: dict[str, Remote] = {}

    @cached_property
    def http(self) -> aiohttp.ClientSession:
        from zkd.net.fetch import session

        self._is_open = True
        return session(self.client.data_tls)

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.http, self.token)

    def remote(self, url: str) -> Remote:
        """The place at this URL. Raises `DataUnavailable` if it cannot be opened from here."""
        from zkd.net.remote import Remote

        if url not in self._remotes:
            try:
                self._remotes[url] = Remote(url)
            except BadRecord as error:
                raise DataUnavailable(str(error)) from None
        return self._remotes[url]

    async def token(self) -> str:
        """What nodes ask for; read again now and then, since it may be changed."""
        if self._known is None or time.monotonic() - self._known[0] > TOKEN_KNOWN_S:
            self._known = time.monotonic(), (await self.client.read(self.client.paths.token)).data.decode()
        return self._known[1]

    async def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {await self.token()}"}

    async def close(self) -> None:
        if self._is_open:
            await self.http.close()

    async def checkpoint(self, job: JobId, ref: FileRef) -> bytes:
        """A checkpoint or a model, from the first node whose bytes have its digest. Raises `DataUnavailable`."""
        faults = []
        nodes = await self.client.nodes()
        for node in ref.nodes:
            address = nodes[node].address if node in nodes else None
            if address is None:
                faults.append(f"{node} is not here")
                continue
            try:
                return await self._checkpoint_from(node, f"{address}/v1/checkpoints/{job}/{ref.id}", ref)
            except DataUnavailable as error:
                faults.append(str(error))
        raise DataUnavailable(f"{job}: no node gives the file {ref.id[:12]}: {'; '.join(faults) or 'none has it'}")

    async def _checkpoint_from(self, node: NodeId, url: str, ref: FileRef) -> bytes:
        import aiohttp

        from zkd.net.bodies import words_for

        data, digest = bytearray(), blake3()
        try:
            async with self.http.get(url, headers=await self.headers(), allow_redirects=False) as answer:
                if answer.status != 200:
                    words = (await answer.content.read(200)).decode(errors="replace").strip()
                    raise DataUnavailable(f"{node} says HTTP {answer.status}: {words}")
                async for piece in answer.content.iter_any():
                    data += piece
                    digest.update(piece)
                    if len(data) > ref.size:
                        raise DataUnavailable(f"{node} sends more than the {ref.size} bytes that it has")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise DataUnavailable(f"{node}: {words_for(error)}") from None
        if digest.hexdigest() != ref.id:
            raise DataUnavailable(f"{node} sends other bytes than its digest says")
        return bytes(data)
