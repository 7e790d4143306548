"""Takes the noise out of a recording, 8 ms at a time: `python examples/denoise.py noisy.wav clean.wav`.

The model is exported once: `stepwell export recipe:dtln=model_1.onnx,model_2.onnx -o models/dtln.onnx --pcm16`.
"""

from __future__ import annotations

import sys
import wave
from pathlib import Path

import numpy as np

from stepwell import Client

HOP, LATENCY = 128, 384


def main(noisy: str, clean: str, models: str = "models") -> None:
    with wave.open(noisy, "rb") as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (16000, 1, 2):
            sys.exit(f"{noisy} is not 16-bit mono at 16 kHz.")
        samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    silence = np.zeros(LATENCY + -(samples.size + LATENCY) % HOP, np.int16)  # for the last samples to come out
    rows = np.concatenate([samples, silence]).reshape(-1, HOP)
    with Client(":memory:", models=models) as client:
        stream = client.model("dtln").stream(Path(noisy).stem)
        cleaned = [stream.steps(rows[at : at + 512]).output.ravel() for at in range(0, len(rows), 512)]
        stream.delete()
    with wave.open(clean, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.concatenate(cleaned)[LATENCY : LATENCY + samples.size].astype("<i2").tobytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
