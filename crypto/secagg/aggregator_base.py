"""The aggregator's part in a key exchange, whatever hides the vectors afterwards.

What the silos deal to each other, and what a slot is, are those of ``aggregator_side``
(masks) and ``crypto.bfv.aggregator_side`` (encryption); the rules are the former's.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt

from crypto import labels
from crypto.encoding import BytesLike, digest
from crypto.frame import Kind, make_frame
from crypto.keys import IdentityKey
from crypto.secagg.aggregator_setup import (
    check_publics,
    make_keys,
    parse_entry,
    publics_of,
)
from crypto.secagg.aggregator_stages import AggregatorStages
from crypto.secagg.aggregator_state import (
    SetupState,
    SlotState,
    decode_setup,
    encode_setup,
)
from crypto.secagg.checks import (
    check_enough,
    check_part,
    is_new,
    naming,
    require_call,
)
from crypto.secagg.config import SecAggConfig
from crypto.secagg.digests import keys_digest, members_digest
from crypto.secagg.messages import encode_silos
from crypto.secagg.parts import Parts
from crypto.secagg.ready import NO_HEAD
from crypto.secagg.setup import Setup

Words = npt.NDArray[np.uint64]


SlotT = TypeVar("SlotT", bound=AggregatorStages)


class AggregatorBase(ABC, Generic[SlotT]):
    """The aggregator's part in one setup and its slots.

    ``dealt`` and ``handed`` are the kinds of the messages that deal secrets.

    Args: as for ``SiloSide``; ``identity`` is the key whose public half silos pinned.

    Raises:
        ValueError: the arguments do not fit together.
    """

    dealt: ClassVar[Kind]
    handed: ClassVar[Kind]

    def __init__(
        self,
        config: SecAggConfig,
        roster: Sequence[bytes],
        identity: IdentityKey,
        run: bytes,
        setup: int,
    ) -> None:
        self._setup = Setup(config, tuple(roster), identity.public, run, setup)
        self._config = config
        self._identity = identity
        self._state = SetupState()
        self._publics: set[bytes] = set()
        self._slot: SlotT | None = None

    def add_advertisement(self, data: BytesLike) -> None:
        """Take one ADVERTISE.

        Raises:
            CryptoError: forged or malformed; a key of low order or that another silo
                has too; a second one; or KEYS has been sent.
        """
        state = self._state
        silo, signed = self._setup.open_from_silo(data, Kind.ADVERTISE)
        entry = bytes(signed.body) + signed.signature
        with naming(silo):
            if is_new(state.advertised, silo, entry, bool(state.keys)):
                message = parse_entry(self._setup, entry)
                check_publics(self._publics, message)
                self._publics.update(message.publics)
                state.advertised[silo] = entry

    def keys(self) -> bytes:
        """Return the KEYS frame for every silo; no further ADVERTISE is taken.

        Raises:
            ProtocolViolation: fewer silos than a cohort needs.
        """
        state = self._state
        if not state.keys:
            check_enough(self._config, state.advertised, "KEYS")
            state.keys = make_keys(self._setup, state)
        header = self._setup.aggregator_header(Kind.KEYS)
        return make_frame(self._identity, header, state.keys)

    def add_shares(self, data: BytesLike) -> None:
        """Take one SHARES.

        Raises:
            CryptoError: forged, malformed, or an answer to another KEYS; a second one;
                or ENVELOPES have been sent.
        """
        state = self._state
        require_call(bool(state.keys), "add_shares() before keys()")
        silo, signed = self._setup.open_from_silo(data, self.dealt)
        body = bytes(signed.body)
        with naming(silo):
            check_part((silo,), state.advertised, self.dealt.name)
            if is_new(state.shares, silo, body, bool(state.members)):
                self._check_dealt(silo, body)
                state.shares[silo] = body

    def close_members(self) -> tuple[int, ...]:
        """Return the members; no further SHARES are taken.

        Raises:
            ProtocolViolation: fewer members than a cohort needs.
        """
        state, config = self._state, self._config
        require_call(bool(state.keys), "close_members() before keys()")
        if not state.members:
            check_enough(config, state.shares, self.handed.name)
            self._check_members(tuple(sorted(state.shares)))
            state.members = encode_silos(state.shares, config.num_silos)
        return self.members

    def envelopes(self, silo: int) -> bytes:
        """Return the ENVELOPES frame for one member, after :meth:`close_members`.

        Raises:
            RuntimeError: for a silo that is no member.
            ProtocolViolation: fewer members than a cohort needs.
        """
        self.close_members()
        require_call(silo in self.members, f"envelopes() for silo {silo}, no member")
        body = self._make_envelopes(silo)
        header = self._setup.aggregator_header(self.handed, recipient=silo)
        return make_frame(self._identity, header, body)

    @property
    def members(self) -> tuple[int, ...]:
        """U2: the silos of the setup; empty before :meth:`close_members`."""
        return tuple(sorted(self._state.shares)) if self._state.members else ()

    @property
    def members_digest(self) -> bytes:
        """T2, over the keys and members of the setup.

        Raises:
            RuntimeError: called before :meth:`close_members`.
        """
        require_call(bool(self._state.members), "members_digest before close_members()")
        agreed = keys_digest(self._setup.digest, self._state.keys)
        return members_digest(
            agreed, self.members, self._config.num_silos, self._commitment()
        )

    def open_slot(
        self,
        slot: int,
        round_number: int,
        model_digest: bytes,
        parts: Parts,
        head: bytes = NO_HEAD,
    ) -> SlotT:
        """Begin a slot; an earlier one that was not finished is given up.

        Args:
            slot: above every slot opened before.
            round_number: from 0, which is what is summed before the first round.
            model_digest: 32 bytes, over the shared parameters that silos trained from.
            parts: of the vector, with their contributors; every silo computes the same.
            head: 104 bytes, what silos are shown of the aggregator's transcript.

        Raises:
            RuntimeError: before :meth:`close_members`; a slot that is spent or does not
                exist; or a round whose latest slot can only be completed
                (``is_last``), or the round closed without a sum.
            ValueError: the vector is empty or too long.
            ProtocolViolation: too few members contribute to a part.
        """
        last = self._slot
        first = 0 if last is None else last.slot + 1
        require_call(bool(self._state.members), "open_slot() before close_members()")
        require_call(
            first <= slot < self._config.slots_per_setup,
            f"slot {slot} is spent or none",
        )
        require_call(
            last is None or not last.is_last or round_number > last.round_number,
            f"round {round_number}: its sum may be open, no further slot serves it",
        )
        state = SlotState(slot, round_number, bytes(model_digest), head, parts)
        self._slot = self._open(state)
        return self._slot

    @property
    def slot(self) -> SlotT:
        """The slot that was opened last.

        Raises:
            RuntimeError: none was opened.
        """
        if self._slot is None:
            raise RuntimeError("no slot is open")
        return self._slot

    @property
    def has_slot(self) -> bool:
        """Whether a slot was opened."""
        return self._slot is not None

    def resume_slot(self, data: bytes, total: Words | None) -> SlotT:
        """Take up the latest slot again, from its state and its masked sum.

        Raises:
            MalformedMessage: torn, the state of another setup, or another sum.
        """
        self._slot = self._resume(data, total)
        return self._slot

    def to_bytes(self) -> bytes:
        """Return the state of the setup, without its slot. Keep it private."""
        return encode_setup(self._state, self._owner())

    def restore(self, data: bytes) -> Self:
        """Take up the state of :meth:`to_bytes`; return this side.

        Raises:
            MalformedMessage: torn, or the state of other arguments.
        """
        self._state = decode_setup(data, self._owner())
        self._publics = publics_of(self._setup, self._state)
        return self

    def _owner(self) -> bytes:
        """Return the digest of the setup that the state belongs to."""
        return digest(labels.AGGREGATOR_STATE, self._setup.digest)

    @abstractmethod
    def _check_dealt(self, silo: int, body: bytes) -> None:
        """Check what a silo deals to the others."""

    def _check_members(self, members: tuple[int, ...]) -> None:
        """Raise ``ProtocolViolation`` if a setup of these members cannot work."""

    @abstractmethod
    def _make_envelopes(self, silo: int) -> bytes:
        """Return what was dealt to one member."""

    def _commitment(self) -> bytes:
        """Return what members agree on beside their keys, if anything."""
        return b""

    @abstractmethod
    def _open(self, state: SlotState) -> SlotT:
        """Return a new slot."""

    @abstractmethod
    def _resume(self, data: bytes, total: Words | None) -> SlotT:
        """Return a slot that was saved."""
