"""The rules of ONNX operators: what each becomes in a step graph; `table.py` lists which operator has which."""
