"""Mends the journal of sweeps: a damaged line costs no more than what was in it.

Optuna numbers studies and trials by their order in the journal. Where the line that began one is lost, another takes
its place: otherwise the results of every later trial would be given to the trial before it.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from optuna.study import StudyDirection
from optuna.trial import TrialState

from bench.logbook.salvage import describe_damage, find_objects, keep_copy
from bench.store import digest, write_text

Log = dict[str, Any]
# What each operation says besides its code and its worker. Source: optuna/storages/journal/_storage.py, 5.0.0.
FIELDS: dict[int, tuple[str, ...]] = {
    0: ("study_name", "directions"),
    1: ("study_id",),
    2: ("study_id", "user_attr"),
    3: ("study_id", "system_attr"),
    4: ("study_id", "datetime_start"),
    5: ("trial_id", "param_name", "param_value_internal", "distribution"),
    6: ("trial_id", "state", "values"),
    7: ("trial_id", "step", "intermediate_value"),
    8: ("trial_id", "user_attr"),
    9: ("trial_id", "system_attr"),
    10: (),
}
CREATE_STUDY, DELETE_STUDY, CREATE_TRIAL = 0, 1, 4
RESTORED = "restored"  # the name of the worker in restored lines


def mend_journal(path: Path) -> list[str]:
    """Leave damaged lines out of a journal, and return a sentence on them and on what was lost; call it under the lock.

    The damaged file is kept beside it.
    """
    logs: list[Log] = []
    damaged: dict[int, int] = {}
    places: set[int] = set()  # in `logs`, of the damaged lines
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        found = [log for _, log in find_objects(line, ("op_code", "worker_id")) if _is_complete(log)]
        if len(found) != 1 or not _is_sound(line):
            damaged[number] = len(found)
            places.add(len(logs))
        logs += found
    if not damaged:
        return []
    sentences = [describe_damage(path, damaged, keep_copy(path))]
    restored = _restore_order(logs, places, sentences)
    write_text(path, "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in restored))
    return sentences


def _is_sound(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _is_complete(log: Log) -> bool:
    code = log["op_code"]
    return isinstance(code, int) and code in FIELDS and all(name in log for name in FIELDS[code])


def _restore_order(logs: list[Log], places: set[int], sentences: list[str]) -> list[Log]:
    """Return the logs with a beginning for every study and trial that they mention."""
    restored: list[Log] = []
    names: list[str] = []  # of the studies so far
    num_trials = study_id = 0
    is_only_study = len({log["study_name"] for log in logs if log["op_code"] == CREATE_STUDY}) < 2
    at: int | None = None  # in `restored`, of the last damaged line
    for place, log in enumerate(logs):
        at = len(restored) if place in places else at
        study_id = log.get("study_id", study_id)
        while at is not None and study_id >= len(names):
            names.append(_name_of_study(logs, len(names)))
            is_only_study = is_only_study and study_id == 0
            restored.insert(at, _begin_study(logs, len(names) - 1, names[-1]))
            sentences.append(f"the beginning of the study {names[-1]} was in a damaged line, and is restored")
            at += 1
        while at is not None and log.get("trial_id", -1) >= num_trials:
            restored.insert(at, _begin_trial(study_id, is_only_study))
            outcome = "what the other lines say of it is kept" if is_only_study else "it counts as failed"
            sentences.append(f"the beginning of a trial, number {num_trials} in the journal, was lost; {outcome}")
            num_trials += 1
            at += 1
        restored.append(log)
        if log["op_code"] == CREATE_STUDY and log["study_name"] not in names:
            names.append(log["study_name"])
        elif log["op_code"] == DELETE_STUDY:
            names[study_id] = ""
        num_trials += log["op_code"] == CREATE_TRIAL and names[study_id] != ""
    return restored


def _definition(logs: list[Log], study_id: int) -> Log:
    attrs = [log["user_attr"] for log in logs if log.get("study_id") == study_id and "user_attr" in log]
    return next((dict(attr["definition"]) for attr in attrs if "definition" in attr), {})


def _name_of_study(logs: list[Log], study_id: int) -> str:
    """Return the name that its definition gives to a study, as `Definition.name` does."""
    definition = _definition(logs, study_id)
    if not definition:
        return f"lost-{study_id}"
    return f"{definition['benchmark'].replace('/', '-')}.{definition['encoder']}.{digest(definition)[:8]}"


def _begin_study(logs: list[Log], study_id: int, name: str) -> Log:
    from bench.sweeps.study import OBJECTIVES

    objectives = _definition(logs, study_id).get("objectives", ["segment_top1"])
    directions = [StudyDirection[OBJECTIVES[objective].direction.upper()].value for objective in objectives]
    return {
        "op_code": CREATE_STUDY, "worker_id": RESTORED, "study_name": name,
        "directions": directions,
    }  # fmt: skip


def _begin_trial(study_id: int, is_only_study: bool) -> Log:
    """Return the beginning of a trial; where it may be one of another study, it has failed, and is given no result."""
    now = datetime.now().isoformat()
    log = {"op_code": CREATE_TRIAL, "worker_id": RESTORED, "study_id": study_id, "datetime_start": now}
    return log if is_only_study else log | {"state": TrialState.FAIL.value, "datetime_complete": now}
