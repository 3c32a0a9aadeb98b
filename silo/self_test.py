"""Is the privacy mechanism on this machine what it says? A test of the code that runs.

Each check trains a few private steps as a round does, and compares what went in with
what came out. Nothing of it is kept or leaves: no ledger of the silo is charged, and
the results, which depend on the data where the silo's own images are used, are for its
operator alone.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from diffusion.checkpoint import choose_device
from protocol.plan import PlanDraft
from silo.config import SiloConfig
from silo.data import load_images
from silo.errors import SiloError
from silo.run_checks import check_price, check_rounds, check_sampling
from silo.self_test_subject import (
    FALSE_ALARM_RATE,
    CheckResult,
    Subject,
    make_subject,
)
from silo.step_checks import (
    check_average,
    check_clip,
    check_noise,
    check_not_finite,
    check_sum,
)

Check = Callable[[Subject], list[CheckResult]]

CHECKS: tuple[tuple[str, Check], ...] = (
    ("noise", check_noise),
    ("clip", check_clip),
    ("draws averaged before the clip", check_average),
    ("sum and divisor", check_sum),
    ("gradients that are not finite", check_not_finite),
    ("sampling", check_sampling),
    ("rounds", check_rounds),
    ("price", check_price),
)
"""What is checked, in this order; each may give several results."""


def self_test(
    subject: Subject, checks: Sequence[tuple[str, Check]] = CHECKS
) -> Iterator[CheckResult]:
    """Yield the result of every check, as it is found.

    Guarantees:
        A mechanism that is right fails with a probability of at most
        :data:`FALSE_ALARM_RATE` in all, by bounds that hold for every size. A check
        whose training stops with an error has failed, and says with which.
    """
    for name, check in checks:
        try:
            yield from check(subject)
        except (SiloError, ArithmeticError, LookupError, RuntimeError, TypeError,
                ValueError) as error:  # fmt: skip
            yield CheckResult(
                name, False, f"stopped: {type(error).__name__}: {error}", ""
            )


def conclusion(results: list[CheckResult]) -> str:
    """Return one sentence about all results."""
    failed = [result.name for result in results if not result.passed]
    if failed:
        return (
            f"{len(failed)} of {len(results)} checks failed: {', '.join(failed)}; do "
            "not train privately on this machine before the reason is known."
        )
    return (
        f"All {len(results)} checks passed; they would fail by chance less than once "
        f"in {1 / FALSE_ALARM_RATE:,.0f} times."
    )


def run_self_test(
    draft: PlanDraft | None,
    config: SiloConfig,
    root: Path,
    *,
    num_steps: int,
    must_have_data: bool,
    as_json: bool,
    say: Callable[[str], None],
) -> bool:
    """Test the mechanism for an operator, and say what was found.

    Args:
        draft: a plan or a draft; None for a small model and mechanism.
        root: the silo's folder, where relative paths begin.
        must_have_data: the images are there, or it is an error. Otherwise made-up ones
            take their place: `silo init` writes a path where none may be yet.

    Returns:
        Whether all checks passed.

    Raises:
        As :func:`~silo.self_test_subject.make_subject` and
        :func:`~silo.data.load_images`.
    """
    images = None
    if must_have_data or (root / config.data.path).exists():
        images = load_images(config.data, root)
    subject = make_subject(
        draft, images, device=choose_device(config.compute.device), num_steps=num_steps
    )
    if not as_json:
        say(described(subject, is_made_up=images is None))
    results = []
    for result in self_test(subject):
        results.append(result)
        if not as_json:
            say(result.line())
    sentence = conclusion(results)
    if as_json:
        table = {
            "subject": described(subject, is_made_up=images is None),
            "passed": all(result.passed for result in results),
            "false_alarm_rate": FALSE_ALARM_RATE,
            "checks": [asdict(result) for result in results],
            "conclusion": sentence,
        }
        say(json.dumps(table, indent=1))
    else:
        say(sentence)
    return all(result.passed for result in results)


def described(subject: Subject, *, is_made_up: bool) -> str:
    """Say in one line what is tested."""
    privacy, model = subject.privacy, subject.model()
    images = "made-up images" if is_made_up else "some of this silo's images"
    num_values = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return (
        f"{subject.draft.name}: {num_values:,} parameters on {subject.device.type}; "
        f"sample rate {privacy.sample_rate:g}, noise multiplier "
        f"{privacy.noise_multiplier:.5g}, clipping norm {privacy.clipping_norm:g}, "
        f"{subject.multiplicity} draws, unit {privacy.unit}; "
        f"{images}, "
        f"{subject.num_steps} steps"
    )
