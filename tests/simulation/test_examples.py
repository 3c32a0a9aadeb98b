"""Every example is a draft that can be carried out, with settings that are known."""

from pathlib import Path

import pytest

from crypto.keys import IdentityKey
from protocol.plan import SiloParty, make_plan
from protocol.plan_files import load_draft
from simulation.settings import load_settings

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"digits", "cifar10", "celeba"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_can_be_carried_out(path):
    draft, table = load_draft(path)
    config = load_settings(table, path)
    if config.data.source != "digits":
        config.data.silo_config("train")
    if draft.privacy.is_private:
        return  # finding its noise takes a while, and has tests of its own
    silos = [
        SiloParty(name=f"silo-{n}", identity_key=IdentityKey.generate().public.hex())
        for n in range(config.num_silos)
    ]
    make_plan(draft, IdentityKey.generate().public, silos)


@pytest.mark.parametrize(("name", "shape"), [("cifar10", (32, 3)), ("celeba", (64, 3))])
def test_the_model_takes_the_images_of_its_set(name, shape):
    draft, _ = load_draft(EXAMPLES[0].parent / f"{name}.toml")
    assert (draft.model.image_size, draft.model.channels) == shape
