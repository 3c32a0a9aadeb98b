"""The example of docs/secure-aggregation.md runs as it stands, without torch."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_example_runs():
    page = (ROOT / "docs" / "secure-aggregation.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    check = "\nimport sys\nassert 'torch' not in sys.modules\nprint(total[:3])\n"
    done = subprocess.run(
        [sys.executable, "-c", code + check],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == "[ 0 10 20]\n"
