"""Promises of the dashboard's page, held in a real browser: it lives, comes back, and shows text as text.

Without a Chromium these tests say that they could not run; `sh tests/run.sh` installs one where it may.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.browser import chromium
from tests.browser.chromium import Tab
from tests.node.conftest import Site
from tests.node.submitter import submitting
from zkd.errors import NodeExists
from zkd.zk.server import EmbeddedServer

HOSTILE = "<img src=x onerror='window.taken=1'>"
LIVE = "document.querySelector('#link').dataset.state === 'live'"


@pytest.fixture
async def tab(tmp_path: Path) -> AsyncIterator[Tab]:
    binary = chromium.find()
    if binary is None:
        pytest.skip("NOT RUN: there is no Chromium here. As root on Debian: apt-get install chromium")
    async with chromium.opened(binary, tmp_path / "browser") as tab:
        yield tab


@pytest.fixture
async def site(embedded: EmbeddedServer, tmp_path: Path) -> AsyncIterator[Site]:
    async with submitting(embedded.connect_string, "/zkd") as user, AsyncExitStack() as stack:
        yield Site(embedded.connect_string, "/zkd", tmp_path, user, stack)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


OWN = {"workers__modules": []}


async def test_the_page_shows_the_cluster_and_text_as_text(site: Site, tab: Tab) -> None:
    port = free_port()
    await site.node("a", node__http=f"127.0.0.1:{port}", node__labels={"odd": HOSTILE}, **OWN)
    session, paths = site.user.session, site.user.paths
    await session.create(f"{paths.jobs}/{HOSTILE}", b'{"model": "linear", "dataset": "d"}')
    for path in (f"{paths.root}/sync", f"{paths.root}/sync/locks", f"{paths.root}/sync/locks/{HOSTILE}"):
        try:
            await session.create(path)
        except NodeExists:
            continue
    await site.user.drop({"kernel": "numpy.linalg.inv", "args": [[[0, 0], [0, 0]]]}, "t-bad")
    await site.user.drop({"kernel": "numpy.sum", "args": [[1, 2]], "labels": {"gpu": HOSTILE}}, "t-waits")
    await tab.open(f"http://127.0.0.1:{port}/")
    await tab.until(LIVE)
    for panel in ("#nodes-table", "#jobs-body", "#sync-body", "#queues-body"):
        await tab.until(f"document.querySelector({panel!r}).innerText.includes({HOSTILE!r})".replace("\\'", "'"))
    await tab.until("document.querySelector('#events-table').innerText.includes('t-bad')")
    await tab.until("document.querySelector('#stream-legend').innerText.includes('not done 1')")
    await tab.until("document.querySelector('#tiles').innerText.includes('epoch 1')")
    assert await tab.evaluate("window.taken") is None
    assert await tab.evaluate("document.querySelectorAll('img, script:not([src])').length") == 0
    assert all(url.startswith(f"http://127.0.0.1:{port}/") for url in tab.requests), tab.requests
    # Keys move between panels, and hold the page.
    await tab.press("9")
    assert await tab.evaluate("document.activeElement.id") == "events"
    await tab.press("k")
    assert await tab.evaluate("document.activeElement.id") == "sync"
    await tab.press("p")
    await tab.until("document.querySelector('#link').textContent === 'paused'")
    await tab.press("p")
    await tab.until(LIVE)
    # A telephone, in the dark.
    paper = "getComputedStyle(document.body).backgroundColor"
    light = await tab.evaluate(paper)
    await tab.look(390, 800, dark=True)
    assert await tab.evaluate(paper) != light
    assert await tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.faults == []


async def test_the_page_comes_back_by_itself(site: Site, tab: Tab) -> None:
    port = free_port()
    where = {"node__http": f"127.0.0.1:{port}", **OWN}
    async with AsyncExitStack() as life:
        site.stack, stack = life, site.stack
        await site.node("a", **where)
        site.stack = stack
        await tab.open(f"http://127.0.0.1:{port}/")
        await tab.until(LIVE)
    await tab.until("document.querySelector('#link').dataset.state === 'lost'")
    await site.node("a", **where)
    await tab.until(LIVE)
    await tab.until("document.querySelector('#events-table').innerText.includes('daemon.ready')")
