import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.align.aligners import deeplearning
from bench.align.contract import Pair
from bench.align.pairs import Keypoints
from bench.errors import ConfigError, DataError
from bench.train import checkpoint
from bench.values import RATE_HZ, no_progress

SOUNDS = 8
HOP_S = 0.1


@dataclass
class NumberEmbedder:
    """Reads the numbers that `scene` writes into waves, one per tenth of a second, and returns them as unit vectors."""

    dim: int = SOUNDS
    segment_s: float = 1.0

    def __call__(self, pair: Pair, hop_s: float) -> tuple[np.ndarray, np.ndarray]:
        vectors = []
        for wave in (pair.wave0_T, pair.wave1_T):
            numbers = wave[: max(0, len(wave) - RATE_HZ + 1) : round(hop_s * RATE_HZ)].astype(int)
            vectors.append(np.eye(self.dim, dtype=np.float32)[numbers])
        return vectors[0], vectors[1]


def scene(seconds: float, lag_s: float, seed: int) -> Pair:
    """Return a pair whose sounds last 0.3 s each; they are later in channel 1 by the lag."""
    draw = np.random.default_rng(seed)
    numbers = np.repeat(draw.integers(SOUNDS, size=round(seconds / 0.3) + 20), 3).astype(np.float32)
    wave = np.repeat(numbers, RATE_HZ // 10)
    begin, size, lag = 2 * RATE_HZ, round(seconds * RATE_HZ), round(lag_s * RATE_HZ)
    return Pair(f"scene {seed}", wave[begin:][:size], wave[begin - lag :][:size], f"{seed}", 1.0)


def labelled(of: Pair, lag_s: float) -> tuple[Pair, Keypoints]:
    return of, Keypoints(of.keypoints, (of.keypoints + lag_s).clip(0, of.durations_s[1]))


def trained(config: deeplearning.Config, seed: int = 0) -> deeplearning.DeepLearning:
    lags = (0.0, 0.5, -0.3)
    pairs = [labelled(scene(40.0, lag_s, i), lag_s) for i, lag_s in enumerate(lags)]
    return deeplearning.train(config, pairs, NumberEmbedder(), seed, no_progress)


QUICK = deeplearning.Config(epochs=1, hidden=8)


def answering(logit: float) -> deeplearning.DeepLearning:
    """Return an aligner whose classifier always says the same."""
    classifier = deeplearning.Classifier(SOUNDS, 4)
    with torch.no_grad():
        classifier.last.weight.zero_()
        classifier.last.bias.fill_(logit)
    return deeplearning.DeepLearning(classifier, HOP_S)


def test_the_loss_weights_right_pairs_by_how_many_wrong_ones_there_are() -> None:
    # At logits of 0 every term is ln 2: 3 right ones of weight 2 and 6 wrong ones, over 9.
    assert deeplearning.pairwise_loss(torch.zeros(3, 3)).item() == pytest.approx(12 / 9 * math.log(2))
    logit = torch.tensor([[2.0, -1.0], [0.5, -3.0]])
    terms = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(0.5)), math.log1p(math.exp(3))]
    assert deeplearning.pairwise_loss(logit).item() == pytest.approx(sum(terms) / 4)


def test_all_pairs_at_once_are_the_layers_over_both_embeddings_one_after_the_other() -> None:
    classifier = deeplearning.Classifier(5, 7)
    one, other = torch.randn(2, 4, 5)
    found = classifier(one[:, None], other[None])
    first = torch.cat([classifier.of_channel0.weight, classifier.of_channel1.weight], dim=1)
    for i in range(4):
        for j in range(4):
            hidden = torch.relu(first @ torch.cat([one[i], other[j]]) + classifier.of_channel0.bias)
            hidden = torch.relu(classifier.middle.weight @ hidden + classifier.middle.bias)
            slow = classifier.last.weight @ hidden + classifier.last.bias
            assert found[i, j].item() == pytest.approx(slow.item(), abs=1e-5)


def test_a_trained_one_finds_lags_of_both_signs_as_well_as_its_grid_can() -> None:
    aligner = trained(deeplearning.Config(epochs=40, hidden=32, lr=1e-2, batch=32))
    for lag_s in (1 / 3, -1 / 3):
        found = aligner.align(scene(40.0, round(lag_s, 1), 9), NumberEmbedder(), no_progress)
        # Offsets are 0.22 s apart and sounds last 0.3 s: the line beside the best is as good, now and then.
        lag_K = found.time1_K - found.time0_K
        assert np.sign(lag_K[20]) == np.sign(lag_s) and np.abs(lag_K[1:-1] - lag_s).max() < 0.3
        assert found.confidence_K[0] > 0.4
    assert aligner.align(unrelated(), NumberEmbedder(), no_progress).confidence_K[0] < 0.25


def unrelated() -> Pair:
    one, other = scene(40.0, 0.0, 20), scene(40.0, 0.0, 21)
    return Pair("unrelated", one.wave0_T, other.wave0_T, "unrelated", 1.0)


def test_the_same_seed_gives_the_same_weights() -> None:
    one, same, other = (trained(QUICK, seed).classifier.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["last.weight"], other["last.weight"])


def test_training_moves_the_weights_and_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    short, longer = trained(QUICK), trained(deeplearning.Config(epochs=3, hidden=8))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not torch.equal(short.classifier.last.weight, longer.classifier.last.weight)


def test_weights_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    aligner, path = trained(QUICK), tmp_path / "weights.safetensors"
    deeplearning.save(aligner, path)
    read = deeplearning.build(deeplearning.Config(weights=str(path)))
    assert read.hop_s == HOP_S
    of = scene(20.0, 0.3, 5)
    one, other = (a.align(of, NumberEmbedder(), no_progress) for a in (aligner, read))
    np.testing.assert_array_equal(one.time1_K, other.time1_K)
    assert all(
        torch.equal(kept, read.classifier.state_dict()[name]) for name, kept in aligner.classifier.state_dict().items()
    )


def test_without_weights_it_says_that_it_has_to_be_trained() -> None:
    with pytest.raises(ConfigError, match="has to be trained"):
        deeplearning.build(deeplearning.Config())


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    checkpoint.save(path, {"weight": torch.zeros(2)}, {"step": 3})
    with pytest.raises(ConfigError, match="no weights of the aligner"):
        deeplearning.build(deeplearning.Config(weights=str(path)))


def test_embeddings_of_another_encoder_are_refused() -> None:
    with pytest.raises(ConfigError, match="embeddings of 8 numbers, got 11"):
        answering(1.0).align(scene(20.0, 0.0, 0), NumberEmbedder(dim=11), no_progress)


def test_where_all_is_judged_right_the_first_of_the_fullest_candidates_is_taken() -> None:
    of = scene(20.0, 0.0, 0)
    found = answering(1.0).align(of, NumberEmbedder(), no_progress)
    time1 = deeplearning.candidates(of.keypoints, 20.0, 1.0)
    usable = deeplearning.usable_mask(time1) & (np.rint(time1 / HOP_S) <= 190) & (np.rint(of.keypoints / HOP_S) <= 190)
    np.testing.assert_array_equal(found.time1_K, time1[usable.sum(axis=1).argmax()])
    assert found.confidence_K.max() == 0  # nothing stands out


def test_where_nothing_is_judged_right_there_is_no_lag_and_no_confidence() -> None:
    found = answering(-1.0).align(scene(20.0, 0.3, 0), NumberEmbedder(), no_progress)
    np.testing.assert_array_equal(found.time1_K, found.time0_K)
    assert found.confidence_K.max() == 0


@pytest.mark.parametrize(("seconds0", "seconds1"), [(0.0, 0.0), (0.5, 0.5), (20.0, 0.5), (1.0, 1.0), (3.0, 20.0)])
def test_recordings_that_are_too_short_have_an_answer(seconds0: float, seconds1: float) -> None:
    of = scene(20.0, 0.0, 0)
    cut = Pair("cut", of.wave0_T[: int(seconds0 * RATE_HZ)], of.wave1_T[: int(seconds1 * RATE_HZ)], "cut", 1.0)
    found = answering(1.0).align(cut, NumberEmbedder(), no_progress)
    assert found.confidence_K.max() <= 0.25 and np.abs(found.time1_K - found.time0_K).max() <= 1


def test_pairs_too_short_to_learn_from_are_refused() -> None:
    with pytest.raises(DataError, match="0 keypoints to learn from"):
        deeplearning.train(QUICK, [labelled(scene(1.9, 0.0, 0), 0.0)], NumberEmbedder(), 0, no_progress)


@pytest.mark.parametrize("wrong", [{"batch": 1}, {"epochs": 0}, {"hop_s": 0.0}, {"lr": 0.0}, {"swap": 1.5}])
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        deeplearning.Config(**wrong)  # type: ignore[arg-type]
