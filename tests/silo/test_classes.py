"""Training with labels, in the open and privately; and that nothing changes without."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import silo.private_training
import silo.training
from diffusion.checkpoint import Checkpoint
from diffusion.class_embedding import NO_CLASS
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.features import load_fd_small_digits
from diffusion.model import make_model
from diffusion.parameters import make_layout, parameters_of
from diffusion.parts import SELECTIONS
from diffusion.schedule import make_schedule
from protocol.plan import PlanDraft
from protocol.privacy_settings import PrivacyConfig
from protocol.settings import TrainingConfig
from silo.check import explain
from silo.config import DataConfig
from silo.data import ImageSet, load_images
from silo.dpsgd import NotPrivate, check_independence, validate
from silo.errors import DataError
from silo.one_step import gradient_sum
from silo.per_example import Draws, HooksEngine, LoopEngine, Objective, VmapEngine
from silo.policy import Policy
from silo.private_training import Drawing, train_privately
from silo.randomness import PrivateRandom
from silo.self_test import self_test
from silo.self_test_subject import make_subject
from silo.training import TrainingState, train
from silo.units import units_of
from simulation.settings import SimulationConfig
from simulation.sources import load_pool
from tests.silo.conftest import CPU, TINY_MODEL, tiny_draft, tiny_images, tiny_plan
from tests.silo.test_per_example import (
    ENGINES,
    RAGGED,
    SCHEDULE,
    collected,
    in_float64,
    make_draws,
    name_of,
)

CLASSES = replace(TINY_MODEL, dim=16, num_classes=3)
MECHANISM = {
    "mechanism": "dp-sgd",
    "noise_multiplier": 1.0,
    "delta": 1e-3,
    "sample_rate": 0.5,
    "multiplicity": 2,
}


def draft(*, model=CLASSES, privacy=None, **training) -> PlanDraft:
    fields = {"local_steps": 3, "examples_per_step": 2, "learning_rate": 1e-2}
    return tiny_draft(
        model=model,
        training=TrainingConfig(**(fields | training)),
        privacy=PrivacyConfig(**(MECHANISM | (privacy or {}))),
    )


def labelled(num_images=6, num_classes=3) -> ImageSet:
    images = tiny_images(num_images=num_images)
    return replace(images, labels=np.arange(num_images) % num_classes)


def trained(plan, images, **options):
    model = make_model(plan.model, 1)
    train(
        model,
        images,
        make_schedule(plan.schedule),
        plan,
        TrainingState(),
        silo=0,
        round_number=1,
        device=CPU,
        observe=lambda _: None,
        **options,
    )
    return parameters_of(model)


class TestTraining:
    @pytest.mark.parametrize(
        ("architecture", "expected"),
        [("residual", "5f39f80131dd3df9"), ("feddiffuse", "0aed8ac536943538")],
    )
    def test_without_classes_as_before_there_were_any(self, architecture, expected):
        """Digests from before this option existed; labels are not looked at."""
        config = UNetConfig(
            architecture=architecture, dim=8, channels=1, dim_mults=(1, 2), image_size=8
        )
        pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1))
        images = ImageSet(pixels.astype(np.uint8), (0.0, 255.0), np.arange(12))
        plan = PlanDraft(
            name="x",
            num_rounds=1,
            seed=5,
            model=config,
            training=TrainingConfig(
                local_steps=3, examples_per_step=4, learning_rate=1e-3
            ),
        )
        model, digest = make_model(config, 7), hashlib.sha256()
        train(
            model,
            images,
            make_schedule(plan.schedule),
            plan,
            TrainingState(),
            silo=0,
            round_number=1,
            device=CPU,
            observe=lambda _: None,
        )
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        assert digest.hexdigest()[:16] == expected

    def test_rows_of_classes_that_are_not_there_stay(self):
        images = replace(labelled(), labels=np.array([0, 0, 2, 2, 0, 2]))
        plan = draft(label_dropout=0.0, local_steps=6)
        after = trained(plan, images)["class_embedding.rows.weight"]
        before = parameters_of(make_model(plan.model, 1))["class_embedding.rows.weight"]
        assert [torch.equal(a, b) for a, b in zip(after, before, strict=True)] == [
            False,
            True,
            False,
            True,
        ]

    def test_can_be_repeated_and_depends_on_the_labels(self):
        images = labelled()
        first, again = trained(draft(), images), trained(draft(), images)
        swapped = trained(draft(), replace(images, labels=images.labels[::-1].copy()))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], swapped[name]) for name in first)

    @pytest.mark.parametrize("rate", [0.0, 0.1, 0.5])
    def test_labels_are_withheld_at_the_rate(self, rate, monkeypatch):
        plan, told = draft(label_dropout=rate), []
        images = replace(labelled(), labels=np.array([0, 1, 2, 2, 1, 0]))
        generator = torch.Generator().manual_seed(1)
        indices = np.arange(6000) % 6
        told = silo.training.told_labels(images, indices, plan, generator)
        dropped = told == NO_CLASS
        kept = torch.from_numpy(images.labels[indices])
        assert torch.equal(told[~dropped], kept[~dropped])
        # Four standard deviations of Bin(6000, rate).
        assert abs(float(dropped.double().mean()) - rate) <= 4 * (
            (rate * (1 - rate) / 6000) ** 0.5
        )

    def test_what_is_asked_for_is_drawn(self):
        """A few seconds on the digits: most samples show the digit asked for."""
        config = UNetConfig(
            architecture="residual",
            dim=8,
            channels=1,
            dim_mults=(1, 2),
            image_size=8,
            num_classes=10,
        )
        plan = tiny_draft(
            num_rounds=1,
            model=config,
            schedule=ScheduleConfig(kind="cosine", num_timesteps=100),
            training=TrainingConfig(
                local_steps=300,
                examples_per_step=32,
                learning_rate=1e-2,
                warm_up_fraction=0.1,
                final_learning_rate_fraction=0.05,
            ),
        )
        digits = load_pool(SimulationConfig(), 0).dealt
        model = Checkpoint(
            model=config,
            schedule=plan.schedule,
            sampler=SamplerConfig(num_steps=15, guidance=0.5),
            parameters=trained(plan, digits),
        )
        asked = np.arange(60) % 10
        images = model.images(seed=1, count=60, device=CPU)
        drawn = load_fd_small_digits().class_probabilities(images).argmax(axis=1)
        assert (drawn == asked).mean() > 0.6  # chance: 0.1


class TestEngines:
    @pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
    def test_agree_in_float64(self, architecture):
        """The slow reference: draw by draw, with ``backward``."""
        model = in_float64(architecture, dim=16, dim_mults=(1,), num_classes=3)
        objective = Objective(model, SCHEDULE, "mse")
        labels = torch.tensor([[0, NO_CLASS, 0], [1, 1, NO_CLASS], [2, 0, 0]])
        draws = replace(make_draws(RAGGED), labels=labels)
        wanted = torch.stack([plain_row(objective, draws, u) for u in range(3)])
        for engine in ENGINES:
            rows, _ = collected(engine, objective, draws)
            distance = (rows - wanted).norm(dim=1) / wanted.norm(dim=1)
            assert distance.max() < 1e-12, name_of(engine)

    @pytest.mark.parametrize("engine", [LoopEngine(), VmapEngine(2), HooksEngine(2)])
    def test_a_units_rows_are_those_of_its_labels(self, engine):
        """The gradient reaches the rows that the unit was told, and no other."""
        model = in_float64("residual", dim=16, dim_mults=(1,), num_classes=3)
        labels = torch.tensor([[0, NO_CLASS], [1, 1], [2, 2]])
        draws = replace(make_draws([[0.5, 0.5]] * 3), labels=labels)
        names = [name for name, _ in model.named_parameters()]
        place = names.index("class_embedding.rows.weight")
        chunks = engine.gradients(Objective(model, SCHEDULE, "mse"), draws)
        rows = torch.cat([chunk.gradients[place] for chunk in chunks])
        assert (rows.abs().sum(dim=2) > 1e-6).tolist() == [
            [True, False, False, True],
            [False, True, False, False],
            [False, False, True, False],
        ]


def plain_row(objective, draws: Draws, unit: int) -> torch.Tensor:
    """Return one unit's gradient ``[d]``, a weighted sum over its draws."""
    total = torch.zeros(())
    for draw, weight in enumerate(draws.weights[unit].tolist()):
        if not weight:
            continue
        place = slice(draw, draw + 1)
        loss = silo.training.denoising_loss(
            objective.model,
            draws.x_0[unit, place],
            draws.t[unit, place],
            draws.noise[unit, place],
            SCHEDULE,
            "mse",
            draws.labels[unit, place],
        ).sum()
        made = torch.autograd.grad(loss, objective.parameters)
        total = total + weight * torch.cat([g.flatten() for g in made])
    return total


class TestPrivately:
    def drawing(self, images, units, plan, random):
        schedule = make_schedule(ScheduleConfig(num_timesteps=10))
        return Drawing(images, units, plan, 2, schedule, CPU, random)

    def test_each_draw_has_its_images_label_or_none(self):
        images = labelled(600)
        units = units_of(images, "example")
        plan = draft(label_dropout=0.25)
        labels = self.drawing(images, units, plan, PrivateRandom(1))(
            np.arange(600)
        ).labels
        assert labels.shape == (600, 2)
        dropped = labels == NO_CLASS
        own = torch.from_numpy(images.labels)[:, None].expand(-1, 2)
        assert torch.equal(labels[~dropped], own[~dropped])
        assert abs(float(dropped.double().mean()) - 0.25) < 4 * (0.1875 / 1200) ** 0.5
        assert (dropped[:, 0] != dropped[:, 1]).any()  # every draw by itself

    def test_padding_repeats_the_units_own_labels(self):
        images = replace(
            labelled(4),
            labels=np.array([2, 0, 1, 0]),
            patients=np.array([0, 1, 1, 1]),
            patient_names=("a", "b"),
        )
        plan = draft(privacy={"unit": "patient"}, label_dropout=0.5)
        units = units_of(images, "patient")
        for seed in range(5):
            draws = self.drawing(images, units, plan, PrivateRandom(seed))(
                np.array([0, 1])
            )
            assert draws.weights[0].tolist() == [0.5, 0.5, 0, 0, 0, 0]
            assert draws.labels[0].tolist() == draws.labels[0, :2].tolist() * 3

    def test_without_classes_nothing_more_is_drawn(self):
        images = labelled(4)
        units = units_of(images, "example")
        plan = draft(model=TINY_MODEL)
        one, other = PrivateRandom(1), PrivateRandom(1)
        first = self.drawing(images, units, plan, one)(np.arange(4))
        bare = replace(images, labels=None)
        second = self.drawing(bare, units, plan, other)(np.arange(4))
        assert first.labels is second.labels is None
        assert torch.equal(first.noise, second.noise)
        assert one.torch_seed() == other.torch_seed()

    @pytest.mark.parametrize("engine", [LoopEngine(), VmapEngine(3), HooksEngine(2)])
    def test_whole_rounds_agree(self, engine):
        images, plan = labelled(), draft()
        results = []
        for one in (LoopEngine(), engine):
            model = make_model(plan.model, 1)
            train_privately(
                model,
                images,
                units_of(images, "example"),
                make_schedule(plan.schedule),
                plan,
                TrainingState(),
                round_number=1,
                device=CPU,
                random=PrivateRandom(1),
                observe=lambda _: None,
                keep=lambda _: None,
                checkpoint_steps=100,
                # One unit at a time, so that the draws are made in one order.
                engine=replace(one, chunk_size=1),
            )
            results.append(parameters_of(model))
        for name, value in results[0].items():
            assert torch.allclose(value, results[1][name], atol=1e-5)

    def test_one_private_step_for_noise_in_the_sum(self):
        images = labelled()
        plan = draft(privacy={"sample_rate": 1.0, "clipping_norm": 0.5})
        model = make_model(plan.model, 1)
        layout = make_layout(model, SELECTIONS["full"])
        total = gradient_sum(
            model,
            images,
            units_of(images, "example"),
            make_schedule(plan.schedule),
            plan,
            layout,
            round_number=1,
            device=CPU,
            random=PrivateRandom(1),
            observe=lambda _: None,
        )
        assert total.shape == (layout.size,)
        assert 0 < np.linalg.norm(total) <= 6 * 0.5 * 1.001

    def test_the_self_test_passes(self, monkeypatch):
        monkeypatch.setattr("silo.run_checks.LOOP_STEPS", 200)
        monkeypatch.setattr("silo.run_checks.SECOND_LOOP_STEPS", 30)
        monkeypatch.setattr("silo.run_checks.DIRECT_SAMPLES", 400)
        monkeypatch.setattr("silo.run_checks.ROUND_STEPS", 2)
        subject = make_subject(
            draft(privacy={"clipping_norm": 0.2}), labelled(20), device=CPU, num_steps=3
        )
        results = list(self_test(subject))
        assert all(r.passed for r in results), [r.line() for r in results]
        made_up = make_subject(draft(), None, device=CPU)
        assert set(made_up.images.labels) == {0, 1, 2}

    def test_a_model_that_mixes_labels_is_refused(self):
        model = make_model(CLASSES, 1)
        validate(model)
        check_independence(model, (1, 8, 8))
        embed = model.class_embedding.rows
        embed.register_forward_hook(lambda _m, _i, rows: rows + rows.mean(dim=0))
        with pytest.raises(NotPrivate, match="mixes the examples"):
            check_independence(model, (1, 8, 8))


class TestData:
    def test_images_without_labels(self):
        tiny_images().check_fits(TINY_MODEL)
        with pytest.raises(DataError, match=r"3 classes.*no labels.*silo\.toml"):
            tiny_images().check_fits(CLASSES)

    @pytest.mark.parametrize("labels", [[0, 1, 3], [-1, 0, 1]])
    def test_labels_out_of_range(self, labels):
        images = replace(tiny_images(num_images=3), labels=np.array(labels))
        with pytest.raises(DataError, match=rf"0 … 2.*{min(labels)} to {max(labels)}"):
            images.check_fits(CLASSES)

    def folder(self, tmp_path, *names):
        for number, name in enumerate(names):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = np.full((8, 8), number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
        return tmp_path

    def load(self, tmp_path, **options):
        config = DataConfig(source="folder", path=".", **options)
        return load_images(config, tmp_path)

    def test_folders_as_many_as_classes_are_taken_in_sorted_order(self, tmp_path):
        images = self.load(self.folder(tmp_path, "b", "a", "c"))
        assert images.class_names == ("a", "b", "c")
        images.check_fits(CLASSES)

    def test_a_silo_without_all_classes_must_name_them(self, tmp_path):
        """Else its "dog" would be what another silo calls "cat"."""
        root = self.folder(tmp_path, "dog", "cow")
        with pytest.raises(DataError, match=r"2 folders.*\[data\] classes"):
            self.load(root).check_fits(CLASSES)
        images = self.load(root, classes=("cat", "dog", "cow"))
        images.check_fits(CLASSES)
        assert images.labels.tolist() == [2, 1]  # sorted files: cow, dog

    def test_a_folder_that_is_not_named(self, tmp_path):
        root = self.folder(tmp_path, "dog", "cow")
        with pytest.raises(DataError, match=r"image 1 of 2 .*does not name") as caught:
            self.load(root, classes=("cat", "dog"))
        assert "cow" not in str(caught.value).removeprefix(str(root))

    @pytest.mark.parametrize(
        "fields",
        [
            {"source": "npz", "classes": ("a", "b")},
            {"source": "folder", "patients": "folder", "classes": ("a", "b")},
            {"source": "folder", "classes": ("a", "a")},
            {"source": "folder", "classes": ("a", "")},
        ],
    )
    def test_names_that_make_no_sense(self, fields):
        with pytest.raises(ValueError, match="classes"):
            DataConfig(**fields)

    def test_the_operator_is_told(self):
        text = "\n".join(explain(tiny_plan(model=CLASSES), Policy()))
        assert "Labels: the model learns to draw 3 classes" in text
        assert "Labels:" not in "\n".join(explain(tiny_plan(), Policy()))
