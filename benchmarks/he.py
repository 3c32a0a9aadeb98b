"""Homomorphic encryption against its targets: bytes, time, and what CKKS gives away.

    python -m benchmarks.he          everything, about five minutes on two cores
    python -m benchmarks.he --smoke  the same in seconds, at sizes that mean nothing

- ``he_parameters``: sets of BFV parameters beside each other;
- ``he_leak``: the key, recovered from sums and means under CKKS, and not under BFV;
- ``he_ours``: a round under exact BFV; ``he_ckks``: the same under NVFlare's default
  setting; ``he_masks``: the same under masks. They run in turn, and ratios are of one
  run. Seconds of CPU are what the stages cost, seconds of the wall what one waits for.

Results: ``benchmarks/results/he.json``.
"""

import argparse
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from benchmarks import he_leak, he_parameters
from benchmarks.federation import holds
from benchmarks.he_ckks import NUM_CHUNKS, nvflare_round
from benchmarks.he_cost import STAGES, RoundCost, Rows, Seconds
from benchmarks.he_masks import masks_round
from benchmarks.he_ours import ours_round
from benchmarks.results_file import Row, row, save

VALUE_BITS = 16
"""As in the drafts of plans."""
NUM_PARAMETERS = (3_000_000, 35_000_000)
NUM_SILOS = (5, 10)
REPEATS = 3

Play = Callable[[], RoundCost]


def rounds(num_parameters: int, num_silos: int, repeats: int, num_chunks: int) -> Rows:
    """Compare the three protections at one size, and our processes on all cores."""
    size = num_parameters, num_silos
    plays: dict[str, Play] = {
        "BFV": lambda: ours_round(*size, VALUE_BITS, num_children=1),
        "NVFlare's CKKS": lambda: nvflare_round(*size, num_chunks=num_chunks),
        "masks": lambda: masks_round(*size, VALUE_BITS),
        "BFV, all cores": lambda: ours_round(*size, VALUE_BITS),
    }
    turns = [{name: play() for name, play in plays.items()} for _ in range(repeats)]
    costs = {name: middle([turn[name] for turn in turns]) for name in plays}
    place = f"{num_parameters // 1_000_000} M, n = {num_silos}: "
    rows = [
        each
        for name, cost in costs.items()
        for each in cost.rows(place + name, num_parameters)
    ]
    return rows + [(place + name, *rest) for name, *rest in ratios(turns)]


def middle(costs: Sequence[RoundCost]) -> RoundCost:
    """Return the medians of what several rounds cost, stage by stage."""
    stages = {
        stage: Seconds(
            median(cost.stages[stage].cpu for cost in costs),
            median(cost.stages[stage].wall for cost in costs),
        )
        for stage in STAGES
    }
    return costs[0].with_stages(stages, max(cost.max_error for cost in costs))


def ratios(turns: Sequence[dict[str, RoundCost]]) -> Iterator[tuple[str, float, str, str]]:
    """Compare neighbours in time; yield the medians of the ratios."""

    def of(above: str, below: str, measure: Callable[[RoundCost], float]) -> float:
        pairs = ((measure(turn[above]), measure(turn[below])) for turn in turns)
        return median(a / b for a, b in pairs)

    them, ours, masks = "NVFlare's CKKS", "BFV", "masks"
    upload = of(them, ours, lambda cost: cost.upload_bytes)
    whole = of(them, ours, lambda cost: cost.all_bytes)
    yield f"{them} / BFV, upload", upload, "ratio", ">= 8"
    yield f"{them} / BFV, all silos, both ways", whole, "ratio", ">= 8"
    yield f"{them} / BFV, CPU of the round", of(them, ours, _cpu), "ratio", ">= 6"
    for stage in STAGES:
        share = of(them, ours, lambda cost, name=stage: cost.stages[name].cpu)
        yield f"{them} / BFV, CPU: {stage}", share, "ratio", ""
    yield f"BFV / {masks}, upload", of(ours, masks, _upload), "ratio", ""
    yield f"BFV / {masks}, CPU of the round", of(ours, masks, _cpu), "ratio", ""


def _cpu(cost: RoundCost) -> float:
    """Return the CPU of a round."""
    return cost.cpu


def _upload(cost: RoundCost) -> float:
    """Return the bytes of an upload."""
    return cost.upload_bytes


def measure(*, smoke: bool = False) -> list[Row]:
    """Measure everything; return the rows, printed as they are made."""
    found = [row(*each) for each in he_leak.measure()]
    found += [row(*each) for each in he_parameters.measure(smoke=smoke)]
    for num_parameters in (300_000,) if smoke else NUM_PARAMETERS:
        for num_silos in (3,) if smoke else NUM_SILOS:
            size = (1, 2) if smoke else (REPEATS, NUM_CHUNKS)
            found += [row(*each) for each in rounds(num_parameters, num_silos, *size)]
    return found


def main() -> None:
    """Measure everything and keep the results, or try it in small."""
    parser = argparse.ArgumentParser(description="Homomorphic encryption, measured.")
    parser.add_argument("--smoke", action="store_true", help="small, nothing is kept")
    if parser.parse_args().smoke:
        measure(smoke=True)
        return
    note = (
        f"TenSEAL {importlib.metadata.version('tenseal')}, "
        f"load {os.getloadavg()[0]:.1f} at the start; CKKS measured on {NUM_CHUNKS} "
        "ciphertexts and scaled linearly to the number of parameters; medians of "
        f"{REPEATS} turns"
    )
    found = measure()
    print(save("he", found, note))
    misses = [r for r in found if str(r["target"]) and not holds(r)]
    print(json.dumps(misses, indent=1) if misses else "every target is met")


if __name__ == "__main__":
    main()
