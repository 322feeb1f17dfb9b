import dataclasses
import math

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric", reason="grafprint needs torch-geometric: pip install torch-geometric")

from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.nn import MessagePassing

from bench.config import resolve
from bench.errors import ConfigError
from bench.models import grafprint
from bench.models.grafprint import (
    Config,
    GraFPrint,
    _drop_path,
    _FeedForward,
    _Grapher,
    convolve,
    multiply,
    nearest_edges,
)
from bench.registry import load

SEGMENT = 16_000
SMALL = Config(width=1 / 8, dim=16)
CONVS = ["max-relative", "edge", "sage", "gin"]


def built(config: Config = SMALL, seed: int = 0) -> GraFPrint:
    torch.manual_seed(seed)
    return grafprint.build(config).eval()


def lived_in(config: Config, seed: int = 0) -> GraFPrint:
    """Return a network whose norms are no longer those of a fresh one, which would hide mistakes."""
    network = built(config, seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith("running_var") or (".norm." in name and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point():
                tensor.add_(0.1 * torch.randn_like(tensor))
    return network


def waves(number: int = 4, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    tones = torch.sin(torch.arange(SEGMENT) * torch.rand(number, 1, generator=draw))
    return 0.3 * tones + 0.1 * torch.randn(number, SEGMENT, generator=draw)


def size(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


# How large the network is


def test_network_of_the_paper_has_its_number_of_parameters_stage_by_stage() -> None:
    network = grafprint.build(Config())
    assert size(network.point) == 1_184 and size(network.stem) == 640
    body = list(network.body)
    blocks, downs = [2, 2, 6, 2], [74_112, 295_680, 1_181_184]
    wanted: list[int] = []
    for stage, each in enumerate((50_560, 199_424, 792_064, 3_156_992)):
        wanted += [each] * blocks[stage] + downs[stage : stage + 1]
    found = []
    while body:
        layer = body.pop(0)
        found.append(size(layer) + size(body.pop(0)) if isinstance(layer, _Grapher) else size(layer))
    assert found == wanted
    assert size(network.project) == 525_312 and size(network.head) == 4_722_816
    assert size(network) == 18_367_264


@pytest.mark.parametrize(("name", "blocks"), [("t", 12), ("s", 12), ("m", 22), ("b", 24)])
def test_sizes_have_their_numbers_of_blocks(name: str, blocks: int) -> None:
    network = grafprint.build(Config(size=name, width=1 / 4))  # type: ignore[arg-type]
    assert sum(isinstance(layer, _Grapher) for layer in network.body) == blocks


def test_nodes_are_halved_and_channels_doubled_from_stage_to_stage() -> None:
    network, shapes = built(), []
    for layer in network.body:
        if isinstance(layer, _FeedForward):
            layer.register_forward_hook(lambda _layer, _given, out: shapes.append(tuple(out.shape[1:])))
    with torch.inference_mode():
        network(waves(1))
    assert shapes == [(1024, 8)] * 2 + [(512, 16)] * 2 + [(256, 32)] * 6 + [(128, 64)] * 2


def test_width_scales_all_but_the_fingerprint() -> None:
    network = grafprint.build(Config(width=1 / 4))
    assert network.project.out_features == 256 and network.head[0].out_features == 1024
    assert network.head[2].out_features == 128


# What it computes, against equations written out


def slow_norm(x: torch.Tensor, norm: torch.nn.BatchNorm1d) -> torch.Tensor:
    """Return the batch norm of (..., C) with the statistics kept."""
    assert norm.running_mean is not None and norm.running_var is not None
    return (x - norm.running_mean) / (norm.running_var + 1e-5).sqrt() * norm.weight + norm.bias


def slow_dense(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    return slow_norm(layer.linear(x), layer.norm)  # type: ignore[operator, arg-type]


def slow_grouped(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    """Return ReLU of batch norm of a convolution of 4 groups, input channels as they come."""
    weight, out = layer.conv.weight.squeeze(2), []  # type: ignore[union-attr, operator]
    each, made = x.shape[-1] // 4, len(weight) // 4
    for g in range(4):
        out.append(x[..., g * each : (g + 1) * each] @ weight[g * made : (g + 1) * made].T)
    return slow_norm(torch.cat(out, -1) + layer.conv.bias, layer.norm).clamp_min(0)  # type: ignore[union-attr, arg-type, operator]


def interleaved(u: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Return u_0, m_0, u_1, m_1 and so on along the last axis."""
    mixed = torch.zeros(*u.shape[:-1], 2 * u.shape[-1], dtype=u.dtype)
    mixed[..., 0::2], mixed[..., 1::2] = u, m
    return mixed


def slow_neighbours(u: torch.Tensor, k: int, dilation: int) -> list[list[int]]:
    """Return for each node of (N, C) the k x dilation nearest, itself first, every dilation-th of them."""
    unit = u / u.norm(dim=1, keepdim=True).clamp_min(1e-12)
    found = []
    for i in range(len(u)):
        distance = (unit - unit[i]).square().sum(1)
        distance[i] = -1
        found.append(distance.argsort(stable=True)[: k * dilation : dilation].tolist())
    return found


def slow_graph(u: torch.Tensor, near: list[list[int]], layer: torch.nn.Module, conv: str) -> torch.Tensor:
    """Return a graph convolution of the nodes (N, C) of one segment, node by node."""
    rows = []
    mapped = slow_grouped(u, layer.map) if conv == "sage" else u  # type: ignore[arg-type]
    for i, js in enumerate(near):
        others = mapped[js]
        if conv == "max-relative":
            rows.append(interleaved(u[i], (others - u[i]).amax(0)))
        elif conv == "sage":
            rows.append(interleaved(u[i], others.amax(0)))
        elif conv == "gin":
            rows.append((1 + layer.eps) * u[i] + others.sum(0))  # type: ignore[operator]
        else:
            every = interleaved(u[i].expand_as(others), others - u[i])
            rows.append(slow_grouped(every, layer.mix).amax(0))  # type: ignore[arg-type]
    return torch.stack(rows) if conv == "edge" else slow_grouped(torch.stack(rows), layer.mix)  # type: ignore[arg-type]


def slow_embed(network: GraFPrint, patch: torch.Tensor, config: Config) -> torch.Tensor:
    """Return the unit vector of one patch (1, 64, 32) in the precision of the network."""
    frames, bands = torch.meshgrid(torch.arange(32) / 31, torch.arange(64) / 63, indexing="xy")
    given = torch.stack([frames.to(patch), bands.to(patch), patch[0]])
    points = torch.nn.functional.conv2d(given[None], network.point.weight, network.point.bias, (2, 1), 3)[0].clamp_min(
        0
    )
    nodes = torch.stack([points[:, f, t] for f in range(32) for t in range(32)])
    nodes = slow_dense(nodes, network.stem)
    nodes = torch.where(nodes > 0, nodes, 0.2 * nodes)
    block = 0
    for layer in network.body:
        if isinstance(layer, _Grapher):
            u = slow_dense(nodes, layer.enter)
            dilation = 1 + block // 4 if config.dilation == "planned" else 1
            near = slow_neighbours(u, config.k, dilation)
            nodes = nodes + slow_dense(slow_graph(u, near, layer.graph, config.conv), layer.leave)
            block += 1
        elif isinstance(layer, _FeedForward):
            nodes = nodes + slow_dense(slow_dense(nodes, layer.rise).clamp_min(0), layer.fall)
        else:  # the paper's own 3x3 convolution over a map of width 1
            halved = torch.nn.functional.conv2d(nodes.T[None, :, :, None], layer.conv.weight, layer.conv.bias, 2, 1)  # type: ignore[union-attr, arg-type]
            nodes = slow_norm(halved[0, :, :, 0].T, layer.norm)  # type: ignore[arg-type]
    pooled = network.project(nodes).mean(0)
    hidden = network.head[0](pooled)
    code: torch.Tensor = network.head[2](torch.where(hidden > 0, hidden, hidden.exp() - 1))
    return code / code.norm()


@pytest.mark.parametrize(
    "config",
    [
        *(Config(width=1 / 8, dim=16, conv=conv) for conv in CONVS),  # type: ignore[arg-type]
        Config(width=1 / 8, dim=16, dilation="planned"),
        Config(width=1 / 8, dim=16, k=5),
    ],
)
def test_network_is_the_published_equations(config: Config) -> None:
    network = lived_in(config)
    with torch.inference_mode():
        patches = network.features(waves(2))
        rough = network.embed(patches).double()
        network.double()
        found = network.embed(patches.double())
        wanted = torch.stack([slow_embed(network, patch.double(), config) for patch in patches])
    assert float((found - wanted).abs().max()) < 1e-6  # the vectors are float32 in the end
    # With 8 channels some neighbours are nearly as near as others, and float32 takes the other one.
    assert float((rough - wanted).abs().max()) < 3e-3


def test_options_of_the_graph_change_the_vector() -> None:
    configs = [dataclasses.replace(SMALL, dilation="planned"), dataclasses.replace(SMALL, k=5), SMALL]
    first, second, plain = (lived_in(config) for config in configs)
    with torch.inference_mode():
        vectors = [network(waves(1)) for network in (first, second, plain)]
    for one, two in ((0, 2), (1, 2)):
        assert float((vectors[one] - vectors[two]).abs().max()) > 1e-4


@pytest.mark.parametrize("groups", [1, 4])
def test_both_ways_to_a_product_agree(groups: int) -> None:
    x, weight, bias = torch.randn(32, 8), torch.randn(12, 8 // groups), torch.randn(12)
    wanted = torch.zeros(32, 12)
    for o in range(12):
        group = o // (12 // groups)
        own = slice(group * (8 // groups), (group + 1) * (8 // groups))
        wanted[:, o] = (x[:, own] * weight[o]).sum(1) + bias[o]
    for way in (convolve, multiply):
        np.testing.assert_allclose(way(x, weight, bias, groups), wanted, atol=1e-5)


# Neighbours


def test_neighbours_by_hand() -> None:
    # Directions at 0, 10, 30, 70 and 180 degrees; the lengths do not matter.
    degrees, lengths = [0, 10, 30, 70, 180], [1.0, 5.0, 0.1, 2.0, 3.0]
    nodes = [
        [r * math.cos(math.radians(d)), r * math.sin(math.radians(d))] for d, r in zip(degrees, lengths, strict=True)
    ]
    come, go = nearest_edges(torch.tensor([nodes]), others=2, dilation=1)
    assert go.tolist() == [0, 1, 2, 3, 4] * 2
    assert come.tolist() == [1, 0, 1, 2, 3, 2, 2, 0, 1, 2]
    come, _ = nearest_edges(torch.tensor([nodes]), others=2, dilation=2)  # the second and the fourth
    assert come.tolist() == [2, 2, 0, 1, 2, 4, 4, 4, 4, 0]


def test_neighbours_stay_in_their_segment() -> None:
    come, go = nearest_edges(torch.randn(5, 16, 4), others=3, dilation=2)
    assert torch.equal(come // 16, go // 16) and not (come == go).any()


def test_equal_nodes_have_the_first_as_neighbours_in_any_batch() -> None:
    same = torch.ones(1, 8, 4)
    alone = nearest_edges(same, others=2, dilation=1)[0]
    assert alone.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 2, 2, 1, 1, 1, 1, 1, 1]
    together = nearest_edges(torch.cat([same, torch.randn(4, 8, 4)]), others=2, dilation=1)[0]
    assert together.view(2, 40)[:, :8].flatten().tolist() == alone.tolist()


def test_neighbours_are_taken_in_float32_under_autocast() -> None:
    nodes = torch.randn(2, 128, 64)
    plain = nearest_edges(nodes, 2, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nearest_edges(nodes, 2, 1), plain)


@pytest.mark.parametrize("conv", CONVS)
def test_message_passing_carries_the_graph_convolution(conv: str) -> None:
    graphs = [layer.graph for layer in built(Config(width=1 / 8, conv=conv)).body if isinstance(layer, _Grapher)]  # type: ignore[arg-type]
    assert len(graphs) == 12 and all(isinstance(graph, MessagePassing) for graph in graphs)
    seen = []
    graphs[0].register_message_forward_hook(lambda _graph, _given, out: seen.append(tuple(out.shape)))
    graphs[0](torch.randn(16, 8), nearest_edges(torch.randn(1, 16, 8), 2, 1))
    assert seen == [(48, 16) if conv == "edge" else (32, 8)]


# Leaving branches out


def test_branches_are_left_out_by_segment_and_keep_their_mean() -> None:
    torch.manual_seed(0)
    kept = _drop_path(torch.ones(10_000, 2, 3), 0.25)
    assert set(kept[:, 0, 0].tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (kept == kept[:, :1, :1]).all()
    assert abs(float(kept.mean()) - 1) < 0.03  # five standard errors


def test_rate_of_leaving_out_rises_from_none_to_all_of_it_and_only_in_training() -> None:
    config = Config(width=1 / 8, dim=16, drop_path=0.55)
    network = lived_in(config)
    rates = [layer.drop for layer in network.body if isinstance(layer, _Grapher | _FeedForward)]
    np.testing.assert_allclose(rates, np.repeat(np.linspace(0, 0.55, 12), 2))
    plain = lived_in(SMALL)
    with torch.inference_mode():
        assert torch.equal(network(waves(2)), plain(waves(2)))
        assert not torch.allclose(network.train()(waves(2)), plain.train()(waves(2)))


# Front end


def test_patch_is_a_log_mel_scaled_by_its_own_extremes() -> None:
    wave = waves(1)
    network = built()
    padded = np.pad(wave[0].double().numpy(), 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    power = np.abs([np.fft.rfft(window * padded[512 * t : 512 * t + 1024]) for t in range(32)]) ** 2
    corners = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 66) / 2595) - 1)
    hertz = np.arange(513) * 16_000 / 1024
    level = np.zeros((64, 32))
    for b in range(64):
        low, mid, high = corners[b : b + 3]
        rise, fall = (hertz - low) / (mid - low), (high - hertz) / (high - mid)
        level[b] = 10 * np.log10(np.maximum(power @ np.maximum(0, np.minimum(rise, fall)), 1e-10))
    wanted = (level - level.min()) / (level.max() - level.min())
    patch = network.features(wave)
    assert patch.shape == (1, 1, 64, 32)
    np.testing.assert_allclose(patch[0, 0], wanted, atol=1e-3)


def test_gain_does_not_change_a_patch_above_the_floor() -> None:
    network = built()
    np.testing.assert_allclose(network.features(waves()), network.features(0.25 * waves()), atol=1e-4)


def test_silence_is_an_empty_patch() -> None:
    assert torch.equal(built().features(torch.zeros(2, SEGMENT)), torch.zeros(2, 1, 64, 32))


# What is promised of every encoder


def test_vectors_have_unit_length_and_silence_gives_numbers() -> None:
    with torch.inference_mode():
        vectors = built()(torch.cat([waves(), 1e-7 * waves(1), torch.zeros(1, SEGMENT)]))
    assert vectors.shape == (6, 16) and vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors.norm(dim=1), 1, atol=1e-6)


def test_a_vector_does_not_depend_on_the_rest_of_the_batch_nor_on_chunks() -> None:
    network = lived_in(SMALL)
    wave = torch.cat([waves(9), torch.zeros(1, SEGMENT)])  # more than one chunk, silence among them
    with torch.inference_mode():
        together, backward = network(wave), network(wave.flip(0)).flip(0)
        alone = torch.cat([network(w[None]) for w in wave])
    np.testing.assert_allclose(alone, together, atol=1e-5)  # sums in another order
    np.testing.assert_allclose(backward, together, atol=1e-5)


def test_bf16_gives_unit_vectors_in_float32() -> None:
    network = lived_in(SMALL)
    with torch.inference_mode():
        patches = network.features(waves())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = network.embed(patches)
        assert rough.dtype == torch.float32 and not torch.equal(rough, network.embed(patches))
    np.testing.assert_allclose(rough.norm(dim=1), 1, atol=1e-6)


@pytest.mark.parametrize("conv", CONVS)
def test_gradient_reaches_every_parameter(conv: str) -> None:
    network = built(Config(width=1 / 8, dim=16, conv=conv)).train()  # type: ignore[arg-type]
    vectors = network(waves())
    (vectors * torch.randn_like(vectors)).sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), name


def test_dead_columns_of_the_halving_kernels_get_no_gradient() -> None:
    network = built().train()
    vectors = network(waves(2))
    (vectors * torch.randn_like(vectors)).sum().backward()
    for layer in network.body:
        if hasattr(layer, "conv"):
            assert not layer.conv.weight.grad[..., [0, 2]].any() and layer.conv.weight.grad[..., 1].any()


def test_training_learns_the_statistics_of_its_batches() -> None:
    network = built()
    before = {name: value.clone() for name, value in network.named_buffers() if "running_mean" in name}
    network.train()(waves())
    after = dict(network.named_buffers())
    assert len(before) == 1 + 12 * 5 + 3
    assert all(not torch.equal(after[name], value) for name, value in before.items())


def test_training_norms_by_the_batch_itself() -> None:
    network = lived_in(SMALL).train()
    given = 3 + 50 * torch.randn(2, 1024, 1)
    normed = network.stem(given)
    found = normed.flatten(0, 1)
    np.testing.assert_allclose(found.mean(0).detach(), network.stem.norm.bias.detach(), atol=1e-4)
    np.testing.assert_allclose(
        found.std(0, unbiased=False).detach(), network.stem.norm.weight.abs().detach(), rtol=1e-3
    )


def test_training_on_silence_gives_finite_gradients() -> None:
    network = built().train()
    vectors = network(torch.zeros(2, SEGMENT))
    (vectors * torch.randn_like(vectors)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_training_changes_no_view_in_place() -> None:
    # Autograd would keep the gradient of the whole map once more for each, and copy it several times.
    edges, seen = [built().train()(waves(2)).grad_fn], set()
    while edges:
        if (edge := edges.pop()) is not None and edge not in seen:
            seen.add(edge)
            edges += [after for after, _ in edge.next_functions]
    assert len(seen) > 100 and not any("CopySlices" in edge.name() for edge in seen)


def test_same_seed_same_weights() -> None:
    one, again, other = (built(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["point.weight"], other["point.weight"])


def test_kernels_are_drawn_as_kaiming_has_it() -> None:
    network = built(Config())
    assert abs(float(network.point.weight.detach().std()) / math.sqrt(2 / (3 * 49)) - 1) < 0.1
    last = [layer for layer in network.body if isinstance(layer, _Grapher)][-1]
    assert abs(float(last.graph.mix.conv.weight.detach().std()) / math.sqrt(2 / 256) - 1) < 0.01


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dim": 0}, "model.dim must be >= 1, got 0"),
        ({"width": 0.0}, "model.width"),
        ({"width": -1.0}, "model.width"),
        ({"width": 1 / 3}, "model.width"),
        ({"width": 1 / 16}, "take a multiple of 1/8"),
        ({"k": 1}, "model.k must be between 2"),
        ({"k": 129}, "and 128 "),
        ({"k": 44, "dilation": "planned"}, "and 43 "),
        ({"drop_path": 1.0}, r"model.drop_path must be in \[0, 1\), got 1.0"),
        ({"drop_path": -0.1}, "model.drop_path"),
    ],
)
def test_settings_that_make_no_network_are_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Config(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_presets_build(preset: str) -> None:
    config = resolve("grafprint", load("encoder", "grafprint"), preset)
    assert size(grafprint.build(config.model)) == (18_367_264 if preset == "paper" else size(built(config.model)))
    if preset == "paper":
        assert config.train.batch_pairs == 256 and config.train.lr == 8e-5 and config.train.mask_count == 0
    assert config.train.precision == "fp32"  # bf16 changes which nodes are neighbours


def test_comparing_nodes_is_counted_as_arithmetic() -> None:
    """The floor of `bench speed` is what the counted operations take; a kernel would hide those of the cosines."""
    encoder = GraFPrint(SMALL).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.embed(torch.rand(2, 1, 64, 32))
    stages = zip((1024, 512, 256, 128), (8, 16, 32, 64), (2, 2, 6, 2), strict=True)
    assert counter.get_flop_counts()["Global"][torch.ops.aten.bmm] >= 2 * sum(2 * n * n * c * b for n, c, b in stages)
