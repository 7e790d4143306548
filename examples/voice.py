"""Sends a recording to a voice detector, 32 ms at a time: `python examples/voice.py RECORDING.wav [PICTURE.svg]`.

The service has the model of `stepwell export recipe:silero=silero_vad.onnx -o models/voice.onnx --pcm16`.
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np

from stepwell import Client

FRAME = 512


def main(recording: str, picture: str = "", url: str = "http://127.0.0.1:8000", **more: Any) -> np.ndarray:
    with wave.open(recording, "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (16000, 1, 2):
            sys.exit(f"{recording} is not 16-bit mono at 16 kHz.")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    rows = samples[: samples.size // FRAME * FRAME].reshape(-1, FRAME)
    with Client(url, **more) as client:
        stream = client.model("voice").stream(Path(recording).stem)
        speech = np.concatenate([stream.steps(rows[at : at + 32]).output.ravel() for at in range(0, len(rows), 32)])
    print(f"{(speech > 0.5).mean():.0%} of {len(rows) * FRAME / 16000:.1f} s are speech")
    if picture:
        from stepwell.addons.charts import line_chart, stacked

        loud = np.abs(rows / 32768).max(1)
        charts = [line_chart("loudness", {"peak": loud.tolist()}), line_chart("speech", {"speech": speech.tolist()})]
        Path(picture).write_text(stacked(charts))
    return speech


if __name__ == "__main__":
    main(*sys.argv[1:])
