"""Evaluates a codec beside Codec2: held-out speech through both, by the same measures and judges.

    sg2 eval codec mini --asr FOLDER --real-speech FOLDER --out results/

There are two tables, with a row for each codec and set of speech. *Signal* compares each reconstruction with its
original, after removing the codec's declared delay and the shift within ± 5 ms that fits best (`metrics.align`).
*Judges* has the errors of an ASR model, DNSMOS and speaker similarity; the first row of each set is the control: the
originals. `--out` also receives codec.json, codec.md (the README's tables) and spectrograms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechgpt2.asr import count_errors
from speechgpt2.asr.error_rate import error_name
from speechgpt2.errors import UserError
from speechgpt2.eval import judges, metrics, report, speech_sets
from speechgpt2.eval.boersma_pitch import track_pitch
from speechgpt2.eval.codec_systems import CODEC2_MODES, Codec2, CodecSystem, OwnCodec, Reconstruction, has_codec2
from speechgpt2.eval.judges import Judges, Wave
from speechgpt2.eval.report import column
from speechgpt2.eval.speaker_similarity import Embedding, baselines, similarity
from speechgpt2.eval.spectrogram import save_spectrograms
from speechgpt2.eval.speech_sets import SpeechClip
from speechgpt2.languages import NAMES
from speechgpt2.tts.voices import HELD_OUT_VOICES, Voice
from speechgpt2.types import SAMPLE_RATE

ORIGINAL = "original"
SPEAKERS = {"classic": HELD_OUT_VOICES}  # sets of held-out voices, by the name that tables give them


@dataclass(frozen=True)
class CodecRow:
    """One codec on one set of speech: means over its clips; nan where nothing could be measured."""

    test_set: str = column("speech")
    codec: str = column("codec")
    bitrate: int = column("bit/s", ",")
    stoi: float = column("STOI ↑", ".3f")
    pesq_wb: float = column("PESQ-WB ↑", ".2f")
    pesq_nb: float = column("PESQ-NB ↑", ".2f")
    gross_pitch_error: float = column("gross pitch error ↓", ".3f")
    voicing_error: float = column("voicing error ↓", ".3f")
    hop_lock: float = column("100 Hz buzz ↓", ".3f")
    mel_cepstral_distortion: float = column("MCD dB ↓", ".2f")
    perplexity: tuple[float, ...] | None = column("codes in use", ".0f")
    clips: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class JudgeRow:
    """The judges' results for one codec on one set of speech, or for the originals.

    Attributes:
        error_rate: ASR errors against the transcript; where there is none, against the judge's own transcript of the
            original (nan for the original itself).
        similarity: Similarity of a clip's voice to that of its original.
        same_speaker: Similarity of different originals of one speaker.
        other_speaker: Similarity of originals of different speakers.
    """

    test_set: str = column("speech")
    codec: str = column("codec")
    clips: int = column("n", "d")
    error_name: str = column("ASR")
    error_rate: float = column("errors ↓", ".3f")
    mos: float = column("DNSMOS ↑", ".2f")
    similarity: float = column("similarity ↑", ".2f")
    same_speaker: float = column("same speaker", ".2f")
    other_speaker: float = column("other speaker", ".2f")


def measure(reference: np.ndarray, degraded: np.ndarray) -> dict[str, float]:
    """Compare an aligned pair `[N]`, `[N]` at 24 kHz, by the names that `CodecRow` has for the means."""
    f0, f0_degraded = track_pitch(reference), track_pitch(degraded)
    return {
        "stoi": metrics.stoi(reference, degraded),
        "pesq_wb": metrics.pesq(reference, degraded, "wb"),
        "pesq_nb": metrics.pesq(reference, degraded, "nb"),
        "gross_pitch_error": metrics.gross_pitch_error(f0, f0_degraded),
        "voicing_error": metrics.voicing_error(f0, f0_degraded),
        "hop_lock": metrics.hop_lock(f0, f0_degraded),
        "mel_cepstral_distortion": metrics.mel_cepstral_distortion(reference, degraded),
    }


def codec_row(
    system: CodecSystem, name: str, clips: Sequence[SpeechClip], copies: Sequence[Reconstruction]
) -> CodecRow:
    """Return the signal measures of `system` on the set `name`; `copies`: its reconstructions of `clips`."""
    pairs = [metrics.align(clip.pcm, copy.pcm, system.delay) for clip, copy in zip(clips, copies, strict=True)]
    measures = [measure(*pair) for pair in pairs]
    means = {name: _mean([values[name] for values in measures]) for name in measures[0]}
    codes = [copy.codes for copy in copies if copy.codes is not None]
    return CodecRow(
        test_set=name,
        codec=system.name,
        bitrate=system.bitrate,
        perplexity=metrics.perplexity(np.concatenate(codes)) if codes else None,
        clips=len(clips),
        seconds=round(sum(len(clip.pcm) for clip in clips) / SAMPLE_RATE, 1),
        **means,
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


class EvaluatedSet:
    """One set of speech, for which the judges' rows are made: first the originals', then one for each codec.

    Args:
        name: The set's name.
        clips: The originals.
        panel: The judges.
        embeddings: Speaker embeddings of the originals.
    """

    def __init__(
        self, name: str, clips: Sequence[SpeechClip], panel: Judges, embeddings: Sequence[Embedding | None]
    ) -> None:
        self.name, self.clips, self.panel, self.embeddings = name, clips, panel, embeddings
        self.speakers = [clip.speaker for clip in clips]
        self.same, self.other = baselines(embeddings, self.speakers)
        self.lang = clips[0].lang
        self.has_text = all(clip.text for clip in clips)
        self.transcripts: list[str] = []
        if panel.knows(self.lang):
            self.transcripts = panel.transcribe([clip.pcm for clip in clips], self.lang)

    def original(self) -> JudgeRow:
        """Return the row of the original clips: the control."""
        waves = [clip.pcm for clip in self.clips]
        rate = self._errors([clip.text for clip in self.clips], self.transcripts) if self.has_text else float("nan")
        return self._row(ORIGINAL, rate, waves, float("nan"))

    def row(self, codec: str, waves: Sequence[Wave]) -> JudgeRow:
        """Return the row of `codec`, whose reconstructions of the clips are `waves`."""
        references = [clip.text for clip in self.clips] if self.has_text else self.transcripts
        rate = self._errors(references, self.panel.transcribe(waves, self.lang) if self.transcripts else [])
        pairs = list(zip(self.embeddings, self.panel.embed(waves), strict=True))
        return self._row(codec, rate, waves, similarity(pairs))

    def _errors(self, references: Sequence[str], transcripts: Sequence[str]) -> float:
        return count_errors(references, transcripts, self.lang or "en").rate if transcripts else float("nan")

    def _row(self, codec: str, rate: float, waves: Sequence[Wave], to_original: float) -> JudgeRow:
        return JudgeRow(
            test_set=self.name,
            codec=codec,
            clips=len(waves),
            error_name=error_name(self.lang) if self.transcripts else "–",
            error_rate=rate,
            mos=self.panel.mean_opinion(waves),
            similarity=to_original,
            same_speaker=self.same,
            other_speaker=self.other,
        )


def build_sets(
    clips: int, real_speech: str | Path | None, speakers: Mapping[str, Mapping[str, Sequence[Voice]]]
) -> dict[str, list[SpeechClip]]:
    """Return the held-out speech by name: each set of voices in both languages, then the recordings of people."""
    sets = {
        f"{name} {language}": speech_sets.synthetic(lang, clips, voices[lang])
        for name, voices in speakers.items()
        for lang, language in NAMES.items()
    }
    return sets if real_speech is None else sets | speech_sets.recorded(real_speech, clips)


def evaluate(
    systems: Sequence[CodecSystem],
    sets: Mapping[str, Sequence[SpeechClip]],
    panel: Judges,
    advance: Callable[[], Any] = lambda: None,
) -> tuple[list[CodecRow], list[JudgeRow]]:
    """Evaluate every codec on every set of speech; the rows of a set stand together.

    Args:
        systems: The codecs.
        sets: Clips by the name of their set.
        panel: The judges of the second table; without any it is empty.
        advance: Called after each codec and set, and after the originals of a set.
    """
    rows: list[CodecRow] = []
    judge_rows: list[JudgeRow] = []
    for name, clips in sets.items():
        evaluated = None
        if panel.asr or panel.mos or panel.speaker:
            evaluated = EvaluatedSet(name, clips, panel, panel.embed([clip.pcm for clip in clips]))
            judge_rows.append(evaluated.original())
        advance()
        for system in systems:
            copies = [system.reconstruct(clip.pcm) for clip in clips]
            rows.append(codec_row(system, name, clips, copies))
            if evaluated is not None:
                judge_rows.append(evaluated.row(system.name, [copy.pcm[system.delay :] for copy in copies]))
            advance()
    return rows, judge_rows


def main(
    model: Any = "mini",
    real_speech: str | Path | None = None,
    out: str | Path | None = None,
    clips: int = 36,
    peers: bool = True,
    asr: str | Path | None = None,
    threads: int = 1,
    speakers: Mapping[str, Mapping[str, Sequence[Voice]]] = SPEAKERS,
    device: str = "cpu",
) -> tuple[list[CodecRow], list[JudgeRow]]:
    """Evaluate a codec, print the tables and return their rows.

    Args:
        model: A name, a folder, or a `Codec`; None for Codec2 alone.
        real_speech: A folder of recordings, as `speech_sets.recorded` takes it.
        out: A folder for codec.json, codec.md and a spectrogram of each set.
        clips: The number of clips of each set.
        peers: Whether Codec2 is evaluated, too.
        asr: The ASR judge, as `asr.load` takes it.
        threads: CPU threads of the judges.
        speakers: Sets of held-out voices, by name and language.
        device: Where the codec computes.

    Raises:
        UserError: A model, a judge, a voice or the folder cannot be used.
    """
    console, target, panel = Console(), report.make_folder(out), judges.load(asr, threads)
    systems: list[CodecSystem] = [] if model is None else [_own_codec(model, device)]
    if peers and has_codec2():
        systems += [Codec2(mode) for mode in CODEC2_MODES]
    elif peers:
        console.print("Codec2 is not installed (Debian: apt install codec2): it is in no row of these tables")
    sets = build_sets(clips, real_speech, speakers)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("evaluating", total=len(sets) * (len(systems) + 1))
        rows, judge_rows = evaluate(systems, sets, panel, lambda: progress.advance(task))
    tables: dict[str, list[Any]] = {"Codec: signal, means over clips": rows, "Codec: judges": judge_rows}
    content = {"rows": rows, "judge_rows": judge_rows, "asr": panel.asr.name if panel.asr else None}
    report.publish_evaluation("codec", tables, panel.notes, console, target, **content)
    if target is not None:
        try:
            for name, originals in sets.items():
                save_spectrograms(target / f"{name.lower().replace(' ', '-')}.png", originals[0].pcm, systems)
        except UserError as error:  # the numbers are useful without the pictures
            console.print(f"no spectrograms: {error}", markup=False)
    return rows, judge_rows


def _own_codec(model: Any, device: str) -> OwnCodec:
    if isinstance(model, (str, Path)):
        from speechgpt2.codec.model import Codec

        return OwnCodec(Path(model).name, Codec.from_pretrained(model, device=device))
    return OwnCodec("codec", model)
