from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bench.align.aligners import crosscor, gcc_phat, nosync
from bench.align.baseline_grid import candidates, usable_mask
from bench.align.contract import Aligner, Pair, TimeMap
from bench.align.viterbi import best_path
from bench.errors import ConfigError
from bench.values import RATE_HZ, no_progress


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> np.ndarray:
    """Return noise that comes and goes, as animals do: ten bursts a second, each of its own loudness."""
    draw = np.random.default_rng(seed)
    loudness = np.repeat(draw.uniform(0.2, 2, round(seconds * 10) + 1), RATE_HZ // 10)
    wave = level * draw.standard_normal(round(seconds * RATE_HZ))
    return (wave * loudness[: len(wave)]).astype(np.float32)


def chirps(seconds: float, seed: int = 0) -> np.ndarray:
    """Return a chirp from 500 Hz to 7 kHz every half second, with a little noise."""
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = time % 0.5
    wave = 0.3 * np.sin(2 * np.pi * (500 * phase + 6500 * phase**2)) * np.sin(np.pi * phase / 0.5)
    return (wave + 0.01 * np.random.default_rng(seed).standard_normal(len(wave))).astype(np.float32)


def delayed(wave: np.ndarray, lag_s: float) -> np.ndarray:
    """Return the wave later by any lag, in a circle: its spectrum turned."""
    frequency = np.fft.rfftfreq(len(wave), 1 / RATE_HZ)
    return np.fft.irfft(np.fft.rfft(wave) * np.exp(-2j * np.pi * frequency * lag_s), len(wave)).astype(np.float32)


def pair(wave0: np.ndarray, wave1: np.ndarray, max_lag_s: float = 1.0) -> Pair:
    return Pair("made", wave0, wave1, "key", max_lag_s)


def aligned(aligner: Aligner, of: Pair) -> TimeMap:
    return aligner.align(of, None, no_progress)


def lags(found: TimeMap) -> np.ndarray:
    return found.time1_K - found.time0_K


# The best path


def slow_path(score: np.ndarray, penalty: float, max_step: int | None) -> float:
    """Return the largest sum of any path, from all of them."""
    best = -np.inf
    for path in product(range(score.shape[1]), repeat=len(score)):
        changes = np.abs(np.diff(path))
        if max_step is None or changes.max(initial=0) <= max_step:
            best = max(best, score[np.arange(len(score)), list(path)].sum() - penalty * changes.sum())
    return best


@pytest.mark.parametrize("max_step", [None, 0, 1, 2, 3, 9])
@pytest.mark.parametrize("penalty", [0.0, 0.3, 2.0])
def test_best_path_is_the_best_of_all_paths(penalty: float, max_step: int | None) -> None:
    draw = np.random.default_rng(0)
    for rows, states in ((1, 5), (4, 5), (5, 4), (3, 1), (2, 9)):
        score = draw.standard_normal((rows, states))
        path = best_path(score, penalty, max_step)
        changes = np.abs(np.diff(path))
        assert path.shape == (rows,) and (max_step is None or changes.max(initial=0) <= max_step)
        value = score[np.arange(rows), path].sum() - penalty * changes.sum()
        assert value == pytest.approx(slow_path(score, penalty, max_step))


def test_best_path_by_hand_pays_for_a_change_only_if_it_is_worth_it() -> None:
    score = np.array([[1.0, 0, 0], [0, 0, 1.5], [1, 0, 0]])
    assert best_path(score, 0.5).tolist() == [0, 0, 0]  # the way to 1.5 and back costs 2
    assert best_path(score, 0.1).tolist() == [0, 2, 0]
    assert best_path(score, 0.0, 1).tolist() == [1, 2, 1] or best_path(score, 0.0, 1).tolist() == [0, 0, 0]


def test_best_path_keeps_out_of_forbidden_states_and_stays_where_all_is_equal() -> None:
    score = np.zeros((3, 4))
    assert best_path(score, 0.0).tolist() == [0, 0, 0]
    score[1, :3] = -np.inf
    assert best_path(score, 1.0).tolist() == [3, 3, 3]
    assert best_path(np.zeros((0, 4)), 1.0).tolist() == []


def test_best_path_leaves_the_scores_as_they_were() -> None:
    score = np.random.default_rng(0).standard_normal((4, 5))
    before = score.copy()
    best_path(score, 0.5)
    np.testing.assert_array_equal(score, before)


@pytest.mark.parametrize(("penalty", "max_step"), [(-0.1, None), (0.1, -1)])
def test_best_path_refuses_negative_settings(penalty: float, max_step: int | None) -> None:
    with pytest.raises(ConfigError, match="-"):
        best_path(np.zeros((2, 2)), penalty, max_step)


# nosync


def test_nosync_gives_equal_times_without_confidence() -> None:
    found = aligned(nosync.build(nosync.Config()), pair(noise(3.5), noise(2.5)))
    assert found.time0_K.tolist() == found.time1_K.tolist() == [0, 1, 2, 3]
    assert found.confidence_K.tolist() == [0] * 4


# GCC-PHAT: the correlation and its peak


def test_correlation_is_one_at_the_lag_of_a_later_click() -> None:
    early, late = np.zeros((2, 1, 8), dtype=np.float32)
    early[0, 2] = late[0, 5] = 0.5
    found = gcc_phat.correlation(early, late, 4)
    np.testing.assert_allclose(found, [[0, 0, 0, 0, 0, 0, 0, 1, 0]], atol=1e-6)  # lags -4 to 4
    np.testing.assert_allclose(gcc_phat.correlation(late, early, 4), found[:, ::-1], atol=1e-6)


def test_correlation_is_that_of_the_definition() -> None:
    one, other = np.random.default_rng(0).standard_normal((2, 6)).astype(np.float32)
    length, found = 16, []
    for lag in (-2, -1, 0, 1, 2):
        total = 0j
        for f in range(length):
            turn = [np.exp(-2j * np.pi * f * t / length) for t in range(6)]
            x0, x1 = (sum(w * z for w, z in zip(wave, turn, strict=True)) for wave in (one, other))
            total += x1 * np.conj(x0) / abs(x1 * np.conj(x0)) * np.exp(2j * np.pi * f * lag / length)
        found.append(total.real / length)
    np.testing.assert_allclose(gcc_phat.correlation(one[None], other[None], 2)[0], found, atol=1e-5)


def test_a_parabolas_peak_is_found_between_the_samples() -> None:
    column = np.arange(-4, 5)
    height = np.stack([sign * (100 - (column - peak) ** 2) for sign, peak in ((1, 0.25), (-1, -1.4), (1, 3.0))])
    np.testing.assert_allclose(gcc_phat.find_peaks(height, np.ones(9), True)[0], [0.25, -1.4, 3.0])
    assert gcc_phat.find_peaks(height, np.ones(9), False)[0].tolist() == [0, -1, 3]


def test_a_peak_at_the_end_of_the_search_is_not_refined() -> None:
    assert gcc_phat.find_peaks(np.array([[0.0, 1, 2, 3, 4]]), np.ones(5), True)[0].tolist() == [2]


def test_confidence_is_the_height_over_what_noise_would_reach() -> None:
    height = np.full((2, 101), 0.1)
    height[:, 30] = [1.0, 0.2]
    background = 0.1 / 0.6745 * np.sqrt(2 * np.log(101))  # 0.45
    np.testing.assert_allclose(gcc_phat.find_peaks(height, np.ones(101), False)[1], [1 - background, 0])


def test_overlap_is_the_root_of_the_shared_part_and_for_fades_that_of_the_definition() -> None:
    np.testing.assert_allclose(gcc_phat.overlap(np.ones(4), 3) ** 2, [0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])
    fade = np.array([0.2, 1, 0.6])
    at_one = (0.2**2 * 1**2 + 1**2 * 0.6**2) / (0.2**4 + 1 + 0.6**4)
    np.testing.assert_allclose(gcc_phat.overlap(fade, 1) ** 2, [at_one, 1, at_one])


def test_no_sound_has_no_lag_and_no_confidence() -> None:
    lag, confidence = gcc_phat.find_peaks(np.zeros((1, 5)), np.ones(5), True)
    assert np.isnan(lag[0]) and confidence[0] == 0


def test_smooth_is_the_best_of_all_lags_of_the_grid() -> None:
    lag = np.array([0.1, 0.1, -0.3, 0.2, 0.2])
    grid = np.array([-0.3, -0.2, -0.1, 0, 0.1, 0.2, 0.3])
    for smoothness in (0.2, 0.6, 3.0):
        found = gcc_phat.smooth(lag, smoothness, 0.1, 0.3)
        cost = np.abs(found - lag).sum() + smoothness * np.abs(np.diff(found)).sum()
        every = np.array(list(product(grid, repeat=5)))
        least = (np.abs(every - lag).sum(axis=1) + smoothness * np.abs(np.diff(every, axis=1)).sum(axis=1)).min()
        assert cost == pytest.approx(least, abs=1e-6)
    assert np.ptp(gcc_phat.smooth(lag, 3.0, 0.1, 0.3)) == 0


# GCC-PHAT: whole pairs


# Chirps return every half second: a lag must be below a quarter to be told from its neighbours.
@pytest.mark.parametrize(("made", "lag_s"), [(noise, 0.4), (noise, -0.4), (chirps, 0.05), (chirps, -0.05)])
def test_gcc_phat_finds_lags_of_both_signs(made: Callable[[float], np.ndarray], lag_s: float) -> None:
    wave = made(8.0)
    found = aligned(gcc_phat.build(gcc_phat.Config(interpolate=False)), pair(wave, delayed(wave, lag_s)))
    np.testing.assert_allclose(lags(found)[2:6], lag_s, atol=1e-9)
    assert found.confidence_K[2:6].min() > 0.5


@pytest.mark.parametrize("samples", [0.3, -0.3, 100.5, -100.25])
def test_gcc_phat_finds_parts_of_a_sample(samples: float) -> None:
    wave = noise(6.0)
    of = pair(wave, delayed(wave, samples / RATE_HZ), 0.1)
    found = aligned(gcc_phat.build(gcc_phat.Config(interpolate=True)), of)
    # A parabola through the peak of a sinc is off by 0.12 of a sample where it is worst, at a third.
    np.testing.assert_allclose(lags(found)[1:5] * RATE_HZ, samples, atol=0.13)


@pytest.mark.parametrize("lag_s", [0.103, -0.103])
def test_the_published_presets_find_the_lag_and_the_published_sign_turns_it(lag_s: float) -> None:
    wave = noise(8.0)
    of = pair(wave, delayed(wave, lag_s), 0.5)
    presets = gcc_phat.presets()
    for name, off_s in (("aru", 0.0026), ("zebra-finch", 1e-9)):  # aru keeps to a grid of 5 ms
        right, turned = (lags(aligned(gcc_phat.build(presets[n]), of)) for n in (name, f"{name}-published"))
        np.testing.assert_allclose(right[2:6], lag_s, atol=off_s)
        np.testing.assert_allclose(turned[2:6], -lag_s, atol=off_s)


def test_a_smooth_path_is_refined_below_its_grid() -> None:
    wave = noise(8.0)
    of = pair(wave, delayed(wave, 0.1031), 0.5)
    config = replace(gcc_phat.presets()["aru"], interpolate=True)
    np.testing.assert_allclose(lags(aligned(gcc_phat.build(config), of))[2:6], 0.1031, atol=1e-5)


def test_gcc_phat_follows_a_clock_that_drifts() -> None:
    wave, time = noise(20.0), np.arange(16 * RATE_HZ) / RATE_HZ
    drift = 1e-3  # so large that it can be seen in 16 s
    played = np.interp((time - 0.2) / (1 + drift), np.arange(len(wave)) / RATE_HZ, wave).astype(np.float32)
    found = aligned(gcc_phat.build(gcc_phat.Config(window_s=1.0)), pair(wave[: len(time)], played, 0.5))
    # A window of a second hears lags that differ by 1 ms: its peak is somewhere among these.
    np.testing.assert_allclose(lags(found)[2:14], 0.2 + drift * found.time0_K[2:14], atol=1.2e-3)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wave = noise(6.0)
    of = pair(wave, delayed(wave, 0.1))
    whole = aligned(gcc_phat.build(gcc_phat.Config()), of)
    monkeypatch.setattr(gcc_phat, "BLOCK_SAMPLES", 1)
    single = aligned(gcc_phat.build(gcc_phat.Config()), of)
    np.testing.assert_allclose(single.time1_K, whole.time1_K, atol=1e-12)
    np.testing.assert_allclose(single.confidence_K, whole.confidence_K, atol=1e-6)


def test_silent_moments_have_the_lag_of_their_neighbours_and_no_confidence() -> None:
    wave = noise(12.0)
    wave[4 * RATE_HZ : 8 * RATE_HZ] = 0
    moved = np.roll(wave, 1600)
    found = aligned(gcc_phat.build(gcc_phat.Config(window_s=1.0)), pair(wave, moved))
    assert found.confidence_K[6] == 0 and found.confidence_K[[2, 10]].min() > 0.5
    np.testing.assert_allclose(lags(found)[[2, 6, 10]], 0.1, atol=1e-5)


def test_rumble_that_is_cut_in_both_channels_is_no_peak_at_no_lag_where_windows_fade() -> None:
    wave, rumbles = (
        noise(6.0, level=0.01),
        np.cumsum(np.random.default_rng(5).standard_normal((2, 6 * RATE_HZ)), axis=1),
    )
    one, other = ((w + 0.05 * r).astype(np.float32) for w, r in zip((wave, np.roll(wave, 4800)), rumbles, strict=True))
    hard, faded = (aligned(gcc_phat.build(gcc_phat.Config(hann=h)), pair(one, other)) for h in (False, True))
    assert np.abs(lags(hard)[2:5] - 0.3).max() > 0.2
    np.testing.assert_allclose(lags(faded)[2:5], 0.3, atol=1e-4)


def test_recordings_of_other_things_have_little_confidence() -> None:
    found = aligned(gcc_phat.build(gcc_phat.Config()), pair(noise(10.0), noise(10.0, seed=1)))
    assert np.median(found.confidence_K) < 0.2


@pytest.mark.parametrize("wrong", [{"window_s": 0.0}, {"smoothness": -1.0}, {"step_s": 1e-6}])
def test_gcc_phat_refuses_settings_that_it_cannot_work_with(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        gcc_phat.Config(**wrong)  # type: ignore[arg-type]


# crosscor


def slow_crosscor(of: Pair, slice_defect: bool) -> np.ndarray:
    """Return the line that wins by the definition: each slice cut to the common length, then its own spectrogram."""
    from torch import from_numpy
    from torchaudio.transforms import MelSpectrogram

    mel = MelSpectrogram(RATE_HZ, n_fft=2048, hop_length=512, n_mels=128)
    lines = candidates(of.keypoints, of.durations_s[0], of.max_lag_s)
    scores = []
    for line in lines:
        values = []
        for k0, k1 in zip(of.keypoints[usable_mask(line)], line[usable_mask(line)], strict=True):
            begin0, begin1 = round(k0 * RATE_HZ), round(k1 * RATE_HZ)
            one = of.wave0_T[0 if slice_defect else begin0 : begin0 + RATE_HZ]
            other = of.wave1_T[begin1 : begin1 + RATE_HZ]
            common = min(len(one), len(other))
            if common > 1024:  # a shorter one has no spectrogram of this size
                spectra = (mel(from_numpy(np.array(wave[:common]))) for wave in (one, other))
                values.append(float((next(spectra) * next(spectra)).mean()))
        scores.append(np.mean(values))
    best: np.ndarray = lines[int(np.argmax(scores))]
    return best


@pytest.mark.parametrize("slice_defect", [False, True])
def test_crosscor_chooses_the_line_of_the_definition(slice_defect: bool) -> None:
    wave = noise(6.0)
    of = pair(wave, np.roll(wave, -round(0.333 * RATE_HZ)))
    found = aligned(crosscor.build(crosscor.Config(slice_defect=slice_defect)), of)
    np.testing.assert_array_equal(found.time1_K, slow_crosscor(of, slice_defect))


@pytest.mark.parametrize("lag_s", [1 / 3, -1 / 3])
def test_crosscor_finds_lags_of_both_signs_as_well_as_its_grid_can(lag_s: float) -> None:
    wave = noise(6.0)
    found = aligned(crosscor.build(crosscor.Config()), pair(wave, np.roll(wave, round(lag_s * RATE_HZ))))
    # The nearest slopes change the lag by 0.02 s a second; 1/3 s is an offset of the grid.
    assert np.abs(lags(found)[1:-1] - lag_s).max() < 0.12


def test_the_published_defect_hears_the_first_second_at_every_keypoint() -> None:
    wave = noise(6.0)
    of = pair(wave, np.roll(wave, 5333))
    changed = wave.copy()
    changed[RATE_HZ:] = noise(5.0, seed=9)
    published, correct = (crosscor.build(crosscor.presets()[name]) for name in ("published", "correct"))
    first_alone = pair(changed, of.wave1_T)
    np.testing.assert_array_equal(aligned(published, of).time1_K, aligned(published, first_alone).time1_K)
    assert aligned(correct, of).confidence_K[2] > aligned(correct, first_alone).confidence_K[2]


@pytest.mark.parametrize("wrong", [{"window_s": 0.01}, {"hop": 0}, {"num_bands": 0}])
def test_crosscor_refuses_settings_that_it_cannot_work_with(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        crosscor.Config(**wrong)  # type: ignore[arg-type]


# Bad input: an honest answer

SILENCE = np.zeros(4 * RATE_HZ, dtype=np.float32)
BAD = {
    "nothing at all": (SILENCE[:0], SILENCE[:0]),
    "nothing in one channel": (noise(4.0), SILENCE[:0]),
    "silence": (SILENCE, SILENCE),
    "silence in one channel": (noise(4.0), SILENCE),
    "a constant": (noise(4.0), SILENCE + 0.3),
    "two constants": (SILENCE + 0.3, SILENCE - 0.2),
    "less than a window": (noise(0.05), noise(0.03, 1)),
    "no numbers": (noise(4.0), SILENCE + np.nan),
    "very different lengths": (noise(8.0), noise(1.5, 1)),
    "unrelated": (noise(6.0), noise(6.0, 1)),
}


@pytest.mark.parametrize("which", BAD)
@pytest.mark.parametrize(
    "aligner",
    [
        crosscor.build(crosscor.Config()),
        crosscor.build(crosscor.Config(slice_defect=True)),
        gcc_phat.build(gcc_phat.Config()),
        gcc_phat.build(gcc_phat.presets()["aru"]),
    ],
    ids=["crosscor", "crosscor-published", "gcc-phat", "gcc-phat-aru"],
)
def test_bad_input_has_an_answer_of_little_confidence(aligner: Aligner, which: str) -> None:
    found = aligned(aligner, pair(*BAD[which]))
    assert np.median(found.confidence_K) < 0.25
    assert np.abs(lags(found)).max() <= 1.0 + 1e-9


def test_a_clipped_recording_is_aligned_all_the_same() -> None:
    wave = noise(6.0)
    of = pair(wave, np.roll(wave, 1600).clip(-0.02, 0.02))
    found = aligned(gcc_phat.build(gcc_phat.Config()), of)
    np.testing.assert_allclose(lags(found)[2:5], 0.1, atol=1e-4)
