"""What followed the mean, as a report says it."""

from typing import Any

from audits.audit import Audit
from audits.calibration import label_in_words
from protocol.model_records import AuxiliaryImages, AuxiliarySent, Calibrated

Table = dict[str, Any]


def calibration_table(audit: Audit) -> Table | None:
    """Return what a report says of training after the mean; nothing without it."""
    plan, aggregator = audit.accounts.plan, audit.accounts.aggregator
    config = plan.calibration
    if not config.is_on:
        return None
    images = aggregator.last(AuxiliaryImages) if aggregator else None
    trained = aggregator.all(Calibrated) if aggregator else ()
    steps = sum(placed.record.steps for placed in trained)
    examples = sum(placed.record.examples for placed in trained)
    when = {
        "every-round": "after every round (FedDDPM)",
        "slow-learning": "once, when the auxiliary loss, as a mean over "
        f"{config.window} rounds, improves by less than {config.min_improvement:.2%} "
        "(FedDDPM+)",
    }
    return {
        "label": config.images,
        "meaning": label_in_words(plan),
        "facts": [
            ["When", when[config.when]],
            ["Images", f"{images.record.num_images:,}" if images else "none recorded"],
            ["Digest of the images", images.record.digest if images else "–"],
            [
                "Extra compute",
                f"{steps:,} steps of the aggregator, {examples:,} images",
            ],
        ],
        "sent": _sent(audit),
        "rounds": [
            {
                "round_number": placed.record.round_number,
                "steps": placed.record.steps,
                "loss_before": placed.record.loss_before,
                "loss_after": placed.record.loss_after,
                "triggered": placed.record.triggered,
            }
            for placed in trained
        ],
    }


def _sent(audit: Audit) -> list[Table]:
    """Return what each silo gave: its own word, or else the aggregator's."""
    rows: dict[str, tuple[str, int]] = {}
    for account in reversed(audit.accounts.everyone):
        for placed in account.all(AuxiliarySent):
            record = placed.record
            rows[record.silo] = (record.label, record.size_bytes)
    return [
        {"silo": silo.name, "label": rows[silo.name][0], "bytes": rows[silo.name][1]}
        for silo in audit.accounts.plan.silos
        if silo.name in rows
    ]


def board_sentence(audit: Audit) -> str:
    """Return the verdict's sentence on what silos gave beside their updates."""
    plan = audit.accounts.plan
    if not plan.calibration.asks_silos:
        return ""
    return f"Beside the sums, {label_in_words(plan)}."
