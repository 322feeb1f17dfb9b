from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

from bench.config import resolve
from bench.errors import ConfigError, StoreError
from bench.models import now_playing, random_projection
from bench.models.now_playing import Config, NowPlaying
from bench.registry import load
from bench.testing import check_encoder
from bench.train import checkpoint

SEGMENT = 15_360
SMALL = Config(width=1 / 16, dim=16)


def built(config: Config = SMALL, seed: int = 0) -> NowPlaying:
    torch.manual_seed(seed)
    return now_playing.build(config).eval()


def waves(number: int = 6, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    tones = torch.sin(torch.arange(SEGMENT) * torch.rand(number, 1, generator=draw))
    return 0.3 * tones + 0.1 * torch.randn(number, SEGMENT, generator=draw)


def parameters(config: Config) -> int:
    return sum(p.numel() for p in now_playing.build(config).parameters())


# How large the network is


def test_paper_network_has_the_published_number_of_parameters() -> None:
    # encoders.md, section 3.2, "all stride 2 on a 64 x 96 input": 14,606,208 + 1,691,648 + 41,088
    assert parameters(Config()) == 16_338_944


def test_64_dimensions_change_the_head_alone() -> None:
    # 64 branches of 16 -> 32 -> 1 have 36,928 parameters where 128 of 8 -> 32 -> 1 have 41,088.
    assert 128 * (8 * 32 + 32 + 32 + 1) == 41_088 and 64 * (16 * 32 + 32 + 32 + 1) == 36_928
    assert parameters(Config(dim=64)) == 16_338_944 - 41_088 + 36_928 == 16_334_784


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"front_end": "mel256-8k", "strides": "code"}, 16_939_008),
        ({"front_end": "mel256-8k-maxnorm", "strides": "code"}, 16_939_008),
        ({"front_end": "mel256-8k"}, 16_914_432),
        ({"front_end": "mel256-8k", "strides": "code", "dim": 64}, 16_934_848),
        ({"front_end": "mel256-8k", "norm_order": "elu-norm"}, 16_914_432),
        # 256 branches of 4 -> 32 -> 1 values have 256 (4 x 32 + 32 + 32 + 1) = 49,408 parameters.
        ({"dim": 256}, 16_338_944 - 41_088 + 49_408),
    ],
)
def test_variants_have_the_number_of_parameters_of_the_table(settings: dict[str, Any], number: int) -> None:
    assert parameters(Config(**settings)) == number


def test_all_stride_2_on_64_x_32_has_the_number_of_parameters_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    # No front end gives 64 x 32; the count still says that the norms follow the maps.
    monkeypatch.setitem(now_playing.INPUTS, "mel64-16k", (16_000, 0.96, 64, 32))
    assert parameters(Config()) == 15_217_664


def test_default_network_is_drawn_as_a_list_of_plain_layers_is() -> None:
    """Whoever adds a setting must not change the default: same seed, same weights, in the same order."""
    torch.manual_seed(5)
    plain: list[torch.nn.Module] = []
    before, bands, frames = 1, 64, 96
    for channels in (8, 8, 16, 16, 32, 32, 64, 64):
        frames = (frames + 1) // 2
        plain += [torch.nn.Conv2d(before, channels, (1, 3)), torch.nn.LayerNorm((channels, bands, frames))]
        bands = (bands + 1) // 2
        plain += [torch.nn.Conv2d(channels, channels, (3, 1)), torch.nn.LayerNorm((channels, bands, frames))]
        before = channels
    plain += [torch.nn.Conv1d(64, 16 * 32, 1, groups=16), torch.nn.Conv1d(16 * 32, 16, 1, groups=16)]
    wanted = [weight for layer in plain for weight in layer.parameters()]
    found = list(built(SMALL, seed=5).parameters())
    assert len(found) == len(wanted) == 68
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_parts_are_as_large_as_counted_by_hand() -> None:
    network = now_playing.build(Config())
    kernels = sum(p.numel() for name, p in network.named_parameters() if ".conv." in name)
    norms = sum(p.numel() for name, p in network.named_parameters() if ".norm." in name)
    assert (kernels, norms) == (14_606_208, 1_691_648)


def test_every_layer_halves_both_axes_down_to_one_value_a_channel() -> None:
    shapes = []
    network = built(Config())
    for layer in network.layers:
        layer.register_forward_hook(lambda _layer, _given, out: shapes.append(tuple(out.shape[1:])))
    with torch.inference_mode():
        network(waves(1))
    frames, bands = [48, 24, 12, 6, 3, 2, 1, 1], [32, 16, 8, 4, 2, 1, 1, 1]
    before = [64, *bands[:-1]]
    channels = [128, 128, 256, 256, 512, 512, 1024, 1024]
    wanted = []
    for c, f, w, b in zip(channels, before, frames, bands, strict=True):
        wanted += [(c, f, w), (c, b, w)]
    assert shapes == wanted


def test_strides_of_the_code_keep_the_frames_of_layers_5_and_7() -> None:
    shapes = []
    network = built(Config(front_end="mel256-8k", strides="code"))
    for layer in network.layers[1::2]:
        layer.register_forward_hook(lambda _layer, _given, out: shapes.append(tuple(out.shape[1:])))
    with torch.inference_mode():
        network.embed(torch.zeros(1, 1, 256, 32))
    # encoders.md, section 3.2, column "after 3 x 1"
    assert shapes == [
        (128, 128, 16),
        (128, 64, 8),
        (256, 32, 4),
        (256, 16, 2),
        (512, 8, 2),
        (512, 4, 1),
        (1024, 2, 1),
        (1024, 1, 1),
    ]


@pytest.mark.parametrize("front_end", ["mel256-8k", "mel256-8k-maxnorm"])
def test_rate_and_length_follow_the_front_end(front_end: Any) -> None:
    network = built(Config(width=1 / 16, dim=16, front_end=front_end))
    assert (network.rate_hz, network.segment_s) == (8_000, 1.0)
    assert network.features(torch.zeros(2, 8_000)).shape == (2, 1, 256, 32)
    default = built()
    assert (default.rate_hz, default.segment_s) == (16_000, 0.96)


@pytest.mark.parametrize(
    "config",
    [
        Config(width=1 / 16, dim=16, front_end="mel256-8k", strides="code", norm_order="elu-norm"),
        Config(width=1 / 16, dim=16, front_end="mel256-8k-maxnorm"),
        Config(width=1 / 16, dim=16, strides="code"),
    ],
    ids=lambda config: f"{config.front_end} {config.strides}",
)
def test_variants_keep_the_contract_of_encoders(config: Config) -> None:
    check_encoder(now_playing, config)


# What it computes, against equations written out


def slow_embed(network: NowPlaying, patch: torch.Tensor, norm_order: str) -> torch.Tensor:
    """Return unit vectors layer by layer; convolutions as sums over taps, the head branch by branch."""
    x = patch.double()
    for layer in network.layers:
        weight, bias = layer.conv.weight.double(), layer.conv.bias.double()
        along = 3 if weight.shape[3] == 3 else 2  # 1 x 3 goes along time first, then 3 x 1 along frequency
        size = x.shape[along]
        padded = functional.pad(x, (1, 1, 0, 0) if along == 3 else (0, 0, 1, 1))
        taps = []
        for tap in range(3):
            at = torch.arange(tap, tap + size, layer.conv.stride[along - 2])
            kernel = weight[:, :, 0, tap] if along == 3 else weight[:, :, tap, 0]
            taps.append(torch.einsum("oc,bcfw->bofw", kernel, padded.index_select(along, at)))
        x = sum(taps) + bias[None, :, None, None]
        if norm_order == "elu-norm":
            x = torch.where(x > 0, x, x.exp() - 1)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        variance = x.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        x = (x - mean) / (variance + 1e-5).sqrt() * layer.norm.weight.double() + layer.norm.bias.double()
        if norm_order == "norm-relu":
            x = x.clamp_min(0)
    code = []
    slices = x.flatten(1).chunk(network.dim, dim=1)
    for d, own in enumerate(slices):
        rows = slice(d * 32, (d + 1) * 32)
        hidden = own @ network.head.hidden.weight[rows, :, 0].double().T + network.head.hidden.bias[rows].double()
        hidden = torch.where(hidden > 0, hidden, hidden.exp() - 1)
        code.append(hidden @ network.head.out.weight[d, :, 0].double() + network.head.out.bias[d].double())
    vector = torch.stack(code, dim=1)
    return vector / vector.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("norm_order", ["norm-relu", "elu-norm"])
@pytest.mark.parametrize("strides", ["paper", "code"])
@pytest.mark.parametrize("front_end", ["mel64-16k", "mel256-8k"])
def test_network_is_the_published_equations(norm_order: Any, strides: Any, front_end: Any) -> None:
    network = built(Config(width=1 / 16, dim=16, norm_order=norm_order, strides=strides, front_end=front_end))
    with torch.inference_mode():
        for weight in network.parameters():  # fresh norms are all ones and zeros, which would hide their place
            weight.add_(0.1 * torch.randn_like(weight))
        patch = network.features(waves(3)[:, : round(network.segment_s * network.rate_hz)])
        found, wanted = network.embed(patch), slow_embed(network, patch, norm_order)
    assert float((found - wanted).abs().max()) < 1e-5


def test_the_two_orders_differ() -> None:
    one, two = (built(Config(width=1 / 16, dim=16, norm_order=order)) for order in ("norm-relu", "elu-norm"))  # type: ignore[arg-type]
    assert one.state_dict().keys() == two.state_dict().keys()
    with torch.inference_mode():
        assert not torch.allclose(one(waves()), two(waves()))


# What is promised of every encoder


@pytest.mark.parametrize("config", [SMALL, Config(width=1 / 8, dim=128)])
def test_vectors_have_unit_length(config: Config) -> None:
    with torch.inference_mode():
        vectors = built(config)(waves())
    assert vectors.shape == (6, config.dim) and vectors.dtype == torch.float32
    np.testing.assert_allclose(vectors.norm(dim=1), 1, atol=1e-6)


def test_a_vector_does_not_depend_on_the_rest_of_the_batch() -> None:
    network, wave = built(), waves()
    with torch.inference_mode():
        together = network(wave)
        alone = torch.cat([network(w[None]) for w in wave])
        louder = network(torch.cat([wave[:1], 1000 * wave[1:]]))[:1]
    np.testing.assert_allclose(alone, together, atol=1e-5)  # sums in another order
    np.testing.assert_allclose(louder, together[:1], atol=1e-5)


def test_same_seed_same_weights_and_same_vectors() -> None:
    with torch.inference_mode():
        one, again, other = (built(seed=seed)(waves()) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.allclose(one, other)


@pytest.mark.parametrize("norm_order", ["norm-relu", "elu-norm"])
def test_maps_keep_channels_as_the_fastest_axis(norm_order: Any) -> None:
    network, orders = built(Config(width=1 / 16, dim=16, norm_order=norm_order)), []
    for layer in network.layers:
        for part in (layer, layer.conv):
            part.register_forward_hook(
                lambda _part, _given, out: orders.append(out.is_contiguous(memory_format=torch.channels_last))
            )
    with torch.inference_mode():
        network(waves(2))
    assert len(orders) > 16 and all(orders)


def test_gradient_reaches_every_parameter() -> None:
    network = built().train()
    vectors = network(waves())
    (vectors * torch.randn_like(vectors)).sum().backward()
    for name, weight in network.named_parameters():
        assert weight.grad is not None and torch.isfinite(weight.grad).all() and weight.grad.any(), name


@pytest.mark.parametrize("level", [0.0, 1e-7, 1.0, 1e3])
def test_silence_and_any_level_give_numbers(level: float) -> None:
    with torch.inference_mode():
        vectors = built()(level * waves())
    assert torch.isfinite(vectors).all()
    np.testing.assert_allclose(vectors.norm(dim=1), 1, atol=1e-5)


@pytest.mark.parametrize("front_end", ["mel64-16k", "mel256-8k"])
def test_taps_that_meet_only_padding_are_left_out_in_every_variant(front_end: Any) -> None:
    # Their gradient is zero; the convolution's own, in oneDNN's bf16, is undefined: docs/log.md.
    network = built(Config(width=1 / 16, dim=16, strides="code", front_end=front_end))
    calls = []
    for layer in network.layers:
        layer.register_forward_pre_hook(lambda layer, given: calls.append((layer, given[0].shape)))
    samples = round(network.segment_s * network.rate_hz)
    (network(waves(3)[:, :samples]) * torch.randn(3, 16)).sum().backward()
    dead = 0
    for layer, shape in calls:
        ones = torch.ones_like(layer.conv.weight, requires_grad=True)
        torch.conv2d(torch.ones(1, *shape[1:]), ones, None, layer.conv.stride, layer.conv.padding).sum().backward()
        assert ones.grad is not None and layer.conv.weight.grad is not None
        assert not layer.conv.weight.grad[ones.grad == 0].any()
        dead += int((ones.grad == 0).any())
    # 64 x 96: bands of 2 and 1 at layers 6, 7 and 8, no frame axis of 1. 256 x 32: frames of 2 at layer 6, of 1
    # at layers 7 and 8, bands of 2 at layer 8.
    assert dead == {"mel64-16k": 3, "mel256-8k": 4}[front_end]


def test_training_on_silence_gives_finite_gradients() -> None:
    network = built().train()
    vectors = network(torch.zeros(2, SEGMENT))
    (vectors * torch.randn_like(vectors)).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_weights_come_back_bit_by_bit(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    network = built(seed=1)
    checkpoint.save(path, network.state_dict(), {"step": 3})
    other = built(seed=2)
    assert checkpoint.load_weights(other, path) == {"step": 3}
    with torch.inference_mode():
        assert torch.equal(other(waves()), network(waves()))


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    checkpoint.save(path, built().state_dict(), {})
    with pytest.raises(StoreError, match="another architecture"):
        checkpoint.load_weights(built(Config(width=1 / 8, dim=16)), path)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"dim": 0}, "model.dim must be >= 1, got 0"),
        ({"width": 0.0}, "model.width"),
        ({"width": -1.0}, "model.width"),
        ({"width": 1 / 3}, "model.width"),
        ({"width": 1 / 16}, "multiple of model.dim = 128"),
        ({"dim": 100}, "multiple of model.dim = 100"),
    ],
)
def test_settings_that_make_no_network_are_refused(wrong: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Config(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["tiny", "small", "paper"])
def test_every_preset_makes_a_network_of_128_dimensions(preset: str) -> None:
    config = resolve("now-playing", load("encoder", "now-playing"), preset)
    assert config.model.dim == 128
    if preset == "paper":
        assert config.model == Config()


# The control


def test_random_projection_is_the_same_every_time_whatever_torch_drew_before() -> None:
    torch.manual_seed(1)
    one = random_projection.build(random_projection.Config())
    torch.manual_seed(2)
    two = random_projection.build(random_projection.Config())
    other = random_projection.build(random_projection.Config(seed=1))
    with torch.inference_mode():
        assert torch.equal(one(waves()), two(waves()))
        assert not torch.allclose(one(waves()), other(waves()))


def test_random_projection_is_a_product_with_the_centred_patch() -> None:
    control = random_projection.build(random_projection.Config(dim=8))
    with torch.inference_mode():
        patches = control.features(waves(2)).double().flatten(1)
        code = (patches - patches.mean(dim=1, keepdim=True)) @ control.matrix.double()
        np.testing.assert_allclose(control(waves(2)), code / code.norm(dim=1, keepdim=True), atol=1e-5)
    assert not list(control.parameters())
