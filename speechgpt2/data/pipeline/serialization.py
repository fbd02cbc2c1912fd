"""Clips and their changes as bytes, for the internal files of a run. Needs the extra `data`.

The JSON of record.py is for others: it omits unknown fields, and every input line is checked key by key. Within a run
the same clips are written and read a dozen times. msgspec does both in a tenth of the time, and checks all types.
"""

from __future__ import annotations

import hashlib
import os
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from speechgpt2.data.record import Clip, Decision
from speechgpt2.errors import UserError

Change = dict[str, Any]  # the fields of a clip that a stage changed
BUFFER = 1 << 20


def read(path: Path) -> Iterator[Clip]:
    """Yield the clips of a file that `write` wrote."""
    decode = _codec().clip_decoder.decode
    with path.open("rb", BUFFER) as file:
        for line in file:
            yield decode(line)


def write(path: Path, clips: Iterable[Clip]) -> None:
    """Write a clip per line, atomically: a partial file is named `….part`."""
    encode = _codec().encoder.encode
    scratch = path.with_suffix(".part")
    with scratch.open("wb", BUFFER) as file:
        file.writelines(encode(clip) + b"\n" for clip in clips)
    os.replace(scratch, path)


def content_hash(clip: Clip) -> bytes:
    """Hash everything but the decisions: equal for clips that a stage cannot distinguish."""
    return hashlib.sha256(_codec().encoder.encode({**vars(clip), "decisions": ()})).digest()


def difference(before: Clip, after: Clip) -> Change:
    """Return the fields that differ, as `unpack` will return them.

    Raises ValueError for NaN, infinity and wrong types.
    """
    old = vars(before)
    change = {name: value for name, value in vars(after).items() if value is not old[name] and value != old[name]}
    [decoded], _ = unpack(pack([change], None))
    if invalid := [name for name in change if decoded.get(name) != change[name]]:
        raise ValueError(f"{', '.join(invalid)}: not a valid value of a record")
    return decoded


def pack(changes: Iterable[Change], rejection: Decision | None) -> bytes:
    """Encode changes and a rejection as JSON."""
    codec = _codec()
    return codec.encoder.encode(codec.outcome_type([codec.change_type(**change) for change in changes], rejection))


def unpack(data: bytes) -> tuple[tuple[Change, ...], Decision | None]:
    """Decode the output of `pack`."""
    codec = _codec()
    outcome = codec.outcome_decoder.decode(data)
    names = codec.change_type.__struct_fields__
    changes = [{name: getattr(change, name) for name in names} for change in outcome.outputs]
    set_fields = [{name: value for name, value in change.items() if value is not codec.unset} for change in changes]
    return tuple(set_fields), outcome.refusal


@dataclass(frozen=True)
class _Codec:
    encoder: Any
    clip_decoder: Any
    outcome_decoder: Any
    change_type: Any
    outcome_type: Any
    unset: Any


@cache
def _codec() -> _Codec:
    try:
        import msgspec
    except ModuleNotFoundError:
        raise UserError("runs over recordings need msgspec: pip install 'speechgpt2[data]'") from None
    fields = [(name, hint | msgspec.UnsetType, msgspec.UNSET) for name, hint in typing.get_type_hints(Clip).items()]
    change = msgspec.defstruct("Change", fields)
    outcome = msgspec.defstruct("Outcome", [("outputs", list[change]), ("refusal", Decision | None)])  # type: ignore[valid-type]
    return _Codec(
        msgspec.json.Encoder(order="deterministic", enc_hook=_plain_number), msgspec.json.Decoder(Clip),
        msgspec.json.Decoder(outcome), change, outcome, msgspec.UNSET,
    )  # fmt: skip


def _plain_number(value: Any) -> Any:
    """Convert a NumPy scalar."""
    if hasattr(value, "item"):
        return value.item()
    raise ValueError(f"a record contains a {type(value).__name__}")
