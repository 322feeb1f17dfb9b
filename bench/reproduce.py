"""A finished run once more: its settings and record rebuilt, its data and code checked, its numbers compared.

Weights, fingerprints and hits are computed anew in a store of their own, `<store>/reproductions/<run>/<key>/`; decoded
music, rooms, queries and pairs are those of the store, which are named by their content. The key is of the code, the
libraries and the machine: the same command goes on where it ended, and other code begins again.
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
from bench.config import flatten, restore_config, translate_settings
from bench.data import prepare_training
from bench.errors import ConfigError
from bench.logbook import provenance
from bench.logbook.journal import read_provenance
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
SHARED = ("pcm", "rooms", "queries", "pairs")  # named by what is in them, and made by no encoder
STRUCTURE = ("data.dataset", "eval.indexes", "align.sets", "align.aligners")  # they decide which other settings exist
UNUSED = {  # groups of settings that a task does not ask
    "segments": ("align", "pairs", "aligner"),
    "validation": ("align", "pairs", "aligner"),
    "alignment": ("eval", "index"),
    "all": (),
}
VALIDATION = "-validation/"  # in the name of the benchmark of such a run
SIGNIFICANT = 0.05
CODE, THREADS, LIBRARY = "bench.code", "bench.threads", "bench.lib."
MUSIC, QUERIES, ENCODER = "music", "queries", "encoder"
ANSWER_KEY = ["index", "sequence", "cell", "length_s", "query"]
FILE_KEY = ["set", "split", "aligner", "name"]

Group = Literal["code", "libraries", "machine", "settings", "data"]
Says = Literal["alike", "differs", "not known"]
REFUSED: tuple[Group, ...] = ("settings", "data")
EXCUSED: tuple[Group, ...] = ("libraries", "machine")  # another one may round otherwise
LASTING = ("bench.python", "bench.cpu", "bench.gpu", THREADS, CODE)
SAME_S = 1.5 / RATE_HZ  # of a time that was answered: between places it is rounded to a sample
SAME_MS = 1e-3  # of mean error of an aligned file, a sixtieth of a sample: what is less is rounding


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
    """What a finished run left behind: its result, its tags, and the digests of its data by name."""

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
        """Return whether the run trained its weights, and was not given them."""
        return "training" in self.result.summary["seconds"]

    @property
    def seconds(self) -> float:
        """Return how long its stages took."""
        return float(sum(self.result.summary["seconds"].values()))


@dataclass(frozen=True)
class Attempt:
    """A run that can be computed again, and what is alike or different. `context` has a store of its own."""

    record: Record
    config: RunConfig
    context: RunContext
    task: Task
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Outcome:
    """What came out the second time.

    `cells` has a row for each cell and query length: n, old and new (shares found), difference, changed (answers), p
    (McNemar) and p_holm. `alignment` has one for each set and aligner: n (files), old and new (MSE in s^2), difference,
    changed (files), p (Wilcoxon) and p_holm. Holm's correction is over both tables. `headline` has name, old, new.
    `changed` of `answers` are other than before, over all indexes and sequence searches and all files of recorders;
    one that was not given again has changed, and is `missing` too.
    """

    run: str
    weights: str
    cells: pd.DataFrame
    alignment: pd.DataFrame
    headline: pd.DataFrame
    changed: int
    answers: int
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
    """Return what it takes to compute a kept run again: its data prepared, everything checked, nothing trained.

    `model` is the path of an encoder of one's own, `weights` those of a run that was given them; `keep_weights` tests
    the weights that the run trained once more.
    Raises: ConfigError if there is no such run, or its weights are needed and not there; as `bench.data.prepare_data`.
    """
    record = load_record(store, run)
    plugin = record.finished.load_plugin(model)
    if not record.has_trained and weights is None:
        raise ConfigError(f"the run {record.run} was given its weights; name them again with --checkpoint FILE")
    if record.has_trained and weights is not None:
        raise ConfigError(f"the run {record.run} trained its weights; leave --checkpoint out, or give --keep-weights")
    here = provenance() | {CODE: registry.code_digest(), THREADS: str(torch.get_num_threads())}
    own = _prepare_store(store, record.run, digest(registry.source_digest(plugin), _select_lasting(here)))
    config, task, settings = _restore_settings(record, plugin)
    context = RunContext(plugin, root, own, progress, warn, weights, tags={"bench.reproduces": record.run})
    check_run(config, context)
    digests, key = _digest_data(config, context, task)
    data = _data_checks(record, digests, proved=key == record.run)
    if keep_weights and record.has_trained:
        context = replace(context, weights=record.finished.weights().path)
    return Attempt(record, config, context, task, (*_environment(record, here), *settings, *data))


def check_reproducible(found: Attempt) -> None:
    """Raise ConfigError if data or settings are not those of the run: its numbers could not be expected."""
    other = [check.name for check in found.checks if check.group in REFUSED and check.says == "differs"]
    if other:
        raise ConfigError(
            f"{', '.join(other)}: not as in the run {found.record.run}, so its numbers cannot be expected; give the "
            f"same files with --data-root, or go on with --anyway"
        )


def reproduce(found: Attempt, store: Store, progress: Progress) -> Outcome | None:
    """Compute the run again and return how it differs; None in a process that torchrun started only to help.

    The verdict is kept in the reproduction's own store. Raises: as `bench.run.run`.
    """
    new = run_again(found.config, replace(found.context, progress=progress), found.task)
    if new is None:
        return None
    weights, equal = _compare_weights(found, new, store)
    outcome = compare_results(found, new, weights, weights_equal=equal)
    told = {"run": found.record.run, "weights": weights, "verdict": outcome.verdict, "as_expected": outcome.as_expected}
    write_json(found.context.store.root / VERDICT, told | {"checks": [asdict(check) for check in found.checks]})
    return outcome


def load_record(store: Store, run: str | None) -> Record:
    """Return what a finished run left behind. Raises: ConfigError as `bench.runs.find_run`."""
    finished = find_run(store, run)
    result, journal = finished.load_result(), read_provenance(finished.folder)
    recorded = {MUSIC if use == "train" else QUERIES: value for (_name, use), value in journal.data_digests.items()}
    return Record(finished, result, journal.tags, recorded | result.summary.get("digests", {}))


def compare_results(found: Attempt, new: Result, weights: str, *, weights_equal: bool) -> Outcome:
    """Return how a result differs from that of the run, and whether that was to be expected.

    Equal weights must give equal answers if libraries and machine are known to be the same; others may round otherwise
    (two threads instead of one move scores by 2e-7). Then, or after other weights, no difference may be significant at
    5 % (McNemar, Wilcoxon; Holm over all of them).
    """
    old = found.record.result
    answers = _compare_answers(old, new)
    cells, alignment = _compare_cells(old, new, answers), _compare_alignment(old, new)
    p_holm = holm([*cells["p"], *alignment["p"]])
    cells, alignment = cells.assign(p_holm=p_holm[: len(cells)]), alignment.assign(p_holm=p_holm[len(cells) :])
    changed, missing = (int(answers[name].sum() + alignment[name].sum()) for name in ("changed", "missing"))
    total = int(len(answers) + alignment["n"].sum())
    rounding = any(check.group in EXCUSED and check.says != "alike" for check in found.checks)
    data_alike = all(check.says != "differs" for check in found.checks if check.group in REFUSED)
    if not data_alike:
        verdict, as_expected = "data or settings are others, so nothing was to be expected", False
    elif missing:
        verdict, as_expected = f"not reproduced: {missing} of {total} answers were not given again", False
    else:
        verdict, as_expected = _verdict(changed, total, p_holm, weights_equal=weights_equal, rounding=rounding)
    numbers = pd.DataFrame({"old": old.summary["headline"], "new": new.summary["headline"]})
    headline = numbers.rename_axis("name").reset_index()
    return Outcome(
        run=found.record.run,
        weights=weights,
        cells=cells,
        alignment=alignment,
        headline=headline,
        changed=changed,
        answers=total,
        verdict=verdict,
        as_expected=as_expected,
    )


def _verdict(changed: int, total: int, p_holm: list[float], *, weights_equal: bool, rounding: bool) -> tuple[str, bool]:
    weights = "weights are equal" if weights_equal else "weights are not"
    if not changed:
        return f"reproduced: all {total} answers are the same ({weights} to the bit)", True
    share = f"{changed} of {total} answers changed"
    if weights_equal and not rounding:
        return f"not reproduced: {share} though the weights are equal to the bit and the machine is the same", False
    significant = sum(p < SIGNIFICANT for p in p_holm)
    if significant:
        return f"not reproduced: {share}, and {significant} of {len(p_holm)} differences are significant", False
    return f"reproduced: {share}, and none of {len(p_holm)} differences is significant ({weights} to the bit)", True


def _restore_settings(record: Record, plugin: ModuleType) -> tuple[RunConfig, Task, list[Check]]:
    """Return the settings of a run as this version has them, what it tested, and which settings came or went."""
    kept, encoder = translate_settings(record.settings, plugin), record.settings["encoder"]
    bare = {name: kept[name] for name in ("encoder", "preset", *STRUCTURE) if name in kept}
    defaults = flatten(restore_config(encoder, plugin, bare))
    config = restore_config(encoder, plugin, {name: value for name, value in kept.items() if name in defaults})
    task = _task(record, config)
    gone = [name for name in kept if name not in defaults]
    new = [name for name in defaults if name not in kept and name.split(".")[0] not in UNUSED[task]]
    checks = [Check("settings", f"{len(kept) - len(gone)} settings", "as kept", "as kept", "alike")]
    checks += [Check("settings", name, str(kept[name]), "no such setting", "differs") for name in gone]
    checks += [Check("settings", name, "no such setting", str(defaults[name]), "not known") for name in new]
    return config, task, checks


def _task(record: Record, config: RunConfig) -> Task:
    if VALIDATION in record.result.summary["benchmark"]:
        return "validation"
    if "queries_per_cell" not in record.result.summary:
        return "alignment"
    # Without sets of pairs, and before there were any, `all` was segments alone.
    aligned = "left_out_pairs" in record.result.summary
    return "all" if aligned or not config.align.sets else "segments"


def _environment(record: Record, here: dict[str, str]) -> list[Check]:
    """Return the checks of code, libraries and machine by the tags of the run and those of now."""
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
        told = ["uncommitted changes" if side in dirty else "none" for side in ("then", "now")]
        checks.insert(2, Check("code", "on top of it", told[0], told[1], "not known"))
    return checks


def _check(group: Group, name: str, then: str, now: str) -> Check:
    says: Says = "not known" if not then else "alike" if then == now else "differs"
    return Check(group, name, then or "not recorded", now or "none", says)


def _digest_data(config: RunConfig, context: RunContext, task: Task) -> tuple[dict[str, str], str]:
    """Return the digests of data and encoder as they are now, and the key that the run would have today."""
    training_set = prepare_training(config, context.root, context.store, context.progress)
    data = prepare_test_data(config, training_set, context, task)
    digests = {
        ENCODER: registry.source_digest(context.plugin),
        **training_set.digests,
    }
    if data is not None:
        digests[QUERIES] = data.queries.key
    if task in ("all", "alignment") and config.align.sets:
        digests["pairs"] = digest([source.digest() for source in pair_sources(config, context.root)])
    return digests, run_key(config, context, training_set, data, task)


def _data_checks(record: Record, now: dict[str, str], *, proved: bool) -> list[Check]:
    """Return the checks of data and of the encoder's source.

    A run that has the very key of `proved` had the same data and source, whether it recorded each or not.
    """
    checks = []
    for name, value in now.items():
        group: Group = "code" if name == ENCODER else "data"
        check = _check(group, "encoder's source" if name == ENCODER else name, record.digests.get(name, ""), value)
        if proved and check.says == "not known":
            check = replace(check, then="in the run's key", says="alike")
        checks.append(check)
    return checks


def _select_lasting(tags: dict[str, str]) -> dict[str, str]:
    """Return what must stay the same for a reproduction to go on where it ended."""
    return {name: value for name, value in tags.items() if name in LASTING or name.startswith(LIBRARY)}


def _prepare_store(store: Store, run: str, key: str) -> Store:
    """Return the store of a reproduction, in which data of the first store are found by links."""
    own = store.root / REPRODUCTIONS / run / key
    own.mkdir(parents=True, exist_ok=True)
    for kind in SHARED:
        (store.root / kind).mkdir(exist_ok=True)
        link = own / kind
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(store.root / kind, own), target_is_directory=True)
    return Store(own)


def _compare_weights(found: Attempt, new: Result, store: Store) -> tuple[str, bool]:
    """Return what is to be said of the weights of both, and whether they are equal to the bit."""
    keys = [result.summary["checkpoint"]["key"] for result in (found.record.result, new)]
    if found.context.weights is not None:
        if found.record.has_trained:
            return "those of the run, tested again", True
        return ("given again", True) if keys[0] == keys[1] else ("given, and not those of the run", False)
    paths = [
        each.folder("weights", key) / WEIGHTS for each, key in zip((store, found.context.store), keys, strict=True)
    ]
    if not paths[0].is_file():
        return "trained anew; those of the run are gone", False
    (one, _), (other, _) = map(checkpoint.load, paths)
    if one.keys() != other.keys() or any(one[name].shape != other[name].shape for name in one):
        return "trained anew, of another architecture", False
    unlike = [name for name in one if not torch.equal(one[name], other[name])]
    if not unlike:
        return f"trained anew, all {len(one)} tensors equal to the bit", True
    apart = max(float((one[name].double() - other[name].double()).abs().max()) for name in unlike)
    return f"trained anew, {len(unlike)} of {len(one)} tensors differ, by {apart:.2g} at most", False


def _compare_answers(old: Result, new: Result) -> pd.DataFrame:
    """Return a row for each query, cell, length, index and sequence search of the run: hit of both, changed, missing.

    An answer that was not given again has changed, and is no hit.
    """
    places = ["track_id", "start_s", "found_track_id", "found_s"]
    told = [*ANSWER_KEY, *places, "hit"]
    one, other = (result.hits.reindex(columns=told) for result in (old, new))
    both = one.merge(other.astype(one.dtypes), how="left", on=ANSWER_KEY, suffixes=("_old", "_new"), indicator=True)
    missing = both["_merge"] == "left_only"
    changed = missing.copy()
    for name in places:
        then, now = both[f"{name}_old"], both[f"{name}_new"]
        moved = ~((then - now).abs() <= SAME_S) if name == "found_s" else then != now
        changed |= moved & ~(then.isna() & now.isna())
    hits = {"hit_old": both["hit_old"].eq(True), "hit_new": both["hit_new"].eq(True)}
    return both[ANSWER_KEY].assign(**hits, changed=changed, missing=missing)


def _compare_cells(old: Result, new: Result, answers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `Outcome.cells`, found with the first index, but for p_holm."""
    index, sequence = old.summary.get("index"), old.summary.get("sequence")
    own = answers[(answers["index"] == index) & (answers["sequence"] == sequence)]
    rows = []
    for (cell, _), both in own.groupby(["cell", "length_s"], sort=False):
        one_Q, other_Q = both["hit_old"].to_numpy(bool), both["hit_new"].to_numpy(bool)
        shares = {"old": float(one_Q.mean()), "new": float(other_Q.mean())}
        counts = {"n": len(both), "changed": int(both["changed"].sum())}
        difference = shares["new"] - shares["old"]
        names = {"cell": str(cell), "length_s": float(both["length_s"].iloc[0])}
        rows.append(names | counts | shares | {"difference": difference, "p": mcnemar(one_Q, other_Q)})
    return pd.DataFrame(rows, columns=["cell", "length_s", "n", "changed", "old", "new", "difference", "p"])


def _compare_alignment(old: Result, new: Result) -> pd.DataFrame:
    """Return the rows of `Outcome.alignment`, but for p_holm. The test and the means are of files aligned twice."""
    columns = [*FILE_KEY, "mse_s2", "mae_ms"]
    one, other = (result.alignment.reindex(columns=columns) for result in (old, new))
    both = one.merge(other.astype(one.dtypes), how="left", on=FILE_KEY, suffixes=("_old", "_new"), indicator=True)
    rows = []
    for (set_name, aligner), files in both.groupby(["set", "aligner"], sort=False):
        twice = files[files["_merge"] == "both"]
        moved = (twice["mae_ms_old"] - twice["mae_ms_new"]).abs() > SAME_MS
        then, now = (dict(zip(twice["name"], twice[f"mse_s2_{side}"], strict=True)) for side in ("old", "new"))
        missing = len(files) - len(twice)
        counts = {"n": len(files), "changed": int(moved.sum()) + missing, "missing": missing}
        means = {"old": float(twice["mse_s2_old"].mean()), "new": float(twice["mse_s2_new"].mean())}
        tested = {"difference": means["new"] - means["old"], "p": compare_files(then, now).p}
        rows.append({"set": str(set_name), "aligner": str(aligner), **counts, **means, **tested})
    return pd.DataFrame(rows, columns=["set", "aligner", "n", "changed", "missing", "old", "new", "difference", "p"])
