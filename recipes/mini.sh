#!/usr/bin/env bash
# From nothing to the shipped small model: synthetic speech, codec, dialogues, language model, evaluation.
#
#   recipes/mini.sh [OUT] [REAL_SPEECH]
#
# OUT (runs/mini) takes some 17 GB. REAL_SPEECH is an optional folder with ljspeech/, fsdd/ and cmn/ recordings, which the
# codec then also learns from. Every step resumes where it was stopped; a finished step is not repeated. The voices that
# are held out of all training are `HELD_OUT_VOICES` in speechgpt2/tts/voices.py. Needs the Debian package flite and
# `pip install -e '.[train,synthesis,eval]'`.
#
# The shipped weights came about by these steps, but parts of the code are younger than the steps before: pauses around
# the questions (tts/augment.py) came with lm-more, questions that break off at its step 500; speakers drawn at random
# and phones to learn hearing by came with lm-voices; the corpus that the decoder,
# and then the whole codec, last learnt from had speakers drawn at random, too (seed 3). codec-further, lm-further and
# lm-hearing began with what was shipped before them, in half precision.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs/mini}
real=${2:-}

sg2 data codec-corpus "$out/speech" --hours 6 ${real:+--real-speech "$real"}
sg2 train codec recipes/mini/codec.yaml --corpus "$out/speech" --favour 1.5 --out "$out/codec" --resume --processes 2
sg2 convert "$out/codec" "$out/codec-half" --dtype float16  # codes must not change after the language model has learnt them
sg2 data dialogue-corpus "$out/dialogues" --exchanges 30000 --says 12000
sg2 train lm recipes/mini/lm.yaml --corpus "$out/dialogues" --codec "$out/codec-half" --out "$out/lm" --resume --processes 2
sg2 data dialogue-corpus "$out/more" --exchanges 9000 --says 1500 --dictations 9000 --seed 1
sg2 train lm recipes/mini/lm-more.yaml --corpus "$out/more" --codec "$out/codec-half" --init "$out/lm" --out "$out/lm-more" --resume --processes 2
sg2 data dialogue-corpus "$out/voices" --exchanges 9000 --says 1000 --dictations 12000 --seed 2
sg2 train lm recipes/mini/lm-voices.yaml --corpus "$out/voices" --codec "$out/codec-half" --init "$out/lm-more" --out "$out/lm-voices" --resume --processes 2
sg2 train codec recipes/mini/decoder.yaml --corpus "$out/speech" --init "$out/codec-half" --favour 6 --out "$out/decoder" --resume --processes 2
sg2 train codec recipes/mini/codec-further.yaml --corpus "$out/speech" --init "$out/decoder" --favour 3 --out "$out/codec-further" --resume --processes 2
sg2 convert "$out/codec-further" "$out/codec-further-half" --dtype float16
sg2 data dialogue-corpus "$out/further" --exchanges 9000 --says 2500 --dictations 14000 --seed 4
sg2 train lm recipes/mini/lm-further.yaml --corpus "$out/further" --codec "$out/codec-further-half" --init "$out/lm-voices" --out "$out/lm-further" --resume --processes 2
sg2 data dialogue-corpus "$out/hearing" --exchanges 10000 --says 1500 --dictations 22000 --seed 5
sg2 train lm recipes/mini/lm-hearing.yaml --corpus "$out/hearing" --codec "$out/codec-further-half" --init "$out/lm-further" --out "$out/lm-hearing" --resume --processes 2
sg2 convert "$out/lm-hearing" "$out/model" --dtype float16
sg2 convert "$out/codec-further" "$out/model" --dtype float16
sg2 eval codec --codec "$out/model" ${real:+--real-speech "$real"}
sg2 eval mini --model "$out/model"
