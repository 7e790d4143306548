"""The rules of ONNX operators: what each becomes in a step graph; `table.py` says which operator has which."""
