"""An engine on a server with CosyVoice's HTTP interface (runtime/python/fastapi in its repository).

The name of the voice is the server's address, such as `http://127.0.0.1:50000`. `accent` is a speaker that the server
knows, or the path of a clip whose voice it copies, with the clip's text in a file beside it (voice_prompts.py). `style`
is sent as an instruction. The server answers with raw 16-bit samples, or with an audio file. The sample rate is that of
the response header, else `?rate=22050` in the address, else 24 kHz. `seed` has no effect. The engine returns no times.
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
from speechgpt2.tts import voice_prompts
from speechgpt2.tts.utterance import Rendering, Voice
from speechgpt2.types import SAMPLE_RATE

TIMEOUT = 300.0  # seconds
MAX_BYTES = 64 << 20  # of a response
RATE_HEADER = "X-Custom-Header-sampleRate"  # sent by common servers; the original sends no rate


def render(text: str, voice: Voice) -> Rendering:
    """Speak the text.

    Raises:
        UserError: the server cannot be used.
        ValueError: the server returned no audio.
    """
    address = urllib.parse.urlsplit(voice.name)
    if address.scheme not in ("http", "https"):
        raise UserError(f"{voice.name}: the address of a speech server must begin with http:// or https://")
    fields, files = {"tts_text": text}, {}
    if voice_prompts.is_audio_path(voice.accent):
        clip = voice_prompts.read_voice_prompt(voice.accent)
        files["prompt_wav"] = _wav(clip.pcm)
        method = "instruct2" if voice.style else "zero_shot"
        fields |= {"instruct_text": voice.style} if voice.style else {"prompt_text": clip.text}
    else:
        method = "instruct" if voice.style else "sft"
        fields |= {"spk_id": voice.accent, **({"instruct_text": voice.style} if voice.style else {})}
    url = urllib.parse.urlunsplit(
        (address.scheme, address.netloc, f"{address.path.rstrip('/')}/inference_{method}", "", "")
    )
    default_rate = urllib.parse.parse_qs(address.query).get("rate", [str(SAMPLE_RATE)])[0]
    pcm, rate = _decode(*_post(url, fields, files), default_rate)
    if not len(pcm):
        raise ValueError(f"{voice.speaker} returned no audio for {text!r}")
    return Rendering(pcm, rate)


def _post(url: str, fields: dict[str, str], files: dict[str, bytes]) -> tuple[bytes, str]:
    """Return the body of the response, and the rate in its header or ""."""
    boundary = secrets.token_hex(16)
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    parts = [(head % (name, "")).encode() + value.encode() for name, value in fields.items()]
    parts += [(head % (name, f'; filename="{name}.wav"')).encode() + data for name, data in files.items()]
    body = b"\r\n".join([*parts, f"--{boundary}--\r\n".encode()])
    request = urllib.request.Request(url, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            data = response.read(MAX_BYTES + 1)
            rate = response.headers.get(RATE_HEADER, "")
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: the server responds with {error.code} {error.reason}") from None
    except OSError as error:
        raise UserError(f"{url}: cannot be reached ({getattr(error, 'reason', error)})") from None
    if len(data) > MAX_BYTES:
        raise ValueError(f"{url}: the response exceeds {MAX_BYTES} bytes")
    return data, rate


def _decode(data: bytes, header: str, default: str) -> tuple[np.ndarray, int]:
    """Return `pcm [N]` float32 and its rate."""
    if data[:4] in (b"RIFF", b"fLaC", b"OggS"):
        pcm, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
        return pcm.mean(axis=1), rate
    rate_text = header or default
    if not rate_text.isdigit() or not 8000 <= int(rate_text) <= 192_000:
        raise UserError(f"the speech server's sample rate {rate_text!r} must be between 8000 and 192000")
    return np.frombuffer(data[: len(data) // 2 * 2], "<i2").astype(np.float32) / 32768, int(rate_text)


def _wav(pcm: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, "PCM_16", format="WAV")
    return buffer.getvalue()
