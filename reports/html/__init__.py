"""Writes the HTML report on the runs and sweeps of a store: one self-contained file, which works offline."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
from markupsafe import Markup

import bench
from bench.reports.html.aligned import alignment
from bench.reports.html.blocks import Block, Facts, Section, Text
from bench.reports.html.conditions import curves, heat_maps
from bench.reports.html.costs import quality_against_cost, recall_against_time
from bench.reports.html.failures import failures
from bench.reports.html.load import ComparisonKey, ReportData, Run, load_report_data
from bench.reports.html.provenance import provenance, without_folders
from bench.reports.html.ranking import rank_runs
from bench.reports.html.summary import summary, tables
from bench.reports.html.sweeps import sweeps
from bench.reports.paper import label, paper_tables
from bench.store import Store

TEMPLATES = Path(__file__).with_name("templates")
GRID_CAPTION = (
    "Segment-level top-1 in per cent. Rows: SNR in dB, the first without noise. Columns: t60 in seconds, the first "
    "without reverberation. Hatched: not measured; most benchmarks combine noise and reverberation at few t60 only. "
    "Distortions, as of v2, have one row each."
)
SEPARATE_PARTS = (
    "These runs answered different queries, so they are shown in {} separate parts. Numbers from different parts are "
    "not comparable: their benchmark, query set, first index or sequence search differs."
)


def render(store: Store, runs: Sequence[str] = (), audio: bool = True) -> str:
    """Return the report on the named runs as one HTML page; by default on all finished runs and all sweeps.

    Without `audio` it contains neither sound nor spectrograms.
    Raises: ConfigError if there is no finished run, or if a name does not identify exactly one run.
    """
    data = load_report_data(store, runs)
    names = {run.key: label(run.result) for run in data.runs}
    sections = _sections(data, names, audio)
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        benchmarks=_format_benchmarks(data),
        sections=sections,
        style=Markup(style),  # not escaped: files of this package, no user input
        script=Markup(script),
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=bench.__version__,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        num_runs=len(data.runs),
    )


def _sections(data: ReportData, names: Mapping[str, str], audio: bool) -> list[Section]:
    several = len(data.comparable_runs) > 1
    sections: list[Section] = []
    for i, (key, runs) in enumerate(data.comparable_runs.items()):
        sections += _build_group_sections(f"q{i}", key, runs, data.store, names, audio, several)
    parts: list[tuple[str, str, list[Block]]] = [
        ("alignment", "Alignment of recorders", alignment(data.aligned, names) if data.aligned else []),
        ("indexes", "Recall of the indexes against time", recall_against_time(data.searches)),
    ]
    sections += [Section(anchor, title, blocks) for anchor, title, blocks in parts if blocks]
    sections += sweeps(data.studies)
    glance = _at_a_glance(data, sections, several)
    return [*glance, *sections, Section("provenance", "Provenance", provenance(data.runs, names))]


def _at_a_glance(data: ReportData, sections: Sequence[Section], several: bool) -> list[Section]:
    """Return the opening section: warnings, and the leading sentence of each part if there are several parts."""
    warnings = [Text(SEPARATE_PARTS.format(len(data.comparable_runs)), "warning")] if several else []
    warnings += [Text(f"Left out: {without_folders(reason)}", "warning") for reason in data.left_out]
    leads = [
        (section.title, block.text)
        for section in sections
        for block in section.blocks[:1]
        if isinstance(block, Text) and block.kind == "lead"
    ]
    blocks: list[Block] = [*warnings, *([Facts("", leads, prose=True)] if len(leads) > 1 else [])]
    return [Section("glance", "At a glance", blocks)] if blocks else []


def _build_group_sections(
    anchor: str,
    key: ComparisonKey,
    runs: Sequence[Run],
    store: Store,
    names: Mapping[str, str],
    audio: bool,
    several: bool,
) -> list[Section]:
    """Return the sections of runs that answered the same queries."""
    ranking = rank_runs(runs)
    ranked = [row.run for row in ranking]
    papers = paper_tables([run.result for run in ranked])
    parts: list[tuple[str, list[Block]]] = [
        ("Tables", tables(papers)),
        ("Curves", curves(ranked, names)),
        ("Grid", [Text(GRID_CAPTION), *heat_maps(ranked, names)]),
        ("Quality against cost", quality_against_cost(ranking, names)),
        ("Worst failed queries", failures(ranked, key, store, names, audio)),
    ]
    title = f"Summary: {key.benchmark}" if several else "Summary"
    first = Section(anchor, title, summary(key, ranking, names, papers))
    return [
        first,
        *(Section(f"{anchor}-{i}", name, blocks, anchor) for i, (name, blocks) in enumerate(parts) if blocks),
    ]


def _format_benchmarks(data: ReportData) -> str:
    benchmarks = dict.fromkeys(key.benchmark for key in data.comparable_runs)
    aligned = dict.fromkeys(str(run.result.summary["benchmark"]) for run in data.aligned)
    return ", ".join(benchmarks | aligned)
