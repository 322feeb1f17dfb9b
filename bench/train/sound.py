"""Reads excerpts of many tracks at once, from the memory map on the host or from samples held on the device.

Shape legend: B excerpts, T samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bench.audio.crop import read_looped, read_padded
from bench.audio.pcm import Corpus
from bench.values import Ints


class Sound(Protocol):
    """Reads excerpts (B, T) int16 of tracks."""

    def read_padded(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """Return the samples from each start on, with silence before a track's start and after its end."""
        ...

    def read_looped(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """Return the samples from each start on, starting over at a track's end. Starts are inside their tracks."""
        ...


@dataclass(frozen=True)
class HostSound:
    """Reads excerpts from the corpus on disk into host memory, pinned if `pinned`."""

    corpus: Corpus
    pinned: bool = False

    def read_padded(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """See `Sound`."""
        excerpt_BT = self._empty(len(track_B), num_samples)
        for row, track, start in zip(excerpt_BT.numpy(), track_B.tolist(), start_B.tolist(), strict=True):
            row[:] = read_padded(self.corpus, track, start, start + num_samples)
        return excerpt_BT

    def read_looped(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """See `Sound`."""
        excerpt_BT = self._empty(len(track_B), num_samples)
        for row, track, start in zip(excerpt_BT.numpy(), track_B.tolist(), start_B.tolist(), strict=True):
            row[:] = read_looped(self.corpus, track, start, num_samples)
        return excerpt_BT

    def _empty(self, rows: int, num_samples: int) -> Tensor:
        return torch.empty(rows, num_samples, dtype=torch.int16, pin_memory=self.pinned)


class DeviceSound:
    """Holds all samples of some tracks on a device, end to end; 2 bytes each."""

    def __init__(self, corpus: Corpus, tracks: Ints, device: torch.device) -> None:
        lengths = corpus.lengths[tracks]
        ends = np.cumsum(lengths)
        first = np.zeros((2, len(corpus.lengths)), dtype=np.int64)
        first[0, tracks], first[1, tracks] = ends - lengths, lengths
        self.samples = torch.empty(int(ends[-1]), dtype=torch.int16, device=device)
        for track, end, length in zip(tracks.tolist(), ends.tolist(), lengths.tolist(), strict=True):
            self.samples[end - length : end] = torch.from_numpy(corpus.read(track, 0, length))
        self.first, self.lengths = first

    def read_padded(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """See `Sound`."""
        first_B1, length_B1, start_B1 = self._columns(track_B, start_B)
        sample_BT = start_B1 + torch.arange(num_samples, device=self.samples.device)
        inside_BT = (sample_BT >= 0) & (sample_BT < length_B1)
        clamped_BT = torch.minimum(sample_BT.clamp_min(0), length_B1 - 1)
        return self.samples[first_B1 + clamped_BT] * inside_BT

    def read_looped(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """See `Sound`."""
        first_B1, length_B1, start_B1 = self._columns(track_B, start_B)
        sample_BT = start_B1 + torch.arange(num_samples, device=self.samples.device)
        return self.samples[first_B1 + sample_BT % length_B1]

    def _columns(self, track_B: Ints, start_B: Ints) -> tuple[Tensor, ...]:
        columns_3B = torch.from_numpy(np.stack([self.first[track_B], self.lengths[track_B], start_B]))
        if self.samples.is_cuda:  # from pinned memory the copy does not wait for the device
            columns_3B = columns_3B.pin_memory()
        columns_3B1 = columns_3B.to(self.samples.device, non_blocking=True).unsqueeze(2)
        return columns_3B1[0], columns_3B1[1], columns_3B1[2]


def open_sound(corpus: Corpus, tracks: Ints, device: torch.device, on_host: bool = False) -> Sound:
    """Return the samples of tracks: on the device if they fit into half of its free memory, else on the host.

    `on_host` keeps them on the host for samples that workers on the CPU transform first.
    """
    if device.type != "cuda" or on_host:
        return HostSound(corpus, pinned=device.type == "cuda" and not on_host)
    free_bytes, _total = torch.cuda.mem_get_info(device)
    fits = int(corpus.lengths[tracks].sum()) * 2 <= free_bytes // 2
    return DeviceSound(corpus, tracks, device) if fits else HostSound(corpus, pinned=True)
