"""Losses on pairs of unit vectors.

Shape legend: N pairs, D dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor


def nt_xent(anchor_ND: Tensor, positive_ND: Tensor, temperature: float) -> Tensor:
    """Return the normalised temperature-scaled cross entropy, the mean over all 2N anchors.

    Each of the 2N vectors is told from all other 2N - 1 of both views; its positive is the other view
    of its own pair.
    Source: Chen et al., SimCLR, 2020, equation 1. Equation 5 of Singh et al. (ISMIR 2022) is this one,
    with the end of its sum misprinted.
    """
    both_MD = torch.cat([anchor_ND, positive_ND]).float()
    similarity_MM = both_MD @ both_MD.T / temperature
    similarity_MM = similarity_MM.masked_fill(
        torch.eye(len(both_MD), dtype=torch.bool, device=both_MD.device), float("-inf")
    )
    pairs = len(anchor_ND)
    partner_M = torch.arange(2 * pairs, device=both_MD.device).roll(pairs)
    return functional.cross_entropy(similarity_MM, partner_M)
