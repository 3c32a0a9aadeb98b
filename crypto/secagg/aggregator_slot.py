"""The aggregator's work in one slot: what silos must have signed, and the unmasking.

Functions of the setup and the aggregator's state; order, signatures and the closing of
stages are ``aggregator_side``'s.
"""

from collections.abc import Callable

from crypto.errors import ProtocolViolation
from crypto.keys import AgreementKey
from crypto.secagg.aggregator_setup import advertised_by
from crypto.secagg.aggregator_state import AggregatorState, SlotSum
from crypto.secagg.checks import require_call
from crypto.secagg.digests import (
    commit_to_seed,
    keys_digest,
    members_digest,
    slot_digest,
)
from crypto.secagg.masks import unmask
from crypto.secagg.messages import Ready, Reveal, decode_silos
from crypto.secagg.recovery import open_secrets
from crypto.secagg.setup import Setup


def is_revealing(setup: Setup, slot: SlotSum) -> bool:
    """Whether silos may have revealed shares of the slot."""
    semi_honest = setup.config.trust == "semi-honest"
    return bool(slot.confirms or (semi_honest and slot.survivors))


def check_new_slot(
    setup: Setup, state: AggregatorState, slot: int, round_number: int
) -> None:
    """Raise ``RuntimeError`` for a slot that is spent, or a round that must not go on.

    Once silos were asked to reveal, only that very slot can be completed: a second sum
    over other survivors would show their difference.
    """
    last = state.slot
    first = 0 if last is None else last.slot + 1
    require_call(bool(state.members), "open_slot() before envelopes()")
    require_call(
        first <= slot < setup.config.slots_per_setup, f"slot {slot} is spent or none"
    )
    require_call(
        last is None
        or not is_revealing(setup, last)
        or round_number > last.round_number,
        f"round {round_number}: shares were asked for, no further slot serves it",
    )


def expected_ready(setup: Setup, state: AggregatorState, slot: SlotSum) -> Ready:
    """Return what every silo of the cohort must have signed in READY."""
    num_silos = setup.config.num_silos
    agreed = members_digest(
        keys_digest(setup.digest, state.keys),
        decode_silos(state.members, num_silos),
        num_silos,
    )
    return Ready(agreed, slot.round_number, slot.model_digest)


def agreed_digest(setup: Setup, state: AggregatorState, slot: SlotSum) -> bytes:
    """Return T3, once the cohort stands."""
    return slot_digest(
        expected_ready(setup, state, slot).members_digest,
        slot.slot,
        slot.round_number,
        slot.model_digest,
        slot.ready,
        setup.config.num_silos,
    )


def check_digest(
    setup: Setup, state: AggregatorState, slot: SlotSum, found: bytes
) -> None:
    """Raise ``ProtocolViolation`` if an answer is bound to another T3."""
    if found != agreed_digest(setup, state, slot):
        raise ProtocolViolation("an answer to another cohort, model or setup")


def take_masks_away(setup: Setup, state: AggregatorState, slot: SlotSum) -> None:
    """Open what was revealed and unmask the sum in place.

    Raises:
        InvalidShare: shares do not give what a silo committed to; the sum is unchanged.
    """
    cohort = sorted(slot.ready)
    advertised = {silo: advertised_by(setup, state, silo) for silo in cohort}
    publics = {silo: advertised[silo].slot_publics[slot.slot] for silo in cohort}
    shares = {
        silo: Reveal.from_bytes(body, len(cohort)).shares
        for silo, body in slot.reveals.items()
    }
    checks = {
        silo: _seed_check(setup, silo, slot.slot, advertised[silo].commitments)
        if silo in slot.masked
        else _key_check(publics[silo])
        for silo in cohort
    }
    opened = open_secrets(shares, setup.config.threshold, checks)
    seeds = {silo: opened[silo] for silo in cohort if silo in slot.masked}
    dropped = {
        silo: AgreementKey.from_bytes(opened[silo])
        for silo in cohort
        if silo not in slot.masked
    }
    unmask(slot.total, seeds, dropped, publics, agreed_digest(setup, state, slot))


def _seed_check(
    setup: Setup, silo: int, slot: int, commitments: tuple[bytes, ...]
) -> Callable[[bytes], bool]:
    """Return whether a value is the mask seed that a survivor committed to."""
    return lambda secret: (
        commit_to_seed(setup.digest, silo, slot, secret) == commitments[slot]
    )


def _key_check(public: bytes) -> Callable[[bytes], bool]:
    """Return whether a value is the agreement key that a dropout advertised."""
    return lambda secret: AgreementKey.from_bytes(secret).public == public
