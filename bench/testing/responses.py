"""The check of a data set of impulse responses."""

from __future__ import annotations

from typing import get_args

import numpy as np

from bench.degrade.room import DIRECT_AT, Response, ResponseSource, find_direct_sound, measure_t60
from bench.errors import DataError
from bench.testing._common import check_digest, check_wave, expect
from bench.values import Split


def check_responses(source: ResponseSource) -> None:
    """Check what a data-set plug-in of kind `rir` returns from `build(config, root)`.

    Rules: names are unique and come in the same order each time; a response is float32, of a known split, its largest
    peak at DIRECT_AT, the same each time it is loaded, and has a t60 that can be measured; the digest is a text and
    stays the same. A response that cannot be used is a DataError.
    """
    names = list(source.names())
    expect(len(names) > 0 and names == list(source.names()), "names() is not empty and the same each time", names)
    expect(len(set(names)) == len(names), "names are unique", names)
    check_digest(source)
    usable = 0
    for name in {names[0], names[-1]}:
        try:
            response = source.load(name)
        except DataError:
            continue
        usable += 1
        _check_response(response, name)
        again_T = source.load(name).wave_T
        expect(np.array_equal(response.wave_T, again_T), "a response is always the same", name)
    expect(usable > 0, "the first or the last response can be used", names)


def _check_response(response: Response, name: str) -> None:
    expect(response.name == name, "a response has the name that was asked for", response.name)
    expect(response.split in get_args(Split), f"a split is one of {get_args(Split)}", response.split)
    check_wave(response.wave_T, name)
    direct = find_direct_sound(response.wave_T)
    rule = f"the direct sound is at sample {DIRECT_AT}: use bench.degrade.room.align_direct_sound"
    expect(direct == DIRECT_AT, rule, direct)
    measure_t60(response.wave_T)
