"""Shows one measurement of `bench speed train` or `embed`: parts, whole and floor, and the speed-up over another one.

The floor is the time that arithmetic or memory traffic alone would take on this machine.
"""

from __future__ import annotations

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table

from bench.speed.network import Speed


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
