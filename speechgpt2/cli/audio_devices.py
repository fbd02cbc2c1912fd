"""Microphone and playback through sounddevice (the extra `mic`)."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from speechgpt2.errors import UserError

if TYPE_CHECKING:
    import numpy as np


def sounddevice() -> Any:
    """Import the package sounddevice.

    Raises:
        UserError: the package, the PortAudio library or an audio device is missing.
    """
    try:
        import sounddevice

        sounddevice.query_devices()
    except ImportError:
        raise UserError("microphone and playback need sounddevice: pip install 'speechgpt2[mic]'") from None
    except OSError:
        raise UserError("sounddevice needs the PortAudio library (Debian: apt install libportaudio2)") from None
    return sounddevice


def record_questions() -> Iterator[np.ndarray]:
    """Record spoken questions: Enter starts and stops one, the end of input (Ctrl-D) stops the iteration.

    Yields:
        `pcm [N]` of each question.
    """
    import numpy as np

    chunks: list[np.ndarray] = []
    with open_stream(sounddevice().InputStream, callback=lambda data, *_: chunks.append(data[:, 0].copy())):
        while _wait_for_enter("press Enter and speak (Ctrl-D quits)"):
            chunks.clear()
            more = _wait_for_enter("recording; press Enter to stop")
            if chunks:
                yield np.concatenate(chunks)
            if not more:
                return


class BlockingPlayer:
    """Plays chunks in order; `play` blocks until the device accepts the chunk.

    Example:
        with BlockingPlayer() as player:
            player.play(pcm)
    """

    def __init__(self) -> None:
        self._stream = open_stream(sounddevice().OutputStream)

    def __enter__(self) -> BlockingPlayer:
        self._stream.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._stream.stop()  # plays the buffered rest
        self._stream.close()

    def play(self, pcm: np.ndarray) -> None:
        """Play `pcm [N]`; return when the device has accepted all of it."""
        self._stream.write(pcm.reshape(-1, 1))


class QueuePlayer:
    """Plays queued chunks in the background; `flush` silences it at once."""

    def __init__(self) -> None:
        self._chunks: deque[np.ndarray] = deque()
        self._stream = open_stream(sounddevice().OutputStream, callback=self._fill)

    def __enter__(self) -> QueuePlayer:
        self._stream.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def play(self, pcm: np.ndarray) -> None:
        """Queue `pcm [N]`."""
        self._chunks.append(pcm)

    def flush(self) -> None:
        """Drop the queued audio."""
        self._chunks.clear()

    def _fill(self, out: np.ndarray, count: int, *_: object) -> None:
        """Fill `out [count, 1]` with the next samples; runs on the device's thread."""
        out.fill(0)
        filled = 0
        while filled < count:
            try:
                chunk = self._chunks.popleft()
            except IndexError:
                return
            taken = min(count - filled, len(chunk))
            out[filled : filled + taken, 0] = chunk[:taken]
            filled += taken
            if taken < len(chunk):
                self._chunks.appendleft(chunk[taken:])


def open_stream(stream: Any, **options: Any) -> Any:
    """Open a mono float32 stream at the model's sample rate.

    Args:
        stream: sounddevice's `InputStream` or `OutputStream`.
        options: further arguments of `stream`.

    Raises:
        UserError: no audio device can be opened.
    """
    from speechgpt2.types import SAMPLE_RATE

    try:
        return stream(samplerate=SAMPLE_RATE, channels=1, dtype="float32", **options)
    except Exception as error:  # PortAudioError, which cannot be named without the library
        raise UserError(f"no audio device can be opened ({str(error).splitlines()[0]})") from None


def _wait_for_enter(text: str) -> bool:
    """Wait for Enter; return False at the end of input."""
    print(text, file=sys.stderr, flush=True)
    return bool(sys.stdin.readline())
