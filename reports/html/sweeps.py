"""The sweep part of the HTML report: the values of all trials, the importance of the settings, the best trials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from bench.reports.html.blocks import Block, Facts, Figure, Section, Table, TableCell, Text
from bench.reports.html.load import Study
from bench.reports.html.svg import INK, MUTED, REST, SERIES, EndLabel, canvas, label_ends, render_svg

WIDTH, HEIGHT = 430, 260
WIDE, BAR_PX, NAMES_PX = 430, 22, 190
AXES_PX = 96  # distance between parallel coordinates
COMPLETE, PRUNED = "complete", "pruned"
MAXIMIZE = "maximize"
MAX_IMPORTANCES = 12
LEAST_TRIALS = 3  # fewer are not drawn as parallel coordinates
STRONG = 5  # the best 1 in so many of the parallel coordinates is highlighted
PARAM, VALUE = "param.", "value."


def sweeps(studies: Sequence[Study]) -> list[Section]:
    """Return a section for each study."""
    return [Section(f"sweep-{i}", f"Sweep: {study.name}", _study(study)) for i, study in enumerate(studies)]


def _study(study: Study) -> list[Block]:
    about, trials = study.about, study.trials
    repeated = trials["number"].isin(trials["repeats"])  # their worker died, and another trial replaces each
    counts = trials.loc[~repeated, "state"].value_counts()
    states = ", ".join(f"{counts[state]} {state}" for state in counts.index)
    promoted = (about.get("promoted") or {}).get("run")
    done = trials[trials["state"] == COMPLETE]
    lead = (
        f"{about['encoder']} on {about['benchmark']}: {counts.sum()} trials ({states}). "
        f"{f'{repeated.sum()} more were killed and repeated. ' if repeated.any() else ''}{_describe_best(study)}"
        f"{f'Promoted: run {promoted[:6]}.' if promoted else 'No trial has been promoted yet.'}"
    )
    blocks: list[Block] = [Text(lead, "lead")]
    if done.empty:
        return [*blocks, Text("No trial is complete yet.", "warning"), _trials_table(study)]
    panels = [_history(study, i, done) for i in range(len(about["objectives"]))]
    panels += [_intermediate(study)] if len(study.curves) else []
    panels += [_pareto(study, done)] if len(about["objectives"]) == 2 else []
    panels += [_importances(about["importances"])] if about.get("importances") else []
    caption = (
        "Dots are complete trials, the line is the best so far, crosses are pruned trials. Importance: share of the "
        "objective's variance that a setting explains."
    )
    blocks.append(Figure("Trials", panels, caption))
    parallel = _parallel(study, done)
    if parallel:
        caption = "Each line connects the settings and the value of one complete trial; the best are highlighted."
        blocks.append(Figure("Parallel coordinates", [parallel], caption, least_px=WIDTH))
    best = [_settings(study, int(number)) for number in about["best"]]
    return [*blocks, *[facts for facts in best if facts], _trials_table(study)]


def _describe_best(study: Study) -> str:
    best = study.trials[study.trials["number"].isin(study.about["best"])]
    if len(best) != 1:
        return f"{len(best)} are on the Pareto front. " if len(best) else ""
    number, value = best["number"].iloc[0], best[_value_column(study)].iloc[0]
    return f"The best is trial {number}, with {study.about['objectives'][0]} = {value:.4g}. "


def _value_column(study: Study, i: int = 0) -> str:
    return f"{VALUE}{study.about['objectives'][i]}"


def _is_maximized(study: Study, i: int = 0) -> bool:
    return bool(study.about["directions"][i] == MAXIMIZE)


def _history(study: Study, i: int, done: pd.DataFrame) -> Markup:
    objective, column = study.about["objectives"][i], _value_column(study, i)
    done = done.sort_values("number")
    best = done[column].cummax() if _is_maximized(study, i) else done[column].cummin()
    pruned = study.trials.loc[study.trials["state"] == PRUNED, "number"].tolist()
    with canvas(WIDTH, HEIGHT) as axes:
        axes.step(done["number"], best, where="post", color=SERIES[0])
        axes.plot(done["number"], done[column], "o", color=SERIES[0], alpha=0.8)
        axes.plot(pruned, [0.02] * len(pruned), "x", color=MUTED, transform=axes.get_xaxis_transform())
        axes.set_xlabel("trial")
        axes.set_title(f"{objective} by trial", color=INK)
        first = done[column].iloc[0]
        text = f"The best of {len(done)} complete trials reached {best.iloc[-1]:.4g}, the first {first:.4g}."
        return render_svg(axes, f"{study.name}: {objective} by trial", text)


def _intermediate(study: Study) -> Markup:
    states = dict(zip(study.trials["number"], study.trials["state"], strict=True))
    best = {int(number) for number in study.about["best"]}
    ends = []
    with canvas(WIDTH, HEIGHT, right=70) as axes:
        for number, curve in study.curves.sort_values("step").groupby("number"):
            pruned = states.get(int(str(number))) == PRUNED
            is_best = int(str(number)) in best
            colour = SERIES[1] if is_best else REST if pruned else SERIES[0]
            width = 2.2 if is_best else 0.7 if pruned else 1.2
            axes.plot(curve["step"], curve["value"], color=colour, linewidth=width, alpha=1 if is_best else 0.7)
            if pruned:  # often after a single value, which gives no visible line
                axes.plot(curve["step"].iloc[-1], curve["value"].iloc[-1], "x", color=MUTED)
            if is_best:
                ends.append(
                    EndLabel(float(curve["step"].iloc[-1]), float(curve["value"].iloc[-1]), f"trial {number}", colour)
                )
        axes.set_xlabel("training step")
        axes.set_title("validation top-1 while training", color=INK)
        axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # fixes the limits, which matplotlib computes lazily
        label_ends(axes, ends)
        text = f"{study.curves['number'].nunique()} trials, {sum(s == PRUNED for s in states.values())} of them pruned."
        return render_svg(axes, f"{study.name}: validation top-1 by step", text)


def _importances(importances: dict[str, float]) -> Markup:
    ordered = sorted(importances.items(), key=lambda item: -item[1])[:MAX_IMPORTANCES]
    with canvas(WIDE, 66 + BAR_PX * len(ordered), left=NAMES_PX, right=50) as axes:
        for row, (_, share) in enumerate(ordered):
            axes.barh(row, 100 * share, height=0.62, color=SERIES[0])
            axes.text(100 * share + 1, row, f"{100 * share:.0f}", va="center", color=INK)
        axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
        axes.tick_params(axis="y", labelcolor=INK)
        axes.set_ylim(len(ordered) - 0.4, -0.6)
        axes.grid(False, axis="y")
        axes.set_xlabel("importance, %")
        axes.set_title("importance of the settings", color=INK)
        return render_svg(axes, "Importance of settings", "; ".join(f"{n} {100 * s:.0f} %" for n, s in ordered))


def _pareto(study: Study, done: pd.DataFrame) -> Markup:
    x, y = _value_column(study, 1), _value_column(study, 0)
    best = done[done["number"].isin(study.about["best"])].sort_values(x)
    with canvas(WIDTH, HEIGHT, right=70) as axes:
        axes.plot(done[x], done[y], "o", color=REST)
        axes.plot(best[x], best[y], "-o", color=SERIES[0])
        axes.margins(0.1)
        axes.set_xlabel(study.about["objectives"][1])
        axes.set_title(f"{study.about['objectives'][0]}: Pareto front", color=INK)
        ends = [EndLabel(row[x], row[y], f"trial {row['number']}", SERIES[0]) for row in best.to_dict("records")]
        label_ends(axes, ends, leaders=True)
        values = "; ".join(f"trial {row['number']}: {row[y]:.4g} at {row[x]:.4g}" for row in best.to_dict("records"))
        return render_svg(axes, f"{study.name}: Pareto front", f"On the front: {values}")


def _parallel(study: Study, done: pd.DataFrame) -> Markup | None:
    """Return a plot with one line per complete trial, through its settings to its value.

    None with fewer than two settings that vary, or with too few trials.
    """
    names = [name for name in _find_columns(done, PARAM) if done[name].nunique() > 1]
    if len(names) < 2 or len(done) < LEAST_TRIALS:
        return None
    value = _value_column(study)
    scales = [_scale_to_unit(done[name], study.about["space"].get(name.removeprefix(PARAM), {})) for name in names]
    scales.append(_scale_to_unit(done[value], {}))
    rank = done[value].rank(ascending=_is_maximized(study), pct=True)
    width = max(WIDTH, AXES_PX * len(scales) + 60)
    with canvas(width, 300, left=30, right=60, top=44, bottom=44) as axes:
        for i in rank.sort_values().index:  # the best last, on top of the others
            strong = rank[i] > 1 - 1 / min(STRONG, len(done))
            axes.plot(
                range(len(scales)), [scale[0][i] for scale in scales], color=SERIES[1] if strong else SERIES[0],
                alpha=0.95 if strong else 0.35, linewidth=2 if strong else 1,
            )  # fmt: skip
        for x, (name, (_, low, high)) in enumerate(zip([*names, value], scales, strict=True)):
            axes.axvline(x, color=MUTED, linewidth=0.8)
            axes.text(x, 1.05, high, ha="center", color=MUTED, fontsize=9)
            axes.text(x, -0.09, low, ha="center", color=MUTED, fontsize=9)
            axes.text(x, 1.14, name.removeprefix(PARAM).removeprefix(VALUE), ha="center", color=INK, fontsize=9)
        axes.set_ylim(-0.03, 1.03)
        axes.axis("off")
        text = f"{len(done)} complete trials over {', '.join(name.removeprefix(PARAM) for name in names)}."
        return render_svg(axes, f"{study.name}: parallel coordinates", text)


def _scale_to_unit(column: pd.Series, space: dict[str, Any]) -> tuple[pd.Series, str, str]:
    """Return a column scaled to 0..1, NaN where it is unset, and the labels of the lower and the upper end.

    Choices are spaced evenly; numbers are scaled by the search space, or by their range if it does not list them.
    """
    if "choices" in space or not pd.api.types.is_numeric_dtype(column) or column.dtype == bool:
        choices = [_plain(choice) for choice in space.get("choices", sorted(column.dropna().astype(str).unique()))]
        positions = {choice: i / max(1, len(choices) - 1) for i, choice in enumerate(choices)}
        return column.map(lambda value: positions.get(_plain(value), np.nan)), choices[0], choices[-1]
    low, high = float(space.get("low", column.min())), float(space.get("high", column.max()))
    numbers = np.log(column) if space.get("log") else column.astype(float)
    ends = (np.log(low), np.log(high)) if space.get("log") else (low, high)
    return (numbers - ends[0]) / max(ends[1] - ends[0], 1e-12), f"{low:.3g}", f"{high:.3g}"


def _plain(choice: Any) -> str:
    """Return a choice as text without brackets, since files turn tuples into lists."""
    return str(choice).strip("()[]")


def _settings(study: Study, number: int) -> Facts | None:
    rows = study.trials[study.trials["number"] == number]
    if rows.empty:
        return None
    row = rows.iloc[0]
    values = [(name.removeprefix(VALUE), format_value(row[name])) for name in _find_columns(rows, VALUE)]
    facts = [
        (name.removeprefix(PARAM), format_value(row[name]))
        for name in _find_columns(rows, PARAM)
        if pd.notna(row[name])
    ]
    return Facts(f"Best: trial {number}", [*values, *facts, ("run", str(row["run"])[:6] or "-")])


def format_value(value: Any) -> str:
    """Return a setting as text for readers; floats have at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _find_columns(trials: pd.DataFrame, prefix: str) -> list[str]:
    return [str(name) for name in trials.columns if str(name).startswith(prefix)]


def _trials_table(study: Study) -> Table:
    trials = study.trials
    repeated = set(trials["repeats"])
    names = [*_find_columns(trials, VALUE), *_find_columns(trials, PARAM)]
    rows = [
        [
            TableCell(str(row["number"]), "best" if row["number"] in study.about["best"] else ""),
            TableCell(str(row["state"])),
            TableCell("-" if pd.isna(row["seconds"]) else f"{row['seconds']:.0f}", "num"),
            *(TableCell("-" if pd.isna(row[name]) else format_value(row[name]), "num") for name in names),
            TableCell("killed and repeated" if row["number"] in repeated else str(row.get("reason") or ""), "note"),
        ]
        for row in trials.to_dict("records")
    ]
    titles = [name.removeprefix(VALUE).removeprefix(PARAM) for name in names]
    return Table(
        f"Trials of {study.name}", ("trial", "state", "seconds", *titles, "reason"), rows, "Bold: the best trials."
    )
