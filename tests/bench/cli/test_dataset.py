"""Nobody trains on synthetic music without knowing it, and never a paper's recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cli.options import check_dataset_is_given
from bench.cli.run import run
from bench.errors import ConfigError


@pytest.mark.parametrize("preset", ["tiny", "small", "biodcase-1"])
def test_synthetic_music_is_named_where_no_data_set_is(preset: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_dataset_is_given(preset, None, None, ["train.lr=1e-3"], None)
    said = "warning: no --dataset is given, so the music is synthetic; its scores say nothing about real music\n"
    assert capsys.readouterr().err == said
    check_dataset_is_given(preset, None, None, None, Path("/music"))
    assert "synthetic, and /music is only searched for noise and rooms; its" in capsys.readouterr().err


def test_the_recipe_of_a_paper_is_refused_without_a_data_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the preset paper needs a data set, .* say --dataset synth"):
        run(model="random-projection", preset="paper", store=tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_synthetic_music_that_is_asked_for_is_no_surprise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_dataset_is_given("paper", "synth", None, None, Path("/music"))
    check_dataset_is_given("paper", None, None, ['data.dataset="synth"'], None)
    (tmp_path / "mine.toml").write_text('[data]\ndataset = "synth"\n')
    check_dataset_is_given("paper", None, tmp_path / "mine.toml", None, None)
    assert capsys.readouterr().err == ""
