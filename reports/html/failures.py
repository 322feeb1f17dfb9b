"""The failures part of the HTML report: queries that most runs miss in the easiest condition, to be seen and heard."""

from __future__ import annotations

import base64
from collections.abc import Hashable, Mapping, Sequence
from io import BytesIO
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

from bench.degrade.cells import describe_distortion
from bench.degrade.queries import QuerySet
from bench.reports.html.blocks import Block, Miss, Table, TableCell, Text
from bench.reports.html.conditions import select_system_rows
from bench.reports.html.load import ComparisonKey, Run, load_query_set
from bench.store import Store
from bench.values import RATE_HZ, Floats
from bench.values import Cell as Condition

MAX_MISSES = 6
COLUMNS = ("run", "answer", "track found", "at, s", "time error, s", "rank")
MAX_ANSWERS = 12  # number of runs whose answers to a missed query are listed
FRAME, HOP = 512, 160  # samples: 32 ms windows every 10 ms
RANGE_DB = 70.0  # dynamic range of a spectrogram
LEAST_POWER = 1e-12  # avoids log10(0)
PLAYBACK_GAIN = 0.9  # MP3 coding may overshoot


def failures(
    runs: Sequence[Run], key: ComparisonKey, store: Store, names: Mapping[str, str], audio: bool
) -> list[Block]:
    """Return the queries that most runs miss. With `audio`, they have spectrogram and sound if the store has them."""
    condition = find_easiest(runs)
    if condition is None:
        return []
    cell, length_s = condition
    answers = pd.concat([_select_answers(run, cell, length_s).assign(run=run.key) for run in runs], ignore_index=True)
    worst = worst_queries(answers)
    lead = f"In the easiest condition ({describe_condition(cell)}, queries of {length_s:g} s), "
    if not worst:
        return [Text(f"{lead}no run missed any query.")]
    queries = load_query_set(store, key.queries) if audio else None
    text = (
        f"{lead}these queries were missed by the largest number of runs. Time error: of answers in the right track. "
        "Rank: of the true position among the candidates; -: not among them."
    )
    if not audio:
        text += " This copy has no sound or spectrograms; run `bench report` without --without-audio to include them."
    elif queries is None:
        text += f" The query set {key.queries} is no longer in the store, so there are no spectrograms and no sound."
    misses = [_miss(query, answers, cell, length_s, queries, names, len(runs)) for query in worst]
    return [Text(text), *misses]


def find_easiest(runs: Sequence[Run]) -> tuple[Condition, float] | None:
    """Return the highest SNR and the longest query length in which all runs were tested, None if there is none."""
    frames = [select_system_rows(run) for run in runs]
    shared = set.intersection(
        *(
            set(zip(noise["snr_db"], noise["length_s"], strict=True))
            for noise in (rows[rows["kind"] == "noise"] for rows in frames)
        )
    )
    if not shared:
        return None
    snr_db, length_s = max(shared)
    return Condition("noise", snr_db=float(snr_db)), float(length_s)


def worst_queries(answers: pd.DataFrame) -> list[int]:
    """Return the MAX_MISSES queries that most runs missed, in a tie those with the worse answers first.

    A wrong track is worse than a wrong time, and a wrong time is worse than one just outside the tolerance.
    """
    counts = answers.assign(miss=~answers["hit"], lost=~answers["track_hit"], far=~answers["near"])
    missed = counts.groupby("query")[["miss", "lost", "far"]].sum()
    missed = missed[missed["miss"] > 0].sort_values(["miss", "lost", "far"], ascending=False, kind="stable")
    return [int(query) for query in missed.index[:MAX_MISSES]]


def describe_condition(cell: Condition) -> str:
    """Return a condition as text for readers."""
    noise = f"noise at {cell.snr_db:g} dB" if cell.snr_db is not None else "no noise"
    room = "measured rooms of t60" if cell.kind == "measured_reverb" else "t60"
    distortion = f"{describe_distortion(cell.distortion)}, " if cell.distortion else ""
    return f"{distortion}{noise}" + ("" if cell.t60_s is None else f", {room} {cell.t60_s:g} s")


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
    of_query = answers[answers["query"] == query]
    track, start_s = of_query["track_id"].iloc[0], of_query["start_s"].iloc[0]
    rows = [
        [
            TableCell(names[str(row["run"])]),
            TableCell(*_classify_answer(row)),
            TableCell(str(row["found_track_id"]) or "none"),
            TableCell("-" if np.isnan(row["found_s"]) else f"{row['found_s']:.2f}", "num"),
            TableCell(f"{row['found_s'] - start_s:+.3f}" if row["track_hit"] else "-", "num"),
            TableCell(str(row["rank"]) if row["rank"] else "-", "num"),
        ]
        for row in of_query.head(MAX_ANSWERS).to_dict("records")
    ]
    caption = f"The first {MAX_ANSWERS} of {len(of_query)} runs." if len(of_query) > MAX_ANSWERS else ""
    wave_T = queries.wave(cell, query, length_s) if queries is not None else None
    return Miss(
        f"Query {query}: missed by {int((~of_query['hit']).sum())} of {num_runs} run{'' if num_runs == 1 else 's'}",
        f"Truth: track {track}, from {start_s:.2f} s.",
        "" if wave_T is None else _uri("image/png", spectrogram_png(wave_T)),
        "" if wave_T is None else _uri("audio/mpeg", mp3(wave_T)),
        Table(f"Answers to query {query}", COLUMNS, rows, caption),
    )


def _classify_answer(row: Mapping[Hashable, Any]) -> tuple[str, str]:
    """Return a description of an answer, and its CSS class."""
    if row["hit"]:
        return "correct", ""
    if row["track_hit"]:
        return "just outside the tolerance" if row["near"] else "wrong time", "bad"
    return "wrong track", "bad"


def spectrogram_png(wave_T: Floats) -> bytes:
    """Return the spectrogram of a wave at 16 kHz as PNG.

    One pixel is 10 ms wide, windows are 32 ms long; 0 to 8 kHz from bottom to top, with a range of 70 dB.
    """
    frames = np.lib.stride_tricks.sliding_window_view(wave_T, FRAME)[::HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(FRAME), axis=1)) ** 2
    pooled = power[:, 1:].reshape(len(power), -1, 2).mean(axis=2)  # pairs of bins: 128 rows
    level_db = 10 * np.log10(np.maximum(pooled.T[::-1], LEAST_POWER))
    out = BytesIO()
    matplotlib.image.imsave(
        out, level_db, cmap="magma", vmin=level_db.max() - RANGE_DB, vmax=level_db.max(), format="png",
        metadata={"Software": ""},
    )  # fmt: skip
    return out.getvalue()


def mp3(wave_T: Floats) -> bytes:
    """Return a wave at 16 kHz as MP3, a format that every browser plays."""
    import soundfile

    out = BytesIO()
    soundfile.write(out, PLAYBACK_GAIN * wave_T, RATE_HZ, format="MP3", subtype="MPEG_LAYER_III")
    return out.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
