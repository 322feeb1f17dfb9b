"""Shows a measurement of `bench speed train`, `embed` or `run`: parts, whole and floor, and the speed-up over another.

The floor is the time that arithmetic or memory traffic alone would take on this machine.
"""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from bench.speed.network import Speed
from bench.speed.stages import RunSpeed, Stage

SHOWN_SHARE = 0.001  # of the run; what takes less is in the record alone


def render(speed: Speed, other: Speed | None = None) -> RenderableType:
    """Return the table of a measurement; with `other`, also how many times faster it is than that one."""
    per = "step" if speed.kind == "train" else "batch"
    table = Table(
        title=f"{speed.kind} {speed.encoder}, preset {speed.preset}, {speed.precision}, on {speed.device}: "
        f"{speed.segments} segments per {per}",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("part")
    table.add_column(f"ms per {per}", justify="right")
    table.add_column("share of parts", justify="right")
    if other is not None:
        table.add_column("times faster", justify="right")
    total_ms = sum(speed.parts_ms.values())
    for name, ms in speed.parts_ms.items():
        _row(table, name, ms, f"{ms / total_ms:.0%}", None if other is None else other.parts_ms.get(name), other)
    table.add_section()
    _row(table, "whole, overlapped", speed.whole_ms, "", other.whole_ms if other else None, other)
    _row(table, "floor: arithmetic", speed.arithmetic_ms, "", other.arithmetic_ms if other else None, other)
    _row(table, "floor: traffic", speed.traffic_ms, "", other.traffic_ms if other else None, other)
    if tracking := speed.tracking:
        table.add_section()
        _row(table, "tracking", tracking["with_ms"] - tracking["without_ms"], "", None, other)
    return Group(table, *_facts(speed, other))


def render_run(speed: RunSpeed, other: RunSpeed | None = None) -> RenderableType:
    """Return the table of a measured run, each stage below that which contains it; with `other`, the ratios too."""
    table = Table(
        title=f"run {speed.encoder}, preset {speed.preset}, {speed.dataset}, task {speed.task}, on {speed.device}",
        title_justify="left",
        box=SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("stage", no_wrap=True)
    for title in ("times", "seconds", "share", "peak MiB", "times the floor"):
        table.add_column(title, justify="right")
    if other is not None:
        table.add_column("of the earlier", justify="right")
    _add_stage(table, speed, speed.whole, other)
    counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in speed.work.items())
    return Group(
        table, f"{counts}; this machine, measured after the run: matrix products {speed.matrix_tflops:.3g} TFLOP/s"
    )


def _add_stage(table: Table, speed: RunSpeed, stage: Stage, other: RunSpeed | None) -> None:
    """Add the row of a stage, those of the stages inside it, and what of it is in none of them."""
    name = stage.path.rpartition("/")[2]
    indent = "  " * stage.path.count("/")
    share = stage.seconds / speed.whole.seconds
    if share < SHOWN_SHARE:
        return
    floor = "" if stage.floor_s is None else f"{stage.seconds / stage.floor_s:.1f}"
    before = None if other is None else next((each for each in other.stages if each.path == stage.path), None)
    ratio = [] if other is None else [f"{stage.seconds / before.seconds:.2f}" if before else ""]
    peak = f"{stage.peak_mib:,.0f}" if stage.peak_mib else "-"
    table.add_row(f"{indent}{name}", str(stage.times), f"{stage.seconds:.2f}", f"{share:.1%}", peak, floor, *ratio)
    inside = [each for each in speed.stages if each.path.rpartition("/")[0] == stage.path]
    for each in inside:
        _add_stage(table, speed, each, other)
    rest_s = speed.rest_s(stage)
    if inside and rest_s >= SHOWN_SHARE * speed.whole.seconds:
        table.add_row(f"{indent}  (rest)", "", f"{rest_s:.2f}", f"{rest_s / speed.whole.seconds:.1%}", "", "")


def _row(table: Table, name: str, ms: float, share: str, other_ms: float | None, other: Speed | None) -> None:
    ratio = [] if other is None else [f"{other_ms / ms:.2f}" if other_ms else ""]
    table.add_row(name, f"{ms:.3g}" if ms < 100 else f"{ms:.0f}", share, *ratio)


def _facts(speed: Speed, other: Speed | None) -> list[str]:
    ratio = (
        "" if other is None else f", {speed.segments_per_s / other.segments_per_s:.2f} times the earlier measurement"
    )
    facts = [
        f"{speed.segments_per_s:,.0f} segments/s{ratio}; {speed.whole_ms / speed.floor_ms:.1f} times the floor; "
        f"peak memory {speed.memory_mib:,.0f} MiB; {speed.parameters:,} parameters, {speed.gflop:,.1f} GFLOP",
        f"this machine, measured at the same time: matrix products {speed.matrix_tflops:.3g} TFLOP/s, copies "
        f"{speed.copy_gb_s:.3g} GB/s",
    ]
    if tracking := speed.tracking:
        median, low, high = (100 * (tracking[name] - 1) for name in ("ratio", "low", "high"))
        facts.append(
            f"tracking: {median:+.1f} % of a step ({low:+.1f} to {high:+.1f} %; {tracking['pairs']:.0f} pairs of "
            f"{tracking['steps']:.0f} steps with and without logging; a step without takes "
            f"{tracking['without_ms']:.4g} ms)"
        )
    return facts
