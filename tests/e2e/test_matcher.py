"""A matcher from the command line: run, shown, compared with an encoder, reproduced, and refused in one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import forked
import jsonschema
import pytest

from bench.runs import find_run, list_runs
from bench.score.rows import load_schema
from bench.store import Store

SETTINGS = (
    "music.num_train=6",
    "music.num_val=2",
    "music.num_test=4",
    "music.seconds=8.0",
    "eval.snr_db=[0.0, 20.0]",
    "eval.t60_s=[0.3]",
    "eval.noise_reverb_t60_s=0.3",
    "eval.lengths_s=[0.9, 3.0]",
    "eval.rooms_per_t60=1",
)
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}
TOY = str(Path(__file__).parents[1] / "support" / "correlating_matcher.py")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.finish(*arguments, **ENVIRONMENT)


def run(store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    overrides = [part for setting in SETTINGS for part in ("--set", setting)]
    return bench("run", "--preset", "tiny", "--dataset", "synth", "--store", str(store), *overrides, *more)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, rooms: Path) -> Path:
    root = tmp_path_factory.mktemp("matchers")
    (root / "rooms").symlink_to(rooms)
    return root


@pytest.fixture(scope="module")
def finished(store: Path) -> subprocess.CompletedProcess[str]:
    done = run(store, "--matcher", f"{TOY}:coarse")
    assert done.returncode == 0, done.stderr
    return done


def test_a_run_shows_its_tables_and_costs_and_what_it_could_not_hear(
    finished: subprocess.CompletedProcess[str], store: Path
) -> None:
    text = " ".join(finished.stdout.split())
    assert "correlating-matcher:coarse on synth-segment/v1" in text
    assert "index: own, sequence search: own" in text
    result = find_run(Store(store)).load_result()
    assert result.summary["headline"]["control/identity"] == 1.0
    assert result.summary["headline"]["control/shuffled_labels"] == 0.0
    assert set(result.costs["length_s"]) == {0.9, 3.0} and (result.costs["ms_per_query"] > 0).all()
    shown = bench("results", "--format", "json", "--store", str(store))
    rows = json.loads(shown.stdout)
    jsonschema.validate(rows, load_schema())
    controls = {"random-projection", "shuffled-labels", "matched-filter"}
    assert {"correlating-matcher:coarse", *controls} == {row["system"] for row in rows}


def test_a_repeated_run_is_the_same_run(finished: subprocess.CompletedProcess[str], store: Path) -> None:
    again = run(store, "--matcher", f"{TOY}:coarse")
    assert again.returncode == 0 and len(list_runs(Store(store))) == 1


def test_matcher_and_encoder_stand_in_one_table(finished: subprocess.CompletedProcess[str], store: Path) -> None:
    other = run(store, "--model", "random-projection", "--task", "segments")
    assert other.returncode == 0, other.stderr
    names = list_runs(Store(store))
    shown = bench("compare", *(name[:8] for name in names), "--store", str(store))
    assert shown.returncode == 0, shown.stderr
    for name in ("correlating-matcher:coarse", "random-projection"):
        assert name in shown.stdout
    page = bench("report", "--store", str(store), "--out", str(store / "report.html"))
    assert page.returncode == 0, page.stderr
    assert "correlating-matcher:coarse" in (store / "report.html").read_text(encoding="utf-8")
    built = bench("catalogue", "build", str(store / "cat"), "--run", names[0], "--store", str(store))
    assert built.returncode == 2 and "matcher" in built.stderr and "Traceback" not in built.stderr


def test_a_matcher_is_reproduced(store: Path, finished: subprocess.CompletedProcess[str]) -> None:
    name = next(n for n in list_runs(Store(store)) if find_run(Store(store), n).matcher)
    done = bench("reproduce", name[:8], "--model", TOY, "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reproduced: all" in " ".join(done.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--matcher", f"{TOY}:fine"), "no preset of the matcher"),
        (("--matcher", "landmark"), "no matcher called 'landmark'; did you mean 'landmarks'?"),
        (("--matcher", TOY, "--model", "now-playing"), "give it without --model"),
        (("--matcher", TOY, "--task", "alignment"), "aligns no recordings"),
        (("--matcher", TOY, "--set", "train.lr=1e-3"), "no setting of a matcher called 'train'"),
        (("--matcher", TOY, "--set", "model.every=0"), "model.every must be >= 1, got 0"),
        (("--matcher", TOY, "--set", "model.evry=2"), "did you mean 'model.every'"),
    ],
)
def test_what_cannot_be_run_is_one_sentence(store: Path, arguments: tuple[str, ...], told: str) -> None:
    refused = run(store, *arguments)
    assert refused.returncode == 2, refused.stderr
    assert told in " ".join(refused.stderr.split()) and "Traceback" not in refused.stderr


def test_prints_that_are_cut_off_are_one_sentence_and_lose_nothing(
    store: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    other = tmp_path / "store"
    shutil.copytree(store, other, ignore=shutil.ignore_patterns("hits", "runs", "*.lock", "reproductions"))
    shutil.copytree(store / "runs", other / "runs")
    kept = next((other / "matchers").glob("*/prints/samples.npy"))
    kept.write_bytes(kept.read_bytes()[:5_000])
    refused = run(other, "--matcher", f"{TOY}:coarse")
    assert refused.returncode == 2 and "samples.npy is damaged" in refused.stderr
    assert len(list((other / "runs").iterdir())) >= 1
    shutil.rmtree(kept.parents[1])
    assert run(other, "--matcher", f"{TOY}:coarse").returncode == 0
