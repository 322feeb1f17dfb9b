"""The challenge's learned baseline of 2025: a classifier of two embeddings chooses among the candidate lines.

It hears a second of either channel and says whether they are the same moment: both embeddings, one after the other,
go through 100, 100 and 1 neurons. Each pair of moments of a batch is an example, B of B^2 of them right. A candidate's
score is the number of its keypoints at which the answer is yes.

It has to be trained on annotated pairs, a set at a time: `train`, then `save`, and `weights` names the file.

DEVIATION: the embeddings are those of any encoder of the suite, of whole segments at every `hop_s`, so that moments are
rounded to the hop. In the baseline they are BEATs' (AudioSet, 768 numbers, the mean of 1 s) of any moment; those
weights cannot be had here. Encoders of the suite hear 1 s or nearly so.
DEVIATION: where no candidate has two keypoints and a yes, the answer is no lag without confidence, not the first line.
Source: the challenge's code, 2025. Its text says one hidden layer, its code has two. What is learned from a keypoint,
2 s from it on (not stated whether from or around it), is cut to a second at random, both channels alike.

Shape legend: B batch, D dimensions of an embedding, H hidden, N vectors, C candidates, K keypoints, M moments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.align.aligners.nosync import build_identity_map
from bench.align.baseline_grid import candidates, mean_prominence, usable_mask
from bench.align.contract import Pair, PairEmbedder, Seconds, TimeMap
from bench.align.pairs import Keypoints
from bench.errors import ConfigError, DataError
from bench.settings import require
from bench.train import checkpoint
from bench.values import Floats, Ints, Progress

NEEDS_ENCODER = True
CITE = "BioDCASE challenge 2025, Task 1, baseline deeplearning"
LICENSE = "MIT"
SOURCE = "own writing of the published algorithm"

CONTEXT_S = 1.0  # by which a crop may begin after its keypoint
FEWEST = 2  # keypoints that a candidate must have

Labelled = tuple[Pair, Keypoints]
"""A pair and what was annotated of it."""


@dataclass(frozen=True)
class Config:
    """Settings of the classifier and of its training."""

    weights: str = ""
    """A file that `save` wrote; empty trains on the split `train`.

    The weights remember `hop_s` and `hidden`: the values here are not used with them.
    """

    hop_s: float = 0.1
    """Time from one embedding to the next, in s, above 0."""

    hidden: int = 100
    """Neurons of each of the two hidden layers, at least 1."""

    epochs: int = 25
    """Passes through the annotated moments, at least 1."""

    batch: int = 64
    """Pairs of moments in a batch, at least 2: each is told from the others."""

    lr: float = 1e-4
    """Learning rate of Adam, above 0."""

    swap: float = 0.5
    """Probability that the two channels of an example change places, between 0 and 1."""

    def __post_init__(self) -> None:
        require(self.hop_s > 0, "hop_s must be > 0", self.hop_s)
        require(self.hidden > 0, "hidden must be > 0", self.hidden)
        require(self.epochs > 0, "epochs must be > 0", self.epochs)
        require(self.batch > 1, "batch must be > 1: a moment is told from others of its batch", self.batch)
        require(self.lr > 0, "lr must be > 0", self.lr)
        require(0 <= self.swap <= 1, "swap is a probability: between 0 and 1", self.swap)


def build(config: Config) -> DeepLearning:
    """Return the aligner with the weights of `config.weights`.

    Raises: ConfigError if none are named, StoreError if they cannot be read.
    """
    if not config.weights:
        raise ConfigError(
            "the aligner deeplearning has to be trained on annotated pairs before it can align; train it, and give the "
            "file of its weights as its setting `weights`"
        )
    return load(Path(config.weights))


class Classifier(nn.Module):
    """Says of two embeddings whether they are of the same moment."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # The first layer of both embeddings, one after the other, is a sum of two: B^2 pairs cost 2 B products.
        self.of_channel0 = nn.Linear(dim, hidden)
        self.of_channel1 = nn.Linear(dim, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)
        for layer in (self.of_channel0, self.of_channel1):
            # As one layer of 2 D inputs would begin: each part alone would begin sqrt(2) too wide.
            nn.init.uniform_(layer.weight, -((2 * dim) ** -0.5), (2 * dim) ** -0.5)
        nn.init.uniform_(self.of_channel0.bias, -((2 * dim) ** -0.5), (2 * dim) ** -0.5)

    def forward(self, one_D: Tensor, other_D: Tensor) -> Tensor:
        """Return logits (...) of embeddings (..., D) of channel 0 and of channel 1, broadcast against each other."""
        summed_H = functional.relu(self.of_channel0(one_D) + self.of_channel1(other_D))
        logit: Tensor = self.last(functional.relu(self.middle(summed_H))).squeeze(-1)
        return logit


@dataclass(frozen=True, eq=False)
class DeepLearning:
    """A trained classifier, and the hop of the embeddings that it learned from."""

    classifier: Classifier
    hop_s: float

    def align(self, pair: Pair, ears: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the candidate at which most keypoints are judged right; ties keep the first.

        The confidence is how far their share is from the mean of all candidates to 1.
        Raises: ConfigError if the embeddings are not of the size that it was trained on.
        """
        assert ears is not None
        time0_K = pair.keypoints
        time1_CK = candidates(time0_K, pair.durations_s[0], pair.max_lag_s)
        right_CK, asked_CK = self._classify(ears(pair, self.hop_s), time0_K, time1_CK, progress)
        num_right_C, num_asked_C = right_CK.sum(axis=1), asked_CK.sum(axis=1)
        score_C = np.where((num_asked_C >= FEWEST) & (num_right_C > 0), num_right_C.astype(np.float64), -np.inf)
        best = int(score_C.argmax())
        if not np.isfinite(score_C[best]):
            return build_identity_map(pair)
        confidence = mean_prominence(num_right_C / num_asked_C.clip(1), best)
        return TimeMap(time0_K, time1_CK[best], np.full(len(time0_K), confidence))

    @torch.inference_mode()
    def _classify(
        self, vectors: tuple[Floats, Floats], time0_K: Seconds, time1_CK: Seconds, progress: Progress
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return of each candidate's keypoints (C, K) whether they are judged right, and whether they are judged."""
        one_ND, other_ND = vectors
        wanted = self.classifier.of_channel0.in_features
        if one_ND.shape[1] != wanted:
            raise ConfigError(
                f"the weights of deeplearning are for embeddings of {wanted} numbers, got {one_ND.shape[1]}; align "
                f"with the encoder that it was trained on"
            )
        place0_K, place1_CK = _nearest_vectors(time0_K, self.hop_s), _nearest_vectors(time1_CK, self.hop_s)
        asked_CK = usable_mask(time1_CK) & (place0_K < len(one_ND)) & (place1_CK < len(other_ND))
        right_CK = np.zeros_like(asked_CK)
        for row in range(len(asked_CK)):
            progress("deeplearning", row, len(asked_CK))
            asked_K = asked_CK[row]
            chosen = (_take(one_ND, place0_K[asked_K]), _take(other_ND, place1_CK[row, asked_K]))
            right_CK[row, asked_K] = (self.classifier(*chosen) > 0).numpy()
        progress("deeplearning", len(asked_CK), len(asked_CK))
        return right_CK, asked_CK


def train(config: Config, pairs: Sequence[Labelled], ears: PairEmbedder, seed: int, progress: Progress) -> DeepLearning:
    """Return the aligner trained on annotated pairs: the last weights, as published.

    The same seed gives the same weights. Memory: the embeddings of all pairs, as `ears` gives them.
    Raises: DataError if there are fewer than two moments to learn from.
    """
    heard = [ears(pair, config.hop_s) for pair, _ in pairs]
    moments_M3 = _moments(config, pairs, heard)
    if len(moments_M3) < FEWEST:
        raise DataError(
            f"deeplearning has {len(moments_M3)} keypoints to learn from and needs at least {FEWEST}, with "
            f"{CONTEXT_S:g} s and a segment after each in both channels; give more or longer annotated pairs"
        )
    draw = np.random.default_rng([seed, *b"deeplearning"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(heard[0][0].shape[1], config.hidden)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=config.lr)
    for epoch in range(config.epochs):
        progress("deeplearning", epoch, config.epochs)
        shuffled_M3 = moments_M3[draw.permutation(len(moments_M3))]
        for first in range(0, len(shuffled_M3) - 1, config.batch):  # a batch of one would have no wrong pair
            one_BD, other_BD = _batch(config, shuffled_M3[first : first + config.batch], heard, draw)
            optimiser.zero_grad()
            pairwise_loss(classifier(one_BD[:, None], other_BD[None])).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    progress("deeplearning", config.epochs, config.epochs)
    return DeepLearning(classifier.eval(), config.hop_s)


def pairwise_loss(logit_BB: Tensor) -> Tensor:
    """Return the binary cross entropy of all pairs, the B right ones on the diagonal weighted by B - 1."""
    size = len(logit_BB)
    weight = torch.tensor(float(size - 1), device=logit_BB.device)
    target_BB = torch.eye(size, device=logit_BB.device)
    return functional.binary_cross_entropy_with_logits(logit_BB, target_BB, pos_weight=weight)


def save(aligner: DeepLearning, path: Path) -> None:
    """Write the weights and what is needed to use them, as one safetensors file."""
    classifier = aligner.classifier
    shape = {"dim": classifier.of_channel0.in_features, "hidden": classifier.of_channel0.out_features}
    checkpoint.save(path, classifier.state_dict(), {"aligner": "deeplearning", "hop_s": aligner.hop_s, **shape})


def load(path: Path) -> DeepLearning:
    """Return a trained aligner. Raises: StoreError if the file cannot be read, ConfigError if it is another's."""
    state = checkpoint.load(path)[1]
    if state.get("aligner") != "deeplearning":
        raise ConfigError(f"{path} holds no weights of the aligner deeplearning; give the file that its training wrote")
    classifier = Classifier(state["dim"], state["hidden"])
    checkpoint.load_weights(classifier, path)
    return DeepLearning(classifier.eval(), float(state["hop_s"]))


def _moments(config: Config, pairs: Sequence[Labelled], heard: Sequence[tuple[Floats, Floats]]) -> Ints:
    """Return the usable keypoints (M, 3): number of the pair, first vector of each channel."""
    found = [np.zeros((0, 3), dtype=np.int64)]
    for number, ((_, true), (one_ND, other_ND)) in enumerate(zip(pairs, heard, strict=True)):
        time0_K, first = np.unique(true.time0_K, return_index=True)
        time1_K = true.time1_K[first]
        place0_K, place1_K = _nearest_vectors(time0_K, config.hop_s), _nearest_vectors(time1_K, config.hop_s)
        ends_K = (place0_K + _shifts(config) <= len(one_ND)) & (place1_K + _shifts(config) <= len(other_ND))
        usable_K = usable_mask(time1_K) & ends_K
        numbered = np.full(int(usable_K.sum()), number)
        found.append(np.stack([numbered, place0_K[usable_K], place1_K[usable_K]], axis=1))
    return np.concatenate(found)


def _batch(
    config: Config, moments_B3: Ints, heard: Sequence[tuple[Floats, Floats]], draw: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the embeddings (B, D) of both channels, each pair at a random crop and its channels perhaps swapped."""
    shift_B = draw.integers(_shifts(config), size=len(moments_B3))
    swapped_B = draw.random(len(moments_B3)) < config.swap
    rows = [
        (heard[pair][0][place0 + shift], heard[pair][1][place1 + shift])[:: -1 if swapped else 1]
        for (pair, place0, place1), shift, swapped in zip(moments_B3.tolist(), shift_B, swapped_B, strict=True)
    ]
    one_BD, other_BD = (torch.from_numpy(np.stack(side)) for side in zip(*rows, strict=True))
    return one_BD, other_BD


def _shifts(config: Config) -> int:
    """Return how many vectors of a keypoint's context begin a whole second before its end."""
    return round(CONTEXT_S / config.hop_s) + 1


def _nearest_vectors(time: Seconds, hop_s: float) -> Ints:
    """Return the vectors whose segments begin nearest to these times."""
    return np.rint(time / hop_s).astype(np.int64)


def _take(vectors_ND: Floats, place_K: Ints) -> Tensor:
    return torch.from_numpy(np.asarray(vectors_ND[place_K], dtype=np.float32))
