"""ONNX graphs: reading, building and following them, and the tables of their operators; all front ends use it."""
