"""The worst failed queries: those that most runs miss in the easiest condition, to be seen and heard."""

from __future__ import annotations

import base64
from collections.abc import Hashable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from bench.degrade.queries import QuerySet
from bench.reports.html.blocks import Block, Miss, Table, TableCell, Text
from bench.reports.html.conditions import select_encoder_rows
from bench.reports.html.load import ComparisonKey, Run, load_query_set
from bench.store import Store
from bench.values import RATE_HZ, Floats
from bench.values import Cell as Condition

MAX_MISSES = 6
COLUMNS = ("run", "answer", "track found", "at, s", "off by, s", "rank")
MAX_ANSWERS = 12  # of so many runs is told what they found instead
FRAME, HOP = 512, 160  # samples: 32 ms windows every 10 ms
RANGE_DB = 70.0


def failures(
    runs: Sequence[Run], asked: ComparisonKey, store: Store, names: Mapping[str, str], audio: bool
) -> list[Block]:
    """Return the queries that most runs miss, with picture and sound if wanted and the query set is there."""
    condition = find_easiest(runs)
    if condition is None:
        return []
    cell, length_s = condition
    answers = pd.concat([_select_answers(run, cell, length_s).assign(run=run.key) for run in runs], ignore_index=True)
    worst = worst_queries(answers)
    lead = f"In the easiest condition, {describe_condition(cell)}, queries of {length_s:g} s, "
    if not worst:
        return [Text(f"{lead}no run missed any query.")]
    queries = load_query_set(store, asked.queries) if audio else None
    told = (
        f"{lead}these were missed by most runs. Off by: how far the place found is from the true one, where the track "
        "is right. Rank: that of the right place among those ranked; -: not among them."
    )
    if not audio:
        told += (
            " Sound and spectrograms are left out of this copy; `bench report` without --without-audio puts them in."
        )
    elif queries is None:
        told += f" The query set {asked.queries} is not in the store any more, so there is nothing to see or hear."
    misses = [_miss(query, answers, cell, length_s, queries, names, len(runs)) for query in worst]
    return [Text(told), *misses]


def find_easiest(runs: Sequence[Run]) -> tuple[Condition, float] | None:
    """Return the condition of highest SNR and the longest queries that all runs met, None if there is none."""
    frames = [select_encoder_rows(run) for run in runs]
    shared = set.intersection(
        *(
            set(zip(own["snr_db"], own["length_s"], strict=True))
            for own in (rows[rows["kind"] == "noise"] for rows in frames)
        )
    )
    if not shared:
        return None
    snr_db, length_s = max(shared)
    return Condition("noise", snr_db=float(snr_db)), float(length_s)


def worst_queries(answers: pd.DataFrame) -> list[int]:
    """Return the queries that most runs missed, at most MOST; among equals those that are further off."""
    counts = answers.assign(miss=~answers["hit"], lost=~answers["track_hit"], far=~answers["near"])
    missed = counts.groupby("query")[["miss", "lost", "far"]].sum()
    missed = missed[missed["miss"] > 0].sort_values(["miss", "lost", "far"], ascending=False, kind="stable")
    return [int(query) for query in missed.index[:MAX_MISSES]]


def describe_condition(cell: Condition) -> str:
    """Return a condition for readers."""
    noise = f"noise at {cell.snr_db:g} dB" if cell.snr_db is not None else "no noise"
    return noise if cell.t60_s is None else f"{noise}, t60 {cell.t60_s:g} s"


def _select_answers(run: Run, cell: Condition, length_s: float) -> pd.DataFrame:
    hits = run.result.hits
    return hits[(hits["cell"] == cell.name) & (hits["length_s"] == length_s)]


def _miss(
    query: int,
    answers: pd.DataFrame,
    cell: Condition,
    length_s: float,
    queries: QuerySet | None,
    names: Mapping[str, str],
    num_runs: int,
) -> Miss:
    own = answers[answers["query"] == query]
    track, start_s = own["track_id"].iloc[0], own["start_s"].iloc[0]
    rows = [
        [
            TableCell(names[str(row["run"])]),
            TableCell(*_classify_answer(row)),
            TableCell(str(row["found_track_id"]) or "nothing"),
            TableCell("-" if np.isnan(row["found_s"]) else f"{row['found_s']:.2f}", "num"),
            TableCell(f"{row['found_s'] - start_s:+.3f}" if row["track_hit"] else "-", "num"),
            TableCell(str(row["rank"]) if row["rank"] else "-", "num"),
        ]
        for row in own.head(MAX_ANSWERS).to_dict("records")
    ]
    caption = f"The first {MAX_ANSWERS} of {len(own)} runs." if len(own) > MAX_ANSWERS else ""
    wave_T = queries.wave(cell, query, length_s) if queries is not None else None
    return Miss(
        f"Query {query}: missed by {int((~own['hit']).sum())} of {num_runs}",
        f"Truth: track {track}, from {start_s:.2f} s.",
        "" if wave_T is None else _uri("image/png", spectrogram_png(wave_T)),
        "" if wave_T is None else _uri("audio/mpeg", mp3(wave_T)),
        Table(
            f"Answers to query {query}", ("run", "answer", "track found", "at, s", "off by, s", "rank"), rows, caption
        ),
    )


def _classify_answer(row: Mapping[Hashable, Any]) -> tuple[str, str]:
    """Return what an answer is, and how it is shown."""
    if row["hit"]:
        return "right", ""
    if row["track_hit"]:
        return "just too far off" if row["near"] else "wrong time", "bad"
    return "wrong track", "bad"


def spectrogram_png(wave_T: Floats) -> bytes:
    """Return a picture of a wave at 16 kHz: 32 ms windows, 10 ms a pixel, 0 to 8 kHz upwards, 70 dB of range."""
    frames = np.lib.stride_tricks.sliding_window_view(wave_T, FRAME)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)) ** 2
    pooled = power[:, 1:].reshape(len(power), -1, 2).mean(axis=2)  # 128 rows are enough to see with
    level_db = 10 * np.log10(np.maximum(pooled.T[::-1], 1e-12))
    out = BytesIO()
    matplotlib.image.imsave(
        out, level_db, cmap="magma", vmin=level_db.max() - RANGE_DB, vmax=level_db.max(), format="png",
        metadata={"Software": ""},
    )  # fmt: skip
    return out.getvalue()


def mp3(wave_T: Floats) -> bytes:
    """Return a wave at 16 kHz as MP3, which every browser plays."""
    import soundfile

    out = BytesIO()
    soundfile.write(out, 0.9 * wave_T, RATE_HZ, format="MP3", subtype="MPEG_LAYER_III")
    return out.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
