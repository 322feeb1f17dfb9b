"""The alignment benchmark: runs every aligner on every pair of every set, and scores the keypoints they return.

Results are stored: of aligners that need an encoder once per encoder, of the others once for all encoders.

Shape legend: K keypoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

import bench
from bench import registry
from bench.align.baseline_grid import oracle
from bench.align.contract import Aligner, Pair, Seconds, TimeMap
from bench.align.pair_embedder import CachedPairEmbedder
from bench.align.pairs import Keypoints, PairFile, PairSource, Problem, list_pair_files, open_pair_file, splits
from bench.align.score import FileScore, Spread, clip_times, compare_files, score_file, score_set
from bench.config import format_plugin_name, load_plugin
from bench.errors import DataError
from bench.fingerprint import Embedder
from bench.registry import name_plugin
from bench.score.statistics import holm
from bench.settings import AlignConfig, RunConfig
from bench.store import Store, digest, read_frame, write_frame
from bench.values import Progress, no_progress

FORMAT = 1  # version of the stored results; part of their keys
BLOCK = 32  # files per stored result: an interrupted run loses at most these
ORACLE = "oracle-of-the-grid"  # the best that `crosscor` and `deeplearning` could choose
KEYPOINTS = "keypoints.parquet"
NO_KEY = "no encoder"  # stands for the encoder's key
TRAIN = "train"  # the split that aligners learn from
WEIGHTS = "aligner.safetensors"


@dataclass(frozen=True)
class Alignments:
    """The results of all aligners."""

    files: pd.DataFrame
    """One row per file and aligner: its score."""

    keypoints: pd.DataFrame
    """One row per keypoint and aligner."""

    left_out: tuple[Problem, ...]
    """Files that could not be used, and aligners that could not be trained."""

    seconds: float
    """Time that all alignments took when they were computed."""


@dataclass(frozen=True)
class AlignerSpec:
    """One aligner of a run: its name (of a plug-in, possibly with a preset), the plug-in module and its settings."""

    name: str
    plugin: ModuleType
    config: Any

    @property
    def key(self) -> str:
        """Return a digest of everything that determines its results, except the encoder."""
        return digest(bench.__version__, self.name, registry.source_digest(self.plugin), asdict(self.config))

    @property
    def learns(self) -> bool:
        """Return whether it is trained on annotated pairs, unless its config names trained weights."""
        return hasattr(self.plugin, "train") and not getattr(self.config, "weights", "")

    def build(self) -> Aligner:
        """Return the aligner, built with its settings."""
        with name_plugin("aligner", self.name, self.plugin, "cannot be built by build(config)"):
            aligner: Aligner = self.plugin.build(self.config)
        return aligner


def aligner_specs(config: RunConfig) -> list[AlignerSpec]:
    """Return the aligners of a run. Raises: ConfigError or PluginError for one that cannot be built."""
    specs = [
        AlignerSpec(
            format_plugin_name(name),
            load_plugin("aligner", name)[0],
            config.aligner[format_plugin_name(name)],
        )
        for name in config.align.aligners
    ]
    for spec in specs:
        if not spec.learns:
            spec.build()
    return specs


def pair_sources(config: RunConfig, root: Path | None) -> list[PairSource]:
    """Return the sources of pairs that a run names. Raises: DataError if the folder of one is missing."""
    return [_build_pairs(name, config.pairs[format_plugin_name(name)], root) for name in config.align.sets]


def _build_pairs(name: str, config: Any, root: Path | None) -> PairSource:
    plugin = registry.load("dataset", name)
    with name_plugin("dataset", format_plugin_name(name), plugin, "cannot be built by build(config, root)"):
        source: PairSource = plugin.build(config, root)
    return source


def evaluate_alignment(
    embedder: Embedder, config: RunConfig, root: Path | None, store: Store, progress: Progress
) -> Alignments:
    """Return the results of every aligner on every pair of every set, from the store or computed now.

    Cost: time of the aligners, and of embedding both channels of each pair at each hop; memory one pair and its
    fingerprints.
    Raises: DataError if a set is missing, or no file can be used.
    """
    aligners = aligner_specs(config)
    frames, untrained, seconds = [], [], 0.0
    for source in pair_sources(config, root):
        folder, content = source.folder(store, progress), source.digest()
        for set_name in source.sets():
            files = list_pair_files(folder, set_name, config.align.split)
            can_train = TRAIN in splits(folder, set_name)
            untrained += [
                Problem(each.name, f"{set_name} by {each.name}, as it has no split {TRAIN!r} to learn from")
                for each in aligners
                if each.learns and not can_train
            ]
            stage = _Stage(
                embedder=embedder,
                source=source,
                content=content,
                folder=folder,
                set_name=set_name,
                split=config.align.split,
                seed=config.seed,
                store=store,
                progress=progress,
            )
            usable = [each for each in aligners if can_train or not each.learns]
            for needs_encoder in (False, True):
                group = [each for each in usable if needs_encoder == each.plugin.NEEDS_ENCODER]
                for start in range(0, len(files) if group else 0, BLOCK):
                    frame, took_s = stage.align_block(group, files, start)
                    frames.append(frame)
                    seconds += took_s
            progress(f"aligning {set_name}", len(files), len(files))
    if not frames:
        raise DataError(f"no pair in the split {config.align.split!r} of {', '.join(config.align.sets)}; name another")
    keypoints = pd.concat(frames, ignore_index=True)
    problems = keypoints[keypoints["problem"] != ""].drop_duplicates(["set", "file"])
    left_out = [*untrained, *(Problem(row["file"], row["problem"]) for row in problems.to_dict("records"))]
    keypoints = keypoints[keypoints["problem"] == ""].drop(columns="problem").reset_index(drop=True)
    if keypoints.empty:
        raise DataError(f"no pair of {', '.join(config.align.sets)} can be used; the first: {left_out[0].reason}")
    return Alignments(score_keypoints(keypoints), keypoints, tuple(left_out), seconds)


@dataclass(frozen=True)
class _Stage:
    """One split of one set, to be aligned block by block."""

    embedder: Embedder
    source: PairSource
    content: str
    folder: Path
    set_name: str
    split: str
    seed: int
    store: Store
    progress: Progress

    def align_block(
        self, aligners: Sequence[AlignerSpec], files: Sequence[PairFile], first: int
    ) -> tuple[pd.DataFrame, float]:
        """Return the keypoints of a block of files, and how many seconds they took when they were computed."""
        needs_encoder = aligners[0].plugin.NEEDS_ENCODER
        encoder_key = (self.embedder.key, self.embedder.precision) if needs_encoder else NO_KEY
        aligner_keys = [each.key for each in aligners]
        away = _name_unreadable(files[first : first + BLOCK])
        key = digest(
            FORMAT, encoder_key, self.content, self.set_name, self.split, self.seed, first, aligner_keys, *away
        )

        def build(folder: Path) -> None:
            embedder = CachedPairEmbedder(self.embedder) if needs_encoder else None
            built = {each.name: self._train_or_load(each) if each.learns else each.build() for each in aligners}
            rows: list[pd.DataFrame] = []
            for i, file in enumerate(files[first : first + BLOCK], first):
                self.progress(f"aligning {self.set_name}", i, len(files))
                with TemporaryDirectory(dir=folder) as scratch:
                    rows += self._align_file(file, built, embedder, Path(scratch))
            write_frame(folder / KEYPOINTS, pd.concat(rows, ignore_index=True))

        folder = self.store.fetch("alignments", key, build)
        return read_frame(folder / KEYPOINTS), self.store.seconds("alignments", key)

    def _train_or_load(self, learner: AlignerSpec) -> Aligner:
        """Return an aligner trained on the split TRAIN, from the store or now. Raises: DataError if that is missing."""
        away = _name_unreadable(list_pair_files(self.folder, self.set_name, TRAIN))
        trained_on = (self.embedder.key, self.embedder.precision, self.content, self.set_name, self.seed, *away)

        def build(folder: Path) -> None:
            with TemporaryDirectory(dir=folder) as scratch:
                opened = [
                    (open_pair_file(file, Path(scratch), self.source.max_lag_s(self.set_name)), file.truth)
                    for file in list_pair_files(self.folder, self.set_name, TRAIN)
                ]
                labelled = [(pair, truth) for pair, truth in opened if isinstance(pair, Pair) and truth is not None]
                trained = learner.plugin.train(
                    learner.config, labelled, CachedPairEmbedder(self.embedder), self.seed, self.progress
                )
                learner.plugin.save(trained, folder / WEIGHTS)

        folder = self.store.fetch("align-weights", digest(FORMAT, learner.key, *trained_on), build)
        aligner: Aligner = learner.plugin.load(folder / WEIGHTS)
        return aligner

    def _align_file(
        self, file: PairFile, aligners: Mapping[str, Aligner], embedder: CachedPairEmbedder | None, scratch: Path
    ) -> Iterator[pd.DataFrame]:
        pair = open_pair_file(file, scratch, self.source.max_lag_s(self.set_name))
        names = {"set": self.set_name, "split": self.split, "file": file.name}
        if isinstance(pair, Problem):
            yield pd.DataFrame([names | {"aligner": "", "problem": pair.reason}])
            return
        truth = file.truth or Keypoints(pair.keypoints, np.full(len(pair.keypoints), np.nan))
        for name, aligner in aligners.items():
            found = aligner.align(pair, embedder, no_progress)
            yield _frame(pair, truth, found).assign(**names, aligner=name)
        if file.truth is not None and embedder is None:
            best_K = oracle(truth.time0_K, truth.time1_K, pair.durations_s[0], pair.max_lag_s)
            yield _frame(pair, truth, best_K).assign(**names, aligner=ORACLE)


def _name_unreadable(files: Sequence[PairFile]) -> list[str]:
    """Return the files that cannot be read now: as part of a key, so that they are not left out for ever."""
    return [file.name for file in files if not file.problem and not os.access(file.path, os.R_OK)]


def _frame(pair: Pair, truth: Keypoints, found: TimeMap | Seconds) -> pd.DataFrame:
    """Return one row per keypoint: its times in both channels as annotated and as found, and the confidence."""
    time0_K = truth.time0_K
    time1_K, confidence_K = (
        (found.at(time0_K), found.confidence_at(time0_K))
        if isinstance(found, TimeMap)
        else (found, np.full(len(found), np.nan))
    )
    return pd.DataFrame(
        {
            "time0_s": time0_K, "time1_s": truth.time1_K, "found1_s": clip_times(time1_K, pair.durations_s[1]),
            "confidence": confidence_K, "problem": "",
        }
    )  # fmt: skip


def score_keypoints(keypoints: pd.DataFrame) -> pd.DataFrame:
    """Return the score of every annotated file by every aligner, one row each."""
    rows = []
    annotated = keypoints[keypoints["time1_s"].notna()]
    for (set_name, split, aligner, file), group in annotated.groupby(["set", "split", "aligner", "file"], sort=False):
        times = (group[column].to_numpy(np.float64) for column in ("time0_s", "time1_s", "time0_s", "found1_s"))
        score = score_file(str(file), *times)
        rows.append({"set": set_name, "split": split, "aligner": aligner} | asdict(score))
        rows[-1] |= {"confidence": float(group["confidence"].mean())}
    return pd.DataFrame(rows, columns=["set", "split", "aligner", *FileScore.__dataclass_fields__, "confidence"])


def summarise_sets(files: pd.DataFrame) -> pd.DataFrame:
    """Return one row per set and aligner: files, MSE and MAE with 95 % intervals, and a test against the best aligner.

    `p` is Wilcoxon's test on the MSE of the same files, corrected by Holm within a set; NaN for the best aligner.
    """
    rows = []
    for (set_name, split), rows_of_set in files.groupby(["set", "split"], sort=False):
        by_aligner = {str(name): group for name, group in rows_of_set.groupby("aligner", sort=False)}
        scores = {name: score_set(_scores(group)) for name, group in by_aligner.items()}
        best = min(
            (name for name in scores if name != ORACLE), key=lambda name: scores[name].mse_s2.mean, default=ORACLE
        )
        others = [name for name in scores if name != best]
        tests = [compare_files(_by_file(by_aligner[best]), _by_file(by_aligner[name])).p for name in others]
        p = dict(zip(others, holm(tests), strict=True))
        for name, score in scores.items():
            row = {"set": set_name, "split": split, "aligner": name, "files": score.num_files}
            for column in ("mse_s2", "mae_ms", "median_ms"):
                row |= _columns(column, getattr(score, column))
            rows.append(row | {"p": p.get(name, np.nan), "best": name == best})
    return pd.DataFrame(rows)


def align_name(config: RunConfig) -> str:
    """Return the name of the benchmark: `aru-sim-align/v1`, or `custom-align` if sets or their settings differ."""
    standard = AlignConfig()
    same = (config.align.sets, config.align.split) == (standard.sets, standard.split)
    same = same and all(each == type(each)() for each in config.pairs.values())
    return f"{'-'.join(standard.sets)}-align/v1" if same else "custom-align"


def alignment_headline(files: pd.DataFrame) -> dict[str, float]:
    """Return the scalars that are logged: `align_mse/<set>/<aligner>` in s^2 and `align_mae_ms/<set>/<aligner>`."""
    headline: dict[str, float] = {}
    for row in summarise_sets(files).to_dict("records"):
        name = f"{row['set']}/{str(row['aligner']).replace(':', '-')}"
        headline |= {f"align_mse/{name}": row["mse_s2"], f"align_mae_ms/{name}": row["mae_ms"]}
    return headline


def submission(keypoints: pd.DataFrame, aligner: str) -> Mapping[str, Keypoints]:
    """Return an aligner's keypoints by file, as `bench.align.pairs.write_keypoints` writes them for the challenge."""
    of_aligner = keypoints[keypoints["aligner"] == aligner]
    return {
        str(file): Keypoints(rows["time0_s"].to_numpy(), rows["found1_s"].to_numpy())
        for file, rows in of_aligner.groupby("file", sort=True)
    }


def _columns(name: str, spread: Spread) -> dict[str, float]:
    return {name: spread.mean, f"{name}_low": spread.low, f"{name}_high": spread.high}


def _scores(files: pd.DataFrame) -> list[FileScore]:
    names = list(FileScore.__dataclass_fields__)
    return [FileScore(**{str(k): v for k, v in row.items()}) for row in files[names].to_dict("records")]


def _by_file(files: pd.DataFrame) -> dict[str, float]:
    return {str(name): float(value) for name, value in zip(files["name"], files["mse_s2"], strict=True)}
