"""The challenge's learned baseline of 2025: a classifier of embedding pairs chooses among the candidate lines.

The classifier decides whether a second of channel 0 and a second of channel 1 are the same moment: it concatenates
their embeddings and passes them through 100, 100 and 1 neurons. In training every pair of moments of a batch is an
example; B of these B^2 pairs match. The score of a candidate is the number of its keypoints classified as matching.

It has to be trained on annotated pairs, one set at a time: `train`, then `save`; `weights` then names the file.

DEVIATION: the embeddings are those of any encoder of the suite, of whole segments every `hop_s`, so that moments are
rounded to the hop. The baseline uses BEATs embeddings (AudioSet, 768 numbers, the mean over 1 s) of arbitrary moments;
its weights are not available here. Segments of the suite's encoders are about 1 s long.
DEVIATION: if no candidate has two keypoints and a match, the result is lag 0 with confidence 0, not the first line.
Source: the challenge's code, 2025; its text describes one hidden layer, its code has two. Training takes the 2 s after
a keypoint (not stated whether after or around it) and crops a random second, the same in both channels.

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
SOURCE = "reimplementation of the published algorithm"

CONTEXT_S = 1.0  # how long after its keypoint a crop may start
FEWEST = 2  # keypoints that a candidate, and training, must have

Labelled = tuple[Pair, Keypoints]
"""A pair and its annotated keypoints."""


@dataclass(frozen=True)
class Config:
    """Settings of the classifier and of its training."""

    weights: str = ""
    """A file written by `save`; if empty, the aligner is trained on the split `train`.

    The file also holds `hop_s` and `hidden`, which then replace the values here.
    """

    hop_s: float = 0.1
    """Time from one embedding to the next, in s, above 0."""

    hidden: int = 100
    """Neurons of each of the two hidden layers, at least 1."""

    epochs: int = 25
    """Passes through the annotated moments, at least 1."""

    batch: int = 64
    """Annotated moments per batch, at least 2: each is contrasted with the others."""

    lr: float = 1e-4
    """Learning rate of Adam, above 0."""

    swap: float = 0.5
    """Probability that the two channels of an example are swapped, between 0 and 1."""

    def __post_init__(self) -> None:
        require(self.hop_s > 0, "hop_s must be > 0", self.hop_s)
        require(self.hidden > 0, "hidden must be > 0", self.hidden)
        require(self.epochs > 0, "epochs must be > 0", self.epochs)
        require(self.batch > 1, "batch must be > 1: each moment is contrasted with the others of its batch", self.batch)
        require(self.lr > 0, "lr must be > 0", self.lr)
        require(0 <= self.swap <= 1, "swap is a probability and must be between 0 and 1", self.swap)


def build(config: Config) -> DeepLearning:
    """Return the aligner with the weights in the file `config.weights`.

    Raises: ConfigError if no file is named, StoreError if it cannot be read.
    """
    if not config.weights:
        raise ConfigError(
            "the aligner deeplearning has to be trained on annotated pairs before it can align; train it, and name the "
            "file of its weights in its setting `weights`"
        )
    return load(Path(config.weights))


class Classifier(nn.Module):
    """Classifies whether two embeddings are of the same moment."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        # A linear layer of two concatenated embeddings is a sum of two layers: B^2 pairs cost only 2 B products.
        self.of_channel0 = nn.Linear(dim, hidden)
        self.of_channel1 = nn.Linear(dim, hidden, bias=False)
        self.middle = nn.Linear(hidden, hidden)
        self.last = nn.Linear(hidden, 1)
        for layer in (self.of_channel0, self.of_channel1):
            # Initialised like one layer of 2 D inputs; each part alone would start sqrt(2) too wide.
            nn.init.uniform_(layer.weight, -((2 * dim) ** -0.5), (2 * dim) ** -0.5)
        nn.init.uniform_(self.of_channel0.bias, -((2 * dim) ** -0.5), (2 * dim) ** -0.5)

    def forward(self, embedding0_D: Tensor, embedding1_D: Tensor) -> Tensor:
        """Return logits (...) of embeddings (..., D) of channel 0 and of channel 1, broadcast against each other."""
        hidden_H = functional.relu(self.of_channel0(embedding0_D) + self.of_channel1(embedding1_D))
        logit: Tensor = self.last(functional.relu(self.middle(hidden_H))).squeeze(-1)
        return logit


@dataclass(frozen=True, eq=False)
class DeepLearning:
    """A trained classifier, and the hop of the embeddings that it was trained on."""

    classifier: Classifier
    hop_s: float

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> TimeMap:
        """Return the candidate with the most keypoints classified as matching; of tied candidates the first.

        The confidence is how far the share of these keypoints is on the way from the mean of all candidates to 1.
        Raises: ConfigError if the embeddings have another size than in training.
        """
        assert embedder is not None
        time0_K = pair.keypoints
        time1_CK = candidates(time0_K, pair.durations_s[0], pair.max_lag_s)
        match_CK, used_CK = self._classify(embedder(pair, self.hop_s), time0_K, time1_CK, progress)
        num_match_C, num_used_C = match_CK.sum(axis=1), used_CK.sum(axis=1)
        score_C = np.where((num_used_C >= FEWEST) & (num_match_C > 0), num_match_C.astype(np.float64), -np.inf)
        best = int(score_C.argmax())
        if not np.isfinite(score_C[best]):
            return build_identity_map(pair)
        confidence = mean_prominence(num_match_C / num_used_C.clip(1), best)
        return TimeMap(time0_K, time1_CK[best], np.full(len(time0_K), confidence))

    @torch.inference_mode()
    def _classify(
        self, vectors: tuple[Floats, Floats], time0_K: Seconds, time1_CK: Seconds, progress: Progress
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which keypoints of each candidate (C, K) match, and which were classified at all."""
        vectors0_ND, vectors1_ND = vectors
        dim = self.classifier.of_channel0.in_features
        if vectors0_ND.shape[1] != dim:
            raise ConfigError(
                f"the weights of deeplearning are for embeddings of {dim} numbers, got {vectors0_ND.shape[1]}; align "
                f"with the encoder that it was trained on"
            )
        position0_K, position1_CK = _nearest_vectors(time0_K, self.hop_s), _nearest_vectors(time1_CK, self.hop_s)
        used_CK = usable_mask(time1_CK) & (position0_K < len(vectors0_ND)) & (position1_CK < len(vectors1_ND))
        match_CK = np.zeros_like(used_CK)
        for row in range(len(used_CK)):
            progress("deeplearning", row, len(used_CK))
            used_K = used_CK[row]
            embeddings = (_take(vectors0_ND, position0_K[used_K]), _take(vectors1_ND, position1_CK[row, used_K]))
            match_CK[row, used_K] = (self.classifier(*embeddings) > 0).numpy()
        progress("deeplearning", len(used_CK), len(used_CK))
        return match_CK, used_CK


def train(
    config: Config, pairs: Sequence[Labelled], embedder: PairEmbedder, seed: int, progress: Progress
) -> DeepLearning:
    """Return the aligner trained on annotated pairs, with the weights of the last epoch, as published.

    The same seed gives the same weights. Memory: the embeddings of all pairs, as `embedder` returns them.
    Raises: DataError if there are fewer than two moments to learn from.
    """
    vectors = [embedder(pair, config.hop_s) for pair, _ in pairs]
    moments_M3 = _moments(config, pairs, vectors)
    if len(moments_M3) < FEWEST:
        raise DataError(
            f"deeplearning has {len(moments_M3)} keypoints to learn from and needs at least {FEWEST}, with "
            f"{CONTEXT_S:g} s and a segment after each in both channels; give more or longer annotated pairs"
        )
    draw = np.random.default_rng([seed, *b"deeplearning"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = Classifier(vectors[0][0].shape[1], config.hidden)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=config.lr)
    for epoch in range(config.epochs):
        progress("deeplearning", epoch, config.epochs)
        shuffled_M3 = moments_M3[draw.permutation(len(moments_M3))]
        for first in range(0, len(shuffled_M3) - 1, config.batch):  # a batch of one has no mismatch
            embedding0_BD, embedding1_BD = _batch(config, shuffled_M3[first : first + config.batch], vectors, draw)
            optimiser.zero_grad()
            pairwise_loss(classifier(embedding0_BD[:, None], embedding1_BD[None])).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    progress("deeplearning", config.epochs, config.epochs)
    return DeepLearning(classifier.eval(), config.hop_s)


def pairwise_loss(logit_BB: Tensor) -> Tensor:
    """Return the binary cross entropy of all pairs; the B matching ones, on the diagonal, are weighted by B - 1."""
    size = len(logit_BB)
    weight = torch.tensor(float(size - 1), device=logit_BB.device)
    target_BB = torch.eye(size, device=logit_BB.device)
    return functional.binary_cross_entropy_with_logits(logit_BB, target_BB, pos_weight=weight)


def save(aligner: DeepLearning, path: Path) -> None:
    """Write the weights, and the settings needed to use them, into one safetensors file."""
    classifier = aligner.classifier
    shape = {"dim": classifier.of_channel0.in_features, "hidden": classifier.of_channel0.out_features}
    checkpoint.save(path, classifier.state_dict(), {"aligner": "deeplearning", "hop_s": aligner.hop_s, **shape})


def load(path: Path) -> DeepLearning:
    """Return a trained aligner. Raises: StoreError if the file cannot be read, ConfigError if it is not of this one."""
    state = checkpoint.load(path)[1]
    if state.get("aligner") != "deeplearning":
        raise ConfigError(f"{path} holds no weights of the aligner deeplearning; give the file that its training wrote")
    classifier = Classifier(state["dim"], state["hidden"])
    checkpoint.load_weights(classifier, path)
    return DeepLearning(classifier.eval(), float(state["hop_s"]))


def _moments(config: Config, pairs: Sequence[Labelled], vectors: Sequence[tuple[Floats, Floats]]) -> Ints:
    """Return the usable keypoints (M, 3): number of the pair, and of the first vector in each channel."""
    moments = [np.zeros((0, 3), dtype=np.int64)]
    for number, ((_, truth), (vectors0_ND, vectors1_ND)) in enumerate(zip(pairs, vectors, strict=True)):
        time0_K, first_K = np.unique(truth.time0_K, return_index=True)
        time1_K = truth.time1_K[first_K]
        position0_K, position1_K = _nearest_vectors(time0_K, config.hop_s), _nearest_vectors(time1_K, config.hop_s)
        fits0_K = position0_K + _shifts(config) <= len(vectors0_ND)
        fits1_K = position1_K + _shifts(config) <= len(vectors1_ND)
        usable_K = usable_mask(time1_K) & (fits0_K & fits1_K)
        number_M = np.full(int(usable_K.sum()), number)
        moments.append(np.stack([number_M, position0_K[usable_K], position1_K[usable_K]], axis=1))
    return np.concatenate(moments)


def _batch(
    config: Config, moments_B3: Ints, vectors: Sequence[tuple[Floats, Floats]], draw: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the embeddings (B, D) of both channels, each moment at a random crop, its channels swapped at random."""
    shift_B = draw.integers(_shifts(config), size=len(moments_B3))
    swapped_B = draw.random(len(moments_B3)) < config.swap
    rows = [
        (vectors[pair][0][position0 + shift], vectors[pair][1][position1 + shift])[:: -1 if swapped else 1]
        for (pair, position0, position1), shift, swapped in zip(moments_B3.tolist(), shift_B, swapped_B, strict=True)
    ]
    embedding0_BD, embedding1_BD = (torch.from_numpy(np.stack(side)) for side in zip(*rows, strict=True))
    return embedding0_BD, embedding1_BD


def _shifts(config: Config) -> int:
    """Return the number of possible crops of a keypoint, one per vector that starts within CONTEXT_S of it."""
    return round(CONTEXT_S / config.hop_s) + 1


def _nearest_vectors(time: Seconds, hop_s: float) -> Ints:
    """Return the numbers of the vectors whose segments start nearest to these times."""
    return np.rint(time / hop_s).astype(np.int64)


def _take(vectors_ND: Floats, position_K: Ints) -> Tensor:
    return torch.from_numpy(np.asarray(vectors_ND[position_K], dtype=np.float32))
