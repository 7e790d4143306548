"""Several exports at once, beside training: what torch has once in a process is changed by one export at a time."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from stepwell_export.torch import convert
from stepwell_export.torch.attention import attention_written_out
from stepwell_export.torch.graph import quiet
from tests.model_export.torch.zoo_parts import nn, of, torch, whole

pytestmark = pytest.mark.torch


def attending(seed: int) -> Any:
    def run(m: Any, x: Any) -> Any:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return m.attend(m.rnn(x)[0], x, x, attn_mask=mask, need_weights=False)[0]

    parts = {"rnn": nn.GRU(4, 4, batch_first=True), "attend": nn.MultiheadAttention(4, 2, batch_first=True)}
    return replace(whole(of(run, **parts)), length=16 + seed)


def process_wide() -> list[Any]:
    return [
        sys.stdout, sys.stderr, nn.MultiheadAttention.forward, nn.modules.transformer._detect_is_causal_mask,
        torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled(), torch._C._jit_set_onnx_log_enabled,
    ]  # fmt: skip


def test_three_exports_at_once_all_succeed_and_leave_torch_as_it_was() -> None:
    before = process_wide()

    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda seed: convert(attending(seed), name="attending"), range(6)))

    assert [len(one.manifest.outputs) for one in made] == [1] * 6
    assert process_wide() == before


def beside(work: Any) -> Any:
    """Return what another thread's work gives."""
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.append(work()))
    other.start()
    other.join()
    return found[0]


def test_attention_in_another_thread_keeps_its_dropout_while_one_is_traced() -> None:
    layer = nn.MultiheadAttention(4, 2, dropout=0.9, batch_first=True).train()
    x = torch.randn(1, 5, 4)

    def differs() -> bool:
        return not torch.equal(layer(x, x, x)[0], layer(x, x, x)[0])

    with attention_written_out():
        assert beside(differs)


def test_what_another_thread_prints_while_one_is_traced_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet():
        beside(lambda: print("epoch 3"))  # noqa: T201  # as the training beside the export does
        print("exporting")  # noqa: T201  # as torch's exporter does

    assert capsys.readouterr().out == "epoch 3\n"


def test_an_encoder_is_compared_as_eager_torch_runs_it() -> None:
    """In evaluation mode its layers are one operator, which gives zeros at timesteps that are padding."""

    def run(m: Any, x: Any) -> Any:
        seen.append(torch.backends.mha.get_fastpath_enabled())
        return m.head(x)

    seen: list[bool] = []
    made = convert(whole(of(run, head=nn.Linear(4, 2))), name="eager")
    seen.clear()
    made.original({"x": torch.randn(2, 5, 4).numpy()})

    assert seen == [True]
