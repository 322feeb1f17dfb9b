"""One room: the only response of a bank, for evaluations of made-up tracks."""

from __future__ import annotations

import numpy as np

from bench.degrade.room import Response, align_direct_sound

T60_S = 0.2


class OneRoom:
    """A source of one simulated response with a strong direct sound."""

    def names(self) -> list[str]:
        return ["one"]

    def load(self, name: str) -> Response:
        decay = np.random.default_rng(0).standard_normal(3_200) * 10 ** (-3 * np.arange(3_200) / 3_200)
        decay[0] = 8
        return Response(name, align_direct_sound(decay.astype(np.float32)), "test", T60_S)

    def digest(self) -> str:
        return "one"
