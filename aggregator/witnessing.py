"""Heads of the transcript, shown to the silos, and what they have signed of them.

All silos of an exchange are shown one head, each with the proof that it needs: from the
newest head that it is known to have accepted. A silo that has accepted another one, as
when its answer was lost, says so and is asked again in the same exchange.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from aggregator.exchanges import Accept, Exchanges, Stage
from crypto.encoding import BytesLike
from crypto.frame import HEADER_BYTES
from crypto.secagg.ready import Active
from crypto.signatures import SIGNATURE_BYTES
from protocol.audit_records import Witnessed
from protocol.envelope import Kind
from protocol.heads import Head, ShownHead
from protocol.plan import AGGREGATOR_NAME


class Request(Protocol):
    """What goes to a silo."""

    def to_body(self) -> bytes:
        """Return the body's bytes."""
        ...


Make = Callable[[ShownHead], Request]
"""Returns the request that shows silos a head."""


@dataclass(frozen=True)
class Place:
    """What a request is, and where it belongs."""

    kind: Kind
    setup: int = 0
    slot: int = 0


class Witnesses:
    """The silos as witnesses of the aggregator's transcript.

    Args:
        seen: by name, sizes of heads that silos are known to have accepted.
    """

    def __init__(self, exchanges: Exchanges, seen: Mapping[str, int]) -> None:
        self._exchanges = exchanges
        self._transcript = exchanges.transcript
        self._seen = {
            index: seen[silo.name]
            for index, silo in enumerate(exchanges.plan.silos)
            if silo.name in seen
        }

    def ask(
        self,
        stage: Stage,
        makers: Mapping[int, Make],
        head: Head,
        accept: Accept,
        place: Place,
    ) -> tuple[int, ...]:
        """Run one exchange that shows a head; return who was accepted.

        Silos with one maker that have seen the same head get the same bytes, which are
        made once.

        Args:
            makers: by silo.
        """
        made: dict[tuple[Make, int], bytes] = {}

        def request(silo: int, seen: int) -> bytes:
            key = makers[silo], seen
            if key not in made:
                body = makers[silo](self._transcript.show(head, seen)).to_body()
                made[key] = self._exchanges.envelope(
                    place.kind, body, setup=place.setup, slot=place.slot
                )
            return made[key]

        def again(silo: int, seen: int) -> bytes | None:
            return request(silo, seen) if seen <= head.size else None

        def take(silo: int, reply: BytesLike) -> int:
            vector_bytes = accept(silo, reply)
            self._seen[silo] = head.size
            return vector_bytes

        requests = {
            silo: request(silo, min(self._seen.get(silo, 0), head.size))
            for silo in makers
        }
        return self._exchanges.ask(stage, requests, take, again)

    def record(self, place: Mapping[str, int], active: bytes) -> None:
        """Record who has signed which head, from the ACTIVE frame that shows it."""
        body = memoryview(active)[HEADER_BYTES:-SIGNATURE_BYTES]
        message = Active.from_bytes(body, len(self._exchanges.plan.silos))
        head = Head.from_bytes(message.ready.head, AGGREGATOR_NAME)
        signatures = sorted(message.signatures.items())
        self._transcript.append(
            Witnessed(
                **place,
                agreed=message.ready.members_digest.hex(),
                model=message.ready.model_digest.hex(),
                size=head.size,
                root=head.root,
                signature=head.signature,
                silos=self._exchanges.names(message.signatures),
                signatures=tuple(signature.hex() for _, signature in signatures),
            )
        )
