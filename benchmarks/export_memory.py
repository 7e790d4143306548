"""What an export needs in memory and CPU time beside the framework itself: `python -m benchmarks.export_memory`.

Each model is made and run once in a process of its own, and written by PyTorch's own exporter if it is one of PyTorch;
and made, run and exported in another process. The difference of their peaks, in parts of the model's weights, is what
the export adds; its CPU time is that of all threads, once the framework is imported and the model has run.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

BATCH, STEPS = 2, 48


def torch_lstm(folder: Path) -> tuple[Any, int, Callable[[], Any]]:
    """Return two layers of LSTM in PyTorch, the bytes of its weights, and a run of it."""
    import torch
    from torch import nn

    from stepwell_export import StepSpec

    class Model(nn.Module):  # type: ignore[misc]  # torch may be missing
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(64, 1160, 2, batch_first=True), nn.Linear(1160, 8)

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(self.lstm(x)[0])

    del folder
    torch.manual_seed(0)
    module, x = Model().eval(), torch.randn(BATCH, STEPS, 64)
    nbytes = sum(value.numel() * value.element_size() for value in module.parameters())

    def run() -> None:
        torch.onnx.export(module, (x,), io.BytesIO(), dynamo=False, opset_version=18)

    return StepSpec(module, inputs={"x": x}, time_axis=1), nbytes, run


def keras_lstm(folder: Path) -> tuple[Any, int, Callable[[], Any]]:
    """Return the same in Keras."""
    del folder
    return _of_keras(64, (1160, 1160), 8)


def small_lstm(folder: Path) -> tuple[Any, int, Callable[[], Any]]:
    """Return LSTM(64) + Dense in Keras."""
    del folder
    return _of_keras(8, (64,), 4)


def large_lstm(folder: Path) -> tuple[Any, int, Callable[[], Any]]:
    """Return one layer of LSTM in Keras, with 84 MB of weights."""
    del folder
    return _of_keras(64, (2260,), 8)


def _of_keras(features: int, units: Sequence[int], out: int) -> tuple[Any, int, Callable[[], Any]]:
    """Return layers of LSTM and a dense one, the bytes of their weights, and a run of them."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    keras.utils.set_random_seed(0)
    layers = keras.layers
    recurrent = [layers.LSTM(width, return_sequences=True) for width in units]
    model = keras.Sequential([layers.Input((None, features)), *recurrent, layers.Dense(out)])
    x = np.random.default_rng(0).standard_normal((BATCH, STEPS, features)).astype("float32")
    return model, sum(value.numpy().nbytes for value in model.weights), lambda: model.predict(x, verbose=0)


def onnx_transformer(folder: Path) -> tuple[Any, int, Callable[[], Any]]:
    """Return the file of a causal transformer of eight layers, which a process of its own has written."""
    import onnxruntime

    path = folder / "transformer.onnx"
    if not path.exists():
        write = f"from benchmarks.export_memory import write_transformer as w; w({str(path)!r})"
        subprocess.run([sys.executable, "-c", write], check=True, capture_output=True)
    x = np.random.default_rng(0).standard_normal((BATCH, STEPS, 32)).astype("float32")
    return path, path.stat().st_size, lambda: onnxruntime.InferenceSession(str(path)).run(None, {"x": x})


def write_transformer(path: str) -> None:
    """Write the ONNX file of a transformer."""
    import torch
    from torch import nn

    class Block(nn.Module):  # type: ignore[misc]  # torch may be missing
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(512, 3 * 512), nn.Linear(512, 512)
            self.up, self.down = nn.Linear(512, 2048), nn.Linear(2048, 512)
            self.first, self.second = nn.LayerNorm(512), nn.LayerNorm(512)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> Any:
            parts = self.into(self.first(x)).reshape(x.shape[0], x.shape[1], 3, 8, 64).permute(2, 0, 3, 1, 4)
            found = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], mask)
            x = x + self.out(found.transpose(1, 2).flatten(2))
            return x + self.down(torch.relu(self.up(self.second(x))))

    class Model(nn.Module):  # type: ignore[misc]  # torch may be missing
        def __init__(self) -> None:
            super().__init__()
            self.front, self.head = nn.Linear(32, 512), nn.Linear(512, 8)
            self.blocks = nn.ModuleList([Block() for _ in range(8)])

        def forward(self, x: torch.Tensor) -> Any:
            steps, found = torch.arange(x.shape[1]), self.front(x)
            mask = steps[:, None] >= steps[None]
            for block in self.blocks:
                found = block(found, mask)
            return self.head(found)

    torch.manual_seed(0)
    axes = {name: {0: "batch", 1: "time"} for name in "xy"}
    torch.onnx.export(
        Model().eval(), (torch.randn(BATCH + 1, STEPS, 32),), path, dynamo=False, opset_version=18,
        input_names=["x"], output_names=["y"], dynamic_axes=axes,
    )  # fmt: skip


MODELS: dict[str, tuple[Callable[[Path], tuple[Any, int, Callable[[], Any]]], dict[str, Any]]] = {
    "LSTM of PyTorch": (torch_lstm, {}),
    "LSTM of Keras": (keras_lstm, {}),
    "LSTM(64) + Dense of Keras": (small_lstm, {}),
    "84 MB LSTM of Keras": (large_lstm, {}),
    "transformer, an ONNX file": (onnx_transformer, {"length": 64}),
}


def main() -> None:
    """Print the peak of every model, and the CPU seconds of its export."""
    print("| model | weights MB | made and run MB | exported too MB | added, in weights | CPU s |")
    print("| :-- | --: | --: | --: | --: | --: |")
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in MODELS:
            nbytes, own, _ = _measured(name, folder, exported=False)
            _, peak, seconds = _measured(name, folder, exported=True)
            print(
                f"| {name} | {nbytes / 1e6:.0f} | {own / 1e6:.0f} | {peak / 1e6:.0f} | {(peak - own) / nbytes:.1f} |"
                f" {seconds:.1f} |",
                flush=True,
            )


def _measured(name: str, folder: str, *, exported: bool) -> tuple[int, int, float]:
    """Return the bytes of a model's weights, the peak of its process, and the CPU seconds of its export."""
    command = [sys.executable, "-m", "benchmarks.export_memory", name, folder, *(["exported"] if exported else [])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    nbytes, peak, seconds = done.stdout.split()[-3:]
    return int(nbytes), int(peak), float(seconds)


def _one(name: str, folder: Path, *, exported: bool) -> None:
    began = time.process_time()
    make, options = MODELS[name]
    from stepwell_export.exporter import export_source

    source, nbytes, run = make(folder)
    run()
    if exported:
        began = time.process_time()
        export_source(source, folder / "step.onnx", accept_weak=True, **options)
    print(nbytes, _of_process("VmHWM"), time.process_time() - began)


def _of_process(what: str) -> int:
    """Return a size of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what + ":"))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _one(sys.argv[1], Path(sys.argv[2]), exported=sys.argv[3:] == ["exported"])
    else:
        main()
