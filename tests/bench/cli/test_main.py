"""What the command line does around every command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_name_of_any_bytes_is_printed(tmp_path: Path) -> None:
    store = os.fsencode(tmp_path) + b"/st\xffre"
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench", "sync", "--store", store], capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"no run in ") and b"st\\udcffre" in done.stdout
