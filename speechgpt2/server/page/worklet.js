// Audio input and output on the audio thread. `CaptureProcessor` converts the microphone's audio to blocks of 20 ms,
// 24 kHz PCM16. `PlayerProcessor` plays chunks that arrive unevenly, and stops within one render quantum (2.7 ms).

const RATE = 24000;
const BLOCK = 480; // samples of 20 ms
const TAPS = 63; // of the low-pass filter before downsampling

class CaptureProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE; // input samples per output sample
    this.taps = lowPass(Math.min(0.5, 0.46 / this.step));
    this.past = new Float32Array(TAPS - 1);
    this.position = 0; // of the next output sample, in filtered input samples
    this.last = 0; // the filtered sample before position 0
    this.block = new Int16Array(BLOCK);
    this.filled = 0;
    this.energy = 0;
    this.muted = false;
    this.port.onmessage = ({ data }) => { this.muted = data.muted; };
  }

  process(inputs) {
    const input = inputs[0][0];
    if (!input) return true;
    const samples = this.step === 1 ? input : this.filter(input);
    if (this.step === 1) {
      for (const sample of samples) this.push(sample);
      return true;
    }
    for (; this.position < samples.length; this.position += this.step) {
      const at = Math.floor(this.position), part = this.position - at;
      const before = at ? samples[at - 1] : this.last;
      this.push(before + part * (samples[at] - before));
    }
    this.position -= samples.length;
    this.last = samples[samples.length - 1];
    return true;
  }

  filter(input) {
    const line = new Float32Array(TAPS - 1 + input.length);
    line.set(this.past);
    line.set(input, TAPS - 1);
    this.past = line.slice(input.length);
    const output = new Float32Array(input.length);
    for (let i = 0; i < input.length; i++) {
      let sum = 0;
      for (let k = 0; k < TAPS; k++) sum += line[i + k] * this.taps[k];
      output[i] = sum;
    }
    return output;
  }

  push(sample) {
    const value = this.muted ? 0 : Math.max(-1, Math.min(1, sample));
    this.energy += value * value;
    this.block[this.filled++] = Math.round(value * 32767);
    if (this.filled < BLOCK) return;
    this.port.postMessage({ pcm: this.block.buffer, level: Math.sqrt(this.energy / BLOCK) }, [this.block.buffer]);
    this.block = new Int16Array(BLOCK);
    this.filled = this.energy = 0;
  }
}

// Returns a windowed-sinc low-pass filter; `cutoff` in cycles per sample.
function lowPass(cutoff) {
  const taps = new Float32Array(TAPS), middle = (TAPS - 1) / 2;
  let sum = 0;
  for (let i = 0; i < TAPS; i++) {
    const x = i - middle, window = 0.54 + 0.46 * Math.cos((Math.PI * x) / middle);
    taps[i] = window * (x ? Math.sin(2 * Math.PI * cutoff * x) / (Math.PI * x) : 2 * cutoff);
    sum += taps[i];
  }
  return taps.map((tap) => tap / sum);
}

// Chunks are queued by item (the message they belong to). Playback starts when `BUFFER` samples are queued or the item is
// complete. An item that runs dry starts again by the same rule, and counts as an underrun.
const BUFFER = 0.1 * RATE;
const FADE = 64; // samples; avoids a click when playback is cut off

class PlayerProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.queue = []; // { item, samples, at }
    this.queued = 0;
    this.item = null; // the item that plays
    this.played = 0; // samples of it played
    this.complete = false; // whether all of it is queued
    this.running = false;
    this.underruns = 0;
    this.lastSample = 0; // the last sample played, from which a flush fades out
    this.fade = 0;
    this.reported = 0;
    this.port.onmessage = ({ data }) => {
      if (data.type === "push") this.push(data);
      else if (data.type === "complete") this.markComplete(data);
      else if (data.type === "flush") this.flush();
    };
  }

  push({ item, samples }) {
    if (item !== this.item) {
      this.item = item;
      this.played = 0;
      this.complete = false;
    }
    this.queue.push({ item, samples, at: 0 });
    this.queued += samples.length;
  }

  markComplete({ item }) {
    if (item !== this.item) return;
    this.complete = true;
    if (!this.queued && !this.running) this.port.postMessage({ type: "ended", item, played: this.played });
  }

  flush() {
    const cut = this.queued || !this.complete; // an item that was played to its end is not cut
    this.port.postMessage({ type: "flushed", item: cut ? this.item : null, played: this.played });
    this.queue = [];
    this.queued = 0;
    this.running = false;
    this.item = null;
    this.fade = FADE;
  }

  process(_, outputs) {
    const output = outputs[0][0];
    if (!this.running && this.queued && (this.complete || this.queued >= BUFFER)) {
      this.running = true;
      if (!this.played) this.port.postMessage({ type: "started", item: this.item });
    }
    let filled = this.running ? this.take(output) : 0;
    for (; filled < output.length && this.fade; filled++) output[filled] = this.lastSample * (--this.fade / FADE);
    if (this.running && !this.queued) this.runDry();
    this.report(output);
    return true;
  }

  take(output) {
    let filled = 0;
    while (filled < output.length && this.queue.length) {
      const head = this.queue[0], count = Math.min(output.length - filled, head.samples.length - head.at);
      output.set(head.samples.subarray(head.at, head.at + count), filled);
      filled += count;
      head.at += count;
      if (head.at === head.samples.length) this.queue.shift();
    }
    this.queued -= filled;
    this.played += filled;
    if (filled) this.lastSample = output[filled - 1];
    return filled;
  }

  runDry() {
    this.running = false;
    this.fade = FADE;
    if (this.complete) this.port.postMessage({ type: "ended", item: this.item, played: this.played });
    else this.underruns++;
  }

  report(output) {
    this.reported += output.length;
    if (this.reported < RATE / 25) return;
    this.reported = 0;
    let energy = 0;
    for (const sample of output) energy += sample * sample;
    const level = Math.sqrt(energy / output.length);
    this.port.postMessage({ type: "level", level, item: this.item, played: this.played, underruns: this.underruns });
  }
}

registerProcessor("capture", CaptureProcessor);
registerProcessor("player", PlayerProcessor);
