// The page: voice and text chat over one OpenAI Realtime WebSocket.
//
//   AudioIO              microphone → blocks of 20 ms; responses → speaker, with an exact count of played samples
//   ScheduledPlayer      the speaker where the browser has no AudioWorklet: on a page without HTTPS
//   RealtimeConnection   the WebSocket
//   TranscriptView       the turns on the page
//   Waveform             the latest seconds of both sides
//   talks.js             saved talks
//   recorder.js          the audio of a talk, to be saved
//
// Barge-in: the server sends `speech_started` → playback stops within milliseconds → the page reports how many
// milliseconds of the response were played (`conversation.item.truncate`).

import { TalkRecorder } from "./recorder.js";
import { SavedTalks, TalkList, counted } from "./talks.js";

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
    if (!this.outputContext.audioWorklet) {
      this.player = { port: new ScheduledPlayer(this.outputContext, (data) => this.onPlayerMessage(data)) };
      return;
    }
    await this.outputContext.audioWorklet.addModule("worklet.js");
    this.player = new AudioWorkletNode(this.outputContext, "player", { numberOfInputs: 0, outputChannelCount: [1] });
    this.player.port.onmessage = ({ data }) => {
      if (data.type === "ended" || data.type === "flushed") this.setPlaying(false);
      this.onPlayerMessage(data);
    };
    this.player.connect(this.outputContext.destination);
    if (TalkRecorder.supported()) this.recorder = new TalkRecorder(this.outputContext, this.player);
  }

  async startMicrophone(deviceId) {
    if (!navigator.mediaDevices?.getUserMedia) throw new Error(NEEDS_HTTPS);
    const wanted = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };
    if (deviceId) wanted.deviceId = { exact: deviceId };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: wanted });
    this.inputContext = new AudioContext({ latencyHint: "interactive" });
    await this.inputContext.audioWorklet.addModule("worklet.js");
    const capture = new AudioWorkletNode(this.inputContext, "capture", { numberOfOutputs: 0 });
    capture.port.onmessage = ({ data }) => {
      this.recorder?.addMicrophone(data.pcm);
      this.onMicrophoneBlock(data);
    };
    this.inputContext.createMediaStreamSource(this.stream).connect(capture);
    this.updateRecorder();
  }

  stopMicrophone() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.inputContext?.close();
    this.stream = this.inputContext = null;
    this.updateRecorder();
  }

  setPlaying(value) {
    this.playing = value;
    this.updateRecorder();
  }

  updateRecorder() { this.recorder?.setActive(Boolean(this.playing || this.stream)); }

  forgetRecording() {
    this.recorder?.restart();
    this.updateRecorder();
  }

  play(item, samples) {
    this.setPlaying(true);
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

// Plays chunks by the clock of the audio context. Takes and sends the messages of the worklet's player.
class ScheduledPlayer {
  constructor(context, onMessage) {
    Object.assign(this, { context, onMessage, underruns: 0 });
    this.reset(null);
  }

  reset(item) { Object.assign(this, { item, chunks: [], complete: false }); }

  postMessage({ type, item, samples }) {
    if (type === "push") this.push(item, samples);
    else if (type === "flush") this.flush();
    else if (item === this.item) {
      this.complete = true;
      if (this.chunks.every((chunk) => chunk.ended)) this.end();
    }
  }

  push(item, samples) {
    if (item !== this.item) this.reset(item);
    const now = this.context.currentTime, last = this.chunks.at(-1), first = !last;
    const dry = first || last.end < now;
    if (dry && !first) this.underruns++;
    const buffer = this.context.createBuffer(1, samples.length, RATE), source = this.context.createBufferSource();
    buffer.copyToChannel(samples, 0);
    source.buffer = buffer;
    source.connect(this.context.destination);
    const start = dry ? now + 0.1 : last.end, chunk = { source, start, end: start + buffer.duration, ended: false };
    const level = Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length);
    setTimeout(() => {
      if (this.item !== item || !this.chunks.includes(chunk)) return;
      if (first) this.onMessage({ type: "started", item });
      this.onMessage({ type: "level", level, item, played: this.played, underruns: this.underruns });
    }, (start - now) * 1000);
    source.onended = () => {
      chunk.ended = true;
      if (this.complete && this.item === item && this.chunks.every((other) => other.ended)) this.end();
    };
    source.start(start);
    this.chunks.push(chunk);
  }

  get played() {
    const now = this.context.currentTime;
    const seconds = this.chunks.reduce((sum, { start, end }) => sum + Math.max(0, Math.min(now, end) - start), 0);
    return Math.round(seconds * RATE);
  }

  end() { this.onMessage({ type: "ended", item: this.item, played: this.played }); }

  flush() {
    const cut = !this.complete || this.chunks.some((chunk) => !chunk.ended), played = this.played, item = this.item;
    for (const { source } of this.chunks) source.stop();
    this.reset(null);
    this.onMessage({ type: "flushed", item: cut ? item : null, played });
  }
}

class RealtimeConnection {
  constructor(handlers) {
    this.handlers = handlers;
    this.socket = null;
  }

  get open() { return this.socket?.readyState === WebSocket.OPEN; }

  // Opens a session; `talk`: the id of a saved one that goes on. Returns the settings with which it begins.
  connect(model, key, talk) {
    const url = new URL(`v1/realtime?model=${encodeURIComponent(model)}`, location.href);
    url.protocol = url.protocol.replace("http", "ws");
    if (talk) url.searchParams.set("session_id", talk);
    const protocols = key ? ["realtime", `openai-insecure-api-key.${key}`] : ["realtime"];
    const socket = this.socket = new WebSocket(url, protocols);
    return new Promise((resolve, reject) => {
      socket.onmessage = ({ data }) => {
        if (socket === this.socket) this.receive(JSON.parse(data), resolve);
      };
      socket.onclose = ({ code, reason }) => {
        reject(new Error(reason || "the server rejected the session"));
        if (socket === this.socket) this.handlers.closed({ code, reason });
      };
    });
  }

  receive(event, onSession) {
    logEvent("server", event);
    if (event.type === "session.created") onSession(event.session);
    this.handlers[event.type]?.(event);
    for (const text of event.warnings ?? []) view.addNote(text);
  }

  send(event) {
    if (!this.open) return;
    logEvent("page", event);
    this.socket.send(JSON.stringify(event));
  }

  // Ends the session, and waits until the server knows. No more of its events are handled.
  async close() {
    const socket = this.socket;
    this.socket = null;
    this.handlers.closed({ code: 1000, reason: "" });
    if (!socket || socket.readyState === WebSocket.CLOSED) return;
    const ended = new Promise((resolve) => socket.addEventListener("close", resolve));
    socket.close(1000);
    await ended;
  }
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

  // Strikes through the words after the first `share` of an item's text: they were not heard.
  strikeUnheard(item, share) {
    const span = this.byItem.get(item)?.firstChild;
    if (!span || span.querySelector(".unheard")) return;
    const text = span.textContent, words = text.match(/[\u3400-\u9fff]|[^\s\u3400-\u9fff]+\s*|\s+/g) ?? [];
    const heard = words.slice(0, Math.round(words.length * share)).join("");
    if (heard.length === text.length) return;
    const unheard = document.createElement("span");
    unheard.className = "unheard";
    unheard.textContent = text.slice(heard.length);
    span.replaceChildren(heard, unheard);
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

// The levels of the latest seconds: the user's above the line, the model's below.
class Waveform {
  constructor(canvas) { Object.assign(this, { canvas, bars: [], user: 0, model: 0 }); }

  add(side, level) {
    this[side] = Math.max(this[side], level);
    this.timer ??= setInterval(() => this.step(), 40);
  }

  step() {
    this.bars.push({ user: this.user, model: this.model });
    this.user = this.model = 0;
    const width = Math.max(1, Math.floor(this.canvas.clientWidth / 4));
    if (this.bars.length > width) this.bars.splice(0, this.bars.length - width);
    this.draw(width);
    if (!this.bars.some(({ user, model }) => user || model)) {
      clearInterval(this.timer);
      this.timer = undefined;
    }
  }

  draw(width) {
    const scale = devicePixelRatio, { clientWidth, clientHeight } = this.canvas;
    Object.assign(this.canvas, { width: clientWidth * scale, height: clientHeight * scale });
    const pen = this.canvas.getContext("2d"), style = getComputedStyle(this.canvas), middle = clientHeight / 2;
    pen.scale(scale, scale);
    const height = (level) => (level > 0 ? Math.max(0, 1 + Math.log10(level) / 2.5) * (middle - 1) : 0);
    this.bars.forEach(({ user, model }, index) => {
      const x = (width - this.bars.length + index) * 4;
      pen.fillStyle = style.getPropertyValue("--hot");
      pen.fillRect(x, middle - height(user), 2.5, height(user));
      pen.fillStyle = style.getPropertyValue("--accent");
      pen.fillRect(x, middle, 2.5, height(model));
    });
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

const NEEDS_HTTPS = "the browser gives the microphone to pages over HTTPS only: start the server with --self-signed, or type";
const view = new TranscriptView($("transcript")), waveform = new Waveform($("waveform"));
let config = { model: "", voices: [], personas: [], styles: [], defaults: { speed: 1, style: null }, needs_key: false };
let listening = false, responseId = null, playing = false, flushCallbacks = [];
let sent = { milliseconds: 0, at: 0 }; // microphone audio sent, and when the latest block was recorded
const received = new Map(); // samples of audio received, by item
const MAX_EVENTS = 500;
const MAX_RESULT = 300; // characters of a tool's result that are shown
let eventLog = [];
let sentVoice = "", hasSpoken = false; // a conversation keeps its voice once the model has spoken
let talk = null; // the id of the open talk, and of one that goes on with the next turn, if the server saves talks
let turnEnded = null, speechEnded = null; // times of performance.now()

const audio = new AudioIO({
  onMicrophoneBlock({ pcm, level }) {
    showLevel(level);
    waveform.add("user", level);
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
      if (playing) {
        showLevel(data.level);
        waveform.add("model", data.level);
      }
      $("underruns").textContent = data.underruns ? counted(data.underruns, "underrun") : "";
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
    if (item.type !== "message") return;
    const text = item.content.map((part) => part.text ?? part.transcript ?? "").join(" ").trim();
    if (item.role === "user" && (text || !view.byItem.has(item.id))) view.setText(item.id, "user", text || "…", { pending: !text });
    if (item.role === "assistant" && item.status !== "in_progress") restoreReply(item, text);
  },
  "conversation.item.done": ({ item }) => { // a tool that the server has run
    if (item.type !== "mcp_call") return;
    const result = item.output ?? item.error?.message ?? "";
    view.addNote(`${item.name} ${item.arguments} → ${result.length > MAX_RESULT ? `${result.slice(0, MAX_RESULT)}…` : result}`, Boolean(item.error));
  },
  "conversation.item.input_audio_transcription.delta": ({ item_id, delta }) => {
    const pending = view.byItem.get(item_id)?.classList.contains("pending");
    view.setText(item_id, "user", delta, { append: !pending });
  },
  "conversation.item.input_audio_transcription.completed": ({ item_id, transcript }) => {
    view.setText(item_id, "user", transcript || "(no transcript)");
  },
  "conversation.item.deleted": ({ item_id }) => view.remove(item_id),
  "conversation.item.truncated": ({ item_id, audio_end_ms }) => {
    view.strikeUnheard(item_id, audio_end_ms / Math.max(1, ((received.get(item_id) ?? 0) / RATE) * 1000));
    view.addRemark(item_id, "interrupted");
  },
  "response.created": ({ response }) => {
    responseId = response.id;
    setStatus("responding");
    showStop();
  },
  "response.output_item.added": ({ item }) => { if (item.type === "message") view.setText(item.id, "assistant", "…", { pending: true }); },
  "response.output_audio_transcript.delta": ({ item_id, delta }) => appendResponse(item_id, delta),
  "response.output_text.delta": ({ item_id, delta }) => { appendResponse(item_id, delta); showLatency(); },
  "response.output_audio.delta": ({ item_id, response_id, delta }) => {
    const samples = toSamples(delta);
    received.set(item_id, (received.get(item_id) ?? 0) + samples.length);
    hasSpoken = true;
    if (response_id === responseId) audio.play(item_id, samples);
  },
  "response.output_audio.done": ({ item_id }) => audio.markComplete(item_id),
  "response.done": ({ response }) => {
    if (responseId === response.id) responseId = null;
    for (const item of response.output) if (view.byItem.get(item.id)?.classList.contains("pending")) view.remove(item.id);
    if (response.status === "failed") view.addNote(response.status_details?.error?.message ?? "no response", true);
    showIdle();
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
    const lost = talk ? "the connection was lost; the talk goes on with your next turn" : "the connection was lost";
    setStatus(code === 1000 ? "not connected" : reason || lost, code !== 1000);
  },
});

// Shows an earlier reply of a talk that goes on. One that was interrupted has no text.
function restoreReply(item, text) {
  if (item.content.some((part) => part.type === "output_audio")) hasSpoken = true;
  if (view.byItem.has(item.id)) return;
  view.setText(item.id, "assistant", text || "…");
  if (!text) view.addRemark(item.id, "interrupted");
}

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
  if (config.needs_key && !key()) askForKey("this server needs an API key");
  setStatus("connecting");
  if (talk && !(await savedTalks.exists(talk))) talk = null; // nothing was said in it
  const goesOn = talk !== null;
  let session;
  try {
    session = await connection.connect(config.model, key(), talk);
  } catch (error) {
    throw new Error(await rejection(error));
  }
  talk = config.saves_sessions ? session.id : null;
  hasSpoken = false;
  if (goesOn) return takeSettings(session);
  saveSettings();
  sendSettings();
  await sendGreeting();
}

const key = () => $("key").value.trim();

const REJECTIONS = {
  full: "all places are taken; try again in a minute",
  draining: "the server is shutting down",
  failed: "the server's engine has failed",
};

// A browser does not tell a page why a WebSocket was rejected, so the page asks again over HTTP.
async function rejection(error) {
  const headers = key() ? { Authorization: `Bearer ${key()}` } : {};
  let models, state;
  try {
    models = await fetch("v1/models", { headers });
    state = await (await fetch("ready")).json();
  } catch {
    return "the server cannot be reached";
  }
  if (models.status === 401) askForKey("the server does not accept this API key");
  return REJECTIONS[state.status] ?? error.message;
}

function askForKey(text) {
  showPanel("settings");
  $("key").focus();
  throw new Error(text);
}

// Sends the settings. After the change of one control, the persona's text is sent only if it has changed: a talk that
// goes on may have another one.
function sendSettings(changed = null) {
  const turn = $("turns").value, persona = $("persona").value;
  if (hasSpoken && sentVoice !== $("voice").value) view.addNote("The next talk has the other voice.");
  if (!hasSpoken) sentVoice = $("voice").value;
  const ownStyle = persona === config.personas[0] ? config.defaults.style : null; // without a choice
  const output = { speed: $("speed").valueAsNumber, style: $("style").value || ownStyle };
  if (sentVoice) output.voice = sentVoice;
  const session = {
    type: "realtime",
    output_modalities: [$("responses").value],
    audio: {
      input: { turn_detection: turn === "none" ? null : { type: turn }, transcription: { model: config.model } },
      output,
    },
  };
  if (changed === null || changed === "persona" || changed === "instructions") {
    Object.assign(session, { persona: persona || null, instructions: $("instructions").value });
  }
  connection.send({ type: "session.update", session });
  $("done").hidden = !(listening && turn === "none");
}

// Shows the settings of a talk that goes on. They are not remembered.
function takeSettings({ audio: { input, output }, output_modalities, persona, instructions }) {
  choose("voice", sentVoice = config.voices.includes(output.voice) ? output.voice : "");
  choose("persona", persona ?? "");
  choose("style", output.style ?? "");
  choose("responses", output_modalities.includes("audio") ? "audio" : "text");
  choose("turns", input.turn_detection?.type ?? "none");
  $("instructions").value = persona ? "" : instructions;
  $("speed").value = output.speed;
  showSpeed();
}

function choose(id, value) {
  if (![...$(id).options].some((option) => option.value === value)) $(id).add(new Option(value, value));
  $(id).value = value;
}

async function sendGreeting() {
  const file = $("greeting").files[0];
  if (!file) return;
  const decoder = new OfflineAudioContext(1, 1, RATE); // also resamples to its own rate
  let recording;
  try {
    recording = await decoder.decodeAudioData(await file.arrayBuffer());
  } catch {
    return view.addNote(`The browser cannot read ${file.name} as audio.`, true);
  }
  const samples = recording.getChannelData(0);
  const pcm = Int16Array.from(samples, (value) => Math.max(-1, Math.min(1, value)) * 32767);
  const transcript = $("greeting-text").value.trim();
  const part = { type: "output_audio", audio: toBase64(new Uint8Array(pcm.buffer)), transcript: transcript || undefined };
  hasSpoken = true;
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
  if (!navigator.mediaDevices?.getUserMedia) throw new Error(NEEDS_HTTPS);
  await connect();
  await audio.startMicrophone($("device").value);
  listening = true;
  await listDevices();
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
  await ask(text);
}

async function ask(text) {
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
  if (value) setStatus("speaking");
  else if (!responseId) showIdle();
  showStop();
}

function showIdle() {
  if (!playing && connection.open) setStatus(listening ? "listening" : "connected");
}

// Shows one of the panels, or none.
function showPanel(shown) {
  for (const id of ["settings", "talks"]) {
    $(id).hidden = id !== shown;
    $(`${id}-button`).setAttribute("aria-expanded", String(id === shown));
  }
}

function showSpeed() { $("speed-shown").textContent = `${$("speed").valueAsNumber.toFixed(2)} ×`; }

// Talks

const savedTalks = new SavedTalks(key);
const talkList = new TalkList($("talks"), savedTalks, {
  onBegin: showErrors(async () => { await beginTalk(); showPanel(null); }),
  onResume: showErrors(resumeTalk),
  onDelete: showErrors(deleteTalk),
});

async function showTalks() {
  if (config.needs_key && !key()) askForKey("this server needs an API key");
  try {
    await talkList.show(config, connection.open ? talk : null);
  } catch (error) {
    if (error.status === 401) askForKey("the server does not accept this API key");
    throw error;
  }
  showPanel("talks");
}

async function beginTalk() { // the next session starts without history
  const ended = connection.close();
  talk = null;
  audio.forgetRecording();
  view.clear();
  loadSettings();
  await ended;
}

async function resumeTalk(id) {
  await beginTalk();
  showPanel(null);
  talk = id;
  await connect();
}

async function deleteTalk(id) {
  if (id === talk) await beginTalk();
  await savedTalks.delete(id);
  await showTalks();
}

// Settings are remembered in this browser. The API key is not: another person may use the same browser.
const REMEMBERED = ["voice", "persona", "style", "speed", "responses", "turns", "instructions", "device"];

function saveSettings(ids = REMEMBERED) {
  const changes = Object.fromEntries(ids.map((id) => [id, $(id).value]));
  localStorage.setItem("settings", JSON.stringify({ ...savedSettings(), ...changes }));
}

function savedSettings() {
  try {
    return JSON.parse(localStorage.getItem("settings")) ?? {};
  } catch {
    localStorage.removeItem("settings");
    return {};
  }
}

function loadSettings() {
  const saved = savedSettings();
  for (const id of REMEMBERED) {
    const known = $(id).tagName !== "SELECT" || [...$(id).options].some((option) => option.value === saved[id]);
    if (saved[id] !== undefined && known) $(id).value = saved[id];
  }
  showSpeed();
}

async function listDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) ?? [];
  const microphones = devices.filter(({ kind, deviceId }) => kind === "audioinput" && deviceId);
  const chosen = $("device").value;
  $("device").replaceChildren(new Option("default", ""));
  microphones.forEach(({ deviceId, label }, index) => $("device").add(new Option(label || `microphone ${index + 1}`, deviceId)));
  $("device").value = microphones.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
  document.querySelector("[data-choice=device]").hidden = microphones.length < 2;
}

// The log holds no audio.
function logEvent(side, event) {
  const shown = { ...event };
  for (const key of ["audio", "delta"]) if (shown[key]?.length > 200) shown[key] = `(${shown[key].length} characters)`;
  if (event.type !== "input_audio_buffer.append") eventLog.push({ time: new Date().toISOString(), side, ...shown });
  eventLog = eventLog.slice(-MAX_EVENTS);
}

function download(name, content, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

function talkAsText() {
  return [...view.root.querySelectorAll(".turn")].map((turn) => {
    const role = turn.classList.contains("user") ? "you" : config.model, remark = turn.querySelector("small");
    return `${role}: ${turn.firstChild.textContent}${remark ? ` [${remark.textContent}]` : ""}\n`;
  }).join("");
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

function fill(id, names, unnamed = "none") {
  $(id).replaceChildren(...names.map((name) => new Option(name || unnamed, name)));
  document.querySelector(`[data-choice=${id}]`).hidden = names.length < 2;
}

async function start() {
  config = await (await fetch("page-config")).json();
  fill("voice", config.voices);
  fill("persona", config.personas);
  fill("style", config.styles, "default");
  $("speed").value = config.defaults.speed;
  $("talks-button").hidden = !config.saves_sessions;
  $("key-label").hidden = !config.needs_key;
  $("examples").replaceChildren(...config.examples.map((text) => {
    const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", textContent: text });
    button.onclick = showErrors(() => ask(text));
    return button;
  }));
  $("save-sound").hidden = !TalkRecorder.supported() || !window.isSecureContext;
  await listDevices();
  loadSettings();
  if (!window.isSecureContext) view.addNote("Over HTTP you can type, and hear the answers. A microphone needs HTTPS.");
  document.title = `${config.model} · speechgpt2`;
}

const MICROPHONE_ERRORS = {
  NotAllowedError: "the browser does not allow the microphone: see the symbol beside the address",
  NotFoundError: "there is no microphone",
  NotReadableError: "another program uses the microphone",
  OverconstrainedError: "the chosen microphone is not there any more",
};

function showErrors(action) {
  return async (event) => {
    try {
      await action(event);
    } catch (error) {
      stopListening();
      setStatus(MICROPHONE_ERRORS[error.name] ?? error.message, true);
    }
  };
}

$("mic").onclick = showErrors(toggleMicrophone);
$("text-form").onsubmit = showErrors(sendText);
$("stop").onclick = () => interrupt(true);
$("done").onclick = () => {
  turnEnded = performance.now();
  connection.send({ type: "input_audio_buffer.commit" });
  connection.send({ type: "response.create" });
};
$("clear").onclick = showErrors(beginTalk);
$("settings-button").onclick = () => showPanel($("settings").hidden ? "settings" : null);
$("talks-button").onclick = showErrors(() => ($("talks").hidden ? showTalks() : showPanel(null)));
$("speed").oninput = showSpeed;
$("save-talk").onclick = () => download("talk.txt", talkAsText(), "text/plain");
$("save-sound").onclick = showErrors(async () => {
  const file = await audio.recorder?.file();
  if (!file) throw new Error("nothing has been said yet");
  download(file.name, file, file.type);
});
$("save-events").onclick = () => {
  download("events.jsonl", eventLog.map((event) => JSON.stringify(event) + "\n").join(""), "application/jsonl");
};
$("settings").onsubmit = (event) => event.preventDefault();
for (const id of REMEMBERED) {
  $(id).onchange = () => {
    saveSettings([id]);
    if (connection.open && id !== "device") sendSettings(id);
  };
}
showErrors(start)();
