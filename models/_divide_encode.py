"""The divide-and-encode head, shared by `now-playing` and `attention-cnn`.

Shape legend: B batch, V values, S values of a slice, D dimensions of the fingerprint, U hidden units of a branch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

BRANCH_UNITS = 32  # hidden units of each branch


class SplitHead(nn.Module):
    """Encodes each of D equal slices of the values to one number: dense 32, ELU, dense 1.

    The layers are grouped convolutions, which have the weights and their initial values; they are computed as batches
    of D matrix products. As convolutions of so few values they took a tenth of a training step on a CPU.
    Source: Chang et al., ICASSP 2021, section 2.2, after Lai et al., CVPR 2015.
    """

    def __init__(self, values: int, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Conv1d(values, dim * BRANCH_UNITS, 1, groups=dim)
        self.out = nn.Conv1d(dim * BRANCH_UNITS, dim, 1, groups=dim)

    def forward(self, top_BV: Tensor) -> Tensor:
        """Return codes (B, D), not normalised, of values (B, V); V is a multiple of D."""
        slices_DBS = top_BV.view(len(top_BV), self.out.out_channels, -1).transpose(0, 1)
        hidden_DBU = functional.elu(_multiply(self.hidden, slices_DBS))
        return _multiply(self.out, hidden_DBU).squeeze(2).T


def _multiply(layer: nn.Conv1d, input_DBS: Tensor) -> Tensor:
    """Return what a convolution with D groups and a kernel of 1 makes of the values of each group."""
    assert layer.bias is not None
    weight_DUS = layer.weight.view(layer.groups, -1, layer.weight.shape[1])
    return torch.baddbmm(layer.bias.view(layer.groups, 1, -1), input_DBS, weight_DUS.transpose(1, 2))
