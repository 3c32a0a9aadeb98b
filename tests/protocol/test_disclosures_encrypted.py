"""What leaves a silo with encryption: every stage is described, and as it is."""

import pytest

from protocol.cover_words import Cover, cover_words
from protocol.disclosures import (
    AGGREGATOR,
    EVERYONE,
    KEYLESS,
    OTHERS,
    STAGE_ORDER,
    Form,
    contents_of,
)
from protocol.traffic import predict
from tests.protocol.examples import make_example
from tests.protocol.test_reference import POOLED

BFV = {"protection.method": "bfv"}
ALL = BFV | POOLED | {"evaluation.in_silos": True, "update.broadcast_bits": 8}
SEGMENTS = (("encoder", 50), ("decoder", 30))


@pytest.mark.parametrize("method", ["mask", "bfv", "none"])
def test_just_the_stages_of_a_run_are_described(method):
    changes = {"protection.method": method, "update.broadcast_bits": 8}
    changes |= {} if method == "none" else POOLED
    plan = make_example(changes | {"evaluation.in_silos": True})
    moved = {row.stage for s in range(3) for row in predict(plan, SEGMENTS, silo=s)}
    described = {stage for stage in STAGE_ORDER if contents_of(plan, stage, 1)}
    assert described == moved | {"connection", "unknown"}


@pytest.mark.parametrize(
    ("stage", "form", "recipient", "covers"),
    [
        ("setup", Form.PUBLIC, EVERYONE, (Cover.INDEPENDENT,)),
        ("key", Form.SEALED, OTHERS, (Cover.INDEPENDENT,)),
        ("handed", Form.PUBLIC, AGGREGATOR, (Cover.INDEPENDENT,)),
        ("ready", Form.PUBLIC, EVERYONE, (Cover.INDEPENDENT,)),
        ("encrypted", Form.PUBLIC, AGGREGATOR, (Cover.INDEPENDENT,)),
        ("confirm", Form.PUBLIC, EVERYONE, (Cover.INDEPENDENT,)),
        ("decrypt", Form.PLAIN, AGGREGATOR, (Cover.SECURE_AGGREGATION,)),
    ],
)
def test_what_goes_to_whom(stage, form, recipient, covers):
    rest = contents_of(make_example(ALL), stage, 1).rest
    assert (rest.form, rest.recipient, rest.covers) == (form, recipient, covers)


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "outer products"), (1, "its update"), (4, "distance of its own model")],
)
def test_a_vector_is_encrypted_and_a_sum_is_in_the_clear(number, words):
    plan = make_example(ALL)
    vector = contents_of(plan, "encrypted", number).vector
    assert (vector.form, vector.recipient) == (Form.ENCRYPTED, KEYLESS)
    assert words in vector.what and vector.what.endswith(", encrypted")
    total = contents_of(plan, "decrypt", number)
    assert total.vector is None
    assert "the sum over all survivors" in total.rest.what and words in total.rest.what


def test_the_guarantee_names_the_key_and_no_colluding_silos():
    words = cover_words(make_example(BFV), (Cover.SECURE_AGGREGATION,))
    assert words.startswith("encryption: only sums of at least 3 silos")
    assert "as no silo gives the aggregator the key" in words
    assert "collude" not in words
