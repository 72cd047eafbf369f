"""One round of `python -m tests.training`: a job, and what happens to its nodes meanwhile."""

from __future__ import annotations

import random
from pathlib import Path

from tests.training.storm import storm_over
from zkd.zk.apache import ApacheServer


async def test_a_model_of_a_storm_has_the_bits_of_quiet_times_and_leaves_nothing(
    apache: ApacheServer, zk_root: str, tmp_path: Path
) -> None:
    async with storm_over(apache.connect_string, zk_root, tmp_path, None, 0) as storm:
        storm.rng = random.Random(2)
        assert await storm.round("averages", 3) == [], storm.struck
        assert await storm.leftovers() == []
