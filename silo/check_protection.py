"""What an operator reads of how a plan hides updates, and what that makes of them."""

from collections.abc import Sequence

from crypto.bfv.digits import chunks_in
from crypto.bfv.parameters import FRESH_BYTES, SEALED_KEY_BYTES
from crypto.secagg.parts import Part
from protocol.packing import layouts
from protocol.plan import RunPlan


def upload_bytes(plan: RunPlan, round_number: int, sizes: Sequence[int]) -> int:
    """Return the bytes of one silo's vector as it leaves in a round.

    Args:
        sizes: values of each stretch that the silo returns.
    """
    if not plan.protection.is_encrypted:
        return sum(plan.vector_bytes(round_number, size) for size in sizes)
    parts = tuple(Part(plan.num_words(round_number, size), ()) for size in sizes)
    found = layouts(plan, round_number, parts)
    return FRESH_BYTES * sum(chunks_in(layout) for layout in found)


def besides(plan: RunPlan) -> str:
    """Say what else leaves with the updates."""
    if not plan.protection.is_encrypted:
        return "a few kB of keys, shares and signatures"
    return (
        "a few kB of signatures; where this silo makes the key, the key sealed to each "
        f"other silo, {SEALED_KEY_BYTES:,} bytes each; and where it is asked to "
        "decrypt, the sum over all in the clear"
    )


def besides_down(plan: RunPlan) -> str:
    """Say what else comes with the global model."""
    same = "the same kB of the protocol"
    if not plan.protection.is_encrypted:
        return same
    return f"{same}; where this silo is asked to decrypt, the encrypted sum"


def protection_sentences(plan: RunPlan) -> list[str]:
    """Say what the aggregator could see."""
    protection = plan.protection
    if not protection.is_hidden:
        return ["Protection: NONE; the aggregator sees this silo's update as it is."]
    spare = len(plan.silos) - protection.threshold
    lost = "no silo may be lost"
    if spare:
        lost = f"up to {spare} silo{'s' * (spare != 1)} may be lost"
    if protection.is_encrypted:
        return _encryption_sentences(plan, lost)
    follows = "follows the protocol and " if protection.trust == "semi-honest" else ""
    return [
        f"Protection: secure aggregation; {lost} in a round. The aggregator learns the "
        f"sum and nothing else, as long as it {follows}colludes with at most "
        f"{protection.max_colluding} silo{'s' * (protection.max_colluding != 1)}."
    ]


def _encryption_sentences(plan: RunPlan, lost: str) -> list[str]:
    """Say what encryption hides, and what any one silo could undo."""
    colluding, number = plan.protection.max_colluding, len(plan.silos)
    maker = plan.silos[plan.secagg_config().key_maker].name
    return [
        f"Protection: secure aggregation by ENCRYPTION (BFV); {lost} in a round. The "
        "aggregator learns the sum and nothing else, as long as no silo gives it the "
        f"key and at most {colluding} sign{'s' * (colluding == 1)} for it what is not "
        "so.",
        f"Updates are encrypted under a key that all {number} silos hold: any one of "
        "them that gives it to the aggregator opens every update of the run; masks "
        f"would withstand {colluding} such silo{'s' * (colluding != 1)}. Silo {maker} "
        "makes the key, anew for each key exchange; if it is not there, the next one "
        "of the plan.",
    ]


def sums_sentence(plan: RunPlan) -> str:
    """Say how many silos a sum holds."""
    protection = plan.protection
    least = max(protection.min_cohort, protection.threshold)
    if not plan.update.is_dealt:
        return f"Sums hold at least {least} silos."
    group = protection.min_cohort if protection.is_hidden else 1
    return f"Rounds hold at least {least} silos, sums of one part at least {group}."
