"""The page of the denoiser: a recording goes through the feed and back into Web Audio."""

from __future__ import annotations

import base64
import io
import runpy
import threading
import wave
from pathlib import Path

import numpy as np
import pytest

from stepwell import Client
from stepwell_export.exporter import export_source
from tests.addons.dashboard.browser import browser, chromium
from tests.examples.runs import EXAMPLES
from tests.processes import free_port, service_process
from tests.published import FOLDER

DTLN = [FOLDER / "dtln" / f"model_{half}.onnx" for half in (1, 2)]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not DTLN[0].is_file(), reason="the published models are not available in ../shared/models"),
]


def test_what_is_heard_is_what_the_service_makes_of_the_recording(tmp_path: Path) -> None:
    models, port = tmp_path / "models", free_port()
    export_source(f"recipe:dtln={DTLN[0]},{DTLN[1]}", models / "dtln.onnx")
    t = np.arange(16000) / 16000
    noise = np.random.default_rng(0).standard_normal(t.size)
    samples = np.round(32767 * (0.2 * np.sin(2 * np.pi * 300 * t) + 0.03 * noise)).astype("<i2")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    encoded = base64.b64encode(sound.getvalue()).decode()
    page_server = runpy.run_path(str(EXAMPLES / "voice_page" / "serve.py"))["Server"]
    origin = f"http://127.0.0.1:{port}"
    with (
        service_process(models, tmp_path / "data", "--allowed-origins", origin) as service,
        page_server(port, service.url, models, tmp_path, EXAMPLES / "denoise_page") as server,
        browser(str(chromium()), tmp_path, "--autoplay-policy=no-user-gesture-required") as one_browser,
        one_browser.tab() as tab,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.open(f"{origin}/?service={service.url.removeprefix('http://')}")
        tab.evaluate(f"""(async () => {{
            const bytes = Uint8Array.from(atob("{encoded}"), (c) => c.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "noisy.wav", {{ type: "audio/wav" }}));
            window.timesteps = (await import("/page.js")).timesteps;
            recording.files = files.files;
            recording.dispatchEvent(new Event("change"));
        }})()""")
        found = tab.wait_for("timesteps.length >= 120 && timesteps.map(({before, after}) => [[...before], [...after]])")
        shown, errors = tab.text("#state"), tab.errors
        server.shutdown()
        before, after = np.array(found, np.float32).swapaxes(0, 1)
        with Client(service.url) as client:
            whole = client.model("dtln").stream("by-python").steps(before).output

    assert [error for error in errors if "404" not in error] == []  # the stream is new
    np.testing.assert_allclose(after, whole, atol=1e-5)
    assert np.abs(before).max() > 0.1
    assert "8 ms of sound take" in shown
