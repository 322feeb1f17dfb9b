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

Shape legend: B batch, T samples, N database vectors, Q query vectors, D dimensions, K neighbours or keypoints.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from bench.align.contract import Aligner, Pair, PairEmbedder, TimeMap
from bench.align.pairs import LAYOUT, Keypoints, PairFile, PairSource, Problem, list_pair_files, open_pair_file, splits
from bench.degrade.room import DIRECT_AT, Response, ResponseSource, measure_t60
from bench.errors import DataError, StoreError
from bench.search.cached import keeps
from bench.store import Store
from bench.values import RATE_HZ, Floats, Ints, Source, Split, Track, no_progress

if TYPE_CHECKING:
    import torch

SEED = 20
TOLERANCE = 1e-4  # of a unit vector: float32 sums in another order differ by less
CODED = 0.1  # of a similarity: what codes of 8 bytes may confuse
SCENE_S = 12  # of the pairs that an aligner is asked about
LAG_S = 0.6  # of their channel 1
MOST_LAG_S = 1.0  # that such a pair promises
OFF_S = 0.3  # what a confident answer may be off: a turned sign is off by 1.2, the baselines' grids by 0.2
SURE = 0.5  # a confidence from which on a pair is believed
ROUNDING_S = 1e-6


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

    def digest(self) -> str:
        """Return a digest of all samples and sides."""
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
    encoder = _build_seeded(plugin, config)
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
    vectors_ND, queries_QD = _draw_clusters(1_200, 32, 60)
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
    told = source.digest()
    _require(isinstance(told, str) and told != "", "fingerprint() is a text", repr(told))
    copy = pickle.loads(pickle.dumps(source))
    _require(told == source.digest() == copy.digest(), "fingerprint() stays the same", copy.digest())
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
    told = source.digest()
    _require(isinstance(told, str) and told == source.digest() != "", "fingerprint() is a text that stays", told)
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


def check_aligner(plugin: ModuleType, config: Any = None, ears: PairEmbedder | None = None) -> None:
    """Check an aligner plug-in, built with its default config if none is given; one that hears gets these ears.

    Rules: every pair has a valid map, whatever its channels' lengths, read-only waves included; the same pair has
    the same map, whatever it is called and whatever was asked before; silence in a channel gives a low confidence; a
    confident map has the lag, positive where channel 1 is later. One that learns is trained here on two pairs: the
    same seed gives the same answers, and a loaded one those of the saved one.
    Without `ears` they are the random projection, which needs no training.
    """
    _check_module(plugin)
    _require(isinstance(plugin.NEEDS_ENCODER, bool), "NEEDS_ENCODER is a truth value", plugin.NEEDS_ENCODER)
    config, ears = plugin.Config() if config is None else config, _build_untrained_embedder() if ears is None else ears
    aligner = _train_or_build(plugin, config, ears)
    heard = ears if plugin.NEEDS_ENCODER else None
    later, earlier = _scene("later", LAG_S), _scene("earlier", -LAG_S)
    found = _align(aligner, later, heard)
    for pair, lag_s, its in ((later, LAG_S, found), (earlier, -LAG_S, _align(aligner, earlier, heard))):
        off_s = float(np.median(its.at(pair.keypoints) - pair.keypoints)) - lag_s
        believed = float(its.confidence_at(pair.keypoints).mean()) >= SURE
        _require(not believed or abs(off_s) <= OFF_S, "a confident map has the lag, positive where channel 1 is later",
                 f"{lag_s + off_s:+.2f} s where {lag_s:+.2f} s was wanted")  # fmt: skip
    _check_same_map(found, _align(aligner, later, heard), "the same pair has the same map, whatever was asked before")
    renamed = dataclasses.replace(later, name="another", key="another")
    _check_same_map(found, _align(aligner, renamed, heard), "a map does not depend on the pair's name or key")
    for pair in _build_silent_pairs(later):
        confidence = float(_align(aligner, pair, heard).confidence_at(pair.keypoints).mean())
        _require(confidence < SURE, f"{pair.name} gives a confidence below {SURE:g}", f"{confidence:.2f}")
    for pair in _build_uneven_pairs(later):
        _align(aligner, pair, heard)


def check_pairs(source: PairSource) -> None:
    """Check what a data-set plug-in of kind `pairs` returns from `build(config, root)`.

    Rules: unique names of sets, the same each time; a folder in the challenge's layout that holds all of them, the
    same at the second call, and, where it is made, bit for bit the same in another store; a fingerprint that is a
    text and stays the same; in every set a first or last file of a split that can be used, whose annotated times are
    inside both channels, never fall and are no further apart than the set promises; no file in two splits.
    Made sets are made twice: give a config of short and few files.
    """
    names = list(source.sets())
    _require(len(names) > 0 and names == list(source.sets()), "sets() is not empty and the same each time", names)
    _require(len(set(names)) == len(names), "names of sets are unique", names)
    told = source.digest()
    _require(isinstance(told, str) and told != "", "fingerprint() is a text", repr(told))
    with tempfile.TemporaryDirectory() as scratch:
        one, other = (Store(Path(scratch) / name) for name in ("one", "other"))
        folder, twin = source.folder(one, no_progress), source.folder(other, no_progress)
        again = source.folder(one, no_progress)
        _require(again == folder, "folder() is the same at the second call", again)
        if folder != twin:  # made, not the user's own
            changed = _contents(folder) ^ _contents(twin)
            _require(not changed, "a set that is made again is the same", sorted(name for name, _ in changed)[:1])
        _require(told == source.digest(), "fingerprint() stays the same", source.digest())
        for name in names:
            _check_set(source, folder, name, Path(scratch) / "waves")


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


def _build_seeded(plugin: ModuleType, config: Any) -> Any:
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

    twin = _build_seeded(plugin, config).eval()
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
    target_BD = torch.from_numpy(_draw_clusters(len(wave_BT), encoder.dim, 1)[0])
    (encoder.embed(feature_B) * target_BD).sum().backward()
    encoder.eval()
    idle = [name for name, weight in weights.items() if weight.grad is None or not weight.grad.any()]
    _require(not idle, "every weight takes part in training", f"no gradient for {', '.join(idle)}")
    broken = [name for name, weight in weights.items() if not torch.isfinite(weight.grad).all()]
    _require(not broken, "gradients are finite", f"NaN or infinity for {', '.join(broken)}")


def _draw_clusters(num_vectors: int, dim: int, num_queries: int) -> tuple[Floats, Floats]:
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


def _build_untrained_embedder() -> PairEmbedder:
    import torch

    from bench.align.pair_embedder import CachedPairEmbedder
    from bench.fingerprint import Embedder
    from bench.registry import load

    plugin = load("encoder", "random-projection")
    return CachedPairEmbedder(Embedder(plugin.build(plugin.Config()).eval(), torch.device("cpu"), "fp32", "check"))


def _scene(name: str, lag_s: float) -> Pair:
    """Return gliding tones in two recordings with a little noise of their own; read-only, as memory maps are."""
    draw = np.random.default_rng(SEED)
    margin, size = round(MOST_LAG_S * RATE_HZ), SCENE_S * RATE_HZ
    sound_T = _music(2 * SCENE_S + 4, RATE_HZ // 2, RATE_HZ).reshape(-1)
    starts = (margin, margin - round(lag_s * RATE_HZ))
    waves = [(sound_T[at : at + size] + 0.002 * draw.standard_normal(size)).astype(np.float32) for at in starts]
    return _pair(name, *waves)


def _pair(name: str, wave0_T: Floats, wave1_T: Floats) -> Pair:
    for wave_T in (wave0_T, wave1_T):
        wave_T.flags.writeable = False
    return Pair(name, wave0_T, wave1_T, name, MOST_LAG_S)


def _build_silent_pairs(pair: Pair) -> list[Pair]:
    quiet_T = np.zeros_like(pair.wave0_T)
    return [
        _pair("silence in both channels", quiet_T, quiet_T),
        _pair("silence in channel 0", quiet_T, pair.wave1_T),
        _pair("silence in channel 1", pair.wave0_T, quiet_T),
    ]


def _build_uneven_pairs(pair: Pair) -> list[Pair]:
    whole0_T, whole1_T, third = pair.wave0_T, pair.wave1_T, len(pair.wave0_T) // 3
    return [
        _pair("a shorter channel 1", whole0_T, whole1_T[:third]),
        _pair("a shorter channel 0", whole0_T[:third], whole1_T),
        _pair("a fifth of a second", whole0_T[: RATE_HZ // 5], whole1_T[: RATE_HZ // 5]),
        _pair("a single sample", whole0_T[:1], whole1_T[:1]),
    ]


def _align(aligner: Aligner, pair: Pair, ears: PairEmbedder | None) -> TimeMap:
    rule = f"a pair has a valid map ({pair.name}: {' and '.join(f'{s:g}' for s in pair.durations_s)} s)"
    try:
        found = aligner.align(pair, ears, no_progress)
    except Exception as error:
        raise AssertionError(f"the contract says: {rule}; found {type(error).__name__}: {error}") from error
    _require(isinstance(found, TimeMap), rule, type(found).__name__)
    return found


def _check_same_map(one: TimeMap, other: TimeMap, rule: str) -> None:
    parts = ("time0_K", "time1_K", "confidence_K")
    differing = [part for part in parts if not np.array_equal(getattr(one, part), getattr(other, part))]
    _require(not differing, rule, f"another {' and '.join(differing)}")


def _train_or_build(plugin: ModuleType, config: Any, ears: PairEmbedder) -> Aligner:
    """Return an aligner that can be asked: one that learns, and is told no weights, is trained and read back."""
    learns = hasattr(plugin, "train") and not getattr(config, "weights", "")
    if not learns:
        built: Aligner = plugin.build(config)
        return built
    lacking = [part for part in ("save", "load") if not hasattr(plugin, part)]
    _require(not lacking, "an aligner that learns has train, save and load", f"no {' and '.join(lacking)}")
    labelled = []
    for lag_s in (LAG_S, -LAG_S):
        pair = _scene(f"to learn from {lag_s:+g}", lag_s)
        truth = Keypoints(pair.keypoints, (pair.keypoints + lag_s).clip(0, pair.durations_s[1]))
        labelled.append((pair, truth))
    trained, twin = (plugin.train(config, labelled, ears, SEED, no_progress) for _ in range(2))
    heard = ears if plugin.NEEDS_ENCODER else None
    asked = _scene("asked", LAG_S)
    found = _align(trained, asked, heard)
    _check_same_map(found, _align(twin, asked, heard), "the same seed trains the same aligner")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        plugin.save(trained, path)
        loaded: Aligner = plugin.load(path)
    _check_same_map(found, _align(loaded, asked, heard), "a loaded aligner answers as the saved one")
    return loaded


def _contents(folder: Path) -> set[tuple[str, str]]:
    files = [path for path in (folder / LAYOUT).rglob("*") if path.is_file()]
    return {(path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def _check_set(source: PairSource, folder: Path, name: str, scratch: Path) -> None:
    most_s = source.max_lag_s(name)
    _require(np.isfinite(most_s) and most_s > 0, f"the largest lag of {name} is above 0 s", most_s)
    sides: dict[str, str] = {}
    try:
        listed = {split: list_pair_files(folder, name, split) for split in splits(folder, name)}
    except DataError as error:
        raise AssertionError(f"the contract says: folder() has the layout; found {error}") from error
    for split, files in listed.items():
        usable = [task for task in files if not task.problem]
        for task in (usable[0], usable[-1]) if usable else ():
            pair = open_pair_file(task, scratch, most_s)
            if isinstance(pair, Problem):
                continue
            _check_truth(task, pair)
            first = sides.setdefault(pair.key, split)
            _require(first == split, "no recording is in two splits", f"{task.name} of {split} in {first} too")
    reasons = [task.problem for files in listed.values() for task in files if task.problem]
    _require(sides, f"the first or the last file of a split of {name} can be used", reasons[:1] or "no file")


def _check_truth(task: PairFile, pair: Pair) -> None:
    if task.truth is None:
        return
    time0_K, time1_K = task.truth.time0_K, task.truth.time1_K
    for time_K, length_s in zip((time0_K, time1_K), pair.durations_s, strict=True):
        inside = (time_K >= 0) & (time_K <= length_s + ROUNDING_S)
        _require(inside.all(), f"annotated times of {task.name} are inside the recording", time_K[~inside][:1])
    _require((np.diff(time1_K) >= 0).all(), f"annotated times of {task.name} never fall", time1_K)
    far_s = float(np.abs(time1_K - time0_K).max())
    _require(far_s <= pair.max_lag_s + ROUNDING_S, f"lags of {task.name} are at most {pair.max_lag_s:g} s", far_s)
