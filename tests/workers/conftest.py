from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.workers.running import MODULES, Log, open_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from zkd.workers import Pool


@pytest.fixture(autouse=True)
def _modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(MODULES)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def pool(tmp_path: Path, log: Log) -> AsyncIterator[Pool]:
    async with open_pool(tmp_path, log=log) as pool:
        yield pool
