"""Classes in networks and samples; and that nothing changes without them."""

import dataclasses
import hashlib

import pytest
import torch

from diffusion.checkpoint import Checkpoint
from diffusion.class_embedding import NO_CLASS, balanced_labels, drop_labels
from diffusion.config import SamplerConfig, ScheduleConfig, UNetConfig
from diffusion.errors import UnknownClass
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.parts import Part, part_of
from diffusion.pictures import draw_samples, grid_columns
from diffusion.sampling import guided, sample
from diffusion.schedule import make_schedule

CPU = torch.device("cpu")
BOTH = pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])


def config(architecture="residual", **changes) -> UNetConfig:
    fields = {"dim": 8, "channels": 1, "dim_mults": (1, 2), "image_size": 8}
    return UNetConfig(architecture=architecture, **(fields | changes))


def moved(model_config, seed=1):
    """Return a network of which no parameter is zero."""
    model, generator = make_model(model_config, seed), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def inputs(count=3):
    generator = torch.Generator().manual_seed(3)
    x_t = torch.randn((count, 1, 8, 8), generator=generator)
    return x_t, torch.randint(10, (count,), generator=generator)


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [("residual", "72efd368e8e942c7"), ("feddiffuse", "470ade522bc1975e")],
)
def test_without_classes_a_network_begins_as_before_there_were_any(
    architecture, expected
):
    """Digests from before this option existed."""
    digest = hashlib.sha256()
    for parameter in make_model(config(architecture), 7).parameters():
        digest.update(parameter.detach().numpy().tobytes())
    assert digest.hexdigest()[:16] == expected


@BOTH
def test_the_embedding_is_the_encoders_and_changes_nothing_else(architecture):
    plain = make_model(config(architecture), 7)
    model = make_model(config(architecture, num_classes=10), 7)
    parameters, parts = parameters_of(model), part_of(model)
    assert parts.pop("class_embedding.rows.weight") is Part.ENCODER
    rows = parameters.pop("class_embedding.rows.weight")
    assert rows.shape == (11, 32)
    assert abs(float(rows.std()) - 1) < 0.15
    assert parts == part_of(plain)
    for name, value in parameters_of(plain).items():
        assert torch.equal(parameters[name], value)


@BOTH
def test_a_label_changes_its_own_image_alone(architecture):
    model, (x_t, t) = moved(config(architecture, num_classes=3)), inputs()
    first = model(x_t, t, torch.tensor([0, 1, 2]))
    other = model(x_t, t, torch.tensor([0, 2, 2]))
    assert torch.equal(first[[0, 2]], other[[0, 2]])
    assert not torch.allclose(first[1], other[1], atol=1e-3)
    none = torch.full((3,), NO_CLASS)
    assert torch.equal(model(x_t, t), model(x_t, t, none))
    assert not torch.allclose(model(x_t, t), first, atol=1e-3)
    with pytest.raises(IndexError):
        model(x_t, t, torch.tensor([0, 1, 4]))


@BOTH
def test_labels_for_a_network_without_classes_are_an_error(architecture):
    model, (x_t, t) = make_model(config(architecture), 1), inputs()
    with pytest.raises(ValueError, match="without classes"):
        model(x_t, t, torch.zeros(3, dtype=torch.int64))


def test_the_loss_hears_of_the_labels():
    model, (x_0, t) = moved(config(num_classes=3)), inputs()
    schedule = make_schedule(ScheduleConfig(num_timesteps=10))
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(4))
    labels = torch.tensor([0, 1, NO_CLASS])
    told = denoising_loss(model, x_0, t, noise, schedule, "mse", labels)
    untold = denoising_loss(model, x_0, t, noise, schedule, "mse")
    assert told[2] == untold[2]
    assert (told[:2] != untold[:2]).all()


def test_dropped_and_balanced_labels_by_hand():
    dropped = drop_labels(torch.tensor([2, 0, 1]), torch.tensor([False, True, False]))
    assert dropped.tolist() == [2, NO_CLASS, 1]
    assert balanced_labels(3, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_guidance_by_hand():
    """(1 + w) c - w u: with c = 2, u = 0.5 and w = 3 that is 8 - 1.5."""
    assert guided(torch.tensor(2.0), torch.tensor(0.5), 3.0) == 6.5


class Told(torch.nn.Module):
    """Predicts the label times x, and -5 x for no class; keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def forward(self, x_t, t, labels):
        self.asked.append(labels.tolist())
        factor = torch.where(labels < 0, -5.0, labels.double())
        return (x_t * factor[:, None, None, None]).float()


class Guided(Told):
    """Predicts at once what guidance 0.5 makes of what :class:`Told` does."""

    def forward(self, x_t, t, labels):
        factor = 1.5 * labels.double() + 0.5 * 5.0
        return (x_t * factor[:, None, None, None]).float()


def draw(model, guidance, labels, **changes):
    arguments = {
        "seed": 1,
        "first_index": 0,
        "count": 4,
        "image_shape": (1, 8, 8),
        "device": CPU,
        "block_size": 3,
        "labels": labels,
    }
    sampler = SamplerConfig(num_steps=2, guidance=guidance, clamp=False)
    schedule = make_schedule(ScheduleConfig(num_timesteps=10))
    return torch.cat(list(sample(model, schedule, sampler, **(arguments | changes))))


def test_a_guided_step_asks_once_for_both():
    labels = torch.tensor([0, 1, 2, 1])
    model = Told()
    images = draw(model, 0.5, labels)
    assert model.asked == [[0, 1, 2, -1, -1, -1]] * 2 + [[1, -1]] * 2
    assert torch.allclose(images, draw(Guided(), 0.0, labels), atol=1e-5)
    model = Told()
    draw(model, 0.0, labels)
    assert model.asked == [[0, 1, 2]] * 2 + [[1]] * 2


def test_guidance_without_labels_and_too_few_labels_are_refused():
    with pytest.raises(ValueError, match="guidance needs labels"):
        draw(Told(), 0.5, None)
    with pytest.raises(ValueError, match="2 labels for 4 images"):
        draw(Told(), 0.0, torch.tensor([0, 1]))


class TestCheckpoint:
    def make(self, **changes) -> Checkpoint:
        model = config(num_classes=3)
        fields = {
            "model": model,
            "schedule": ScheduleConfig(num_timesteps=20),
            "sampler": SamplerConfig(num_steps=2, guidance=0.5),
            "parameters": parameters_of(moved(model)),
        }
        return Checkpoint(**(fields | changes))

    def test_classes_take_turns(self):
        images = self.make().images(seed=1, count=4, device=CPU)
        told = self.make().images(seed=1, count=4, device=CPU, labels=[0, 1, 2, 0])
        other = self.make().images(seed=1, count=4, device=CPU, labels=[1] * 4)
        assert torch.equal(images, told)
        assert torch.allclose(images[1], other[1], atol=1e-4)
        assert not torch.allclose(images[0], other[0], atol=1e-2)

    @pytest.mark.parametrize("label", [-1, 3])
    def test_another_class_is_refused(self, label):
        with pytest.raises(UnknownClass, match="0 … 2"):
            self.make().images(seed=1, count=1, device=CPU, labels=[label])

    def test_a_model_without_classes_has_none(self):
        plain = config()
        model = self.make(
            model=plain,
            sampler=SamplerConfig(num_steps=2),
            parameters=parameters_of(make_model(plain, 1)),
        )
        with pytest.raises(UnknownClass, match="no classes"):
            model.images(seed=1, count=1, device=CPU, labels=[0])

    def test_one_column_a_class(self, tmp_path):
        from diffusion.checkpoint import save_checkpoint

        save_checkpoint(tmp_path / "model.safetensors", self.make())
        options = {"count": 6, "enlarge": 1, "seed": 0, "device": "cpu"}
        for name, columns, label in (("a", 0, None), ("b", 2, 1)):
            draw_samples(
                tmp_path / "model.safetensors",
                tmp_path / f"{name}.png",
                columns=columns,
                label=label,
                **options,
            )
        from PIL import Image

        with Image.open(tmp_path / "a.png") as image:
            assert image.size == (3 * 9 + 1, 2 * 9 + 1)
        with Image.open(tmp_path / "b.png") as image:
            assert image.size == (2 * 9 + 1, 3 * 9 + 1)

    def test_too_many_classes_for_columns(self):
        assert grid_columns(config(num_classes=21), 8) == 8
        assert grid_columns(config(), 10) == 10
        assert grid_columns(config(num_classes=20), 10) == 20


@pytest.mark.parametrize("value", [1, -1, 10_001, 2.0, True])
def test_a_wrong_number_of_classes_is_named(value):
    with pytest.raises(ValueError, match="num_classes"):
        config(num_classes=value)


@pytest.mark.parametrize(("dim", "is_heard"), [(4, False), (8, False), (12, True)])
def test_networks_that_would_not_hear_of_classes_are_refused(dim, is_heard):
    """A group of one channel loses what is added to the whole channel."""
    fields = {"dim": dim, "dim_mults": (1,)}
    model, (x_t, t) = moved(config(**fields)), inputs()
    late = model(x_t, torch.full_like(t, 999))
    assert torch.allclose(model(x_t, t), late, atol=1e-4) != is_heard
    if is_heard:
        config(num_classes=3, **fields)
        return
    with pytest.raises(ValueError, match="num_classes must be 0 where dim"):
        config(num_classes=3, **fields)


def test_central_images_have_no_classes():
    fields = {"channels": 1, "dim_mults": (), "image_size": 8, "dim": 5}
    UNetConfig(architecture="means", **fields)
    with pytest.raises(ValueError, match=r"num_classes must be 0 with .* .means"):
        UNetConfig(architecture="means", num_classes=10, **fields)


@pytest.mark.parametrize("value", [-0.1, 101, float("nan"), "1", True])
def test_a_wrong_guidance_is_named(value):
    assert SamplerConfig().guidance == 0
    with pytest.raises(ValueError, match="guidance"):
        dataclasses.replace(SamplerConfig(), guidance=value)
