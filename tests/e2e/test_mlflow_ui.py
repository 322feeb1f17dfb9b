"""The MLflow UI in a real headless browser: what a user sees who follows the addresses of `bench ui`."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest

from bench.logbook import open_book

SETTINGS = (
    *("music.num_train=6", "music.num_val=2", "music.num_test=4", "music.seconds=8.0"),
    *("train.steps=12", "train.batch_pairs=8", "train.val_queries=8", "train.val_every_steps=6"),
    *("eval.snr_db=[0.0, 20.0]", "eval.t60_s=[0.3]", "eval.noise_reverb_t60_s=0.3", "eval.rooms_per_t60=1"),
    "eval.lengths_s=[0.96, 2.0, 3.0, 5.0]",  # those of the benchmark
)
# So are the aligners: the preset tiny has fewer.
ALIGNERS = ("align.aligners=['nosync', 'fingerprint-median', 'fingerprint-path']", "pairs.aru-sim.duration_s=20.0")
MOST_KEYS = 60  # of metrics, in one run
GPU_KEYS = 5  # that MLflow's monitor of a GPU adds
PATIENCE_S = 60
NUM_RUNS = 200
CURVES = """
return Array.from(document.querySelectorAll('.js-plotly-plot')).map(plot => ({
  axis: plot.layout?.xaxis?.title?.text ?? '',
  points: Object.fromEntries(plot.data.map(trace => [trace.name, trace.y])),
  steps: plot.data.map(trace => trace.x),
  lines: plot.querySelectorAll('path.js-line').length,
}))
"""


@pytest.fixture(scope="module")
def two_encoders(tmp_path_factory: pytest.TempPathFactory, rooms: Path) -> Path:
    """Return a store with whole runs of two encoders on the same queries; the second aligns recorders too."""
    store = tmp_path_factory.mktemp("encoders")
    (store / "rooms").symlink_to(rooms)
    for encoder, task, more in (("random-projection", "segments", ()), ("now-playing", "all", ALIGNERS)):
        told = ["run", "--model", encoder, "--preset", "tiny", "--task", task, "--store", str(store)]
        overrides = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
        done = forked.finish(*told, *overrides)
        assert done.returncode == 0, done.stderr
    return store


@contextmanager
def pages(store: Path) -> Iterator[dict[str, str]]:
    """Give the addresses that `bench ui` prints for a store, by what they show; the server is gone afterwards."""
    told = ["ui", "--store", str(store)]
    server = subprocess.Popen([*forked.NEW_PROCESS, *told], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        found = {}
        while (line := server.stdout.readline()) != "Ctrl-C ends it\n":
            assert ": " in line, (line, "" if line else server.communicate(timeout=30)[1])  # it ended
            what, address = line.rstrip().split(": ", 1)
            found[what] = address
        yield found
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=30)


def opened(browser: Any, address: str) -> None:
    """Open a page, without the panel of MLflow's assistant that covers a quarter of a new browser's window."""
    browser.get(re.sub(r"#.*", "health", address))
    browser.execute_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
    browser.get("about:blank")
    browser.get(address)


def waited(browser: Any, condition: Callable[[], Any], what: str) -> Any:
    """Return the condition's first true value; fail with the text of the page after PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        if found := condition():
            return found
        time.sleep(0.3)
    pytest.fail(f"{what} did not appear; the page says:\n{text_of(browser)}")


def text_of(browser: Any) -> str:
    """Return the text a user can read on the page."""
    return str(browser.execute_script("return document.body.innerText"))


def logged_run(store: Path, encoder: str) -> Any:
    """Return the MLflow run of an encoder."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    [run] = client.search_runs(experiments, f"tags.`bench.encoder` = '{encoder}'")
    return run


@pytest.mark.slow
def test_a_whole_run_with_alignment_has_fewer_than_60_metrics(two_encoders: Path) -> None:
    names = set(logged_run(two_encoders, "now-playing").data.metrics)
    lengths, kinds = ("0.96", "2", "3", "5"), ("noise", "reverb", "noise_reverb")
    assert names >= {f"segment_top1_{length}s/{kind}" for length in lengths for kind in kinds}
    assert names >= {f"audio_top1_5s/{kind}" for kind in kinds}
    assert {f"{error}/aru-sim-fine/fingerprint-path" for error in ("align_mse", "align_mae_ms")} <= names
    assert {"train/loss", "val/top1_50ms", "system/cpu_utilization_percentage", "cost/training_s"} <= names
    assert not [name for name in names if name.endswith("/nosync")]  # the same for every encoder: in the table
    assert len(names) + GPU_KEYS < MOST_KEYS, sorted(names)


@pytest.mark.slow
def test_the_description_of_a_run_holds_the_headline_and_the_grid(two_encoders: Path) -> None:
    note = logged_run(two_encoders, "now-playing").data.tags["mlflow.note.content"]
    assert "| segment_top1/mean" in note and "| control/identity" in note
    assert re.search(r"\| noise, 20 dB\S* \| \d+\.\d \(\d+-\d+\)", note)
    assert re.search(r"\| fingerprint-path\S* \| \S+ ms, \S+ s2", note)


@pytest.mark.slow
def test_one_chart_shows_the_snr_curves_of_all_encoders(two_encoders: Path, browser: Any, tmp_path: Path) -> None:
    runs = [logged_run(two_encoders, encoder) for encoder in ("random-projection", "now-playing")]
    names = [run.info.run_name for run in runs]
    with pages(two_encoders) as found:
        opened(browser, found["MLflow UI"])
        waited(browser, lambda: all(name in text_of(browser) for name in names), "the list of runs")
        browser.save_screenshot(str(tmp_path / "runs.png"))
        opened(browser, found["top-1 over SNR of all systems"])

        def chart() -> Any:
            return next((each for each in browser.execute_script(CURVES) if each["lines"] >= len(names)), None)

        drawn = waited(browser, chart, "the curves")
        browser.save_screenshot(str(tmp_path / "compared.png"))
        shown = text_of(browser)
    assert "segment_top1_0.96s/noise" in shown
    assert all(f"{name} (segment_top1_0.96s/noise)" in shown for name in names)  # the legend
    assert "Step" in drawn["axis"]
    assert all(steps == [0, 20] for steps in drawn["steps"])  # the SNR in dB
    for run in runs:
        assert drawn["points"][run.info.run_name][-1] == pytest.approx(run.data.metrics["segment_top1_0.96s/noise"])


@pytest.mark.slow
def test_a_list_of_200_runs_is_usable(
    browser: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("fma-segment/v1", (tmp_path / "mlartifacts").as_uri())
    keys = [f"segment_top1_{i // 3}s/{kind}" for i, kind in enumerate(("noise", "reverb", "both") * 20)][
        : MOST_KEYS - 1
    ]
    for number in range(NUM_RUNS):
        run = client.create_run(experiment, number + 1, {"bench.encoder": f"encoder-{number % 4}"}, f"run-{number:03d}")
        client.log_batch(run.info.run_id, [Metric(key, number / NUM_RUNS, 1, 0) for key in keys])
        client.set_terminated(run.info.run_id)
    with pages(tmp_path) as found:
        began_s = time.monotonic()
        opened(browser, found["MLflow UI"])
        waited(browser, lambda: "run-199" in text_of(browser), "the newest run")
        listed_s = time.monotonic() - began_s
        browser.save_screenshot(str(tmp_path / "list.png"))
        rows = browser.execute_script("return document.querySelectorAll('.ag-center-cols-container .ag-row').length")
        began_s = time.monotonic()
        opened(browser, f"{found['MLflow UI']}&compareRunsMode=CHART")
        waited(browser, lambda: browser.execute_script("return document.querySelector('.js-plotly-plot')"), "a chart")
        record_property("seconds until the list, until the charts", (listed_s, time.monotonic() - began_s))
        browser.save_screenshot(str(tmp_path / "charts.png"))
    assert rows >= 10  # MLflow draws the rows in view


@pytest.mark.slow
def test_ui_shows_a_run_and_its_snr_curve(
    check_ui_shows_curve: Callable[[Path, str, Path], tuple[list[float], list[float]]], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    curve = {0: 0.31, 5: 0.59, 10: 0.75, 15: 0.85, 20: 0.95}
    with open_book(
        store / "runs" / "k", experiment="fma-segment/v1", name="now-playing/0/k", store=store, warn=pytest.fail
    ) as book:
        book.params({"train.lr": 1e-3})
        for snr_db, top1 in curve.items():
            book.metrics(
                {
                    "segment_top1_0.96s/noise": top1,
                    "segment_top1_2s/noise": top1 / 2,
                    "segment_top1_0.96s/noise_reverb": 0.0,
                },
                step=snr_db,
            )
        book.metrics({"segment_top1/mean": 0.69})
    steps, values = check_ui_shows_curve(store, "segment_top1_0.96s/noise", tmp_path)
    assert steps == list(curve)
    assert values == pytest.approx(list(curve.values()))
