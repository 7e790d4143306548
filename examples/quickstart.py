"""From Keras to a live service: export a model, serve it, send it one timestep at a time."""

import atexit
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import stepwell

layers = [keras.Input((None, 3)), keras.layers.LSTM(32, return_sequences=True), keras.layers.Dense(1, name="wear")]
model = keras.Sequential(layers)  # train it as you always do
stepwell.export(model, "models/pump.onnx")  # compared step by step with whole sequences, or not written

serve = [sys.executable, "-P", "-m", "stepwell", "serve", "--models", "models", "--port", "8001"]  # stepwell serve ..
service = subprocess.Popen(serve)
atexit.register(service.terminate)
stream = stepwell.Client("http://127.0.0.1:8001").model("pump").stream("pump-7")
stream.reset()

timesteps = np.random.default_rng(7).random((5, 3), np.float32)
served = [stream.step(timestep) for timestep in timesteps]
print([(answer.step, answer.output.item()) for answer in served])
print(model.predict(timesteps[None], verbose=0)[0])  # Keras on the whole sequence: the same numbers
