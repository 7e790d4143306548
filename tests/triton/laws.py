"""What Triton's clients do alike over HTTP and over gRPC, each unmodified, against a running service."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell_export.runtime.manifest import Array
from tests.graphs import fold_reference, lstm
from tests.triton.offline import offline_predictions

VALUES = [0, 11, 7, 5, 3, 2, 0, 1]


def y_of(result: Any) -> int:
    return int(result.as_numpy("y")[0, 0])


class ClientLaws:
    """Tests of a client; those of one protocol inherit them, and have the client as the fixture `client`.

    Attributes:
        triton: The client's module.
        utils: The module of its errors and dtypes.
        forms: Arguments of inputs and outputs, for each form that tensors are sent in.
        statuses: How the protocol names "bad request" and "not found".
    """

    triton: Any
    utils: Any
    forms: tuple[dict[str, Any], ...] = ({},)
    statuses: tuple[str, str]

    def infer_input(self, name: str, array: Array, **form: Any) -> Any:
        one = self.triton.InferInput(name, list(array.shape), self.utils.np_to_triton_dtype(array.dtype))
        one.set_data_from_numpy(array, **form)
        return one

    def infer(
        self, client: Any, x: int, sequence: int | str, *, form: dict[str, Any] | None = None, **more: Any
    ) -> Any:
        """Send one timestep of `fold`."""
        form = form or {}
        outputs = [self.triton.InferRequestedOutput("y", **form)]
        one = self.infer_input("x", np.array([[x]], np.int64), **form)
        return client.infer("fold", [one], outputs=outputs, sequence_id=sequence, **more)

    @pytest.mark.parametrize("kind", ["number", "text", "UUID"])
    def test_interleaved_sequences_are_each_answered(self, client: Any, stream: str, kind: str) -> None:
        """As in Triton's example: two sequences, some values, start and end flags."""
        for at, form in enumerate(self.forms):
            number = int(stream[1:], 16) + 2 * at
            uuid = f"{stream[1:]}-07fc-42d2-ab16-033b1a566e{at}"
            ids: dict[str, tuple[int | str, int | str]] = {
                "number": (number, number + 1),
                "text": (f"{stream}-{at}", f"{stream}-{at}-b"),
                "UUID": (f"{uuid}a", f"{uuid}b"),
            }
            found: list[list[int]] = [[], []]
            for step, value in enumerate(VALUES):
                flags = {"sequence_start": step == 0, "sequence_end": step == len(VALUES) - 1}
                for one, sign in ((0, 1), (1, -1)):
                    found[one].append(y_of(self.infer(client, sign * value, ids[kind][one], form=form, **flags)))

            assert found == [fold_reference(VALUES), fold_reference([-value for value in VALUES])]

    def test_float_predictions_equal_those_of_onnxruntime(self, client: Any, stream: str) -> None:
        xs = np.random.default_rng(1).normal(size=(20, 4)).astype(np.float32)
        for form in self.forms:
            outputs = [self.triton.InferRequestedOutput("y", **form)]
            answers = [
                client.infer("lstm", [self.infer_input("x", x[None], **form)], outputs=outputs, sequence_id=stream,
                             sequence_start=at == 0, sequence_end=at == 19).as_numpy("y")[0]
                for at, x in enumerate(xs)
            ]  # fmt: skip

            np.testing.assert_array_equal(answers, offline_predictions(lstm, xs))

    def test_several_tensors_of_several_dtypes_can_be_sent(self, client: Any, stream: str) -> None:
        a, b = np.array([[1, 2**60]], np.int64), np.array([3], np.int32)
        given = [self.infer_input("b", b, **self.forms[0]), self.infer_input("a", a)]
        result = client.infer("two_inputs", given, sequence_id=stream, sequence_start=True)
        flags = [self.infer_input("x", np.array([[True, False]]))]
        truths = client.infer("latch", flags, sequence_id=stream, sequence_start=True).as_numpy("y")

        assert result.as_numpy("total").tolist() == [[4, 2**60 + 3]]
        assert result.as_numpy("last").dtype == np.int32
        assert (truths.dtype, truths.tolist()) == (np.bool_, [[True, False]])

    def test_a_stateless_model_accepts_batches_without_a_sequence(self, client: Any) -> None:
        x = np.arange(20, dtype=np.float32).reshape(10, 2)

        assert client.infer("stateless", [self.infer_input("x", x)]).as_numpy("y").tolist() == (2 * x).tolist()

    def is_replayed(self, result: Any) -> bool:
        raise NotImplementedError

    def test_a_retry_with_its_step_is_applied_once(self, client: Any, stream: str) -> None:
        self.infer(client, 1, stream, sequence_start=True)
        found = [self.infer(client, 2, stream, parameters={"step": 2}) for _ in range(2)]

        assert [y_of(one) for one in found] == [fold_reference([1, 2])[1]] * 2
        assert [self.is_replayed(one) for one in found] == [False, True]

    @pytest.mark.parametrize(
        ("more", "status", "words"),
        [
            ({}, 0, "inference request for sequence {} to model 'fold' must specify the START flag on the first"),
            ({"parameters": {"step": 7}, "sequence_start": True}, 0, "'step' is 7 with 'sequence_start'"),
            ({"model_version": "9"}, 1, "Request for unknown model: 'fold' version 9 is not found"),
            ({"sequence": 0, "sequence_start": True}, 0, "must specify a non-zero or non-empty correlation ID"),
        ],
    )
    def test_a_rejection_is_an_exception_with_tritons_status(
        self, client: Any, stream: str, more: dict[str, Any], status: int, words: str
    ) -> None:
        with pytest.raises(self.utils.InferenceServerException) as refused:
            self.infer(client, 1, **{"sequence": stream, **more})

        assert refused.value.status() == self.statuses[status]
        assert words.format(stream) in refused.value.message()
