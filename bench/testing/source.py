"""The check of a data set of music or noise, and a data set of arrays for tests.

Shape legend: T samples.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import get_args

import numpy as np

from bench.testing._common import check_digest, check_wave, expect
from bench.values import Floats, Source, Split, Track


@dataclass(frozen=True)
class Arrays:
    """A source of arrays, for tests that need a data set."""

    waves: Mapping[str, Floats | Exception]
    """Waves by track id, each (T,) at 16 kHz; an exception is raised when its track is loaded."""

    splits: Mapping[str, Split] = field(default_factory=dict)
    """The splits of tracks that are not in `train`, by id."""

    labels: Mapping[str, str] = field(default_factory=dict)
    """The labels of tracks that have one, by id."""

    def tracks(self) -> list[Track]:
        """Return one track for each array, in their order."""
        return [Track(i, "", self.splits.get(i, "train"), "test", self.labels.get(i, "")) for i in self.waves]

    def load(self, track: Track) -> Floats:
        """Return the array of a track as float32."""
        wave_T = self.waves[track.id]
        if isinstance(wave_T, Exception):
            raise wave_T
        return wave_T.astype(np.float32)

    def digest(self) -> str:
        """Return a digest of all samples, splits and labels."""
        total = hashlib.sha256(repr((sorted(self.splits.items()), sorted(self.labels.items()))).encode())
        for name, wave in self.waves.items():
            total.update(name.encode())
            total.update(repr(wave).encode() if isinstance(wave, Exception) else wave.astype(np.float32).tobytes())
        return total.hexdigest()[:16]


def check_source(source: Source) -> None:
    """Check what a data-set plug-in of music or noise returns from `build(config, root)`.

    Rules: tracks have unique ids and known splits, and come in the same order each time; paths stay below the root; the
    source can be pickled (workers load tracks) and its copy gives the same audio: mono float32, finite; the digest is a
    text and stays the same.
    """
    tracks = list(source.tracks())
    expect(len(tracks) > 0, "there is at least one track", 0)
    expect(tracks == list(source.tracks()), "tracks() is the same each time", "another order or other tracks")
    ids = [track.id for track in tracks]
    expect(len(set(ids)) == len(ids), "track ids are unique", next((i for i in ids if ids.count(i) > 1), ""))
    for track in tracks:
        _check_track(track)
    digest = check_digest(source)
    copy: Source = pickle.loads(pickle.dumps(source))
    expect(copy.digest() == digest, "digest() stays the same in a pickled copy", copy.digest())
    usable = [track for track in tracks if not track.problem]
    expect(len(usable) > 0, "at least one track is without a problem", tracks[0].problem)
    for track in (usable[0], usable[-1]):
        wave_T = source.load(track)
        check_wave(wave_T, track.id)
        expect(np.array_equal(wave_T, copy.load(track)), "a track's audio is always the same", track.id)


def _check_track(track: Track) -> None:
    expect(isinstance(track, Track), "tracks are bench.values.Track", type(track).__name__)
    splits = get_args(Split)
    expect(track.split in splits, f"a split is one of {splits}", f"{track.split!r} of {track.id}")
    path = PurePosixPath(track.path)
    expect(not path.is_absolute() and ".." not in path.parts, "paths stay below the root", track.path)
