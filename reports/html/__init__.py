"""The report: one HTML file of the runs and sweeps of a store, which works offline and holds all that it shows."""

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
GAPS = (
    "Segment-level top-1 in per cent: SNR in dB down, t60 in seconds across, the first row without noise, the first "
    "column without a room. Hatched fields were not measured: a grid may hold noise and rooms together at few t60 only."
)
SEPARATE = (
    "These runs answered different queries, so they stand in {} separate parts. Numbers of different parts must not be "
    "compared: their benchmark, query set, first index or sequence search differ."
)


def render(store: Store, runs: Sequence[str] = (), audio: bool = True) -> str:
    """Return the report of the named runs, of all finished ones and all sweeps if none is named, as one HTML page.

    Without `audio` neither sound nor pictures of it are in it.
    Raises: ConfigError if there is no finished run or a name is not one run's.
    """
    material = load_report_data(store, runs)
    names = {run.key: label(run.result) for run in material.runs}
    sections = _sections(material, names, audio)
    style, script = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        tested=_format_benchmarks(material),
        sections=sections,
        style=Markup(style),  # our own files, not input
        script=Markup(script),
        script_hash=b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=bench.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d"),
        num_runs=len(material.runs),
    )


def _sections(material: ReportData, names: Mapping[str, str], audio: bool) -> list[Section]:
    several = len(material.comparable_runs) > 1
    sections: list[Section] = []
    for i, (asked, runs) in enumerate(material.comparable_runs.items()):
        sections += _build_group_sections(f"q{i}", asked, runs, material.store, names, audio, several)
    parts: list[tuple[str, str, list[Block]]] = [
        ("alignment", "Alignment of recorders", alignment(material.aligned, names) if material.aligned else []),
        ("indexes", "Recall against time of the indexes", recall_against_time(material.searches)),
    ]
    sections += [Section(key, title, blocks) for key, title, blocks in parts if blocks]
    sections += sweeps(material.studies)
    glance = _at_a_glance(material, sections, several)
    return [*glance, *sections, Section("provenance", "Provenance", provenance(material.runs, names))]


def _at_a_glance(material: ReportData, sections: Sequence[Section], several: bool) -> list[Section]:
    """Return what is to be known first: warnings, and the leading sentence of each part where there are several."""
    warnings = [Text(SEPARATE.format(len(material.comparable_runs)), "warning")] if several else []
    warnings += [Text(f"Left out: {without_folders(reason)}", "warning") for reason in material.left_out]
    led = [
        (section.title, block.text)
        for section in sections
        for block in section.blocks[:1]
        if isinstance(block, Text) and block.kind == "lead"
    ]
    blocks: list[Block] = [*warnings, *([Facts("", led, prose=True)] if len(led) > 1 else [])]
    return [Section("glance", "At a glance", blocks)] if blocks else []


def _build_group_sections(
    key: str,
    asked: ComparisonKey,
    runs: Sequence[Run],
    store: Store,
    names: Mapping[str, str],
    audio: bool,
    several: bool,
) -> list[Section]:
    """Return the sections of runs that answered the same queries."""
    ranking = rank_runs(runs)
    ranked = [own.run for own in ranking]
    papers = paper_tables([run.result for run in ranked])
    parts: list[tuple[str, list[Block]]] = [
        ("Tables", tables(papers)),
        ("Curves", curves(ranked, names)),
        ("Grid", [Text(GAPS), *heat_maps(ranked, names)]),
        ("Quality against cost", quality_against_cost(ranking, names)),
        ("Worst failed queries", failures(ranked, asked, store, names, audio)),
    ]
    title = f"Summary: {asked.benchmark}" if several else "Summary"
    first = Section(key, title, summary(asked, ranking, names, papers))
    return [first, *(Section(f"{key}-{i}", name, blocks, key) for i, (name, blocks) in enumerate(parts) if blocks)]


def _format_benchmarks(material: ReportData) -> str:
    benchmarks = dict.fromkeys(asked.benchmark for asked in material.comparable_runs)
    aligned = dict.fromkeys(str(run.result.summary["benchmark"]) for run in material.aligned)
    return ", ".join(benchmarks | aligned)
