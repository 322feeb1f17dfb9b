"""The challenge's score of an alignment, per file and per set, and the comparison of two aligners on the same files.

An error is the predicted minus the annotated time in channel 1, in seconds, at each distinct annotated time in
channel 0. A file's MSE (s^2) and MAE (ms) are means over its errors; a set's are unweighted means over its files.
Source: official script of BioDCASE Task 1, 2025 (MSE) and 2026 (MAE).

Shape legend: K annotated keypoints, U distinct ones, P predictions, F files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.align.contract import Seconds
from bench.align.pairs import COLUMNS
from bench.errors import DataError
from bench.score.statistics import bootstrap_mean

FILE, TIME0, TIME1 = COLUMNS
MS_PER_S = 1000.0


@dataclass(frozen=True)
class FileScore:
    """One file: mean squared error in s^2, mean and median absolute error in ms, keypoints, keypoints not predicted."""

    name: str
    mse_s2: float
    mae_ms: float
    median_ms: float
    num_keypoints: int
    num_missing: int


@dataclass(frozen=True)
class Spread:
    """A number over the files of a set: its mean with the 95 % bootstrap interval, and its quartiles."""

    mean: float
    low: float
    high: float
    quartiles: tuple[float, float, float]


@dataclass(frozen=True)
class SetScore:
    """A set: how many files it has, and the spread of their numbers."""

    num_files: int
    mse_s2: Spread
    mae_ms: Spread
    median_ms: Spread


@dataclass(frozen=True)
class Difference:
    """Two aligners on the same files: mean of (other - one), its 95 % bootstrap interval, and Wilcoxon's p."""

    num_files: int
    mean: float
    low: float
    high: float
    p: float


def read_times(path: Path) -> pd.DataFrame:
    """Return the columns `Filename`, `Time Channel 0` and `Time Channel 1` of annotations or predictions.

    Raises: DataError if the file cannot be read, lacks a column, or holds a time that is not a finite number.
    """
    try:
        table = pd.read_csv(path, dtype={FILE: str})
    except (OSError, ValueError) as error:  # pandas' errors are ValueErrors
        raise DataError(f"cannot read the times {path} ({error}); give a CSV file with a header") from error
    missing = [column for column in (FILE, TIME0, TIME1) if column not in table]
    if missing:
        raise DataError(f"{path} has no column {', '.join(missing)}; its header must be {FILE},{TIME0},{TIME1}")
    table = table[[FILE, TIME0, TIME1]].copy()
    for column in (TIME0, TIME1):
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(np.float64)
    finite = np.isfinite(table[[TIME0, TIME1]].to_numpy()).all(axis=1)
    wrong = np.flatnonzero(table[FILE].isna().to_numpy() | ~finite)
    if len(wrong):
        # Line 1 is the header.
        raise DataError(
            f"{path} has no file name or no finite times in line {wrong[0] + 2} ({len(wrong)} such lines); times are "
            f"seconds, correct or remove these lines"
        )
    return table


def clip_times(time1_K: Seconds, duration_s: float) -> Seconds:
    """Return times clipped to the recording, as annotated times are; clip predictions before scoring them."""
    return np.asarray(time1_K, dtype=np.float64).clip(0, duration_s)


def score_tables(annotated: pd.DataFrame, predicted: pd.DataFrame) -> list[FileScore]:
    """Return the score of every annotated file, ordered by name, from tables that `read_times` returned.

    A file without any prediction is scored as if its clocks were the same; files and times without annotation are
    ignored.
    """
    by_file = {str(name): rows for name, rows in predicted.groupby(FILE)}
    nothing = predicted.iloc[:0]
    scores = []
    for name, rows in annotated.groupby(FILE):
        predictions = by_file.get(str(name), nothing)
        times = (frame[column].to_numpy(np.float64) for frame in (rows, predictions) for column in (TIME0, TIME1))
        scores.append(score_file(str(name), *times))
    return scores


def score_file(
    name: str, time0_K: Seconds, time1_K: Seconds, predicted0_P: Seconds, predicted1_P: Seconds
) -> FileScore:
    """Return the score of one file. Raises: DataError if nothing is annotated."""
    error_U, num_missing = errors(time0_K, time1_K, predicted0_P, predicted1_P)
    if not len(error_U):
        raise DataError(f"{name} has no annotated keypoint; add some or remove the file from the annotations")
    absolute_ms_U = np.abs(error_U) * MS_PER_S
    mean_ms, median_ms = float(absolute_ms_U.mean()), float(np.median(absolute_ms_U))
    return FileScore(name, float(np.square(error_U).mean()), mean_ms, median_ms, len(error_U), num_missing)


def errors(
    time0_K: Seconds, time1_K: Seconds, predicted0_P: Seconds, predicted1_P: Seconds
) -> tuple[npt.NDArray[np.float64], int]:
    """Return the errors in seconds, (U,) by rising time, and the number of times without a prediction.

    If an annotated or predicted time repeats, its first row counts. Times match only if they are exactly equal. A
    missing prediction is replaced by the time in channel 0.
    """
    distinct0_U, first_U = np.unique(time0_K, return_index=True)  # the first of equal ones, as documented
    known0, known_row = np.unique(predicted0_P, return_index=True)
    position_U = np.searchsorted(known0, distinct0_U)
    found_U = np.zeros(len(distinct0_U), dtype=bool)
    inner_U = position_U < len(known0)
    found_U[inner_U] = known0[position_U[inner_U]] == distinct0_U[inner_U]
    predicted1_U = distinct0_U.astype(np.float64)
    predicted1_U[found_U] = predicted1_P[known_row[position_U[found_U]]]
    return predicted1_U - time1_K[first_U], int((~found_U).sum())


def format_missing(files: Sequence[FileScore]) -> str:
    """Return the warning about keypoints without a prediction, empty if every keypoint has one."""
    lacking = [file for file in files if file.num_missing]
    if not lacking:
        return ""
    count = sum(file.num_missing for file in lacking)
    return (
        f"{count} keypoints of {len(lacking)} files have no prediction ({lacking[0].name} first): they are scored as "
        f"if the clocks were the same"
    )


def score_set(files: Sequence[FileScore]) -> SetScore:
    """Return the scores of a set, each file with the same weight; NaN for a set without files."""
    columns = ([getattr(file, name) for file in files] for name in ("mse_s2", "mae_ms", "median_ms"))
    return SetScore(len(files), *(_spread(np.array(column, dtype=np.float64)) for column in columns))


def compare_files(one: Mapping[str, float], other: Mapping[str, float]) -> Difference:
    """Return `other` minus `one`, for a number per file such as {file.name: file.mse_s2}.

    The p value is of Wilcoxon's two-sided signed-rank test, whose null hypothesis is that the differences are symmetric
    about 0; files without a difference are left out of it, and p is 1 if none is left.
    Raises: DataError if the two are not of the same files.
    """
    if one.keys() != other.keys():
        odd = sorted(one.keys() ^ other.keys())
        raise DataError(f"aligners must be compared on the same files; {len(odd)} are of one only, {odd[0]} first")
    difference_F = np.array([other[name] - one[name] for name in sorted(one)], dtype=np.float64)
    mean = float(difference_F.mean()) if len(difference_F) else math.nan
    return Difference(len(difference_F), mean, *bootstrap_mean(difference_F), _wilcoxon(difference_F))


def _wilcoxon(difference_F: npt.NDArray[np.float64]) -> float:
    different = difference_F[difference_F != 0]
    if not len(different):
        return 1.0
    from scipy.stats import wilcoxon  # slow to import, and only comparisons need it

    return float(wilcoxon(different).pvalue)


def _spread(value_F: npt.NDArray[np.float64]) -> Spread:
    if not len(value_F):
        return Spread(math.nan, math.nan, math.nan, (math.nan,) * 3)
    low, middle, high = np.quantile(value_F, [0.25, 0.5, 0.75]).tolist()
    return Spread(float(value_F.mean()), *bootstrap_mean(value_F), (low, middle, high))
