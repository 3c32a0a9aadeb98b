"""This silo's half of secure aggregation, on disk between any two of its answers.

Every method answers one request of the aggregator with the frame that the side of masks
(``SiloSide``) or of encryption (``BfvSiloSide``) makes, and saves its state before it
returns. A call out of order is the aggregator's doing here, hence a refusal. Where the
two differ stands in ``silo.masked_upload`` and ``silo.encrypted_upload``.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeAlias, TypeVar

from crypto.bfv.silo_side import BfvSiloSide
from crypto.encoding import BytesLike, Reader
from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.frame import HEADER_BYTES, Kind, read_header
from crypto.keys import IdentityKey
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal
from crypto.secagg.messages import Survivors, bitmap_bytes, decode_silos
from crypto.secagg.parts import Parts
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.silo_state import SlotProgress
from crypto.secagg.upload import Upload
from crypto.signatures import SIGNATURE_BYTES
from protocol.heads import Head
from protocol.plan import RunPlan
from protocol.stretches import Agreed
from silo.errors import PolicyViolation, StateBroken
from silo.store import RunStore

SideT = TypeVar("SideT", SiloSide, BfvSiloSide)

SideArguments: TypeAlias = tuple[
    SecAggConfig, tuple[bytes, ...], bytes, IdentityKey, int, bytes, int, Journal
]
"""What the side of a setup is made of, with either protection."""


@dataclass(frozen=True)
class Sent:
    """A vector that leaves: the whole message, for which cohort, and its own bytes."""

    reply: memoryview
    cohort: tuple[int, ...]
    vector_bytes: int


@dataclass(frozen=True)
class Opened:
    """What this silo does to open the sum of a slot.

    Attributes:
        reply: the message that leaves.
        slot: how far this silo has come in the slot.
        signers: who has confirmed the survivors.
        sum_digest: of the sum that it decrypted; nothing with masks.
    """

    reply: bytes
    slot: SlotProgress
    signers: tuple[int, ...]
    sum_digest: bytes = b""


@dataclass(frozen=True)
class SharedKey:
    """Who made the key that all members of a setup share, and what it committed to."""

    maker: int
    commitment: bytes


class SecureUpload(ABC, Generic[SideT]):
    """One silo's setups and slots in one run.

    ``protection`` is the plan's ``protection.method``; ``dealing`` and ``handing`` are
    the names of the stages that make its secrets (``silo.stages``), ``handed`` is what
    the latter brings, in a word.

    Raises:
        StateBroken: journal or state is damaged, or they do not belong together.
    """

    protection: ClassVar[str]
    dealing: ClassVar[str]
    handing: ClassVar[str]
    handed: ClassVar[str]

    def __init__(
        self, plan: RunPlan, store: RunStore, identity: IdentityKey, silo: int
    ) -> None:
        self._plan, self._store = plan, store
        self._identity, self._silo = identity, silo
        self._journal = _open_journal(store, plan.digest + silo.to_bytes(2, "big"))
        try:
            self._side: SideT | None = self._load()
        except BaseException:
            self._journal.close()
            raise

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    @property
    def latest_slot(self) -> SlotProgress | None:
        """How far this silo has come in its latest slot, if it is in one."""
        return self._side.latest_slot if self._side and self._side.has_slot else None

    @property
    def setup_number(self) -> int:
        """The number of the newest setup; 0 before any."""
        return self._side.setup_number if self._side else 0

    def open_setup(self, setup: int) -> bytes:
        """Begin a setup with fresh keys; an older setup is forgotten.

        Raises:
            PolicyViolation: the setup is over.
        """
        if self._side is None or setup > self._side.setup_number:
            self._side = self._new_side(self._arguments(setup))
        elif setup < self._side.setup_number:
            raise PolicyViolation(f"setup {setup} is over")
        reply = self._side.advertise()
        self._save()
        return reply

    def share(self, request: BytesLike) -> bytes:
        """Answer the advertised keys with what this silo deals to the others."""
        with self._at_work(self.dealing) as side:
            reply = side.share(request)
        self._save()
        return reply

    def check_setup(self, setup: int) -> None:
        """Refuse a round of a setup that this silo is not in, before it trains.

        Raises:
            PolicyViolation: with the reason.
        """
        with self._in_order("ready") as side:
            if setup != side.setup_number:
                raise PolicyViolation(
                    f"a round in setup {setup}, this silo is in setup "
                    f"{side.setup_number}"
                )
            if not side.has_joined:
                raise PolicyViolation(
                    f"a round in setup {setup}, whose {self.handed} never came"
                )

    def join(self, request: BytesLike) -> None:
        """Open and keep what the others have sealed to this silo."""
        with self._in_order(self.handing) as side:
            side.receive_shares(request)
        self._save()

    def ready(
        self, slot: int, round_number: int, model_digest: bytes, head: Head
    ) -> bytes:
        """Say READY: this silo has trained from this model, and was shown this head."""
        with self._in_order("ready") as side:
            reply = side.ready(slot, round_number, model_digest, head.to_bytes())
        self._save()
        return reply

    def agreed(self) -> Agreed:
        """Return what the dealings of this setup follow from."""
        with self._in_order("ready") as side:
            return Agreed(side.members_digest, side.members)

    @abstractmethod
    def send(self, request: BytesLike, upload: Upload, parts: Parts | None) -> Sent:
        """Let a vector leave, masked or encrypted; the slot is burnt before.

        Without ``parts`` all members contribute to all of it.
        """

    def confirm(self, request: BytesLike) -> tuple[bytes, SlotProgress]:
        """Sign the list of survivors."""
        with self._in_order("confirm") as side:
            reply = side.confirm(request)
        self._save()
        return reply, side.latest_slot

    @abstractmethod
    def open_sum(self, request: BytesLike) -> Opened:
        """Help to open the sum over the survivors; the round's update is destroyed."""

    @property
    def shared_key(self) -> SharedKey | None:
        """The key that all members of this setup share; None with masks."""
        return None

    def close_slot(self, notice: BytesLike) -> SlotProgress | None:
        """Take note of a slot's sum; return the slot if this silo was in it.

        Raises:
            CryptoError: another sum, or over others, than this silo knows of.
        """
        header, latest = read_header(notice), self.latest_slot
        if self._side is None or latest is None or not latest.slot_digest:
            return None
        if (header.setup, header.slot) != (self._side.setup_number, latest.slot):
            return None
        is_news = not latest.sum_digest
        with self._in_order("sum") as side:
            side.close_slot(notice)
        self._save()
        self._store.destroy_update(side.latest_slot.round_number)
        return side.latest_slot if is_news else None

    @abstractmethod
    def _new_side(self, arguments: SideArguments) -> SideT:
        """Return the side of a setup that begins."""

    def _at_work(self, stage: str) -> AbstractContextManager[SideT]:
        """Lend the side for a stage that may take other processes."""
        return self._in_order(stage)

    @contextmanager
    def _in_order(self, stage: str) -> Iterator[SideT]:
        """Lend the side of secure aggregation; a call out of order is a refusal."""
        if self._side is None:
            raise PolicyViolation(f"{stage} before any setup")
        try:
            yield self._side
        except RuntimeError as error:
            raise ProtocolViolation(f"{stage} out of order: {error}") from None

    def _load(self) -> SideT | None:
        """Return the saved state of the newest setup, if any."""
        saved = self._store.load_secagg()
        if saved is None:
            return None
        setup, state = saved
        try:
            return self._new_side(self._arguments(setup)).restore(state)
        except MalformedMessage as error:
            raise StateBroken(
                f"{self._store.folder}: {error}; put the newest files of this run "
                f"back ({self._store.journal}), or begin a new run with a new plan; "
                "do not remove any of them"
            ) from None

    def _arguments(self, setup: int) -> SideArguments:
        """Return what the side of a setup is made of."""
        plan = self._plan
        return (
            plan.secagg_config(),
            plan.roster,
            plan.aggregator_key,
            self._identity,
            self._silo,
            plan.run,
            setup,
            self._journal,
        )

    def _save(self) -> None:
        """Put the state on disk, before a reply leaves."""
        if self._side is not None:
            self._store.save_secagg(self._side.setup_number, self._side.to_bytes())


def signers_of(request: BytesLike, num_silos: int) -> tuple[int, ...]:
    """Return whose signatures CONFIRMS or DECRYPT hold, which begin alike.

    SURVIVORS hold none.
    """
    view = memoryview(request)
    if read_header(view).kind == Kind.SURVIVORS:
        return ()
    reader = Reader(view[HEADER_BYTES:-SIGNATURE_BYTES])
    Survivors.read(reader, num_silos)
    return decode_silos(reader.view(bitmap_bytes(num_silos)), num_silos)


def _open_journal(store: RunStore, owner: bytes) -> Journal:
    """Return the journal of a run, which is made anew only where nothing has begun.

    Raises:
        StateBroken: it is missing, damaged, or held by another process.
    """
    if store.has_begun() and not store.journal.exists():
        raise StateBroken(
            f"{store.journal}: is missing; without it this silo does not know what it "
            "has promised. Put it back, or begin a new run with a new plan"
        )
    try:
        return Journal(store.journal, owner, may_begin=not store.has_begun())
    except BlockingIOError as error:
        raise StateBroken(f"{store.journal}: {error.strerror}") from None
    except MalformedMessage as error:
        raise StateBroken(
            f"{error}; this silo cannot take part in the run any more: what it has "
            "promised in it is not known. Put the newest journal back, or begin a new "
            "run with a new plan"
        ) from None
