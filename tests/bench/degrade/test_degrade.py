import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.audio.pcm import Corpus, prepare_corpus
from bench.degrade.cells import benchmark_name, list_cells
from bench.degrade.mix import noise_gain, normalise_peak
from bench.degrade.queries import QuerySet, hop_samples, prepare_queries
from bench.degrade.room import (
    DIRECT_AT,
    Response,
    RoomBank,
    align_direct_sound,
    measure_t60,
    prepare_rooms,
    reverberate,
)
from bench.errors import DataError
from bench.settings import EvalConfig
from bench.store import Store
from bench.testing import Arrays
from bench.values import RATE_HZ, Cell, no_progress

LENGTHS_S = (0.96, 1.2, 1.5)
CONFIG = EvalConfig(snr_db=(0.0, 10.0), t60_s=(0.2, 0.4), noise_reverb_t60_s=0.4, lengths_s=LENGTHS_S)
NOISE = Cell("noise", snr_db=0.0)
REVERB = Cell("reverb", t60_s=0.2)
BOTH = Cell("noise_reverb", snr_db=0.0, t60_s=0.4)


def noise(seed: int, seconds: float, peak: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-peak, peak, round(seconds * RATE_HZ))


def decay(t60_s: float, seconds: float, seed: int | None = None) -> np.ndarray:
    """Return an exponential decay; of noise if a seed is given, with the direct sound in front."""
    envelope = 10.0 ** (-3 * np.arange(round(seconds * RATE_HZ)) / RATE_HZ / t60_s)
    if seed is None:
        return envelope
    wave = 0.3 * envelope * np.random.default_rng(seed).standard_normal(len(envelope))
    wave[0] = 2.0
    return wave


@dataclass(frozen=True)
class Rooms:
    """Responses of exponentially decaying noise, a quarter of a second long: name -> (seed, wanted t60)."""

    wanted: tuple[float, ...] = (0.2, 0.2, 0.4)

    def names(self) -> list[str]:
        return [f"{i}/{t60_s:g}" for i, t60_s in enumerate(self.wanted)]

    def load(self, name: str) -> Response:
        number, _, t60_s = name.partition("/")
        wave = np.concatenate([np.zeros(333), decay(float(t60_s), 0.25, int(number))])
        return Response(name, align_direct_sound(wave.astype(np.float32)), "test", float(t60_s))

    def digest(self) -> str:
        return repr(self.wanted)


def corpus(root: Path, source: Arrays) -> Corpus:
    return prepare_corpus(Store(root), "test", source, min_track_s=1.0, workers=1)


def music(root: Path, *seconds: float) -> Corpus:
    waves = {f"t{i}": noise(i, s) for i, s in enumerate(seconds)}
    return corpus(root, Arrays(waves, dict.fromkeys(waves, "test")))


def hiss(root: Path) -> Corpus:
    # One is shorter than a query with its context, so that it must be looped; one is on the other side.
    waves = {"long": noise(50, 4.0, 0.1), "short": noise(51, 1.1, 0.9), "other": noise(52, 2.0)}
    return corpus(root, Arrays(waves, {"long": "test", "short": "test"}))


def made(root: Path, tracks: Corpus, config: EvalConfig = CONFIG, rooms: Rooms | None = None) -> QuerySet:
    bank = prepare_rooms(Store(root), "toy", rooms or Rooms(), no_progress)
    return prepare_queries(Store(root), config, tracks, hiss(root), bank, no_progress)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def tracks(home: Path) -> Corpus:
    return music(home, 3.0, 2.5, 4.0, 1.6, 2.0, 1.2)


@pytest.fixture(scope="module")
def queries(home: Path, tracks: Corpus) -> QuerySet:
    return made(home, tracks)


@pytest.fixture(scope="module")
def bank(home: Path) -> RoomBank:
    return prepare_rooms(Store(home), "toy", Rooms(), no_progress)


def snr_db(mixture: np.ndarray, clean: np.ndarray) -> float:
    """Measure a ratio of mean powers in float64, by its definition."""
    rest = mixture.astype(np.float64) - clean.astype(np.float64)
    return float(10 * np.log10(np.mean(clean.astype(np.float64) ** 2) / np.mean(rest**2)))


# Mixing


@pytest.mark.parametrize(
    ("music_peak", "noise_peak", "wanted_db", "gain"),
    [(1, 2, 0, 0.5), (1, 2, 20, 0.05), (1, 2, -20, 5.0), (3, 1, 0, 3.0), (1, 1, 10, 10**-0.5)],
)
def test_gain_by_hand(music_peak: float, noise_peak: float, wanted_db: float, gain: float) -> None:
    signs = np.array([1, -1, 1, 1])
    assert noise_gain(music_peak * signs, noise_peak * signs[::-1], wanted_db) == pytest.approx(gain, rel=1e-12)


def test_gain_uses_the_mean_power_of_all_samples() -> None:
    click = np.array([0.0, 0.0, 0.0, 4.0])  # mean power 4
    assert noise_gain(np.ones(4), click, 0) == pytest.approx(0.5)


def test_gain_of_16_bit_audio_does_not_overflow() -> None:
    loud = np.full(4, 32_767, np.int16)
    assert noise_gain(loud, np.full(4, -32_768, np.int16), 0) == pytest.approx(32_767 / 32_768)


@pytest.mark.parametrize(("clean", "dirty", "named"), [(0.0, 1.0, "music"), (1.0, 0.0, "noise"), (0.0, 0.0, "noise")])
def test_ratio_to_silence_is_refused(clean: float, dirty: float, named: str) -> None:
    with pytest.raises(DataError, match=f"5 dB: the {named} is silent"):
        noise_gain(np.full(8, clean), np.full(8, dirty), 5)


def test_peak_is_one_and_silence_stays_silence() -> None:
    assert normalise_peak(np.array([0.1, -0.4])).tolist() == pytest.approx([0.25, -1.0])
    assert normalise_peak(np.zeros(3)).tolist() == [0, 0, 0]
    assert normalise_peak(np.zeros(0)).shape == (0,)


# Cells and names


def test_grid_is_that_of_the_tables() -> None:
    names = [cell.name for cell in list_cells(EvalConfig())]
    assert names == [
        "identity",
        "clean",
        *(f"noise/snr_{snr}" for snr in (0, 5, 10, 15, 20)),
        *(f"reverb/t60_{t60}" for t60 in (0.2, 0.4, 0.5, 0.7, 0.8)),
        *(f"noise_reverb/snr_{snr}/t60_0.5" for snr in (0, 5, 10, 15, 20)),
    ]


def test_grid_without_noise_has_no_cell_with_noise() -> None:
    cells = list_cells(EvalConfig(snr_db=(), t60_s=(0.4,)))
    assert [cell.name for cell in cells] == ["identity", "clean", "reverb/t60_0.4"]


def test_only_the_standard_definition_bears_the_plain_name() -> None:
    assert benchmark_name("fma", EvalConfig()) == "fma-segment/v1"
    assert benchmark_name("fma", EvalConfig(indexes=("exact",), top_k=5)) == "fma-segment/v1"  # the system's, not ours
    names = {
        benchmark_name("fma", changed)
        for changed in (
            EvalConfig(snr_db=(0.0,)),
            EvalConfig(t60_s=(0.4,)),
            EvalConfig(noise_reverb_t60_s=0.4),
            EvalConfig(lengths_s=(0.96,)),
            EvalConfig(max_queries=9),
            EvalConfig(rooms_per_t60=9),
            EvalConfig(hop_ms=50.0),
            EvalConfig(tolerance_ms=51.0),
        )
    }
    assert len(names) == 8
    assert all(name.startswith("fma-segment/v1+custom-") for name in names)


# Rooms


@pytest.mark.parametrize("peak_at", [0, 7, 39, 40, 41, 500])
@pytest.mark.parametrize("sign", [1, -1])
def test_direct_sound_is_moved_to_its_place(peak_at: int, sign: int) -> None:
    wave = np.linspace(0.01, 0.02, 600, dtype=np.float32)
    wave[peak_at] = sign * 0.5
    aligned = align_direct_sound(wave)
    assert int(np.argmax(np.abs(aligned))) == DIRECT_AT
    assert aligned[DIRECT_AT] == sign
    np.testing.assert_allclose(aligned[DIRECT_AT + 1 :], 2 * wave[peak_at + 1 :])
    before = min(peak_at, DIRECT_AT)
    np.testing.assert_allclose(aligned[DIRECT_AT - before : DIRECT_AT], 2 * wave[peak_at - before : peak_at])
    assert not aligned[: DIRECT_AT - before].any()


@pytest.mark.parametrize("samples", [0, 100])
def test_response_without_sound_is_refused(samples: int) -> None:
    with pytest.raises(DataError, match="silent"):
        align_direct_sound(np.zeros(samples, np.float32))


@pytest.mark.parametrize("samples", [0, 100])
def test_t60_of_a_response_without_sound_is_refused(samples: int) -> None:
    with pytest.raises(DataError):
        measure_t60(np.zeros(samples, np.float32))


def test_room_without_walls_changes_nothing() -> None:
    response = np.zeros(300, np.float32)
    response[DIRECT_AT] = 1
    wave = noise(0, 0.5)
    heard = reverberate(wave, response)
    assert heard.shape == (len(wave) - DIRECT_AT,)
    np.testing.assert_allclose(heard, wave[: len(heard)], atol=1e-12)


@pytest.mark.parametrize("delay", [0, 1, 40, 800, 5000])
def test_click_stays_where_it_was(delay: int) -> None:
    response = align_direct_sound(np.concatenate([np.zeros(delay), decay(0.3, 0.4, 5)]).astype(np.float32))
    wave = np.zeros(RATE_HZ)
    wave[7_777] = 1
    assert abs(int(np.argmax(np.abs(reverberate(wave, response)))) - 7_777) <= 1


def test_click_half_a_second_before_the_query_rings_into_it() -> None:
    context, query = RATE_HZ, RATE_HZ // 2
    response = align_direct_sound(decay(1.0, 1.0, 6).astype(np.float32))
    wave = np.zeros(context + query + DIRECT_AT)
    wave[context - RATE_HZ // 2] = 1
    tail = reverberate(wave, response)[context:]
    assert tail.shape == (query,)
    # Sample t of the query is t + half a second after the click.
    np.testing.assert_allclose(tail, response[DIRECT_AT + RATE_HZ // 2 :][:query], atol=1e-9)
    assert np.abs(tail).max() > 0.01


def test_reverberate_is_the_convolution_by_its_definition() -> None:
    wave, response = noise(1, 0.05), align_direct_sound(decay(0.1, 0.03, 1).astype(np.float32))
    wanted = [
        sum(response[r] * wave[t + DIRECT_AT - r] for r in range(len(response)) if 0 <= t + DIRECT_AT - r < len(wave))
        for t in range(len(wave) - DIRECT_AT)
    ]
    np.testing.assert_allclose(reverberate(wave, response), wanted, atol=1e-9)


@pytest.mark.parametrize("t60_s", [0.15, 0.2, 0.5, 0.8, 2.0])
def test_t60_of_an_ideal_decay(t60_s: float) -> None:
    measured_s, method = measure_t60(decay(t60_s, 1.2 * t60_s))
    assert method == "T30" and measured_s == pytest.approx(t60_s, rel=0.01)


@pytest.mark.parametrize("t60_s", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_t60_of_decaying_noise(t60_s: float, seed: int) -> None:
    wave = np.concatenate([np.zeros(1_000), decay(t60_s, t60_s, seed)])  # the silence before it does not count
    wave[1_000] = 0.9
    assert measure_t60(wave)[0] == pytest.approx(t60_s, rel=0.1)  # the spread of one random decay


def test_t60_at_another_rate() -> None:
    assert measure_t60(decay(0.5, 0.6), rate_hz=RATE_HZ // 2)[0] == pytest.approx(1.0, rel=0.01)


def test_decay_that_is_cut_off_after_40_db_is_measured_to_25_db() -> None:
    measured_s, method = measure_t60(decay(0.6, 0.4))
    assert method == "T20" and measured_s == pytest.approx(0.6, rel=0.1)


@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3])
def test_decay_of_less_than_35_db_is_refused(seconds: float) -> None:
    with pytest.raises(DataError, match="35 dB"):
        measure_t60(decay(0.6, seconds))


@pytest.mark.parametrize("samples", [1, 2, 100, 8_000])
def test_click_that_does_not_ring_has_no_t60(samples: int) -> None:
    with pytest.raises(DataError):
        measure_t60(np.eye(1, samples)[0])


@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0, 3.0])
def test_noise_that_does_not_decay_has_no_t60(seconds: float) -> None:
    with pytest.raises(DataError):
        measure_t60(np.random.default_rng(0).standard_normal(round(seconds * RATE_HZ)))


def test_floor_of_noise_does_not_lengthen_the_t60() -> None:
    floor = 10 ** (-50 / 20) * np.random.default_rng(1).standard_normal(RATE_HZ)
    wave = decay(0.4, 1.0, 2) + floor
    try:
        measured_s, _method = measure_t60(wave)
    except DataError:
        return  # to refuse it is as good
    assert measured_s == pytest.approx(0.4, rel=0.1)


def test_bank_keeps_what_can_be_used_and_measures_it(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class WithSilent(Rooms):
        def load(self, name: str) -> Response:
            if name.startswith("1"):
                return Response(name, align_direct_sound(np.zeros(100, np.float32)), "test")
            return super().load(name)

    bank = prepare_rooms(Store(tmp_path), "toy", WithSilent(), no_progress)
    assert bank.table["name"].tolist() == ["0/0.2", "2/0.4"]
    assert bank.numbers("test").tolist() == [0, 1] and bank.numbers("test", 0.4).tolist() == [1]
    assert bank.numbers("train").tolist() == [] and bank.numbers("test", 0.3).tolist() == []
    for number, name in enumerate(bank.table["name"]):
        np.testing.assert_array_equal(bank.response(number), Rooms().load(name).wave_T)
        assert bank.table["t60_s"][number] == measure_t60(bank.response(number))[0]


def test_bank_without_a_usable_response_is_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Silent(Rooms):
        def load(self, name: str) -> Response:
            return Response(name, align_direct_sound(np.zeros(100, np.float32)), "test")

    with pytest.raises(DataError, match=r"no usable impulse response in toy: .*silent"):
        prepare_rooms(Store(tmp_path), "toy", Silent(), no_progress)


# The query set: which queries


def test_every_track_that_is_long_enough_is_asked_for_once(queries: QuerySet) -> None:
    # 1.2 s is shorter than the longest query; 1.6 s is longer by the half hop that the grid needs.
    assert queries.table["track"].tolist() == [0, 1, 2, 3, 4]
    assert queries.table["query"].tolist() == [0, 1, 2, 3, 4]


def test_queries_lie_inside_their_tracks_and_identities_on_the_grid(queries: QuerySet, tracks: Corpus) -> None:
    hop = hop_samples(CONFIG)
    assert hop == 1600
    for row in queries.table.to_dict("records"):
        for start in (row["start_sample"], row["identity_sample"]):
            assert 0 <= start <= tracks.num_samples(row["track"]) - round(max(LENGTHS_S) * RATE_HZ)
        assert row["identity_sample"] % hop == 0
        assert abs(row["identity_sample"] - row["start_sample"]) <= hop // 2
    assert (queries.table["start_sample"] % hop > 0).any()


def test_truth_is_the_start_of_what_is_heard(queries: QuerySet, tracks: Corpus) -> None:
    for kind, column in (("identity", "identity_sample"), ("clean", "start_sample")):
        track, start = queries.truth(Cell(kind))  # type: ignore[arg-type]
        assert start.tolist() == queries.table[column].tolist()
        for q in range(len(track)):
            wanted = tracks.read(int(track[q]), int(start[q]), round(1.2 * RATE_HZ)).astype(np.float64)
            np.testing.assert_allclose(queries.wave(Cell(kind), q, 1.2), wanted / np.abs(wanted).max(), atol=1e-6)  # type: ignore[arg-type]


def test_query_set_is_the_same_each_time(tmp_path: Path, home: Path, queries: QuerySet) -> None:
    again = made(tmp_path, music(tmp_path, 3.0, 2.5, 4.0, 1.6, 2.0, 1.2))
    assert again.key == queries.key
    assert again.table.equals(queries.table)
    stems = sorted(path.name for path in queries.folder.glob("*.i16"))
    assert stems == sorted(path.name for path in again.folder.glob("*.i16"))
    for name in stems:
        assert (queries.folder / name).read_bytes() == (again.folder / name).read_bytes()


def test_v1_is_to_the_last_bit_what_it_was_before_v2(queries: QuerySet) -> None:
    # As of commit 77aa268. Stems with a room come from a Fourier transform, whose last bit depends on the machine.
    assert queries.key == "00f19d3a6723159f"
    stems = {name: hashlib.sha256((queries.folder / f"{name}.i16").read_bytes()).hexdigest()[:16]
             for name in ("identity", "music", "noise")}  # fmt: skip
    assert stems == {"identity": "ca028aa806936770", "music": "a26661e71afd60f5", "noise": "7864407811524ee2"}
    assert [*queries.table] == [
        "query", "track", "start_sample", "identity_sample", "noise", "noise_start_sample",
        "room_t60_0.2", "measured_t60_0.2", "room_t60_0.4", "measured_t60_0.4",
    ]  # fmt: skip


def test_query_set_is_made_once(home: Path, tracks: Corpus, queries: QuerySet, bank: RoomBank) -> None:
    def refuse(stage: str, done: int, total: int) -> None:
        raise AssertionError(f"{stage} is made again")

    shorter = replace(CONFIG, lengths_s=(1.5,), snr_db=(3.0,), indexes=("exact",))
    for config in (CONFIG, shorter):  # another level or length is mixed from the same stems
        again = prepare_queries(Store(home), config, tracks, hiss(home), bank, refuse)
        assert again.key == queries.key and again.table.equals(queries.table)


def test_all_too_short_is_refused_with_the_length(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none of the 2 test tracks is as long as the longest query \(1.5 s\)"):
        made(tmp_path, music(tmp_path, 1.2, 1.4))


def test_single_test_track_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2 test tracks"):  # no other truth to shuffle labels with
        made(tmp_path, music(tmp_path, 2.0))


def test_no_more_queries_than_asked_for(tmp_path: Path) -> None:
    some = music(tmp_path, *[2.0 + i / 10 for i in range(8)])
    few = made(tmp_path, some, replace(CONFIG, max_queries=3))
    assert len(few.table) == 3 and few.table["track"].is_monotonic_increasing and few.table["track"].is_unique


def test_training_tracks_and_training_noise_are_not_asked_for(tmp_path: Path) -> None:
    waves = {f"t{i}": noise(i, 2.0) for i in range(4)}
    mixed = corpus(tmp_path, Arrays(waves, {"t1": "test", "t2": "test", "t3": "val"}))
    asked = made(tmp_path, mixed)
    assert asked.table["track"].tolist() == [1, 2]
    heard = hiss(tmp_path)
    assert all(heard.tracks["split"].iloc[n] == "test" for n in asked.table["noise"])


def test_queries_do_not_start_in_silence(tmp_path: Path) -> None:
    waves = {}
    for i in range(6):
        waves[f"t{i}"] = np.concatenate([noise(i, 2.0), np.zeros(8 * RATE_HZ), noise(i + 10, 1.0)])
    asked = made(tmp_path, corpus(tmp_path, Arrays(waves, dict.fromkeys(waves, "test"))))
    for q in range(6):
        assert np.abs(asked.wave(Cell("clean"), q, 0.96)).max() == 1
        asked.parts(NOISE, q, 0.96)  # has music to set a level by


def test_track_that_sounds_only_where_no_query_fits_does_not_stop_the_others(tmp_path: Path) -> None:
    late = np.concatenate([np.zeros(5 * RATE_HZ), noise(3, 0.4)])  # queries start 1.5 s before the end or earlier
    waves = {"a": noise(1, 3.0), "late": late, "b": noise(2, 3.0)}
    asked = made(tmp_path, corpus(tmp_path, Arrays(waves, dict.fromkeys(waves, "test"))))
    for q in range(len(asked.table)):
        for cell in (NOISE, BOTH):
            asked.parts(cell, q, 0.96)


def test_noise_that_is_mostly_silent_is_heard_where_it_sounds(tmp_path: Path, bank: RoomBank) -> None:
    gaps = np.concatenate([noise(60, 0.5), np.zeros(9 * RATE_HZ), noise(61, 0.5)])
    still = np.zeros(2 * RATE_HZ)
    waves = {"gaps": gaps, "still": still}
    rare = corpus(tmp_path, Arrays(waves, dict.fromkeys(waves, "test")))
    some = music(tmp_path, *[2.0 + i / 10 for i in range(8)])
    asked = prepare_queries(Store(tmp_path), CONFIG, some, rare, bank, no_progress)
    for q in range(len(asked.table)):
        assert snr_db(*asked.parts(NOISE, q, 0.96)) == pytest.approx(0, abs=0.05)
        assert snr_db(*asked.parts(BOTH, q, 0.96)) == pytest.approx(0, abs=0.05)


def test_noise_of_the_training_side_alone_is_refused(tmp_path: Path, bank: RoomBank) -> None:
    only = corpus(tmp_path, Arrays({"n": noise(9, 2.0)}))
    with pytest.raises(DataError, match="no usable file on its test side"):
        prepare_queries(Store(tmp_path), CONFIG, music(tmp_path, 2.0), only, bank, no_progress)


def test_t60_without_a_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no room for t60 = 0.4 s"):
        made(tmp_path, music(tmp_path, 2.0), rooms=Rooms((0.2, 0.2)))


def test_set_without_noise_is_another_than_one_with_noise(tmp_path: Path) -> None:
    some = music(tmp_path, 2.0, 2.2)
    without = made(tmp_path, some, replace(CONFIG, snr_db=()))
    without.wave(REVERB, 0, 0.96)
    made(tmp_path, some).wave(NOISE, 0, 0.96)


# The query set: what is heard


@settings(max_examples=60)
@given(
    st.sampled_from(["noise", "noise_reverb"]),
    st.floats(-10, 30),
    st.integers(0, 4),
    st.sampled_from(LENGTHS_S),
)
def test_ratio_of_every_query_and_length_is_the_nominal_one(
    queries: QuerySet, kind: str, wanted_db: float, query: int, length_s: float
) -> None:
    cell = Cell(kind, wanted_db, 0.4 if kind == "noise_reverb" else None)  # type: ignore[arg-type]
    mixture, clean = queries.parts(cell, query, length_s)
    assert mixture.shape == clean.shape == (round(length_s * RATE_HZ),)
    assert snr_db(mixture, clean) == pytest.approx(wanted_db, abs=0.05)


@pytest.mark.parametrize("cell", [NOISE, BOTH])
def test_all_levels_of_a_query_have_the_same_noise(queries: QuerySet, cell: Cell) -> None:
    for q in range(5):
        loud, quiet = (
            np.subtract(*queries.parts(replace(cell, snr_db=level), q, 1.2)).astype(np.float64) for level in (0.0, 20.0)
        )
        np.testing.assert_allclose(loud, 10 * quiet, atol=1e-3 * np.abs(loud).max())


def test_longer_query_begins_as_the_shorter_one(queries: QuerySet) -> None:
    for cell in (Cell("identity"), Cell("clean"), REVERB, NOISE, BOTH):
        short, long = (queries.parts(cell, 1, length)[1] for length in (0.96, 1.5))
        np.testing.assert_array_equal(short, long[: len(short)])


def room_of(queries: QuerySet, bank: RoomBank, query: int, t60_s: float) -> np.ndarray:
    number = int(queries.table[f"room_t60_{t60_s:g}"][query])
    assert bank.table["wanted_t60_s"][number] == t60_s
    return bank.response(number).astype(np.float64)


def proportional(found: np.ndarray, wanted: np.ndarray) -> bool:
    """Say whether 16-bit audio is the wanted wave at some level, to a step and a half of its 2**16."""
    scale = float(found.astype(np.float64) @ wanted / (wanted @ wanted))
    return scale > 0 and float(np.abs(found - scale * wanted).max()) <= 1.5


@pytest.mark.parametrize("query", range(5))
@pytest.mark.parametrize("cell", [REVERB, BOTH])
def test_music_is_heard_in_the_room_with_the_tail_of_what_came_before(
    queries: QuerySet, tracks: Corpus, bank: RoomBank, cell: Cell, query: int
) -> None:
    assert cell.t60_s is not None
    track, start = (int(part[query]) for part in queries.truth(cell))
    whole = tracks.read(track, 0, tracks.num_samples(track)).astype(np.float64)
    wet = np.convolve(whole, room_of(queries, bank, query, cell.t60_s))  # the whole track from its beginning
    length = round(1.5 * RATE_HZ)
    _mixture, found = queries.parts(cell, query, 1.5)
    assert proportional(found, wet[start + DIRECT_AT : start + DIRECT_AT + length])


@pytest.mark.parametrize("query", range(5))
def test_noise_is_heard_in_the_same_room_as_the_music(
    home: Path, queries: QuerySet, bank: RoomBank, query: int
) -> None:
    heard = hiss(home)
    number, first = int(queries.table["noise"][query]), int(queries.table["noise_start_sample"][query])
    whole = heard.read(number, 0, heard.num_samples(number)).astype(np.float64)
    length = round(1.5 * RATE_HZ)
    places = np.arange(first - RATE_HZ, first + length + DIRECT_AT) % len(whole)
    dry = whole[places]
    mixture, clean = queries.parts(NOISE, query, 1.5)
    assert proportional((mixture - clean) / np.abs(mixture - clean).max() * 32_767, dry[RATE_HZ:][:length])
    wet = np.convolve(dry, room_of(queries, bank, query, 0.4))[RATE_HZ + DIRECT_AT :][:length]
    mixture, clean = queries.parts(BOTH, query, 1.5)
    assert proportional((mixture - clean) / np.abs(mixture - clean).max() * 32_767, wet)


def test_batches_hold_every_query_in_order_at_peak_one(queries: QuerySet) -> None:
    for cell in list_cells(CONFIG):
        batches = list(queries.batches(cell, 1.2, 2))
        assert [len(batch) for batch in batches] == [2, 2, 1]
        waves = np.concatenate(batches)
        assert waves.dtype == np.float32 and waves.shape == (5, round(1.2 * RATE_HZ))
        np.testing.assert_allclose(np.abs(waves).max(axis=1), 1, rtol=1e-6)
        for q, wave in enumerate(waves):
            np.testing.assert_array_equal(wave, queries.wave(cell, q, 1.2))


def test_achieved_conditions_are_logged(queries: QuerySet, bank: RoomBank) -> None:
    assert queries.conditions(Cell("clean"), 0.96) == {}
    for cell in list_cells(CONFIG):
        for length_s in LENGTHS_S:
            achieved = queries.conditions(cell, length_s)
            if cell.snr_db is not None:
                lowest, mean, highest = (achieved[f"snr_db_{name}"] for name in ("min", "mean", "max"))
                assert cell.snr_db - 0.05 <= lowest <= mean <= highest <= cell.snr_db + 0.05
            if cell.t60_s is not None:
                rooms = queries.table[f"room_t60_{cell.t60_s:g}"]
                assert achieved["t60_s_mean"] == pytest.approx(bank.table["t60_s"].iloc[rooms].mean())
                assert achieved["t60_s_max"] == bank.table["t60_s"].iloc[rooms].max()
