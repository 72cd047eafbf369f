"""The fast codecs say exactly what aiozk's generic records say, and believe no hostile length."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from aiozk import protocol
from aiozk.protocol.stat import Stat as StatRecord
from hypothesis import given
from hypothesis import strategies as st

from zkd.errors import BadVersion, MultiFailed, NodeExists
from zkd.zk import Acl, Check, Create, Created, Delete, EventType, SetData, Stat, generic, multi, wire

paths = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).map(lambda text: "/" + text)
blobs = st.binary(max_size=300)
versions = st.integers(-1, 2**31 - 1)
longs = st.integers(-(2**63), 2**63 - 1)
ints = st.integers(-(2**31), 2**31 - 1)
stats = st.builds(Stat, longs, longs, longs, longs, ints, ints, ints, longs, ints, ints, longs)
acls = st.lists(st.builds(Acl, st.integers(0, 31), st.text(max_size=8), st.text(max_size=20)), min_size=1, max_size=3)
creates = st.one_of(
    st.builds(Create, paths, blobs, ephemeral=st.booleans(), sequential=st.booleans(), acl=st.none() | acls),
    st.builds(Create, paths, blobs, container=st.just(True)),
    st.builds(Create, paths, blobs, ttl_ms=st.integers(1, 2**40), sequential=st.booleans()),
)
ops = st.one_of(
    creates,
    st.builds(SetData, paths, blobs, versions),
    st.builds(Delete, paths, versions),
    st.builds(Check, paths, versions),
)


def record(stat: Stat) -> StatRecord:
    return StatRecord(**dict(zip([name for name, _ in StatRecord.parts], stat, strict=True)))


def packed(response: Any) -> bytes:
    return generic.body(response)


def request_of(op: Create | SetData | Delete | Check) -> Any:
    match op:
        case Create():
            flags = op.ephemeral + 2 * op.sequential
            acl = generic.acl_records(op.acl or (Acl(31, "world", "anyone"),))
            fields = {"path": op.path, "data": op.data, "acl": acl}
            if op.ttl_ms is not None:
                return generic.CreateTtlRequest(**fields, flags=6 if op.sequential else 5, ttl=op.ttl_ms)
            if op.container:
                request = protocol.CreateRequest(**fields, flags=4)
                request.opcode = wire.CREATE_CONTAINER
                return request
            return protocol.Create2Request(**fields, flags=flags)
        case SetData():
            return protocol.SetDataRequest(path=op.path, data=op.data, version=op.version)
        case Delete():
            return protocol.DeleteRequest(path=op.path, version=op.version)
        case Check():
            return protocol.CheckVersionRequest(path=op.path, version=op.version)


@given(paths, st.booleans())
def test_reads_are_encoded_as_the_records_are(path: str, watch: bool) -> None:
    body = wire.encode_path(path, watch)
    for kind in (protocol.GetDataRequest, protocol.ExistsRequest, protocol.GetChildren2Request):
        assert body == generic.body(kind(path=path, watch=watch))


@given(paths, blobs, versions)
def test_set_and_delete_are_encoded_as_the_records_are(path: str, data: bytes, version: int) -> None:
    assert wire.encode_set(path, data, version) == generic.body(request_of(SetData(path, data, version)))
    assert wire.encode_versioned(path, version) == generic.body(request_of(Delete(path, version)))
    assert wire.encode_versioned(path, version) == generic.body(request_of(Check(path, version)))


@given(creates)
def test_creates_are_encoded_as_the_records_are(op: Create) -> None:
    opcode, body = wire.encode_create(op.path, op.data, op.ephemeral, op.sequential, op.container, op.ttl_ms, op.acl)
    request = request_of(op)
    assert (opcode, body) == (request.opcode, generic.body(request))


@given(st.lists(ops, max_size=6))
def test_transactions_are_encoded_as_the_records_are(several: list[Create | SetData | Delete | Check]) -> None:
    transaction = protocol.TransactionRequest()
    for op in several:
        transaction.add(request_of(op))
    assert (
        struct.pack("!i", protocol.TransactionRequest.opcode) + multi.encode_multi(several) == transaction.serialize()
    )


@given(blobs, stats, st.binary(max_size=9), st.binary(max_size=9))
def test_a_znode_is_read_wherever_it_lies_in_a_chunk(data: bytes, stat: Stat, before: bytes, after: bytes) -> None:
    reply = packed(protocol.GetDataResponse(data=data, stat=record(stat)))
    assert wire.decode_get(before + reply + after, len(before), len(before) + len(reply)) == (data, stat)
    only_stat = packed(protocol.SetDataResponse(stat=record(stat)))
    assert wire.decode_stat(before + only_stat + after, len(before), len(before) + len(only_stat)) == stat


@given(paths, stats, st.lists(st.text(max_size=12), max_size=8))
def test_paths_and_names_are_read_as_the_records_read_them(path: str, stat: Stat, names: list[str]) -> None:
    created = packed(protocol.Create2Response(path=path, stat=record(stat)))
    assert wire.decode_created(created, 0, len(created)) == Created(path, stat)
    children = packed(protocol.GetChildren2Response(children=names, stat=record(stat)))
    assert wire.decode_children(children, 0, len(children)) == (names, stat)


def test_no_data_at_all_is_empty_data() -> None:
    reply = packed(protocol.GetDataResponse(data=None, stat=record(Stat(*range(11)))))
    assert wire.decode_get(reply, 0, len(reply)).data == b""


DECODERS = [
    wire.decode_stat,
    wire.decode_get,
    wire.decode_created,
    wire.decode_children,
    multi.decode_results,
    lambda data, at, end: wire.decode_event(data, at, end, 0),
    generic.decoder(protocol.GetACLResponse),
    generic.decoder(generic.WhoAmIResponse),
]
REFUSALS = (wire.Malformed, struct.error, UnicodeDecodeError)


@pytest.mark.parametrize("decode", DECODERS)
@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_but_never_believed(decode: Any, data: bytes) -> None:
    try:
        decode(data, 0, len(data))
    except REFUSALS:
        return


@given(st.integers(-(2**31), 2**31 - 1).filter(lambda n: n != 5 and n != -1), stats)
def test_a_length_that_points_outside_is_refused(length: int, stat: Stat) -> None:
    reply = struct.pack("!i5s", length, b"abcde") + struct.pack("!qqqqiiiqiiq", *stat)
    neighbour = reply + bytes(100)  # the next reply in the same chunk must stay out of reach
    for decode in (wire.decode_get, wire.decode_created):
        if 0 <= length < 5 or (decode is wire.decode_get and length < 0):
            continue  # shorter than there is: harmless
        with pytest.raises(REFUSALS):
            decode(neighbour, 0, len(reply))


def test_unknown_results_and_a_missing_end_are_refused() -> None:
    header = struct.Struct("!i?i")
    with pytest.raises(wire.Malformed):
        multi.decode_results(header.pack(99, False, 0), 0, 9)
    with pytest.raises(REFUSALS):
        multi.decode_results(header.pack(wire.DELETE, False, 0), 0, 9)


def test_the_culprit_of_a_transaction_is_named() -> None:
    several = [Create("/a"), SetData("/b", b"", 7), Delete("/c", -1)]
    with pytest.raises(MultiFailed) as caught:
        multi.settle(several, [0, -103, -2])
    assert (caught.value.index, caught.value.path) == (1, "/b")
    assert isinstance(caught.value.cause, BadVersion)
    with pytest.raises(MultiFailed) as caught:
        multi.settle(several, [-110, -2, -2])
    assert isinstance(caught.value.cause, NodeExists)


def test_events_are_read() -> None:
    frame = struct.pack("!iii2s", 3, 3, 2, b"/a")
    event = wire.decode_event(frame, 0, len(frame), 9)
    assert event == (EventType.CHANGED, "/a", 9)
    about_the_session = struct.pack("!iii", -1, 0, 0)
    assert wire.decode_event(about_the_session, 0, len(about_the_session), -1) is None


@pytest.mark.parametrize("wrong", [{"ephemeral": True, "ttl_ms": 5}, {"container": True, "sequential": True}])
def test_kinds_of_znode_that_exclude_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected neither"):
        multi.encode_multi([Create("/a", **wrong)])
