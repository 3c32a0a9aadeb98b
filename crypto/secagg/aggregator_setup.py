"""The aggregator's work in the setup: collect keys, carry sealed shares.

Functions of the setup and the aggregator's state; order, signatures and the closing of
stages are ``aggregator_side``'s.
"""

from crypto.errors import ProtocolViolation
from crypto.keys import AgreementKey
from crypto.secagg.aggregator_state import AggregatorState
from crypto.secagg.digests import keys_digest
from crypto.secagg.messages import Advertise, Envelopes, Keys, Shares, Signed
from crypto.secagg.setup import Setup
from crypto.signatures import SIGNATURE_BYTES


def advertised_by(setup: Setup, state: AggregatorState, silo: int) -> Advertise:
    """Return what a silo has advertised."""
    return parse_entry(setup, state.advertised[silo])


def parse_entry(setup: Setup, entry: bytes) -> Advertise:
    """Parse an ADVERTISE that is followed by its signature."""
    body = entry[:-SIGNATURE_BYTES]
    return Advertise.from_bytes(body, setup.config.slots_per_setup)


def check_publics(setup: Setup, state: AggregatorState, message: Advertise) -> None:
    """Refuse keys that would make every other silo refuse the setup.

    Raises:
        ProtocolViolation: a key that occurs twice, or a point of low order.
    """
    known = [
        public
        for silo in state.advertised
        for public in advertised_by(setup, state, silo).publics
    ]
    if len({*known, *message.publics}) < len(known) + len(message.publics):
        raise ProtocolViolation("a public key that occurs twice")
    probe = AgreementKey.generate()
    for public in message.publics:
        probe.exchange(public)


def make_keys(setup: Setup, state: AggregatorState) -> bytes:
    """Return the body of KEYS."""
    message = Keys(
        {
            silo: Signed(entry[:-SIGNATURE_BYTES], entry[-SIGNATURE_BYTES:])
            for silo, entry in state.advertised.items()
        }
    )
    return message.to_bytes(setup.config.num_silos, setup.config.slots_per_setup)


def parse_shares(setup: Setup, state: AggregatorState, body: bytes) -> Shares:
    """Parse SHARES, which hold an envelope for every other silo of KEYS.

    Raises:
        MalformedMessage: not a canonical message.
        ProtocolViolation: an answer to another KEYS.
    """
    num_peers = len(state.advertised) - 1
    message = Shares.from_bytes(body, num_peers, setup.config.slots_per_setup)
    if message.keys_digest != keys_digest(setup.digest, state.keys):
        raise ProtocolViolation("SHARES answer another KEYS")
    return message


def make_envelopes(
    setup: Setup, state: AggregatorState, members: tuple[int, ...], silo: int
) -> bytes:
    """Return the body of ENVELOPES for one member: what the others sealed to it."""
    sealed = []
    for sender in members:
        if sender != silo:
            peers = [peer for peer in sorted(state.advertised) if peer != sender]
            message = parse_shares(setup, state, state.shares[sender])
            sealed.append(message.sealed[peers.index(silo)])
    agreed = keys_digest(setup.digest, state.keys)
    envelopes = Envelopes(agreed, members, tuple(sealed))
    return envelopes.to_bytes(setup.config.num_silos, setup.config.slots_per_setup)
