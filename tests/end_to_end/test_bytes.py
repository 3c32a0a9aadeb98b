"""Bytes: what the plan checker predicts is what both transcripts count, exactly."""

from collections import defaultdict
from dataclasses import replace

import pytest

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from diffusion.model import make_model
from diffusion.parameters import part_lengths
from protocol import records, traffic, traffic_parts, traffic_range, traffic_rows
from protocol.aggregation_settings import AggregationConfig
from protocol.dealing import PARTS
from protocol.model_records import Dealt
from protocol.settings import TrainingConfig
from protocol.transcript import read_records
from protocol.update_settings import ProtectionConfig, UpdateConfig
from tests.end_to_end.conftest import make_harness, tiny_draft
from tests.end_to_end.ledgers import check_ledgers
from tests.end_to_end.test_calibration import EVERY, PRIVACY, SAMPLES
from tests.end_to_end.test_calibration import draft as calibrated_draft
from tests.end_to_end.test_measurement import measured_draft
from tests.end_to_end.test_noisy_runs import noisy_draft
from tests.end_to_end.test_private_runs import private_draft
from tests.end_to_end.test_reference import pooled_draft
from tests.end_to_end.test_reference import private_draft as noisy_reference_draft


def masked(**changes):
    return ProtectionConfig(**({"slots_per_setup": 2} | changes))


PLAIN = ProtectionConfig(method="none")
DRAFTS = {
    "mask, two setups": (3, tiny_draft(num_rounds=3)),
    "semi-honest": (
        4,
        tiny_draft(num_rounds=3, protection=masked(trust="semi-honest")),
    ),
    "none": (2, tiny_draft(num_rounds=3, protection=replace(PLAIN, min_cohort=2))),
    "rotation and secret weights": (
        3,
        tiny_draft(
            update=UpdateConfig(
                selection="udec",
                value_bits=8,
                rotation=True,
                weights="secret",
                max_weight=500,
                clipping="previous-mean",
            )
        ),
    ),
    "encrypted, two setups": (
        4,
        tiny_draft(num_rounds=3, protection=masked(method="bfv", key_maker="silo-3")),
    ),
    "encrypted usplit, a reference of the silos": (
        6,
        pooled_draft(
            num_rounds=1,
            protection=ProtectionConfig(method="bfv"),
            update=UpdateConfig(selection="usplit", weights="secret", max_weight=500),
        ),
    ),
    "ulatdec": (
        5,
        tiny_draft(update=UpdateConfig(selection="ulatdec", clipping="previous-mean")),
    ),
    "usplit": (6, tiny_draft(num_rounds=1, update=UpdateConfig(selection="usplit"))),
    "usplit in the clear, odd": (
        5,
        tiny_draft(
            num_rounds=3,
            protection=replace(PLAIN, min_cohort=2),
            update=UpdateConfig(selection="usplit", rotation=True, value_bits=8),
        ),
    ),
    "quantised down, an average": (
        3,
        tiny_draft(
            num_rounds=3,
            update=UpdateConfig(broadcast_bits=5, error_feedback=True),
            aggregation=AggregationConfig(ema_decay=0.5),
        ),
    ),
    "float32": (
        2,
        tiny_draft(
            protection=replace(PLAIN, min_cohort=2),
            update=UpdateConfig(form="float32"),
        ),
    ),
    "silos give samples": (
        3,
        calibrated_draft(SAMPLES, update=UpdateConfig(weights="declared")),
    ),
    "silos give models, privately": (3, calibrated_draft(EVERY, privacy=PRIVACY)),
    "measured in the silos": (
        4,
        measured_draft(num_rounds=2, protection=masked(trust="semi-honest")),
    ),
    "measured in the clear": (
        3,
        measured_draft(protection=replace(PLAIN, min_cohort=2)),
    ),
    "a reference of the silos": (3, pooled_draft(num_rounds=2)),
    "a noisy reference": (3, noisy_reference_draft()),
    "dp-sgd": (3, private_draft(num_rounds=1, update=UpdateConfig(value_bits=4))),
    "noise in the sum": (
        5,
        replace(
            noisy_draft("silo"),
            training=TrainingConfig(
                local_steps=1, optimizer_state="fresh", examples_per_step=8
            ),
        ),
    ),
}


def own_parts(made, silo):
    """Return the parts that a silo returns in a round, from the transcript."""
    dealt = {}
    for entry in read_records(made.federation.silo(silo).run(made.plan) / "transcript"):
        if isinstance(entry.record, Dealt):
            parts = [part for part in PARTS if silo in getattr(entry.record, part)]
            dealt[entry.record.round_number] = parts
    return lambda round_number: dealt.get(round_number, ())


def predicted(made, silo):
    """Return the plan's prediction, by round and stage, as records count."""
    found = defaultdict(lambda: [0, 0, 0, 0])
    own, names = own_parts(made, silo), [party.name for party in made.plan.silos]
    for row in traffic.predict(
        made.plan,
        segments_of(made.plan),
        own,
        silo=names.index(silo),
        statistics_bytes=statistics_bytes(made),
    ):
        place = found[row.round_number, row.stage]
        for index, count in enumerate(
            (row.sent, row.received, row.vector, row.broadcast)
        ):
            place[index] += count
    return dict(found)


def statistics_bytes(made):
    """Return the length of the file that silos are sent to measure with."""
    reference = made.federation.reference
    return reference.stat().st_size if reference.exists() else 0


def segments_of(plan):
    from aggregator.state import shared_layout

    return part_lengths(make_model(plan.model, 0), shared_layout(plan))


def counted(folder, silo):
    """Return what a transcript counts of a silo, by round and stage."""
    found = defaultdict(lambda: [0, 0, 0, 0])
    for entry in read_records(folder / "transcript"):
        record = entry.record
        if isinstance(record, records.Traffic) and record.silo == silo:
            place = found[record.round_number, record.stage]
            for index, name in enumerate(("sent", "received", "vector", "broadcast")):
                place[index] += getattr(record, f"{name}_bytes")
    return dict(found)


@pytest.mark.usefixtures("lent_workers")
@pytest.mark.parametrize("name", DRAFTS)
def test_predicted_is_counted_on_both_sides(tmp_path, name):
    num_silos, draft = DRAFTS[name]
    made = make_harness(tmp_path / "run", draft, num_silos)
    made.run()
    plan = made.plan
    for silo in plan.silos:
        expected = predicted(made, silo.name)
        own = made.federation.silo(silo.name).run(plan)
        assert counted(own, silo.name) == expected
        assert counted(made.federation.aggregator.run(plan), silo.name) == expected
    least, most = traffic_range.run_range(plan, segments_of(plan))
    sent = sum(len(reply) for _, _, reply in made.wire)
    assert least.sent <= sent <= most.sent
    assert (least == most) == (name != "usplit in the clear, odd")
    received = sum(len(request) for _, request, _ in made.wire)
    sent_along = len(plan.silos) * statistics_bytes(made) * plan.evaluation.in_silos
    assert least.received + sent_along == received == most.received + sent_along
    low, high = map(
        traffic_rows.total, traffic_range.predict_range(plan, segments_of(plan))
    )
    for silo in range(num_silos):
        mine = sum(len(reply) for index, _, reply in made.wire if index == silo)
        assert low.sent <= mine <= high.sent
    audit = run_audit(load_evidence(made.federation.root, None))
    failed = {f.check for f in audit.with_severity(Severity.FAIL)}
    assert failed.isdisjoint({"traffic", "disclosures"})
    check_ledgers(made)


def test_parts_add_up():
    num_silos, draft = DRAFTS["rotation and secret weights"]
    made = traffic_plan(draft, num_silos)
    segments = (("encoder", 5), ("decoder", 3), ("encoder", 10))
    for number in (1, 2):
        parts = traffic_parts.vector_by_part(made, segments, number)
        assert sum(parts.values()) == made.vector_bytes(number, 18)
        # 18 values are padded to 4,096, six 10-bit fields in a word: 683 words.
        # The first five values end in word 1, eight in word 2, eighteen in word 3.
        assert parts == {
            "encoder": 16,
            "decoder": 8,
            "padding": 8 * 680,
            "weight": 8,
        }
    assert traffic_parts.broadcast_by_part(segments) == {"encoder": 60, "decoder": 12}


def traffic_plan(draft, num_silos):
    from crypto.keys import IdentityKey
    from protocol.plan import SiloParty, make_plan

    keys = [IdentityKey.generate().public for _ in range(num_silos + 1)]
    silos = [
        SiloParty(name=f"silo-{n}", identity_key=keys[n].hex())
        for n in range(num_silos)
    ]
    return make_plan(draft, keys[-1], silos)


@pytest.mark.parametrize("request_", [b"", b"Cl", b"\x00" * 400])
def test_what_is_no_message_has_no_model(request_):
    assert traffic.broadcast_bytes(request_) == 0
