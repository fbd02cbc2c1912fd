"""Converts the metadata of an utterance to a `Record`. Data sets use different names for the same field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speechgpt2.corpus.store import Record
from speechgpt2.errors import UserError
from speechgpt2.tts.utterance import Phone, Word

# The names that public data sets use. The first one that is present counts.
NAMES = {
    "text": ("text", "transcript", "transcription", "sentence", "normalized_text", "raw_transcription"),
    "lang": ("lang", "language", "locale"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "licence": ("licence", "license", "spdx"),
    "source": ("source", "url", "book", "book_id", "session"),
    "split": ("split",),
    "role": ("role",),
}
TEST_SPLITS = ("test", "dev", "validation", "valid", "eval")


def record_of(id: str, metadata: Mapping[str, Any], **defaults: Any) -> Record:
    """Return the record of an utterance.

    Args:
        id: The name of the utterance.
        metadata: Fields under any of `NAMES`, and `words` as a list of [text, start, end].
        **defaults: Fields of the record that are used if the metadata lack them.

    Raises:
        UserError: If `words` is not such a list.
    """
    fields: dict[str, Any] = {"text": "", "lang": "", **defaults}
    for field, names in NAMES.items():
        value = next((metadata[name] for name in names if isinstance(metadata.get(name), (str, int))), None)
        if value not in (None, ""):
            fields[field] = str(value).strip()
    fields["lang"] = language(fields["lang"])
    fields["split"] = "test" if fields.get("split") in TEST_SPLITS else "train"
    if metadata.get("words"):
        fields["words"] = timed_words(metadata["words"], id)
    return Record(id, voice=fields.get("speaker", ""), **fields)


def record_of_cut(cut: Mapping[str, Any]) -> Record:
    """Return the record of a Lhotse cut, given as plain data. Raises `UserError` if it is not one."""
    try:
        supervisions = sorted(cut.get("supervisions", ()), key=lambda s: s.get("start", 0.0))
        words = tuple(
            Word(text, start, round(start + length, 6))
            for s in supervisions
            for text, start, length, *_ in (s.get("alignment") or {}).get("word", ())
        )
        custom = cut.get("custom") or {}
        clip = custom.get("clip") or {}
        source = clip.get("source") or custom
        licence = (
            source.get("spdx") or source.get("licence_raw") or source.get("licence") or source.get("license") or ""
        )
        first = supervisions[0] if supervisions else {}
        lang = language(first.get("language") or "")
        text = ("" if lang == "zh" else " ").join(s["text"].strip() for s in supervisions if s.get("text"))
        phones = (clip.get("align") or {}).get("phones", ())
        return Record(
            str(cut["id"]), text, lang, speaker=first.get("speaker") or "", voice=first.get("speaker") or "",
            words=words, phones=tuple(Phone(*phone) for phone in phones),
            licence=licence, source=source.get("url") or str(cut["id"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"cut {cut.get('id', '?') if isinstance(cut, Mapping) else '?'}: not a Lhotse cut") from None


def timed_words(words: Sequence[Any], id: str) -> tuple[Word, ...]:
    """Return words with times from a list of [text, start, end]. Raises `UserError` if it is not one."""
    try:
        return tuple(Word(str(text), float(start), float(end)) for text, start, end in words)
    except (TypeError, ValueError):
        raise UserError(f"{id}: words must be a list of [text, start seconds, end seconds]") from None


def language(code: str) -> str:
    """Return "en" for "en-US" and "zh" for "cmn", "zh-CN" and the like; other codes without their region."""
    short = code.lower().replace("_", "-").split("-")[0]
    return {"english": "en", "eng": "en", "cmn": "zh", "chinese": "zh", "mandarin": "zh"}.get(short, short)
