"""A step graph beside its original: in a thread of its own, which ends where the original fails."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from stepwell_export.runtime.errors import ModelLoadError, ModelTimeoutError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.runners import Beside
from tests import graphs


@pytest.mark.parametrize("in_thread", [True, False])
def test_the_step_graph_runs_in_a_thread_or_when_its_results_are_needed(in_thread: bool) -> None:
    def load() -> StepModel:
        loaded_in.append(threading.get_ident())
        return StepModel(*graphs.total())

    loaded_in = list[int]()
    beside = Beside(load, in_thread=in_thread)
    runs = [beside.start(lambda _: threading.get_ident()) for _ in range(2)]
    with beside:
        ran_in = [run() for run in runs]

    assert loaded_in + ran_in == [ran_in[0]] * 3, "it is loaded once, where it runs"
    assert (ran_in[0] != threading.get_ident()) == in_thread


def test_runs_end_and_others_do_not_begin_where_the_original_fails() -> None:
    model, begun, others = StepModel(*graphs.total()), threading.Event(), list[int]()

    def endless(model: StepModel) -> None:
        states = model.initial_states(1)
        while True:
            _, states = model.step({"x": np.zeros((1, 2), np.float32)}, states)
            begun.set()

    runs = []

    def fail() -> None:
        beside = Beside(lambda: model, in_thread=True)
        runs.append(beside.start(endless))
        beside.start(lambda _: others.append(1))
        with beside:
            assert begun.wait(60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(ModelTimeoutError):
        runs[0]()
    assert others == []


def test_what_ends_the_caller_is_raised_though_the_step_graph_cannot_be_loaded() -> None:
    """As with Ctrl-C while a file is loaded that turns out to be none."""
    is_loading, may_fail = threading.Event(), threading.Event()

    def load() -> StepModel:
        is_loading.set()
        assert may_fail.wait(60)
        raise ModelLoadError("It is no model.")

    beside = Beside(load, in_thread=True)
    for _ in range(50_000):  # so that the thread is alive for a while after it has failed
        beside.start(lambda _: None)

    def interrupted() -> None:
        with beside:
            assert is_loading.wait(60)
            may_fail.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
