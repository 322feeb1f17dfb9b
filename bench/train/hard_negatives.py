"""Hard negatives: the moments of a track that sound most like a given one, and are most easily confused with it.

A loop that returns under another voice is hardly ever drawn at random; as a negative it teaches what differs.
Similarity is the cosine of log-mel patches in frames of 20 ms, with the mean of each band subtracted. A long track is
searched in chunks, so that time and memory grow linearly with its length; the next turn of a loop is near.

A *grid position* is a moment of a track, counted in hops of 100 ms from the track's start.

Shape legend: P grid positions, T samples, M mel bands, F frames, D = M x frames of a patch, R negatives of a position.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from bench.audio.frontend import FLOOR_DB, POWER_FLOOR
from bench.audio.pcm import Corpus
from bench.store import Store, digest, read_array
from bench.values import GRID_HOP_SAMPLES, INT16_SCALE, RATE_HZ, Floats, Ints, Progress

FORMAT = 1
FRAME_SAMPLES = RATE_HZ // 50  # 20 ms
NUM_BANDS = 64
CHUNK_HOPS = 400  # 40 s: 5 MB of patches, 2 MB of similarities and their masks
MIN_GAP_HOPS = 3  # between two negatives of one position: adjacent positions are equally similar
NO_NEGATIVE = -1  # in place of a position
BLOCK_TRACKS = 64  # written together: a kill loses at most one block

Positions = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class HardNegatives:
    """The hard negatives of every grid position of some tracks, best first.

    `blocks` are memory-mapped arrays (P, R) of several tracks each; those of track t are in the block number
    `block[t]`, from row `first_row[t]` on.
    """

    blocks: tuple[Positions, ...]
    block: Ints
    first_row: Ints

    def find(self, track: int, position: int) -> Ints:
        """Return the grid positions (R,) of one position's hard negatives, padded with NO_NEGATIVE."""
        found_R: Ints = self.blocks[self.block[track]][self.first_row[track] + position].astype(np.int64)
        return found_R


NO_HARD_NEGATIVES = HardNegatives((), np.zeros(0, np.int64), np.zeros(0, np.int64))
"""For training without hard negatives."""


def prepare_hard_negatives(
    store: Store, music: Corpus, tracks: Ints, segment_samples: int, count: int, progress: Progress
) -> HardNegatives:
    """Return `count` hard negatives for each grid position of some tracks, from the store or searched now.

    An interrupted search resumes with the next block of tracks.
    Cost: 15 to 40 ms of one core per 30 s of audio, once; 4 x `count` bytes on disk per position.
    """
    if not count:
        return NO_HARD_NEGATIVES
    content = music.tracks[["id", "sha256"]].iloc[tracks].to_numpy().tolist()
    search = (CHUNK_HOPS, MIN_GAP_HOPS, GRID_HOP_SAMPLES, FRAME_SAMPLES, NUM_BANDS)
    key = digest(FORMAT, content, segment_samples, count, search)
    blocks = [tracks[start : start + BLOCK_TRACKS] for start in range(0, len(tracks), BLOCK_TRACKS)]

    def build(folder: Path) -> None:
        done = 0
        for number, block in enumerate(blocks):
            path = _block_file(folder, number)
            if not path.is_file():
                parts = []
                for i, track in enumerate(block.tolist()):
                    progress("hard negatives", done + i, len(tracks))
                    parts.append(_search_track(music, track, segment_samples, count))
                _write_array(path, np.concatenate(parts))
            done += len(block)
        progress("hard negatives", len(tracks), len(tracks))

    folder = store.fetch("hard-negatives", key, build)
    arrays: tuple[Positions, ...] = tuple(read_array(_block_file(folder, number)) for number in range(len(blocks)))  # type: ignore[misc]
    block_of, first_row = (np.full(len(music.lengths), -1, dtype=np.int64) for _ in range(2))
    for number, block in enumerate(blocks):
        counts = [num_positions(int(music.lengths[track]), segment_samples) for track in block]
        block_of[block], first_row[block] = number, np.concatenate([[0], np.cumsum(counts)[:-1]])
    return HardNegatives(arrays, block_of, first_row)


def num_positions(num_samples: int, segment_samples: int) -> int:
    """Return the number of grid positions of a track: one for each whole segment, and one if the track is shorter."""
    return max(0, num_samples - segment_samples) // GRID_HOP_SAMPLES + 1


def search_hard_negatives(wave_T: Floats, segment_samples: int, count: int) -> Ints:
    """Return the `count` grid positions (P, R) of a chunk that are most similar to each, padded with NO_NEGATIVE.

    Position p starts at sample p x GRID_HOP_SAMPLES of the chunk. A negative neither overlaps its position nor is
    within 200 ms of a better one. Similarities are rounded to float32: another processor may choose differently
    between two that are nearly equal. Cost: P^2 products of patches.
    """
    patch_PD = _unit_patches(torch.from_numpy(wave_T), segment_samples)
    similarity_PP = patch_PD @ patch_PD.T
    position_P = torch.arange(len(similarity_PP))
    overlap = -(-segment_samples // GRID_HOP_SAMPLES)
    similarity_PP[(position_P[:, None] - position_P).abs() < overlap] = -torch.inf
    # Take the best negative of every position, then exclude it and its surroundings from the next round.
    found = []
    for _ in range(count):
        best_P, negative_P = similarity_PP.max(dim=1)
        found.append(torch.where(best_P > -torch.inf, negative_P, NO_NEGATIVE))
        similarity_PP[(negative_P[:, None] - position_P).abs() < MIN_GAP_HOPS] = -torch.inf
    negative_PR: Ints = torch.stack(found, dim=1).numpy()
    return negative_PR


def _search_track(music: Corpus, track: int, segment_samples: int, count: int) -> Positions:
    """Return the hard negatives (P, R) of a whole track, searched in chunks of equal length."""
    length = int(music.lengths[track])
    positions = num_positions(length, segment_samples)
    chunk = math.ceil(positions / math.ceil(positions / CHUNK_HOPS))
    parts = []
    for first in range(0, positions, chunk):
        begin = first * GRID_HOP_SAMPLES
        samples = min(chunk * GRID_HOP_SAMPLES - 1 + segment_samples, length - begin)
        wave_T = music.read(track, begin, samples).astype(np.float32) * INT16_SCALE
        found_PR = search_hard_negatives(wave_T, segment_samples, count)
        parts.append(np.where(found_PR != NO_NEGATIVE, found_PR + first, NO_NEGATIVE).astype(np.int32))
    return np.concatenate(parts)


def _unit_patches(wave_T: Tensor, segment_samples: int) -> Tensor:
    """Return the patch of each grid position as a unit vector (P, D)."""
    whole_T = functional.pad(wave_T, (0, max(0, segment_samples - len(wave_T))))
    level_MF = 10 * torch.log10(_build_mel()(whole_T).clamp_min(POWER_FLOOR))
    level_MF = level_MF.clamp_min(level_MF.amax() - FLOOR_DB)
    level_MF = level_MF - level_MF.mean(dim=1, keepdim=True)
    frames, hop = segment_samples // FRAME_SAMPLES, GRID_HOP_SAMPLES // FRAME_SAMPLES
    positions = num_positions(len(wave_T), segment_samples)
    patch_PD = level_MF.unfold(1, frames, hop)[:, :positions].transpose(0, 1).reshape(positions, -1)
    return functional.normalize(patch_PD, dim=1)


@cache
def _build_mel() -> nn.Module:
    from torchaudio.transforms import MelSpectrogram

    mel: nn.Module = MelSpectrogram(RATE_HZ, n_fft=2 * FRAME_SAMPLES, hop_length=FRAME_SAMPLES, n_mels=NUM_BANDS)
    return mel


def _block_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def _write_array(path: Path, array: Positions) -> None:
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        np.save(file, array)
    os.replace(partial, path)
