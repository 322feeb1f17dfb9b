"""The check of an encoder plug-in.

Shape legend: B batch, T samples, C channels, F mel bands, W frames, D dimensions.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from bench.testing._common import SEED, TOLERANCE, check_module, draw_clusters, expect, make_music

if TYPE_CHECKING:
    import torch


def check_encoder(plugin: ModuleType, config: Any = None) -> None:
    """Check an encoder plug-in, built with its default config if none is given.

    Rules: its vectors are finite, of unit length and float32 (B, dim), for silence too; a segment has the same vector
    whatever else is in the batch; calling the encoder is `features`, then `embed`; features have four axes (training
    masks the last two) and no weights to train; `window_features`, if there is one, gives the features of each segment
    of a longer wave; the same seed gives the same weights, which survive a checkpoint bit for bit; every weight takes
    part in training; `objective`, if there is one, returns a finite scalar.
    """
    import torch

    check_module(plugin)
    encoder = _build_seeded(plugin, config)
    _check_attributes(encoder)
    encoder.eval()
    samples = round(encoder.segment_s * encoder.rate_hz)
    wave_BT = torch.from_numpy(make_music(5, samples, encoder.rate_hz))
    with torch.inference_mode():
        _check_vectors(encoder, wave_BT)
        _check_features(encoder, wave_BT)
        _check_windows(encoder, samples)
        _check_batches(encoder, wave_BT)
        _check_weights(encoder, plugin, config, wave_BT)
    _check_learning(encoder, wave_BT)


def _build_seeded(plugin: ModuleType, config: Any) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return plugin.build(plugin.Config() if config is None else config)


def _check_attributes(encoder: Any) -> None:
    import torch

    expect(isinstance(encoder, torch.nn.Module), "build(config) returns a torch.nn.Module", type(encoder).__name__)
    rate_hz, segment_s, dim = encoder.rate_hz, encoder.segment_s, encoder.dim
    expect(isinstance(rate_hz, int) and rate_hz > 0, "rate_hz is a whole number above 0", rate_hz)
    expect(isinstance(dim, int) and dim > 0, "dim is a whole number above 0", dim)
    samples = segment_s * rate_hz
    expect(samples > 0 and abs(samples - round(samples)) < 1e-6, "segment_s holds whole samples at rate_hz", samples)


def _check_vectors(encoder: Any, wave_BT: torch.Tensor) -> None:
    import torch

    waves = {
        "music": wave_BT,
        "silence": torch.zeros_like(wave_BT[:1]),
        "full scale": 2 * wave_BT,
        "a whisper": 1e-4 * wave_BT,
    }
    for what, wave in waves.items():
        vector_BD = encoder(wave)
        expect(vector_BD.shape == (len(wave), encoder.dim), f"vectors of {what} are (B, dim)", tuple(vector_BD.shape))
        expect(vector_BD.dtype == torch.float32, f"vectors of {what} are float32", vector_BD.dtype)
        expect(torch.isfinite(vector_BD).all(), f"vectors of {what} are finite", vector_BD)
        norm_B = torch.linalg.vector_norm(vector_BD, dim=1)
        # A control may have nothing to say about silence: then its vector is zero and finds nothing.
        fits_B = ((norm_B - 1).abs() < TOLERANCE) | (norm_B == 0 if what == "silence" else False)
        expect(fits_B.all(), f"vectors of {what} have length 1", norm_B)


def _check_features(encoder: Any, wave_BT: torch.Tensor) -> None:
    import torch

    feature_BCFW = encoder.features(wave_BT)
    four = feature_BCFW.ndim == 4
    expect(four, "features have the axes (B, C, F, W): training masks the last two", feature_BCFW.shape)
    same = torch.equal(encoder.embed(feature_BCFW), encoder(wave_BT))
    expect(same, "calling the encoder is embed(features(wave))", "other vectors")


def _check_windows(encoder: Any, samples: int) -> None:
    import torch

    if not hasattr(encoder, "window_features"):
        return
    long_BT = torch.from_numpy(make_music(2, 3 * samples, encoder.rate_hz))
    for hop in (encoder.rate_hz // 10, samples // 3 + 1):
        feature_BM = encoder.window_features(long_BT, hop)
        segment_BMT = long_BT.unfold(1, samples, hop)
        alone_X = encoder.features(segment_BMT.reshape(-1, samples))
        shape = (*segment_BMT.shape[:2], *alone_X.shape[1:])
        expect(feature_BM.shape == shape, f"window_features are {shape} at a hop of {hop} samples", feature_BM.shape)
        off = float((feature_BM.flatten(0, 1) - alone_X).abs().max())
        rule = f"window_features are the features of each segment by itself, at a hop of {hop} samples"
        expect(off < TOLERANCE, rule, f"{off:.2g} off")


def _check_batches(encoder: Any, wave_BT: torch.Tensor) -> None:
    import torch

    whole_BD = encoder(wave_BT)
    expect(torch.equal(whole_BD, encoder(wave_BT)), "the same segments have the same vectors", "other vectors")
    alone_BD = torch.cat([encoder(wave_T[None]) for wave_T in wave_BT])
    louder_BD = encoder(torch.cat([100 * wave_BT[1:], wave_BT[:1]]))[-1:]
    off = max(float((alone_BD - whole_BD).abs().max()), float((louder_BD - whole_BD[:1]).abs().max()))
    expect(off < TOLERANCE, "a vector depends on its segment alone, not on the rest of the batch", f"{off:.2g} off")
    spread = float((whole_BD - whole_BD[:1])[1:].abs().max())
    expect(spread > TOLERANCE, "other segments have other vectors", f"all within {spread:.2g}")


def _check_weights(encoder: Any, plugin: ModuleType, config: Any, wave_BT: torch.Tensor) -> None:
    import torch

    from bench.train import checkpoint

    again = _build_seeded(plugin, config).eval()
    expect(torch.equal(again(wave_BT), encoder(wave_BT)), "the same seed builds the same weights", "other vectors")
    other: Any = plugin.build(plugin.Config() if config is None else config).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        checkpoint.save(path, encoder.state_dict(), {})
        checkpoint.load_weights(other, path)
    same = torch.equal(other(wave_BT), encoder(wave_BT))
    expect(same, "weights survive a checkpoint: all that decides a vector is in state_dict()", "other vectors")


def _check_learning(encoder: Any, wave_BT: torch.Tensor) -> None:
    import torch

    weights = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    if not weights:
        return  # a control that does not learn
    encoder.train()
    with torch.no_grad():
        feature_BCFW = encoder.features(torch.cat([wave_BT, wave_BT.flip(0)]))
    target_MD = torch.from_numpy(draw_clusters(len(feature_BCFW), encoder.dim, 1)[0])
    vector_MD = encoder.embed(feature_BCFW)
    loss = (vector_MD * target_MD).sum()
    if hasattr(encoder, "objective"):
        loss = _check_objective(encoder, feature_BCFW, vector_MD, loss)
    loss.backward()
    encoder.eval()
    idle = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
    expect(not idle, "every weight takes part in training", f"no gradient for {', '.join(idle)}")
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight.grad).all()]
    expect(not broken, "gradients are finite", f"NaN or infinity for {', '.join(broken)}")


def _check_objective(
    encoder: Any, feature_MCFW: torch.Tensor, vector_MD: torch.Tensor, contrastive: torch.Tensor
) -> Any:
    import torch

    loss = encoder.objective(feature_MCFW, vector_MD, contrastive)
    what = loss if not isinstance(loss, torch.Tensor) else f"the shape {tuple(loss.shape)}"
    expect(isinstance(loss, torch.Tensor) and loss.ndim == 0, "objective returns a scalar", what)
    expect(torch.isfinite(loss), "objective is finite", loss)
    return loss
