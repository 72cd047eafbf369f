"""Mutates seeds and watches what a reader does with them."""

from __future__ import annotations

import random
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CPU_S_MAX = 1.0  # of one input
MEMORY_MAX = 512 * 2**20  # more than there is before
FAULTS_MAX = 5  # of a target; more are more of the same
BYTES_MAX = 1 << 16  # of an input: what is longer finds nothing else, slower

# What has broken readers before: ends of integers, of depth, of text; in JSON, in frames, in npy headers.
WORDS = (
    *(number.to_bytes(size, "big") for number in (0, 1, 2**31 - 1, 2**32 - 1) for size in (4, 8)),
    *(number.to_bytes(size, "little") for number in (1, 2**31 - 1) for size in (4, 8)),
    *(b"\xff" * size for size in (1, 2, 4, 8)),
    *(b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x00", b"\n"),
    *(b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"-0.0", b"9223372036854775808", b"1" * 400, b"0.1"),
    *(b"[" * 200, b'{"a":' * 200, b"[]", b"{}", b'""', b'"\\ud800"', b"\\u0000", b",", b":", b'"', b"]", b"}"),
    *(b"../../etc/passwd", b"/", b"a" * 300, b"|O", b"<U1000000000", b"<f8", b"(10000000000,)", b"latest"),
)


@dataclass(frozen=True)
class Target:
    """`read` takes bytes or raises one of `refusals`."""

    seeds: Sequence[bytes]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...]


@dataclass
class Found:
    taken: int = 0
    faults: list[str] = field(default_factory=list)


def fuzz(target: Target, inputs: int, seed: int) -> Found:
    """Read so many mutated inputs."""
    found = Found()
    for one in target.seeds:
        target.read(one)  # a seed that is refused tests nothing
    with _bounded_memory():
        for data in mutated(target.seeds, inputs, random.Random(seed)):
            began = time.process_time()
            try:
                target.read(data)
                found.taken += 1
            except target.refusals:
                pass
            except Exception:
                found.faults.append(f"{data.hex()}\n{traceback.format_exc()}")
            if time.process_time() - began > CPU_S_MAX:
                found.faults.append(f"{data.hex()}\ntook {time.process_time() - began:.1f} s of CPU")
            if len(found.faults) >= FAULTS_MAX:
                break
    return found


def mutated(seeds: Sequence[bytes], count: int, dice: random.Random) -> Iterator[bytes]:
    for _ in range(count):
        data = bytearray(dice.choice(seeds))
        for _ in range(1 + int(dice.expovariate(0.7))):
            _mutate(data, seeds, dice)
        yield bytes(data[:BYTES_MAX])


def _mutate(data: bytearray, seeds: Sequence[bytes], dice: random.Random) -> None:
    at = dice.randrange(len(data) + 1)
    to = min(len(data), at + int(dice.expovariate(0.1)))
    match dice.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << dice.randrange(8)
        case 1 if at < len(data):
            data[at] = dice.randrange(256)
        case 2:
            del data[at:to]
        case 3:
            data[at:at] = data[at:to] * dice.randrange(1, 4)
        case 4:
            data[at:at] = dice.choice(WORDS)
        case 5:
            word = dice.choice(WORDS)
            data[at : at + len(word)] = word
        case _:
            other = dice.choice(seeds)
            cut = dice.randrange(len(other) + 1)
            data[at:] = other[cut:]


@contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (now + MEMORY_MAX, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
