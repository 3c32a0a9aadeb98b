"""The table of docs/threat-model.md: who may collude, who may be lost, at which t."""

import re
from pathlib import Path

import pytest

from crypto.secagg.config import SecAggConfig
from protocol.update_settings import ProtectionConfig

PAGE = Path(__file__).parents[3] / "docs" / "threat-model.md"


def rows():
    """Yield n, t, most colluding, most lost, and whether t is the default."""
    text = PAGE.read_text()
    for line in text[text.index("| n | default t |") :].splitlines()[2:]:
        if not line.startswith("|"):
            return
        n, t, colluding, lost, others = line.strip("|").split("|")
        yield int(n), int(t), int(colluding), int(lost), True
        for other in re.findall(r"(\d+) \((\d+), (\d+)\)", others):
            yield int(n), *map(int, other), False


ROWS = list(rows())


def accepts(n, t, c):
    try:
        SecAggConfig(num_silos=n, threshold=t, max_colluding=c, min_cohort=c + 2)
    except ValueError:
        return False
    return True


def test_the_table_is_read():
    assert len(ROWS) == 21
    assert [row[0] for row in ROWS if row[4]] == [2, 3, 4, 5, 7, 10, 20, 50, 100]


@pytest.mark.parametrize(("n", "t", "colluding", "lost", "is_default"), ROWS)
def test_a_row(n, t, colluding, lost, is_default):
    assert accepts(n, t, colluding)
    assert not accepts(n, t, colluding + 1)
    assert lost == n - t
    if is_default:
        protection = ProtectionConfig(max_colluding=0, min_cohort=2)
        assert protection.threshold_for(n) == t
