"""How the words of a round are read as slots of ciphertexts, by the plan."""

from crypto.bfv.digits import Digits, Layout
from crypto.secagg.parts import Parts
from protocol.plan import RunPlan


def layouts(plan: RunPlan, round_number: int, parts: Parts) -> tuple[Layout, ...]:
    """Return how each part of a round's vector is read.

    Updates are fields with room for their sum; what is summed around the rounds, and a
    secret weight behind an update, are whole words.
    """
    num_silos = len(plan.silos)
    if not 1 <= round_number <= plan.num_rounds:
        return tuple(
            (Digits.of_whole_words(part.num_words, num_silos),) for part in parts
        )
    field_bits, sum_bits = plan.field_bits(round_number), plan.sum_bits(round_number)
    if plan.update.weights != "secret":
        return tuple((Digits(part.num_words, field_bits, sum_bits),) for part in parts)
    weight = Digits.of_whole_words(1, num_silos)
    return tuple(
        (Digits(part.num_words - 1, field_bits, sum_bits), weight) for part in parts
    )
