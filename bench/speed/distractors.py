"""Enlarges a database to a given size with synthetic distractors: tracks of fingerprints derived from the real tracks.

Each is a reflected copy of a real track (`bench.search.distractors`), along axes that hold FLIPPED of the variance.
Measured on 104,178 fingerprints of real music
(`now-playing`, 128 dimensions), 1,000 of them as queries: best similarity within another track, and the best of 357 or
358 tracks.

    quantile            50 %   75 %   95 %   99 %   99.9 %  99.99 %  best of all: 5 %   50 %   95 %
    other real tracks   0.480  0.554  0.660  0.734  0.822   0.931                 0.706  0.778  0.918
    FLIPPED = 0.17      0.476  0.543  0.639  0.707  0.804   0.929                 0.700  0.768  0.917
    FLIPPED = 0.15      0.476  0.544  0.641  0.710  0.818   0.947                 0.704  0.777  0.932
    half of all axes *  0.474  0.539  0.629  0.690  0.754   0.801                 0.682  0.732  0.794

(* with 2,000 queries; the row of real tracks was then the same within 0.005 up to 99.9 %.)

Shape legend: N vectors, D dimensions.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from bench.errors import DataError
from bench.search.distractors import fit_principal_axes, reflect_sequence
from bench.settings import require
from bench.store import Store, digest, read_array
from bench.values import Fingerprints, Ints, Progress

FORMAT = 1  # of the database in the store
SEED = 7_300_000
FLIPPED = 0.17  # share of the variance along the reflected axes; see above
KIND = np.dtype("<f4")
STAGE = "crowd"  # kind of folder in the store


def prepare_distractors(store: Store, database: Fingerprints, num_vectors: int, progress: Progress) -> Fingerprints:
    """Return a database of `num_vectors` vectors, the given one and then distractors, from the store or built now.

    Synthetic tracks are numbered after all real ones; the last one is truncated where the size is reached. Memory: one
    block of vectors. An interrupted build resumes with the track in progress.
    Raises: ConfigError if `num_vectors` is less than the given database has, DataError if that is empty.
    """
    num_real = len(database.vectors)
    require(num_vectors >= num_real, f"the database must have at least the {num_real} real vectors", num_vectors)
    if num_vectors == num_real:
        return database
    if not num_real:
        raise DataError("there is no fingerprint to derive distractors from; fingerprint some tracks first")
    key = digest(FORMAT, SEED, FLIPPED, database.key, num_vectors)
    source_row, first_vector = _layout(database.first_vector, num_vectors)
    num_tracks, dim = len(database.tracks), database.vectors.shape[1]

    def build(folder: Path) -> None:
        # A plain file: the written pages of a memory map would count as memory. Its size shows where to resume.
        with (folder / "vectors.npy").open("ab") as file:
            header = _npy_header((num_vectors, dim))
            if file.tell() < len(header):
                file.truncate(0)
                file.write(header)
            num_written = (file.tell() - len(header)) // (dim * KIND.itemsize)
            in_progress = int(np.searchsorted(first_vector, num_written, side="right")) - 1
            file.truncate(len(header) + int(first_vector[in_progress]) * dim * KIND.itemsize)
            axes = fit_principal_axes(database.vectors)
            for track in range(in_progress, len(source_row)):
                progress("distractors", int(first_vector[track]), num_vectors)
                begin, size = database.first_vector[source_row[track]], first_vector[track + 1] - first_vector[track]
                sequence_ND = database.vectors[begin : begin + size]
                if track >= num_tracks:
                    draw = np.random.default_rng([SEED, track])
                    sequence_ND = reflect_sequence(sequence_ND, axes, draw, FLIPPED)
                file.write(sequence_ND.astype(KIND).tobytes())
        progress("distractors", num_vectors, num_vectors)

    vectors = read_array(store.fetch(STAGE, key, build) / "vectors.npy")
    synthetic_tracks = database.tracks.max() + 1 + np.arange(len(source_row) - num_tracks)
    tracks = np.concatenate([database.tracks, synthetic_tracks]).astype(np.int64)
    return Fingerprints(vectors, tracks, first_vector, database.hop_samples, key)


def _layout(real_first: Ints, num_vectors: int) -> tuple[Ints, Ints]:
    """Return the row of the real track that each track is derived from, and the first vector of each track.

    The real tracks come first, unchanged. Then each real track that has vectors is used in turn, over and over.
    """
    counts = np.diff(real_first)
    with_vectors = np.flatnonzero(counts)
    rounds = -(-(num_vectors - int(real_first[-1])) // int(real_first[-1]))
    source_row = np.concatenate([np.arange(len(counts)), np.tile(with_vectors, rounds)]).astype(np.int64)
    first_vector = np.concatenate([[0], np.cumsum(counts[source_row])]).astype(np.int64)
    num_tracks = int(np.searchsorted(first_vector, num_vectors))
    return source_row[:num_tracks], np.minimum(first_vector[: num_tracks + 1], num_vectors)


def _npy_header(shape: tuple[int, int]) -> bytes:
    """Return the header of a .npy file of this shape."""
    header = BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(KIND), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, fields)
    return header.getvalue()
