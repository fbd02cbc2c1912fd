"""`sg2 greeting`: greetings, which open a conversation and set the voice of the replies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from speechgpt2.cli.common import CodecName, Device, ModelName, print_warning, spinner, torch_device
from speechgpt2.errors import MissingDependency, UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.lm.prompt import Prompt
    from speechgpt2.lm.segments import AlignedSpeech
    from speechgpt2.tts.utterance import Word

MAX_SECONDS = 20.0  # of a greeting, which takes part of every session's context

Out = Annotated[Path, typer.Argument(help="The file of greetings, to which the greeting is added.", metavar="OUT")]
GreetingText = Annotated[str, typer.Option(help="What the greeting says.", metavar="TEXT")]
VoiceFile = Annotated[Path | None, typer.Option(help="A recording of the text by the voice.", metavar="AUDIO")]
EngineVoice = Annotated[
    str | None,
    typer.Option(
        "--voice",
        help="A voice of a synthesis engine that says the text: kokoro/af_heart, flite/slt, espeak/f2, …",
        metavar="ENGINE/NAME",
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the voice. [default: known by its index]", metavar="NAME")]
IsDefault = Annotated[bool, typer.Option("--default", help="Use this voice where none is chosen.")]
Language = Annotated[Literal["en", "zh"] | None, typer.Option(help="Language of the text. [default: by its script]")]


def make(
    out: Out,
    text: GreetingText,
    voice_file: VoiceFile = None,
    voice: EngineVoice = None,
    name: Name = None,
    default: IsDefault = False,
    lang: Language = None,
    model: ModelName = "mini",
    codec: CodecName = None,
    device: Device = "auto",
) -> None:
    """Add a greeting to a file in the released format: a text, and its speech as a recording or by a synthesis voice.

    The words are laid out beside the speech as they are spoken. Put the file beside the model as greetings.jsonl, or
    give it with --greetings: `sg2 chat --greetings OUT --voice NAME`.
    """
    from speechgpt2 import hub
    from speechgpt2.greeting_file import check_name
    from speechgpt2.languages import language_of
    from speechgpt2.lm.greetings import add_greeting
    from speechgpt2.types import FRAME_RATE

    if (voice_file is None) == (voice is None):
        raise UserError("give one of --voice-file and --voice")
    if not text.strip():
        raise UserError("--text is empty")
    if name is not None:
        check_name(name)
    hub.check_writable(out)
    language = lang or language_of(text)
    pcm, words = read_recording(voice_file, text, language) if voice_file else synthesize(str(voice), text, language)
    prompt, speech = lay_out(pcm, words, text, model, codec, device)
    add_greeting(out, speech, name, default, prompt)
    seconds = len(speech.codes) / FRAME_RATE
    print(f"{out}: {f'voice {name}' if name else 'a greeting'}, {seconds:.2f} s in {len(speech.tokens)} patches")


def lay_out(
    pcm: np.ndarray, words: tuple[Word, ...], text: str, model: str, codec: str | None, device: str
) -> tuple[Prompt, AlignedSpeech]:
    """Encode `pcm [N]`, and lay out its words as the model's prompt does.

    Raises:
        UserError: the speech is too long, or the model cannot be loaded.
    """
    import torch

    from speechgpt2 import hub
    from speechgpt2.codec.model import Codec
    from speechgpt2.lm.checkpoint import open_checkpoint
    from speechgpt2.lm.prompt import Prompt
    from speechgpt2.types import SAMPLE_RATE

    if len(pcm) > MAX_SECONDS * SAMPLE_RATE:
        raise UserError(f"a greeting of {len(pcm) / SAMPLE_RATE:.1f} s is too long; at most {MAX_SECONDS:g} s")
    with spinner(f"loading {codec or model}"):
        checkpoint, codec_device = open_checkpoint(model), torch_device(device)
        prompt = Prompt(checkpoint.config, hub.load_tokenizer(checkpoint.folder))
        encoder = Codec.from_pretrained(codec or model, device=codec_device)
        codes = encoder.encode(torch.from_numpy(pcm).to(codec_device)[None])[0].cpu()
    return prompt, prompt.align_speech(codes, words, text)


def synthesize(voice: str, text: str, lang: Literal["en", "zh"]) -> tuple[np.ndarray, tuple[Word, ...]]:
    """Have a synthesis engine say the text.

    Returns:
        `pcm [N]` at 24 kHz, and the words with their times.

    Raises:
        UserError: there is no such engine or voice, or it cannot say the text.
    """
    from speechgpt2.tts.engines import ENGINES
    from speechgpt2.tts.espeak import MANDARIN
    from speechgpt2.tts.utterance import Voice
    from speechgpt2.tts.voices import speak

    engine, _, speaker = voice.partition("/")
    if engine not in ENGINES or not speaker:
        raise UserError(f"--voice {voice}: expected ENGINE/NAME, as kokoro/af_heart; engines: {', '.join(ENGINES)}")
    accent = {"zh": MANDARIN, "en": "en-us"}[lang] if engine == "espeak" else ""
    try:
        with spinner(f"speaking with {voice}"):
            utterance = speak(text, Voice(engine, speaker, lang, accent))
    except UserError:
        raise
    except ValueError as error:  # the text gives no audio
        raise UserError(f"--voice {voice}: {error}") from None
    return utterance.pcm, utterance.words


def read_recording(path: Path, text: str, lang: Literal["en", "zh"]) -> tuple[np.ndarray, tuple[Word, ...]]:
    """Read a recording of the text, without the silence around it, at the level of synthesized speech.

    Returns:
        `pcm [N]` at 24 kHz, and the words with their times; no words where alignment needs what is not installed.

    Raises:
        UserError: the file cannot be read, holds no sound, or does not say the text.
    """
    from speechgpt2 import audio
    from speechgpt2.dsp.levels import active_span, normalise_level
    from speechgpt2.tts.alignment.align import align_speech
    from speechgpt2.tts.alignment.viterbi import Unalignable

    pcm = audio.load(path, 2 * MAX_SECONDS)
    span = active_span(pcm)
    if span is None:
        raise UserError(f"{path}: holds no sound")
    pcm = normalise_level(pcm[span[0] : span[1]], 0.0)
    try:
        with spinner(f"aligning {path.name}"):
            return pcm, align_speech(pcm, text, lang)[0].words
    except Unalignable as error:
        raise UserError(f"{path}: does not say {text!r} ({error})") from None
    except MissingDependency as error:
        print_warning(f"the words are laid out from the start, without their times: {error}")
        return pcm, ()
