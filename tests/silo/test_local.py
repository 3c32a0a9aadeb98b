import numpy as np
import pytest
import torch

import silo.local
from diffusion.checkpoint import load_checkpoint
from diffusion.model import make_model
from diffusion.parameters import parameters_of
from diffusion.schedule import make_schedule
from protocol.aggregation_settings import AggregationConfig
from silo.data import ImageSet
from silo.errors import DataError
from silo.local import train_alone
from silo.training import TrainingDiverged, TrainingState, train
from tests.silo.conftest import CPU, tiny_draft, tiny_images


def alone(draft, out, images=None):
    images = images or tiny_images()
    train_alone(draft, images, out, device=CPU, observe=lambda progress: None)


@pytest.mark.parametrize(("decay", "kept"), [(0.0, (0, 0)), (0.5, (1 / 10, 2 / 11))])
def test_against_the_rounds_by_hand(tmp_path, decay, kept):
    """The average's decay is warmed up: (1 + n) / (10 + n) at first."""
    draft = tiny_draft(num_rounds=2, aggregation=AggregationConfig(ema_decay=decay))
    alone(draft, tmp_path / "m")
    model = make_model(draft.model, draft.seed_for("model"))
    average, state = parameters_of(model), TrainingState()
    for round_number, share in zip((1, 2), kept, strict=True):
        state = train(
            model,
            tiny_images(),
            make_schedule(draft.schedule),
            draft,
            state,
            silo=0,
            round_number=round_number,
            device=CPU,
            observe=lambda progress: None,
        )
        for name, value in parameters_of(model).items():
            average[name] = share * average[name] + (1 - share) * value
    saved = load_checkpoint(tmp_path / "m")
    assert saved.notes["trained"] == "alone, round 2 of 2"
    for name, value in saved.parameters.items():
        assert torch.allclose(value, average[name], atol=1e-6)


def test_diverged_training_leaves_the_last_round(tmp_path, monkeypatch):
    real = silo.local.train

    def failing(*arguments, **options):
        if options["round_number"] == 2:
            raise TrainingDiverged("the loss is not finite in round 2")
        return real(*arguments, **options)

    monkeypatch.setattr(silo.local, "train", failing)
    with pytest.raises(TrainingDiverged):
        alone(tiny_draft(), tmp_path / "m")
    assert load_checkpoint(tmp_path / "m").notes["trained"] == "alone, round 1 of 3"


def test_images_that_do_not_fit_write_nothing(tmp_path):
    images = ImageSet(np.zeros((3, 8, 8, 3), np.uint8), (0.0, 255.0))
    with pytest.raises(DataError, match="3 channels"):
        alone(tiny_draft(), tmp_path / "m", images)
    assert list(tmp_path.iterdir()) == []
