"""The times of the words of a transcript, by forced alignment (`tts.alignment`).

    require_aligner()                                  # before minutes of work
    segment = with_word_times(segment, window.pcm)     # segment.words

A segment whose text does not fit its audio, as a wrong transcript, gets no words.
"""

from __future__ import annotations

import numpy as np

from speechgpt2.extras import require
from speechgpt2.languages import language_of
from speechgpt2.long_form import TranscriptSegment, TranscriptWord

MIN_AGREEMENT = 0.3  # of audio and text in 0…1: a right transcript has some .9, one with other words .1


def require_aligner() -> None:
    """Check that the aligner can be used, and start its process.

    Raises:
        MissingDependency: espeak-ng or pypinyin is not installed.
    """
    from speechgpt2.tts.alignment.isolated_espeak import synthesize
    from speechgpt2.tts.alignment.synthesis_aligner import REFERENCE_VOICES

    require("pypinyin", "synthesis")
    synthesize("a", REFERENCE_VOICES["en"])


def with_word_times(segment: TranscriptSegment, pcm: np.ndarray) -> TranscriptSegment:
    """Find the words of a segment in its audio.

    Args:
        segment: The transcript.
        pcm: Its audio `[N]`, from second `segment.start` on.

    Returns:
        The segment with its words, from the first one's start to the last one's end; or unchanged, if the text does
        not fit the audio.
    """
    from speechgpt2.lm.alignment import restore_spacing
    from speechgpt2.tts.alignment.align import align_speech
    from speechgpt2.tts.alignment.viterbi import Unalignable

    try:
        alignment, agreement = align_speech(pcm, segment.text, language_of(segment.text))
    except Unalignable:
        return segment
    if agreement < MIN_AGREEMENT or not alignment.words:
        return segment
    written = restore_spacing(alignment.words, segment.text)
    words = tuple(
        TranscriptWord(text, segment.start + word.start, segment.start + word.end)
        for text, word in zip(written, alignment.words, strict=True)
    )
    return segment._replace(start=words[0].start, end=words[-1].end, words=words)
