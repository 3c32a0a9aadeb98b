"""A silo that is dealt other parts after it has trained; and parts that it freezes."""

import dataclasses

import numpy as np
import pytest
import torch

import silo.store
from protocol.settings import TrainingConfig
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.errors import StateBroken
from silo.store import RunStore
from tests.silo.conftest import shared_layout, tiny_plan
from tests.silo.test_trainer import make_trainer, request

ENCODER, MIDDLE, DECODER = range(3)
FIRST, SECOND = (ENCODER, MIDDLE), (DECODER,)
TRAINING = TrainingConfig(local_steps=2, examples_per_step=4, learning_rate=1e-2)


def dealt(rounding="nearest", **training):
    return tiny_plan(
        update=UpdateConfig(selection="usplit", rounding=rounding),
        protection=ProtectionConfig(method="none", min_cohort=2),
        training=dataclasses.replace(TRAINING, **training),
    )


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("round-*/*")}


def words_of(tmp_path, plan, own, number=1):
    """Return what a silo would store that was dealt these parts from the start."""
    folder = tmp_path / f"alone-{own}"
    trainer = make_trainer(folder, plan)
    trainer.train_once(request(plan, number, 0.01), own)
    return trainer.update(number).words


class TestDealtAgain:
    def test_the_update_is_made_anew_and_nothing_trained(self, tmp_path, trainings):
        plan = dealt()
        trainer = make_trainer(tmp_path / "run", plan)
        trainer.train_once(request(plan, 1, 0.01), FIRST)
        first = trainer.update(1).words.copy()
        trainer.train_once(request(plan, 1, 0.01), SECOND)
        second = trainer.update(1).words.copy()
        assert trainings == [(0, 1)]
        assert np.array_equal(first, words_of(tmp_path, plan, FIRST))
        assert np.array_equal(second, words_of(tmp_path, plan, SECOND))
        assert len(set(second.tolist())) > 10
        lengths = [plan.num_words(1, s.size) for s in shared_layout(plan).stretches]
        assert [len(first), len(second)] == [sum(lengths[:2]), lengths[2]]

    def test_the_same_parts_are_the_identical_bytes(self, tmp_path, trainings):
        plan = dealt(rounding="stochastic")
        make_trainer(tmp_path, plan).train_once(request(plan, 1), SECOND)
        before = files(tmp_path)
        make_trainer(tmp_path, plan).train_once(request(plan, 1), SECOND)
        assert files(tmp_path) == before
        assert trainings == [(0, 1)]

    @pytest.mark.parametrize("function", ["save_secret", "save_bytes"])
    def test_a_crash_in_between_is_made_good(
        self, tmp_path, trainings, monkeypatch, function
    ):
        plan = dealt()
        trainer = make_trainer(tmp_path / "run", plan)
        trainer.train_once(request(plan, 1, 0.01), FIRST)

        def die(*arguments):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(silo.store, function, die)
            with pytest.raises(KeyboardInterrupt):
                trainer.train_once(request(plan, 1, 0.01), SECOND)
        again = make_trainer(tmp_path / "run", plan)
        again.train_once(request(plan, 1, 0.01), SECOND)
        assert np.array_equal(again.update(1).words, words_of(tmp_path, plan, SECOND))
        assert trainings[:1] == [(0, 1)] and len(trainings) == 2

    def test_trained_values_go_with_the_update(self, tmp_path):
        plan, store = dealt(), RunStore(tmp_path)
        make_trainer(tmp_path, plan, store=store).train_once(request(plan, 1), FIRST)
        assert {"trained.safetensors", "update.words"} <= set(files(tmp_path))
        store.destroy_update(1)
        assert set(files(tmp_path)) == {"training.safetensors", "round.json"}
        with pytest.raises(StateBroken, match=r"trained\.safetensors"):
            store.load_shared(1)

    def test_no_leftovers_stay_in_the_folder_of_a_round(self, tmp_path):
        plan, store = dealt(), RunStore(tmp_path)
        make_trainer(tmp_path, plan, store=store).train_once(request(plan, 1), FIRST)
        before = files(tmp_path)
        (left,) = tmp_path.glob("round-*")
        (left / ".update.words.ab.tmp").write_bytes(b"a killed process")
        store.remove_leftovers()
        assert files(tmp_path) == before

    def test_other_selections_keep_no_trained_values(self, tmp_path):
        plan = tiny_plan()
        make_trainer(tmp_path, plan).train_once(request(plan, 1))
        assert "trained.safetensors" not in files(tmp_path)


class TestFrozenParts:
    def test_what_was_frozen_has_not_changed_when_it_is_dealt_later(self, tmp_path):
        plan = dealt(train_unassigned=False)
        trainer = make_trainer(tmp_path, plan)
        trainer.train_once(request(plan, 1, 0.01), FIRST)
        shared = RunStore(tmp_path).load_shared(1)
        layout = shared_layout(plan)
        for index, stretch in enumerate(layout.stretches):
            frozen = all((shared[n] == np.float32(0.01)).all() for n in stretch.names)
            assert frozen == (index == DECODER)
        trainer.train_once(request(plan, 1, 0.01), SECOND)
        assert len(set(trainer.update(1).words.tolist())) <= 2  # Zeros, and a rest.

    def test_moments_outlive_rounds_in_which_a_part_is_frozen(self, tmp_path):
        plan, store = dealt(train_unassigned=False), RunStore(tmp_path)
        trainer = make_trainer(tmp_path, plan, store=store)
        rounds = {1: FIRST, 2: SECOND, 3: (MIDDLE, DECODER)}
        decoder, encoder = (
            shared_layout(plan).stretches[index].names[0]
            for index in (DECODER, ENCODER)
        )
        steps = []
        for number, own in rounds.items():
            trainer.train_once(request(plan, number, 0.01), own)
            moments = store.load_training()[0].moments
            known = [moments.get(f"step.{name}") for name in (encoder, decoder)]
            steps.append([None if step is None else int(step) for step in known])
        assert steps == [[2, None], [2, 2], [2, 4]]

    def test_everything_trains_by_default(self, tmp_path):
        plan = dealt()
        make_trainer(tmp_path, plan).train_once(request(plan, 1, 0.01), SECOND)
        shared = RunStore(tmp_path).load_shared(1)
        assert all(
            not torch.equal(value, torch.full_like(value, 0.01))
            for name, value in shared.items()
            if value.ndim > 1
        )
