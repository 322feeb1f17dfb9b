from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given
from hypothesis import strategies as st

from bench import fingerprint
from bench.audio.pcm import Corpus, prepare_corpus
from bench.errors import PluginError
from bench.fingerprint import (
    Embedder,
    cut_segments,
    embed,
    fingerprint_queries,
    fingerprint_tracks,
    num_segments,
    resample_to,
)
from bench.store import Store
from bench.testing import Arrays
from bench.values import RATE_HZ, Fingerprints, no_progress

SEGMENT, HOP = 15_360, 1_600
CPU = torch.device("cpu")


class Toy(torch.nn.Module):
    """A linear encoder of 0.96 s at any rate, on the levels of 8 x 12 stretches."""

    segment_s, dim = 0.96, 8

    def __init__(self, rate_hz: int = RATE_HZ) -> None:
        super().__init__()
        self.rate_hz = rate_hz
        self.heard: list[tuple[int, ...]] = []
        draw = torch.Generator().manual_seed(0)
        self.register_buffer("matrix", torch.randn(96, 8, generator=draw))

    def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
        assert wave_BT.dtype == torch.float32
        self.heard.append(tuple(wave_BT.shape))
        assert wave_BT.shape[1] == round(self.segment_s * self.rate_hz)
        power = wave_BT.reshape(len(wave_BT), 1, 8, 12, -1).square().mean(-1)
        level = power.clamp_min(1e-9).log()
        return level - level.mean(dim=(1, 2, 3), keepdim=True)

    def embed(self, patch: torch.Tensor) -> torch.Tensor:
        return functional.normalize(patch.flatten(1) @ self.matrix, dim=1)

    def forward(self, wave_BT: torch.Tensor) -> torch.Tensor:
        return self.embed(self.features(wave_BT))


def embedder(encoder: torch.nn.Module | None = None, key: str = "weights") -> Embedder:
    return Embedder(encoder or Toy(), CPU, "fp32", key)  # type: ignore[arg-type]


def noise(seed: int, samples: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    knots = np.arange(0, samples + 400, 400)
    swell = np.interp(np.arange(samples), knots, draw.uniform(0, 1, len(knots)))
    return np.asarray(swell * draw.uniform(-0.9, 0.9, samples))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    waves = {f"t{i}": noise(i, samples) for i, samples in enumerate((40_000, 16_000, 33_333))}
    return prepare_corpus(Store(tmp_path_factory.mktemp("pcm")), "toy", Arrays(waves), min_track_s=1.0, workers=1)


# How many segments


@pytest.mark.parametrize(
    ("seconds", "count"), [(0.96, 1), (2.0, 11), (3.0, 21), (5.0, 41), (0.95, 0), (0.0, 0), (1.0599, 1), (1.06, 2)]
)
def test_segments_of_the_published_query_lengths(seconds: float, count: int) -> None:
    assert num_segments(round(seconds * RATE_HZ), SEGMENT, HOP) == count


@given(st.integers(0, 300), st.integers(1, 60), st.integers(1, 40))
def test_number_of_segments_is_that_of_counting(samples: int, segment: int, hop: int) -> None:
    count = sum(1 for start in range(0, samples + 1, hop) if start + segment <= samples)
    assert num_segments(samples, segment, hop) == count
    if count:
        wave = np.arange(samples, dtype=np.float32)
        cut = cut_segments(wave, segment, hop)
        assert cut.shape == (count, segment)
        assert np.array_equal(cut, [wave[i * hop : i * hop + segment] for i in range(count)])
        assert np.shares_memory(cut, wave)


def test_segments_of_a_batch_are_those_of_each_wave() -> None:
    waves = np.random.default_rng(0).standard_normal((3, 500)).astype(np.float32)
    cut = cut_segments(waves, 100, 30)
    assert cut.shape == (3, 14, 100)
    for found, wave in zip(cut, waves, strict=True):
        assert np.array_equal(found, cut_segments(wave, 100, 30))


# Embedding


def test_vectors_do_not_depend_on_how_segments_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    waves = cut_segments(noise(0, 60_000).astype(np.float32), SEGMENT, HOP)
    whole = embedder()(waves)
    assert whole.shape == (28, 8) and whole.dtype == np.float32
    for size in (1, 5, 27, 28, 29):
        monkeypatch.setattr(fingerprint, "BATCH", size)
        np.testing.assert_allclose(embedder()(waves), whole, atol=1e-6)


def test_no_more_than_a_batch_reaches_the_encoder_at_once() -> None:
    encoder = Toy()
    embedder(encoder)(np.ones((fingerprint.BATCH + 3, SEGMENT), np.float32))
    assert [shape[0] for shape in encoder.heard] == [fingerprint.BATCH, 3]


@pytest.mark.parametrize(("count", "waves"), [(1, 5), (3, 5), (7, 2), (8, 1), (9, 2), (23, 1)])
def test_windows_are_the_segments_of_each_wave(monkeypatch: pytest.MonkeyPatch, count: int, waves: int) -> None:
    monkeypatch.setattr(fingerprint, "BATCH", 8)
    long = np.stack([noise(i, SEGMENT + (count - 1) * HOP + 99) for i in range(waves)]).astype(np.float32)
    encoder = Toy()
    found = embedder(encoder).windows(long, HOP)
    assert found.shape == (waves, count, 8) and max(shape[0] for shape in encoder.heard) <= 8
    for wave, vectors in zip(long, found, strict=True):
        np.testing.assert_allclose(vectors, embedder()(cut_segments(wave, SEGMENT, HOP)), atol=1e-6)


def test_wave_shorter_than_a_segment_has_no_window() -> None:
    assert embedder().windows(np.zeros((2, SEGMENT - 1), np.float32), HOP).shape == (2, 0, 8)


class Sharing(Toy):
    """Computes what overlapping segments share once, and says so."""

    def __init__(self, rate_hz: int = RATE_HZ) -> None:
        super().__init__(rate_hz)
        self.shared: list[tuple[int, ...]] = []

    def window_features(self, wave_BT: torch.Tensor, hop_samples: int) -> torch.Tensor:
        self.shared.append(tuple(wave_BT.shape))
        segment_BMT = wave_BT.unfold(1, SEGMENT, hop_samples)
        return self.features(segment_BMT.reshape(-1, SEGMENT)).unflatten(0, segment_BMT.shape[:2])


def test_encoder_that_shares_is_given_whole_waves() -> None:
    encoder, long = Sharing(), np.stack([noise(i, 30_000) for i in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(embedder(encoder).windows(long, HOP), embedder().windows(long, HOP))
    assert encoder.shared == [(3, 15_360 + 9 * HOP)]


def test_encoder_with_another_rate_is_not_asked_to_share() -> None:
    encoder, long = Sharing(8_000), np.stack([noise(i, 30_000) for i in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(embedder(encoder).windows(long, HOP), embedder(Toy(8_000)).windows(long, HOP))
    assert not encoder.shared


def test_no_segment_gives_no_vector() -> None:
    assert embedder()(np.zeros((0, SEGMENT), np.float32)).shape == (0, 8)


def test_16_bit_audio_is_heard_as_floats_of_full_scale_one() -> None:
    waves = cut_segments((noise(0, 40_000) * 32_767).astype(np.int16), SEGMENT, HOP)
    same = embedder()(waves.astype(np.float32) / np.float32(32_768))
    np.testing.assert_array_equal(embedder()(waves), same)


def test_read_only_and_overlapping_audio_is_left_as_it_is(corpus: Corpus) -> None:
    wave = corpus.read(0, 0, 40_000)
    before = wave.copy()
    wave.flags.writeable = False
    embedder()(cut_segments(wave, SEGMENT, HOP))
    assert np.array_equal(wave, before)


def test_low_precision_reaches_the_network_alone() -> None:
    class Watched(Toy):
        def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
            assert not torch.is_autocast_enabled("cpu")
            return super().features(wave_BT)

        def embed(self, patch: torch.Tensor) -> torch.Tensor:
            code = patch.flatten(1) @ self.matrix
            assert code.dtype == (torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32)
            return functional.normalize(code.float(), dim=1)

    wave = torch.from_numpy(cut_segments(noise(0, 20_000).astype(np.float32), SEGMENT, HOP).copy())
    half, full = (embed(Watched(), wave, precision) for precision in ("bf16", "fp32"))  # type: ignore[arg-type]
    assert half.dtype == full.dtype == torch.float32
    np.testing.assert_allclose(half, full, atol=0.02)


# Another rate


def test_own_rate_is_left_alone() -> None:
    wave = torch.randn(2, SEGMENT)
    assert resample_to(wave, RATE_HZ) is wave


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 11_025, 32_000])
def test_tone_is_the_same_tone_at_another_rate(rate_hz: int) -> None:
    def tone(rate: int) -> torch.Tensor:
        return torch.sin(2 * torch.pi * 440 * torch.arange(round(0.96 * rate)) / rate)[None]

    heard = resample_to(tone(RATE_HZ), rate_hz)
    assert heard.shape == (1, round(0.96 * rate_hz))
    middle = slice(rate_hz // 20, -rate_hz // 20)  # the ends are cut out of the tone
    np.testing.assert_allclose(heard[:, middle], tone(rate_hz)[:, middle], atol=0.01)


def test_what_a_lower_rate_cannot_hold_is_taken_out() -> None:
    tone = torch.sin(2 * torch.pi * 6_000 * torch.arange(SEGMENT) / RATE_HZ)[None]
    assert float(resample_to(tone, 8_000).square().mean()) < 1e-3


def test_encoder_of_8_khz_is_given_8_khz(tmp_path: Path, corpus: Corpus) -> None:
    encoder = Toy(8_000)
    made = fingerprint_tracks(Store(tmp_path), embedder(encoder), corpus, corpus.numbers("train"), HOP, no_progress)
    assert {shape[1] for shape in encoder.heard} == {7_680}
    # Its segments are still 0.96 s of the corpus, at every hop of the corpus.
    assert made.first_vector.tolist() == [0, 16, 17, 29]
    cut = torch.from_numpy(corpus.read(2, 3 * HOP, SEGMENT).astype(np.float32) / 32_768)[None]
    np.testing.assert_allclose(made.vectors[17 + 3], encoder(resample_to(cut, 8_000))[0], atol=1e-5)


# A database


def test_every_vector_is_that_of_its_place(tmp_path: Path, corpus: Corpus) -> None:
    tracks = np.array([2, 0, 1])
    made = fingerprint_tracks(Store(tmp_path), embedder(), corpus, tracks, HOP, no_progress)
    assert made.tracks.tolist() == [2, 0, 1] and made.hop_samples == HOP
    assert made.first_vector.tolist() == [0, 12, 28, 29]
    assert made.vectors.shape == (29, 8) and made.vectors.dtype == np.float32
    assert isinstance(made.vectors, np.memmap)
    for place, track in enumerate(tracks):
        for j in range(int(made.first_vector[place + 1] - made.first_vector[place])):
            number = int(made.first_vector[place]) + j
            assert made.track_row_of(np.array([number])).tolist() == [place]
            alone = embedder()(corpus.read(int(track), j * HOP, SEGMENT)[None])[0]
            np.testing.assert_allclose(made.vectors[number], alone, atol=1e-6)


def test_track_shorter_than_a_segment_has_no_vector(tmp_path: Path, corpus: Corpus) -> None:
    class Long(Toy):
        segment_s = 1.2  # track 1 lasts one second

        def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
            return wave_BT[:, None, None, :96]

    made = fingerprint_tracks(Store(tmp_path), embedder(Long()), corpus, np.array([0, 1, 2]), HOP, no_progress)
    assert made.first_vector.tolist() == [0, 14, 14, 23]


class Deaf(Toy):
    def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
        raise AssertionError("what is in the store is embedded again")


def test_database_in_the_store_is_not_made_again(tmp_path: Path, corpus: Corpus) -> None:
    tracks = corpus.numbers("train")
    first = fingerprint_tracks(Store(tmp_path), embedder(), corpus, tracks, HOP, no_progress)
    again = fingerprint_tracks(Store(tmp_path), embedder(Deaf()), corpus, tracks, HOP, no_progress)
    assert again.key == first.key and np.array_equal(again.vectors, first.vectors)
    others = {
        "weights": (embedder(Deaf(), "other"), tracks, HOP),
        "precision": (replace(embedder(Deaf()), precision="bf16"), tracks, HOP),
        "tracks": (embedder(Deaf()), tracks[::-1], HOP),
        "hop": (embedder(Deaf()), tracks, HOP // 2),
    }
    for what, (other, numbers, hop) in others.items():
        with pytest.raises(AssertionError, match="again"):
            fingerprint_tracks(Store(tmp_path), other, corpus, numbers, hop, no_progress)
            pytest.fail(f"{what} is not in the key")


def test_killed_database_is_made_whole_by_the_next_call(tmp_path: Path, corpus: Corpus) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    tracks = corpus.numbers("train")
    with pytest.raises(KeyboardInterrupt):
        fingerprint_tracks(Store(tmp_path / "killed"), embedder(), corpus, tracks, HOP, kill)
    made, whole = (
        fingerprint_tracks(Store(tmp_path / name), embedder(), corpus, tracks, HOP, no_progress)
        for name in ("killed", "whole")
    )
    assert np.array_equal(made.vectors, whole.vectors)


def test_broken_weights_are_named_with_the_track_and_nothing_is_kept(tmp_path: Path, corpus: Corpus) -> None:
    encoder = Toy()
    encoder.matrix[0, 0] = torch.nan
    with pytest.raises(PluginError, match="NaN or infinite fingerprints for track t0"):
        fingerprint_tracks(Store(tmp_path), embedder(encoder), corpus, corpus.numbers("train"), HOP, no_progress)
    made = fingerprint_tracks(Store(tmp_path), embedder(), corpus, corpus.numbers("train"), HOP, no_progress)
    assert np.isfinite(made.vectors).all()


# Queries


def test_queries_are_embedded_segment_by_segment() -> None:
    waves = np.stack([noise(i, 32_000) for i in range(5)]).astype(np.float32)
    found = fingerprint_queries(embedder(), iter([waves[:2], waves[2:4], waves[4:]]), HOP)
    assert found.shape == (5, 11, 8)
    for q, m in ((0, 0), (1, 10), (4, 3)):
        alone = embedder()(waves[q, m * HOP : m * HOP + SEGMENT][None])[0]
        np.testing.assert_allclose(found[q, m], alone, atol=1e-6)


def test_query_of_one_segment_has_one_vector() -> None:
    found = fingerprint_queries(embedder(), iter([np.ones((2, SEGMENT), np.float32)]), HOP)
    assert found.shape == (2, 1, 8)


def test_query_shorter_than_a_segment_ends_in_its_own_end_mirrored() -> None:
    wave = noise(3, SEGMENT - 400).astype(np.float32)
    whole = np.concatenate([wave, wave[-401:-1][::-1]])
    found = fingerprint_queries(embedder(), iter([wave[None]]), HOP)
    assert found.shape == (1, 1, 8) and len(whole) == SEGMENT
    np.testing.assert_allclose(found[0], embedder()(whole[None]), atol=1e-6)


# Places


def test_place_of_a_vector_is_that_of_its_track_and_minus_one_stays() -> None:
    first = np.array([0, 3, 3, 5])
    made = Fingerprints(np.zeros((5, 2), np.float32), np.array([7, 8, 9]), first, HOP, "key")
    assert made.track_row_of(np.array([[0, 2], [3, 4], [-1, -1]])).tolist() == [[0, 0], [2, 2], [-1, -1]]
