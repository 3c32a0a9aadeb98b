"""Parameters moved in a run, as FedDiffuse counts them, and as a run here moves them.

The paper counts parameters of all silos in both directions. Its first broadcast is the
full model, whatever is federated; a run here begins with what every silo builds from
the plan's seed, and ends by telling the silos the last model. Bytes, with all that
surrounds them, are in ``protocol.traffic``.

Source: de Goede et al. 2024 (FedDiffuse), the counter ``params_shared`` of its code and
figure 4.
"""

from collections.abc import Mapping

from protocol.dealing import BOTTLENECK, DECODER, ENCODER

FEDERATED: Mapping[str, tuple[str, ...]] = {
    "full": (ENCODER, BOTTLENECK, DECODER),
    "usplit": (ENCODER, BOTTLENECK, DECODER),
    "ulatdec": (BOTTLENECK, DECODER),
    "udec": (DECODER,),
}
"""The parts that a selection federates."""


def parameters_moved(
    selection: str, num_silos: int, num_rounds: int, parts: Mapping[str, int]
) -> float:
    """Return the parameters that a run of the paper moves, on the mean over its coins.

    P is the model, S what is federated::

        full, ulatdec, udec   K (P + S (2 R - 1))      the first broadcast is P
        usplit                R (K P + up)             P is broadcast in every round

    Args:
        parts: parameters of encoder, bottleneck and decoder.
    """
    everything = sum(parts.values())
    shared = sum(parts[part] for part in FEDERATED[selection])
    if selection == "usplit":
        up = usplit_parameters_up(num_silos, parts)
        return num_rounds * (num_silos * everything + up)
    return num_silos * (everything + shared * (2 * num_rounds - 1))


def parameters_moved_here(
    selection: str, num_silos: int, num_rounds: int, parts: Mapping[str, int]
) -> float:
    """Return the parameters that a run here moves: nothing is broadcast first.

    Up in every round; down before every round but the first, and at the end.
    """
    shared = sum(parts[part] for part in FEDERATED[selection])
    up: float = num_silos * shared
    if selection == "usplit":
        up = usplit_parameters_up(num_silos, parts)
    return num_rounds * (num_silos * shared + up)


def usplit_parameters_up(num_silos: int, parts: Mapping[str, int]) -> float:
    """Return what all silos of USplit send in one round, on the mean over its coins.

    Each pair sends the model once. With an odd number the last silo sends the
    bottleneck, and by a coin the encoder or the decoder; alone it sends everything.
    """
    everything = sum(parts.values())
    if num_silos == 1:
        return everything
    pairs, left = divmod(num_silos, 2)
    last = parts[BOTTLENECK] + (parts[ENCODER] + parts[DECODER]) / 2
    return pairs * everything + left * last
