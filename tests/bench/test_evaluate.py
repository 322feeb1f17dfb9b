"""The whole of an evaluation on a few made-up tracks, with an encoder that hears well."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as functional
from one_room import OneRoom

from bench.audio.pcm import prepare_corpus
from bench.data import BenchmarkData
from bench.degrade.cells import list_cells
from bench.degrade.queries import prepare_queries
from bench.degrade.room import prepare_rooms
from bench.evaluate import SHUFFLED, UNSHUFFLED, Evaluation, _conditions_of, evaluate, find_ceiling, score_crowds
from bench.fingerprint import Embedder, fingerprint_queries
from bench.results import add_thresholds, score_among
from bench.score.rows import SYNTHETIC
from bench.search.diagonal import search_diagonals
from bench.search.distractors import synthetic_blocks
from bench.search.encoder_searcher import EncoderSearcher, build_encoder_searcher
from bench.settings import EvalConfig, GridV2
from bench.store import Store
from bench.testing import Arrays
from bench.values import RATE_HZ, Cell, Fingerprints, no_progress

CONFIG = EvalConfig(
    snr_db=(0.0, 40.0), t60_s=(0.2,), noise_reverb_t60_s=0.2, lengths_s=(0.96, 1.5), indexes=("exact",), top_k=5
)
TRACKS = 6


class Toy(torch.nn.Module):
    """A fixed encoder: a random projection of the levels of 12 stretches in 8 bands."""

    rate_hz, segment_s, dim = RATE_HZ, 0.96, 64

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.randn(8 * 12, 64, generator=torch.Generator().manual_seed(0)))

    def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(wave_BT.reshape(len(wave_BT), 12, 1_280)).abs().square()[..., 1:]
        level = power.reshape(len(wave_BT), 1, 12, 8, 80).mean(-1).clamp_min(1e-9).log()
        return level - level.mean(dim=(1, 2, 3), keepdim=True)

    def embed(self, patch: torch.Tensor) -> torch.Tensor:
        return functional.normalize(patch.flatten(1) @ self.matrix, dim=1)


def sound(seed: int, seconds: float) -> np.ndarray:
    """Return noise whose level and colour change every 200 ms."""
    draw = np.random.default_rng(seed)
    pieces = [np.convolve(draw.normal(0, 1, 3_200), draw.normal(0, 1, 5), "same") for _ in range(round(seconds * 5))]
    return np.concatenate([0.1 * draw.uniform(0.1, 1) * piece / np.std(piece) for piece in pieces]).clip(-1, 1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def data(store: Store) -> BenchmarkData:
    waves = {f"m{i}": sound(i, 3 + i / 5) for i in range(TRACKS)}
    music = prepare_corpus(store, "m", Arrays(waves, dict.fromkeys(waves, "test")), min_track_s=1, workers=1)
    noise = prepare_corpus(store, "n", Arrays({"n": sound(99, 4.0)}, {"n": "test"}), min_track_s=1, workers=1)
    rooms = prepare_rooms(store, "toy", OneRoom(), no_progress)
    return BenchmarkData(music, noise, (rooms,), prepare_queries(store, CONFIG, music, noise, rooms, no_progress))


def evaluated(
    store: Store, data: BenchmarkData, config: EvalConfig = CONFIG, encoder: torch.nn.Module | None = None
) -> Evaluation:
    embedder = Embedder(encoder or Toy(), torch.device("cpu"), "fp32", "toy")  # type: ignore[arg-type]
    searcher = build_encoder_searcher(embedder, data.music, config, store, no_progress)
    return evaluate(searcher, data, config, store, no_progress)


@pytest.fixture(scope="module")
def found(store: Store, data: BenchmarkData) -> Evaluation:
    torch.set_num_threads(1)
    return evaluated(store, data)


def of(found: Evaluation, cell: Cell, truth: str = UNSHUFFLED) -> pd.DataFrame:
    hits = found.hits[cell]
    return hits[hits["truth"] == truth]


def test_every_cell_length_and_search_has_every_query_once(found: Evaluation) -> None:
    assert list(found.hits) == list_cells(CONFIG)
    for cell in found.hits:
        groups = of(found, cell).groupby(["length_s", "index", "sequence"])["query"].apply(list).to_dict()
        searches = ("interpolate", "rescore", "verify", "vote", "vote-50")
        wanted = [(length, "exact", sequence) for length in (0.96, 1.5) for sequence in searches]
        assert groups == {group: list(range(TRACKS)) for group in wanted}


def test_cell_without_a_distortion_keeps_the_key_of_before_there_were_any() -> None:
    assert _conditions_of(Cell("noise", snr_db=0.0)) == {"kind": "noise", "snr_db": 0.0, "t60_s": None}
    assert _conditions_of(Cell("speed", distortion="speed_1.01"))["distortion"] == "speed_1.01"


def test_clean_queries_on_the_grid_are_found_without_exception(found: Evaluation) -> None:
    hits = of(found, Cell("identity"))
    assert hits["hit"].all() and (hits["rank"] == 1).all()
    places = hits[hits["sequence"] != "interpolate"]
    np.testing.assert_allclose(places["found_s"], places["start_s"])
    np.testing.assert_allclose(hits.loc[hits["sequence"] != "verify", "score"], 1, atol=1e-4)


def test_verified_answers_are_exact_to_the_sample_in_noise(found: Evaluation) -> None:
    hits = of(found, Cell("noise", snr_db=0.0)).query("sequence == 'verify'")
    assert hits["hit"].all() and hits["candidate"].all()
    assert (hits["found_s"] - hits["start_s"]).abs().max() <= 1.01 / RATE_HZ
    assert (hits["score"] > 2 * hits["impostor_score"]).all()
    others = of(found, Cell("noise", snr_db=0.0)).query("sequence != 'verify'")
    assert others["candidate"].isna().all() and others["found_speed"].isna().all()


def test_what_is_not_among_the_candidates_is_told(store: Store, data: BenchmarkData) -> None:
    config = replace(CONFIG, lengths_s=(0.96,), top_k=1, verify_candidates=1)
    hits = of(evaluated(store, data, config), Cell("noise", snr_db=0.0)).query("sequence == 'verify'")
    rescored = of(evaluated(store, data, config), Cell("noise", snr_db=0.0)).query("sequence == 'rescore'")
    # With one candidate, what is compared is what the fingerprints answer, a tile of 0.75 s and 0.15 s around it.
    near = rescored["track_hit"] & ((rescored["found_s"] - rescored["start_s"]).abs() <= 0.1)
    assert hits["candidate"].astype(bool).to_numpy()[near.to_numpy()].all()
    assert not hits["hit"].to_numpy()[~hits["candidate"].astype(bool).to_numpy()].any()


def test_ceiling_finds_all_in_noise_and_depends_on_no_encoder(store: Store, data: BenchmarkData) -> None:
    config = replace(CONFIG, ceiling_queries=4)
    hits = find_ceiling(data, config, store, no_progress, torch.device("cpu"))
    assert list(hits) == list_cells(CONFIG)
    noisy = hits[Cell("noise", snr_db=0.0)]
    assert noisy["query"].tolist() == [0, 2, 3, 5]  # at equal distances among six
    assert noisy["hit"].all() and noisy["impostor_score"].notna().all()
    assert (noisy["length_s"] == 0.96).all()
    again = find_ceiling(data, config, store, no_progress, torch.device("cpu"))
    pd.testing.assert_frame_equal(noisy, again[Cell("noise", snr_db=0.0)])


def test_impostor_is_the_best_place_outside_the_own_track(found: Evaluation, store: Store, data: BenchmarkData) -> None:
    hits = of(found, Cell("clean")).query("length_s == 1.5 and sequence == 'rescore'")
    assert isinstance(found.searcher, EncoderSearcher)
    database = found.searcher.database
    for row in hits.itertuples():
        wave = data.queries.wave(Cell("clean"), row.query, 1.5)
        vectors = Embedder(
            Toy(), torch.device("cpu"), "fp32", "toy"
        )(  # type: ignore[arg-type]
            np.stack([wave[start : start + 15_360] for start in range(0, len(wave) - 15_360 + 1, 1_600)])
        )
        scores = [
            np.mean([vectors[m] @ database.vectors[place + m] for m in range(len(vectors))])
            for r, track in enumerate(database.tracks)
            if track != row.track
            for place in range(database.first_vector[r], database.first_vector[r + 1] - len(vectors) + 1)
        ]
        assert row.impostor_score == pytest.approx(max(scores), abs=1e-5)


def test_votes_have_no_impostor(found: Evaluation) -> None:
    hits = of(found, Cell("clean"))
    assert hits.loc[hits["sequence"].isin(["vote", "vote-50"]), "impostor_score"].isna().all()


def test_the_search_of_all_places_stands_under_the_exact_index_and_loses_nothing(
    store: Store, data: BenchmarkData
) -> None:
    config = replace(CONFIG, sequences=("rescore", "diagonal"))
    for hits in evaluated(store, data, config).hits.values():
        rescored, everywhere = (hits[hits["sequence"] == name] for name in ("rescore", "diagonal"))
        assert set(everywhere["index"]) == {"exact"}
        assert (everywhere["score"].to_numpy() >= rescored["score"].to_numpy() - 1e-6).all()


def test_times_between_places_are_nearer_to_the_truth_and_change_nothing_else(found: Evaluation) -> None:
    rescored, between = (of(found, Cell("clean")).query(f"sequence == '{s}'") for s in ("rescore", "interpolate"))
    for column in ("query", "track", "found_track", "score", "track_hit", "impostor_score"):
        np.testing.assert_array_equal(rescored[column], between[column])
    right = rescored["track_hit"].to_numpy()
    off_s = [(hits["found_s"] - hits["start_s"]).abs().to_numpy()[right] for hits in (rescored, between)]
    assert off_s[1].mean() < 0.7 * off_s[0].mean()
    grid = of(found, Cell("identity")).query("sequence == 'interpolate'")
    assert grid["hit"].all() and (grid["found_s"] - grid["start_s"]).abs().max() < 0.02


def test_thresholds_are_set_where_a_score_is_a_similarity(found: Evaluation) -> None:
    for cell, hits in add_thresholds(found).items():
        similar = ~hits["sequence"].isin(["vote", "vote-50"]) & (cell.kind != "identity")
        assert hits.loc[similar, "threshold"].notna().all() and hits.loc[~similar, "threshold"].isna().all()
        assert len(hits) == len(of(found, cell))


def test_more_noise_finds_less(found: Evaluation) -> None:
    loud, faint = (of(found, Cell("noise", snr_db=snr))["score"].mean() for snr in (0.0, 40.0))
    assert faint > loud
    assert of(found, Cell("noise", snr_db=40.0))["track_hit"].mean() > 0.9


def test_shuffled_labels_judge_the_same_answers_by_the_truth_of_another_query(found: Evaluation) -> None:
    own, other = of(found, Cell("clean")), of(found, Cell("clean"), SHUFFLED)
    assert len(own) == len(other)
    for group, rows in own.groupby(["length_s", "index", "sequence"]):
        chance = other.groupby(["length_s", "index", "sequence"]).get_group(group)
        assert chance["found_track"].tolist() == rows["found_track"].tolist()
        assert sorted(chance["track"]) == sorted(rows["track"])
        pairs = set(zip(rows["track"], rows["start_s"], strict=True))
        assert set(zip(chance["track"], chance["start_s"], strict=True)) == pairs
        assert not (chance["track"].to_numpy() == rows["track"].to_numpy()).any()
    assert own["hit"].mean() > 0.5 and other["hit"].mean() < 0.2
    for cell in found.hits:
        assert (len(of(found, cell, SHUFFLED)) > 0) == (cell.kind == "clean")


def test_v2_is_found_where_the_music_starts_and_has_no_ceiling_where_it_plays_at_another_speed(
    store: Store, data: BenchmarkData
) -> None:
    grid = GridV2(
        snr_db=(10.0,), t60_s=(0.2,), noise_reverb_t60_s=0.2, speeds=(0.99, 1.01), tempos=(), pitch_cents=(),
        codecs=("mp3-64",), clip_db=(6.0,), compression_ratios=(), devices=("loudspeaker",),
    )  # fmt: skip
    config = EvalConfig(version="v2", v2=grid, lengths_s=(0.96, 1.5), indexes=("exact",), top_k=5, ceiling_queries=4)
    queries = prepare_queries(store, config, data.music, data.noise, data.banks[0], no_progress)
    later = replace(data, queries=queries)
    found = evaluated(store, later, config)
    assert list(found.hits) == list_cells(config) and len(found.hits) == 10
    for cell in (Cell("identity"), Cell("codec", distortion="mp3_64"), Cell("dynamics", distortion="clip_6")):
        verified = of(found, cell).query("sequence == 'verify'")
        assert verified["hit"].all()
        assert (verified["found_s"] - verified["start_s"]).abs().max() <= 0.001  # to the millisecond
    # The wave of 0.96 s at 1 % more speed has moved by 5 ms in its middle: the start that fits best is as far off.
    speeds = of(found, Cell("speed", distortion="speed_1.01")).query("sequence == 'rescore' and length_s == 0.96")
    assert speeds["track_hit"].mean() > 0.5 and speeds.loc[speeds["track_hit"], "near"].all()
    ceiling = find_ceiling(later, config, store, no_progress, torch.device("cpu"))
    assert list(ceiling) == [cell for cell in list_cells(config) if cell.kind != "speed"]
    assert ceiling[Cell("codec", distortion="mp3_64")]["hit"].all()


class Deaf(Toy):
    def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
        raise AssertionError("what is in the store is embedded again")


def test_what_is_in_the_store_is_not_made_again(store: Store, data: BenchmarkData, found: Evaluation) -> None:
    again = evaluated(store, data, encoder=Deaf())
    for cell, hits in found.hits.items():
        pd.testing.assert_frame_equal(again.hits[cell], hits)
    assert again.searcher.key == found.searcher.key
    with pytest.raises(AssertionError, match="again"):
        evaluated(store, data, replace(CONFIG, top_k=4), encoder=Deaf())


def test_killed_evaluation_keeps_the_cells_that_are_done(
    tmp_path: Path, store: Store, data: BenchmarkData, found: Evaluation
) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if stage == "test cells" and done == 3:
            raise KeyboardInterrupt

    fresh = Store(tmp_path)
    embedder = Embedder(Toy(), torch.device("cpu"), "fp32", "toy")  # type: ignore[arg-type]
    searcher = build_encoder_searcher(embedder, data.music, CONFIG, fresh, no_progress)
    with pytest.raises(KeyboardInterrupt):
        evaluate(searcher, data, CONFIG, fresh, kill)
    assert len([path for path in (tmp_path / "hits").iterdir() if path.is_dir() and "." not in path.name]) == 3
    again = evaluate(searcher, data, CONFIG, fresh, no_progress)
    for cell, hits in found.hits.items():
        pd.testing.assert_frame_equal(again.hits[cell], hits)


@pytest.mark.parametrize("snr_db", [0.0, 40.0])
def test_top1_among_distractors_is_that_of_a_search_of_them_all(
    store: Store, data: BenchmarkData, snr_db: float
) -> None:
    cell, size = Cell("noise", snr_db=snr_db), 700
    config = replace(CONFIG, sequences=("rescore", "diagonal"), distractors=(size,))
    evaluation = evaluated(store, data, config)
    searcher = evaluation.searcher
    assert isinstance(searcher, EncoderSearcher)
    crowd = score_crowds(searcher, data, config, store, no_progress)[cell]
    names = {"run": "r", "benchmark": "b", "queries": "q", "system": "toy"}
    rows = score_among(crowd, of(evaluation, cell), cell, **names)
    assert {(row.origin, row.distractors, row.length_s) for row in rows} == {(SYNTHETIC, size, 0.96)}
    own, made = searcher.database, list(islice(synthetic_blocks(searcher.database), 3))
    lengths = np.concatenate([np.diff(each.first_vector) for each in (own, *made)])
    first = np.minimum(np.concatenate([[0], np.cumsum(lengths)]), len(own.vectors) + size)
    vectors = np.concatenate([each.vectors for each in (own, *made)])[: first[-1]]
    everything = Fingerprints(vectors, np.arange(len(lengths)), first, own.hop_samples, "everything")
    queries = fingerprint_queries(searcher.embedder, iter(data.queries.batches(cell, 0.96, 32)), own.hop_samples)
    track_Q, start_Q = data.queries.truth(cell)
    own_Q = np.searchsorted(searcher.tracks, track_Q)
    source_of = np.concatenate([np.full(len(own.tracks), -1), *(np.searchsorted(own.tracks, m.tracks) for m in made)])
    places = search_diagonals(queries, everything, 1, own_Q, groups=source_of).places_QR[:, 0]
    is_right = everything.track_row_of(places) == own_Q
    assert {row.metric: row.value for row in rows}["audio_top1"] == is_right.mean()
    on_time = np.abs((places - first[everything.track_row_of(places)]) * own.hop_samples - start_Q) <= 0.05 * RATE_HZ
    assert {row.metric: row.value for row in rows}["segment_top1"] == (is_right & on_time).mean()


def test_distractors_change_no_hit_and_an_equal_score_leaves_the_answer(store: Store, data: BenchmarkData) -> None:
    plain = replace(CONFIG, sequences=("rescore", "diagonal"))
    before = evaluated(store, data, plain).hits
    after = evaluated(Store(store.root / "other"), data, replace(plain, distractors=(50,))).hits
    for cell in before:
        pd.testing.assert_frame_equal(before[cell], after[cell])
    hits = pd.DataFrame(
        {"query": [0, 1, 2], "track": [0, 1, 2], "score": [0.9, 0.8, 0.7], "hit": True, "near": True,
         "track_hit": [True, True, True], "length_s": 0.96, "index": "exact", "sequence": "diagonal"}
    )  # fmt: skip
    crowd = pd.DataFrame({"origin": SYNTHETIC, "distractors": 5, "query": [2, 0, 1], "score": [0.71, 0.9, -np.inf]})
    rows = score_among(crowd, hits, Cell("clean"), run="r", benchmark="b", queries="q", system="toy")
    assert [(row.metric, row.value) for row in rows] == [
        (m, 2 / 3) for m in ("segment_top1", "near_top1", "audio_top1")
    ]
