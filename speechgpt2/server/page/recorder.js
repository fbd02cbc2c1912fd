// The audio of a talk: both sides, mixed in time and compressed by the browser while they come. An hour takes some 15 MB.

export class TalkRecorder {
  static supported() { return "MediaRecorder" in window && "AudioWorkletNode" in window; }

  // `context` has the worklet's modules, `speaker` is the node that plays the responses.
  constructor(context, speaker) {
    this.mix = context.createMediaStreamDestination();
    // Blocks of the microphone pass through a player, because its own stream may have another sampling rate.
    this.microphone = new AudioWorkletNode(context, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    for (const node of [speaker, this.microphone]) node.connect(this.mix);
    this.restart();
  }

  restart() { // without what was recorded
    if (this.recorder) {
      this.recorder.ondataavailable = null;
      this.recorder.stop();
    }
    const chunks = this.chunks = [];
    this.recorder = new MediaRecorder(this.mix.stream, { audioBitsPerSecond: 32_000 });
    this.recorder.ondataavailable = ({ data }) => { if (data.size) chunks.push(data); };
    this.recorder.start();
    this.recorder.pause();
  }

  // Silence between two turns is left out, unless the microphone is on.
  setActive(active) {
    if (active && this.recorder.state === "paused") this.recorder.resume();
    if (!active && this.recorder.state === "recording") this.recorder.pause();
  }

  addMicrophone(pcm) { // PCM16
    const samples = Float32Array.from(new Int16Array(pcm), (value) => value / 32768);
    this.microphone.port.postMessage({ type: "push", item: "microphone", samples }, [samples.buffer]);
  }

  // Returns a file with what was recorded so far, or null.
  async file() {
    const written = new Promise((resolve) => this.recorder.addEventListener("dataavailable", resolve, { once: true }));
    this.recorder.requestData();
    await written;
    const type = this.recorder.mimeType, extension = type.includes("mp4") ? "m4a" : "webm";
    return this.chunks.length ? new File(this.chunks, `talk.${extension}`, { type }) : null;
  }
}
