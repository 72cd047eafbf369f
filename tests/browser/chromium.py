"""A headless Chromium, driven by its own debugging protocol: enough to look at a page as a person would."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
START_S = 60.0


def find() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Tab:
    """A page. `faults` has every exception, every error in the console and every refusal of the page's policy."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._next = 0
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.faults: list[str] = []
        self.requests: list[str] = []

    async def listen(self) -> None:
        async for message in self._socket:
            told = message.json()
            if "id" in told:
                future = self._replies.pop(told["id"])
                if not future.done():
                    future.set_result(told)
                continue
            params = told.get("params", {})
            if told["method"] == "Runtime.exceptionThrown":
                self.faults.append(str(params["exceptionDetails"]))
            elif told["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.faults.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            elif told["method"] == "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        self._next += 1
        self._replies[self._next] = future = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._next, "method": method, "params": params})
        async with asyncio.timeout(30):
            told = await future
        assert "error" not in told, told
        result: dict[str, Any] = told["result"]
        return result

    async def open(self, url: str, width: int = 1280, height: int = 900, *, dark: bool = False) -> None:
        await self.look(width, height, dark=dark)
        await self.send("Page.navigate", url=url)

    async def look(self, width: int, height: int, *, dark: bool = False) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])

    async def evaluate(self, script: str) -> Any:
        told = await self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, script: str, within_s: float = 30.0) -> Any:
        """Wait for this to be true in the page."""
        value = None
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while not value:
                    guarded = f"(() => {{ try {{ return {script} }} catch {{ return null }} }})()"
                    with suppress(AssertionError):  # the page before this one is just going
                        value = await self.evaluate(guarded)
                    await asyncio.sleep(0.05)
        assert value, f"not true within {within_s:g} s: {script}; the page shows {await self.evaluate(SHOWN)}"
        return value

    async def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.send("Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" else "")

    async def shoot(self, path: Path) -> None:
        told = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))  # noqa: ASYNC240  # nothing else waits here


SHOWN = "document.body.innerText.slice(0, 2000)"


@asynccontextmanager
async def opened(binary: str, directory: Path) -> AsyncIterator[Tab]:
    """A browser with one tab; it and all its processes end with the block."""
    process = await asyncio.create_subprocess_exec(
        binary,
        "--headless=new",
        "--no-sandbox",  # root may not have one; it opens our own page alone
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-extensions",
        "--disable-background-networking",
        "--remote-debugging-port=0",
        f"--user-data-dir={directory}",
        "about:blank",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port = directory / "DevToolsActivePort"
        async with aiohttp.ClientSession() as http, asyncio.TaskGroup() as group:
            pages: list[dict[str, Any]] = []
            async with asyncio.timeout(START_S):
                while not (port.exists() and port.read_text().count("\n")):
                    assert process.returncode is None, f"{binary} ended with exit code {process.returncode}"
                    await asyncio.sleep(0.05)
                while not pages:
                    async with http.get(f"http://127.0.0.1:{port.read_text().split()[0]}/json/list") as answer:
                        pages = [page for page in await answer.json() if page["type"] == "page"]
            async with http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                listening = group.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await tab.send(f"{domain}.enable")
                yield tab
                listening.cancel()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
