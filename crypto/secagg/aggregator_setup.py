"""The aggregator's work in the setup: collect keys, carry sealed shares.

Functions of the setup and the aggregator's state; order, signatures and the closing of
stages are ``aggregator_side``'s.
"""

from crypto.errors import ProtocolViolation
from crypto.keys import AgreementKey
from crypto.secagg.aggregator_state import SetupState
from crypto.secagg.checks import are_canonical
from crypto.secagg.digests import keys_digest
from crypto.secagg.messages import (
    Advertise,
    Envelopes,
    Keys,
    Shares,
    Signed,
    sealed_shares,
)
from crypto.secagg.setup import Setup
from crypto.signatures import SIGNATURE_BYTES


def parse_entry(setup: Setup, entry: bytes) -> Advertise:
    """Parse an ADVERTISE that is followed by its signature."""
    body = entry[:-SIGNATURE_BYTES]
    return Advertise.from_bytes(body, setup.config.num_slot_keys)


def publics_of(setup: Setup, state: SetupState) -> set[bytes]:
    """Return all public keys that were advertised so far."""
    return {
        public
        for entry in state.advertised.values()
        for public in parse_entry(setup, entry).publics
    }


def check_publics(known: set[bytes], message: Advertise) -> None:
    """Refuse keys that would make every other silo refuse the setup.

    Raises:
        ProtocolViolation: a key that occurs twice or is not canonical, or a point of
            low order.
    """
    if not are_canonical(b"".join(message.publics)):
        raise ProtocolViolation("a public key that is not canonical")
    own = set(message.publics)
    if len(own) < len(message.publics) or own & known:
        raise ProtocolViolation("a public key that occurs twice")
    probe = AgreementKey.generate()
    for public in message.publics:
        probe.exchange(public)


def make_keys(setup: Setup, state: SetupState) -> bytes:
    """Return the body of KEYS."""
    message = Keys(
        {
            silo: Signed(entry[:-SIGNATURE_BYTES], entry[-SIGNATURE_BYTES:])
            for silo, entry in state.advertised.items()
        }
    )
    return message.to_bytes(setup.config.num_silos, setup.config.num_slot_keys)


def check_shares(setup: Setup, state: SetupState, body: bytes) -> None:
    """Check SHARES, which hold an envelope for every other silo of KEYS.

    Raises:
        MalformedMessage: not a canonical message.
        ProtocolViolation: an answer to another KEYS.
    """
    num_peers = len(state.advertised) - 1
    message = Shares.from_bytes(body, num_peers, setup.config.slots_per_setup)
    if message.keys_digest != keys_digest(setup.digest, state.keys):
        raise ProtocolViolation("SHARES answer another KEYS")


def make_envelopes(
    setup: Setup, state: SetupState, members: tuple[int, ...], silo: int
) -> bytes:
    """Return the body of ENVELOPES for one member: what the others sealed to it."""
    config, order = setup.config, sorted(state.advertised)
    place = order.index(silo)
    sealed = tuple(
        sealed_shares(
            state.shares[sender],
            place - (order.index(sender) < place),
            config.slots_per_setup,
        )
        for sender in members
        if sender != silo
    )
    agreed = keys_digest(setup.digest, state.keys)
    envelopes = Envelopes(agreed, members, sealed)
    return envelopes.to_bytes(config.num_silos, config.slots_per_setup)
