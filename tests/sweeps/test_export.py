"""A study as files of the store, and the specification of a worker as a line of JSON."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial
from rich.console import Console

from bench import registry
from bench.runs import CURVES, STUDY, TRIALS
from bench.store import Store, read_frame, read_json
from bench.sweeps.export import export, write_promotion
from bench.sweeps.space import Parameter, Space, distributions
from bench.sweeps.study import OBJECTIVES, Definition, Origin, create_or_join, open_storage
from bench.sweeps.worker import WorkerSpec, parse_worker_spec

SPACE = Space(
    "tiny",
    {"train.lr": Parameter(0.0, 1.0), "train.snr_db": Parameter(choices=([0.0, 20.0], [5.0, 15.0]))},
    {"train.steps": 3},
)


def study_of(folder: Path, objectives: tuple[str, ...], values: list[list[float]]) -> optuna.Study:
    """Return a study with a trial for each list of values; its first parameter rises with the trial."""
    definition = Definition("now-playing", "synth-validation/v1", "d", "s", "0", (), objectives, SPACE)
    study = create_or_join(open_storage(None, Store(folder)), definition, Origin("now-playing", None, None), None)
    for i, of_trial in enumerate(values):
        params = {"train.lr": (i + 1) / 10, "train.snr_db": "[0.0, 20.0]" if i % 2 else "[5.0, 15.0]"}
        attrs = {"run": f"run{i}", "seconds": 2.0}
        study.add_trial(
            create_trial(
                values=of_trial, params=params, distributions=distributions(SPACE), user_attrs=attrs,
                intermediate_values={10: of_trial[0] / 2, 20: of_trial[0]},
            )
        )  # fmt: skip
    return study


def test_files_say_what_was_tried_and_what_won(tmp_path: Path) -> None:
    study = study_of(tmp_path, ("segment_top1",), [[0.1], [0.4], [0.2], [0.3]])
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": "the loss is nan"}))
    folder = tmp_path / "files"
    export(study, folder)
    told = read_json(folder / STUDY)
    assert told["best"] == [1]
    assert told["directions"] == ["maximize"]
    assert told["space"]["train.lr"] == {"low": 0.0, "high": 1.0, "log": False}
    assert told["budget"] == {"train.steps": 3}
    assert told["promoted"] is None
    assert sum(told["importances"].values()) == pytest.approx(1)
    trials = read_frame(folder / TRIALS)
    assert trials["state"].tolist() == ["complete"] * 4 + ["failed"]
    assert trials["value.segment_top1"].tolist()[:4] == [0.1, 0.4, 0.2, 0.3]
    assert trials["param.train.lr"].tolist()[:4] == [0.1, 0.2, 0.3, 0.4]
    assert trials["param.train.snr_db"].tolist()[:4] == ["[5.0, 15.0]", "[0.0, 20.0]", "[5.0, 15.0]", "[0.0, 20.0]"]
    assert trials["run"].tolist() == ["run0", "run1", "run2", "run3", ""]
    assert trials["reason"].iloc[4] == "the loss is nan"
    curves = read_frame(folder / CURVES)
    assert curves[curves["number"] == 1].to_dict("records") == [
        {"number": 1, "step": 10, "value": 0.2},
        {"number": 1, "step": 20, "value": 0.4},
    ]


def test_what_was_promoted_stays_when_the_files_are_written_again(tmp_path: Path) -> None:
    study = study_of(tmp_path, ("segment_top1",), [[0.1]])
    export(study, tmp_path / "files")
    write_promotion(tmp_path / "files", "abc", 0)
    export(study, tmp_path / "files")
    assert read_json(tmp_path / "files" / STUDY)["promoted"] == {"run": "abc", "trial": 0}


def test_two_objectives_have_a_front_instead_of_a_winner(tmp_path: Path) -> None:
    # Hand-made: trial 2 has less top-1 for more bytes than trial 1; the others are each best at something.
    study = study_of(tmp_path, ("segment_top1", "bytes_per_s"), [[0.1, 640], [0.4, 2560], [0.3, 5120], [0.5, 5120]])
    export(study, tmp_path / "files")
    told = read_json(tmp_path / "files" / STUDY)
    assert sorted(told["best"]) == [0, 1, 3]
    assert told["directions"] == ["maximize", "minimize"]


def test_few_trials_have_no_importances(tmp_path: Path) -> None:
    export(study_of(tmp_path, ("segment_top1",), [[0.1], [0.2]]), tmp_path / "files")
    assert read_json(tmp_path / "files" / STUDY)["importances"] == {}


def test_terminal_shows_the_best_first_and_why_a_trial_failed(tmp_path: Path) -> None:
    study = study_of(tmp_path, ("segment_top1",), [[0.1], [0.4], [0.2], [0.3]])
    study.add_trial(create_trial(state=TrialState.FAIL, user_attrs={"reason": "the loss is nan"}))
    export(study, tmp_path / "files")
    console = Console(width=120, record=True)
    console.print(registry.load("report", "sweep").render(tmp_path / "files"))
    text = console.export_text()
    assert [text.index(share) for share in ("40.0 %", "30.0 %", "20.0 %", "10.0 %")] == sorted(
        text.index(share) for share in ("40.0 %", "30.0 %", "20.0 %", "10.0 %")
    )
    assert "trial 4 failed: the loss is nan" in text
    assert "train.lr=0.2, train.snr_db=[0.0, 20.0]" in text


def test_objectives_by_hand() -> None:
    class Eval:
        hop_ms = 100.0

    class Config:
        eval = Eval()

    summary = {
        "headline": {"segment_top1/mean": 0.25}, "dim": 128, "database_vectors": 3000, "seconds": {"database": 2.0},
    }  # fmt: skip
    found = {name: objective.extract(summary, Config()) for name, objective in OBJECTIVES.items()}  # type: ignore[arg-type]
    # 128 numbers of 4 bytes, ten times a second; 3000 segments in 2 s.
    assert found == {"segment_top1": 0.25, "bytes_per_s": 5120.0, "segments_per_s": 1500.0}
    assert [objective.direction for objective in OBJECTIVES.values()] == ["maximize", "minimize", "maximize"]


def test_worker_spec_survives_its_line() -> None:
    spec = WorkerSpec(
        "./mine.py", "mine", "tiny", None, ("train.lr=0.1",), "/music", "/store", "postgresql://me:secret@host/x",
        "study", "median", 5, 1, "parent", SPACE,
    )  # fmt: skip
    line = spec.line()
    assert line.count("\n") == 1 and line.endswith("\n")
    assert parse_worker_spec(line) == spec
