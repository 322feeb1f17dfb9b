"""The provenance part of the HTML report: version, commit, command, machine, data and settings of each run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from bench.reports.html.blocks import Block, Collapsible, Facts, Table, TableCell, Text
from bench.reports.html.load import Run

TAG, LIBRARY = "bench.", "bench.lib."
MACHINE_TAGS = ("version", "git", "dirty", "python", "platform", "cpu", "cores", "gpu", "memory_gib")
PATH = re.compile(r"(?<![\w.])(?:/|~/)(?:[^\s/'\"]+/)+")  # the folders of an absolute path, without its last part
MAX_RUNS = 10  # number of runs with details; the others are in the tables alone


def provenance(runs: Sequence[Run], names: Mapping[str, str]) -> list[Block]:
    """Return a table of all runs, and collapsed details of each: machine, data, seconds and settings."""
    rows = [
        [
            TableCell(names[run.key]),
            TableCell(run.key, "mono"),
            TableCell(_tag(run, "version")),
            TableCell(_commit(run), "mono"),
            TableCell(_day(run.provenance.began_ms)),
            TableCell(_duration(run), "num"),
        ]
        for run in runs
    ]
    columns = ("run", "key", "version", "commit", "started (UTC)", "duration")
    caption = "*: commit with uncommitted changes. Duration: all sessions of the run together."
    details = [Collapsible(names[run.key], _details(run)) for run in runs[:MAX_RUNS]]
    more = [Collapsible("Seconds by stage of all runs", [_seconds_of_all(runs, names)])]
    return [Table("Runs", columns, rows, caption), *details, *(more if len(runs) > MAX_RUNS else [])]


def without_folders(command: str) -> str:
    """Return a text with absolute paths shortened to their last part, so that a report can be passed on."""
    return PATH.sub(".../", command)


def _details(run: Run) -> list[Block]:
    tags = run.provenance.tags
    machine = [(name, tags[TAG + name]) for name in MACHINE_TAGS if TAG + name in tags]
    libraries = [(name.removeprefix(LIBRARY), value) for name, value in tags.items() if name.startswith(LIBRARY)]
    checkpoint = run.result.summary.get("checkpoint", {})
    data = [(f"{name}, {use}", value) for (name, use), value in run.provenance.data_digests.items()]
    data += [(f"checkpoint {name}", str(value)) for name, value in checkpoint.items()]
    seconds = run.result.summary["seconds"]
    return [
        Text(without_folders(_tag(run, "cmd")), "mono"),
        Facts("Machine and code", machine),
        Facts("Libraries", libraries),
        Facts("Data and weights, by digest", data),
        Facts("Seconds by stage", [(name, f"{value:,.1f}") for name, value in seconds.items()]),
        Facts("Settings", [(name, without_folders(str(value))) for name, value in run.settings.items()]),
    ]


def _seconds_of_all(runs: Sequence[Run], names: Mapping[str, str]) -> Table:
    stages = list(dict.fromkeys(stage for run in runs for stage in run.result.summary["seconds"]))
    rows = [
        [
            TableCell(names[run.key]),
            *(
                TableCell("-" if (value := run.result.summary["seconds"].get(stage)) is None else f"{value:.1f}", "num")
                for stage in stages
            ),
        ]
        for run in runs
    ]
    return Table("Seconds by stage", ("run", *stages), rows)


def _tag(run: Run, name: str) -> str:
    return run.provenance.tags.get(TAG + name, "-")


def _commit(run: Run) -> str:
    return _tag(run, "git")[:10] + ("*" if _tag(run, "dirty") == "true" else "")


def _day(ms: int | None) -> str:
    return "-" if ms is None else datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def _duration(run: Run) -> str:
    return f"{run.provenance.took_ms / 60_000:.1f} min" if run.provenance.took_ms else "-"
