"""What a worker's answer means: a frame becomes an outcome."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from zkd.workers import frames
from zkd.workers.call import BlobFile, Failed, Finished, Lacking, Outcome, Rejected
from zkd.workers.frames import BadFrame, decode

Answer: TypeAlias = (
    frames.ValueHeader | frames.BlobHeader | frames.FailedHeader | frames.RejectedHeader | frames.LackingHeader
)


def outcome_of(kind: int, header: bytes, body: bytes, blob_path: Callable[[], Path]) -> tuple[Answer, Outcome]:
    """The answer's header, and the outcome it tells of. `blob_path` is where its file is, without suffix."""
    if kind == frames.VALUE:
        value = decode(frames.ValueHeader, header)
        return value, Finished(body, None, value.run_s)
    if kind == frames.BLOB:
        blob = decode(frames.BlobHeader, header)
        path = blob_path().with_suffix(f".{blob.format}")
        return blob, Finished(None, BlobFile(path, blob.sha256, blob.size, blob.format), blob.run_s)
    if kind == frames.FAILED:
        failed = decode(frames.FailedHeader, header)
        return failed, Failed(failed.kind, failed.message, failed.traceback, failed.run_s)
    if kind == frames.REJECTED:
        rejected = decode(frames.RejectedHeader, header)
        return rejected, Rejected(rejected.path, rejected.message)
    if kind == frames.LACKING:
        lacking = decode(frames.LackingHeader, header)
        return lacking, Lacking(lacking.message)
    raise BadFrame(f"kind {kind} from a worker that is busy")
