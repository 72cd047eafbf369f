"""From a key to its part: vectors that others published, and a second implementation."""

from __future__ import annotations

import math
import random
import re

import pytest

from tests.core.placement_twice import key_hash, part_number
from zkd.core.placement import hash_key, part_of, splitmix64


def test_whole_numbers_are_mixed_as_others_mix_them() -> None:
    # The first outputs of the generator splitmix64 for these seeds, as published with it and at Rosetta Code.
    assert splitmix64(0) == 0xE220A8397B1DCDAF
    golden = 0x9E3779B97F4A7C15
    assert [splitmix64((1234567 + n * golden) % 2**64) for n in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_text_is_hashed_as_its_utf_8() -> None:
    assert hash_key("") == hash_key(b"") == 0x2D06800538D394C2  # XXH3_64bits of nothing, in xxHash's own tests
    assert hash_key("Zürich") == hash_key("Zürich".encode())
    assert hash_key("a") != hash_key("b")


def test_numbers_count_by_their_64_bits() -> None:
    assert hash_key(-1) == hash_key(2**64 - 1) != hash_key(1)
    assert hash_key(-(2**63)) == hash_key(2**63)
    assert hash_key(-0.0) == hash_key(0.0)
    assert len({hash_key(1), hash_key(1.0), hash_key("1"), hash_key(b"1\0")}) == 4


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        (True, TypeError, "got a bool"),
        (None, TypeError, "got NoneType"),
        ([1], TypeError, "got list"),
        (math.nan, ValueError, "NaN"),
        (2**64, ValueError, "at most 64 bits"),
        (-(2**63) - 1, ValueError, "at most 64 bits"),
        ("\ud800", UnicodeEncodeError, "surrogates"),
    ],
)
def test_what_cannot_be_a_key_is_refused(key: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        hash_key(key)  # type: ignore[arg-type]


def test_a_second_implementation_agrees_on_every_key() -> None:
    rng = random.Random(7)
    keys: list[int | float | str | bytes] = [0, 1, -1, 2**63 - 1, -(2**63), 0.0, -0.0, math.inf, -math.inf, 5e-324]
    for _ in range(2_000):
        keys += [rng.getrandbits(64), -rng.getrandbits(63), rng.uniform(-1e9, 1e9), rng.randbytes(rng.randrange(300))]
        keys.append("".join(chr(rng.choice((rng.randrange(128), rng.randrange(0xD7FF)))) for _ in range(9)))
    for key in keys:
        assert hash_key(key) == key_hash(key), key
        parts = 2 ** rng.randrange(15)
        assert part_of(hash_key(key), parts) == part_number(key_hash(key), parts), (key, parts)


def test_a_part_is_the_upper_bits() -> None:
    assert part_of(2**64 - 1, 1) == 0
    assert [part_of(n << 62, 4) for n in range(4)] == [0, 1, 2, 3]
    assert part_of(2**63 - 1, 2) == 0
    assert part_of(2**64 - 1, 16_384) == 16_383


@pytest.mark.parametrize("parts", [0, -2, 3, 100])
def test_parts_are_a_power_of_two(parts: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        part_of(1, parts)


@pytest.mark.parametrize(
    "keys", [range(200_000), [f"user-{n}" for n in range(200_000)], [n / 8 for n in range(200_000)]]
)
def test_keys_in_a_row_fill_parts_evenly(keys: list[int | str | float]) -> None:
    counts = [0] * 64
    for key in keys:
        counts[part_of(hash_key(key), 64)] += 1
    mean = len(keys) / 64
    chi_squared = sum((count - mean) ** 2 / mean for count in counts)
    assert 30 < chi_squared < 110  # 63 degrees of freedom: outside of this in one of 10,000 good hashes
