// Sends each 128 samples to the page, and plays what comes back for them, or themselves, 64 ms later.
registerProcessor("by-way-of-the-service", class extends AudioWorkletProcessor {
  sent = [];
  back = [];
  isPlaying = false;

  constructor() {
    super();
    this.port.onmessage = ({ data }) => this.back.push({ before: this.sent.shift(), ...data });
  }

  process([[samples]], [[played]]) {
    if (samples) {
      this.sent.push(samples.slice());
      this.port.postMessage(samples.slice());
    }
    this.isPlaying = this.back.length > (this.isPlaying ? 0 : 8);
    if (this.isPlaying) {
      const timestep = this.back.shift();
      played.set(timestep[timestep.heard]);
    }
    return true;
  }
});
