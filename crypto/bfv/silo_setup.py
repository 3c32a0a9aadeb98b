"""The silo's work in a setup with encryption: make the shared key, or take it.

::

    advertise → share → receive_shares

The rules of ``silo_side`` hold here too.
"""

from dataclasses import replace
from typing import ClassVar

from crypto import labels
from crypto.bfv.messages import Dealt, Handed
from crypto.bfv.shared_key import commit_to_key, key_maker, open_key, seal_key
from crypto.bfv.silo_state import BfvSiloState
from crypto.bfv.workers import Workers
from crypto.encoding import BytesLike, digest
from crypto.errors import ProtocolViolation
from crypto.frame import Kind, make_frame
from crypto.keys import AgreementKey, IdentityKey
from crypto.secagg.checks import (
    check_enough,
    check_inside,
    check_part,
    check_same,
    require_call,
)
from crypto.secagg.digests import keys_digest, members_digest
from crypto.secagg.journal import Journal, Stage
from crypto.secagg.setup import Setup
from crypto.secagg.silo_setup import check_keys, make_advertise
from crypto.secagg.silo_stages import SiloStages


class BfvSiloSetup(SiloStages[BfvSiloState]):
    """A silo's part in the key exchange of one setup; ``BfvSiloSide`` adds the slots.

    Raises:
        ValueError: the identity is not that of the roster's entry.
    """

    confirm_stage: ClassVar[Stage] = Stage.ONE_CONFIRM

    def __init__(
        self,
        setup: Setup,
        identity: IdentityKey,
        index: int,
        journal: Journal,
        workers: Workers,
    ) -> None:
        super().__init__(setup, identity, index, journal)
        self._workers = workers
        self._state = BfvSiloState()

    def work_with(self, workers: Workers) -> None:
        """Have other processes encrypt and decrypt from here on."""
        self._workers = workers

    def check_unrefused(self) -> None:
        """Return unless this silo has refused a ciphertext in this setup.

        Raises:
            ProtocolViolation: it has; it does nothing more with the key.
        """
        number = self._setup.number
        if self._journal.has_refused(number):
            raise ProtocolViolation(
                f"setup {number} is over for this silo: it has refused a ciphertext"
            )

    @property
    def key_maker(self) -> int:
        """The silo that made the key of this setup.

        Raises:
            RuntimeError: called before :meth:`receive_shares`.
        """
        require_call(self.has_joined, "key_maker before receive_shares()")
        return key_maker(self._config, self._setup.channel_publics(self._state.keys))

    @property
    def commitment(self) -> bytes:
        """The maker's commitment to the key, 32 bytes, the same for every member.

        Raises:
            RuntimeError: called before :meth:`receive_shares`.
        """
        require_call(self.has_joined, "commitment before receive_shares()")
        return self._state.commitment

    def advertise(self) -> bytes:
        """Return the ADVERTISE frame; the first call draws the channel key."""
        if not self._state.advertisement:
            channel = AgreementKey.generate()
            message = make_advertise(self._setup, self._index, channel, {})
            header = self._setup.silo_header(Kind.ADVERTISE, self._index)
            frame = make_frame(self._identity, header, message.to_bytes())
            self._state = replace(self._state, advertisement=frame, channel=channel)
        return self._state.advertisement

    def share(self, keys: BytesLike) -> bytes:
        """Return the DEALT frame that answers KEYS; the maker draws the shared key.

        Raises:
            CryptoError: an advertisement is forged or from elsewhere, a key occurs
                twice, ours was changed or left out, silos are too few; or another KEYS
                was answered before.
            WorkerFailed: the process that makes the key crashed.
        """
        state = self._state
        require_call(bool(state.advertisement), "share() before advertise()")
        body = self._open(keys, self._setup.aggregator_header(Kind.KEYS))
        if state.keys:
            is_same = body == state.keys and not state.members
            check_same(is_same, "KEYS", "setup")
            return state.dealt
        check_keys(self._setup, self._index, body, state.advertisement)
        publics = self._setup.channel_publics(body)
        secret_key = b""
        if key_maker(self._config, publics) == self._index:
            secret_key = self._workers.make_key()
        header = self._setup.silo_header(Kind.DEALT, self._index)
        message = self._deal(keys_digest(self._setup.digest, body), publics, secret_key)
        frame = make_frame(self._identity, header, message.to_bytes())
        self._state = replace(
            state, keys=bytes(body), dealt=frame, secret_key=secret_key
        )
        return frame

    def receive_shares(self, handed: BytesLike) -> None:
        """Take the shared key that was sealed to this silo; it is a member then.

        Raises:
            CryptoError: the key does not open, or is not the one committed to; members
                are too few or unknown, the maker or this silo is not one of them;
                another HANDED was accepted before; or a ciphertext was refused.
        """
        self.check_unrefused()
        state = self._state
        require_call(bool(state.keys), "receive_shares() before share()")
        header = self._setup.aggregator_header(Kind.HANDED, recipient=self._index)
        body = self._open(handed, header)
        request = digest(labels.REQUEST_DIGEST, body)
        if state.handed_digest:
            check_same(request == state.handed_digest, "HANDED", "setup")
            return
        message, secret_key = self._take_key(body)
        self._state = replace(
            state,
            members=message.members,
            commitment=message.commitment,
            secret_key=secret_key,
            handed_digest=request,
            channel=None,
            dealt=b"",
        )

    @property
    def members_digest(self) -> bytes:
        """T2, over the keys and members of the setup and the shared key.

        Raises:
            RuntimeError: called before :meth:`receive_shares`.
        """
        state = self._state
        require_call(self.has_joined, "members_digest before receive_shares()")
        agreed = keys_digest(self._setup.digest, state.keys)
        return members_digest(
            agreed, state.members, self._config.num_silos, state.commitment
        )

    def _deal(
        self, agreed: bytes, publics: dict[int, bytes], secret_key: bytes
    ) -> Dealt:
        """Return what this silo deals: as the maker the key, else nothing."""
        if not secret_key:
            return Dealt(agreed)
        sealed = tuple(
            seal_key(
                self._channel(),
                publics[peer],
                agreed,
                self._setup.share_header(self._index, peer),
                secret_key,
            )
            for peer in sorted(publics)
            if peer != self._index
        )
        return Dealt(agreed, commit_to_key(agreed, secret_key), sealed)

    def _take_key(self, body: memoryview) -> tuple[Handed, bytes]:
        """Return HANDED and the shared key, both checked."""
        state, config = self._state, self._config
        agreed = keys_digest(self._setup.digest, state.keys)
        publics = self._setup.channel_publics(state.keys)
        maker = key_maker(config, publics)
        message = Handed.from_bytes(
            body, config.num_silos, is_maker=maker == self._index
        )
        if message.keys_digest != agreed:
            raise ProtocolViolation("HANDED belongs to another KEYS")
        check_enough(config, message.members, "HANDED")
        check_part(message.members, publics, "HANDED")
        check_inside(self._index, message.members, "HANDED")
        if maker not in message.members:
            raise ProtocolViolation(f"HANDED lacks silo {maker}, which makes the key")
        if maker == self._index:
            if commit_to_key(agreed, state.secret_key) != message.commitment:
                raise ProtocolViolation("HANDED commits to another key than ours")
            return message, state.secret_key
        header = self._setup.share_header(maker, self._index)
        return message, open_key(
            self._channel(),
            publics[maker],
            agreed,
            header,
            message.sealed,
            message.commitment,
        )

    def _channel(self) -> AgreementKey:
        """Return the key that seals and opens the shared one, while it exists."""
        if self._state.channel is None:
            raise RuntimeError("the channel key has been deleted")
        return self._state.channel
