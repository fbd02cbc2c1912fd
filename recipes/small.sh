#!/usr/bin/env bash
# A speech model from a text model, in four stages (docs/training.md).
#
#   recipes/small.sh TEXT_MODEL DATA.yaml [OUT] [CODEC]
#
# TEXT_MODEL is a Hugging Face folder or id, or a GGUF file, such as Qwen2.5-0.5B. DATA.yaml lists transcribed speech,
# plain texts and dialogues. Each stage resumes where it stopped. STEPS=20 shortens each stage, to try the recipe.
# Needs `pip install -e '.[train,data]'`. docs/training.md says what was tried; the whole needs an accelerator.
set -euo pipefail
cd "$(dirname "$0")/.."
model=${1:?usage: recipes/small.sh TEXT_MODEL DATA.yaml [OUT] [CODEC]}
data=${2:?usage: recipes/small.sh TEXT_MODEL DATA.yaml [OUT] [CODEC]}
out=${3:-runs/small}
codec=${4:-mini}
mkdir -p "$out"

begin=(--text-model "$model")
for stage in 0-alignment 1-understanding 2-joint 3-dialogue; do
    printf '\n== stage %s\n' "$stage"
    config=recipes/small/$stage.yaml
    if [ -n "${STEPS:-}" ]; then
        sed -E "s/^steps: .*/steps: $STEPS/; s/^(rows|accumulate): .*/\1: 1/; s/^row_patches: .*/row_patches: 256/
            s/^(warmup|report_every|save_every): .*/\1: $(((STEPS + 3) / 4))/" "$config" >"$out/$stage.yaml"
        config=$out/$stage.yaml
    fi
    sg2 train lm "$config" --data "$data" --codec "$codec" "${begin[@]}" \
        --codes "$out/codes" --out "$out/$stage" --resume
    begin=(--init "$out/$stage")
done
