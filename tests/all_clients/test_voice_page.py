"""The page of the voice detector: one stream, in the browser, on the server and in the browser again."""

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
from tests.processes import service_process
from tests.published import FOLDER

SILERO = FOLDER / "silero-vad" / "silero_vad.onnx"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium() is None, reason="needs Chromium: apt-get install chromium"),
    pytest.mark.skipif(not SILERO.is_file(), reason="the published models are not available in ../shared/models"),
]


def test_the_stream_is_switched_between_browser_and_server_without_a_break(
    installed_runtime: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    export_source(f"recipe:silero={SILERO}", models / "voice.onnx", pcm16=True)
    kept = np.load(SILERO.with_suffix(".reference.npz"))
    samples = np.round(kept["x:input"][:60, 0, 64:].ravel() * 32768).clip(-32768, 32767).astype("<i2")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(samples.tobytes())
    encoded = base64.b64encode(sound.getvalue()).decode()
    runtime = installed_runtime / "node_modules" / "onnxruntime-web" / "dist"
    page_server = runpy.run_path(str(EXAMPLES / "voice_page" / "serve.py"))["Server"]
    with (
        service_process(models, tmp_path / "data") as service,
        page_server(0, service.url, models, runtime) as server,
        browser(str(chromium()), tmp_path) as one_browser,
        one_browser.tab() as tab,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tab.open(f"http://127.0.0.1:{server.server_port}/")
        tab.wait_for("document.getElementById('state').textContent === 'Choose a recording.'")
        tab.evaluate(f"""(async () => {{
            const bytes = Uint8Array.from(atob("{encoded}"), (c) => c.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "speech.wav", {{ type: "audio/wav" }}));
            window.timesteps = (await import("/page.js")).timesteps;
            recording.files = files.files;
            recording.dispatchEvent(new Event("change"));
        }})()""")
        for place, n in (("server", 15), ("browser", 35), ("browser", 60)):
            tab.wait_for(f"timesteps.length >= {n}")
            tab.evaluate(f"document.querySelector('input[value={place}]').click()")
        found = tab.evaluate("timesteps")
        shown, errors = tab.text("#state") + tab.text("#sizes"), tab.errors
        server.shutdown()
        with Client(service.url) as client:
            whole = client.model("voice").stream("on-one-side").steps(samples.reshape(-1, 512)).output

    assert errors == []
    assert [one["step"] for one in found] == list(range(1, 61))
    places = [one["place"] for one in found]
    assert [place for place, before in zip(places, ["", *places], strict=False) if place != before] == [
        "browser", "server", "browser",
    ]  # fmt: skip
    np.testing.assert_allclose([one["speech"] for one in found], whole.ravel(), atol=1e-5)
    assert "32 ms of sound take in this browser" in shown
