"""Reproduces a finished run: restores its settings, checks data and code, runs it again and compares the numbers.

Weights, fingerprints and hits are recomputed in a separate store, `<store>/reproductions/<run>/<key>/`. Decoded music,
rooms, queries and pairs are shared with the first store, where their names depend on their content alone. The key
depends on the code, the libraries and the machine: the same command resumes, and changed code starts again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pandas as pd
import torch

from bench import registry
from bench.align.evaluate import pair_sources
from bench.align.score import compare_files
from bench.config import flatten_run, restore_config, translate_settings
from bench.data import prepare_training
from bench.errors import ConfigError
from bench.logbook import provenance
from bench.logbook.journal import read_provenance
from bench.plugin_check import check_matcher
from bench.results import Result
from bench.run import RunContext, Task, check_run, prepare_test_data, run_key
from bench.run import run as run_again
from bench.runs import FinishedRun, find_run
from bench.score.statistics import holm, mcnemar
from bench.settings import RunConfig
from bench.store import Store, digest, write_json
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS
from bench.values import RATE_HZ, Progress

REPRODUCTIONS, VERDICT = "reproductions", "reproduction.json"
SHARED = ("pcm", "rooms", "queries", "pairs")  # kinds of the store that no encoder has a part in
STRUCTURE = ("data.dataset", "eval.indexes", "align.sets", "align.aligners")  # they decide which other settings exist
UNUSED = {  # groups of settings that a task does not read
    "segments": ("align", "pairs", "aligner"),
    "validation": ("align", "pairs", "aligner"),
    "alignment": ("eval", "index"),
    "all": (),
}
VALIDATION = "-validation/"  # part of the benchmark's name if the task was "validation"
SIGNIFICANT = 0.05  # p
CODE, THREADS, LIBRARY = "bench.code", "bench.threads", "bench.lib."
MUSIC, QUERIES, ENCODER, MATCHER = "music", "queries", "encoder", "matcher"
SYSTEMS = (ENCODER, MATCHER)  # whose source is part of a run
ANSWER_KEY = ["index", "sequence", "cell", "length_s", "query"]
FILE_KEY = ["set", "split", "aligner", "name"]

Group = Literal["code", "libraries", "machine", "settings", "data"]
Says = Literal["alike", "differs", "not known"]
REFUSED: tuple[Group, ...] = ("settings", "data")
EXCUSED: tuple[Group, ...] = ("libraries", "machine")  # a difference here may change the rounding
LASTING = ("bench.python", "bench.cpu", "bench.gpu", THREADS, CODE)  # tags in the key of a reproduction
SAME_S = 1.5 / RATE_HZ  # answered times this close are equal: interpolated times are rounded to a sample
SAME_MS = 1e-3  # mean errors of a file this close are equal: 1/60 of a sample is rounding


@dataclass(frozen=True)
class Check:
    """One thing that may have changed between a run and now."""

    group: Group
    name: str
    then: str
    now: str
    says: Says


@dataclass(frozen=True)
class Record:
    """What the store knows of a finished run: its result, its tags, and the digests of its data by name."""

    finished: FinishedRun
    result: Result
    tags: Mapping[str, str]
    digests: Mapping[str, str]

    @property
    def run(self) -> str:
        """Return the run's key."""
        return self.finished.key

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the run's settings by their dotted names."""
        return self.finished.settings

    @property
    def has_trained(self) -> bool:
        """Return whether the run trained its weights instead of testing given ones."""
        return "training" in self.result.summary["seconds"]

    @property
    def seconds(self) -> float:
        """Return the total time of its stages."""
        return float(sum(self.result.summary["seconds"].values()))


@dataclass(frozen=True)
class Attempt:
    """A run that is ready to be computed again, in the separate store of `context`; `checks` say what has changed."""

    record: Record
    config: RunConfig
    context: RunContext
    task: Task
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Outcome:
    """How a reproduction compares with the original run. Holm's correction is over `cells` and `alignment` together."""

    run: str

    weights: str
    """How the weights of both runs compare, in words."""

    cells: pd.DataFrame
    """One row per cell and query length: n, old and new (shares found), difference, changed (answers), p (McNemar),
    p_holm."""

    alignment: pd.DataFrame
    """One row per set and aligner: n (files), old and new (MSE in s^2), difference, changed and missing (files), p
    (Wilcoxon), p_holm."""

    headline: pd.DataFrame
    """One row per headline number: name, old, new."""

    changed: int
    """How many answers differ, over all indexes and sequence searches and all aligned files. A missing one counts."""

    answers: int
    """How many answers the original run gave."""

    verdict: str
    as_expected: bool


def prepare_attempt(
    store: Store,
    run: str | None,
    root: Path | None,
    progress: Progress,
    warn: Callable[[str], None],
    *,
    model: str | None = None,
    weights: Path | None = None,
    keep_weights: bool = False,
) -> Attempt:
    """Return a finished run ready to be computed again: data prepared, everything checked, nothing trained yet.

    `model` is the path of the encoder's file, for an encoder of the user's. `weights` must be given if the run was
    given weights; with `keep_weights` the weights that the run trained are tested again instead of training new ones.
    Raises: ConfigError if there is no such run or if weights that are needed are missing; as `bench.data.prepare_data`.
    """
    record = load_record(store, run)
    plugin = record.finished.load_plugin(model)
    is_matcher = bool(record.finished.matcher)
    if not record.has_trained and weights is None and not is_matcher:
        raise ConfigError(f"the run {record.run} was given its weights; name them again with --checkpoint FILE")
    if record.has_trained and weights is not None:
        raise ConfigError(f"the run {record.run} trained its weights; leave --checkpoint out, or give --keep-weights")
    here = provenance() | {CODE: registry.code_digest(), THREADS: str(torch.get_num_threads())}
    separate = _prepare_store(store, record.run, digest(registry.source_digest(plugin), _select_lasting(here)))
    config, task, settings = _restore_settings(record, plugin)
    context = RunContext(plugin, root, separate, progress, warn, weights, tags={"bench.reproduces": record.run})
    if is_matcher:
        check_matcher(plugin, config.matcher, config.model)
    else:
        check_run(config, context)
    digests, key = _digest_data(config, context, task)
    data = _data_checks(record, digests, same_key=key == record.run)
    if keep_weights and record.has_trained:
        context = replace(context, weights=record.finished.weights().path)
    return Attempt(record, config, context, task, (*_environment(record, here), *settings, *data))


def check_reproducible(attempt: Attempt) -> None:
    """Raise ConfigError if data or settings differ from those of the run: the same numbers cannot be expected."""
    different = [check.name for check in attempt.checks if check.group in REFUSED and check.says == "differs"]
    if different:
        raise ConfigError(
            f"{', '.join(different)}: not as in the run {attempt.record.run}, so its numbers cannot be expected; give "
            f"the same files with --data-root, or continue with --anyway"
        )


def reproduce(attempt: Attempt, store: Store, progress: Progress) -> Outcome | None:
    """Compute the run again and return how it compares; None in every process of torchrun but the first.

    `store` holds the original run. The verdict is written to the reproduction's store. Raises: as `bench.run.run`.
    """
    new = run_again(attempt.config, replace(attempt.context, progress=progress), attempt.task)
    if new is None:
        return None
    weights, equal = _compare_weights(attempt, new, store)
    outcome = compare_results(attempt, new, weights, weights_equal=equal)
    verdict = {
        "run": attempt.record.run,
        "weights": weights,
        "verdict": outcome.verdict,
        "as_expected": outcome.as_expected,
        "checks": [asdict(check) for check in attempt.checks],
    }
    write_json(attempt.context.store.root / VERDICT, verdict)
    return outcome


def load_record(store: Store, run: str | None) -> Record:
    """Return the record of a finished run. Raises: ConfigError as `bench.runs.find_run`."""
    finished = find_run(store, run)
    result, journal = finished.load_result(), read_provenance(finished.folder)
    recorded = {MUSIC if use == "train" else QUERIES: value for (_name, use), value in journal.data_digests.items()}
    return Record(finished, result, journal.tags, recorded | result.summary.get("digests", {}))


def compare_results(attempt: Attempt, new: Result, weights: str, *, weights_equal: bool) -> Outcome:
    """Return how a result compares with that of the run, and whether this was expected.

    If libraries and machine are known to be the same, equal weights must give equal answers. Other libraries or
    machines may round differently (two threads instead of one change scores by 2e-7). In that case, or if the weights
    differ, no difference may be significant at 5 % (McNemar, Wilcoxon; Holm over all of them).
    """
    # 1. Compare answer by answer, and test each difference.
    old = attempt.record.result
    answers = _compare_answers(old, new)
    cells, alignment = _compare_cells(old, new, answers), _compare_alignment(old, new)
    p_holm = holm([*cells["p"], *alignment["p"]])
    cells, alignment = cells.assign(p_holm=p_holm[: len(cells)]), alignment.assign(p_holm=p_holm[len(cells) :])
    changed, missing = (int(answers[name].sum() + alignment[name].sum()) for name in ("changed", "missing"))
    total = int(len(answers) + alignment["n"].sum())
    # 2. The verdict.
    may_round = any(check.group in EXCUSED and check.says != "alike" for check in attempt.checks)
    same_data = all(check.says != "differs" for check in attempt.checks if check.group in REFUSED)
    if not same_data:
        verdict, as_expected = "data or settings differ, so nothing can be said of the numbers", False
    elif missing:
        verdict, as_expected = f"not reproduced: {missing} of {total} answers are missing", False
    else:
        verdict, as_expected = _verdict(changed, total, p_holm, weights_equal=weights_equal, may_round=may_round)
    numbers = pd.DataFrame({"old": old.summary["headline"], "new": new.summary["headline"]})
    headline = numbers.rename_axis("name").reset_index()
    return Outcome(
        run=attempt.record.run,
        weights=weights,
        cells=cells,
        alignment=alignment,
        headline=headline,
        changed=changed,
        answers=total,
        verdict=verdict,
        as_expected=as_expected,
    )


def _verdict(
    changed: int, total: int, p_holm: list[float], *, weights_equal: bool, may_round: bool
) -> tuple[str, bool]:
    """Return the verdict in words, and whether it is as expected."""
    weights = "weights are bit-identical" if weights_equal else "weights are not bit-identical"
    if not changed:
        return f"reproduced: all {total} answers are the same ({weights})", True
    share = f"{changed} of {total} answers changed"
    if weights_equal and not may_round:
        return f"not reproduced: {share} although the weights are bit-identical and the machine is the same", False
    significant = sum(p < SIGNIFICANT for p in p_holm)
    if significant:
        return f"not reproduced: {share}, and {significant} of {len(p_holm)} differences are significant", False
    return f"reproduced: {share}, and none of {len(p_holm)} differences is significant ({weights})", True


def _restore_settings(record: Record, plugin: ModuleType) -> tuple[RunConfig, Task, list[Check]]:
    """Return the configuration and the task of a run, and checks of the settings that were added or removed since."""
    old, system = translate_settings(record.settings, plugin), record.finished.system
    structure = {name: old[name] for name in ("encoder", "matcher", "preset", *STRUCTURE) if name in old}
    defaults = flatten_run(restore_config(system, plugin, structure))
    config = restore_config(system, plugin, {name: value for name, value in old.items() if name in defaults})
    task = _task(record, config)
    gone = [name for name in old if name not in defaults]
    new = [name for name in defaults if name not in old and name.split(".")[0] not in UNUSED[task]]
    checks = [Check("settings", f"{len(old) - len(gone)} settings", "as recorded", "as recorded", "alike")]
    checks += [Check("settings", name, str(old[name]), "no such setting", "differs") for name in gone]
    checks += [Check("settings", name, "no such setting", str(defaults[name]), "not known") for name in new]
    return config, task, checks


def _task(record: Record, config: RunConfig) -> Task:
    """Return the task of a run, which its record does not name."""
    if VALIDATION in record.result.summary["benchmark"]:
        return "validation"
    if "queries_per_cell" not in record.result.summary:
        return "alignment"
    # Without sets of pairs, and in versions without alignment, the tasks "all" and "segments" are the same.
    aligned = "left_out_pairs" in record.result.summary
    return "all" if aligned or not config.align.sets else "segments"


def _environment(record: Record, here: dict[str, str]) -> list[Check]:
    """Return the checks of code, libraries and machine: the tags of the run against those of this process."""
    then = record.tags
    names: list[tuple[Group, str, str]] = [
        ("code", "version", "bench.version"),
        ("code", "commit", "bench.git"),
        ("code", "source files", CODE),
        ("libraries", "Python", "bench.python"),
        *(("libraries", name.removeprefix(LIBRARY), name) for name in sorted(then) if name.startswith(LIBRARY)),
        ("machine", "system", "bench.platform"),
        ("machine", "CPU", "bench.cpu"),
        ("machine", "cores", "bench.cores"),
        ("machine", "threads", THREADS),
        ("machine", "GPU", "bench.gpu"),
    ]
    checks = [_check(group, title, then.get(tag, ""), here.get(tag, "")) for group, title, tag in names]
    dirty = [side for side, tags in (("then", then), ("now", here)) if tags.get("bench.dirty") == "true"]
    if dirty:
        then_now = ["uncommitted changes" if side in dirty else "none" for side in ("then", "now")]
        checks.insert(2, Check("code", "on top of it", then_now[0], then_now[1], "not known"))
    return checks


def _check(group: Group, name: str, then: str, now: str) -> Check:
    says: Says = "not known" if not then or not now else "alike" if then == now else "differs"
    return Check(group, name, then or "not recorded", now or "none", says)


def _digest_data(config: RunConfig, context: RunContext, task: Task) -> tuple[dict[str, str], str]:
    """Return the present digests of data and encoder, and the key that the run would have today."""
    training_set = prepare_training(config, context.root, context.store, context.progress)
    data = prepare_test_data(config, training_set, context, task)
    digests = {
        MATCHER if config.matcher else ENCODER: registry.source_digest(context.plugin),
        **training_set.digests,
    }
    if data is not None:
        digests[QUERIES] = data.queries.key
    if task in ("all", "alignment") and config.align.sets:
        digests["pairs"] = digest([source.digest() for source in pair_sources(config, context.root)])
    return digests, run_key(config, context, training_set, data, task)


def _data_checks(record: Record, now: dict[str, str], *, same_key: bool) -> list[Check]:
    """Return the checks of data and of the encoder's source.

    With `same_key` (the run would have the same key today) they are alike, even those that the run did not record:
    the key depends on all of them.
    """
    checks = []
    for name, value in now.items():
        group: Group = "code" if name in SYSTEMS else "data"
        check = _check(group, f"{name}'s source" if name in SYSTEMS else name, record.digests.get(name, ""), value)
        if same_key and check.says == "not known":
            check = replace(check, then="in the run's key", says="alike")
        checks.append(check)
    return checks


def _select_lasting(tags: dict[str, str]) -> dict[str, str]:
    """Return the tags that must stay the same for a reproduction to be resumed."""
    return {name: value for name, value in tags.items() if name in LASTING or name.startswith(LIBRARY)}


def _prepare_store(store: Store, run: str, key: str) -> Store:
    """Return the store of a reproduction, with links to the data that it shares with the first store."""
    root = store.root / REPRODUCTIONS / run / key
    root.mkdir(parents=True, exist_ok=True)
    for kind in SHARED:
        (store.root / kind).mkdir(exist_ok=True)
        link = root / kind
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(store.root / kind, root), target_is_directory=True)
    return Store(root)


def _compare_weights(attempt: Attempt, new: Result, store: Store) -> tuple[str, bool]:
    """Return how the weights of both runs compare, in words, and whether they are bit-identical."""
    if attempt.config.matcher:
        return "a matcher has none", True
    keys = [result.summary["checkpoint"]["key"] for result in (attempt.record.result, new)]
    if attempt.context.weights is not None:
        if attempt.record.has_trained:
            return "those of the run, tested again", True
        return ("given again", True) if keys[0] == keys[1] else ("given, but not those of the run", False)
    stores = (store, attempt.context.store)
    paths = [each.folder("weights", key) / WEIGHTS for each, key in zip(stores, keys, strict=True)]
    if not paths[0].is_file():
        return "retrained; those of the run are no longer in the store", False
    (old_state, _), (new_state, _) = map(checkpoint.load, paths)
    if old_state.keys() != new_state.keys() or any(old_state[k].shape != new_state[k].shape for k in old_state):
        return "retrained, with another architecture", False
    different = [name for name in old_state if not torch.equal(old_state[name], new_state[name])]
    if not different:
        return f"retrained, all {len(old_state)} tensors bit-identical", True
    largest = max(float((old_state[name].double() - new_state[name].double()).abs().max()) for name in different)
    return f"retrained, {len(different)} of {len(old_state)} tensors differ, by {largest:.2g} at most", False


def _compare_answers(old: Result, new: Result) -> pd.DataFrame:
    """Return one row per query, cell, length, index and sequence search of the run: hit_old, hit_new, changed, missing.

    A missing answer counts as changed, and as no hit.
    """
    compared = ["track_id", "start_s", "found_track_id", "found_s"]
    columns = [*ANSWER_KEY, *compared, "hit"]
    old_hits, new_hits = (result.hits.reindex(columns=columns) for result in (old, new))
    both = old_hits.merge(
        new_hits.astype(old_hits.dtypes), how="left", on=ANSWER_KEY, suffixes=("_old", "_new"), indicator=True
    )
    missing = both["_merge"] == "left_only"
    changed = missing.copy()
    for name in compared:
        then, now = both[f"{name}_old"], both[f"{name}_new"]
        moved = ~((then - now).abs() <= SAME_S) if name == "found_s" else then != now
        changed |= moved & ~(then.isna() & now.isna())
    hits = {"hit_old": both["hit_old"].eq(True), "hit_new": both["hit_new"].eq(True)}
    return both[ANSWER_KEY].assign(**hits, changed=changed, missing=missing)


def _compare_cells(old: Result, new: Result, answers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `Outcome.cells` without p_holm, for the index and the sequence search of the headline."""
    index, sequence = old.summary.get("index"), old.summary.get("sequence")
    headline = answers[(answers["index"] == index) & (answers["sequence"] == sequence)]
    rows = []
    for (cell, _), both in headline.groupby(["cell", "length_s"], sort=False):
        old_Q, new_Q = both["hit_old"].to_numpy(bool), both["hit_new"].to_numpy(bool)
        shares = {"old": float(old_Q.mean()), "new": float(new_Q.mean())}
        counts = {"n": len(both), "changed": int(both["changed"].sum())}
        difference = shares["new"] - shares["old"]
        names = {"cell": str(cell), "length_s": float(both["length_s"].iloc[0])}
        rows.append(names | counts | shares | {"difference": difference, "p": mcnemar(old_Q, new_Q)})
    return pd.DataFrame(rows, columns=["cell", "length_s", "n", "changed", "old", "new", "difference", "p"])


def _compare_alignment(old: Result, new: Result) -> pd.DataFrame:
    """Return the rows of `Outcome.alignment` without p_holm. Test and means are over the files that both aligned."""
    columns = [*FILE_KEY, "mse_s2", "mae_ms"]
    old_files, new_files = (result.alignment.reindex(columns=columns) for result in (old, new))
    both = old_files.merge(
        new_files.astype(old_files.dtypes), how="left", on=FILE_KEY, suffixes=("_old", "_new"), indicator=True
    )
    rows = []
    for (set_name, aligner), files in both.groupby(["set", "aligner"], sort=False):
        aligned = files[files["_merge"] == "both"]
        moved = (aligned["mae_ms_old"] - aligned["mae_ms_new"]).abs() > SAME_MS
        then, now = (dict(zip(aligned["name"], aligned[f"mse_s2_{side}"], strict=True)) for side in ("old", "new"))
        missing = len(files) - len(aligned)
        counts = {"n": len(files), "changed": int(moved.sum()) + missing, "missing": missing}
        means = {"old": float(aligned["mse_s2_old"].mean()), "new": float(aligned["mse_s2_new"].mean())}
        test = {"difference": means["new"] - means["old"], "p": compare_files(then, now).p}
        rows.append({"set": str(set_name), "aligner": str(aligner), **counts, **means, **test})
    return pd.DataFrame(rows, columns=["set", "aligner", "n", "changed", "missing", "old", "new", "difference", "p"])
