"""`sg2 chat` and `sg2 say`: a codec and a language model, without a server."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from speechgpt2.cli.audio_devices import BlockingPlayer, record_questions, sounddevice
from speechgpt2.cli.common import (
    GreetingIndex,
    Greetings,
    ModelName,
    VoiceName,
    announce_greeting,
    check_one_greeting,
    print_warning,
    spinner,
)
from speechgpt2.cli.options import LoadOptions, SamplingOptions, with_shared_options
from speechgpt2.cli.persona_options import PersonaName, Speed, StyleNames, greet, read_persona, read_style, with_tools
from speechgpt2.cli.saved_chat import Resume, Sessions, check_same_tools, new_session, resume_session, saving
from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from speechgpt2.assistant.toolbox import Toolbox
    from speechgpt2.chat import Conversation, SpeechGPT
    from speechgpt2.types import Event, Mode, Speech, Turn

PAUSE = 0.5  # seconds between two answers in one file
MAX_SECONDS = 480.0  # of a spoken question or greeting, which is as much as a conversation takes in at once

AudioFiles = Annotated[
    list[Path] | None, typer.Argument(help="Spoken questions, one turn per file.", metavar="AUDIO...")
]
Texts = Annotated[list[str] | None, typer.Option("--text", "-t", help="A typed question (repeatable).", metavar="TEXT")]
AnswersOut = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="A .wav or .flac file for the answers, in their order.", metavar="FILE"),
]
AudioOut = Annotated[Path, typer.Option("--out", "-o", help="A .wav or .flac file.", metavar="FILE")]
ModeName = Annotated[
    Literal["s2s", "s2t", "t2s", "t2t"] | None,
    typer.Option(
        help="Speech (s) or text (t): the questions', then the answers'. [default: follows from the other options]"
    ),
]
Greeting = Annotated[
    Path | None, typer.Option(help="A recording with which the assistant opens the conversation.", metavar="AUDIO")
]
GreetingText = Annotated[str | None, typer.Option(help="The transcript of the greeting.", metavar="TEXT")]
MaxPatches = Annotated[int, typer.Option(min=1, help="Maximum length of an answer, in patches of 120 ms.")]
Play = Annotated[bool, typer.Option("--play", help="Play the answers while they are generated.")]
Mic = Annotated[bool, typer.Option("--mic", help="Record questions from the microphone.")]
ToolFile = Annotated[
    Path | None,
    typer.Option("--tools", help="A Python file with functions that the model may call.", metavar="FILE.py"),
]
KnowledgeFile = Annotated[
    Path | None,
    typer.Option("--kb", help="A knowledge base (sg2 kb) that the model may search.", metavar="FILE"),
]
McpServers = Annotated[
    list[str] | None,
    typer.Option(
        "--mcp",
        help="An MCP server whose tools the model may call: a URL or a command line; repeatable.",
        metavar="ADDRESS",
    ),
]
ExpertName = Annotated[
    str | None,
    typer.Option(
        "--expert",
        help="A text model that the model may ask: its name and OpenAI-compatible address, as in "
        "qwen2.5@http://HOST/v1; a key is read from SG2_EXPERT_API_KEY.",
        metavar="NAME@URL",
    ),
]
SearchName = Annotated[
    str | None,
    typer.Option(
        "--search",
        help="A search engine that the model may ask: searxng@URL, ddgs, or kb@FILE, documents instead of the web.",
        metavar="ENGINE",
    ),
]


@with_shared_options
def chat(
    audio_files: AudioFiles = None,
    texts: Texts = None,
    out: AnswersOut = None,
    mode: ModeName = None,
    model: ModelName = "mini",
    greeting: Greeting = None,
    greeting_text: GreetingText = None,
    greetings: Greetings = None,
    greeting_index: GreetingIndex = None,
    voice: VoiceName = None,
    *,
    sampling: SamplingOptions,
    loading: LoadOptions,
    max_patches: MaxPatches = 1024,
    play: Play = False,
    mic: Mic = False,
    tools: ToolFile = None,
    kb: KnowledgeFile = None,
    mcp: McpServers = None,
    expert: ExpertName = None,
    search: SearchName = None,
    persona: PersonaName = None,
    speed: Speed = 1.0,
    style: StyleNames = None,
    sessions: Sessions = None,
    resume: Resume = None,
) -> None:
    """Answer spoken or typed questions in speech and text.

    Several questions are the turns of one conversation: audio files first, then typed questions, then the
    microphone's.
    """
    from speechgpt2.assistant.sources import ToolSources

    questions = read_questions(audio_files or [], texts or [])
    if not questions and not mic:
        raise UserError("no question: give an audio file, --text or --mic")
    options_fixed_by_session: dict[str, object] = {
        "mode": mode,
        "greeting": greeting,
        "greeting-text": greeting_text,
        "greetings": greetings,
        "greeting-index": greeting_index,
        "voice": voice,
        "persona": persona,
        "style": style,
        "speed": None if speed == 1.0 else speed,
    }
    file, saved = resume_session(sessions, resume, options_fixed_by_session)
    if saved is not None:
        mode = "s2s" if saved.settings.get("speak") else "s2t"
    mode = mode or default_mode(spoken=bool(audio_files) or mic, audible=play or out is not None)
    check_output(out, mode, play)
    if play or mic:
        sounddevice()
    check_one_greeting(greeting=greeting, voice=voice, greeting_index=greeting_index)
    check_one_greeting(greeting=greeting, greetings=greetings)
    opening = read_greeting(greeting, greeting_text)
    who = read_persona(persona)
    reply_style = read_style(style, who)
    toolbox = with_tools(ToolSources(tools, kb, tuple(mcp or ()), expert, search), who).open()
    if who is not None and voice is None and opening is None and greeting_index is None:
        voice = who.voice
    speechgpt = loading.load(model, greetings=greetings, greeting_index=greeting_index, voice=voice)
    if opening is None and saved is None:
        announce_greeting(speechgpt.lm.prompt, model)
    toolbox = toolbox if can_call_tools(speechgpt, model, toolbox) else None
    offered = toolbox.tools if toolbox else ()
    params = sampling.params(speechgpt.lm)
    if saved is not None:
        conversation = speechgpt.load_conversation(saved, params)
        check_same_tools(conversation.tools, offered)
    else:
        system = None if who is None else who.prompt
        conversation = speechgpt.conversation(
            mode, opening, params, system, max_patches, offered, style=reply_style, speed=speed
        )
    if sessions is not None:
        file = file or new_session(sessions, conversation, model)
    spoken = greet(speechgpt, conversation, who if opening is None else None, play)
    answered = saving(answer_all(conversation, questions, mic, play, toolbox), conversation, file, saved)
    answers = [pcm for pcm in chain(spoken, answered) if len(pcm)]
    if out is not None:
        save(out, answers)


@with_shared_options
def say(
    text: Annotated[str, typer.Argument(help="The text to speak.", metavar="TEXT")],
    out: AudioOut,
    model: ModelName = "mini",
    *,
    sampling: SamplingOptions,
    loading: LoadOptions,
    max_patches: MaxPatches = 1024,
    greetings: Greetings = None,
    voice: VoiceName = None,
    play: Play = False,
    speed: Speed = 1.0,
    style: StyleNames = None,
) -> None:
    """Speak a text (text to speech), sentence by sentence."""
    from speechgpt2 import long_form
    from speechgpt2.types import FRAME_SIZE

    check_output(out, "t2s", play)
    reply_style = read_style(style)
    if play:
        sounddevice()
    speechgpt = loading.load(model, greetings=greetings, voice=voice)
    params = sampling.params(speechgpt.lm)
    spoken: list[np.ndarray] = []
    faults: dict[str, list[str]] = {}  # the sentences of each
    with ExitStack() as stack:
        player = stack.enter_context(BlockingPlayer()) if play else None
        count = len(long_form.sentences(text))
        show = stack.enter_context(spinner(f"speaking 1/{count}"))
        for reply in speechgpt.read_aloud(text, params, max_patches, style=reply_style, speed=speed):
            spoken.append(reply.pcm)
            fault = long_form.speech_fault(reply.text, len(reply.codes) * FRAME_SIZE)
            if fault is not None or reply.reason == "length":
                faults.setdefault(fault or "the speech was cut off", []).append(reply.text)
            if player is not None:
                player.play(reply.pcm)
            show(f"speaking {min(count, len(spoken) + 1)}/{count}")
    for fault, texts in faults.items():
        print_warning(f"{fault} in {len(texts)} of {count} sentences, first in: {texts[0]}")
    save(out, [pcm for pcm in spoken if len(pcm)], pause=0.0)


@dataclass(frozen=True)
class Question:
    """A turn of the user; `shown`: the text to print for it, None where the model transcribes it."""

    turn: Turn
    shown: str | None


def read_questions(audio_files: list[Path], texts: list[str]) -> list[Question]:
    """Read the questions in the order of the conversation.

    Raises:
        UserError: a file cannot be read, or a text is empty.
    """
    from speechgpt2 import audio
    from speechgpt2.types import Turn

    if not all(text.strip() for text in texts):
        raise UserError("--text is empty")
    recordings = [audio.cut_silent_end(audio.load(path, MAX_SECONDS)) for path in audio_files]
    spoken = [Question(Turn.user(speech=pcm), None) for pcm in recordings]
    return spoken + [Question(Turn.user(text), text) for text in texts]


def read_greeting(path: Path | None, text: str | None) -> Speech | None:
    """Read the assistant's greeting, if there is one. Raises `UserError` for a transcript without a recording."""
    from speechgpt2 import audio
    from speechgpt2.types import Speech

    if path is None and text is not None:
        raise UserError("--greeting-text needs --greeting")
    return None if path is None else Speech(pcm=audio.load(path, MAX_SECONDS), text=text)


def default_mode(spoken: bool, audible: bool) -> Mode:
    """Choose the mode.

    Args:
        spoken: the questions are audio.
        audible: the answers' audio is saved or played.
    """
    if spoken:
        return "s2s"
    return "t2s" if audible else "t2t"


def check_output(out: Path | None, mode: Mode, play: bool) -> None:
    """Check before the model is loaded that the answers can be saved as asked.

    Raises:
        UserError: the mode gives no audio, or the file cannot be written.
    """
    from speechgpt2 import audio, hub

    if mode.endswith("t") and (out is not None or play):
        raise UserError(f"mode {mode} gives no audio: leave out --out and --play, or choose s2s or t2s")
    if out is not None:
        audio.check_format(out)
        hub.check_writable(out)


def can_call_tools(speechgpt: SpeechGPT, model: str, toolbox: Toolbox | None) -> bool:
    """Return whether the model can call tools; print a warning if it cannot and there are some."""
    trained = bool(speechgpt.lm.prompt.template.tools)
    if toolbox is not None and not trained:
        print_warning(f"{model} was not trained to call tools and answers without them; use a model that was")
    return trained


def answer_all(
    conversation: Conversation, questions: list[Question], mic: bool, play: bool, toolbox: Toolbox | None = None
) -> Iterator[np.ndarray]:
    """Ask one question after the other and print transcripts and answers as they come.

    Yields:
        `pcm [N]` of each answer.
    """
    with ExitStack() as stack:
        player = stack.enter_context(BlockingPlayer()) if play else None
        for question in with_microphone(questions) if mic else questions:
            yield answer(conversation, question, player, toolbox)


def with_microphone(questions: list[Question]) -> Iterator[Question]:
    """Iterate over the given questions, then over those from the microphone."""
    from speechgpt2.types import Turn

    yield from questions
    yield from (Question(Turn.user(speech=pcm), None) for pcm in record_questions())


def answer(
    conversation: Conversation, question: Question, player: BlockingPlayer | None, toolbox: Toolbox | None = None
) -> np.ndarray:
    """Ask one question, print the text and play the audio of the answer; print tool calls and results on stderr.

    Returns:
        The answer's `pcm [N]`.
    """
    import numpy as np

    from speechgpt2.types import AudioDelta, ReplyDone, TextDelta, Transcript

    if question.shown is not None:
        print(f"you: {question.shown}", flush=True)
    chunks, printed = [np.zeros(0, np.float32)], ""
    for event in ask(conversation, question.turn, toolbox):
        if isinstance(event, Transcript):
            print(f"you: {event.text}", flush=True)
        elif isinstance(event, ReplyDone) and printed:
            print(flush=True)
            printed = ""
        elif isinstance(event, TextDelta):
            new = event.text if printed else event.text.lstrip()
            print(new if printed or not new else f"sg2: {new}", end="", flush=True)
            printed += new
        elif isinstance(event, AudioDelta):
            chunks.append(event.pcm)
            if player is not None:
                player.play(event.pcm)
    if printed:
        print(flush=True)
    return np.concatenate(chunks)


def ask(conversation: Conversation, turn: Turn, toolbox: Toolbox | None) -> Iterator[Event]:
    """Ask with or without tools. Tool calls and results go to stderr, all other events to the caller."""
    if toolbox is None:
        yield from conversation.ask(turn, stream=True)
        return
    from speechgpt2.assistant.loop import stream
    from speechgpt2.assistant.toolbox import ToolResult

    for event in stream(conversation, turn, toolbox):
        if isinstance(event, ToolResult):
            print(f"tool: {event.call.name}({event.call.arguments}) → {event.text}", file=sys.stderr, flush=True)
        else:
            yield event


def save(out: Path, answers: Iterable[np.ndarray], pause: float = PAUSE) -> None:
    """Write the answers with a pause of `pause` seconds between them.

    Raises:
        UserError: the model gave no audio.
    """
    import numpy as np

    from speechgpt2 import audio
    from speechgpt2.types import SAMPLE_RATE

    silence = np.zeros(int(pause * SAMPLE_RATE), np.float32)
    pieces = [piece for pcm in answers for piece in (silence, pcm)][1:]
    if not pieces:
        raise UserError(f"the model gave no audio; {out} was not written")
    pcm = np.concatenate(pieces)
    audio.save(out, pcm)
    print(f"{out}: {len(pcm) / SAMPLE_RATE:.2f} s")
