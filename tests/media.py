"""Audio files of formats that libsndfile does not write, made with PyAV."""

import numpy as np

from speechgpt2 import audio
from speechgpt2.types import SAMPLE_RATE

RATE = 48_000  # which every encoder knows


def write_with_ffmpeg(target, pcm: np.ndarray, container: str, codec: str, options=None, layout="mono") -> None:
    """Encode `pcm [N]` into a path or a binary file, in a muxer and codec of FFmpeg."""
    import av

    samples = audio.resample(pcm, SAMPLE_RATE, RATE)
    with av.open(target, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(samples[None].astype(np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = RATE, 0
        resampler = av.AudioResampler(stream.format, layout, RATE, frame_size=stream.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            file.mux(stream.encode(part))
