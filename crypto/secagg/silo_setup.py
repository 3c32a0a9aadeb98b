"""The silo's work in the setup: draw secrets, deal their shares, open the others'.

::

    advertise → share → receive_shares

The rules of ``silo_side`` hold here too. Below the class are functions of the setup and
the silo's state alone.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

from crypto import labels
from crypto.encoding import BytesLike, digest
from crypto.errors import ProtocolViolation
from crypto.frame import Kind, make_frame
from crypto.kdf import derive
from crypto.keys import AgreementKey, IdentityKey
from crypto.prg import MASK_SEED_BYTES, SecretRandom
from crypto.secagg.checks import (
    check_enough,
    check_inside,
    check_part,
    check_same,
    require_call,
)
from crypto.secagg.digests import commit_to_seed, keys_digest
from crypto.secagg.envelopes import open_shares, seal_shares
from crypto.secagg.journal import Journal, Stage
from crypto.secagg.masks import SlotSecrets
from crypto.secagg.messages import Advertise, Envelopes, Shares
from crypto.secagg.setup import Setup
from crypto.secagg.silo_stages import SiloStages
from crypto.secagg.silo_state import SiloState
from crypto.shamir import split

HeldShares = dict[int, bytes]
"""By silo, the pairs of shares that are held of its secrets, slot after slot."""


class SiloSetup(SiloStages[SiloState]):
    """A silo's part in the key exchange of one setup; ``SiloSide`` adds the masks.

    Raises:
        ValueError: the identity is not that of the roster's entry.
    """

    confirm_stage: ClassVar[Stage] = Stage.CONFIRM

    def __init__(
        self, setup: Setup, identity: IdentityKey, index: int, journal: Journal
    ) -> None:
        super().__init__(setup, identity, index, journal)
        self._state = SiloState()

    def advertise(self) -> bytes:
        """Return the ADVERTISE frame; the first call draws all secrets of the setup."""
        if not self._state.advertisement:
            channel = AgreementKey.generate()
            own = draw_secrets(self._config.num_slot_keys)
            message = make_advertise(self._setup, self._index, channel, own)
            header = self._setup.silo_header(Kind.ADVERTISE, self._index)
            self._state = replace(
                self._state,
                advertisement=make_frame(self._identity, header, message.to_bytes()),
                channel=channel,
                dealing_seed=secrets.token_bytes(MASK_SEED_BYTES),
                secrets=own,
            )
        return self._state.advertisement

    def share(self, keys: BytesLike) -> bytes:
        """Return the SHARES frame that answers KEYS.

        Raises:
            CryptoError: an advertisement is forged or from elsewhere, a key occurs
                twice, ours was changed or left out, silos are too few; or another KEYS
                was answered before.
        """
        state = self._state
        require_call(bool(state.advertisement), "share() before advertise()")
        body = self._open(keys, self._setup.aggregator_header(Kind.KEYS))
        if state.keys:
            check_same(body == state.keys, "KEYS", "setup")
            return state.shares
        check_keys(self._setup, self._index, body, state.advertisement)
        message, held = deal_shares(
            self._setup,
            self._index,
            self._channel(),
            state.secrets,
            state.dealing_seed,
            body,
        )
        frame = make_frame(
            self._identity,
            self._setup.silo_header(Kind.SHARES, self._index),
            message.to_bytes(self._config.slots_per_setup),
        )
        self._state = replace(state, keys=bytes(body), shares=frame, held=held)
        return frame

    def receive_shares(self, envelopes: BytesLike) -> None:
        """Open and keep what the others have sealed to this silo.

        The channel key is deleted: what was sealed cannot be opened again.

        Raises:
            CryptoError: an envelope does not open, members are too few or unknown, this
                silo is not one of them; or other ENVELOPES were accepted before. The
                silo then takes no part in the setup.
        """
        state = self._state
        require_call(bool(state.shares), "receive_shares() before share()")
        header = self._setup.aggregator_header(Kind.ENVELOPES, recipient=self._index)
        body = self._open(envelopes, header)
        request = digest(labels.REQUEST_DIGEST, body)
        if state.envelopes_digest:
            check_same(request == state.envelopes_digest, "ENVELOPES", "setup")
            return
        self._state = replace(
            self._with_envelopes(body),
            envelopes_digest=request,
            channel=None,
            dealing_seed=b"",
        )

    def _with_envelopes(self, body: BytesLike) -> SiloState:
        """Return the state with the members and the shares of ENVELOPES."""
        state, config = self._state, self._config
        message = Envelopes.from_bytes(body, config.num_silos, config.slots_per_setup)
        check_envelopes(self._setup, self._index, state.keys, message)
        opened = open_envelopes(
            self._setup, self._index, self._channel(), state.keys, message
        )
        held = state.held | opened
        return replace(state, members=message.members, held=held)

    def _channel(self) -> AgreementKey:
        """Return the key that seals and opens shares, while it exists."""
        if self._state.channel is None:
            raise RuntimeError("the channel key has been deleted")
        return self._state.channel


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


def check_keys(setup: Setup, index: int, body: BytesLike, advertisement: bytes) -> None:
    """Check that every advertisement is authentic and ours is unchanged.

    Args:
        advertisement: the ADVERTISE frame that this silo has sent.

    Raises:
        CryptoError: as ``Setup.open_keys``; or our own keys were changed or left out.
    """
    _, ours = setup.open_from_silo(advertisement, Kind.ADVERTISE)
    if setup.open_keys(body).get(index) != ours.body:
        raise ProtocolViolation("KEYS changes or omits this silo's own keys")


def deal_shares(
    setup: Setup,
    index: int,
    channel: AgreementKey,
    own: Mapping[int, SlotSecrets],
    dealing_seed: bytes,
    keys: BytesLike,
) -> tuple[Shares, HeldShares]:
    """Split all secrets; return what is sealed to the peers, and our own shares.

    Guarantees: the same KEYS give the same bytes, so that one key never seals two
    messages, whatever became of the state in between.

    Args:
        dealing_seed: secret; with T1 it determines the polynomials.
        keys: the body of KEYS, already checked.
    """
    publics, agreed = setup.channel_publics(keys), keys_digest(setup.digest, keys)
    seed = derive(dealing_seed, labels.DEALING_SEED, agreed, MASK_SEED_BYTES)
    random = SecretRandom(seed).draw
    pairs = {slot: _split(setup, own[slot], random) for slot in sorted(own)}
    sealed = tuple(
        seal_shares(
            channel,
            publics[peer],
            agreed,
            setup.share_header(index, peer),
            b"".join(by_silo[peer] for by_silo in pairs.values()),
        )
        for peer in sorted(publics)
        if peer != index
    )
    own_shares = b"".join(by_silo[index] for by_silo in pairs.values())
    return Shares(agreed, sealed), {index: own_shares}


def _split(
    setup: Setup, own: SlotSecrets, random: Callable[[int], bytes]
) -> list[bytes]:
    """Return for each silo its share of the mask seed, then of the agreement key."""
    threshold, num_silos = setup.config.threshold, setup.config.num_silos
    seeds, keys = (
        split(secret, threshold, num_silos, random)
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
    check_part(message.members, setup.channel_publics(keys), "ENVELOPES")
    check_inside(index, message.members, "ENVELOPES")


def open_envelopes(
    setup: Setup, index: int, channel: AgreementKey, keys: bytes, message: Envelopes
) -> HeldShares:
    """Return by sender the pairs of shares for every slot.

    Raises:
        DecryptionFailed: an envelope was altered, or was not sealed to this silo by the
            sender that it stands for; the message names the sender.
    """
    publics = setup.channel_publics(keys)
    peers = [peer for peer in message.members if peer != index]
    return {
        peer: open_shares(
            channel,
            publics[peer],
            message.keys_digest,
            setup.share_header(peer, index),
            sealed,
        )
        for peer, sealed in zip(peers, message.sealed, strict=True)
    }
