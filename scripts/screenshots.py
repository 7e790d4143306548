"""Takes the pictures of the dashboard in docs/images while the demo runs: `python -m scripts.screenshots`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.dashboard.browser import browser, chromium
from tests.processes import free_port

IMAGES = Path(__file__).parents[1] / "docs" / "images"
_FULL = "document.getElementById('rate-line').getAttribute('points').split(' ').length > 30"  # seconds of the demo

_COMPARED = "#model=activity&view=compare&compare=watch-11,watch-21,watch-31&field=outputs:activity:2"


def main() -> None:
    """Take a picture of each view."""
    if (binary := chromium()) is None:
        sys.exit("Chromium is not installed: apt-get install chromium")
    port = free_port()
    command = [sys.executable, "-P", "-m", "stepwell", "demo", "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as demo, tempfile.TemporaryDirectory() as folder:
        try:
            assert demo.stderr is not None
            next(line for line in demo.stderr if "Dashboard" in line)
            with browser(binary, Path(folder)) as page:
                page.emulate_screen(1360, 940, mobile=False)
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
        finally:
            demo.terminate()


if __name__ == "__main__":
    main()
