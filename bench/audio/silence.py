"""What is silent: one rule for the tracks of a corpus and for what is to be identified.

Shape legend: T samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SILENT_PEAK = 1e-3  # -60 dB re full scale


def is_silent(wave_T: npt.NDArray[np.floating]) -> bool:
    """Return whether no sample reaches -60 dB re a full scale of 1."""
    return float(np.abs(wave_T).max(initial=0.0)) < SILENT_PEAK
