"""Checks of plug-ins before a run starts to work, told in the words of a plug-in's author.

These are the quick part of `bench.testing`: what would otherwise end a run with a traceback, or give it zeros for
results after an hour of training.

Shape legend: B batch, T samples, D dimensions, C channels, F mel bands, W frames.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.config import format_plugin_name, format_setting, load_plugin
from bench.errors import PluginError
from bench.fingerprint import embed, embed_windows, resample_to, shares_windows
from bench.match.searcher import check_answers
from bench.registry import name_plugin, require_rule
from bench.values import GRID_HOP_SAMPLES, INT16_PEAK, RATE_HZ

MATCHER_PARTS = ("shortest_s", "num_bytes", "fixed_bytes", "find")
MATCHER_SAMPLES = 10 * RATE_HZ  # of each track that a matcher is checked with
ENCODER_PARTS = ("rate_hz", "segment_s", "dim", "features", "embed")
SEGMENTS = 3
TOLERANCE = 1e-3  # of a unit vector: float32 sums in another order differ by far less
LOUDER = 100.0  # by how much the rest of the batch is louder, so that what is scaled by the batch is found
NORMALISE = "end embed with torch.nn.functional.normalize(vectors, dim=1)"


def check_index(name: str, config: Any, dim: int) -> None:
    """Check that the index plug-in `name` (or its path, a preset after a colon) can be built, and searched.

    Raises: PluginError if it cannot, or if its library is not installed.
    """
    plugin, vectors_ND = load_plugin("index", name)[0], np.eye(2, dim, dtype=np.float32)
    called = format_plugin_name(name)
    with name_plugin("index", called, plugin, "cannot be built by build(config, vectors_ND)"):
        index = plugin.build(config, vectors_ND)
    with name_plugin("index", called, plugin, "cannot be searched by neighbours(queries_QD, top_k)"):
        found_QK = index.neighbours(vectors_ND, 2)
        rule = "neighbours(queries_QD, top_k) returns an int64 array of shape (Q, top_k), here (2, 2)"
        found = (getattr(found_QK, "dtype", type(found_QK).__name__), getattr(found_QK, "shape", "no shape"))
        require_rule(found == (np.int64, (2, 2)), rule, " ".join(map(str, found)))


def check_matcher(plugin: ModuleType, name: str, config: Any) -> None:
    """Check that a matcher can be built of two short tracks, loaded and asked.

    Raises: PluginError if it cannot, or if its library is not installed.
    """
    tracks = np.random.default_rng(0).normal(0, 3_000, (2, MATCHER_SAMPLES)).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        with name_plugin("matcher", name, plugin, "cannot be built by build(config, tracks, folder)"):
            plugin.build(config, iter(tracks), Path(folder))
        with name_plugin("matcher", name, plugin, "cannot be loaded by load(config, folder)"):
            matcher = plugin.load(config, Path(folder))
            missing = [part for part in MATCHER_PARTS if not hasattr(matcher, part)]
            require_rule(not missing, f"load returns what has {', '.join(missing)}", type(matcher).__name__)
        with name_plugin("matcher", name, plugin, "cannot be asked by find(wave_BT, num_answers, without_B)"):
            wave_BT = tracks[:1, RATE_HZ : 6 * RATE_HZ].astype(np.float32) / INT16_PEAK
            for without_B in (None, np.zeros(1, dtype=np.int64)):
                check_answers(matcher.find(wave_BT, 3, without_B), (1, 3), len(tracks))


def build_encoder(plugin: ModuleType, name: str, config: Any) -> Any:
    """Return the encoder of a plug-in. Raises: PluginError if its `build` fails or returns something else."""
    with name_plugin("encoder", name, plugin, "cannot be built by build(config)", _format_changes(config)):
        with warnings.catch_warnings():
            # Layers of size 0 fail in `check_encoder`, whose sentence says more.
            warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
            encoder = plugin.build(config)
        is_module = isinstance(encoder, torch.nn.Module)
        require_rule(is_module, "build(config) returns a torch.nn.Module", type(encoder).__name__)
        return encoder


def check_encoder_parts(encoder: Any, plugin: ModuleType, name: str) -> None:
    """Check an encoder's attributes. Raises: PluginError if one is missing, or is no such number."""
    missing = [part for part in ENCODER_PARTS if not hasattr(encoder, part)]
    if missing:
        raise PluginError(f"encoder {name!r} has no {', '.join(missing)}; see `bench.testing.check_encoder`")
    with name_plugin("encoder", name, plugin, "cannot be checked"):
        rate_hz, segment_s, dim = encoder.rate_hz, encoder.segment_s, encoder.dim
        require_rule(isinstance(rate_hz, int) and rate_hz > 0, "rate_hz is a whole number above 0", rate_hz)
        require_rule(isinstance(dim, int) and dim > 0, "dim is a whole number above 0", dim)
        samples = segment_s * rate_hz
        whole = samples > 0 and abs(samples - round(samples)) < 1e-6
        require_rule(whole, "segment_s holds whole samples at rate_hz", samples)


def check_encoder(encoder: Any, plugin: ModuleType, name: str, config: Any, *, trains: bool, masks: bool) -> None:
    """Check an encoder with a few segments on the CPU, as a run uses it, and with a step of training if it `trains`.

    Rules: its vectors have shape (B, dim), are finite and of unit length, and do not depend on the rest of the batch;
    those of overlapping segments are those of each by itself; training works, with an objective of its own if it has
    one, and `masks` needs features with four axes.
    Raises: PluginError with the rule that is broken, or with the error that the plug-in raised.
    """
    settings = _format_changes(config)
    wave_BT = _make_waves(encoder)
    with torch.random.fork_rng([]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about layers of size 0: the sentence below says more
        with name_plugin("encoder", name, plugin, f"fails on {SEGMENTS} segments of {encoder.segment_s} s", settings):
            encoder.eval()
            with torch.inference_mode():
                _check_vectors(encoder, wave_BT)
                _check_batch(encoder, wave_BT)
                _check_windows(encoder, wave_BT)
        if trains:
            with name_plugin("encoder", name, plugin, "fails in training", settings):
                _check_training(encoder, wave_BT, masks)
            encoder.eval()


def _make_waves(encoder: Any) -> Tensor:
    """Return segments of noise (B, T) at the corpus rate that rise in level."""
    num_samples = round(encoder.segment_s * RATE_HZ)
    noise_BT = torch.randn(SEGMENTS, num_samples, generator=torch.Generator().manual_seed(0))
    return noise_BT * torch.linspace(0.01, 0.2, num_samples)


def _check_vectors(encoder: Any, wave_BT: Tensor) -> None:
    vector_BD = embed(encoder, wave_BT, "fp32")
    right = (len(wave_BT), encoder.dim)
    require_rule(vector_BD.shape == right, f"vectors have the shape (B, dim), here {right}", tuple(vector_BD.shape))
    require_rule(torch.isfinite(vector_BD).all(), "vectors are finite", "NaN or infinity")
    length_B = torch.linalg.vector_norm(vector_BD, dim=1)
    unit = ((length_B - 1).abs() < TOLERANCE).all()
    require_rule(
        unit, f"vectors have length 1 ({NORMALISE})", f"lengths of {length_B.min():.3g} to {length_B.max():.3g}"
    )


def _check_batch(encoder: Any, wave_BT: Tensor) -> None:
    alone_D = embed(encoder, wave_BT[:1], "fp32")[0]
    among_D = embed(encoder, torch.cat([wave_BT[:1], LOUDER * wave_BT[1:]]), "fp32")[0]
    off = float((alone_D - among_D).abs().max())
    rule = (
        "a vector depends on its segment alone and not on the rest of the batch, in evaluation mode (scale each "
        "segment by itself, and use batch norm only as a layer with running statistics)"
    )
    require_rule(off < TOLERANCE, rule, f"a vector that changed by {off:.2g}")


def _check_windows(encoder: Any, wave_BT: Tensor) -> None:
    """Check that an encoder which computes overlapping segments together finds what it finds of each by itself."""
    if not shares_windows(encoder):
        return
    long_BT, size = wave_BT.reshape(1, -1), wave_BT.shape[1]
    together_MD = embed_windows(encoder, long_BT, size, GRID_HOP_SAMPLES, "fp32").flatten(0, 1)
    alone_MD = embed(encoder, long_BT[0].unfold(0, size, GRID_HOP_SAMPLES), "fp32")
    rule = "window_features(wave_BT, hop_samples) returns the features (B, M, ...) of each segment by itself"
    same = together_MD.shape == alone_MD.shape
    require_rule(same, rule, f"features of {len(together_MD)} instead of {len(alone_MD)} segments")
    off = float((together_MD - alone_MD).abs().max())
    require_rule(off < TOLERANCE, rule, f"vectors that are {off:.2g} off")


def _check_training(encoder: Any, wave_BT: Tensor, masks: bool) -> None:
    encoder.train()
    with torch.no_grad():  # as in training, where features are computed once and have no weights
        feature_BCFW = encoder.features(resample_to(wave_BT, encoder.rate_hz))
    axes = "features have the axes (B, C, F, W), of which training masks the last two (train.mask_count=0 does not)"
    require_rule(feature_BCFW.ndim == 4 or not masks, axes, tuple(feature_BCFW.shape))
    if any(weight.requires_grad for weight in encoder.parameters()):
        vector_BD = encoder.embed(feature_BCFW)
        require_rule(
            vector_BD.requires_grad, "weights get gradients from embed's vectors", "vectors without a gradient"
        )
        vector_BD.float().sum().backward()
        if hasattr(encoder, "objective"):
            _check_objective(encoder, feature_BCFW)


def _check_objective(encoder: Any, feature_BCFW: Tensor) -> None:
    both_MCFW = torch.cat([feature_BCFW, feature_BCFW])
    vector_MD = encoder.embed(both_MCFW)
    loss = encoder.objective(both_MCFW, vector_MD, vector_MD.float().square().mean())
    rule = "objective(feature_M, vector_MD, contrastive) returns a finite scalar with a gradient"
    require_rule(isinstance(loss, Tensor), rule, type(loss).__name__)
    require_rule(loss.ndim == 0 and loss.requires_grad, rule, f"shape {tuple(loss.shape)}, {loss.requires_grad=}")
    require_rule(loss.isfinite(), rule, loss.item())
    loss.backward()


def _format_changes(config: Any) -> str:
    """Return the settings of an encoder that are not its defaults, since they may be what is wrong."""
    changes = [
        f"model.{item.name}={format_setting(value)}"
        for item in fields(config)
        if (value := getattr(config, item.name)) != item.default and item.default_factory is MISSING
    ]
    return f" with {', '.join(changes)}" if changes else ""
