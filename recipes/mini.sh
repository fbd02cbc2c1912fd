#!/usr/bin/env bash
# From nothing to the shipped small model: synthetic speech, codec, dialogues, language model, evaluation.
#
#   recipes/mini.sh [OUT] [REAL_SPEECH]
#
# The shipped weights came about by these steps, but for this: the first dialogues had no pauses around the questions yet (data/disturb.py), and
# questions that break off joined lm-more at step 500. OUT (runs/mini) takes some 10 GB. REAL_SPEECH is an optional folder with ljspeech/, fsdd/ and cmn/ recordings, which the codec then also
# learns from. Every step resumes where it was stopped; a finished step is not repeated. The
# voices that are held out of all training are `HELD_OUT_VOICES` in speechgpt2/data/voices.py. Needs `pip install -e '.[train,synthesis,eval]'`
# and the Debian package flite.
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
sg2 train codec recipes/mini/decoder.yaml --corpus "$out/speech" --init "$out/codec-half" --favour 6 --out "$out/decoder" --resume
sg2 convert "$out/lm-more" "$out/model" --dtype float16
sg2 convert "$out/decoder" "$out/model" --dtype float16
sg2 eval codec --codec "$out/model" ${real:+--real-speech "$real"}
sg2 eval mini --model "$out/model"
