"""Writes and reads a catalogue: one portable folder with all that is needed to identify recordings.

It contains an encoder's weights, the fingerprints and names of the tracks, the index if it can be saved, and the
thresholds above which an answer is accepted. Nothing in it refers to files outside it, and reading unpickles nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch

from bench import registry
from bench.config import format_plugin_name, load_plugin, parse_section
from bench.errors import BenchError, ConfigError, DataError
from bench.fingerprint import Embedder
from bench.plugin_check import build_encoder
from bench.search.cached import keeps, version_of
from bench.search.contract import Index
from bench.search.sign_bits import SignBits, read_sign_bits
from bench.settings import RunConfig
from bench.store import read_array, read_frame, read_json, write_frame, write_json, write_whole
from bench.train import checkpoint
from bench.values import Fingerprints, Floats

FORMAT = 1  # of the folder
ABOUT, WEIGHTS, VECTORS, TRACKS, CALIBRATION, INDEX = (
    "about.json",
    "weights.safetensors",
    "vectors.npy",
    "tracks.parquet",
    "heard.npy",
    "index",
)
BITS = "bits.u8"
ALIKE = 0.999  # least cosine between the known sound's fingerprints here and on the machine that built the catalogue
SAME_LINE = 1  # hops between two lines of a track that are one: clocks differ, and a start lies between two hops


@dataclass(frozen=True)
class Limit:
    """The threshold for queries of one length, and its error rates."""

    segments: int
    """The length of a query in segments."""

    threshold: float
    """Answers with at least this score are accepted."""

    impostors: int
    """How many impostors it was calibrated with."""

    false_accept: float
    """The share of impostors that may be accepted."""

    false_reject: float
    """The share of the same excerpts, searched in the whole database, that are rejected or given another track."""


@dataclass(frozen=True)
class Limits:
    """The thresholds of a catalogue, by the rules of `bench.catalogue.lines`; empty if it was not calibrated."""

    whole: tuple[Limit, ...] = ()
    parts: tuple[Limit, ...] = ()
    pairs: tuple[Limit, ...] = ()
    waves: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """An opened catalogue."""

    folder: Path

    about: dict[str, Any]
    """The content of its `about.json`."""

    tracks: pd.DataFrame
    """Columns id, path, label and seconds, in the order of the database's tracks."""

    left_out: pd.DataFrame
    """Columns path and reason: the files of the folder that are not in the catalogue."""

    embedder: Embedder
    database: Fingerprints
    index: Index

    limits: tuple[Limit, ...]
    """The calibrated thresholds by rising number of segments; empty if the catalogue was not calibrated."""

    part_limits: tuple[Limit, ...]
    """The thresholds of parts of a window, of two lengths, wherever they begin; empty for an older catalogue."""

    pair_limits: tuple[Limit, ...]
    """The thresholds of two neighbouring parts with the same best place, by rising length; empty as above."""

    calibration_QD: Floats
    """Fingerprints of degraded excerpts, to tune an index with."""

    bits: SignBits | None = None
    """The sign bits of the tracks, by which the wave tells times to the sample; None if they were not asked for."""

    wave_limits: tuple[Limit, ...] = ()
    """The least scores by the wave, by rising length; empty without bits, and for a catalogue of before 0.10.0."""

    def threshold(self, num_segments: int) -> float | None:
        """Return the least score at which an answer to a query of so many segments is accepted, None if uncalibrated.

        Between two calibrated lengths it is linear in the logarithm of the number of segments, which is about how it
        falls; beyond them it is constant.
        """
        if not self.limits:
            return None
        return _interpolate(self.limits, num_segments)

    def pair_threshold(self, num_segments: int) -> float | None:
        """Return the least mean score at which two neighbouring parts, each of so many segments, confirm each other.

        None if that is too short to be calibrated. In between it is as in `threshold`.
        """
        if not self.pair_limits or num_segments < self.pair_limits[0].segments:
            return None
        return _interpolate(self.pair_limits, num_segments)

    def wave_threshold(self, num_segments: int) -> float | None:
        """Return the least score by the wave at which a line along so many segments is accepted; None if uncalibrated.

        In between it is as in `threshold`.
        """
        return _interpolate(self.wave_limits, num_segments) if self.wave_limits else None

    def find_limit(self, num_segments: int) -> Limit | None:
        """Return the limit whose error rates hold at a length; None if uncalibrated.

        It is that of the longest calibrated length that is not longer.
        """
        return next(
            (each for each in reversed(self.limits) if each.segments <= num_segments), next(iter(self.limits), None)
        )


def _interpolate(limits: Sequence[Limit], num_segments: int) -> float:
    calibrated = np.log([limit.segments for limit in limits])
    return float(np.interp(np.log(num_segments), calibrated, [limit.threshold for limit in limits]))


def check_free(folder: Path) -> None:
    """Raise ConfigError if the folder of a new catalogue exists already."""
    if folder.exists():
        raise ConfigError(f"{folder} exists already; name another folder, or delete it first")


def write_catalogue(
    folder: Path,
    config: RunConfig,
    weights: Path,
    embedder: Embedder,
    tracks: pd.DataFrame,
    left_out: pd.DataFrame,
    database: Fingerprints,
    index: Index,
    limits: Limits,
    calibration_QD: Floats,
    bits: SignBits | None = None,
) -> None:
    """Write a catalogue, under a temporary name until it is complete. Raises: ConfigError if the folder exists.

    `tracks`, `left_out` and `calibration_QD` are as in `Catalogue`; the index is the first of `config.eval.indexes`.
    """
    index_name = format_plugin_name(config.eval.indexes[0])
    index_config = config.index[index_name]
    with write_whole(folder) as partial:
        (partial / INDEX).mkdir(parents=True)
        shutil.copyfile(weights, partial / WEIGHTS)
        _link_or_copy(Path(str(database.vectors.filename)), partial / VECTORS)  # type: ignore[attr-defined]
        write_frame(partial / TRACKS, tracks)
        np.save(partial / CALIBRATION, calibration_QD)
        index_plugin = load_plugin("index", config.eval.indexes[0])[0]
        if keeps(index_plugin, index_config):
            index_plugin.save(index, partial / INDEX)
        library = getattr(index_plugin, "LIBRARY", "")
        if bits is not None:
            _link_or_copy(Path(str(bits.packed.filename)), partial / BITS)  # type: ignore[attr-defined]
        about = {
            "format": FORMAT,
            "encoder": config.encoder,
            "model": asdict(config.model),
            "precision": embedder.precision,
            "hop_samples": database.hop_samples,
            "first_vector": database.first_vector.tolist(),
            "index": {
                "name": index_name.partition(":")[0],
                "config": asdict(config.index[index_name]),
                "library": version_of(library),
            },
            "known_sound": _embed_known_sound(embedder).tolist(),
            "limits": [asdict(limit) for limit in limits.whole],
            "part_limits": [asdict(limit) for limit in limits.parts],
            "pair_limits": [asdict(limit) for limit in limits.pairs],
            "wave_limits": [asdict(limit) for limit in limits.waves],
            "left_out": left_out.to_dict("records"),
            "bits_samples": None if bits is None else bits.num_samples.tolist(),
            "sizes": {str(path.relative_to(partial)): path.stat().st_size for path in _files(partial)},
            "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        }
        write_json(partial / ABOUT, about)
        check_free(folder)  # another process may have built it in the meantime


def read_catalogue(
    folder: Path,
    model: str | None = None,
    device: torch.device | None = None,
    *,
    trust: bool = False,
    index: str | None = None,
) -> Catalogue:
    """Return the catalogue in a folder.

    `model` is the encoder's plug-in, `index` that of its index, if they are not the installed ones of these names.
    `trust` says that the folder is the
    user's: some libraries trust the index files that they load, so a manipulated one could do harm.

    Raises: DataError if there is no catalogue, if it is incomplete, or if its encoder gives other fingerprints here;
    PluginError if the encoder or the index is not installed.
    """
    about = _about(folder)
    plugin = registry.load("encoder", model) if model else _load_installed("encoder", about["encoder"], folder)
    encoder = build_encoder(plugin, about["encoder"], parse_section("model", plugin.Config, about["model"]))
    try:
        checkpoint.load_weights(encoder, folder / WEIGHTS)
        vectors, calibration_QD = (read_array(folder / name) for name in (VECTORS, CALIBRATION))
        tracks = read_frame(folder / TRACKS)
    except BenchError as error:
        raise DataError(f"the catalogue {folder} cannot be used: {error}") from error
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    embedder = Embedder(encoder.to(device).eval(), device, about["precision"], about["weights_sha256"][:16])
    _check_alike(folder, embedder, np.array(about["known_sound"], dtype=np.float32))
    first_vector = np.array(about["first_vector"], dtype=np.int64)
    if first_vector[-1] != len(vectors) or len(first_vector) != len(tracks) + 1:
        raise DataError(
            f"the catalogue {folder} has {len(vectors)} fingerprints, not those of its tracks; build it again"
        )
    database = Fingerprints(
        vectors, np.arange(len(tracks)), first_vector, about["hop_samples"], about["weights_sha256"][:16]
    )
    return Catalogue(
        folder=folder,
        about=about,
        tracks=tracks,
        left_out=pd.DataFrame(about.get("left_out", []), columns=["path", "reason"], dtype=str),
        embedder=embedder,
        database=database,
        index=_index(folder, about, vectors, trust, index),
        limits=tuple(Limit(**limit) for limit in about["limits"]),
        part_limits=tuple(Limit(**limit) for limit in about.get("part_limits", [])),
        pair_limits=tuple(Limit(**limit) for limit in _pair_limits(about)),
        calibration_QD=calibration_QD,
        bits=_read_bits(folder, about, len(tracks)),
        wave_limits=tuple(Limit(**limit) for limit in about.get("wave_limits", [])),
    )


def _read_bits(folder: Path, about: dict[str, Any], num_tracks: int) -> SignBits | None:
    counts = about.get("bits_samples")
    if counts is None:
        return None
    if len(counts) != num_tracks:
        raise DataError(
            f"the catalogue {folder} has the sign bits of {len(counts)} tracks, not of {num_tracks}; build it again"
        )
    try:
        return read_sign_bits(folder / BITS, counts, about["weights_sha256"][:16])
    except BenchError as error:
        raise DataError(f"the catalogue {folder} cannot be used: {error}") from error


def _pair_limits(about: dict[str, Any]) -> list[dict[str, Any]]:
    if "pair_limits" in about:
        return list(about["pair_limits"])
    return [about["pair_limit"]] if about.get("pair_limit") else []  # one, in catalogues of 0.6.0


def _index(folder: Path, about: dict[str, Any], vectors: Floats, trust: bool, file: str | None) -> Index:
    name = about["index"]["name"]
    if file is not None and format_plugin_name(file) != name:
        raise DataError(
            f"the catalogue {folder} was made with the index {name!r}, not with {file}; give that one's file"
        )
    plugin = registry.load("index", file) if file else _load_installed("index", name, folder)
    config = parse_section(f"index.{name}", plugin.Config, about["index"]["config"])
    if not keeps(plugin, config):
        built: Index = plugin.build(config, vectors)
        return built
    if getattr(plugin, "TRUSTED_FILES_ONLY", False) and not trust:
        raise DataError(
            f"the catalogue {folder} holds an index of {name!r}, and loading a manipulated one could do harm; "
            "if the catalogue is yours, give --trust"
        )
    version = version_of(getattr(plugin, "LIBRARY", ""))
    try:
        loaded: Index = plugin.load(config, folder / INDEX, vectors)
    except BenchError as error:
        built_with = about["index"]["library"]
        raise DataError(
            f"the index of the catalogue {folder} cannot be read ({error}); it was built with {name} {built_with}, "
            f"here is {version}"
        ) from error
    return loaded


def _load_installed(kind: str, name: str, folder: Path) -> ModuleType:
    # By name only: a path would let a catalogue from elsewhere choose which code runs here.
    if name not in registry.names(kind):
        remedy = f"give its file as --{'model' if kind == 'encoder' else 'index-file'}"
        raise DataError(f"the catalogue {folder} was made with the {kind} {name!r}, which is not installed; {remedy}")
    return registry.load(kind, name)


def _about(folder: Path) -> dict[str, Any]:
    """Return the content of `about.json`. Raises: DataError if it is unusable or another file has a wrong size."""
    if not (folder / ABOUT).is_file():
        raise DataError(f"no catalogue in {folder}; build one with `bench catalogue build {folder}`")
    try:
        about: dict[str, Any] = read_json(folder / ABOUT)
        if about["format"] != FORMAT:
            raise DataError(f"the catalogue {folder} has format {about['format']}, this version reads {FORMAT}")
        sizes = about["sizes"].items()
    except (BenchError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / ABOUT} is damaged ({error}); build the catalogue again") from error
    for name, size in sizes:
        path = folder / name
        present = path.stat().st_size if path.is_file() else 0
        if present != size:
            raise DataError(f"{path} has {present} bytes where {size} were written; copy it again or rebuild it")
    return about


def _embed_known_sound(embedder: Embedder) -> Floats:
    """Return the fingerprint of the known sound: noise from a fixed seed that rises in level."""
    samples = embedder.segment_samples
    wave_T = np.random.default_rng(0).standard_normal(samples) * np.linspace(0.01, 0.2, samples)
    vector_D: Floats = embedder(wave_T[None].astype(np.float32))[0]
    return vector_D


def _check_alike(folder: Path, embedder: Embedder, expected_D: Floats) -> None:
    """Raise DataError if the encoder gives the known sound another fingerprint than the recorded one."""
    here_D = _embed_known_sound(embedder)
    if here_D.shape != expected_D.shape or not float(here_D @ expected_D) >= ALIKE:
        raise DataError(
            f"the encoder gives other fingerprints than those in {folder}: its code or its weights have changed; "
            "build the catalogue again, or give the encoder it was built with as --model"
        )


def _link_or_copy(source: Path, target: Path) -> None:
    """Make the target a hard link to the source, to save gigabytes, or a copy if links are impossible here."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
