import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.align.clock import Clock, ClockRange, Wobble
from bench.align.pairs import list_pair_files
from bench.datasets import aru_sim
from bench.datasets.aru_sim import RATE_HZ, Config
from bench.errors import ConfigError, DataError
from bench.store import Store
from bench.values import no_progress

SPEED_M_S = 343.0
SHORT = Config(duration_s=12.0, train_files=1, test_files=2, num_silences=(0, 0))
CLEAR = replace(SHORT, snr_db=(30.0, 30.0), num_sources=(2, 2), missing_share=0.0, reverberant_share=0.0)


def sums(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.suffix in (".wav", ".csv")]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def found_lag_s(
    wave0_T: np.ndarray, wave1_T: np.ndarray, at0_s: float, near_s: float, size: int
) -> tuple[float, float]:
    """Return the lag at a moment of channel 0 by plain correlation of `size` samples, and how alike both are there."""
    start, reach = round(at0_s * RATE_HZ) - size // 2, RATE_HZ // 50
    first = start + round(near_s * RATE_HZ)
    some0_T, some1_T = wave0_T[start : start + size], wave1_T[first - reach : first + size + reach]
    products = np.correlate(some1_T, some0_T, "valid")
    best = int(np.argmax(products))
    some1_T = some1_T[best : best + size]
    return (round(near_s * RATE_HZ) + best - reach) / RATE_HZ, float(
        products[best] / np.linalg.norm(some0_T) / np.linalg.norm(some1_T)
    )


class Hiss:
    """Calls without a pitch: a trill has one peak of correlation for each of its swings."""

    def crop(self, num_samples: int, draw: np.random.Generator) -> np.ndarray:
        return draw.standard_normal(num_samples).astype(np.float32)


@pytest.mark.parametrize(
    ("regime", "clock"),
    [
        ("fine", Clock(0.4, 1e-4, 6.0, (Wobble(0.005, 40.0, 0.0),))),
        ("fine", Clock(-0.4, -1e-4, 6.0)),
        ("coarse", Clock(-3.0, 5e-4, 6.0, (Wobble(0.05, 60.0, 1.0),))),
    ],
)
def test_the_channels_are_apart_by_what_the_clock_says(regime: str, clock: Clock) -> None:
    """Up to what the recorders' spacing, half a sample, and a clock that swings within 0.1 s may add."""
    wave0_T, wave1_T = aru_sim.simulate_pair(CLEAR, Hiss(), clock, aru_sim.MAX_LAG_S[regime], 3)
    errors = []
    for at0_s in np.arange(1.0, 11.5, 0.25):
        true_s = float(clock.lag(np.array([at0_s]))[0])
        if 0.6 < at0_s < 11.4 and 0.6 < at0_s + true_s < 11.4:
            lag_s, alike = found_lag_s(wave0_T, wave1_T, at0_s, true_s, RATE_HZ // 10)
            errors += [lag_s - true_s] if alike > 0.5 else []  # the equalisers differ
    assert len(errors) >= 6
    assert np.abs(errors).max() < 0.4 / SPEED_M_S + 1 / RATE_HZ + 0.05 * 0.01
    assert np.abs(np.median(errors)) < 1e-3


def test_real_calls_are_apart_by_what_the_clock_says(real_data: Path) -> None:
    source = aru_sim.build(replace(CLEAR, sources="field"), real_data)
    for recipe in source.recipes("aru-sim-fine", "test"):
        wave0_T, wave1_T = recipe.make()
        errors = []
        for at0_s, at1_s in zip(recipe.keypoints.time0_K, recipe.keypoints.time1_K, strict=True):
            if 0.6 < at0_s < 11.4 and 0.6 < at1_s < 11.4:
                lag_s, alike = found_lag_s(wave0_T, wave1_T, at0_s, at1_s - at0_s, RATE_HZ // 2)
                errors += [lag_s - (at1_s - at0_s)] if alike > 0.7 else []
        assert errors and np.abs(np.median(errors)) < 1.2e-3


def test_the_layout_is_written_and_clipped_and_the_same_again(tmp_path: Path) -> None:
    source = aru_sim.build(replace(SHORT, coarse_offset_s=4.9), None)
    folders = [source.folder(Store(tmp_path / name), no_progress) for name in ("a", "b")]
    assert sums(folders[0]) == sums(folders[1]) and len(sums(folders[0])) == 2 * (1 + 1 + 2 + 1)
    lags = []
    for set_name in source.sets():
        for task in list_pair_files(folders[0], set_name, "test"):
            assert task.truth is not None and task.problem == ""
            assert task.truth.time0_K.tolist() == list(range(12))
            assert task.truth.time1_K.min() >= 0 and task.truth.time1_K.max() <= 12
            assert np.abs(task.truth.time1_K - task.truth.time0_K).max() <= source.max_lag_s(set_name)
            lags.append(task.truth.time1_K[6] - 6)
            info = soundfile.info(task.path)
            assert (info.samplerate, info.channels, info.frames, info.subtype) == (16_000, 2, 192_000, "PCM_16")
    assert len(set(lags)) == 4  # each file has its own clock


def test_a_kill_costs_one_file(tmp_path: Path) -> None:
    source = aru_sim.build(SHORT, None)
    store = Store(tmp_path)

    def killed(stage: str, done: int, total: int) -> None:
        if stage == "aru-sim-fine test" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.folder(store, killed)
    partial = store.partial("pairs", source.digest())
    times = {path.name: path.stat().st_mtime_ns for path in (partial / "formatted_data/aru-sim-fine").rglob("*.wav")}
    folder = source.folder(store, no_progress)
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "formatted_data/aru-sim-fine").rglob("*.wav")}
    assert len(after) == 2 and times.items() <= after.items()
    assert sums(folder) == sums(source.folder(Store(tmp_path / "other"), no_progress))


def test_sides_and_seeds_and_sounds_have_their_own_fingerprints(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "field" / split).mkdir(parents=True)
        soundfile.write(tmp_path / "field" / split / f"{split}.wav", np.zeros(1600), RATE_HZ)
    field = aru_sim.build(SHORT, tmp_path)
    others = [
        aru_sim.build(SHORT, None),
        aru_sim.build(replace(SHORT, seed=1), tmp_path),
        aru_sim.build(replace(SHORT, spacing_m=(0.1, 0.2)), tmp_path),
    ]
    assert field.field == tmp_path / "field" and others[0].field is None
    assert len({source.digest() for source in [field, *others]}) == 4
    made = [field.recipes("aru-sim-fine", split)[0].make.args[1] for split in ("train", "test")]  # type: ignore[attr-defined]
    assert [[path.name for path in calls.paths] for calls in made] == [["train.wav"], ["test.wav"]]


def test_field_recordings_that_are_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"field/train and field/test.*--data-root"):
        aru_sim.build(Config(sources="field"), tmp_path)
    assert aru_sim.build(Config(), tmp_path).field is None


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        ({"coarse_offset_s": 5.0}, "aru-sim-coarse must be <= 5"),
        ({"fine_wobble_s": 0.1}, "aru-sim-fine must be <= 0.5"),
        ({"spacing_m": (0.4, 0.1)}, "low to high"),
        ({"missing_share": 1.5}, "between 0 and 1"),
        ({"num_sources": (0, 2)}, "num_sources"),
        ({"duration_s": 1.0}, "duration_s"),
    ],
)
def test_settings_that_make_no_scene_are_refused(settings: dict[str, float], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        Config(**settings)  # type: ignore[arg-type]


def test_a_missing_source_is_heard_by_one_recorder_and_the_first_by_both() -> None:
    config = replace(SHORT, missing_share=1.0)
    audible_RS = aru_sim._draw_audible(50, config, np.random.default_rng(0))
    assert audible_RS[:, 0].tolist() == [1, 1]
    assert (audible_RS[:, 1:].sum(axis=0) == 1).all() and audible_RS[:, 1:].any(axis=1).all()
    assert aru_sim._draw_audible(50, replace(SHORT, missing_share=0.0), np.random.default_rng(0)).all()


def test_nobody_calls_in_a_silence() -> None:
    config = replace(SHORT, num_silences=(1, 1), silence_s=(5.0, 5.0), num_sources=(6, 6))
    dry_ST = aru_sim._draw_calls(config, aru_sim.MadeUpCalls(), 40 * RATE_HZ, np.random.default_rng(3))
    quiet = np.abs(dry_ST).max(axis=0) == 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(int), [0]])))
    assert (edges[1::2] - edges[::2]).max() >= 4.9 * RATE_HZ


def test_noise_floors_are_independent_and_fall_by_3_db_an_octave() -> None:
    silent_RT = np.zeros((2, 30 * RATE_HZ), np.float32)
    draw = np.random.default_rng(0)
    heard_T = [aru_sim._apply_recorder(silent_T, 0.1, draw) for silent_T in silent_RT]
    assert abs(np.corrcoef(*heard_T)[0, 1]) < 0.02
    power = np.zeros(RATE_HZ // 2 + 1)
    for _ in range(20):  # the equalisers' mean is flat
        power += np.square(
            np.abs(np.fft.rfft(aru_sim._apply_recorder(silent_RT[0], 0.1, draw).reshape(-1, RATE_HZ)))
        ).mean(0)
    octaves_db = [10 * np.log10(power[low : 2 * low].mean()) for low in (150, 300, 600)]
    assert np.diff(octaves_db) == pytest.approx([-3.0, -3.0], abs=2.0)


def test_equalisers_move_nothing() -> None:
    click_T = np.zeros(RATE_HZ, np.float32)
    click_T[8000] = 1
    for seed in range(5):
        assert np.argmax(np.abs(aru_sim._apply_recorder(click_T, 1e-6, np.random.default_rng(seed)))) == 8000


def test_recorders_stand_as_far_apart_as_the_setting_says() -> None:
    """Direct sounds arrive no further apart than the spacing over the speed of sound."""
    config = replace(SHORT, spacing_m=(3.0, 3.0), reverberant_share=0.0)
    apart = []
    for seed in range(10):
        for near, far in zip(*aru_sim._simulate_responses(config, 5, np.random.default_rng(seed)), strict=True):
            apart.append(abs(int(np.argmax(near)) - int(np.argmax(far))) / RATE_HZ * SPEED_M_S)
    assert max(apart) <= 3.0 + 2 / RATE_HZ * SPEED_M_S
    assert max(apart) > 2.5  # some call from the line through both


@pytest.mark.parametrize("kind", [aru_sim._chirp, aru_sim._trill, aru_sim._note])
def test_made_up_syllables_are_audible_and_below_7_khz(kind: object) -> None:
    for seed in range(5):
        wave_T = kind(np.arange(4000) / RATE_HZ, np.random.default_rng(seed)) * np.hanning(4000)  # type: ignore[operator]
        power = np.square(np.abs(np.fft.rfft(wave_T)))
        assert np.isfinite(wave_T).all() and power[: 4000 * 7 // 16].sum() > 0.99 * power.sum() > 0


def test_ranges_of_both_regimes_are_the_documented_ones() -> None:
    assert Config().clock_range("coarse") == ClockRange(4.5, 500.0, 0.05)
    assert Config().clock_range("fine") == ClockRange(0.45, 100.0, 0.005)
