"""Frames are cut out of a stream however it is chopped, and hostile lengths are refused before memory is asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zkd.workers import frames
from zkd.workers.call import Call
from zkd.workers.frames import BadFrame, CallHeader, FrameReader, ProgressHeader


@given(st.lists(st.binary(max_size=300), max_size=6), st.lists(st.integers(1, 50), min_size=1))
def test_frames_survive_any_chopping(bodies: list[bytes], sizes: list[int]) -> None:
    header = ProgressHeader(0.5, "half")
    stream = b"".join(frames.encode(frames.PROGRESS, header, body) for body in bodies)
    reader = FrameReader(10_000)
    seen: list[bytes] = []
    turn = 0
    while stream:
        size = sizes[turn % len(sizes)]
        turn += 1
        for kind, head, body in reader.feed(stream[:size]):
            assert kind == frames.PROGRESS
            assert frames.decode(ProgressHeader, head) == header
            seen.append(body)
        stream = stream[size:]
    assert seen == bodies
    assert not reader.has_part


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    reader = FrameReader(1_000)
    try:
        taken = reader.feed(data)
    except BadFrame:
        return
    for _, head, _ in taken:
        for kind in (ProgressHeader, CallHeader, frames.FailedHeader):
            try:
                frames.decode(kind, head)
            except BadFrame:
                continue


@pytest.mark.parametrize("data", [b"\xff\xff\xff\x7f\x03\x00\x00\x00\x00", b"\x06\x00\x00\x00\x03\x02\x00\x00\x00x"])
def test_a_false_length_is_refused_at_once(data: bytes) -> None:
    with pytest.raises(BadFrame):
        FrameReader(1_000).feed(data)


def test_a_call_keeps_its_bytes_as_they_are() -> None:
    call = Call(kernel="k", args=b"[ 1 ]", kwargs=b'{"a" : 2}', items=b"not json", files={"s": "/p"}, fence="3")
    ((kind, head, body),) = FrameReader(1_000).feed(frames.encode_call(call))
    header = frames.decode(CallHeader, head)
    assert kind == frames.CALL
    assert body == b'[ 1 ]{"a" : 2}not json'
    assert (header.args, header.kwargs, header.items) == (5, 9, 8)
    assert (header.kernel, header.files, header.fence) == ("k", {"s": "/p"}, "3")


def test_no_items_are_not_empty_items() -> None:
    for items, size in ((None, None), (b"", 0)):
        ((_, head, _),) = FrameReader(1_000).feed(frames.encode_call(Call(kernel="k", items=items)))
        assert frames.decode(CallHeader, head).items == size
