"""Automatic speech recognition: recognisers that evaluate speech and transcribe recordings, and their error rates.

    recogniser = asr.load("whisper-base/", threads=2)
    result = recogniser.transcribe(pcm, "en")          # text, and words with times where the recogniser gives them
    errors = asr.count_errors(["two plus two is four"], [result.text], "en")

`load` finds the recogniser by a name, a folder or a Hugging Face id. A new recogniser is one entry in `registry.py`.
"""

from speechgpt2.asr.error_rate import ErrorCount, count_errors, edit_distance
from speechgpt2.asr.recogniser import Recogniser, TimedWord, Transcription
from speechgpt2.asr.registry import load
from speechgpt2.asr.text import normalise

__all__ = [
    "ErrorCount", "Recogniser", "TimedWord", "Transcription", "count_errors", "edit_distance", "load", "normalise",
]  # fmt: skip
