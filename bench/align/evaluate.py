"""All aligners on all pairs of all sets: keypoints, their errors, and the score of every file.

Aligners that hear with the encoder are a stage of the store for each encoder; the others are computed once for all.

Shape legend: K keypoints.
"""

from __future__ import annotations

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
from bench.score.statistics import holm
from bench.settings import AlignConfig, RunConfig
from bench.store import Store, digest, read_frame, write_frame
from bench.values import Progress, no_progress

FORMAT = 1
BLOCK = 32  # files of a stage: a kill loses at most these
ORACLE = "oracle-of-the-grid"  # the best that `crosscor` and `deeplearning` could choose
KEYPOINTS = "keypoints.parquet"
NO_KEY = "no encoder"
TRAIN = "train"
WEIGHTS = "aligner.safetensors"


@dataclass(frozen=True)
class Alignments:
    """What was found out. `files` has a row a file x aligner, `keypoints` one a keypoint x aligner.

    `left_out` are the files that could not be used; `seconds` what the stage took.
    """

    files: pd.DataFrame
    keypoints: pd.DataFrame
    left_out: tuple[Problem, ...]
    seconds: float


@dataclass(frozen=True)
class AlignerSpec:
    """One aligner that is to be tried: its name (a plug-in's, perhaps with a preset), the plug-in and its settings."""

    name: str
    plugin: ModuleType
    config: Any

    @property
    def key(self) -> str:
        """Return what decides its answers, but for the encoder."""
        return digest(bench.__version__, self.name, registry.source_digest(self.plugin), asdict(self.config))

    @property
    def learns(self) -> bool:
        """Return whether it is to be trained on annotated pairs; one that is told its weights is not."""
        return hasattr(self.plugin, "train") and not getattr(self.config, "weights", "")

    def build(self) -> Aligner:
        """Return the aligner as its settings say."""
        aligner: Aligner = self.plugin.build(self.config)
        return aligner


def aligner_specs(config: RunConfig) -> list[AlignerSpec]:
    """Return the aligners of a run. Raises: ConfigError or PluginError for one that cannot be built."""
    found = [
        AlignerSpec(
            format_plugin_name(name),
            load_plugin("aligner", name)[0],
            config.aligner[format_plugin_name(name)],
        )
        for name in config.align.aligners
    ]
    for each in found:
        if not each.learns:
            each.build()
    return found


def pair_sources(config: RunConfig, root: Path | None) -> list[PairSource]:
    """Return the sources of the sets. Raises: DataError if one's folder is missing."""
    return [
        registry.load("dataset", name).build(config.pairs[format_plugin_name(name)], root) for name in config.align.sets
    ]


def evaluate_alignment(
    embedder: Embedder, config: RunConfig, root: Path | None, store: Store, progress: Progress
) -> Alignments:
    """Return the answers of every aligner to every pair of every set, from the store or found now.

    Cost: time the aligners', two fingerprintings of each pair at each hop; memory one pair and its fingerprints.
    Raises: DataError if a set is missing, or has no file that can be used.
    """
    aligners = aligner_specs(config)
    frames, untaught, seconds = [], [], 0.0
    for source in pair_sources(config, root):
        folder, content = source.folder(store, progress), source.digest()
        for set_name in source.sets():
            all_tasks = list_pair_files(folder, set_name, config.align.split)
            taught = TRAIN in splits(folder, set_name)
            untaught += [
                Problem(each.name, f"{set_name} by {each.name}, as it has no split {TRAIN!r} to learn from")
                for each in aligners
                if each.learns and not taught
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
            for hears in (False, True):
                own = [each for each in aligners if hears == each.plugin.NEEDS_ENCODER and (taught or not each.learns)]
                for start in range(0, len(all_tasks) if own else 0, BLOCK):
                    found, took_s = stage.answers(own, all_tasks, start)
                    frames.append(found)
                    seconds += took_s
            progress(f"aligning {set_name}", len(all_tasks), len(all_tasks))
    if not frames:
        raise DataError(f"no pair in the split {config.align.split!r} of {', '.join(config.align.sets)}; name another")
    keypoints = pd.concat(frames, ignore_index=True)
    problems = keypoints[keypoints["problem"] != ""].drop_duplicates(["set", "file"])
    left_out = [*untaught, *(Problem(row["file"], row["problem"]) for row in problems.to_dict("records"))]
    keypoints = keypoints[keypoints["problem"] == ""].drop(columns="problem").reset_index(drop=True)
    if keypoints.empty:
        raise DataError(f"no pair of {', '.join(config.align.sets)} can be used; the first: {left_out[0].reason}")
    return Alignments(score_keypoints(keypoints), keypoints, tuple(left_out), seconds)


@dataclass(frozen=True)
class _Stage:
    """The pairs of one split of one set, to be answered."""

    embedder: Embedder
    source: PairSource
    content: str
    folder: Path
    set_name: str
    split: str
    seed: int
    store: Store
    progress: Progress

    def answers(
        self, aligners: Sequence[AlignerSpec], all_tasks: Sequence[PairFile], first: int
    ) -> tuple[pd.DataFrame, float]:
        """Return the keypoints of a block of tasks, and how long they took when they were found."""
        hears = aligners[0].plugin.NEEDS_ENCODER
        heard_by = (self.embedder.key, self.embedder.precision) if hears else NO_KEY
        own = [each.key for each in aligners]
        key = digest(FORMAT, heard_by, self.content, self.set_name, self.split, self.seed, first, own)

        def build(folder: Path) -> None:
            ears = CachedPairEmbedder(self.embedder)
            built = {each.name: self._train_or_load(each) if each.learns else each.build() for each in aligners}
            rows: list[pd.DataFrame] = []
            for i, task in enumerate(all_tasks[first : first + BLOCK], first):
                self.progress(f"aligning {self.set_name}", i, len(all_tasks))
                with TemporaryDirectory(dir=folder) as scratch:
                    rows += self._align_file(task, built, hears, ears, Path(scratch))
            write_frame(folder / KEYPOINTS, pd.concat(rows, ignore_index=True))

        folder = self.store.fetch("alignments", key, build)
        return read_frame(folder / KEYPOINTS), self.store.seconds("alignments", key)

    def _train_or_load(self, learner: AlignerSpec) -> Aligner:
        """Return an aligner trained on the split for that, kept in the store. Raises: DataError if there is none."""
        own = (self.embedder.key, self.embedder.precision, self.content, self.set_name, self.seed)

        def build(folder: Path) -> None:
            with TemporaryDirectory(dir=folder) as scratch:
                opened = [
                    (open_pair_file(task, Path(scratch), self.source.max_lag_s(self.set_name)), task.truth)
                    for task in list_pair_files(self.folder, self.set_name, TRAIN)
                ]
                labelled = [(pair, truth) for pair, truth in opened if isinstance(pair, Pair) and truth is not None]
                trained = learner.plugin.train(
                    learner.config, labelled, CachedPairEmbedder(self.embedder), self.seed, self.progress
                )
                learner.plugin.save(trained, folder / WEIGHTS)

        folder = self.store.fetch("align-weights", digest(FORMAT, learner.key, *own), build)
        aligner: Aligner = learner.plugin.load(folder / WEIGHTS)
        return aligner

    def _align_file(
        self, task: PairFile, aligners: Mapping[str, Aligner], hears: bool, ears: CachedPairEmbedder, scratch: Path
    ) -> Iterator[pd.DataFrame]:
        pair = open_pair_file(task, scratch, self.source.max_lag_s(self.set_name))
        names = {"set": self.set_name, "split": self.split, "file": task.name}
        if isinstance(pair, Problem):
            yield pd.DataFrame([names | {"aligner": "", "problem": pair.reason}])
            return
        truth = task.truth or Keypoints(pair.keypoints, np.full(len(pair.keypoints), np.nan))
        for name, aligner in aligners.items():
            found = aligner.align(pair, ears if hears else None, no_progress)
            yield _frame(pair, truth, found).assign(**names, aligner=name)
        if task.truth is not None and not hears:
            best_K = oracle(truth.time0_K, truth.time1_K, pair.durations_s[0], pair.max_lag_s)
            yield _frame(pair, truth, best_K).assign(**names, aligner=ORACLE)


def _frame(pair: Pair, truth: Keypoints, found: TimeMap | Seconds) -> pd.DataFrame:
    """Return a row for each keypoint: times in both channels as annotated and as found, and the confidence."""
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
    for (set_name, split, aligner, file), own in annotated.groupby(["set", "split", "aligner", "file"], sort=False):
        times = (own[column].to_numpy(np.float64) for column in ("time0_s", "time1_s", "time0_s", "found1_s"))
        score = score_file(str(file), *times)
        rows.append({"set": set_name, "split": split, "aligner": aligner} | asdict(score))
        rows[-1] |= {"confidence": float(own["confidence"].mean())}
    return pd.DataFrame(rows, columns=["set", "split", "aligner", *FileScore.__dataclass_fields__, "confidence"])


def summarise_sets(files: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each set and aligner: files, MSE and MAE with 95 % intervals, and a test against the best.

    `p` is Wilcoxon's on the squared errors of the same files, corrected by Holm within a set; NaN for the best itself.
    """
    rows = []
    for (set_name, split), of_set in files.groupby(["set", "split"], sort=False):
        by_aligner = {str(name): own for name, own in of_set.groupby("aligner", sort=False)}
        scores = {name: score_set(_scores(own)) for name, own in by_aligner.items()}
        best = min(
            (name for name in scores if name != ORACLE), key=lambda name: scores[name].mse_s2.mean, default=ORACLE
        )
        others = [name for name in scores if name != best]
        tests = [compare_files(_by_file(by_aligner[best]), _by_file(by_aligner[name])).p for name in others]
        p = dict(zip(others, holm(tests), strict=True))
        for name, score in scores.items():
            row = {"set": set_name, "split": split, "aligner": name, "files": score.num_files}
            for number in ("mse_s2", "mae_ms", "median_ms"):
                row |= _columns(number, getattr(score, number))
            rows.append(row | {"p": p.get(name, np.nan), "best": name == best})
    return pd.DataFrame(rows)


def align_name(config: RunConfig) -> str:
    """Return the name of the benchmark: `aru-sim-align/v1`, or `custom-align` where sets or their settings differ."""
    standard = AlignConfig()
    same = (config.align.sets, config.align.split) == (standard.sets, standard.split)
    same = same and all(each == type(each)() for each in config.pairs.values())
    return f"{'-'.join(standard.sets)}-align/v1" if same else "custom-align"


def alignment_headline(files: pd.DataFrame) -> dict[str, float]:
    """Return the scalars that are logged: `align_mse/<set>/<aligner>` in s^2 and `align_mae_ms/<set>/<aligner>`."""
    numbers: dict[str, float] = {}
    for row in summarise_sets(files).to_dict("records"):
        name = f"{row['set']}/{str(row['aligner']).replace(':', '-')}"
        numbers |= {f"align_mse/{name}": row["mse_s2"], f"align_mae_ms/{name}": row["mae_ms"]}
    return numbers


def submission(keypoints: pd.DataFrame, aligner: str) -> Mapping[str, Keypoints]:
    """Return an aligner's answers by file, to be written as the challenge wants them (`pairs.write_keypoints`)."""
    own = keypoints[keypoints["aligner"] == aligner]
    return {
        str(file): Keypoints(rows["time0_s"].to_numpy(), rows["found1_s"].to_numpy())
        for file, rows in own.groupby("file", sort=True)
    }


def _columns(number: str, spread: Spread) -> dict[str, float]:
    return {number: spread.mean, f"{number}_low": spread.low, f"{number}_high": spread.high}


def _scores(own: pd.DataFrame) -> list[FileScore]:
    names = list(FileScore.__dataclass_fields__)
    return [FileScore(**{str(k): v for k, v in row.items()}) for row in own[names].to_dict("records")]


def _by_file(own: pd.DataFrame) -> dict[str, float]:
    return {str(name): float(value) for name, value in zip(own["name"], own["mse_s2"], strict=True)}
