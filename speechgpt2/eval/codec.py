"""How good is the codec? Held-out speech through it and through Codec2, judged by the same measures.

    sg2 eval codec mini --real-speech FOLDER --out results/

Prints one row per codec and test set; `--out` also receives codec.json, codec.md (the README's table) and
spectrograms. The output of every codec is moved by its declared delay and then by what fits best within ± 5 ms
(`metrics.align`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechgpt2.errors import UserError
from speechgpt2.eval import metrics, report
from speechgpt2.eval.peers import CODEC2_MODES, Codec2, Ours, Peer, has_codec2
from speechgpt2.eval.pitch import track
from speechgpt2.eval.report import column
from speechgpt2.eval.spectrogram import save_spectrograms
from speechgpt2.eval.testsets import Clip, recorded, synthetic
from speechgpt2.types import SAMPLE_RATE


@dataclass(frozen=True)
class CodecRow:
    """One codec on one test set: means over its clips; nan where nothing could be measured."""

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
class ClipScore:
    """The measures of one clip, under the names that `CodecRow` has for their means."""

    stoi: float
    pesq_wb: float
    pesq_nb: float
    gross_pitch_error: float
    voicing_error: float
    hop_lock: float
    mel_cepstral_distortion: float


def score(reference: np.ndarray, degraded: np.ndarray) -> ClipScore:
    """All measures of an aligned pair `[N]`, `[N]` at 24 kHz."""
    f0, f0_degraded = track(reference), track(degraded)
    return ClipScore(
        stoi=metrics.stoi(reference, degraded),
        pesq_wb=metrics.pesq(reference, degraded, "wb"),
        pesq_nb=metrics.pesq(reference, degraded, "nb"),
        gross_pitch_error=metrics.gross_pitch_error(f0, f0_degraded),
        voicing_error=metrics.voicing_error(f0, f0_degraded),
        hop_lock=metrics.hop_lock(f0, f0_degraded),
        mel_cepstral_distortion=metrics.mel_cepstral_distortion(reference, degraded),
    )


def judge(peer: Peer, name: str, clips: Sequence[Clip], done: Callable[[], Any] = lambda: None) -> CodecRow:
    """One row: `peer` on the test set `name`. `done` is called after each clip."""
    scores, codes = [], []
    for clip in clips:
        copy = peer.copy(clip.pcm)
        scores.append(score(*metrics.align(clip.pcm, copy.pcm, peer.delay)))
        codes.extend([] if copy.codes is None else [copy.codes])
        done()
    means = {key: _mean([getattr(s, key) for s in scores]) for key in ClipScore.__dataclass_fields__}
    return CodecRow(
        test_set=name,
        codec=peer.name,
        bitrate=peer.bitrate,
        perplexity=metrics.perplexity(np.concatenate(codes)) if codes else None,
        clips=len(clips),
        seconds=round(sum(len(clip.pcm) for clip in clips) / SAMPLE_RATE, 1),
        **means,
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def test_sets(real_speech: str | Path | None, clips: int) -> dict[str, list[Clip]]:
    """The held-out speech: synthetic voices in both languages, and the real recordings where a folder is given."""
    names = {"ljspeech": "LJ Speech", "fsdd": "English digits", "cmn-words": "Mandarin words"}
    sets = {"synthetic English": synthetic("en", clips), "synthetic Mandarin": synthetic("zh", clips)}
    if real_speech is not None:
        sets |= {names.get(key, key): value for key, value in recorded(real_speech, clips).items()}
    return sets


def run(peers: Sequence[Peer], sets: dict[str, list[Clip]], console: Console | None = None) -> list[CodecRow]:
    """Every peer on every test set, under a progress bar; sets outside, so that rivals stand next to each other."""
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("judging", total=len(peers) * sum(map(len, sets.values())))
        return [
            judge(peer, name, clips, lambda: progress.advance(task)) for name, clips in sets.items() for peer in peers
        ]


def main(
    model: Any = "mini",
    real_speech: str | Path | None = None,
    out: str | Path | None = None,
    clips: int = 36,
    peers: bool = True,
) -> list[CodecRow]:
    """Judge a codec (a name, a folder, or a `Codec`; None for the peers alone) and print the table.

    `real_speech`: a folder with ljspeech/, fsdd/, cmn/. `clips`: how many per test set. `peers`: Codec2 beside it.
    `out`: a folder for codec.json, codec.md and a spectrogram per test set. Errors: `UserError`.
    """
    console, target = Console(), report.folder(out)
    judged: list[Peer] = [] if model is None else [_ours(model)]
    if peers and has_codec2():
        judged += [Codec2(mode) for mode in CODEC2_MODES]
    elif peers:
        console.print("Codec2 is not installed (Debian: apt install codec2): no peers in this table")
    sets = test_sets(real_speech, clips)
    rows = run(judged, sets, console)
    report.show("Codec: held-out speech, means over clips", rows, console)
    if target is not None:
        report.save_json(target / "codec.json", rows=rows)
        (target / "codec.md").write_text(report.markdown(rows), encoding="utf-8")
        try:
            for name, content in sets.items():
                save_spectrograms(target / f"{name.lower().replace(' ', '-')}.png", content[0].pcm, judged)
        except UserError as error:  # the numbers are worth having without the pictures
            console.print(f"no spectrograms: {error}", markup=False)
    return rows


def _ours(model: Any) -> Ours:
    if isinstance(model, (str, Path)):
        from speechgpt2.codec.model import Codec

        return Ours(Path(model).name, Codec.from_pretrained(model))
    return Ours("codec", model)
