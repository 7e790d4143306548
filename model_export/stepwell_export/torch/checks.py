"""Prepares and runs a user's module: a copy on the CPU in eval mode, or a refusal with the reason."""

from __future__ import annotations

import contextlib
import copy
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributions import Distribution
from torch.utils._pytree import tree_leaves

from stepwell_export.patched import patched
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.cells import with_layers_of_torch

HOW_TO_WRITE_IT = """Write one timestep with its state as a module of its own, and give that:

    class Step(torch.nn.Module):
        def forward(self, x, h):              # x (batch, features), h (batch, 32)
            h = torch.tanh(self.w(x) + self.u(h))
            return self.head(h), h            # outputs first, then every next state

    def spec():
        return StepSpec(Step(), inputs={"x": torch.zeros(2, 16)}, states={"h": torch.zeros(1, 32)})
"""

_TORCH = f"{Path(torch.__file__).parent}/"  # and no torchrl beside it
_TURN = threading.RLock()
_HERE = str(Path(__file__).parent)


def prepared(module: Any) -> Any:
    """Return a copy of a module, on the CPU and in eval mode; the user's own stays as it is.

    Raises:
        RefusedModelError: It is no module, or of a kind that cannot be exported (quantised, half precision,
            TorchScript, without weights).
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    if isinstance(module, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise RefusedModelError(
            "The module is TorchScript; expected the torch.nn.Module that it was made from.",
            fix="Build the Python module, load the weights into it, and give that.",
        )
    if not isinstance(module, nn.Module):
        raise RefusedModelError(
            f"The module is {type(module).__module__}.{type(module).__qualname__}; expected a torch.nn.Module.",
            fix="Give an instance of your module class.",
        )
    for path, part in module.named_modules():
        if "quantized" in type(part).__module__ or "quantization" in type(part).__module__:
            raise RefusedModelError(
                f"{_called(path, part)} is quantised; expected float weights.",
                fix="Export the module as it was before quantisation.",
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_meta or nn.parameter.is_lazy(tensor):
            raise RefusedModelError(f"{name!r} has no values yet.", fix="Load the weights first.")
        if tensor.dtype in {torch.float16, torch.bfloat16}:
            raise RefusedModelError(
                f"{name!r} is {str(tensor.dtype).removeprefix('torch.')}; expected float32.",
                fix="Give `module.float()`: the step graph computes in float32.",
            )
        if type(tensor.data) is not torch.Tensor or tensor.is_quantized:
            raise RefusedModelError(
                f"{name!r} is a {type(tensor.data).__name__}; expected a plain tensor.",
                fix="Export the module as it was before quantisation or sharding.",
            )
    kept = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }  # what weight_norm, say, leaves as an attribute cannot be copied as it is
    for part in module.modules():
        kept |= {id(value): _Detached(name) for name, value in vars(part).items() if _stays_behind(name, value)}
    try:
        mine: nn.Module = copy.deepcopy(module, kept)
    except Exception as exc:
        raise RefusedModelError(
            f"{type(module).__name__} cannot be copied: {exc}.",
            fix="Detach the tensors that it keeps as attributes, or give a freshly built module.",
        ) from exc
    for part in mine.modules():
        for name, value in list(vars(part).items()):
            if isinstance(value, _Detached) and name in _TRAINER:
                vars(part)[name] = None  # as PyTorch Lightning has it before and after training
    with_layers_of_torch(mine)
    return mine.cpu().eval().requires_grad_(False)


_TRAINER = ("_trainer", "_fabric")
"""Where a LightningModule holds what trains it, with all of its data."""


class _Detached:
    """Replaces, in the copy of a module, an attribute that cannot be copied, such as a trainer with its locks."""

    def __init__(self, name: str) -> None:
        self._called = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RefusedModelError(
            f"`forward` uses {self._called!r}, which cannot be copied.",
            fix="Take what it needs of that in `__init__`, or give a module without it.",
        )


def _stays_behind(name: str, value: Any) -> bool:
    """Whether an attribute is left out of the copy: what trains the module, and what cannot be copied."""
    if name in _TRAINER:
        return value is not None
    if name in nn.Module().__dict__ or isinstance(value, torch.Tensor | nn.Module | str | int | float | None):
        return False
    try:
        copy.deepcopy(value)
    except Exception:  # noqa: BLE001  # whatever it holds
        return not any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(value))
    return False


def run(module: Any, values: Any, *, doing: str, is_eager: bool = False) -> Any:
    """Call a module without gradients.

    Args:
        module: The module.
        values: What it is called with.
        doing: What a message calls the run.
        is_eager: Run it as it runs for the user; else a transformer layer runs by its parts.

    Raises:
        RefusedModelError: It fails; the message has the line of the user's code.
    """
    try:
        as_one = contextlib.nullcontext() if is_eager else unfused()
        with in_turn(), torch.no_grad(), as_one, unvalidated(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oneDNN, on what it leaves to others
            return module(*values)
    except RefusedModelError:
        raise
    except Exception as exc:
        shapes = ", ".join(str(list(value.shape)) for value in values)
        where = place(traceback.extract_tb(exc.__traceback__))
        if torch.jit.is_tracing():  # it has run before, but in a trace sizes are tensors
            raise RefusedModelError(
                f"The module does with its sizes what no graph can follow: {first_line(exc)}{where}.",
                fix="Compute it with operations on tensors, or once, in `__init__`.",
            ) from exc
        raise RefusedModelError(
            f"The module fails {doing} (shapes {shapes}): {first_line(exc)}{where}.",
            fix="Give examples that it takes, with a batch axis, in the order of `forward`.",
        ) from exc


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Let one thread at a time change what torch, or Python, has once in a process; torch's exporters need that too."""
    with _TURN:
        yield


@contextlib.contextmanager
def unfused() -> Iterator[None]:
    """Keep torch from running a whole transformer layer as one operator, which passes its parts by."""
    with in_turn():
        before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def unvalidated() -> Iterator[None]:
    """Keep `torch.distributions` from checking parameters by their values, which a graph cannot do."""
    with in_turn(), patched((Distribution, "_validate_args", False)):
        yield


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Let tensors that a module makes have the type of its weights."""
    with in_turn():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def check_behaviour(module: Any, call: Callable[[], Sequence[tuple[str, torch.Tensor]]]) -> None:
    """Run a module twice on the same input, and look at what it does besides giving an answer.

    Args:
        module: The module.
        call: Runs it; returns its outputs with their paths.

    Raises:
        RefusedModelError: It changes its buffers, keeps something from call to call, or draws random numbers.
    """
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def seeded(seed: int) -> list[torch.Tensor]:
        with in_turn(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [value for _, value in call()]

    first = seeded(0)
    for name, buffer in module.named_buffers():
        if name in before and not _same(before[name], buffer):
            raise RefusedModelError(
                f"The module changes its buffer {name!r} in `forward`; expected a state that is taken and returned.",
                fix=HOW_TO_WRITE_IT,
            )
    if all(map(_same, first, seeded(1))):
        return
    if all(map(_same, seeded(0), seeded(0))):
        raise RefusedModelError(
            "The module draws random numbers in eval mode: two runs on the same input differ.",
            fix="Give the draw as an input; for dropout write F.dropout(x, p, self.training).",
        )
    raise RefusedModelError(
        "The module keeps something from call to call: two runs on the same input differ.", fix=HOW_TO_WRITE_IT
    )


def first_line(exc: BaseException) -> str:
    """Return an error's class and the first line of its text."""
    lines = str(exc).partition("  [Caused by")[0].strip().splitlines()  # torch's own graph, and where it was made
    return f"{type(exc).__name__}: {lines[0].rstrip('.')}" if lines else type(exc).__name__


def _called(path: str, part: Any) -> str:
    return f"{path!r} ({type(part).__name__})" if path else f"The module ({type(part).__name__})"


def place(frames: Sequence[traceback.FrameSummary]) -> str:
    """Return the innermost line of the module's own code, for a message; empty where all of it is torch's."""
    while frames and frames[-1].filename.startswith((_HERE, _TORCH)):
        frames = frames[:-1]
    theirs: list[traceback.FrameSummary] = []
    for frame in frames:
        if frame.filename.startswith(_HERE):
            theirs.clear()  # what called us is no part of the module
        elif not frame.filename.startswith(_TORCH):
            theirs.append(frame)
    return f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""


def user_frame(frame: Any, *, within: Sequence[str]) -> Any:
    """Return the frame of the module's own code that a call comes from; None where it comes from a layer, or from here.

    Args:
        frame: Where to begin.
        within: Endings of torch's files that may be between, besides that which calls a layer.
    """
    between = (*within, "nn/modules/module.py")
    while frame is not None and frame.f_code.co_filename.startswith(_TORCH):
        if not frame.f_code.co_filename.endswith(between):
            return None
        frame = frame.f_back
    return None if frame is None or frame.f_code.co_filename.startswith((_HERE, "<")) else frame


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True))


@contextlib.contextmanager
def hooked(module: Any, kind: Any, see: Any) -> Iterator[None]:
    """Call `see(layer, args, kwargs)` before each call of the layers of a kind."""
    handles = [
        layer.register_forward_pre_hook(see, with_kwargs=True) for layer in module.modules() if isinstance(layer, kind)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
