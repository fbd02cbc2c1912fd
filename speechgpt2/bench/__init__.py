"""Benchmarks of the codec, the language model, the server and the data pipeline.

codec.py, lm.py             streaming steps, next to a lower bound on this machine (machine.py)
device.py                   a GPU in minutes, part by part (device_engine.py, device_parity.py, device_tests.py,
                            device_models.py)
realtime.py, soak.py        a server under load: latency by number of sessions; stability (load_clients.py, process.py)
data.py, records.py         synthesis, cleaning and annotation
voices.py                   synthesis, by voice

A time alone says little. The steps are divided by a lower bound that is measured in the same run on the same machine,
and follows from the operations and the bytes that a step needs. Compare ratios; compare times only within one run.
"""

from speechgpt2.bench.codec import main as codec_main
from speechgpt2.bench.lm import main as lm_main

__all__ = ["codec_main", "lm_main"]
