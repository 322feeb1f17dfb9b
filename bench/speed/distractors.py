"""A crowd: a database of a wanted size, of real fingerprints and of tracks made up from them.

A made-up track is the whole sequence of a real one, reflected along some principal axes of all real fingerprints:

    x' = normalise(x - 2 W W'(x - mean)),    W: axes drawn at random until they hold FLIPPED of the variance.

A reflection keeps angles, so that neighbouring segments overlap and music repeats as in the real track; one along
principal axes keeps the covariance; and yet the track lies elsewhere on the sphere. How many axes decides how near
made-up tracks come to a query. With half of all axes they are easier than other real tracks; with few they are
near copies of the track they are made from. Measured on 104,178 fingerprints of real music (`now-playing`, 128
dimensions), 1,000 of them as queries: best similarity within another track, and the best of 357 or 358 tracks.

    quantile            50 %   75 %   95 %   99 %   99.9 %  99.99 %  best of all: 5 %   50 %   95 %
    other real tracks   0.480  0.554  0.660  0.734  0.822   0.931                 0.706  0.778  0.918
    FLIPPED = 0.17      0.476  0.543  0.639  0.707  0.804   0.929                 0.700  0.768  0.917
    FLIPPED = 0.15      0.476  0.544  0.641  0.710  0.818   0.947                 0.704  0.777  0.932
    half of all axes *  0.474  0.539  0.629  0.690  0.754   0.801                 0.682  0.732  0.794

(* of 2,000 queries; the row of real tracks then was the same within 0.005 up to 99.9 %.)

Shape legend: N vectors, D dimensions, F reflected axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.errors import DataError
from bench.settings import require
from bench.store import Store, digest, read_array
from bench.values import Fingerprints, Floats, Ints, Progress

FORMAT = 1
SEED = 7_300_000
FLIPPED = 0.17  # of the variance; see above
BLOCK_VECTORS = 1 << 15
KIND = np.dtype("<f4")


@dataclass(frozen=True)
class PrincipalAxes:
    """How fingerprints lie: their mean (D,), their principal axes (D, D) as columns, and each one's variance."""

    mean_D: Floats
    axes_DD: Floats
    share_D: npt.NDArray[np.float64]


def prepare_distractors(store: Store, database: Fingerprints, num_vectors: int, progress: Progress) -> Fingerprints:
    """Return a database of `num_vectors` vectors that begins with all of the given one, from the store or made now.

    Made-up tracks have numbers after all real ones; the last one is cut off where the size is reached. Written as
    it comes: memory is that of a block. An interrupted one goes on where it ended.
    Raises: ConfigError if fewer vectors are wanted than there are, DataError if there is nothing to make more from.
    """
    num_real = len(database.vectors)
    require(num_vectors >= num_real, f"a crowd must have at least the {num_real} real vectors", num_vectors)
    if num_vectors == num_real:
        return database
    if not num_real:
        raise DataError("there is no fingerprint to make a crowd from; fingerprint some tracks first")
    key = digest(FORMAT, SEED, FLIPPED, database.key, num_vectors)
    source, first_vector = _layout(database.first_vector, num_vectors)
    num_tracks, dim = len(database.tracks), database.vectors.shape[1]

    def build(folder: Path) -> None:
        # A plain file: of a memory map all written pages would count as memory. Its size says how far it has come.
        with (folder / "vectors.npy").open("ab") as file:
            header = _npy_header((num_vectors, dim))
            if file.tell() < len(header):
                file.truncate(0)
                file.write(header)
            kept = (file.tell() - len(header)) // (dim * KIND.itemsize)
            begun = int(np.searchsorted(first_vector, kept, side="right")) - 1
            file.truncate(len(header) + int(first_vector[begun]) * dim * KIND.itemsize)
            spread = fit_principal_axes(database.vectors)
            for track in range(begun, len(source)):
                progress("crowd", int(first_vector[track]), num_vectors)
                begin, size = database.first_vector[source[track]], first_vector[track + 1] - first_vector[track]
                sequence_ND = database.vectors[begin : begin + size]
                if track >= num_tracks:
                    sequence_ND = reflect_sequence(sequence_ND, spread, np.random.default_rng([SEED, track]))
                file.write(sequence_ND.astype(KIND).tobytes())
        progress("crowd", num_vectors, num_vectors)

    vectors = read_array(store.fetch("crowd", key, build) / "vectors.npy")
    made_tracks = database.tracks.max() + 1 + np.arange(len(source) - num_tracks)
    tracks = np.concatenate([database.tracks, made_tracks]).astype(np.int64)
    return Fingerprints(vectors, tracks, first_vector, database.hop_samples, key)


def fit_principal_axes(vectors_ND: Floats) -> PrincipalAxes:
    """Return mean and principal axes, in two passes over blocks."""
    count, dim = vectors_ND.shape
    mean_D = np.zeros(dim)
    for start in range(0, count, BLOCK_VECTORS):
        mean_D += vectors_ND[start : start + BLOCK_VECTORS].sum(axis=0, dtype=np.float64) / count
    covariance_DD = np.zeros((dim, dim))
    for start in range(0, count, BLOCK_VECTORS):
        off_ND = vectors_ND[start : start + BLOCK_VECTORS] - mean_D
        covariance_DD += off_ND.T @ off_ND / count
    variance_D, axes_DD = np.linalg.eigh(covariance_DD)
    variance_D = np.maximum(variance_D, 0)
    # The smallest number stands for a database whose vectors are all the same: there is nothing to share.
    share_D = variance_D / max(variance_D.sum(), np.finfo(np.float64).tiny)
    return PrincipalAxes(mean_D.astype(np.float32), axes_DD.astype(np.float32), share_D)


def reflect_sequence(sequence_ND: Floats, spread: PrincipalAxes, draw: np.random.Generator) -> Floats:
    """Return a sequence (N, D) reflected along axes drawn until they hold FLIPPED of the variance, of unit length."""
    order_D = draw.permutation(len(spread.share_D))
    num_flipped = 1 + int(np.searchsorted(np.cumsum(spread.share_D[order_D]), FLIPPED))
    axes_DF = spread.axes_DD[:, order_D[:num_flipped]]
    moved_ND = sequence_ND - 2 * ((sequence_ND - spread.mean_D) @ axes_DF) @ axes_DF.T
    made_ND: Floats = moved_ND / np.linalg.norm(moved_ND, axis=1, keepdims=True)
    return made_ND


def _layout(real_first: Ints, num_vectors: int) -> tuple[Ints, Ints]:
    """Return the real track that each track of the crowd is made from, and the first vector of each.

    The real tracks come first, as they are; then they take turns, those without vectors left out.
    """
    counts = np.diff(real_first)
    full = np.flatnonzero(counts)
    turns = -(-(num_vectors - int(real_first[-1])) // int(real_first[-1]))
    source = np.concatenate([np.arange(len(counts)), np.tile(full, turns)]).astype(np.int64)
    first_vector = np.concatenate([[0], np.cumsum(counts[source])]).astype(np.int64)
    last = int(np.searchsorted(first_vector, num_vectors))
    return source[:last], np.minimum(first_vector[: last + 1], num_vectors)


def _npy_header(shape: tuple[int, int]) -> bytes:
    """Return the beginning of a .npy file of this shape."""
    told = BytesIO()
    layout = {"descr": np.lib.format.dtype_to_descr(KIND), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(told, layout)
    return told.getvalue()
