// A microphone, or a recording, without its noise: 8 ms of sound at a time over the feed, and back into Web Audio.
import { Client } from "/client/index.js";
import { showSpectrogram } from "./spectrogram.js";

const service = new URLSearchParams(location.search).get("service") ?? "127.0.0.1:8000";
class ToService extends WebSocket { // what is no WebSocket goes through the server of this page
  constructor(url, protocols) { super(url.replace(location.host, service), protocols); }
}
const feed = new Client(location.origin, { WebSocket: ToService }).model("dtln").feed();
const stream = `page-${crypto.randomUUID()}`;
const $ = (id) => document.getElementById(id);
/** What was computed: {before, after, ms} of each timestep, 128 samples from -1 to 1. */
export const timesteps = [];
/** Play a source of sound, each of its timesteps by way of the service. */
export async function play(makeSource) {
  const audio = new AudioContext({ sampleRate: 16_000 });
  await audio.audioWorklet.addModule("worklet.js");
  const [source, node] = [await makeSource(audio), new AudioWorkletNode(audio, "by-way-of-the-service")];
  const shown = { before: audio.createAnalyser(), after: audio.createAnalyser() };
  source.connect(shown.before);
  source.connect(node).connect(shown.after).connect(audio.destination);
  node.port.onmessage = async ({ data: before }) => {
    const start = performance.now();
    const after = Float32Array.from((await feed.step(stream, before)).outputs.samples);
    timesteps.push({ before, after, ms: performance.now() - start });
    node.port.postMessage({ after, heard: document.querySelector("input[name=heard]:checked").value });
    const most = Math.max(...timesteps.slice(-100).map((timestep) => timestep.ms)).toFixed(1);
    $("state").textContent = `Timestep ${timesteps.length}: 8 ms of sound take ${most} ms at most; ${feed.waiting} wait.`;
  };
  for (const [name, analyser] of Object.entries(shown)) showSpectrogram($(name), analyser);
  source.start?.();
}
const fail = (error) => ($("state").textContent = error.message);
const raw = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
const listen = async (audio) => audio.createMediaStreamSource(await navigator.mediaDevices.getUserMedia({ audio: raw }));
const read = async (audio) => new AudioBufferSourceNode(audio, {
  buffer: await audio.decodeAudioData(await $("recording").files[0].arrayBuffer()),
});
$("microphone").onclick = () => play(listen).catch(fail);
$("recording").onchange = () => play(read).catch(fail);
