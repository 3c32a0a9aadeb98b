import pytest

from diffusion.config import (
    SamplerConfig,
    ScheduleConfig,
    UNetConfig,
    check_loss_kind,
)

GOOD = {
    "architecture": "residual",
    "dim": 16,
    "channels": 1,
    "dim_mults": (1, 2),
    "image_size": 8,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architecture", "transformer"),
        ("dim", 18),
        ("dim", 0),
        ("dim", 1024),
        ("dim", 16.0),
        ("channels", True),
        ("channels", 0),
        ("dim_mults", ()),
        ("dim_mults", [1, 2]),
        ("dim_mults", (1, 0)),
        ("image_size", 2),
        ("image_size", 100_000),
    ],
)
def test_a_wrong_field_of_the_network_is_named(field, value):
    UNetConfig(**GOOD)
    with pytest.raises(ValueError, match=field) as caught:
        UNetConfig(**{**GOOD, field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (ScheduleConfig, "kind", "sigmoid"),
        (ScheduleConfig, "num_timesteps", 1),
        (SamplerConfig, "kind", "euler"),
        (SamplerConfig, "num_steps", 0),
        (SamplerConfig, "eta", 1.5),
        (SamplerConfig, "eta", float("nan")),
        (SamplerConfig, "eta", "1"),
        (SamplerConfig, "clamp", 1),
    ],
)
def test_a_wrong_field_of_schedule_or_sampler_is_named(config, field, value):
    with pytest.raises(ValueError, match=field):
        config(**{field: value})


def test_an_unknown_loss_is_refused():
    check_loss_kind("huber")
    with pytest.raises(ValueError, match="loss"):
        check_loss_kind("l1")
