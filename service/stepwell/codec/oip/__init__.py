"""The Open Inference Protocol, version 2, with its binary tensors and Triton's sequences: the codec."""

from stepwell.codec.oip.errors import TritonError, missing_start_flag, quote, unknown_model
from stepwell.codec.oip.infer import InferCodec, InferRequest
from stepwell.codec.oip.tensors import DATATYPES

__all__ = [
    "DATATYPES",
    "InferCodec",
    "InferRequest",
    "TritonError",
    "missing_start_flag",
    "quote",
    "unknown_model",
]
