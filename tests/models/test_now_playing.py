import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from bench.models import now_playing, random_projection
from bench.models.now_playing import Config, NowPlaying

from bench.audio.frontend import FLOOR_DB, LogMel
from bench.config import resolve
from bench.errors import ConfigError, StoreError
from bench.registry import load
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
            at = torch.arange(tap, tap + size, 2)
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
    assert x.shape[2:] == (1, 1)
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
def test_network_is_the_published_equations(norm_order: str) -> None:
    network = built(Config(width=1 / 16, dim=16, norm_order=norm_order))  # type: ignore[arg-type]
    with torch.inference_mode():
        for weight in network.parameters():  # fresh norms are all ones and zeros, which would hide their place
            weight.add_(0.1 * torch.randn_like(weight))
        patch = network.features(waves(3))
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


# The front end


def mel_weights(num_bands: int, num_bins: int, rate_hz: int) -> np.ndarray:
    """Return HTK's triangles (bands, bins), peaks of one, from 0 Hz to half the rate."""

    def mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    top = mel(rate_hz / 2)
    corners = [700 * (10 ** (top * i / (num_bands + 1) / 2595) - 1) for i in range(num_bands + 2)]
    weights = np.zeros((num_bands, num_bins))
    for band in range(num_bands):
        low, middle, high = corners[band : band + 3]
        for b in range(num_bins):
            hz = b * rate_hz / 2 / (num_bins - 1)
            weights[band, b] = max(0.0, min((hz - low) / (middle - low), (high - hz) / (high - middle)))
    return weights


def slow_patch(wave: np.ndarray) -> np.ndarray:
    """Return the patch of one segment: centred STFT, window 512, hop 160, 64 bands, last frame dropped."""
    padded = np.pad(wave.astype(np.float64), 256, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    frames = np.stack([padded[t * 160 : t * 160 + 512] * window for t in range(96)])
    turns = np.exp(-2j * np.pi * np.outer(np.arange(257), np.arange(512)) / 512)
    power = np.abs(frames @ turns.T) ** 2
    level = 10 * np.log10(np.maximum(mel_weights(64, 257, 16_000) @ power.T, 1e-10))
    return 1 + np.maximum(level - level.max(), -80) / 40


def test_front_end_is_the_log_mel_by_its_definition() -> None:
    wave = waves(2, seed=3)
    patches = LogMel()(wave)
    assert patches.shape == (2, 1, 64, 96)
    for found, one in zip(patches[:, 0].numpy(), wave.numpy(), strict=True):
        np.testing.assert_allclose(found, slow_patch(one), atol=2e-4)  # float32 and 1/40 per dB


@pytest.mark.parametrize("gain", [0.01, 0.3, 10.0])
def test_front_end_does_not_hear_the_level(gain: float) -> None:
    wave = waves()
    np.testing.assert_allclose(LogMel()(gain * wave), LogMel()(wave), atol=2e-4)


def test_front_end_looks_at_each_segment_alone() -> None:
    wave = waves()
    np.testing.assert_allclose(LogMel()(wave)[:1], LogMel()(wave[:1]), atol=1e-6)
    louder = torch.cat([wave[:1], 1000 * wave[1:]])
    np.testing.assert_allclose(LogMel()(louder)[:1], LogMel()(wave)[:1], atol=1e-6)


def test_patches_lie_between_minus_one_and_one_and_silence_is_flat() -> None:
    click = torch.zeros(2, SEGMENT)
    click[0, 5_000] = 1
    patches = LogMel()(click)
    assert FLOOR_DB == 80
    assert float(patches[0].max()) == 1 and float(patches[0].min()) == -1
    assert torch.equal(patches[1], torch.ones(1, 64, 96))


def test_front_end_has_nothing_to_learn_and_nothing_to_save() -> None:
    assert not list(LogMel().parameters()) and not LogMel().state_dict()


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
