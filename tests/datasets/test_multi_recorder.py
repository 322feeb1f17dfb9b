from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.align.pairs import list_pair_files
from bench.datasets import multi_recorder
from bench.datasets.multi_recorder import COPY_FILE, COPY_LAG_S, LOCAR_FILE, Config
from bench.errors import ConfigError, DataError
from bench.store import Store
from bench.values import RATE_HZ, no_progress


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with three recorders of one noise, and copies of another noise shifted as the real ones are."""
    home = tmp_path / "field" / "multi_recorder"
    (home / "locar_2020").mkdir(parents=True)
    (home / "aru_shifted_copies").mkdir()
    draw = np.random.default_rng(0)
    rows = ["Station,Zone,Easting,Northing,Elevation", "Ex-1,12,0,0,0", "Ex-2,12,40,0,0", "Ex-3,12,80,0,0"]
    (home / "locar_2020" / "Vignette_Coordinates.csv").write_text("\n".join(rows) + "\n")
    scene_T = 0.1 * draw.standard_normal(7 * 24_000)
    for station in ("Ex-1", "Ex-2", "Ex-3"):
        soundfile.write(home / "locar_2020" / LOCAR_FILE.format(station), scene_T, 24_000)
    whole_T = 0.1 * draw.standard_normal(5 * 32_000)
    for number, lag_s in COPY_LAG_S.items():
        start = 32_000 + round(lag_s * 32_000)  # what is at t of copy 1 is at t - lag of this one
        soundfile.write(home / "aru_shifted_copies" / COPY_FILE.format(number), whole_T[start:][:96_000], 32_000)
    return tmp_path


def found_lag_s(wave0_T: np.ndarray, wave1_T: np.ndarray, at0_s: float, near_s: float) -> float:
    """Return the lag at a moment of channel 0 by plain correlation of 0.2 s of it."""
    start, size, reach = round((at0_s - 0.1) * RATE_HZ), RATE_HZ // 5, 100
    first = start + round(near_s * RATE_HZ)
    products = np.correlate(wave1_T[first - reach : first + size + reach], wave0_T[start : start + size], "valid")
    return (round(near_s * RATE_HZ) + int(np.argmax(products)) - reach) / RATE_HZ


def errors_s(folder: Path, set_name: str) -> list[float]:
    """Return found less annotated lags, of the keypoints that both channels hold."""
    errors = []
    for task in list_pair_files(folder, set_name, "test"):
        assert task.truth is not None
        wave_TC, _rate_hz = soundfile.read(task.path, dtype="float32")
        last_s = len(wave_TC) / RATE_HZ - 0.15
        for at0_s, at1_s in zip(task.truth.time0_K, task.truth.time1_K, strict=True):
            if 0.15 < at0_s < last_s and 0.15 < at1_s < last_s:
                errors.append(found_lag_s(wave_TC[:, 0], wave_TC[:, 1], at0_s, at1_s - at0_s) - (at1_s - at0_s))
    return errors


@pytest.mark.parametrize("set_name", ["locar", "shifted-copies"])
def test_the_channels_are_apart_by_what_is_annotated(root: Path, tmp_path: Path, set_name: str) -> None:
    source = multi_recorder.build(Config(), root)
    folder = source.folder(Store(tmp_path / "store"), no_progress)
    found = errors_s(folder, set_name)
    assert len(found) > 10 and np.abs(found).max() <= 1 / RATE_HZ
    lags = [task.truth.time1_K - task.truth.time0_K for task in list_pair_files(folder, set_name, "test") if task.truth]
    assert np.min(np.concatenate(lags)) < -0.1 and np.max(np.concatenate(lags)) > 0.1  # both signs
    assert np.abs(np.concatenate(lags)).max() <= source.max_lag_s(set_name)


def test_no_silence_at_an_end_tells_the_lag(root: Path) -> None:
    source = multi_recorder.build(Config(), root)
    for set_name in source.sets():
        for recipe in source.recipes(set_name):
            for wave_T in recipe.make():
                assert np.square(wave_T[:100]).mean() > 1e-3 < np.square(wave_T[-100:]).mean()


def test_real_copies_are_apart_by_what_is_annotated(real_data: Path, tmp_path: Path) -> None:
    source = multi_recorder.build(Config(clocks=1), real_data)
    found = errors_s(source.folder(Store(tmp_path), no_progress), "shifted-copies")
    # A call of 5.8 kHz has peaks 0.17 ms apart, of nearly one height.
    assert len(found) > 20 and np.median(np.abs(found)) < 1e-4 and np.quantile(np.abs(found), 0.9) < 1e-3


def test_real_recorders_are_neighbours(real_data: Path) -> None:
    origins = multi_recorder.build(Config(), real_data).recording_pairs["locar"]
    assert len(origins) == 12  # a grid of 3 x 3 has 12 edges
    assert {origin.name for origin in origins} >= {"Ex-1_Ex-2", "Ex-5_Ex-8"}
    assert "Ex-1_Ex-5" not in {origin.name for origin in origins}


def test_far_recorders_make_no_pair(root: Path) -> None:
    names = [origin.name for origin in multi_recorder.build(Config(), root).recording_pairs["locar"]]
    assert names == ["Ex-1_Ex-2", "Ex-2_Ex-3"]
    with pytest.raises(DataError, match="max_distance_m = 10"):
        multi_recorder.build(Config(max_distance_m=10.0), root)


def test_the_same_seed_gives_the_same_clocks_and_another_other_ones(root: Path) -> None:
    def times(seed: int) -> list[float]:
        source = multi_recorder.build(Config(seed=seed), root)
        return [float(r.keypoints.time1_K[1]) for name in source.sets() for r in source.recipes(name)]

    assert times(0) == times(0) != times(1)
    assert len(set(times(0))) == len(times(0)) == 2 * (2 + 10)


def test_what_is_not_there_is_told(root: Path, tmp_path: Path) -> None:
    for place in (None, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=r"locar_2020 and aru_shifted_copies.*leave out"):
            multi_recorder.build(Config(), place)
    home = root / "field" / "multi_recorder"
    (home / "aru_shifted_copies" / "aru_3.wav").unlink()
    with pytest.raises(DataError, match=r"aru_3\.wav; restore it"):
        multi_recorder.build(Config(), root)
    (home / "locar_2020" / "Vignette_Coordinates.csv").write_text("Station\nEx-1\n")
    with pytest.raises(DataError, match=r"Coordinates\.csv cannot be read"):
        multi_recorder.build(Config(), root)


@pytest.mark.parametrize("settings", [{"locar_offset_s": 0.6}, {"clocks": 0}, {"drift_ppm": 1e5}])
def test_clocks_beyond_the_promised_lag_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"<= 0\.5 s|>= 1"):
        Config(**settings)  # type: ignore[arg-type]
