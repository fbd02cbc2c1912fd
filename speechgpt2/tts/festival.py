"""Festival 2.5 (English) by its command line: audio at up to 32 kHz, and the ends of words and segments.

The voices are those of the system's festvox packages, such as festvox-us-slt-hts. Every utterance has a new process,
since the interpreter keeps earlier settings. The rate affects HTS voices only; pitch and range have no effect.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile

from speechgpt2.errors import MissingDependency
from speechgpt2.tts.flite import ipa
from speechgpt2.tts.utterance import Phone, Rendering, Voice, Word

VOICES = {"slt_hts": "cmu_us_slt_arctic_hts", "kal": "kal_diphone", "ked": "ked_diphone", "rab": "rab_diphone"}
TIMEOUT = 60.0  # seconds for the synthesis of one utterance

# Words without segments, such as a comma, end at 0.
_SCRIPT = """
(voice_{voice})
(set! hts_engine_params (append hts_engine_params (list (list "-r" {rate:.4f}))))
(let ((utt (eval (list 'Utterance 'Text "{text}"))))
  (utt.synth utt)
  (utt.save.wave utt "{path}" 'riff)
  (mapcar (lambda (s) (format t "segment\\t%s\\t%f\\n" (item.name s) (item.feat s "end")))
          (utt.relation.items utt 'Segment))
  (mapcar (lambda (token)
            (format t "token\\t%s\\n" (item.name token))
            (mapcar (lambda (w) (format t "word\\t%f\\t%f\\n" (item.feat w "word_start") (item.feat w "word_end")))
                    (item.daughters token)))
          (utt.relation.items utt 'Token)))
"""


def render(text: str, voice: Voice) -> Rendering:
    """Speak English text.

    Raises:
        MissingDependency: Festival or the voice is not installed.
        ValueError: Festival has no such voice, or returns no audio for the text.
    """
    if shutil.which("festival") is None:
        raise MissingDependency("festival is missing: install the system package festival")
    if voice.name not in VOICES:
        raise ValueError(f"festival has no voice {voice.name!r}; there are {', '.join(VOICES)}")
    plain = re.sub(r'["\\]', " ", text.encode("ascii", "ignore").decode())  # the text becomes a string of the script
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        script = _SCRIPT.format(voice=VOICES[voice.name], rate=voice.rate / 175, text=plain, path=path)
        (Path(folder) / "say.scm").write_text(script)
        command = ["festival", "-b", str(Path(folder) / "say.scm")]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
        if f"voice_{VOICES[voice.name]}" in finished.stderr:
            raise MissingDependency(f"festival's voice {voice.name} is missing: install its festvox package")
        if not path.is_file():
            raise ValueError(f"festival returned no audio for {text!r}: {finished.stderr.strip()[:200]}")
        pcm, rate = soundfile.read(path, dtype="float32")
    rows = [line.split("\t") for line in finished.stdout.splitlines()]
    return Rendering(np.ascontiguousarray(pcm), rate, tuple(_words(rows)), tuple(_phones(rows)))


def _words(rows: list[list[str]]) -> list[Word]:
    """Return one word per written token; a token such as "twenty-one" has several spoken words."""
    words: list[Word] = []
    name = ""
    for kind, *values in rows:
        if kind == "token":
            name = re.sub(r"^\W+|\W+$", "", values[0])
            has_begun = False
        elif kind == "word" and name and float(values[1]) > 0:
            start = words.pop().start if has_begun else float(values[0])
            words.append(Word(name, start, float(values[1])))
            has_begun = True
    return words


def _phones(rows: list[list[str]]) -> list[Phone]:
    phones, start = [], 0.0
    for name, end in (values for kind, *values in rows if kind == "segment"):
        if name != "pau" and float(end) > start:
            phones.append(Phone(ipa(name), start, float(end)))
        start = float(end)
    return phones
