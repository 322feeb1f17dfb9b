import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.config import resolve
from bench.errors import ConfigError, StoreError
from bench.models import attention_cnn
from bench.models.attention_cnn import AttentionCNN, Config
from bench.registry import load
from bench.train import checkpoint

SEGMENT = 15_360
WIDTH = 1 / 16  # 2 to 64 channels
SMALL = {"width": WIDTH, "dim": 16}


def built(seed: int = 0, **settings: Any) -> AttentionCNN:
    """Return a small encoder in evaluation mode whose norms are not those of a fresh one, which would hide errors."""
    torch.manual_seed(seed)
    network = attention_cnn.build(Config(**{**SMALL, **settings}))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.weight.data, module.bias.data):
                tensor.add_(0.3 * torch.randn(tensor.shape))
            module.running_var.mul_(0.5 + torch.rand(module.running_var.shape))
    return network.eval()


def waves(number: int = 4, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    tones = torch.sin(torch.arange(SEGMENT) * torch.rand(number, 1, generator=draw))
    return 0.3 * tones + 0.1 * torch.randn(number, SEGMENT, generator=draw)


def patches(number: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(number, 1, 64, 96, generator=torch.Generator().manual_seed(seed))


def size(module: torch.nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


# How large the network is: encoders.md, section 2.4


def test_every_part_has_the_number_of_parameters_of_the_table() -> None:
    network = attention_cnn.build(Config(attention="off"))
    # A convolution has 9 in out + out parameters, a norm 2 out, a projection in out + out + 2 out.
    assert size(network.stem) == 9 * 32 + 32 + 2 * 32 == 384
    assert 2 * (9 * 32 * 32 + 32 + 64) == 18_624
    assert (9 * 32 * 64 + 64 + 128) + (9 * 64 * 64 + 64 + 128) + (32 * 64 + 64 + 128) == 57_920
    assert [size(b) for b in network.blocks] == [18_624, 57_920, 230_528, 919_808, 3_674_624, 14_689_280]
    assert size(network.head) == 128 * (48 * 32 + 32 + 32 + 1) == 204_928
    assert size(network) == 19_796_096


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 19_796_096 + 315),  # 160 + 80 + 40 + 20 + 10 + 5: bands and frames of six maps
        ({"attention": "per-channel"}, 19_796_096 + 30_720),  # 5,120 in each of six blocks
        ({"attention_at": "last-block"}, 19_796_096 + 5),
        ({"attention_at": "block-output"}, 19_796_096 + 315),
        ({"attention": "off", "skip": "none"}, 19_091_776),
        ({"attention": "off", "dim": 64}, 19_796_096 - 204_928 + 64 * (96 * 32 + 32 + 32 + 1)),
    ],
)
def test_settings_change_the_number_of_parameters_as_counted_by_hand(settings: dict[str, Any], parameters: int) -> None:
    assert size(attention_cnn.build(Config(**settings))) == parameters


def test_maps_have_the_shapes_of_table_1() -> None:
    network, shapes = attention_cnn.build(Config()).eval(), []
    for part in (network.stem, *network.blocks):
        part.register_forward_hook(lambda _part, _given, out: shapes.append(tuple(out.shape[1:])))
    with torch.inference_mode():
        assert network.embed(patches(1)).shape == (1, 128)
    assert shapes == [
        (32, 64, 96),
        (32, 64, 96),
        (64, 32, 48),
        (128, 16, 24),
        (256, 8, 12),
        (512, 4, 6),
        (1024, 2, 3),
    ]


# What it computes, against equations written out in double precision


def slow_conv(x: np.ndarray, conv: torch.nn.Conv2d) -> np.ndarray:
    """Return the convolution of (C, F, W), one output position after another."""
    weight, bias = conv.weight.detach().double().numpy(), conv.bias.detach().double().numpy()  # type: ignore[union-attr]
    kernel, stride, pad = weight.shape[2], conv.stride[0], conv.padding[0]
    around = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    bands, frames = ((n + 2 * pad - kernel) // stride + 1 for n in x.shape[1:])
    out = np.empty((len(weight), bands, frames))
    for f in range(bands):
        for w in range(frames):
            heard = around[:, f * stride : f * stride + kernel, w * stride : w * stride + kernel]
            out[:, f, w] = np.tensordot(weight, heard, 3) + bias
    return out


def slow_norm(x: np.ndarray, norm: torch.nn.BatchNorm2d) -> np.ndarray:
    values = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    mean, variance, gain, shift = (v.detach().double().numpy()[:, None, None] for v in values)  # type: ignore[union-attr]
    return (x - mean) / np.sqrt(variance + 1e-5) * gain + shift


def slow_softmax(logits: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in logits)
    return [math.exp(v) / total for v in logits]


def slow_attended(x: np.ndarray, attention: Any, scale: float) -> np.ndarray:
    """Return equations 1 to 4 channel by channel: a softmax over bands times one over frames times S."""
    out = np.empty_like(x)
    time_weights, freq_weights = (w.detach().double().numpy() for w in (attention.time_weights, attention.freq_weights))
    channels, bands, frames = x.shape
    for c in range(channels):
        of_time, of_freq = (v if v.ndim == 1 else v[:, c] for v in (time_weights, freq_weights))
        over_bands = slow_softmax([sum(x[c, f, w] * of_time[w] for w in range(frames)) for f in range(bands)])
        over_frames = slow_softmax([sum(x[c, f, w] * of_freq[f] for f in range(bands)) for w in range(frames)])
        for f in range(bands):
            for w in range(frames):
                out[c, f, w] = scale * over_bands[f] * over_frames[w] * x[c, f, w]
    return out


def slow_embed(network: AttentionCNN, patch: np.ndarray, config: Config) -> np.ndarray:
    """Return the unit vector of one patch (1, F, W)."""

    def layer(x: np.ndarray, part: Any) -> np.ndarray:
        return slow_norm(np.maximum(slow_conv(x, part.conv), 0), part.norm)

    x = layer(patch, network.stem)
    for number, block in enumerate(network.blocks):
        y = layer(layer(x, block.first), block.second)
        scale = y[0].size if config.attention_scale == "mean-1" else config.attention_scale
        attended = config.attention != "off" and (config.attention_at != "last-block" or number == 5)
        if attended and config.attention_at != "block-output":
            y = slow_attended(y, block.attention, float(scale))
        if number == 0:
            y = y + x
        elif config.skip == "projection":
            y = y + slow_norm(slow_conv(x[:, ::2, ::2], block.skip.conv), block.skip.norm)
        if attended and config.attention_at == "block-output":
            y = slow_attended(y, block.attention, float(scale))
        x = y
    code = []
    for d, own in enumerate(np.split(x.reshape(-1), config.dim)):
        rows = slice(d * 32, (d + 1) * 32)
        hidden = network.head.hidden.weight[rows, :, 0].detach().double().numpy() @ own
        hidden = hidden + network.head.hidden.bias[rows].detach().double().numpy()
        hidden = np.where(hidden > 0, hidden, np.exp(np.minimum(hidden, 0)) - 1)
        code.append(float(network.head.out.weight[d, :, 0].detach().double().numpy() @ hidden))
    vector = np.array(code) + network.head.out.bias.detach().double().numpy()
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attention": "per-channel"},
        {"attention": "off"},
        {"attention_at": "block-output"},
        {"attention_at": "last-block"},
        {"attention_scale": "mean-1"},
        {"attention_scale": 7.5, "skip": "none"},
        {"attention_at": "block-output", "skip": "none", "attention": "per-channel"},
    ],
    ids=str,
)
def test_network_is_the_published_equations(settings: dict[str, Any]) -> None:
    network = built(**settings)
    patch = patches(2)
    with torch.inference_mode():
        found = network.embed(patch).numpy()
    for one, vector in zip(patch.double().numpy(), found, strict=True):
        np.testing.assert_allclose(vector, slow_embed(network, one, Config(**{**SMALL, **settings})), atol=1e-4)


def test_every_setting_gives_other_vectors() -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"attention": "off"},
        {"attention_at": "block-output"},
        {"attention_at": "last-block"},
        {"attention_scale": "mean-1"},
        {"skip": "none"},
    ]
    with torch.inference_mode():
        vectors = [built(**way).embed(patches(1)) for way in ways]
    for i, one in enumerate(vectors):
        assert all(float((one - other).abs().max()) > 1e-3 for other in vectors[:i]), ways[i]


def mask(x: torch.Tensor, **settings: Any) -> torch.Tensor:
    """Return the mask of a map (B, C, F, W) by an attention whose frames weigh 1, 0 and bands 0, ln 2."""
    attention = attention_cnn._Attention(x.shape[1], 2, 2, Config(**{**SMALL, **settings}))
    with torch.no_grad():
        attention.time_weights.copy_(torch.tensor([1.0, 0.0]))
        attention.freq_weights.copy_(torch.tensor([0.0, math.log(2)]))
        made: torch.Tensor = attention.mask(x)
    return made


def test_mask_worked_by_hand() -> None:
    # Bands: the first frame's column is (0, ln 3), so a softmax of 1/4, 3/4. Frames: the second band's row is
    # (ln 3, 0) times ln 2, so weights of 3^ln 2 = 2.1415 and 1. S = 100.
    x = torch.tensor([[[[0.0, 5.0], [math.log(3), 0.0]]]])
    first = 3 ** math.log(2) / (3 ** math.log(2) + 1)
    wanted = 100 * np.outer([0.25, 0.75], [first, 1 - first])
    np.testing.assert_allclose(mask(x)[0, 0], wanted, rtol=1e-6)
    np.testing.assert_allclose(mask(x, attention_scale="mean-1")[0, 0], wanted * 4 / 100, rtol=1e-6)


def test_mask_sums_to_its_scale_and_is_even_on_an_even_map() -> None:
    x = patches(3)[:, :, :2, :2] * 3
    np.testing.assert_allclose(mask(x).sum(dim=(2, 3)), 100, rtol=1e-5)
    np.testing.assert_allclose(mask(x, attention_scale="mean-1").mean(dim=(2, 3)), 1, rtol=1e-5)
    np.testing.assert_allclose(mask(torch.full((1, 2, 2, 2), 3.0)), 25, rtol=1e-6)


# In training


def test_norms_of_training_are_those_of_the_batch() -> None:
    network = built().train()
    x = torch.randn(8, 2, 16, 24)
    layer = network.blocks[0].first
    made = layer(x)
    bare = (made - layer.norm.bias[:, None, None]) / layer.norm.weight[:, None, None]
    np.testing.assert_allclose(bare.mean(dim=(0, 2, 3)).detach(), 0, atol=1e-5)
    np.testing.assert_allclose(bare.var(dim=(0, 2, 3)).detach(), 1, rtol=1e-2)  # unless a channel is all cut


@pytest.mark.parametrize("attention", ["shared", "per-channel"])
def test_gradient_reaches_every_parameter(attention: str) -> None:
    network = built(attention=attention).train()
    vectors = network(waves(6))
    (vectors * torch.randn_like(vectors)).sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), name


def convolutions(network: AttentionCNN) -> list[tuple[str, torch.nn.Conv2d, torch.Tensor]]:
    """Return each convolution of the network and the map that it is given."""
    given: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            hooks.append(
                module.register_forward_pre_hook(lambda _conv, x, name=name: given.update({name: x[0].detach()}))
            )
    network.embed(patches(2))
    for hook in hooks:
        hook.remove()
    return [(name, network.get_submodule(name), x) for name, x in given.items()]  # type: ignore[misc]


def test_every_tap_of_a_kernel_meets_data() -> None:
    # One that only meets padding has no gradient, or in oneDNN's bf16 an undefined one: docs/log.md.
    found = convolutions(built())
    assert len(found) == 1 + 12 + 5
    for name, conv, given in found:
        ones = torch.ones_like(conv.weight[:1, :1], requires_grad=True)
        torch.conv2d(torch.ones(1, 1, *given.shape[2:]), ones, None, conv.stride, conv.padding).sum().backward()
        assert ones.grad is not None and bool((ones.grad > 0).all()), name


def test_no_1x1_convolution_has_a_stride() -> None:
    # With few channels as the fastest axis, oneDNN's backward pass of such a one writes past its buffer.
    for name, conv, _ in convolutions(built()):
        assert conv.kernel_size != (1, 1) or conv.stride == (1, 1), name


@pytest.mark.parametrize("width", [WIDTH, 0.25])
def test_gradients_of_bf16_are_finite_and_near_those_of_fp32(width: float) -> None:
    # One convolution after another: through a whole untrained network with norms of a batch, rounding grows.
    for name, conv, given in convolutions(built(width=width)):
        poison = [torch.full((size,), math.nan) for size in (conv.weight.numel(), given.numel()) for _ in range(4)]
        del poison  # what is not written stays NaN
        gradients = []
        for enabled in (False, True):
            conv.zero_grad()
            x = given.clone(memory_format=torch.preserve_format).requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                out = conv(x)
            (out.float() * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
            assert conv.weight.grad is not None and conv.bias is not None and conv.bias.grad is not None
            gradients.append([conv.weight.grad.clone(), conv.bias.grad.clone(), x.grad])
        for full, half in zip(*gradients, strict=True):
            assert bool(half.isfinite().all()), name
            assert float((full - half).norm() / full.norm()) < 0.02, name  # a bf16 value is off by at most 0.4 %


def test_training_in_bf16_gives_finite_gradients() -> None:
    network = built().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors = network.embed(patches(8))
    (vectors * torch.randn_like(vectors)).sum().backward()
    assert vectors.dtype == torch.float32
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_kernels_of_the_cpu_and_torch_give_the_same_vectors_statistics_and_gradients(training: bool) -> None:
    # Compiled, the network goes through torch, as it does on a GPU.
    made = []
    for wrap in (lambda embed: embed, lambda embed: torch.compile(embed, backend="eager", fullgraph=True)):
        network = built().train(training)
        vectors = wrap(network.embed)(patches(4))
        (vectors * patches(4).flatten(1)[:, :16]).sum().backward()
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        made.append((vectors.detach(), torch.cat([b.flatten() for b in network.buffers()]), torch.cat(gradients)))
    for ours, theirs in zip(*made, strict=True):
        # An untrained network in training amplifies rounding, and the sums of torch's norms are float32.
        assert float((ours - theirs).norm() / theirs.norm()) < (1e-2 if training else 1e-5)


def test_training_on_silence_gives_finite_gradients() -> None:
    network = built().train()
    vectors = network(torch.zeros(4, SEGMENT))
    (vectors * torch.randn_like(vectors)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


# What is promised of every encoder


def test_vectors_of_bf16_are_near_those_of_fp32() -> None:
    network, patch = built(), patches(6)
    with torch.inference_mode():
        full = network.embed(patch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = network.embed(patch)
    assert half.dtype == torch.float32
    assert float((full * half).sum(dim=1).min()) > 0.999


def test_memory_order_of_the_input_does_not_matter_and_the_input_is_left_alone() -> None:
    network, patch = built(), patches(3)
    kept = patch.clone()
    with torch.inference_mode():
        one, other = network.embed(patch), network.embed(patch.transpose(2, 3).contiguous().transpose(2, 3))
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert torch.equal(patch, kept)


def test_maps_keep_channels_as_the_fastest_axis_but_in_the_last_block() -> None:
    network, orders = built(), []
    for part in (network.stem, *network.blocks):
        part.register_forward_hook(
            lambda _part, _given, out: orders.append(out.is_contiguous(memory_format=torch.channels_last))
        )
    with torch.inference_mode():
        network.embed(patches(2))
    assert orders == [True] * 6 + [False]


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    network, other = built(seed=1), built(seed=2)
    checkpoint.save(path, network.state_dict(), {"step": 3})
    assert checkpoint.load_weights(other, path) == {"step": 3}
    with torch.inference_mode():
        assert torch.equal(other(waves()), network(waves()))
    with pytest.raises(StoreError, match="another architecture"):
        checkpoint.load_weights(built(attention="per-channel"), path)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dim": 0}, "model.dim must be >= 1, got 0"),
        ({"width": 0.0}, "model.width"),
        ({"width": 1 / 48}, "model.width must make 32 x width whole"),
        ({"width": 1 / 32}, "multiple of model.dim = 128"),
        ({"dim": 100}, "multiple of model.dim = 100"),
        ({"attention_scale": 0.0}, 'model.attention_scale must be > 0 or "mean-1", got 0.0'),
    ],
)
def test_settings_that_make_no_network_are_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Config(**wrong)


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_makes_a_network_of_128_dimensions(preset: str) -> None:
    config = resolve("attention-cnn", load("encoder", "attention-cnn"), preset)
    assert config.model.dim == 128
    if preset == "paper":
        assert config.model == Config()
        assert (config.train.schedule, config.train.lr_min, config.train.lr) == ("cyclic", 5e-4, 5e-2)


def test_scale_of_attention_is_a_number_or_a_word_on_the_command_line() -> None:
    plugin = load("encoder", "attention-cnn")
    for text, value in (("50", 50.0), ("mean-1", "mean-1")):
        config = resolve("attention-cnn", plugin, "small", overrides=[f"model.attention_scale={text}"])
        assert config.model.attention_scale == value
    with pytest.raises(ConfigError, match=r"model\.attention_scale"):
        resolve("attention-cnn", plugin, "small", overrides=["model.attention_scale=mean"])
