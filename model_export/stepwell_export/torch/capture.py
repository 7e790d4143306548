"""`Capture`: runs a module on tensors whose values Python cannot read, so that no decision by a value goes unseen.

A trace holds the branch that one example took. Every tensor of the run is therefore a `CapturedTensor`, which has no
memory: the numbers are in a tensor within it, and all that computes with them passes through `Capture`. What leaves
torch, as `if`, `float()`, NumPy or a size that follows from values, is refused if the numbers come from an input. Where
numbers come from is kept by their memory, so that views and writes in place count too. What follows from weights and
sizes alone may be read.
"""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from stepwell_export.patched import patched
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch.checks import first_line, place, run, user_frame

_BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""What torch calls an operation whose answer, or its shape, Python may decide by."""

_SHAPED_BY: dict[Any, int] = {torch.ops.aten.index.Tensor: 1, torch.ops.aten.masked_select.default: 1}
"""The argument that the shape follows from, of operations where it is one of several."""

FILLS = {
    "empty", "empty_like", "empty_strided", "fill", "full", "full_like", "new_empty", "new_empty_strided", "new_full",
    "new_ones", "new_zeros", "ones", "ones_like", "zero", "zeros", "zeros_like",
}  # fmt: skip
"""Operations that give the same number everywhere, whatever is in the tensor that they are called with."""

MOVES = {
    "_reshape_alias", "_unsafe_view", "alias", "cat", "clone", "constant_pad_nd", "contiguous", "copy", "detach",
    "diagonal", "expand", "flip", "gather", "index", "index_select", "lift_fresh", "permute", "repeat", "reshape",
    "roll", "select", "select_scatter", "slice", "slice_scatter", "split", "split_with_sizes", "squeeze", "stack", "t",
    "transpose", "tril", "triu", "unbind", "unfold", "unsafe_split", "unsqueeze", "view",
}  # fmt: skip
"""Operations that give numbers of their operands, or zeros."""

_NUMBERS = torch.ops.aten.lift_fresh.default
"""What `torch.tensor(..)` of Python numbers is."""

_FEW = 1000
"""Numbers of a tensor that are looked at one by one."""

_TENSORS = ("Tensor", "List[Tensor]", "NoneType", "Optional[Tensor]")

_ABOUT_FORM = {"is_same_size", "size", "stride", "sym_size", "sym_stride", "sym_numel", "sym_storage_offset"}


class CapturedTensor(Tensor):
    """A tensor without memory.

    Attributes:
        inner: The numbers.
        capture: Where it was made.
    """

    inner: Tensor
    capture: Capture

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, capture: Capture) -> CapturedTensor:
        """Wrap the numbers."""
        made: CapturedTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=inner.device,
        )  # fmt: skip
        made.inner, made.capture = inner, capture
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what is done outside of the run."""
        raise RuntimeError(f"{func} is called with a tensor of a run that has ended")

    def __repr__(self, **_: Any) -> str:
        """Return the text of the numbers."""
        return repr(self.capture.read(self))

    def __format__(self, spec: str) -> str:
        """Return the text of the numbers."""
        return format(self.capture.read(self), spec)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the numbers for NumPy."""
        return self.capture.share(self).__array__(*args, **kwargs)


def _reader(name: str) -> Callable[..., Any]:
    def read(self: CapturedTensor, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.capture.share(self), name)(*args, **kwargs)

    return read


for _name in ("numpy", "tolist", "data_ptr", "untyped_storage", "storage", "__dlpack__", "__reduce_ex__"):
    setattr(CapturedTensor, _name, _reader(_name))


class Capture(TorchDispatchMode):
    """Runs a module, and refuses what decides by values of its inputs, or computes in bfloat16.

    Attributes:
        operations: How many operations were done, a recurrent layer of torch's own as one.
        is_complex: Whether there were complex numbers.
        largest: How many numbers the largest tensor has, scores of attention that has none of them in memory included.
        reads: By what was made of sizes and numbers alone, and then read by Python: the line that reads it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.largest = 0
        self.is_complex = False
        self.reads: dict[frozenset[Any], str] = {}
        self._of_sizes: dict[int, tuple[Any, frozenset[Any]]] = {}
        self._from_inputs: dict[int, Any] = {}
        self._shared: dict[int, Any] = {}
        self._refusal: RefusedModelError | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes a second."""
        return False

    def run(self, module: Any, inputs: Sequence[Tensor]) -> Any:
        """Run a module that has run on such inputs before; return what it gives, of `CapturedTensor`s.

        Raises:
            RefusedModelError: It decides by the value of a tensor, computes in bfloat16, or does something with a
                `CapturedTensor` that none can do.
        """
        values = [self.input(value.clone()) for value in inputs]
        try:
            with self._layers_as_one(module), self:
                found = run(module, values, doing="on `CapturedTensor`s")
        except RefusedModelError as exc:
            if self._refusal is not None:
                raise self._refusal from exc.__cause__
            if (cause := exc.__cause__) is None:
                raise
            raise RefusedModelError(
                f"The module does something with a tensor that cannot be followed: {first_line(cause)}"
                f"{place(traceback.extract_tb(cause.__traceback__))}.",
                fix="Write that part with operations of torch on tensors, so that it does the same for all values.",
            ) from cause
        if self._refusal is not None:  # the module has caught it
            raise self._refusal
        return found

    def input(self, value: Tensor) -> CapturedTensor:
        """Return an input of the run."""
        self._mark(value)
        return CapturedTensor(value, self)

    def depends(self, value: Tensor) -> bool:
        """Whether a tensor depends on the values of an input."""
        inner = value.inner if isinstance(value, CapturedTensor) else value
        return inner.untyped_storage()._cdata in self._from_inputs

    def read(self, value: CapturedTensor) -> Tensor:
        """Return the numbers to Python.

        Raises:
            RefusedModelError: They depend on an input.
        """
        if self.depends(value):
            raise self._refuse(
                f"The module decides by the value of a tensor{place(traceback.extract_stack())}; "
                "expected the same operations for every input.",
                fix="Use torch.where(condition, a, b), or torch.clamp, instead of `if`, `float()`, `.item()`; and "
                "masks of the full size instead of nonzero() and x[mask].",
            )
        if (made := self._made_of(value)) and made not in self.reads and _is_read_by_module(sys._getframe(1)):
            self.reads[made] = place(traceback.extract_stack()).strip(" ()")
        return value.inner

    def _made_of(self, value: Tensor) -> frozenset[Any]:
        """Return what makes a tensor of sizes and numbers alone; nothing: it is of another kind."""
        inner = value.inner if isinstance(value, CapturedTensor) else value
        return self._of_sizes.get(inner.untyped_storage()._cdata, (None, frozenset()))[1]

    def share(self, value: CapturedTensor) -> Tensor:
        """Return the numbers to Python, which may keep their memory.

        Raises:
            RefusedModelError: They depend on an input.
        """
        numbers = self.read(value)
        self._keep(self._shared, numbers)
        return numbers

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do an operation."""
        kwargs = kwargs or {}
        self.operations += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        depends = any(map(self.depends, _operands(func, args, given)))
        if func is not _NUMBERS:  # nothing else holds what it is given
            for value in given:
                if not isinstance(value, CapturedTensor):
                    self._keep(self._shared, value)
        if _decides(func):
            self._check(func, args, given)
        found = func(*plain(args), **plain(kwargs))
        self.is_complex |= any(value.is_complex() for value in _tensors_in(found))
        self.largest = max([self.largest, _scores(func, given), *(v.numel() for v in _tensors_in(found))])
        if depends:
            self._mark_all(func, args, kwargs, found)
        else:
            made_of = frozenset[Any]().union(*map(self._made_of, given))
            if named(func) in FILLS or not given or func is _NUMBERS:
                made_of |= {(func, str([_number(leaf) for leaf in tree_leaves((args, kwargs))]))}
            for value in _tensors_in(found) if made_of else []:
                memory = value.untyped_storage()
                self._of_sizes[memory._cdata] = memory, made_of | self._made_of(value)
        made = tree_map_only(Tensor, lambda value: CapturedTensor(value, self), found)
        return _with_arguments(func, args, kwargs, made) if func._schema.is_mutable else made

    # ---------------------------------------------------------------- within

    def _check(self, func: Any, args: Sequence[Any], given: Sequence[Tensor]) -> None:
        deciding = tree_leaves(args[_SHAPED_BY[func]]) if func in _SHAPED_BY else given
        if func is torch.ops.aten.index.Tensor:
            deciding = [one for one in deciding if isinstance(one, Tensor) and not _counts(one)]
        for one in deciding:
            if isinstance(one, CapturedTensor):
                self.read(one)
            elif isinstance(one, Tensor) and self.depends(one):
                self.read(CapturedTensor(one, self))

    def _mark_all(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any], found: Any) -> None:
        """Note that what an operation made, or wrote to, depends on an input."""
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                if value.dtype == torch.bfloat16:
                    raise self._refuse(
                        f"The module computes in bfloat16{place(traceback.extract_stack())}; expected float32.",
                        fix="Leave torch.autocast and casts to bfloat16 out of `forward`: onnxruntime has no such "
                        "kernels.",
                    )
                self._mark(value)
        for _, written in _written(func, args, kwargs):
            for value in tree_leaves(written):
                if not isinstance(value, Tensor):
                    continue
                inner = value.inner if isinstance(value, CapturedTensor) else value
                self._mark(inner)
                if inner.untyped_storage()._cdata in self._shared:
                    raise self._refuse(
                        f"The module writes what it computes into a tensor that it keeps"
                        f"{place(traceback.extract_stack())}; expected a tensor that `forward` makes.",
                        fix="Make the tensor in `forward`, torch.zeros(..), or take it as a state and return it.",
                    )

    def _mark(self, value: Tensor) -> None:
        self._keep(self._from_inputs, value)

    @staticmethod
    def _keep(group: dict[int, Any], value: Tensor) -> None:
        memory = value.untyped_storage()
        group[memory._cdata] = memory  # kept: another tensor would get the same address

    def _refuse(self, problem: str, *, fix: str) -> RefusedModelError:
        self._refusal = self._refusal or RefusedModelError(problem, fix=fix)
        return self._refusal

    @contextlib.contextmanager
    def _layers_as_one(self, module: Any) -> Iterator[None]:
        """Call recurrent layers of torch's own as one operation: they decide by no values."""
        own = {nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward}
        layers = (
            part
            for part in module.modules()
            if isinstance(part, nn.RNNBase) and type(part).forward in own and "forward" not in vars(part)
        )
        with patched(*((layer, "forward", partial(self._as_one, layer)) for layer in layers)):
            yield

    def _as_one(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        self.operations += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        with no_dispatch():
            found = type(layer).forward(layer, *plain(args), **plain(kwargs))
        if any(map(self.depends, given)):
            for value in _tensors_in(found):
                self._mark(value)
        return tree_map_only(Tensor, lambda value: CapturedTensor(value, self), found)


def _number(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.tolist() if value.numel() < _FEW and not isinstance(value, CapturedTensor) else value.shape


def _is_read_by_module(frame: Any) -> bool:
    """Whether the module's own code reads a tensor, and not a layer of torch's that it calls."""
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return user_frame(frame, within=("_tensor.py", "_jit_internal.py")) is not None


def _decides(func: Any) -> bool:
    """Whether Python may decide by what an operation gives, or by its shape."""
    return not _BY_VALUE.isdisjoint(func.tags) or (
        any(str(one.type) not in _TENSORS for one in func._schema.returns)
        and func.overloadpacket.__name__ not in _ABOUT_FORM
    )


def _tensors_in(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def _scores(func: Any, given: Sequence[Tensor]) -> int:
    """Return how many scores an operation of torch's for attention computes; 0: it is another one."""
    if "attention" not in named(func) or len(given) < 2 or given[1].dim() < 2:
        return 0
    return int(math.prod(given[0].shape[:-1]) * given[1].shape[-2])


def named(func: Any) -> str:
    """Return an operation's name, the same for its form in place."""
    return str(func.overloadpacket.__name__).removesuffix("_")


def _operands(func: Any, args: Sequence[Any], given: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the tensors whose numbers an operation computes with, or changes some of."""
    if named(func) not in FILLS:
        return given
    return [one for one in args[1:] if isinstance(one, Tensor)]  # a value to fill with


def plain(values: Any) -> Any:
    """Return the numbers of each `CapturedTensor` in any structure."""
    return tree_map_only(CapturedTensor, lambda value: value.inner, values)


def _counts(index: Tensor) -> bool:
    """Whether an index holds places, and is no mask."""
    return index.dtype not in {torch.bool, torch.uint8}


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the declaration of each argument that an operation writes to, and the argument."""
    if func._schema.is_mutable:
        for at, one in enumerate(func._schema.arguments):
            if one.alias_info is not None and one.alias_info.is_write:
                yield one, args[at] if at < len(args) else kwargs.get(one.name)


def _with_arguments(func: Any, args: Any, kwargs: dict[str, Any], found: Any) -> Any:
    """Return what an operation in place gives: the argument itself."""
    given = {name: value for one, value in _written(func, args, kwargs) for name in one.alias_info.before_set}
    if torch.Tag.inplace_view in func.tags:  # `squeeze_`: the form of the `CapturedTensor` changes, too
        with no_dispatch():
            before = torch._C._meta_in_tls_dispatch_include()
            torch._C._set_meta_in_tls_dispatch_include(True)
            try:
                func(*args, **kwargs)
            finally:
                torch._C._set_meta_in_tls_dispatch_include(before)
    parts = found if isinstance(found, tuple) else (found,)
    made = [
        given[next(iter(one.alias_info.before_set))] if one.alias_info is not None and one.alias_info.is_write else part
        for one, part in zip(func._schema.returns, parts, strict=False)
    ]
    return tuple(made) if isinstance(found, tuple) else made[0] if made else None
