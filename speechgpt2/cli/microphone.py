"""Microphone and loudspeaker, through sounddevice (the extra `mic`)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def sounddevice() -> Any:
    """The package. Errors: `UserError` if it, PortAudio, or a sound device is missing."""
    try:
        import sounddevice

        sounddevice.query_devices()
    except ImportError:
        raise UserError("microphone and loudspeaker need sounddevice: pip install 'speechgpt2[mic]'") from None
    except OSError:
        raise UserError("sounddevice needs the PortAudio library (Debian: apt install libportaudio2)") from None
    return sounddevice


def questions() -> Iterator[np.ndarray]:
    """Spoken questions, `pcm [N]` each: Enter starts one and ends it, the end of input (Ctrl-D) ends them all."""
    import numpy as np

    chunks: list[np.ndarray] = []
    with _open(sounddevice().InputStream, lambda data, *_: chunks.append(data[:, 0].copy())):
        while _prompt("press Enter and speak (Ctrl-D to leave)"):
            chunks.clear()
            answered = _prompt("listening; press Enter when done")
            if chunks:
                yield np.concatenate(chunks)
            if not answered:
                return


class Speaker:
    """Plays chunks one after the other while more are being made: `with Speaker() as speaker: speaker.play(pcm)`."""

    def __init__(self) -> None:
        self._stream = _open(sounddevice().OutputStream)

    def __enter__(self) -> Speaker:
        self._stream.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stream.stop()  # plays what is left
        self._stream.close()

    def play(self, pcm: np.ndarray) -> None:
        """Queue `pcm [N]`; returns when the device has taken it."""
        self._stream.write(pcm.reshape(-1, 1))


def _open(stream: Any, callback: Any = None) -> Any:
    from speechgpt2.types import SAMPLE_RATE

    try:
        return stream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", callback=callback)
    except Exception as error:  # PortAudioError, which cannot be named without the library
        raise UserError(f"no sound device can be opened ({str(error).splitlines()[0]})") from None


def _prompt(text: str) -> bool:
    """Wait for Enter; False at the end of input."""
    print(text, file=sys.stderr, flush=True)
    return bool(sys.stdin.readline())
