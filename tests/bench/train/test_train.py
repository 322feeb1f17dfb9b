import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.audio.pcm import Corpus, prepare_corpus
from bench.data import TrainingSet, split_tracks
from bench.degrade.room import DIRECT_AT, Response, align_direct_sound, prepare_rooms
from bench.errors import DataError, StoreError
from bench.fingerprint import Embedder, cut_segments
from bench.models import random_projection
from bench.settings import RunConfig, TrainConfig
from bench.store import Store
from bench.testing import Arrays
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS
from bench.train.draws import Draws, draw_pairs
from bench.train.loop import HISTORY, RESUME, _warn_of_overlaps, fit, load_history
from bench.train.losses import nt_xent
from bench.train.pairs import Batch, cut_pairs, degrade_pairs, mask_patches
from bench.train.pool import TrainingPool, load_pool
from bench.train.schedules import learning_rate
from bench.train.sound import DeviceSound, HostSound
from bench.train.step import TrainingError
from bench.train.validation import build_validation, top1
from bench.values import RATE_HZ, no_progress

SEGMENT = 4_000
CPU = torch.device("cpu")
CONFIG = TrainConfig(
    steps=12,
    batch_pairs=6,
    warmup_steps=2,
    offset_ms=50.0,
    max_rir_s=0.1,
    val_every_steps=5,
    val_queries=8,
    checkpoint_every_steps=4,
)


def noise(seed: int, seconds: float, peak: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-peak, peak, round(seconds * RATE_HZ))


@dataclass(frozen=True)
class Rooms:
    """Decaying noise; the last one is longer than training keeps."""

    seconds: tuple[float, ...] = (0.05, 0.08, 0.3)
    split: str = "train"

    def names(self) -> list[str]:
        return [f"{i}/{s}" for i, s in enumerate(self.seconds)]

    def load(self, name: str) -> Response:
        number, _, seconds = name.partition("/")
        seconds_T = np.arange(round(float(seconds) * RATE_HZ)) / RATE_HZ
        wave = np.random.default_rng(int(number)).standard_normal(len(seconds_T)) * 10 ** (
            -4 * seconds_T / float(seconds)
        )
        wave[0] = 5
        return Response(name, align_direct_sound(wave.astype(np.float32)), self.split)  # type: ignore[arg-type]

    def digest(self) -> str:
        return repr(self)


def corpus(root: Path, name: str, waves: dict[str, np.ndarray], splits: dict[str, Any]) -> Corpus:
    return prepare_corpus(Store(root), name, Arrays(waves, splits), min_track_s=1.0, workers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    root = tmp_path_factory.mktemp("store")
    waves = {f"m{i}": noise(i, 1 + i / 4) for i in range(8)}
    music = corpus(root, "music", waves, {"m6": "val", "m7": "test"})
    hiss = {"loud": noise(20, 2.0, 0.9), "faint": noise(21, 1.0, 0.01), "test": noise(22, 2.0)}
    bank = prepare_rooms(Store(root), "toy", Rooms(), no_progress)
    return TrainingSet(music, corpus(root, "noise", hiss, {"test": "test"}), (bank,))


@pytest.fixture(scope="module")
def source(data: TrainingSet) -> TrainingPool:
    return made(data, CONFIG)


def made(data: TrainingSet, config: TrainConfig) -> TrainingPool:
    return load_pool(data, data.music.numbers("train"), config, SEGMENT, CPU)


def drawn(source: TrainingPool, config: TrainConfig, seed: int = 0, step: int = 0) -> tuple[Draws, Batch]:
    draws = draw_pairs(source, config, seed, step)
    return draws, cut_pairs(draws, source, CPU)


# Pairs: what is drawn


def test_step_is_a_function_of_seed_and_step(source: TrainingPool) -> None:
    one, again = draw_pairs(source, CONFIG, 3, 7), draw_pairs(source, CONFIG, 3, 7)
    for name, value in vars(one).items():
        assert np.array_equal(np.asarray(value), np.asarray(getattr(again, name))), name
    for other in (draw_pairs(source, CONFIG, 3, 8), draw_pairs(source, CONFIG, 4, 7)):
        assert not np.array_equal(one.anchor_B, other.anchor_B)


def test_drawing_does_not_touch_the_global_generators(source: TrainingPool) -> None:
    np.random.seed(5)
    torch.manual_seed(5)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index,union-attr]
    degrade_pairs(drawn(source, CONFIG)[1], source)
    assert np.array_equal(before[0], np.random.get_state()[1])  # type: ignore[index]
    assert torch.equal(before[1], torch.get_rng_state())


def test_pairs_are_cut_from_the_corpus_within_50_ms_of_each_other(data: TrainingSet, source: TrainingPool) -> None:
    offsets = []
    for step in range(40):
        draws, cuts = drawn(source, CONFIG, 0, step)
        for i in range(CONFIG.batch_pairs):
            track, positive = int(draws.track_B[i]), int(draws.positive_B[i])
            assert track in data.music.numbers("train")
            length = data.music.num_samples(track)
            whole = data.music.read(track, 0, length)
            anchor = find(whole, cuts.anchor_BT[i].numpy())
            assert anchor == draws.anchor_B[i]
            offsets.append(positive - anchor)
            # The positive with its context, silence where the track has not begun or is over.
            wanted = np.pad(whole, 20_000)[positive - source.context + 20_000 :][: cuts.music_BT.shape[1]]
            np.testing.assert_array_equal(cuts.music_BT[i].numpy(), wanted)
            assert 0 <= positive <= length - SEGMENT
    assert cuts.music_BT.shape == cuts.noise_BT.shape == (6, source.context + SEGMENT + DIRECT_AT)
    assert min(offsets) >= -800 and max(offsets) <= 800
    assert min(offsets) < -700 and max(offsets) > 700 and abs(np.mean(offsets)) < 120  # all of the range is used


def find(whole: np.ndarray, piece: np.ndarray) -> int:
    """Return where a piece lies in a wave, found by looking at every place."""
    starts = np.flatnonzero(whole[: len(whole) - len(piece) + 1] == piece[0])
    places = [int(s) for s in starts if np.array_equal(whole[s : s + len(piece)], piece)]
    assert len(places) == 1
    return places[0]


@pytest.mark.parametrize(("power", "within_25_ms"), [(1.0, 1 / 2), (0.5, 1 / 4), (0.25, 1 / 16), (2.0, 0.5**0.5)])
def test_offset_power_says_how_many_positives_are_how_near(
    source: TrainingPool, power: float, within_25_ms: float
) -> None:
    """Of distances 50 ms x u^p those with u < 0.5^(1/p) are below 25 ms."""
    pairs = 20_000
    draws = draw_pairs(source, replace(CONFIG, batch_pairs=pairs, offset_power=power), 0, 0)
    away = draws.positive_B - draws.anchor_B
    assert np.abs(away).max() == 800
    assert np.mean(np.abs(away) < 400) == pytest.approx(within_25_ms, abs=0.015)  # four standard errors
    assert np.mean(away > 0) == pytest.approx(np.mean(away < 0), abs=0.03)


def test_offset_power_moves_the_positives_alone(source: TrainingPool) -> None:
    plain, edgy = (draw_pairs(source, replace(CONFIG, offset_power=p), 3, 7) for p in (1.0, 0.0))
    assert set(np.abs(edgy.positive_B - edgy.anchor_B).tolist()) == {800}
    assert np.array_equal(np.sign(edgy.positive_B - edgy.anchor_B), np.sign(plain.positive_B - plain.anchor_B))
    for name in vars(plain):
        if name != "positive_B":
            assert np.array_equal(np.asarray(getattr(plain, name)), np.asarray(getattr(edgy, name))), name


def test_no_offset_means_the_same_moment(data: TrainingSet, source: TrainingPool) -> None:
    _, cuts = drawn(source, replace(CONFIG, offset_ms=0.0))
    here = slice(source.context, source.context + SEGMENT)
    assert torch.equal(cuts.anchor_BT, cuts.music_BT[:, here])


def test_noise_comes_from_the_training_side(data: TrainingSet, source: TrainingPool) -> None:
    sides = [np.tile(data.noise.read(n, 0, data.noise.num_samples(n)), 3).tobytes() for n in (0, 1)]
    for step in range(5):
        for row in drawn(source, CONFIG, 0, step)[1].noise_BT.numpy():
            assert any(row.tobytes() in side for side in sides)


def test_each_track_is_drawn_at_most_once_a_step_where_there_are_enough(source: TrainingPool) -> None:
    for step in range(10):
        assert len(set(draw_pairs(source, CONFIG, 0, step).track_B.tolist())) == 6
    _, many = drawn(source, replace(CONFIG, batch_pairs=20))
    assert many.anchor_BT.shape == (20, SEGMENT)
    two = draw_pairs(source, replace(CONFIG, segments_per_track=2), 0, 0).track_B.tolist()
    assert two[::2] == two[1::2] and len(set(two)) == 3


@pytest.mark.parametrize("segments_per_track", [2, 3])
def test_neighbours_are_distinct_multiples_of_their_distance_apart(
    source: TrainingPool, segments_per_track: int
) -> None:
    config = replace(
        CONFIG,
        segments_per_track=segments_per_track,
        neighbours_per_track=segments_per_track - 1,
        neighbour_ms=100.0,
        offset_ms=0.0,
    )
    seen: set[int] = set()
    for step in range(60):
        draws = draw_pairs(source, config, 0, step)
        for first in range(0, CONFIG.batch_pairs, segments_per_track):
            group = slice(first, first + segments_per_track)
            assert len(set(draws.track_B[group].tolist())) == 1
            away = (draws.positive_B[group] - draws.positive_B[first])[1:].tolist()
            assert all(samples % 1_600 == 0 and samples != 0 for samples in away), away
            assert len(set(away)) == len(away)
            seen |= {samples // 1_600 for samples in away}
    assert {-2, -1, 1, 2} <= seen and max(map(abs, seen)) <= segments_per_track


def test_kinds_of_degradation_follow_their_weights(source: TrainingPool) -> None:
    config = replace(CONFIG, batch_pairs=300, noise_only=2.0, reverb_only=1.0, noise_and_reverb=0.0)
    draws = draw_pairs(source, config, 0, 0)
    assert not (draws.has_noise_B & draws.has_room_B).any()
    assert (draws.has_noise_B | draws.has_room_B).all()
    assert float(draws.has_noise_B.mean()) == pytest.approx(2 / 3, abs=0.1)
    assert 0 <= float(draws.snr_db_B.min()) < 1 and 19 < float(draws.snr_db_B.max()) <= 20


def test_track_of_a_single_segment_can_be_drawn(data: TrainingSet) -> None:
    whole = load_pool(data, np.array([0]), CONFIG, 16_000, CPU)
    _, cuts = drawn(whole, CONFIG)
    assert data.music.num_samples(0) == 16_000
    np.testing.assert_array_equal(cuts.anchor_BT[0].numpy(), data.music.read(0, 0, 16_000))
    anchors, positives = degrade_pairs(cuts, whole)
    assert torch.isfinite(anchors).all() and torch.isfinite(positives).all()


def test_anchors_avoid_silence(tmp_path: Path, data: TrainingSet) -> None:
    half = np.concatenate([noise(0, 1.0), np.zeros(RATE_HZ)])
    music = corpus(tmp_path, "music", {"half": half}, {})
    quiet = load_pool(replace(data, music=music), music.numbers("train"), CONFIG, SEGMENT, CPU)
    draws, cuts = drawn(quiet, replace(CONFIG, batch_pairs=100))
    sound = cuts.anchor_BT.numpy().any(axis=1)
    assert sound.mean() > 0.95  # eight draws are made, of which each is silent three times in seven
    assert 40 < draws.redrawn < 130  # of 100 places 43, then 18, 8, 3 ... are silent


def test_what_is_missing_is_named(data: TrainingSet) -> None:
    none = np.zeros(0, np.int64)
    with pytest.raises(DataError, match="no usable music track"):
        load_pool(data, none, CONFIG, SEGMENT, CPU)
    with pytest.raises(DataError, match="no usable impulse response"):
        load_pool(replace(data, banks=()), data.music.numbers("train"), CONFIG, SEGMENT, CPU)


# Pairs: what is heard


def slow_positive(draws: Draws, cuts: Batch, source: TrainingPool, responses: list[np.ndarray], i: int) -> np.ndarray:
    """Return one positive by the definitions of evaluation.md, section 2, in float64."""
    context, length = source.context, SEGMENT
    music, hiss = (wave[i].numpy().astype(np.float64) / 32_768 for wave in (cuts.music_BT, cuts.noise_BT))
    if draws.has_room_B[i]:
        response = responses[int(draws.response_B[i])].astype(np.float64)
        music, hiss = (np.convolve(wave, response)[DIRECT_AT:] for wave in (music, hiss))
    music, hiss = music[context : context + length], hiss[context : context + length]
    mixture = music
    if draws.has_noise_B[i]:
        ratio = 10 ** (float(draws.snr_db_B[i]) / 10)
        mixture = music + hiss * math.sqrt(np.mean(music**2) / (np.mean(hiss**2) * ratio))
    return mixture / np.abs(mixture).max() * 10 ** (float(draws.gain_db_B[i]) / 20)


@pytest.mark.parametrize("kind", ["noise_only", "reverb_only", "noise_and_reverb", "all"])
def test_positives_are_noise_and_rooms_by_their_definition(data: TrainingSet, source: TrainingPool, kind: str) -> None:
    chosen = {n: 1.0 if kind in (n, "all") else 0.0 for n in ("noise_only", "reverb_only", "noise_and_reverb")}
    config = replace(CONFIG, batch_pairs=12, gain_db=(-20.0, 0.0), **chosen)  # type: ignore[arg-type]
    draws, cuts = drawn(source, config, 1, 2)
    anchors, positives = degrade_pairs(cuts, source)
    np.testing.assert_allclose(anchors.numpy(), cuts.anchor_BT.numpy() / 32_768, atol=0)
    bank = data.banks[0]
    responses = [bank.response(n)[: source.context] for n in bank.numbers("train")]
    assert len(bank.response(2)) > source.context  # one of them is cut
    for i in range(12):
        wanted = slow_positive(draws, cuts, source, responses, i)
        np.testing.assert_allclose(positives[i].numpy(), wanted, atol=1e-4)  # float32 transforms
    assert anchors.shape == positives.shape == (12, SEGMENT) and positives.dtype == torch.float32
    np.testing.assert_allclose(positives.abs().amax(dim=1), 10 ** (draws.gain_db_B / 20), rtol=1e-5)
    assert -20 <= draws.gain_db_B.min() < -10 < draws.gain_db_B.max() <= 0


def test_silent_music_or_noise_gives_no_nan(source: TrainingPool) -> None:
    _, cuts = drawn(source, replace(CONFIG, reverb_only=0.0))
    still = torch.zeros_like(cuts.music_BT)
    for silent in (replace(cuts, music_BT=still), replace(cuts, noise_BT=still),
                   replace(cuts, music_BT=still, noise_BT=still)):  # fmt: skip
        assert all(torch.isfinite(wave).all() for wave in degrade_pairs(silent, source))
    nowhere = torch.zeros(0, dtype=torch.int64)
    dry = replace(cuts, noise_BT=still, room_row=nowhere, response=nowhere)
    here = cuts.music_BT[:, source.context : source.context + SEGMENT].float()
    np.testing.assert_allclose(degrade_pairs(dry, source)[1], here / here.abs().amax(dim=1, keepdim=True), rtol=1e-5)


def test_what_workers_change_is_the_positive_before_it_is_degraded(source: TrainingPool) -> None:
    draws, plain = drawn(source, replace(CONFIG, reverb_only=0.0, noise_only=0.0, noise_and_reverb=0.0, clean=1.0))
    changed = cut_pairs(draws, source, CPU, lambda music, seeds: music // 2)
    assert torch.equal(changed.anchor_BT, plain.anchor_BT) and torch.equal(changed.noise_BT, plain.noise_BT)
    heard = slice(source.context, None)
    assert torch.equal(changed.music_BT[:, heard], plain.music_BT[:, heard] // 2)
    assert len(set(draws.transform_seed_B.tolist())) == CONFIG.batch_pairs


def test_workers_change_a_positive_from_its_beginning_on(source: TrainingPool) -> None:
    """A change of length must not move the segment: what came before it stays as it was."""
    _, plain = drawn(source, CONFIG)
    shifted = cut_pairs(draw_pairs(source, CONFIG, 0, 0), source, CPU, lambda music, seeds: music.roll(1, 1))
    assert torch.equal(shifted.music_BT[:, : source.context], plain.music_BT[:, : source.context])
    assert torch.equal(shifted.music_BT[:, source.context + 1 :], plain.music_BT[:, source.context : -1])


def test_neighbours_avoid_silence(tmp_path: Path, data: TrainingSet) -> None:
    """Music for a second, silence for a second: no neighbour begins where nothing is heard any more."""
    music = corpus(tmp_path, "music", {"half": np.concatenate([noise(0, 1.0), np.zeros(RATE_HZ)])}, {})
    quiet = load_pool(replace(data, music=music), music.numbers("train"), CONFIG, SEGMENT, CPU)
    config = replace(
        CONFIG, batch_pairs=100, segments_per_track=2, neighbours_per_track=1, neighbour_ms=250.0, offset_ms=0.0
    )
    draws = draw_pairs(quiet, config, 0, 0)
    away = draws.anchor_B[1::2] - draws.anchor_B[::2]
    near = np.isin(np.abs(away), (4_000, 8_000))
    assert near.mean() > 0.8 and quiet.is_audible(draws.track_B[1::2], draws.anchor_B[1::2])[near].all()


def test_tracks_too_short_for_several_segments_are_told(tmp_path: Path, data: TrainingSet) -> None:
    told: list[str] = []
    _warn_of_overlaps(made(data, CONFIG), replace(CONFIG, segments_per_track=5), told.append)
    assert len(told) == 1 and "1 of 6 training tracks" in told[0]  # 1 s; the next has 1.25 s, five segments
    _warn_of_overlaps(made(data, CONFIG), CONFIG, pytest.fail)


def test_several_pairs_of_a_moment_differ_in_their_degradation_alone(source: TrainingPool) -> None:
    draws, cuts = drawn(source, replace(CONFIG, pairs_per_moment=3, reverb_only=0.0, noise_and_reverb=0.0))
    for first in (0, 3):
        assert len(set(draws.anchor_B[first : first + 3].tolist())) == 1
        assert torch.equal(cuts.anchor_BT[first], cuts.anchor_BT[first + 2])
        assert len(set(draws.positive_B[first : first + 3].tolist())) > 1
    assert draws.track_B[0] != draws.track_B[3]


def test_share_of_a_batch_is_what_the_whole_batch_has_there(source: TrainingPool) -> None:
    draws, whole = drawn(source, CONFIG, 5, 6)
    part = cut_pairs(draws.rows(slice(2, 4)), source, CPU)
    for name in ("anchor_BT", "music_BT", "noise_BT", "noise_ratio_B1", "stripe_BC22"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[2:4]), name
    np.testing.assert_allclose(degrade_pairs(part, source)[1], degrade_pairs(whole, source)[1][2:4], atol=1e-6)


def test_sound_on_the_device_is_that_on_the_host(data: TrainingSet) -> None:
    tracks = data.music.numbers("train")[::-1].copy()
    host, device = HostSound(data.music), DeviceSound(data.music, tracks, CPU)
    draw = np.random.default_rng(0)
    track = draw.choice(tracks, 50)
    around = draw.integers(-30_000, data.music.lengths[track] + 20_000)
    inside = draw.integers(data.music.lengths[track])
    assert torch.equal(host.read_padded(track, around, 9_000), device.read_padded(track, around, 9_000))
    assert torch.equal(host.read_looped(track, inside, 70_000), device.read_looped(track, inside, 70_000))
    assert host.read_padded(track[:1], np.array([-5]), 5).tolist() == [[0] * 5]


def test_what_is_silent_is_told_by_the_blocks_inside_a_segment(tmp_path: Path, data: TrainingSet) -> None:
    wave = np.zeros(3 * RATE_HZ)
    wave[20_000:20_160] = 0.5  # one block, the 125th
    music = corpus(tmp_path, "music", {"a": noise(1, 2.0), "click": wave}, {})
    some = load_pool(replace(data, music=music), music.numbers("train"), CONFIG, SEGMENT, CPU)
    starts = np.array([0, 15_999, 16_160, 20_000, 20_001, 24_000])
    heard = some.is_audible(np.ones(6, np.int64), starts)
    assert heard.tolist() == [False, False, True, True, False, False]
    assert some.is_audible(np.zeros(3, np.int64), np.array([0, 11, 27_999])).all()


# Masks


def stripes(count: int, mask_count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, mask_count, 2, 2, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60)
@given(st.integers(1, 3), st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.3, 0.9]), st.integers(0, 10**6))
def test_masks_hide_whole_stripes_of_limited_width(batch: int, count: int, fraction: float, seed: int) -> None:
    config = replace(CONFIG, mask_count=count, mask_fraction=fraction)
    patch = torch.randn(batch, 1, 20, 30, generator=torch.Generator().manual_seed(seed))
    masked = mask_patches(patch, stripes(batch, count, seed), config)
    assert masked.shape == patch.shape
    for before, after in zip(patch[:, 0], masked[:, 0], strict=True):
        hidden = before != after
        assert torch.allclose(after[hidden], before.mean(), atol=1e-5)
        rows, columns = hidden.all(dim=1), hidden.all(dim=0)
        assert torch.equal(hidden, rows[:, None] | columns[None, :])
        assert int(rows.sum()) <= count * math.ceil(fraction * 20 - 1e-6)
        assert int(columns.sum()) <= count * math.ceil(fraction * 30 - 1e-6)


def test_stripe_by_hand() -> None:
    # Bands: half of 0.4 of 10 is 2 wide, at a quarter of the 8 that are left: 2 and 3. Frames: nothing wide.
    stripe = torch.tensor([[[[0.5, 0.25], [0.0, 0.7]]]])
    masked = mask_patches(torch.arange(50.0).view(1, 1, 10, 5), stripe, replace(CONFIG, mask_fraction=0.4))
    assert (masked[0, 0] == 24.5).all(dim=1).nonzero().flatten().tolist() == [2, 3]
    assert (masked[0, 0] != torch.arange(50.0).view(10, 5)).sum() == 10


def test_masks_are_half_the_limit_wide_on_average_and_vary() -> None:
    config = replace(CONFIG, mask_count=1, mask_fraction=0.3)
    patch = torch.randn(3_000, 1, 20, 30)
    hidden = (mask_patches(patch, stripes(3_000, 1), config) != patch)[:, 0]
    rows, columns = hidden.all(dim=2).sum(dim=1).float(), hidden.all(dim=1).sum(dim=1).float()
    # Uniform from 0 to 6 of 20 bands and 0 to 9 of 30 frames; the bounds are three standard errors.
    assert float(rows.mean()) == pytest.approx(3.0, abs=0.12)
    assert float(columns.mean()) == pytest.approx(4.5, abs=0.18)
    assert set(rows.tolist()) == set(range(7))  # 0 to 30 % of 20 bands


def test_no_mask_leaves_the_patch_as_it_is() -> None:
    patch = torch.randn(2, 1, 8, 8)
    assert torch.equal(mask_patches(patch, stripes(2, 0), replace(CONFIG, mask_count=0)), patch)


def test_stripes_differ_between_pairs_steps_and_seeds(source: TrainingPool) -> None:
    seen = {draw_pairs(source, CONFIG, *at).stripe_BC22[i].tobytes() for at in ((0, 0), (0, 1), (1, 0)) for i in (0, 1)}
    assert len(seen) == 6


# The loss


def slow_nt_xent(anchors: np.ndarray, positives: np.ndarray, temperature: float) -> float:
    both = np.concatenate([anchors, positives]).astype(np.float64)
    n = len(anchors)
    total = 0.0
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        others = sum(math.exp(both[i] @ both[k] / temperature) for k in range(2 * n) if k != i)
        total -= math.log(math.exp(both[i] @ both[partner] / temperature) / others)
    return total / (2 * n)


@pytest.mark.parametrize("pairs", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_loss_is_the_double_loop_of_its_definition(pairs: int, temperature: float) -> None:
    draw = torch.Generator().manual_seed(pairs)
    anchors, positives = functional.normalize(torch.randn(2, pairs, 8, generator=draw), dim=2)
    wanted = slow_nt_xent(anchors.numpy(), positives.numpy(), temperature)
    assert float(nt_xent(anchors, positives, temperature)) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def test_loss_of_two_pairs_by_hand() -> None:
    # Pairs on two axes: each of the four sees its partner at 1 and the two others at 0.
    axes = torch.eye(2)
    assert float(nt_xent(axes, axes, 1.0)) == pytest.approx(-math.log(math.e / (math.e + 2)), rel=1e-6)
    # Crossed pairs: the partner is at 0, one other at 1, one at 0.
    assert float(nt_xent(axes, axes.flip(0), 1.0)) == pytest.approx(-math.log(1 / (math.e + 2)), rel=1e-6)


def test_loss_does_not_depend_on_the_order_of_pairs_or_sides() -> None:
    anchors, positives = functional.normalize(torch.randn(2, 6, 4), dim=2)
    loss = float(nt_xent(anchors, positives, 0.1))
    assert float(nt_xent(positives, anchors, 0.1)) == pytest.approx(loss, rel=1e-5)
    order = torch.randperm(6)
    assert float(nt_xent(anchors[order], positives[order], 0.1)) == pytest.approx(loss, rel=1e-5)


def test_loss_at_a_low_temperature_stays_finite() -> None:
    vectors = functional.normalize(torch.randn(4, 8), dim=1)
    assert math.isfinite(float(nt_xent(vectors, vectors, 0.001)))
    assert math.isfinite(float(nt_xent(vectors.bfloat16(), -vectors.bfloat16(), 0.001)))


# Schedules


def test_cosine_by_hand() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, lr=1.0, lr_min=0.2)
    rates = {step: learning_rate(config, step) for step in (0, 4, 9, 10, 60, 110)}
    assert rates == pytest.approx({0: 0.1, 4: 0.5, 9: 1.0, 10: 1.0, 60: 0.6, 110: 0.2})
    later = [learning_rate(config, step) for step in range(10, 111)]
    assert later == sorted(later, reverse=True)


def test_constant_by_hand() -> None:
    config = TrainConfig(steps=100, warmup_steps=4, lr=0.8, schedule="constant")
    assert [learning_rate(config, s) for s in (0, 1, 3, 4, 99)] == pytest.approx([0.2, 0.4, 0.8, 0.8, 0.8])


def test_cyclic_is_a_triangle_of_80_in_150_epochs() -> None:
    config = TrainConfig(steps=1500, lr=1.0, lr_min=0.01, schedule="cyclic")
    found = [learning_rate(config, step) for step in (0, 200, 400, 600, 800, 1200, 1499)]
    assert found == pytest.approx([0.01, 0.505, 1.0, 0.505, 0.01, 1.0, 0.01 + 0.99 * (1 - 299 / 400)])


@given(st.sampled_from(["cosine", "cyclic", "constant"]), st.integers(0, 50), st.integers(1, 300), st.floats(0, 1))
def test_rate_stays_between_its_bounds(schedule: Any, warmup: int, steps: int, share: float) -> None:
    config = TrainConfig(steps=steps, warmup_steps=warmup, lr=0.5, lr_min=0.5 * share, schedule=schedule)
    rates = [learning_rate(config, step) for step in range(steps)]
    assert all(0 <= rate <= 0.5 + 1e-12 for rate in rates)
    assert all(rate >= config.lr_min - 1e-12 for rate in rates[warmup:])


# Checkpoints


def test_checkpoint_comes_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    tensors = {
        "w": torch.randn(3, 4).T,  # not contiguous
        "half": torch.randn(5).bfloat16(),
        "count": torch.tensor(7),
        "nothing": torch.zeros(0),
    }
    state = {"step": 3, "history": [[1, {"loss": 0.1}]], "name": "\u00e9"}
    checkpoint.save(path, tensors, state)
    found, told = checkpoint.load(path)
    assert told == state and found.keys() == tensors.keys()
    assert all(torch.equal(found[n], tensors[n]) and found[n].dtype == tensors[n].dtype for n in tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_failed_save_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"w": torch.ones(2)}, {"step": 1})

    def killed(*_args: object, **_names: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(path, {"w": torch.zeros(2)}, {"step": 2})
    assert checkpoint.load(path)[1] == {"step": 1}


def test_checkpoint_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises((StoreError, OSError)):  # the store makes a StoreError of an OSError
        checkpoint.save(tmp_path / "gone" / "c.safetensors", {"w": torch.ones(2)}, {})


def broken_files(good: bytes) -> dict[str, bytes]:
    size = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + size])
    header["__metadata__"].pop("state")
    bare = json.dumps(header).encode()
    return {
        "empty": b"",
        "cut in the header": good[:20],
        "cut in the weights": good[:-4],
        "longer": good + b"x",
        "huge header": b"\xff" * 8 + good[8:],
        "no header": b"\x00" * 8 + good[8:],
        "a pickle": b"\x80\x04\x95" + good,
        "of another program": len(bare).to_bytes(8, "little") + bare + good[8 + size :],
    }


def test_broken_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"w": torch.ones(100)}, {"step": 1})
    for how, content in broken_files(path.read_bytes()).items():
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"c\.safetensors cannot be read"):
            checkpoint.load(path)
            pytest.fail(how)


def test_missing_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    for place in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(StoreError, match="cannot be read"):
            checkpoint.load(place)


@pytest.mark.parametrize("wrong", [torch.nn.Linear(3, 2), torch.nn.Linear(2, 3, bias=False), torch.nn.BatchNorm1d(3)])
def test_weights_of_another_architecture_are_refused(tmp_path: Path, wrong: torch.nn.Module) -> None:
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, wrong.state_dict(), {})
    wanted = torch.nn.Linear(2, 3)
    before = wanted.weight.detach().clone()
    with pytest.raises(StoreError, match="another architecture: "):
        checkpoint.load_weights(wanted, path)
    assert torch.equal(wanted.weight, before)


def test_optimiser_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    def stepped(layer: torch.nn.Module, optimiser: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            optimiser.zero_grad()
            (layer(torch.full((1, 3), float(step + 1))) ** 2).sum().backward()
            optimiser.step()

    torch.manual_seed(0)
    whole = torch.nn.Linear(3, 2)
    parted = torch.nn.Linear(3, 2)
    parted.load_state_dict(whole.state_dict())
    stepped(whole, torch.optim.Adam(whole.parameters(), lr=0.1), range(6))
    first = torch.optim.Adam(parted.parameters(), lr=0.1)
    stepped(parted, first, range(3))
    checkpoint.save(tmp_path / "o", checkpoint.optimiser_tensors(first), {})
    second = torch.optim.Adam(parted.parameters(), lr=0.1)
    checkpoint.restore_optimiser(second, checkpoint.load(tmp_path / "o")[0])
    stepped(parted, second, range(3, 6))
    assert torch.equal(whole.weight, parted.weight) and torch.equal(whole.bias, parted.bias)


# Training


class Toy(torch.nn.Module):
    """A small encoder of a quarter second: two layers on the levels of 10 x 10 stretches of samples."""

    rate_hz, segment_s, dim = RATE_HZ, SEGMENT / RATE_HZ, 8

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(100, 32)
        self.norm = torch.nn.BatchNorm1d(32)  # so that a buffer must come back too
        self.last = torch.nn.Linear(32, 8)

    def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
        return wave_BT.reshape(len(wave_BT), 1, 10, 10, 40).abs().mean(-1).clamp_min(1e-6).log()

    def embed(self, patch: torch.Tensor) -> torch.Tensor:
        hidden = functional.relu(self.norm(self.first(patch.flatten(1))))
        return functional.normalize(self.last(hidden), dim=1)

    def forward(self, wave_BT: torch.Tensor) -> torch.Tensor:
        return self.embed(self.features(wave_BT))


def toy() -> Toy:
    torch.manual_seed(0)
    return Toy()


def trained(
    folder: Path,
    data: TrainingSet,
    train: TrainConfig = CONFIG,
    encoder: torch.nn.Module | None = None,
    watch: Callable[[dict[str, float], int], None] = lambda values, step: None,
    progress: Callable[[str, int, int], None] = no_progress,
) -> None:
    folder.mkdir(exist_ok=True)
    config = RunConfig("toy", None, None, seed=5, train=train)
    fit(folder, encoder or toy(), config, data, Store(folder.parent), CPU, watch, progress, warn=pytest.fail)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: TrainingSet) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    trained(folder, data)
    return folder


def test_training_leaves_weights_and_curves_and_nothing_else(whole: Path) -> None:
    assert sorted(path.name for path in whole.iterdir()) == sorted([WEIGHTS, HISTORY])
    curve = load_history(whole)
    losses = [(step, values["train/loss"]) for step, values in curve if "train/loss" in values]
    validations = [(step, values["val/top1_50ms"]) for step, values in curve if "val/top1_50ms" in values]
    assert [step for step, _ in validations] == [5, 10, 12]
    assert losses and all(math.isfinite(loss) for _, loss in losses)
    state = checkpoint.load_weights(toy(), whole / WEIGHTS)
    best = max(value for _, value in validations)
    first = next(step for step, value in validations if value == best)
    assert (state["step"], state["val_top1"]) == (first, best)


def test_watch_sees_the_curves_as_they_come(tmp_path: Path, data: TrainingSet) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    trained(tmp_path / "w", data, watch=lambda values, step: seen.append((step, values)))
    assert seen == load_history(tmp_path / "w")


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [0, 1, 4, 5, 6, 9, 10, 11])
def test_killed_training_ends_with_the_same_bits(tmp_path: Path, data: TrainingSet, whole: Path, at: int) -> None:
    def kill(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == at and total == CONFIG.steps:
            raise KilledError

    folder = tmp_path / "killed"
    with pytest.raises(KilledError):
        trained(folder, data, progress=kill)
    trained(folder, data)
    assert (folder / HISTORY).read_text() == (whole / HISTORY).read_text()
    found, wanted = checkpoint.load(folder / WEIGHTS), checkpoint.load(whole / WEIGHTS)
    assert found[1] == wanted[1]
    assert all(torch.equal(found[0][name], tensor) for name, tensor in wanted[0].items())


def test_training_killed_while_a_validation_is_shown_ends_with_the_same_bits(
    tmp_path: Path, data: TrainingSet, whole: Path
) -> None:
    def kill(values: dict[str, float], step: int) -> None:
        if "val/top1_50ms" in values and step == 10:
            raise KilledError

    folder = tmp_path / "killed"
    for _ in range(2):  # killed at the same place twice
        with pytest.raises(KilledError):
            trained(folder, data, watch=kill)
    trained(folder, data)
    assert (folder / HISTORY).read_text() == (whole / HISTORY).read_text()
    assert torch.equal(
        checkpoint.load(folder / WEIGHTS)[0]["last.weight"], checkpoint.load(whole / WEIGHTS)[0]["last.weight"]
    )


def test_damaged_resume_checkpoint_is_named(tmp_path: Path, data: TrainingSet) -> None:
    (tmp_path / RESUME).write_bytes(b"half a file")
    with pytest.raises(StoreError, match=RESUME):
        trained(tmp_path, data)


def test_another_seed_trains_another_encoder(tmp_path: Path, data: TrainingSet, whole: Path) -> None:
    other = RunConfig("toy", None, None, seed=6, train=CONFIG)
    fit(
        tmp_path,
        toy(),
        other,
        data,
        Store(tmp_path.parent),
        CPU,
        lambda values, step: None,
        no_progress,
        warn=pytest.fail,
    )
    one, other = (checkpoint.load(f / WEIGHTS)[0]["last.weight"] for f in (whole, tmp_path))
    assert not torch.equal(one, other)


def test_training_lowers_the_loss(tmp_path: Path, data: TrainingSet) -> None:
    longer = replace(CONFIG, steps=61, lr=1e-2, val_every_steps=61, checkpoint_every_steps=61)
    trained(tmp_path, data, longer)
    losses = [values["train/loss"] for _, values in load_history(tmp_path) if "train/loss" in values]
    assert np.mean(losses[-3:]) < 0.8 * losses[0]


def test_no_step_keeps_the_untrained_encoder(tmp_path: Path, data: TrainingSet) -> None:
    trained(tmp_path, data, replace(CONFIG, steps=0))
    tensors, state = checkpoint.load(tmp_path / WEIGHTS)
    assert state["step"] == 0 and torch.equal(tensors["last.weight"], toy().last.weight)
    assert [step for step, _ in load_history(tmp_path)] == [0]


def test_encoder_without_weights_to_learn_is_kept_as_it_is(tmp_path: Path, data: TrainingSet) -> None:
    control = random_projection.build(random_projection.Config(dim=8))
    trained(tmp_path, data, encoder=control)
    assert torch.equal(checkpoint.load(tmp_path / WEIGHTS)[0]["matrix"], control.matrix)


class Poisoned(Toy):
    """Its vectors, or only their gradients, are NaN from the training step `at` on."""

    def __init__(self, at: int, gradient_only: bool = False) -> None:
        super().__init__()
        self.at, self.gradient_only, self.steps = at, gradient_only, 0

    def embed(self, patch: torch.Tensor) -> torch.Tensor:
        vectors = super().embed(patch)
        if not self.training:
            return vectors
        self.steps += 1
        if self.steps - 1 < self.at:
            return vectors
        if self.gradient_only:
            vectors.register_hook(lambda gradient: gradient * math.nan)
            return vectors
        return vectors * math.nan


@pytest.mark.parametrize("at", [0, 3, 4, 10, 11])
def test_loss_that_is_not_a_number_stops_the_training_and_names_step_and_seed(
    tmp_path: Path, data: TrainingSet, at: int
) -> None:
    torch.manual_seed(0)
    with pytest.raises(TrainingError, match=rf"nan at step {at} \(seed 5\)"):
        trained(tmp_path, data, encoder=Poisoned(at))
    assert_no_bad_weights(tmp_path)


@pytest.mark.parametrize("at", [3, 4, 9, 11])
def test_gradient_that_is_not_a_number_never_reaches_a_checkpoint(tmp_path: Path, data: TrainingSet, at: int) -> None:
    torch.manual_seed(0)
    with pytest.raises(TrainingError, match=r"seed 5"):
        trained(tmp_path, data, encoder=Poisoned(at, gradient_only=True))
    assert_no_bad_weights(tmp_path)


def assert_no_bad_weights(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        for name, tensor in checkpoint.load(path)[0].items():
            assert torch.isfinite(tensor.float()).all(), f"{path.name}: {name}"


def test_message_names_the_last_good_checkpoint(tmp_path: Path, data: TrainingSet) -> None:
    torch.manual_seed(0)
    with pytest.raises(TrainingError, match="last good checkpoint is that of step 8"):
        trained(tmp_path, data, encoder=Poisoned(9))
    assert checkpoint.load(tmp_path / RESUME)[1]["done"] == 8


@pytest.mark.parametrize("tracks", [0, 1])
def test_too_few_tracks_are_refused(tmp_path: Path, data: TrainingSet, tracks: int) -> None:
    waves = {"t": noise(0, 2.0)} | {f"m{i}": noise(i + 1, 2.0) for i in range(tracks)}
    few = corpus(tmp_path, "few", waves, {"t": "test"})
    with pytest.raises(DataError, match=f"at least 2 usable tracks, got {tracks}"):
        trained(tmp_path / "w", replace(data, music=few))


def test_tracks_are_held_out_where_there_is_no_validation_side(tmp_path: Path, data: TrainingSet) -> None:
    some = corpus(tmp_path, "some", {f"m{i}": noise(i, 1.5) for i in range(3)}, {})
    train, val = split_tracks(some)
    assert (train.tolist(), val.tolist()) == ([0, 1], [2])
    assert [side.tolist() for side in split_tracks(data.music)] == [[0, 1, 2, 3, 4, 5], [6]]


def test_training_never_hears_the_test_side(data: TrainingSet) -> None:
    assert data.music.numbers("test").tolist() == [7]
    shown = made(data, CONFIG)
    assert 7 not in shown.tracks.tolist() and 2 not in shown.noises.tolist()


def test_key_of_what_is_trained_on_knows_the_training_side_alone(tmp_path: Path, data: TrainingSet) -> None:
    waves = {"a": noise(0, 1.0), "b": noise(1, 1.0), "t": noise(2, 1.0)}
    base = replace(data, music=corpus(tmp_path, "base", waves, {"t": "test"}))
    tested = replace(data, music=corpus(tmp_path, "tested", waves | {"t": noise(9, 2.0)}, {"t": "test"}))
    heard = replace(data, music=corpus(tmp_path, "heard", waves | {"b": noise(9, 2.0)}, {"t": "test"}))
    moved = replace(data, music=corpus(tmp_path, "moved", waves, {"t": "test", "b": "val"}))
    rooms = replace(data, banks=(prepare_rooms(Store(tmp_path), "toy", Rooms((0.05,)), no_progress),))
    unseen = (*data.banks, prepare_rooms(Store(tmp_path), "toy", Rooms((0.06,), "test"), no_progress))
    assert base.digest == tested.digest != heard.digest
    assert len({data.digest, base.digest, heard.digest, moved.digest, rooms.digest}) == 5
    assert made(replace(data, banks=unseen), CONFIG).spectra_RF.shape == made(data, CONFIG).spectra_RF.shape


# Validation


def test_validation_is_the_same_for_every_seed_and_finds_clean_segments(data: TrainingSet) -> None:
    task, again = (build_validation(data, data.music.numbers("val"), SEGMENT, 8) for _ in range(2))
    assert np.array_equal(task.query_QT, again.query_QT)
    assert task.query_QT.shape == (8, SEGMENT) and set(task.track_Q.tolist()) == {6}
    segment_NT = cut_segments(task.waves[0], SEGMENT, 1600)
    assert len(task.waves) == 1 and len(segment_NT) == len(task.start_N) == len(task.track_N)
    for segment_T, start in zip(segment_NT, task.start_N, strict=True):
        assert np.array_equal(segment_T, data.music.read(6, int(start), SEGMENT))
    assert task.start_N.tolist() == list(range(0, data.music.num_samples(6) - SEGMENT + 1, 1600))
    exact = replace(task, query_QT=segment_NT[:3] / np.float32(32_768), track_Q=task.track_N[:3])
    embedder = Embedder(toy().eval(), CPU, "fp32", "")
    assert top1(replace(exact, start_Q=task.start_N[:3]), embedder) == 1.0
    assert top1(replace(exact, start_Q=task.start_N[:3] + 800), embedder) == 1.0
    assert top1(replace(exact, start_Q=task.start_N[:3] + 801), embedder) == 0.0
    assert top1(replace(exact, start_Q=task.start_N[:3], track_Q=exact.track_Q + 1), embedder) == 0.0
