from pathlib import Path

import numpy as np
import pytest
import soundfile

from bench.align.contract import Pair
from bench.align.pairs import (
    Keypoints,
    PairFile,
    Problem,
    Recipe,
    list_pair_files,
    open_pair,
    open_pair_file,
    splits,
    write_keypoints,
    write_pair,
    write_split,
)
from bench.errors import DataError
from bench.values import RATE_HZ, no_progress

HEADER = "Filename,Time Channel 0,Time Channel 1\n"


def tone(hertz: float, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def wav(path: Path, *channels: np.ndarray, rate_hz: int = RATE_HZ, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack(channels, axis=1), rate_hz, subtype)
    return path


def split(root: Path, annotations: str | None, *files: str, name: str = "val") -> Path:
    place = root / "formatted_data" / "aru" / name
    for file in files:
        wav(place / "audio" / file, tone(400, 0.1), tone(500, 0.1))
    if annotations is not None:
        place.mkdir(parents=True, exist_ok=True)
        (place / "annotations.csv").write_text(annotations, encoding="utf-8")
    return root


def by_name(found: list[PairFile]) -> dict[str, PairFile]:
    return {task.name: task for task in found}


# Reading


def test_reads_the_layout_and_the_first_row_of_a_time_counts(tmp_path: Path) -> None:
    rows = "a.wav,1.0,1.5\na.wav,0.0,0.5\nb.WAV,0.0,0.1\na.wav,0.0,9.9\na.wav,0.1,0.30000000000000004\n"
    found = by_name(list_pair_files(split(tmp_path, HEADER + rows, "a.wav", "b.WAV"), "aru", "val"))
    assert list(found) == ["a.wav", "b.WAV"] and not any(task.problem for task in found.values())
    truth = found["a.wav"].truth
    assert truth is not None and found["a.wav"].path.is_file()
    assert truth.time0_K.tolist() == [0.0, 0.1, 1.0]
    assert truth.time1_K.tolist() == [0.5, 0.30000000000000004, 1.5]  # the very number: the score matches them exactly


def test_columns_may_come_in_any_order_after_a_spreadsheet_s_mark(tmp_path: Path) -> None:
    split(tmp_path, "\ufeffTime Channel 1,Other,Filename,Time Channel 0\n2,x,a.wav,1\n", "a.wav")
    (task,) = list_pair_files(tmp_path, "aru", "val")
    assert task.truth is not None and (task.truth.time0_K[0], task.truth.time1_K[0]) == (1.0, 2.0)


@pytest.mark.parametrize("bad", ["nan", "inf", "", "one", "-inf"])
@pytest.mark.parametrize("column", [0, 1])
def test_a_time_that_is_no_number_costs_one_file_and_is_named(tmp_path: Path, bad: str, column: int) -> None:
    times = ["1", "1"]
    times[column] = bad
    split(tmp_path, HEADER + f"a.wav,0,0\na.wav,{','.join(times)}\nb.wav,0,0\n", "a.wav", "b.wav")
    found = by_name(list_pair_files(tmp_path, "aru", "val"))
    assert found["b.wav"].truth is not None and not found["b.wav"].problem
    assert found["a.wav"].truth is None and "line 3" in found["a.wav"].problem and repr(bad) in found["a.wav"].problem


def test_files_without_rows_and_rows_without_files_are_named(tmp_path: Path) -> None:
    split(tmp_path, HEADER + "gone.wav,0,0\n../b.wav,0,0\nshort.wav\n", "quiet.wav", "short.wav")
    (tmp_path / "formatted_data" / "aru" / "val" / "audio" / "._quiet.wav").touch()
    problems = {task.name: task.problem for task in list_pair_files(tmp_path, "aru", "val")}
    assert set(problems) == {"gone.wav", "../b.wav", "quiet.wav", "short.wav"}
    assert "no such file" in problems["gone.wav"] and "no such file" in problems["../b.wav"]
    assert "no row" in problems["quiet.wav"] and "not both numbers" in problems["short.wav"]


def test_only_eval_may_have_no_annotations(tmp_path: Path) -> None:
    split(tmp_path, None, "b.wav", "a.wav", name="eval")
    assert [(task.name, task.truth, task.problem) for task in list_pair_files(tmp_path, "aru", "eval")] == [
        ("a.wav", None, ""),
        ("b.wav", None, ""),
    ]
    split(tmp_path, None, "a.wav", name="train")
    with pytest.raises(DataError, match=r"train/annotations\.csv cannot be read.*Filename, Time Channel 0"):
        list_pair_files(tmp_path, "aru", "train")
    assert splits(tmp_path, "aru") == ("eval", "train")


def test_a_missing_set_or_split_and_wrong_columns_are_told(tmp_path: Path) -> None:
    split(tmp_path, "Filename,Time Channel 0\na.wav,0\n", "a.wav")
    with pytest.raises(DataError, match=r"zebra_finch.*data root"):
        list_pair_files(tmp_path, "zebra_finch", "val")
    with pytest.raises(DataError, match=r"no split 'test'.*it has val"):
        list_pair_files(tmp_path, "aru", "test")
    with pytest.raises(DataError, match=r"has the columns \['Filename', 'Time Channel 0'\]; restore it"):
        list_pair_files(tmp_path, "aru", "val")


# Writing


def test_written_keypoints_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    names = ["a, b.wav", "c.wav"]
    rows = {name: Keypoints(np.sort(draw.uniform(0, 9, 50)), draw.uniform(0, 9, 50)) for name in names}
    split(tmp_path, "", *names)
    path = tmp_path / "formatted_data" / "aru" / "val" / "annotations.csv"
    write_keypoints(path, rows)
    assert path.read_text().startswith(HEADER)
    for task in list_pair_files(tmp_path, "aru", "val"):
        assert task.truth is not None
        np.testing.assert_array_equal(task.truth.time0_K, rows[task.name].time0_K)
        np.testing.assert_array_equal(task.truth.time1_K, rows[task.name].time1_K)


def test_a_submission_with_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav hold NaN"):
        write_keypoints(tmp_path / "s.csv", {"a.wav": Keypoints(np.zeros(1), np.array([np.nan]))})
    assert not (tmp_path / "s.csv").exists()


def test_a_split_goes_on_after_a_kill_and_keeps_what_is_finished(tmp_path: Path) -> None:
    made: list[str] = []

    def recipe(name: str, fails: bool) -> Recipe:
        def make() -> tuple[np.ndarray, np.ndarray]:
            made.append(name)
            if fails:
                raise KeyboardInterrupt
            return tone(300, 0.2), tone(400, 0.2)

        return Recipe(name, Keypoints(np.zeros(1), np.ones(1)), make)

    with pytest.raises(KeyboardInterrupt):
        write_split(tmp_path, "s", "test", [recipe("a.wav", False), recipe("b.wav", True)], no_progress)
    assert not list(tmp_path.glob("**/annotations.csv"))
    write_split(tmp_path, "s", "test", [recipe("a.wav", False), recipe("b.wav", False)], no_progress)
    assert made == ["a.wav", "b.wav", "b.wav"]
    assert [task.problem for task in list_pair_files(tmp_path, "s", "test")] == ["", ""]


def test_a_loud_pair_is_lowered_by_one_gain_for_both(tmp_path: Path) -> None:
    write_pair(tmp_path / "loud.wav", 4 * tone(300, 0.2), tone(300, 0.2))
    write_pair(tmp_path / "soft.wav", tone(300, 0.2), 0.1 * tone(300, 0.2))
    loud, soft = (soundfile.read(tmp_path / f"{name}.wav")[0] for name in ("loud", "soft"))
    assert np.abs(loud).max(axis=0) == pytest.approx([0.9, 0.225], abs=1e-3)
    assert np.abs(soft).max(axis=0) == pytest.approx([0.5, 0.05], abs=1e-3)


# Opening


def test_two_channels_of_one_file_are_its_samples(tmp_path: Path) -> None:
    path = wav(tmp_path / "x.wav", tone(400, 1), tone(500, 1), subtype="FLOAT")
    pair = open_pair(path, tmp_path / "maps", 0.5)
    assert (pair.name, pair.max_lag_s, pair.durations_s) == ("x.wav", 0.5, (1.0, 1.0))
    assert isinstance(pair.wave0_T, np.memmap) and pair.wave0_T.dtype == np.float32
    np.testing.assert_array_equal(pair.wave0_T, tone(400, 1))
    np.testing.assert_array_equal(pair.wave1_T, tone(500, 1))
    assert len(list((tmp_path / "maps").iterdir())) == 2  # nothing is left of the work


def test_any_rate_and_length_become_16_khz_as_the_one_decoder_gives_them(tmp_path: Path) -> None:
    from bench.audio.decode import decode

    draw = np.random.default_rng(0)
    left = wav(tmp_path / "left.wav", *draw.uniform(-0.5, 0.5, (2, 14_000)), rate_hz=44_100)
    right = wav(tmp_path / "right.wav", draw.uniform(-0.5, 0.5, 9_000), rate_hz=8_000)
    pair = open_pair((left, right), tmp_path, 5.0)
    assert pair.name == "left.wav and right.wav"
    np.testing.assert_array_equal(pair.wave0_T, decode(left))
    np.testing.assert_array_equal(pair.wave1_T, decode(right))
    both = wav(tmp_path / "both.wav", tone(440, 2, 48_000), tone(880, 2, 48_000), rate_hz=48_000)
    pair = open_pair(both, tmp_path, 5.0)
    np.testing.assert_allclose(pair.wave0_T[200:-200], tone(440, 2)[200:-200], atol=1e-3)
    np.testing.assert_allclose(pair.wave1_T[200:-200], tone(880, 2)[200:-200], atol=1e-3)


def test_the_key_is_of_the_samples_and_their_order(tmp_path: Path) -> None:
    a, b = tone(400, 0.3), tone(500, 0.3)
    paths = [wav(tmp_path / name, *waves) for name, waves in (("1.wav", (a, b)), ("2.wav", (a, b)), ("3.wav", (b, a)))]
    keys = [open_pair(path, tmp_path / "maps", 5.0).key for path in paths]
    assert keys[0] == keys[1] != keys[2]
    alike = open_pair(wav(tmp_path / "4.wav", a, a), tmp_path / "other", 5.0)
    np.testing.assert_array_equal(alike.wave0_T, alike.wave1_T)


def test_memory_is_flat_in_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr("bench.audio.decode.BLOCK_FRAMES", 1 << 14)
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", 48_000, 2, "PCM_16") as file:
        for _ in range(120):
            file.write(np.zeros((48_000, 2), np.float32))
    tracemalloc.start()
    pair = open_pair(path, tmp_path / "maps", 5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pair.durations_s == (120.0, 120.0)
    assert peak < 4e6  # the pair is 15 MB


@pytest.mark.parametrize("content", [b"", b"RIFF", b"not audio at all" * 100])
def test_a_file_that_is_no_audio_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.wav").write_bytes(content)
    problem = open_pair_file(PairFile("bad.wav", tmp_path / "bad.wav"), tmp_path / "maps", 5.0)
    assert isinstance(problem, Problem) and problem.name == "bad.wav" and "bad.wav cannot be used" in problem.reason
    assert not list((tmp_path / "maps").iterdir())


def test_what_cannot_be_aligned_is_returned_as_data(tmp_path: Path) -> None:
    spoilt = tone(400, 0.3)
    spoilt[100] = np.nan
    reasons = {
        "two channels": wav(tmp_path / "mono.wav", tone(400, 0.3)),
        "two channels, got 3": wav(tmp_path / "three.wav", *[tone(400, 0.3)] * 3),
        "NaN": wav(tmp_path / "nan.wav", tone(400, 0.3), spoilt, subtype="FLOAT"),
        "no samples": wav(tmp_path / "empty.wav", *[np.zeros(0)] * 2),
        "no audio file at": tmp_path / "gone.wav",
    }
    for reason, path in reasons.items():
        problem = open_pair_file(PairFile(path.name, path), tmp_path / "maps", 5.0)
        assert isinstance(problem, Problem) and reason in problem.reason and path.name in problem.reason
    known = open_pair_file(PairFile("a.wav", tmp_path / "mono.wav", problem="has no row"), tmp_path / "maps", 5.0)
    assert known == Problem("a.wav", "has no row")
    fine = open_pair_file(
        PairFile("x.wav", wav(tmp_path / "x.wav", tone(1, 0.3), tone(2, 0.3))), tmp_path / "maps", 5.0
    )
    assert isinstance(fine, Pair)
    with pytest.raises(DataError, match="no audio file"):
        open_pair((tmp_path / "mono.wav", tmp_path / "gone.wav"), tmp_path / "maps", 5.0)


def test_all_of_two_files_is_opened_and_what_was_wrong_with_them_is_told(tmp_path: Path) -> None:
    one, other = tmp_path / "one.ogg", tmp_path / "other.wav"
    hiss = 0.1 * np.random.default_rng(0).standard_normal(2 * RATE_HZ)
    soundfile.write(one, hiss, RATE_HZ)
    one.write_bytes(one.read_bytes() * 2)
    wav(other, hiss, -hiss)
    pair = open_pair((one, other), tmp_path / "maps", 5.0)
    assert pair.durations_s == (4.0, 2.0)
    assert np.abs(pair.wave1_T - hiss).max() < 1e-4
    assert [note.split(" ", 1)[0] for note in pair.notes] == [str(one), str(other)]
    assert "2 streams one after another" in pair.notes[0] and "cancel each other out" in pair.notes[1]


def test_both_channels_of_a_file_lose_their_own_offset(tmp_path: Path) -> None:
    wave = tone(400, 1.0)
    pair = open_pair(wav(tmp_path / "a.wav", wave + 0.3, -wave - 0.2), tmp_path / "maps", 5.0)
    assert np.abs(pair.wave0_T - wave).max() < 1e-3 and np.abs(pair.wave1_T + wave).max() < 1e-3
    assert "constant offset" in pair.notes[0]
