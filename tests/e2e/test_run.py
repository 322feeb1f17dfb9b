"""The whole product from the command line, on made-up music: one run, killed in every stage, run again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import forked
import jsonschema
import numpy as np
import pandas as pd
import pytest
import soundfile

from bench.audio.pcm import open_corpus
from bench.results import ROWS
from bench.runs import find_run
from bench.score.rows import load_schema
from bench.speed.network import read_speed
from bench.store import Store
from bench.values import RATE_HZ

SETTINGS = (
    "music.num_train=6",
    "music.num_val=2",
    "music.num_test=4",
    "music.seconds=8.0",
    "train.steps=12",
    "train.batch_pairs=8",
    "train.val_queries=8",
    "train.val_every_steps=6",
    "train.checkpoint_every_steps=3",
    "eval.snr_db=[0.0, 20.0]",
    "eval.t60_s=[0.3]",
    "eval.noise_reverb_t60_s=0.3",
    "eval.lengths_s=[0.96, 2.0]",
    "eval.rooms_per_t60=1",
)
PAIRS = "pairs.aru-sim.duration_s=12.0"
STAGES = ("decode", "rooms rooms", "query set", "training", "database", "test cells", "aligning")
# One thread, so that sums are done in one order and a run repeats to the bit.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONSAFEPATH": "1"}


def command(store: Path, *more: str, settings: Sequence[str] = (*SETTINGS, PAIRS)) -> list[str]:
    overrides = [part for setting in settings for part in ("--set", setting)]
    return ["run", "--model", "now-playing", "--preset", "tiny", "--store", str(store), *overrides, *more]


def bench(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return forked.finish(*arguments, **ENVIRONMENT, **variables)


def run(store: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return bench(*command(store, *more))


def run_until(store: Path, stage: str) -> None:
    """Start a run and kill it with SIGKILL as soon as it reports the stage."""
    process = forked.start(*command(store), **ENVIRONMENT)
    for line in process.stderr:
        if line.startswith(stage):
            break
    else:
        pytest.fail(f"the run never came to {stage}")
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


def rows_of(store: Path) -> pd.DataFrame:
    return find_run(Store(store)).load_result().rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, rooms: Path) -> Path:
    store = tmp_path_factory.mktemp("finished")
    (store / "rooms").symlink_to(rooms)
    # Not forked as all others: Python's hashes have another seed, and the numbers must be the same.
    told = [*forked.NEW_PROCESS, *command(store)]
    done = subprocess.run(told, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "segment-level top-1" in done.stdout
    return store


def test_results_validate_against_the_published_schema(finished: Path) -> None:
    shown = bench("results", "--format", "json", "--store", str(finished))
    assert shown.returncode == 0, shown.stderr
    rows = json.loads(shown.stdout)
    jsonschema.validate(rows, load_schema())
    own = [row for row in rows if row["system"] == "now-playing"]
    cells, lengths, indexes, sequences, metrics = 7, 2, 2, 5, 9
    # Two of them for each search but votes, not on the grid.
    decisions = (cells - 1) * lengths * indexes * (sequences - 2) * 2
    candidates = cells * lengths * indexes  # of `verify`, how often the true start is among them
    assert len(own) == cells * lengths * indexes * sequences * metrics + decisions + candidates
    assert sum(row["metric"] in ("false_accept", "false_reject") for row in own) == decisions
    assert {row["n"] for row in own} == {4}


def test_results_by_noise_split_the_queries_of_each_noisy_cell(finished: Path) -> None:
    shown = bench("results", "--by", "noise", "--format", "json", "--store", str(finished))
    assert shown.returncode == 0, shown.stderr
    split = pd.DataFrame(json.loads(shown.stdout))
    assert set(split["category"]) <= {"white", "pink", "brown", "babble", "hum"}
    rows = rows_of(finished)
    rows = rows[(rows["system"] == "now-playing") & rows["kind"].isin(["noise", "noise_reverb"])]
    cell = ["kind", "snr_db", "length_s", "index", "sequence", "metric"]
    whole = rows[rows["metric"].isin(["segment_top1", "audio_top1"])].set_index(cell)
    parts = split.assign(hits=split["value"] * split["n"]).groupby(cell)[["hits", "n"]].sum()
    assert len(parts) == len(whole) and (parts["n"] == 4).all()
    assert (parts["hits"] / parts["n"]).to_dict() == pytest.approx(whole["value"].to_dict())
    table = " ".join(bench("results", "--by", "noise", "--sequence", "vote", "--store", str(finished)).stdout.split())
    assert "by category, noise and reverb" in table and "sequence search: vote" in table


def test_results_by_noise_of_a_store_without_the_queries_say_so_in_one_sentence(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(finished / "runs")
    lost = bench("results", "--by", "noise", "--store", str(tmp_path))
    assert (
        lost.returncode == 2 and "no longer in the store" in lost.stderr and "repeat the run's command" in lost.stderr
    )
    (tmp_path / "queries").symlink_to(finished / "queries")
    lost = bench("results", "--by", "noise", "--store", str(tmp_path))
    assert lost.returncode == 2 and "noise corpus" in lost.stderr
    wrong = bench("results", "--by", "room", "--store", str(finished))
    assert wrong.returncode == 2 and "--by must be noise, got 'room'" in wrong.stderr


def test_results_come_as_csv_and_as_a_table(finished: Path) -> None:
    lines = bench("results", "--format", "csv", "--store", str(finished)).stdout.splitlines()
    assert lines[0].startswith("schema_version,run,benchmark,queries,system,cell")
    assert len(lines) == 1 + len(rows_of(finished))
    assert "both 20 dB" in bench("results", "--store", str(finished), COLUMNS="120").stdout
    voted = bench("results", "--sequence", "vote", "--store", str(finished), COLUMNS="120").stdout
    told = " ".join(voted.split())
    assert "index: exact, sequence search: vote" in told and "index: exact, sequence search: rescore)" in told
    wrong = bench("results", "--sequence", "interpolated", "--store", str(finished))
    assert (
        wrong.returncode == 2
        and "no sequence search of this run called 'interpolated'; did you mean 'interpolate'?" in wrong.stderr
    )


def test_clean_queries_on_the_grid_are_all_found_and_shuffled_labels_hardly(finished: Path) -> None:
    rows = rows_of(finished)
    top1 = rows[(rows["metric"] == "segment_top1") & (rows["index"] == "exact")]
    assert (top1[(top1["system"] == "now-playing") & (top1["kind"] == "identity")]["value"] == 1.0).all()
    assert (top1[top1["system"] == "shuffled-labels"]["value"] < 0.5).all()


def test_again_everything_is_found_in_the_store(finished: Path) -> None:
    weights = next((finished / "weights").glob("*/model.safetensors"))
    before, written = rows_of(finished), weights.stat().st_mtime_ns
    again = run(finished)
    assert again.returncode == 0, again.stderr
    assert "training:" not in again.stderr
    assert weights.stat().st_mtime_ns == written
    pd.testing.assert_frame_equal(rows_of(finished), before)


def test_the_run_in_mlflow_is_finished_and_its_steps_are_decibels(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{finished}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name != "Default"]
    [logged] = client.search_runs([experiment.experiment_id])
    assert experiment.name.startswith("synth-segment/v1+custom-")
    assert logged.info.status == "FINISHED"
    curve = client.get_metric_history(logged.info.run_id, "segment_top1_0.96s/noise")
    assert [point.step for point in curve] == [0, 20]
    [reverb] = client.get_metric_history(logged.info.run_id, "segment_top1_2s/reverb")
    assert reverb.step == 300
    assert logged.data.metrics["control/identity"] == 1.0
    assert logged.data.params["train.steps"] == "12"
    assert [point.step for point in client.get_metric_history(logged.info.run_id, "val/top1_50ms")] == [6, 12]
    assert len([name for name in logged.data.metrics if not name.startswith("system/")]) < 60
    assert {item.path for item in client.list_artifacts(logged.info.run_id)} >= {ROWS, "hits.parquet", "grid.json"}
    assert logged.inputs.dataset_inputs


def test_the_ui_shows_the_run_and_its_snr_curve(
    finished: Path, check_ui_shows_curve: Callable[[Path, str, Path], tuple[list[float], list[float]]], tmp_path: Path
) -> None:
    steps, values = check_ui_shows_curve(finished, "segment_top1_0.96s/noise", tmp_path)
    rows = rows_of(finished)
    wanted = rows[
        (rows["system"] == "now-playing")
        & (rows["kind"] == "noise")
        & (rows["metric"] == "segment_top1")
        & (rows["length_s"] == 0.96)
        & (rows["index"] == "exact")
        & (rows["sequence"] == "rescore")
    ]
    assert steps == [0, 20]
    assert values == pytest.approx(wanted["value"].tolist())


@pytest.mark.parametrize("stage", STAGES)
def test_killed_in_a_stage_the_next_run_ends_with_the_same_numbers(
    stage: str, finished: Path, rooms: Path, tmp_path: Path
) -> None:
    if stage != "rooms rooms":
        (tmp_path / "rooms").symlink_to(rooms)
    if stage != "decode":
        shutil.copytree(finished / "pcm", tmp_path / "pcm")
    run_until(tmp_path, stage)
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    pd.testing.assert_frame_equal(rows_of(tmp_path), rows_of(finished))


def test_ctrl_c_says_how_to_go_on_and_leaves_no_traceback(prepared: Path) -> None:
    process = forked.start(*command(prepared, "--set", "train.steps=100000"), **ENVIRONMENT)
    for line in process.stderr:
        if line.startswith("training"):
            break
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait() == 130
    assert "interrupted; repeat the command to resume" in rest
    assert "Traceback" not in rest

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{prepared}/mlflow.db")
    [logged] = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert logged.info.status == "KILLED"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "now-plying"], "did you mean 'now-playing'"),
        (["--model", "now-playing", "--preset", "smal"], "did you mean 'small'"),
        (["--model", "now-playing", "--set", "train.lrr=1"], "did you mean 'train.lr'"),
        (["--model", "now-playing", "--set", "train.lr=-1"], "train.lr must be > 0, got -1"),
        (["--model", "now-playing", "--set", "train.steps=many"], "train.steps"),
        (["--model", "now-playing", "--dataset", "fma"], "--data-root"),
        (["--model", "now-playing", "--dataset", "rooms"], "which holds rir"),
        (["--model", "now-playing", "--dataset", "folder", "--data-root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--model", "./absent.py"], "absent.py"),
        (["--model", "now-playing", "--set", 'eval.indexes=["flconn"]'], "did you mean 'falconn'"),
        (["--model", "now-playing", "--dataset", "synth", "--set", "eval.lengths_s=[0.5]"], "0.96"),
        (["--model", "now-playing", "--dataset", "synth", "--checkpoint", "absent.safetensors"], "absent.safetensors"),
        (["--model", "now-playing", "--config", "absent.toml"], "absent.toml"),
    ],
)
def test_a_mistake_of_the_user_is_one_sentence_and_exit_code_2(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = bench("run", *arguments, "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.strip().splitlines() if not line.startswith("warning: other jobs keep ")]
    assert len(told) == 1
    assert not (tmp_path / "store" / "runs").exists()


def test_weights_can_be_tested_without_training_and_corrupt_ones_are_named(
    finished: Path, prepared: Path, tmp_path: Path
) -> None:
    weights = next((finished / "weights").glob("*/model.safetensors"))
    done = run(prepared, "--checkpoint", str(weights))
    assert done.returncode == 0, done.stderr
    told = ["cell", "system", "length_s", "index", "sequence", "metric", "value"]
    pd.testing.assert_frame_equal(rows_of(prepared)[told], rows_of(finished)[told])

    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(weights.read_bytes()[:1000])
    broken = run(prepared, "--checkpoint", str(cut))
    assert broken.returncode == 2
    assert "cut.safetensors cannot be read" in broken.stderr and "Traceback" not in broken.stderr

    other = run(prepared, "--checkpoint", str(weights), "--set", "model.width=0.25")
    assert other.returncode == 2
    assert "another architecture" in other.stderr and "Traceback" not in other.stderr


@pytest.fixture
def prepared(finished: Path, rooms: Path, tmp_path: Path) -> Path:
    """Return a store that has the audio and nothing else."""
    for part in ("pcm", "queries"):
        shutil.copytree(finished / part, tmp_path / "store" / part)
    (tmp_path / "store" / "rooms").symlink_to(rooms)
    return tmp_path / "store"


@pytest.mark.parametrize("model", ["grafprint", "attention-cnn"])
def test_every_encoder_runs_and_is_compared_with_another_on_the_same_queries(
    model: str, prepared: Path, finished: Path
) -> None:
    done = run(prepared, "--model", model, "--set", "train.steps=2")
    assert done.returncode == 0, done.stderr
    assert f"{model} on synth-segment/v1" in done.stdout
    headline = find_run(Store(prepared)).load_result().summary["headline"]
    assert headline["control/identity"] > headline["control/shuffled_labels"]  # two steps teach it nothing
    for kept in (finished / "runs").iterdir():
        shutil.copytree(kept, prepared / "runs" / kept.name)
    keys = [folder.name[:8] for folder in (prepared / "runs").iterdir()]
    compared = bench("compare", *keys, "--store", str(prepared), "--format", "json")
    assert compared.returncode == 0, compared.stderr
    rows = pd.DataFrame(json.loads(compared.stdout))
    assert set(rows["system"]) == {model, "now-playing"} and (rows["n"] == 4).all()
    cells = rows[rows["cell"] != "mean"]
    assert cells["p"].dropna().between(0, 1).all() and cells["p"].notna().sum() == len(cells) / 2
    assert set(rows[rows["cell"] == "mean"]["system"]) == {model, "now-playing"}


def test_two_processes_of_torchrun_train_one_encoder_and_write_one_run(prepared: Path) -> None:
    arguments = command(prepared, "--set", "train.steps=3", "--set", "train.val_every_steps=3")
    started = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "bench", *arguments]
    done = subprocess.run(started, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("segment-level top-1 (right track, right") == 1
    alone = run(prepared, "--set", "train.steps=3", "--set", "train.val_every_steps=3", "--set", "seed=0")
    assert alone.returncode == 0 and "training:" not in alone.stderr  # the same weights, found in the store


def test_more_processes_than_a_batch_can_be_shared_among_is_a_sentence(prepared: Path) -> None:
    arguments = command(prepared, "--set", "train.batch_pairs=5")
    started = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "bench", *arguments]
    done = subprocess.run(started, capture_output=True, text=True, env=os.environ | ENVIRONMENT, timeout=300)
    assert done.returncode != 0
    assert "error: train.batch_pairs must be a multiple of the 2 processes" in done.stderr


@pytest.mark.parametrize("kind", ["train", "embed"])
def test_speed_is_told_by_part_with_the_floor_and_as_a_ratio(kind: str, prepared: Path) -> None:
    count = ["--steps", "2"] if kind == "train" else ["--batches", "1"]
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    told = ["speed", kind, "-m", "now-playing", "--preset", "tiny", "--store", str(prepared), *settings, *count]
    done = bench(*told, COLUMNS="120")
    assert done.returncode == 0, done.stderr
    assert "floor: arithmetic" in done.stdout and "segments/s" in done.stdout
    [kept] = (prepared / "speed").glob("*/speed.json")
    speed = read_speed(kept)
    assert speed.whole_ms > speed.floor_ms > 0 and all(ms >= 0 for ms in speed.parts_ms.values())
    assert sum(speed.parts_ms.values()) > speed.whole_ms / 10
    again = bench(*told, "--against", str(kept), COLUMNS="120")
    assert "times faster" in again.stdout and "times the earlier measurement" in again.stdout
    wrong = bench(*told, "--against", str(prepared / "absent.json"))
    assert wrong.returncode == 2 and "absent.json is no record of `bench speed`" in wrong.stderr


def test_a_recording_is_identified_and_one_that_cannot_be_heard_is_named(finished: Path, tmp_path: Path) -> None:
    catalogue = str(tmp_path / "songs")
    made = bench("catalogue", "build", catalogue, "--store", str(finished), "--test-side")
    assert made.returncode == 0, made.stderr
    corpora = (open_corpus(path.parent) for path in (finished / "pcm").glob("*/manifest.parquet"))
    music = next(corpus for corpus in corpora if not corpus.tracks["label"].any())  # noise has labels
    track = int(music.numbers("test")[1])
    soundfile.write(tmp_path / "heard.wav", music.read(track, 16_000, 64_000), 16_000)
    (tmp_path / "text.wav").write_text("no audio")
    asked = ("identify", str(tmp_path / "text.wav"), str(tmp_path / "heard.wav"), "--catalogue", catalogue)
    answered = bench(*asked, "--format", "json")
    assert answered.returncode == 2 and "text.wav" in answered.stderr and "Traceback" not in answered.stderr
    best = json.loads(answered.stdout)[0]
    assert best["id"] == music.tracks["id"].iloc[track] and best["start_s"] == pytest.approx(1.0, abs=0.05)
    assert "parts identified" in bench(*asked).stdout
    assert "acceptance thresholds" in bench("catalogue", "info", catalogue).stdout
    again = bench("catalogue", "build", catalogue, "--store", str(finished))
    assert again.returncode == 2 and "exists already" in again.stderr


def test_alignment_alone_is_trained_tested_kept_and_shown_again(prepared: Path) -> None:
    made = run(prepared, "--task", "alignment", "--set", "train.steps=2")
    assert made.returncode == 0, made.stderr
    assert "aru-sim-coarse, test, 2 files" in made.stdout and "fingerprint-path" in made.stdout
    result = find_run(Store(prepared)).load_result()
    assert result.summary["benchmark"] == "custom-align" and result.rows.empty
    assert set(result.alignment["aligner"]) == {"nosync", "fingerprint-path", "oracle-of-the-grid"}
    logged = {name: value for name, value in result.summary["headline"].items() if name.startswith("align_mse/")}
    assert logged["align_mse/aru-sim-coarse/fingerprint-path"] < logged["align_mse/aru-sim-coarse/nosync"]
    again = bench("results", "--store", str(prepared))
    assert "aru-sim-fine, test, 2 files" in again.stdout
    compared = bench("compare", result.summary["run"], result.summary["run"], "--store", str(prepared))
    assert compared.returncode == 2 and "a run twice" in compared.stderr and "Traceback" not in compared.stderr
    alone = bench("compare", result.summary["run"], "--store", str(prepared))
    assert alone.returncode == 0 and "fingerprint-path" in alone.stdout


def test_two_recordings_are_aligned_and_written_on_one_clock(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    time = np.arange(30 * RATE_HZ) / RATE_HZ
    scene = np.cumsum(draw.standard_normal(len(time) + 4 * RATE_HZ)) * 0.002
    scene = np.diff(scene, prepend=0) * (1 + np.sin(2 * np.pi * np.arange(len(scene)) / RATE_HZ * 0.7) ** 8 * 20)
    early, late = scene[2 * RATE_HZ :][: len(time)], scene[RATE_HZ // 2 :][: len(time)]
    soundfile.write(tmp_path / "a.wav", early, RATE_HZ)
    soundfile.write(tmp_path / "b.flac", late, RATE_HZ)
    soundfile.write(tmp_path / "both.wav", np.stack([early, late], axis=1), RATE_HZ)
    outputs = {
        f"--{what}": tmp_path / f"out.{end}" for what, end in (("csv", "csv"), ("plot", "png"), ("write", "wav"))
    }
    asked = [str(part) for pair in outputs.items() for part in pair]
    one = ("--store", str(tmp_path / "none"))
    made = bench("align", str(tmp_path / "a.wav"), str(tmp_path / "b.flac"), *asked, *one)
    assert made.returncode == 0, made.stderr
    assert "+1.5000 s at the start" in made.stdout and "random projection" in made.stdout
    table = pd.read_csv(outputs["--csv"])
    assert abs(table["Time Channel 1"] - table["Time Channel 0"] - 1.5)[:25].max() < 1e-3
    written, _ = soundfile.read(outputs["--write"])
    low, wanted = (np.convolve(wave, np.ones(16), "same")[RATE_HZ : 27 * RATE_HZ] for wave in (written, early))
    assert np.square(low - wanted).mean() < 0.05 * np.square(wanted).mean()
    assert outputs["--plot"].stat().st_size > 10_000
    stereo = bench("align", str(tmp_path / "both.wav"), *one)
    assert "+1.5000 s at the start" in stereo.stdout
    again = bench("align", str(tmp_path / "a.wav"), str(tmp_path / "b.flac"), *asked, *one)
    assert again.returncode == 2 and "out.csv exists already" in again.stderr
    outputs["--csv"].write_text("old")
    again = bench("align", str(tmp_path / "a.wav"), str(tmp_path / "b.flac"), *asked, *one, "--overwrite")
    assert again.returncode == 0 and pd.read_csv(outputs["--csv"]).equals(table)


@pytest.mark.parametrize(
    ("recordings", "told"),
    [
        (["a.wav"], "two channels, got 1"),
        (["a.wav", "a.wav", "a.wav"], "two recordings"),
        (["a.wav", "gone.wav"], "gone.wav"),
    ],
)
def test_recordings_that_cannot_be_aligned_are_refused_in_a_sentence(
    recordings: list[str], told: str, tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE_HZ), RATE_HZ)
    refused = bench("align", *(str(tmp_path / name) for name in recordings), "--store", str(tmp_path / "none"))
    assert refused.returncode == 2 and told in refused.stderr and "Traceback" not in refused.stderr


def test_recordings_that_share_no_sound_are_answered_with_a_warning(tmp_path: Path) -> None:
    for name, seed in (("a.wav", 0), ("b.wav", 1)):
        soundfile.write(tmp_path / name, 0.1 * np.random.default_rng(seed).standard_normal(20 * RATE_HZ), RATE_HZ)
    answered = bench("align", str(tmp_path / "a.wav"), str(tmp_path / "b.wav"), "--store", str(tmp_path / "none"))
    assert answered.returncode == 0 and "do not rely on these numbers" in answered.stderr


def test_pairs_without_annotations_are_answered_in_the_columns_of_the_challenge(prepared: Path, tmp_path: Path) -> None:
    place = tmp_path / "data" / "formatted_data" / "aru" / "eval" / "audio"
    place.mkdir(parents=True)
    sound = 0.1 * np.random.default_rng(0).standard_normal((6 * RATE_HZ, 2))
    soundfile.write(place / "a.wav", sound, RATE_HZ)
    (place / "broken.wav").write_text("no audio")
    more = ("--data-root", str(tmp_path / "data"), "--set", 'align.sets=["biodcase"]', "--set", "align.split=eval")
    more = ("--task", "alignment", "--set", "train.steps=2", *more)
    made = bench(*command(prepared, *more, settings=SETTINGS))  # without pairs of its own
    assert made.returncode == 0, made.stderr
    assert "left out of the alignment" in made.stderr and "broken.wav" in made.stderr
    told = [line.partition(": ")[2] for line in made.stdout.splitlines() if line.startswith("without annotations: ")]
    assert [Path(path).name for path in told] == ["aru-eval-fingerprint-path.csv", "aru-eval-nosync.csv"]
    rows = pd.read_csv(told[1])
    assert rows.columns.tolist() == ["Filename", "Time Channel 0", "Time Channel 1"]
    assert rows["Time Channel 1"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
