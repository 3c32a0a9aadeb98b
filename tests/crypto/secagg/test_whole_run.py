"""Both sides together: sums are exact, whoever is lost; a crash changes no byte."""

import numpy as np
import pytest

from crypto.errors import ProtocolViolation
from crypto.frame import Kind
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.config import SecAggConfig
from crypto.secagg.parts import Part
from crypto.secagg.silo_side import SiloSide
from crypto.secagg.silo_state import pairs_of
from tests.crypto import references
from tests.crypto.secagg.federation import STAGES, Federation

SEVEN = SecAggConfig(num_silos=7, threshold=5, slots_per_setup=2)


@pytest.mark.parametrize(
    ("before", "after"),
    [([], []), ([2], [5]), ([0, 6], []), ([], [0, 6]), ([3], [0])],
)
def test_seven_silos_threshold_five(before, after):
    federation = Federation(SEVEN)
    federation.reach("confirms", lost_before_upload=before, lost_after_upload=after)
    answering = set(range(7)) - set(before) - set(after)
    total = federation.reveal(answering)
    survivors = sorted(set(range(7)) - set(before))
    assert federation.aggregator.slot.survivor_indices == tuple(survivors)
    assert (total == federation.plain_sum(survivors)).all()


def test_several_slots_with_other_cohorts_after_one_setup():
    federation = Federation(SEVEN).reach("confirms", lost_before_upload=[2])
    federation.reveal(federation.frames["confirm"])
    federation.slot, federation.round_number = 1, 2
    cohort = [0, 1, 2, 4, 6]
    federation.ready(cohort)
    federation.mask(cohort)
    federation.confirm(cohort)
    total = federation.reveal(cohort)
    assert federation.aggregator.slot.cohort == tuple(cohort)
    assert (total == federation.plain_sum(cohort)).all()


@pytest.mark.parametrize("stage", ["active", "survivors"])
def test_a_slot_given_up_before_reveal_serves_the_same_update_in_the_next(stage):
    federation = Federation(SEVEN).reach(stage)
    first = federation.frames.get("masked", {})
    federation.slot = 1
    federation.ready()
    federation.mask(federation.everyone)
    assert first != federation.frames["masked"]
    federation.confirm(federation.everyone)
    total = federation.reveal(federation.everyone)
    assert (total == federation.plain_sum(range(7))).all()


def test_semi_honest_needs_no_confirmation():
    config = SecAggConfig(num_silos=5, threshold=3, trust="semi-honest")
    federation = Federation(config).reach("survivors", lost_before_upload=[1])
    for silo in (0, 3, 4):
        reply = federation.silos[silo].reveal(federation.frames["survivors"][silo])
        federation.aggregator.slot.add_reveal(reply)
    total = federation.aggregator.slot.unmask()
    assert (total == federation.plain_sum([0, 2, 3, 4])).all()


def test_semi_honest_may_confirm_all_the_same():
    config = SecAggConfig(num_silos=5, threshold=3, trust="semi-honest")
    federation = Federation(config).reach("confirms")
    total = federation.reveal([0, 1, 2])
    assert (total == federation.plain_sum(range(5))).all()


def reload_silo(federation, silo):
    """Crash and restart: the state as it was saved, in a new object."""
    side = federation.silos[silo]
    again = SiloSide.from_bytes(side.to_bytes(), *federation.silo_arguments(silo))
    assert again.to_bytes() == side.to_bytes()
    federation.silos[silo] = again
    return again


def reload_aggregator(federation):
    """Crash and restart of the aggregator, from its three files."""
    side = federation.aggregator
    arguments = federation.aggregator_arguments()
    again = AggregatorSide.from_bytes(side.to_bytes(), *arguments)
    assert again.to_bytes() == side.to_bytes()
    if side.has_slot:
        saved, closed = side.slot.to_bytes(), side.slot.survivor_indices
        again.resume_slot(saved, side.slot.total.copy() if closed else None)
        assert again.slot.to_bytes() == saved
    federation.aggregator = again


@pytest.mark.parametrize("stage", STAGES)
def test_after_a_crash_every_reply_is_identical(stage):
    """All crash at one stage; earlier requests get the same bytes; the sum is exact."""
    federation = Federation(SEVEN).reach(stage)
    for silo in federation.everyone:
        reload_silo(federation, silo)
    reload_aggregator(federation)
    assert_replies_are_identical(federation, stage)
    for later in STAGES[STAGES.index(stage) + 1 :]:
        continue_with(federation, later)
    total = federation.reveal(federation.everyone)
    assert (total == federation.plain_sum(range(7))).all()


def continue_with(federation, stage):
    everyone = federation.everyone
    {
        "envelopes": federation.share,
        "active": federation.ready,
        "survivors": lambda: federation.mask(everyone),
        "confirms": lambda: federation.confirm(everyone),
    }[stage]()


def assert_replies_are_identical(federation, stage):
    """Ask silo 3 and the aggregator again for all they have said so far."""
    frames, silo = federation.frames, federation.silos[3]
    ask = {
        "keys": ("advertise", silo.advertise),
        "envelopes": ("shares", lambda: silo.share(frames["keys"][3])),
        "active": (
            "ready",
            lambda: silo.ready(
                federation.slot, federation.round_number, federation.model
            ),
        ),
        "survivors": (
            "masked",
            lambda: federation.masked(3, frames["active"][3]),
        ),
        "confirms": ("confirm", lambda: silo.confirm(frames["survivors"][3])),
    }
    aggregator = federation.aggregator
    broadcasts = {
        "keys": aggregator.keys,
        "envelopes": lambda: aggregator.envelopes(3),
        "active": lambda: aggregator.slot.active(),
        "survivors": lambda: aggregator.slot.survivors(),
        "confirms": lambda: aggregator.slot.confirms(),
    }
    for name in STAGES[: STAGES.index(stage) + 1]:
        reply, again = ask[name]
        assert again() == frames[reply][3]
        assert broadcasts[name]() == frames[name][3]


def test_after_reveal_the_replies_that_need_no_secret_are_identical():
    federation = Federation(SEVEN).reach("confirms")
    frames, sent = federation.frames, {}
    for i in federation.everyone:
        sent[i] = federation.silos[i].reveal(frames["confirms"][i])
        federation.aggregator.slot.add_reveal(sent[i])
    silo = reload_silo(federation, 3)
    assert silo.reveal(frames["confirms"][3]) == sent[3]
    assert silo.confirm(frames["survivors"][3]) == frames["confirm"][3]
    reload_aggregator(federation)
    total = federation.aggregator.slot.unmask()
    assert (total == federation.plain_sum(range(7))).all()


def test_the_sum_is_announced_once_and_closes_the_slot():
    federation = Federation(SEVEN).reach("confirms", lost_before_upload=[5])
    left = [i for i in federation.everyone if i != 5]
    total = federation.reveal(left)
    notice, t3 = (
        federation.frames["sum"][3],
        federation.silos[3].latest_slot.slot_digest,
    )
    label = b"cloister/1/sum-digest"
    expected = references.digest(label, t3, total.astype("<u8").tobytes())
    assert federation.silos[3].close_slot(notice) == expected
    assert federation.aggregator.slot.sum_digest == expected
    silo = reload_silo(federation, 3)
    assert silo.close_slot(notice) == expected
    with pytest.raises(ProtocolViolation, match="closed"):
        silo.reveal(federation.frames["confirms"][3])


DEALT = (Part(100, (0, 1, 2, 3)), Part(57, (2, 3, 4, 5)), Part(90, (0, 1, 2, 5)))


@pytest.mark.parametrize("lost", [[], [3], [6]])
def test_parts_are_summed_by_their_contributors(lost):
    """Silo 6 contributes to nothing: it holds shares, confirms and reveals."""
    federation = Federation(SEVEN)
    federation.parts = DEALT
    federation.reach("confirms", lost_before_upload=lost)
    left = [i for i in federation.everyone if i not in lost]
    total = federation.reveal(left)
    assert (total == federation.plain_sum(left)).all() and total.size == 247
    sizes = [len(federation.frames["masked"][i]) - 136 for i in left if i != 6]
    assert sizes == [8 * federation.own_words(i).size for i in left if i != 6]
    shares = (len(federation.frames["reveal"][left[0]]) - 96 - 32) // 33
    assert shares == 6  # Of contributors only, lost or not.


def test_secrets_are_gone_from_the_state_when_they_have_served():
    federation = Federation(SEVEN).reach("confirms")
    state = federation.silos[3]._state
    own, held = state.secrets[0], pairs_of(state, 0)
    assert state.channel is None
    assert own.mask_seed in federation.silos[3].to_bytes()
    federation.reveal(federation.everyone)
    saved = federation.silos[3].to_bytes()
    assert own.mask_seed not in saved and own.agreement.to_bytes() not in saved
    for silo in federation.everyone:
        seed_share, key_share = held[silo][:33], held[silo][33:]
        assert key_share not in saved
        assert seed_share in federation.frames["reveal"][3]
    assert state.secrets[1].mask_seed in saved


def test_words_are_copied_and_sums_wrap():
    federation = Federation(SEVEN)
    federation.words = [np.full(257, 2**64 - 1, np.uint64) for _ in range(7)]
    federation.reach("confirms")
    total = federation.reveal(federation.everyone)
    assert (federation.words[0] == 2**64 - 1).all()
    assert (total == (7 * (2**64 - 1)) % 2**64).all()


def test_frames_have_the_headers_of_the_documentation():
    federation = Federation(SEVEN).reach("confirms")
    federation.reveal(federation.everyone)
    assert {Kind[name.upper()] for name in federation.frames} == {
        kind for kind in Kind if kind <= Kind.SUM
    }
