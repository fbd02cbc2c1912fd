// The page: a microphone, a loudspeaker and two transcripts on one OpenAI Realtime websocket.
//
//   Sound   microphone → blocks of 20 ms;   chunks of answers → loudspeaker, with an exact count of what was played
//   Wire    the websocket
//   Turns   what is shown
//
// An interruption: the server says `speech_started` → the loudspeaker is flushed within milliseconds → the server is
// told how many milliseconds of the answer were heard (`conversation.item.truncate`).

const RATE = 24000;
const $ = (id) => document.getElementById(id);

class Sound {
  constructor({ onBlock, onPlayer }) {
    Object.assign(this, { onBlock, onPlayer });
    this.played = { item: null, samples: 0 };
  }

  async open() { // must follow a click: browsers ask for that before anything sounds
    if (this.out) return this.out.resume();
    this.out = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await this.out.audioWorklet.addModule("worklet.js");
    this.player = new AudioWorkletNode(this.out, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.player.port.onmessage = ({ data }) => this.onPlayer(data);
    this.player.connect(this.out.destination);
  }

  async listen() {
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    this.in = new AudioContext({ latencyHint: "interactive" });
    await this.in.audioWorklet.addModule("worklet.js");
    const capture = new AudioWorkletNode(this.in, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => this.onBlock(data);
    this.in.createMediaStreamSource(this.stream).connect(capture);
  }

  deafen() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.in?.close();
    this.stream = this.in = null;
  }

  play(item, samples) {
    this.player?.port.postMessage({ what: "push", item, samples }, [samples.buffer]);
  }

  complete(item) { this.player?.port.postMessage({ what: "done", item }); }

  flush() { this.player?.port.postMessage({ what: "flush" }); }

  // What left the worklet is heard a little later.
  heardMilliseconds(samples) {
    const late = (this.out.outputLatency || this.out.baseLatency || 0) * 1000;
    return Math.max(0, Math.round((samples / RATE) * 1000 - late));
  }
}

class Wire {
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
        reject(new Error(reason || "the server refused: it may be full, or want another key"));
        this.handlers.closed({ code, reason });
      };
    });
  }

  send(event) { if (this.open) this.socket.send(JSON.stringify(event)); }

  close() { this.socket?.close(1000); }
}

class Turns {
  constructor(root) { Object.assign(this, { root, byItem: new Map() }); }

  show(item, role) {
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

  text(item, role, text, { append = false, waiting = false } = {}) {
    const turn = this.show(item, role), span = turn.firstChild;
    span.textContent = append ? span.textContent + text : text;
    turn.classList.toggle("waiting", waiting);
    turn.scrollIntoView({ block: "end" });
  }

  remark(item, words) {
    const turn = this.byItem.get(item);
    if (!turn || turn.querySelector("small")) return;
    const small = document.createElement("small");
    small.textContent = words;
    turn.append(small);
  }

  drop(item) {
    this.byItem.get(item)?.remove();
    this.byItem.delete(item);
  }

  note(words, bad = false) {
    const note = document.createElement("p");
    note.className = bad ? "note bad" : "note";
    note.textContent = words;
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

// What happens

const turns = new Turns($("talk"));
let offers = { model: "", voices: [], styles: [], needs_key: false };
let listening = false, answering = null, speaking = false, flushes = [];
let sent = { milliseconds: 0, at: 0 }; // how much of the microphone is sent, and when the latest of it was heard
let turnEnded = null, lastWord = null; // when, by performance.now()

const sound = new Sound({
  onBlock({ pcm, level }) {
    showLevel(level);
    sent = { milliseconds: sent.milliseconds + 20, at: performance.now() };
    wire.send({ type: "input_audio_buffer.append", audio: toBase64(new Uint8Array(pcm)) });
  },
  onPlayer(data) {
    if (data.what === "started" && !data.item.startsWith("greeting")) showLatency();
    if (data.what === "started") setSpeaking(true);
    if (data.what === "ended") setSpeaking(false);
    if (data.what === "flushed") {
      setSpeaking(false);
      flushes.shift()?.(data);
    }
    if (data.what === "level") {
      if (speaking) showLevel(data.level);
      $("underruns").textContent = data.underruns ? `${data.underruns} gaps in the sound` : "";
    }
  },
});

const wire = new Wire({
  "session.created": () => setStatus("connected"),
  "input_audio_buffer.speech_started": ({ item_id }) => {
    interrupt();
    turns.text(item_id, "user", "…", { waiting: true });
    setStatus("listening");
  },
  "input_audio_buffer.speech_stopped": ({ audio_end_ms }) => {
    turnEnded = performance.now();
    lastWord = sent.at - (sent.milliseconds - audio_end_ms);
    setStatus("thinking");
  },
  "conversation.item.added": ({ item }) => {
    if (item.role !== "user") return;
    const text = item.content.map((part) => part.text ?? part.transcript ?? "").join(" ").trim();
    turns.text(item.id, "user", text || "…", { waiting: !text });
  },
  "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => {
    const waiting = turns.byItem.get(item_id)?.classList.contains("waiting");
    turns.text(item_id, "user", delta, { append: !waiting });
  },
  "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => {
    turns.text(item_id, "user", transcript || "(nothing understood)");
  },
  "conversation.item.deleted": ({ item_id }) => turns.drop(item_id),
  "conversation.item.truncated": ({ item_id }) => turns.remark(item_id, "interrupted"),
  "response.created": ({ response }) => {
    answering = response.id;
    setStatus("answering");
    showStop();
  },
  "response.output_item.added": ({ item }) => { if (item.type === "message") turns.text(item.id, "assistant", "…", { waiting: true }); },
  "response.output_audio_transcript.delta": ({ item_id, delta }) => said(item_id, delta),
  "response.output_text.delta": ({ item_id, delta }) => { said(item_id, delta); showLatency(); },
  "response.output_audio.delta": ({ item_id, response_id, delta }) => {
    if (response_id === answering) sound.play(item_id, toSamples(delta));
  },
  "response.output_audio.done": ({ item_id }) => sound.complete(item_id),
  "response.done": ({ response }) => {
    if (answering === response.id) answering = null;
    for (const item of response.output) if (turns.byItem.get(item.id)?.classList.contains("waiting")) turns.drop(item.id);
    if (response.status === "failed") turns.note(response.status_details?.error?.message ?? "no answer", true);
    setStatus(listening ? "listening" : "connected");
    showStop();
  },
  error: ({ error }) => {
    if (error.code !== "response_cancel_not_active") turns.note(error.message, true);
  },
  closed: ({ code, reason }) => {
    deafen();
    sound.flush();
    answering = null;
    sent = { milliseconds: 0, at: 0 };
    showStop();
    setStatus(code === 1000 ? "not connected" : reason || "the connection ended", code !== 1000);
  },
});

function said(item, delta) {
  const turn = turns.show(item, "assistant"), waiting = turn.classList.contains("waiting");
  turns.text(item, "assistant", waiting ? delta.trimStart() : delta, { append: !waiting });
}

// Stops the sound at once and tells the server how much of it was heard. `cancel`: also stop the answer (where the
// server heard the user speak, it has done so itself).
function interrupt(cancel = false) {
  if (cancel && answering) wire.send({ type: "response.cancel" });
  answering = null;
  flushes.push(({ item, played }) => {
    if (!item) return;
    const audio_end_ms = sound.heardMilliseconds(played);
    wire.send({ type: "conversation.item.truncate", item_id: item, content_index: 0, audio_end_ms });
  });
  if (sound.player) sound.flush();
  else flushes = [];
  showStop();
}

async function connect() {
  await sound.open();
  if (wire.open) return;
  setStatus("connecting");
  await wire.connect(offers.model, $("key").value.trim());
  sendSettings();
  await sendGreeting();
}

function sendSettings() {
  const turn = $("turns").value;
  const session = {
    type: "realtime",
    instructions: $("instructions").value,
    output_modalities: [$("answers").value],
    audio: {
      input: { turn_detection: turn === "none" ? null : { type: turn }, transcription: { model: offers.model } },
      output: $("voice").value ? { voice: $("voice").value } : {},
    },
  };
  if ($("style").value) session.style = $("style").value;
  wire.send({ type: "session.update", session });
  $("done").hidden = !(listening && turn === "none");
}

async function sendGreeting() {
  const file = $("greeting").files[0];
  if (!file) return;
  const decoder = new OfflineAudioContext(1, 1, RATE); // resamples what it decodes
  let recording;
  try {
    recording = await decoder.decodeAudioData(await file.arrayBuffer());
  } catch {
    return turns.note(`${file.name} cannot be read as sound`, true);
  }
  const samples = recording.getChannelData(0);
  const pcm = Int16Array.from(samples, (value) => Math.max(-1, Math.min(1, value)) * 32767);
  const transcript = $("greeting-text").value.trim();
  const part = { type: "output_audio", audio: toBase64(new Uint8Array(pcm.buffer)), transcript: transcript || undefined };
  const id = `greeting_${Date.now().toString(36)}`;
  wire.send({ type: "conversation.item.create", item: { id, type: "message", role: "assistant", content: [part] } });
  turns.text(id, "assistant", transcript || `♪ ${file.name}`);
  sound.play(id, samples.slice());
  sound.complete(id);
}

async function toggle() {
  if (listening) {
    deafen();
    if ($("turns").value !== "none") wire.send({ type: "input_audio_buffer.clear" });
    return setStatus("connected");
  }
  await connect();
  await sound.listen();
  listening = true;
  $("mic").setAttribute("aria-pressed", "true");
  $("done").hidden = $("turns").value !== "none";
  setStatus("listening");
}

function deafen() {
  sound.deafen();
  listening = false;
  $("mic").setAttribute("aria-pressed", "false");
  $("done").hidden = true;
  showLevel(0);
}

async function write(event) {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text) return;
  await connect();
  if (answering || speaking) interrupt(true);
  $("text").value = "";
  turnEnded = performance.now();
  wire.send({
    type: "conversation.item.create",
    item: { type: "message", role: "user", content: [{ type: "input_text", text }] },
  });
  wire.send({ type: "response.create" });
}

// What is shown

function setStatus(words, bad = false) {
  $("status").textContent = words;
  $("status").classList.toggle("bad", bad);
}

function setSpeaking(value) {
  speaking = value;
  showStop();
}

function showStop() { $("stop").hidden = !(answering || speaking); }

function showLevel(level) {
  const decibels = level > 0 ? 20 * Math.log10(level) : -100;
  $("ring").style.setProperty("--level", (1 + Math.max(0, (decibels + 55) / 55) * 0.35).toFixed(3));
}

function showLatency() {
  if (turnEnded === null) return;
  const since = (moment) => Math.max(0, Math.round(performance.now() - moment));
  const words = [`${since(turnEnded)} ms after your turn`];
  if (lastWord !== null) words.push(`${since(lastWord)} ms after the last word`);
  $("latency").textContent = words.join(" · ");
  $("latency").dataset.milliseconds = since(turnEnded);
  turnEnded = lastWord = null;
}

function fill(id, names) {
  $(id).replaceChildren(...names.map((name) => new Option(name)));
  document.querySelector(`[data-choice=${id}]`).hidden = names.length < 2;
}

async function begin() {
  offers = await (await fetch("offers")).json();
  fill("voice", offers.voices);
  fill("style", offers.styles);
  $("key-label").hidden = !offers.needs_key;
  document.title = `${offers.model} · speechgpt2`;
}

const guard = (action) => async (event) => {
  try {
    await action(event);
  } catch (error) {
    deafen();
    setStatus(error.name === "NotAllowedError" ? "the microphone is not allowed here" : error.message, true);
  }
};

$("mic").onclick = guard(toggle);
$("write").onsubmit = guard(write);
$("stop").onclick = () => interrupt(true);
$("done").onclick = () => {
  turnEnded = performance.now();
  wire.send({ type: "input_audio_buffer.commit" });
  wire.send({ type: "response.create" });
};
$("clear").onclick = () => { // a new session remembers nothing
  wire.close();
  turns.clear();
};
$("settings-button").onclick = () => {
  $("settings").hidden = !$("settings").hidden;
  $("settings-button").setAttribute("aria-expanded", String(!$("settings").hidden));
};
$("settings").onsubmit = (event) => event.preventDefault();
for (const id of ["voice", "style", "answers", "turns", "instructions"]) $(id).onchange = () => wire.open && sendSettings();
guard(begin)();
