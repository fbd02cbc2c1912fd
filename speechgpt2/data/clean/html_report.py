"""The HTML report of a run, in one file: kept and rejected clips with reasons, scores, examples, speed.

    write(run, Path("report.html"))

The page contains everything, so it can be mailed and read without a network.
"""

from __future__ import annotations

import hashlib
import html
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speechgpt2.data.clean import html_parts
from speechgpt2.data.pipeline.clip_audio import ClipAudio
from speechgpt2.data.pipeline.global_steps import Rules, score_of
from speechgpt2.data.pipeline.runner import PipelineRun
from speechgpt2.data.record import Clip
from speechgpt2.hub import write_atomically

KEPT = ""  # the reason of kept clips
SHOWN_KEPT, SHOWN_REJECTED = 6, 2  # examples of kept clips, and of each reason
MEASURABLE = 0.5  # seconds of work from which a speed is shown
EXAMPLE_SECONDS = 15.0  # seconds of an example
SCORES: dict[str, tuple[str, float, float]] = {  # path: name, lower end, upper end
    "audio.duration": ("duration, s", 0, 40),
    "quality.snr": ("SNR, dB", -10, 60),
    "quality.loudness": ("loudness of the source, LUFS", -60, 0),
    "quality.bandwidth": ("bandwidth, Hz", 0, 12_000),
    "quality.clipping": ("samples near the peak, share", 0, 0.02),
    "quality.overlap": ("frames with two voices, share", 0, 0.2),
    "quality.music": ("frames with constant tones, share", 0, 1),
    "quality.silence": ("silence, share", 0, 1),
    "quality.extra.characters_per_second": ("characters per second", 0, 30),
    "quality.extra.text_mismatch": ("text mismatch", 0.5, 1.1),
    "quality.mos.dnsmos": ("DNSMOS", 1, 5),
    "quality.mos.utmos": ("UTMOS", 1, 5),
    "text.cer": ("disagreement of transcripts", 0, 1),
}


@dataclass
class _ReportData:
    """What the report shows of the clips, collected in one pass.

    Attributes:
        counts: clips by the reason of their rejection, `KEPT` for kept ones; likewise `seconds` and `samples`.
        seconds: length of the audio.
        kept: histogram `[BARS]` of the kept clips by score; likewise `rejected`.
        rejected: histogram of the rejected clips.
        samples: examples, each with the hash that it is chosen by.
    """

    counts: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    kept: dict[str, np.ndarray] = field(default_factory=dict)
    rejected: dict[str, np.ndarray] = field(default_factory=dict)
    samples: dict[str, list[tuple[str, Clip]]] = field(default_factory=lambda: defaultdict(list))


def write(run: PipelineRun, path: Path) -> None:
    """Write the page about a finished run."""
    data = _collect(run.clips())
    thresholds: dict[str, list[float]] = defaultdict(list)
    for step in run.steps:
        for rule in step.config.rules if isinstance(step, Rules) else ():
            thresholds[rule.score].append(rule.threshold)
    parts = [
        _summary(run, data),
        "<h2>Where the hours went</h2>",
        html_parts.waterfall(_steps(data)),
        "<h2>Scores</h2>",
        _histograms(data, thresholds),
        "<h2>Kept</h2>",
        _clips(data.samples[KEPT], run),
        "<h2>Rejected</h2>",
        *(f"<h3>{html.escape(r)}</h3>" + _clips(data.samples[r], run) for r in _by_hours(data)),
        "<h2>Speed</h2>",
        _speed(run),
    ]
    page = html_parts.page(f"Report of {run.out.name}", "\n".join(parts))
    write_atomically(path, lambda scratch: scratch.write_text(page, encoding="utf-8"))


def _collect(clips: Iterable[Clip]) -> _ReportData:
    data = _ReportData()
    for path in SCORES:
        data.kept[path], data.rejected[path] = np.zeros(html_parts.BARS, int), np.zeros(html_parts.BARS, int)
    for clip in clips:
        reason = clip.rejection.reason if clip.rejection else KEPT
        data.counts[reason] += 1
        data.seconds[reason] += clip.audio.duration
        for path, (_, low, high) in SCORES.items():
            score = score_of(clip, path)
            if score is not None and clip.quality.loudness is not None:
                bar = min(max(int((score - low) / (high - low) * html_parts.BARS), 0), html_parts.BARS - 1)
                (data.rejected if reason else data.kept)[path][bar] += 1
        _sample(data.samples[reason], clip, SHOWN_REJECTED if reason else SHOWN_KEPT)
    return data


def _sample(chosen: list[tuple[str, Clip]], clip: Clip, count: int) -> None:
    """Keep the `count` examples with the smallest hashes: the same in every report of the run."""
    chosen.append((hashlib.sha256(clip.id.encode()).hexdigest(), clip))
    chosen.sort(key=lambda pair: pair[0])
    del chosen[count:]


def _by_hours(data: _ReportData) -> list[str]:
    return sorted((reason for reason in data.counts if reason), key=lambda reason: -data.seconds[reason])


def _steps(data: _ReportData) -> list[tuple[str, float, int]]:
    """Return (name, hours, clips) for all clips, for each reason (hours are negative), and for the kept clips."""
    lost = [(reason, -data.seconds[reason] / 3600, data.counts[reason]) for reason in _by_hours(data)]
    total = sum(data.seconds.values()) / 3600
    return [
        ("found", total, sum(data.counts.values())), *lost, ("kept", data.seconds[KEPT] / 3600, data.counts[KEPT]),
    ]  # fmt: skip


def _summary(run: PipelineRun, data: _ReportData) -> str:
    total, clips = sum(data.seconds.values()), sum(data.counts.values())
    share = data.seconds[KEPT] / total if total else 0.0
    steps = " → ".join(step.name for step in run.steps)
    return (
        f"<p class=lead>Kept <b>{html_parts.length(data.seconds[KEPT] / 3600)}</b> of "
        f"{html_parts.length(total / 3600)} "
        f"({share:.0%}), "
        f"{data.counts[KEPT]} of {clips} clips.</p><p class=quiet>{html.escape(steps)}</p>"
    )


def _histograms(data: _ReportData, thresholds: dict[str, list[float]]) -> str:
    histograms = [
        html_parts.histogram(name, low, high, data.kept[path], data.rejected[path], thresholds[path])
        for path, (name, low, high) in SCORES.items()
        if (data.kept[path] + data.rejected[path]).any()
    ]
    legend = (
        "<p class=quiet><span class=kept>■</span> kept <span class=rejected>■</span> rejected; dashed: threshold</p>"
    )
    return f"{legend}<div class=grid>{''.join(histograms)}</div>"


def _clips(chosen: list[tuple[str, Clip]], run: PipelineRun) -> str:
    cards = "".join(_card(clip, run) for _, clip in chosen)
    return f"<div class=grid>{cards}</div>" if cards else "<p>None.</p>"


def _card(clip: Clip, run: PipelineRun) -> str:
    rejection = clip.rejection
    source = (clip.title, clip.source.url, clip.source.spdx or clip.source.licence_raw)
    lines = [html.escape(text) for text in (clip.id, " · ".join(filter(None, source))[:300], clip.text.raw[:120])]
    lines += [html.escape(caption) for caption in (clip.style.caption_en, clip.style.caption_zh)]
    if rejection is not None:
        score = "" if rejection.score is None else f" {rejection.score:g} (threshold {rejection.threshold or 0:g})"
        lines.append(f"<b>{html.escape(rejection.reason)}</b>{score} {html.escape(rejection.detail[:160])}")
    measured = [("SNR", clip.quality.snr), ("overlap", clip.quality.overlap), ("music", clip.quality.music)]
    lines.append(", ".join(f"{name} {value:g}" for name, value in measured if value is not None))
    picture = ""
    if clip.audio.pcm_hash and run.workspace.recording(clip.audio.pcm_hash).is_file():
        pcm = ClipAudio(clip, run.workspace).pcm[: int(EXAMPLE_SECONDS * 24_000)]
        picture = html_parts.spectrogram(pcm) + html_parts.player(pcm)
    text = "".join(f"<div>{line}</div>" for line in lines if line)
    return f"<figure>{picture}<figcaption>{text}</figcaption></figure>"


def _speed(run: PipelineRun) -> str:
    rows = []
    for stage, count, work, seconds in run.results.times():
        speed = f"{seconds / work:.0f}" if work >= MEASURABLE and seconds else "–"
        rows.append((stage, f"{count}", f"{seconds / 3600:.3f}", f"{work:.1f}", speed))
    head = ("stage", "results", "hours of audio", "seconds of work", "hours per hour")
    note = "<p class=quiet>Over all stored results, by the clock of the process that computed each.</p>"
    return html_parts.table(head, rows) + note
