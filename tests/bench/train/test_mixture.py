"""Pairs of several sources: what is drawn, what is heard, and that without a mixture all is as it was."""

from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.audio.pcm import Corpus, prepare_corpus
from bench.config import resolve
from bench.degrade.room import DIRECT_AT
from bench.errors import ConfigError
from bench.registry import load, names
from bench.settings import Mixture, TrainConfig, Transforms
from bench.store import Store
from bench.testing import Arrays
from bench.train.draws import Draws, _mute_sources, draw_pairs
from bench.train.pairs import cut_pairs, degrade_pairs, mix_sources
from bench.train.pool import TrainingPool, _sum_energy
from bench.train.sound import DeviceSound, HostSound
from bench.train.unusual_settings import find_unusual_settings
from bench.values import RATE_HZ

SEGMENT, CONTEXT, TAPS = 4_000, 1_600, 3
CPU = torch.device("cpu")
PLAIN = TrainConfig(batch_pairs=6, max_rir_s=CONTEXT / RATE_HZ)
CONFIG = replace(
    PLAIN, batch_pairs=12, offset_ms=20.0, mixture=Mixture(sources=(2, 4)),
    clean=1.0, noise_only=0.0, reverb_only=0.0, noise_and_reverb=0.0,
)  # fmt: skip
# Of the code before there were mixtures, over these fields of the draws and these samples.
BEFORE = "5a1c82486a383c2e"
DRAWN = (
    "track_B", "anchor_B", "positive_B", "noise_B", "noise_start_B", "response_B", "snr_db_B", "gain_db_B",
    "has_noise_B", "has_room_B", "stripe_BC22", "transform_seed_B",
)  # fmt: skip


def saw(number: int, seconds: float) -> np.ndarray:
    """Return a sawtooth made of whole numbers, so that its samples are the same on every machine."""
    return ((np.arange(round(seconds * RATE_HZ)) * (37 + 2 * number)) % 20_001 - 10_000) / 32_768


def corpus(root: Path, name: str, waves: dict[str, np.ndarray]) -> Corpus:
    return prepare_corpus(Store(root), name, Arrays(waves), min_track_s=1.0, workers=1)


def made(music: Corpus, noise: Corpus) -> TrainingPool:
    """Return material whose rooms are empty: no response is heard here."""
    tracks = music.numbers("train")
    return TrainingPool(
        music, tracks, HostSound(music), *_sum_energy(music, tracks), noise, noise.numbers("train"), HostSound(noise),
        torch.zeros(TAPS, 8_001, dtype=torch.complex64), CONTEXT, SEGMENT, 16_000,
    )  # fmt: skip


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> TrainingPool:
    root = tmp_path_factory.mktemp("store")
    music = corpus(root, "music", {f"m{i}": saw(i, 1 + i / 4) for i in range(6)})
    return made(music, corpus(root, "noise", {"a": saw(20, 2.0), "b": saw(21, 1.0)}))


def all_sources(draws: Draws) -> tuple[np.ndarray, ...]:
    """Return tracks and places (B, K) in the anchor and in the positive, each pair's own first."""
    own = (draws.track_B, draws.anchor_B, draws.positive_B)
    others = (draws.other_track_BJ, draws.other_anchor_BJ, draws.other_positive_BJ)
    return tuple(np.column_stack(parts) for parts in zip(own, others, strict=True))


# Without a mixture


def test_without_a_mixture_every_number_and_sample_is_that_of_before(source: TrainingPool) -> None:
    configs = (
        PLAIN,
        replace(PLAIN, segments_per_track=3, neighbours_per_track=2, offset_ms=20.0, gain_db=(-20.0, 0.0)),
        replace(PLAIN, pairs_per_moment=2, clean=1.0, mask_count=2),
    )
    told = sha256()
    for config in configs:
        for seed, step in ((0, 0), (3, 7)):
            draws = draw_pairs(source, config, seed, step)
            cuts = cut_pairs(draws, source, CPU)
            for name in DRAWN:
                told.update(np.ascontiguousarray(getattr(draws, name)).tobytes())
            for wave_BT in (cuts.anchor_BT, cuts.music_BT, cuts.noise_BT):
                told.update(wave_BT.numpy().tobytes())
            told.update(str(draws.redrawn).encode())
    assert told.hexdigest()[:16] == BEFORE


def test_mixture_leaves_all_other_numbers_of_a_step_as_they_are(source: TrainingPool) -> None:
    mixed_draws, plain = (draw_pairs(source, config, 1, 2) for config in (CONFIG, replace(CONFIG, mixture=Mixture())))
    for name in DRAWN:
        assert np.array_equal(getattr(mixed_draws, name), getattr(plain, name)), name
    assert plain.other_track_BJ.shape == (12, 0) and (plain.positive_gain_BK == 1).all()


def test_mixture_of_one_source_is_none_and_a_wrong_one_is_refused() -> None:
    assert Mixture().is_idle and not Mixture(sources=(1, 2)).is_idle
    for wrong in ((0, 2), (3, 2), (2, 17)):
        with pytest.raises(ConfigError, match=r"train\.mixture\.sources must be"):
            Mixture(sources=wrong)
    for gain in ((0.0, 1.0), (2.0, 1.0), (0.2, 101.0)):
        with pytest.raises(ConfigError, match=r"train\.mixture\.gain must be"):
            Mixture(gain=gain)


# Recipes


@pytest.mark.parametrize("encoder", names("encoder"))
def test_every_encoder_has_the_recipes_of_tables_1_and_2(encoder: str) -> None:
    plugin = load("encoder", encoder)
    stretched, jittered, small = (
        resolve(encoder, plugin, name) for name in ("biodcase-1", "biodcase-4", "align-small")
    )
    for config in (stretched.train, jittered.train):
        assert (config.batch_pairs, config.optimiser, config.lr, config.schedule) == (256, "adam", 8e-5, "cosine")
        assert (config.loss, config.offset_ms, config.mixture) == ("nt-xent", 50.0, Mixture((2, 4), (0.2, 5.0)))
        assert config.patience > 0 and config.mask_count == config.neighbours_per_track == 0
        assert config.clean == 1 and config.noise_only == config.reverb_only == config.noise_and_reverb == 0
    assert stretched.train.transforms == Transforms(time_stretch=0.5, views="pair")
    assert jittered.train.transforms == Transforms(resample_jitter=0.5, coloured_noise=0.5, views="pair")
    assert (stretched.eval.hop_ms, jittered.eval.hop_ms) == (100.0, 50.0)
    assert find_unusual_settings(stretched.train, stretched.eval.hop_ms) == []
    (sentence,) = find_unusual_settings(jittered.train, jittered.eval.hop_ms)
    assert sentence.startswith("train.offset_ms = 50 ") and "hop of 50 ms" in sentence and "#4" in sentence
    assert not small.train.mixture.is_idle and find_unusual_settings(small.train, small.train.neighbour_ms) == []


def test_shifts_of_a_mixture_are_doubted_from_the_hop_on() -> None:
    assert find_unusual_settings(replace(CONFIG, offset_ms=99.9)) == []
    (sentence,) = find_unusual_settings(replace(CONFIG, offset_ms=100.0))
    assert "train.offset_ms = 100 " in sentence and "hop of 100 ms" in sentence
    (other,) = find_unusual_settings(replace(PLAIN, offset_ms=26.0), 50.0)  # of one source: half the hop, as before
    assert "more than half the hop of 50 ms" in other


# What is drawn


def test_sources_gains_shifts_and_mutes_are_in_their_ranges_and_all_of_them_is_used(source: TrainingPool) -> None:
    counts, muted, gains, shifts = Counter[int](), Counter[tuple[int, int]](), [], []
    for step in range(60):
        draws = draw_pairs(source, CONFIG, 0, step)
        track_BK, anchor_BK, positive_BK = all_sources(draws)
        there_BK, heard_BK = draws.anchor_gain_BK > 0, draws.positive_gain_BK > 0
        assert not (heard_BK & ~there_BK).any()  # nothing new in the positive
        assert heard_BK.any(axis=1).all()  # and something of the anchor
        for there, heard in zip(there_BK, heard_BK, strict=True):
            counts[there.sum()] += 1
            muted[there.sum(), there.sum() - heard.sum()] += 1
        gains += [draws.anchor_gain_BK[there_BK], draws.positive_gain_BK[heard_BK]]
        assert not np.isclose(draws.anchor_gain_BK, draws.positive_gain_BK)[there_BK].any()  # new gains
        shifts.append((positive_BK - anchor_BK)[:, 1:])
        assert np.isin(track_BK, source.tracks).all()
        fits_BK = anchor_BK + SEGMENT <= source.music.lengths[track_BK]
        assert (anchor_BK >= 0).all() and fits_BK.all()
    assert set(counts) == {2, 3, 4} and min(counts.values()) > 0.25 * 720
    assert set(muted) == {(k, k0) for k in (2, 3, 4) for k0 in range(k)}
    gain, shift = np.concatenate(gains), np.concatenate(shifts)
    assert 0.2 <= gain.min() < 0.25 and 4.95 < gain.max() <= 5.0 and gain.mean() == pytest.approx(2.6, abs=0.1)
    assert -320 <= shift.min() < -310 and 310 < shift.max() <= 320  # 20 ms
    assert len(set(map(tuple, shift.tolist()))) > 700  # each source by itself


def test_every_source_may_be_the_muted_one() -> None:
    draw = np.random.default_rng(0)
    gain = np.tile(np.float32([1, 2, 3, 0]), (3_000, 1))
    heard = _mute_sources(gain, np.full(3_000, 3), draw) > 0
    # Of 3 sources 0, 1 or 2 are muted, each as often: 2/3 of each source is heard on average.
    np.testing.assert_allclose(heard.mean(axis=0), [2 / 3, 2 / 3, 2 / 3, 0], atol=0.03)
    np.testing.assert_allclose(np.bincount(heard.sum(axis=1), minlength=4) / 3_000, [0, *[1 / 3] * 3], atol=0.03)


def test_neighbours_hear_the_same_scene_a_moment_later(source: TrainingPool) -> None:
    config = replace(CONFIG, segments_per_track=2, neighbours_per_track=1, neighbour_ms=25.0)
    moved = 0
    for step in range(20):
        draws = draw_pairs(source, config, 0, step)
        track_BK, anchor_BK, _positive = all_sources(draws)
        there_BK = draws.anchor_gain_BK > 0
        assert np.array_equal(track_BK[::2], track_BK[1::2]) and np.array_equal(there_BK[::2], there_BK[1::2])
        assert not np.array_equal(draws.anchor_gain_BK[::2], draws.anchor_gain_BK[1::2])
        away_GK = anchor_BK[1::2] - anchor_BK[::2]
        moved += int((away_GK == away_GK[:, :1]).sum())
    assert moved > 0.9 * 20 * 6 * 4  # but where a track begins or ends in between


def test_pairs_of_one_moment_share_their_anchor(source: TrainingPool) -> None:
    draws = draw_pairs(source, replace(CONFIG, pairs_per_moment=3), 0, 0)
    anchor = cut_pairs(draws, source, CPU).anchor_BT
    for first in range(0, 12, 3):
        assert torch.equal(anchor[first], anchor[first + 1]) and torch.equal(anchor[first], anchor[first + 2])
        assert len(set(map(tuple, draws.positive_gain_BK[first : first + 3].tolist()))) == 3
    assert not torch.equal(anchor[0], anchor[3])


def test_silent_places_of_every_source_are_drawn_again(tmp_path: Path, source: TrainingPool) -> None:
    half = np.concatenate([saw(0, 1.0), np.zeros(RATE_HZ)])
    quiet = made(corpus(tmp_path, "music", {"half": half, "other": half[::-1].copy()}), source.noise)
    config = replace(CONFIG, batch_pairs=100)
    draws = draw_pairs(quiet, config, 0, 0)
    track_BK, anchor_BK, _positive = all_sources(draws)
    assert quiet.is_audible(track_BK.reshape(-1), anchor_BK.reshape(-1)).mean() > 0.99
    assert draws.redrawn > draw_pairs(quiet, replace(config, mixture=Mixture()), 0, 0).redrawn > 0


def test_share_of_a_batch_is_what_the_whole_batch_has_there(source: TrainingPool) -> None:
    draws = draw_pairs(source, CONFIG, 5, 6)
    whole, part = (cut_pairs(some, source, CPU) for some in (draws, draws.rows(slice(4, 7))))
    for name in ("anchor_BT", "music_BT"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[4:7]), name


# What is heard


def slow_sum(music: Corpus, tracks: list[int], starts: list[int], gains: list[float], num_samples: int) -> np.ndarray:
    """Return equation 1 sample by sample, in float64, turned down to full scale where it is above it."""
    total = np.zeros(num_samples)
    for track, start, gain in zip(tracks, starts, gains, strict=True):
        whole = music.read(track, 0, music.num_samples(track)) / 32_768
        for n in range(num_samples):
            if 0 <= start + n < len(whole):
                total[n] += gain * whole[start + n]
    return total / max(1.0, np.abs(total).max() * 32_768 / 32_767)


def test_both_views_are_sums_of_their_sources_by_equation_1(source: TrainingPool) -> None:
    draws = draw_pairs(source, CONFIG, 0, 0)
    cuts = cut_pairs(draws, source, CPU)
    track_BK, anchor_BK, positive_BK = (a.tolist() for a in all_sources(draws))
    total = CONTEXT + SEGMENT + DIRECT_AT
    anchors, positives = degrade_pairs(cuts, source)
    for i in range(6):
        wanted = slow_sum(source.music, track_BK[i], anchor_BK[i], draws.anchor_gain_BK[i].tolist(), SEGMENT)
        np.testing.assert_allclose(anchors[i], wanted, atol=0.51 / 32_768)  # int16, and float32 before
        starts = [start - CONTEXT for start in positive_BK[i]]
        heard = slow_sum(source.music, track_BK[i], starts, draws.positive_gain_BK[i].tolist(), total)
        np.testing.assert_allclose(cuts.music_BT[i] / 32_768, heard, atol=0.51 / 32_768)
        here = heard[CONTEXT : CONTEXT + SEGMENT]
        np.testing.assert_allclose(positives[i], here / np.abs(here).max(), atol=2e-4)  # of a peak above 0.2


def test_sum_by_hand(tmp_path: Path) -> None:
    levels = {"a": np.full(RATE_HZ, 0.125), "b": np.full(RATE_HZ, 0.25), "c": np.full(RATE_HZ, -0.5)}
    sound = HostSound(corpus(tmp_path, "levels", levels))
    track = np.array([[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    start = np.array([[0, 0, 0], [-2, 0, 0], [0, 0, RATE_HZ - 1]])
    # 2/8 + 1/4 = 1/2, the third muted; the first two samples before a track begins; 4/8 + 4/4 - 1/2, above full scale.
    gain = np.float32([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0], [4.0, 4.0, 1.0]])
    heard = mix_sources(sound, track, start, gain, 4)
    assert heard.dtype == torch.int16
    assert heard[:2].tolist() == [[16_384] * 4, [8_192, 8_192, 16_384, 16_384]]
    assert heard[2].tolist() == [21_845, 32_767, 32_767, 32_767]  # 1 of 1.5, then the third is over


def test_sources_mix_on_a_device_as_on_the_host(source: TrainingPool) -> None:
    draws = draw_pairs(source, CONFIG, 2, 3)
    track_BK, anchor_BK, _positive = all_sources(draws)
    device = DeviceSound(source.music, source.tracks, CPU)
    one, other = (
        mix_sources(sound, track_BK, anchor_BK, draws.anchor_gain_BK, SEGMENT) for sound in (source.music_sound, device)
    )
    assert torch.equal(one, other)


def test_workers_change_the_mixture_of_the_positive_alone(source: TrainingPool) -> None:
    draws = draw_pairs(source, CONFIG, 0, 0)
    plain = cut_pairs(draws, source, CPU)
    changed = cut_pairs(draws, source, CPU, lambda music, seeds: music // 2)
    assert torch.equal(changed.anchor_BT, plain.anchor_BT)
    assert torch.equal(changed.music_BT[:, CONTEXT:], plain.music_BT[:, CONTEXT:] // 2)


def test_workers_change_anchors_too_by_seeds_of_their_own(source: TrainingPool) -> None:
    draws = draw_pairs(source, CONFIG, 0, 0)
    plain, seen = cut_pairs(draws, source, CPU), []

    def halve(music_BT: torch.Tensor, seeds_B: np.ndarray) -> torch.Tensor:
        seen.append(seeds_B)
        return music_BT // 2

    changed = cut_pairs(draws, source, CPU, halve, halve)
    assert torch.equal(changed.anchor_BT, plain.anchor_BT // 2)
    assert torch.equal(changed.music_BT[:, CONTEXT:], plain.music_BT[:, CONTEXT:] // 2)
    assert min(map(np.min, seen)) >= 0 and not set(seen[0].tolist()) & set(seen[1].tolist())


def test_mixtures_of_silence_give_no_nan(source: TrainingPool) -> None:
    draws = draw_pairs(source, CONFIG, 0, 0)
    places = ("anchor_B", "other_anchor_BJ", "positive_B", "other_positive_BJ")
    late = {name: getattr(draws, name) + 10**6 for name in places}
    after = replace(draws, **late)
    for wave_BT in degrade_pairs(cut_pairs(after, source, CPU), source):
        assert (wave_BT == 0).all()
