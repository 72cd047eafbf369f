"""Children that compute: frames of any size come whole and in order, and whatever a child does ends in a sentence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zkd.training.frames import BODIES_BYTES_MAX, BadFrame, Frame, FrameReader, encode
from zkd.training.process import Process, ProcessEnded

PARROT = "tests.training.parrot"


def raw(kind: Any, head: Any = None, *bodies: bytes) -> bytes:
    return b"".join(bytes(piece) for piece in encode(kind, head, *bodies))


def read(data: bytes, rng: random.Random | None = None) -> list[Frame]:
    reader, frames, at = FrameReader(), [], 0
    while at < len(data):
        room = reader.room()
        count = min(len(room), len(data) - at, len(room) if rng is None else rng.randint(1, 40))
        room[:count] = data[at : at + count]
        at += count
        frame = reader.took(count)
        if frame is not None:
            frames.append(frame)
    assert not reader.has_part
    return frames


@contextlib.asynccontextmanager
async def parrot(**rest: Any) -> AsyncIterator[Process]:
    async with asyncio.timeout(20), Process(PARROT, **rest) as child:
        yield child


# --- frames -------------------------------------------------------------------------------------------


def test_frames_come_back_as_they_were_however_the_stream_is_cut() -> None:
    rng = random.Random(1)
    sent = [
        ("start", {"job": "ü", "n": [1, None, 2.5]}, [b"x" * 1000, b"", b"y"]),
        ("stop", None, []),
        ("answers", 7, [rng.randbytes(rng.randint(0, 99)) for _ in range(700)]),
    ]
    stream = b"".join(raw(kind, head, *bodies) for kind, head, bodies in sent)
    for cut in (None, rng):
        got = [(frame.kind, frame.head, [bytes(body) for body in frame.bodies]) for frame in read(stream, cut)]
        assert got == sent


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack("<IQ", 0, 0), "head of 0 bytes"),
        (struct.pack("<IQ", 1 << 31, 0), "head of 2147483648"),
        (struct.pack("<IQ", 2, BODIES_BYTES_MAX + 1), "at most"),
        (struct.pack("<IQ", 4, 0) + b"what", "expected a kind"),
        (struct.pack("<IQ", 10, 0) + b"[1,null,0]", "expected a kind"),
        (struct.pack("<IQ", 2000, 0) + b"[" * 2000, "expected a kind"),
        (struct.pack("<IQ", 16, 1) + b'["x",null,[2,3]]' + b"z", "in a frame that has 1"),
        (struct.pack("<IQ", 17, 1) + b'["x",null,[-1,2]]' + b"z", "in a frame that has 1"),
    ],
)
def test_what_is_no_frame_is_refused_before_it_is_believed(data: bytes, why: str) -> None:
    with pytest.raises(BadFrame, match=why):
        read(data)


def test_arrays_in_a_first_body_are_aligned() -> None:
    for length in range(20):
        (frame,) = read(raw("k" * length, None, bytes(64)))
        assert np.frombuffer(frame.bodies[0], np.float64).flags.aligned


# --- children -----------------------------------------------------------------------------------------


async def test_bodies_of_hundreds_of_megabytes_go_there_and_back() -> None:
    large = random.Random(2).randbytes(1 << 20) * 200
    async with parrot() as child:
        frame = await child.ask("echo", {"size": len(large)}, large, b"", b"small")
    assert [len(body) for body in frame.bodies] == [len(large), 0, 5]
    assert bytes(frame.bodies[0]) == large


async def test_frames_keep_their_order_and_wait_for_whoever_takes_them() -> None:
    async with parrot() as child:
        child.send("many", 2000)
        child.send("echo", "last")
        await child.flushed()
        got = [await child.receive() for _ in range(2001)]
    assert [frame.head for frame in got] == [*range(2000), "last"]


async def test_a_child_can_look_whether_something_waits() -> None:
    async with parrot() as child:
        assert (await child.ask("peek", 0.0)).head is False
        child.send("peek", 5.0)
        child.send("echo", "so it did")
        assert (await child.receive()).head is True
        assert (await child.receive()).head == "so it did"


async def test_the_answer_to_a_question_whose_asker_has_gone_is_nobody_elses() -> None:
    async with parrot() as child:
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(child.ask("sleep", 0.05), 0.01)
        answers = await asyncio.gather(*(child.ask("echo", number) for number in range(5)))
    assert [frame.head for frame in answers] == list(range(5))


async def test_what_a_child_prints_is_heard() -> None:
    lines: list[str] = []
    async with parrot(printed=lines.append) as child:
        await child.ask("print", "hello")
        for _ in range(200):
            if lines:
                break
            await asyncio.sleep(0.01)
    assert lines == ["hello"]


async def test_last_words_are_received_before_the_end_is_told() -> None:
    async with parrot() as child:
        child.send("exit", 40)
        await asyncio.shield(child.ended)
        assert [(await child.receive()).head for _ in range(40)] == list(range(40))
        with pytest.raises(ProcessEnded, match="exited with status 7"):
            await child.receive()
        with pytest.raises(ProcessEnded):
            child.send("echo")


async def test_an_error_ends_the_child_and_is_told() -> None:
    async with parrot() as child:
        with pytest.raises(ProcessEnded, match=r"status 1.*ValueError: so there"):
            await child.ask("raise", "so there")


async def test_a_killed_child_is_noticed_whatever_it_was_at() -> None:
    for moment_s in (0.0, 0.05, 0.3):
        async with parrot() as child:
            asyncio.get_running_loop().call_later(moment_s, os.kill, child.pid, signal.SIGKILL)
            with pytest.raises(ProcessEnded, match="signal 9"):
                await child.ask("sleep", 30)
            await child.flushed()
            assert not child.is_alive


async def test_a_child_that_is_killed_in_the_middle_of_a_large_frame_gives_no_part_of_it() -> None:
    large = bytes(64 << 20)
    async with parrot() as child:
        child.send("echo", None, large)
        while child._reader._at < 1 << 20:
            await asyncio.sleep(0.001)
        child.kill("for a test")
        with pytest.raises(ProcessEnded, match="for a test"):
            await child.receive()


@pytest.mark.parametrize("bad", [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", raw("x")[:-3] + b"\0" * 3])
async def test_a_child_that_talks_nonsense_is_killed(bad: bytes) -> None:
    async with parrot() as child:
        child.send("raw", None, bad)
        with pytest.raises(ProcessEnded, match="it sent"):
            await child.receive()


@pytest.mark.parametrize("bad", [b"\xff" * 64, raw("echo", None, bytes(100))[:50]])
async def test_a_child_that_hears_nonsense_or_half_a_frame_ends_and_says_so(bad: bytes) -> None:
    async with parrot() as child:
        await child.ask("echo")
        child._sock.send(bad)
        child._sock.shutdown(1)
        with pytest.raises(ProcessEnded, match=r"status 3; it printed: zkd-parrot: .*frame"):
            await child.receive()


async def test_closing_leaves_no_process_not_even_one_that_does_not_listen() -> None:
    async with parrot() as child:
        await child.ask("echo")
    assert child.ended.result() == "exited with status 0"
    async with parrot() as busy:
        busy.send("stay")
        await busy.flushed()
    assert "did not end" in busy.ended.result()
    for pid in (child.pid, busy.pid):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    await busy.close()


PARENT = """
import asyncio, os, signal
from zkd.training.process import Process
async def main():
    child = Process("tests.training.parrot")
    await child.ask("echo")
    child.send("stay")
    print(child.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_a_child_dies_with_its_parent_even_if_that_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", PARENT], capture_output=True, text=True, check=False)
    stat = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(300):
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            return
        time.sleep(0.01)
    pytest.fail("it lives on")
