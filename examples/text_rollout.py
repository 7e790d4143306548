"""How do I let the server write a whole text in one request, and show it while it is written?

The model of text_generation.py declares which output feeds which input: `{"character": "next"}`, so the next character
is sampled from the probabilities. One request then rolls the stream out by 120 characters at a temperature of its
choice. As server-sent events, each character arrives as it is made, and is printed at once. The same seed gives the
same text on any replica: the second request commits it, so that the text becomes the stream's history, and a retry of
that request gets the same text again. Afterwards Keras gets each text as a whole and must predict the same.

With a file name, the texts are drawn, more probable characters darker: text_rollout.py text.svg
"""

from __future__ import annotations

import json
import os
import sys
from html import escape
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import httpx2
import keras
import numpy as np
from live import compare, live
from text_generation import CHARACTERS, START, build, encode, train

LENGTH, WIDTH = 120, 60
TEMPERATURES = (0.0, 0.4, 1.0)


def main() -> None:
    keras.utils.set_random_seed(2)
    model = build()
    train(model)
    texts, chances = [], []
    with live(model, feedback={"character": "next"}) as http:
        for temperature in TEMPERATURES:
            stream = f"/v1/models/verse/streams/temperature-{temperature}"
            begin = encode(START)
            http.post(f"{stream}/steps", json={"inputs": begin[:-1].tolist(), "return": "none"})
            body = {"horizon": LENGTH, "inputs": int(begin[-1]), "temperature": temperature, "seed": 8}
            print(f"temperature {temperature}:\n{START}", end="")
            written = write(http, f"{stream}/rollout", body)
            body["commit"], key = True, {"idempotency-key": f"first-{temperature}"}
            answer = http.post(f"{stream}/rollout", json=body, headers=key).json()
            if written != (codes := answer["next"]["character"]):
                sys.exit(f"the characters as they were made are {written}; those of the whole text are {codes}")
            again = http.post(f"{stream}/rollout", json=body, headers=key).json()
            if again != {**answer, "replayed": True}:
                sys.exit(f"the retry got {again}; expected the first answer, {answer}")
            drawn = answer["next"]["character"]
            texts.append(START + "".join(CHARACTERS[code] for code in drawn))
            chances.append(np.array(answer["outputs"]["next"])[np.arange(LENGTH), drawn])
            print(f"\nnow at step {answer['step']}\n")
            whole = model.predict(encode(texts[-1][:-1])[None], verbose=0)[0]
            compare(answer["outputs"]["next"], whole[len(START) - 1 :])
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(drawing(texts, chances))


def write(http: httpx2.Client, path: str, body: dict[str, object]) -> list[int]:
    """Print a text while the service writes it, and return its characters' codes."""
    codes = []
    with http.stream("POST", path, json=body, headers={"accept": "text/event-stream"}) as events:
        for line in events.iter_lines():
            name, _, data = line.partition(": ")
            if name == "data" and "outputs" in (made := json.loads(data)):  # not the last event, `done`
                codes.append(made["next"]["character"])
                print(CHARACTERS[codes[-1]], end="", flush=True)
    return codes


def drawing(texts: list[str], chances: list[np.ndarray]) -> str:
    """Return the texts as an SVG; the more probable a character was, the darker it is."""
    lines, y = [], 0
    for temperature, text, chance in zip(TEMPERATURES, texts, chances, strict=True):
        y += 22
        lines.append(f'<text x="10" y="{y}" font-weight="bold">temperature {temperature:g}</text>')
        shades = [1.0] * len(START) + chance.tolist()
        for begin in range(0, len(text), WIDTH):
            y += 18
            spans = [
                f'<tspan fill="rgb({int(200 - 200 * shade)},{int(120 - 60 * shade)},{int(60 + 40 * shade)})">'
                f"{'&#183;' if character in ' ' else '&#8629;' if character in chr(10) else escape(character)}</tspan>"
                for character, shade in zip(text[begin : begin + WIDTH], shades[begin : begin + WIDTH], strict=True)
            ]
            lines.append(f'<text x="10" y="{y}">{"".join(spans)}</text>')
        y += 10
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {9 * WIDTH + 20} {y + 10}" font-family="monospace"'
    title = "<title>Three texts, each character the darker the more probable it was</title>"
    return "\n".join([f'{head} font-size="14" role="img">', title, '<rect width="100%" height="100%" fill="#fff"/>',
                      *lines, "</svg>\n"])  # fmt: skip


if __name__ == "__main__":
    main()
