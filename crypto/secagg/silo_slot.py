"""The silo's work in one slot: what it signs, what it accepts, what it reveals.

Pure functions of the setup and the silo's state; order, signatures and memory are
``silo_side``'s. Together the checks of this file are the reason why the aggregator
learns one sum of one cohort for one slot.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from crypto.errors import ProtocolViolation
from crypto.frame import Kind
from crypto.secagg.checks import (
    check_enough,
    check_inside,
    check_part,
    check_threshold,
)
from crypto.secagg.digests import keys_digest, members_digest, slot_digest
from crypto.secagg.masks import SlotSecrets, mask
from crypto.secagg.messages import Active, Confirms, Masked, Ready, Reveal, Survivors
from crypto.secagg.setup import Setup
from crypto.secagg.silo_state import SiloState, SlotProgress
from crypto.shamir import SHARE_BYTES

Words = npt.NDArray[np.uint64]


def check_new_slot(
    setup: Setup, state: SiloState, slot: int, round_number: int
) -> None:
    """Refuse a slot that is spent, and a round that may have had its sum.

    Raises:
        ProtocolViolation: no such slot or round; a slot that is not above all used
            before; or a share was revealed in this round or a later one.
    """
    num_slots = setup.config.slots_per_setup
    if not 0 <= slot < num_slots:
        raise ProtocolViolation(f"slot {slot} of a setup with {num_slots} slots")
    if slot not in state.secrets:
        raise ProtocolViolation(f"slot {slot} is spent: slots only go up")
    if not 1 <= round_number < 1 << 32:
        raise ProtocolViolation(f"round {round_number} does not exist")
    if round_number <= state.revealed_round:
        raise ProtocolViolation(
            f"round {round_number}: shares of round {state.revealed_round} have been "
            "revealed, no further slot serves it"
        )


def expected_ready(setup: Setup, state: SiloState, progress: SlotProgress) -> Ready:
    """Return what this silo signs in READY, and expects every other to have signed."""
    agreed = keys_digest(setup.digest, state.keys)
    members = members_digest(agreed, state.members, setup.config.num_silos)
    return Ready(members, progress.round_number, progress.model_digest)


def check_active(
    setup: Setup, index: int, state: SiloState, progress: SlotProgress, message: Active
) -> SlotProgress:
    """Return the progress bound to a cohort whose members all signed our READY.

    Raises:
        ProtocolViolation: another model, round or setup; a cohort that is too small,
            has a stranger or lacks this silo.
        InvalidSignature: a member did not sign this READY.
    """
    expected = expected_ready(setup, state, progress)
    for name in ("members_digest", "round_number", "model_digest"):
        if getattr(message.ready, name) != getattr(expected, name):
            raise ProtocolViolation(f"ACTIVE has another {name} than this silo")
    cohort = tuple(sorted(message.signatures))
    check_enough(setup.config, cohort, "ACTIVE")
    check_part(cohort, state.members, "ACTIVE")
    check_inside(index, cohort, "ACTIVE")
    body = expected.to_bytes()
    setup.verify_all(Kind.READY, progress.slot, body, message.signatures)
    agreed = slot_digest(
        expected.members_digest,
        progress.slot,
        progress.round_number,
        progress.model_digest,
        cohort,
        setup.config.num_silos,
    )
    return replace(progress, slot_digest=agreed, cohort=cohort)


def check_words(words: Words) -> None:
    """Raise ``ValueError`` for what is not a vector of 64-bit words."""
    if words.dtype != np.uint64 or words.ndim != 1 or not words.size:
        raise ValueError(f"words: must be uint64 [w], is {words.dtype} {words.shape}")


def mask_copy(
    setup: Setup,
    index: int,
    keys: bytes,
    own: SlotSecrets,
    progress: SlotProgress,
    words: Words,
) -> Masked:
    """Return a masked copy of the words.

    Raises:
        ProtocolViolation: a peer's public key is of low order.
    """
    advertised = setup.read_keys(keys)
    publics = {
        silo: advertised[silo].slot_publics[progress.slot] for silo in progress.cohort
    }
    masked = np.array(words, np.uint64, order="C")
    mask(masked, own, index, publics, progress.slot_digest)
    return Masked(progress.slot_digest, masked.astype("<u8", copy=False).data.cast("B"))


def accept_survivors(
    setup: Setup, index: int, progress: SlotProgress, message: Survivors
) -> SlotProgress:
    """Return the progress bound to a list of survivors, the only one of its slot.

    Raises:
        ProtocolViolation: the slot masked nothing, or for another cohort; survivors are
            too few, are not all of the cohort or lack this silo; or another list was
            accepted before.
    """
    if not progress.slot_digest or message.slot_digest != progress.slot_digest:
        raise ProtocolViolation(
            f"SURVIVORS of a cohort for which slot {progress.slot} masked nothing"
        )
    check_enough(setup.config, message.survivors, "SURVIVORS")
    check_part(message.survivors, progress.cohort, "SURVIVORS")
    check_inside(index, message.survivors, "SURVIVORS")
    if progress.survivors not in ((), message.survivors):
        raise ProtocolViolation(
            f"SURVIVORS differ from those confirmed in slot {progress.slot}"
        )
    return replace(progress, survivors=message.survivors)


def check_confirms(setup: Setup, progress: SlotProgress, message: Confirms) -> None:
    """Return if enough of the cohort signed the survivors that this silo confirmed.

    Raises:
        ProtocolViolation: this silo confirmed nothing or another list; signatures are
            too few or from outside the cohort.
        InvalidSignature: a silo did not sign this list.
    """
    own = Survivors(progress.slot_digest, progress.survivors)
    if not progress.survivors or message.confirm != own:
        raise ProtocolViolation("CONFIRMS of survivors that this silo did not confirm")
    check_threshold(setup.config, message.signatures, "CONFIRMS")
    check_part(tuple(message.signatures), progress.cohort, "CONFIRMS")
    body = own.to_bytes(setup.config.num_silos)
    setup.verify_all(Kind.CONFIRM, progress.slot, body, message.signatures)


def choose_shares(progress: SlotProgress, held: Mapping[int, bytes]) -> Reveal:
    """Return one share of each silo: of a survivor's seed, or of a dropout's key.

    Guarantees: never both of one silo, because the survivors of a slot are accepted
    once and the shares are deleted with this answer.
    """
    shares = [
        held[silo][:SHARE_BYTES]
        if silo in progress.survivors
        else held[silo][SHARE_BYTES:]
        for silo in progress.cohort
    ]
    return Reveal(progress.slot_digest, shares)
