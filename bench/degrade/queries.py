"""The query set: the same degraded audio for every encoder, prepared once and stored.

The store holds stems: each query's music and noise as 16-bit audio, dry and reverberated in each room.
A cell's query is music + gain x noise, with the gain set so that the SNR over the whole query, at its
length, is the nominal one. One set of stems thus serves every SNR and length, all SNRs of a query share
one noise (the curve is paired), and the mixture is a function of what is stored. In `v2` each distortion is one more
stem of the music.

Shape legend: Q queries, T samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.audio.crop import read_looped, read_padded
from bench.audio.pcm import Corpus
from bench.degrade import distort
from bench.degrade.cells import LOUDSPEAKER, list_distortions, noise_levels, noise_reverb_time, reverb_times
from bench.degrade.measured import NO_MEASURED_ROOMS, MeasuredRooms
from bench.degrade.mix import noise_gain, normalise_peak
from bench.degrade.room import DIRECT_AT, RoomBank, measure_direct_ratio, reverberate
from bench.errors import DataError, StoreError
from bench.settings import EvalConfig
from bench.store import Store, digest, read_frame, write_frame
from bench.values import INT16_PEAK, INT16_SCALE, RATE_HZ, Cell, CellKind, Floats, Ints, Progress

FORMAT = 1
CONTEXT_S = 1.0  # audio before the query, so that a room is already reverberating where it starts
SEED = 20_220_912  # of the benchmark, not of the run: the queries never change
# A query's start is redrawn if the mean power of its first GATE_SAMPLES is below this, -40 dB re its track's peak.
QUERY_GATE_POWER = 1e-4
GATE_SAMPLES = round(0.96 * RATE_HZ)  # of a query's beginning that must be audible
MEASURED_STREAM = 1  # seeds a separate generator, so that all else is drawn alike with and without measured rooms
V2_STREAM = 2  # seeds the draws of v2, whose queries are others than those of v1
MAX_DRAWS = 100  # of a start, until one passes the gate
STEM_PEAK = 0.99 * INT16_PEAK
MEASURED: CellKind = "measured_reverb"
GRID_DISTANCE = "grid_distance_samples"


@dataclass(frozen=True)
class QuerySet:
    """The stems on disk, and a table of what each query is made of.

    `table` has query, track, start_sample, identity_sample (the nearest start on the database's grid), noise,
    noise_start_sample, and for each t60 the row of its room in the bank and that room's measured t60. The names of
    these columns begin with `room_` and `measured_`, and end as `_name_room` says.
    In `v2` it also has grid_distance_samples (start_sample - identity_sample), the direct-to-reverberant ratio of each
    room, in columns that begin with `drr_db_`, and what was measured on each distorted query, in columns such as
    `achieved/mp3_16/kbit_per_s`.
    """

    folder: Path
    table: pd.DataFrame
    stem_samples: int
    key: str

    def wave(self, cell: Cell, query: int, length_s: float) -> Floats:
        """Return one degraded query, shape (T,), peak 1."""
        mixture, _noise = self.parts(cell, query, length_s)
        return normalise_peak(mixture)

    def parts(self, cell: Cell, query: int, length_s: float) -> tuple[Floats, Floats]:
        """Return the mixture and the music in it, both (T,), before the peak is normalised."""
        num_samples = round(length_s * RATE_HZ)
        music_T = self._stem(_music_stem(cell))[query, :num_samples].astype(np.float32)
        if cell.snr_db is None:
            return music_T, music_T
        noise_T = self._stem(_noise_stem(cell))[query, :num_samples].astype(np.float32)
        gain = noise_gain(music_T, noise_T, cell.snr_db)
        return music_T + np.float32(gain) * noise_T, music_T

    def batches(self, cell: Cell, length_s: float, batch: int) -> WaveBatches:
        """Return all queries of a cell in order, as arrays (up to batch, T), mixed each time they are read."""
        return WaveBatches(self, cell, length_s, batch, range(len(self.table)))

    def truth(self, cell: Cell) -> tuple[Ints, Ints]:
        """Return the track number and the start sample of each query, both (Q,)."""
        start = "identity_sample" if cell.kind == "identity" else "start_sample"
        return self.table["track"].to_numpy(np.int64), self.table[start].to_numpy(np.int64)

    def conditions(self, cell: Cell, length_s: float) -> dict[str, float]:
        """Return the achieved conditions of a cell: SNR measured on the mixtures, t60 of the rooms.

        In `v2` also the rooms' direct-to-reverberant ratio, what the cell's distortion measured on the longest queries,
        and the distance of a query's start to the nearest vector of the database, which is signed.
        """
        achieved: dict[str, float] = {}
        if cell.snr_db is not None:
            measured = np.array([_snr_db(*self.parts(cell, q, length_s)) for q in range(len(self.table))])
            achieved |= {"snr_db_min": measured.min(), "snr_db_mean": measured.mean(), "snr_db_max": measured.max()}
        if cell.t60_s is not None:
            t60_s = self.table[f"measured_{_name_room(cell.t60_s, cell.kind == MEASURED)}"]
            achieved |= {"t60_s_min": t60_s.min(), "t60_s_mean": t60_s.mean(), "t60_s_max": t60_s.max()}
        for name, value_Q in self._further_conditions(cell).items():
            achieved |= {f"{name}_min": value_Q.min(), f"{name}_mean": value_Q.mean(), f"{name}_max": value_Q.max()}
        return {name: float(value) for name, value in achieved.items()}

    def _further_conditions(self, cell: Cell) -> dict[str, pd.Series]:
        """Return what v2 measures on each query of a cell, by name with unit."""
        found: dict[str, pd.Series] = {}
        if cell.t60_s is not None:
            name = f"drr_db_{_name_room(cell.t60_s, cell.kind == MEASURED)}"
            found |= {"drr_db": self.table[name]} if name in self.table else {}
        prefix = f"achieved/{cell.distortion}/"
        names = [str(name) for name in self.table if str(name).startswith(prefix)]
        found |= {name.removeprefix(prefix): self.table[name] for name in names}
        if GRID_DISTANCE in self.table and cell.kind != "identity":
            found["grid_distance_ms"] = self.table[GRID_DISTANCE] * 1000 / RATE_HZ
        return found

    def _stem(self, name: str) -> npt.NDArray[np.int16]:
        shape = (len(self.table), self.stem_samples)
        path = self.folder / f"{name}.i16"
        if not path.is_file() or path.stat().st_size != 2 * shape[0] * shape[1]:
            raise StoreError(f"{path} is missing or cut off; delete the folder {self.folder} and run again")
        return np.memmap(path, dtype="<i2", mode="r", shape=shape)


@dataclass(frozen=True)
class WaveBatches:
    """Degraded queries of one cell and length, which can be read several times and are never all in memory."""

    queries: QuerySet
    cell: Cell
    length_s: float
    batch: int
    rows: Sequence[int]

    def __iter__(self) -> Iterator[Floats]:
        """Yield arrays (up to batch, T)."""
        for start in range(0, len(self.rows), self.batch):
            some = self.rows[start : start + self.batch]
            yield np.stack([self.queries.wave(self.cell, query, self.length_s) for query in some])


def prepare_queries(
    store: Store,
    config: EvalConfig,
    music: Corpus,
    noise: Corpus,
    rooms: RoomBank,
    progress: Progress,
    per_track: int = 1,
    measured: MeasuredRooms = NO_MEASURED_ROOMS,
) -> QuerySet:
    """Return the query set of a benchmark over these corpora, from the store or prepared now.

    It has `per_track` queries of each test track that is long enough, of up to `eval.max_queries` tracks drawn
    with the benchmark's seed.
    Raises: DataError if no test track is long enough, or a cell has no noise or room.
    """
    hop = hop_samples(config)
    t60_s = (sorted(_t60s(config)), noise_reverb_time(config) if noise_levels(config) else None)
    recipe = (FORMAT, SEED, CONTEXT_S, QUERY_GATE_POWER, hop, config.max_queries, max(config.lengths_s), t60_s)
    # What is not used adds nothing, so that earlier keys stay valid.
    extra: tuple[object, ...] = (
        *(() if per_track == 1 else (per_track,)),
        *((measured.key,) if measured.rows_of else ()),
    )
    if config.version != "v1":
        extra += (config.version, list(list_distortions(config)), config.v2.fastest, distort.list_versions())
    key = digest(recipe, music.digest, noise.digest, rooms.digest, *extra)
    stem_samples = round(max(config.lengths_s) * RATE_HZ)

    def build(folder: Path) -> None:
        table = _draw_queries(config, music, noise, rooms, stem_samples, hop, per_track)
        _draw_measured_rooms(table, measured)
        if config.version != "v1":
            table = _add_direct_ratios(table, rooms, measured)
        achieved = _write_stems(folder, table, config, music, noise, rooms, measured, stem_samples, progress)
        write_frame(folder / "queries.parquet", pd.concat([table, pd.DataFrame(achieved, index=table.index)], axis=1))

    folder = store.fetch("queries", key, build)
    return QuerySet(folder, read_frame(folder / "queries.parquet"), stem_samples, key)


def hop_samples(config: EvalConfig) -> int:
    """Return the database's hop in samples."""
    return round(config.hop_ms * RATE_HZ / 1000)


def _t60s(config: EvalConfig) -> set[float]:
    times_s = set(reverb_times(config))
    return {*times_s, noise_reverb_time(config)} if noise_levels(config) else times_s


def _name_room(t60_s: float, is_measured: bool) -> str:
    """Return the part that the room of a t60 has in names of columns and stems."""
    return f"{'real_' if is_measured else ''}t60_{t60_s:g}"


def _music_stem(cell: Cell) -> str:
    if cell.kind == "identity":
        return "identity"
    if cell.distortion:
        return f"music_{cell.distortion}"
    return "music" if cell.t60_s is None else f"music_{_name_room(cell.t60_s, cell.kind == MEASURED)}"


def _noise_stem(cell: Cell) -> str:
    if cell.distortion:
        return f"noise_{cell.distortion}"
    return "noise" if cell.t60_s is None else f"noise_t60_{cell.t60_s:g}"


def _snr_db(mixture: Floats, music: Floats) -> float:
    noise_power = np.mean(np.square(mixture.astype(np.float64) - music))
    return float(10 * np.log10(np.mean(np.square(music, dtype=np.float64)) / noise_power))


def _draw_queries(
    config: EvalConfig, music: Corpus, noise: Corpus, rooms: RoomBank, stem_samples: int, hop: int, per_track: int
) -> pd.DataFrame:
    """Return the table of queries: where each starts, its noise, its room for every t60."""
    is_v1 = config.version == "v1"
    draw = np.random.default_rng(SEED if is_v1 else [SEED, V2_STREAM])
    noises = noise.numbers("test")
    if noise_levels(config) and not len(noises):
        raise DataError("the noise set has no usable file on its test side; put some below noise/test/<category>/")
    tracks = music.numbers("test")
    # Half a hop more than the query, so that the nearest grid point after its start also fits the track.
    needed = (stem_samples if is_v1 else int(np.ceil(stem_samples * config.v2.fastest))) + hop // 2
    long_enough = np.array([t for t in tracks if music.num_samples(t) >= needed])
    if not len(long_enough):
        faster = "" if is_v1 or config.v2.fastest == 1 else f", {config.v2.fastest:g} times as fast"
        raise DataError(
            f"none of the {len(tracks)} test tracks is as long as the longest query "
            f"({max(config.lengths_s):g} s{faster}); give longer tracks or set eval.lengths_s to shorter ones"
        )
    if len(long_enough) > config.max_queries:
        long_enough = np.sort(draw.choice(long_enough, config.max_queries, replace=False))
    asked = np.repeat(long_enough, per_track)
    offset_Q = None if is_v1 else draw_offsets(len(asked), hop, draw)
    rows = []
    for i, track in enumerate(asked):
        last_start = music.num_samples(track) - needed
        if offset_Q is None:
            start = draw_audible_start(music, int(track), last_start, draw)
        else:
            start = draw_audible_start(music, int(track), last_start, draw, int(offset_Q[i]), hop)
        if start is None:
            continue
        row: dict[str, float | int] = {"track": int(track), "start_sample": start}
        row["identity_sample"] = round(start / hop) * hop
        if not is_v1:
            row[GRID_DISTANCE] = start - row["identity_sample"]
        if len(noises):
            row["noise"] = int(draw.choice(noises))
            row["noise_start_sample"] = draw_noise_start(noise, int(row["noise"]), draw)
        for t60_s in sorted(_t60s(config)):
            room = int(draw.choice(_rooms_of(rooms, t60_s)))
            row[f"room_t60_{t60_s:g}"] = room
            row[f"measured_t60_{t60_s:g}"] = float(rooms.table["t60_s"].iloc[room])
        rows.append(row)
    if len(rows) < 2:
        raise DataError(f"a benchmark needs at least 2 test tracks with an audible query, got {len(rows)}")
    return pd.DataFrame(rows).rename_axis("query").reset_index()


def draw_offsets(num_queries: int, hop: int, draw: np.random.Generator) -> Ints:
    """Return the distance of each query's start from the grid point before it, in samples, shape (Q,).

    They are stratified: each of Q equal parts of the hop has one, so that no set of queries is closer to the grid than
    another.
    """
    share_Q = (draw.permutation(num_queries) + draw.random(num_queries)) / num_queries
    return (share_Q * hop).astype(np.int64)


def _draw_measured_rooms(table: pd.DataFrame, measured: MeasuredRooms) -> None:
    """Add a measured room for each query and t60 to the table, and its measured t60."""
    draw = np.random.default_rng([SEED, MEASURED_STREAM])
    for t60_s, rows in measured.rows_of.items():
        name, room_Q = _name_room(t60_s, True), draw.choice(rows, len(table))
        table[f"room_{name}"] = room_Q
        table[f"measured_{name}"] = measured.bank.table["t60_s"].to_numpy(np.float64)[room_Q]


def _add_direct_ratios(table: pd.DataFrame, rooms: RoomBank, measured: MeasuredRooms) -> pd.DataFrame:
    """Return the table with the direct-to-reverberant ratio of each query's room at every t60, in dB."""
    ratios = {
        f"drr_db_{str(column).removeprefix('room_')}": [
            measure_direct_ratio((measured.bank if "_real_" in str(column) else rooms).response(int(room)))
            for room in table[column]
        ]
        for column in table
        if str(column).startswith("room_")
    }
    return table.assign(**ratios)


def _rooms_of(rooms: RoomBank, t60_s: float) -> Ints:
    numbers = rooms.numbers("test", t60_s)
    if not len(numbers):
        raise DataError(f"no room for t60 = {t60_s:g} s on the test side of the bank")
    return numbers


def draw_audible_start(
    music: Corpus, track: int, last_start: int, draw: np.random.Generator, offset: int = 0, hop: int = 1
) -> int | None:
    """Return a random start whose first GATE_SAMPLES are above QUERY_GATE_POWER, None if no draw finds one.

    It is `offset` samples after a multiple of `hop`, where the track has room for that.
    """
    threshold = QUERY_GATE_POWER * _peak(music, track) ** 2
    offset = offset % (last_start + 1)
    for _ in range(MAX_DRAWS):
        start = offset + hop * int(draw.integers((last_start - offset) // hop + 1))
        wave_T = music.read(track, start, min(GATE_SAMPLES, music.num_samples(track) - start)).astype(np.float64)
        power = float(np.mean(np.square(wave_T)))
        if power > threshold:
            return start
    return None


def _peak(music: Corpus, track: int) -> float:
    return float(np.abs(music.read(track, 0, music.num_samples(track)).astype(np.int32)).max())


def draw_noise_start(noise: Corpus, track: int, draw: np.random.Generator) -> int:
    """Return a random start in a looped noise whose first GATE_SAMPLES are not all zeros. Raises: DataError."""
    for _ in range(MAX_DRAWS):
        start = int(draw.integers(noise.num_samples(track)))
        if np.any(read_looped(noise, track, start, GATE_SAMPLES)):
            return start
    raise DataError(f"noise {noise.tracks['id'].iloc[track]} is silent nearly everywhere; take it out of the noise set")


def _write_stems(
    folder: Path, table: pd.DataFrame, config: EvalConfig, music: Corpus, noise: Corpus, rooms: RoomBank,
    measured: MeasuredRooms, stem_samples: int, progress: Progress,
) -> list[dict[str, float]]:  # fmt: skip
    """Write the stems of all queries, and return what was measured on the distorted ones, one dict for each query."""
    names = _stem_names(config, measured)
    files = {name: (folder / f"{name}.i16").open("wb") for name in names}
    achieved = []
    try:
        for i, record in enumerate(table.to_dict("records")):
            progress("query set", i, len(table))
            row = {str(name): value for name, value in record.items()}
            stems = _stems_of(row, config, music, noise, rooms, measured, stem_samples)
            distorted, achieved_of_query = _distort_stems(row, config, music, noise, rooms, stem_samples)
            achieved.append(achieved_of_query)
            stems |= distorted
            for name in names:
                files[name].write(stems[name].tobytes())
    finally:
        for file in files.values():
            file.close()
    progress("query set", len(table), len(table))
    return achieved


def _stem_names(config: EvalConfig, measured: MeasuredRooms) -> Sequence[str]:
    names = ["identity", "music", *(f"music_{_name_room(t60_s, False)}" for t60_s in sorted(_t60s(config)))]
    names += [f"music_{_name_room(t60_s, True)}" for t60_s in measured.rows_of]
    distortions = list_distortions(config)
    names += [f"music_{name}" for name in distortions]
    names += [f"noise_{LOUDSPEAKER}"] if LOUDSPEAKER in distortions else []
    return [*names, "noise", f"noise_t60_{noise_reverb_time(config):g}"] if noise_levels(config) else names


def _stems_of(
    row: dict[str, int], config: EvalConfig, music: Corpus, noise: Corpus, rooms: RoomBank, measured: MeasuredRooms,
    stem_samples: int,
) -> dict[str, npt.NDArray[np.int16]]:  # fmt: skip
    context = round(CONTEXT_S * RATE_HZ)
    start = row["start_sample"]
    music_T = read_padded(music, row["track"], start - context, start + stem_samples + DIRECT_AT)
    stems = {
        "identity": music.read(row["track"], row["identity_sample"], stem_samples),
        "music": music_T[context : context + stem_samples],
    }
    heard_in = [(rooms, _name_room(t60_s, False)) for t60_s in _t60s(config)]
    heard_in += [(measured.bank, _name_room(t60_s, True)) for t60_s in measured.rows_of]
    for bank, name in heard_in:
        stems[f"music_{name}"] = _as_int16(reverberate(music_T, bank.response(row[f"room_{name}"]))[context:])
    if noise_levels(config):
        noise_T = _read_noise(noise, row, context + stem_samples + DIRECT_AT)
        t60_s = noise_reverb_time(config)
        stems["noise"] = noise_T[context : context + stem_samples]
        stems[f"noise_t60_{t60_s:g}"] = _as_int16(
            reverberate(noise_T, rooms.response(row[f"room_t60_{t60_s:g}"]))[context:]
        )
    return stems


def _distort_stems(
    row: dict[str, int], config: EvalConfig, music: Corpus, noise: Corpus, rooms: RoomBank, stem_samples: int
) -> tuple[dict[str, npt.NDArray[np.int16]], dict[str, float]]:
    """Return the distorted stems of a query, and what was measured on them."""
    context, start = round(CONTEXT_S * RATE_HZ), row["start_sample"]
    stems: dict[str, npt.NDArray[np.int16]] = {}
    achieved: dict[str, float] = {}
    for name in list_distortions(config):
        before, after = distort.count_samples(name, context, stem_samples)
        excerpt_T = read_padded(music, row["track"], start - before, start + after).astype(np.float64) * INT16_SCALE
        if name == LOUDSPEAKER:
            response_T = rooms.response(row[f"room_t60_{noise_reverb_time(config):g}"])
            noise_T = _read_noise(noise, row, before + after).astype(np.float64)
            for part, sound_T in (("music", distort.play_by_loudspeaker(excerpt_T)), ("noise", noise_T)):
                recorded_T = distort.record_in_room(sound_T, response_T)
                stems[f"{part}_{name}"] = _as_int16(recorded_T[context : context + stem_samples])
            continue
        distorted = distort.distort(name, excerpt_T, context, stem_samples)
        stems[f"music_{name}"] = _as_int16(distorted.wave_T)
        achieved |= {f"achieved/{name}/{quantity}": value for quantity, value in distorted.achieved.items()}
    return stems, achieved


def _read_noise(noise: Corpus, row: dict[str, int], num_samples: int) -> npt.NDArray[np.int16]:
    """Return a query's noise from the beginning of its context on."""
    first = (row["noise_start_sample"] - round(CONTEXT_S * RATE_HZ)) % noise.num_samples(row["noise"])
    return read_looped(noise, row["noise"], first, num_samples)


def _as_int16(wave_T: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    """Return the wave as 16-bit audio with its peak at STEM_PEAK: nothing clips, and only ratios matter later."""
    peak = float(np.max(np.abs(wave_T)))
    scale = STEM_PEAK / peak if peak > 0 else 0.0
    return np.round(wave_T * scale).astype("<i2")
