"""A sample of the campaign of `benchmarks/kills.py`."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kills.py"


def test_kills_at_random_instants_lose_nothing() -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "6", "--seed", "1"]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert finished.returncode == 0, finished.stderr
    found = json.loads(finished.stdout.splitlines()[-1])
    assert found["kills"] == 6
    assert found["passes"] >= 1
    assert {found[name] for name in ("different", "lost", "broken", "left_behind")} == {0}
