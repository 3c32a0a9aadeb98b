"""Table and figure of ``benchmarks/results/papers.json``, with the published numbers.

    python -m benchmarks.papers_table

writes ``docs/papers.md`` between its markers, and ``docs/pictures/papers.png``.

Two settings are compared run by run: the same seed means the same images, partition
and first model. A ratio is that of the mean distances over the seeds that both have;
its interval holds 95 % of the ratios of all resamples of the seeds (bootstrap, every
resample counted).
"""

import itertools
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.papers import load_results
from benchmarks.papers_grid import PARTITIONS, SELECTIONS
from benchmarks.results_file import ROOT

PAGE = ROOT / "docs" / "papers.md"
PICTURE = ROOT / "docs" / "pictures" / "papers.png"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

PUBLISHED: Mapping[tuple[int, str], tuple[str, str, str, str]] = {
    (2, "iid"): ("38.5 ± 1.8", "37.2 ± 3.1", "44.7 ± 13.4", "49.0 ± 16.3"),
    (2, "label skew"): ("32.9 ± 1.1", "37.6 ± 4.0", "48.6 ± 4.5", "49.4 ± 5.3"),
    (2, "quantity skew"): ("33.2 ± 3.3", "54.8 ± 3.6", "54.0 ± 24.3", "78.5 ± 47.9"),
    (5, "iid"): ("39.4 ± 4.2", "40.7 ± 5.1", "52.6 ± 14.9", "51.1 ± 14.6"),
    (5, "label skew"): ("42.8 ± 3.7", "61.4 ± 5.2", "72.0 ± 30.5", "74.9 ± 30.9"),
    (5, "quantity skew"): ("22.8 ± 4.6", "38.8 ± 9.0", "122 ± 138", "139 ± 135"),
    (10, "iid"): ("60.5 ± 1.7", "62.1 ± 3.1", "70.2 ± 14.2", "71.5 ± 20.0"),
    (10, "label skew"): ("64.4 ± 2.8", "69.6 ± 7.6", "101 ± 83", "98.0 ± 66.5"),
    (10, "quantity skew"): ("75.7 ± 11.2", "86.8 ± 19.0", "137 ± 125", "146 ± 119"),
}
"""FID of FedDiffuse (de Goede et al. 2024) at R = 15, E = 5, Fashion-MNIST, computed
from the raw results of its code: mean ± standard deviation over silos and runs."""

Runs = Mapping[int, Mapping[str, Any]]
"""The results of one cell by seed."""


@dataclass(frozen=True)
class Ratio:
    """One setting's distance over another's, with its interval."""

    value: float
    low: float
    high: float
    num_seeds: int

    def verdict(self, target: float) -> str:
        """Say whether a target is met: decided only where the interval is."""
        if self.num_seeds < 5:
            return "not decided (fewer than five seeds)"
        if self.high < target:
            return "met"
        return "missed" if self.low > target else "not decided"

    def __str__(self) -> str:
        if self.num_seeds < 3:
            return f"{self.value:.3f} (no interval)"
        return f"{self.value:.3f} ({self.low:.3f} … {self.high:.3f})"


def distance(result: Mapping[str, Any]) -> float:
    """Return a run's number: its model's distance, or the mean over its silos."""
    return float(np.mean(result["distances"]))


def compare(ours: Runs, other: Runs) -> Ratio | None:
    """Return the ratio of mean distances over the seeds that both have."""
    seeds = sorted(set(ours) & set(other))
    if not seeds:
        return None
    a = np.array([distance(ours[seed]) for seed in seeds])
    b = np.array([distance(other[seed]) for seed in seeds])
    picks = np.array(list(itertools.product(range(len(seeds)), repeat=len(seeds))))
    ratios = a[picks].mean(axis=1) / b[picks].mean(axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return Ratio(float(a.mean() / b.mean()), float(low), float(high), len(seeds))


def by_cell(scale: str) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Return the results of a scale by cell and seed."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for key, result in load_results().items():
        where, cell, seed = key.split("/")
        if where == scale:
            found.setdefault(cell, {})[int(seed)] = result
    return found


def summary(runs: Runs) -> str:
    """Return mean ± standard deviation over seeds."""
    values = np.array([distance(result) for result in runs.values()])
    spread = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{spread} ({len(values)})"


def grid_table(found: Mapping[str, Runs]) -> list[str]:
    """Return FedDiffuse's grid, with the published numbers below ours."""
    lines = [
        "| K | data | | " + " | ".join(SELECTIONS) + " |",
        "|---|---|---|" + "---|" * len(SELECTIONS),
    ]
    for silos, partition in PUBLISHED:
        names = [f"{s}, {partition}, K = {silos}" for s in SELECTIONS]
        if any(name in found for name in names):
            cells = [_grid_cell(found.get(name)) for name in names]
            lines.append(f"| {silos} | {partition} | ours | {' | '.join(cells)} |")
            paper = " | ".join(PUBLISHED[silos, partition])
            lines.append(f"| | | paper, FID | {paper} |")
    return lines


def _grid_cell(runs: Runs | None) -> str:
    """Return one number of the grid; with a mark where updates were in the clear."""
    if runs is None:
        return "not run"
    is_open = any(result.get("protection") == "none" for result in runs.values())
    return summary(runs) + (" *" if is_open else "")


def other_table(found: Mapping[str, Runs]) -> list[str]:
    """Return every other cell with its ratio to what it is compared with."""
    lines = [
        "| setting | distance, mean ± sd (seeds) | compared with | ratio (95 %) |",
        "|---|---|---|---|",
    ]
    for name, runs in found.items():
        if re.search(r"K = \d+$", name):
            continue
        base = _base(name)
        ratio = compare(runs, found[base]) if base in found and base != name else None
        lines.append(f"| {name} | {summary(runs)} | {base} | {ratio or ''} |")
    return lines


def _base(name: str) -> str:
    """Return the cell that another one is compared with."""
    if "label skew" in name:
        return "full, label skew, K = 5"
    if name.startswith("central"):
        return "full, float32"
    return f"{name.split(',')[0]}, float32"


def error_table(found: Mapping[str, Runs]) -> list[str]:
    """Return the relative errors of the mean update, the largest of all rounds."""
    lines = ["| setting | largest relative error of a mean update | mean |"]
    lines.append("|---|---|---|")
    for name, runs in found.items():
        errors = [
            float(error)
            for result in runs.values()
            for error in result.get("relative_errors", {}).values()
        ]
        if errors:
            lines.append(f"| {name} | {max(errors):.2e} | {np.mean(errors):.2e} |")
    return lines


def verdicts(found: Mapping[str, Runs]) -> list[str]:
    """Return the targets on distances, each with what was found."""
    asked = (
        ("`udec`, 8 bits and down-link 8, against unquantised `udec`", 1.10,
         "udec, 8 bits, rotated, down-link 8", "udec, float32"),
        ("`full`, 8 bits, rotated, against unquantised `full`", 1.05,
         "full, 8 bits, rotated", "full, float32"),
        ("prox 0.001 against plain `full`, label skew", 1.0,
         "prox 0.001, label skew", "full, label skew, K = 5"),
        ("prox 0.1 against plain `full`, label skew", 1.0,
         "prox 0.1, label skew", "full, label skew, K = 5"),
        ("FedDDPM+ against plain `full`, label skew", 1.0,
         "FedDDPM+, label skew", "full, label skew, K = 5"),
        ("FedDDPM against plain `full`, label skew", 1.0,
         "FedDDPM, label skew", "full, label skew, K = 5"),
        ("`full` against training in one place, steps of one silo", 1.15,
         "full, float32", "central, steps of one silo"),
        ("`full` against training in one place, examples of all silos", 0.0,
         "full, float32", "central, examples of all silos"),
    )  # fmt: skip
    lines = ["| claim | target | ratio (95 %) | verdict |", "|---|---|---|---|"]
    for text, target, ours, other in asked:
        if ours in found and other in found:
            ratio = compare(found[ours], found[other])
            if ratio is not None:
                verdict = ratio.verdict(target) if target else "reported beside"
                wanted = f"≤ {target:g}" if target else ""
                lines.append(f"| {text} | {wanted} | {ratio} | {verdict} |")
    return lines


def selection_table(found: Mapping[str, Runs]) -> list[str]:
    """Return each selection against full, over the seeds that both have."""
    lines = [
        "| against `full` | partition | seeds | ratio (95 %) |",
        "|---|---|---|---|",
    ]
    pairs = [
        (selection, partition, f"{selection}, {partition}, K = 5")
        for partition in PARTITIONS
        for selection in SELECTIONS[1:]
    ]
    rows = [(*pair, f"full, {pair[1]}, K = 5") for pair in pairs]
    rows += [("udec, float32", "iid", "udec, float32", "full, float32")]
    for selection, partition, name, base in rows:
        ratio = compare(found.get(name, {}), found.get(base, {}))
        if ratio is not None:
            lines.append(f"| {selection} | {partition} | {ratio.num_seeds} | {ratio} |")
    return lines


def silo_table(found: Mapping[str, Runs]) -> list[str]:
    """Return the distances of the silos one by one, in the order of the partition."""
    lines = ["| setting | silo 1 | 2 | 3 | 4 | 5 |", "|---|---|---|---|---|---|"]
    for partition in PARTITIONS:
        for selection in ("ulatdec", "udec"):
            name = f"{selection}, {partition}, K = 5"
            if name in found:
                rows = np.array([r["distances"] for r in found[name].values()])
                values = " | ".join(f"{value:.1f}" for value in rows.mean(axis=0))
                lines.append(f"| {selection}, {partition} | {values} |")
    return lines


def draw(found: Mapping[str, Runs]) -> None:
    """Draw the grid at K = 5: bars of means, a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = ("#1b4965", "#5fa8d3", "#e9a23b", "#c8553d")
    figure, axis = plt.subplots(figsize=(8.0, 3.6), layout="constrained")
    for group, partition in enumerate(PARTITIONS):
        for index, selection in enumerate(SELECTIONS):
            runs = found.get(f"{selection}, {partition}, K = 5")
            if runs is None:
                continue
            values = [distance(result) for result in runs.values()]
            x = group + 0.2 * (index - 1.5)
            label = selection if group == 0 else None
            axis.bar(x, np.mean(values), 0.18, color=colours[index], label=label)
            axis.plot([x] * len(values), values, "o", color="black", markersize=2.5)
    axis.set_xticks(range(len(PARTITIONS)), list(PARTITIONS))
    axis.set_ylabel("Fréchet distance (FD-small, fashion)")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, ncols=4)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=150)
    plt.close(figure)


def page(scale: str) -> str:
    """Return the results as Markdown."""
    found: Mapping[str, Runs] = by_cell(scale)
    sections: Sequence[tuple[str, list[str]]] = (
        ("FedDiffuse's grid", grid_table(found)),
        ("Selections against full, same seeds", selection_table(found)),
        ("Targets", verdicts(found)),
        ("Transport, objective, calibration, one place", other_table(found)),
        ("Error of the mean update", error_table(found)),
        ("Silo by silo (mean over seeds)", silo_table(found)),
    )
    return "\n\n".join(f"### {title}\n\n" + "\n".join(rows) for title, rows in sections)


def main() -> None:
    """Write table and figure."""
    scale = sys.argv[1] if len(sys.argv) > 1 else "small"
    text = page(scale)
    if PAGE.exists() and BEGIN in (old := PAGE.read_text()):
        before, rest = old.split(BEGIN, 1)
        text = f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}"
        PAGE.write_text(text)
    else:
        print(text)
    draw(by_cell(scale))


if __name__ == "__main__":
    main()
