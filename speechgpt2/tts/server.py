"""Servers that speak CosyVoice's HTTP interface (runtime/python/fastapi in its repository).

The voice's name is the server's address, `http://127.0.0.1:50000`. `accent` is a speaker that the server knows, or the
path of a clip to speak like, with its text beside (prompts.py). `manner` is told to servers in words. An answer is raw
16-bit samples at 24 kHz, or at the rate that its header or `?rate=22050` in the address says; or a sound file.
`take` is not told: such a server speaks anew each time. It knows no times.
"""

from __future__ import annotations

import io
import secrets
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
import soundfile

from speechgpt2.errors import UserError
from speechgpt2.tts import prompts
from speechgpt2.tts.utterance import Rendering, Voice
from speechgpt2.types import SAMPLE_RATE

TIMEOUT = 300.0  # seconds
LARGEST = 64 << 20  # bytes of an answer
RATE_HEADER = "X-Custom-Header-sampleRate"  # of servers in the field; the original tells no rate


def render(text: str, voice: Voice) -> Rendering:
    """Errors: `UserError` if the server cannot be used; ValueError if it said something else, or nothing."""
    address = urllib.parse.urlsplit(voice.name)
    if address.scheme not in ("http", "https"):
        raise UserError(f"{voice.name}: a speech server's address begins with http:// or https://")
    fields, files = {"tts_text": text}, {}
    if prompts.is_clip(voice.accent):
        clip = prompts.read(voice.accent)
        files["prompt_wav"] = _wav(clip.pcm)
        method = "instruct2" if voice.manner else "zero_shot"
        fields |= {"instruct_text": voice.manner} if voice.manner else {"prompt_text": clip.text}
    else:
        method = "instruct" if voice.manner else "sft"
        fields |= {"spk_id": voice.accent, **({"instruct_text": voice.manner} if voice.manner else {})}
    url = urllib.parse.urlunsplit(
        (address.scheme, address.netloc, f"{address.path.rstrip('/')}/inference_{method}", "", "")
    )
    told = urllib.parse.parse_qs(address.query).get("rate", [str(SAMPLE_RATE)])[0]
    pcm, rate = _sound(*_post(url, fields, files), told)
    if not len(pcm):
        raise ValueError(f"{voice.speaker} said nothing for {text!r}")
    return Rendering(pcm, rate)


def _post(url: str, fields: dict[str, str], files: dict[str, bytes]) -> tuple[bytes, str]:
    """The answer, and the rate that its header tells, or ""."""
    edge = secrets.token_hex(16)
    head = f'--{edge}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    parts = [(head % (name, "")).encode() + value.encode() for name, value in fields.items()]
    parts += [(head % (name, f'; filename="{name}.wav"')).encode() + data for name, data in files.items()]
    body = b"\r\n".join([*parts, f"--{edge}--\r\n".encode()])
    request = urllib.request.Request(url, body, {"Content-Type": f"multipart/form-data; boundary={edge}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            data = response.read(LARGEST + 1)
            rate = response.headers.get(RATE_HEADER, "")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server answers {error.code} {error.reason}") from None
    except OSError as error:
        raise UserError(f"{url}: cannot be reached ({getattr(error, 'reason', error)})") from None
    if len(data) > LARGEST:
        raise ValueError(f"{url}: the answer does not end")
    return data, rate


def _sound(data: bytes, header: str, told: str) -> tuple[np.ndarray, int]:
    """`pcm [N]` float32 and its rate."""
    if data[:4] in (b"RIFF", b"fLaC", b"OggS"):
        pcm, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        return pcm.mean(axis=1), rate
    rate_text = header or told
    if not rate_text.isdigit() or not 8000 <= int(rate_text) <= 192_000:
        raise UserError(f"{rate_text!r} is no sample rate that a speech server may have")
    return np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768, int(rate_text)


def _wav(pcm: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, "PCM_16", format="WAV")
    return buffer.getvalue()
