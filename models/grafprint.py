"""The GraFPrint encoder: a graph network over the bins of a log-mel patch, with a new neighbour graph in every block.

The network is that of the released code, which differs in places from the paper: see docs/encoders/grafprint.md. Nodes
are rows of a matrix, so all 1x1 convolutions over nodes are matrix products here; in evaluation mode, batch norm is
folded into them.

Shape legend: B batch, T samples, F mel bands, W frames, N nodes of a segment, M = B x N nodes of a batch, C channels,
O output channels, G groups of channels, K neighbours, E edges, D dimensions of the fingerprint.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from torch_geometric.nn import MessagePassing

from bench.audio.frontend import POWER_FLOOR, make_nonpersistent, mel_power
from bench.errors import ConfigError
from bench.kernels.floats import is_for_kernels
from bench.kernels.largest_rise import largest_rise
from bench.kernels.nearest_nodes import nearest_nodes

CITE = "Bhattacharjee, Singh, Benetos, GraFPrint: a GNN-based approach for audio identification, ICASSP 2025"
LICENSE = "MIT"
SOURCE = "the paper for the idea, the network of the released code for every number (docs/encoders/grafprint.md)"

RATE_HZ = 16_000
SEGMENT_S = 1.0
BANDS, FRAMES = 64, 32
WINDOW, HOP = 1024, 512
SPAN_FLOOR = 1e-8  # avoids 0 / 0 for a segment of constant level
POINT_CHANNELS = 8
CHANNELS = {
    "t": (64, 128, 256, 512),
    "s": (80, 160, 400, 640),
    "m": (96, 192, 384, 768),
    "b": (128, 256, 512, 1024),
}
BLOCKS = {"t": (2, 2, 6, 2), "s": (2, 2, 6, 2), "m": (2, 2, 16, 2), "b": (2, 2, 18, 2)}
POOLED, HIDDEN = 1024, 4096
GROUPS = 4
FEWEST_NODES = BANDS * FRAMES // 2 // 8  # of the last stage: 1024 nodes, halved three times
MAX_DILATION = 3
IMAGES = 16  # see `convolve`
NARROW = 16  # channels of a group: up to so many, a CPU multiplies with the zeros between the groups too
FEW_CHANNELS = 64  # of a node: up to so many, comparing a few nodes at a time on a CPU beats a product of matrices
COSINE_CHUNK = 2  # segments whose nodes a CPU compares at once; 4 MB each in the first stage
CHUNK = 8  # segments that a CPU embeds at once at width 1, so that the data of a block stay in its cache


@dataclass(frozen=True)
class Config:
    """Settings of the encoder; the defaults are those of the released code."""

    size: Literal["t", "s", "m", "b"] = "t"
    """The size of the network in the paper, from tiny to big: channels and number of blocks."""

    width: float = 1.0
    """Factor of all channel counts, above 0; 1 is the network of the paper.

    All channel counts must be whole numbers and multiples of the groups of the graph convolution: take a multiple of
    1/8.
    """

    k: int = 3
    """Number of neighbours of a node, including itself: 3 is itself and 2 others; at least 2."""

    dilation: Literal["none", "planned"] = "none"
    """`planned` takes every s-th neighbour only; s grows from 1 in the first block to 3 in the last.

    The released code intends this, but its block counter never advances: hence the default `none`.
    """

    drop_path: float = 0.0
    """Probability that training skips the residual branches of the last block, at least 0 and below 1.

    It rises to this value from 0 in the first block. The released code intends 0.1, but its block counter never
    advances.
    """

    conv: Literal["max-relative", "edge", "sage", "gin"] = "max-relative"
    """The graph convolution of every block."""

    dim: int = 128
    """Dimensions of a fingerprint, at least 1."""

    def __post_init__(self) -> None:
        if self.dim < 1:
            raise ConfigError(f"model.dim must be >= 1, got {self.dim}")
        scaled = [c * self.width for c in CHANNELS[self.size]]
        if self.width <= 0 or any(c % GROUPS for c in scaled) or (POINT_CHANNELS * self.width) % 1:
            raise ConfigError(
                f"model.width must make {POINT_CHANNELS} x width whole and the channels {CHANNELS[self.size]} x width "
                f"multiples of {GROUPS} (the graph convolution has {GROUPS} groups), got {self.width}; "
                f"take a multiple of 1/8"
            )
        max_k = (FEWEST_NODES - 1) // (MAX_DILATION if self.dilation == "planned" else 1) + 1
        if not 2 <= self.k <= max_k:
            raise ConfigError(
                f"model.k must be between 2 (a node and one other) and {max_k} (the last stage has {FEWEST_NODES} "
                f"nodes) with dilation {self.dilation!r}, got {self.k}"
            )
        if not 0 <= self.drop_path < 1:
            raise ConfigError(f"model.drop_path must be in [0, 1), got {self.drop_path}")


def build(config: Config) -> GraFPrint:
    """Return the encoder with random weights, drawn from the global generator of torch."""
    return GraFPrint(config)


class GraFPrint(nn.Module):
    """Turns one second of audio at 16 kHz into a unit vector."""

    rate_hz = RATE_HZ
    segment_s = SEGMENT_S
    ramps_1CFW: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dim = config.dim
        self.chunk = max(1, round(CHUNK / config.width))
        self.front_end = _ScaledLogMel()
        rising_1FW = torch.linspace(0, 1, FRAMES).expand(1, BANDS, FRAMES)
        rising_F1 = torch.linspace(0, 1, BANDS).unsqueeze(1)
        ramps_1CFW = torch.stack([rising_1FW, rising_F1.expand(1, BANDS, FRAMES)], dim=1)
        self.register_buffer("ramps_1CFW", ramps_1CFW, persistent=False)
        point = int(POINT_CHANNELS * config.width)
        self.point = nn.Conv2d(3, point, 7, stride=(2, 1), padding=3)
        nn.init.kaiming_normal_(self.point.weight)
        channels = [int(c * config.width) for c in CHANNELS[config.size]]
        self.stem = _Dense(point, channels[0], bias=False)
        self.body = _build_body(channels, config)
        # DEVIATION: a bias before a batch norm starts from 0 instead of the framework's random value. In training,
        # batch norm removes it. The difference is seen only in an untrained network in evaluation mode, as a control:
        # there, random biases leave little of what distinguishes segments (at width 1/8 a quarter).
        for layer in self.body.modules():
            if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d) and layer.bias is not None:
                nn.init.zeros_(layer.bias)
        pooled, hidden = (round(units * config.width) for units in (POOLED, HIDDEN))
        self.project = nn.Linear(channels[-1], pooled)
        self.head = nn.Sequential(nn.Linear(pooled, hidden), nn.ELU(), nn.Linear(hidden, config.dim))

    def features(self, wave_BT: Tensor) -> Tensor:
        """Return the log-mel patches (B, 1, 64, 32) in [0, 1] of segments (B, 16000)."""
        patch_B1FW: Tensor = self.front_end(wave_BT)
        return patch_B1FW

    def embed(self, patch_B1FW: Tensor) -> Tensor:
        """Return unit vectors (B, D) of log-mel patches (B, 1, 64, 32)."""
        whole = self.training or patch_B1FW.device.type != "cpu"
        chunks = [patch_B1FW] if whole else torch.split(patch_B1FW, self.chunk)
        pooled_BC = torch.cat([self._pool(chunk) for chunk in chunks])
        return functional.normalize(self.head(pooled_BC).float(), dim=1)

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return unit vectors (B, D) of segments (B, 16000)."""
        return self.embed(self.features(wave_BT))

    def _pool(self, patch_B1FW: Tensor) -> Tensor:
        """Return the mean of the projected nodes of each patch, (B, 1024 x width)."""
        # Each bin is a point with three channels: its time, its frequency and its level.
        placed_BCFW = torch.cat([self.ramps_1CFW.expand(len(patch_B1FW), -1, -1, -1), patch_B1FW], dim=1)
        points_BCFW = functional.relu(self.point(placed_BCFW))
        nodes_BNC = points_BCFW.flatten(2).transpose(1, 2)
        nodes_BNC = self.body(functional.leaky_relu(self.stem(nodes_BNC), 0.2))
        # The projection is linear, so it may be applied after the mean over nodes.
        projected_BC: Tensor = self.project(nodes_BNC.mean(dim=1))
        return projected_BC


class _ScaledLogMel(nn.Module):
    """Turns segments into log-mel patches, scaled to [0, 1] by the lowest and the highest level of each segment.

    DEVIATION: the released code divides training tracks, and only these, by the 0.95 quantile of their magnitudes. Such
    a gain is a constant in decibels and is cancelled by the scaling (except at bins at the floor of -100 dB), so
    training and test are treated alike here. The released code also divides by the span alone, which gives NaN for a
    segment of constant level; with SPAN_FLOOR, such a segment is all zeros.
    """

    def __init__(self) -> None:
        super().__init__()
        from torchaudio.transforms import MelSpectrogram

        self.mel = make_nonpersistent(
            MelSpectrogram(RATE_HZ, n_fft=WINDOW, hop_length=HOP, n_mels=BANDS, f_max=8_000.0, power=2.0)
        )

    def forward(self, wave_BT: Tensor) -> Tensor:
        """Return patches (B, 1, F, W) in [0, 1] of segments (B, T)."""
        level_BFW = 10 * torch.log10(mel_power(self.mel, wave_BT).clamp_min(POWER_FLOOR))
        low_B11, high_B11 = level_BFW.amin(dim=(1, 2), keepdim=True), level_BFW.amax(dim=(1, 2), keepdim=True)
        return ((level_BFW - low_B11) / (high_B11 - low_B11 + SPAN_FLOOR)).unsqueeze(1)


def _build_body(channels: list[int], config: Config) -> nn.Sequential:
    """Return all blocks, with a layer between stages that halves the number of nodes."""
    counts = BLOCKS[config.size]
    total, done = sum(counts), 0
    layers: list[nn.Module] = []
    for stage, (width, count) in enumerate(zip(channels, counts, strict=True)):
        if stage:
            layers.append(_Downsample(channels[stage - 1], width))
        for block in range(done, done + count):
            dilation = 1 + MAX_DILATION * block // total if config.dilation == "planned" else 1
            drop = config.drop_path * block / (total - 1)
            layers += [_Grapher(width, config.conv, config.k, dilation, drop), _FeedForward(width, drop)]
        done += count
    return nn.Sequential(*layers)


class _Dense(nn.Module):
    """A 1x1 convolution over nodes, computed as a matrix product, batch norm, and perhaps a ReLU."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool, relu: bool = False) -> None:
        super().__init__()
        self.relu = relu
        self.linear = nn.Linear(in_channels, out_channels, bias)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out_channels) of (..., in_channels)."""
        if self.training:
            return _normalise(self.norm, product(x, self.linear.weight, self.linear.bias), self.relu)
        scale_C, shift_C = _scale_and_shift(self.norm, self.linear.bias)
        out = product(x, self.linear.weight * scale_C.unsqueeze(1), shift_C)
        return functional.relu_(out) if self.relu else out


def product(x: Tensor, weight_OC: Tensor, bias_O: Tensor | None, groups: int = 1) -> Tensor:
    """Return x W^T + b along the last axis, (..., O) of (..., groups x C); each group has its own rows of W.

    On a CPU, oneDNN's 1x1 convolution of rows adds the bias in the same pass and is a fifth faster than the matrix
    library on the processors measured; on other devices a matrix product is faster. Groups of few channels are slow
    there: a product with zeros between the groups takes an eighth of the time.
    """
    if x.device.type != "cpu":
        return multiply(x.flatten(0, -2), weight_OC, bias_O, groups).view(*x.shape[:-1], -1)
    if groups > 1 and weight_OC.shape[1] <= NARROW:
        weight_OC, groups = torch.block_diag(*weight_OC.chunk(groups)), 1  # type: ignore[no-untyped-call]
    return convolve(x.flatten(0, -2), weight_OC, bias_O, groups).view(*x.shape[:-1], -1)


def convolve(x_MC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, groups: int) -> Tensor:
    """Return the product as a convolution of 16 images of (M / 16) x 1 pixels, with the channels last.

    With fewer images, PyTorch does not call oneDNN on one thread. M is a multiple of 16, because the number of nodes is
    a power of 2.
    """
    image_HCW1 = x_MC.view(IMAGES, -1, 1, x_MC.shape[1]).permute(0, 3, 1, 2)
    product_HOW1 = functional.conv2d(image_HCW1, weight_OC[..., None, None], bias_O, groups=groups)
    return product_HOW1.permute(0, 2, 3, 1).flatten(0, 2)


def multiply(x_MC: Tensor, weight_OC: Tensor, bias_O: Tensor | None, groups: int) -> Tensor:
    """Return the product as a matrix product, or as a batch of them if there are several groups."""
    if groups == 1:
        return functional.linear(x_MC, weight_OC, bias_O)
    group_GMC = x_MC.view(len(x_MC), groups, -1).transpose(0, 1)
    product_GMO = torch.bmm(group_GMC, weight_OC.view(groups, -1, weight_OC.shape[1]).transpose(1, 2))
    product_MO = product_GMO.transpose(0, 1).flatten(1)
    return product_MO if bias_O is None else product_MO + bias_O


def _normalise(norm: nn.BatchNorm1d, x: Tensor, relu: bool = False) -> Tensor:
    """Return x after batch norm over all axes except the last, and perhaps a ReLU."""
    normed_MC: Tensor = norm(x.flatten(0, -2))
    # In place, but not on the view: of that, autograd would copy the gradient five times.
    return (functional.relu_(normed_MC) if relu else normed_MC).view_as(x)


def _scale_and_shift(norm: nn.BatchNorm1d, bias_C: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the factor (C,) of the weights and the new bias (C,) that fold a batch norm into the layer before it."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale_C = norm.weight * (norm.running_var + norm.eps).rsqrt()
    offset_C = -norm.running_mean if bias_C is None else bias_C - norm.running_mean
    return scale_C, norm.bias + offset_C * scale_C


class _Grouped(nn.Module):
    """A 1x1 convolution in groups of channels, batch norm and ReLU.

    The channels of the `parts` inputs are interleaved (u_0, m_0, u_1, m_1 and so on), so that a group sees the same
    channels of each input. The weights are stored in that order; in `forward`, the inputs are concatenated within each
    group and the weights reordered to match.
    """

    def __init__(self, in_channels: int, out_channels: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.conv = nn.Conv1d(in_channels * parts, out_channels, 1, groups=GROUPS)
        nn.init.kaiming_normal_(self.conv.weight)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, *inputs_MC: Tensor) -> Tensor:
        """Return (M, out_channels) of `parts` inputs (M, in_channels)."""
        assert len(inputs_MC) == self.parts and self.conv.bias is not None
        grouped_MC = torch.cat([x.view(len(x), GROUPS, -1) for x in inputs_MC], dim=2).flatten(1)
        weight_OC = self.conv.weight.view(self.conv.out_channels, -1, self.parts).transpose(1, 2).flatten(1)
        if self.training:
            return _normalise(self.norm, product(grouped_MC, weight_OC, self.conv.bias, GROUPS), relu=True)
        scale_O, shift_O = _scale_and_shift(self.norm, self.conv.bias)
        return product(grouped_MC, weight_OC * scale_O.unsqueeze(1), shift_O, GROUPS).relu_()


class _Downsample(nn.Module):
    """Halves the number of nodes: a convolution of kernel 3 and stride 2 along the list of nodes, and batch norm.

    The paper has a 3x3 kernel on a map of width 1; two of its columns only meet padding. Their weights exist, so that
    the network has the size of the paper's, but they are not used, and their gradient is 0.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x_BNC: Tensor) -> Tensor:
        """Return (B, N / 2, out_channels) of (B, N, in_channels)."""
        pairs_BNC = x_BNC.reshape(len(x_BNC), x_BNC.shape[1] // 2, -1)
        previous_BNC = functional.pad(x_BNC[:, 1:-1:2], (0, 0, 1, 0))
        windows_BNC = torch.cat([previous_BNC, pairs_BNC], dim=2)
        weight_OC = self.conv.weight[..., 1].transpose(1, 2).flatten(1)
        if self.training:
            return _normalise(self.norm, product(windows_BNC, weight_OC, self.conv.bias))
        scale_O, shift_O = _scale_and_shift(self.norm, self.conv.bias)
        return product(windows_BNC, weight_OC * scale_O.unsqueeze(1), shift_O)


class _FeedForward(nn.Module):
    """A residual block that mixes the channels of each node: to four times as many, and back."""

    def __init__(self, channels: int, drop: float) -> None:
        super().__init__()
        self.rise = _Dense(channels, 4 * channels, bias=False, relu=True)
        self.fall = _Dense(4 * channels, channels, bias=False)
        self.drop = drop

    def forward(self, x_BNC: Tensor) -> Tensor:
        branch_BNC: Tensor = self.fall(self.rise(x_BNC))
        return x_BNC + _drop_path(branch_BNC, self.drop if self.training else 0.0)


class _Grapher(nn.Module):
    """A residual block with a graph convolution of each node and its nearest neighbours within the segment."""

    def __init__(self, channels: int, conv: str, k: int, dilation: int, drop: float) -> None:
        super().__init__()
        self.enter = _Dense(channels, channels, bias=True)
        self.graph = CONVS[conv](channels)
        self.leave = _Dense(2 * channels, channels, bias=True)
        self.others, self.dilation, self.drop = k - 1, dilation, drop

    def forward(self, x_BNC: Tensor) -> Tensor:
        u_BNC = self.enter(x_BNC)
        edges_2E = nearest_edges(u_BNC, self.others, self.dilation)
        mixed_MC = self.graph(u_BNC.flatten(0, 1), edges_2E)
        branch_BNC = self.leave(mixed_MC).view_as(x_BNC)
        return x_BNC + _drop_path(branch_BNC, self.drop if self.training else 0.0)


def _drop_path(branch_BNC: Tensor, rate: float) -> Tensor:
    """Return the branch with a random share `rate` of the segments set to 0, the others scaled by 1 / (1 - rate)."""
    if rate == 0:
        return branch_BNC
    keep_B11 = torch.rand(len(branch_BNC), 1, 1, device=branch_BNC.device) >= rate
    return branch_BNC * (keep_B11 / (1 - rate)).to(branch_BNC.dtype)


@torch.no_grad()
def nearest_edges(u_BNC: Tensor, others: int, dilation: int) -> Tensor:
    """Return the edges (2, E) to each node from the nearest other nodes of its segment, E = others x M.

    Row 0 is the source of an edge, row 1 its target. Edges are ordered by rank: first the nearest neighbour of every
    node, then the second nearest of every node, so that the messages have the shape (others, M, C). Of the
    `others x dilation` nearest nodes, every `dilation`-th is taken. A node is always its own nearest neighbour, at
    distance 0; that edge is omitted, since every convolution has the node itself.

    Distance is that of directions, |a/|a| - b/|b||^2, which falls as their inner product rises. It is computed in
    float32 even if the network is in bf16, in which close distances would often be equal.
    """
    batch, nodes, _ = u_BNC.shape
    # 1. The nearest nodes, numbered within each segment
    with torch.autocast(u_BNC.device.type, enabled=False):
        unit_BNC = functional.normalize(u_BNC.to(torch.promote_types(u_BNC.dtype, torch.float32)), dim=2)
        if is_for_kernels(unit_BNC) and u_BNC.shape[2] <= FEW_CHANNELS:
            near_BNK = nearest_nodes(unit_BNC, others * dilation)
        elif u_BNC.device.type == "cpu":
            parts = [_nearest_in_cache(part, others * dilation) for part in torch.split(unit_BNC, COSINE_CHUNK)]
            near_BNK = torch.cat(parts)
        else:
            near_BNK = _cosines(unit_BNC).topk(others * dilation, dim=2).indices
    # 2. Their numbers within the batch, for every dilation-th rank
    row_M = torch.arange(batch * nodes, device=u_BNC.device)
    offset_B11 = row_M[::nodes].view(batch, 1, 1)
    from_KM = (near_BNK[..., dilation - 1 :: dilation] + offset_B11).permute(2, 0, 1).reshape(others, -1)
    return torch.stack([from_KM.flatten(), row_M.repeat(others)])


def _cosines(unit_BNC: Tensor) -> Tensor:
    """Return the cosines (B, N, N) between the nodes of each segment, -2 between a node and itself."""
    cosine_BNN = torch.bmm(unit_BNC, unit_BNC.transpose(1, 2))
    cosine_BNN.diagonal(dim1=1, dim2=2).fill_(-2.0)
    return cosine_BNN


def _nearest_in_cache(unit_BNC: Tensor, ranks: int) -> Tensor:
    """Return the nearest other nodes (B, N, ranks) of a few segments; ties go to the node that comes first.

    For a few ranks, repeated argmax in numpy takes a sixth of the time of topk on a CPU.
    """
    cosine_BNN = _cosines(unit_BNC).numpy()
    near_BNK = np.empty((*cosine_BNN.shape[:2], ranks), dtype=np.int64)
    for rank in range(ranks):
        near_BNK[..., rank] = cosine_BNN.argmax(axis=2)  # the first of equals
        np.put_along_axis(cosine_BNN, near_BNK[..., rank : rank + 1], -3.0, axis=2)
    return torch.from_numpy(near_BNK)


class _MaxRelative(MessagePassing):  # type: ignore[misc]
    """y = mix(u, max over neighbours of u_j - u_i); a node is its own neighbour, so the maximum is >= 0.

    The edges of one rank are contiguous, one for each node in order, so the maximum over neighbours is an elementwise
    maximum of a few matrices instead of a scatter.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(aggr=None)
        self.mix = _Grouped(channels, 2 * channels, parts=2)

    def forward(self, u_MC: Tensor, edges_2E: Tensor) -> Tensor:
        mixed_MC: Tensor = self.mix(u_MC, self.propagate(edges_2E, x=u_MC))
        return mixed_MC

    def aggregate(self, inputs: Tensor, x: Tensor) -> Tensor:
        if is_for_kernels(x):
            return largest_rise(inputs.view(len(inputs) // len(x), -1), x.flatten()).view_as(x)
        return functional.relu(reduce(torch.maximum, inputs.view(-1, *x.shape).unbind()) - x)


class _Sage(MessagePassing):  # type: ignore[misc]
    """y = mix(u, max over the node and its neighbours of mapped u_j). Source: Hamilton et al. 2017, pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__(aggr=None)
        self.map = _Grouped(channels, channels, parts=1)
        self.mix = _Grouped(channels, 2 * channels, parts=2)

    def forward(self, u_MC: Tensor, edges_2E: Tensor) -> Tensor:
        mixed_MC: Tensor = self.mix(u_MC, self.propagate(edges_2E, x=self.map(u_MC)))
        return mixed_MC

    def aggregate(self, inputs: Tensor, x: Tensor) -> Tensor:
        return reduce(torch.maximum, inputs.view(-1, *x.shape).unbind(), x)


class _Gin(MessagePassing):  # type: ignore[misc]
    """y = mix((1 + eps) u + sum over the node and its neighbours of u_j). Source: Xu et al. 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__(aggr=None)
        self.eps = nn.Parameter(torch.zeros(1))
        self.mix = _Grouped(channels, 2 * channels, parts=1)

    def forward(self, u_MC: Tensor, edges_2E: Tensor) -> Tensor:
        mixed_MC: Tensor = self.mix(self.propagate(edges_2E, x=u_MC) + (1 + self.eps) * u_MC)
        return mixed_MC

    def aggregate(self, inputs: Tensor, x: Tensor) -> Tensor:
        return inputs.view(-1, *x.shape).sum(dim=0) + x


class _Edge(MessagePassing):  # type: ignore[misc]
    """y = max over the node and its neighbours of mix(u_i, u_j - u_i). Source: Wang et al. 2019."""

    def __init__(self, channels: int) -> None:
        super().__init__(aggr=None)
        self.mix = _Grouped(channels, 2 * channels, parts=2)

    def forward(self, u_MC: Tensor, edges_2E: Tensor) -> Tensor:
        itself_2M = torch.arange(len(u_MC), device=u_MC.device).expand(2, -1)
        max_MC: Tensor = self.propagate(torch.cat([itself_2M, edges_2E], dim=1), x=u_MC)
        return max_MC

    def message(self, x_i: Tensor, x_j: Tensor) -> Tensor:
        mixed_EC: Tensor = self.mix(x_i, x_j - x_i)
        return mixed_EC

    def aggregate(self, inputs: Tensor, x: Tensor) -> Tensor:
        return inputs.view(-1, len(x), inputs.shape[1]).amax(dim=0)


CONVS: dict[str, Any] = {"max-relative": _MaxRelative, "edge": _Edge, "sage": _Sage, "gin": _Gin}
