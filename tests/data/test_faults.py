"""A few rounds of faults on a cluster of processes; `python -m tests.data --rounds N --seed S` does more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.rounds import Wrong, playing


async def test_datasets_outlive_kills_and_power_cuts(embedded_in_thread: str, zk_root: str, tmp_path: Path) -> None:
    async with playing(embedded_in_thread, zk_root, tmp_path, seed=3) as rounds:
        try:
            for kind in ("write", "repair", "blackout"):
                await rounds.go(kind)
        except Wrong as wrong:
            pytest.fail("\n".join([*rounds.story, str(wrong)]))
    assert rounds.report.blown.total() >= 1, rounds.story
    assert rounds.report.reads >= 4
