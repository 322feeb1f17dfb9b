"""Every registered plug-in keeps its contract, and the checks notice one that does not."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as functional
from scipy.io import savemat

from bench.align.contract import Pair, PairEmbedder, TimeMap
from bench.align.pairs import Keypoints, Recipe, write_split
from bench.config import resolve
from bench.degrade.room import Response, align_direct_sound
from bench.errors import StoreError
from bench.registry import load, names
from bench.store import Store
from bench.testing import (
    Arrays,
    check_aligner,
    check_encoder,
    check_index,
    check_pairs,
    check_responses,
    check_source,
)
from bench.values import RATE_HZ, Progress, Track

# What is made, made small.
SMALL: dict[str, dict[str, Any]] = {
    "aru-sim": {"duration_s": 10.0, "train_files": 1, "test_files": 1, "num_silences": (0, 0)},
    "multi-recorder": {"clocks": 1},
    "deeplearning": {"epochs": 2, "hidden": 8},
}
FMA_COLUMNS = [("album", "id"), ("artist", "id"), ("set", "split"), ("set", "subset"), ("track", "license")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which every data set finds something: official layouts, noise, responses and recorders."""
    home = tmp_path_factory.mktemp("root")
    draw = np.random.default_rng(0)
    (home / "fma_metadata").mkdir()
    with (home / "fma_metadata" / "tracks.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["", *(c[0] for c in FMA_COLUMNS)], ["", *(c[1] for c in FMA_COLUMNS)]])
        csv.writer(file).writerow(["track_id", *[""] * len(FMA_COLUMNS)])
        csv.writer(file).writerows([(2, 1, 1, "training", "large", "CC0"), (3, 2, 2, "test", "medium", "CC0")])
    places = ["fma_large/000/000002.mp3", "fma_large/000/000003.mp3"]
    places += [f"noise/{side}/rain/{number}.wav" for side in ("train", "test") for number in range(2)]
    for place in places:
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(home / place, draw.uniform(-0.5, 0.5, 2 * RATE_HZ), RATE_HZ)
    (home / "rir").mkdir()
    for number in range(2):
        decay = draw.standard_normal(8_000) * 10 ** (-3 * np.arange(8_000) / RATE_HZ / 0.3)
        soundfile.write(home / "rir" / f"{number}.wav", 0.2 * decay, RATE_HZ, subtype="FLOAT")
        (home / "AIR_1_4").mkdir(exist_ok=True)
        response = {"h_air": decay, "air_info": {"fs": RATE_HZ}}
        savemat(home / "AIR_1_4" / f"air_binaural_office_{number}_0_1.mat", response)
    clips_and_recorders(home, draw)
    return home


def clips_and_recorders(home: Path, draw: np.random.Generator) -> None:
    """Put FSD50K's layout, soundscapes, a set of the challenge and recordings by several recorders into a folder."""
    (home / "FSD50K.ground_truth").mkdir()
    (home / "FSD50K.ground_truth" / "dev.csv").write_text(
        "fname,labels,mids,split\n1,Rain,/m/0,train\n2,Dog,/m/1,val\n"
    )
    recorders = home / "field" / "multi_recorder"
    places = {f"FSD50K.dev_audio/{clip}.wav": 2.0 for clip in (1, 2)}
    places |= {f"field/{side}/{side}.wav": 8.0 for side in ("train", "test")}
    places |= {f"{recorders}/locar_2020/Ex-{i}_0_1_20200617_090000.mp3": 7.0 for i in (1, 2)}
    places |= {f"{recorders}/aru_shifted_copies/aru_{i}.wav": 3.0 for i in range(1, 6)}
    for place, seconds in places.items():
        (home / place).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(home / place, draw.uniform(-0.5, 0.5, round(seconds * RATE_HZ)), RATE_HZ)
    stations = "Station,Easting,Northing\nEx-1,0,0\nEx-2,40,0\n"
    (recorders / "locar_2020" / "Vignette_Coordinates.csv").write_text(stations)
    for split in ("train", "val"):
        waves = draw.uniform(-0.5, 0.5, (2, 3 * RATE_HZ)).astype(np.float32)
        recipe = Recipe("a.wav", Keypoints(np.arange(3.0), np.arange(3.0) + 0.25), lambda waves=waves: tuple(waves))
        write_split(home / "biodcase", "aru", split, [recipe], lambda *_: None)


@pytest.mark.parametrize("name", names("encoder"))
def test_encoder_keeps_its_contract(name: str) -> None:
    plugin = load("encoder", name)
    check_encoder(plugin, resolve(name, plugin, "tiny").model)


@pytest.mark.parametrize("name", names("index"))
def test_index_keeps_its_contract(name: str) -> None:
    if name in ("falconn", "faiss"):
        pytest.importorskip(name, reason=f"{name} is installed by `make setup`")
    plugin = load("index", name)
    # The default of faiss has 64 codes for each vector; the contract's vectors have 8 and 32 dimensions.
    check_index(plugin, plugin.Config(sub_quantisers=8) if name == "faiss" else plugin.Config())


@pytest.mark.parametrize("name", names("dataset"))
def test_data_set_keeps_its_contract(name: str, root: Path) -> None:
    plugin = load("dataset", name)
    source = plugin.build(plugin.Config(**SMALL.get(name, {})), root)
    {"rir": check_responses, "pairs": check_pairs}.get(plugin.KIND, check_source)(source)


@pytest.mark.parametrize("name", names("aligner"))
def test_aligner_keeps_its_contract(name: str) -> None:
    plugin = load("aligner", name)
    check_aligner(plugin, plugin.Config(**SMALL.get(name, {})))


def test_source_of_arrays_keeps_the_contract_of_sources() -> None:
    draw = np.random.default_rng(0)
    check_source(Arrays({"a": draw.uniform(-1, 1, 20_000), "b": draw.uniform(-1, 1, 20_000)}, {"b": "test"}))


# What follows breaks one rule at a time: a check that nothing can fail says nothing.


@dataclass(frozen=True)
class Config:
    fault: str = ""


class Toy(torch.nn.Module):
    """A linear encoder of eight dimensions on the mean power of 8 x 8 stretches, with a fault to choose."""

    rate_hz, segment_s, dim = 8_000, 0.5, 8

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = torch.nn.Linear(64, 8)
        self.idle = torch.nn.Linear(2, 2) if fault == "idle weight" else None
        if fault == "objective of vectors":
            self.objective = lambda feature, vector, contrastive: vector
        self.secret = torch.randn(8) if fault == "not in the checkpoint" else torch.zeros(8)

    def features(self, wave_BT: torch.Tensor) -> torch.Tensor:
        power = wave_BT[:, : 64 * 62].reshape(len(wave_BT), 1, 8, 8, 62).square().mean(-1)
        if self.fault == "batch":
            return power / power.max().clamp_min(1e-20)
        if self.fault == "silence":
            return power / power.amax(dim=(1, 2, 3), keepdim=True)
        level = torch.log10(power.clamp_min(1e-12))
        return level.squeeze(1) if self.fault == "three axes" else level

    def window_features(self, wave_BT: torch.Tensor, hop_samples: int) -> torch.Tensor:
        segment_BMT = wave_BT.unfold(1, 4_000, hop_samples)
        if self.fault == "windows shifted":
            segment_BMT = segment_BMT.roll(1, dims=1)
        if self.fault == "too few windows":
            segment_BMT = segment_BMT[:, :-1]
        return self.features(segment_BMT.reshape(-1, 4_000)).unflatten(0, segment_BMT.shape[:2])

    def embed(self, feature: torch.Tensor) -> torch.Tensor:
        code = self.linear(feature.flatten(1)) + self.secret
        return code if self.fault == "length" else functional.normalize(code, dim=1)

    def forward(self, wave_BT: torch.Tensor) -> torch.Tensor:
        return self.embed(self.features(2 * wave_BT if self.fault == "two ways" else wave_BT))


def module(**parts: Any) -> ModuleType:
    made = ModuleType("made")
    for name, part in {"Config": Config, "CITE": "", "LICENSE": "MIT", "SOURCE": "", **parts}.items():
        setattr(made, name, part)
    return made


def test_sound_toy_encoder_passes() -> None:
    check_encoder(module(build=lambda config: Toy("")))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("batch", "not on the rest of the batch"),
        ("silence", "vectors of silence are finite"),
        ("three axes", "have the axes"),
        ("length", "have length 1"),
        ("two ways", "embed.features.wave"),
        ("windows shifted", "features of each segment by itself"),
        ("too few windows", "window_features are .* at a hop of 800 samples"),
        ("idle weight", "no gradient for idle.weight"),
        ("objective of vectors", r"objective returns a scalar; found the shape \(10, 8\)"),
        ("not in the checkpoint", "survive a checkpoint"),
    ],
)
def test_fault_of_an_encoder_is_named(fault: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_encoder(module(build=lambda config: Toy(fault)))


class Wrong:
    """An index with all inner products and a fault to choose."""

    exact = True
    num_bytes = 1

    def __init__(self, vectors_ND: np.ndarray, fault: str) -> None:
        self.vectors, self.fault = vectors_ND, fault

    def neighbours(self, queries_QD: np.ndarray, top_k: int) -> np.ndarray:
        similarity = queries_QD @ self.vectors.T
        if self.fault == "ties":
            order = similarity.shape[1] - 1 - np.argsort(-similarity[:, ::-1], axis=1, kind="stable")
        else:
            order = np.argsort(-similarity if self.fault != "worst first" else similarity, axis=1, kind="stable")
        if self.fault == "cut short":
            return order[:, :top_k]
        found = np.full((len(queries_QD), top_k), -1)
        found[:, : order.shape[1]] = order[:, :top_k]
        return found.astype(np.int32) if self.fault == "int32" else found


def test_sound_slow_index_passes() -> None:
    check_index(module(build=lambda config, vectors: Wrong(vectors, "")))


def kept(fault: str) -> ModuleType:
    """Return an index plug-in that keeps its vectors in a file, with a fault to choose."""

    def save(index: Wrong, folder: Path) -> None:
        if fault != "no file":
            (folder / "vectors").write_bytes(index.vectors.tobytes())

    def load(config: object, folder: Path, vectors: np.ndarray) -> Wrong:
        read = np.frombuffer((folder / "vectors").read_bytes(), dtype=np.float32)
        if read.size != vectors.size:
            if fault != "half a file":
                raise StoreError("cut off")
            return Wrong(vectors, "")
        return Wrong(read.reshape(vectors.shape)[:: -1 if fault == "another" else 1], "")

    return module(build=lambda config, vectors: Wrong(vectors, ""), save=save, load=load)


def test_sound_index_that_is_kept_passes() -> None:
    check_index(kept(""))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("no file", "at least one file"),
        ("another", "answers as the saved one"),
        ("half a file", "cut off"),
    ],
)
def test_fault_of_an_index_that_is_kept_is_named(fault: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_index(kept(fault))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("ties", "equal neighbours come by number"),
        ("worst first", "best first"),
        ("cut short", r"neighbours are \(Q, K\)"),
        ("int32", "int64"),
    ],
)
def test_fault_of_an_index_is_named(fault: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_index(module(build=lambda config, vectors: Wrong(vectors, fault)))


class Faulty(Arrays):
    """A source whose listing can be replaced."""

    def tracks(self) -> list[Track]:
        return self.labels["listing"]  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("listing", "rule"),
    [
        ([], "at least one track"),
        ([Track("a", "", "train"), Track("a", "", "test")], "unique"),
        ([Track("a", "../a.wav", "train")], "below the root"),
        ([Track("a", "/a.wav", "train")], "below the root"),
        ([Track("a", "", "training")], "a split is one of"),  # type: ignore[arg-type]
        ([Track("a", "", "train", problem="missing")], "without a problem"),
        ([Track("two channels", "", "train")], "mono"),
        ([Track("nan", "", "train")], "finite"),
        ([Track("integers", "", "train")], "full scale is 1"),
    ],
)
def test_fault_of_a_source_is_named(listing: list[Track], rule: str) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 2_000)
    waves = {"a": wave, "two channels": wave.reshape(2, -1), "nan": wave * np.nan, "integers": 1_000 * wave}
    with pytest.raises(AssertionError, match=rule):
        check_source(Faulty(waves, {}, {"listing": listing}))  # type: ignore[dict-item]


@dataclass(frozen=True)
class OneResponse:
    wave_T: np.ndarray

    def names(self) -> list[str]:
        return ["one"]

    def load(self, name: str) -> Response:
        return Response(name, self.wave_T, "train")

    def digest(self) -> str:
        return "one"


class OldSource:
    """A source of an earlier version, whose digest has another name: of music, responses or pairs."""

    def tracks(self) -> list[Track]:
        return [Track("one", "", "train")]

    def names(self) -> list[str]:
        return ["one"]

    def sets(self) -> list[str]:
        return ["one"]

    def fingerprint(self) -> str:
        return "one"


@pytest.mark.parametrize("check", [check_source, check_responses, check_pairs])
def test_source_of_an_earlier_version_is_told_the_new_name_of_its_digest(check: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError, match=r"has digest\(\), which earlier versions called fingerprint\(\): rename"):
        check(OldSource())


def test_response_that_is_not_aligned_is_named() -> None:
    decay = np.zeros(8_000, np.float32)
    decay[800:] = 10 ** (-3 * np.arange(7_200) / RATE_HZ / 0.1)
    check_responses(OneResponse(align_direct_sound(decay)))
    with pytest.raises(AssertionError, match="direct sound is at sample 40"):
        check_responses(OneResponse(decay))


class Lagging:
    """An aligner that takes the peak of a plain correlation, with a fault to choose."""

    def __init__(self, fault: str) -> None:
        self.fault, self.asked = fault, 0

    def align(self, pair: Pair, embedder: PairEmbedder | None, progress: Progress) -> Any:
        self.asked += 1
        if self.fault == "same length":
            np.add(pair.wave0_T, pair.wave1_T)
        if self.fault == "overwrites":
            pair.wave0_T[:1] = 0
        size = 2 * max(len(pair.wave0_T), len(pair.wave1_T))
        product_T = np.fft.irfft(np.fft.rfft(pair.wave1_T, size) * np.fft.rfft(pair.wave0_T, size).conj(), size)
        best = int(product_T.argmax())
        lag_s = (best if best < size // 2 else best - size) / RATE_HZ * (-1 if self.fault == "turned" else 1)
        lag_s += {"name": len(pair.name), "key": len(pair.key), "remembers": self.asked}.get(self.fault, 0) / 1e6
        time0_K = pair.keypoints
        time1_K = -time0_K if self.fault == "falls" else time0_K + lag_s
        sure = 1.0 if product_T.max() > 0 or self.fault == "sure of silence" else 0.0
        return time1_K if self.fault == "array" else TimeMap(time0_K, time1_K, np.full(len(time0_K), sure))


def lagging(fault: str, **parts: Any) -> ModuleType:
    return module(**{"NEEDS_ENCODER": False, "build": lambda config: Lagging(fault), **parts})


def test_sound_toy_aligner_passes() -> None:
    check_aligner(lagging(""))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("same length", r"a shorter channel 1.*ValueError"),
        ("overwrites", "a pair has a valid map.*read-only"),
        ("turned", r"has the lag.*-0\.60 s where \+0\.60 s"),
        ("name", "does not depend on the pair's name"),
        ("key", "does not depend on the pair's name or key"),
        ("remembers", "whatever came before"),
        ("falls", "a valid map.*must rise"),
        ("array", "a valid map.*ndarray"),
        ("sure of silence", "silence in both channels gives a confidence below"),
    ],
)
def test_fault_of_an_aligner_is_named(fault: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_aligner(lagging(fault))


def test_aligner_that_does_not_say_whether_it_needs_an_encoder_is_named() -> None:
    with pytest.raises(AssertionError, match="NEEDS_ENCODER is a truth value; found no"):
        check_aligner(lagging("", NEEDS_ENCODER="no"))


def learning(fault: str) -> ModuleType:
    """Return an aligner plug-in that learns nothing, with a fault to choose."""
    draws = iter(["", "name"])

    def train(config: object, pairs: object, embedder: object, seed: int, progress: Progress) -> Lagging:
        return Lagging(next(draws) if fault == "another" else "")

    def write(aligner: Lagging, path: Path) -> None:
        path.write_text("turned" if fault == "turned" else aligner.fault)

    parts = {"train": train, "save": write, "load": lambda path: Lagging(path.read_text())}
    return lagging("", **{name: part for name, part in parts.items() if name != fault})


def test_sound_aligner_that_learns_passes() -> None:
    check_aligner(learning(""))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("save", "has train, save and load; found no save"),
        ("load", "has train, save and load; found no load"),
        ("another", "the same seed trains the same aligner"),
        ("turned", "a loaded aligner answers as the saved one"),
    ],
)
def test_fault_of_an_aligner_that_learns_is_named(fault: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_aligner(learning(fault))


class Recorders:
    """A set of pairs of half a second of noise each, in two splits, with a fault to choose."""

    def __init__(self, fault: str) -> None:
        self.fault, self.made = fault, 0

    def sets(self) -> tuple[str, ...]:
        return {"no set": (), "named twice": ("owls", "owls"), "absent": ("owls", "bats")}.get(self.fault, ("owls",))

    def max_lag_s(self, set_name: str) -> float:
        return 0.0 if self.fault == "no lag" else 0.2

    def digest(self) -> str:
        self.made += self.fault == "fingerprint"
        return f"owls {self.made}"

    def folder(self, store: Store, progress: Progress) -> Path:
        def make(place: Path) -> None:
            self.made += self.fault == "drawn anew"
            for seed, split in enumerate(("train", "test")):
                write_split(place, "owls", split, [self.recipe(seed)], progress)
            if self.fault == "unusable":
                for path in place.rglob("*.wav"):
                    path.write_bytes(b"")

        return store.fetch("pairs", str(len(list(store.root.glob("pairs/*")))) if self.fault == "moves" else "1", make)

    def recipe(self, seed: int) -> Recipe:
        draw = np.random.default_rng([0 if self.fault == "in two splits" else seed, self.made])
        time1_K = {"beyond": [0.1, 0.6], "falls": [0.15, 0.1], "too far": [0.1, 0.4]}.get(self.fault, [0.1, 0.2])
        keypoints = Keypoints(np.array([0.0, 0.1]), np.array(time1_K))
        return Recipe("a.wav", keypoints, lambda: tuple(draw.uniform(-0.1, 0.1, (2, 8_000)).astype(np.float32)))


def test_sound_toy_set_of_pairs_passes() -> None:
    check_pairs(Recorders(""))


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        ("no set", "not empty"),
        ("named twice", "names of sets are unique"),
        ("absent", "folder.. has the layout.*bats"),
        ("no lag", "largest lag of owls is above 0"),
        ("fingerprint", "stays the same"),
        ("moves", "the same at the second call"),
        ("drawn anew", r"made again is the same.*a\.wav"),
        ("unusable", "file of a split of owls can be used"),
        ("in two splits", "in two splits.*a.wav of train in test too"),
        ("beyond", "inside the recording"),
        ("falls", "never fall"),
        ("too far", "at most 0.2 s"),
    ],
)
def test_fault_of_a_set_of_pairs_is_named(fault: str, rule: str) -> None:
    with pytest.raises(AssertionError, match=rule):
        check_pairs(Recorders(fault))  # type: ignore[arg-type]
