// @openai/agents-realtime, unmodified: a text turn, a voice turn, an interruption with truncation, a tool.
//
//     npm install @openai/agents-realtime zod
//     node agents_realtime.mjs ws://127.0.0.1:8000/v1/realtime question.wav [key]
//
// Only a server of tests.clients.fake_server is sure to call the tool: `mini` was not trained to.
//
// question.wav: 24 kHz, 16 bit, mono.
import { readFileSync } from "node:fs";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession, tool } from "@openai/agents-realtime";
import { z } from "zod";

const [url, recording, apiKey = "none"] = process.argv.slice(2);
const speech = readFileSync(recording).subarray(44);
const BLOCK = 960; // bytes of 20 ms
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const seen = [];
const transport = new OpenAIRealtimeWebSocket({ url });
const cities = [];
const weather = tool({
  name: "weather",
  description: "Look up the weather in a city.",
  parameters: z.object({ city: z.string() }),
  execute: async ({ city }) => { cities.push(city); return "sunny"; },
});
const agent = new RealtimeAgent({ name: "Host", instructions: "Be kind.", tools: [weather] });
const session = new RealtimeSession(agent, { transport, model: "mini" });
let wake = () => {};
session.on("transport_event", (event) => { seen.push(event); wake(); });
session.on("audio_interrupted", () => { seen.push({ type: "audio_interrupted" }); wake(); });
session.on("error", ({ error }) => {
  const code = error?.error?.code ?? error?.code;
  if (code === "response_cancel_not_active") return; // the client itself expects this one
  console.error("error:", JSON.stringify(error));
  process.exit(1);
});

async function until(type, from = 0, seconds = 60) {
  const end = Date.now() + 1000 * seconds;
  for (;;) {
    const place = seen.findIndex((event, index) => index >= from && event.type === type);
    if (place >= 0) return seen[place];
    if (Date.now() > end) throw new Error(`no ${type} within ${seconds} s`);
    await Promise.race([new Promise((resolve) => { wake = resolve; }), pause(200)]);
  }
}

async function say(bytes) {
  for (let at = 0; at < bytes.length; at += BLOCK) {
    const block = bytes.subarray(at, at + BLOCK);
    session.sendAudio(block.buffer.slice(block.byteOffset, block.byteOffset + block.length));
    await pause(20);
  }
}

const silence = (seconds) => new Uint8Array(Math.round(seconds * 48000));

await session.connect({ apiKey, url });
session.sendMessage("Hello");
await until("response.done");
console.log("text turn: answered");

let mark = seen.length;
await say(speech);
const quiet = setInterval(() => session.sendAudio(silence(0.1).buffer), 100);
await until("response.output_audio.delta", mark);
console.log("voice turn: answered");

clearInterval(quiet);
await pause(300);
mark = seen.length;
await say(speech);
await until("audio_interrupted", mark);
const cut = await until("conversation.item.truncated", mark);
console.log(`interruption: truncated at ${cut.audio_end_ms} ms`);

await until("response.done", mark);
mark = seen.length;
session.sendMessage('call weather{"city": "Paris"}');
const called = await until("response.done", mark);
if (called.response.output.some((item) => item.type === "function_call")) {
  await until("response.output_audio.delta", mark);
  console.log(`tool: called for ${cities[0]}, result answered`);
} else {
  console.log("tool: not called");
}
session.close();
process.exit(0);
