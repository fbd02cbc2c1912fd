"""Shows training examples: text, patches and audio.

Text that the model learns to write is in «», and speech that it learns to speak is marked:

    You should answer …[|Human|]: <|sosp|>(25 patches of speech)<|eosp|> ###[|SpeechGPT|]: «Three. ###<|im_end|>»
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import torch

from speechgpt2 import audio
from speechgpt2.codec.model import Codec
from speechgpt2.corpus.task_dataset import TaskSource
from speechgpt2.lm.example import TrainingExample
from speechgpt2.lm.prompt import Prompt


def show_examples(source: TaskSource, codec: Codec, count: int, folder: Path) -> None:
    """Print `count` examples of each task of the mix, and write their speech to `folder` as WAV files."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in source.tasks:
        for number, example in enumerate(source.first_examples(task, count)):
            print(f"\n{task} {number + 1}: {summary(example)}\n{describe(source.prompt, example)}")
            for index, codes in enumerate(speech_of(source.prompt, example)):
                path = folder / f"{task}-{number + 1}-{index + 1}.wav"
                with torch.no_grad():
                    audio.save(path, codec.decode(codes[None].to(codec.device))[0].cpu().numpy())
                print(f"  {path}")


def summary(example: TrainingExample) -> str:
    """Return a line: the length of an example, and how many tokens and patches of it the model learns."""
    text, codes = int(example.text_loss_mask.sum()), int(example.code_loss_mask.sum())
    return f"{example.patches.text.shape[1]} patches; learnt are {text} text tokens and the speech of {codes} patches"


def describe(prompt: Prompt, example: TrainingExample) -> str:
    """Return an example as one line of text."""
    ids, decode = prompt.special_ids, prompt.tokenizer.decode
    speaking = (example.patches.codes[0, :, 0, 0] != prompt.config.no_speech).tolist()
    learnt, spoken = example.text_loss_mask[0].tolist(), example.code_loss_mask[0].tolist()
    tokens, texts = example.targets[0].tolist(), []
    for (in_speech, is_learnt, is_spoken), group in groupby(
        range(len(tokens)), lambda i: (speaking[i], learnt[i] and not speaking[i], spoken[i])
    ):
        positions = list(group)
        words = [tokens[i] for i in positions if tokens[i] not in (ids.filler, ids.last_filler)]
        text = decode(words, skip_special_tokens=False)
        if in_speech:
            learns = ", learnt" if is_spoken else ""
            text = f"({len(positions)} patches of speech{learns}{': ' + text if text else ''})"
        texts.append(f"«{text}»" if is_learnt else text)
    return "".join(texts).replace("\n", "⏎")


def speech_of(prompt: Prompt, example: TrainingExample) -> list[torch.Tensor]:
    """Return the codes `[T, K]` of each speech segment."""
    codes = example.patches.codes[0]
    speaking = (codes[:, 0, 0] != prompt.config.no_speech).tolist()
    segments = []
    for is_speech, group in groupby(range(len(speaking)), lambda i: speaking[i]):
        if is_speech:
            positions = list(group)
            segments.append(codes[positions[0] : positions[-1] + 1].flatten(0, 1))
    return segments
