// One stream of a voice detector, which moves between this browser and the service while it runs.
import { Client } from "/client/index.js";
import { LocalModel, LocalStream } from "/client/local.js";
import * as ort from "/ort/ort.wasm.min.mjs";

const NAME = new URLSearchParams(location.search).get("model") ?? "voice";
const RATE = 16_000;
const PLACES = { browser: "in this browser", server: "on the server" };
const $ = (id) => document.getElementById(id);

/** What was computed: {step, place, ms, loud, speech} of each timestep. */
export const timesteps = [];

ort.env.wasm.wasmPaths = "/ort/";
ort.env.wasm.numThreads = 1;
const file = `/models/${NAME}.onnx`;
const model = await LocalModel.load(file, { ort });
const [input] = model.inputs;
const FRAME = input.shape[0];
const there = new Client(location.origin).model(NAME).stream(`page-${crypto.randomUUID()}`);
let here = model.stream();
let place = "browser";

/** Move the stream to where it is to run: its state is one text, and its next timestep is computed from it. */
async function moveTo(wanted) {
  if (wanted === place) return;
  if (wanted === "server") await here.moveTo(there);
  else here = await LocalStream.from(model, there);
  place = wanted;
}

/** Run the samples of a recording, floats from -1 to 1, at the pace at which they were recorded. */
export async function run(samples) {
  const began = performance.now();
  for (let at = 0; at + FRAME <= samples.length; at += FRAME) {
    await new Promise((done) => setTimeout(done, began + (1000 * at) / RATE - performance.now()));
    await moveTo(document.querySelector("input[name=place]:checked").value);
    const frame = samples.subarray(at, at + FRAME);
    const values = input.dtype === "int16" ? Int16Array.from(frame, (x) => Math.min(32_767, Math.round(32_768 * x))) : frame;
    const start = performance.now();
    const { outputs, step } = await (place === "browser" ? here : there).step(values);
    const ms = performance.now() - start;
    const [speech] = Object.values(outputs)[0];
    timesteps.push({ step, place, ms, loud: Math.max(...frame.map(Math.abs)), speech });
    show();
  }
}

function show() {
  const { step, speech } = timesteps.at(-1);
  const times = Object.entries(PLACES).flatMap(([one, words]) => {
    const ms = timesteps.filter((timestep) => timestep.place === one).map((timestep) => timestep.ms).sort((a, b) => a - b);
    const share = (part) => ms[Math.floor(part * (ms.length - 1))].toFixed(1);
    return ms.length ? [`${words} ${share(0.5)} ms (95 %: ${share(0.95)} ms)`] : [];
  });
  $("state").textContent = `Timestep ${step}, ${PLACES[place]}: speech ${speech.toFixed(2)}. ${(1000 * FRAME) / RATE} ms of sound take ${times.join(", ")}.`;
  const canvas = $("chart");
  const context = canvas.getContext("2d");
  const [width, height, columns] = [canvas.width, canvas.height, Math.max(200, timesteps.length)];
  context.clearRect(0, 0, width, height);
  const colour = (one) => getComputedStyle(document.body).getPropertyValue(`--${one}`);
  timesteps.forEach(({ place: one, loud, speech: value }, i) => {
    const [x, wide] = [(i * width) / columns, Math.max(1, width / columns)];
    context.fillStyle = "#8886";
    context.fillRect(x, height * (1 - loud), wide, height * loud);
    context.fillStyle = colour(one);
    context.fillRect(x, (height - 4) * (1 - value), wide, 4);
  });
}

$("recording").addEventListener("change", async () => {
  const [recording] = $("recording").files;
  const sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await recording.arrayBuffer());
  $("recording").disabled = true;
  await run(sound.getChannelData(0)).catch((error) => ($("state").textContent = error.message));
  $("recording").disabled = false;
});

const size = async (path) => ((await (await fetch(path)).arrayBuffer()).byteLength / 1e6).toFixed(1);
$("sizes").textContent = `Graph: ${await size(file)} MB; onnxruntime-web: ${await size("/ort/ort-wasm-simd-threaded.wasm")} MB.`;
$("state").textContent = "Choose a recording.";
