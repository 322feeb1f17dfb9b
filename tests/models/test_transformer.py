import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as functional

from bench.config import resolve
from bench.errors import ConfigError
from bench.models import transformer
from bench.models.transformer import CHANNELS, TOKENS, Config, Transformer, sinusoids
from bench.registry import load
from bench.train.losses import nt_xent

SEGMENT = 15_840
SMALL = Config(width=0.25, layers=1, dim=16)


def built(config: Config = SMALL) -> Transformer:
    torch.manual_seed(0)
    return transformer.build(config).eval()


def parameters(config: Config) -> int:
    return sum(p.numel() for p in transformer.build(config).parameters())


def test_published_network_has_the_number_of_parameters_of_the_released_code() -> None:
    patch = 640 * 128 + 128
    attention = 3 * 128 * 128 + 3 * 128 + 128 * 128 + 128
    layer = attention + 128 * 2048 + 2048 + 2048 * 128 + 128 + 4 * 128
    head = 1280 * 2048 + 2048 + 2 * 2048 + 2048 * 128 + 128 + 2 * 128
    assert parameters(Config()) == patch + 8 * layer + head == 7_716_352


def test_a_layer_less_and_viewed_tokens_change_what_they_should() -> None:
    assert parameters(Config(layers=7)) == 7_716_352 - 593_024
    assert parameters(Config(tokens="viewed")) == 7_716_352


def test_segment_of_99_ms_less_than_a_second_has_a_hundred_frames_alone_and_among_others() -> None:
    encoder = built()
    wave_BT = torch.randn(2, SEGMENT + 3_200) * 0.1
    alone = encoder.features(wave_BT[:, 1_600 : 1_600 + SEGMENT])
    assert alone.shape == (2, 1, 64, 100)
    torch.testing.assert_close(encoder.window_features(wave_BT, 1_600)[:, 1], alone, atol=1e-4, rtol=0)


def test_frames_of_the_first_token_change_no_other_before_the_first_layer() -> None:
    encoder = built()
    patch = torch.zeros(1, 1, 64, 100)
    patch[..., :10] = torch.randn(64, 10)
    token_NC = encoder.tokens(patch)[0]
    torch.testing.assert_close(token_NC[1:], encoder.position_NC[1:] + encoder.patch.bias)
    assert (token_NC[0] - encoder.position_NC[0] - encoder.patch.bias).abs().max() > 0.1


def test_token_is_a_linear_map_of_its_bands_and_frames() -> None:
    encoder = built()
    patch = torch.randn(1, 1, 64, 100)
    third = functional.conv2d(patch, encoder.patch.weight.view(-1, 1, 64, 10), encoder.patch.bias, stride=(64, 10))
    torch.testing.assert_close(encoder.tokens(patch)[0, 3], third[0, :, 0, 3] + encoder.position_NC[3])


def test_viewed_tokens_mix_times_and_channels_as_the_released_code_does() -> None:
    straight, viewed = built(), built(replace(SMALL, tokens="viewed"))
    patch = torch.randn(2, 1, 64, 100)
    channels = int(CHANNELS * SMALL.width)
    conv_BCN = (straight.tokens(patch) - straight.position_NC).transpose(1, 2)
    expected = conv_BCN.contiguous().view(2, TOKENS, channels)
    torch.testing.assert_close(viewed.tokens(patch) - viewed.position_NC, expected)


def test_positions_by_hand() -> None:
    position = sinusoids(3, 4)
    slow = 10_000**-0.5
    expected = [math.sin(2), math.cos(2), math.sin(2 * slow), math.cos(2 * slow)]
    torch.testing.assert_close(position[2], torch.tensor(expected))
    torch.testing.assert_close(position[0], torch.tensor([0.0, 1.0, 0.0, 1.0]))


def test_layers_are_post_norm_with_relu_and_without_dropout() -> None:
    layer = built().layers[0]
    assert not layer.norm_first and layer.activation is functional.relu
    assert layer.dropout.p == layer.dropout1.p == layer.dropout2.p == layer.self_attn.dropout == 0
    token = torch.randn(1, TOKENS, 32)
    normed = layer(token)
    torch.testing.assert_close(normed.mean(-1), torch.zeros(1, TOKENS), atol=1e-5, rtol=0)  # the norm comes last


def test_loss_depends_on_the_temperature() -> None:
    encoder = built().train()  # batch norm spreads the vectors of an untrained network
    one, other = encoder(torch.randn(4, SEGMENT)), encoder(torch.randn(4, SEGMENT))
    assert abs(nt_xent(one, other, 0.05) - nt_xent(one, other, 1.0)) > 0.01


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"width": 0.3}, "model.width must make 128 x width even .*heads = 8 .*, got 0.3"),
        ({"width": 0.0}, "got 0.0"),
        ({"heads": 3}, "a multiple of model.heads = 3"),
        ({"layers": 0}, "model.layers must be >= 1, got 0"),
        ({"dim": 0}, "model.dim must be >= 1, got 0"),
    ],
)
def test_setting_that_cannot_work_is_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", ["tiny", "small", "paper", "align-small"])
def test_presets_are_read(preset: str) -> None:
    config = resolve("transformer", load("encoder", "transformer"), preset)
    assert config.model.tokens == "transposed"
    if preset == "paper":
        assert config.model == Config() and config.train.loss == "info-nce" and config.train.offset_ms == 40
