from __future__ import annotations

import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from bench.audio import shards
from bench.audio.decode import Decoded
from bench.audio.pcm import MANIFEST, Corpus, corpus_key, open_corpus, prepare_corpus
from bench.audio.shards import group_tracks
from bench.audio.verify import verify
from bench.datasets import folder, noise_folder, synth
from bench.errors import BenchError, DataError, PluginError, StoreError
from bench.store import Store
from bench.values import RATE_HZ, Floats, Source, Track, no_progress


@dataclass
class Waves:
    """A source of arrays; an exception among them is raised."""

    waves: dict[str, np.ndarray | Exception]
    sides: dict[str, str] = field(default_factory=dict)

    def tracks(self) -> list[Track]:
        return [Track(name, f"{name}.wav", self.sides.get(name, "train")) for name in self.waves]  # type: ignore[arg-type]

    def load(self, track: Track) -> Floats:
        wave = self.waves[track.id]
        if isinstance(wave, Exception):
            raise wave
        return wave.astype(np.float32)

    def digest(self) -> str:
        return "waves"


def noise(seed: int, seconds: float = 2.0, peak: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-peak, peak, round(seconds * RATE_HZ))


def prepared(root: Path, source: Source, workers: int = 1) -> Corpus:
    return prepare_corpus(Store(root), "test", source, min_track_s=1.0, workers=workers)


def files(folder: Path) -> list[str]:
    """Return the names of the corpus's own files; the store adds one about the stage."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".json")


def statuses(corpus: Corpus) -> dict[str, str]:
    return dict(zip(corpus.manifest["id"], corpus.manifest["status"], strict=True))


def test_samples_come_back_as_they_were(tmp_path: Path) -> None:
    waves = {f"t{n:02d}": noise(n, 1 + n / 20) for n in range(40)}
    corpus = prepared(tmp_path, Waves(waves, {"t01": "test", "t39": "val"}))
    assert corpus.tracks["id"].tolist() == list(waves)
    assert corpus.numbers("test").tolist() == [1] and corpus.numbers("val").tolist() == [39]
    for number, wave in enumerate(waves.values()):
        assert corpus.num_samples(number) == len(wave)
        whole = corpus.read(number, 0, len(wave))
        assert np.abs(whole / 2**15 - wave).max() <= 0.51 / 2**15
        assert np.array_equal(corpus.read(number, 777, 1000), whole[777:1777])


@pytest.mark.parametrize(("track", "start", "count"), [(0, -1, 5), (0, 31_999, 2), (1, 0, 1), (-1, 0, 1), (0, 5, -2)])
def test_reading_over_a_track_end_is_refused(tmp_path: Path, track: int, start: int, count: int) -> None:
    corpus = prepared(tmp_path, Waves({"a": noise(0)}))
    with pytest.raises(IndexError):
        corpus.read(track, start, count)


def test_bad_tracks_are_skipped_counted_and_named(tmp_path: Path) -> None:
    nan = noise(1)
    nan[5] = np.nan
    bad = {
        "broken": DataError("broken.wav cannot be decoded"),
        "crash": ZeroDivisionError("in the plug-in"),
        "denied": PermissionError("no access"),
        "nan": nan,
        "stereo": np.zeros((2, 32_000)),
        "short": noise(2, 0.99),
        "nothing": np.zeros(0),
        "silent": noise(3, peak=0.0009),
    }
    corpus = prepared(tmp_path, Waves({"good": noise(0), **bad}))
    assert statuses(corpus) == {
        "good": "ok",
        **dict.fromkeys(("broken", "crash", "denied", "nan", "stereo"), "unreadable"),
        "short": "short",
        "nothing": "short",
        "silent": "silent",
    }
    assert corpus.tracks["id"].tolist() == ["good"]
    assert corpus.select_unusable()["id"].tolist() == list(bad)
    assert (corpus.select_unusable()["reason"] != "").all()


def test_track_of_just_the_least_length_is_kept(tmp_path: Path) -> None:
    assert statuses(prepared(tmp_path, Waves({"a": noise(0, 1.0)}))) == {"a": "ok"}


def test_overshoot_is_scaled_not_clipped(tmp_path: Path) -> None:
    wave = noise(0, peak=2.0)
    corpus = prepared(tmp_path, Waves({"a": wave}))
    gain = corpus.tracks["gain"][0]
    assert gain == pytest.approx(1 / np.abs(wave).max(), rel=1e-6)
    assert np.abs(corpus.read(0, 0, len(wave)) / 2**15 - gain * wave).max() < 1.1 / 2**15


def test_copy_on_the_test_side_is_removed_from_training(tmp_path: Path) -> None:
    sides = {"twin": "test", "again": "test", "held": "val"}
    waves = {
        "first": noise(0),
        "own": noise(1),
        "twin": noise(0),
        "again": noise(0),
        "own2": noise(1),
        "held": noise(0),
    }
    corpus = prepared(tmp_path, Waves(waves, sides))
    assert corpus.tracks["id"].tolist() == ["own", "twin"]
    reasons = dict(zip(corpus.manifest["id"], corpus.manifest["reason"], strict=True))
    assert reasons["first"] == reasons["held"] == reasons["again"] == "same audio as twin (test)"
    assert reasons["own2"] == "same audio as own (train)"


def test_near_copy_of_a_test_track_is_removed_from_training(tmp_path: Path) -> None:
    songs = [synth.compose(np.random.default_rng(n), 8 * RATE_HZ) for n in range(3)]
    waves = {"copy": 0.5 * songs[0][4321:], "other": songs[1], "song": songs[0], "song2": songs[2]}
    corpus = prepared(tmp_path, Waves(waves, {"song": "test", "song2": "test"}))
    assert statuses(corpus) == {"copy": "duplicate", "other": "ok", "song": "ok", "song2": "ok"}
    report = verify(Waves(waves), corpus)
    assert report[["id", "problem"]].to_numpy().tolist() == [["copy", "near-duplicate"]]


def test_what_was_wrong_with_a_near_copys_file_is_said_with_and_without_it(tmp_path: Path) -> None:
    class Noted(Waves):
        def load_noted(self, track: Track) -> Decoded:
            return Decoded(self.load(track), "is cut off: of 9.0 s the last 1.0 s" if track.id == "copy" else "")

    song = synth.compose(np.random.default_rng(0), 8 * RATE_HZ)
    source = Noted({"copy": 0.5 * song[4321:], "song": song}, {"song": "test"})
    corpus = prepared(tmp_path, source)
    (reason,) = corpus.select_unusable()["reason"]
    assert reason.startswith("near-duplicate of song (test): ") and reason.endswith(
        "; it is cut off: of 9.0 s the last 1.0 s"
    )
    whole = corpus.with_near_duplicates()
    assert whole.tracks["reason"].tolist() == ["is cut off: of 9.0 s the last 1.0 s", ""]
    assert verify(source, whole)["problem"].tolist() == ["cut-off"]


def test_known_problems_are_not_loaded(tmp_path: Path) -> None:
    class Listed(Waves):
        def tracks(self) -> list[Track]:
            problems = {"a": "", "b": "missing", "c": "a link to a folder, which is not followed"}
            return [Track(name, "", "train", problem=problem) for name, problem in problems.items()]

    corpus = prepared(tmp_path, Listed({"a": noise(0)}))
    assert statuses(corpus) == {"a": "ok", "b": "missing", "c": "unreadable"}
    assert corpus.select_unusable()["reason"].tolist() == [
        shards.NOT_THERE,
        "a link to a folder, which is not followed",
    ]


def test_no_usable_track_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no usable track.*1 silent, 1 short|no usable track.*1 short, 1 silent"):
        prepared(tmp_path, Waves({"a": np.zeros(32_000), "b": noise(0, 0.5)}))
    with pytest.raises(DataError, match="lists no track"):
        prepared(tmp_path, Waves({}))


def test_one_id_for_two_tracks_is_refused(tmp_path: Path) -> None:
    class Twice(Waves):
        def tracks(self) -> list[Track]:
            return [Track("a", "", "train"), Track("a", "", "train")]

    with pytest.raises(PluginError, match="ids must be unique"):
        prepared(tmp_path, Twice({"a": noise(0)}))


def test_second_time_decodes_nothing(tmp_path: Path) -> None:
    waves = Waves({"a": noise(0)})
    first = prepared(tmp_path, waves)
    waves.waves = {"a": ZeroDivisionError()}
    assert prepared(tmp_path, waves).digest == first.digest


def test_digest_depends_on_audio_and_side_only(tmp_path: Path) -> None:
    waves = {"a": noise(0), "b": noise(1)}
    digest = prepared(tmp_path / "1", Waves(waves)).digest
    assert prepared(tmp_path / "2", Waves({**waves, "c": np.zeros(5)})).digest == digest
    assert prepared(tmp_path / "3", Waves(waves, {"b": "test"})).digest != digest
    assert prepared(tmp_path / "4", Waves({"a": noise(0), "b": noise(2)})).digest != digest


def test_parallel_and_serial_give_the_same_bytes(tmp_path: Path) -> None:
    source = synth.build(synth.Config(num_train=34, num_val=2, num_test=4, seconds=1.0), None)
    one, two = prepared(tmp_path / "1", source, workers=1), prepared(tmp_path / "2", source, workers=2)
    names = files(one.folder)
    assert names == files(two.folder) and len(names) == 1 + 3 * 3
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in names)


def test_corpus_travels_to_a_worker_as_its_folder(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, Waves({"a": noise(0, 60.0)}))
    corpus.read(0, 0, 10)
    packed = pickle.dumps(corpus)
    assert len(packed) < 1000
    assert pickle.loads(packed).digest == corpus.digest


@given(st.integers(1, 20_000))
def test_groups_hold_every_track_once_in_order(count: int) -> None:
    tracks = [Track(str(n), "", "train") for n in range(count)]
    groups = group_tracks(tracks)
    assert [track for group in groups for track in group.tracks] == tracks
    assert [group.number for group in groups] == list(range(len(groups)))
    assert len(groups) <= shards.MAX_SHARDS


# -- interrupted, full, shared ---------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from bench.audio.pcm import prepare_corpus
from bench.datasets import synth
from bench.store import Store

if __name__ == "__main__":
    source = synth.build(synth.Config(num_train=150, num_val=2, num_test=8, seconds=1.0), None)
    print(prepare_corpus(Store(Path(sys.argv[1])), "synth", source, min_track_s=1.0, workers=int(sys.argv[2])).digest)
"""


def started(tmp_path: Path, workers: int) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path / "store"), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(reached: object, timeout_s: float = 30.0) -> None:
    assert callable(reached)
    until = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < until, "timed out"
        time.sleep(0.005)


def test_killed_preparation_continues_to_the_same_bytes(tmp_path: Path) -> None:
    process = started(tmp_path, workers=2)
    wait_until(lambda: list((tmp_path / "store").glob("pcm/*.partial/shard-*.parquet")))
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(workers, timeout=10)
    assert not any(worker.is_running() for worker in workers)

    partial = next((tmp_path / "store").glob("pcm/*.partial"))
    written = {p.name: p.stat().st_mtime_ns for p in partial.glob("shard-*.i16") if p.with_suffix(".parquet").exists()}
    assert 0 < len(written) < 10
    source = synth.build(synth.Config(num_train=150, num_val=2, num_test=8, seconds=1.0), None)
    resumed = prepare_corpus(Store(tmp_path / "store"), "synth", source, min_track_s=1.0, workers=1)
    whole = prepare_corpus(Store(tmp_path / "other"), "synth", source, min_track_s=1.0, workers=1)
    assert {name: (resumed.folder / name).stat().st_mtime_ns for name in written} == written
    assert (resumed.folder / MANIFEST).read_bytes() == (whole.folder / MANIFEST).read_bytes()
    assert files(resumed.folder) == files(whole.folder)
    assert not list(resumed.folder.glob(".*"))


def test_script_without_a_main_guard_is_told_and_does_not_hang(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    command = [sys.executable, str(script), str(tmp_path / "store"), "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0 and "DataError: no decoding process could start" in ended.stderr


def test_process_that_is_killed_before_its_first_track_is_not_taken_for_a_script(tmp_path: Path) -> None:
    assert "was killed before its first track; run the same command" in shards._death_message(tmp_path, [], killed=True)
    assert "no decoding process could start" in shards._death_message(tmp_path, [], killed=False)


def test_two_processes_prepare_one_corpus(tmp_path: Path) -> None:
    processes = [started(tmp_path, workers=1) for _ in range(2)]
    told = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], told
    assert told[0][0] == told[1][0] != ""
    assert len([path for path in (tmp_path / "store" / "pcm").iterdir() if path.is_dir()]) == 1


def test_full_disk_is_a_store_error_and_keeps_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waves = Waves({f"t{n:02d}": noise(n, 1.0) for n in range(40)})
    move = os.replace

    def full(source: Path, target: Path) -> None:
        if "shard-00001" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        move(source, target)

    monkeypatch.setattr("bench.audio.shards.os.replace", full)
    with pytest.raises(StoreError, match="No space left"):
        prepared(tmp_path, waves)
    partial = next(tmp_path.glob("pcm/*.partial"))
    assert sorted(path.name for path in partial.iterdir()) == [f"shard-00000.{s}" for s in ("i16", "parquet", "words")]
    monkeypatch.undo()
    assert len(prepared(tmp_path, waves).tracks) == 40


def test_full_disk_in_a_worker_is_told(tmp_path: Path) -> None:
    source = synth.build(synth.Config(num_train=40, num_val=0, num_test=0, seconds=1.0), None)
    folder = tmp_path / "gone"  # a folder that cannot be written to
    with pytest.raises(FileNotFoundError, match="gone"):
        shards.write_shards(folder, source, group_tracks(source.tracks()), 1.0, 2, no_progress)


def test_truncated_finished_shard_is_written_again(tmp_path: Path) -> None:
    source = Waves({"a": noise(0)})
    shard = group_tracks(source.tracks())[0]
    shards.write_shard(tmp_path, source, shard, 1.0)
    assert shards.is_done(tmp_path, shard)
    os.truncate(tmp_path / "shard-00000.i16", 100)
    assert not shards.is_done(tmp_path, shard)


# -- a damaged store --------------------------------------------------------------------------


def test_shard_of_a_wrong_size_is_named(tmp_path: Path) -> None:
    corpus = prepared(tmp_path, Waves({"a": noise(0)}))
    os.truncate(corpus.folder / "shard-00000.i16", 100)
    with pytest.raises(StoreError, match=r"shard-00000\.i16 has 100 bytes.*64000"):
        open_corpus(corpus.folder)
    (corpus.folder / "shard-00000.i16").unlink()
    with pytest.raises(StoreError, match=r"shard-00000\.i16 has 0 bytes"):
        open_corpus(corpus.folder)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("shard", "../../secret"),
        ("offset", -5),
        ("offset", 10),
        ("num_samples", 10**9),
        ("num_samples", -1),
        ("shard", -1),
    ],
)
def test_manifest_that_reaches_elsewhere_is_refused(tmp_path: Path, column: str, value: object) -> None:
    corpus = prepared(tmp_path, Waves({"a": noise(0), "b": noise(1)}))
    rows = pd.read_parquet(corpus.folder / MANIFEST)
    rows[column] = [value, value]
    rows.to_parquet(corpus.folder / MANIFEST)
    with pytest.raises(StoreError, match="delete"):
        open_corpus(corpus.folder)


def test_missing_or_foreign_manifest_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=MANIFEST):
        open_corpus(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"not parquet")
    with pytest.raises(StoreError, match=MANIFEST):
        open_corpus(tmp_path)
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / MANIFEST)
    with pytest.raises(StoreError, match="columns x"):
        open_corpus(tmp_path)


# -- files ------------------------------------------------------------------------------------


def test_folder_of_mixed_files_is_prepared_and_verified(tmp_path: Path) -> None:
    home = tmp_path / "music"
    home.mkdir()
    soundfile.write(home / "a.wav", np.stack([noise(0)] * 2, axis=1), 44_100, subtype="PCM_24")
    soundfile.write(home / "b.mp3", noise(1), RATE_HZ, format="MP3")
    soundfile.write(home / "c.ogg", noise(2), 22_050)
    soundfile.write(home / "d.FLAC", noise(3), 8000, format="FLAC")
    soundfile.write(home / "e.wav", np.full(32_000, np.nan), RATE_HZ, subtype="FLOAT")
    (home / "f.mp3").touch()
    soundfile.write(home / "g.wav", np.zeros(32_000), RATE_HZ)
    (home / "h.mp3").write_bytes((home / "b.mp3").read_bytes()[:4000])
    source = folder.build(folder.Config(), home)
    corpus = prepare_corpus(Store(tmp_path / "store"), "folder", source, min_track_s=0.2, workers=1)
    bad = {"e.wav": "unreadable", "f.mp3": "unreadable", "g.wav": "silent"}
    assert statuses(corpus) == dict.fromkeys(("a.wav", "b.mp3", "c.ogg", "d.FLAC", "h.mp3"), "ok") | bad

    (home / "a.wav").unlink()
    damaged = np.memmap(corpus.folder / "shard-00000.i16", "<i2", "r+")
    damaged[-1] ^= 1
    damaged.flush()
    report = verify(folder.build(folder.Config(), home), corpus)
    assert list(report.columns) == ["id", "path", "problem", "detail"]
    problems = dict(zip(report["id"], report["problem"], strict=True))
    assert problems == {"a.wav": "missing", **bad, "h.mp3": "corrupt"}


def test_healthy_corpus_has_an_empty_report(tmp_path: Path) -> None:
    source = Waves({"a": noise(0)})
    report = verify(source, prepared(tmp_path, source))
    assert report.empty and list(report.columns) == ["id", "path", "problem", "detail"]


def test_noise_folder_with_one_silent_file_goes_on_and_all_silent_does_not(tmp_path: Path) -> None:
    for name in ("train/rain/a.wav", "train/rain/b.wav", "test/car/c.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / name, np.zeros(32_000), RATE_HZ)
    with pytest.raises(DataError, match=f"no usable track in {tmp_path}: 3 silent"):
        prepared(tmp_path / "store", noise_folder.build(noise_folder.Config(), tmp_path))
    soundfile.write(tmp_path / "train/rain/a.wav", noise(0), RATE_HZ)
    corpus = prepared(tmp_path / "store", noise_folder.build(noise_folder.Config(), tmp_path))
    assert corpus.tracks["label"].tolist() == ["rain"]
    assert corpus.select_unusable()["id"].tolist() == ["train/rain/b.wav", "test/car/c.wav"]


def test_changed_file_gets_a_new_key(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", noise(0), RATE_HZ)
    before = corpus_key("folder", folder.build(folder.Config(), tmp_path), 1.0)
    assert corpus_key("folder", folder.build(folder.Config(), tmp_path), 1.0) == before
    os.utime(tmp_path / "a.wav", ns=(1, 1))
    assert corpus_key("folder", folder.build(folder.Config(), tmp_path), 1.0) != before


def test_dead_worker_is_told_with_its_tracks(tmp_path: Path) -> None:
    plugin = tmp_path / "deadly.py"
    plugin.write_text(
        "import os\nfrom dataclasses import dataclass\nfrom bench.values import Track\nKIND = 'music'\n"
        "@dataclass(frozen=True)\nclass Config:\n    pass\n"
        "@dataclass(frozen=True)\nclass Deadly:\n"
        "    def tracks(self):\n        return [Track(f't{n}', '', 'train') for n in range(40)]\n"
        "    def load(self, track):\n        os._exit(9)\n"
        "    def digest(self):\n        return ''\n"
        "def build(config, root):\n    return Deadly()\n"
    )
    from bench.registry import load

    source = load("dataset", str(plugin)).build(None, None)
    with pytest.raises(BenchError, match=r"decoding process died.*(t0 to t15|t16 to t31)"):
        prepared(tmp_path / "store", source, workers=2)


def test_what_could_not_be_read_is_tried_again_and_the_rest_kept(tmp_path: Path) -> None:
    waves = {f"t{n:02d}": noise(n) for n in range(40)}
    away = Waves({**waves, "t20": PermissionError(errno.EACCES, "no access"), "t30": FileNotFoundError(2, "away")})
    first = prepared(tmp_path, away)
    assert first.select_unusable()["id"].tolist() == ["t20", "t30"]
    assert first.select_unusable()["reason"].str.contains("tried again").all()
    assert prepared(tmp_path, away).folder == first.folder
    back = Waves({**waves, "t30": FileNotFoundError(2, "away")})
    second = prepared(tmp_path, back)
    assert second.select_unusable()["id"].tolist() == ["t30"]
    kept, again = (folder / "shard-00000.i16" for folder in (first.folder, second.folder))
    assert kept.stat().st_ino == again.stat().st_ino, "shards without the track are not decoded again"
    assert len(open_corpus(first.folder).tracks) == 38, "who uses the first one still can"
    third = prepared(tmp_path, Waves(waves))
    assert third.select_unusable().empty and prepared(tmp_path, Waves(waves)).folder == third.folder


def test_damaged_track_is_not_tried_again(tmp_path: Path) -> None:
    first = prepared(tmp_path, Waves({"a": noise(0), "b": DataError("b.wav cannot be decoded")}))
    assert prepared(tmp_path, Waves({"a": noise(0), "b": noise(1)})).folder == first.folder


def test_file_without_permission_is_read_when_it_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(tmp_path / name, noise(number), RATE_HZ)
    source = folder.build(folder.Config(), tmp_path)
    real_open = Path.open

    def refuse(self: Path, *args: object, **more: object) -> object:
        if self.name == "b.wav":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real_open(self, *args, **more)  # type: ignore[arg-type, call-overload]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert statuses(prepared(tmp_path / "store", source)) == {"a.wav": "ok", "b.wav": "unreadable"}
    assert statuses(prepared(tmp_path / "store", source)) == {"a.wav": "ok", "b.wav": "ok"}


def test_link_to_a_drive_that_was_away_is_read_when_it_is_back(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    soundfile.write(tmp_path / "disk" / "b.wav", noise(1), RATE_HZ)
    (tmp_path / "home").mkdir()
    soundfile.write(tmp_path / "home" / "a.wav", noise(0), RATE_HZ)
    (tmp_path / "home" / "b.wav").symlink_to(tmp_path / "disk" / "b.wav")
    (tmp_path / "disk").rename(tmp_path / "away")
    listed = lambda: folder.build(folder.Config(), tmp_path / "home")  # noqa: E731
    assert statuses(prepared(tmp_path / "store", listed())) == {"a.wav": "ok", "b.wav": "missing"}
    (tmp_path / "away").rename(tmp_path / "disk")
    assert statuses(prepared(tmp_path / "store", listed())) == {"a.wav": "ok", "b.wav": "ok"}


def test_files_that_are_mended_cut_off_or_foreign_are_named(tmp_path: Path) -> None:
    for number, name in enumerate(("good.wav", "joined.ogg", "long.mp3", "offset.wav")):
        soundfile.write(tmp_path / name, noise(number, 3.0) + (0.3 if name == "offset.wav" else 0), RATE_HZ)
    joined, whole = (tmp_path / "joined.ogg").read_bytes(), (tmp_path / "long.mp3").read_bytes()
    (tmp_path / "joined.ogg").write_bytes(joined + joined)
    (tmp_path / "long.mp3").write_bytes(whole[: 3 * len(whole) // 4])
    (tmp_path / "song.m4a").touch()
    soundfile.write(tmp_path / "dead.wav", np.full(32_000, 0.2), RATE_HZ)
    source = folder.build(folder.Config(), tmp_path)
    corpus = prepared(tmp_path / "store", source)
    report = verify(source, corpus)
    assert dict(zip(report["id"], report["problem"], strict=True)) == {
        "dead.wav": "silent",
        "joined.ogg": "mended",
        "long.mp3": "cut-off",
        "offset.wav": "mended",
        "song.m4a": "format",
    }
    lengths = dict(zip(corpus.tracks["id"], corpus.lengths / RATE_HZ, strict=True))
    assert lengths["joined.ogg"] == 6.0
