"""The Open Inference Protocol, version 2, with its binary tensors and Triton's sequences: bytes to arrays and back."""

from service.wire.oip.describe import config_of, metadata_of
from service.wire.oip.infer import Inference, InferWire
from service.wire.oip.tensors import DATATYPES
from service.wire.oip.words import PlainError, must_start, quoted, unknown_model

__all__ = [
    "DATATYPES",
    "InferWire",
    "Inference",
    "PlainError",
    "config_of",
    "metadata_of",
    "must_start",
    "quoted",
    "unknown_model",
]
