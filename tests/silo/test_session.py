import dataclasses
import hashlib
import json
import os

import numpy as np
import pytest

import silo.store
from crypto.errors import InvalidSignature
from crypto.frame import Header, make_frame, read_header
from crypto.frame import Kind as SecAggKind
from crypto.ring import unpack
from crypto.secagg.aggregator_side import AggregatorSide
from crypto.secagg.parts import whole
from protocol import records
from protocol.bodies import floats_to_bytes
from protocol.envelope import EndReply, Kind, open_envelope
from protocol.errors import TranscriptBroken
from protocol.heads import ShownHead
from protocol.transcript import TranscriptWriter, read_heads
from protocol.update_settings import ProtectionConfig
from silo.errors import PolicyViolation, StateBroken
from silo.policy import Policy
from tests.silo.conftest import STAGES, Federation, make_identities, tiny_plan

IN_ROUND = ("ready", "masked", "confirm", "reveal")


class Crash(BaseException):
    """The process is gone."""


def words_of(federation: Federation, index: int) -> np.ndarray:
    upload = federation.store(index).load_update(federation.round_number)
    assert upload is not None
    return upload.words


class TestRound:
    def test_sum_is_that_of_the_three_updates(self, federation, trainings):
        federation.play("ready")
        parts = [words_of(federation, index) for index in federation.everyone]
        federation.play("reveal", first="masked")
        assert np.array_equal(federation.side.slot.unmask(), sum(parts[1:], parts[0]))
        assert trainings == [(0, 1), (1, 1), (2, 1)]

    def test_what_leaves_is_masked(self, federation):
        federation.play("masked")
        words = words_of(federation, 0)
        assert words.tobytes() not in federation.replies["masked"][0]

    def test_two_rounds_of_one_setup_and_a_third_of_another(self, federation):
        federation.play("reveal").next_round().play("reveal", first="ready")
        federation.round_number, federation.slot, federation.setup = 3, 0, 2
        federation.side = federation.new_side(2)
        federation.play("end")
        assert [session.is_finished for session in federation.sessions] == [True] * 3

    def test_update_is_destroyed_with_the_reveal(self, federation):
        federation.play("confirm")
        assert federation.store(0).load_update(1) is not None
        federation.play("reveal", first="reveal")
        assert federation.store(0).load_update(1) is None

    def test_plain_update_where_plan_and_policy_permit_it(self, tmp_path):
        plan = tiny_plan(protection=ProtectionConfig(method="none"))
        federation = Federation(tmp_path, plan).play("ready", first="ready")
        _, body = open_envelope(
            plan, federation.replies["ready"][1], sender=1, kinds=(Kind.PLAIN,)
        )
        assert bytes(body) == words_of(federation, 1).tobytes()
        assert federation.ask(1, "ready") == federation.replies["ready"][1]
        federation.close()


class TestRepeatedRequest:
    @pytest.mark.parametrize("stage", STAGES)
    def test_identical_bytes(self, federation, trainings, stage):
        federation.play(stage)
        assert federation.ask(0, stage) == federation.replies[stage][0]
        assert federation.ask(0, stage) == federation.replies[stage][0]
        assert len(trainings) in (0, 3)

    @pytest.mark.parametrize("stage", STAGES)
    def test_identical_bytes_after_a_restart(self, federation, trainings, stage):
        federation.play(stage)
        federation.restart(0)
        assert federation.ask(0, stage) == federation.replies[stage][0]
        federation.restart(0)
        assert federation.ask(0, stage) == federation.replies[stage][0]
        assert len(trainings) in (0, 3)

    def test_restart_before_every_stage(self, federation, trainings):
        for stage in STAGES:
            federation.restart(0)
            if stage == "masked":
                parts = [words_of(federation, index) for index in federation.everyone]
            federation.play(stage, first=stage)
        assert np.array_equal(federation.side.slot.unmask(), sum(parts[1:], parts[0]))
        assert trainings == [(0, 1), (1, 1), (2, 1)]

    @pytest.mark.parametrize("stage", ["ready", "masked"])
    def test_refused_once_the_update_is_revealed(self, federation, stage):
        federation.play("reveal")
        reply = federation.ask(0, stage)
        assert federation.refusal(reply).stage == stage
        federation.restart(0)
        assert federation.refusal(federation.ask(0, stage)).stage == stage

    def test_end_again_with_a_newer_head_gets_the_same_answer(self, federation):
        federation.play("end")
        federation.restart(0)
        federation.transcript.append(records.Resumed(software="test"))
        federation.make_requests("end")
        assert federation.ask(0, "end") == federation.replies["end"][0]
        assert len(federation.records(0, records.Finished)) == 1


class TestCrash:
    """Whatever fails before the reply leaves, the next process makes it good."""

    @pytest.mark.parametrize(
        ("stage", "method"),
        [
            ("setup", "save_secagg"),
            ("shares", "save_secagg"),
            ("ready", "save_round"),
            ("ready", "save_secagg"),
            ("masked", "save_secagg"),
            ("confirm", "save_secagg"),
            ("reveal", "save_secagg"),
            ("reveal", "destroy_update"),
            ("end", "save_finished"),
        ],
    )
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_at_a_save(self, federation, trainings, monkeypatch, stage, method, moment):
        if stage != "setup":
            federation.play(STAGES[STAGES.index(stage) - 1])
        federation.make_requests(stage)
        real = getattr(silo.store.RunStore, method)

        def crashing(store, *arguments):
            if moment == "after":
                real(store, *arguments)
            raise Crash

        with monkeypatch.context() as patch:
            patch.setattr(silo.store.RunStore, method, crashing)
            with pytest.raises(Crash):
                federation.ask(0, stage)
        federation.restart(0)
        federation.answer(stage)
        federation.play_rest(stage)
        again = (stage, method, moment) == ("ready", "save_round", "before")
        assert trainings.count((0, 1)) == (2 if again else 1)
        federation.side.slot.unmask()

    @pytest.mark.parametrize("stage", STAGES)
    def test_at_the_transcript(self, federation, trainings, monkeypatch, stage):
        """The record is there or not; the answer is the same, and trained once."""
        if stage != "setup":
            federation.play(STAGES[STAGES.index(stage) - 1])
        federation.make_requests(stage)
        real = TranscriptWriter.append

        def crashing(writer, record):
            if isinstance(record, records.Traffic):
                raise Crash
            real(writer, record)

        with monkeypatch.context() as patch:
            patch.setattr(TranscriptWriter, "append", crashing)
            with pytest.raises(Crash):
                federation.ask(0, stage)
        federation.restart(0)
        federation.answer(stage)
        federation.play_rest(stage)
        assert trainings.count((0, 1)) == 1
        federation.side.slot.unmask()

    def test_identical_masked_bytes_after_a_crash_that_lost_the_reply(
        self, federation, monkeypatch
    ):
        """The mask was used: it may never cover another vector."""
        federation.play("ready")
        federation.make_requests("masked")
        sent = []
        real = silo.store.RunStore.save_secagg

        def crashing(store, setup, state):
            real(store, setup, state)
            raise Crash

        for _ in range(2):
            with monkeypatch.context() as patch, pytest.raises(Crash):
                patch.setattr(silo.store.RunStore, "save_secagg", crashing)
                federation.ask(0, "masked")
            federation.restart(0)
            sent.append(federation.ask(0, "masked"))
        assert sent[0] == sent[1]


class TestSameUpdateTwice:
    """The same update in two sums of different silos would show an update."""

    def reopen(self, federation):
        """Ask silo 0 for the same round once more, in a setup of its own."""
        federation.setup, federation.slot = 2, 0
        federation.side = federation.new_side(2)
        federation.play("envelopes")
        federation.make_requests("ready")
        return federation.ask(0, "ready")

    def test_refused_in_a_new_setup(self, federation, trainings):
        federation.play("reveal")
        reply = self.reopen(federation)
        assert "revealed already" in federation.refusal(reply).check
        assert len(trainings) == 3

    @pytest.mark.parametrize("restart", [False, True])
    def test_a_stale_round_in_between_saves_no_update(self, federation, restart):
        """ROUND 1 between CONFIRM and CONFIRMS of round 2 is refused, and no more."""
        federation.play("reveal")
        stale = federation.requests["ready"][0]
        federation.next_round().play("confirm", first="ready")
        assert (
            "is over" in federation.refusal(federation.sessions[0].handle(stale)).check
        )
        if restart:
            federation.restart(0)
        federation.play("reveal", first="reveal")
        assert federation.store(0).load_update(2) is None
        assert federation.records(0, records.Revealed)[-1].round_number == 2
        assert "revealed already" in federation.refusal(self.reopen(federation)).check

    def test_a_later_round_is_not_lost_with_an_older_slot(self, federation):
        """REVEAL of round 1 destroys the update of round 1, not that of round 2."""
        federation.play("confirm")
        federation.make_requests("reveal")
        federation.next_round()
        other = federation.round_request()
        wrong_slot = federation.envelope(
            Kind.ROUND, other.to_body(), setup=1, slot=federation.slot + 9
        )
        reply = federation.sessions[0].handle(wrong_slot)
        assert "slots" in federation.refusal(reply).check
        federation.ask(0, "reveal")
        assert federation.store(0).load_update(2) is not None

    def test_a_lost_round_is_repeated_with_the_same_update(self, federation, trainings):
        """Nothing was revealed: a new slot masks the same words again, once trained."""
        federation.play("masked")
        before = words_of(federation, 0)
        reply = self.reopen(federation)
        assert read_header(reply).kind == SecAggKind.READY
        assert np.array_equal(words_of(federation, 0), before)
        assert len(trainings) == 3

    def test_one_slot_masks_for_one_cohort(self, tmp_path):
        plan = tiny_plan(4, protection=ProtectionConfig(threshold=3))
        federation = Federation(tmp_path, plan).play("envelopes")
        federation.make_requests("ready")
        replies = [federation.ask(index, "ready") for index in federation.everyone]
        copy = AggregatorSide.from_bytes(
            federation.side.to_bytes(),
            plan.secagg_config(),
            plan.roster,
            federation.aggregator,
            plan.run,
            1,
        )
        for reply in replies:
            federation.side.slot.add_ready(reply)
        slot = federation.side.slot
        parts = whole(slot.total.size, range(4))
        copy.open_slot(0, 1, slot.model_digest, parts, slot.head)
        for reply in replies[:3]:
            copy.slot.add_ready(reply)
        first = federation.sessions[0].handle(federation.side.slot.active())
        assert read_header(first).kind == SecAggKind.MASKED
        second = federation.sessions[0].handle(copy.slot.active())
        assert "another ACTIVE" in federation.refusal(second).check
        federation.restart(0)
        third = federation.sessions[0].handle(copy.slot.active())
        assert "another ACTIVE" in federation.refusal(third).check
        federation.close()


class TestRefused:
    def test_is_signed_and_recorded(self, federation):
        federation.play("shares")
        reply = federation.sessions[0].handle(b"not a frame at all")
        assert federation.refusal(reply).stage == "unknown"
        found = federation.records(0, records.Refused)
        assert [record.check for record in found] == [federation.refusal(reply).check]
        with pytest.raises(InvalidSignature):
            federation.refusal(reply[:-1] + bytes([reply[-1] ^ 1]))

    def test_garbage(self, federation):
        for length in (0, 1, 96, 97, 5000):
            federation.refusal(federation.sessions[0].handle(os.urandom(length)))

    def test_other_run(self, federation):
        federation.plan = tiny_plan()
        other = federation.envelope(Kind.OPEN_SETUP, b"", setup=1)
        reply = federation.sessions[0].handle(other)
        assert read_header(reply).kind == Kind.REFUSED
        refused = federation.records(0, records.Refused)
        assert refused[-1].check == "a message of another run"

    @pytest.mark.parametrize("stage", STAGES)
    def test_wrong_signer(self, federation, stage):
        if stage != "setup":
            federation.play(STAGES[STAGES.index(stage) - 1])
        federation.make_requests(stage)
        request = federation.requests[stage][0]
        stranger = make_identities(9)[7]
        forged = make_frame(stranger, read_header(request), request[32:-64])
        refusal = federation.refusal(federation.sessions[0].handle(forged))
        assert "signature" in refusal.check

    def test_signed_by_another_silo(self, federation):
        header = Header(Kind.OPEN_SETUP, federation.plan.run, 1, 0, 1)
        request = make_frame(federation.keys[1], header)
        refusal = federation.refusal(federation.sessions[0].handle(request))
        assert "from 1" in refusal.check

    @pytest.mark.parametrize(
        "kind", [Kind.CHALLENGE, Kind.HELLO, Kind.PLAIN, Kind.REFUSED, 5, 127]
    )
    def test_unknown_kind(self, federation, kind):
        request = federation.envelope(kind, b"")
        refusal = federation.refusal(federation.sessions[0].handle(request))
        assert refusal.check == f"a request of kind {int(kind)}"

    @pytest.mark.parametrize(
        "stage", ["shares", "ready", "masked", "confirm", "reveal"]
    )
    def test_before_any_setup(self, federation, trainings, tmp_path, stage):
        other = Federation(tmp_path / "other", federation.plan).play(stage)
        other.close()
        trainings.clear()
        reply = federation.sessions[0].handle(other.requests[stage][0])
        assert federation.refusal(reply).stage == stage
        assert not trainings

    @pytest.mark.parametrize("stage", ["confirm", "reveal"])
    def test_out_of_order(self, federation, stage):
        """Silo 0 never saw ACTIVE: it has masked nothing to be confirmed."""
        federation.play("envelopes")
        federation.make_requests("ready")
        replies = {index: federation.ask(index, "ready") for index in range(3)}
        federation.take("ready", replies.values())
        others = Federation(federation.root / "copy", federation.plan)
        others.close()
        body = federation.requests["ready"][0]
        header = Header(
            SecAggKind.SURVIVORS if stage == "confirm" else SecAggKind.CONFIRMS,
            federation.plan.run,
            1,
            0,
            0xFFFF,
        )
        request = make_frame(federation.aggregator, header, body[32:96])
        reply = federation.sessions[0].handle(request)
        assert federation.refusal(reply).stage == stage

    def test_ready_without_the_sealed_shares(self, federation, trainings):
        federation.play("shares")
        federation.side.envelopes(0)
        federation.make_requests("ready")
        reply = federation.ask(0, "ready")
        assert "whose envelopes never came" in federation.refusal(reply).check
        assert trainings == []

    def test_older_round(self, federation, trainings):
        federation.play("reveal")
        stale = federation.requests["ready"][0]
        federation.next_round().play("ready", first="ready")
        trainings.clear()
        refusal = federation.refusal(federation.sessions[0].handle(stale))
        assert refusal.check == "round 1 is over, this silo trained 2"
        assert not trainings

    def test_same_round_with_another_model(self, federation, trainings):
        federation.play("ready")
        federation.parameters = federation.parameters + np.float32(0.5)
        federation.slot = 1
        reply = federation.sessions[0].handle(federation.round_envelope())
        assert "another model" in federation.refusal(reply).check
        assert len(trainings) == 3

    def test_round_after_the_last(self, federation, trainings):
        federation.play("envelopes")
        federation.round_number = 4
        reply = federation.sessions[0].handle(federation.round_envelope())
        assert federation.refusal(reply).check == "round 4 of 3"
        assert not trainings

    def test_round_in_another_setup(self, federation, trainings):
        federation.play("envelopes")
        federation.setup = 7
        reply = federation.sessions[0].handle(federation.round_envelope())
        assert "setup 7, this silo is in setup 1" in federation.refusal(reply).check
        assert not trainings

    def test_older_setup(self, federation):
        federation.play("setup")
        federation.setup = 2
        old = federation.requests["setup"][0]
        federation.make_requests("setup")
        federation.ask(0, "setup")
        assert federation.refusal(federation.sessions[0].handle(old)).check == (
            "setup 1 is over"
        )

    @pytest.mark.parametrize(
        ("change", "check"),
        [
            (lambda values: values[:-1], "expected"),
            (lambda values: np.append(values, np.float32(0)), "expected"),
            (lambda values: values * np.float32(np.nan), "NaN"),
            (lambda values: values + np.float32(np.inf), "infinity"),
        ],
    )
    def test_parameters_that_are_none(self, federation, trainings, change, check):
        federation.play("reveal")
        federation.next_round().make_requests("ready")
        broken = floats_to_bytes(change(federation.parameters))
        reply = federation.sessions[0].handle(
            federation.round_envelope(parameters=broken)
        )
        assert check in federation.refusal(reply).check
        assert len(trainings) == 3
        assert federation.store(0).load_trained().round_number == 1

    def test_a_first_model_that_is_not_the_plans(self, federation, trainings):
        federation.play("envelopes")
        federation.make_requests("ready")
        federation.parameters = federation.parameters + np.float32(1e-3)
        reply = federation.sessions[0].handle(federation.round_envelope())
        assert federation.refusal(reply).check == (
            "the model of round 1 is not the one that this silo holds"
        )
        assert not trainings

    def test_a_first_model_that_is_sent(self, federation, trainings):
        federation.play("envelopes")
        sent = floats_to_bytes(federation.parameters)
        request = federation.round_request()
        request = dataclasses.replace(request, parameters=sent)
        frame = federation.envelope(Kind.ROUND, request.to_body(), setup=1)
        refusal = federation.refusal(federation.sessions[0].handle(frame))
        assert refusal.check == "round 1 brings a model that silos hold"
        assert not trainings

    def test_a_model_of_another_digest_than_stated(self, federation, trainings):
        federation.play("reveal")
        federation.next_round().make_requests("ready")
        reply = federation.sessions[0].handle(
            federation.round_envelope(model="0c" * 32)
        )
        assert federation.refusal(reply).check == (
            "the model of round 2 is not the one that came"
        )
        assert len(trainings) == 3

    @pytest.mark.parametrize("ranges", [b"\0", b"\0" * 4, b"\0\0\xc0\x7f" * 3])
    def test_ranges_that_are_none(self, federation, trainings, ranges):
        federation.play("envelopes")
        reply = federation.sessions[0].handle(federation.round_envelope(ranges=ranges))
        assert federation.refusal(reply).stage == "ready"
        assert not trainings

    def test_head_that_the_aggregator_did_not_sign(self, federation):
        federation.play("envelopes")
        head = federation.transcript.sign_head()
        forged = type(head)(
            party=head.party,
            size=head.size + 1,
            root=head.root,
            signature=head.signature,
        )
        shown = ShownHead(head=forged)
        reply = federation.sessions[0].handle(federation.round_envelope(shown=shown))
        assert "wrong signature" in federation.refusal(reply).check

    def test_everything_but_the_end_after_the_end(self, federation, trainings):
        federation.play("end")
        for restart in (False, True):
            if restart:
                federation.restart(0)
            for stage in STAGES[:-1]:
                reply = federation.ask(0, stage)
                assert federation.refusal(reply).check == "the run is over"
            federation.setup += 1
            federation.make_requests("setup")
        assert len(trainings) == 3

    @pytest.mark.parametrize("stage", ["setup", "shares", "masked"])
    def test_masks_in_a_run_without_them(self, tmp_path, stage):
        """Two silos could not even be configured: the message must not end us."""
        plan = tiny_plan(2, protection=ProtectionConfig(method="none", min_cohort=2))
        federation = Federation.__new__(Federation)
        federation.plan, federation.root = plan, tmp_path
        *federation.keys, federation.aggregator = make_identities(2)
        session = federation.open(0, policy=POLICY_OF_TWO)
        kinds = {"setup": Kind.OPEN_SETUP, "shares": 2, "masked": 6}
        reply = session.handle(federation.envelope(kinds[stage], b""))
        assert "without secure aggregation" in federation.refusal(reply).check
        session.close()

    def test_plan_that_the_policy_refuses(self, federation):
        with pytest.raises(PolicyViolation, match="min_cohort"):
            federation.open(0, policy=Policy(min_cohort=4))

    def test_images_that_do_not_fit(self, federation):
        images = federation_images(16)
        with pytest.raises(Exception, match="16×16"):
            federation.open(0, images=images)


POLICY_OF_TWO = Policy(min_cohort=2, permitted_protections=("none",))


def federation_images(size: int):
    from silo.data import ImageSet

    return ImageSet(np.zeros((4, size, size, 1), np.uint8), (0.0, 255.0))


class TestLocalTrouble:
    """What is wrong with this silo's own files is for its operator, not for others."""

    @pytest.mark.parametrize(
        ("name", "damage"),
        [
            ("update.words", lambda path: path.write_bytes(path.read_bytes()[:-3])),
            ("update.words", lambda path: path.chmod(0o644)),
            ("round.json", lambda path: path.write_bytes(b"{")),
            ("training.safetensors", lambda path: path.write_bytes(b"short")),
            ("training.safetensors", lambda path: path.unlink()),
        ],
    )
    def test_is_refused_without_the_names_of_files(self, federation, name, damage):
        federation.play("reveal" if name != "update.words" else "ready")
        damage(federation.store(0).folder / "round-000001" / name)
        if name == "update.words":
            federation.make_requests("masked")
            reply = federation.ask(0, "masked")
        else:
            federation.next_round().make_requests("ready")
            reply = federation.ask(0, "ready")
        check = federation.refusal(reply).check
        assert check == "this silo cannot train: its operator was told why"
        assert (
            str(federation.root)
            not in (federation.store(0).transcript / "transcript.jsonl").read_text()
        )

    def test_shorter_update_is_damaged(self, federation):
        federation.play("ready")
        path = federation.store(0).folder / "round-000001" / "update.words"
        path.write_bytes(path.read_bytes()[:-8])
        federation.make_requests("masked")
        assert "damaged" in federation.refusal(federation.ask(0, "masked")).check

    def test_damaged_round_does_not_open(self, federation):
        federation.play("ready")
        path = federation.store(0).folder / "round-000001" / "round.json"
        path.write_bytes(b"{}")
        with pytest.raises(StateBroken, match=r"round\.json"):
            federation.open(0)

    def test_transcript_that_was_altered_does_not_open(self, federation):
        federation.play("reveal")
        path = federation.store(0).transcript / "transcript.jsonl"
        path.write_bytes(
            path.read_bytes().replace(b'"round_number":1', b'"round_number":2')
        )
        federation.sessions[0].close()
        for _ in range(2):  # The journal is let go each time.
            with pytest.raises(TranscriptBroken):
                federation.open(0)


class TestTranscript:
    def test_traffic_holds_exactly_the_bytes(self, federation):
        federation.play("end")
        traffic = federation.records(0, records.Traffic)
        for record, stage in zip(traffic, STAGES, strict=True):
            assert record.stage == stage
            assert record.silo == "silo-1"
            assert record.sent_bytes == len(federation.replies[stage][0])
            assert record.received_bytes == len(federation.requests[stage][0])
            assert record.round_number == (1 if stage in IN_ROUND else 0)
        masked = traffic[STAGES.index("masked")]
        assert masked.vector_bytes == 8 * federation.num_words
        assert sum(record.vector_bytes for record in traffic) == masked.vector_bytes

    def test_refusals_are_traffic_too(self, federation):
        reply = federation.sessions[0].handle(b"nonsense")
        (record,) = federation.records(0, records.Traffic)
        assert (record.sent_bytes, record.received_bytes) == (len(reply), 8)

    def test_order_of_a_round(self, federation):
        federation.play("reveal")
        federation.transcript.append(records.Resumed(software="test"))
        federation.play("end", first="end")
        kinds = [record.kind for record in federation.records(0)]
        assert [kind for kind in kinds if kind != "traffic"] == [
            "opened",
            "head-seen",
            "round-opened",
            "cohort",
            "masked",
            "survivors",
            "confirmed",
            "revealed",
            "head-seen",
            "finished",
        ]

    def test_upload_is_the_digest_of_the_message(self, federation):
        federation.play("masked")
        (record,) = federation.records(0, records.Masked)
        reply = federation.replies["masked"][0]
        assert record.upload == hashlib.sha256(reply).hexdigest()
        assert record.size_bytes == len(reply)
        assert (record.round_number, record.setup, record.slot) == (1, 1, 0)

    def test_end_shows_a_head_that_holds(self, federation):
        federation.play("end")
        _, body = open_envelope(
            federation.plan,
            federation.replies["end"][0],
            sender=0,
            kinds=(Kind.END_SEEN,),
        )
        head = EndReply.from_body(body, "silo-1").head
        head.check(federation.plan.digest, federation.keys[0].public)
        assert head.size == len(federation.records(0)) - 1  # Only the traffic follows.

    def test_every_record_is_signed_at_the_end(self, federation):
        federation.play("end")
        heads = list(read_heads(federation.store(0).transcript))
        assert heads[-1].size == len(federation.records(0))

    def test_restart_is_recorded(self, federation):
        federation.play("setup")
        federation.restart(0)
        assert federation.records(0)[-1].kind == "resumed"

    def test_holds_no_secret_and_no_path(self, federation):
        federation.play("confirm")
        state = federation.sessions[0]._secure._side._state
        secrets = [federation.keys[0].to_bytes()]
        for own in state.secrets.values():
            secrets += [value for value in vars_of(own) if len(value) >= 16]
        for held in state.held.values():
            secrets += [held[start : start + 33] for start in range(0, len(held), 33)]
        assert len(secrets) > 10
        words = words_of(federation, 0)
        federation.play("end", first="reveal")
        text = b"".join(
            path.read_bytes()
            for path in sorted(federation.store(0).transcript.iterdir())
        )
        for secret in [*secrets, words[:4].tobytes()]:
            assert secret not in text
            assert secret.hex().encode() not in text
        for word in (str(federation.root), "images", ".npz", ".safetensors", ".words"):
            assert word.encode() not in text
        lines = (federation.store(0).transcript / "transcript.jsonl").read_bytes()
        assert all(json.loads(line) for line in lines.splitlines())


def vars_of(own) -> list[bytes]:
    """Return every byte string and key that a slot's secrets hold."""
    values = [getattr(own, name) for name in own.__dataclass_fields__]
    return [v if isinstance(v, bytes) else v.to_bytes() for v in values]


def test_mean_of_three_updates_moves_the_model(federation):
    """Against a slow reference: unpack, centre, divide by three."""
    federation.play("ready")
    bits = federation.plan.update.field_bits(1, 3)
    level = 2 ** (federation.plan.update.value_bits_in(1, 3) - 1) - 1
    step = federation.plan.update.clipping_norm / level
    size = federation.layout.size
    slow = [
        (unpack(words_of(federation, index), bits, size).astype(np.float64) - level)
        * step
        for index in federation.everyone
    ]
    federation.play("reveal", first="masked")
    total = unpack(federation.side.slot.unmask(), bits, size).astype(np.float64)
    mean = (total - 3 * level) * step / 3
    assert np.allclose(mean, np.mean(slow, axis=0), atol=1e-12)
    assert 0 < np.abs(mean).max() < 0.01
