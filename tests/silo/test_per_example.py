import pytest
import torch
from torch import nn

from diffusion.config import ScheduleConfig, UNetConfig
from diffusion.loss import denoising_loss
from diffusion.model import make_model
from diffusion.schedule import make_schedule
from silo.per_example import (
    Draws,
    HooksEngine,
    LoopEngine,
    Objective,
    VmapEngine,
    default_engine,
)

SCHEDULE = make_schedule(ScheduleConfig(num_timesteps=10))
ENGINES = [LoopEngine(), VmapEngine(2), VmapEngine(3), HooksEngine(2), HooksEngine(16)]
RAGGED = [[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0]]


def name_of(engine) -> str:
    return f"{type(engine).__name__}-{engine.chunk_size}"


def in_float64(architecture, **changes):
    """Return a small network that computes in float64, no parameter at zero."""
    fields = {"dim": 4, "channels": 2, "dim_mults": (1, 2), "image_size": 8}
    config = UNetConfig(architecture=architecture, **(fields | changes))
    model = make_model(config, 1).double()
    # The sinusoidal embedding is float32 in any case.
    first = model.time_embedding.layers[0]
    first.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def make_draws(weights, channels=2, dtype=torch.float64, size=8) -> Draws:
    """Return draws that are the same in every test; padding holds zeros."""
    weights = torch.tensor(weights, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    shape = (*weights.shape, channels, size, size)
    padded = (weights == 0)[:, :, None, None, None]
    x_0 = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    noise = torch.randn(shape, generator=generator, dtype=dtype)
    t = torch.randint(10, weights.shape, generator=generator)
    return Draws(x_0.masked_fill(padded, 0), t, noise.masked_fill(padded, 0), weights)


def even(num_units, multiplicity):
    return [[1 / multiplicity] * multiplicity] * num_units


def collected(engine, objective, draws):
    """Return all gradients ``[u, d]`` as one matrix, and all losses."""
    chunks = list(engine.gradients(objective, draws))
    assert all(len(chunk.losses) <= engine.chunk_size for chunk in chunks)
    rows = [torch.cat([g.flatten(1) for g in c.gradients], dim=1) for c in chunks]
    return torch.cat(rows), torch.cat([c.losses for c in chunks])


def reference(objective, draws):
    """Return what the engines must, draw by draw, with ``backward``."""
    rows, losses = [], []
    for unit in range(len(draws)):
        total = None
        value = 0.0
        for draw, weight in enumerate(draws.weights[unit].tolist()):
            if not weight:
                continue
            objective.model.zero_grad()
            loss = denoising_loss(
                objective.model,
                draws.x_0[unit, draw : draw + 1],
                draws.t[unit, draw : draw + 1],
                draws.noise[unit, draw : draw + 1],
                SCHEDULE,
                objective.loss,
            ).sum()
            loss.backward()
            row = torch.cat([p.grad.flatten() for p in objective.parameters])
            total = weight * row + (0 if total is None else total)
            value += weight * float(loss.detach())
        rows.append(total)
        losses.append(value)
    objective.model.zero_grad()
    return torch.stack(rows), torch.tensor(losses, dtype=torch.float64)


class TestEnginesAgree:
    @pytest.mark.parametrize("architecture", ["residual", "feddiffuse"])
    @pytest.mark.parametrize(
        "weights", [even(3, 1), even(3, 8), RAGGED], ids=["1", "8", "ragged"]
    )
    def test_with_the_slow_reference(self, architecture, weights):
        objective = Objective(in_float64(architecture), SCHEDULE, "mse")
        draws = make_draws(weights)
        wanted, wanted_losses = reference(objective, draws)
        assert (wanted.norm(dim=1) > 0.01).all()
        for engine in ENGINES:
            rows, losses = collected(engine, objective, draws)
            distance = (rows - wanted).norm(dim=1) / wanted.norm(dim=1)
            assert distance.max() < 1e-12, name_of(engine)
            assert losses == pytest.approx(wanted_losses, rel=1e-12)

    @pytest.mark.parametrize("engine", ENGINES, ids=name_of)
    def test_huber_and_float32(self, engine):
        model = make_model(
            UNetConfig(
                architecture="residual",
                dim=4,
                channels=1,
                dim_mults=(1,),
                image_size=8,
            ),
            1,
        )
        objective = Objective(model, SCHEDULE, "huber")
        draws = make_draws(even(3, 2), channels=1, dtype=torch.float32)
        rows, _ = collected(engine, objective, draws)
        wanted, _ = reference(objective, draws)
        assert torch.allclose(rows, wanted, atol=1e-6)


class TestEngines:
    @pytest.mark.parametrize("engine", ENGINES, ids=name_of)
    def test_the_model_is_left_as_it_was(self, engine):
        model = in_float64("residual")
        parameters = list(model.parameters())
        parameters[0].grad = torch.ones_like(parameters[0])
        parameters[1].summed_grad = kept = torch.ones(3)
        attributes = [set(vars(p)) for p in parameters]
        names = {name: set(vars(module)) for name, module in model.named_modules()}
        hooks = [len(m._forward_hooks) for m in model.modules()]
        collected(engine, Objective(model, SCHEDULE, "mse"), make_draws(even(3, 2)))
        assert [set(vars(p)) for p in parameters] == attributes
        assert {n: set(vars(m)) for n, m in model.named_modules()} == names
        assert [len(m._forward_hooks) for m in model.modules()] == hooks
        assert not any(m._backward_hooks for m in model.modules())
        assert parameters[1].summed_grad is kept
        assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
        assert all(p.grad is None for p in parameters[1:])

    @pytest.mark.parametrize("engine", ENGINES, ids=name_of)
    def test_frozen_parameters_have_no_gradient(self, engine):
        model = in_float64("residual")
        for parameter in model.down_blocks.parameters():
            parameter.requires_grad_(False)
        objective = Objective(model, SCHEDULE, "mse")
        draws = make_draws(even(3, 2))
        rows, _ = collected(engine, objective, draws)
        wanted, _ = reference(objective, draws)
        assert rows.shape == wanted.shape
        assert torch.allclose(rows, wanted, rtol=1e-10, atol=1e-14)

    @pytest.mark.parametrize("engine", ENGINES, ids=name_of)
    def test_an_unused_parameter_has_gradient_zero(self, engine):
        model = in_float64("residual")
        model.unused = nn.Linear(2, 1).double()
        draws = make_draws(even(3, 1))
        rows, _ = collected(engine, Objective(model, SCHEDULE, "mse"), draws)
        assert (rows[:, -3:] == 0).all()
        assert (rows[:, :-3] != 0).any()

    @pytest.mark.parametrize("engine", ENGINES, ids=name_of)
    @pytest.mark.parametrize("broken", [float("nan"), float("inf")])
    def test_a_broken_unit_spoils_no_other(self, engine, broken):
        objective = Objective(in_float64("feddiffuse"), SCHEDULE, "mse")
        draws = make_draws(even(3, 2))
        wanted, _ = collected(engine, objective, draws)
        draws.x_0[1, 1, 0, 3, 3] = broken
        rows, losses = collected(engine, objective, draws)
        assert not rows[1].isfinite().all()
        assert losses.isfinite().tolist() == [True, False, True]
        assert torch.allclose(rows[[0, 2]], wanted[[0, 2]], rtol=1e-10)

    @pytest.mark.parametrize("engine", ENGINES, ids=name_of)
    def test_no_units_no_gradients(self, engine):
        objective = Objective(in_float64("residual"), SCHEDULE, "mse")
        nothing = make_draws(even(1, 2)).part(0, 0)
        assert list(engine.gradients(objective, nothing)) == []

    def test_padding_is_not_computed(self):
        model, seen = in_float64("residual"), []
        model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
        objective = Objective(model, SCHEDULE, "mse")
        collected(LoopEngine(), objective, make_draws(RAGGED))
        assert seen == [2, 3, 1]

    def test_a_chunk_that_does_not_fit_is_halved(self, monkeypatch):
        objective = Objective(in_float64("residual"), SCHEDULE, "mse")
        draws = make_draws(even(5, 1))
        wanted, _ = collected(LoopEngine(), objective, draws)
        real, tried = VmapEngine._vectorised, []

        def limited(self, objective, draws):
            tried.append(len(draws))
            if len(draws) > 2:
                raise torch.OutOfMemoryError
            return real(self, objective, draws)

        monkeypatch.setattr(VmapEngine, "_vectorised", limited)
        rows, _ = collected(VmapEngine(4), objective, draws)
        assert tried == [4, 2, 2, 2]  # The last one is filled up.
        assert torch.allclose(rows, wanted, rtol=1e-10, atol=1e-14)

    def test_one_unit_that_does_not_fit(self, monkeypatch):
        def full(*_):
            raise torch.OutOfMemoryError

        monkeypatch.setattr(VmapEngine, "_vectorised", full)
        objective = Objective(in_float64("residual"), SCHEDULE, "mse")
        with pytest.raises(torch.OutOfMemoryError):
            list(VmapEngine(4).gradients(objective, make_draws(even(5, 1))))

    def test_the_default_follows_the_measurement(self):
        large, small = torch.nn.Linear(1000, 2000), torch.nn.Linear(10, 10)
        assert default_engine(large, 784, 1) == VmapEngine(16)
        assert default_engine(large, 784, 8) == LoopEngine()
        assert default_engine(small, 64, 8) == VmapEngine(16)
        assert default_engine(large.to("meta"), 784, 8) == VmapEngine(64)
