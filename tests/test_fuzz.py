"""A few flipped bytes in every kind of file; ``python tests/fuzz_files.py`` flips 300 of each."""

import subprocess
import sys
from pathlib import Path

from running import ENVIRONMENT


def test_flipped_bytes_end_in_a_result_or_one_line():
    script = Path(__file__).with_name("fuzz_files.py")
    command = [sys.executable, str(script), "--flips", "1"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)  # noqa: S603
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.splitlines()[-1] == "0 faults"
