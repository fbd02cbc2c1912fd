// Ask a spoken question over OpenAI Realtime, and save the spoken answer.
//
//     sg2 serve --self-signed                              # the client connects over wss only
//     npm install && npm run build
//     export NODE_EXTRA_CA_CERTS=~/.local/share/speechgpt2/tls/certificate.pem
//     npm run talk -- ../question-1.wav answer.wav
//
// SG2_URL and SG2_API_KEY name another server. The question is a WAV file: 16 bits, mono, 24 kHz.

import { readFileSync, writeFileSync } from "node:fs";
import OpenAI from "openai";
import { OpenAIRealtimeWS } from "openai/realtime/ws";

const RATE = 24_000;
const CHUNK = (RATE / 10) * 2; // bytes of 100 ms

const [question, answer] = process.argv.slice(2);
if (!question || !answer) throw new Error("usage: talk QUESTION.wav ANSWER.wav");

const client = new OpenAI({
  baseURL: process.env.SG2_URL ?? "https://localhost:8000/v1",
  apiKey: process.env.SG2_API_KEY ?? "none",
});
const realtime = await OpenAIRealtimeWS.create(client, { model: "mini" });
const audio: Buffer[] = [];

realtime.on("session.created", () => {
  realtime.send({
    type: "session.update",
    session: { type: "realtime", audio: { input: { turn_detection: null, transcription: { model: "mini" } } } }, // the file's end ends the question
  });
  const pcm = samplesOf(readFileSync(question));
  for (let at = 0; at < pcm.length; at += CHUNK) {
    realtime.send({ type: "input_audio_buffer.append", audio: pcm.subarray(at, at + CHUNK).toString("base64") });
  }
  realtime.send({ type: "input_audio_buffer.commit" });
  realtime.send({ type: "response.create" });
});
realtime.on("conversation.item.input_audio_transcription.completed", (event) => {
  console.log(`you: ${event.transcript}`);
});
realtime.on("response.output_audio.delta", (event) => {
  audio.push(Buffer.from(event.delta, "base64"));
});
realtime.on("response.output_audio_transcript.done", (event) => {
  console.log(`sg2: ${event.transcript}`);
});
realtime.on("response.done", (event) => {
  if (event.response.status !== "completed") console.error(`the response is ${event.response.status}`);
  writeFileSync(answer, wavFile(Buffer.concat(audio)));
  realtime.close();
});
realtime.on("error", (error) => {
  console.error(`error: ${error.message}`);
  process.exitCode = 1;
  realtime.close();
});

/** Return the samples of a WAV file: what follows the header of its chunk "data". */
function samplesOf(file: Buffer): Buffer {
  const at = file.indexOf("data");
  if (file.toString("latin1", 0, 4) !== "RIFF" || at < 0) throw new Error("the question is not a WAV file");
  return file.subarray(at + 8, at + 8 + file.readUInt32LE(at + 4));
}

/** Return a WAV file of 16-bit mono samples. */
function wavFile(pcm: Buffer): Buffer {
  const header = Buffer.alloc(44);
  header.write("RIFF", 0);
  header.writeUInt32LE(36 + pcm.length, 4);
  header.write("WAVEfmt ", 8);
  header.writeUInt32LE(16, 16);
  header.writeUInt16LE(1, 20);
  header.writeUInt16LE(1, 22);
  header.writeUInt32LE(RATE, 24);
  header.writeUInt32LE(RATE * 2, 28);
  header.writeUInt16LE(2, 32);
  header.writeUInt16LE(16, 34);
  header.write("data", 36);
  header.writeUInt32LE(pcm.length, 40);
  return Buffer.concat([header, pcm]);
}
