"""Which check catches which broken mechanism, and how often: the audit's power table.

Every repetition trains with the package's own private rounds: a network of 10,593
parameters on scikit-learn's digits, 100 steps, sample rate 0.25, 1,000 gradient
canaries, noise calibrated to epsilon 10 and to epsilon 1 at delta 1e-5. The faults are
those of ``benchmarks/audit_mutations.py``; ``none`` has no fault, and what is caught
there is a false alarm. With ``half-the-steps-uncounted`` the silo trains twice the
steps of its claim and writes every other one into its ledger.

On the opened scores of each run all checks of the audit are made; ``silo self-test``
runs under the same faults. A repetition that was measured is not measured again:
scores lie in ``build/audit_power``; ``--fresh`` begins anew, ``--table`` only makes
the table from what is there.

Results: ``benchmarks/results/audit_power.json`` (runs, and figures of the scores), and
``audits/power.json``, the table that reports print.
"""

import argparse
import datetime
import json
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.audit_checks import OpenedRun, caught_by, figures_of
from benchmarks.audit_mutations import faults
from benchmarks.results_file import RESULTS, ROOT, machine
from crypto.keys import IdentityKey
from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.model import make_model
from diffusion.schedule import make_schedule
from protocol.canaries import CANARY_SEED_BYTES, draw_included
from protocol.mechanism import calibrated, round_event
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.canary_run import CanaryFile, KeptCanaries, ScoredSteps
from silo.data import ImageSet
from silo.policy import Policy
from silo.private_round import PrivateRounds
from silo.randomness import PrivateRandom
from silo.resources import LocalPrivacy, LocalResources
from silo.self_test import self_test
from silo.self_test_subject import make_subject
from silo.training import TrainingState
from simulation.settings import SimulationConfig
from simulation.sources import load_pool

TABLE = ROOT / "audits" / "power.json"
SCORES = ROOT / "build" / "audit_power"
EPSILONS = (10.0, 1.0)
NUM_CANARIES, NUM_IMAGES, NUM_STEPS = 1000, 48, 100
CPU = torch.device("cpu")
SELF_TEST = "silo self-test"
DOUBLE = "half-the-steps-uncounted"

NOTES = (
    "Caught: the check contradicts the claim. In the rows of the mutation none that is "
    "a false alarm.",
    "At epsilon 10 and 1,000 canaries the one-run bounds cannot catch halved noise, "
    "nor noise that is missing: they show 3 to 5 at most, whatever the mechanism does.",
    "Canaries are added after the clip: no check of their scores sees an error of the "
    "clip. The self-test does.",
    "The self-test runs without canaries and sees no fault in how they are planted.",
    "A leak at a few canaries may drown in the others: without noise at 100 of 1,000 "
    "it was caught in 8 of 10 runs at epsilon 10 and in all at epsilon 1; ten canaries "
    "that are added ten times over pass every check. A leak at half of them does not.",
    "Half the steps uncounted: twice the steps of the claim were taken. The gap test "
    "sees it at epsilon 10, the count of steps always.",
    "A bound that shows nothing is no evidence of privacy.",
)


def draft_of(epsilon: float) -> PlanDraft:
    """Return the calibrated training of one repetition."""
    draft = PlanDraft(
        name="audit-power",
        num_rounds=1,
        seed=0,
        model=UNetConfig(
            architecture="residual", dim=8, channels=1, dim_mults=(1,), image_size=8
        ),
        schedule=ScheduleConfig(kind="cosine", num_timesteps=100),
        training=TrainingConfig(
            local_steps=NUM_STEPS, examples_per_step=12, learning_rate=1e-3
        ),
        privacy=PrivacyConfig(
            mechanism="dp-sgd",
            epsilon=epsilon,
            delta=1e-5,
            sample_rate=0.25,
            multiplicity=2,
            clipping_norm=0.5,
        ),
    )
    return replace(draft, privacy=replace(calibrated(draft), epsilon=0.0))


def train(draft: PlanDraft, images: ImageSet) -> dict[str, object]:
    """Train one round on account, in a folder of its own; return what is opened."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        folder.mkdir()
        file = CanaryFile(folder, "gradient")
        seed = PrivateRandom().integers(256, (CANARY_SEED_BYTES,))
        seed_hex = bytes(seed.tolist()).hex()
        file.save(
            KeptCanaries(form="gradient", num_canaries=NUM_CANARIES, seed=seed_hex)
        )
        resources = LocalResources(
            identity=IdentityKey.generate(),
            images=images,
            policy=Policy(),
            device=CPU,
            privacy=LocalPrivacy(ledgers=Path(name) / "ledgers"),
        )
        private = PrivateRounds(
            draft, "00" * 32, folder, resources, ScoredSteps(file, draft)
        )
        try:
            model = make_model(draft.model, draft.seed_for("model"))
            schedule = make_schedule(draft.schedule)
            private.train(model, schedule, TrainingState(), round_number=1)
            spent = sum(event.steps for event in private._account.events)
        finally:
            private.close()
        record = file.load().opened()
        return {
            "seed": record.seed,
            "num_steps": record.num_steps,
            "ledger_steps": spent,
            "scores": record.scores,
        }


def measure(
    mutation: str, epsilon: float, repetitions: int, images: ImageSet
) -> Iterator[dict[str, object]]:
    """Yield the repetitions of one mutation, those that are missing made now."""
    draft = draft_of(epsilon)
    if mutation == DOUBLE:
        training = replace(draft.training, local_steps=2 * NUM_STEPS)
        draft = replace(draft, training=training)
    for number in range(repetitions):
        path = SCORES / f"{mutation}-{epsilon:g}-{number:03d}.json"
        if not path.exists():
            with faults(draft.privacy.clipping_norm)[mutation]():
                result = train(draft, images)
            path.write_text(json.dumps(result))
            print(f"{mutation:26s} epsilon {epsilon:g} #{number}", flush=True)
        yield json.loads(path.read_text())


def self_tests(mutation: str, epsilon: float, repetitions: int) -> Iterator[bool]:
    """Yield whether the self-test failed, in each repetition."""
    draft = draft_of(epsilon)
    for number in range(repetitions):
        path = SCORES / f"self-test-{mutation}-{epsilon:g}-{number:03d}.json"
        if not path.exists():
            subject = make_subject(draft, None, device=CPU)
            with faults(draft.privacy.clipping_norm)[mutation]():
                failed = [r.name for r in self_test(subject) if not r.passed]
            path.write_text(json.dumps(failed))
            print(f"self-test {mutation:26s} #{number}: {failed}", flush=True)
        yield bool(json.loads(path.read_text()))


def opened(run: dict[str, object], epsilon: float) -> OpenedRun:
    """Return one repetition as an auditor has it."""
    draft = draft_of(epsilon)
    seed, ledger_steps = bytes.fromhex(str(run["seed"])), int(str(run["ledger_steps"]))
    return OpenedRun(
        scores=np.array(run["scores"], np.float64),
        included=draw_included(seed, NUM_CANARIES),
        num_steps=int(str(run["num_steps"])),
        event=replace(round_event(draft), steps=ledger_steps),
        delta=draft.privacy.delta,
    )


def rows_of(
    mutation: str, epsilon: float, runs: list[OpenedRun], tests: list[bool]
) -> Iterator[dict[str, object]]:
    """Yield the rows of the table for one mutation at one claim."""
    caught: dict[str, int] = {}
    for run in runs:
        for check, is_caught in caught_by(run).items():
            caught[check] = caught.get(check, 0) + is_caught
    counts = {check: (count, len(runs)) for check, count in caught.items()}
    if tests:
        counts[SELF_TEST] = (sum(tests), len(tests))
    for check, (count, total) in counts.items():
        yield {
            "mutation": mutation,
            "check": check,
            "epsilon": epsilon,
            "num_canaries": NUM_CANARIES,
            "caught": count,
            "runs": total,
        }


def on_disk(mutation: str, epsilon: float) -> int:
    """Return how many repetitions were measured already, without a gap."""
    number = 0
    while (SCORES / f"{mutation}-{epsilon:g}-{number:03d}.json").exists():
        number += 1
    return number


def medians(runs: list[OpenedRun]) -> dict[str, float]:
    """Return the median over the runs of what each bound, and the estimate, says."""
    figures = [figures_of(run) for run in runs]
    return {
        name: round(min(1e9, float(np.median([each[name] for each in figures]))), 3)
        for name in figures[0]
    }


def compact(content: dict[str, object]) -> str:
    """Return JSON with one line for each item of a list or table."""
    parts = []
    for name, value in content.items():
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, list):
            items = (json.dumps(item, ensure_ascii=False) for item in value)
            text = "[\n  " + ",\n  ".join(items) + "\n ]"
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}"


def save(rows: list[dict[str, object]], figures: dict[str, dict[str, float]]) -> None:
    """Write the table, twice: as a result, and for the reports."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    shown = [row for row in rows if not str(row["check"]).startswith("bound")]
    table = {"format": 1, "measured": date, "rows": shown, "notes": list(NOTES)}
    result = {
        "date": date,
        "machine": machine(),
        "steps": NUM_STEPS,
        "median_epsilons": figures,
        **table,
        "rows": rows,
    }
    for path, content in ((TABLE, table), (RESULTS / "audit_power.json", result)):
        path.write_text(compact(content) + "\n", encoding="utf-8")


def main() -> None:
    """Measure all mutations, and make the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--self-tests", type=int, default=3)
    parser.add_argument("--fresh", action="store_true", help="Forget earlier runs.")
    parser.add_argument("--table", action="store_true", help="Measure nothing.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.fresh:
        shutil.rmtree(SCORES, ignore_errors=True)
    SCORES.mkdir(parents=True, exist_ok=True)
    pool = load_pool(SimulationConfig(), 0).dealt
    images = ImageSet(pool.pixels[:NUM_IMAGES], pool.value_range)
    mutations = tuple(faults(1.0))
    if not options.table:
        # One repetition of everything first: a run that is broken off is a whole table.
        for number in range(1, options.repetitions + 1):
            for epsilon in EPSILONS:
                for mutation in mutations:
                    deque(measure(mutation, epsilon, number, images), maxlen=0)
                    if number <= options.self_tests:
                        deque(self_tests(mutation, epsilon, number), maxlen=0)
    rows: list[dict[str, object]] = []
    figures: dict[str, dict[str, float]] = {}
    for epsilon in EPSILONS:
        for mutation in mutations:
            number = on_disk(mutation, epsilon)
            measured = measure(mutation, epsilon, number, images)
            runs = [opened(run, epsilon) for run in measured]
            if not runs:
                continue
            number = on_disk(f"self-test-{mutation}", epsilon)
            tests = list(self_tests(mutation, epsilon, number))
            rows += rows_of(mutation, epsilon, runs, tests)
            figures[f"{mutation}, epsilon {epsilon:g}"] = medians(runs)
    for each in rows:
        print(
            f"{each['mutation']:26s} epsilon {each['epsilon']:<4g} {each['check']:42s} "
            f"{each['caught']:3d} of {each['runs']}"
        )
    save(rows, figures)


if __name__ == "__main__":
    main()
