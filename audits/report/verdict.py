"""The verdict in plain words, made from the findings and nothing else."""

from audits.audit import Audit
from audits.evidence import AGGREGATOR
from audits.findings import Severity, count, listing
from audits.report.calibration import board_sentence as calibration_sentence
from audits.report.privacy import board_sentence
from audits.report.units import format_bytes, format_share
from audits.sums import OPENED
from protocol.mechanism import not_covered as what_epsilon_leaves_out
from protocol.records import RoundClosed, RoundLost, Survivors


def headline(audit: Audit) -> str:
    """Return the verdict in one sentence."""
    failed = len(audit.with_severity(Severity.FAIL))
    warned = len(audit.with_severity(Severity.WARN))
    if failed:
        return (
            "Do not rely on this run as it stands: "
            f"{count(failed, 'finding')} of this audit failed."
        )
    if warned:
        return f"No check failed; {count(warned, 'reservation')} to know of."
    return "Every check passed."


def sentences(audit: Audit) -> list[str]:
    """Return two to five sentences that a hospital's board can read."""
    said = [
        _who(audit),
        _what_left(audit),
        _what_was_hidden(audit),
        calibration_sentence(audit),
        board_sentence(audit),
    ]
    failed = audit.with_severity(Severity.FAIL)
    if failed:
        said.insert(0, f"What failed first: {failed[0].statement}")
    return [sentence for sentence in said if sentence]


def not_covered(audit: Audit) -> list[str]:
    """Return what this audit cannot say, however it ended."""
    plan = audit.evidence.plan
    said = []
    if plan.privacy.mechanism == "none":
        said.append(
            "Differential privacy: there is none. The mean of each round and the "
            "trained model are public to the run and may reveal training examples."
        )
    else:
        said += [
            f"Not covered by epsilon: {each}." for each in what_epsilon_leaves_out(plan)
        ]
        said.append(
            "Whether a silo's software did what it wrote down: the events are its own "
            "words. `silo self-test` shows its operator that the mechanism is what it "
            "says."
        )
    if plan.protection.method == "mask":
        number = plan.protection.max_colluding
        silos = {0: "any silo", 1: "more than one silo"}.get(
            number, f"more than {number} silos"
        )
        said.append(
            f"Collusion of {silos} with the aggregator: silos that tell the "
            "aggregator what they know narrow down the updates of the others."
        )
    if plan.protection.is_encrypted:
        said.append(
            "Collusion of any silo with the aggregator: every silo has the key, and "
            "one that gives it away opens each silo's update, not only sums."
        )
    if plan.protection.trust == "semi-honest" and plan.protection.method == "mask":
        said.append("An aggregator that departs from the protocol: the plan trusts it.")
    said += [
        "Whether the keys in the plan belong to the institutions named in it: compare "
        "the plan's digest with the one that your own operator approved.",
        "What happened outside this software: copies of the data, other programs on "
        "the silos' machines, what people told each other.",
        "Whether the silos trained on the images they say they have; a silo may spoil "
        "the model, and secure aggregation hides which one did.",
    ]
    if audit.evidence.missing:
        missing = listing(audit.evidence.missing)
        said.insert(0, f"The transcripts that are missing: {missing}.")
    return said


def _who(audit: Audit) -> str:
    """Say who did what, and for how long."""
    plan, aggregator = audit.evidence.plan, audit.accounts.aggregator
    silos = count(len(plan.silos), "silo")
    if aggregator is None:
        rounds = count(plan.num_rounds, "round")
        return (
            f"The plan lets {silos} train one model in {rounds}; without "
            "the aggregator's transcript nobody can say how many ended well."
        )
    closed = len({p.record.round_number for p in aggregator.all(RoundClosed)})
    lost = len({p.record.round_number for p in aggregator.all(RoundLost)})
    rounds = f"{closed:,} of {count(plan.num_rounds, 'planned round')}"
    tail = f"; {count(lost, 'round')} ended without a result" if lost else ""
    return f"{silos} trained one model together in {rounds}{tail}."


def _what_left(audit: Audit) -> str:
    """Say what left the silos."""
    totals = [d.total for d in audit.disclosures if d.stages]
    if not totals:
        return "No transcript says how much left the silos."
    low, high = min(t.sent for t in totals), max(t.sent for t in totals)
    sent, vector = sum(t.sent for t in totals), sum(t.vector for t in totals)
    amount = format_bytes(low)
    if format_bytes(high) != amount:
        amount = f"between {amount} and {format_bytes(high)}"
    form, rest = {
        "mask": ("masked updates", "keys, sealed shares and signatures"),
        "bfv": ("encrypted updates", "sealed keys, decrypted sums and signatures"),
        "none": ("updates in the clear", "keys, sealed shares and signatures"),
    }[audit.evidence.plan.protection.method]
    if audit.evidence.plan.calibration.asks_silos:
        rest += ", and what it gave for auxiliary images"
    return (
        f"Each silo sent {amount} to the aggregator, {format_share(vector, sent)} of "
        f"it {form}, the rest {rest}; the transcripts "
        "record nothing else that left a silo."
    )


def _what_was_hidden(audit: Audit) -> str:
    """Say whether single updates stayed hidden, as far as the evidence shows."""
    if audit.evidence.plan.protection.method == "none":
        return (
            "The aggregator could read every silo's update: the plan protects them "
            "with nothing."
        )
    if audit.with_severity(Severity.FAIL):
        return (
            "Because of what failed, the evidence does not show that each silo's "
            "update stayed hidden from the aggregator."
        )
    sums = _opened_sums(audit)
    if not sums:
        return "No update was opened, alone or in a sum."
    claim = (
        f"As far as the evidence shows, the aggregator could not read any silo's own "
        f"update: it opened {count(len(sums), 'sum')}, each of at least "
        f"{count(min(sums), 'update')}, and nobody revealed what would open one alone"
    )
    if audit.evidence.plan.protection.is_encrypted:
        claim = (
            "As far as the evidence shows, the aggregator could not read any silo's "
            f"own update: silos decrypted {count(len(sums), 'sum')} for it, each of at "
            f"least {count(min(sums), 'update')}; this holds as long as no silo gave "
            "it the key that they share, which no record would show"
        )
    silos = [name for name in audit.evidence.missing if name != AGGREGATOR]
    if AGGREGATOR in audit.evidence.missing:
        return f"{claim}; the aggregator's own transcript is missing."
    if silos:
        return f"{claim}; what {listing(silos)} did is known from the others only."
    return f"{claim}."


def _opened_sums(audit: Audit) -> list[int]:
    """Return how many updates each opened sum held."""
    opened = {
        (p.record.setup, p.record.slot)
        for account in audit.accounts.everyone
        for kind in OPENED
        for p in account.all(kind)
    }
    sizes: dict[tuple[int, int], int] = {}
    for account in audit.accounts.everyone:
        for placed in account.all(Survivors):
            record = placed.record
            name = (record.setup, record.slot)
            if name in opened:
                sizes.setdefault(name, len(record.silos))
    return list(sizes.values())
