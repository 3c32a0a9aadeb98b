"""The envelopes in which a silo's replies leave, signed by it."""

from crypto.frame import Header
from crypto.keys import IdentityKey
from protocol.envelope import Kind, LedgerNotice, make_envelope
from protocol.plan import RunPlan
from silo.private_round import PrivateRounds


class Replies:
    """Makes one silo's envelopes of one run.

    Args:
        private: whose ledger's head goes with the answers to a training.
    """

    def __init__(
        self,
        plan: RunPlan,
        silo: int,
        identity: IdentityKey,
        private: PrivateRounds | None,
    ) -> None:
        self._plan, self._silo, self._identity = plan, silo, identity
        self._private = private

    def envelope(
        self, kind: int, body: bytes, *, setup: int = 0, slot: int = 0
    ) -> bytes:
        """Return a signed envelope of this silo."""
        return make_envelope(
            self._plan,
            self._identity,
            kind,
            body,
            sender=self._silo,
            setup=setup,
            slot=slot,
        )

    def with_ledger(self, header: Header, reply: bytes) -> bytes:
        """Return a reply with the head of the privacy ledger, where there is one."""
        if self._private is None:
            return reply
        head = self._private.head
        notice = LedgerNotice(size=head.size, head=head.digest, reply=reply)
        place = {"setup": header.setup, "slot": header.slot}
        return self.envelope(Kind.LEDGER, notice.to_body(), **place)
