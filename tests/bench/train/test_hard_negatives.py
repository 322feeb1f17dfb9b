"""Hard negatives: on a track whose loops are known, against a slow search, in the store, and as members of a batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchaudio.transforms import MelSpectrogram

from bench.audio.pcm import Corpus, prepare_corpus
from bench.degrade.room import DIRECT_AT
from bench.errors import ConfigError
from bench.settings import Mixture, TrainConfig
from bench.store import Store
from bench.testing import Arrays
from bench.train.draws import draw_pairs
from bench.train.hard_negatives import (
    NO_HARD_NEGATIVES,
    NO_NEGATIVE,
    prepare_hard_negatives,
    search_hard_negatives,
)
from bench.train.pool import TrainingPool, _sum_energy
from bench.values import GRID_HOP_SAMPLES, RATE_HZ, Floats, Ints, no_progress

SEGMENT = 8_000
LOOP_PLACES = 32  # from a moment of the looped track to the same moment of its next turn


def looped(seconds: float = 10.0) -> Floats:
    """Return bursts of noise of changing colour that come back after 3.2 s, under fainter noise that does not."""
    rng = np.random.default_rng(3)
    bursts = []
    for _ in range(LOOP_PLACES):
        burst = np.fft.rfft(rng.standard_normal(GRID_HOP_SAMPLES))
        burst[rng.permutation(len(burst))[: rng.integers(100, 700)]] = 0
        bursts.append(np.fft.irfft(burst, GRID_HOP_SAMPLES) * rng.uniform(0.02, 0.3))
    count = round(seconds * RATE_HZ)
    turn = np.tile(np.concatenate(bursts), count // (LOOP_PLACES * GRID_HOP_SAMPLES) + 1)[:count]
    wave: Floats = (turn + 0.003 * rng.standard_normal(count)).clip(-1, 1).astype(np.float32)
    return wave


def test_twin_is_the_same_moment_of_another_turn_of_the_loop() -> None:
    twin_PR = search_hard_negatives(looped(), SEGMENT, 2)
    away_PR = np.abs(twin_PR - np.arange(len(twin_PR))[:, None])
    assert len(twin_PR) == (10 * RATE_HZ - SEGMENT) // GRID_HOP_SAMPLES + 1
    assert (away_PR[:, 0] % LOOP_PLACES == 0).all() and (away_PR[:, 0] > 0).all()
    in_three_turns = np.arange(len(twin_PR)) < 96 - 64  # a third turn is there for the first places
    assert set(away_PR[in_three_turns].ravel().tolist()) == {LOOP_PLACES, 2 * LOOP_PLACES}


def slow_twins(wave_T: Floats, count: int) -> Ints:
    """Return twins patch by patch and pair by pair."""
    mel = MelSpectrogram(RATE_HZ, n_fft=640, hop_length=320, n_mels=64)
    level_MW = 10 * np.log10(np.maximum(mel(torch.from_numpy(wave_T)).numpy().astype(np.float64), 1e-10))
    level_MW = np.maximum(level_MW, level_MW.max() - 80)
    level_MW -= level_MW.mean(axis=1, keepdims=True)
    patches = [level_MW[:, 5 * p : 5 * p + 25].ravel() for p in range((len(wave_T) - SEGMENT) // GRID_HOP_SAMPLES + 1)]
    twins = []
    for p, patch in enumerate(patches):
        scores = {q: patch @ o / np.linalg.norm(patch) / np.linalg.norm(o) for q, o in enumerate(patches)}
        left = {q: score for q, score in scores.items() if abs(p - q) * GRID_HOP_SAMPLES >= SEGMENT}
        own = []
        for _ in range(count):
            best = max(left, key=left.__getitem__, default=NO_NEGATIVE)
            own.append(best)
            left = {q: score for q, score in left.items() if abs(q - best) >= 3}
        twins.append(own)
    return np.array(twins)


@pytest.mark.parametrize("seconds", [1.2, 2.0, 4.0])
def test_twins_are_those_of_a_slow_search(seconds: float) -> None:
    rng = np.random.default_rng(8)
    wave_T = (rng.standard_normal(round(seconds * RATE_HZ)) * 0.1).astype(np.float32)
    assert np.array_equal(search_hard_negatives(wave_T, SEGMENT, 3), slow_twins(wave_T, 3))


@pytest.mark.parametrize("num_samples", [100, SEGMENT - 1, SEGMENT, SEGMENT + GRID_HOP_SAMPLES])
def test_a_track_too_short_for_another_place_has_no_twins(num_samples: int) -> None:
    twin_PR = search_hard_negatives(looped()[:num_samples], SEGMENT, 2)
    assert (
        twin_PR.shape == (1 + max(0, num_samples - SEGMENT) // GRID_HOP_SAMPLES, 2) and (twin_PR == NO_NEGATIVE).all()
    )


def test_silence_has_twins_and_no_nan() -> None:
    twin_PR = search_hard_negatives(np.zeros(3 * RATE_HZ, dtype=np.float32), SEGMENT, 1)
    assert (twin_PR >= 0).all()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrainingPool:
    store = Store(tmp_path_factory.mktemp("store"))
    music = prepare_corpus(
        store, "music", Arrays({"loop": looped(), "short": looped(1.0)}, {}), min_track_s=0.5, workers=1
    )
    return _pool(music, store)


def _pool(music: Corpus, store: Store) -> TrainingPool:
    """Return a pool of the music alone: nothing else is looked at here."""
    energy, first_block = _sum_energy(music, music.numbers("train"))
    sound = None  # nothing is cut
    return TrainingPool(
        music, music.numbers("train"), sound, energy, first_block,  # type: ignore[arg-type]
        music, music.numbers("train"), sound, torch.zeros(1, DIRECT_AT), 0, SEGMENT, 0,  # type: ignore[arg-type]
        prepare_hard_negatives(store, music, music.numbers("train"), SEGMENT, 2, no_progress),
    )  # fmt: skip


def long_track(source: TrainingPool) -> int:
    return int(np.flatnonzero(source.music.lengths == 10 * RATE_HZ)[0])


def wave_of(source: TrainingPool, track: int) -> Floats:
    wave_T: Floats = source.music.read(track, 0, int(source.music.lengths[track])).astype(np.float32) / 32_768
    return wave_T


CONFIG = TrainConfig(
    batch_pairs=12,
    segments_per_track=6,
    neighbours_per_track=2,
    neighbour_reach=1,
    hard_negatives_per_track=2,
    offset_ms=20.0,
)


def test_a_batch_has_the_nearest_neighbours_and_the_twins_of_its_first_places(source: TrainingPool) -> None:
    loop = long_track(source)
    twin_PR = search_hard_negatives(wave_of(source, loop), SEGMENT, 2)
    last = 10 * RATE_HZ - SEGMENT - 320  # with room for a positive up to 20 ms away
    seen = 0
    for step in range(20):
        draws = draw_pairs(source, CONFIG, 0, step)
        first, *rest = draws.anchor_B[draws.track_B == loop].tolist()
        near = {first - GRID_HOP_SAMPLES, first + GRID_HOP_SAMPLES}
        if all(320 <= place <= last for place in near):
            assert set(rest[:2]) == near
        place = first // GRID_HOP_SAMPLES
        for twin, start in zip(twin_PR[place].tolist(), rest[2:4], strict=True):
            wanted = first + (twin - place) * GRID_HOP_SAMPLES
            if 320 <= wanted <= last:
                assert start == wanted
                seen += 1
    assert seen >= 30  # of 40: the others would not fit


@pytest.mark.parametrize("change", [{"pairs_per_moment": 2}, {"mixture": Mixture(sources=(2, 3))}])
def test_twins_are_drawn_whatever_else_is(source: TrainingPool, change: dict[str, Any]) -> None:
    repeats = change.get("pairs_per_moment", 1)
    config = replace(CONFIG, batch_pairs=12 * repeats, **change)
    loop = long_track(source)
    for step in range(5):
        draws = draw_pairs(source, config, 0, step)
        first, *rest = draws.anchor_B[draws.track_B == loop][::repeats].tolist()
        twins = source.hard_negatives.find(loop, first // GRID_HOP_SAMPLES)
        wanted = {first + (int(twin) - first // GRID_HOP_SAMPLES) * GRID_HOP_SAMPLES for twin in twins}
        assert {start for start in wanted if 320 <= start <= 10 * RATE_HZ - SEGMENT - 320} <= set(rest)


def test_a_twin_that_is_a_neighbour_too_is_drawn_once(source: TrainingPool) -> None:
    # The loop turns after 3.2 s, and so far neighbours may be: 500 ms apart they meet the twins of other phases too.
    far = replace(CONFIG, segments_per_track=12, neighbours_per_track=9, neighbour_ms=800.0, neighbour_reach=5)
    loop = long_track(source)
    for step in range(20):
        places = draw_pairs(source, far, 0, step).anchor_B
        track = draw_pairs(source, far, 0, step).track_B
        if track[0] == loop:
            assert len(set(places.tolist())) == 12


def test_silence_beside_a_place_is_no_twin_of_it_in_a_batch(tmp_path: Path) -> None:
    half = np.concatenate([looped(5.0), np.zeros(5 * RATE_HZ, dtype=np.float32)])
    music = prepare_corpus(
        Store(tmp_path), "music", Arrays({"a": half, "b": half[::-1]}, {}), min_track_s=0.5, workers=1
    )
    quiet = _pool(music, Store(tmp_path))
    for step in range(10):
        draws = draw_pairs(quiet, CONFIG, 0, step)
        assert quiet.is_audible(draws.track_B, draws.anchor_B).all()


def test_where_no_twin_fits_the_segment_lies_anywhere_in_its_track(source: TrainingPool) -> None:
    short = int(np.flatnonzero(source.music.lengths == RATE_HZ)[0])
    places: set[int] = set()
    for step in range(10):
        draws = draw_pairs(source, CONFIG, 0, step)
        places |= set(draws.anchor_B[draws.track_B == short][3:5].tolist())
    assert len(places) > 10 and min(places) >= 320 and max(places) <= RATE_HZ - SEGMENT - 320


def test_a_long_track_is_searched_in_stretches(
    source: TrainingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.train.hard_negatives.CHUNK_HOPS", 40)
    loop = long_track(source)
    found = prepare_hard_negatives(Store(tmp_path), source.music, np.array([loop]), SEGMENT, 2, no_progress)
    wave_T = wave_of(source, loop)
    places = (10 * RATE_HZ - SEGMENT) // GRID_HOP_SAMPLES + 1  # 96 in three equal stretches
    for first in (0, 32, 64):
        stretch_T = wave_T[first * GRID_HOP_SAMPLES :][: 32 * GRID_HOP_SAMPLES - 1 + SEGMENT]
        twin_PR = search_hard_negatives(stretch_T, SEGMENT, 2)
        assert places == 96 and len(twin_PR) == 32
        for place, twin_R in enumerate(twin_PR, first):
            assert np.array_equal(found.find(loop, place), np.where(twin_R == NO_NEGATIVE, NO_NEGATIVE, twin_R + first))


def test_the_stage_holds_every_position_of_every_track(
    source: TrainingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.train.hard_negatives.BLOCK_TRACKS", 1)
    tracks = source.tracks[::-1]  # in any order, and one track a block
    found = prepare_hard_negatives(Store(tmp_path), source.music, tracks, SEGMENT, 2, no_progress)
    for track in tracks.tolist():
        twin_PR = search_hard_negatives(wave_of(source, track), SEGMENT, 2)
        assert np.array_equal(np.stack([found.find(track, p) for p in range(len(twin_PR))]), twin_PR)


def test_an_interrupted_search_goes_on_with_the_next_block(
    source: TrainingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.train.hard_negatives.BLOCK_TRACKS", 1)
    searched: list[int] = []
    read = Corpus.read

    def read_or_die(corpus: Corpus, track: int, start: int, num_samples: int) -> np.ndarray:
        searched.append(track)
        if searched.count(track) == 1 and track == last:
            raise KeyboardInterrupt
        return read(corpus, track, start, num_samples)

    last = int(source.tracks[-1])
    monkeypatch.setattr(Corpus, "read", read_or_die)
    arguments = (Store(tmp_path), source.music, source.tracks, SEGMENT, 2, no_progress)
    with pytest.raises(KeyboardInterrupt):
        prepare_hard_negatives(*arguments)
    assert searched == source.tracks.tolist()
    searched[:] = [last]
    found = prepare_hard_negatives(*arguments)
    assert set(searched) == {last}  # the blocks before it were kept
    again = prepare_hard_negatives(*arguments)  # read from the store
    for track in source.tracks.tolist():
        assert np.array_equal(found.find(track, 0), source.hard_negatives.find(track, 0))
        assert np.array_equal(again.find(track, 0), source.hard_negatives.find(track, 0))


def test_no_hard_negatives_search_nothing(
    source: TrainingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Corpus, "read", pytest.fail)
    found = prepare_hard_negatives(Store(tmp_path), source.music, source.tracks, SEGMENT, 0, no_progress)
    assert found is NO_HARD_NEGATIVES and not any(tmp_path.iterdir())


def test_drawing_reads_no_audio(source: TrainingPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Corpus, "read", pytest.fail)
    draw_pairs(source, CONFIG, 0, 0)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            {"hard_negatives_per_track": 4},
            "train.hard_negatives_per_track must be between 0 and segments_per_track - 1",
        ),
        ({"hard_negatives_per_track": -1}, "train.hard_negatives_per_track"),
        (
            {"neighbours_per_track": 3},
            "train.neighbour_reach must be 0, or from half of neighbours_per_track, so 2,",
        ),
        ({"neighbour_reach": -1}, "train.neighbour_reach"),
        ({"neighbour_reach": 1_001}, "to 1000"),
    ],
)
def test_groups_that_do_not_hold_their_members_are_refused(setting: dict[str, int], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(CONFIG, **setting)
