"""Clips to and from Lhotse cuts in Shar format, with FLAC.

    shar/cuts.000000.jsonl.gz      cuts; `CutSet.from_shar(in_dir="shar")` reads them with their audio
    shar/recording.000000.tar      24 kHz, mono, 16 bit, gain applied

Words are in the supervision of a cut as Lhotse aligns them; the rest of a clip is in the custom field `clip`. The files
are not written by Lhotse itself, since its archives contain the time of day: equal clips must give equal bytes.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechgpt2.data.pipeline.clip_audio import ClipAudio, Workspace, to_int16
from speechgpt2.data.record import Clip
from speechgpt2.tts.utterance import Alignment, Word
from speechgpt2.types import SAMPLE_RATE

SHARD = 500  # clips
DIGESTS = "shards.json"  # hashes of the shards' content: unchanged shards are not rewritten
_DIGITS = 6  # of a time: microseconds survive the conversion to (start, duration) and back


def to_cut(clip: Clip, samples: int) -> dict[str, Any]:
    """Convert a clip to a Lhotse `MonoCut` as plain data; its recording has `samples` samples."""
    duration = samples / SAMPLE_RATE
    without_words = replace(clip, align=replace(clip.align, words=()))
    return {
        "id": clip.id, "start": 0.0, "duration": duration, "channel": 0,
        "supervisions": [_supervision(clip, duration)], "recording": _recording(clip, samples),
        "custom": {"clip": without_words.to_dict()}, "type": "MonoCut",
    }  # fmt: skip


def _supervision(clip: Clip, duration: float) -> dict[str, Any]:
    speaker = clip.speakers[0] if clip.speakers else None
    supervision: dict[str, Any] = {
        "id": clip.id, "recording_id": clip.id, "start": 0.0, "duration": duration, "channel": 0,
        "text": clip.text.norm or clip.text.raw, "language": clip.lang.code,
        "speaker": speaker.id if speaker else "", "gender": speaker.gender if speaker else "",
    }  # fmt: skip
    if clip.align.words:
        words = [[w.text, w.start, round(w.end - w.start, _DIGITS), None] for w in clip.align.words]
        supervision["alignment"] = {"word": words}
    return {key: value for key, value in supervision.items() if value != ""}


def _recording(clip: Clip, samples: int) -> dict[str, Any]:
    return {
        "id": clip.id, "sources": [{"type": "shar", "channels": [0], "source": ""}], "sampling_rate": SAMPLE_RATE,
        "num_samples": samples, "duration": samples / SAMPLE_RATE, "channel_ids": [0],
    }  # fmt: skip


def from_cut(cut: dict[str, Any]) -> Clip:
    """Return the clip of a cut, given as `cut.to_dict()` or as a line of a shard."""
    clip = Clip.from_dict(cut["custom"]["clip"])
    aligned = cut["supervisions"][0].get("alignment", {}).get("word", ())
    words = tuple(Word(text, start, round(start + length, _DIGITS)) for text, start, length, *_ in aligned)
    return replace(clip, align=Alignment(words, clip.align.phones, clip.align.tones))


def write(clips: Iterable[Clip], workspace: Workspace, folder: Path, scratch: Path, size: int = SHARD) -> int:
    """Write clips as shards of `size` into `folder`; unchanged shards stay. Returns the number of shards.

    `scratch` is a folder on the same disk: Lhotse would read a partial file in `folder` as a field.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    digests_file = scratch / DIGESTS
    digests = json.loads(digests_file.read_text()) if digests_file.exists() else {}
    clips, number = iter(clips), 0
    while shard := list(islice(clips, size)):
        recordings, cuts = folder / f"recording.{number:06d}.tar", folder / f"cuts.{number:06d}.jsonl.gz"
        parts = (  # labels change more often than audio
            (recordings, [f"{clip.id} {clip.audio}" for clip in shard], _write_recordings),
            (cuts, [clip.to_json() for clip in shard], _write_cuts),
        )
        for path, content, write_part in parts:
            digest = hashlib.sha256("\n".join(content).encode()).hexdigest()
            if digests.get(path.name) == digest and path.exists():
                continue
            if digests.pop(path.name, None):  # so that a kill during the write leaves no digest for the shard
                _replace_text(digests_file, json.dumps(digests))
            write_part(shard, workspace, scratch / "shard.part")
            os.replace(scratch / "shard.part", path)
            digests[path.name] = digest
            _replace_text(digests_file, json.dumps(digests))
        number += 1
    for path in folder.iterdir():  # from an earlier run with more clips
        name, _, ending = path.name.partition(".")
        if name in ("cuts", "recording") and ending[:6].isdigit() and int(ending.split(".")[0]) >= number:
            path.unlink()
    return number


def _write_recordings(shard: list[Clip], workspace: Workspace, path: Path) -> None:
    with path.open("wb") as raw, tarfile.open(fileobj=raw, mode="w") as archive:
        for clip in shard:
            pcm = ClipAudio(clip, workspace).pcm
            _add(archive, f"{clip.id}.flac", flac(pcm))
            _add(archive, f"{clip.id}.json", json.dumps(_recording(clip, len(pcm))).encode())


def _write_cuts(shard: list[Clip], workspace: Workspace, path: Path) -> None:
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        for clip in shard:
            cut = to_cut(clip, ClipAudio(clip, workspace).samples)
            packed.write(json.dumps(cut, ensure_ascii=False, sort_keys=True).encode() + b"\n")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner, no time
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def flac(pcm: np.ndarray) -> bytes:
    """Encode `pcm [N]` at 24 kHz as a 16-bit FLAC file."""
    buffer = io.BytesIO()
    soundfile.write(buffer, to_int16(pcm), SAMPLE_RATE, "PCM_16", format="FLAC")
    return buffer.getvalue()


def read(folder: Path) -> Iterator[tuple[Clip, np.ndarray]]:
    """Yield the clips of a folder of shards with their audio, float32 `[N]` at 24 kHz."""
    for cuts in sorted(folder.glob("cuts.*.jsonl.gz")):
        recordings = cuts.with_name(cuts.name.replace("cuts.", "recording.").replace(".jsonl.gz", ".tar"))
        with gzip.open(cuts, "rt", encoding="utf-8") as lines, tarfile.open(recordings) as archive:
            for line in lines:
                clip = from_cut(json.loads(line))
                member = archive.extractfile(f"{clip.id}.flac")
                assert member is not None
                yield clip, soundfile.read(io.BytesIO(member.read()), dtype="float32")[0]


def _replace_text(path: Path, text: str) -> None:
    scratch = path.with_suffix(".part")
    scratch.write_text(text)
    os.replace(scratch, path)
