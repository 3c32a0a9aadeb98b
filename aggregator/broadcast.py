"""The quantised down-link at the aggregator: it defines the model, and hands it out.

A round ends with an exact target (mean, optimizer's step, whatever follows it).
:func:`defined` rounds what was added and makes the result the global model, for the
aggregator too. :class:`Broadcaster` sees to it that silos hold that model before they
are asked to train from it, or to end the run with it.
"""

import dataclasses
from collections.abc import Iterable

from aggregator.down_link import DownLink
from aggregator.errors import RoundAborted
from aggregator.exchanges import Exchanges, Stage
from aggregator.state import RoundState
from crypto.encoding import BytesLike
from diffusion.parameters import ParameterLayout, flatten, parameters_digest, unflatten
from protocol import model_records
from protocol.bodies import floats_to_bytes
from protocol.broadcast import Broadcast, Difference, Held, make_difference, moved
from protocol.envelope import Kind, open_envelope
from protocol.errors import EnvelopeRejected
from protocol.plan import RunPlan

BROADCAST = "broadcast"
"""The stage at which silos move to the next global model."""
MAX_HELD_BYTES = 1 << 10
"""The longest HELD: a digest, in an envelope."""


def with_error(layout: ParameterLayout, state: RoundState) -> RoundState:
    """Return a state whose parameters are the exact target, from which a round goes on.

    Without a quantised down-link that is the state itself.
    """
    if state.down_link is None:
        return state
    target = flatten(state.parameters, layout) + state.down_link.error
    parameters = {**state.parameters, **unflatten(target, layout)}
    return dataclasses.replace(state, parameters=parameters)


def defined(
    plan: RunPlan, layout: ParameterLayout, before: RoundState, target: RoundState
) -> RoundState:
    """Return the state that a broadcast defines in place of an exact target.

    Guarantees: its shared parameters are what a silo that held those of ``before``
    holds after the difference, bit for bit; they miss the target by half a grid step a
    value and float32's own rounding, which the error holds. The average is that of the
    defined parameters. Without a quantised down-link the target itself is returned.

    Raises:
        RoundAborted: the target is no float32 step away: training has diverged.
    """
    link, bits = before.down_link, plan.update.broadcast_bits
    if link is None:
        return target
    base, wanted = (flatten(each.parameters, layout) for each in (before, target))
    try:
        ranges, levels = make_difference(base, wanted, layout.segments, bits)
        shared = moved(base, ranges, levels, layout.segments, bits)
    except (ValueError, EnvelopeRejected) as error:
        raise RoundAborted(str(error)) from None
    parameters = {**target.parameters, **unflatten(shared, layout)}
    model = parameters_digest(parameters, layout).hex()
    difference = Difference(ranges, levels, model)
    return dataclasses.replace(
        target,
        parameters=parameters,
        average=before.average.updated(parameters),
        down_link=link.followed_by(wanted - shared, difference),
    )


class Broadcaster:
    """Brings every silo to the global model, whatever it holds.

    What silos hold is known from their own words, and forgotten with the process: a
    silo of which nothing is known is sent the last difference and says what it holds.
    """

    def __init__(self, exchanges: Exchanges, layout: ParameterLayout) -> None:
        self._exchanges, self._plan = exchanges, exchanges.plan
        self._layout = layout
        self._held: dict[int, str] = {}

    def deliver(self, state: RoundState, round_number: int) -> frozenset[int]:
        """Return the silos that hold the global model, after sending what they lack.

        Nothing is sent to silos that are known to hold it. Those that say that they
        hold another are sent the differences in a row, or all parameters, whichever is
        fewer bytes.

        Args:
            round_number: the round that begins with the model, 0 where the run ends.
        """
        link, everyone = state.down_link, range(len(self._plan.silos))
        if link is None:
            return frozenset()
        if not link.differences:
            return frozenset(everyone)
        model = link.models[-1]
        lacking = {silo for silo in everyone if self._held.get(silo) != model}
        for is_last in (False, True):
            if lacking:
                told = self._ask(state, link, lacking, round_number, is_last)
                lacking = {silo for silo in told if self._held[silo] != model}
        return frozenset(silo for silo, held in self._held.items() if held == model)

    def _ask(
        self,
        state: RoundState,
        link: DownLink,
        silos: Iterable[int],
        number: int,
        is_last: bool,
    ) -> tuple[int, ...]:
        """Run one exchange; return who said what it holds: in the last, the model."""
        made: dict[str | None, bytes] = {}
        requests = {}
        for silo in sorted(silos):
            held = self._held.get(silo)
            if held not in made:
                message = self._message(state, link, held, number)
                made[held] = self._exchanges.envelope(
                    Kind.BROADCAST, message.to_body(), setup=0, slot=0
                )
            requests[silo] = made[held]

        def take(silo: int, reply: BytesLike) -> int:
            _, body = open_envelope(self._plan, reply, sender=silo, kinds=(Kind.HELD,))
            held = Held.from_body(body).model
            is_there = held == link.models[-1]
            if is_last and not is_there:
                raise EnvelopeRejected("it holds another model than it was sent")
            self._held[silo] = held
            if is_there:
                self._record(silo, held, number)
            return 0

        stage = Stage(
            name=BROADCAST,
            round_number=number,
            deadline_seconds=self._plan.deadlines.exchange_seconds,
            max_reply_bytes=MAX_HELD_BYTES,
        )
        return self._exchanges.ask(stage, requests, take)

    def _message(
        self, state: RoundState, link: DownLink, held: str | None, number: int
    ) -> Broadcast:
        """Return what leads from a model to the global one, in the fewest bytes."""
        missed = link.differences[-1:]
        if held is not None:
            missed = tuple(link.missed(held) or ())
        shared = flatten(state.parameters, self._layout)
        if missed and sum(each.num_bytes for each in missed) < 4 * shared.size:
            base = link.models[-1 - len(missed)]
            return Broadcast.of_differences(number, base, missed)
        return Broadcast(
            round_number=number,
            models=link.models[-1:],
            parameters=floats_to_bytes(shared),
        )

    def _record(self, silo: int, model: str, number: int) -> None:
        """Record that a silo holds the global model."""
        self._exchanges.transcript.append(
            model_records.ModelHeld(
                round_number=number,
                silo=self._plan.silos[silo].name,
                parameters=model,
            )
        )
