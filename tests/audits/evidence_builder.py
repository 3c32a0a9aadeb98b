"""A small run as its parties would record it: a script of actions, then files.

The script is plain data, so that a test can make a party lie before anything is
signed; what somebody does to the files afterwards is the other kind of tampering.
The order of records is that of ``silo.session`` and ``aggregator``.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crypto.frame import Kind as ReadyKind
from crypto.keys import IdentityKey
from crypto.secagg.ready import Ready
from diffusion.config import UNetConfig
from protocol import records as r
from protocol.aggregation_settings import EvaluationConfig
from protocol.audit_records import SiloHead, Witnessed
from protocol.calibration_settings import CalibrationConfig
from protocol.envelope import EndReply, Kind, make_envelope
from protocol.heads import Head
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.plan_files import save_plan
from protocol.settings import TrainingConfig
from protocol.sum_records import Decrypted, KeyShared
from protocol.transcript import TranscriptWriter
from protocol.update_settings import ProtectionConfig

SILOS = ("amsterdam", "basel", "cork")
AGGREGATOR = "aggregator"
ROUNDS = 3
SOFTWARE = "cloister test"
NO_CALIBRATION = CalibrationConfig()
VECTOR_BYTES = 40_000
ENCRYPTED_BYTES = 96 + 36 + 2 * 30_784
"""Two ciphertexts of 30,784 bytes, behind 36 bytes, in a frame of 96."""
STAGES = {
    "setup": (656, 300),
    "shares": (742, 1_296),
    "ready": (160, 40_200),
    "masked": (VECTOR_BYTES + 160, 480),
    "confirm": (129, 200),
    "reveal": (227, 192),
    "key": (128, 600),
    "handed": (96, 30_909),
    "encrypted": (ENCRYPTED_BYTES, 480),
    "decrypt": (20_136, 123_200),
    "end": (300, 40_200),
}
"""Bytes that a silo sends and receives in each stage."""


UPLOADED = {"mask": "masked", "bfv": "encrypted"}
KEY_MAKER = "basel"


@dataclass(frozen=True)
class Sign:
    """The party signs a head."""


@dataclass(frozen=True)
class SeeHead:
    """The silo is shown the aggregator's newest head."""

    round_number: int


@dataclass(frozen=True)
class TellHead:
    """The aggregator is told a silo's newest head, and that it acknowledges its own."""

    silo: str


@dataclass(frozen=True)
class Witness:
    """The aggregator records which silos signed its newest head in READY.

    ``model`` is what they signed with it, by default that of the round.
    """

    round_number: int
    setup: int
    slot: int
    silos: tuple[str, ...] = SILOS
    model: str = ""


Item = r.Record | Sign | SeeHead | TellHead | Witness
Action = tuple[str, Item]
Script = list[Action]
Edit = Callable[[Script], Script]


def digest(*parts: object) -> str:
    """Return some digest of some words."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def script(
    *, rounds: int = ROUNDS, lost: dict[int, str] | None = None, method: str = "mask"
) -> Script:
    """Return what all parties do in a run.

    Args:
        rounds: their number.
        lost: the silo that drops out of a round after its upload was asked for.
        method: how updates are protected.
    """
    lost = lost or {}
    actions: Script = [
        (party, r.Opened(plan="", party=party, software=SOFTWARE))
        for party in (AGGREGATOR, *SILOS)
    ]
    if method != "none":
        actions += _setup(method)
    for number in range(1, rounds + 1):
        actions += _round(number, lost.get(number), method)
    return actions + _end(rounds)


def _both(number: int, stage: str, silo: str, vector: int = 0) -> Script:
    """Return the traffic of one exchange, as both ends count it."""
    sent, received = STAGES[stage]
    if vector and stage == "ready":
        sent += vector
    record = r.Traffic(
        round_number=number,
        stage=stage,
        silo=silo,
        sent_bytes=sent,
        received_bytes=received,
        vector_bytes=vector,
        broadcast_bytes=received // 2 if stage in ("ready", "end") else 0,
    )
    return [(silo, record), (AGGREGATOR, record)]


def _setup(method: str) -> Script:
    """Return one key exchange."""
    actions: Script = []
    stages = {"mask": ("setup", "shares"), "bfv": ("setup", "key", "handed")}[method]
    for stage in stages:
        for silo in SILOS:
            actions += _both(0, stage, silo)
    opened = r.SetupOpened(setup=1, members=SILOS, advertisements=digest("keys"))
    actions.append((AGGREGATOR, opened))
    if method == "bfv":
        made = KeyShared(setup=1, maker=KEY_MAKER, commitment=digest("shared key"))
        actions += [(party, made) for party in (AGGREGATOR, *SILOS)]
    return [*actions, (AGGREGATOR, Sign())]


def _round(number: int, lost: str | None, method: str) -> Script:
    """Return one round."""
    place = {"round_number": number, "setup": 1, "slot": number - 1}
    opened = r.RoundOpened(
        **place, attempt=1, model=digest("model", number), field_bits=32
    )
    survivors = tuple(silo for silo in SILOS if silo != lost)
    actions: Script = [(AGGREGATOR, Sign()), (AGGREGATOR, opened)]
    for silo in SILOS:
        plain = VECTOR_BYTES if method == "none" else 0
        actions += [(silo, SeeHead(number)), (silo, opened)]
        if method == "none":
            actions += _upload(place, silo, method, arrives=True)
        actions += _both(number, "ready", silo, plain)
    if method != "none":
        actions += _sum(number, place, survivors, lost, method)
    closed = r.RoundClosed(
        round_number=number,
        survivors=survivors,
        parameters=digest("parameters", number),
    )
    evaluated = r.Evaluated(
        round_number=number,
        extractor="FD-small (fashion)",
        extractor_digest=digest("extractor"),
        reference=digest("reference"),
        reference_count=10_000,
        num_samples=500,
        frechet_distance=90.5 / number,
        class_shares=(0.1,) * 10,
    )
    return [*actions, *((AGGREGATOR, i) for i in (closed, evaluated, Sign()))]


def one_more_round(number: int) -> Script:
    """Return a measurement in the silos: a round's exchanges, by another first stage.

    It closes no round, and nothing is evaluated.
    """
    kept: Script = []
    for party, item in _round(number, None, "mask"):
        if isinstance(item, r.Traffic) and item.stage == "ready":
            kept.append((party, dataclasses.replace(item, stage="measure")))
        elif not isinstance(item, r.RoundClosed | r.Evaluated):
            kept.append((party, item))
    return kept


def _upload(place: dict[str, int], silo: str, method: str, *, arrives: bool) -> Script:
    """Return an upload at the silo, and at the aggregator where it arrives."""
    record = r.Masked(
        **place,
        silo=silo,
        upload=digest("upload", place, silo),
        size_bytes=ENCRYPTED_BYTES if method == "bfv" else VECTOR_BYTES + 160,
        protection=method,
    )
    return [(silo, record), *([(AGGREGATOR, record)] if arrives else [])]


def _sum(
    number: int,
    place: dict[str, int],
    survivors: tuple[str, ...],
    lost: str | None,
    method: str,
) -> Script:
    """Return the stages of secure aggregation."""
    actions: Script = [
        (AGGREGATOR, r.Cohort(round_number=number, silos=SILOS)),
        (AGGREGATOR, Witness(**place)),
    ]
    for silo in SILOS:
        actions.append((silo, r.Cohort(round_number=number, silos=SILOS)))
        actions += _upload(place, silo, method, arrives=silo != lost)
        traffic = _both(number, UPLOADED[method], silo, VECTOR_BYTES)
        actions += traffic[: 1 if silo == lost else 2]
    if lost:
        dropped = r.Dropped(
            round_number=number,
            stage=UPLOADED[method],
            silo=lost,
            reason="deadline passed",
        )
        actions.append((AGGREGATOR, dropped))
    announced = r.Survivors(**place, silos=survivors)
    confirmed = r.Confirmed(**place, silos=survivors)
    actions.append((AGGREGATOR, announced))
    for silo in survivors:
        actions += [(silo, announced), *_both(number, "confirm", silo)]
    actions.append((AGGREGATOR, confirmed))
    if method == "bfv":
        return actions + _decrypted(number, place, survivors, confirmed)
    opening = {
        "self_masks_of": survivors,
        "slot_keys_of": (lost,) if lost else (),
    }
    for silo in survivors:
        own = r.Revealed(**place, silos=(silo,), **opening)
        actions += [(silo, confirmed), (silo, own), (silo, Sign())]
        actions += _both(number, "reveal", silo)
    summed = r.Summed(**place, sum=digest("sum", number))
    revealed = r.Revealed(**place, silos=survivors, **opening)
    return [
        *actions,
        *((AGGREGATOR, record) for record in (revealed, summed)),
        *((silo, summed) for silo in survivors),
    ]


def _decrypted(
    number: int,
    place: dict[str, int],
    survivors: tuple[str, ...],
    confirmed: r.Confirmed,
) -> Script:
    """Return how two of the survivors decrypt the sum, each round others."""
    asked = [survivors[(number + i) % len(survivors)] for i in range(2)]
    opening = {"survivors": survivors, "sum": digest("sum", number)}
    actions: Script = []
    for silo in asked:
        own = Decrypted(**place, silos=(silo,), **opening)
        actions += [(silo, confirmed), (silo, own), (silo, Sign())]
        actions += _both(number, "decrypt", silo)
    decrypted = Decrypted(**place, silos=tuple(sorted(asked)), **opening)
    summed = r.Summed(**place, sum=digest("sum", number))
    actions += [(AGGREGATOR, decrypted), (AGGREGATOR, summed)]
    return actions + [(silo, summed) for silo in survivors]


def _end(rounds: int) -> Script:
    """Return the end of a run."""
    finished = r.Finished(
        round_number=rounds,
        parameters=digest("parameters", rounds),
        average=digest("average", rounds),
    )
    actions: Script = [(AGGREGATOR, finished), (AGGREGATOR, Sign())]
    for silo in SILOS:
        actions += [(silo, SeeHead(rounds)), (silo, finished), (silo, Sign())]
        actions.append((AGGREGATOR, TellHead(silo)))
        actions += [*_both(0, "end", silo), (silo, Sign())]
    return [*actions, (AGGREGATOR, Sign())]


@dataclass(frozen=True)
class Parties:
    """A plan with everybody's identity keys."""

    plan: RunPlan
    keys: dict[str, IdentityKey]


def make_parties(
    *,
    rounds: int = ROUNDS,
    method: str = "mask",
    trust: str = "malicious",
    calibration: CalibrationConfig = NO_CALIBRATION,
) -> Parties:
    """Return a plan for three silos, of which one may be lost."""
    keys = {name: IdentityKey.generate() for name in (AGGREGATOR, *SILOS)}
    draft = PlanDraft(
        name="three-hospitals",
        num_rounds=rounds,
        seed=7,
        model=UNetConfig(
            architecture="residual",
            dim=8,
            channels=1,
            dim_mults=(1, 2),
            image_size=16,
        ),
        training=TrainingConfig(local_steps=2),
        protection=ProtectionConfig(
            method=method,
            threshold=2,
            min_cohort=2,
            max_colluding=0,
            trust=trust,
            key_maker=KEY_MAKER if method == "bfv" else "",
        ),
        evaluation=EvaluationConfig(every_rounds=1),
        calibration=calibration,
    )
    silos = [
        SiloParty(name=name, identity_key=keys[name].public.hex()) for name in SILOS
    ]
    return Parties(make_plan(draft, keys[AGGREGATOR].public, silos), keys)


def folder_of(run: Path, party: str) -> Path:
    """Return where a party's transcript lies."""
    if party == AGGREGATOR:
        return run / "aggregator" / "transcript"
    return run / "silos" / party / "state" / "transcript"


def write_run(run: Path, parties: Parties, actions: Script) -> None:
    """Write the plan and all transcripts of a run, signed by their parties."""
    run.mkdir(parents=True, exist_ok=True)
    save_plan(run / "plan.toml", parties.plan, parties.keys[AGGREGATOR])
    clock = _ticking()
    writers = {
        name: TranscriptWriter(
            folder_of(run, name),
            party=name,
            plan_digest=parties.plan.digest,
            identity=parties.keys[name],
            clock=lambda: next(clock),
        )
        for name in parties.keys
    }
    heads: dict[str, Head] = {}
    for party, item in actions:
        if isinstance(item, Sign):
            heads[party] = writers[party].sign_head()
            continue
        writers[party].append(_record(item, parties, heads))
    for writer in writers.values():
        writer.close()


def _record(item: Item, parties: Parties, heads: dict[str, Head]) -> r.Record:
    """Return the record of an action, heads and the plan's digest filled in."""
    plan = parties.plan
    if isinstance(item, r.Opened) and not item.plan:
        return dataclasses.replace(item, plan=plan.digest.hex())
    if isinstance(item, SeeHead):
        head = heads[AGGREGATOR]
        return r.HeadSeen(
            round_number=item.round_number,
            size=head.size,
            root=head.root,
            signature=head.signature,
        )
    if isinstance(item, TellHead):
        return silo_head(parties, item.silo, heads[item.silo], heads[AGGREGATOR])
    if isinstance(item, Witness):
        return witnessed(parties, item, heads[AGGREGATOR])
    assert not isinstance(item, Sign)
    return item


def silo_head(parties: Parties, silo: str, head: Head, seen: Head) -> SiloHead:
    """Return what a silo's signed answer to END leaves in a transcript."""
    reply = make_envelope(
        parties.plan,
        parties.keys[silo],
        Kind.END_SEEN,
        EndReply(head=head, seen=seen).to_body(),
        sender=SILOS.index(silo),
    )
    return SiloHead(
        silo=silo,
        size=head.size,
        root=head.root,
        signature=head.signature,
        seen_size=seen.size,
        seen_root=seen.root,
        seen_signature=seen.signature,
        acknowledgement=reply[-64:].hex(),
    )


def witnessed(parties: Parties, item: Witness, head: Head) -> Witnessed:
    """Return what the silos' READY leave in a transcript."""
    agreed = digest("members")
    model = item.model or digest("model", item.round_number)
    ready = Ready(
        bytes.fromhex(agreed),
        item.round_number,
        bytes.fromhex(model),
        head.to_bytes(),
    )
    signatures = [
        make_envelope(
            parties.plan,
            parties.keys[silo],
            ReadyKind.READY,
            ready.to_bytes(),
            sender=SILOS.index(silo),
            setup=item.setup,
            slot=item.slot,
        )[-64:].hex()
        for silo in item.silos
    ]
    return Witnessed(
        round_number=item.round_number,
        setup=item.setup,
        slot=item.slot,
        agreed=agreed,
        model=model,
        size=head.size,
        root=head.root,
        signature=head.signature,
        silos=item.silos,
        signatures=tuple(signatures),
    )


def _ticking() -> Iterator[float]:
    """Yield moments, seven seconds apart."""
    seconds = 1_760_000_000.0
    while True:
        yield seconds
        seconds += 7


def change(
    party: str, kind: type[r.Record], number: int | None = None, **changes: object
) -> Edit:
    """Return an edit: a party records something else, once, in a round."""

    def edit(actions: Script) -> Script:
        index = find(actions, party, kind, number)
        item = actions[index][1]
        changed = dataclasses.replace(item, **changes)  # type: ignore[type-var]
        return [*actions[:index], (party, changed), *actions[index + 1 :]]

    return edit


def omit(party: str, kind: type[r.Record], number: int | None = None) -> Edit:
    """Return an edit: a party does not record something."""

    def edit(actions: Script) -> Script:
        index = find(actions, party, kind, number)
        return [*actions[:index], *actions[index + 1 :]]

    return edit


def repeat(
    party: str, kind: type[r.Record], number: int | None = None, **changes: object
) -> Edit:
    """Return an edit: a party records something again, a little different."""

    def edit(actions: Script) -> Script:
        index = find(actions, party, kind, number)
        again = dataclasses.replace(actions[index][1], **changes)  # type: ignore[type-var]
        return [*actions[: index + 1], (party, again), *actions[index + 1 :]]

    return edit


def find(
    actions: Script, party: str, kind: type[r.Record], number: int | None = None
) -> int:
    """Return the index of an action."""
    for index, (who, item) in enumerate(actions):
        fits = number is None or getattr(item, "round_number", None) == number
        if who == party and isinstance(item, kind) and fits:
            return index
    raise LookupError(f"{party} records no {kind.__name__} in round {number}")
