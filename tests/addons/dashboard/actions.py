"""What tests of the dashboard do with a service and with its page."""

from __future__ import annotations

from typing import Any

import httpx2

from stepwell.addons.demo.recordings import Recordings
from tests.addons.dashboard.browser import Page
from tests.processes import ServiceProcess

RECORDINGS = Recordings.load()
READY = "document.getElementById('state').textContent === 'Ready'"

# -------------------------------------------------------------------- the service


def call(live: ServiceProcess, method: str, path: str, **more: Any) -> httpx2.Response:
    """Send a request to a route of a model, and return the response, whatever its status."""
    return httpx2.request(method, f"{live.url}/v1/models/{path}", trust_env=False, timeout=30, **more)


def get(live: ServiceProcess, path: str) -> Any:
    return call(live, "GET", path).raise_for_status().json()


def post(live: ServiceProcess, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return dict(call(live, "POST", path, json=body).raise_for_status().json())


def send(live: ServiceProcess, stream: str, timesteps: int = 1, *, recording: int = 0) -> None:
    """Send the first timesteps of a recording as single steps."""
    for row in RECORDINGS.x[recording, :timesteps]:
        post(live, f"activity/streams/{stream}/step", {"inputs": {"motion": row.tolist()}})


def advance(
    live: ServiceProcess, stream: str, *, to: int, since: int = 0, model: str = "wave", x: Any = (0.5,)
) -> None:
    """Advance a stream from one step to another."""
    for seq in range(since + 1, to + 1):
        post(live, f"{model}/streams/{stream}/step", {"inputs": x, "seq": seq})


# -------------------------------------------------------------------- the page


def open_page(page: Page, live: ServiceProcess, stream: str | None = None, *, model: str = "activity") -> None:
    """Open the page, optionally at a stream, and wait until it has connected."""
    open_address(page, live, f"#model={model}" + (f"&stream={stream}" if stream else ""))


def open_address(page: Page, live: ServiceProcess, address: str) -> None:
    page.open(f"{live.url}/{address}")
    page.wait_for(READY)


def open_at(page: Page, live: ServiceProcess, stream: str, at: int, *, model: str = "wave") -> None:
    """Open the page at an existing stream."""
    open_page(page, live, stream, model=model)
    wait_for_step(page, stream, at)
    page.wait_for("/^read at|too large/.test(document.getElementById('status-note').textContent)")  # not an error


def open_live(page: Page, live: ServiceProcess, stream: str, to: int) -> None:
    """Open a stream, and advance it while the page is watching."""
    advance(live, stream, to=1)
    open_page(page, live, stream, model="wave")
    wait_for_step(page, stream, 1)
    advance(live, stream, since=1, to=to)
    wait_for_step(page, stream, to)


def wait_for_step(page: Page, stream: str, step: int) -> None:
    """Wait until the page shows that a stream has reached a step."""
    page.wait_for(f"""!document.getElementById('view').hidden
        && document.getElementById('stream-name').textContent === '{stream}'
        && document.getElementById('stream-facts').textContent.split(',')[0] === 'step {step}'""")


def row(stream: str) -> str:
    """The text of a stream's row in the list, as an expression."""
    return f"""[...document.querySelectorAll('[role=option]')].find(o => o.dataset.name === '{stream}')?.textContent"""


def shown(page: Page, stream: str) -> str:
    """Wait until a stream is listed, and return the text of its row."""
    return str(page.wait_for(row(stream)))


def missing(page: Page) -> str:
    """Wait until the page shows that there is no such stream, and return its words."""
    words = "!document.getElementById('missing').hidden && document.getElementById('missing').innerText"
    return str(page.wait_for(words))


def wait_for_counts(page: Page) -> None:
    """Wait until the page has read the service's counters: it shows what was rejected after that."""
    page.wait_for("document.getElementById('replays').textContent !== '–'")


def shown_message(page: Page, words: str) -> str:
    """Wait until the page shows a message that contains the words, and return it."""
    found = f"/{words}/.test(document.getElementById('message').textContent)"
    return str(page.wait_for(f"{found} && document.getElementById('message').textContent"))


def confirm(page: Page, button: str, name: str | None = None) -> None:
    """Press a button and confirm the dialog, optionally with a name."""
    page.click(button)
    page.wait_for("document.getElementById('ask').open")
    accept_dialog(page, name)


def accept_dialog(page: Page, name: str | None = None) -> None:
    if name is not None:
        page.evaluate(f"document.getElementById('ask-name').value = {name!r}")
    page.click("#ask-yes")


def enter_key(page: Page, text: str) -> None:
    page.wait_for("!document.getElementById('key-form').hidden")
    page.evaluate("document.getElementById('key').focus()")
    page.type(text)
    page.press("Enter")
