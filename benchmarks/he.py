"""Homomorphic encryption against its targets: bytes, time, and what CKKS gives away.

    python -m benchmarks.he          everything, about five minutes on two cores
    python -m benchmarks.he --smoke  the same in seconds, at sizes that mean nothing

- ``he_parameters``: sets of BFV parameters beside each other;
- ``he_leak``: the key, recovered from sums and means under CKKS, and not under BFV;
- ``he_ours``: a round under exact BFV; ``he_ckks``: the same under NVFlare's default
  setting; ``he_masks``: the same under masks. They run in turn, and ratios are of one
  run. Seconds of CPU are what the stages cost, seconds of the wall what one waits for:
  TenSEAL's vectors use one core, whatever there is, and our child processes use all.

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

VALUE_BITS = 10
"""With 5 and 10 silos sums have at most 14 bits: three of them in a slot of 44."""
PLAN_VALUE_BITS = 16
"""As in the drafts of plans: two in a slot."""
REPEATS = {3_000_000: 3, 35_000_000: 1}
"""Turns, by number of parameters."""
NUM_SILOS = (5, 10)

OURS = f"BFV, {VALUE_BITS} bits"
PLAN = f"BFV, {PLAN_VALUE_BITS} bits"
THEIRS = "NVFlare's CKKS"
MASKS = f"masks, {VALUE_BITS} bits"
ALL_CORES = f"{OURS}, all cores"
PLAN_MASKS = f"masks, {PLAN_VALUE_BITS} bits"
PLAN_ALL_CORES = f"{PLAN}, all cores"

Play = Callable[[], RoundCost]
Turns = Sequence[dict[str, RoundCost]]


def rounds(num_parameters: int, num_silos: int, repeats: int, num_chunks: int) -> Rows:
    """Compare the protections at one size, ours with one child process and with all."""
    size = num_parameters, num_silos
    plays: dict[str, Play] = {
        OURS: lambda: ours_round(*size, VALUE_BITS, num_children=1),
        THEIRS: lambda: nvflare_round(*size, num_chunks=num_chunks),
        MASKS: lambda: masks_round(*size, VALUE_BITS),
        ALL_CORES: lambda: ours_round(*size, VALUE_BITS),
        PLAN: lambda: ours_round(*size, PLAN_VALUE_BITS, num_children=1),
        PLAN_ALL_CORES: lambda: ours_round(*size, PLAN_VALUE_BITS),
        PLAN_MASKS: lambda: masks_round(*size, PLAN_VALUE_BITS),
    }
    turns = [{name: play() for name, play in plays.items()} for _ in range(repeats)]
    costs = {name: middle([turn[name] for turn in turns]) for name in plays}
    place = f"{num_parameters / 1e6:g} M, n = {num_silos}: "
    rows = [
        each
        for name, cost in costs.items()
        for each in cost.rows(place + name, num_parameters)
    ]
    is_meant = num_parameters in REPEATS
    return rows + [
        (place + name, value, unit, target if is_meant else "")
        for name, value, unit, target in ratios(turns)
    ]


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


def ratios(turns: Turns) -> Iterator[tuple[str, float, str, str]]:
    """Compare neighbours in time; yield the medians of the ratios."""
    pairs = ((OURS, ALL_CORES, MASKS), (PLAN, PLAN_ALL_CORES, PLAN_MASKS))
    for ours, all_cores, masks in pairs:
        least = (">= 8", ">= 6") if ours == OURS else ("", "")
        name = f"{THEIRS} / {ours}"
        upload = middle_ratio(turns, THEIRS, ours, lambda cost: cost.upload_bytes)
        whole = middle_ratio(turns, THEIRS, ours, lambda cost: cost.all_bytes)
        wall = middle_ratio(turns, THEIRS, all_cores, lambda cost: cost.wall)
        cpu = middle_ratio(turns, THEIRS, ours, lambda cost: cost.cpu)
        yield f"{name}: upload", upload, "ratio", least[0]
        yield f"{name}: bytes, all silos, both ways", whole, "ratio", least[0]
        yield f"{name}: wall of the round, ours on all cores", wall, "ratio", least[1]
        yield f"{name}: CPU of the round", cpu, "ratio", ""
        for stage in STAGES:
            share = middle_ratio(
                turns, THEIRS, ours, lambda cost, stage=stage: cost.stages[stage].cpu
            )
            yield f"{name}: CPU, {stage}", share, "ratio", ""
        upload = middle_ratio(turns, ours, masks, lambda cost: cost.upload_bytes)
        cpu = middle_ratio(turns, ours, masks, lambda cost: cost.cpu)
        yield f"{ours} / {masks}: upload", upload, "ratio", ""
        yield f"{ours} / {masks}: CPU of the round", cpu, "ratio", ""


def middle_ratio(
    turns: Turns, above: str, below: str, measure: Callable[[RoundCost], float]
) -> float:
    """Return the median, over the turns, of how one compares with the other."""
    return median(measure(turn[above]) / measure(turn[below]) for turn in turns)


def measure(*, smoke: bool = False) -> list[Row]:
    """Measure everything; return the rows, printed as they are made."""
    found = [row(*each) for each in he_leak.measure()]
    found += [row(*each) for each in he_parameters.measure(smoke=smoke)]
    num_chunks = 2 if smoke else NUM_CHUNKS
    for size, repeats in ({300_000: 1} if smoke else REPEATS).items():
        for num_silos in (3,) if smoke else NUM_SILOS:
            rows = rounds(size, num_silos, repeats, num_chunks)
            found += [row(*each) for each in rows]
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
        "ciphertexts and scaled linearly to the number of parameters; medians of three "
        "turns with 3 M parameters, one turn with 35 M"
    )
    found = measure()
    print(save("he", found, note))
    misses = [r for r in found if str(r["target"]) and not holds(r)]
    print(json.dumps(misses, indent=1) if misses else "every target is met")


if __name__ == "__main__":
    main()
