"""Answers of a node that lies or is broken: refused in words, or believed; never a crash, never a hang.

After a refused answer the course goes on as if nothing had been said.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.models.courses import Counters, job, numbers, table
from zkd.arrays.tensors import pack, unpack
from zkd.errors import BadAnswers, BadTraining
from zkd.models.course import Course, begin

KEPT = table(numbers(), parts=4)
JOBS = (
    {"model": "logistic", "importance": True},
    {"model": "linear", "validation": {"share": 0.3}, "max_rounds": 4},
    {"model": "mlp", "hidden": [2], "epochs": 1},
    {"model": "softmax", "optimizer": "lbfgs", "max_rounds": 6, "l2": 0.0, "jitter": 1e-6},
)
ODD = (0, 1, -1, np.nan, np.inf, -np.inf, 1e308, 5e-324, 2**62, -(2**62), 2**31)
WORDS = ("", "null", "[]", "[1]", '[1,"a"]', "[1e400]", "[[1]]", "survey", "refused", "x" * 10_000, '["\\ud800","b"]')


def lied(data: bytes, rng: random.Random) -> bytes:
    """Some bytes, numbers, shapes, kinds or words of an answer are others."""
    way = rng.randrange(8)
    if way == 0:
        return data[: rng.randrange(len(data))]
    if way == 1:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    told, texts = unpack(data)
    arrays = {name: array.copy() for name, array in told.items()}
    name = rng.choice(list(arrays))
    array = arrays[name]
    if way in (2, 3, 4) and array.size:
        with np.errstate(all="ignore"):
            for _ in range(rng.choice([1, 5])):
                odd = np.array(rng.choice(ODD), np.float64).astype(array.dtype)
                array.flat[rng.randrange(array.size)] = odd
    elif way == 5:
        arrays[name] = array.reshape(-1)[:-1]
    elif way == 6:
        arrays[rng.choice([name, "parts", "sums.tops", "counts"])] = np.zeros(rng.choice([0, 1, 3]), np.int64)
    else:
        texts[rng.choice(["answer", "labels", "why"])] = rng.choice(WORDS)
    return pack(arrays, texts)


def to_the_end(course: Course, counters: Counters, rng: random.Random, lies: int) -> tuple[Course, int]:
    """The end of a course with a lie at some steps, and how many of these were refused."""
    refused = 0
    while not course.is_over:
        answers = counters.answers(course)
        for _ in range(lies if rng.random() < 0.3 else 0):
            at = rng.randrange(len(answers))
            try:
                course.told([*answers[:at], lied(answers[at], rng), *answers[at + 1 :]])
            except BadAnswers:
                refused += 1
            except BadTraining:  # of what the lie says of the data: a job would end with these words
                pass
        course = course.told(answers)
    return course, refused


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("terms", JOBS)
def test_no_answer_crashes_a_course_or_leaves_something_behind(terms: dict[str, object]) -> None:
    calm = Counters(KEPT).run(begin(job(**terms), KEPT.manifest)).trained().write()
    refused = 0
    for seed in range(5):
        rng = random.Random(f"{terms} {seed}")
        course, some = to_the_end(begin(job(**terms), KEPT.manifest), Counters(KEPT, seed=seed), rng, 8)
        refused += some
        assert course.trained().write() == calm
    assert refused > 10
