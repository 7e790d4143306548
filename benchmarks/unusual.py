"""Costs of unusual rows: CPU time of the engine per timestep with a tenth of the rows new, replayed or refused.

    python -m benchmarks.unusual

An engine in this process steps 256 streams of the demo's model, in columns and as single timesteps that arrive at once.
The CPU time is that of the process without the store and without a transport, so other load on the machine matters
little. To compare checkouts, run it in turn with `PYTHONPATH` set to the `service`, `model_export` and `clients/python`
of another one.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import MODEL, ROWS, private_store
from stepwell.addons.demo.recordings import MODELS
from stepwell.engine.engine import Engine
from stepwell.models.registry import ModelRegistry
from stepwell.store.keys import record_key
from stepwell.store.state_store import StateStore
from stepwell.types import BulkTimesteps, StreamKey, Timestep
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel

ROUNDS = 60
UNUSUAL = 26
KINDS = ("usual", "new", "replayed", "refused", "all three")


class _Streams:
    """Streams of one case, and the requests that step them."""

    def __init__(self, engine: Engine, tenant: str, kind: str) -> None:
        self._engine = engine
        self._tenant = tenant
        self._kind = kind
        self._seqs = [0] * ROWS
        self._round = 0
        self._names = [f"s{i}" for i in range(ROWS)]

    def next_rows(self, xs: Array, before: Array) -> tuple[list[StreamKey], Array, list[int]]:
        """Return the streams of the next request, their inputs, and their positions."""
        xs = xs.copy()
        seqs = [seq + 1 for seq in self._seqs]
        self._seqs = list(seqs)
        self._round += 1
        for k in range(UNUSUAL if self._round > 1 and self._kind != "usual" else 0):
            i = (self._round * UNUSUAL + k) % ROWS  # other rows than in the request before
            kind = KINDS[1 + k % 3] if self._kind == "all three" else self._kind
            if kind == "new":
                self._names[i], seqs[i], self._seqs[i] = f"n{self._round}-{i}", 1, 1
            elif kind == "replayed":
                xs[i], seqs[i], self._seqs[i] = before[i], seqs[i] - 1, seqs[i] - 1
            else:
                seqs[i], self._seqs[i] = seqs[i] + 5, seqs[i] - 1
        return [StreamKey(self._tenant, MODEL, name) for name in self._names], xs, seqs

    async def columns(self, keys: list[StreamKey], xs: Array, seqs: list[int]) -> Any:
        """Send the rows as one request."""
        served = self._engine.models.get(MODEL)
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        bulk = BulkTimesteps(
            keys=keys, names=[record_key(*key) for key in keys], inputs={served.inputs[0].name: xs[:, None]},
            packed=[(row.tobytes(),) for row in xs], length=1, seqs=seqs, afters=[None] * ROWS,
        )  # fmt: skip
        self._engine.steps.submit_bulk(bulk, done.set_result, served)
        return await done

    async def singles(self, keys: list[StreamKey], xs: Array, seqs: list[int]) -> Any:
        """Send each row by itself, all at once."""
        served, found = self._engine.models.get(MODEL), list[Any]()
        ended = asyncio.Event()

        def done(result: Any) -> None:
            found.append(result)
            if len(found) == ROWS:
                ended.set()

        for key, x, seq in zip(keys, xs, seqs, strict=True):
            self._engine.steps.submit(Timestep(key, (x.tobytes(),), seq=seq), done, served)
        await ended.wait()
        return found


async def measure(url: str, folder: Path) -> dict[str, float]:
    """Return the median CPU microseconds per timestep of each case."""
    models = ModelRegistry([folder], StepModel)
    await models.reload()
    engine = Engine(StateStore(url), models)
    [spec] = models.get(MODEL).inputs
    rng = np.random.default_rng(0)
    cases = {
        f"{way}, {kind}": _Streams(engine, f"t-{way}-{kind}", kind) for way in ("columns", "singles") for kind in KINDS
    }
    found: dict[str, list[float]] = {name: [] for name in cases}
    before = np.zeros((ROWS, *spec.row_shape), np.float32)
    for i in range(ROUNDS):
        xs = rng.normal(size=before.shape).astype(np.float32)
        for name, streams in cases.items():
            send = partial(getattr(streams, name.split(",", maxsplit=1)[0]), *streams.next_rows(xs, before))
            started = time.process_time()
            await send()
            if i >= ROUNDS // 6:
                found[name].append(time.process_time() - started)
        before = xs
    await engine.close()
    return {name: 1e6 * statistics.median(seconds) / ROWS for name, seconds in found.items()}


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / MODEL / "1" / "model.onnx"
        model.parent.mkdir(parents=True)
        model.write_bytes((MODELS / "activity.onnx").read_bytes())
        with private_store(folder / "data") as url:
            for case, us in asyncio.run(measure(url, folder)).items():
                print(f"{case:20} {us:7.2f} us of CPU per timestep")


if __name__ == "__main__":
    main()
