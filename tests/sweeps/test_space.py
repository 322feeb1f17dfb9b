"""Search spaces: what is refused before any work, and that a parameter is the same thing in Optuna and in --set."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from bench import registry
from bench.config import flatten, presets
from bench.errors import ConfigError
from bench.sweeps.space import (
    Basis,
    Parameter,
    Space,
    check,
    differences,
    distributions,
    load_space,
    narrow,
    space_file,
    to_params,
    to_settings,
)


@pytest.fixture
def basis() -> Basis:
    plugin = registry.load("encoder", "now-playing")
    return Basis("now-playing", "now-playing", plugin, "tiny", None, ("train.clean=0.25",))


def written(folder: Path, text: str) -> Path:
    path = folder / "space.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("encoder", ["now-playing", "attention-cnn", "grafprint", "transformer", "samaf"])
def test_space_of_every_encoder_keeps_the_rules_and_holds_the_preset(encoder: str) -> None:
    path = space_file(encoder)
    space = load_space(path)
    own = Basis(encoder, encoder, registry.load("encoder", encoder), space.preset, "fma")
    check(space, own, path)
    assert to_params(space, own.config(space.budget)).keys() == space.parameters.keys()


@pytest.mark.parametrize("encoder", ["now-playing", "attention-cnn", "grafprint", "transformer", "samaf"])
@pytest.mark.parametrize("preset", presets())
def test_space_of_every_encoder_works_with_every_preset(encoder: str, preset: str) -> None:
    path = space_file(encoder)
    own = Basis(encoder, encoder, registry.load("encoder", encoder), preset, "fma")
    space, sentences = narrow(load_space(path), own)
    check(space, own, path)
    changed = {
        name for name, parameter in load_space(path).parameters.items() if space.parameters.get(name) != parameter
    }
    assert {sentence.partition(" ")[0] for sentence in sentences} == changed
    assert not changed or preset != load_space(path).preset
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(5):  # several settings at once, in a trial and in a promotion
        settings = to_settings(space, study.ask(distributions(space)).params)
        own.config(space.budget, settings)
        own.config(settings)


def test_range_beyond_what_a_preset_allows_is_narrowed_and_named() -> None:
    own = Basis("now-playing", "now-playing", registry.load("encoder", "now-playing"), "tiny", None)
    space, (sentence,) = narrow(load_space(space_file("now-playing")), own)
    assert space.parameters["train.hard_negatives_per_track"] == Parameter(0, 1)
    assert sentence == (
        "train.hard_negatives_per_track is varied from 0 to 1 instead of 0 to 5: the preset tiny allows no more"
    )


def test_setting_that_a_preset_fixes_is_left_out_and_a_choice_that_it_refuses_as_well(basis: Basis) -> None:
    choices = Parameter(choices=("cosine", "linear", "constant"))
    space, sentences = narrow(
        Space("tiny", {"train.hard_negatives_per_track": Parameter(1, 5), "train.schedule": choices}), basis
    )
    assert space.parameters == {"train.schedule": Parameter(choices=("cosine", "constant"))}
    assert sentences[0] == "train.hard_negatives_per_track is not varied: the preset tiny allows only 1"
    assert sentences[1].startswith("train.schedule is varied over cosine, constant only")
    with pytest.raises(ConfigError, match="allows no setting of this space to vary"):
        narrow(Space("tiny", {"train.hard_negatives_per_track": Parameter(1, 5)}), basis)


def test_encoder_without_a_space_is_told_how_to_write_one() -> None:
    with pytest.raises(ConfigError, match=r"no search space called 'now-playin'; did you mean 'now-playing'.*--space"):
        space_file("now-playin")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[spaces]", "no part of a space called 'spaces'; did you mean 'space'"),
        ("preset = 'tiny'", "must name at least one parameter"),
        ("[space]\n'train.lr' = { low = 1e-3, high = 1e-3 }", "train.lr is empty: low must be below high"),
        ("[space]\n'train.lr' = { low = 0.0, high = 1.0, log = true }", "log scale must begin above 0, got 0.0"),
        ("[space]\n'train.lr' = { low = 0.1 }", "needs both low and high"),
        ("[space]\n'train.lr' = { low = 0.1, high = inf }", "train.lr is not finite: high = inf"),
        ("[space]\n'train.lr' = { choices = [1e-3] }", "needs at least 2 different choices"),
        ("[space]\n'train.lr' = { choices = [1e-3, 1e-2], high = 1.0 }", "choices or a range, not both"),
        ("[space]\n'train.lr' = { lower = 1e-3 }", "train.lr.lower'; did you mean"),
        ("[space]\n'train.lr' = 3", "train.lr is a group of settings; set one of them"),
        ("[space", "is not valid TOML"),
        ("space = 1", "[space] must be a group of settings, got 1"),
        ("budget = []", "[budget] must be a group of settings, got []"),
    ],
)
def test_space_that_makes_no_sense_is_refused_by_name(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_space(written(tmp_path, text))
    assert told in str(refused.value)
    assert "space.toml" in str(refused.value)


@pytest.mark.parametrize(
    ("path", "parameter", "told"),
    [
        ("train.learning_rate", Parameter(1e-3, 1e-2), "no setting called 'train.learning_rate'"),
        ("train.twins_per_track", Parameter(0, 5), "is now called train.hard_negatives_per_track; use the new name"),
        ("eval.hop_ms", Parameter(50.0, 100.0), "eval.hop_ms cannot be varied"),
        ("train.temperature", Parameter(-0.1, 0.1), "train.temperature = -0.1: train.temperature must be > 0"),
        ("train.batch_pairs", Parameter(1.5, 9.5), "train.batch_pairs = 1.5: train.batch_pairs: input should be a"),
        ("train.schedule", Parameter(choices=("cosine", "linear")), "train.schedule = linear"),
    ],
)
def test_space_that_breaks_a_rule_of_the_settings_is_refused(
    basis: Basis, path: str, parameter: Parameter, told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check(Space("tiny", {path: parameter}), basis, Path("mine.toml"))
    assert told in str(refused.value)
    assert str(refused.value).startswith("mine.toml: ")


def test_trial_gets_its_parameters_over_budget_over_own_settings(basis: Basis) -> None:
    space = Space(
        "tiny",
        {
            "train.lr": Parameter(1e-4, 1e-2, log=True),
            "train.mask_count": Parameter(0, 4, step=2),
            "train.snr_db": Parameter(choices=([0.0, 20.0], [5.0, 15.0])),
            "train.schedule": Parameter(choices=("cosine", "constant")),
        },
        {"train.steps": 7, "train.clean": 0.75},
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask(distributions(space))
        config = basis.config(space.budget, to_settings(space, trial.params))
        flat = flatten(config)
        assert config.train.steps == 7
        assert config.train.clean == 0.75
        assert flat["train.lr"] == trial.params["train.lr"]
        assert flat["train.mask_count"] in (0, 2, 4)
        assert flat["train.snr_db"] in ((0.0, 20.0), (5.0, 15.0))
        assert to_params(space, config) == trial.params


def test_preset_outside_of_the_space_gives_only_the_parameters_that_are_inside(basis: Basis) -> None:
    space = Space("tiny", {"train.lr": Parameter(0.5, 1.0), "train.mask_count": Parameter(0, 4)})
    assert to_params(space, basis.config()) == {"train.mask_count": 1}


def test_differences_name_what_was_and_what_is() -> None:
    old = {"space": {"train.lr": {"low": 0.1}, "gone": 1}, "version": "1"}
    new = {"space": {"train.lr": {"low": 0.2}}, "version": "1", "added": [1]}
    assert differences(old, new) == [
        "space: train.lr: low was 0.1, is 0.2",
        "space: gone was 1, is absent",
        "added was absent, is [1]",
    ]
    assert differences(new, new) == []
