"""Promotes a trial: trains its settings at full budget, tests the model, and registers it in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import optuna
from optuna.trial import FrozenTrial

from bench import registry
from bench.config import flatten
from bench.errors import ConfigError
from bench.logbook import Package, alias_tags, register
from bench.results import Result
from bench.run import RunContext, run
from bench.runs import FinishedRun, find_run, list_runs
from bench.settings import RunConfig
from bench.store import Store
from bench.sweeps import export
from bench.sweeps.space import Basis, read_space, to_settings
from bench.sweeps.study import Origin, definition_of, find_stored_study, open_storage, origin_of
from bench.values import Progress

CHAMPION = "champion"
SCORE = "segment_top1/mean"
METRIC, MEAN = "segment_top1", "mean"  # in the table of `bench compare`
SAME = ("system", "benchmark", "digests", "index", "sequence")  # of the summaries of runs that can be compared
SECTIONS = ("model.", "train.")  # what distinguishes the settings of runs that were tested alike


@dataclass(frozen=True)
class Comparison:
    """How a promoted run compares with a run of the preset that its study started from."""

    sentence: str

    preset_run: str = ""
    """The key of the run of the preset, empty if the store has none."""

    is_worse: bool = False
    """Whether the promoted run finds significantly less: the whole interval of the difference is below zero."""


@dataclass(frozen=True)
class Promotion:
    """The result of promoting a trial."""

    study: str
    trial: int
    result: Result
    """The result of the run at full budget."""

    model: str
    """The name of the model in MLflow's registry."""

    version: str
    """The version of the model in MLflow's registry."""

    comparison: Comparison
    is_champion: bool
    """Whether the alias champion was moved to this version."""


def promote(
    name: str,
    number: int | None,
    model_name: str | None,
    storage: str | None,
    data_root: Path | None,
    store: Store,
    progress: Progress,
    warn: Callable[[str], None],
    anyway: bool = False,
) -> Promotion:
    """Train the best trial of a study, or trial `number`, at full budget; test it, register it and return the result.

    It becomes the champion, unless it is significantly worse than a run of the preset in the store and not `anyway`.
    Raises: ConfigError if the study has no such trial, or if it has several best ones and `number` is None.
    """
    study = find_stored_study(open_storage(storage, store, warn), name)
    definition, origin = definition_of(study), origin_of(study)
    trial = _choose_trial(study, number)
    config = _config(definition, origin, trial)
    root = data_root or (Path(origin.data_root) if origin.data_root else None)
    plugin = registry.load("encoder", origin.model)
    tags = {"optuna.study": study.study_name, "optuna.trial": str(trial.number), "bench.kind": "promoted"}
    result = run(config, RunContext(plugin, root, store, progress, warn, tags=tags), "segments")
    assert result is not None
    model = model_name or config.encoder
    comparison = compare_with_preset(result, _config(definition, origin, None), store)
    is_champion = anyway or not comparison.is_worse
    version = _register_model(result, config, plugin, study, trial, model, store, warn, CHAMPION if is_champion else "")
    folder = store.root / "sweeps" / study.study_name
    export.export(study, folder)
    export.write_promotion(folder, result.summary["run"], trial.number)
    return Promotion(study.study_name, trial.number, result, model, version, comparison, is_champion)


def compare_with_preset(result: Result, preset: RunConfig, store: Store) -> Comparison:
    """Return how a promoted run compares with the newest run of the preset's settings, on the same queries."""
    found = _find_preset_run(result, preset, store)
    if found is None:
        return Comparison(
            f"no finished run of the preset {preset.preset} with the same data is in the store, so it is not known "
            "whether this model is better than the preset"
        )
    if found.key == result.summary["run"]:
        return Comparison(f"the promoted trial has the settings of the preset {preset.preset} itself", found.key)
    table = registry.load("report", "compare").compare([found.load_result(), result])
    row = table[(table["run"] == result.summary["run"]) & (table["metric"] == METRIC) & (table["cell"] == MEAN)].iloc[0]
    points = 100 * row[["difference", "difference_low", "difference_high"]].astype(float)
    is_worse = bool(points["difference_high"] < 0)
    verdict = "worse" if is_worse else "better" if points["difference_low"] > 0 else "not significantly different"
    return Comparison(
        f"segment-level top-1 less that of the preset {preset.preset} (run {found.key[:6]}): "
        f"{points['difference']:+.1f} points, 95 % interval {points['difference_low']:+.1f} to "
        f"{points['difference_high']:+.1f}: {verdict}",
        found.key,
        is_worse,
    )


def _find_preset_run(result: Result, preset: RunConfig, store: Store) -> FinishedRun | None:
    """Return the newest run that trained with these settings on the same data and was tested on the same queries."""
    wanted = {k: v for k, v in json.loads(json.dumps(flatten(preset))).items() if k.startswith(SECTIONS)}
    for key in reversed(list_runs(store)):
        run = find_run(store, key)
        alike = all(run.summary.get(name) == result.summary[name] for name in SAME)
        has_trained = "training" in run.summary.get("seconds", {})  # else its weights are those of another run
        if alike and has_trained and {k: v for k, v in run.settings.items() if k.startswith(SECTIONS)} == wanted:
            tested = run.load_result()
            if len(tested.rows) and set(tested.rows["queries"]) == set(result.rows["queries"]):
                return run
    return None


def _choose_trial(study: optuna.Study, number: int | None) -> FrozenTrial:
    complete = {trial.number: trial for trial in export.select_completed(study)}
    if not complete:
        raise ConfigError(f"no trial of {study.study_name} has completed yet; run `bench sweep` first")
    best = [trial.number for trial in study.best_trials]
    if number is None and len(best) > 1:
        raise ConfigError(f"{len(best)} trials are equally good (a Pareto front): {best}; choose one with --trial")
    chosen = best[0] if number is None else number
    if chosen not in complete:
        raise ConfigError(f"trial {chosen} of {study.study_name} has no value; choose one of {sorted(complete)}")
    return complete[chosen]


def _config(definition: dict[str, object], origin: Origin, trial: FrozenTrial | None) -> RunConfig:
    """Return the settings of a trial at full budget, or of the preset of its study."""
    space = read_space(definition["space"])
    if trial is not None and (lost := sorted(space.parameters.keys() - trial.params.keys())):
        raise ConfigError(
            f"trial {trial.number} has no {', '.join(lost)}, which a damaged line of the journal held; choose another "
            "with --trial"
        )
    overrides = definition["overrides"]
    assert isinstance(overrides, list)
    plugin = registry.load("encoder", origin.model)
    basis = Basis(origin.model, str(definition["encoder"]), plugin, space.preset, origin.dataset, tuple(overrides))
    return basis.config(to_settings(space, trial.params) if trial is not None else {})


def _register_model(
    result: Result,
    config: RunConfig,
    plugin: ModuleType,
    study: optuna.Study,
    trial: FrozenTrial,
    model: str,
    store: Store,
    warn: Callable[[str], None],
    alias: str,
) -> str:
    summary = result.summary
    score, before = summary["headline"][SCORE], alias_tags(store, model, CHAMPION)
    if alias and before.get("bench.task") == summary["benchmark"] and float(before.get(SCORE, 0)) > score:
        warn(
            f"the previous {CHAMPION} has a higher {SCORE} ({before[SCORE]}) than this model ({score:.4f}); the alias "
            "moves to this model, set it back in the MLflow UI if you prefer the previous one"
        )
    origin = (
        f"Its settings are those of trial {trial.number} of the sweep {study.study_name} "
        f"({len(study.get_trials(deepcopy=False))} trials, chosen on held-out training tracks)."
    )
    package = Package(
        encoder=config.encoder,
        weights=find_run(store, summary["run"]).weights().path,
        settings=flatten(config),
        card=registry.load("report", "card").render(result, flatten(config), origin),
        rate_hz=plugin.build(config.model).rate_hz,
        segment_s=summary["segment_s"],
        dim=summary["dim"],
    )
    tags = {"bench.task": summary["benchmark"], SCORE: f"{score:.4f}", "bench.run": summary["run"]}
    return register(store, summary["run"], package, model, alias, tags)
