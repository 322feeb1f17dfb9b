"""Prepares the audio of a run: music, noise, room responses and the query set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench import registry
from bench.audio.pcm import Corpus, prepare_corpus
from bench.config import format_plugin_name
from bench.degrade.cells import measured_classes, noise_reverb_time, reverb_times
from bench.degrade.measured import NO_MEASURED_ROOMS, MeasuredRooms, keep_from_training, sort_by_t60, split_by_room
from bench.degrade.queries import QuerySet, prepare_queries
from bench.degrade.room import ResponseSource, RoomBank, prepare_rooms
from bench.errors import ConfigError, DataError
from bench.machine import cores
from bench.settings import RunConfig, TrainConfig
from bench.store import Store, digest
from bench.values import Ints, Progress, Source, Track

SOURCE_PARTS = ("tracks", "load", "digest")  # of a source of music or noise
VALIDATION_QUERIES = 500  # per cell, at least: +-4 points for one encoder, less for two encoders on the same queries
VAL_SHARE = 20  # one in 20 training tracks is held out if the data set has no validation side
VALIDATION_ROOMS = {"seed": 1, "train_rooms": 0}  # the test rooms have seed 0


@dataclass(frozen=True)
class TrainingSet:
    """All the audio that training may use."""

    music: Corpus
    noise: Corpus

    banks: Sequence[RoomBank]
    """Banks of room responses, of which training uses the split `train`; the first contains the test rooms."""

    measured: MeasuredRooms = NO_MEASURED_ROOMS
    """The measured rooms that are tested in; no response of theirs is in the split `train` of a bank."""

    @property
    def digest(self) -> str:
        """Return the content key of the training and validation sides; the test side does not change it."""
        music, noise = (corpus.tracks[["id", "sha256", "split"]] for corpus in (self.music, self.noise))
        tracks = (music[music["split"] != "test"], noise[noise["split"] == "train"])
        rooms = [
            [sha256(bank.response(i).tobytes()).hexdigest() for i in numbers]
            for bank in self.banks
            if len(numbers := bank.numbers("train"))  # which rooms are tested in changes nothing
        ]
        return digest([rows.to_numpy().tolist() for rows in tracks], rooms)

    @property
    def digests(self) -> dict[str, str]:
        """Return a digest of each part's content: a copy of the files has the same, unlike `RoomBank.digest`."""
        measured: list[object] = [_hash_content(bank) for bank in self.banks[1:]]
        measured += [self.measured.key] if self.measured.rows_of else []
        rooms = digest(self.banks[0].digest, measured)
        return {"music": self.music.digest, "noise": self.noise.digest, "rooms": rooms}


@dataclass(frozen=True)
class BenchmarkData:
    """The audio of a run and its query set."""

    music: Corpus
    noise: Corpus

    banks: tuple[RoomBank, ...]
    """Banks of room responses; the first contains the test rooms."""

    queries: QuerySet

    measured: MeasuredRooms = NO_MEASURED_ROOMS
    """The measured rooms that are tested in."""

    @property
    def digest(self) -> str:
        """Return the content key of all of it."""
        return digest(self.music.digest, self.noise.digest, [b.digest for b in self.banks], self.queries.key)

    def seconds(self, store: Store) -> dict[str, float]:
        """Return how many seconds each part took when it was prepared."""
        return {
            "decoding": sum(store.seconds("pcm", corpus.folder.name) for corpus in (self.music, self.noise)),
            "rooms": sum(store.seconds("rooms", bank.digest) for bank in self.banks),
            "query_set": store.seconds("queries", self.queries.key),
        }

    @property
    def training(self) -> TrainingSet:
        """Return the part that training may use."""
        return TrainingSet(self.music, self.noise, self.banks, self.measured)


def _hash_content(bank: RoomBank) -> tuple[list[str], str]:
    return bank.table["name"].tolist(), sha256(bank.samples.tobytes()).hexdigest()


def split_tracks(music: Corpus) -> tuple[Ints, Ints]:
    """Return the tracks to train on and those to validate on. Raises: DataError if there are too few."""
    train, val = music.numbers("train"), music.numbers("val")
    if len(train) < 2:
        raise DataError(f"training needs at least 2 usable tracks, got {len(train)}; `bench data verify` shows why")
    held_out = 0 if len(val) else max(1, len(train) // VAL_SHARE)
    return (train[:-held_out], train[-held_out:]) if held_out else (train, val)


def prepare_data(config: RunConfig, root: Path | None, store: Store, progress: Progress) -> BenchmarkData:
    """Return the prepared audio of a run, from the store or prepared now.

    Raises: ConfigError for a wrong name, DataError for unusable files.
    """
    return with_queries(config, prepare_training(config, root, store, progress), store, progress)


def with_queries(config: RunConfig, training_set: TrainingSet, store: Store, progress: Progress) -> BenchmarkData:
    """Return the audio of a run with queries from the test tracks. The first bank contains the test rooms."""
    music, noise, banks = training_set.music, training_set.noise, tuple(training_set.banks)
    measured = training_set.measured
    queries = prepare_queries(store, config.eval, music, noise, banks[0], progress, measured=measured)
    return BenchmarkData(music, noise, banks, queries, measured)


def with_validation(config: RunConfig, training_set: TrainingSet, store: Store, progress: Progress) -> BenchmarkData:
    """Return data to evaluate on while choosing settings: queries from the training tracks held out for validation.

    It uses no test track, test noise or test room: the noise is that of training, and the rooms have another seed.
    `config.eval` is what `bench.degrade.cells.validation_config` returns.
    """
    _train, held_out = split_tracks(training_set.music)
    music = _as_test_side(training_set.music, held_out)
    noise = _as_test_side(training_set.noise, training_set.noise.numbers("train"))
    rooms = prepare_rooms(store, "rooms", _build_test_rooms(config, VALIDATION_ROOMS), progress)
    per_track = -(-VALIDATION_QUERIES // len(held_out))
    queries = prepare_queries(store, config.eval, music, noise, rooms, progress, per_track)
    return BenchmarkData(music, noise, (rooms,), queries)


def _as_test_side(corpus: Corpus, numbers: Ints) -> Corpus:
    """Return the corpus with exactly these tracks as its test side."""
    is_test = np.isin(np.arange(len(corpus.tracks)), numbers)
    tracks = corpus.tracks.assign(split=np.where(is_test, "test", "train"))
    return replace(corpus, tracks=tracks, digest=digest("test side", numbers.tolist(), corpus.digest))


def prepare_training(config: RunConfig, root: Path | None, store: Store, progress: Progress) -> TrainingSet:
    """Return the audio that training may use, without drawing queries. Raises: as `prepare_data`."""
    # Measured rooms first, so that a missing folder or t60 is reported before anything else is decoded.
    trained_in = _build_training_measured(config, root)
    measured = _prepare_measured(config, root, store, progress)
    music, noise = (corpus for _name, _source, corpus in prepare_corpora(config, root, store, progress))
    simulated = _prepare_simulated(config, store, progress)
    own = [prepare_rooms(store, *trained_in, progress)] if trained_in else []
    return TrainingSet(music, noise, (*simulated, *(keep_from_training(bank, measured.bank) for bank in own)), measured)


def format_left_out(training_set: TrainingSet) -> list[str]:
    """Return one message for each corpus or room bank with unusable files."""
    messages = []
    for name, corpus in (("music", training_set.music), ("noise", training_set.noise)):
        counts = corpus.select_unusable()["status"].value_counts()
        if len(counts):
            reasons = ", ".join(f"{count} {status}" for status, count in counts.items())
            messages.append(
                f"{name}: {counts.sum()} of {len(corpus.manifest)} left out ({reasons}); see `bench data verify`"
            )
    for bank in (*training_set.banks, training_set.measured.bank):
        if len(bank.left_out):
            problem = bank.left_out.iloc[0]["problem"]
            total = len(bank.left_out) + len(bank.table)
            messages.append(
                f"impulse responses: {len(bank.left_out)} of {total} left out, the first: {problem}; "
                "see `bench data prepare`"
            )
    return list(dict.fromkeys(messages))  # one folder that trains and tests is named once


def music_source(config: RunConfig, root: Path | None) -> Source:
    """Return the source of a run's music. Raises: ConfigError if the data set holds no music."""
    return _build_source("music", config.data.dataset, config.music, root)


def prepare_corpora(
    config: RunConfig, root: Path | None, store: Store, progress: Progress
) -> Iterator[tuple[str, Source, Corpus]]:
    """Yield the music and the noise of a run: name, source and prepared corpus."""
    # Both sources first, so that a missing folder is reported before anything is decoded.
    sources = [(config.data.dataset, music_source(config, root)), noise_source(config, root)]
    for name, source in sources:
        yield name, source, _prepare_corpus(config, name, source, store, progress)


def noise_source(config: RunConfig, root: Path | None) -> tuple[str, Source]:
    """Return the name and the source of a run's noise, with "auto" resolved."""
    name, folder = config.data.noise, root
    if name == "auto":
        name = "noise-folder" if root is not None and (root / "noise").is_dir() else "noise-synth"
    elif Path(name).is_dir():
        name, folder = "noise-folder", Path(name)
    return name, _build_source("noise", name, None, folder)


def _build_source(kind: str, name: str, config: Any, root: Path | None) -> Source:
    """Return the source of a plug-in of music or noise, by default with its default settings.

    Raises: ConfigError if it is of another kind; PluginError if it cannot be built, or cannot list its tracks.
    """
    plugin, called = _plugin(kind, name), format_plugin_name(name)
    with registry.name_plugin("dataset", called, plugin, "cannot be built by build(config, root)"):
        source: Source = plugin.build(plugin.Config() if config is None else config, root)
        missing = [part for part in SOURCE_PARTS if not hasattr(source, part)]
        registry.require_rule(not missing, f"build returns what has {', '.join(SOURCE_PARTS)}", type(source).__name__)
    with registry.name_plugin("dataset", called, plugin, "cannot list its tracks by tracks()"):
        tracks = source.tracks()
        registry.require_rule(isinstance(tracks, Sequence), "tracks() returns a list", type(tracks).__name__)
        strange = next((track for track in tracks if not isinstance(track, Track)), None)
        registry.require_rule(strange is None, "tracks() lists values of bench.values.Track", repr(strange))
    with registry.name_plugin("dataset", called, plugin, "cannot tell its content by digest()"):
        content = source.digest()
        registry.require_rule(isinstance(content, str), "digest() returns a text", type(content).__name__)
    return source


def _build_training_measured(config: RunConfig, root: Path | None) -> tuple[str, ResponseSource] | None:
    """Return name and source of the measured responses of training, None if it uses simulated rooms only."""
    name = config.data.rir
    if name == "auto":
        name = "rir-folder" if root is not None and (root / "rir").is_dir() else "rooms"
    return _build_measured_rooms("data.rir", "" if name == "rooms" else name, root)


def _build_measured_rooms(
    setting: str, name: str, root: Path | None, version: str = "v1"
) -> tuple[str, ResponseSource] | None:
    """Return name and source of the measured responses that a setting names; None if it is empty.

    From `v2` on their direct sound is the first peak, where the plug-in has the setting `direct_sound`.
    """
    if not name:
        return None
    folder = root
    if Path(name).is_dir():
        name, folder = "rir-folder", Path(name)
    if name == "rooms":
        raise ConfigError(
            f"{setting} must name measured responses, got rooms, which are simulated; give a folder or air"
        )
    plugin, called = _plugin("rir", name), format_plugin_name(name)
    with registry.name_plugin("dataset", called, plugin, "cannot be built by build(config, root)"):
        finds_first = version != "v1" and "direct_sound" in {item.name for item in fields(plugin.Config)}
        settings = plugin.Config(direct_sound="first") if finds_first else plugin.Config()
        source: ResponseSource = plugin.build(settings, folder)
    with registry.name_plugin("dataset", called, plugin, "cannot list its responses by names() and digest()"):
        source.names()
        source.digest()
    return called, source


def _prepare_measured(config: RunConfig, root: Path | None, store: Store, progress: Progress) -> MeasuredRooms:
    """Return the measured rooms that `eval.measured_rooms` names to be tested in."""
    source = _build_measured_rooms("eval.measured_rooms", config.eval.measured_rooms, root, config.eval.version)
    if source is None:
        return NO_MEASURED_ROOMS
    bank = split_by_room(prepare_rooms(store, *source, progress))
    return MeasuredRooms(bank, sort_by_t60(bank, measured_classes(config.eval)))


def _prepare_simulated(config: RunConfig, store: Store, progress: Progress) -> list[RoomBank]:
    """Return the banks of simulated rooms: that of the test rooms, which in `v1` holds the usual training rooms, first.

    Training rooms of another t60, and all beside the test rooms of `v2`, are a bank of their own, as queries have the
    key of the first.
    """
    rooms = prepare_rooms(store, "rooms", _build_test_rooms(config), progress)
    if config.train.t60_s == TrainConfig().t60_s and config.eval.version == "v1":
        return [rooms]
    plugin = _plugin("rir", "rooms")
    own: ResponseSource = plugin.build(plugin.Config((), train_t60_s=config.train.t60_s), None)
    only_tests = rooms.table["split"].where(rooms.table["split"] == "test", "none")
    return [replace(rooms, table=rooms.table.assign(split=only_tests)), prepare_rooms(store, "rooms", own, progress)]


def _build_test_rooms(config: RunConfig, changes: Mapping[str, int] | None = None) -> ResponseSource:
    """Return simulated rooms at every t60 of the grid; `changes` are other settings than the defaults."""
    plugin, tests = _plugin("rir", "rooms"), config.eval
    t60_s = tuple(sorted({*reverb_times(tests), noise_reverb_time(tests)}))
    more: dict[str, Any] = dict(changes or {})
    if tests.version == "v2":
        more |= {"train_rooms": 0, "direct_to_reverberant_db": tests.v2.direct_to_reverberant_db}
    source: ResponseSource = plugin.build(plugin.Config(t60_s, tests.rooms_per_t60, **more), None)
    return source


def _prepare_corpus(config: RunConfig, name: str, source: Source, store: Store, progress: Progress) -> Corpus:
    return prepare_corpus(store, name, source, min_track_s=config.data.min_track_s, workers=cores(), progress=progress)


def _plugin(kind: str, name: str) -> ModuleType:
    plugin = registry.load("dataset", name)
    if kind != plugin.KIND:
        raise ConfigError(f"data set {name!r} holds {plugin.KIND}, not {kind}; `bench list` shows the kind of each")
    return plugin
