"""The matcher of the tutorial keeps the contract, as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from bench.registry import load
from bench.testing import check_matcher

PAGE = Path(__file__).parents[2] / "docs" / "tutorial-your-own-matcher.md"


def test_the_matcher_in_one_file_keeps_the_contract(tmp_path: Path) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "levels.py").write_text(code, encoding="utf-8")
    check_matcher(load("matcher", str(tmp_path / "levels.py")))
