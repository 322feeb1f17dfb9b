"""Distortions of the music of a query, from `v2` on: speed, tempo, pitch, codecs, dynamics and devices.

Each is a function of a wave at RATE_HZ, with samples between -1 and 1, and keeps time: a sound at the first sample of
the query stays there to a sample (tempo and pitch: to a millisecond), as delays of encoders and filters are taken out.
A distortion is called by a name with its value, such as `speed_1.01`; `bench.degrade.cells` lists the names.

Shape legend: T samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import fftconvolve, firwin, firwin2, welch

from bench.degrade.room import reverberate
from bench.errors import ConfigError
from bench.values import RATE_HZ, Floats

FORMAT = 1  # of all distortions, in the key of query sets
TAIL = 4_000  # samples read beyond a query, so that no frame, filter or stretch ends inside it
# What LAME (576 samples) and decoders (529) add before the first sample. Decoders take it out where a file's header
# says so, which does not fit into the frames of low rates. Source: the technical FAQ of LAME.
MP3_DELAY = 576 + 529
OPUS_KBPS = (6.0, 256.0)  # the rates at the ends of libsndfile's scale of compression, 1 and 0
MP3_LIMITS_KBPS = (8.0, 160.0)  # the same at 16 kHz
LIBRARY_OF = {"mp3": ("MP3", "MPEG_LAYER_III"), "opus": ("OGG", "OPUS")}

# The compressor is a feed-forward one of hard knee (Giannoulis et al., JAES 60, 2012), with the usual times of music.
THRESHOLD_DB = -30.0  # re the excerpt's peak
ATTACK_S, RELEASE_S = 0.005, 0.1
BLOCK = 16  # samples (1 ms) of one level

NUM_TAPS = 513  # of a filter of linear phase: transitions of about 100 Hz
TELEPHONE_HZ = (300.0, 3_400.0)  # the band of ITU-T G.712
TELEPHONE_RATE_HZ = 8_000
# Simulated devices: level in dB at some frequencies in Hz, the amplitude linear in between (confidence C). They are
# round numbers for the loudspeaker of a phone or laptop, which has a resonance below 1 kHz and no bass, and for a
# phone's microphone, which rises towards 5 kHz.
# DEVIATION: real ones have minimum phase and delay by up to a millisecond; ours have none, so that times are true.
LOUDSPEAKER_DB = {
    0: -60, 100: -45, 200: -30, 400: -10, 600: 0, 800: 4, 1_200: 0, 3_000: 2, 5_000: 0, 7_000: -8, 8_000: -20,
}  # fmt: skip
MICROPHONE_DB = {0: -40, 50: -20, 100: -8, 200: -2, 400: 0, 2_500: 0, 5_000: 4, 7_000: 2, 8_000: -12}
DRIVE_DB = 6.0  # of the loudspeaker: its peak is this far above where its limit, a hyperbolic tangent, would be linear

PITCH_BAND_HZ = (150.0, 5_000.0)
PITCH_STEP_CENTS = 1.0
PITCH_REACH_CENTS = 60.0  # around the nominal shift, within which the achieved one is looked for

Wave = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Distorted:
    """A distorted query (T,), and what was measured on it, by name with unit."""

    wave_T: Wave
    achieved: dict[str, float]


def track_speed(name: str) -> float:
    """Return how many samples of the track a distortion makes one sample of: its speed or tempo, else 1."""
    kind, _, value = name.partition("_")
    return float(value) if kind in ("speed", "tempo") else 1.0


def count_samples(name: str, context: int, num_samples: int) -> tuple[int, int]:
    """Return how many samples of the track to read before and from the start of a query of `num_samples`.

    `context` is the number of distorted samples before the query.
    """
    speed = track_speed(name)
    return round(context * speed), int(np.ceil(num_samples * speed)) + TAIL


def distort(name: str, wave_T: npt.NDArray[np.floating], context: int, num_samples: int) -> Distorted:
    """Return the query in a distorted excerpt of a track, shape (num_samples,), with its achieved conditions.

    Shapes: wave_T is (before + after,), as `count_samples` says; the query begins at sample `before`.
    """
    kind, _, value = name.partition("_")
    apply = _FUNCTION_OF[kind]
    before = count_samples(name, context, num_samples)[0]
    original_T = wave_T.astype(np.float64)
    changed_T, achieved = apply(original_T, float(value) if value else 0.0)
    query_T = changed_T[context : context + num_samples]
    assert len(query_T) == num_samples, f"{name} gives {len(changed_T)} samples of {len(wave_T)}"
    return Distorted(query_T, achieved | _measure(kind, value, original_T[before : before + num_samples], query_T))


def list_versions() -> tuple[str, ...]:
    """Return the versions of all that decides a distorted sample, for the key of a query set."""
    from importlib.metadata import version

    import soundfile
    import soxr

    return (f"distort {FORMAT}", soundfile.__libsndfile_version__, soxr.__version__, version("python-stretch"))


def check_codecs(setting: str, names: tuple[str, ...]) -> None:
    """Check that libsndfile can write and read the codecs of a setting, such as `mp3-16`. Raises: ConfigError."""
    import soundfile

    for name in names:
        container, subtype = LIBRARY_OF[name.partition("-")[0]]
        formats = soundfile.available_formats()
        if container not in formats or subtype not in soundfile.available_subtypes(container):
            raise ConfigError(
                f"{setting} uses {name}, which libsndfile {soundfile.__libsndfile_version__} cannot write; install "
                "soundfile from PyPI, whose libsndfile can, or leave the codec out"
            )


def change_speed(wave_T: Wave, speed: float) -> Wave:
    """Return the wave played at a speed, its pitch along with it: sample t of the result is at t x speed before."""
    import soxr

    changed_T: Wave = soxr.resample(wave_T, speed * RATE_HZ, RATE_HZ)
    return changed_T


def stretch(wave_T: Wave, tempo: float = 1.0, pitch_cents: float = 0.0) -> Wave:
    """Return the wave at another tempo, or another pitch, or both.

    Source: the phase vocoder of Signalsmith Stretch, with its default preset.
    """
    from python_stretch import Signalsmith

    stretcher = Signalsmith.Stretch()
    stretcher.preset(1, RATE_HZ)
    stretcher.timeFactor = tempo
    stretcher.setTransposeSemitones(pitch_cents / 100)
    changed_CT = np.asarray(stretcher.process(wave_T.astype(np.float32)[None]))
    changed_T: Wave = changed_CT[0].astype(np.float64)
    return changed_T


def code(wave_T: Wave, codec: str, kbps: float) -> tuple[Wave, float]:
    """Return the wave after a lossy codec, `mp3` or `opus`, without its delay, and the achieved rate in kbit/s."""
    import soundfile

    container, subtype = LIBRARY_OF[codec]
    low, high = MP3_LIMITS_KBPS if codec == "mp3" else OPUS_KBPS
    mode: dict[str, Any] = {"bitrate_mode": "CONSTANT"} if codec == "mp3" else {}
    file = BytesIO()
    level = (high - kbps) / (high - low)
    soundfile.write(
        file, wave_T.astype(np.float32), RATE_HZ, format=container, subtype=subtype, compression_level=level, **mode
    )
    achieved_kbps = 8 * file.tell() / (len(wave_T) / RATE_HZ) / 1000
    file.seek(0)
    decoded_T = soundfile.read(file, dtype="float64")[0]
    delay = MP3_DELAY if codec == "mp3" and len(decoded_T) != len(wave_T) else 0
    kept_T: Wave = decoded_T[delay : delay + len(wave_T)]
    return kept_T, achieved_kbps


def clip(wave_T: Wave, depth_db: float) -> Wave:
    """Return the wave cut off `depth_db` below its peak, as by an input that is overdriven by so much."""
    limit = np.abs(wave_T).max(initial=0.0) * 10 ** (-depth_db / 20)
    return np.clip(wave_T, -limit, limit)


def compress(wave_T: Wave, ratio: float) -> Wave:
    """Return the wave after a dynamic compressor with a threshold of THRESHOLD_DB re its peak.

    The level is the peak of each millisecond. Gains fall with ATTACK_S, rise with RELEASE_S, and are not delayed.
    """
    peak = np.abs(wave_T).max(initial=0.0)
    if peak == 0:
        return wave_T
    blocks = -(-len(wave_T) // BLOCK)
    level_B = np.abs(np.pad(wave_T, (0, blocks * BLOCK - len(wave_T)))).reshape(blocks, BLOCK).max(axis=1)
    level_db_B = 20 * np.log10(np.maximum(level_B / peak, 1e-6))
    wanted_db_B = compressed_level(level_db_B, ratio) - level_db_B
    attack, release = (np.exp(-BLOCK / RATE_HZ / seconds) for seconds in (ATTACK_S, RELEASE_S))
    gain_db, gains_db = 0.0, np.empty(blocks)
    for block, wanted_db in enumerate(wanted_db_B.tolist()):
        keep = attack if wanted_db < gain_db else release
        gain_db = keep * gain_db + (1 - keep) * wanted_db
        gains_db[block] = gain_db
    centre_B = np.arange(blocks) * BLOCK + (BLOCK - 1) / 2
    compressed_T: Wave = wave_T * 10 ** (np.interp(np.arange(len(wave_T)), centre_B, gains_db) / 20)
    return compressed_T


def compressed_level(level_db: Wave, ratio: float) -> Wave:
    """Return the static curve of `compress`: levels above THRESHOLD_DB exceed it by their excess over the ratio."""
    return np.where(level_db > THRESHOLD_DB, THRESHOLD_DB + (level_db - THRESHOLD_DB) / ratio, level_db)


def pass_telephone(wave_T: Wave) -> Wave:
    """Return the wave after a telephone line: TELEPHONE_HZ, mu-law at 8 kHz with its peak at full scale."""
    import soxr

    band_T = fftconvolve(wave_T, firwin(NUM_TAPS, TELEPHONE_HZ, pass_zero=False, fs=RATE_HZ), mode="same")
    line_T = soxr.resample(band_T, RATE_HZ, TELEPHONE_RATE_HZ)
    peak = np.abs(line_T).max(initial=0.0)
    coded_T = code_mu_law(line_T / peak if peak > 0 else line_T) * peak
    received_T: Wave = soxr.resample(coded_T, TELEPHONE_RATE_HZ, RATE_HZ)
    return np.pad(received_T, (0, max(0, len(wave_T) - len(received_T))))[: len(wave_T)]


def code_mu_law(wave_T: Wave) -> Wave:
    """Return the wave coded by mu-law with 8 bits and decoded again. Source: ITU-T G.711, by libsndfile's tables."""
    import soundfile

    file = BytesIO()
    soundfile.write(file, wave_T, TELEPHONE_RATE_HZ, format="WAV", subtype="ULAW")
    file.seek(0)
    decoded_T: Wave = soundfile.read(file, dtype="float64")[0]
    return decoded_T


def play_by_loudspeaker(wave_T: Wave) -> Wave:
    """Return what a small loudspeaker makes of the wave: its LOUDSPEAKER_DB, and its limit at DRIVE_DB."""
    played_T = _filter(wave_T, LOUDSPEAKER_DB)
    peak = np.abs(played_T).max(initial=0.0)
    if peak == 0:
        return played_T
    drive = 10 ** (DRIVE_DB / 20)
    limited_T: Wave = np.tanh(drive * played_T / peak) / drive * peak
    return limited_T


def record_in_room(wave_T: Wave, response_T: Floats) -> Wave:
    """Return what a phone's microphone records of a sound in a room, shorter than `wave_T` by DIRECT_AT samples."""
    return hear_by_microphone(reverberate(wave_T, response_T))


def hear_by_microphone(wave_T: Wave) -> Wave:
    """Return what a phone's microphone makes of the wave: its MICROPHONE_DB."""
    return _filter(wave_T, MICROPHONE_DB)


def measure_pitch(before_T: Wave, after_T: Wave, nominal_cents: float) -> float:
    """Return how far the spectrum moved, in cents, within PITCH_REACH_CENTS of a nominal shift.

    It is the shift at which the logarithmic power spectra, on a logarithmic axis, correlate best.
    """
    cents = np.arange(0, 1200 * np.log2(PITCH_BAND_HZ[1] / PITCH_BAND_HZ[0]), PITCH_STEP_CENTS)
    reach = np.arange(-PITCH_REACH_CENTS, PITCH_REACH_CENTS + 1, PITCH_STEP_CENTS)

    def log_spectrum(wave_T: Wave, from_cents: float, num: int) -> Wave:
        frequency_hz, power = welch(wave_T, RATE_HZ, nperseg=min(8192, len(wave_T)))
        at_hz = PITCH_BAND_HZ[0] * 2 ** ((from_cents + PITCH_STEP_CENTS * np.arange(num)) / 1200)
        level: Wave = np.interp(at_hz, frequency_hz, np.log(power + 1e-12 * power.max() + 1e-30))
        return level

    original = log_spectrum(before_T, 0.0, len(cents))
    moved = log_spectrum(after_T, nominal_cents - PITCH_REACH_CENTS, len(cents) + len(reach) - 1)
    windows = np.lib.stride_tricks.sliding_window_view(moved, len(cents))
    centred = windows - windows.mean(axis=1, keepdims=True)
    likeness = centred @ (original - original.mean()) / (np.linalg.norm(centred, axis=1) + 1e-30)
    return float(nominal_cents + reach[int(np.argmax(likeness))])


def _filter(wave_T: Wave, level_db: dict[int, int]) -> Wave:
    """Return the wave with these levels in dB at these frequencies in Hz, without delay."""
    gains = [10 ** (level / 20) for level in level_db.values()]
    filtered_T: Wave = fftconvolve(wave_T, firwin2(NUM_TAPS, list(level_db), gains, fs=RATE_HZ), mode="same")
    return filtered_T


def _measure(kind: str, value: str, before_T: Wave, after_T: Wave) -> dict[str, float]:
    """Return the achieved conditions that can be told from the query before and after."""
    if kind == "pitch":
        return {"pitch_cents": measure_pitch(before_T, after_T, float(value))}
    if kind in ("clip", "compress"):
        measured = {"crest_change_db": _crest_db(after_T) - _crest_db(before_T)}
        if kind == "compress":
            return measured | {"level_range_change_db": _level_range_db(after_T) - _level_range_db(before_T)}
        return measured | {"clipped_percent": 100 * float(np.mean(np.abs(after_T) < np.abs(before_T)))}
    if kind == "telephone":
        frequency_hz, power = welch(after_T, RATE_HZ, nperseg=min(4096, len(after_T)))
        outside = (frequency_hz < TELEPHONE_HZ[0]) | (frequency_hz > TELEPHONE_HZ[1])
        return {"outside_band_db": float(10 * np.log10((power[outside].sum() + 1e-30) / (power.sum() + 1e-30)))}
    return {}


def _crest_db(wave_T: Wave) -> float:
    mean_power = float(np.mean(np.square(wave_T)))
    return 10 * float(np.log10(np.abs(wave_T).max() ** 2 / mean_power)) if mean_power > 0 else 0.0


def _level_range_db(wave_T: Wave) -> float:
    """Return how far the 95 % quantile of the level of 50 ms is above the 10 % quantile, in dB."""
    block = RATE_HZ // 20
    power_B = np.square(wave_T[: len(wave_T) // block * block]).reshape(-1, block).mean(axis=1)
    level_db_B = 10 * np.log10(power_B + 1e-10 * np.square(wave_T).max(initial=0.0) + 1e-30)
    return float(np.quantile(level_db_B, 0.95) - np.quantile(level_db_B, 0.1)) if len(level_db_B) else 0.0


_Function = Callable[[Wave, float], tuple[Wave, dict[str, float]]]


def _measured_speed(function: Callable[[Wave, float], Wave], quantity: str) -> _Function:
    def apply(wave_T: Wave, value: float) -> tuple[Wave, dict[str, float]]:
        changed_T = function(wave_T, value)
        return changed_T, {quantity: len(wave_T) / len(changed_T)}

    return apply


def _coded(codec: str) -> _Function:
    def apply(wave_T: Wave, kbps: float) -> tuple[Wave, dict[str, float]]:
        coded_T, achieved_kbps = code(wave_T, codec, kbps)
        return coded_T, {"kbit_per_s": achieved_kbps}

    return apply


_FUNCTION_OF: dict[str, _Function] = {
    "speed": _measured_speed(change_speed, "speed"),
    "tempo": _measured_speed(stretch, "tempo"),
    "pitch": lambda wave_T, cents: (stretch(wave_T, pitch_cents=cents), {}),
    "mp3": _coded("mp3"),
    "opus": _coded("opus"),
    "clip": lambda wave_T, depth_db: (clip(wave_T, depth_db), {}),
    "compress": lambda wave_T, ratio: (compress(wave_T, ratio), {}),
    "telephone": lambda wave_T, _: (pass_telephone(wave_T), {}),
}
