"""Checks that a plug-in keeps its contract, to be called from its author's own tests.

Each takes what the author has at hand and returns nothing; what is not kept raises an AssertionError
that says which rule it is and what was found instead. In a plug-in's test file:

    import mine
    from bench.testing import check_encoder

    def test_mine_keeps_the_contract() -> None:
        check_encoder(mine)

They need no data, no network and no GPU, and take seconds on one processor with a small config. They
say nothing about quality: a check that passes means that the benchmark can use the plug-in, and that
its numbers will mean what those of the others mean.

Shape legend: B batch, T samples, N database vectors, Q query vectors, D dimensions, K neighbours.
"""

from __future__ import annotations

import dataclasses
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from bench.degrade.room import DIRECT_AT, Response, ResponseSource, measure_t60
from bench.errors import DataError, StoreError
from bench.search.built import keeps
from bench.values import RATE_HZ, Floats, Ints, Source, Split, Track

if TYPE_CHECKING:
    import torch

SEED = 20
TOLERANCE = 1e-4  # of a unit vector: float32 sums in another order differ by less
CODED = 0.1  # of a similarity: what codes of 8 bytes may confuse


@dataclass(frozen=True)
class Arrays:
    """A source of arrays, for tests that need a data set: waves by track id, each (T,) at 16 kHz.

    `splits` and `labels` hold what is not `train` and not empty. A wave that is an exception is raised
    when its track is loaded.
    """

    waves: Mapping[str, Floats | Exception]
    splits: Mapping[str, Split] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def tracks(self) -> list[Track]:
        """Return one track for each array, in their order."""
        return [Track(i, "", self.splits.get(i, "train"), "test", self.labels.get(i, "")) for i in self.waves]

    def load(self, track: Track) -> Floats:
        """Return the array of a track as float32."""
        wave_T = self.waves[track.id]
        if isinstance(wave_T, Exception):
            raise wave_T
        return wave_T.astype(np.float32)

    def fingerprint(self) -> str:
        """Return a digest of all samples and sides."""
        import hashlib

        told = hashlib.sha256(repr((sorted(self.splits.items()), sorted(self.labels.items()))).encode())
        for name, wave in self.waves.items():
            told.update(name.encode())
            told.update(repr(wave).encode() if isinstance(wave, Exception) else wave.astype(np.float32).tobytes())
        return told.hexdigest()[:16]


def check_encoder(plugin: ModuleType, config: Any = None) -> None:
    """Check an encoder plug-in, built with its default config if none is given.

    Rules: its vectors are finite, of unit length and float32 (B, dim), for silence too; the same for
    the same segment whatever else is in the batch; `features` then `embed` is what calling it does;
    features have four axes (training masks the last two) and do not learn; the same seed gives the
    same weights, which survive a checkpoint bit for bit; every weight takes part in training.
    """
    import torch

    _check_module(plugin)
    encoder = _seeded(plugin, config)
    _require(isinstance(encoder, torch.nn.Module), "build(config) returns a torch.nn.Module", type(encoder).__name__)
    rate_hz, segment_s, dim = encoder.rate_hz, encoder.segment_s, encoder.dim
    _require(isinstance(rate_hz, int) and rate_hz > 0, "rate_hz is a whole number above 0", rate_hz)
    _require(isinstance(dim, int) and dim > 0, "dim is a whole number above 0", dim)
    samples = segment_s * rate_hz
    _require(samples > 0 and abs(samples - round(samples)) < 1e-6, "segment_s holds whole samples at rate_hz", samples)
    encoder.eval()
    wave_BT = torch.from_numpy(_music(5, round(samples), rate_hz))
    with torch.inference_mode():
        _check_vectors(encoder, wave_BT)
        _check_batches(encoder, wave_BT)
        _check_weights(encoder, plugin, config, wave_BT)
    _check_learning(encoder, wave_BT)


def check_index(plugin: ModuleType, config: Any = None) -> None:
    """Check an index plug-in, built with its default config if none is given.

    Rules: whole numbers (Q, K) of database vectors, best first by inner product (to 0.1 where `exact` is
    False, as codes may confuse them), none twice, -1 only at the end, equal ones by number; any number of
    queries, none included, and a K above the size of the database; read-only vectors are taken and left as
    they are; the same question has the same answer; a stored vector finds itself (nineteen in twenty where
    `exact` is False). An exact index agrees with all inner products. One that can be saved answers the same
    when it is loaded again, and refuses half a file.
    """
    _check_module(plugin)
    config = plugin.Config() if config is None else config
    vectors_ND, queries_QD = _clustered(1_200, 32, 60)
    kept = vectors_ND.copy()
    vectors_ND.flags.writeable = False
    index = plugin.build(config, vectors_ND)
    _require(isinstance(index.exact, bool), "exact is a truth value", index.exact)
    _require(isinstance(index.num_bytes, int) and index.num_bytes > 0, "num_bytes is a size", index.num_bytes)
    found_QK = index.neighbours(queries_QD, 10)
    slack = TOLERANCE if index.exact else CODED
    _check_neighbours(found_QK, vectors_ND, queries_QD, 10, slack)
    again_QK = index.neighbours(queries_QD, 10)
    _require(np.array_equal(found_QK, again_QK), "the same question has the same answer", _first(found_QK, again_QK))
    _require(index.neighbours(queries_QD[:0], 3).shape == (0, 3), "no query is answered by an array of shape (0, K)",
             index.neighbours(queries_QD[:0], 3).shape)  # fmt: skip
    itself = index.neighbours(kept[::12], 1)[:, 0] == np.arange(0, len(kept), 12)
    _require(itself.mean() >= (1.0 if index.exact else 0.95), "a stored vector finds itself", f"{itself.mean():.1%}")
    _require(np.array_equal(vectors_ND, kept), "the database is left as it was", "other values")
    few = plugin.build(config, vectors_ND[:7])
    _check_neighbours(few.neighbours(queries_QD[:4], 9), vectors_ND[:7], queries_QD[:4], 9, slack)
    _check_order_of_equals(plugin, config)
    if keeps(plugin, config):
        _check_kept(plugin, config, index, vectors_ND, queries_QD)
    if index.exact:
        _check_exact(plugin, config, vectors_ND, queries_QD)


def check_source(source: Source) -> None:
    """Check what a data-set plug-in of music or noise returns from `build(config, root)`.

    Rules: tracks with unique ids and known sides, in the same order each time; paths stay below the
    root; the source can be pickled (workers load) and still gives the same audio: mono float32, finite;
    the fingerprint is a text and stays the same.
    """
    tracks = list(source.tracks())
    _require(len(tracks) > 0, "there is at least one track", 0)
    _require(tracks == list(source.tracks()), "tracks() is the same each time", "another order or other tracks")
    ids = [track.id for track in tracks]
    _require(len(set(ids)) == len(ids), "track ids are unique", next((i for i in ids if ids.count(i) > 1), ""))
    for track in tracks:
        _require(isinstance(track, Track), "tracks are bench.values.Track", type(track).__name__)
        _require(
            track.split in get_args(Split), f"a split is one of {get_args(Split)}", f"{track.split!r} of {track.id}"
        )
        path = PurePosixPath(track.path)
        _require(not path.is_absolute() and ".." not in path.parts, "paths stay below the root", track.path)
    told = source.fingerprint()
    _require(isinstance(told, str) and told != "", "fingerprint() is a text", repr(told))
    copy = pickle.loads(pickle.dumps(source))
    _require(told == source.fingerprint() == copy.fingerprint(), "fingerprint() stays the same", copy.fingerprint())
    usable = [track for track in tracks if not track.problem]
    _require(len(usable) > 0, "at least one track is without a problem", tracks[0].problem)
    for track in (usable[0], usable[-1]):
        wave_T = source.load(track)
        _check_wave(wave_T, track.id)
        _require(np.array_equal(wave_T, copy.load(track)), "a track's audio is always the same", track.id)


def check_responses(source: ResponseSource) -> None:
    """Check what a data-set plug-in of kind `rir` returns from `build(config, root)`.

    Rules: unique names, in the same order each time; a response is float32, of a known side, its
    largest peak at DIRECT_AT, the same each time it is loaded, with a t60 that can be measured; the
    fingerprint is a text and stays the same. A response that cannot be used is a DataError.
    """
    names = list(source.names())
    _require(len(names) > 0 and names == list(source.names()), "names() is not empty and the same each time", names)
    _require(len(set(names)) == len(names), "names are unique", names)
    told = source.fingerprint()
    _require(isinstance(told, str) and told == source.fingerprint() != "", "fingerprint() is a text that stays", told)
    usable = 0
    for name in {names[0], names[-1]}:
        try:
            response = source.load(name)
        except DataError:
            continue
        usable += 1
        _check_response(response, name)
        again_T = source.load(name).wave_T
        _require(np.array_equal(response.wave_T, again_T), "a response is always the same", name)
    _require(usable > 0, "the first or the last response can be used", names)


def _require(holds: object, rule: str, found: object) -> None:
    if not holds:
        raise AssertionError(f"the contract says: {rule}; found {found}")


def _check_module(plugin: ModuleType) -> None:
    for name in ("CITE", "LICENSE", "SOURCE"):
        _require(isinstance(getattr(plugin, name, None), str), f"{name} is a text in the module", "none")
    kind = plugin.Config
    _require(dataclasses.is_dataclass(kind), "Config is a dataclass", kind)
    _require(kind.__dataclass_params__.frozen, "Config is frozen", kind)
    _require(kind() == kind(), "Config() works without arguments and equals itself", kind())


def _seeded(plugin: ModuleType, config: Any) -> Any:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return plugin.build(plugin.Config() if config is None else config)


def _music(num_segments: int, num_samples: int, rate_hz: int) -> Floats:
    """Return segments that differ: three gliding tones and noise each, peak 0.5, shape (B, T)."""
    draw = np.random.default_rng(SEED)
    seconds_T = np.arange(num_samples) / rate_hz
    start_hz, end_hz = draw.uniform(80, rate_hz / 4, (2, num_segments, 3, 1))
    turns = start_hz * seconds_T + (end_hz - start_hz) * seconds_T**2 / (2 * seconds_T[-1])
    wave_BT = np.sin(2 * np.pi * turns).sum(axis=1) + 0.1 * draw.standard_normal((num_segments, num_samples))
    scaled: Floats = (0.5 * wave_BT / np.abs(wave_BT).max(axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _check_vectors(encoder: Any, wave_BT: torch.Tensor) -> None:
    import torch

    quiet = torch.zeros_like(wave_BT[:1])
    for what, wave in (
        ("music", wave_BT),
        ("silence", quiet),
        ("full scale", 2 * wave_BT),
        ("a whisper", 1e-4 * wave_BT),
    ):
        vector_BD = encoder(wave)
        _require(vector_BD.shape == (len(wave), encoder.dim), f"vectors of {what} are (B, dim)", tuple(vector_BD.shape))
        _require(vector_BD.dtype == torch.float32, f"vectors of {what} are float32", vector_BD.dtype)
        _require(torch.isfinite(vector_BD).all(), f"vectors of {what} are finite", vector_BD)
        norm_B = torch.linalg.vector_norm(vector_BD, dim=1)
        # A control may have nothing to say about silence: then its vector is zero and finds nothing.
        fits = (norm_B - 1).abs() < TOLERANCE
        _require(
            (fits | (norm_B == 0) if what == "silence" else fits).all(), f"vectors of {what} have length 1", norm_B
        )
    feature_B = encoder.features(wave_BT)
    _require(feature_B.ndim == 4, "features have the axes (B, C, F, W): training masks the last two", feature_B.shape)
    same = torch.equal(encoder.embed(feature_B), encoder(wave_BT))
    _require(same, "calling the encoder is embed(features(wave))", "other vectors")


def _check_batches(encoder: Any, wave_BT: torch.Tensor) -> None:
    import torch

    whole_BD = encoder(wave_BT)
    _require(torch.equal(whole_BD, encoder(wave_BT)), "the same segments have the same vectors", "other vectors")
    alone_BD = torch.cat([encoder(wave_T[None]) for wave_T in wave_BT])
    louder_BD = encoder(torch.cat([100 * wave_BT[1:], wave_BT[:1]]))[-1:]
    off = max(float((alone_BD - whole_BD).abs().max()), float((louder_BD - whole_BD[:1]).abs().max()))
    _require(off < TOLERANCE, "a vector depends on its segment alone, not on the rest of the batch", f"{off:.2g} off")
    spread = float((whole_BD - whole_BD[:1])[1:].abs().max())
    _require(spread > TOLERANCE, "other segments have other vectors", f"all within {spread:.2g}")


def _check_weights(encoder: Any, plugin: ModuleType, config: Any, wave_BT: torch.Tensor) -> None:
    import torch

    from bench.train import checkpoint

    twin = _seeded(plugin, config).eval()
    _require(torch.equal(twin(wave_BT), encoder(wave_BT)), "the same seed builds the same weights", "other vectors")
    other: Any = plugin.build(plugin.Config() if config is None else config).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        checkpoint.save(path, encoder.state_dict(), {})
        checkpoint.load_weights(other, path)
    same = torch.equal(other(wave_BT), encoder(wave_BT))
    _require(same, "weights survive a checkpoint: all that decides a vector is in state_dict()", "other vectors")


def _check_learning(encoder: Any, wave_BT: torch.Tensor) -> None:
    import torch

    weights = {name: weight for name, weight in encoder.named_parameters() if weight.requires_grad}
    if not weights:
        return  # a control that does not learn
    encoder.train()
    with torch.no_grad():
        feature_B = encoder.features(wave_BT)
    target_BD = torch.from_numpy(_clustered(len(wave_BT), encoder.dim, 1)[0])
    (encoder.embed(feature_B) * target_BD).sum().backward()
    encoder.eval()
    idle = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
    _require(not idle, "every weight takes part in training", f"no gradient for {', '.join(idle)}")
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight.grad).all()]
    _require(not broken, "gradients are finite", f"NaN or infinity for {', '.join(broken)}")


def _clustered(num_vectors: int, dim: int, num_queries: int) -> tuple[Floats, Floats]:
    """Return unit vectors around a few centres, and queries near some of them."""
    draw = np.random.default_rng(SEED)
    centres = draw.standard_normal((max(1, num_vectors // 20), dim))
    vectors_ND = centres[draw.integers(len(centres), size=num_vectors)] + 0.5 * draw.standard_normal((num_vectors, dim))
    queries_QD = vectors_ND[draw.integers(num_vectors, size=num_queries)] + 0.1 * draw.standard_normal(
        (num_queries, dim)
    )
    unit = [(v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32) for v in (vectors_ND, queries_QD)]
    return unit[0], unit[1]


def _check_neighbours(found_QK: Ints, vectors_ND: Floats, queries_QD: Floats, top_k: int, slack: float) -> None:
    _require(found_QK.shape == (len(queries_QD), top_k), "neighbours are (Q, K)", found_QK.shape)
    _require(found_QK.dtype == np.int64, "neighbours are int64", found_QK.dtype)
    inside = (found_QK >= -1) & (found_QK < len(vectors_ND))
    _require(inside.all(), "neighbours are numbers of database vectors, or -1", found_QK[~inside][:1])
    for query_D, found_K in zip(queries_QD, found_QK, strict=True):
        number = found_K[found_K >= 0]
        _require((found_K[: len(number)] >= 0).all(), "-1 comes only after all that was found", found_K)
        _require(len(set(number.tolist())) == len(number), "no vector is found twice", found_K)
        similarity = vectors_ND[number] @ query_D
        _require((np.diff(similarity) <= slack).all(), "neighbours come best first", similarity)


def _check_exact(plugin: ModuleType, config: Any, vectors_ND: Floats, queries_QD: Floats) -> None:
    similarity_QN = queries_QD.astype(np.float64) @ vectors_ND.astype(np.float64).T
    best_QK = np.argsort(-similarity_QN, axis=1, kind="stable")[:, :10]
    found_QK = plugin.build(config, vectors_ND).neighbours(queries_QD, 10)
    short = np.take_along_axis(similarity_QN, best_QK, 1) - np.take_along_axis(similarity_QN, found_QK, 1)
    _require(
        np.abs(short).max() < TOLERANCE, "an exact index finds the largest inner products", _first(best_QK, found_QK)
    )
    few = plugin.build(config, vectors_ND[:7]).neighbours(queries_QD, 9)
    _require((np.sort(few, axis=1) == [-1, -1, *range(7)]).all(), "a K above the size of the database finds all", few)


def _check_kept(plugin: ModuleType, config: Any, index: Any, vectors_ND: Floats, queries_QD: Floats) -> None:
    found_QK = index.neighbours(queries_QD, 10)
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        plugin.save(index, folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        _require(len(files) > 0, "save writes at least one file below the folder", 0)
        again_QK = plugin.load(config, folder, vectors_ND).neighbours(queries_QD, 10)
        _require(np.array_equal(found_QK, again_QK), "a loaded index answers as the saved one",
                 _first(found_QK, again_QK))  # fmt: skip
        largest = max(files, key=lambda path: path.stat().st_size)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        try:
            plugin.load(config, folder, vectors_ND)
        except StoreError:
            return
    _require(False, "load raises StoreError for a file that is cut off", largest.name)


def _check_order_of_equals(plugin: ModuleType, config: Any) -> None:
    axes_ND = np.tile(np.eye(4, 8, dtype=np.float32), (25, 1))  # inner products of these are exactly 0 or 1
    index = plugin.build(config, axes_ND)
    alike_QK = index.neighbours(axes_ND[:4], 30)
    wanted_QK = np.argsort(-(axes_ND[:4] @ axes_ND.T), axis=1, kind="stable")[:, :30]
    if not index.exact:  # what it did not find has no order
        similarity_QK = np.take_along_axis(axes_ND[:4] @ axes_ND.T, np.maximum(alike_QK, 0), 1)
        order_QK = np.lexsort((alike_QK, -similarity_QK, alike_QK < 0), axis=1)
        wanted_QK = np.take_along_axis(alike_QK, order_QK, 1)
    same = np.array_equal(alike_QK, wanted_QK)
    _require(same, "equal neighbours come by number", _first(wanted_QK, alike_QK))


def _first(one_QK: Ints, other_QK: Ints) -> str:
    if one_QK.shape != other_QK.shape:
        return f"shapes {one_QK.shape} and {other_QK.shape}"
    query = int(np.argmax((one_QK != other_QK).any(axis=1)))
    return f"{other_QK[query].tolist()} where {one_QK[query].tolist()} was wanted"


def _check_wave(wave_T: Floats, name: str) -> None:
    _require(isinstance(wave_T, np.ndarray) and wave_T.dtype == np.float32, f"audio of {name} is float32", type(wave_T))
    _require(wave_T.ndim == 1 and len(wave_T) > 0, f"audio of {name} is mono, shape (T,)", wave_T.shape)
    _require(np.isfinite(wave_T).all(), f"audio of {name} is finite", "NaN or infinity")
    peak = float(np.abs(wave_T).max())
    # Lossy decoders overshoot full scale a little; samples that were never divided by it do by far.
    _require(peak < 8, f"audio of {name} is scaled so that full scale is 1", f"a peak of {peak:g}")
    _require(len(wave_T) > RATE_HZ // 1000, f"audio of {name} lasts over a millisecond", f"{len(wave_T)} samples")


def _check_response(response: Response, name: str) -> None:
    _require(response.name == name, "a response has the name it was asked by", response.name)
    _require(response.split in get_args(Split), f"a split is one of {get_args(Split)}", response.split)
    _check_wave(response.wave_T, name)
    peak = int(np.argmax(np.abs(response.wave_T)))
    _require(peak == DIRECT_AT, f"the direct sound is at sample {DIRECT_AT}: use bench.degrade.room.align", peak)
    measure_t60(response.wave_T)
