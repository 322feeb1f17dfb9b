"""Searches the fingerprints of an encoder: embed, nearest neighbours by each index, sequence search.

Shape legend: B batch, T samples, Q queries, M segments of a query, D dimensions, K neighbours, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from bench import registry
from bench.audio.pcm import Corpus
from bench.config import format_plugin_name, load_plugin
from bench.degrade.queries import hop_samples
from bench.fingerprint import Embedder, fingerprint_queries, fingerprint_tracks
from bench.search.cached import build_or_load
from bench.search.contract import Index
from bench.search.diagonal import Scan, Wanted, scan
from bench.search.distractors import score_distractors
from bench.search.edit_distance import align_by_edits
from bench.search.neighbours import MARGIN, neighbours_of, shares_product
from bench.search.repetitions import find_repeated_samples, find_repetitions
from bench.search.searcher import Answers, Search
from bench.search.sequence import Ranking, interpolate, rescore, vote, vote_half
from bench.search.sign_bits import SignBits, prepare_sign_bits
from bench.search.verify import Candidates, are_candidates, list_speeds, verify
from bench.settings import COUNTING_SEQUENCES, EvalConfig
from bench.store import Store
from bench.timing import Timer
from bench.values import RATE_HZ, Fingerprints, Floats, Found, Ints, Progress


@dataclass(frozen=True, eq=False)
class EncoderSearcher:
    """The fingerprints of the database, with each index of `eval.indexes`."""

    embedder: Embedder
    database: Fingerprints
    music: Corpus
    bits: SignBits | None
    """The whitened tracks; None unless `verify` is among the sequence searches."""

    config: EvalConfig
    index_of: Callable[[str], Index]
    key: tuple[object, ...]
    seconds: float
    timed: Timer

    @property
    def tracks(self) -> Ints:
        """Return the numbers of the database's tracks."""
        return self.database.tracks

    @property
    def device(self) -> torch.device:
        """Return where the network runs."""
        return self.embedder.device

    @property
    def facts(self) -> dict[str, Any]:
        """Return the size of the database."""
        return {"database_tracks": len(self.database.tracks), "database_vectors": len(self.database.vectors)}

    def searches(self) -> list[Search]:
        """Return the search of each index with `rescore`, and that of the first index with `verify`."""
        searches = [
            Search(name, "rescore", partial(self._answer, index), index.num_bytes, 0)
            for name in map(format_plugin_name, self.config.indexes)
            for index in [self.index_of(name)]
        ]
        if self.bits is not None:
            name = format_plugin_name(self.config.indexes[0])
            index = self.index_of(name)
            num_bytes = index.num_bytes + self.bits.packed.nbytes
            searches.append(Search(name, "verify", partial(self._answer_by_wave, index), num_bytes, 0))
        return searches

    def fingerprint(self, tracks: Iterable[npt.NDArray[np.int16]]) -> None:
        """Embed whole tracks and drop the vectors."""
        for wave_T in tracks:
            self.embedder.windows(wave_T[None], self.database.hop_samples)

    def score_distractors(
        self, waves: Iterable[Floats], track_Q: Ints, blocks: Iterable[Fingerprints], sizes: Sequence[int]
    ) -> Floats:
        """Return the best score (Q, S) of each query among the first vectors of distractors, for each size."""
        vectors_QMD = fingerprint_queries(self.embedder, iter(waves), self.database.hop_samples)
        return score_distractors(vectors_QMD, track_Q, blocks, sizes, self.device)

    def _answer(self, index: Index, wave_BT: Floats) -> Ranking:
        vectors_QMD = fingerprint_queries(self.embedder, iter([wave_BT]), self.database.hop_samples)
        neighbours_QMK = neighbours_of(index, vectors_QMD, self.database, self.config.top_k)
        return rescore(vectors_QMD, neighbours_QMK, self.database, self.config.top_k)

    def _answer_by_wave(self, index: Index, wave_BT: Floats) -> Found:
        vectors_QMD = fingerprint_queries(self.embedder, iter([wave_BT]), self.database.hop_samples)
        return self._verify([wave_BT], [self._locate(self._find_candidates(vectors_QMD, index))])[0]

    def search(self, waves: Iterable[Floats], own_Q: Ints) -> Iterator[Answers]:
        """Yield the answers of each index and sequence search; the scores of COUNTING_SEQUENCES are no similarities."""
        with self.timed("mix and embed"):
            vectors_QMD = fingerprint_queries(self.embedder, iter(waves), self.database.hop_samples)
        with self.timed("scan"):
            found = self._scan(vectors_QMD, own_Q)
        impostor_Q = found.rankings[0].scores_QR[:, 0]
        segment_samples = self.embedder.segment_samples
        tolerance_samples = round(self.config.tolerance_ms * RATE_HZ / 1000)
        for index, sequence, ranking in self._rankings(vectors_QMD, found):
            repetitions = partial(find_repetitions, ranking, self.database, vectors_QMD.shape[1], tolerance_samples)
            # Shares of votes or edits are no similarities, so that an impostor's score cannot be compared with them.
            score_Q = np.full_like(impostor_Q, np.nan) if sequence in COUNTING_SEQUENCES else impostor_Q
            yield Answers(
                index,
                sequence,
                ranking.found(self.database, segment_samples),
                score_Q,
                repetitions,
            )
        if self.bits is not None:
            yield from self._search_by_wave(waves, vectors_QMD, found)

    def _search_by_wave(self, waves: Iterable[Floats], vectors_QMD: Floats, found: Scan) -> Iterator[Answers]:
        """Yield the answers of `verify` with each index; an impostor has candidates from the exact search."""
        names = [format_plugin_name(name) for name in self.config.indexes]
        with self.timed("candidates"):
            ranked = [self._find_candidates(vectors_QMD, self.index_of(name), found) for name in names]
            candidates = [self._locate(each) for each in (*ranked, found.rankings[0])]
        with self.timed("verify"):
            *answers, impostors = self._verify(waves, candidates)
        num_samples = next(iter(waves)).shape[1]
        tolerance_samples = round(self.config.tolerance_ms * RATE_HZ / 1000)
        for name, compared, answer in zip(names, candidates, answers, strict=False):
            again = partial(find_repeated_samples, self.music, self.tracks, answer, num_samples, tolerance_samples)
            impostor_Q = impostors.score_QR[:, 0]
            yield Answers(name, "verify", answer, impostor_Q, again, partial(are_candidates, compared))

    def _find_candidates(self, vectors_QMD: Floats, index: Index, found: Scan | None = None) -> Ranking:
        """Return the places (Q, C) that `verify` compares."""
        count = self._num_candidates(vectors_QMD)
        neighbours_QMK = neighbours_of(index, vectors_QMD, self.database, count, found)
        return rescore(vectors_QMD, neighbours_QMK, self.database, count)

    def _num_candidates(self, vectors_QMD: Floats) -> int:
        """Return the number of neighbours of a segment, and of places of a query, that `verify` compares."""
        shared: int = -(-self.config.verify_candidates // vectors_QMD.shape[1])
        return max(self.config.top_k, shared)

    def _verify(self, waves: Iterable[Floats], candidates: Sequence[Candidates]) -> list[Found]:
        assert self.bits is not None
        speeds = list_speeds(self.config.verify_speed, next(iter(waves)).shape[1] / RATE_HZ)
        return verify(waves, candidates, self.bits, self.config.top_k, speeds, self.device)

    def _locate(self, ranking: Ranking) -> Candidates:
        found = ranking.found(self.database, self.embedder.segment_samples)
        return Candidates(found.row_QR, found.start_QR)

    def _scan(self, vectors_QMD: Floats, own_Q: Ints) -> Scan:
        """Return the impostors, the best places outside each query's own track, and what the same products give.

        These are the places of `diagonal`, the second ranking, and candidates for the indexes that share the product.
        """
        verified = self._num_candidates(vectors_QMD) if self.bits is not None else 0
        searches = [Wanted(max(1, verified), own_Q)]
        if "diagonal" in self.config.sequences:
            searches.append(Wanted(self.config.top_k))
        shares = any(shares_product(self.index_of(name)) for name in map(format_plugin_name, self.config.indexes))
        num_candidates = max(self.config.top_k, verified) + MARGIN if shares else 0
        return scan(vectors_QMD, self.database, searches, num_candidates, self.embedder.device)

    def _rankings(self, vectors_QMD: Floats, found: Scan) -> Iterator[tuple[str, str, Ranking]]:
        """Yield index, sequence search and ranking. `diagonal` uses no index, so it is labelled "exact"."""
        database, top_k, sequences = self.database, self.config.top_k, self.config.sequences
        for index in map(format_plugin_name, self.config.indexes):
            built = self.index_of(index)
            with self.timed(f"search {index}"):
                neighbours_QMK = neighbours_of(built, vectors_QMD, database, top_k, found)
            for sequence, count in (("vote", vote), ("vote-50", vote_half)):
                if sequence in sequences:
                    with self.timed(sequence):
                        voted = count(neighbours_QMK, database, top_k)
                    yield index, sequence, voted
            with self.timed("rescore"):
                rescored = rescore(vectors_QMD, neighbours_QMK, database, top_k)
            yield index, "rescore", rescored
            if "interpolate" in sequences:
                with self.timed("interpolate"):
                    interpolated = interpolate(rescored, vectors_QMD, database)
                yield index, "interpolate", interpolated
            if "edit" in sequences:
                with self.timed("edit"):
                    edited = align_by_edits(vectors_QMD, neighbours_QMK, database, top_k)
                yield index, "edit", edited
        if "diagonal" in sequences:
            yield "exact", "diagonal", found.rankings[1]


def build_encoder_searcher(
    embedder: Embedder,
    music: Corpus,
    config: EvalConfig,
    store: Store,
    progress: Progress,
    indexes: Mapping[str, Any] | None = None,
) -> EncoderSearcher:
    """Return the fingerprints of all test tracks, ready to be searched.

    `indexes` maps the name of an index (`format_plugin_name`) to its Config; a missing index has that of its preset.
    """
    database = fingerprint_tracks(store, embedder, music, music.numbers("test"), hop_samples(config), progress)
    loaded = {format_plugin_name(name): load_plugin("index", name) for name in config.indexes}
    plugins = {name: plugin for name, (plugin, _config) in loaded.items()}
    settings = {name: (indexes or {}).get(name) or of_preset for name, (_plugin, of_preset) in loaded.items()}
    index_keys = [(name, registry.source_digest(plugins[name]), asdict(settings[name])) for name in plugins]
    seconds = store.seconds("fingerprints", database.key)
    index_of = _index_builder(store, plugins, settings, database)
    bits = prepare_sign_bits(store, music, database.tracks, progress) if "verify" in config.sequences else None
    key = (database.key, index_keys, *((bits.key,) if bits else ()))
    return EncoderSearcher(embedder, database, music, bits, config, index_of, key, seconds, store.timed)


def _index_builder(
    store: Store, plugins: Mapping[str, ModuleType], settings: Mapping[str, Any], database: Fingerprints
) -> Callable[[str], Index]:
    """Return a function that builds or loads an index by name, each at most once."""

    @cache
    def index_of(name: str) -> Index:
        return build_or_load(store, plugins[name], settings[name], database.vectors, database.key)

    return index_of
