"""One pair of recordings: the numbers of its clocks by hand, and a recording put onto the other's clock."""

from __future__ import annotations

import os
import shutil
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from bench import align_pair as once
from bench import registry
from bench.align import clock
from bench.align.contract import Jump, Pair, PairEmbedder, TimeMap
from bench.align.pair_embedder import CachedPairEmbedder
from bench.align_pair import Alignment, align_one, check_writable, load_pair_embedder, similarity_matrix, write_aligned
from bench.config import flatten, resolve
from bench.errors import ConfigError, DataError, PluginError
from bench.fingerprint import Embedder
from bench.store import Store, read_json, write_json
from bench.train import checkpoint
from bench.values import RATE_HZ, Floats, Progress, no_progress


@dataclass(frozen=True)
class Told:
    """An aligner that says what it was told: the lag and the confidence of each whole second."""

    lag_K: np.ndarray
    confidence_K: np.ndarray

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        time0_K = pair.keypoints
        return TimeMap(time0_K, time0_K + self.lag_K, self.confidence_K)


def silent(seconds0: float, seconds1: float) -> Pair:
    waves = [np.zeros(round(seconds * RATE_HZ), np.float32) for seconds in (seconds0, seconds1)]
    return Pair("made", *waves, key="made", max_lag_s=5.0)


def aligned(pair: Pair, lag: object, confidence: object = 1.0) -> Alignment:
    shape = pair.keypoints.shape
    told = Told(np.broadcast_to(np.asarray(lag, float), shape), np.broadcast_to(np.asarray(confidence, float), shape))
    return align_one(pair, told, None, no_progress)


def hiss(seconds: float, rate_hz: int = RATE_HZ, seed: int = 0) -> Floats:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate_hz))).astype(np.float32)


# The numbers of the clocks


def test_a_straight_line_gives_its_offset_and_its_drift() -> None:
    pair = silent(11, 12)
    found = aligned(pair, 0.5 + 100e-6 * pair.keypoints, 0.8)
    assert found.offset_s == pytest.approx(0.5) and found.drift_ppm == pytest.approx(100)
    assert found.bend_s == pytest.approx(0, abs=1e-9) and found.confidence == pytest.approx(0.8)
    assert not found.is_doubtful


def test_offset_and_drift_have_signs() -> None:
    pair = silent(11, 11)
    found = aligned(pair, -0.25 - 40e-6 * pair.keypoints)
    assert found.offset_s == pytest.approx(-0.25) and found.drift_ppm == pytest.approx(-40)


def test_the_bend_is_the_largest_distance_from_the_line() -> None:
    # Lags 1, 4, 1 ms: the line is flat at 2 ms, and the middle one is 2 ms off it.
    found = aligned(silent(3, 4), [0.001, 0.004, 0.001])
    assert found.drift_ppm == pytest.approx(0, abs=1e-6) and found.offset_s == pytest.approx(0.002)
    assert found.bend_s == pytest.approx(0.002)


def test_a_guess_has_no_say_in_the_line() -> None:
    confidence = [1.0, 1.0, 0.0, 1.0, 1.0]
    found = aligned(silent(5, 8), [0.3, 0.3, 1.2, 0.3, 0.3], confidence)
    # It weighs a millionth of the others, and is 0.9 s off.
    assert found.offset_s == pytest.approx(0.3, abs=2e-6) and found.drift_ppm == pytest.approx(0, abs=2)
    assert found.confidence == pytest.approx(0.8) and found.bend_s == pytest.approx(0.9, abs=1e-5)


def test_moments_that_one_channel_lacks_do_not_count() -> None:
    # Channel 1 ends at 4 s; what is said of it after that is a guess far off.
    later = aligned(silent(6, 4), [0.5, 0.5, 0.5, 0.5, 3.0, 3.0], [1, 1, 1, 1, 0, 0])
    assert (later.offset_s, later.confidence) == (pytest.approx(0.5), 1.0) and later.bend_s < 1e-9
    # 0 and 1 s of channel 0 were before channel 1 began.
    earlier = aligned(silent(6, 6), [-3.0, -3.0, -1.5, -1.5, -1.5, -1.5], [0, 0, 1, 1, 1, 1])
    assert (earlier.offset_s, earlier.confidence) == (pytest.approx(-1.5), 1.0) and earlier.bend_s < 1e-9


def test_the_slope_of_a_short_clip_is_not_extended_over_a_long_recording() -> None:
    pair = silent(180, 6)
    found = aligned(pair, -133.25 + 100e-6 * (pair.keypoints - 134))
    # The clip is heard from 134 s on for 6 s, so that the line is extended to 128 s.
    assert found.offset_s == pytest.approx(-133.2506, abs=1e-6) and not found.has_drift


@dataclass(frozen=True)
class Jumping:
    """An aligner that finds 2 s lost at 4 s."""

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        knots = (np.array([0.0, 4.0, 6.0, 10.0]), np.array([1.0, 5.0, 5.0, 9.0]), np.array([1.0, 0.0, 0.0, 1.0]))
        return TimeMap(*knots, jumps=(Jump(4.0, -2.0),))


def test_what_the_second_recorder_lost_is_no_bend() -> None:
    found = align_one(silent(10, 12), Jumping(), None, no_progress)
    assert found.bend_s < 1e-9 and found.offset_s == pytest.approx(1.0) and abs(found.drift_ppm) < 1e-6


def test_a_pair_without_a_common_moment_still_has_numbers() -> None:
    found = aligned(silent(3, 1), 2.0, 0.0)
    assert found.offset_s == pytest.approx(2.0) and found.is_doubtful


def test_one_keypoint_has_an_offset_and_no_drift() -> None:
    found = aligned(silent(0.5, 2), 0.2)
    assert (found.offset_s, found.drift_ppm, found.bend_s) == (pytest.approx(0.2), 0.0, 0.0)


@pytest.mark.parametrize(("confidence", "doubtful"), [(0.49, True), (0.5, False)])
def test_below_a_half_it_is_doubtful(confidence: float, doubtful: bool) -> None:
    assert aligned(silent(4, 4), 0.1, confidence).is_doubtful == doubtful


def test_keypoints_beyond_the_second_channel_are_its_ends_and_not_believed() -> None:
    rows = aligned(silent(4, 3), [-0.5, 0.0, 0.0, 0.5], [0.1, 0.2, 0.3, 0.4]).keypoints()
    assert list(rows) == ["Time Channel 0", "Time Channel 1", "Confidence"]
    assert rows["Time Channel 0"].tolist() == [0, 1, 2, 3] and rows["Time Channel 1"].tolist() == [0, 1, 2, 3]
    assert rows["Confidence"].tolist() == [0.0, 0.2, 0.3, 0.0]


# What a picture shows


@pytest.fixture
def embedder() -> CachedPairEmbedder:
    plugin = registry.load("encoder", "random-projection")
    return CachedPairEmbedder(Embedder(plugin.build(plugin.Config(dim=32)).eval(), torch.device("cpu"), "fp32", "key"))


def test_likeness_has_a_row_each_second_and_stands_out_at_the_lag(embedder: CachedPairEmbedder) -> None:
    # Noise whose loudness changes: an encoder with levels of its own for each segment would hear it as all alike.
    draw = np.random.default_rng(0)
    tones = np.repeat(draw.uniform(300, 6_000, 60), RATE_HZ // 4)
    sound = (0.3 * np.sin(2 * np.pi * np.cumsum(tones) / RATE_HZ)).astype(np.float32) + hiss(15) / 100
    size, lag = 12 * RATE_HZ, round(0.7 * RATE_HZ)
    pair = Pair("made", sound[RATE_HZ:][:size], sound[RATE_HZ - lag :][:size], "made", 1.5)
    found = similarity_matrix(pair, embedder)
    assert found.lag_s_L == pytest.approx(np.arange(-15, 16) / 10) and found.score_KL.shape == (12, 31)
    assert found.score_KL.dtype == np.float32
    best_s = found.lag_s_L[np.nanargmax(found.score_KL[2:10], axis=1)]
    assert best_s == pytest.approx(0.7)
    assert 1.4826 * np.median(np.abs(found.score_KL)) == pytest.approx(1, abs=0.05)


def test_nothing_is_drawn_of_a_channel_shorter_than_a_segment(embedder: CachedPairEmbedder) -> None:
    with pytest.raises(DataError, match=r"made is shorter than a segment of 0\.96 s"):
        similarity_matrix(silent(5, 0.5), embedder)


# The second recording on the clock of the first


def recorded(path: Path, wave_TC: np.ndarray, rate_hz: int = RATE_HZ, **how: str) -> Path:
    soundfile.write(path, wave_TC, rate_hz, **how)
    return path


def test_a_later_click_comes_to_its_own_time(tmp_path: Path) -> None:
    rate_hz, wave_TC = 22_050, np.zeros((5 * 22_050, 2), np.float32)
    wave_TC[round(2.4 * rate_hz), 0] = wave_TC[round(3.4 * rate_hz), 1] = 0.5
    source = recorded(tmp_path / "second.wav", wave_TC, rate_hz, subtype="FLOAT")
    write_aligned(aligned(silent(4, 5), 0.4), source, None, tmp_path / "out.wav", no_progress)
    written_TC, rate = soundfile.read(tmp_path / "out.wav", dtype="float32")
    # As long as channel 0, at the second recording's own rate and depth, with both of its channels.
    assert (rate, written_TC.shape) == (rate_hz, (4 * rate_hz, 2))
    assert soundfile.info(tmp_path / "out.wav").subtype == "FLOAT"
    assert np.abs(written_TC).argmax(axis=0).tolist() == [2 * rate_hz, 3 * rate_hz]
    assert np.abs(written_TC).max(axis=0) == pytest.approx([0.5, 0.5], abs=0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.wav", "second.wav"]


def test_one_channel_of_a_stereo_file_is_written_alone(tmp_path: Path) -> None:
    wave_TC = np.stack([hiss(3, seed=1), hiss(3, seed=2)], axis=1)
    source = recorded(tmp_path / "both.wav", wave_TC, subtype="FLOAT")
    write_aligned(aligned(silent(3, 3), 0.0), source, [1], tmp_path / "out.wav", no_progress)
    written_T, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert written_T.shape == (3 * RATE_HZ,)
    np.testing.assert_allclose(written_T, wave_TC[:, 1], atol=1e-5)


def test_flac_is_written_even_from_a_depth_it_has_not(tmp_path: Path) -> None:
    source = recorded(tmp_path / "second.wav", hiss(2), subtype="FLOAT")
    write_aligned(aligned(silent(2, 2), 0.0), source, None, tmp_path / "out.flac", no_progress)
    info = soundfile.info(tmp_path / "out.flac")
    assert (info.format, info.frames, info.subtype) == ("FLAC", 2 * RATE_HZ, "PCM_16")
    np.testing.assert_allclose(soundfile.read(tmp_path / "out.flac")[0], hiss(2), atol=2**-15)


def test_silence_stands_where_the_second_recording_has_nothing(tmp_path: Path) -> None:
    source = recorded(tmp_path / "second.wav", hiss(1))
    write_aligned(aligned(silent(4, 1), -1.0), source, None, tmp_path / "out.wav", no_progress)
    written_T, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    loud = [float(np.abs(second_T).max()) > 0.05 for second_T in written_T.reshape(4, RATE_HZ)]
    assert loud == [False, True, False, False]


@pytest.mark.parametrize(("size_s", "heard_at_s"), [(-2.0, [2, 8]), (2.0, [2, 8])])
def test_what_is_written_lines_up_on_both_sides_of_a_jump(tmp_path: Path, size_s: float, heard_at_s: list[int]) -> None:
    """Channel 1 is 1 s late, and at 4 s of channel 0 it lost 2 s, or has 2 s of hiss inserted."""
    wave_T = np.zeros(13 * RATE_HZ, np.float32)
    wave_T[[3 * RATE_HZ, round((9 + size_s) * RATE_HZ)]] = 0.5
    if size_s > 0:
        wave_T[5 * RATE_HZ : 7 * RATE_HZ] = hiss(2)
    source = recorded(tmp_path / "second.wav", wave_T, subtype="FLOAT")
    resumes_s = 4 + max(1e-4, -size_s)
    knots = (np.array([0.0, 4.0, resumes_s, 10.0]), np.array([1.0, 5.0, resumes_s + 1 + size_s, 11 + size_s]))
    time_map = TimeMap(*knots, np.ones(4), (Jump(4.0, size_s),))
    write_aligned(
        Alignment(silent(10, 13), time_map, 1.0, 0.0, 0.0, 1.0), source, None, tmp_path / "out.wav", no_progress
    )
    written_T, _ = soundfile.read(tmp_path / "out.wav", dtype="float32")
    assert np.flatnonzero(np.abs(written_T) > 0.4).tolist() == [second * RATE_HZ for second in heard_at_s]
    assert np.abs(written_T[round(4.01 * RATE_HZ) : 6 * RATE_HZ]).max() < 1e-3


def test_blocks_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = recorded(tmp_path / "second.wav", np.stack([hiss(4, seed=1), hiss(4, seed=2)], axis=1), subtype="FLOAT")
    alignment = aligned(silent(4, 4), [0.1, 0.1004, 0.1001, 0.1])
    monkeypatch.setattr(clock, "BLOCK", 10**6)
    write_aligned(alignment, source, None, tmp_path / "whole.wav", no_progress)
    monkeypatch.setattr(clock, "BLOCK", 999)
    monkeypatch.setattr(once, "BLOCK_FRAMES", 1_111)
    write_aligned(alignment, source, None, tmp_path / "blocks.wav", no_progress)
    whole_TC, blocks_TC = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("whole", "blocks"))
    np.testing.assert_array_equal(whole_TC, blocks_TC)
    assert np.abs(whole_TC).max() > 0.1


def test_memory_does_not_grow_with_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "BLOCK", 4_096)
    monkeypatch.setattr(once, "BLOCK_FRAMES", 4_096)
    peaks = []
    for seconds in (5, 25):
        source = recorded(tmp_path / f"{seconds}.wav", hiss(seconds))
        alignment = aligned(silent(seconds, seconds), 0.01)
        tracemalloc.start()
        write_aligned(alignment, source, None, tmp_path / f"out{seconds}.wav", no_progress)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 200_000  # 20 s more are 1.3 MB


@pytest.mark.parametrize("name", ["out.txt", "out"])
def test_a_name_that_is_of_no_audio_is_refused_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    source = recorded(tmp_path / "second.wav", hiss(1))
    with pytest.raises(DataError, match=rf"{name} names no format of audio"):
        write_aligned(aligned(silent(1, 1), 0.0), source, None, tmp_path / name, no_progress)
    assert [path.name for path in tmp_path.iterdir()] == ["second.wav"]


def test_a_write_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    source = recorded(tmp_path / "second.wav", hiss(2))

    def killed(stage: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_aligned(aligned(silent(2, 2), 0.0), source, None, tmp_path / "out.wav", killed)
    assert [path.name for path in tmp_path.iterdir()] == ["second.wav"]


def test_what_would_be_overwritten_or_has_no_folder_is_refused(tmp_path: Path) -> None:
    check_writable(None)
    check_writable(tmp_path / "new.csv")
    (tmp_path / "old.csv").touch()
    with pytest.raises(DataError, match=r"old\.csv exists already; name another file, or give --overwrite"):
        check_writable(tmp_path / "old.csv")
    check_writable(tmp_path / "old.csv", overwrite=True)
    with pytest.raises(DataError, match=r"exists already; name another file$"):
        check_writable(tmp_path, overwrite=True)
    with pytest.raises(DataError, match=r"no folder .*absent to write new\.csv into"):
        check_writable(tmp_path / "absent" / "new.csv")


def test_a_recording_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "b.wav").touch()
    (tmp_path / "linked.wav").symlink_to(tmp_path / "b.wav")
    for name in ("b.wav", "linked.wav"):
        with pytest.raises(DataError, match=r"is one of the recordings, which are never overwritten; name another"):
            check_writable(tmp_path / name, [tmp_path / "absent.wav", tmp_path / "b.wav"], overwrite=True)


# Which encoder is used


def kept(store: Path, key: str, dim: int, seed: int, *overrides: str) -> torch.nn.Module:
    """Keep a run of the random projection whose matrix is another than its settings say; return its encoder."""
    plugin = registry.load("encoder", "random-projection")
    encoder: torch.nn.Module = plugin.build(plugin.Config(dim=dim, seed=seed))
    run, weights = store / "runs" / key, store / "weights" / f"weights{key}"
    run.mkdir(parents=True)
    weights.mkdir(parents=True)
    config = resolve("random-projection", plugin, "tiny", overrides=[f"model.dim={dim}", *overrides])
    write_json(run / "config.json", flatten(config))
    write_json(run / "result.json", {"checkpoint": {"key": f"weights{key}"}})
    checkpoint.save(weights / "model.safetensors", encoder.state_dict(), {})
    return encoder


def test_without_a_run_the_random_projection_is_used(tmp_path: Path) -> None:
    embedder, name = load_pair_embedder(Store(tmp_path), None, None, no_progress)
    assert name == "the random projection, as the store has no run"
    one_ND, other_ND = embedder(Pair("made", hiss(2), hiss(1.5), "made"), 0.1)
    assert (len(one_ND), len(other_ND)) == (11, 6) and not (tmp_path / "runs").exists()


def test_the_encoder_of_a_run_is_used_with_its_weights(tmp_path: Path) -> None:
    encoders = {key: kept(tmp_path, key, 16, seed) for seed, key in enumerate(("aaaaaaaaa", "bbbbbbbbb"), start=3)}
    for run, key in (("a", "aaaaaaaaa"), ("bbb", "bbbbbbbbb")):
        embedder, name = load_pair_embedder(Store(tmp_path), run, None, no_progress)
        assert name == f"random-projection of the run {key[:6]}"
        assert torch.equal(embedder.embedder.encoder.matrix, encoders[key].matrix)  # type: ignore[attr-defined]
        assert embedder.embedder.key == f"weights{key}"


def keep_run_of_a_file(store: Path, key: str) -> None:
    """Keep a run, the latest one, of an encoder in a file that is elsewhere, with music and an index of such files."""
    kept(store, key, 16, 0)
    settings = read_json(store / "runs" / key / "config.json")
    own = {"encoder": "mine", "data.dataset": "./any.py", "eval.indexes": ["./my.py"], "align.aligners": ["./a.py"]}
    write_json(store / "runs" / key / "config.json", settings | own)
    newer = time.time() + 60
    os.utime(store / "runs" / key / "result.json", (newer, newer))


def test_the_latest_run_is_passed_over_if_its_encoder_is_a_file_elsewhere(tmp_path: Path) -> None:
    keep_run_of_a_file(tmp_path, "ccccccccc")
    passed_over = "(the latest run, cccccc, is of 'mine', not installed here: give its file as --model)"
    _, name = load_pair_embedder(Store(tmp_path), None, None, no_progress)
    assert name == f"the random projection {passed_over}"
    kept(tmp_path, "aaaaaaaaa", 16, 0)
    _, name = load_pair_embedder(Store(tmp_path), None, None, no_progress)
    assert name == f"random-projection of the run aaaaaa {passed_over}"
    with pytest.raises(PluginError, match=r"run cccccc is of the encoder 'mine', .*--model, or another run as --run"):
        load_pair_embedder(Store(tmp_path), "ccc", None, no_progress)


def test_the_file_of_an_encoder_chooses_its_own_latest_run(tmp_path: Path) -> None:
    keep_run_of_a_file(tmp_path, "ccccccccc")
    file = tmp_path / "mine.py"
    shutil.copyfile(str(registry.load("encoder", "random-projection").__file__), file)
    _, name = load_pair_embedder(Store(tmp_path), None, str(file), no_progress)
    assert name == "mine of the run cccccc"
    shutil.copyfile(file, tmp_path / "other.py")
    with pytest.raises(ConfigError, match=r"no run is of the encoder 'other' .*; name a run as --run"):
        load_pair_embedder(Store(tmp_path), None, str(tmp_path / "other.py"), no_progress)


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no finished run"):
        load_pair_embedder(Store(tmp_path), "abc", None, no_progress)
    kept(tmp_path, "aaaaaaaaa", 16, 0)
    with pytest.raises(ConfigError, match="no run called 'b'"):
        load_pair_embedder(Store(tmp_path), "b", None, no_progress)
    (tmp_path / "weights" / "weightsaaaaaaaaa" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="weights of the run aaaaaaaaa are not in the store"):
        load_pair_embedder(Store(tmp_path), None, None, no_progress)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_joined_mp3_is_written_whole(tmp_path: Path, suffix: str) -> None:
    source = tmp_path / "second.mp3"
    soundfile.write(source, hiss(2), RATE_HZ)
    source.write_bytes(source.read_bytes() * 2)
    write_aligned(aligned(silent(4, 4), [0.0] * 4), source, None, tmp_path / f"out{suffix}", no_progress)
    written_T, _rate = soundfile.read(tmp_path / f"out{suffix}")
    assert len(written_T) == 4 * RATE_HZ and np.abs(written_T[-RATE_HZ:]).max() > 0.05
