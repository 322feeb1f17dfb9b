"""Stretches of many tracks at once: from the memory map on the host, or from samples kept on the device.

Shape legend: B stretches, T samples.
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
    """Cuts stretches (B, T) int16 out of tracks."""

    def read_padded(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """Return the samples from each start on, silence where a track has not begun or is over."""
        ...

    def read_looped(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """Return the samples from each start on, beginning again at a track's end. Starts are inside the track."""
        ...


@dataclass(frozen=True)
class HostSound:
    """Reads the corpus where it lies; what comes back is in the memory of the host, pinned if asked for."""

    corpus: Corpus
    pinned: bool = False

    def read_padded(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """See `Sound`."""
        cut_BT = self._empty(len(track_B), num_samples)
        for row, track, start in zip(cut_BT.numpy(), track_B.tolist(), start_B.tolist(), strict=True):
            row[:] = read_padded(self.corpus, track, start, start + num_samples)
        return cut_BT

    def read_looped(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """See `Sound`."""
        cut_BT = self._empty(len(track_B), num_samples)
        for row, track, start in zip(cut_BT.numpy(), track_B.tolist(), start_B.tolist(), strict=True):
            row[:] = read_looped(self.corpus, track, start, num_samples)
        return cut_BT

    def _empty(self, rows: int, num_samples: int) -> Tensor:
        return torch.empty(rows, num_samples, dtype=torch.int16, pin_memory=self.pinned)


class DeviceSound:
    """Keeps the samples of some tracks on a device, end to end; 2 bytes each."""

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
        place_BT = start_B1 + torch.arange(num_samples, device=self.samples.device)
        inside_BT = (place_BT >= 0) & (place_BT < length_B1)
        clamped_BT = torch.minimum(place_BT.clamp_min(0), length_B1 - 1)
        return self.samples[first_B1 + clamped_BT] * inside_BT

    def read_looped(self, track_B: Ints, start_B: Ints, num_samples: int) -> Tensor:
        """See `Sound`."""
        first_B1, length_B1, start_B1 = self._columns(track_B, start_B)
        place_BT = start_B1 + torch.arange(num_samples, device=self.samples.device)
        return self.samples[first_B1 + place_BT % length_B1]

    def _columns(self, track_B: Ints, start_B: Ints) -> tuple[Tensor, ...]:
        told = torch.from_numpy(np.stack([self.first[track_B], self.lengths[track_B], start_B]))
        if self.samples.is_cuda:  # from pinned memory the copy does not wait for the device
            told = told.pin_memory()
        told = told.to(self.samples.device, non_blocking=True).unsqueeze(2)
        return told[0], told[1], told[2]


def sound_of(corpus: Corpus, tracks: Ints, device: torch.device, on_host: bool = False) -> Sound:
    """Return the samples of tracks on the device if they fit into half of what is free there, else on the host.

    `on_host` is for what workers on the CPU transform first.
    """
    if device.type != "cuda" or on_host:
        return HostSound(corpus, pinned=device.type == "cuda" and not on_host)
    free_bytes, _total = torch.cuda.mem_get_info(device)
    fits = int(corpus.lengths[tracks].sum()) * 2 <= free_bytes // 2
    return DeviceSound(corpus, tracks, device) if fits else HostSound(corpus, pinned=True)
