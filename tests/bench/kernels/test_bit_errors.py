"""The compiled count of bit errors against NumPy's, place by place."""

import numpy as np
import pytest

from bench.kernels.bit_errors import count_bit_errors


@pytest.mark.parametrize("num_words", [1, 3, 51, 400])
def test_errors_at_each_place_are_those_of_numpy(num_words: int) -> None:
    draw = np.random.default_rng(num_words)
    word_N = draw.integers(0, 2**32, 1_000, dtype=np.uint32)
    word_W = draw.integers(0, 2**32, num_words, dtype=np.uint32)
    place_P = np.array([0, 17, 18, 1_000 - num_words, 17])
    expected = [int(np.bitwise_count(word_N[p : p + num_words] ^ word_W).sum()) for p in place_P]
    assert count_bit_errors(word_N, word_W, place_P).tolist() == expected


def test_a_complement_has_every_bit_wrong_and_a_copy_none() -> None:
    word_N = np.array([0, 0xFFFFFFFF, 0x12345678], dtype=np.uint32)
    assert count_bit_errors(word_N, ~word_N, np.array([0])).tolist() == [96]
    assert count_bit_errors(word_N, word_N[1:], np.array([1])).tolist() == [0]


def test_no_place_gives_no_number() -> None:
    word_N = np.arange(3, dtype=np.uint32)
    assert len(count_bit_errors(word_N, word_N, np.empty(0, np.int64))) == 0


def test_a_memory_map_is_counted_in(tmp_path) -> None:
    np.save(tmp_path / "words.npy", np.arange(10, dtype=np.uint32))
    word_N = np.load(tmp_path / "words.npy", mmap_mode="r")
    assert count_bit_errors(word_N, np.array([0], np.uint32), np.array([3, 7])).tolist() == [2, 3]
