"""A real Chromium without a window, driven through its DevTools protocol."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from typing import TYPE_CHECKING, Any

import websocket

if TYPE_CHECKING:
    from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome", "chrome")
_SECONDS = 30


def find_browser() -> str | None:
    """Path of a Chromium; ``PROBES_BROWSER`` names another one."""
    return next(filter(None, map(shutil.which, filter(None, [os.environ.get("PROBES_BROWSER"), *NAMES]))), None)


class Browser:
    """One page of a browser, and everything that it complained about or asked the network for."""

    def __init__(self, profile: Path) -> None:
        self.errors: list[str] = []
        self._requests: dict[str, str] = {}
        self._ids = itertools.count(1)
        arguments = [
            *("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars"),
            *("--disable-background-networking", "--disable-component-update", "--disable-extensions"),
            *("--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={profile}"),
        ]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            arguments.append("--no-sandbox")  # Chromium refuses to start as root with it
        self._process = subprocess.Popen(
            [str(find_browser()), *arguments, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            self._socket = self._connect(profile / "DevToolsActivePort")
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.call(f"{domain}.enable")
        except BaseException:
            self._process.kill()
            raise

    def _connect(self, port_file: Path) -> websocket.WebSocket:
        until = time.monotonic() + _SECONDS
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise RuntimeError(f"{find_browser()} ended with {self._process.returncode} at its start")
            lines = port_file.read_text().split() if port_file.exists() else []
            if len(lines) == 2:
                break
            time.sleep(0.05)
        else:
            raise RuntimeError(f"{find_browser()} opened no port in {_SECONDS} seconds")
        whole = websocket.create_connection(f"ws://127.0.0.1:{lines[0]}{lines[1]}", timeout=_SECONDS)
        try:
            whole.send(json.dumps({"id": 0, "method": "Target.getTargets"}))
            targets = json.loads(whole.recv())["result"]["targetInfos"]
        finally:
            whole.close()
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        return websocket.create_connection(f"ws://127.0.0.1:{lines[0]}/devtools/page/{page}", timeout=_SECONDS)

    @property
    def requests(self) -> list[str]:
        """What the page has asked for, the file itself first; what its own policy stopped is not there."""
        return list(self._requests.values())

    def close(self) -> None:
        """End the browser."""
        try:
            self._socket.close()
        finally:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive before it are noted."""
        number = next(self._ids)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, event: str | None, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.errors.append(str(params["args"])[:500])
        elif event == "Page.javascriptDialogOpening":
            self.errors.append(f"a dialog opened: {params['message']}")
        elif event == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self._requests[params["requestId"]] = params["request"]["url"]
        elif event == "Network.loadingFailed" and params.get("blockedReason") == "csp":
            self._requests.pop(params["requestId"], None)  # the page's own policy stopped it before it left

    def open(self, path: Path, *, before: str = "") -> None:
        """Load a file, with a script of the test's own in front of everything else, and wait until it is there."""
        self.errors.clear()
        self._requests.clear()
        script = self.call("Page.addScriptToEvaluateOnNewDocument", source=before or "0")["identifier"]
        self.call("Page.navigate", url=path.as_uri())
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(path.as_uri())}")
        self.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)

    def run(self, expression: str) -> Any:
        """Value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Wait until an expression in the page is true."""
        until = time.monotonic() + _SECONDS
        while not self.run(expression):
            if time.monotonic() > until:
                raise RuntimeError(f"{expression} did not become true in {_SECONDS} seconds")
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, as a keyboard does."""
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {"text": key} if len(key) == 1 else {}
            codes = {"Enter": 13, "Escape": 27, "Tab": 9, "Home": 36, "End": 35, "PageDown": 34, "PageUp": 33}
            codes |= {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
            about = {"key": key, "code": key, "windowsVirtualKeyCode": codes.get(key, ord(key[0].upper()))}
            self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def prefer(self, scheme: str, media: str = "") -> None:
        """Ask for ``light`` or ``dark``, and for ``print`` if named."""
        self.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    def resize(self, width: int, height: int) -> None:
        """Give the page a size."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def screenshot(self, path: Path, *, whole: bool = False) -> bytes:
        """Write a PNG of what can be seen, or of the whole page, and return it."""
        picture = base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"])
        path.write_bytes(picture)
        return picture
