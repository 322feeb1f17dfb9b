"""Room impulse responses: alignment of the direct sound, measurement of the t60, and convolution.

Shape legend: T samples, R responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.signal import fftconvolve

from bench.errors import DataError
from bench.store import Store, digest, read_array, read_frame, write_frame
from bench.values import RATE_HZ, Floats, Ints, Progress, Split

FORMAT = 2
DECAY_BLOCK_S = 0.01  # powers are averaged over it to find the end of a decay
MIN_FITTED = 16  # samples of a decay that a line is fitted to: fewer are an impulse
ABOVE_FLOOR = 3.0  # power ratio (5 dB) to the noise floor at which a decay ends
FIT_START_DB = -5  # the fit begins where the decay has fallen this far, by ISO 3382-1
HEADROOM_DB = 10  # between the end of the fit and the noise floor
ONSET_SHARE = 0.1  # of the largest amplitude: -20 dB, where the direct sound begins
ONSET_SAMPLES = 16  # from there to its peak: 1 ms
DIRECT_AT = 40  # samples (2.5 ms) usable_rows before the direct sound: the rise of a band-limited impulse


@dataclass(frozen=True)
class Response:
    """One impulse response at 16 kHz, shape (T,), aligned so that its direct sound is at DIRECT_AT."""

    name: str
    wave_T: Floats
    split: Split
    wanted_t60_s: float = float("nan")
    licence: str = "unknown"


class ResponseSource(Protocol):
    """What a plug-in of kind `rir` returns from `build(config, root)`."""

    def names(self) -> Sequence[str]:
        """Return the names of all responses, without simulating or reading any.

        `bench.degrade.measured.name_rooms` tells the room of a measured response by its name.
        """
        ...

    def load(self, name: str) -> Response:
        """Return one response, aligned. Raises: DataError if it cannot be used."""
        ...

    def digest(self) -> str:
        """Return a digest of everything that determines the responses."""
        ...


@dataclass(frozen=True)
class RoomBank:
    """The prepared responses of one source.

    `table` has name, split, wanted_t60_s, t60_s, method, licence, start, num_samples; `left_out` has the name and the
    problem of each response that cannot be used.
    """

    table: pd.DataFrame
    left_out: pd.DataFrame
    samples: Floats
    digest: str

    def numbers(self, split: Split, wanted_t60_s: float | None = None) -> Ints:
        """Return the row numbers of a split, or only of those simulated for one nominal t60."""
        chosen = self.table["split"] == split
        if wanted_t60_s is not None:
            chosen &= np.isclose(self.table["wanted_t60_s"], wanted_t60_s)
        return np.flatnonzero(chosen.to_numpy()).astype(np.int64)

    def response(self, number: int) -> Floats:
        """Return response `number`, shape (T,)."""
        row = self.table.iloc[number]
        return self.samples[row["start"] : row["start"] + row["num_samples"]]


def prepare_rooms(store: Store, name: str, source: ResponseSource, progress: Progress) -> RoomBank:
    """Return the bank of a source, with every t60 measured, from the store or prepared now.

    Unusable responses are skipped, and listed in its `left_out`.
    Raises: DataError if none is usable.
    """
    key = digest(FORMAT, name, source.digest())

    def build(folder: Path) -> None:
        rows: list[dict[str, object]] = []
        waves: list[Floats] = []
        names = source.names()
        for i, item in enumerate(names):
            progress(f"rooms {name}", i, len(names))
            try:
                response = source.load(item)
                t60_s, method = measure_t60(response.wave_T)
            except DataError as error:
                rows.append({"name": item, "problem": str(error), "split": "none"})
                continue
            rows.append(
                {
                    "name": item,
                    "problem": "",
                    "split": response.split,
                    "wanted_t60_s": response.wanted_t60_s,
                    "t60_s": t60_s,
                    "method": method,
                    "licence": response.licence,
                    "start": sum(map(len, waves)),
                    "num_samples": len(response.wave_T),
                }
            )
            waves.append(response.wave_T)
        progress(f"rooms {name}", len(names), len(names))
        if not waves:
            raise DataError(f"no usable impulse response in {name}: {rows[0]['problem'] if rows else 'it is empty'}")
        np.save(folder / "samples.npy", np.concatenate(waves))
        write_frame(folder / "responses.parquet", pd.DataFrame(rows))

    folder = store.fetch("rooms", key, build)
    table = read_frame(folder / "responses.parquet")
    usable = table["problem"] == ""
    usable_rows = table[usable].reset_index(drop=True).astype({"start": int, "num_samples": int})
    return RoomBank(usable_rows, table[~usable][["name", "problem"]], read_array(folder / "samples.npy"), key)


def align_direct_sound(wave_T: Floats, version: str = "v1", direct: int | None = None) -> Floats:
    """Return the response with a peak of 1, shifted so that its direct sound is at DIRECT_AT.

    Why: with a tolerance of 50 ms, a delay of 50 ms that is not removed would turn every hit into a miss. `direct` is
    the sample of the direct sound where it is known; otherwise it is found, as `version`, that of the query set, does.
    Raises: DataError if the response is silent.
    """
    if not np.any(wave_T):
        raise DataError("the impulse response is empty or silent")
    direct = find_direct_sound(wave_T, version) if direct is None else direct
    lead = np.zeros(max(0, DIRECT_AT - direct), dtype=np.float32)
    aligned: Floats = np.concatenate([lead, wave_T[max(0, direct - DIRECT_AT) :]]).astype(np.float32)
    aligned /= np.abs(wave_T).max()
    return aligned


def find_direct_sound(wave_T: Floats, version: str = "v1") -> int:
    """Return the sample of the direct sound.

    In `v1` it is the largest peak, which in 7 of the 40 test rooms is a reflection, 3 to 17 ms later. In later versions
    it is the first peak: the largest sample of the millisecond that follows the first one within 20 dB of the largest.
    Source: ISO 3382-1 for the 20 dB.
    """
    level_T = np.abs(wave_T)
    if version == "v1":
        return int(np.argmax(level_T))
    onset = int(np.argmax(level_T >= ONSET_SHARE * level_T.max()))
    return onset + int(np.argmax(level_T[onset : onset + ONSET_SAMPLES]))


def measure_direct_ratio(response_T: Floats) -> float:
    """Return the energy of the direct sound to that of all later sound, in dB.

    The direct sound is what is within DIRECT_AT samples (2.5 ms) of sample DIRECT_AT; a response without any later
    sound has the ratio 100 dB.
    Source: Zahorik, JASA 112 (2002), for the 2.5 ms.
    """
    energy_T = np.square(response_T.astype(np.float64))
    direct, later = energy_T[: 2 * DIRECT_AT + 1].sum(), energy_T[2 * DIRECT_AT + 1 :].sum()
    return float(10 * np.log10(direct / max(later, 1e-10 * direct)))


def set_direct_ratio(direct_T: Floats, later_T: Floats, at: int, ratio_db: float) -> Floats:
    """Return a response whose direct sound, at sample `at`, has a given ratio to all later sound.

    Shapes: direct_T (T,) is the direct sound alone, later_T (T,) all else. The direct sound is scaled, as it is by a
    listener who moves in the field of the same room; `measure_direct_ratio` of the aligned result is `ratio_db`.
    Source: Bryan, Impulse response data augmentation, ICASSP 2020, with the direct sound known instead of windowed.
    Raises: DataError if reflections close behind the direct sound alone are stronger than that.
    """
    first = max(0, at - DIRECT_AT)
    early = slice(first, at + DIRECT_AT + 1)
    direct, reflected = (wave_T.astype(np.float64)[early] for wave_T in (direct_T, later_T))
    rest = np.square(later_T[at + DIRECT_AT + 1 :].astype(np.float64)).sum()
    # The energy within the window is a quadratic of the gain; it has one positive root, or the ratio cannot be reached.
    squared, mixed = direct @ direct, direct @ reflected
    missing = 10 ** (ratio_db / 10) * rest - reflected @ reflected
    if squared == 0 or missing <= 0:
        raise DataError(f"reflections within 2.5 ms alone are above {ratio_db:g} dB; choose a larger ratio or room")
    gain = (np.sqrt(mixed**2 + squared * missing) - mixed) / squared
    scaled_T: Floats = (gain * direct_T + later_T).astype(np.float32)
    return scaled_T


def reverberate(
    wave_T: npt.NDArray[np.floating | np.int16], response_T: npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Return the wave reverberated in the room, without a delay of its direct sound.

    Shapes: wave (C + T + DIRECT_AT,), with C samples of context for the tail before the segment and DIRECT_AT for
    the rise after it; response (R,); result (C + T,).
    """
    wet = fftconvolve(wave_T.astype(np.float64), response_T.astype(np.float64))
    reverberant_T: npt.NDArray[np.float64] = wet[DIRECT_AT : len(wave_T)]
    return reverberant_T


def measure_t60(response_T: npt.NDArray[np.floating], rate_hz: int = RATE_HZ) -> tuple[float, str]:
    """Return the reverberation time in seconds and how it was measured, "T30" or "T20".

    A line is fitted to Schroeder's backward-integrated decay from -5 dB to -35 dB (T30), or to -25 dB (T20) if the
    noise floor is above -45 dB; its slope is extrapolated to 60 dB. The noise floor is the mean power of the last
    tenth of the response, and integration ends where the decay reaches it.
    Source: Schroeder 1965; ISO 3382-1.
    Raises: DataError if the response decays by less than 35 dB.
    """
    if not np.any(response_T):
        raise DataError("the impulse response is empty or silent")
    # 1. power of the decay after the direct sound, in blocks
    energy = np.square(response_T[int(np.argmax(np.abs(response_T))) :].astype(np.float64))
    block = round(DECAY_BLOCK_S * rate_hz)
    power = energy[: len(energy) // block * block].reshape(-1, block).mean(axis=1)
    if len(power) < 2:
        raise DataError("the impulse response is too short to measure its t60")
    # 2. the noise floor (never 0, so that ratios are finite), and where the decay reaches it
    floor = max(energy[-max(block, len(energy) // 10) :].mean(), power.max() * 1e-20)
    range_db = 10 * np.log10(power.max() / floor)
    end = (int(np.flatnonzero(power > floor * ABOVE_FLOOR)[-1]) + 1) * block if range_db > HEADROOM_DB else 0
    # 3. Schroeder's integral: the energy still to come at each sample, and a line fitted to its level
    remaining = np.cumsum(energy[:end][::-1])[::-1]
    for method, low_db in (("T30", -35.0), ("T20", -25.0)):
        if range_db >= -low_db + HEADROOM_DB:
            level_db = 10 * np.log10(np.maximum(remaining / remaining[0], 1e-30))
            inside = np.flatnonzero((level_db <= FIT_START_DB) & (level_db >= low_db))
            if len(inside) < MIN_FITTED:
                break
            slope_db_per_sample = np.polyfit(inside, level_db[inside], 1)[0]
            return float(-60 / slope_db_per_sample / rate_hz), method
    raise DataError(
        f"the impulse response has no decay to measure a t60 by: {range_db:.0f} dB above its noise floor, 35 dB needed"
    )
