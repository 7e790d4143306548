"""Takes the pictures of the dashboard in docs/images: `python -m scripts.screenshots`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx2

from benchmarks.releases import write_next_version
from stepwell.addons.demo.recordings import MODEL, MODELS, Recordings
from tests.addons.dashboard.browser import Page, browser, chromium
from tests.processes import free_port, service_process

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_FULL = "document.getElementById('rate-line').getAttribute('points').split(' ').length > 30"  # seconds of the demo
_DOTTED = "document.body.innerText.includes('dotted: the candidate')"

_COMPARED = "#model=activity&view=compare&compare=watch-11,watch-21,watch-31&field=outputs:activity:2"


def main() -> None:
    """Take a picture of each view."""
    if (binary := chromium()) is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with browser(binary, folder / "browser") as chrome, chrome.tab() as page:
            page.emulate_screen(1360, 940, mobile=False)
            take_demo(page)
            take_release(page, folder)


def take_demo(page: Page) -> None:
    """Take the pictures of the demo."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "stepwell", "demo", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as demo:
        try:
            assert demo.stderr is not None
            next(line for line in demo.stderr if "Dashboard" in line)
            page.open(f"http://127.0.0.1:{port}/#model=activity&stream=watch-21")
            for _ in range(3):  # each waits for at most 20 s
                if page.evaluate(f"new Promise((done) => setTimeout(() => done({_FULL}), 15000))"):
                    break
            page.screenshot(IMAGES / "dashboard.png")
            page.open(f"http://127.0.0.1:{port}/#model=activity&view=fleet")
            page.wait_for("document.querySelectorAll('.cell').length === 40")
            page.evaluate("new Promise((done) => setTimeout(done, 12000))")
            page.screenshot(IMAGES / "dashboard-all.png")
            page.open(f"http://127.0.0.1:{port}/{_COMPARED}")
            page.evaluate("location.reload()")
            page.evaluate("new Promise((done) => setTimeout(done, 12000))")
            page.screenshot(IMAGES / "dashboard-compare.png")
            page.emulate_screen(1360, 1240, mobile=False)
            page.open(f"http://127.0.0.1:{port}/#model=motion&stream=wrist-5&forecast=20&last=100")
            page.evaluate("location.reload()")
            page.evaluate("new Promise((done) => setTimeout(done, 9000))")
            page.screenshot(IMAGES / "dashboard-truth.png")
            page.emulate_screen(1360, 940, mobile=False)
        finally:
            demo.terminate()


def take_release(page: Page, folder: Path) -> None:
    """Take a picture while another version of the demo's model is tried in the shadow on half of the streams."""
    old, models = MODELS / f"{MODEL}.onnx", folder / "models"
    first = models / MODEL / "1" / "model.onnx"
    first.parent.mkdir(parents=True)
    first.write_bytes(old.read_bytes())
    write_next_version(old, models / MODEL / "2" / "model.onnx", change=0.1)
    page.emulate_screen(1360, 1160, mobile=False)
    with service_process(models, folder / "data") as service:
        body = {"current": 1, "candidate": 2, "mode": "shadow", "percent": 50, "salt": "picture"}
        httpx2.put(f"{service.url}/v1/models/{MODEL}/release", json=body, trust_env=False).raise_for_status()
        page.open(f"{service.url}/#model={MODEL}")  # it shows the first stream as soon as there is one
        page.wait_for("!document.getElementById('release').hidden")
        with _stepping(service.url):
            page.wait_for(_DOTTED)
            for _ in range(2):
                page.evaluate("new Promise((done) => setTimeout(done, 15000))")
            page.screenshot(IMAGES / "release.png")


@contextlib.contextmanager
def _stepping(url: str) -> Iterator[None]:
    """Step 40 streams of the demo's model five times a second until the block ends."""
    recordings, stop = Recordings.load(), threading.Event()
    chosen = recordings.x[[7 * n % len(recordings) for n in range(40)]]  # neighbours have the same class

    def run() -> None:
        streams = [f"watch-{n + 1}" for n in range(40)]
        with httpx2.Client(base_url=url, trust_env=False, timeout=30) as http:
            for t in count():
                if stop.wait(0.2):
                    return
                body = {"streams": streams, "inputs": {"motion": chosen[:, t % chosen.shape[1]].tolist()}}
                http.post(f"/v1/models/{MODEL}/step", json=body).raise_for_status()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
