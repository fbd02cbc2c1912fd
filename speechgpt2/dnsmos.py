"""DNSMOS P.835 (Reddy et al. 2022, arXiv:2110.01763): opinion scores that a network predicts, without a reference.

The weights are those that the package `speechmos` carries, or a file of one's own.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from speechgpt2.errors import UserError
from speechgpt2.extras import require
from speechgpt2.types import SAMPLE_RATE

RATE = 16_000  # Hz
WINDOW = 144_160  # samples (9.01 s) that the network reads
INPUT = "input_1"
PACKAGED = Path("dnsmos_models") / "sig_bak_ovr.onnx"  # within the package speechmos
# Polynomials that the authors correct the network's raw signal, background and overall scores with.
CURVES = (
    (-0.08397278, 1.22083953, 0.0052439),
    (-0.13166888, 1.60915514, -0.39604546),
    (-0.06766283, 1.11546468, 0.04602535),
)


class OpinionScores(NamedTuple):
    """Predicted mean opinion scores, 1 to 5: of the speech, of the background, and overall."""

    signal: float
    background: float
    overall: float


class DnsMos:
    """The loaded network.

    Args:
        model: The path of sig_bak_ovr.onnx; "" for the file in the package speechmos.
        threads: CPU threads.

    Raises:
        UserError: onnxruntime or speechmos is not installed, or the file is not this network.
    """

    def __init__(self, model: str | Path = "", threads: int = 1) -> None:
        runtime = require("onnxruntime", "eval")
        path = Path(model) if model else packaged()
        if not path.is_file():
            raise UserError(f"{path}: no such file; DNSMOS needs sig_bak_ovr.onnx, which the package speechmos carries")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        self._session = _open(lambda: runtime.InferenceSession(str(path), options, ["CPUExecutionProvider"]), path)
        if [source.name for source in self._session.get_inputs()] != [INPUT]:
            raise UserError(f"{path}: an ONNX model of another kind, not DNSMOS's sig_bak_ovr.onnx")

    def score(self, pcm: NDArray[np.floating]) -> OpinionScores:
        """Score `pcm` [N] at 24 kHz: the mean over windows of 9.01 s, a second apart; an empty array scores nan.

        Shorter speech is repeated to fill one window. The authors' script repeats it by doubling and reads up to nine
        windows of that, which costs as many times more and gives the same to about 0.04.
        """
        if not len(pcm):
            return OpinionScores(float("nan"), float("nan"), float("nan"))
        wave = soxr.resample(np.asarray(pcm, dtype=np.float32), SAMPLE_RATE, RATE)
        if len(wave) < WINDOW:
            wave = np.resize(wave, WINDOW)
        # As many windows as the authors' script takes, which counts whole seconds.
        starts = [second * RATE for second in range(max(1, int(len(wave) // RATE - WINDOW / RATE) + 1))]
        raw = [self._session.run(None, {INPUT: wave[None, start : start + WINDOW]})[0][0] for start in starts]
        scores = [[np.polyval(curve, value) for curve, value in zip(CURVES, window, strict=True)] for window in raw]
        return OpinionScores(*map(float, np.mean(scores, axis=0)))


def _open(load: Callable[[], Any], path: Path) -> Any:
    try:
        return load()
    except Exception as error:  # onnxruntime's errors have no common class of their own
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UserError(f"{path}: not an ONNX model, the file is damaged or cut short") from None


@cache
def packaged() -> Path:
    """The file of the network in the package speechmos, which is not imported: it needs packages that it does not name.

    Raises:
        UserError: The package is not installed.
    """
    found = importlib.util.find_spec("speechmos")
    if found is None or not found.submodule_search_locations:
        raise UserError("speechmos is not installed; run: pip install 'speechgpt2[eval]'")
    return Path(next(iter(found.submodule_search_locations))) / PACKAGED
