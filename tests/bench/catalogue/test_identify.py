"""A catalogue of made-up music, built, asked, moved, cut off and confused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch

from bench import config, registry
from bench.audio.decode import decode
from bench.audio.pcm import prepare_corpus
from bench.catalogue import build as building
from bench.catalogue import folder as catalogue
from bench.catalogue import query
from bench.catalogue.build import build_catalogue
from bench.catalogue.folder import ABOUT, TRACKS, VECTORS, WEIGHTS, Catalogue, Limit, read_catalogue
from bench.catalogue.query import find_neighbours, identify, to_frame
from bench.catalogue.wave import CERTAIN, find_line, hear
from bench.cli.identify import _identify_all
from bench.errors import ConfigError, DataError
from bench.fingerprint import Embedder
from bench.runs import Weights
from bench.score.threshold import threshold
from bench.search.sign_bits import read_sign_bits, write_sign_bits
from bench.settings import RunConfig
from bench.store import Store
from bench.testing.source import Arrays
from bench.train import checkpoint
from bench.values import RATE_HZ

ENCODER = "random-projection"
TRACK_S = 13.0


def sound(seed: int, seconds: float = TRACK_S) -> np.ndarray:
    """Return noise whose level and colour change every 200 ms."""
    draw = np.random.default_rng(seed)
    pieces = [np.convolve(draw.normal(0, 1, 3_200), draw.normal(0, 1, 5), "same") for _ in range(round(seconds * 5))]
    return np.concatenate([0.1 * draw.uniform(0.1, 1) * piece / np.std(piece) for piece in pieces]).clip(-1, 1)


def settings(index: str = "exact") -> RunConfig:
    plugin = registry.load("encoder", ENCODER)
    return config.resolve(ENCODER, plugin, "tiny", dataset="folder", overrides=[f'eval.indexes=["{index}"]'])


def weights_of(folder: Path, seed: int = 0) -> Weights:
    plugin = registry.load("encoder", ENCODER)
    encoder = plugin.build(plugin.Config(seed=seed))
    path = folder / f"weights{seed}.safetensors"
    checkpoint.save(path, dict(encoder.state_dict()), {"step": 0})
    return Weights(path, f"weights{seed}")


def built_from(
    folder: Path, weights: Weights, music: Path, store: Store, index: str = "exact", **options: float
) -> Catalogue:
    plugin = registry.load("encoder", ENCODER)
    encoder = plugin.build(plugin.Config())
    checkpoint.load_weights(encoder, weights.path)
    embedder = Embedder(encoder.eval(), torch.device("cpu"), "fp32", weights.key)
    return build_catalogue(folder, settings(index), embedder, weights.path, music, store, **options)  # type: ignore[arg-type]


def built(folder: Path, music: Path, index: str = "exact") -> Catalogue:
    return built_from(folder / "catalogue", weights_of(folder), music, Store(folder / "store"), index)


@pytest.fixture(scope="module")
def music(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    for number in range(6):
        soundfile.write(folder / f"song {number}.wav", sound(number), RATE_HZ, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, music: Path) -> Catalogue:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "EXCERPTS", 100)
        return built(tmp_path_factory.mktemp("built"), music)


def noisy(wave_T: np.ndarray, snr_db: float = 10.0) -> np.ndarray:
    noise_T = np.random.default_rng(99).normal(0, 1, len(wave_T))
    gain = np.sqrt(np.mean(wave_T**2) / np.mean(noise_T**2)) * 10 ** (-snr_db / 20)
    return (wave_T + gain * noise_T).astype(np.float32)


@pytest.fixture(scope="module")
def with_bits(tmp_path_factory: pytest.TempPathFactory, music: Path) -> Catalogue:
    folder = tmp_path_factory.mktemp("bits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "EXCERPTS", 100)
        return built_from(folder / "catalogue", weights_of(folder), music, Store(folder / "store"), with_bits=True)


@pytest.mark.parametrize("song", range(6))
@pytest.mark.parametrize("seconds", [4, 5, 12])
def test_catalogue_with_bits_tells_times_to_the_sample(with_bits: Catalogue, song: int, seconds: float) -> None:
    start = 3_000 + 731 * song
    (answer,) = identify(with_bits, noisy(sound(song)[start : start + round(seconds * RATE_HZ)]))
    best = answer.matches[0]
    assert (best.path, best.accepted, best.verified) == (f"song {song}.wav", True, True)
    assert abs(best.start_s - (start / RATE_HZ + answer.from_s)) <= 1.01 / RATE_HZ
    assert not any(match.verified for match in answer.matches[1:])


def test_recording_that_begins_before_its_track_is_told_to_the_sample(with_bits: Catalogue) -> None:
    quiet = np.random.default_rng(5).normal(0, 0.01, 54_321)
    answers = list(identify(with_bits, np.concatenate([quiet, sound(2)]).astype(np.float32)))
    best = next(answer.matches[0] for answer in answers if answer.matches and answer.matches[0].accepted)
    answer = next(answer for answer in answers if answer.matches and answer.matches[0].accepted)
    assert best.verified
    assert abs(answer.from_s - best.start_s - 54_321 / RATE_HZ) <= 1.01 / RATE_HZ


def test_what_are_not_the_same_samples_keeps_the_time_of_its_fingerprints(
    opened: Catalogue, with_bits: Catalogue
) -> None:
    faster = soxr.resample(sound(1)[: 5 * RATE_HZ], 1_005, 1_000).astype(np.float32)
    for catalogue_ in (opened, with_bits):
        (answer,) = identify(catalogue_, faster)
        assert answer.matches[0].path == "song 1.wav" and not answer.matches[0].verified
    (told,), (same,) = (identify(each, noisy(sound(1)[: 5 * RATE_HZ])) for each in (opened, with_bits))
    assert not told.matches[0].verified and same.matches[0].verified


@pytest.mark.parametrize("song", range(6))
def test_wave_accepts_what_is_too_noisy_for_fingerprints(opened: Catalogue, with_bits: Catalogue, song: int) -> None:
    start = 9_000 + 731 * song
    faint = noisy(sound(song)[start : start + 6 * RATE_HZ], snr_db=-10.0)
    (unsure,), (sure,) = (identify(catalogue_, faint) for catalogue_ in (opened, with_bits))
    assert not unsure.matches[0].accepted
    best = sure.matches[0]
    assert (best.path, best.accepted, best.verified) == (f"song {song}.wav", True, True)
    threshold = with_bits.wave_threshold(50)
    assert best.wave_score is not None and threshold is not None and best.wave_score >= threshold >= CERTAIN
    assert abs(best.start_s - (start / RATE_HZ + sure.from_s)) <= 1.01 / RATE_HZ
    assert to_frame([sure])["wave_score"].iloc[0] == best.wave_score


@pytest.mark.parametrize("seconds", [1, 3, 10, 25])
def test_wave_accepts_no_other_music_nor_silence_nor_a_click(with_bits: Catalogue, seconds: int) -> None:
    silence = np.zeros(seconds * RATE_HZ, np.float32)
    click = silence.copy()
    click[5_000] = 0.9
    other = np.random.default_rng(7).normal(0, 0.1, seconds * RATE_HZ).astype(np.float32)
    for wave_T in (other, silence, click):
        answers = list(identify(with_bits, wave_T))
        assert not any(match.accepted for answer in answers for match in answer.matches)


def test_catalogue_with_bits_of_before_their_thresholds_accepts_by_fingerprints_alone(with_bits: Catalogue) -> None:
    older = replace(with_bits, wave_limits=())
    faint = noisy(sound(1)[9_000 : 9_000 + 6 * RATE_HZ], snr_db=-10.0)
    assert not any(match.accepted for answer in identify(older, faint) for match in answer.matches)


def test_loop_in_fewer_than_half_of_the_pieces_is_no_line(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    track, other = (draw.normal(0, 3_000, 12 * RATE_HZ).astype(np.int16) for _ in range(2))
    counts = write_sign_bits(tmp_path / "bits.u8", iter([track]))
    bits = read_sign_bits(tmp_path / "bits.u8", counts, "key")
    mixed = other[: 10 * RATE_HZ] / 2**15
    offset = 16_000
    for seconds, is_line in ((4, False), (6, True)):
        heard_T = mixed.copy()
        heard_T[: seconds * RATE_HZ] = track[offset : offset + seconds * RATE_HZ] / 2**15
        candidates = np.zeros(1, np.int64), np.array([offset + 700])
        line = find_line(hear(heard_T.astype(np.float32)), bits, 0, len(heard_T), *candidates)
        assert line is not None
        assert (line.score > CERTAIN) == is_line
        assert not is_line or (line.row == 0 and abs(line.offset_samples - offset) <= 2)


def test_stretch_too_short_for_a_piece_has_no_line(tmp_path: Path) -> None:
    track = np.random.default_rng(0).normal(0, 3_000, 3 * RATE_HZ).astype(np.int16)
    counts = write_sign_bits(tmp_path / "bits.u8", iter([track]))
    bits = read_sign_bits(tmp_path / "bits.u8", counts, "key")
    heard, candidates = hear((track / 2**15).astype(np.float32)), (np.zeros(1, np.int64), np.zeros(1, np.int64))
    assert find_line(heard, bits, 0, 12_000, *candidates) is None
    assert find_line(heard, bits, 0, 16_000, np.empty(0, np.int64), np.empty(0, np.int64)) is None
    line = find_line(heard, bits, 0, 16_000, *candidates)
    assert line is not None and line.offset_samples == 0


def test_catalogue_without_its_bits_says_which_file_is_damaged(with_bits: Catalogue, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(with_bits.folder, copy)
    path = copy / "bits.u8"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"bits\.u8 has \d+ bytes where \d+ were written"):
        read_catalogue(copy)


@pytest.mark.parametrize("song", range(6))
def test_an_excerpt_played_through_noise_is_found_where_it_was_cut(opened: Catalogue, song: int) -> None:
    start = 20_000 + 731 * song
    (answer,) = identify(opened, noisy(sound(song)[start : start + 5 * RATE_HZ]))
    best = answer.matches[0]
    assert best.path == f"song {song}.wav" and best.accepted
    assert abs(round(best.start_s * RATE_HZ) - start) <= 480  # 30 ms: it is told between two places of the database
    assert [m.score for m in answer.matches] == sorted((m.score for m in answer.matches), reverse=True)
    assert len({m.id for m in answer.matches}) == len(answer.matches) == 5


@pytest.mark.parametrize("stranger", range(100, 106))
def test_what_is_not_in_the_catalogue_is_rejected(opened: Catalogue, stranger: int) -> None:
    (answer,) = identify(opened, noisy(sound(stranger, 10.0)))
    assert answer.matches and not any(match.accepted for match in answer.matches)


def test_any_file_is_heard(opened: Catalogue, tmp_path: Path) -> None:
    piece = sound(2)[30_000 : 30_000 + 4 * RATE_HZ]
    stereo = np.stack([soxr.resample(piece, RATE_HZ, 44_100)] * 2, axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, 44_100, subtype="PCM_24")
    soundfile.write(tmp_path / "a.ogg", stereo, 44_100)
    for name in ("a.wav", "a.ogg"):
        (answer,) = identify(opened, decode(tmp_path / name))
        assert answer.matches[0].path == "song 2.wav" and answer.matches[0].accepted


def test_joined_file_is_heard_to_its_end_and_named(
    opened: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for song in (2, 3):
        soundfile.write(tmp_path / f"{song}.ogg", sound(song)[30_000 : 30_000 + 4 * RATE_HZ], RATE_HZ)
    joined = tmp_path / "joined.ogg"
    joined.write_bytes((tmp_path / "2.ogg").read_bytes() + (tmp_path / "3.ogg").read_bytes())
    found, errors = _identify_all(opened, [joined], 1, 4.0)
    assert [answer.matches[0].path for answer in found[joined]] == ["song 2.wav", "song 3.wav"] and not errors
    assert f"warning: {joined} holds 2 streams one after another" in capsys.readouterr().err


def test_constant_is_silent_and_an_offset_changes_nothing(opened: Catalogue, tmp_path: Path) -> None:
    piece = sound(2)[30_000 : 30_000 + 4 * RATE_HZ]
    soundfile.write(tmp_path / "dead.wav", np.full(4 * RATE_HZ, 0.2), RATE_HZ)
    soundfile.write(tmp_path / "offset.wav", 0.5 * piece + 0.3, RATE_HZ)
    soundfile.write(tmp_path / "stereo.wav", 0.5 * np.stack([piece, -piece], axis=1), RATE_HZ)
    (answer,) = identify(opened, decode(tmp_path / "dead.wav"))
    assert answer.why == "silent" and not answer.matches
    for name in ("offset.wav", "stereo.wav"):
        (answer,) = identify(opened, decode(tmp_path / name))
        (plain,) = identify(opened, piece)
        assert answer.matches[0].path == "song 2.wav"
        assert answer.matches[0].score == pytest.approx(plain.matches[0].score, abs=0.01)


@pytest.mark.parametrize(("peak", "silent"), [(0.9e-3, True), (1.1e-3, False)])
def test_one_peak_decides_what_is_silent_in_a_corpus_and_in_a_recording(
    opened: Catalogue, tmp_path: Path, peak: float, silent: bool
) -> None:
    quiet = sound(2)[30_000 : 30_000 + 4 * RATE_HZ]
    quiet = (peak * quiet / np.abs(quiet).max()).astype(np.float32)
    (answer,) = identify(opened, np.where(np.arange(len(quiet)) % 1_000 == 0, peak, quiet).astype(np.float32))
    assert (answer.why == "silent") == silent
    source = Arrays({"quiet": quiet, "loud": sound(0, 4.0)})
    corpus = prepare_corpus(Store(tmp_path), "arrays", source, min_track_s=1.0, workers=1)
    assert ("silent" in corpus.manifest["status"].tolist()) == silent


def test_a_recording_in_blocks_is_the_recording(opened: Catalogue) -> None:
    for seconds in (0.9, 10.86, 10.87, 10.96, 33.3):
        wave_T = np.concatenate([sound(3), sound(4), sound(5)])[: round(seconds * RATE_HZ)].astype(np.float32)
        blocks = np.split(wave_T, np.sort(np.random.default_rng(0).integers(0, len(wave_T), 7)))
        whole, streamed = query.listen(opened, [wave_T]), query.listen(opened, blocks)
        assert whole.num_samples == streamed.num_samples == len(wave_T)
        assert len(whole.vectors_MD) == max(1, (len(wave_T) - 15_360) // 1_600 + 1) == len(whole.silent_M)
        assert np.array_equal(whole.vectors_MD, streamed.vectors_MD)
        assert np.array_equal(whole.neighbours_MK, streamed.neighbours_MK)


def test_a_recording_that_is_too_short_is_named(opened: Catalogue, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "short.wav", sound(0, 0.6), RATE_HZ)
    found, (error,) = _identify_all(opened, [tmp_path / "short.wav"], 1, 10.0)
    assert not found and str(error).startswith(f"{tmp_path / 'short.wav'} is 0.60 s long; ")


def heard(answers: list[query.Answer]) -> list[tuple[str, float, float, float]]:
    """Return path, beginning, end and time in the track of each accepted answer, to a tenth of a second."""
    known = [(a, a.matches[0]) for a in answers if a.matches and a.matches[0].accepted]
    return [(m.path, round(a.from_s, 1), round(a.to_s, 1), round(m.start_s, 1)) for a, m in known]


def test_sounds_that_are_no_music_are_impostors_too(opened: Catalogue) -> None:
    class Noise:
        tracks = range(1)

        def num_samples(self, track: int) -> int:
            return 20 * RATE_HZ

        def read(self, track: int, start: int, count: int) -> np.ndarray:
            return np.random.default_rng(start).integers(-9_000, 9_000, count).astype(np.int16)

    sounds = building._draw_sounds(Noise(), 3 * RATE_HZ)  # type: ignore[arg-type]
    assert len(sounds) == round(0.3 * building.EXCERPTS)
    assert all(np.abs(sound_T).max() == pytest.approx(1.0) and sound_T.dtype == np.float32 for sound_T in sounds)
    # A database that holds what one of the sounds is: every threshold is at that sound's score, 1, or above.
    vectors_QMD = query.fingerprint_queries(opened.embedder, iter([np.stack(sounds[:9])]), 1_600)
    database = replace(opened.database, vectors=vectors_QMD[4], tracks=np.arange(1), first_vector=np.array([0, 21]))
    nothing_QMD = np.zeros_like(vectors_QMD[:2])
    rows, groups = np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64)
    excerpts = building._Excerpts([], nothing_QMD, rows, groups, [], vectors_QMD)
    limit, passed_Q, is_right_Q = building._limit(excerpts, database, opened.embedder.device, 0.005, 0.01)
    assert limit.threshold == pytest.approx(1.0, abs=1e-4)
    assert not passed_Q.any() and not is_right_Q.any()
    (part,) = building._part_limits(nothing_QMD, vectors_QMD, rows, groups, database, [11], 0.01)
    assert part.threshold == pytest.approx(1.0, abs=1e-4)


def test_a_long_recording_is_answered_part_by_part(opened: Catalogue) -> None:
    known = [sound(song)[: 10 * RATE_HZ] for song in (3, 5)]
    parts = [known[0], np.zeros(10 * RATE_HZ), sound(200, 10.0), known[1], sound(1, 0.5)]
    answers = list(identify(opened, np.concatenate(parts).astype(np.float32)))
    assert [a.from_s for a in answers] == pytest.approx([0, 10, 20, 30], abs=0.6)
    assert [a.to_s for a in answers] == pytest.approx([10, 20, 30, 40], abs=0.6)
    assert [bool(a.matches and a.matches[0].accepted) for a in answers] == [True, False, False, True]
    assert answers[1].why == "silent" and not answers[1].matches
    assert answers[3].matches[0].path == "song 5.wav" and answers[3].matches[0].start_s == pytest.approx(0, abs=0.01)
    table = query.to_frame(answers)
    assert table.groupby("from_s").size().tolist() == [5, 1, 5, 5]
    assert table["why"].dropna().tolist() == ["silent"]


def test_tracks_shorter_than_a_window_and_tracks_that_begin_in_one_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a radio programme: jingles at any time, also across two windows, and a song that begins in the middle."""
    monkeypatch.setattr(building, "EXCERPTS", 100)
    folder = tmp_path / "music"
    folder.mkdir()
    for number in range(6):
        soundfile.write(folder / f"song {number}.wav", sound(number), RATE_HZ, subtype="PCM_16")
    for number, seconds in enumerate((5.0, 3.0, 4.0)):
        soundfile.write(folder / f"jingle {number}.wav", sound(50 + number, seconds), RATE_HZ, subtype="PCM_16")
    programme = [sound(300, 12), sound(50, 5), sound(301, 1.6), sound(51, 3), sound(302, 4.4), sound(3)[: 9 * RATE_HZ]]
    answers = list(identify(built(tmp_path, folder), np.concatenate(programme).astype(np.float32)))
    assert heard(answers) == [
        ("jingle 0.wav", 12.0, 17.0, 0.0),
        ("jingle 1.wav", 18.6, 21.6, 0.0),
        ("song 3.wav", 26.0, 35.0, 0.0),
    ]
    spans = [(round(a.from_s, 1), round(a.to_s, 1)) for a in answers]
    assert spans == [(0, 10), (10, 12), (12, 17), (17, 18.6), (18.6, 21.6), (21.6, 26), (26, 35)]


def test_a_song_played_for_minutes_is_one_answer(opened: Catalogue) -> None:
    recording = np.concatenate([sound(400, 4), noisy(sound(2))[: 12 * RATE_HZ], sound(401, 4)]).astype(np.float32)
    ((path, from_s, to_s, start_s),) = heard(list(identify(opened, recording)))
    assert path == "song 2.wav" and start_s == 0
    assert (from_s, to_s) == pytest.approx((4.0, 16.0), abs=0.6)  # where it is cut, by half a segment


def test_what_is_too_short_is_refused_with_what_is_needed(opened: Catalogue) -> None:
    with pytest.raises(DataError, match=r"0\.50 s long.*needs 0\.86 s"):
        list(identify(opened, sound(0, 1.0)[:8_000].astype(np.float32)))


def test_a_window_longer_than_every_track_is_no_hindrance(opened: Catalogue) -> None:
    recording = np.concatenate([sound(0), sound(500, 10)]).astype(np.float32)
    assert heard(list(identify(opened, recording, window_s=20.0))) == [("song 0.wav", 0.0, 13.0, 0.0)]


def test_thresholds_are_calibrated_at_every_length_and_fall_with_it(opened: Catalogue) -> None:
    assert [limit.segments for limit in opened.limits] == [1, 11, 21, 41, 91]
    thresholds = [limit.threshold for limit in opened.limits]
    assert thresholds == sorted(thresholds, reverse=True)
    assert opened.limits[-1].false_reject <= opened.limits[0].false_reject


def test_more_strangers_that_may_be_accepted_lower_the_thresholds(
    tmp_path: Path, music: Path, opened: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "EXCERPTS", 100)  # as many as those of `opened`, which it is compared with
    weights, store = weights_of(tmp_path), Store(tmp_path / "store")
    loose = built_from(tmp_path / "loose", weights, music, store, false_accepts=0.2)
    for strict, limit in zip(opened.limits, loose.limits, strict=True):
        assert limit.segments == strict.segments and limit.false_accept == 0.2
        assert limit.threshold < strict.threshold and limit.false_reject <= strict.false_reject


def test_threshold_between_lengths_is_interpolated_over_the_logarithm(opened: Catalogue) -> None:
    limits = (Limit(1, 0.9, 100, 0.01, 0.0), Limit(100, 0.5, 100, 0.01, 0.0))
    known = replace(opened, limits=limits)
    assert known.threshold(10) == pytest.approx(0.7)
    assert known.threshold(1_000) == pytest.approx(0.5)
    assert replace(opened, limits=()).threshold(3) is None


def test_few_works_make_a_threshold_stricter_and_many_do_not() -> None:
    impostor_Q = np.random.default_rng(0).normal(0.5, 0.05, 400).astype(np.float32)
    few, many = (building._safe_threshold(impostor_Q, np.arange(400) % works, 0.01, reach=0.25) for works in (5, 400))
    assert many == threshold(impostor_Q, 0.01)
    assert many < few <= impostor_Q.max() + 0.25 * (1 - impostor_Q.max())


def test_a_catalogue_of_one_track_has_no_threshold_and_accepts_nothing(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    soundfile.write(tmp_path / "music" / "only.wav", sound(0), RATE_HZ)
    alone = built(tmp_path, tmp_path / "music")
    (answer,) = identify(alone, sound(0)[:32_000].astype(np.float32))
    assert alone.limits == () and answer.threshold is None
    assert answer.matches[0].score > 0.99 and not answer.matches[0].accepted


def test_a_catalogue_works_where_it_is_copied_to(opened: Catalogue, tmp_path: Path) -> None:
    shutil.copytree(opened.folder, tmp_path / "moved")
    moved = read_catalogue(tmp_path / "moved")
    query = sound(4)[16_000:64_000].astype(np.float32)
    one, other = (list(identify(c, query)) for c in (opened, moved))
    assert one == other
    assert str(opened.folder.parent) not in (tmp_path / "moved" / ABOUT).read_text()


def test_falconn_is_built_again_from_its_seed(tmp_path: Path, music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("falconn", reason="falconn is built from source by `make setup`")
    monkeypatch.setattr(building, "EXCERPTS", 4)
    hashed = built(tmp_path, music, "falconn")
    (answer,) = identify(read_catalogue(hashed.folder), sound(1)[16_000:64_000].astype(np.float32))
    assert answer.matches[0].path == "song 1.wav"


@pytest.mark.parametrize("name", [VECTORS, TRACKS, WEIGHTS])
def test_a_file_that_is_cut_off_or_missing_is_named(opened: Catalogue, tmp_path: Path, name: str) -> None:
    shutil.copytree(opened.folder, tmp_path / "cut")
    path = tmp_path / "cut" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=name):
        read_catalogue(tmp_path / "cut")
    path.unlink()
    with pytest.raises(DataError, match=name):
        read_catalogue(tmp_path / "cut")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 99}', '{"format": 1}', '{"format": 1, "sizes": 3}'])
def test_a_damaged_description_is_named(opened: Catalogue, tmp_path: Path, text: str) -> None:
    shutil.copytree(opened.folder, tmp_path / "bad")
    (tmp_path / "bad" / ABOUT).write_text(text)
    with pytest.raises(DataError, match=r"about|format"):
        read_catalogue(tmp_path / "bad")


def test_no_catalogue_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no catalogue in"):
        read_catalogue(tmp_path / "nothing")


def test_other_weights_are_noticed_by_what_they_make_of_a_known_sound(opened: Catalogue, tmp_path: Path) -> None:
    shutil.copytree(opened.folder, tmp_path / "other")
    shutil.copyfile(weights_of(tmp_path, seed=1).path, tmp_path / "other" / WEIGHTS)
    with pytest.raises(DataError, match="other fingerprints"):
        read_catalogue(tmp_path / "other")


def test_a_catalogue_cannot_say_which_code_runs(opened: Catalogue, tmp_path: Path) -> None:
    shutil.copytree(opened.folder, tmp_path / "evil")
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    about = json.loads((tmp_path / "evil" / ABOUT).read_text())
    code = str(tmp_path / "evil.py")
    for changed in (about | {"encoder": code}, about | {"index": about["index"] | {"name": code}}):
        (tmp_path / "evil" / ABOUT).write_text(json.dumps(changed))
        with pytest.raises(DataError, match=r"evil\.py"):
            read_catalogue(tmp_path / "evil")
        assert not marker.exists()


def test_an_index_whose_files_could_do_harm_is_loaded_on_the_users_word_alone(
    opened: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = registry.load("index", "exact")
    for name, value in (("TRUSTED_FILES_ONLY", True), ("keeps", lambda config: True)):
        monkeypatch.setattr(exact, name, value, raising=False)
    monkeypatch.setattr(exact, "load", lambda config, folder, vectors: exact.build(config, vectors), raising=False)
    with pytest.raises(DataError, match="--trust"):
        read_catalogue(opened.folder)
    assert read_catalogue(opened.folder, trust=True).index.num_bytes > 0


def test_nothing_is_built_over_what_is_there(opened: Catalogue, music: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exists already"):
        built_from(opened.folder, weights_of(tmp_path), music, Store(tmp_path / "store"))


def test_a_failure_while_writing_leaves_no_catalogue(
    music: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "EXCERPTS", 4)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            built(tmp_path, music)
    assert not (tmp_path / "catalogue").exists()
    assert len(built(tmp_path, music).tracks) == 6  # what was left is in nobody's way


def test_neighbours_of_fingerprints_in_a_file(opened: Catalogue, tmp_path: Path) -> None:
    first = int(opened.database.first_vector[2])
    np.save(tmp_path / "q.npy", np.array(opened.database.vectors[[first + 7, 0]]))
    found = find_neighbours(opened, tmp_path / "q.npy", 3)
    nearest = found[found["rank"] == 1]
    assert nearest["start_s"].tolist() == pytest.approx([0.7, 0.0])
    assert nearest["id"].tolist() == [opened.tracks["id"][2], opened.tracks["id"][0]]
    assert nearest["similarity"].to_numpy() == pytest.approx(1.0, abs=1e-5)
    everything = find_neighbours(opened, tmp_path / "q.npy", 10_000)
    assert len(everything) == 2 * len(opened.database.vectors)


def test_a_file_of_other_vectors_is_refused(opened: Catalogue, tmp_path: Path) -> None:
    np.save(tmp_path / "short.npy", np.zeros((2, 5), dtype=np.float32))
    (tmp_path / "text.npy").write_text("hello")
    for name, told in (("short.npy", r"\(2, 5\)"), ("text.npy", "not a .npy file"), ("none.npy", "not a .npy file")):
        with pytest.raises(DataError, match=told):
            find_neighbours(opened, tmp_path / name, 3)


def test_a_catalogue_holds_near_duplicates_and_names_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "EXCERPTS", 20)
    folder = tmp_path / "music"
    folder.mkdir()
    # Ten near duplicates of each of three songs: whatever the split draws, some are on both sides.
    for song in range(3):
        for mix in range(10):
            cut = sound(song)[800 * mix :] * (1 - 0.05 * mix)
            soundfile.write(folder / f"song {song} mix {mix}.wav", cut, RATE_HZ, subtype="PCM_16")
    soundfile.write(folder / "blip.wav", sound(9, 0.6), RATE_HZ)
    soundfile.write(folder / "silence.wav", np.zeros(5 * RATE_HZ), RATE_HZ)
    shutil.copyfile(folder / "song 0 mix 0.wav", folder / "copy.wav")
    (folder / "text.mp3").write_text("no audio")
    made = built(tmp_path, folder)
    assert len(made.tracks) == 30
    reasons = dict(zip(made.left_out["path"], made.left_out["reason"], strict=True))
    kinds = {path: reason.split(":")[0] for path, reason in reasons.items()}
    copy = ({"copy.wav", "song 0 mix 0.wav"} & set(kinds)).pop()
    assert kinds == {"blip.wav": "short", "silence.wav": "silent", copy: "duplicate", "text.mp3": "unreadable"}
    # Copies of a track are not its impostors: with them, every threshold would be about 1.
    assert made.limits[-1].threshold < 0.9


def test_thresholds_are_set_with_tracks_that_the_encoder_was_not_trained_on() -> None:
    lengths = np.full(12, 20 * RATE_HZ)
    corpus = SimpleNamespace(
        lengths=lengths,
        tracks=range(12),
        num_samples=lambda track: int(lengths[track]),
        read=lambda track, start, count: np.random.default_rng(track).integers(-9_000, 9_000, count).astype(np.int16),
    )
    database = SimpleNamespace(tracks=np.arange(12))
    for num_unseen, drawn in ((9, set(range(9))), (3, set(range(12)))):
        unseen = np.arange(12) < num_unseen
        rows, _ = building._excerpts(corpus, corpus, database, 8_000, lambda *told: None, unseen)  # type: ignore[arg-type]
        assert set(rows.tolist()) == drawn
