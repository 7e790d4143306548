"""From Keras to a live service: export a model, serve it, send it one timestep at a time."""

import atexit
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import httpx
import keras
import numpy as np

from model_export.export import export_source

layers = [keras.Input((None, 3)), keras.layers.LSTM(32, return_sequences=True), keras.layers.Dense(1, name="wear")]
model = keras.Sequential(layers)  # train it as you always do
Path("models").mkdir(exist_ok=True)
model.save("models/pump.keras")
export_source("models/pump.keras", Path("models/pump.onnx"))  # proves step by step == whole sequence, or writes nothing

service = subprocess.Popen([sys.executable, "-P", "-m", "service", "serve", "--models", "models"])  # stepwell serve
atexit.register(service.terminate)
http = httpx.Client(base_url="http://127.0.0.1:8000", transport=httpx.HTTPTransport(retries=9), timeout=60)
stream = "/v1/models/pump/streams/pump-7"
http.post(f"{stream}/reset")

timesteps = np.random.default_rng(7).random((5, 3), np.float32)
served = [http.post(f"{stream}/step", json={"inputs": timestep.tolist()}).json() for timestep in timesteps]
print([(answer["step"], answer["outputs"]["wear"]) for answer in served])
print(model.predict(timesteps[None], verbose=0)[0])  # Keras on the whole sequence: the same numbers
