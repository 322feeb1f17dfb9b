"""Settings: which layer wins, and that every mistake is named before any work starts."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import config, registry, settings
from bench.errors import BenchError, ConfigError, PluginError


@dataclass(frozen=True)
class Settings:
    """Stand in for the Config of an encoder."""

    width: float = 1.0
    dim: int = 128


@pytest.fixture
def plugin(tmp_path: Path) -> ModuleType:
    """Return an encoder plug-in whose file lies in an empty folder."""
    module = ModuleType("mine")
    module.__file__ = str(tmp_path / "mine.py")
    module.Config = Settings  # type: ignore[attr-defined]
    return module


def toml(folder: Path, text: str, name: str = "user.toml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def refused(plugin: ModuleType, *overrides: str, files: tuple[Path, ...] = ()) -> str:
    """Return what is said to settings that must not pass."""
    with pytest.raises(ConfigError) as caught:
        config.resolve("mine", plugin, "tiny", files=files, overrides=overrides)
    return str(caught.value)


def test_defaults_stand_where_nothing_is_set(plugin: ModuleType) -> None:
    run = config.resolve("mine", plugin, "small")
    assert run.model == Settings()
    assert (run.encoder, run.preset, run.seed, run.device) == ("mine", "small", 0, "auto")
    assert run.eval == settings.EvalConfig()


def test_each_layer_wins_over_the_one_before(plugin: ModuleType, tmp_path: Path) -> None:
    layers: list[int] = [settings.TrainConfig().steps, config.resolve("mine", plugin, "tiny").train.steps]
    toml(tmp_path, "[tiny.train]\nsteps = 11\n", "mine.toml")
    layers.append(config.resolve("mine", plugin, "tiny").train.steps)
    first, second = toml(tmp_path, "[train]\nsteps = 12\n", "1.toml"), toml(tmp_path, "[train]\nsteps = 13\n", "2.toml")
    layers.append(config.resolve("mine", plugin, "tiny", files=[first]).train.steps)
    layers.append(config.resolve("mine", plugin, "tiny", files=[first, second]).train.steps)
    layers.append(config.resolve("mine", plugin, "tiny", files=[first], overrides=["train.steps=14"]).train.steps)
    overrides = ["train.steps=14", "train.steps=15"]
    layers.append(config.resolve("mine", plugin, "tiny", files=[first], overrides=overrides).train.steps)
    assert layers[2:] == [11, 12, 13, 14, 15]
    assert layers[0] != layers[1], "the preset `tiny` leaves the default"


def test_layer_changes_only_what_it_names(plugin: ModuleType, tmp_path: Path) -> None:
    plain = config.resolve("mine", plugin, "tiny")
    changed = config.resolve("mine", plugin, "tiny", files=[toml(tmp_path, "[train]\nlr = 0.5\n")])
    before, after = config.flatten(plain), config.flatten(changed)
    assert {path for path in before if before[path] != after[path]} == {"train.lr"}


def test_preset_of_the_encoder_alone_is_found(plugin: ModuleType, tmp_path: Path) -> None:
    toml(tmp_path, "[wide.model]\nwidth = 2.0\n", "mine.toml")
    assert config.resolve("mine", plugin, "wide").model == Settings(width=2.0)


@pytest.mark.parametrize("preset", config.presets())
def test_every_preset_is_valid(preset: str, plugin: ModuleType) -> None:
    assert config.resolve("mine", plugin, preset).preset == preset


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.lr=3e-4", "train.lr", 3e-4),
        ("train.steps=5", "train.steps", 5),
        ("train.schedule=cyclic", "train.schedule", "cyclic"),
        ('train.schedule="cyclic"', "train.schedule", "cyclic"),
        ("train.snr_db=[-5, 5]", "train.snr_db", (-5.0, 5.0)),
        ("eval.snr_db=[0]", "eval.snr_db", (0.0,)),
        ("eval.indexes=['exact']", "eval.indexes", ("exact",)),
        ("model.dim=64", "model.dim", 64),
        ("seed=7", "seed", 7),
        ("device=cpu", "device", "cpu"),
        ("data.noise=./my noise=old", "data.noise", "./my noise=old"),
    ],
)
def test_override_forms(override: str, path: str, value: object, plugin: ModuleType) -> None:
    run = config.resolve("mine", plugin, "tiny", overrides=[override])
    assert config.flatten(run)[path] == value


@pytest.mark.parametrize("override", ["train.lr", "=3", ""])
def test_override_without_path_or_value_shows_the_form(override: str, plugin: ModuleType) -> None:
    assert "path=value" in refused(plugin, override)
    assert repr(override) in refused(plugin, override)


@pytest.mark.parametrize(
    ("override", "wrong", "right"),
    [
        ("train.lrr=1", "train.lrr", "train.lr"),
        ("trian.lr=1", "trian", "train"),
        ("model.wdith=1", "model.wdith", "model.width"),
        ("eval.snrdb=[1]", "eval.snrdb", "eval.snr_db"),
        ("sed=1", "sed", "seed"),
    ],
)
def test_unknown_setting_is_answered_with_the_nearest(
    override: str, wrong: str, right: str, plugin: ModuleType
) -> None:
    said = refused(plugin, override)
    assert f"no setting called {wrong!r}" in said
    assert repr(right) in said


@pytest.mark.parametrize("override", ["encoder=other", "preset=paper"])
def test_what_the_command_line_names_is_no_setting(override: str, plugin: ModuleType) -> None:
    assert "no setting called" in refused(plugin, override)


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("train.lr=fast", "train.lr"),
        ("train.steps=1.5", "train.steps"),
        ("train.schedule=sine", "train.schedule"),
        ("train.snr_db=[3]", "train.snr_db.1"),
        ("eval.indexes=exact", "eval.indexes"),
        ("eval.snr_db=[0, 'loud']", "eval.snr_db.1"),
        ("train.lr.x=3", "train.lr"),
        ("model.dim=big", "model.dim"),
        ("seed=x", "seed"),
        ("device=gpu", "device"),
    ],
)
def test_value_of_the_wrong_type_names_path_and_value(override: str, path: str, plugin: ModuleType) -> None:
    said = refused(plugin, override)
    assert said.startswith(f"{path}: ")
    assert ", got " in said


def test_value_out_of_range_is_refused_with_its_rule(plugin: ModuleType) -> None:
    assert refused(plugin, "train.steps=-1") == "train.steps must be >= 0, got -1"


def test_group_set_to_a_value_names_a_setting_of_it(plugin: ModuleType) -> None:
    assert "such as train.steps" in refused(plugin, "train=3")


def test_data_set_of_the_command_line_wins_and_brings_its_settings(plugin: ModuleType) -> None:
    run = config.resolve("mine", plugin, "tiny", dataset="folder", overrides=["data.dataset=synth"])
    assert run.data.dataset == "folder"
    assert type(run.music) is registry.load("dataset", "folder").Config


def test_wrong_data_set_is_answered_with_the_nearest(plugin: ModuleType) -> None:
    with pytest.raises(PluginError, match=r"no dataset called 'sinth'; did you mean 'synth'"):
        config.resolve("mine", plugin, "tiny", overrides=["data.dataset=sinth"])


def test_wrong_preset_is_answered_with_the_nearest(plugin: ModuleType) -> None:
    with pytest.raises(ConfigError, match=r"no preset called 'tny'; did you mean 'tiny'\?"):
        config.resolve("mine", plugin, "tny")


def test_file_that_is_missing_or_no_toml_is_named(plugin: ModuleType, tmp_path: Path) -> None:
    assert "absent.toml cannot be read" in refused(plugin, files=(tmp_path / "absent.toml",))
    assert "user.toml is not valid TOML" in refused(plugin, files=(toml(tmp_path, "[train\n"),))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "binary.toml is not valid TOML" in refused(plugin, files=(binary,))
    for text in ("x = 1" + "0" * 5_000, "x = " + "[" * 5_000):  # which Python's reader does not call an error of TOML
        assert "user.toml is not valid TOML" in refused(plugin, files=(toml(tmp_path, text),))
    os.mkfifo(tmp_path / "pipe.toml")
    for place in (tmp_path, tmp_path / "pipe.toml"):
        assert f"{place} is not a file; give a TOML file" in refused(plugin, files=(place,))


def test_number_of_thousands_of_digits_on_the_command_line_is_refused(plugin: ModuleType) -> None:
    assert "train.steps" in refused(plugin, "train.steps=1" + "0" * 5_000)


def test_unknown_setting_in_a_file_is_answered_with_the_nearest(plugin: ModuleType, tmp_path: Path) -> None:
    assert "'train.steps'" in refused(plugin, files=(toml(tmp_path, "[train]\nstep = 3\n"),))


def test_group_inside_a_section_is_checked_as_a_section_is(plugin: ModuleType) -> None:
    assert config.resolve("mine", plugin, "tiny", overrides=["train.transforms.tanh=0.5"]).train.transforms.tanh == 0.5
    told = refused(plugin, "train.transforms.tan=0.5")
    assert "'train.transforms.tan'" in told and "'train.transforms.tanh'" in told
    assert "train.transforms is a group" in refused(plugin, "train.transforms=2")
    assert "train.transforms.tanh is a probability" in refused(plugin, "train.transforms.tanh=2")


def test_flatten_gives_every_setting_its_one_name(plugin: ModuleType) -> None:
    flat = config.flatten_run(config.resolve("mine", plugin, "tiny"))
    sections = {
        "data": settings.DataConfig,
        "train": settings.TrainConfig,
        "eval": settings.EvalConfig,
        "model": Settings,
    }
    sections["music"] = registry.load("dataset", "synth").Config
    sections |= {f"index.{name}": registry.load("index", name).Config for name in ("exact", "falconn")}
    sections |= {
        "train.transforms": settings.Transforms,
        "train.mixture": settings.Mixture,
        "eval.v2": settings.GridV2,
        "align": settings.AlignConfig,
    }
    sections["pairs.aru-sim"] = registry.load("dataset", "aru-sim").Config
    sections |= {f"aligner.{name}": registry.load("aligner", name).Config for name in ("nosync", "fingerprint-path")}
    wanted = {f"{name}.{field.name}" for name, kind in sections.items() for field in fields(kind)}
    wanted -= {"train.transforms", "train.mixture", "eval.v2"}
    assert set(flat) == wanted | {"encoder", "preset", "seed", "device"}


@given(text=st.text(max_size=40))
def test_no_override_ends_in_anything_but_a_run_or_our_error(text: str) -> None:
    module = ModuleType("mine")
    module.__file__ = "/nowhere/mine.py"
    module.Config = Settings  # type: ignore[attr-defined]
    for override in (text, f"train.lr={text}", f"eval.snr_db={text}", f"{text}=1", f"train.{text}=1"):
        with contextlib.suppress(BenchError):
            config.resolve("mine", module, "tiny", overrides=[override])


# Recorders: settings of each set of pairs and of each aligner, by name


def aligners(*names: str) -> str:
    return f"align.aligners={list(names)}"


def test_defaults_of_an_aligner_and_a_set_are_their_plug_ins(plugin: ModuleType) -> None:
    run = config.resolve("mine", plugin, "small")
    assert set(run.pairs) == {"aru-sim"} and set(run.aligner) == set(run.align.aligners)
    assert run.pairs["aru-sim"] == registry.load("dataset", "aru-sim").Config()
    assert run.aligner["fingerprint-median"] == registry.load("aligner", "fingerprint-median").Config()


def test_sets_of_a_preset_have_its_settings_and_others_their_own(plugin: ModuleType) -> None:
    assert config.resolve("mine", plugin, "tiny").pairs["aru-sim"].duration_s == 30
    other = config.resolve("mine", plugin, "tiny", overrides=["align.sets=['multi-recorder']"])
    assert other.pairs == {"multi-recorder": registry.load("dataset", "multi-recorder").Config()}
    assert config.resolve("mine", plugin, "tiny", overrides=["align.sets=[]"]).pairs == {}


def test_preset_after_a_colon_gives_an_aligner_its_settings(plugin: ModuleType) -> None:
    gcc_phat = registry.load("aligner", "gcc-phat")
    run = config.resolve("mine", plugin, "tiny", overrides=[aligners("gcc-phat", "gcc-phat:aru")])
    assert run.aligner == {"gcc-phat": gcc_phat.Config(), "gcc-phat:aru": gcc_phat.presets()["aru"]}
    assert run.aligner["gcc-phat"] != run.aligner["gcc-phat:aru"]


def test_setting_by_plain_name_is_of_every_preset_and_by_its_own_name_of_one(plugin: ModuleType) -> None:
    names = ("gcc-phat:aru", "gcc-phat:zebra-finch")
    both = config.resolve("mine", plugin, "tiny", overrides=[aligners(*names), "aligner.gcc-phat.hann=true"])
    presets = registry.load("aligner", "gcc-phat").presets()
    assert [both.aligner[name] for name in names] == [
        dataclasses.replace(presets[name.partition(":")[2]], hann=True) for name in names
    ]
    one = config.resolve("mine", plugin, "tiny", overrides=[aligners(*names), "aligner.gcc-phat:aru.hann=true"])
    assert [one.aligner[name].hann for name in names] == [True, False]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([aligners("gcc-phat:aur")], "no preset of the aligner 'gcc-phat' called 'aur'; did you mean 'aru'"),
        ([aligners("nosync:fast")], "no preset of the aligner 'nosync' called 'fast'"),
        ([aligners("nosync", "nosync")], "align.aligners must not name anything twice"),
        (["align.sets=['aru-sim', 'aru-sim']"], "align.sets must not name anything twice"),
        (["align.sets=['aru-sim', 'synth']"], "align.sets must hold pairs of recordings, got 'synth', with music"),
        ([aligners("nosync"), "aligner.gcc-phat.hann=true"], "no aligner in align.aligners called 'gcc-phat'"),
        (["aligner=3"], "aligner is a group of settings, one for each name in align.aligners"),
        (["aligner.fingerprint-path=3"], "such as aligner.fingerprint-path.hop_ms"),
        (["aligner.fingerprint-path.hopms=3"], "did you mean 'aligner.fingerprint-path.hop_ms'"),
        (["aligner.fingerprint-path.hop_ms=1"], "fingerprint-path: hop_ms must be from 10 to 1000, got 1"),
        ([aligners("gcc-phat:aru"), "aligner.gcc-phat.windows=3"], "no setting called 'aligner.gcc-phat.windows'"),
        ([aligners("gcc-phat:aru"), "aligner.gcc-phat.window_s=0"], "window_s must be >= 0.01, got 0"),
        (["pairs.aru-sim.duration_s=long"], "pairs.aru-sim.duration_s"),
        (["pairs.locar.clocks=1"], "no pairs in align.sets called 'locar'"),
    ],
)
def test_wrong_setting_of_recorders_is_named(overrides: list[str], told: str, plugin: ModuleType) -> None:
    assert told in refused(plugin, *overrides)


def test_wrong_aligner_or_set_is_answered_with_the_nearest(plugin: ModuleType) -> None:
    for override, right in (("align.aligners=['nosink']", "nosync"), ("align.sets=['aru-sim', 'biodcas']", "biodcase")):
        with pytest.raises(PluginError, match=f"did you mean '{right}'"):
            config.resolve("mine", plugin, "tiny", overrides=[override])


# Old names: users are told the new one, finished runs are translated


def test_old_name_of_a_setting_is_answered_with_the_new_one(plugin: ModuleType, tmp_path: Path) -> None:
    told = "the setting train.twins_per_track is now called train.hard_negatives_per_track; use the new name"
    assert refused(plugin, "train.twins_per_track=2") == told
    assert refused(plugin, files=(toml(tmp_path, "[train]\ntwins_per_track = 2\n"),)) == told


@pytest.mark.parametrize("old", [name for name in config.RENAMED_PRESETS if ":" not in name])
def test_old_name_of_a_preset_is_answered_with_the_new_one(old: str, plugin: ModuleType) -> None:
    with pytest.raises(ConfigError) as caught:
        config.resolve("mine", plugin, old)
    assert str(caught.value) == f"the preset {old} is now called {config.RENAMED_PRESETS[old]}; use the new name"


@pytest.mark.parametrize("old", [name for name in config.RENAMED_PRESETS if ":" in name])
def test_old_name_of_an_aligners_preset_is_answered_with_the_new_one(old: str, plugin: ModuleType) -> None:
    new = config.RENAMED_PRESETS[old]
    told = f"the preset {old} is now called {new}; use the new name"
    assert refused(plugin, aligners(old)) == told
    assert refused(plugin, aligners(new), f"aligner.{old}.hop_ms=20") == told


@pytest.mark.parametrize("new", config.RENAMED_PRESETS.values())
def test_new_name_of_a_preset_is_one(new: str, plugin: ModuleType) -> None:
    if ":" in new:
        config.load_plugin("aligner", new)
    else:
        config.resolve("mine", plugin, new)


def test_preset_of_an_encoder_may_have_an_old_name(plugin: ModuleType, tmp_path: Path) -> None:
    toml(tmp_path, "[report-1.train]\nsteps = 3\n", "mine.toml")
    run = config.resolve("mine", plugin, "report-1")
    assert run.train.steps == 3
    assert config.restore_config("mine", plugin, config.flatten(run)) == run


def test_settings_of_an_older_run_are_translated(plugin: ModuleType) -> None:
    names = ("fingerprint-global:biodcase-1", "fingerprint-median-regress:biodcase-2", "nosync")
    overrides = [
        aligners(*names), "aligner.fingerprint-global.hop_ms=20",
        "train.segments_per_track=4", "train.hard_negatives_per_track=3",
    ]  # fmt: skip
    run = config.resolve("mine", plugin, "biodcase-1", overrides=overrides)
    text = json.dumps(config.flatten(run))
    for old, new in {**config.RENAMED_SETTINGS, **config.RENAMED_PRESETS}.items():
        text = text.replace(new, old)
    old_settings = json.loads(text)
    assert old_settings["preset"] == "report-1" and old_settings["train.twins_per_track"] == 3
    assert "aligner.fingerprint-global:report-1.hop_ms" in old_settings
    assert config.restore_config("mine", plugin, old_settings) == run


def test_changes_to_an_older_run_need_the_new_names(plugin: ModuleType) -> None:
    flat = config.flatten_run(config.resolve("mine", plugin, "tiny"))
    with pytest.raises(ConfigError, match=r"is now called train\.hard_negatives_per_track"):
        config.restore_config("mine", plugin, flat, ["train.twins_per_track=1"])


def test_kept_settings_are_restored_as_they_were(plugin: ModuleType) -> None:
    overrides = [
        aligners("gcc-phat:aru", "gcc-phat", "nosync"), "aligner.gcc-phat.window_s=0.5", "pairs.aru-sim.duration_s=20",
        "align.split=train", "train.transforms.tanh=0.5",
    ]  # fmt: skip
    run = config.resolve("mine", plugin, "tiny", overrides=overrides)
    kept = json.loads(json.dumps(config.flatten(run)))
    assert config.restore_config("mine", plugin, kept) == run
    changed = config.restore_config("mine", plugin, kept, ["aligner.gcc-phat:aru.window_s=0.7"])
    assert {name: getattr(c, "window_s", None) for name, c in changed.aligner.items()} == {
        "gcc-phat:aru": 0.7, "gcc-phat": 0.5, "nosync": None,
    }  # fmt: skip


def test_a_plug_in_given_by_its_path_is_called_by_its_file() -> None:
    assert (
        config.format_plugin_name("./my/own_aligner.py") == "own-aligner"
        and config.format_plugin_name("/a/b.py:fast") == "b:fast"
    )
    assert (
        config.format_plugin_name("gcc-phat:aru") == "gcc-phat:aru"
        and config.format_plugin_name("falconn") == "falconn"
    )
