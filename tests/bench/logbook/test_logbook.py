"""The logbook against a real MLflow on SQLite, in this process and in killed children."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import forked
import pandas as pd
import pytest

from bench.logbook import book as book_module
from bench.logbook import open_book, sync
from bench.logbook.databases import create_whole
from bench.logbook.journal import Journal
from bench.logbook.uploader import connect, store_uri

mlflow = pytest.importorskip("mlflow")
TOP1 = "segment_top1_0.96s/noise"
CHILD = """
import sys, time
from pathlib import Path
from bench.logbook import open_book
store, key, hold_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with open_book(store / "runs" / key, experiment="x", name=key, store=store, warn=print) as book:
    book.metrics({"a": 1.0}, step=3)
    print("open", book.run_id, file=sys.stderr)
    time.sleep(hold_s)
"""


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database: making one takes seconds, copying it does not."""
    store = tmp_path_factory.mktemp("database")
    connect("", store)
    return store / "mlflow.db"


@pytest.fixture
def store(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setattr(book_module, "FLUSH_S", 0.1)
    root = tmp_path / "store"
    root.mkdir()
    shutil.copy(database, root / "mlflow.db")
    yield root


def opened(store: Path, warnings: list[str], key: str = "k"):  # type: ignore[no-untyped-def]
    return open_book(
        store / "runs" / key, experiment="fma/v1", name="now-playing/0/k", store=store, warn=warnings.append
    )


def client_of(store: Path):  # type: ignore[no-untyped-def]
    return mlflow.MlflowClient(store_uri(store))


def all_runs(store: Path):  # type: ignore[no-untyped-def]
    client = client_of(store)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_everything_logged_arrives_and_the_run_is_finished(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    (store / "report.md").write_text("fine")
    with opened(store, warnings) as book:
        book.params({"train.lr": 1e-3, "model.k": 3, "long": "x" * 7000})
        book.tags({"bench.git": "abc"})
        book.note("# A run")
        for snr_db, top1 in [(-5, 0.1), (0, 0.3), (20, math.nan), (25, math.inf)]:
            book.metrics({TOP1: top1, "odd@key=[1]//x": 1}, step=snr_db)
        book.table("grid", pd.DataFrame({"cell": ["noise", None], "top1": [0.5, math.nan]}))
        book.artifact(store / "report.md", under="reports")
        book.dataset("fma", "0123456789abcdef", "eval", "fma_large")
    client = client_of(store)
    run = client.get_run(book.run_id)
    assert warnings == []
    assert (run.info.status, run.info.run_name) == ("FINISHED", "now-playing/0/k")
    assert run.data.params["train.lr"] == "0.001"
    assert len(run.data.params["long"]) == 6000
    assert run.data.tags["mlflow.note.content"] == "# A run"
    assert run.data.tags["bench.pid"] == str(os.getpid())
    history = {m.step: m.value for m in client.get_metric_history(book.run_id, TOP1)}
    assert (history[-5], history[0]) == (0.1, 0.3)
    assert math.isnan(history[20])
    assert history[25] > 1e300
    assert run.data.metrics["odd_key__1_/x"] == 1
    assert "system/cpu_utilization_percentage" in run.data.metrics
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("fma", "0123456789abcdef", "eval")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri(store))  # load_table asks the global store only
    table = client.load_table(run.info.experiment_id, "grid.json", run_ids=[book.run_id])
    assert table["cell"].to_list()[0] == "noise"
    assert [f.path for f in client.list_artifacts(book.run_id, "reports")] == ["reports/report.md"]
    assert (store / "mlartifacts").is_dir()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("broken"), "FAILED"),
        (SystemExit(1), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (SystemExit(0), "FINISHED"),
    ],
)
def test_the_way_a_run_ends_is_its_status(store: Path, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), opened(store, []) as book:
        assert client_of(store).get_run(book.run_id).info.status == "RUNNING"
        raise error
    assert client_of(store).get_run(book.run_id).info.status == status


def test_a_run_done_again_continues_its_mlflow_run_and_draws_no_point_twice(store: Path) -> None:
    for lr in (1, 1, 2):
        with opened(store, []) as book:
            book.params({"train.lr": lr})
            for _ in range(2):
                book.metrics({TOP1: 0.5, "bad": math.nan}, step=5)
    (run,) = all_runs(store)
    assert (run.info.run_id, run.info.status) == (book.run_id, "FINISHED")
    assert run.data.params == {"train.lr": "1"}
    assert run.data.tags["changed.train.lr"] == "2"
    assert len(client_of(store).get_metric_history(book.run_id, TOP1)) == 1
    assert len(client_of(store).get_metric_history(book.run_id, "bad")) == 1


def test_a_run_deleted_in_mlflow_is_made_anew_with_all_its_events(store: Path) -> None:
    with opened(store, []) as book:
        book.metrics({TOP1: 0.5}, step=5)
    deleted = book.run_id
    client_of(store).delete_run(deleted)
    with opened(store, []) as book:
        book.metrics({TOP1: 0.6}, step=10)
    assert book.run_id != deleted
    assert [m.step for m in client_of(store).get_metric_history(book.run_id, TOP1)] == [5, 10]


def test_a_lost_answer_to_creating_the_run_makes_no_second_run(store: Path) -> None:
    with opened(store, []) as book:
        book.metrics({TOP1: 0.5}, step=5)
    journal = Journal(store / "runs" / "k")
    card = json.loads((journal.folder / "mlflow.json").read_text())
    (journal.folder / "mlflow.json").write_text(json.dumps(card | {"targets": {}}))
    assert sync(store, print) == [("k", "delivered")]
    assert len(all_runs(store)) == 1
    assert len(client_of(store).get_metric_history(book.run_id, TOP1)) == 1


def test_a_run_synced_to_another_server_lies_below_its_parent_there(
    store: Path, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(store, [], "sweep") as parent:
        parent.tags({"bench.kind": "sweep"})
    with opened(store, [], "a-trial") as trial:  # delivered before its parent, in the order of keys
        trial.tags({"mlflow.parentRunId": parent.run_id})
    first_id = parent.run_id
    assert client_of(store).get_run(trial.run_id).data.tags["mlflow.parentRunId"] == first_id
    other = store / "other.db"
    shutil.copy(database, other)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}")
    assert sync(store, print) == [("a-trial", "delivered"), ("sweep", "delivered")]
    client = mlflow.MlflowClient(f"sqlite:///{other}")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert len(runs) == 2
    (above,) = (run for run in runs if run.data.tags.get("bench.kind") == "sweep")
    (below,) = (run for run in runs if run is not above)
    assert below.data.tags["mlflow.parentRunId"] == above.info.run_id != first_id
    assert [run.info.status for run in (above, below)] == ["FINISHED", "FINISHED"]


def test_experiment_name_of_the_user_wins(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with opened(store, []):
        pass
    (run,) = all_runs(store)
    assert client_of(store).get_experiment(run.info.experiment_id).name == "mine"


def test_an_entry_that_mlflow_refuses_does_not_hold_up_the_others(store: Path) -> None:
    warnings: list[str] = []
    with opened(store, warnings) as book:
        client_of(store).log_param(book.run_id, "taken", "before")
        book.params({"taken": "after", "free": "1"})
        book.artifact(store / "never-written.txt")
        book.metrics({TOP1: 0.5})
    run = client_of(store).get_run(book.run_id)
    assert run.data.params == {"taken": "before", "free": "1"}
    assert run.data.metrics[TOP1] == 0.5
    assert run.info.status == "FINISHED"
    assert len(warnings) == 1
    assert "2 entries" in warnings[0]


def test_log_calls_never_raise(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    with opened(store, warnings) as book:
        book.metrics({"a": "not a number"})  # type: ignore[dict-item]
        book.table("grid", "not a frame")  # type: ignore[arg-type]
        monkeypatch.setattr(Journal, "append", _disk_full)
        book.metrics({"a": 1.0})
        monkeypatch.undo()
        book.metrics({"b": 2.0})
    assert len(warnings) == 1
    assert "cannot log metrics" in warnings[0]


def _disk_full(self: Journal, kind: str, **values: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_line_cut_by_a_full_disk_or_a_kill_spoils_no_other(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append("metrics", values={"a": 1})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "metr')
    assert [len(events) for events, _ in journal.read()] == [1]
    journal._torn = True  # what a failed write leaves behind
    journal.append("metrics", values={"a": 2})
    assert [e["values"]["a"] for events, _ in journal.read() for e in events] == [1, 2]
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"kind": "metr')
    Journal(tmp_path).mend()
    assert (tmp_path / "events.jsonl").read_bytes().endswith(b"\n")


def test_a_damaged_line_is_named_and_kept_and_what_is_readable_in_it_and_after_it_is_used(
    store: Path,
) -> None:
    with opened(store, []) as book:
        for step in (5, 10, 15, 20):
            book.metrics({TOP1: step / 100}, step=step)
    path = store / "runs" / "k" / "events.jsonl"
    lines = path.read_bytes().split(b"\n")
    at = next(i for i, line in enumerate(lines) if b'"step": 10' in line)
    lines[at : at + 2] = [lines[at] + b"{" + lines[at + 1]]  # as a network drive left it
    lines.insert(at + 1, b"\x00\x00\xff garbage { ")
    lines.insert(at + 2, b"")
    path.write_bytes(damaged := b"\n".join(lines))
    card = json.loads((path.parent / "mlflow.json").read_text())
    (path.parent / "mlflow.json").write_text(json.dumps(card | {"targets": {}, "id": "another"}))
    warnings: list[str] = []
    assert sync(store, warnings.append) == [("k", "delivered")]
    assert warnings == [
        f"{path} was damaged: line {at + 1} (2 entries of it could be read), line {at + 2} (no entries of it could be "
        f"read); the rest is used, and the file as it was is kept as {path}.damaged"
    ]
    assert path.with_name("events.jsonl.damaged").read_bytes() == damaged
    assert [run.info.status for run in all_runs(store)] == ["FINISHED"] * 2
    for run in all_runs(store):
        assert [m.step for m in client_of(store).get_metric_history(run.info.run_id, TOP1)] == [5, 10, 15, 20]
    del warnings[:]
    with opened(store, warnings) as book:
        book.metrics({TOP1: 0.1}, step=25)
    assert warnings == []


def test_a_long_journal_is_read_in_parts_without_losing_an_event(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for i in range(300):
        journal.append("tags", values={"i": i, "fill": "x" * 10_000})
    parts = list(journal.read())
    assert len(parts) > 1
    assert [e["values"]["i"] for events, _ in parts for e in events] == list(range(300))
    assert [e["values"]["i"] for events, _ in journal.read(parts[0][1]) for e in events] == list(
        range(len(parts[0][0]), 300)
    )


def test_a_killed_run_is_closed_and_a_live_one_left_alone(store: Path) -> None:
    dead, alive = (child(store, key, hold_s=60) for key in ("dead", "alive"))
    try:
        ids = {key: run_id_of(process) for key, process in (("dead", dead), ("alive", alive))}
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert client_of(store).get_run(ids["dead"]).info.status == "RUNNING"
        assert dict(sync(store, print)) == {"dead": "delivered", "alive": "in progress"}
        assert client_of(store).get_run(ids["dead"]).info.status == "KILLED"
        assert client_of(store).get_run(ids["alive"]).info.status == "RUNNING"
        assert dict(sync(store, print)) == {"dead": "up to date", "alive": "in progress"}
        alive.send_signal(signal.SIGINT)
        assert alive.wait(20) != 0
        assert client_of(store).get_run(ids["alive"]).info.status == "KILLED"
    finally:
        dead.send_signal(signal.SIGKILL), alive.send_signal(signal.SIGKILL)


def test_a_second_process_on_the_same_run_waits_and_continues_it(store: Path) -> None:
    first = child(store, "k", hold_s=1)
    run_id = run_id_of(first)
    warnings: list[str] = []
    with opened(store, warnings) as book:
        assert book.run_id == run_id
    assert first.wait(20) == 0
    assert len(warnings) == 1
    assert "waiting" in warnings[0]


def test_a_folder_whose_run_never_began_is_no_run(store: Path) -> None:
    with opened(store, []):
        pass
    (store / "runs" / "k" / "events.jsonl").unlink()
    card = json.loads((store / "runs" / "k" / "mlflow.json").read_text())
    (store / "runs" / "k" / "mlflow.json").write_text(json.dumps(card | {"targets": {}, "id": "another"}))
    assert sync(store, print) == [("k", "up to date")]
    assert len(all_runs(store)) == 1


def test_an_unreadable_card_is_replaced_and_all_is_delivered_anew(store: Path) -> None:
    with opened(store, []) as book:
        book.metrics({TOP1: 0.5}, step=5)
    (store / "runs" / "k" / "mlflow.json").write_text("{")
    with opened(store, []) as book:
        book.metrics({TOP1: 0.5}, step=5)
    assert [m.step for m in client_of(store).get_metric_history(book.run_id, TOP1)] == [5]


def test_opening_any_run_closes_the_dead_ones(store: Path) -> None:
    dead = child(store, "dead", hold_s=60)
    run_id = run_id_of(dead)
    dead.send_signal(signal.SIGKILL)
    dead.wait()
    with opened(store, []):
        until = time.monotonic() + 10
        while client_of(store).get_run(run_id).info.status != "KILLED" and time.monotonic() < until:
            time.sleep(0.1)
    assert client_of(store).get_run(run_id).info.status == "KILLED"


def test_four_processes_share_a_fresh_database(tmp_path: Path) -> None:
    children = [child(tmp_path, f"k{i}", hold_s=0) for i in range(4)]
    outputs = [process.communicate(timeout=60) for process in children]
    assert [process.returncode for process in children] == [0] * 4, outputs
    runs = all_runs(tmp_path)
    assert sorted(run.info.run_name for run in runs) == ["k0", "k1", "k2", "k3"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.metrics["a"] for run in runs} == {1.0}


def test_a_store_that_was_moved_keeps_its_artefacts_at_its_new_place(store: Path, tmp_path: Path) -> None:
    (store / "report.md").write_text("fine")
    with opened(store, []) as book:
        book.artifact(store / "report.md")
    client = client_of(store)
    location = f"{client.get_run(book.run_id).info.artifact_uri}/model"
    client.create_registered_model("m")
    client.create_model_version("m", location, run_id=book.run_id)
    client.create_experiment("own", artifact_location="file:///elsewhere/of-mine")
    first, moved = book.run_id, tmp_path / "deep" / "store2"
    moved.parent.mkdir()
    store.rename(moved)
    warnings: list[str] = []
    with opened(moved, warnings, "k2") as other:
        other.artifact(moved / "report.md")
    assert warnings == []
    assert not store.exists()
    client = client_of(moved)
    for run_id in (first, other.run_id):
        assert [file.path for file in client.list_artifacts(run_id)] == ["report.md"]
    assert client.get_model_version("m", "1").source.startswith((moved / "mlartifacts").as_uri())
    assert client.get_experiment_by_name("own").artifact_location == "file:///elsewhere/of-mine"


def test_an_artefact_of_the_store_that_was_not_delivered_is_found_after_a_move(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (store / "sweeps").mkdir()
    (store / "sweeps" / "study.json").write_text("{}")
    with opened(store, []) as book:
        book.artifact(store / "sweeps" / "study.json")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    store.rename(tmp_path / "store2")
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store2/../store2/mlflow.db"
    )  # its own, spelt oddly
    assert sync(tmp_path / "store2", print) == [("k", "delivered")]
    (run,) = all_runs(tmp_path / "store2")
    assert run.info.artifact_uri.startswith((tmp_path / "store2" / "mlartifacts").as_uri())
    assert [file.path for file in client_of(tmp_path / "store2").list_artifacts(run.info.run_id)] == ["study.json"]


def test_importing_the_logbook_does_not_import_mlflow() -> None:
    code = "import sys, bench.logbook; print([m for m in ('mlflow', 'torch', 'pandas') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def child(store: Path, key: str, hold_s: float) -> forked.Started:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING")]:
            patch.delenv(name)
        return forked.start_code(CHILD, str(store), key, str(hold_s))


def run_id_of(process: forked.Started) -> str:
    line = process.stderr.readline().split()
    assert line[:1] == ["open"], line
    return line[1]


def test_a_kill_while_the_database_is_created_leaves_nothing_that_breaks_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database with a part of MLflow's tables can never be opened again: `duplicate column name`."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    own, other = tmp_path / "mlflow.db", tmp_path / "other.db"

    def killed(beginning: Path) -> None:
        with closing(sqlite3.connect(beginning)) as part:
            part.execute("CREATE TABLE experiments (creation_time INTEGER)")
        raise KeyboardInterrupt

    for path in (own, other):
        with pytest.raises(KeyboardInterrupt):
            create_whole(path, killed)
        assert not path.exists()
    for uri in ("", f"sqlite:///{other}"):
        assert connect(uri, tmp_path).search_experiments()
    assert sorted(path.name for path in tmp_path.glob("*.db*")) == ["mlflow.db", "other.db"]
    assert not list(tmp_path.glob(".*"))


def test_failure_of_the_database_is_raised_and_not_printed(store: Path) -> None:
    """MLflow logs a traceback of what it also raises, such as of a full disk."""
    with closing(sqlite3.connect(store / "mlflow.db")) as damaged:
        damaged.execute("DROP TABLE runs")
    script = "import sys; from pathlib import Path; from bench.logbook.uploader import connect\n"
    script += "try: connect('', Path(sys.argv[1])).create_run('0')\nexcept Exception as error: print('raised')"
    done = subprocess.run([sys.executable, "-c", script, str(store)], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("raised\n", "")
