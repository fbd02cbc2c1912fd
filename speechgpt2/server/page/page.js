// The page: voice and text chat over one OpenAI Realtime WebSocket.
//
//   AudioIO              microphone → blocks of 20 ms; responses → speaker, with an exact count of played samples
//   RealtimeConnection   the WebSocket
//   TranscriptView       the turns on the page
//
// Barge-in: the server sends `speech_started` → playback stops within milliseconds → the page reports how many
// milliseconds of the response were played (`conversation.item.truncate`).

const RATE = 24000;
const $ = (id) => document.getElementById(id);

class AudioIO {
  constructor({ onMicrophoneBlock, onPlayerMessage }) {
    Object.assign(this, { onMicrophoneBlock, onPlayerMessage });
    this.played = { item: null, samples: 0 };
  }

  async open() { // must follow a click: browsers play audio only after one
    if (this.outputContext) return this.outputContext.resume();
    this.outputContext = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await this.outputContext.audioWorklet.addModule("worklet.js");
    this.player = new AudioWorkletNode(this.outputContext, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.player.port.onmessage = ({ data }) => this.onPlayerMessage(data);
    this.player.connect(this.outputContext.destination);
  }

  async startMicrophone() {
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    this.inputContext = new AudioContext({ latencyHint: "interactive" });
    await this.inputContext.audioWorklet.addModule("worklet.js");
    const capture = new AudioWorkletNode(this.inputContext, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => this.onMicrophoneBlock(data);
    this.inputContext.createMediaStreamSource(this.stream).connect(capture);
  }

  stopMicrophone() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.inputContext?.close();
    this.stream = this.inputContext = null;
  }

  play(item, samples) {
    this.player?.port.postMessage({ type: "push", item, samples }, [samples.buffer]);
  }

  markComplete(item) { this.player?.port.postMessage({ type: "complete", item }); }

  flush() { this.player?.port.postMessage({ type: "flush" }); }

  // The user hears audio a little after it has left the worklet.
  playedMilliseconds(samples) {
    const latency = (this.outputContext.outputLatency || this.outputContext.baseLatency || 0) * 1000;
    return Math.max(0, Math.round((samples / RATE) * 1000 - latency));
  }
}

class RealtimeConnection {
  constructor(handlers) {
    this.handlers = handlers;
    this.socket = null;
  }

  get open() { return this.socket?.readyState === WebSocket.OPEN; }

  connect(model, key) {
    const url = new URL(`v1/realtime?model=${encodeURIComponent(model)}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    return new Promise((resolve, reject) => {
      this.socket = new WebSocket(url, protocols);
      this.socket.onmessage = ({ data }) => {
        const event = JSON.parse(data);
        if (event.type === "session.created") resolve(event);
        this.handlers[event.type]?.(event);
      };
      this.socket.onclose = ({ code, reason }) => {
        reject(new Error(reason || "the server rejected the session: it may be full, or need another API key"));
        this.handlers.closed({ code, reason });
      };
    });
  }

  send(event) { if (this.open) this.socket.send(JSON.stringify(event)); }

  close() { this.socket?.close(1000); }
}

class TranscriptView {
  constructor(root) { Object.assign(this, { root, byItem: new Map() }); }

  getTurn(item, role) {
    if (this.byItem.has(item)) return this.byItem.get(item);
    $("hint").hidden = true;
    const turn = document.createElement("div");
    turn.className = `turn ${role}`;
    turn.dataset.item = item;
    turn.append(document.createElement("span"));
    this.byItem.set(item, turn);
    this.add(turn);
    return turn;
  }

  add(element) {
    const atEnd = this.root.scrollHeight - this.root.scrollTop - this.root.clientHeight < 80;
    this.root.append(element);
    if (atEnd) element.scrollIntoView({ block: "end" });
  }

  setText(item, role, text, { append = false, pending = false } = {}) {
    const turn = this.getTurn(item, role), span = turn.firstChild;
    span.textContent = append ? span.textContent + text : text;
    turn.classList.toggle("pending", pending);
    turn.scrollIntoView({ block: "end" });
  }

  addRemark(item, text) {
    const turn = this.byItem.get(item);
    if (!turn || turn.querySelector("small")) return;
    const small = document.createElement("small");
    small.textContent = text;
    turn.append(small);
  }

  remove(item) {
    this.byItem.get(item)?.remove();
    this.byItem.delete(item);
  }

  addNote(text, isError = false) {
    const note = document.createElement("p");
    note.className = isError ? "note error" : "note";
    note.textContent = text;
    this.add(note);
  }

  clear() {
    this.byItem.clear();
    this.root.querySelectorAll(".turn, .note").forEach((element) => element.remove());
    $("hint").hidden = false;
  }
}

// base64 ⇄ samples

function toBase64(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
}

function toSamples(base64) {
  const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
  return Float32Array.from(new Int16Array(bytes.buffer), (value) => value / 32768);
}

// State and events

const view = new TranscriptView($("transcript"));
let config = { model: "", voices: [], styles: [], needs_key: false };
let listening = false, responseId = null, playing = false, flushCallbacks = [];
let sent = { milliseconds: 0, at: 0 }; // microphone audio sent, and when the latest block was recorded
let turnEnded = null, speechEnded = null; // times of performance.now()

const audio = new AudioIO({
  onMicrophoneBlock({ pcm, level }) {
    showLevel(level);
    sent = { milliseconds: sent.milliseconds + 20, at: performance.now() };
    connection.send({ type: "input_audio_buffer.append", audio: toBase64(new Uint8Array(pcm)) });
  },
  onPlayerMessage(data) {
    if (data.type === "started" && !data.item.startsWith("greeting")) showLatency();
    if (data.type === "started") setPlaying(true);
    if (data.type === "ended") setPlaying(false);
    if (data.type === "flushed") {
      setPlaying(false);
      flushCallbacks.shift()?.(data);
    }
    if (data.type === "level") {
      if (playing) showLevel(data.level);
      $("underruns").textContent = data.underruns ? `${data.underruns} underruns` : "";
    }
  },
});

const connection = new RealtimeConnection({
  "session.created": () => setStatus("connected"),
  "input_audio_buffer.speech_started": ({ item_id }) => {
    interrupt();
    view.setText(item_id, "user", "…", { pending: true });
    setStatus("listening");
  },
  "input_audio_buffer.speech_stopped": ({ audio_end_ms }) => {
    turnEnded = performance.now();
    speechEnded = sent.at - (sent.milliseconds - audio_end_ms);
    setStatus("thinking");
  },
  "conversation.item.added": ({ item }) => {
    if (item.role !== "user") return;
    const text = item.content.map((part) => part.text ?? part.transcript ?? "").join(" ").trim();
    view.setText(item.id, "user", text || "…", { pending: !text });
  },
  "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => {
    const pending = view.byItem.get(item_id)?.classList.contains("pending");
    view.setText(item_id, "user", delta, { append: !pending });
  },
  "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => {
    view.setText(item_id, "user", transcript || "(no transcript)");
  },
  "conversation.item.deleted": ({ item_id }) => view.remove(item_id),
  "conversation.item.truncated": ({ item_id }) => view.addRemark(item_id, "interrupted"),
  "response.created": ({ response }) => {
    responseId = response.id;
    setStatus("responding");
    showStop();
  },
  "response.output_item.added": ({ item }) => { if (item.type === "message") view.setText(item.id, "assistant", "…", { pending: true }); },
  "response.output_audio_transcript.delta": ({ item_id, delta }) => appendResponse(item_id, delta),
  "response.output_text.delta": ({ item_id, delta }) => { appendResponse(item_id, delta); showLatency(); },
  "response.output_audio.delta": ({ item_id, response_id, delta }) => {
    if (response_id === responseId) audio.play(item_id, toSamples(delta));
  },
  "response.output_audio.done": ({ item_id }) => audio.markComplete(item_id),
  "response.done": ({ response }) => {
    if (responseId === response.id) responseId = null;
    for (const item of response.output) if (view.byItem.get(item.id)?.classList.contains("pending")) view.remove(item.id);
    if (response.status === "failed") view.addNote(response.status_details?.error?.message ?? "no response", true);
    setStatus(listening ? "listening" : "connected");
    showStop();
  },
  error: ({ error }) => {
    if (error.code !== "response_cancel_not_active") view.addNote(error.message, true);
  },
  closed: ({ code, reason }) => {
    stopListening();
    audio.flush();
    responseId = null;
    sent = { milliseconds: 0, at: 0 };
    showStop();
    setStatus(code === 1000 ? "not connected" : reason || "connection closed", code !== 1000);
  },
});

function appendResponse(item, delta) {
  const turn = view.getTurn(item, "assistant"), pending = turn.classList.contains("pending");
  view.setText(item, "assistant", pending ? delta.trimStart() : delta, { append: !pending });
}

// Stops playback at once and reports how much was played. `cancel`: also cancel the response, which the server does by
// itself when it sends `speech_started`.
function interrupt(cancel = false) {
  if (cancel && responseId) connection.send({ type: "response.cancel" });
  responseId = null;
  flushCallbacks.push(({ item, played }) => {
    if (!item) return;
    const audio_end_ms = audio.playedMilliseconds(played);
    connection.send({ type: "conversation.item.truncate", item_id: item, content_index: 0, audio_end_ms });
  });
  if (audio.player) audio.flush();
  else flushCallbacks = [];
  showStop();
}

async function connect() {
  await audio.open();
  if (connection.open) return;
  setStatus("connecting");
  await connection.connect(config.model, $("key").value.trim());
  sendSettings();
  await sendGreeting();
}

function sendSettings() {
  const turn = $("turns").value;
  const session = {
    type: "realtime",
    instructions: $("instructions").value,
    output_modalities: [$("responses").value],
    audio: {
      input: { turn_detection: turn === "none" ? null : { type: turn }, transcription: { model: config.model } },
      output: $("voice").value ? { voice: $("voice").value } : {},
    },
  };
  if ($("style").value) session.style = $("style").value;
  connection.send({ type: "session.update", session });
  $("done").hidden = !(listening && turn === "none");
}

async function sendGreeting() {
  const file = $("greeting").files[0];
  if (!file) return;
  const decoder = new OfflineAudioContext(1, 1, RATE); // also resamples to its own rate
  let recording;
  try {
    recording = await decoder.decodeAudioData(await file.arrayBuffer());
  } catch {
    return view.addNote(`${file.name} cannot be read as audio`, true);
  }
  const samples = recording.getChannelData(0);
  const pcm = Int16Array.from(samples, (value) => Math.max(-1, Math.min(1, value)) * 32767);
  const transcript = $("greeting-text").value.trim();
  const part = { type: "output_audio", audio: toBase64(new Uint8Array(pcm.buffer)), transcript: transcript || undefined };
  const id = `greeting_${Date.now().toString(36)}`;
  connection.send({ type: "conversation.item.create", item: { id, type: "message", role: "assistant", content: [part] } });
  view.setText(id, "assistant", transcript || `♪ ${file.name}`);
  audio.play(id, samples.slice());
  audio.markComplete(id);
}

async function toggleMicrophone() {
  if (listening) {
    stopListening();
    if ($("turns").value !== "none") connection.send({ type: "input_audio_buffer.clear" });
    return setStatus("connected");
  }
  await connect();
  await audio.startMicrophone();
  listening = true;
  $("mic").setAttribute("aria-pressed", "true");
  $("done").hidden = $("turns").value !== "none";
  setStatus("listening");
}

function stopListening() {
  audio.stopMicrophone();
  listening = false;
  $("mic").setAttribute("aria-pressed", "false");
  $("done").hidden = true;
  showLevel(0);
}

async function sendText(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  await connect();
  if (responseId || playing) interrupt(true);
  $("text").value = "";
  turnEnded = performance.now();
  connection.send({
    type: "conversation.item.create",
    item: { type: "message", role: "user", content: [{ type: "input_text", text }] },
  });
  connection.send({ type: "response.create" });
}

// Display

function setStatus(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", isError);
}

function setPlaying(value) {
  playing = value;
  showStop();
}

function showStop() { $("stop").hidden = !(responseId || playing); }

function showLevel(level) {
  const decibels = level > 0 ? 20 * Math.log10(level) : -100;
  $("ring").style.setProperty("--level", (1 + Math.max(0, (decibels + 55) / 55) * 0.35).toFixed(3));
}

function showLatency() {
  if (turnEnded === null) return;
  const since = (moment) => Math.max(0, Math.round(performance.now() - moment));
  const parts = [`${since(turnEnded)} ms after the end of your turn`];
  if (speechEnded !== null) parts.push(`${since(speechEnded)} ms after the end of your speech`);
  $("latency").textContent = parts.join(" · ");
  $("latency").dataset.milliseconds = since(turnEnded);
  turnEnded = speechEnded = null;
}

function fill(id, names) {
  $(id).replaceChildren(...names.map((name) => new Option(name)));
  document.querySelector(`[data-choice=${id}]`).hidden = names.length < 2;
}

async function start() {
  config = await (await fetch("page-config")).json();
  fill("voice", config.voices);
  fill("style", config.styles);
  $("key-label").hidden = !config.needs_key;
  document.title = `${config.model} · speechgpt2`;
}

const showErrors = (action) => async (event) => {
  try {
    await action(event);
  } catch (error) {
    stopListening();
    setStatus(error.name === "NotAllowedError" ? "the browser does not allow the microphone" : error.message, true);
  }
};

$("mic").onclick = showErrors(toggleMicrophone);
$("text-form").onsubmit = showErrors(sendText);
$("stop").onclick = () => interrupt(true);
$("done").onclick = () => {
  turnEnded = performance.now();
  connection.send({ type: "input_audio_buffer.commit" });
  connection.send({ type: "response.create" });
};
$("clear").onclick = () => { // the next session starts without history
  connection.close();
  view.clear();
};
$("settings-button").onclick = () => {
  $("settings").hidden = !$("settings").hidden;
  $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
};
$("settings").onsubmit = (event) => event.preventDefault();
for (const id of ["voice", "style", "responses", "turns", "instructions"]) $(id).onchange = () => connection.open && sendSettings();
showErrors(start)();
