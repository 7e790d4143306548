"""Whatever way Python takes to a value that depends on an input, it is refused with the line; constants may be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.torch import convert
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

pytestmark = pytest.mark.torch


def by_a_write(m: Any, x: Any) -> Any:
    highest = torch.zeros(1)
    highest[0] = x.max()
    return bool(highest > 8)


def by_an_older_view(m: Any, x: Any) -> Any:
    highest = torch.zeros(2)
    first = highest[:1]
    highest.copy_(x.max().expand(2))
    return bool(first > 8)


def by_an_older_array(m: Any, x: Any) -> Any:
    highest = torch.zeros(1)
    seen = highest.numpy()
    highest[0] = x.max()
    return bool(seen[0] > 8)


def by_a_tensor_that_is_kept(m: Any, x: Any) -> Any:
    m.kept[0] = x.max()
    return bool(m.kept.tolist()[0] > 8)


def by_another_exception(m: Any, x: Any) -> Any:
    try:
        return bool(x.max() > 8)
    except Exception:  # noqa: BLE001  # as the module under test does it
        return False


def scripted(x: torch.Tensor) -> torch.Tensor:
    if bool(x.max() > 8):
        return x * 0
    return x


BY_VALUE: dict[str, Callable[[Any, Any], Any]] = {
    "any": lambda m, x: bool(x.max() > 8),
    "equal": lambda m, x: not torch.equal(x, x.clamp(max=8.0)),
    "allclose": lambda m, x: not torch.allclose(x, x.clamp(max=8.0)),
    "is_nonzero": lambda m, x: torch.is_nonzero((x > 8).sum()),
    "array": lambda m, x: bool(np.asarray(x).max() > 8),
    "numpy": lambda m, x: bool(x.numpy().max() > 8),
    "list": lambda m, x: max(x.flatten().tolist()) > 8,
    "format": lambda m, x: not f"{(x > 8).sum()}".startswith("0"),
    "text": lambda m, x: "True" in str((x > 8).any()),
    "nonzero": lambda m, x: len(torch.nonzero(x > 8)) > 0,
    "a_mask": lambda m, x: x[x > 8].numel() > 0,
    "where": lambda m, x: len(torch.where(x > 8)[0]) > 0,
    "unique": lambda m, x: len(torch.unique((x > 8).long())) > 1,
    "the_data": lambda m, x: bool(x.data.max() > 8),
    "dlpack": lambda m, x: bool(torch.from_dlpack(x).max() > 8),
    "the_capsule": lambda m, x: bool(torch.from_dlpack(torch.utils.dlpack.to_dlpack(x)).max() > 8),
    "memory": lambda m, x: max(x.untyped_storage().tolist()) > 250,
    "a_count": lambda m, x: range(5)[int((x > 8).sum()) % 5] > 0,
    "a_write": by_a_write,
    "an_older_view": by_an_older_view,
    "an_older_array": by_an_older_array,
    "a_tensor_that_is_kept": by_a_tensor_that_is_kept,
    "another_exception": by_another_exception,
}


def branching(name: str) -> Callable[..., Any]:
    def run(m: Any, x: Any) -> Any:
        h = m.rnn(x)[0]
        return h * 0 if BY_VALUE[name](m, x) else h

    return run


def parts() -> dict[str, Any]:
    return {"rnn": nn.GRU(4, 4, batch_first=True), "kept": torch.zeros(1)}


def refusal(spec: StepSpec) -> RefusedModelError:
    with pytest.raises(RefusedModelError) as caught:
        convert(spec, name="decides")
    return caught.value


@pytest.mark.parametrize("name", BY_VALUE)
def test_a_decision_by_a_value_is_refused_with_its_line(name: str) -> None:
    refused = refusal(whole(of(branching(name), **parts())))

    assert "test_capture.py, line " in refused.problem


def test_a_decision_in_a_scripted_function_is_refused() -> None:
    run = torch.jit.script(scripted)
    refused = refusal(whole(of(lambda m, x: m.rnn(run(x))[0], **parts())))

    assert "decides by the value of a tensor (test_capture.py, line " in refused.problem


@pytest.mark.parametrize("name", ["any", "numpy", "a_tensor_that_is_kept"])
def test_a_decision_of_a_module_with_its_states_is_refused_with_its_line(name: str) -> None:
    def run(m: Any, x: Any, h: Any) -> Any:
        return (x * 0 if BY_VALUE[name](m, h) else x), h + x

    spec = StepSpec(of(run, **parts()), inputs={"x": torch.randn(2, 4)}, states={"h": torch.zeros(1, 4)})
    refused = refusal(spec)

    assert "test_capture.py, line " in refused.problem


def reads_weights(m: Any, x: Any) -> Any:
    gain = m.gain.item() if float(m.gain.sum()) > 0 else 1.0
    return m.rnn(x * gain)[0]


def reads_its_table(m: Any, x: Any) -> Any:
    first, second = m.table.tolist()
    return m.rnn(x)[0] * first + second


def reads_what_it_makes(m: Any, x: Any) -> Any:
    weights = torch.ones(4) * 0.5
    weights[0] = 2.0
    return m.rnn(x * weights)[0] * float(weights.max()) * float(weights.numpy().max())


def reads_sizes(m: Any, x: Any) -> Any:
    return m.rnn(x)[0].reshape(x.shape[0], -1, len(m.table), 2).flatten(2)


def changes_in_place(m: Any, x: Any) -> Any:
    h = m.rnn(x)[0].unsqueeze_(-1).mul_(2.0).squeeze_(-1)
    h.clamp_(max=1.0)
    return h.where(h > -0.5, torch.zeros(1))


def masks(m: Any, x: Any) -> Any:
    return torch.masked_fill(m.rnn(x)[0][..., m.table > 0], x[..., :2] > 1, 0.0)


ACCEPTED = [reads_weights, reads_its_table, reads_what_it_makes, reads_sizes, changes_in_place, masks]


@pytest.mark.parametrize("run", ACCEPTED)
def test_what_follows_from_weights_and_sizes_alone_may_be_read(run: Any) -> None:
    more = {"gain": nn.Parameter(torch.tensor([1.5])), "table": torch.tensor([1.0, 2.0])}
    if run is masks:
        more["table"] = torch.tensor([1.0, -1.0, 1.0, -1.0])
    made = convert(whole(of(run, **(parts() | more))), name="constant")

    assert not verify_model(made, long_steps=0)[1].weak
