import dataclasses

import numpy as np
import pytest
import torch

import silo.trainer
from aggregator.state import initial_state
from diffusion.checkpoint import load_checkpoint
from diffusion.model import make_model
from diffusion.parameters import flatten, parameters_digest, parameters_of, unflatten
from protocol.bodies import floats_to_bytes
from protocol.envelope import EndRequest, RoundRequest, model_digest
from protocol.errors import EnvelopeRejected
from protocol.heads import Head, ShownHead
from protocol.update_settings import UpdateConfig
from silo.errors import DataError, PolicyViolation
from silo.store import RunStore
from silo.trainer import RoundTrainer
from silo.training import TrainingDiverged
from tests.silo.conftest import CPU, shared_layout, tiny_images, tiny_plan

SHOWN = ShownHead(head=Head(party="aggregator", size=1, root="", signature=""))


def make_trainer(folder, plan, **changes) -> RoundTrainer:
    fields = {
        "silo": 0,
        "store": RunStore(folder),
        "images": tiny_images(),
        "device": CPU,
        "observe": lambda progress: None,
    }
    return RoundTrainer(plan, **(fields | changes))


def request(plan, round_number, value=0.0, **changes) -> RoundRequest:
    layout = shared_layout(plan)
    ranges = np.full(len(layout.segments) if round_number > 1 else 0, 1, np.float32)
    fields = {
        "round_number": round_number,
        "attempt": 1,
        "shown": SHOWN,
        "parameters": floats_to_bytes(np.full(layout.size, value, np.float32)),
        "ranges": floats_to_bytes(ranges),
    }
    fields |= changes
    digest = model_digest(fields["parameters"], fields["ranges"]).hex()
    return RoundRequest(model=digest, **fields)


def nearest(selection="full"):
    return tiny_plan(update=UpdateConfig(selection=selection, rounding="nearest"))


class TestTrainOnce:
    def test_second_call_does_nothing(self, tmp_path, trainings):
        plan = nearest()
        trainer = make_trainer(tmp_path, plan)
        trainer.train_once(request(plan, 1))
        first = trainer.update(1).words
        trainer.train_once(request(plan, 1))
        make_trainer(tmp_path, plan).train_once(request(plan, 1))
        assert trainings == [(0, 1)]
        assert np.array_equal(trainer.update(1).words, first)

    def test_same_request_same_update_on_another_day(self, tmp_path):
        plan = nearest()
        updates = []
        for name in ("a", "b"):
            trainer = make_trainer(tmp_path / name, plan)
            trainer.train_once(request(plan, 1, 0.01))
            updates.append(trainer.update(1).words)
        assert np.array_equal(*updates)
        assert len(set(updates[0].tolist())) > 10

    @pytest.mark.parametrize("selection", ["full", "ulatdec", "udec"])
    def test_restart_between_rounds_changes_nothing(self, tmp_path, selection):
        """Adam's moments and the parts that stay local come back from the disk."""
        plan = nearest(selection)
        updates = []
        for name, restart in (("a", False), ("b", True)):
            trainer = make_trainer(tmp_path / name, plan)
            for number in (1, 2, 3):
                if restart:
                    trainer = make_trainer(tmp_path / name, plan)
                trainer.train_once(request(plan, number, 0.01 * number))
            updates.append(trainer.update(3).words)
        assert np.array_equal(*updates)

    @pytest.mark.parametrize("selection", ["full", "udec"])
    def test_failed_training_leaves_nothing(self, tmp_path, monkeypatch, selection):
        """The next attempt starts from the same parameters, not from spoilt ones."""
        plan = nearest(selection)
        expected = make_trainer(tmp_path / "a", plan)
        expected.train_once(request(plan, 1, 0.01))
        trainer = make_trainer(tmp_path / "b", plan)
        real = silo.trainer.train

        def failing(model, *arguments, **options):
            real(model, *arguments, **options)
            raise TrainingDiverged("the loss is not finite")

        with monkeypatch.context() as patch, pytest.raises(TrainingDiverged):
            patch.setattr(silo.trainer, "train", failing)
            trainer.train_once(request(plan, 1, 0.01))
        assert RunStore(tmp_path / "b").load_trained() is None
        trainer.train_once(request(plan, 1, 0.01))
        assert np.array_equal(trainer.update(1).words, expected.update(1).words)

    def test_only_the_selection_is_sent_and_the_rest_is_kept(self, tmp_path):
        plan = nearest("udec")
        trainer, layout = make_trainer(tmp_path, plan), shared_layout(plan)
        trainer.train_once(request(plan, 1))
        _, local = RunStore(tmp_path).load_training()
        assert local
        assert not set(local) & set(layout.names)
        assert trainer.update(1).words.size == -(
            -layout.size // 2
        )  # 32 bits in a word of 64

    def test_full_selection_keeps_no_parameters(self, tmp_path):
        plan = nearest()
        make_trainer(tmp_path, plan).train_once(request(plan, 1))
        _, local = RunStore(tmp_path).load_training()
        assert local == {}

    @pytest.mark.parametrize("parameters", [b"\0" * 4, b"\0" * 3, b"\0\0\xc0\x7f"])
    def test_other_parameters(self, tmp_path, trainings, parameters):
        plan = nearest()
        with pytest.raises(EnvelopeRejected):
            make_trainer(tmp_path, plan).train_once(
                request(plan, 1, parameters=parameters)
            )
        assert not trainings


class TestCheckRound:
    def test_table(self, tmp_path):
        plan = nearest()
        trainer = make_trainer(tmp_path, plan)
        first = flatten(initial_state(plan).parameters, shared_layout(plan))
        given = request(plan, 1, parameters=floats_to_bytes(first))
        held = dataclasses.replace(given, parameters=b"")
        trainer.check_round(held)
        wide = model_digest(given.parameters, given.parameters).hex()
        for asked, words in (
            (given, "round 1 brings a model that silos hold"),
            (dataclasses.replace(held, model="0c" * 32), "that this silo holds"),
        ):
            with pytest.raises(PolicyViolation, match=words):
                trainer.check_round(asked)
        for asked in (
            dataclasses.replace(held, model=wide, ranges=given.parameters),
            request(plan, 3, ranges=b""),
        ):
            with pytest.raises(EnvelopeRejected, match="numbers for its grid"):
                trainer.check_round(asked)
        trainer.check_round(request(plan, 3))
        trainer.train_once(request(plan, 2))
        trainer.check_round(request(plan, 2))
        trainer.check_round(request(plan, 3))
        for asked, words in (
            (request(plan, 1), "round 1 is over, this silo trained 2"),
            (request(plan, 2, 0.5), "was trained for another model"),
            (request(plan, 2, ranges=b""), "another model"),
            (request(plan, 4), "round 4 of 3"),
        ):
            with pytest.raises(PolicyViolation, match=words):
                trainer.check_round(asked)
        RunStore(tmp_path).destroy_update(2)
        with pytest.raises(PolicyViolation, match="revealed already"):
            trainer.check_round(request(plan, 2))
        trainer.check_round(request(plan, 3))


class TestUpdate:
    def test_none(self, tmp_path):
        with pytest.raises(PolicyViolation, match="there is no update of round 1"):
            make_trainer(tmp_path, nearest()).update(1)


def test_images_that_do_not_fit(tmp_path):
    images = tiny_images()
    wide = dataclasses.replace(images, pixels=np.zeros((2, 8, 9, 1), np.uint8))
    with pytest.raises(DataError, match="8×9"):
        make_trainer(tmp_path, nearest(), images=wide)


@pytest.mark.parametrize(("max_weight", "is_refused"), [(4, False), (3, True)])
def test_more_images_than_a_weight_may_be(tmp_path, max_weight, is_refused):
    update = UpdateConfig(weights="secret", max_weight=max_weight)
    plan = tiny_plan(update=update)
    if is_refused:
        with pytest.raises(DataError, match="4 examples are not a weight"):
            make_trainer(tmp_path, plan)
    else:
        make_trainer(tmp_path, plan)


class TestLastAverage:
    """What END brings, and what it leaves out."""

    def end(self, plan, vector, **changes) -> EndRequest:
        layout = shared_layout(plan)
        model = parameters_digest(unflatten(vector, layout), layout).hex()
        return EndRequest(round_number=3, shown=SHOWN, **({"model": model} | changes))

    def test_table(self, tmp_path):
        plan = nearest()
        layout, trainer = shared_layout(plan), make_trainer(tmp_path, plan)
        first = flatten(initial_state(plan).parameters, layout)
        other, zeros = np.full_like(first, 0.5), np.zeros_like(first)
        sent, average = floats_to_bytes(other), floats_to_bytes(zeros)
        for asked, expected in (
            (self.end(plan, first), first),
            (self.end(plan, other, parameters=sent), other),
            (self.end(plan, first, average=average), zeros),
            (self.end(plan, other, parameters=sent, average=average), zeros),
        ):
            assert np.array_equal(trainer.last_average(asked), expected)
        for asked in (
            self.end(plan, other),
            self.end(plan, first, parameters=sent),
            self.end(plan, first, model="0c" * 32),
        ):
            with pytest.raises(PolicyViolation, match="the last model is not"):
                trainer.last_average(asked)

    @pytest.mark.parametrize("broken", [b"\0" * 4, b"\0\0\xc0\x7f"])
    @pytest.mark.parametrize("field", ["parameters", "average"])
    def test_no_model(self, tmp_path, broken, field):
        plan = nearest()
        first = flatten(initial_state(plan).parameters, shared_layout(plan))
        with pytest.raises(EnvelopeRejected):
            make_trainer(tmp_path, plan).last_average(
                self.end(plan, first, **{field: broken})
            )


class TestSaveModel:
    @pytest.mark.parametrize("selection", ["full", "udec"])
    @pytest.mark.parametrize("trained", [False, True])
    def test_shared_average_and_own_parts(self, tmp_path, selection, trained):
        plan = nearest(selection)
        trainer, layout = make_trainer(tmp_path, plan), shared_layout(plan)
        own = parameters_of(make_model(plan.model, plan.seed_for("model")))
        if trained:
            # A decoder that is not zero, so that the encoder learns something too.
            drawn = np.random.default_rng(0).normal(0, 0.3, layout.size)
            shared = floats_to_bytes(drawn.astype(np.float32))
            trainer.train_once(request(plan, 1, parameters=shared))
            local = RunStore(tmp_path).load_training()[1]
            assert selection == "full" or not all(
                torch.equal(own[name], value) for name, value in local.items()
            )
            own |= local
        average = np.full(layout.size, 0.25, np.float32)
        make_trainer(tmp_path, plan).save_model(average)
        saved = load_checkpoint(RunStore(tmp_path).model).parameters
        assert saved.keys() == own.keys()
        for name, value in saved.items():
            expected = own[name] if name not in layout.names else 0.25
            assert bool((value == expected).all())
