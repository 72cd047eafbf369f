"""The files of a job, checkpoints and models, on several nodes: written to enough of them, read from any of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from blake3 import blake3
from structlog.typing import FilteringBoundLogger as Log

from zkd.core.jobs import rank
from zkd.errors import DataDamaged, DataUnavailable
from zkd.jobs import FileRef
from zkd.paths import JobId, NodeId
from zkd.store.checkpoints import CheckpointStore
from zkd.store.threads import in_thread
from zkd.training.peers import Peers

if TYPE_CHECKING:
    import aiohttp


class Copies:
    def __init__(
        self,
        node: NodeId,
        store: CheckpointStore,
        peers: Peers,
        http: aiohttp.ClientSession,
        token: Callable[[], str | None],
        log: Log,
    ) -> None:
        self.store = store
        self._node = node
        self._peers = peers
        self._http = http
        self._token = token
        self._log = log

    async def write(self, job_id: JobId, data: bytes, number: int, replicas: int, first: Iterable[NodeId]) -> FileRef:
        """Keep these bytes here and on others, `first` before the rest, until so many have them, or all that are here.

        Raises `DataUnavailable` if nobody takes them.
        """
        from zkd.net.checkpoints import send

        file_id = (await in_thread(None, blake3, data)).hexdigest()
        nodes, faults = list[NodeId](), list[str]()
        try:
            await self.store.write(job_id, data)
            nodes.append(self._node)
        except OSError as error:
            faults.append(f"{self._node}: {error}")
        others = {node for node, entry in self._peers.nodes.items() if not entry.draining} - {self._node}
        preferred = set(first)
        for node in sorted(others, key=lambda node: (node not in preferred, rank(job_id, node, others))):
            if len(nodes) >= replicas:
                break
            address = self._peers.address(node)
            if address is not None:
                try:
                    await send(self._http, address, self._token() or "", job_id, file_id, data)
                    nodes.append(node)
                except DataUnavailable as error:
                    faults.append(f"{node}: {error}")
        if faults:
            self._log.warning("checkpoint.copy_failed", id=job_id, file=file_id[:12], faults=faults)
        if not nodes:
            raise DataUnavailable("; ".join(faults))
        return FileRef(file_id, len(data), nodes, number)

    async def read(self, job_id: JobId, ref: FileRef) -> bytes:
        """The bytes of a file, from here, or from a node that has it and then here, too. Raises `DataUnavailable`."""
        from zkd.net.checkpoints import fetch

        try:
            return await self.store.read(job_id, ref.id)
        except DataDamaged as error:
            self._log.warning("checkpoint.damaged", id=job_id, error=str(error))
        except DataUnavailable:
            pass
        addresses = [found for node in ref.nodes if node != self._node and (found := self._peers.address(node))]
        data = await fetch(self._http, addresses, self._token() or "", job_id, ref)
        try:
            await self.store.write(job_id, data)
        except OSError as error:
            self._log.warning("checkpoint.not_kept", id=job_id, error=str(error))
        return data
