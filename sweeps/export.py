"""A study as files of the store, for the report and for who has no Optuna: what was tried, and what came of it.

`study.json` says what it is, `trials.parquet` has a row for each trial, `curves.parquet` the validations as they came.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.trial import FrozenTrial, TrialState

from bench.runs import CURVES, STUDY, TRIALS
from bench.store import read_json, write_frame, write_json
from bench.sweeps.study import definition_of
from bench.sweeps.trials import REASON, REPEAT_OF, RUN, SECONDS

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}
FEWEST_FOR_IMPORTANCE = 4  # trials that ended with a value


def export(study: optuna.Study, folder: Path) -> None:
    """Write a study's files into its folder; what was promoted stays in them."""
    folder.mkdir(parents=True, exist_ok=True)
    definition = definition_of(study)
    trials = study.get_trials(deepcopy=False)
    write_frame(folder / TRIALS, trials_frame(trials, definition))
    write_frame(folder / CURVES, curves_frame(trials))
    path = folder / STUDY
    promoted = read_json(path)["promoted"] if path.is_file() else None
    write_json(path, summary(study, definition) | {"promoted": promoted})


def write_promotion(folder: Path, run: str, trial: int) -> None:
    """Note in a study's files which run its chosen trial became."""
    write_json(folder / STUDY, read_json(folder / STUDY) | {"promoted": {"run": run, "trial": trial}})


def summary(study: optuna.Study, definition: dict[str, Any]) -> dict[str, Any]:
    """Return what a study is and what won: `best` has the trial numbers of the Pareto front, one if not several."""
    return {
        "study": study.study_name,
        "encoder": definition["encoder"],
        "benchmark": definition["benchmark"],
        "objectives": definition["objectives"],
        "directions": [direction.name.lower() for direction in study.directions],
        "best": [trial.number for trial in study.best_trials] if select_completed(study) else [],
        "importances": importances(study, definition),
        "space": {name: _without_none(given) for name, given in definition["space"]["parameters"].items()},
        "budget": definition["space"]["budget"],
    }


def select_completed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that ended with a value."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def importances(study: optuna.Study, definition: dict[str, Any]) -> dict[str, float]:
    """Return the share of each parameter in how the first objective varies (PED-ANOVA); nothing of few trials."""
    if len(select_completed(study)) < FEWEST_FOR_IMPORTANCE:
        return {}
    try:
        found = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            params=list(definition["space"]["parameters"]),
            target=_first_objective(study) if len(study.directions) > 1 else None,
        )
    except (ValueError, RuntimeError):  # Optuna's answers where all trials are alike
        return {}
    return {name: float(share) for name, share in found.items()}


def _first_objective(study: optuna.Study) -> Callable[[FrozenTrial], float]:
    """Return the first objective as PED-ANOVA wants a target: less is better."""
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    return lambda trial: sign * float(trial.values[0])


def trials_frame(trials: list[FrozenTrial], definition: dict[str, Any]) -> pd.DataFrame:
    """Return a row for each trial: number, state, run, seconds, why it failed, values and parameters."""
    names = definition["objectives"]
    params = definition["space"]["parameters"]
    rows = [
        {
            "number": trial.number,
            "state": STATES[trial.state],
            "repeats": trial.system_attrs.get(REPEAT_OF, -1),
            "run": trial.user_attrs.get(RUN, ""),
            "seconds": float(trial.user_attrs.get(SECONDS, float("nan"))),
            "reason": trial.user_attrs.get(REASON, ""),
            **{f"value.{name}": _value(trial, i) for i, name in enumerate(names)},
            **{f"param.{name}": _param(trial, name, given) for name, given in params.items()},
        }
        for trial in trials
    ]
    columns = ["number", "state", "repeats", "run", "seconds", "reason"]
    columns += [*(f"value.{name}" for name in names), *(f"param.{name}" for name in params)]
    return pd.DataFrame(rows, columns=columns)


def curves_frame(trials: list[FrozenTrial]) -> pd.DataFrame:
    """Return the validations of all trials: number, step, value."""
    points = [(t.number, step, value) for t in trials for step, value in sorted(t.intermediate_values.items())]
    return pd.DataFrame(points, columns=["number", "step", "value"])


def _param(trial: FrozenTrial, name: str, given: dict[str, Any]) -> Any:
    """Return a parameter's value; a choice as text, as choices are of several kinds and Parquet's columns of one."""
    value = trial.params.get(name)
    return str(value) if given["choices"] is not None and value is not None else value


def _value(trial: FrozenTrial, objective: int) -> float:
    if trial.state != TrialState.COMPLETE or trial.values is None:
        return float("nan")
    return float(trial.values[objective])


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}
