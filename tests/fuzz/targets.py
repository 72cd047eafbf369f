"""Whatever reads bytes from outside: znodes, frames, files, replies of a server."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from blake3 import blake3

from tests.fuzz.run import Target
from tests.models.test_trained import trained
from zkd import codec, jobs, manifests, records, registry
from zkd.arrays import from_json, to_json
from zkd.arrays.files import read_npy_header
from zkd.arrays.tensors import pack, unpack
from zkd.core.datasets import chunk_digest, read_chunk
from zkd.errors import BadRecord, DataDamaged
from zkd.models.trained import Trained
from zkd.net import round_frames
from zkd.store import segment_files
from zkd.training import frames as training_frames
from zkd.workers import Call
from zkd.workers import frames as worker_frames
from zkd.zk import multi, wire
from zkd.zk.server.wire import Malformed as MalformedRequest
from zkd.zk.server.wire import Reader

DIGEST = blake3(b"").hexdigest()
TASKS = (
    b'{"kernel":"numpy.sum","args":[[1,2,3]]}',
    b'{"kernel":"k","args":[1.5,"a",null],"kwargs":{"x":{"dtype":"<f8","shape":[1],"data":"AAAAAAAA8D8="}},"priority":5,'
    b'"timeout_s":2.5,"retries":3,"labels":{"gpu":"no"},"items":[1,2],"ttl_s":60,"after":["t-1"],"prefer":["a"]}',
    b'{"kernel":"k","dataset":"d@3","columns":["x"],"parts":[0,1],"combine":"c"}',
)
FILE = registry.ModelFile(DIGEST, 100)
RECORDS = (
    records.Result("done", "a", 1),
    records.Node("a", "1.2.3", 2, {"gpu": "no"}, "z1", 1 << 30, "http://h:1", kernels=["k"]),
    records.Assignment(3, "1.2.3", [records.Assigned("t", 1, 2, 3)]),
    records.Leader("a", "1.2.3", 3),
    records.OperatorState("draining", "ann", "disk"),
    records.Limit(1.5, 2, 3),
    jobs.Job(model="logistic", dataset="d", target="y", l2=0.1),
    jobs.JobState(
        czxid=5,
        terms=DIGEST,
        fence=2,
        phase="training",
        progress=jobs.Progress(3, 0.5, waits_for=["b"]),
        checkpoint=jobs.FileRef(DIGEST, 10, ["a", "b"], 3),
    ),
    registry.ModelVersion(file=FILE, kind="softmax", features=[registry.Feature("x", 3)], classes=[1, "b"], outputs=2),
    registry.Alias(2, registry.Canary(version=3, percent=10.0), [registry.Move(2, 1, "ann", "why")]),
    manifests.Manifest(
        name="d",
        version=1,
        parts=2,
        replicas=2,
        columns=[manifests.Column("x", "<f8", [])],
        rows=3,
        size=100,
        chunks=[DIGEST],
        key="x",
    ),
    manifests.Ring(1, [manifests.Keeper("a", 2.0, "z1")], {"b": "now"}),
    manifests.Holding("1.2.3", {"1": "ff"}),
)


def record_in(kind: Any) -> Callable[[bytes], object]:
    return lambda data: codec.decode(data, kind)


def jute_in(decode: Callable[..., object]) -> Callable[[bytes], object]:
    return lambda data: decode(data, 0, len(data))


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_in(data: bytes) -> object:
    return read_npy_header(io.BytesIO(data), "$")


def segment_in(data: bytes) -> object:
    return segment_files.parse(data, blake3(data).hexdigest())  # a liar names it after what it says


def chunk_in(data: bytes) -> object:
    return read_chunk(chunk_digest(data), data)


def call_in(data: bytes) -> object:
    reader = worker_frames.FrameReader(worker_frames.FRAME_BYTES_MAX)
    return [
        worker_frames.decode(worker_frames.CallHeader, header)
        for kind, header, _ in reader.feed(data)
        if kind == worker_frames.CALL
    ]


def training_in(data: bytes) -> object:
    reader, at, frames = training_frames.FrameReader(), 0, []
    while at < len(data):
        room = reader.room()
        some = data[at : at + len(room)]
        room[: len(some)] = some
        frames.append(reader.took(len(some)))
        at += len(some)
    return frames


def request_in(data: bytes) -> object:
    """A create, as the embedded server reads it."""
    reader = Reader(data)
    return reader.int32(), reader.int32(), reader.text(), reader.buffer(), reader.acl(), reader.int32()


# What ends a connection, and nothing else (`zkd.zk.connection`).
REPLY_REFUSALS = (wire.Malformed, struct.error, UnicodeDecodeError)
STAT = wire.STAT.pack(1, 1, 2, 2, 0, 0, 0, 0, 3, 0, 1)
ZNODE = wire.INT.pack(3) + b"abc" + STAT
NAMES = wire.INT.pack(2) + wire.INT.pack(1) + b"a" + wire.INT.pack(2) + b"bc"
HEADER = struct.Struct("!i?i").pack
RESULTS = (
    HEADER(wire.GET, False, 0) + ZNODE + HEADER(-1, True, -1),
    HEADER(wire.SET, False, 0) + STAT + HEADER(-1, False, 0) + wire.INT.pack(-101) + HEADER(-1, True, -1),
    HEADER(wire.CHILDREN, False, 0) + NAMES + HEADER(-1, True, -1),
)
ARRAYS = {"x": np.arange(6.0).reshape(2, 3), "n": np.arange(3), "b": np.array([True, False])}
SEGMENT = manifests.Segment(
    3,
    [manifests.Column("x", "<f8", [])],
    [manifests.SegmentFile(152, DIGEST, [1]), manifests.SegmentFile(152, DIGEST, [2])],
)

TARGETS = {
    "task": Target(TASKS, codec.decode_task, (BadRecord,)),
    "schedule": Target(
        [b'{"task":{"kernel":"k","args":[1]},"cron":"0 3 * * *","timezone":"Europe/Berlin"}'],
        codec.decode_schedule,
        (BadRecord,),
    ),
    **{
        type(record).__name__.lower(): Target([codec.encode(record)], record_in(type(record)), (BadRecord,))
        for record in RECORDS
    },
    "arguments": Target([to_json(value, exact=True) for value in ([1, 2.5], ARRAYS)], from_json, (BadRecord,)),
    "npy": Target([npy(array) for array in ARRAYS.values()], npy_in, (BadRecord,)),
    "tensors": Target([pack(ARRAYS, {"a": "b"})], unpack, (BadRecord,)),
    "model": Target([trained(kind).write() for kind in ("logistic", "softmax", "mlp")], Trained.read, (BadRecord,)),
    "segment": Target([codec.encode(SEGMENT)], segment_in, (DataDamaged,)),
    "chunk": Target([codec.encode([[manifests.SegmentRef(DIGEST, 3, 100)], []])], chunk_in, (BadRecord,)),
    "to_node": Target(
        [
            round_frames.packed(round_frames.Context("d@1", ["x", "y"])),
            round_frames.packed(round_frames.Ask(1, 2, [0, 3]), [b"question"]),
        ],
        round_frames.for_node,
        (round_frames.BadMessage,),
    ),
    "from_node": Target(
        [round_frames.packed(round_frames.Answer(1, 2, [0, 3], [3, 2]), [b"abc", b"de"])],
        round_frames.from_node,
        (round_frames.BadMessage,),
    ),
    "brain": Target(
        [b"".join(map(bytes, training_frames.encode("answer", {"round": 1}, b"abc", b"defg")))],
        training_in,
        (training_frames.BadFrame,),
    ),
    "worker": Target(
        [worker_frames.encode_call(Call(kernel="k", args=b"[1]", kwargs=b'{"a":2}', task_id="t"))],
        call_in,
        (worker_frames.BadFrame,),
    ),
    "znode": Target([ZNODE], jute_in(wire.decode_get), REPLY_REFUSALS),
    "children": Target([NAMES + STAT], jute_in(wire.decode_children), REPLY_REFUSALS),
    "multi": Target(RESULTS, jute_in(multi.decode_results), REPLY_REFUSALS),
    "request": Target(
        [wire.INT.pack(1) + wire.INT.pack(wire.CREATE2) + wire.encode_create("/a", b"x", *(False,) * 3, None, None)[1]],
        request_in,
        (MalformedRequest,),
    ),
}
