"""What serving needs of a model file besides its manifest: sessions, layouts, checks; no onnx package."""
