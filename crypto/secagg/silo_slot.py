"""The silo's work in one slot: what it signs, what it accepts, what it reveals.

Pure functions of the setup and the silo's state; order, signatures and memory are
``silo_side``'s. Together the checks of this file are the reason why the aggregator
learns one sum of one cohort for one slot.
"""

from collections.abc import Mapping
from dataclasses import replace

from crypto.errors import ProtocolViolation
from crypto.frame import Kind
from crypto.secagg.checks import (
    check_enough,
    check_inside,
    check_part,
    check_threshold,
)
from crypto.secagg.digests import slot_digest
from crypto.secagg.masks import PartMasks, SlotSecrets, derive_masks
from crypto.secagg.messages import Confirms, Reveal, SumNotice, Survivors
from crypto.secagg.parts import (
    Parts,
    check_groups,
    check_parts,
    contributors_of,
    within,
    words_of,
)
from crypto.secagg.ready import Active, Ready
from crypto.secagg.setup import Setup
from crypto.secagg.silo_state import SlotProgress
from crypto.secagg.upload import Upload
from crypto.shamir import SHARE_BYTES


def check_active(
    setup: Setup,
    index: int,
    members: tuple[int, ...],
    expected: Ready,
    progress: SlotProgress,
    message: Active,
    parts: Parts,
) -> SlotProgress:
    """Return the progress bound to a cohort whose members all signed our READY.

    Args:
        members: U2.
        expected: what this silo has signed in READY.
        parts: as this silo computes them, with contributors in the cohort or not.

    Raises:
        ProtocolViolation: another model, round, setup or head; a cohort that is too
            small, has a stranger or lacks this silo; or too few of it contribute to a
            part.
        InvalidSignature: a member did not sign this READY.
    """
    for name in ("members_digest", "round_number", "model_digest", "head"):
        if getattr(message.ready, name) != getattr(expected, name):
            raise ProtocolViolation(f"ACTIVE has another {name} than this silo")
    config, cohort = setup.config, tuple(sorted(message.signatures))
    check_enough(config, cohort, "ACTIVE")
    check_part(cohort, members, "ACTIVE")
    check_inside(index, cohort, "ACTIVE")
    check_groups(parts, cohort, config.min_cohort, "ACTIVE")
    body = expected.to_bytes()
    setup.verify_all(Kind.READY, progress.slot, body, message.signatures)
    agreed = slot_digest(
        expected.members_digest,
        progress.slot,
        progress.round_number,
        progress.model_digest,
        cohort,
        parts,
        config.num_silos,
    )
    return replace(
        progress, slot_digest=agreed, cohort=cohort, parts=within(parts, cohort)
    )


def check_upload(upload: Upload, parts: Parts, index: int) -> None:
    """Raise ``ValueError`` for an upload that is sealed or not as long as the parts."""
    check_parts(parts)
    if upload.is_sealed:
        raise ValueError("upload: has been sealed before")
    if upload.words.size != (expected := words_of(parts, index)):
        raise ValueError(
            f"upload: has {upload.words.size} words, this silo's parts have {expected}"
        )


def own_masks(
    setup: Setup, index: int, keys: bytes, own: SlotSecrets, progress: SlotProgress
) -> list[PartMasks]:
    """Return the masks of this silo's vector in a slot whose cohort stands.

    Raises:
        ProtocolViolation: a peer's public key is of low order.
    """
    publics = setup.slot_publics(keys, progress.slot, progress.cohort)
    return derive_masks(own, index, publics, progress.slot_digest, progress.parts)


def accept_survivors(
    setup: Setup, index: int, progress: SlotProgress, message: Survivors
) -> SlotProgress:
    """Return the progress bound to a list of survivors, the only one of its slot.

    Raises:
        ProtocolViolation: the slot masked nothing, or for another cohort; survivors are
            too few, in all or in a part, are not all of the cohort or lack this silo;
            or another list was accepted before.
    """
    if not progress.slot_digest or message.slot_digest != progress.slot_digest:
        raise ProtocolViolation(
            f"SURVIVORS of a cohort for which slot {progress.slot} sent nothing"
        )
    check_enough(setup.config, message.survivors, "SURVIVORS")
    check_part(message.survivors, progress.cohort, "SURVIVORS")
    check_inside(index, message.survivors, "SURVIVORS")
    min_cohort = setup.config.min_cohort
    check_groups(progress.parts, message.survivors, min_cohort, "SURVIVORS")
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
    """Return one share of each contributor: of a survivor's seed or a dropout's key.

    Guarantees: never both of one silo, because the survivors of a slot are accepted
    once and the shares are deleted with this answer.
    """
    shares = [
        held[silo][:SHARE_BYTES]
        if silo in progress.survivors
        else held[silo][SHARE_BYTES:]
        for silo in contributors_of(progress.parts, progress.cohort)
    ]
    return Reveal(progress.slot_digest, shares)


def check_sum(progress: SlotProgress, notice: SumNotice) -> SlotProgress:
    """Return the progress closed by the digest of the slot's sum.

    Raises:
        ProtocolViolation: of another cohort or other survivors than this silo knows,
            or another sum than the one announced before.
    """
    found = notice.survivors
    if not progress.slot_digest or found.slot_digest != progress.slot_digest:
        raise ProtocolViolation("SUM of a cohort that this silo was not in")
    if progress.survivors not in ((), found.survivors):
        raise ProtocolViolation("SUM over other survivors than those confirmed")
    if progress.sum_digest not in (b"", notice.sum_digest):
        raise ProtocolViolation(f"a second, different SUM of slot {progress.slot}")
    return replace(
        progress,
        survivors=found.survivors,
        reveal=b"",
        sum_digest=notice.sum_digest,
    )
