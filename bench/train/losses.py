"""Losses on pairs of unit vectors. They use at least float32, also under autocast, and never wait for the device.

A batch is N anchors and their N positives: 2N views. Pairs with the same number in `group_N` are of the same moment:
their views are positives of each other, never negatives.

Shape legend: N pairs, M = 2N views (anchors, then positives), D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.settings import TrainConfig

SMALLEST_SQUARE = 1e-6  # least squared distance of two unit vectors: float32 cosines near 1 resolve no smaller one

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Called as loss(anchor_ND, positive_ND, group_N) with unit vectors and int64 groups; returns a scalar."""


def build_loss(config: TrainConfig) -> Loss:
    """Return the loss named `train.loss`, with its `temperature` or `margin`.

    The cross entropies on pairs (nt-xent, nafp, info-nce) ignore the groups: every other pair is a negative.
    """
    temperature, margin = config.temperature, config.margin
    losses: dict[str, Loss] = {
        "nt-xent": lambda anchor, positive, _: nt_xent(anchor, positive, temperature),
        "nafp": lambda anchor, positive, _: nafp(anchor, positive, temperature),
        "info-nce": lambda anchor, positive, _: info_nce(anchor, positive, temperature),
        "triplet": lambda anchor, positive, group: triplet(anchor, positive, group, margin),
        "semi-hard-triplet": lambda anchor, positive, group: semi_hard_triplet(anchor, positive, group, margin),
        "multi-positive": lambda anchor, positive, group: multi_positive(anchor, positive, group, temperature),
    }
    return losses[config.loss]


def nt_xent(anchor_ND: Tensor, positive_ND: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross entropy, the mean over all 2N views.

    Each view is contrasted with the 2N - 1 others; its positive is the other view of its pair.
    Source: Chen et al., SimCLR, 2020, equation 1. Equation 5 of Singh et al. (ISMIR 2022) is the same, with the end
    of its sum misprinted.
    """
    both_MD = torch.cat([anchor_ND, positive_ND])
    similarity_MM = _without_self(_cosines(both_MD, both_MD) / temperature)
    pairs = len(anchor_ND)
    partner_M = torch.arange(2 * pairs, device=both_MD.device).roll(pairs)
    return functional.cross_entropy(similarity_MM, partner_M)


def nafp(anchor_ND: Tensor, positive_ND: Tensor, temperature: float) -> Tensor:
    """Return the sum of two cross entropies: the mean over the N anchors, and the mean over their N positives.

    That is twice `nt_xent`, with twice its gradients. Source: Chang et al., ICASSP 2021, section 2.2 and its code.
    """
    return 2 * nt_xent(anchor_ND, positive_ND, temperature)


def info_nce(anchor_ND: Tensor, positive_ND: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy of each anchor's positive among all N positives; no anchor is a negative.

    Source: van den Oord et al., 2018, equation 4, on cosines.
    """
    similarity_NN = _cosines(anchor_ND, positive_ND) / temperature
    return functional.cross_entropy(similarity_NN, torch.arange(len(anchor_ND), device=anchor_ND.device))


def multi_positive(anchor_ND: Tensor, positive_ND: Tensor, group_N: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy of each view's positives among all other views, the mean over positives and views.

    Positives of a view are all other views of its group, at least one. With one each, this is `nt_xent`.
    Source: Khosla et al., 2020, equation 2, where the mean is outside the logarithm.
    """
    both_MD = torch.cat([anchor_ND, positive_ND])
    similarity_MM = _cosines(both_MD, both_MD) / temperature
    positive_MM = _same_group(torch.cat([group_N, group_N]))
    attracted_M = (similarity_MM * positive_MM).sum(dim=1) / positive_MM.sum(dim=1)
    return (_without_self(similarity_MM).logsumexp(dim=1) - attracted_M).mean()


def triplet(anchor_ND: Tensor, positive_ND: Tensor, group_N: Tensor, margin: float) -> Tensor:
    """Return the hinge of each anchor's hardest positive against all its negatives, the mean over the negatives.

    Distances are Euclidean, d = sqrt(2 - 2 s). Positives are the positive views of the anchor's group,
    negatives both views of all others; an anchor without a negative counts as 0.
    DEVIATION: the released replica of Now Playing divides by all 2N views, including the two that are not
    negatives: its loss is smaller by a factor (N - 1) / N, to which Adam is invariant.
    Source: Gfeller et al., 2017; the "semi-hard" mode of the replica that Chang et al. released.
    """
    both_MD = torch.cat([anchor_ND, positive_ND])
    distance_NM = (2 - 2 * _cosines(anchor_ND, both_MD)).clamp_min(SMALLEST_SQUARE).sqrt()
    same_NN = group_N[:, None] == group_N
    hardest_N1 = distance_NM[:, len(group_N) :].where(same_NN, 0).amax(dim=1, keepdim=True)
    negative_NM = ~same_NN.tile(2)
    hinge_NM = functional.relu(hardest_N1 - distance_NM + margin) * negative_NM
    return (hinge_NM.sum(dim=1) / negative_NM.sum(dim=1).clamp_min(1)).mean()


def semi_hard_triplet(anchor_ND: Tensor, positive_ND: Tensor, group_N: Tensor, margin: float) -> Tensor:
    """Return the hinge of each view's hardest positive against its semi-hard negative, the mean over all 2N views.

    Distances are squared Euclidean. The semi-hard negative is the nearest that is further than the hardest positive
    by less than the margin; without such a one, it is the nearest negative of all. A view without negatives counts
    as 0.
    Source: Schroff et al., FaceNet, 2015, section 3.2; mining as in the code of Araz et al. (ISMIR 2025).
    """
    both_MD = torch.cat([anchor_ND, positive_ND])
    distance_MM = 2 - 2 * _cosines(both_MD, both_MD)
    group_M = torch.cat([group_N, group_N])
    hardest_M1 = distance_MM.where(_same_group(group_M), -torch.inf).amax(dim=1, keepdim=True)
    negative_MM = distance_MM.where(group_M[:, None] != group_M, torch.inf)
    between_MM = (negative_MM > hardest_M1) & (negative_MM < hardest_M1 + margin)
    semi_hard_M = negative_MM.where(between_MM, torch.inf).amin(dim=1)
    nearest_M = negative_MM.amin(dim=1)
    chosen_M = semi_hard_M.where(semi_hard_M.isfinite(), nearest_M)
    return functional.relu(hardest_M1.squeeze(1) - chosen_M + margin).mean()


def _cosines(one_ND: Tensor, other_MD: Tensor) -> Tensor:
    """Return the cosines (N, M) of unit vectors, in float32, or in float64 if they are float64."""
    dtype = torch.promote_types(one_ND.dtype, torch.float32)
    with torch.autocast(one_ND.device.type, enabled=False):
        return one_ND.to(dtype) @ other_MD.to(dtype).T


def _without_self(similarity_MM: Tensor) -> Tensor:
    """Return the similarities with minus infinity on the diagonal, so that no vector is compared with itself."""
    diagonal_MM = torch.eye(len(similarity_MM), dtype=torch.bool, device=similarity_MM.device)
    return similarity_MM.masked_fill(diagonal_MM, float("-inf"))


def _same_group(group_M: Tensor) -> Tensor:
    """Return which pairs of different views are of the same group, shape (M, M)."""
    diagonal_MM = torch.eye(len(group_M), dtype=torch.bool, device=group_M.device)
    return (group_M[:, None] == group_M) & ~diagonal_MM
