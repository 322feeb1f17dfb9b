"""Exports a study to files of the store, so that reports and users can read it without Optuna.

`study.json` describes the study, `trials.parquet` has one row per trial, and `curves.parquet` one row per validation.
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
MIN_TRIALS_FOR_IMPORTANCE = 4  # completed trials


def export(study: optuna.Study, folder: Path) -> None:
    """Write the files of a study into its folder; a promotion noted there is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    definition = definition_of(study)
    trials = study.get_trials(deepcopy=False)
    write_frame(folder / TRIALS, trials_frame(trials, definition))
    write_frame(folder / CURVES, curves_frame(trials))
    path = folder / STUDY
    promoted = read_json(path)["promoted"] if path.is_file() else None
    write_json(path, summary(study, definition) | {"promoted": promoted})


def write_promotion(folder: Path, run: str, trial: int) -> None:
    """Record in the files of a study which trial was promoted, and the run of that promotion."""
    write_json(folder / STUDY, read_json(folder / STUDY) | {"promoted": {"run": run, "trial": trial}})


def summary(study: optuna.Study, definition: dict[str, Any]) -> dict[str, Any]:
    """Return a description of a study; `best` lists the trials of the Pareto front (one trial for one objective)."""
    return {
        "study": study.study_name,
        "encoder": definition["encoder"],
        "benchmark": definition["benchmark"],
        "objectives": definition["objectives"],
        "directions": [direction.name.lower() for direction in study.directions],
        "best": [trial.number for trial in study.best_trials] if select_completed(study) else [],
        "importances": importances(study, definition),
        "space": {name: _without_none(fields) for name, fields in definition["space"]["parameters"].items()},
        "budget": definition["space"]["budget"],
    }


def select_completed(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that completed with a value."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def importances(study: optuna.Study, definition: dict[str, Any]) -> dict[str, float]:
    """Return the importance of each parameter for the first objective (PED-ANOVA); empty if there are few trials."""
    if len(select_completed(study)) < MIN_TRIALS_FOR_IMPORTANCE:
        return {}
    try:
        shares = optuna.importance.get_param_importances(
            study,
            evaluator=optuna.importance.PedAnovaImportanceEvaluator(),
            params=list(definition["space"]["parameters"]),
            target=_first_objective(study) if len(study.directions) > 1 else None,
        )
    except (ValueError, RuntimeError):  # raised by Optuna if all trials are alike
        return {}
    return {name: float(share) for name, share in shares.items()}


def _first_objective(study: optuna.Study) -> Callable[[FrozenTrial], float]:
    """Return the first objective as a target for PED-ANOVA, which assumes that less is better."""
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    return lambda trial: sign * float(trial.values[0])


def trials_frame(trials: list[FrozenTrial], definition: dict[str, Any]) -> pd.DataFrame:
    """Return one row per trial: number, state, run, seconds, reason of a failure, values and parameters."""
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
            **{f"param.{name}": _param(trial, name, fields) for name, fields in params.items()},
        }
        for trial in trials
    ]
    columns = ["number", "state", "repeats", "run", "seconds", "reason"]
    columns += [*(f"value.{name}" for name in names), *(f"param.{name}" for name in params)]
    return pd.DataFrame(rows, columns=columns)


def curves_frame(trials: list[FrozenTrial]) -> pd.DataFrame:
    """Return one row per validation of a trial: number, step, value."""
    points = [(t.number, step, value) for t in trials for step, value in sorted(t.intermediate_values.items())]
    return pd.DataFrame(points, columns=["number", "step", "value"])


def _param(trial: FrozenTrial, name: str, fields: dict[str, Any]) -> Any:
    """Return the value of a parameter; choices as text, since they differ in type and a Parquet column has one type."""
    value = trial.params.get(name)
    return str(value) if fields["choices"] is not None and value is not None else value


def _value(trial: FrozenTrial, objective: int) -> float:
    if trial.state != TrialState.COMPLETE or trial.values is None:
        return float("nan")
    return float(trial.values[objective])


def _without_none(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
