"""`sg2 chat`, `sg2 say` and `sg2 transcribe`: the whole model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from speechgpt2.cli.common import CodecName, Device, DType, ModelName, load_model, working
from speechgpt2.cli.microphone import Speaker, questions, sounddevice
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.lm.sampling import Sampling
    from speechgpt2.types import Mode, Speech, Turn

PAUSE = 0.5  # seconds between two answers in one file

Sounds = Annotated[list[Path] | None, typer.Argument(help="Spoken questions, one turn each.", metavar="SOUND...")]
Texts = Annotated[
    list[str] | None, typer.Option("--text", "-t", help="A typed question; may be given several times.", metavar="TEXT")
]
AnswerOut = Annotated[
    Path | None, typer.Option("--out", "-o", help="A .wav or .flac file for the answers, one after the other.")
]
SoundOut = Annotated[Path, typer.Option("--out", "-o", help="A .wav or .flac file.")]
ModeName = Annotated[
    Literal["s2s", "s2t", "t2s", "t2t"] | None,
    typer.Option(
        help="Who speaks (s) and who writes (t): you, then the model. If not given: what fits the other options."
    ),
]
Greeting = Annotated[Path | None, typer.Option(help="A recording that the model has begun with.", metavar="SOUND")]
GreetingText = Annotated[str | None, typer.Option(help="What is said in the greeting.", metavar="TEXT")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest, 1 draws from what the model thinks.")]
TopK = Annotated[int, typer.Option(min=0, help="Draw from the K likeliest; 0: from all.")]
TopP = Annotated[float, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest that make up P together.")]
Seed = Annotated[int, typer.Option(min=0, help="The same seed gives the same answer.")]
Longest = Annotated[int, typer.Option("--max-patches", min=1, help="Longest answer, in patches of 120 ms.")]
Play = Annotated[bool, typer.Option("--play", help="Play the answers as they come.")]
Mic = Annotated[bool, typer.Option("--mic", help="Take questions from the microphone.")]


def chat(
    sounds: Sounds = None,
    texts: Texts = None,
    out: AnswerOut = None,
    mode: ModeName = None,
    model: ModelName = "mini",
    codec: CodecName = None,
    greeting: Greeting = None,
    greeting_text: GreetingText = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    max_patches: Longest = 1024,
    device: Device = "auto",
    dtype: DType = None,
    play: Play = False,
    mic: Mic = False,
) -> None:
    """Ask, and get an answer in speech and text.

    Several questions are the turns of one conversation: sound files in their order, then typed ones, then the
    microphone's.
    """
    turns = read_turns(sounds or [], texts or [])
    if not turns and not mic:
        raise UserError("nothing to answer: give a sound file, --text, or --mic")
    mode = mode or fitting_mode(spoken=bool(sounds) or mic, aloud=play or out is not None)
    check_output(out, mode, play)
    if play or mic:
        sounddevice()
    opening = read_greeting(greeting, greeting_text)
    talker = load_model(model, codec, device, dtype)
    sampling = draws(talker, temperature, top_k, top_p, seed)
    talk = talker.conversation(mode, greeting=opening, sampling=sampling, max_patches=max_patches)
    answers = [answer for answer in answer_all(talk, turns, mic, play) if len(answer)]
    if out is not None:
        save(out, answers)


def say(
    text: Annotated[str, typer.Argument(help="What to say.", metavar="TEXT")],
    out: SoundOut,
    model: ModelName = "mini",
    codec: CodecName = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 50,
    top_p: TopP = 0.9,
    seed: Seed = 0,
    max_patches: Longest = 1024,
    device: Device = "auto",
    dtype: DType = None,
) -> None:
    """Read a text aloud."""
    check_output(out, "t2s", play=False)
    if not text.strip():
        raise UserError("nothing to say: the text is empty")
    talker = load_model(model, codec, device, dtype)
    with working("speaking"):
        reply = talker.say(text, sampling=draws(talker, temperature, top_k, top_p, seed), max_patches=max_patches)
    save(out, [reply.pcm] if len(reply.pcm) else [])


def transcribe(
    sounds: Annotated[list[Path], typer.Argument(help="Sound files.", metavar="SOUND...")],
    model: ModelName = "mini",
    codec: CodecName = None,
    device: Device = "auto",
    dtype: DType = None,
) -> None:
    """Print what is said in sound files, a line each."""
    from speechgpt2 import audio

    recordings = [audio.load(path) for path in sounds]
    talker = load_model(model, codec, device, dtype)
    for pcm in recordings:
        with working("listening"):
            text = talker.transcribe(pcm)
        print(text, flush=True)


@dataclass(frozen=True)
class Question:
    """A turn of the user's; `shown` is what to print for it, None where the model may tell what it heard."""

    turn: Turn
    shown: str | None


def read_turns(sounds: list[Path], texts: list[str]) -> list[Question]:
    """Questions in the order in which they are asked. Errors: `UserError` for what cannot be read, or is empty."""
    from speechgpt2 import audio
    from speechgpt2.types import Turn

    if not all(text.strip() for text in texts):
        raise UserError("--text is empty")
    spoken = [Question(Turn.user(speech=audio.load(path)), None) for path in sounds]
    return spoken + [Question(Turn.user(text), text) for text in texts]


def read_greeting(path: Path | None, text: str | None) -> Speech | None:
    """The recording that the model has begun with, or None."""
    from speechgpt2 import audio
    from speechgpt2.types import Speech

    if path is None and text is not None:
        raise UserError("--greeting-text needs --greeting")
    return None if path is None else Speech(pcm=audio.load(path), text=text)


def fitting_mode(spoken: bool, aloud: bool) -> Mode:
    """The mode for questions that are `spoken` or typed, with a use for the answers' sound (`aloud`) or not."""
    if spoken:
        return "s2s"
    return "t2s" if aloud else "t2t"


def check_output(out: Path | None, mode: Mode, play: bool) -> None:
    """Errors: `UserError` unless the answers can be saved as asked, found out before any are made."""
    from speechgpt2 import audio, hub

    if mode.endswith("t") and (out is not None or play):
        raise UserError(f"in mode {mode} the model writes; leave out --out and --play")
    if out is not None:
        audio.check_format(out)
        hub.check_writable(out)


def draws(talker: Any, temperature: float, top_k: int, top_p: float, seed: int) -> Sampling:
    """How the model draws its tokens."""
    from speechgpt2.lm.sampling import Sampling

    return Sampling.of(1, temperature, top_k, top_p, seed, device=talker.lm.device)


def answer_all(talk: Any, turns: list[Question], mic: bool, play: bool) -> Iterator[np.ndarray]:
    """Ask one after the other, print what is heard and answered as it comes; yields the answers' `pcm [N]`."""
    with ExitStack() as stack:
        speaker = None
        if play:
            speaker = stack.enter_context(Speaker())
        for question in with_microphone(turns) if mic else turns:
            yield answer(talk, question, speaker)


def with_microphone(turns: list[Question]) -> Iterator[Question]:
    """The given questions, then those from the microphone."""
    from speechgpt2.types import Turn

    yield from turns
    yield from (Question(Turn.user(speech=pcm), None) for pcm in questions())


def answer(talk: Any, question: Question, speaker: Any) -> np.ndarray:
    """Ask one question; print the text, play the sound if there is a speaker, and return it, `pcm [N]`."""
    import numpy as np

    from speechgpt2.types import AudioDelta, TextDelta, Transcript

    if question.shown is not None:
        print(f"you: {question.shown}", flush=True)
    sound, written = [np.zeros(0, np.float32)], ""
    for event in talk.ask(question.turn, stream=True):
        if isinstance(event, Transcript):
            print(f"you: {event.text}", flush=True)
        elif isinstance(event, TextDelta):
            new = event.text if written else event.text.lstrip()
            print(new if written or not new else f"sg2: {new}", end="", flush=True)
            written += new
        elif isinstance(event, AudioDelta):
            sound.append(event.pcm)
            if speaker is not None:
                speaker.play(event.pcm)
    if written:
        print(flush=True)
    return np.concatenate(sound)


def save(out: Path, answers: Iterable[np.ndarray]) -> None:
    """Write the answers with a pause between them. Errors: `UserError` if the model did not speak."""
    import numpy as np

    from speechgpt2 import audio
    from speechgpt2.types import SAMPLE_RATE

    pause = np.zeros(int(PAUSE * SAMPLE_RATE), np.float32)
    pieces = [piece for pcm in answers for piece in (pause, pcm)][1:]
    if not pieces:
        raise UserError(f"the model did not speak; {out} was not written")
    pcm = np.concatenate(pieces)
    audio.save(out, pcm)
    print(f"{out}: {len(pcm) / SAMPLE_RATE:.2f} s")
