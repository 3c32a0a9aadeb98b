"""Who could see what, whose data it was, and what cannot be verified."""

from typing import Any

from audits.audit import Audit
from audits.report.privacy import may_quote, quoted
from audits.spending import spendings
from protocol import noise_claim
from protocol.noise_plan import prices
from protocol.plan import RunPlan
from protocol.records import LedgerOpened

Table = dict[str, Any]

NETWORK = "Whoever reads the network"


def scope_rows(audit: Audit) -> list[list[str]]:
    """Return, for each adversary, what it could see and which guarantee holds."""
    alone, in_sum = _guarantees(audit)
    return [
        *_in_the_run(audit.evidence.plan, alone, in_sum),
        [
            "The aggregator, should secure aggregation fail",
            "each silo's update",
            alone,
        ],
        [
            "Another silo, or whoever has the trained model",
            "the global models of all rounds, the final one, its samples",
            in_sum,
        ],
        [
            "Somebody inside a silo",
            "that silo's images and everything it computes",
            "none: a silo is not protected from itself",
        ],
    ]


def _in_the_run(plan: RunPlan, alone: str, in_sum: str) -> list[list[str]]:
    """Return what the aggregator, the network, and silos beside them could see."""
    colluding = f"up to {plan.protection.max_colluding} of the silos"
    sums = "sums over a round's survivors, and everything that is published"
    if plan.protection.method == "none":
        return [
            ["The aggregator", "each silo's update in the clear", alone],
            [NETWORK, "sizes and times of messages; updates in the clear", alone],
            [f"The aggregator with {colluding}", "each silo's update", alone],
        ]
    if plan.protection.is_encrypted:
        return [
            ["The aggregator", f"{sums}; of single updates ciphertexts", in_sum],
            [
                NETWORK,
                "sizes and times of messages; ciphertexts, sealed keys, decrypted sums",
                in_sum,
            ],
            [
                "The aggregator with any one of the silos",
                "each silo's update: every silo has the key that opens all of them",
                alone,
            ],
            ["A silo that comes by another's upload", "that silo's update", alone],
        ]
    return [
        ["The aggregator", sums, in_sum],
        [
            NETWORK,
            "sizes and times of messages; masked vectors, sealed shares",
            in_sum,
        ],
        [
            f"The aggregator with {colluding}",
            "the sum of the other silos' updates",
            in_sum,
        ],
    ]


def _guarantees(audit: Audit) -> tuple[str, str]:
    """Return what is guaranteed of a single update, and of sums and models."""
    plan, privacy = audit.evidence.plan, audit.evidence.plan.privacy
    hidden = {
        "mask": "secure aggregation: no single update is seen",
        "bfv": "encryption: no single update is seen, unless a silo gives the key away",
        "none": "none",
    }[plan.protection.method]
    if not privacy.is_private:
        return "none", f"{hidden}; no differential privacy of what is seen"
    if not may_quote(audit):
        nothing = "no epsilon may be quoted, since a check failed"
        return nothing, nothing
    if privacy.is_in_sum:
        whole, share = prices(plan, privacy.delta)
        return (
            f"epsilon {noise_claim.upward(share)} at delta {privacy.delta:g}, from a "
            "silo's own noise",
            f"epsilon {noise_claim.upward(whole)} at delta {privacy.delta:g}, as long "
            "as the assumptions of the claim hold",
        )
    unit = "image" if privacy.unit == "example" else privacy.unit
    spent = spendings(audit.accounts)
    most = max(spent, key=lambda spending: spending.epsilon, default=None)
    price = "unknown" if most is None else quoted(plan, most)
    said = f"epsilon {price} at delta {privacy.delta:g} per {unit}"
    if plan.protection.is_hidden:
        hiding = "encryption" if plan.protection.is_encrypted else "secure aggregation"
        return said, f"{said}; {hiding} on top, without a number"
    return said, said


def data_rows(audit: Audit) -> list[Table]:
    """Return what the transcripts say of each silo's data: nearly nothing."""
    rows = []
    for silo in audit.evidence.plan.silos:
        account = audit.accounts.silos.get(silo.name)
        opened = account.last(LedgerOpened) if account else None
        record = opened.record if opened else None
        rows.append(
            {
                "silo": silo.name,
                "weight": _weight(audit.evidence.plan, silo.weight),
                "unit": record.unit if record else None,
                "commitment": record.commitment if record else None,
                "fresh_ledger": record.fresh if record else None,
                "randomness": record.randomness if record else None,
            }
        )
    return rows


def _weight(plan: RunPlan, weight: float) -> str:
    """Say what a silo counts for in the mean."""
    if plan.update.weights == "declared":
        return f"{weight:g}"
    return {"equal": "the same for all", "secret": "known to the silo alone"}[
        plan.update.weights
    ]


def limits(plan: RunPlan) -> list[str]:
    """Return what nobody can verify from plan and transcripts."""
    said = [
        "Transcripts are signed statements of the parties. A party that lies from the "
        "first record on, without contradicting another party, is not found out.",
        "A party can cut off the tail of its own transcript after the last head that "
        "it showed to others; such a transcript does not reach the end of the run.",
        "How many images a silo has, where they come from, and whether two silos hold "
        "the same people: no record says it.",
        "Which source code and which libraries ran: a transcript names the software's "
        "version as its party tells it, and no digest of code or packages.",
        "Times in a transcript are those of the party's own clock, unless somebody "
        "outside has put a time to a head.",
        "Bugs of the software itself: its privacy mechanism is implemented once, and "
        "`silo self-test`, canaries and this audit only look for errors of kinds that "
        "were thought of.",
    ]
    if plan.protection.is_encrypted:
        said.append(
            "Whether a silo gave the shared key to the aggregator, or lost it: no "
            "record would say so, and every update of the setup would be open."
        )
    if plan.privacy.is_private:
        said.append(
            "Floating-point arithmetic: the price is that of real Gaussian noise, or "
            "of exact integer noise where the noise is inside the sum."
        )
    return said
