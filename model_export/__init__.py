"""Stepwell's exporter: from a trained recurrent model to one verified ONNX step graph."""
