"""The divide-and-encode head, shared by `now-playing` and `attention-cnn`.

Shape legend: B batch, V values, H hidden units of all branches, D dimensions of the fingerprint.
"""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor, nn

BRANCH_UNITS = 32  # hidden units of each branch


class SplitHead(nn.Module):
    """Encodes each of D equal slices of the values to one number: dense 32, ELU, dense 1.

    Source: Chang et al., ICASSP 2021, section 2.2, after Lai et al., CVPR 2015.
    """

    def __init__(self, values: int, dim: int) -> None:
        super().__init__()
        self.hidden = nn.Conv1d(values, dim * BRANCH_UNITS, 1, groups=dim)
        self.out = nn.Conv1d(dim * BRANCH_UNITS, dim, 1, groups=dim)

    def forward(self, top_BV: Tensor) -> Tensor:
        """Return codes (B, D), not normalised, of values (B, V); V is a multiple of D."""
        hidden_BH1 = functional.elu(self.hidden(top_BV.unsqueeze(-1)))
        code_BD: Tensor = self.out(hidden_BH1).squeeze(-1)
        return code_BD
