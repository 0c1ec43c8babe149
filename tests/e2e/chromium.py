"""A page in headless Chromium, driven over its DevTools protocol: what it shows, and what its console says."""

import asyncio
import base64
import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

__all__ = ["Tab", "chromium", "running"]

OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-proxy-server",
    "--disable-background-networking",
    "--no-first-run",
)


class Tab:
    """One page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        """What the console has shown as an error: exceptions, what the policy forbade, what did not load."""

    async def listen(self) -> None:
        """Take in what the browser says. Run it as a task."""
        async for message in self._socket:
            said = message.json()
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(said["params"]["exceptionDetails"]["text"])
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self._numbers += 1
        answer = self._answers[self._numbers] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": self._numbers, "method": method, "params": params})
        said = await asyncio.wait_for(answer, 20)
        assert "error" not in said, said
        result: dict[str, Any] = said["result"]
        return result

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def value(self, script: str) -> Any:
        """Of a JavaScript expression."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    async def type(self, text: str) -> None:
        """On the keyboard, into what has the focus; then Enter."""
        await self.call("Input.insertText", text=text)
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", text="\r", windowsVirtualKeyCode=13
            )

    async def until(self, script: str, timeout_s: float = 40.0) -> None:
        """Wait until an expression is true."""
        until = time.monotonic() + timeout_s
        while not await self.value(script):
            if time.monotonic() > until:
                raise AssertionError(
                    f"not so within {timeout_s:g} s: {script}; {await self.value('document.body.innerText')}"
                )
            await asyncio.sleep(0.1)

    async def screenshot(self, file: str, width: int = 1100, height: int = 1000, dark: bool = False) -> None:
        """For a look at it by hand."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=scheme)
        shot = await self.call("Page.captureScreenshot")
        Path(file).write_bytes(base64.b64decode(shot["data"]))


@contextlib.asynccontextmanager
async def chromium() -> AsyncIterator[Tab]:
    """A browser of its own, to be driven. Skips where there is no Chromium and none is demanded."""
    with running("about:blank", "--remote-debugging-port=0") as (browser, profile):
        port_file, until = Path(profile, "DevToolsActivePort"), time.monotonic() + 60
        while not port_file.exists() or not port_file.read_text().strip():
            assert browser.poll() is None, "chromium ended"
            assert time.monotonic() < until, "chromium did not start"
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
                pages = [page for page in await reply.json() if page["type"] == "page"]
            async with session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                tab = Tab(socket)
                listening = asyncio.create_task(tab.listen())
                for domain in ("Page", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                yield tab
                listening.cancel()


@contextlib.contextmanager
def running(url: str, *options: str) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """Headless Chromium at a page, and the folder of its profile, which is its own. Skips where there is none and none is
    demanded."""
    binary = shutil.which("chromium")
    if binary is None:
        assert os.environ.get("RAYCADE_TEST_CHROMIUM") != "require", "chromium is demanded and not there"
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="rc-chromium-", ignore_cleanup_errors=True) as profile:
        browser = subprocess.Popen(
            [binary, *OPTIONS, *options, f"--user-data-dir={profile}", url],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        try:
            yield browser, profile
        finally:
            browser.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                browser.wait(10)
            browser.kill()
            browser.wait()
