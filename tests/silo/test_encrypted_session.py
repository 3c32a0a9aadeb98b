"""A silo's session in a run whose updates are encrypted, against a real centre."""

import functools
import hashlib
import importlib.util

import numpy as np
import pytest

import crypto.bfv.installed
import silo.store
from crypto.bfv.aggregator_side import BfvAggregatorSide
from crypto.bfv.parameters import FRESH_BYTES
from crypto.bfv.workers import Workers
from crypto.errors import WorkerFailed
from crypto.frame import Kind as SecAggKind
from crypto.frame import read_header
from crypto.secagg.parts import whole
from protocol import records
from protocol.packing import layouts
from protocol.sum_records import Decrypted, KeyShared
from protocol.transcript import TranscriptWriter
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.cli import main
from silo.errors import PolicyViolation
from silo.policy import Policy
from tests.silo.conftest import (
    ENCRYPTED_STAGES,
    Federation,
    SharedWorkers,
    run_command,
    tiny_images,
    tiny_plan,
)

BFV = ProtectionConfig(method="bfv", slots_per_setup=2)
IN_ROUND = ("ready", "encrypted", "confirm", "decrypt")
REFUSED = "refused: not the sum that was confirmed"
TROUBLE = "this silo cannot encrypt or decrypt: its operator was told why"
SAME_AGAIN = tuple(stage for stage in ENCRYPTED_STAGES if stage != "encrypted")


class Crash(BaseException):
    """The process is gone."""


@pytest.fixture
def federation(tmp_path, trainings, workers):
    made = Federation(tmp_path, tiny_plan(protection=BFV), workers)
    yield made
    made.close()


def words_of(federation: Federation, index: int) -> np.ndarray:
    upload = federation.store(index).load_update(federation.round_number)
    assert upload is not None
    return upload.words


def sum_of(federation: Federation) -> np.ndarray:
    return sum(words_of(federation, index) for index in federation.everyone)


def before(stage: str) -> str:
    return ENCRYPTED_STAGES[ENCRYPTED_STAGES.index(stage) - 1]


def another_decrypt(federation: Federation) -> bytes:
    """DECRYPT of a ciphertext to which the aggregator has added far above the noise."""
    slot = federation.side.slot
    real = slot.total.copy()
    slot.total[0] ^= np.uint64(1 << 50)
    try:
        return slot.decrypt_request()
    finally:
        slot.total[:] = real


class TestRound:
    def test_sum_is_that_of_the_three_updates(self, federation, trainings):
        federation.play("ready")
        expected = sum_of(federation)
        federation.play("decrypt", first="encrypted")
        assert np.array_equal(federation.side.slot.decrypted_sum(), expected)
        assert trainings == [(0, 1), (1, 1), (2, 1)]

    def test_what_leaves_is_encrypted(self, federation):
        federation.play("encrypted")
        reply = federation.replies["encrypted"][0]
        assert words_of(federation, 0)[:4].tobytes() not in reply

    def test_two_rounds_of_one_setup_and_a_third_of_another(self, federation):
        federation.play("decrypt").next_round().play("decrypt", first="ready")
        federation.round_number, federation.slot, federation.setup = 3, 0, 2
        federation.side = federation.new_side(2)
        federation.play("end")
        assert [session.is_finished for session in federation.sessions] == [True] * 3
        commitments = {r.commitment for r in federation.records(0, KeyShared)}
        assert len(commitments) == 2  # Another setup, another key.

    def test_update_is_destroyed_with_the_decryption(self, federation):
        federation.play("confirm")
        assert federation.store(0).load_update(1) is not None
        federation.play("decrypt", first="decrypt")
        assert federation.store(0).load_update(1) is None

    def test_a_silo_that_decrypts_nothing_destroys_it_with_the_sum(self, federation):
        federation.play("confirm").make_requests("decrypt")
        replies = [federation.ask(index, "decrypt") for index in (1, 2)]
        federation.take("decrypt", replies)
        federation.side.slot.decrypted_sum()
        assert federation.store(0).load_update(1) is not None
        notice = federation.side.slot.sum_notice()
        federation.sessions[0]._close_slot(notice)
        assert federation.store(0).load_update(1) is None
        (summed,) = federation.records(0, records.Summed)
        (decrypted,) = federation.records(1, Decrypted)
        assert summed.sum == decrypted.sum

    def test_a_sum_without_the_silo_that_was_lost(self, tmp_path, workers):
        plan = tiny_plan(4, protection=ProtectionConfig(method="bfv", threshold=3))
        federation = Federation(tmp_path, plan, workers).play("ready")
        parts = [words_of(federation, index) for index in federation.everyone]
        federation.make_requests("encrypted")
        federation.requests["encrypted"].pop(3)
        federation.answer("encrypted")
        for stage in ("confirm", "decrypt"):
            federation.make_requests(stage)
            federation.requests[stage].pop(3)
            federation.answer(stage)
        total = federation.side.slot.decrypted_sum()
        assert np.array_equal(total, sum(parts[:3]))
        assert federation.records(0, Decrypted)[0].survivors == (
            *("silo-1", "silo-2", "silo-3"),
        )
        federation.close()

    def test_parts_that_are_dealt_are_summed_over_those_that_fill_them(
        self, tmp_path, workers
    ):
        update = UpdateConfig(selection="usplit", weights="secret", max_weight=9)
        plan = tiny_plan(6, update=update, protection=BFV)
        federation = Federation(tmp_path, plan, workers).play("ready")
        parts, sums = federation.parts(), []
        rest = {index: words_of(federation, index) for index in federation.everyone}
        for part in parts:
            sums.append(np.zeros(part.num_words, np.uint64))
            for index in part.contributors:
                sums[-1] += rest[index][: part.num_words]
                rest[index] = rest[index][part.num_words :]
        assert 0 < len(parts[0].contributors) < 6
        federation.play("decrypt", first="encrypted")
        total = federation.side.slot.decrypted_sum()
        assert np.array_equal(total, np.concatenate(sums))
        federation.close()

    @pytest.mark.parametrize("maker", ["silo-1", "silo-3"])
    def test_everybody_records_one_key_and_who_made_it(self, tmp_path, workers, maker):
        protection = ProtectionConfig(method="bfv", key_maker=maker)
        federation = Federation(tmp_path, tiny_plan(protection=protection), workers)
        federation.play("handed")
        found = {
            record
            for index in federation.everyone
            for record in federation.records(index, KeyShared)
        }
        assert [record.maker for record in found] == [maker]
        federation.close()


class TestRepeatedRequest:
    @pytest.mark.parametrize("stage", SAME_AGAIN)
    def test_identical_bytes(self, federation, trainings, stage):
        federation.play(stage)
        assert federation.ask(0, stage) == federation.replies[stage][0]
        federation.restart(0)
        assert federation.ask(0, stage) == federation.replies[stage][0]
        federation.restart(0)
        assert federation.ask(0, stage) == federation.replies[stage][0]
        assert len(trainings) in (0, 3)

    @pytest.mark.parametrize("restart", [False, True])
    def test_an_update_is_encrypted_anew_from_the_same_words(self, federation, restart):
        federation.play("ready").make_requests("encrypted")
        expected = sum_of(federation)
        lost = [federation.ask(index, "encrypted") for index in federation.everyone]
        if restart:
            for index in federation.everyone:
                federation.restart(index)
        federation.answer("encrypted")
        for index in federation.everyone:
            again = federation.replies["encrypted"][index]
            assert len(again) == len(lost[index])
            assert again != lost[index]
        federation.play("decrypt", first="confirm")
        assert np.array_equal(federation.side.slot.decrypted_sum(), expected)

    def test_restart_before_every_stage(self, federation, trainings):
        for stage in ENCRYPTED_STAGES:
            federation.restart(0)
            if stage == "encrypted":
                expected = sum_of(federation)
            federation.play(stage, first=stage)
        assert np.array_equal(federation.side.slot.decrypted_sum(), expected)
        assert trainings == [(0, 1), (1, 1), (2, 1)]

    @pytest.mark.parametrize("stage", ["ready", "encrypted"])
    def test_refused_once_the_sum_is_decrypted(self, federation, stage):
        federation.play("decrypt")
        reply = federation.ask(0, stage)
        assert federation.refusal(reply).stage == stage
        federation.restart(0)
        assert federation.refusal(federation.ask(0, stage)).stage == stage


class TestCrash:
    @pytest.mark.parametrize(
        ("stage", "method"),
        [
            ("key", "save_secagg"),
            ("handed", "save_secagg"),
            ("encrypted", "save_secagg"),
            ("decrypt", "save_secagg"),
            ("decrypt", "destroy_update"),
        ],
    )
    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_at_a_save(self, federation, trainings, monkeypatch, stage, method, moment):
        federation.play(before(stage)).make_requests(stage)
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
        assert trainings.count((0, 1)) == 1
        assert federation.store(0).load_update(1) is None
        federation.side.slot.decrypted_sum()

    @pytest.mark.parametrize("stage", ["key", "handed", "encrypted", "decrypt"])
    def test_at_the_transcript(self, federation, trainings, monkeypatch, stage):
        federation.play(before(stage)).make_requests(stage)
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
        federation.side.slot.decrypted_sum()


class TestWorkerFailed:
    """A process that crashes is this silo's own trouble; the request comes again."""

    METHODS = (("key", "make_key"), ("encrypted", "encrypt"), ("decrypt", "decrypt"))

    @pytest.mark.parametrize(("stage", "method"), METHODS)
    @pytest.mark.parametrize("restart", [False, True])
    def test_asked_again_it_succeeds(
        self, federation, trainings, monkeypatch, stage, method, restart
    ):
        federation.play(before(stage)).make_requests(stage)

        def failing(*arguments, **options):
            raise WorkerFailed("a child process ended with SIGSEGV")

        with monkeypatch.context() as patch:
            patch.setattr(SharedWorkers, method, failing)
            for _ in range(2):
                reply = federation.ask(0, stage)
                refusal = federation.refusal(reply)
                assert (refusal.stage, refusal.check) == (stage, TROUBLE)
        text = (federation.store(0).transcript / "transcript.jsonl").read_text()
        assert "SIGSEGV" not in text
        if restart:
            federation.restart(0)
        federation.answer(stage)
        federation.play_rest(stage)
        assert trainings.count((0, 1)) == 1
        federation.side.slot.decrypted_sum()

    def test_in_the_middle_of_an_upload(self, federation, monkeypatch):
        federation.play("ready").make_requests("encrypted")
        expected = sum_of(federation)
        real = SharedWorkers.encrypt

        def failing(workers, key, blocks):
            yield next(iter(real(workers, key, blocks)))
            raise WorkerFailed("gone")

        with monkeypatch.context() as patch:
            patch.setattr(SharedWorkers, "encrypt", failing)
            reply = federation.ask(0, "encrypted")
            assert federation.refusal(reply).check == TROUBLE
        federation.answer("encrypted")
        federation.play("decrypt", first="confirm")
        assert np.array_equal(federation.side.slot.decrypted_sum(), expected)


class TestProcesses:
    """No process that knows the key outlives the answer that it was started for."""

    def test_end_with_every_answer(self, federation):
        made = []

        def make():
            made.append(Watched(1))
            return made[-1]

        federation.sessions[0].close()
        federation.sessions[0] = federation.open(0, make_workers=make)
        federation.play("decrypt")
        session = federation.sessions[0]
        assert sum(bool(workers.started) for workers in made) == 3  # Key, update, sum.
        assert not any(workers.process_ids for workers in made)
        session.close()
        assert all(workers.closed for workers in made)

    def test_end_with_an_answer_that_is_a_refusal(self, federation):
        federation.play("confirm")
        made = []

        def make():
            made.append(Watched(1))
            return made[-1]

        federation.sessions[0].close()
        federation.sessions[0] = federation.open(0, make_workers=make)
        reply = federation.sessions[0].handle(another_decrypt(federation))
        assert federation.refusal(reply).check == REFUSED
        assert [bool(workers.started) for workers in made] == [True, False]
        assert not made[0].process_ids


class Watched(Workers):
    """Processes that say what they were when they were ended."""

    started: tuple[int, ...] = ()
    closed = False

    def close(self) -> None:
        self.started, self.closed = tuple(self.process_ids), True
        super().close()


class TestDecryption:
    def test_of_another_ciphertext_is_refused_and_the_round_closed(self, federation):
        federation.play("confirm")
        honest = federation.side.slot.decrypt_request()
        wrong = another_decrypt(federation)
        for restart in (False, True):
            if restart:
                federation.restart(0)
            reply = federation.sessions[0].handle(wrong)
            refusal = federation.refusal(reply)
            assert (refusal.stage, refusal.check) == ("decrypt", REFUSED)
            assert federation.store(0).load_update(1) is None
            reply = federation.sessions[0].handle(honest)
            assert "promised otherwise" in federation.refusal(reply).check
        refused = federation.records(0, records.Refused)
        assert (refused[0].round_number, refused[0].stage) == (1, "decrypt")
        assert refused[0].check == REFUSED
        assert not federation.records(0, Decrypted)

    def test_the_operator_is_told_who_may_be_dishonest_and_no_more(
        self, federation, caplog
    ):
        federation.play("confirm")
        caplog.clear()
        federation.sessions[0].handle(another_decrypt(federation))
        assert [record.getMessage() for record in caplog.records] == [
            f"refused at decrypt: {REFUSED}; the aggregator may be dishonest"
        ]

    def test_the_next_round_goes_on(self, federation):
        federation.play("confirm")
        federation.sessions[0].handle(another_decrypt(federation))
        federation.setup, federation.slot = 2, 0
        federation.side = federation.new_side(2)
        federation.play("handed")
        federation.round_number = 2
        federation.play("ready", first="ready")
        expected = sum_of(federation)
        federation.play("decrypt", first="encrypted")
        assert np.array_equal(federation.side.slot.decrypted_sum(), expected)

    @pytest.mark.parametrize("restart", [False, True])
    def test_the_setup_is_over_before_anything_is_trained(self, federation, restart):
        federation.play("confirm")
        federation.sessions[0].handle(another_decrypt(federation))
        if restart:
            federation.restart(0)
        federation.next_round().make_requests("ready")
        for stage in ("ready", "handed"):
            reply = federation.ask(0, stage)
            assert "setup 1 is over for this silo" in federation.refusal(reply).check
        assert federation.store(0).load_trained().round_number == 1

    def test_the_same_round_has_no_further_slot(self, federation):
        federation.play("confirm")
        federation.sessions[0].handle(another_decrypt(federation))
        federation.setup, federation.slot = 2, 0
        federation.side = federation.new_side(2)
        federation.play("handed").make_requests("ready")
        reply = federation.ask(0, "ready")
        assert "revealed already" in federation.refusal(reply).check

    def test_a_crash_saves_no_update(self, federation, monkeypatch):
        federation.play("confirm")
        wrong = another_decrypt(federation)

        def crashing(store, round_number):
            raise Crash

        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(silo.store.RunStore, "destroy_update", crashing)
            federation.sessions[0].handle(wrong)
        federation.restart(0)
        assert federation.refusal(federation.sessions[0].handle(wrong)).check == REFUSED
        assert federation.store(0).load_update(1) is None

    @pytest.mark.parametrize("restart", [False, True])
    def test_a_second_one_is_refused(self, federation, restart):
        federation.play("decrypt")
        if restart:
            federation.restart(0)
        reply = federation.sessions[0].handle(another_decrypt(federation))
        assert "promised otherwise" in federation.refusal(reply).check
        assert federation.ask(0, "decrypt") == federation.replies["decrypt"][0]

    def test_a_second_one_is_refused_from_an_older_state(self, federation):
        """The journal remembers what the rest of the disk has forgotten."""
        federation.play("confirm")
        older = federation.store(0).load_secagg()
        federation.play("decrypt", first="decrypt")
        federation.store(0).save_secagg(*older)
        federation.restart(0)
        reply = federation.sessions[0].handle(another_decrypt(federation))
        assert "promised otherwise" in federation.refusal(reply).check
        assert federation.ask(0, "decrypt") == federation.replies["decrypt"][0]

    def test_a_request_that_is_no_decrypt_promises_nothing(self, federation):
        federation.play("confirm").make_requests("decrypt")
        request = federation.requests["decrypt"][0]
        forged = bytes(request[:-1]) + bytes([request[-1] ^ 1])
        reply = federation.sessions[0].handle(forged)
        assert "signature" in federation.refusal(reply).check
        assert federation.store(0).load_update(1) is not None
        federation.play("decrypt", first="decrypt")
        federation.side.slot.decrypted_sum()


class TestRefused:
    def test_one_slot_encrypts_for_one_cohort(self, tmp_path, workers):
        plan = tiny_plan(4, protection=ProtectionConfig(method="bfv", threshold=3))
        federation = Federation(tmp_path, plan, workers).play("handed")
        federation.make_requests("ready")
        replies = [federation.ask(index, "ready") for index in federation.everyone]
        copy = BfvAggregatorSide(
            plan.secagg_config(),
            plan.roster,
            federation.aggregator,
            plan.run,
            1,
            workers=workers,
            layouts_of=functools.partial(layouts, plan),
        ).restore(federation.side.to_bytes())
        slot = federation.side.slot
        for reply in replies:
            slot.add_ready(reply)
        parts = whole(federation.num_words, range(4))
        copy.open_slot(0, 1, slot.model_digest, parts, slot.head)
        for reply in replies[:3]:
            copy.slot.add_ready(reply)
        older = federation.store(0).load_secagg()
        first = federation.sessions[0].handle(slot.active())
        assert read_header(first).kind == SecAggKind.ENCRYPTED
        for disk in ("untouched", "read again", "older"):
            if disk == "older":
                federation.store(0).save_secagg(*older)
            if disk != "untouched":
                federation.restart(0)
            second = federation.sessions[0].handle(copy.slot.active())
            why = "was promised otherwise" if disk == "older" else "another ACTIVE"
            assert why in federation.refusal(second).check
        federation.close()

    @pytest.mark.parametrize(
        ("kind", "stage"),
        [(SecAggKind.ENVELOPES, "envelopes"), (SecAggKind.CONFIRMS, "reveal")],
    )
    def test_stages_of_masks(self, federation, kind, stage):
        federation.play("confirm")
        reply = federation.sessions[0].handle(federation.envelope(kind, b"", setup=1))
        refusal = federation.refusal(reply)
        assert refusal.stage == stage
        assert refusal.check == f"{stage} in a run whose updates are encrypted"
        assert federation.store(0).load_update(1) is not None

    @pytest.mark.parametrize(
        ("kind", "stage"),
        [(SecAggKind.HANDED, "handed"), (SecAggKind.DECRYPT, "decrypt")],
    )
    def test_stages_of_encryption_in_a_run_with_masks(self, tmp_path, kind, stage):
        federation = Federation(tmp_path).play("confirm")
        reply = federation.sessions[0].handle(federation.envelope(kind, b"", setup=1))
        refusal = federation.refusal(reply)
        assert refusal.stage == stage
        assert refusal.check == f"{stage} in a run whose updates are masked"
        federation.close()

    def test_before_any_setup(self, federation, trainings, tmp_path, workers):
        other = Federation(tmp_path / "other", federation.plan, workers).play("decrypt")
        other.close()
        trainings.clear()
        for stage in ENCRYPTED_STAGES[1:-1]:
            reply = federation.sessions[0].handle(other.requests[stage][0])
            assert federation.refusal(reply).stage == stage
        assert not trainings

    def test_ready_without_the_key(self, federation, trainings):
        federation.play("key")
        federation.side.envelopes(0)
        federation.make_requests("ready")
        reply = federation.ask(0, "ready")
        assert "whose key never came" in federation.refusal(reply).check
        assert trainings == []

    def test_plan_that_the_policy_does_not_permit(self, federation):
        with pytest.raises(PolicyViolation, match='"bfv", this silo permits mask'):
            federation.open(0, policy=Policy())


class TestMissingLibrary:
    @pytest.mark.parametrize("name", ["tenseal", "zstandard"])
    def test_is_said_before_the_run_begins(self, tmp_path, workers, monkeypatch, name):
        federation = Federation(tmp_path, tiny_plan(protection=BFV), workers)
        federation.close()
        without(monkeypatch, name)
        federation.root = tmp_path / "other"
        with pytest.raises(ModuleNotFoundError) as caught:
            federation.open(0)
        assert caught.value.name == name
        assert not federation.store(0).has_begun()

    def test_masks_do_without(self, tmp_path, monkeypatch):
        without(monkeypatch, "tenseal")
        Federation(tmp_path).play("setup").close()

    def test_is_one_line_that_names_the_extra(self, monkeypatch):
        def serve(**options):
            crypto.bfv.installed.check_installed()

        without(monkeypatch, "tenseal")
        monkeypatch.setattr("silo.cli.cli.main", serve)
        ended = run_command(main)
        assert ended.error == (
            "error: tenseal is not installed; this command needs the extra [silo]: "
            "pip install 'cloister[silo]'"
        )


def without(monkeypatch, missing: str) -> None:
    """Have one library be missing."""
    real = importlib.util.find_spec

    def find(name):
        return None if name == missing else real(name)

    monkeypatch.setattr(crypto.bfv.installed, "find_spec", find)


class TestTranscript:
    def test_traffic_holds_exactly_the_bytes(self, federation):
        federation.play("end")
        traffic = federation.records(0, records.Traffic)
        for record, stage in zip(traffic, ENCRYPTED_STAGES, strict=True):
            assert record.stage == stage
            assert record.sent_bytes == len(federation.replies[stage][0])
            assert record.received_bytes == len(federation.requests[stage][0])
            assert record.round_number == (1 if stage in IN_ROUND else 0)
        found = traffic[ENCRYPTED_STAGES.index("encrypted")]
        number = federation.side.slot.num_ciphertexts
        assert found.vector_bytes == number * FRESH_BYTES
        assert sum(record.vector_bytes for record in traffic) == found.vector_bytes

    def test_order_of_a_round(self, federation):
        federation.play("decrypt")
        federation.transcript.append(records.Resumed(software="test"))
        federation.play("end", first="end")
        kinds = [record.kind for record in federation.records(0)]
        assert [kind for kind in kinds if kind != "traffic"] == [
            "opened",
            "key-shared",
            "head-seen",
            "round-opened",
            "cohort",
            "masked",
            "survivors",
            "confirmed",
            "decrypted",
            "head-seen",
            "finished",
        ]

    def test_what_was_decrypted_and_who_had_confirmed(self, federation):
        federation.play("decrypt")
        everyone = ("silo-1", "silo-2", "silo-3")
        (confirmed,) = federation.records(1, records.Confirmed)
        (decrypted,) = federation.records(1, Decrypted)
        assert confirmed.silos == decrypted.survivors == everyone
        assert decrypted.silos == ("silo-2",)
        federation.side.slot.decrypted_sum()
        assert decrypted.sum == federation.side.slot.sum_digest.hex()

    def test_upload_is_the_digest_of_the_message(self, federation):
        federation.play("encrypted")
        (record,) = federation.records(0, records.Masked)
        reply = federation.replies["encrypted"][0]
        assert record.upload == hashlib.sha256(reply).hexdigest()
        assert (record.size_bytes, record.protection) == (len(reply), "bfv")
        assert (record.round_number, record.setup, record.slot) == (1, 1, 0)

    def test_holds_no_secret(self, federation):
        federation.play("setup")
        channel = federation.sessions[0]._secure._side._state.channel.to_bytes()
        federation.play("encrypted", first="key")
        key = federation.sessions[0]._secure._side._state.secret_key
        words = words_of(federation, 0)
        federation.play("end", first="confirm")
        text = b"".join(
            path.read_bytes()
            for path in sorted(federation.store(0).transcript.iterdir())
        )
        for secret in (channel, key[:16], key[-16:], words[:4].tobytes()):
            assert secret not in text
            assert secret.hex().encode() not in text


def test_images_that_do_not_fit_leave_nothing_open(federation):
    federation.sessions[0].close()
    for _ in range(2):  # The journal is let go each time.
        with pytest.raises(Exception, match="16×16"):
            federation.open(0, images=tiny_images_of(16))


def tiny_images_of(size: int):
    images = tiny_images()
    return type(images)(np.zeros((4, size, size, 1), np.uint8), (0.0, 255.0))
