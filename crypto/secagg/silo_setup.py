"""The silo's work in the setup: draw secrets, deal their shares, open the others'.

Pure functions of the setup and the silo's state; order, signatures and memory are
``silo_side``'s.
"""

import secrets
from collections.abc import Mapping

from crypto.encoding import BytesLike
from crypto.errors import ProtocolViolation
from crypto.keys import AgreementKey
from crypto.prg import MASK_SEED_BYTES
from crypto.secagg.checks import check_enough, check_inside, check_part
from crypto.secagg.digests import commit_to_seed, keys_digest
from crypto.secagg.envelopes import open_shares, seal_shares
from crypto.secagg.masks import SlotSecrets
from crypto.secagg.messages import SHARE_PAIR_BYTES, Advertise, Envelopes, Shares
from crypto.secagg.setup import Setup
from crypto.shamir import split

HeldShares = dict[int, dict[int, bytes]]
"""By slot and silo, the two shares that are held of that silo's secrets."""


def draw_secrets(num_slots: int) -> dict[int, SlotSecrets]:
    """Return fresh secrets for every slot, from the operating system's randomness."""
    return {
        slot: SlotSecrets(secrets.token_bytes(MASK_SEED_BYTES), AgreementKey.generate())
        for slot in range(num_slots)
    }


def make_advertise(
    setup: Setup, index: int, channel: AgreementKey, own: Mapping[int, SlotSecrets]
) -> Advertise:
    """Return the public half of a silo's secrets, with commitments to its seeds."""
    return Advertise(
        channel.public,
        tuple(own[slot].agreement.public for slot in sorted(own)),
        tuple(
            commit_to_seed(setup.digest, index, slot, own[slot].mask_seed)
            for slot in sorted(own)
        ),
    )


def check_keys(
    setup: Setup, index: int, body: BytesLike, ours: Advertise
) -> dict[int, Advertise]:
    """Return what every silo advertised, if it is authentic and ours is unchanged.

    Raises:
        CryptoError: as ``Setup.open_keys``; or our own keys were changed or left out.
    """
    advertised = setup.open_keys(body)
    if advertised.get(index) != ours:
        raise ProtocolViolation("KEYS changes or omits this silo's own keys")
    return advertised


def deal_shares(
    setup: Setup,
    index: int,
    channel: AgreementKey,
    own: Mapping[int, SlotSecrets],
    keys: bytes,
) -> tuple[Shares, HeldShares]:
    """Split all secrets; return what is sealed to the peers, and our own shares.

    Args:
        keys: the body of KEYS, already checked.
    """
    advertised, agreed = setup.read_keys(keys), keys_digest(setup.digest, keys)
    pairs = {slot: _split(setup, own[slot]) for slot in sorted(own)}
    sealed = tuple(
        seal_shares(
            channel,
            advertised[peer].channel_public,
            agreed,
            setup.share_header(index, peer),
            b"".join(by_silo[peer] for by_silo in pairs.values()),
        )
        for peer in sorted(advertised)
        if peer != index
    )
    held = {slot: {index: by_silo[index]} for slot, by_silo in pairs.items()}
    return Shares(agreed, sealed), held


def _split(setup: Setup, own: SlotSecrets) -> list[bytes]:
    """Return for each silo its share of the mask seed, then of the agreement key."""
    threshold, num_silos = setup.config.threshold, setup.config.num_silos
    seeds, keys = (
        split(secret, threshold, num_silos, secrets.token_bytes)
        for secret in (own.mask_seed, own.agreement.to_bytes())
    )
    return [seed + key for seed, key in zip(seeds, keys, strict=True)]


def check_envelopes(setup: Setup, index: int, keys: bytes, message: Envelopes) -> None:
    """Check that envelopes belong to these keys, and their senders are enough.

    Raises:
        ProtocolViolation: another KEYS, too few members, a stranger, or not this silo.
    """
    if message.keys_digest != keys_digest(setup.digest, keys):
        raise ProtocolViolation("ENVELOPES belong to another KEYS")
    check_enough(setup.config, message.members, "ENVELOPES")
    check_part(message.members, setup.read_keys(keys), "ENVELOPES")
    check_inside(index, message.members, "ENVELOPES")


def open_envelopes(
    setup: Setup, index: int, channel: AgreementKey, keys: bytes, message: Envelopes
) -> dict[int, tuple[bytes, ...]]:
    """Return by sender the pair of shares for each slot.

    Raises:
        DecryptionFailed: an envelope was altered, or was not sealed to this silo by the
            sender that it stands for; the message names the sender.
    """
    advertised, size = setup.read_keys(keys), SHARE_PAIR_BYTES
    peers = [peer for peer in message.members if peer != index]
    opened = {}
    for peer, sealed in zip(peers, message.sealed, strict=True):
        shares = open_shares(
            channel,
            advertised[peer].channel_public,
            message.keys_digest,
            setup.share_header(peer, index),
            sealed,
        )
        opened[peer] = tuple(
            shares[first : first + size] for first in range(0, len(shares), size)
        )
    return opened
