"""Bytes of encrypted runs, against frames that the messages' classes make.

That they are counted so is in end_to_end/test_bytes.
"""

import pytest

from crypto.bfv.messages import Dealt, Handed, decrypt_prefix, encrypted_prefix
from crypto.bfv.parameters import FRESH_BYTES, SEALED_KEY_BYTES, SUMMED_BYTES
from crypto.frame import OVERHEAD_BYTES
from crypto.secagg.messages import Confirms, Masked, Survivors
from protocol import traffic_encrypted, traffic_parts, traffic_range, traffic_rows
from protocol.traffic import predict
from protocol.traffic_words import traffic_lines
from protocol.update_settings import ProtectionConfig, UpdateConfig
from tests.silo.conftest import tiny_plan

SEGMENTS = (("encoder", 5_000), ("bottleneck", 7_000), ("decoder", 3_000))
DIGEST = bytes(32)
MAKER = ProtectionConfig(method="bfv", key_maker="silo-2")


def rows_of(plan, silo):
    """Return the predicted exchanges by round and stage, the first of each."""
    found = {}
    for row in predict(plan, SEGMENTS, silo=silo):
        found.setdefault((row.round_number, row.stage), row)
    return found


@pytest.mark.parametrize("silo", range(4))
def test_frames_are_as_long_as_predicted(silo):
    """Four silos, of which the second makes the key; two decrypt in each round."""
    plan, n = tiny_plan(4, num_rounds=2, protection=MAKER), 4
    rows = rows_of(plan, silo)
    is_maker = silo == 1
    sealed = (bytes(SEALED_KEY_BYTES),) * (3 if is_maker else 0)
    dealt = Dealt(DIGEST, DIGEST if is_maker else b"", sealed)
    handed = Handed(
        DIGEST, (0, 1, 2, 3), DIGEST, b"" if is_maker else bytes(SEALED_KEY_BYTES)
    )
    assert rows[0, "key"].sent == OVERHEAD_BYTES + len(dealt.to_bytes())
    assert rows[0, "handed"].received == OVERHEAD_BYTES + len(handed.to_bytes(n))
    # 15,000 values are 7,500 words of two 32-bit fields, a field for each slot: with
    # the tags 15,002 slots, four ciphertexts. In round 2 fields of 21 bits, three in
    # each of 5,000 words; their sums have 18 bits, so that two of them share a slot.
    for number, chunks, words in ((1, 4, 7_500), (2, 2, 5_000)):
        upload = rows[number, "encrypted"]
        assert upload.vector == chunks * FRESH_BYTES
        prefix = encrypted_prefix(DIGEST, chunks)
        assert upload.sent == OVERHEAD_BYTES + len(prefix) + upload.vector
        is_asked = silo in {1: (1, 2), 2: (2, 3)}[number]
        assert ((number, "decrypt") in rows) == is_asked
        if is_asked:
            confirm = Survivors(DIGEST, (0, 1, 2, 3))
            confirms = Confirms(confirm, {each: bytes(64) for each in range(n)})
            size = len(decrypt_prefix(confirms, n, chunks)) + chunks * SUMMED_BYTES
            row = rows[number, "decrypt"]
            assert row.received == OVERHEAD_BYTES + size
            answer = Masked(DIGEST, memoryview(bytes(8 * words)))
            assert row.sent == OVERHEAD_BYTES + len(answer.prefix()) + 8 * words
            assert (row.vector, row.broadcast) == (0, 0)


def test_who_is_asked_goes_around():
    plan = tiny_plan(3, num_rounds=3, protection=MAKER)
    assert [traffic_encrypted.asked(plan, number) for number in range(4)] == [
        (0, 1),
        (1, 2),
        (2, 0),
        (0, 1),
    ]
    colluding = ProtectionConfig(method="bfv", max_colluding=2, min_cohort=4)
    plan = tiny_plan(6, protection=colluding)
    assert traffic_encrypted.asked(plan, 5) == (5, 0, 1)


def test_masks_move_nothing_of_it_and_encryption_nothing_of_masks():
    masked = {row.stage for row in predict(tiny_plan(3), SEGMENTS)}
    plan = tiny_plan(3, protection=MAKER)
    encrypted = {row.stage for row in predict(plan, SEGMENTS, silo=1)}
    assert masked ^ encrypted == {
        *("shares", "envelopes", "masked", "reveal"),
        *("key", "handed", "encrypted", "decrypt"),
    }


def test_all_silos_together():
    plan = tiny_plan(3, num_rounds=2, protection=MAKER)
    least, most = traffic_range.run_range(plan, SEGMENTS)
    each = [traffic_rows.total(predict(plan, SEGMENTS, silo=s)) for s in range(3)]
    assert least == most
    assert least.sent == sum(row.sent for row in each)
    assert len({row.sent for row in each}) > 1
    low, high = map(traffic_rows.total, traffic_range.predict_range(plan, SEGMENTS))
    assert low.sent == min(row.sent for row in each)
    assert high.sent == max(row.sent for row in each)
    assert f"{low.sent:,} to {high.sent:,} bytes up" in "\n".join(
        traffic_lines(plan, SEGMENTS, per_round=True)
    )


def test_parts_share_ciphertexts():
    """Two of them in round 2; a third, seven and a fifth of 15,000 values."""
    plan = tiny_plan(3, num_rounds=2, protection=MAKER)
    parts = traffic_parts.vector_by_part(plan, SEGMENTS, 2)
    whole = 2 * FRESH_BYTES
    assert sum(parts.values()) == whole
    assert parts["encoder"] == whole // 3
    assert parts["decoder"] == whole - whole * 12 // 15


def test_dealt_parts_have_ciphertexts_of_their_own():
    update = UpdateConfig(selection="usplit")
    plan = tiny_plan(6, num_rounds=1, protection=MAKER, update=update)
    parts = traffic_parts.vector_by_part(plan, SEGMENTS, 1)
    assert parts == {
        "encoder": 2 * FRESH_BYTES,
        "bottleneck": 2 * FRESH_BYTES,
        "decoder": FRESH_BYTES,
    }
    rows = predict(plan, SEGMENTS, lambda number: ("decoder",), silo=1)
    found = {row.stage: row for row in rows}
    assert found["encrypted"].vector == FRESH_BYTES
    assert found["decrypt"].received > 5 * SUMMED_BYTES
    least, most = traffic_range.run_range(plan, SEGMENTS)
    assert least.vector == most.vector == 3 * 5 * FRESH_BYTES
