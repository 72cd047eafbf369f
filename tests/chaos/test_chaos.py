"""A short run of the whole: thousands of tasks on a three-server ZooKeeper while things break."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from tests.chaos.conductor import Options, conduct
from tests.chaos.report import write_report
from tests.chaos.story import story_of

FAULTS = ("server-kill", "daemon-kill", "daemon-freeze-long", "worker-kill", "cut-after-commit")
SEED = 20_261


@pytest.mark.timeout(300)
async def test_nothing_is_lost_doubled_or_stale_while_things_break(tmp_path: Path) -> None:
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # a proxy that cuts writes into closed sockets now and then
    options = Options(
        tasks=20_000,
        seed=SEED,
        directory=tmp_path,
        minutes=0.4,
        faults=FAULTS,
        timeout_s=2.0,
        load_min=20.0,  # a machine with other things to do
        is_each_hit=True,
        is_isolated=False,
    )
    outcome = await conduct(options, print)
    print(await asyncio.to_thread(write_report, outcome))
    for violation in outcome.violations[:3]:
        print(violation, story_of(tmp_path, violation.task), sep="\n")
    assert outcome.violations == []
    assert outcome.void == ""
    assert {blow.fault for blow in outcome.blows if blow.proof} == set(FAULTS)
    assert outcome.verdict.tasks == outcome.verdict.by_status.total()
    assert outcome.verdict.by_status["done"] > 500
    assert outcome.verdict.executions <= 1.25 * outcome.verdict.expected_executions
