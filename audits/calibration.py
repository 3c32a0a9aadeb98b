"""What followed the mean: where auxiliary images came from, and what was done.

What silos gave for them is no sum: nothing but the mechanism, if there is one, protects
it. A reader has to know of it, whatever else the audit found.
"""

from collections.abc import Iterator
from typing import Any

from audits.accounts import Account, Accounts, Placed
from audits.evidence import AGGREGATOR
from audits.findings import Finding, count, fail, listing, settle, warn
from audits.sums import place
from protocol.auxiliary import STAGE, samples_per_silo
from protocol.model_records import AuxiliaryImages, AuxiliarySent, Calibrated
from protocol.plan import RunPlan
from protocol.records import Dropped, Finished, PrivacySpent, RoundClosed

KINDS: tuple[type[Any], ...] = (AuxiliarySent, AuxiliaryImages, Calibrated)


def label_in_words(plan: RunPlan) -> str:
    """Return what the label of a plan's auxiliary images means."""
    config = plan.calibration
    trained = "with DP-SGD" if plan.privacy.is_private else "with nothing to protect it"
    return {
        "public": f"a public data set that the aggregator had: {config.name}",
        "aggregate": "samples of the global model, the securely aggregated one, after "
        f"round {config.source_round}: nothing new was revealed",
        "silo-samples": "samples of each silo's own model, which had been trained on "
        f"that silo's images alone, {trained}, went to the aggregator in the clear",
        "silo-models": "each silo's own model, which had been trained on that silo's "
        f"images alone, {trained}, went to the aggregator in the clear; the aggregator "
        "drew the images of it",
    }[config.images]


def check_calibration(accounts: Accounts) -> list[Finding]:
    """Return the findings on what followed the mean; none where nothing did."""
    if not accounts.plan.calibration.is_on:
        found = [f for account in accounts.everyone for f in _unplanned(account)]
        return settle("auxiliary", found, "") if found else []
    return [*_auxiliary(accounts), *_calibrated(accounts)]


def _unplanned(account: Account) -> Iterator[Finding]:
    """Yield what a plan without training after the mean has no place for."""
    for kind in KINDS:
        if (placed := account.last(kind)) is not None:
            yield fail(
                "auxiliary",
                f"{account.party} records {kind.__name__}: the plan says nothing of "
                "auxiliary images.",
                place(account, placed),
                party=account.party,
            )
    for silo, stages in account.traffic.items():
        if (0, STAGE) in stages:
            yield fail(
                "auxiliary",
                f"{account.party} counts bytes of {silo} for auxiliary images: the "
                "plan says nothing of any.",
                party=account.party,
            )


def _auxiliary(accounts: Accounts) -> list[Finding]:
    """Check that images came from where the plan says, as both ends tell it."""
    plan, aggregator = accounts.plan, accounts.aggregator
    found: list[Finding] = []
    for account in accounts.everyone:
        found += _wrong_label(plan, account)
    if aggregator is not None:
        found += _images(plan, aggregator)
        for silo in accounts.silos.values():
            found += _both_ends(silo, aggregator)
    for silo in accounts.silos.values():
        found += _unpaid(plan, silo)
    if plan.calibration.asks_silos and not plan.privacy.is_private:
        found.append(warn("auxiliary", _sentence(plan)))
    return settle("auxiliary", found, _sentence(plan))


def _sentence(plan: RunPlan) -> str:
    """Return where auxiliary images came from, as a sentence."""
    return (
        f'Auxiliary images with the label "{plan.calibration.images}": '
        f"{label_in_words(plan)}."
    )


def _wrong_label(plan: RunPlan, account: Account) -> Iterator[Finding]:
    """Yield records of another label than the plan's, or of an exchange it has not."""
    config = plan.calibration
    made = account.all(AuxiliaryImages)
    every: list[Placed[Any]] = [*account.all(AuxiliarySent), *made]
    for placed in every:
        label = placed.record.label
        is_asked = config.asks_silos or placed in made
        if label != config.images or not is_asked:
            yield fail(
                "auxiliary",
                f'{account.party}: the plan says "{config.images}", but what came '
                f'has the label "{label:.20}".',
                place(account, placed),
                party=account.party,
            )


def _images(plan: RunPlan, aggregator: Account) -> Iterator[Finding]:
    """Yield where the images are not those of the plan, or changed in the run."""
    made = aggregator.all(AuxiliaryImages)
    trained = aggregator.all(Calibrated)
    if trained and (not made or trained[0].index < made[0].index):
        yield fail(
            "auxiliary",
            "The aggregator trained after the mean before it named the images.",
            place(aggregator, trained[0]),
            party=AGGREGATOR,
        )
    for placed in made:
        if wrong := _other_images(plan, aggregator, placed.record):
            yield fail(
                "auxiliary",
                f"The auxiliary images are not those of the plan: {wrong}.",
                place(aggregator, placed),
                party=AGGREGATOR,
            )
    if len({placed.record.digest for placed in made}) > 1:
        yield fail(
            "auxiliary",
            "The aggregator changed its auxiliary images in the run.",
            party=AGGREGATOR,
        )


def _other_images(plan: RunPlan, aggregator: Account, images: AuxiliaryImages) -> str:
    """Return in what images differ from those of the plan; nothing if they do not."""
    config = plan.calibration
    if (images.name, images.source) != (config.name, config.sha256):
        return "another data set"
    if images.source_round != config.source_round:
        return f"of round {images.source_round}, not {config.source_round}"
    if config.images == "aggregate" and images.num_images != config.num_images:
        return f"{images.num_images:,}, not {config.num_images:,}"
    gave = {placed.record.silo for placed in aggregator.all(AuxiliarySent)}
    if not config.asks_silos:
        return f"{listing(images.silos)} gave some" if images.silos else ""
    if not set(images.silos) <= gave:
        silent = sorted(set(images.silos) - gave)
        return f"nothing of {listing(silent)} is recorded to have arrived"
    counts = dict(
        zip((s.name for s in plan.silos), samples_per_silo(plan), strict=True)
    )
    if images.num_images != sum(counts[silo] for silo in images.silos):
        return f"{images.num_images:,} of {listing(images.silos)}"
    if len(images.silos) < plan.protection.min_cohort:
        return f"of {count(len(images.silos), 'silo')} only"
    return ""


def _both_ends(silo: Account, aggregator: Account) -> Iterator[Finding]:
    """Yield where a silo and the aggregator speak of different messages."""
    own = {(p.record.upload, p.record.size_bytes) for p in silo.all(AuxiliarySent)}
    if len(own) > 1:
        yield fail(
            "auxiliary",
            f"{silo.party} gave {len(own)} different answers for auxiliary images.",
            party=silo.party,
        )
    arrived = {placed.record.silo for placed in aggregator.all(AuxiliarySent)}
    dropped = {
        placed.record.silo
        for placed in aggregator.all(Dropped)
        if placed.record.stage == STAGE
    }
    if own and silo.party not in arrived | dropped and not aggregator.broken:
        yield fail(
            "auxiliary",
            f"{silo.party} gave something for auxiliary images that the aggregator "
            "does not show.",
            party=AGGREGATOR,
        )
    for placed in aggregator.all(AuxiliarySent):
        record = placed.record
        is_known = (record.upload, record.size_bytes) in own or silo.broken
        if record.silo == silo.party and not is_known:
            yield fail(
                "auxiliary",
                f"{silo.party}: the aggregator has something of it for auxiliary "
                "images that the silo never recorded.",
                place(aggregator, placed),
                party=silo.party,
            )


def _unpaid(plan: RunPlan, silo: Account) -> Iterator[Finding]:
    """Yield where something left before its price was written down."""
    if not plan.privacy.is_private:
        return
    spent = [placed.index for placed in silo.all(PrivacySpent)]
    for placed in silo.all(AuxiliarySent)[:1]:
        if not spent or spent[0] > placed.index:
            yield fail(
                "auxiliary",
                f"{silo.party} gave something for auxiliary images without writing "
                "down before what it spent.",
                place(silo, placed),
                party=silo.party,
            )


def _calibrated(accounts: Accounts) -> list[Finding]:
    """Check that the aggregator trained when, and for as long as, the plan says."""
    aggregator, config = accounts.aggregator, accounts.plan.calibration
    if aggregator is None:
        return [
            warn("calibration", "Not checked: the aggregator's transcript is gone.")
        ]
    records = aggregator.all(Calibrated)
    found = [*_wrong_training(accounts.plan, aggregator), *_wrong_times(aggregator)]
    examples = sum(placed.record.examples for placed in records)
    said = (
        f"After {count(len(records), 'round')} the aggregator trained "
        f"{config.steps:,} steps on auxiliary images, {examples:,} examples in all."
    )
    if not records:
        said = "Learning was never found to be slow; nothing was corrected."
    return settle("calibration", found, said)


def _wrong_training(plan: RunPlan, aggregator: Account) -> Iterator[Finding]:
    """Yield trainings that are not those of the plan."""
    config, is_once = plan.calibration, plan.calibration.when == "slow-learning"
    steps = (config.steps, config.steps * config.examples_per_step)
    earliest = config.source_round + (config.window if is_once else 0)
    for placed in aggregator.all(Calibrated):
        record = placed.record
        wrong = ""
        if (record.steps, record.examples) != steps:
            wrong = f"{record.steps:,} steps on {record.examples:,} examples"
        elif record.triggered != is_once:
            wrong = (
                "the rule of slow learning decided" if record.triggered else "always"
            )
        elif record.round_number <= earliest:
            wrong = f"in round {record.round_number}, too early"
        if wrong:
            yield fail(
                "calibration",
                f"Round {record.round_number}: the training after the mean is not the "
                f"plan's: {wrong}.",
                place(aggregator, placed),
                party=AGGREGATOR,
                round_number=record.round_number,
            )


def _wrong_times(aggregator: Account) -> Iterator[Finding]:
    """Yield rounds that were trained after twice, not at all, or without a mean."""
    config = aggregator.plan.calibration
    rounds = [placed.record.round_number for placed in aggregator.all(Calibrated)]
    closed = {placed.record.round_number for placed in aggregator.all(RoundClosed)}
    if config.when == "slow-learning" and len(rounds) > 1:
        yield fail(
            "calibration",
            f"The one correction was made {len(rounds)} times.",
            party=AGGREGATOR,
            round_number=rounds[1],
        )
    for number in sorted({n for n in rounds if rounds.count(n) > 1}):
        yield fail(
            "calibration",
            f"Round {number}: trained after the mean twice.",
            party=AGGREGATOR,
            round_number=number,
        )
    due = {number for number in closed if number > config.source_round}
    missing = due - set(rounds) if config.when == "every-round" else set()
    unfinished = {aggregator.last_round} if aggregator.last(Finished) is None else set()
    lonely = set(rounds) - closed - unfinished
    for number in sorted(missing | lonely):
        what = "not trained" if number in missing else "trained without a mean"
        yield fail(
            "calibration",
            f"Round {number}: {what} after the mean.",
            party=AGGREGATOR,
            round_number=number,
        )
