"""A whole rehearsal of a tiny plan, by the command; what it refuses; its file."""

import base64
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from crypto.keys import IdentityKey
from protocol.encoding import encode
from protocol.errors import PlanRejected
from protocol.plan import SiloParty, make_plan
from protocol.plan_files import load_draft, save_plan
from protocol.rehearsal import RehearsalRejected, load_rehearsal, save_rehearsal
from silo.data import ImageSet
from silo.errors import DataError
from simulation.cli import cli
from simulation.errors import SettingsRejected
from simulation.known_draws import sought_of
from simulation.rehearsal_files import load_any_plan, rehearse_files
from simulation.rehearsal_pages import is_read, meaning
from simulation.rehearsal_settings import bare, warnings_about, worst_case
from simulation.rehearsed_round import RehearsedRound
from simulation.rehearsed_sum import Parties
from simulation.settings import SimulationConfig
from simulation.sources import load_pool, subset

DRAFT = """
name = "tiny"
num_rounds = 4
seed = 7
[model]
architecture = "residual"
dim = 8
channels = 1
dim_mults = [1]
image_size = 8
[schedule]
kind = "cosine"
num_timesteps = 50
[training]
local_steps = 3
examples_per_step = 4
learning_rate = 2e-3
warm_up_fraction = 0.5
"""


@pytest.fixture(scope="module")
def draft_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "draft.toml"
    path.write_text(DRAFT)
    return path


@pytest.fixture(scope="module")
def outcome(draft_path):
    """The command's own output, and what it wrote."""
    out = draft_path.parent / "out"
    arguments = ["rehearse", str(draft_path), "--quick", f"--out={out}"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    return result, out, load_rehearsal(out / "rehearsal.json")


def test_the_command_shows_every_view(outcome):
    result, _, rehearsal = outcome
    assert result.exit_code == 0
    assert "public images only" in result.output
    assert [(view.setting, view.name) for view in rehearsal.views] == [
        ("worst case", "plain update"),
        ("worst case", "plain update"),
        ("worst case", "masked update"),
        ("worst case", "mean"),
        ("worst case", "mean under DP"),
        ("the plan's own", "plain update"),
        ("the plan's own", "mean"),
        ("the plan's own", "mean under DP"),
    ]
    assert rehearsal.plan == "tiny"
    assert rehearsal.is_quick
    assert rehearsal.num_silos == 3


def test_a_view_holds_as_many_numbers_as_images(outcome):
    for view in outcome[2].views:
        assert len(view.psnr) == len(view.psnr_guess) > 0
        picture = Image.open(io.BytesIO(base64.b64decode(view.picture)))
        assert picture.width > picture.height or len(view.psnr) < 3
        assert 0 <= view.mismatch <= 2


def test_masked_words_pass_and_packed_ones_fail(outcome):
    masked, packed = (
        [test.p_value for test in outcome[2].uniformity if test.words == words]
        for words in ("masked", "not masked")
    )
    assert len(masked) == len(packed) == 3
    assert min(masked) > 1e-6
    assert min(packed) < 1e-20


def test_the_mask_hides_what_the_plain_update_shows(outcome):
    plain, _, masked, *_ = outcome[2].views
    assert plain.mismatch < 0.6 < 0.8 < masked.mismatch


def test_the_file_comes_back_as_it_was(outcome, tmp_path):
    rehearsal = outcome[2]
    save_rehearsal(tmp_path / "copy.json", rehearsal)
    assert load_rehearsal(tmp_path / "copy.json") == rehearsal


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda table: table | {"format": 9}, "format 9"),
        (lambda table: table | {"silo": "x"}, "unknown field"),
        (lambda table: {"format": 1}, "is missing"),
        (
            lambda t: t | {"views": [t["views"][0] | {"psnr": [1e308, 1e308]}]},
            "psnr",
        ),
    ],
)
def test_a_malformed_file_is_refused(outcome, tmp_path, spoil, words):
    table = json.loads((outcome[1] / "rehearsal.json").read_bytes())
    path = tmp_path / "rehearsal.json"
    path.write_text(encode(spoil(table)).decode())
    with pytest.raises(RehearsalRejected, match=words):
        load_rehearsal(path)


def test_the_known_draws_are_those_of_the_training(draft_path):
    """What the attacker draws again explains the update that a silo sends."""
    draft, _ = load_draft(draft_path)
    images = load_pool(SimulationConfig(), 1).dealt
    shares = [subset(images, np.arange(n, n + 1)) for n in range(3)]
    part = _round(worst_case(bare(draft, 3)), shares)
    update, sought = part.mean(part.words(1), [1]), sought_of(part, 1, 1)
    from diffusion.loss import denoising_loss

    draws = sought.draws
    part.model.zero_grad()
    x_0, t, noise = sought.images, draws.t[0], draws.noise[0]
    denoising_loss(part.model, x_0, t, noise, part.schedule, "mse").sum().backward()
    gradient = np.concatenate(
        [p.grad.numpy().ravel() for _, p in part.model.named_parameters()]
    )
    is_large = np.abs(gradient) > 1e-5
    assert is_large.any()
    assert (np.sign(update[is_large]) == -np.sign(gradient[is_large])).all()


def test_secure_aggregation_gives_the_plain_sum(draft_path):
    draft, _ = load_draft(draft_path)
    images = load_pool(SimulationConfig(), 1).dealt
    part = _round(bare(draft, 3), [subset(images, np.arange(9))] * 3)
    updates = [part.words(silo) for silo in part.everyone]
    masked, total = part.hidden_sum(updates)
    assert (total == part.plain_sum(updates)).all()
    for words, update in zip(masked, updates, strict=True):
        assert (words != update).mean() > 0.99
    np.testing.assert_array_equal(
        part.as_if_plain(updates[0]), part.mean(updates[0], [0])
    )


def _round(draft, shares):
    """A round that begins with the parameters of the draft's seed."""
    from diffusion.model import make_model
    from diffusion.parameters import parameters_of

    start = parameters_of(make_model(draft.model, draft.seed_for("model")))
    return RehearsedRound(draft, Parties.of(3), start, shares, seed=1)


def test_a_signed_plan_will_do(draft_path, tmp_path):
    draft, _ = load_draft(draft_path)
    aggregator = IdentityKey.generate()
    silos = [
        SiloParty(name=f"s-{n}", identity_key=IdentityKey.generate().public.hex())
        for n in range(4)
    ]
    plan = make_plan(draft, aggregator.public, silos)
    save_plan(tmp_path / "plan.toml", plan, aggregator)
    found, config, num_silos = load_any_plan(tmp_path / "plan.toml", None)
    assert (found.digest, config.data.source, num_silos) == (plan.digest, "digits", 4)
    assert bare(found, num_silos).num_rounds == 1


def rehearse(path, data=None, out=None):
    return rehearse_files(
        path, data, out, None, seed=1, is_quick=True, observe=lambda _: None
    )


def test_images_in_a_silos_folder_are_refused(draft_path, tmp_path):
    (tmp_path / "silo.toml").write_text("")
    (tmp_path / "scans").mkdir()
    data = tmp_path / "scans" / "data.npz"
    np.savez(data, images=np.zeros((20, 8, 8), np.uint8))
    with pytest.raises(SettingsRejected, match=r"folder of a silo .*public ones only"):
        rehearse(draft_path, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "error", "words"),
    [
        ((20, 9, 9), DataError, "9×9"),
        ((5, 8, 8), SettingsRejected, "at least 16 images"),
    ],
)
def test_unfit_images_are_refused(draft_path, tmp_path, shape, error, words):
    np.savez(tmp_path / "public.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(error, match=words):
        rehearse(draft_path, tmp_path / "public.npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_refused(draft_path, tmp_path):
    with pytest.raises(SettingsRejected, match="exists; choose another --out"):
        rehearse(draft_path, None, tmp_path)


def test_no_plan_is_refused(tmp_path):
    with pytest.raises(PlanRejected, match="No such file"):
        rehearse(tmp_path / "none.toml")


def test_one_silo_has_no_mean(draft_path):
    with pytest.raises(SettingsRejected, match="at least 2 silos"):
        bare(load_draft(draft_path)[0], 1)


def test_small_and_blank_images_are_warned_of():
    images = ImageSet(np.zeros((3, 4, 4, 1), np.uint8), (0.0, 255.0))
    sought = images.batch(np.arange(3)).numpy()
    small, blank = warnings_about(images, sought)
    assert "4×4" in small
    assert "3 of the images" in blank
    digits = load_pool(SimulationConfig(), 1).dealt
    assert warnings_about(digits, digits.batch(np.arange(3)).numpy()) == ()


@pytest.mark.parametrize(
    ("psnr", "guess", "expected"),
    [(20.0, 17.0, True), (19.9, 5.0, False), (21.0, 18.5, False)],
)
def test_what_counts_as_read(psnr, guess, expected):
    assert is_read(psnr, guess) == expected


def test_a_view_in_words(outcome):
    from dataclasses import replace

    view = replace(outcome[2].views[0], psnr=(30.0, 15.0), psnr_guess=(11.0, 11.0))
    assert meaning(view) == "the aggregator reads 1 of 2 images"
    assert "something of 1 of 2" in meaning(replace(view, psnr=(15.0, 9.0)))
    assert "no better than a guess" in meaning(replace(view, psnr=(12.0, 9.0)))
