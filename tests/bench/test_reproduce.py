"""A run computed again: what is checked before, what is computed anew, and what is said of the difference."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path

import forked
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from bench import registry
from bench.config import resolve
from bench.degrade.room import Response, align_direct_sound
from bench.errors import ConfigError
from bench.reproduce import (
    REPRODUCTIONS,
    VERDICT,
    Attempt,
    Check,
    Outcome,
    Record,
    Says,
    _check,
    check_reproducible,
    compare_results,
    load_record,
    prepare_attempt,
    reproduce,
)
from bench.results import CONFIG, SUMMARY, Result
from bench.run import RunContext, run
from bench.runs import FinishedRun
from bench.store import Store
from bench.train import checkpoint
from bench.train.checkpoint import WEIGHTS
from bench.values import RATE_HZ, no_progress

SETTINGS = (
    "music.num_train=6",
    "music.num_val=2",
    "music.num_test=4",
    "music.seconds=8.0",
    "train.steps=4",
    "train.batch_pairs=8",
    "train.val_queries=8",
    "train.val_every_steps=2",
    "eval.snr_db=[0.0, 20.0]",
    "eval.t60_s=[0.3]",
    "eval.noise_reverb_t60_s=0.3",
    "eval.lengths_s=[0.96, 2.0]",
    "eval.rooms_per_t60=1",
    "pairs.aru-sim.duration_s=12.0",
)
REPORT = registry.load("report", "reproduce")


def silent(told: str) -> None:
    """Hears no warning."""


def attempted(store: Store, *, keep_weights: bool = False) -> Attempt:
    return prepare_attempt(store, None, None, no_progress, silent, keep_weights=keep_weights)


def shown(renderable: object) -> str:
    console = Console(width=120, record=True, file=StringIO())
    console.print(renderable)
    return console.export_text()


def quick_room(rooms: object, name: str) -> Response:
    """Return a decaying noise in place of a simulated room, which takes a quarter of a second."""
    split, *wanted = name.split("/")
    t60_s = float(wanted[0]) if split == "test" else 0.4
    time_T = np.arange(round(1.2 * t60_s * RATE_HZ)) / RATE_HZ
    decay_T = np.random.default_rng(len(name)).standard_normal(len(time_T)) * 10 ** (-3 * time_T / t60_s)
    decay_T[0] = 8
    return Response(name, align_direct_sound(decay_T.astype(np.float32)), "test" if split == "test" else "train", t60_s)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a store with one finished run, of queries and of recorders."""
    store = Store(tmp_path_factory.mktemp("finished"))
    torch.set_num_threads(1)
    plugin = registry.load("encoder", "now-playing")
    config = resolve("now-playing", plugin, "tiny", overrides=SETTINGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.load("dataset", "rooms").Rooms, "load", quick_room)
        assert run(config, RunContext(plugin, None, store, no_progress, silent)) is not None
    return store


@pytest.fixture
def copied(finished: Store, tmp_path: Path) -> Store:
    """Return a store whose run may be changed; the rest is that of the finished one."""
    for folder in finished.root.iterdir():
        if folder.name not in ("runs", REPRODUCTIONS):
            (tmp_path / folder.name).symlink_to(folder)
    shutil.copytree(finished.root / "runs", tmp_path / "runs")
    return Store(tmp_path)


def run_folder(store: Store) -> Path:
    return next((store.root / "runs").glob(f"*/{SUMMARY}")).parent


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def again(finished: Store) -> Outcome:
    found = attempted(finished)
    check_reproducible(found)
    outcome = reproduce(found, finished, no_progress)
    assert outcome is not None
    return outcome


def test_the_same_code_gives_the_same_answers(again: Outcome) -> None:
    assert again.as_expected and again.changed == 0
    # 7 cells, 2 lengths, 2 indexes, 5 sequence searches, 4 queries; 3 aligners, 2 sets of 2 files.
    assert again.answers == 7 * 2 * 2 * 5 * 4 + 3 * 2 * 2
    assert "bit-identical" in again.weights
    assert again.verdict.startswith("reproduced: all 572 answers are the same")
    assert (again.headline["old"] == again.headline["new"]).all() and len(again.headline) > 10


def test_weights_and_fingerprints_are_made_anew_and_audio_is_shared(again: Outcome, finished: Store) -> None:
    [own] = (finished.root / REPRODUCTIONS / again.run).iterdir()
    for kind in ("pcm", "rooms", "queries", "pairs"):
        assert (own / kind).resolve() == (finished.root / kind).resolve()
    for kind in ("weights", "fingerprints", "hits", "alignments"):
        assert not (own / kind).is_symlink()
        made = [path for path in (own / kind).iterdir() if path.is_dir()]
        assert len(made) == len([path for path in (finished.root / kind).iterdir() if path.is_dir()]) > 0
    assert json.loads((own / VERDICT).read_text())["as_expected"]


def test_the_command_goes_on_from_what_is_there_and_ends_with_0(again: Outcome, finished: Store) -> None:
    [own] = (finished.root / REPRODUCTIONS / again.run).iterdir()
    [weights] = (own / "weights").glob(f"*/{WEIGHTS}")
    written = weights.stat().st_mtime_ns
    told = forked.finish("reproduce", again.run[:6], "--store", str(finished.root), COLUMNS="120")
    assert told.returncode == 0, told.stderr
    assert "reproduced: all 572 answers are the same" in told.stdout
    assert "computing anew in" in told.stdout and "training:" not in told.stderr
    assert weights.stat().st_mtime_ns == written


def test_kept_weights_are_tested_without_training(finished: Store) -> None:
    found = attempted(finished, keep_weights=True)
    outcome = reproduce(
        found, finished, lambda stage, done, total: pytest.fail("trained") if stage == "training" else None
    )
    assert outcome is not None and outcome.changed == 0
    assert outcome.weights == "those of the run, tested again"


def test_what_a_run_did_not_record_is_known_by_its_key(finished: Store) -> None:
    said = {check.name: (check.group, check.says) for check in attempted(finished).checks}
    assert said["music"] == said["noise"] == said["queries"] == said["pairs"] == ("data", "alike")
    assert said["encoder's source"] == ("code", "alike") and said["version"] == ("code", "alike")
    assert said["torch"] == ("libraries", "alike") and said["CPU"] == ("machine", "alike")
    assert not [name for name, (group, says) in said.items() if says == "differs" and group != "code"]


def test_other_music_is_refused_and_named(copied: Store) -> None:
    music = load_record(copied, None).digests["music"]
    for path in (run_folder(copied) / "events.jsonl", run_folder(copied) / "result.json"):
        assert music in path.read_text()
        path.write_text(path.read_text().replace(music, "0123456789abcdef"))
    found = attempted(copied)
    with pytest.raises(ConfigError, match=r"music: not as in the run .* --data-root, or continue with --anyway"):
        check_reproducible(found)
    assert "0123456789ab" in shown(REPORT.render_checks(found.record.run, found.checks))


def test_a_setting_that_is_gone_is_refused_and_a_new_one_has_its_default(copied: Store) -> None:
    path = run_folder(copied) / CONFIG
    settings = json.loads(path.read_text())
    del settings["train.mixture.gain"]
    path.write_text(json.dumps(settings | {"train.sparkle": 3}))
    found = attempted(copied)
    said = {check.name: check for check in found.checks}
    assert said["train.sparkle"] == Check("settings", "train.sparkle", "3", "no such setting", "differs")
    assert said["train.mixture.gain"] == Check(
        "settings", "train.mixture.gain", "no such setting", "(0.2, 5.0)", "not known"
    )
    assert found.config.train.mixture.gain == (0.2, 5.0) and found.config.train.steps == 4
    with pytest.raises(ConfigError, match=r"train\.sparkle: not as in the run"):
        check_reproducible(found)


def test_a_setting_that_was_renamed_is_not_gone(copied: Store) -> None:
    path = run_folder(copied) / CONFIG
    path.write_text(path.read_text().replace("train.hard_negatives_per_track", "train.twins_per_track"))
    found = attempted(copied)
    assert not {"train.twins_per_track", "train.hard_negatives_per_track"} & {check.name for check in found.checks}


def test_another_library_is_a_difference_that_is_not_refused(copied: Store) -> None:
    events = run_folder(copied) / "events.jsonl"
    events.write_text(events.read_text().replace(f'"bench.lib.numpy": "{np.__version__}"', '"bench.lib.numpy": "1.0"'))
    found = attempted(copied)
    assert Check("libraries", "numpy", "1.0", np.__version__, "differs") in found.checks
    check_reproducible(found)


def test_a_journal_that_is_gone_leaves_everything_unknown_but_the_data(copied: Store) -> None:
    (run_folder(copied) / "events.jsonl").unlink()
    said = {check.name: check.says for check in attempted(copied).checks}
    assert said["version"] == said["CPU"] == "not known" and said["music"] == "alike"


def test_what_is_not_recorded_on_either_side_is_not_known() -> None:
    says = [_check("code", "commit", then, now).says for then, now in (("a", "a"), ("a", "b"), ("", "a"), ("a", ""))]
    assert says == ["alike", "differs", "not known", "not known"]


def test_a_run_that_was_given_weights_wants_them_again(copied: Store) -> None:
    summary = json.loads((run_folder(copied) / SUMMARY).read_text())
    del summary["seconds"]["training"]
    edit(run_folder(copied) / SUMMARY, seconds=summary["seconds"])
    with pytest.raises(ConfigError, match="was given its weights; name them again with --checkpoint"):
        attempted(copied)


def test_weights_for_a_run_that_trained_are_refused(finished: Store) -> None:
    with pytest.raises(ConfigError, match="trained its weights; leave --checkpoint out"):
        prepare_attempt(finished, None, None, no_progress, silent, weights=Path("model.safetensors"))


def test_weights_that_differ_by_one_number_are_not_equal(copied: Store, finished: Store, again: Outcome) -> None:
    (copied.root / "weights").unlink()
    shutil.copytree(finished.root / "weights", copied.root / "weights")
    [path] = (copied.root / "weights").glob(f"*/{WEIGHTS}")
    tensors, state = checkpoint.load(path)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name].view(-1)[0] += 0.5
    checkpoint.save(path, tensors, state)
    shutil.copytree(finished.root / REPRODUCTIONS, copied.root / REPRODUCTIONS, symlinks=True)
    outcome = reproduce(attempted(copied), copied, no_progress)
    assert outcome is not None and outcome.as_expected
    assert outcome.weights == f"retrained, 1 of {len(tensors)} tensors differ, by 0.5 at most"
    assert outcome.verdict.endswith("(weights are not bit-identical)")


# --- the verdict, by hand: 20 queries of one cell, 2 files of one set ---

KNOWN = (Check("libraries", "torch", "2", "2", "alike"), Check("machine", "threads", "1", "1", "alike"))


def made(hits: list[bool], mae_ms: tuple[float, float] = (1.0, 2.0)) -> Result:
    queries = np.arange(len(hits))
    found = pd.DataFrame({"query": queries, "track_id": "a", "start_s": 1.0, "found_s": 1.0, "hit": hits})
    found = found.assign(index="exact", sequence="rescore", cell="noise/snr_0", length_s=0.96)
    found["found_track_id"] = np.where(hits, "a", "b")
    files = pd.DataFrame({"set": "s", "split": "test", "aligner": "path", "name": ["0", "1"], "mae_ms": mae_ms})
    files["mse_s2"] = files["mae_ms"] ** 2
    summary = {"index": "exact", "sequence": "rescore", "headline": {"segment_top1/mean": float(np.mean(hits))}}
    return Result(pd.DataFrame(), found, pd.DataFrame(), summary, files)


def judged(new: Result, *checks: Check, weights_equal: bool, old: Result | None = None) -> Outcome:
    plugin = registry.load("encoder", "random-projection")
    config = resolve("random-projection", plugin, "tiny")
    finished = FinishedRun(Store(Path()), Path("a" * 16), {}, {})
    record = Record(finished, old or made([True] * 10 + [False] * 10), {}, {})
    context = RunContext(plugin, None, Store(Path()), no_progress, silent)
    found = Attempt(record, config, context, "all", checks or KNOWN)
    return compare_results(found, new, "retrained", weights_equal=weights_equal)


def test_equal_weights_must_give_equal_answers() -> None:
    outcome = judged(made([True] * 11 + [False] * 9), weights_equal=True)
    assert (outcome.changed, outcome.answers, outcome.as_expected) == (1, 22, False)
    assert outcome.verdict.startswith("not reproduced: 1 of 22 answers changed although the weights are bit-identical")


@pytest.mark.parametrize("says", ["differs", "not known"])
def test_another_machine_or_one_not_recorded_may_round_otherwise(says: Says) -> None:
    outcome = judged(
        made([True] * 11 + [False] * 9), KNOWN[0], Check("machine", "threads", "1", "2", says), weights_equal=True
    )
    assert outcome.as_expected and "none of 2 differences is significant" in outcome.verdict


def test_other_weights_may_change_what_chance_changes() -> None:
    outcome = judged(made([True] * 9 + [False] + [True] * 2 + [False] * 8), weights_equal=False)
    [cell] = outcome.cells.to_dict("records")
    assert (cell["old"], cell["new"], cell["changed"], cell["n"]) == (0.5, 0.55, 3, 20)
    assert cell["p"] == 1.0  # McNemar: one found before alone, two now alone
    assert outcome.as_expected


def test_a_significant_difference_is_no_reproduction() -> None:
    outcome = judged(made([True] * 20), weights_equal=False)
    [cell] = outcome.cells.to_dict("records")
    assert cell["p"] == pytest.approx(2 / 2**10) and cell["p_holm"] == pytest.approx(2 * 2 / 2**10)
    assert not outcome.as_expected and "1 of 2 differences are significant" in outcome.verdict


@pytest.mark.parametrize(("samples", "changed"), [(1, 0), (-1, 0), (2, 1)])
def test_a_time_between_places_may_round_to_the_next_sample(samples: int, changed: int) -> None:
    new = made([True] * 10 + [False] * 10)
    new.hits.loc[3, "found_s"] += samples / RATE_HZ
    assert judged(new, weights_equal=False).changed == changed


def test_an_answer_that_names_another_place_has_changed_though_it_is_as_wrong() -> None:
    new = made([True] * 10 + [False] * 10)
    new.hits.loc[19, "found_s"] = 7.0
    outcome = judged(new, weights_equal=False)
    assert outcome.changed == 1 and outcome.cells["difference"].tolist() == [0.0]


def test_queries_that_were_not_asked_again_have_changed() -> None:
    new = made([True] * 10 + [False] * 10)
    outcome = judged(replace(new, hits=new.hits[new.hits["query"] > 0]), weights_equal=True)
    assert outcome.changed == 1 and outcome.cells["new"].tolist() == [0.45] and not outcome.as_expected


@pytest.mark.parametrize("left_out", ["hits", "alignment"])
def test_a_part_that_was_not_tested_again_is_no_reproduction(left_out: str) -> None:
    new = replace(made([True] * 10 + [False] * 10), **{left_out: pd.DataFrame()})  # type: ignore[arg-type]
    outcome = judged(new, weights_equal=False)
    missing = 20 if left_out == "hits" else 2
    assert outcome.verdict == f"not reproduced: {missing} of 22 answers are missing"
    assert outcome.changed == missing and not outcome.as_expected


@pytest.mark.parametrize("without", ["hits", "alignment"])
def test_a_run_of_one_part_alone_is_judged_by_it(without: str) -> None:
    old = replace(made([True] * 10 + [False] * 10), **{without: pd.DataFrame()})  # type: ignore[arg-type]
    outcome = judged(old, weights_equal=True, old=old)
    assert outcome.as_expected and outcome.answers == (2 if without == "hits" else 20)


def test_an_aligned_file_has_changed_by_more_than_rounding() -> None:
    same = [True] * 10 + [False] * 10
    assert judged(made(same, (1.0, 2.0000001)), weights_equal=True).changed == 0
    moved = judged(made(same, (1.0, 2.1)), weights_equal=True)
    assert moved.changed == 1 and moved.alignment["changed"].tolist() == [1] and not moved.as_expected


def test_nothing_is_expected_of_other_data() -> None:
    other = Check("data", "music", "a", "b", "differs")
    outcome = judged(made([True] * 10 + [False] * 10), *KNOWN, other, weights_equal=True)
    assert not outcome.as_expected and outcome.verdict.startswith("data or settings differ")


def test_the_report_shows_both_and_the_verdict() -> None:
    text = shown(REPORT.render(judged(made([True] * 20), weights_equal=False)))
    row = next(line.split() for line in text.splitlines() if line.strip().startswith("noise/snr_0"))
    assert row == ["noise/snr_0", "0.96", "s", "50.0", "100.0", "+50.0", "10", "0.004"]
    assert "not reproduced: 10 of 22 answers changed" in text and "weights: retrained" in text


def test_the_table_of_checks_names_what_is_alike_in_one_line() -> None:
    lines = shown(
        REPORT.render_checks("a" * 16, (*KNOWN, Check("code", "commit", "f" * 40, "e" * 40, "differs")))
    ).splitlines()
    assert any("torch 2" in line and "alike" in line for line in lines)
    assert any(line.split()[-4:] == ["commit", "f" * 12, "e" * 12, "differs"] for line in lines)


def test_the_digest_of_the_code_is_of_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    before = registry.code_digest()
    assert registry.code_digest() == before
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path) + b"#" * (path.name == "grafprint.py"))
    assert registry.code_digest() != before
