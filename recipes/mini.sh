#!/usr/bin/env bash
# Trains the built-in model `mini` from nothing: synthetic speech, codec, dialogues, language model, evaluation. Stages 1
# to 9 learn from many quick voices, stages 10 to 12 go on with natural ones.
#
#   recipes/mini.sh [OUT] [REAL_SPEECH] [ASR]
#
# OUT (default runs/mini) needs some 17 GB. REAL_SPEECH is an optional folder with ljspeech/, fsdd/ and cmn/; the codec
# then also learns from these recordings. ASR is an optional faster-whisper folder, the independent judge of the result.
# Each step resumes where it stopped, and a finished step is not repeated.
# Needs the Debian package flite and `pip install -e '.[train,synthesis,kokoro,eval]'`.
#
# No step trains on the voices listed as HELD_OUT_VOICES in speechgpt2/tts/voices.py. The model card
# (speechgpt2/assets/mini/README.md) says how the shipped weights differ from this recipe.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/mini}
real=${2:-}
asr=${3:-}
run=(--resume --processes 2)

stage() { printf '\n== %s\n' "$1"; }

stage "1. Speech for the codec"
# Six hours of many synthetic voices, with pitch and phones as labels, and the real recordings if given.
sg2 data codec-corpus "$out/speech" --hours 6 ${real:+--real-speech "$real"}

stage "2. Codec, first run"
# Encoder, codebooks and decoder learn together. The result is stored in float16 at once: the language model learns the
# codes of exactly these weights.
sg2 train codec recipes/mini/codec.yaml --data "$out/speech" --favour 1.5 --out "$out/codec" "${run[@]}"
sg2 convert "$out/codec" "$out/codec-half" --dtype float16

stage "3. Language model, first run"
# Questions with answers, and texts to speak, teach the format, the skills and the assistant's two voices.
sg2 data dialogue-corpus "$out/dialogues" --exchanges 30000 --says 12000
sg2 train lm recipes/mini/lm.yaml --data "$out/dialogues" --codec "$out/codec-half" --out "$out/lm" "${run[@]}"

stage "4. Language model, more recognition"
# Utterances to transcribe (dictations) have unrelated words, so the model cannot guess them from the context.
sg2 data dialogue-corpus "$out/more" --exchanges 9000 --says 1500 --dictations 9000 --seed 1
sg2 train lm recipes/mini/lm-more.yaml --data "$out/more" --codec "$out/codec-half" \
    --init "$out/lm" --out "$out/lm-more" "${run[@]}"

stage "5. Language model, more voices"
# Each utterance has a new random speaker, and phone labels supervise recognition 25 times per second.
sg2 data dialogue-corpus "$out/voices" --exchanges 9000 --says 1000 --dictations 12000 --seed 2
sg2 train lm recipes/mini/lm-voices.yaml --data "$out/voices" --codec "$out/codec-half" \
    --init "$out/lm-more" --out "$out/lm-voices" "${run[@]}"

stage "6. Codec, second run: decoder only"
# The codes stay as they are. The decoder sees 60 ms ahead, and a phone recogniser in the loss keeps speech intelligible.
sg2 train codec recipes/mini/decoder.yaml --data "$out/speech" --init "$out/codec-half" --favour 6 \
    --out "$out/decoder" "${run[@]}"

stage "7. Codec, third run: all parts"
# The encoder also learns to ignore room acoustics and noise. The codes change, so the language model follows.
sg2 train codec recipes/mini/codec-further.yaml --data "$out/speech" --init "$out/decoder" --favour 3 \
    --out "$out/codec-further" "${run[@]}"
sg2 convert "$out/codec-further" "$out/codec-further-half" --dtype float16

stage "8. Language model on the new codes"
# It also learns to draft several text tokens per step.
sg2 data dialogue-corpus "$out/further" --exchanges 9000 --says 2500 --dictations 14000 --seed 4
sg2 train lm recipes/mini/lm-further.yaml --data "$out/further" --codec "$out/codec-further-half" \
    --init "$out/lm-voices" --out "$out/lm-further" "${run[@]}"

stage "9. Language model, still more recognition"
# Nearly all remaining errors are recognition errors, so this corpus is mostly dictations.
sg2 data dialogue-corpus "$out/recognition" --exchanges 10000 --says 1500 --dictations 22000 --seed 5
sg2 train lm recipes/mini/lm-recognition.yaml --data "$out/recognition" --codec "$out/codec-further-half" \
    --init "$out/lm-further" --out "$out/lm-recognition" "${run[@]}"

stage "10. Codec on natural voices"
# The codec grows, and goes on with Kokoro's voices and the real recordings if given. SG2_KOKORO names Kokoro's folder.
sg2 data codec-corpus "$out/natural-speech" --hours 10 --voices natural ${real:+--real-speech "$real"}
sg2 train codec recipes/mini/codec-natural.yaml --data "$out/natural-speech" --init "$out/codec-further" --favour 3 \
    --out "$out/codec-natural" "${run[@]}"
sg2 convert "$out/codec-natural" "$out/codec-natural-half" --dtype float16

stage "11. Language model on natural voices"
# Natural voices ask, two of them answer in each language, and all are imitated. Many other speakers and real single words
# are transcribed.
sg2 data dialogue-corpus "$out/natural" --exchanges 2000 --says 4000 --dictations 600 --takes 3 --voices natural --seed 31
sg2 data dialogue-corpus "$out/askers" --exchanges 1200 --says 0 --dictations 4000 --voices askers --seed 41
sources="$out/sources.yaml"
printf -- '- {path: "%s/%s", weight: %s}\n' "$out" natural 1 "$out" askers 0.4 >"$sources"
if [ -n "$real" ]; then
    sg2 data dialogue-corpus "$out/people" --exchanges 1 --says 0 --dictations 0 --takes 2 --voices askers --seed 14 \
        --real-speech "$real"
    printf -- '- {path: "%s/people", weight: 0.1}\n' "$out" >>"$sources"
fi
sg2 train lm recipes/mini/lm-natural.yaml --data "$sources" --codec "$out/codec-natural-half" \
    --init "$out/lm-recognition" --out "$out/lm-natural" --resume

stage "12. Language model, typed questions"
# Text costs no synthesis, and what it teaches is also known when somebody speaks.
python recipes/mini/typed.py "$out/typed" 14000
printf -- '- {path: "%s/typed", licence: own, held_out: 0}\n' "$out" | cat "$sources" - >"$out/typed.yaml"
sg2 train lm recipes/mini/lm-typed.yaml --data "$out/typed.yaml" --codec "$out/codec-natural-half" \
    --init "$out/lm-natural" --out "$out/lm-typed" --resume

stage "13. Export and evaluation"
# Both parts in float16 in one folder, as shipped; then the tables of docs/results.md.
sg2 convert "$out/lm-typed" "$out/model" --dtype float16
sg2 convert "$out/codec-natural" "$out/model" --dtype float16
sg2 eval codec --codec "$out/model" --voices natural ${real:+--real-speech "$real"} ${asr:+--asr "$asr"}
sg2 eval speech --model "$out/model" --teacher natural ${asr:+--asr "$asr"}
sg2 eval mini --model "$out/model" --voices natural ${real:+--real-speech "$real"} ${asr:+--asr "$asr"}
