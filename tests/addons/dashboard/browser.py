"""A real Chromium, controlled over its DevTools protocol: open a page, evaluate scripts, wait for conditions."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
    "--window-size=1360,860", "about:blank",
)  # fmt: skip
_RECORDED = ("Page", "Runtime", "Log", "Network")  # domains of the protocol whose events are recorded
WAIT_S = 60  # a machine under load needs longer than a person would wait


def chromium() -> str | None:
    """Return the path of an installed Chromium, or None; one without windows is preferred, as it takes less time."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


class _DevTools:
    """A connection of the DevTools protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._calls = 0

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=WAIT_S + 10))
            if message.get("id") == self._calls:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']['message']}")
                return dict(message["result"])
            self._record_event(message)

    def _record_event(self, event: dict[str, Any]) -> None:
        """Record an event; by default none is."""


class Page(_DevTools):
    """One tab.

    Attributes:
        errors: Uncaught errors, console errors and blocked content, as messages.
        requested: Every URL that the page requested.
    """

    def __init__(self, socket: ClientConnection) -> None:
        super().__init__(socket)
        self.errors: list[str] = []
        self.requested: list[str] = []
        for domain in _RECORDED:
            self._call(f"{domain}.enable")

    def stop_recording(self) -> None:
        """Record no errors and requests any more: the browser forwards every WebSocket message for that."""
        for domain in _RECORDED:
            self._call(f"{domain}.disable")

    def open(self, url: str) -> None:
        """Open a URL; returns when its scripts have run."""
        self._call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete'")

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression; a promise is awaited."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script}: {answer['exceptionDetails']['exception'].get('description')}")
        return answer["result"].get("value")

    def wait_for(self, fact: str) -> Any:
        """Return the value of an expression once it is true; no frames are drawn to find out."""
        wait = f"""new Promise((done, fail) => {{
            const until = performance.now() + {WAIT_S * 1000};
            const look = () => {{
                const value = (() => {{ try {{ return {fact}; }} catch {{ return null; }} }})();
                if (value) done(value);
                else if (performance.now() > until) fail(new Error('still not so: ' + document.body.innerText));
                else setTimeout(look, 20);
            }};
            look();
        }})"""
        return self.evaluate(wait)

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return str(self.evaluate(f"document.querySelector({selector!r}).innerText"))

    def click(self, selector: str) -> None:
        self.evaluate(f"document.querySelector({selector!r}).click()")

    def choose(self, field: str, value: str) -> None:
        """Choose a value of the select with this id."""
        self.evaluate(f"""(() => {{
            const select = document.getElementById({field!r});
            select.value = {value!r};
            select.dispatchEvent(new Event('change'));
        }})()""")

    def drop(self, text: str, name: str) -> None:
        """Drop a CSV file onto the page."""
        self.evaluate(f"""(() => {{
            const files = new DataTransfer();
            files.items.add(new File([{json.dumps(text)}], {name!r}, {{type: 'text/csv'}}));
            for (const type of ['dragover', 'drop']) {{
                const event = new DragEvent(type, {{dataTransfer: files, bubbles: true, cancelable: true}});
                document.body.dispatchEvent(event);
            }}
        }})()""")

    def replace_fetch(self, body: str) -> None:
        """Let pages that are opened from now on fetch with a function of this body, in which `send` is the original."""
        self._call(
            "Page.addScriptToEvaluateOnNewDocument",
            source=f"""(() => {{
                const send = window.fetch;
                window.fetch = async (url, options) => {{
                    {body}
                }};
            }})()""",
        )

    def press(self, key: str) -> None:
        """Press a key in the focused element."""
        text = {"text": "\r", "windowsVirtualKeyCode": 13} if key == "Enter" else {}
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, **text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key)

    def type(self, text: str) -> None:
        """Type into the focused element."""
        self._call("Input.insertText", text=text)

    def hover(self, selector: str, share: float) -> None:
        """Point at an element, at a share of its width and in the middle of its height."""
        self._mouse("mouseMoved", *self._place(selector, share))

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag over an element from one share of its width to another."""
        (x, y), (to, _) = self._place(selector, start), self._place(selector, end)
        self._mouse("mouseMoved", x, y)
        self._mouse("mousePressed", x, y)
        self._mouse("mouseMoved", (x + to) / 2, y)
        self._mouse("mouseMoved", to, y)
        self._mouse("mouseReleased", to, y)

    def emulate_screen(self, width: int, height: int, *, mobile: bool = True) -> None:
        """Emulate a screen of another size, by default that of a phone."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )

    def prefer_color_scheme(self, scheme: str) -> None:
        """Emulate a system that prefers `light` or `dark`."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, file: Path) -> None:
        """Write a screenshot as PNG."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _place(self, selector: str, share: float) -> tuple[float, float]:
        """Scroll to an element, and return where a share of it is after the page's handlers of the scrolling."""
        left, top, width, height = self.evaluate(f"""new Promise((done) => {{
            const element = document.querySelector({selector!r});
            element.scrollIntoView({{block: 'center'}});
            requestAnimationFrame(() => requestAnimationFrame(() => {{
                const {{left, top, width, height}} = element.getBoundingClientRect();
                done([left, top, width, height]);
            }}));
        }})""")
        return left + share * width, top + height / 2

    def _mouse(self, kind: str, x: float, y: float) -> None:
        held = {"button": "left", "buttons": 1, "clickCount": 1} if kind != "mouseMoved" else {"buttons": 0}
        self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def _record_event(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["exception"].get("description", "an exception"))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requested.append(params["url"])


class Browser(_DevTools):
    """A running Chromium, whose tabs share neither cookies, nor storage, nor cache."""

    def __init__(self, address: str, socket: ClientConnection) -> None:
        super().__init__(socket)
        self._address = address

    @contextlib.contextmanager
    def tab(self) -> Iterator[Page]:
        """Open a tab; it is closed after the block."""
        context = self._call("Target.createBrowserContext")["browserContextId"]
        try:
            target = self._call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
            with _connect(f"{self._address}/devtools/page/{target}") as socket:
                yield Page(socket)
        finally:
            self._call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.contextmanager
def browser(binary: str, folder: Path, *flags: str) -> Iterator[Browser]:
    """Start a browser with its profile in `folder`; it ends after the block."""
    command = [binary, f"--user-data-dir={folder}", *flags, *FLAGS]
    with (
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process,
        contextlib.ExitStack() as ended,
    ):
        try:
            assert process.stderr is not None
            said = next(line for line in process.stderr if "DevTools listening on" in line)
            url = said.split("listening on ")[1].strip()
            rest = threading.Thread(target=process.stderr.read)  # a full pipe would stop the browser
            rest.start()
            ended.callback(rest.join)
            with _connect(url) as socket:
                yield Browser(url.partition("/devtools")[0], socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)  # the program may be a script that has started the browser
            process.wait(WAIT_S)


def _connect(url: str) -> ClientConnection:
    # No limit on the queue: events that nobody reads would delay the end of the connection.
    return connect(url, max_size=None, max_queue=None, proxy=None, ping_interval=None, open_timeout=WAIT_S)
