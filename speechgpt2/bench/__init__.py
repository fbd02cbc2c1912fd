"""Speed: times of the streaming codec and of a language model's step, next to what the machine could do at best.

A time alone says little: it is divided by a floor, measured in the same run on the same machine, that follows from the
arithmetic and the bytes that the work cannot do without. Compare ratios, and times only within one run.
"""

from speechgpt2.bench.codec import main as codec_main
from speechgpt2.bench.lm import main as lm_main

__all__ = ["codec_main", "lm_main"]
