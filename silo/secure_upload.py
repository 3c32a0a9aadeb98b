"""This silo's half of secure aggregation, on disk between any two of its answers.

Every method answers one request of the aggregator with the frame that ``SiloSide``
makes, and saves its state before it returns. A call out of order is the aggregator's
doing here, hence a refusal.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from crypto.encoding import BytesLike
from crypto.errors import MalformedMessage, ProtocolViolation
from crypto.frame import HEADER_BYTES, Kind, read_header
from crypto.keys import IdentityKey
from crypto.secagg.config import SecAggConfig
from crypto.secagg.journal import Journal
from crypto.secagg.messages import Confirms
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


class SecureUpload:
    """One silo's setups and slots in one run.

    Raises:
        StateBroken: journal or state is damaged, or they do not belong together.
    """

    def __init__(
        self, plan: RunPlan, store: RunStore, identity: IdentityKey, silo: int
    ) -> None:
        self._plan, self._store = plan, store
        self._identity, self._silo = identity, silo
        self._journal = _open_journal(store, plan.digest + silo.to_bytes(2, "big"))
        try:
            self._side = self._load()
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
            self._side = SiloSide(*self._arguments(setup))
        elif setup < self._side.setup_number:
            raise PolicyViolation(f"setup {setup} is over")
        reply = self._side.advertise()
        self._save()
        return reply

    def share(self, request: BytesLike) -> bytes:
        """Answer the advertised keys with sealed shares."""
        with self._in_order("shares") as side:
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
                    f"a round in setup {setup}, whose envelopes never came"
                )

    def join(self, request: BytesLike) -> None:
        """Open and keep what the others have sealed to this silo."""
        with self._in_order("envelopes") as side:
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

    def mask(
        self, request: BytesLike, upload: Upload, parts: Parts | None
    ) -> tuple[memoryview, tuple[int, ...]]:
        """Let a vector leave, masked where it stands; the slot is burnt before.

        Without ``parts`` all members contribute to all of it.

        Returns:
            The reply, and the cohort.
        """
        with self._in_order("masked") as side:
            reply = side.mask(request, upload, parts)
        self._save()
        return reply, side.latest_slot.cohort

    def confirm(self, request: BytesLike) -> tuple[bytes, SlotProgress]:
        """Sign the list of survivors."""
        with self._in_order("confirm") as side:
            reply = side.confirm(request)
        self._save()
        return reply, side.latest_slot

    def reveal(self, request: BytesLike) -> tuple[bytes, SlotProgress, tuple[int, ...]]:
        """Reveal shares for the survivors; the round's update is destroyed.

        Returns:
            The reply, the slot, and who has confirmed the survivors.
        """
        with self._in_order("reveal") as side:
            reply = side.reveal(request)
        self._save()
        self._store.destroy_update(side.latest_slot.round_number)
        return reply, side.latest_slot, self._signers(request)

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

    def _signers(self, request: BytesLike) -> tuple[int, ...]:
        """Return whose signatures CONFIRMS holds; SURVIVORS hold none."""
        view = memoryview(request)
        if read_header(view).kind != Kind.CONFIRMS:
            return ()
        body = view[HEADER_BYTES:-SIGNATURE_BYTES]
        return tuple(Confirms.from_bytes(body, len(self._plan.silos)).signatures)

    @contextmanager
    def _in_order(self, stage: str) -> Iterator[SiloSide]:
        """Lend the side of secure aggregation; a call out of order is a refusal."""
        if self._side is None:
            raise PolicyViolation(f"{stage} before any setup")
        try:
            yield self._side
        except RuntimeError as error:
            raise ProtocolViolation(f"{stage} out of order: {error}") from None

    def _load(self) -> SiloSide | None:
        """Return the saved state of the newest setup, if any."""
        saved = self._store.load_secagg()
        if saved is None:
            return None
        setup, state = saved
        try:
            return SiloSide.from_bytes(state, *self._arguments(setup))
        except MalformedMessage as error:
            raise StateBroken(
                f"{self._store.folder}: {error}; put the newest files of this run "
                f"back ({self._store.journal}), or begin a new run with a new plan; "
                "do not remove any of them"
            ) from None

    def _arguments(
        self, setup: int
    ) -> tuple[
        SecAggConfig, tuple[bytes, ...], bytes, IdentityKey, int, bytes, int, Journal
    ]:
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
