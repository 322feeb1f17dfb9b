import pytest
import torch

from bench.config import resolve
from bench.errors import ConfigError
from bench.models import samaf
from bench.models.samaf import Config, Samaf, entropy_loss, hash_loss, similarity
from bench.registry import load
from bench.testing import check_encoder

SMALL = Config(dim=16)


def built(config: Config = SMALL) -> Samaf:
    torch.manual_seed(0)
    return samaf.build(config)


@pytest.mark.parametrize(("dim", "weights"), [(128, 73_216), (256, 277_504)])
def test_lstm_has_the_number_of_weights_of_the_paper_s_two_sizes(dim: int, weights: int) -> None:
    encoder = built(Config(dim=dim))
    assert sum(p.numel() for p in encoder.encoder.parameters()) == weights
    assert sum(p.numel() for p in encoder.parameters()) == 2 * weights + 13 * dim + 13
    assert sum(p.numel() for p in built(Config(dim=dim, tied=True)).parameters()) == weights + 13 * dim + 13
    assert sum(p.numel() for p in built(Config(dim=dim, objective="contrastive")).parameters()) == weights


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        Config(dim=16, tied=True),
        Config(dim=16, decoder="teacher"),
        Config(dim=16, objective="contrastive"),
        Config(dim=16, code="sign"),
    ],
    ids=str,
)
def test_every_variant_keeps_the_contract(config: Config) -> None:
    check_encoder(samaf, config)


def test_hash_loss_by_hand() -> None:
    code = torch.tensor([[1.0, 0], [0, 0], [5, 5]])
    similar = torch.eye(3)
    similar[0, 1] = similar[1, 0] = 0.5
    # Two ordered pairs of similarity 0.5 and squared distance 1: 2 x 0.5 x 1 / 2; no block is a pair with itself.
    assert hash_loss(code, similar).item() == pytest.approx(0.5)


def test_hash_loss_of_equal_codes_and_of_no_pair_is_0() -> None:
    assert hash_loss(torch.ones(4, 3), torch.ones(4, 4)).item() == 0
    assert hash_loss(torch.randn(4, 3), torch.eye(4)).item() == 0


def test_bit_that_is_half_and_half_has_an_entropy_of_1_and_one_that_agrees_of_0() -> None:
    share = torch.tensor([[0.0, 1], [1, 1]])
    torch.testing.assert_close(entropy_loss(share[:, :1], torch.ones(2, 2)), torch.tensor(1.0))
    assert entropy_loss(share[:, 1:], torch.ones(2, 2)).item() < 1e-4
    assert entropy_loss(share, torch.ones(2, 2)).item() == pytest.approx(0.5, abs=1e-4)
    assert entropy_loss(share, torch.eye(2)).item() < 1e-4  # of each block alone


def test_similarity_is_the_cosine_of_the_inputs_over_0_55() -> None:
    block = torch.tensor([[3.0, 4], [4, 3], [-4, 3], [4, -2.4]]).view(4, 1, 2, 1)
    similar = similarity(block)
    assert similar[0, 1].item() == 1 and similar[0, 2].item() == 0  # 24 / 25, and 0
    assert similar[0, 3].item() == pytest.approx((12 - 9.6) / (5 * (16 + 5.76) ** 0.5) / 0.55)


def test_objective_is_the_weighted_sum_of_its_three_losses() -> None:
    encoder = built()
    feature = encoder.features(torch.randn(6, 16_000))
    state, contrastive = encoder.encode(feature), torch.tensor(7.0)
    losses = [
        (encoder.decode(state, feature) - feature).square().mean(),
        hash_loss(state, similarity(feature)),
        entropy_loss((1 + state) / 2, similarity(feature)),
    ]
    for weights in ((1.0, 1.0, 1.0), (0.0, 2.0, 0.5)):
        own = built(Config(dim=16, weights=weights)).objective(feature, encoder.embed(feature), contrastive)
        torch.testing.assert_close(own, sum(w * loss for w, loss in zip(weights, losses, strict=True)))
    given = built(Config(dim=16, objective="contrastive")).objective(feature, encoder.embed(feature), contrastive)
    assert given is contrastive


def test_free_decoder_is_the_lstm_fed_with_its_own_output() -> None:
    encoder = built()
    feature = encoder.features(torch.randn(2, 16_000))
    state = encoder.encode(feature)
    carried, frame, rebuilt = (state[None], torch.zeros(1, 2, 16)), feature[:, 0, :, -1], []
    for _ in range(100):
        out, carried = encoder.decoder(frame[:, None], carried)
        frame = encoder.output(out[:, 0])
        rebuilt.append(frame)
    torch.testing.assert_close(encoder.decode(state, feature)[:, 0], torch.stack(rebuilt, dim=2), atol=1e-5, rtol=1e-4)


def test_signs_have_the_inner_product_of_their_hamming_distance() -> None:
    encoder = built(Config(dim=16, code="sign")).eval()
    wave = torch.randn(5, 16_000) * torch.linspace(0, 1, 16_000)
    vector = encoder(wave)
    assert set(vector.abs().flatten().tolist()) == {0.25}
    differ = (vector[:, None] != vector).sum(2)
    assert differ.max() > 0
    torch.testing.assert_close(vector @ vector.T, 1 - 2 * differ / 16)
    assert len(encoder.train()(wave).abs().unique()) > 2  # training needs gradients


def test_mfcc_ignore_the_level_and_keep_silence_at_zero() -> None:
    encoder = built()
    wave = torch.randn(1, 16_000) * 0.1
    assert encoder.features(wave).shape == (1, 1, 13, 100)
    torch.testing.assert_close(encoder.features(wave), encoder.features(0.3 * wave), atol=1e-3, rtol=0)
    assert encoder.features(torch.zeros(1, 16_000)).abs().max() < 0.1


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"dim": 0}, "model.dim must be >= 1, got 0"), ({"weights": (0.0, 0.0, 0.0)}, "model.weights must be >= 0, not")],
)
def test_setting_that_cannot_work_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**settings)  # type: ignore[arg-type]


def test_presets_are_the_same_network_under_both_losses() -> None:
    plugin = load("encoder", "samaf")
    own, contrastive = (resolve("samaf", plugin, preset) for preset in ("small", "samaf-contrastive"))
    assert (own.model.objective, contrastive.model.objective) == ("own", "contrastive")
    assert own.model.dim == contrastive.model.dim == 128 and own.train.steps == contrastive.train.steps
