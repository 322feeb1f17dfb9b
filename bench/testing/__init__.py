"""Checks that a plug-in keeps the contract of its kind, to be called from its author's own tests.

Each check takes a plug-in, or what it builds, and returns nothing; a broken rule raises an AssertionError that says
which rule it is and what was found. In a plug-in's test file:

    import mine
    from bench.testing import check_encoder

    def test_mine_keeps_the_contract() -> None:
        check_encoder(mine)

The checks need no data, no network and no GPU, and take seconds on one processor with a small config. They say nothing
about quality: a plug-in that passes can be used in the benchmark, and its numbers mean what those of the others mean.
"""

from bench.testing.aligner import check_aligner
from bench.testing.encoder import check_encoder
from bench.testing.index import check_index
from bench.testing.matcher import check_matcher
from bench.testing.pairs import check_pairs
from bench.testing.responses import check_responses
from bench.testing.source import Arrays, check_source

__all__ = [
    "Arrays",
    "check_aligner",
    "check_encoder",
    "check_index",
    "check_matcher",
    "check_pairs",
    "check_responses",
    "check_source",
]
