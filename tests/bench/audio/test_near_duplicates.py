import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from bench.audio.near_duplicates import WordList, hash_words, match_tracks, num_words
from bench.datasets import synth
from bench.values import RATE_HZ


def music(number: int, seconds: float = 10.0) -> np.ndarray:
    return synth.compose(np.random.default_rng([7, number]), round(seconds * RATE_HZ))


def pcm(wave: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(wave, -1, 1) * 32_767).astype(np.int16)


def listed(*waves: np.ndarray) -> WordList:
    words = [hash_words(pcm(wave)) for wave in waves]
    return WordList(np.concatenate(words), np.cumsum([0, *map(len, words)]))


def as_mp3(wave: np.ndarray, rate_hz: int = RATE_HZ) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, wave, rate_hz, format="MP3", compression_level=0.9)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


@given(st.integers(0, 40_000))
def test_number_of_words_is_as_announced(num_samples: int) -> None:
    assert hash_words(np.ones(num_samples, np.int16)).shape == (num_words(num_samples),)


def test_ten_seconds_give_about_twenty_words_a_second() -> None:
    # 1 + (160000 - 2048) // 800 = 198 windows, less 7 for the mean over 8 and 8 for the lag
    assert num_words(160_000) == 198 - 7 - 8


def test_silence_has_words_of_zero_and_matches_nothing() -> None:
    silence = np.zeros(10 * RATE_HZ, np.float32)
    assert not hash_words(pcm(silence)).any()
    assert match_tracks(listed(silence), listed(silence)) == {}


def test_louder_copy_has_the_same_words() -> None:
    wave = music(0)
    differs = hash_words(pcm(wave)) ^ hash_words(pcm(0.5 * wave))
    assert np.bitwise_count(differs).mean() < 0.5  # of 32: only rounding to 16 bits differs


def test_cut_quieter_mp3_copy_is_found_and_strangers_are_not() -> None:
    originals = [music(n) for n in range(6)]
    copy = as_mp3(0.6 * originals[2][12_345:])
    shared = match_tracks(listed(music(10), copy, music(11)), listed(*originals))
    assert list(shared) == [(1, 2)]
    assert shared[1, 2] > 6


def test_excerpt_inside_other_music_is_found_with_its_length() -> None:
    mixed = np.concatenate([music(20, 4.0), music(3)[: 7 * RATE_HZ], music(21, 4.0)])
    shared = match_tracks(listed(mixed), listed(music(3)))
    assert shared[0, 0] == pytest.approx(7.0, abs=1.2)  # words look 0.9 s far, and stretches are 3 s long


def test_shared_second_alone_is_no_duplicate() -> None:
    mixed = np.concatenate([music(22, 5.0), music(3)[: 2 * RATE_HZ], music(23, 5.0)])
    assert match_tracks(listed(mixed), listed(music(3))) == {}


def test_empty_sides_share_nothing() -> None:
    nothing = WordList(np.zeros(0, np.uint32), np.zeros(1, np.int64))
    assert match_tracks(nothing, listed(music(0))) == {}
    assert match_tracks(listed(music(0)), nothing) == {}
