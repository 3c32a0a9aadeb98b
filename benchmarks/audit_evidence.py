"""The evidence of a made-up run with DP-SGD, of as many silos and rounds as one likes.

Every party writes what ``silo.session`` and ``aggregator`` would: through the writer of
transcripts, with true keys, heads, signatures, prices and plan. One silo drops out now
and then.
"""

import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crypto.frame import Kind as ReadyKind
from crypto.keys import IdentityKey
from crypto.secagg.ready import Ready
from crypto.signatures import SIGNATURE_BYTES
from diffusion.config import UNetConfig
from privacy.events import SampledGaussian
from privacy.pricing import epsilon
from protocol import records as r
from protocol.aggregation_settings import EvaluationConfig
from protocol.audit_records import Connected, SiloHead, Witnessed
from protocol.envelope import EndReply, Kind, make_envelope
from protocol.model_records import Evaluated, ModelHeld
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.plan_files import save_plan
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from protocol.transcript import Head, TranscriptWriter
from protocol.update_settings import ProtectionConfig, UpdateConfig

AGGREGATOR = "aggregator"
SOFTWARE = "cloister benchmark"
RECORDS_PER_ROUND = 23
"""About as many records are written in a round for each silo, at both ends."""
SLOTS_PER_SETUP = 10
EVALUATED_EVERY = 5
LOST_EVERY = 7
VECTOR_BYTES, MODEL_BYTES = 6_000_000, 3_000_000
DELTA, RATE, NOISE = 1e-5, 0.1, 2.0
STAGES = {
    "setup": (656, 300),
    "shares": (742, 1_296),
    "envelopes": (96, 2_400),
    "broadcast": (140, MODEL_BYTES + 200),
    "ready": (330, 700),
    "masked": (VECTOR_BYTES + 160, 1_100),
    "confirm": (129, 200),
    "reveal": (427, 800),
    "end": (300, 900),
}
"""Bytes that a silo sends and receives in each stage."""


def rounds_for(num_records: int, num_silos: int) -> int:
    """Return how many rounds make at least so many records."""
    return max(1, -(-num_records // (RECORDS_PER_ROUND * num_silos)))


def write_evidence(run: Path, num_silos: int, num_rounds: int) -> int:
    """Write plan and transcripts of a run; return the number of records."""
    silos = tuple(f"hospital-{number}" for number in range(1, num_silos + 1))
    made = _Run(run, silos, num_rounds)
    with made.open():
        made.begin()
        for number in range(1, made.plan.num_rounds + 1):
            made.round(number)
        made.end()
        return sum(writer.size for writer in made.writers.values())


def _digest(*parts: object) -> str:
    """Return some digest of some words."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _price(steps: int) -> tuple[tuple[SampledGaussian, ...], float]:
    """Return the event of so many steps, and its price."""
    event = SampledGaussian(
        sample_rate=RATE, noise_multiplier=NOISE, clipping_norm=1.0, steps=steps
    )
    return (event,), epsilon((event,), DELTA)


class _Run:
    """The parties of one run, and what they write."""

    def __init__(self, folder: Path, silos: tuple[str, ...], rounds: int) -> None:
        self._folder, self._silos = folder, silos
        self._keys = {name: IdentityKey.generate() for name in (AGGREGATOR, *silos)}
        self.plan = self._make_plan(rounds)
        self.writers: dict[str, TranscriptWriter] = {}
        self._heads: dict[str, Head] = {}

    def _make_plan(self, rounds: int) -> RunPlan:
        draft = PlanDraft(
            name="ten-hospitals",
            num_rounds=rounds,
            seed=7,
            model=UNetConfig(
                architecture="residual",
                dim=8,
                channels=1,
                dim_mults=(1, 2),
                image_size=16,
            ),
            training=TrainingConfig(local_steps=1),
            update=UpdateConfig(broadcast_bits=8),
            privacy=PrivacyConfig(
                mechanism="dp-sgd",
                noise_multiplier=NOISE,
                delta=DELTA,
                sample_rate=RATE,
            ),
            protection=ProtectionConfig(slots_per_setup=SLOTS_PER_SETUP),
            evaluation=EvaluationConfig(every_rounds=EVALUATED_EVERY),
        )
        silos = [
            SiloParty(name=name, identity_key=self._keys[name].public.hex())
            for name in self._silos
        ]
        return make_plan(draft, self._keys[AGGREGATOR].public, silos)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Open every party's transcript; the disk is not waited for meanwhile."""
        self._folder.mkdir(parents=True)
        save_plan(self._folder / "plan.toml", self.plan, self._keys[AGGREGATOR])
        seconds = itertools.count(1_760_000_000.0, 1.0)
        real: Callable[[int], None] = os.fsync
        os.fsync = lambda descriptor: None  # type: ignore[assignment]
        try:
            for name, key in self._keys.items():
                self.writers[name] = TranscriptWriter(
                    self._folder / name / "transcript",
                    party=name,
                    plan_digest=self.plan.digest,
                    identity=key,
                    clock=lambda: next(seconds),
                )
            yield
        finally:
            for writer in self.writers.values():
                writer.close()
            os.fsync = real

    def _say(self, party: str, *said: r.Record) -> None:
        for record in said:
            self.writers[party].append(record)

    def _sign(self, party: str) -> None:
        self._heads[party] = self.writers[party].sign_head()

    def _exchange(
        self, number: int, stage: str, silo: str, *, lost: bool = False
    ) -> None:
        """Write the traffic of one exchange, as both ends count it."""
        sent, received = STAGES[stage]
        for party in (silo, AGGREGATOR):
            arrives = not lost or party == silo
            self._say(
                party,
                r.Traffic(
                    round_number=number,
                    stage=stage,
                    silo=silo,
                    sent_bytes=sent * arrives,
                    received_bytes=received,
                    vector_bytes=VECTOR_BYTES * (stage == "masked") * arrives,
                    broadcast_bytes=MODEL_BYTES * (stage == "broadcast"),
                ),
            )

    def _see_head(self, silo: str, number: int) -> None:
        head = self._heads[AGGREGATOR]
        self._say(
            silo,
            r.HeadSeen(
                round_number=number,
                size=head.size,
                root=head.root,
                signature=head.signature,
            ),
        )

    def begin(self) -> None:
        """Open transcripts, connections and ledgers."""
        for party in (AGGREGATOR, *self._silos):
            opened = r.Opened(
                plan=self.plan.digest.hex(), party=party, software=SOFTWARE
            )
            self._say(party, opened)
            self._sign(party)
        for silo in self._silos:
            self._say(
                silo,
                r.LedgerOpened(
                    commitment=_digest("data", silo),
                    unit="example",
                    relation="add-or-remove-one",
                    delta=DELTA,
                    randomness="operating-system",
                    fresh=False,
                ),
                Connected(
                    transport="local-socket",
                    sent_bytes=144,
                    received_bytes=144,
                    frame_bytes=16,
                ),
            )

    def round(self, number: int) -> None:
        """Write one round, and the key exchange before it where one is due."""
        setup, slot = divmod(number - 1, SLOTS_PER_SETUP)
        if not slot:
            self._setup(setup + 1)
        place = {"round_number": number, "setup": setup + 1, "slot": slot}
        lost = (
            self._silos[number % len(self._silos)] if number % LOST_EVERY == 0 else None
        )
        if number > 1:
            self._broadcast(number, _digest("parameters", number - 1))
        self._ready(place)
        self._sum(place, tuple(silo for silo in self._silos if silo != lost), lost)
        self._close(number, tuple(silo for silo in self._silos if silo != lost))

    def _setup(self, setup: int) -> None:
        for stage in ("setup", "shares", "envelopes"):
            for silo in self._silos:
                self._exchange(0, stage, silo)
        opened = r.SetupOpened(
            setup=setup, members=self._silos, advertisements=_digest("keys", setup)
        )
        self._say(AGGREGATOR, opened)
        self._sign(AGGREGATOR)

    def _broadcast(self, number: int, parameters: str) -> None:
        for silo in self._silos:
            held = ModelHeld(round_number=number, silo=silo, parameters=parameters)
            self._say(silo, held)
            self._exchange(number, "broadcast", silo)
            self._say(AGGREGATOR, held)

    def _ready(self, place: dict[str, int]) -> None:
        number = place["round_number"]
        opened = r.RoundOpened(
            **place, attempt=1, model=_digest("model", number), field_bits=20
        )
        self._sign(AGGREGATOR)
        self._say(AGGREGATOR, opened)
        events, price = _price(number)
        for silo in self._silos:
            self._see_head(silo, number)
            size, head = 1 + 2 * number, _digest("ledger", silo, number)
            spent = r.PrivacySpent(
                round_number=number,
                ledger_size=size,
                ledger_head=head,
                multiplicity=1,
                events=events,
                earlier=(),
                epsilon=price,
                epsilon_prv=price,
                prv_error=0.001,
                account_epsilon=price,
            )
            self._say(silo, opened, spent)
            seen = r.LedgerSeen(round_number=number, silo=silo, size=size, head=head)
            self._say(AGGREGATOR, seen)
            self._exchange(number, "ready", silo)
        cohort = r.Cohort(round_number=number, silos=self._silos)
        self._say(AGGREGATOR, cohort, self._witnessed(place))
        for silo in self._silos:
            self._say(silo, cohort)

    def _witnessed(self, place: dict[str, int]) -> Witnessed:
        """Return what the READY of all silos leave in the aggregator's transcript."""
        head, number = self._heads[AGGREGATOR], place["round_number"]
        agreed = _digest("members", place["setup"])
        model = _digest("model", number)
        ready = Ready(
            bytes.fromhex(agreed), number, bytes.fromhex(model), head.to_bytes()
        ).to_bytes()
        signatures = tuple(
            self._signature(
                silo, ReadyKind.READY, ready, setup=place["setup"], slot=place["slot"]
            )
            for silo in self._silos
        )
        return Witnessed(
            **place,
            agreed=agreed,
            model=model,
            size=head.size,
            root=head.root,
            signature=head.signature,
            silos=self._silos,
            signatures=signatures,
        )

    def _signature(self, silo: str, kind: int, body: bytes, **place: int) -> str:
        """Return what a silo signs a message with."""
        sender = self._silos.index(silo)
        message = make_envelope(
            self.plan, self._keys[silo], kind, body, sender=sender, **place
        )
        return message[-SIGNATURE_BYTES:].hex()

    def _sum(
        self, place: dict[str, int], survivors: tuple[str, ...], lost: str | None
    ) -> None:
        number = place["round_number"]
        for silo in self._silos:
            masked = r.Masked(
                **place,
                silo=silo,
                upload=_digest("upload", silo, number),
                size_bytes=STAGES["masked"][0],
                protection="mask",
            )
            self._say(silo, masked)
            if silo == lost:
                dropped = r.Dropped(
                    round_number=number,
                    stage="masked",
                    silo=silo,
                    reason="no answer in time",
                )
                self._say(AGGREGATOR, dropped)
            else:
                self._say(AGGREGATOR, masked)
            self._exchange(number, "masked", silo, lost=silo == lost)
        announced = r.Survivors(**place, silos=survivors)
        confirmed = r.Confirmed(**place, silos=survivors)
        self._say(AGGREGATOR, announced)
        for silo in survivors:
            self._say(silo, announced)
            self._exchange(number, "confirm", silo)
        self._say(AGGREGATOR, confirmed)
        opening = {
            "self_masks_of": survivors,
            "slot_keys_of": (lost,) if lost else (),
        }
        summed = r.Summed(**place, sum=_digest("sum", number))
        for silo in survivors:
            own = r.Revealed(**place, silos=(silo,), **opening)
            self._say(silo, confirmed, own)
            self._sign(silo)
            self._exchange(number, "reveal", silo)
        revealed = r.Revealed(**place, silos=survivors, **opening)
        self._say(AGGREGATOR, revealed, summed)
        for silo in survivors:
            self._say(silo, summed)

    def _close(self, number: int, survivors: tuple[str, ...]) -> None:
        closed = r.RoundClosed(
            round_number=number,
            survivors=survivors,
            parameters=_digest("parameters", number),
        )
        self._say(AGGREGATOR, closed)
        if number % EVALUATED_EVERY == 0:
            self._say(
                AGGREGATOR,
                Evaluated(
                    round_number=number,
                    extractor="FD-small (fashion)",
                    extractor_digest=_digest("extractor"),
                    reference=_digest("reference"),
                    reference_count=10_000,
                    num_samples=500,
                    frechet_distance=90.5 / number,
                    class_shares=(0.1,) * 10,
                ),
            )
        self._sign(AGGREGATOR)

    def end(self) -> None:
        """Bring the last model, and end the run for everybody."""
        last = self.plan.num_rounds
        self._broadcast(0, _digest("parameters", last))
        self._sign(AGGREGATOR)
        seen = self._heads[AGGREGATOR]
        finished = r.Finished(
            round_number=last,
            parameters=_digest("parameters", last),
            average=_digest("parameters", last),
        )
        for silo in self._silos:
            self._see_head(silo, last)
            self._say(silo, finished)
            self._sign(silo)
            head = self._heads[silo]
            reply = EndReply(head=head, seen=seen).to_body()
            told = SiloHead(
                silo=silo,
                size=head.size,
                root=head.root,
                signature=head.signature,
                seen_size=seen.size,
                seen_root=seen.root,
                seen_signature=seen.signature,
                acknowledgement=self._signature(silo, Kind.END_SEEN, reply),
            )
            self._say(AGGREGATOR, told)
            self._exchange(0, "end", silo)
            self._sign(silo)
        self._say(AGGREGATOR, finished)
        self._sign(AGGREGATOR)
