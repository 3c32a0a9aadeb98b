"""Scores over the trainings of a run: kept at every checkpoint, never doubled."""

import stat

import numpy as np
import pytest

import silo.private_round
from diffusion.model import make_model
from protocol.canaries import CANARY_SEED_BYTES, canary_commitment
from protocol.files import save_secret
from protocol.privacy_settings import PrivacyConfig
from protocol.update_settings import UpdateConfig
from silo.canaries import GradientCanaries, Scored
from silo.canary_plan import canary_refusals, canary_sentences
from silo.canary_run import CanaryFile, KeptCanaries, ScoredSteps
from silo.check import canary_lines, count_trained
from silo.config import CanaryConfig
from silo.errors import StateBroken
from silo.policy import Policy
from silo.private_round import PrivateRounds
from silo.resources import LocalPrivacy, LocalResources
from silo.training import TrainingState
from tests.silo.conftest import CPU, make_identities, tiny_draft, tiny_images, tiny_plan
from tests.silo.test_private_training import SCHEDULE, draft

SEED = "07" * CANARY_SEED_BYTES
PLAN = draft({"spare_steps": 20, "delta": 1e-2}, local_steps=6)
NUM = 20


class Killed(BaseException):
    """The silo's process ends here."""


class Silo:
    """One silo's folder, from which its private rounds are opened anew."""

    def __init__(self, root):
        self.folder, self.ledgers = root / "run", root / "ledgers"
        self.folder.mkdir()
        self.file = CanaryFile(self.folder, "gradient")
        self.file.save(KeptCanaries(form="gradient", num_canaries=NUM, seed=SEED))

    def train(self, round_number=1):
        """Train a round as a process does that has just begun; return its ledger's."""
        resources = LocalResources(
            identity=make_identities(1)[0], images=tiny_images(num_images=6),
            policy=Policy(), device=CPU,
            privacy=LocalPrivacy(ledgers=self.ledgers, checkpoint_steps=2),
        )  # fmt: skip
        rounds = PrivateRounds(
            PLAN, "00" * 32, self.folder, resources, ScoredSteps(self.file, PLAN)
        )
        try:
            model = make_model(PLAN.model, 1)
            state = TrainingState()
            rounds.train(model, SCHEDULE, state, round_number=round_number)
            rounds.forget_partial()
            return sum(event.steps for event in rounds._account.events)
        finally:
            rounds.close()


@pytest.fixture
def one_silo(tmp_path):
    return Silo(tmp_path)


@pytest.fixture
def observed(monkeypatch):
    """What each noised step added to the scores, in order, kept or not."""
    seen, real = [], GradientCanaries.observe

    def observe(self, gradients, divisor):
        before = self._scores.copy()
        real(self, gradients, divisor)
        seen.append(self._scores - before)

    monkeypatch.setattr(GradientCanaries, "observe", observe)
    return seen


def test_scores_add_up_over_rounds(one_silo, observed):
    one_silo.train(1)
    assert one_silo.train(2) == 12
    opened = one_silo.file.load().opened()
    assert opened.num_steps == len(observed) == 12
    assert opened.scores == pytest.approx(np.sum(observed, axis=0), abs=1e-6)


@pytest.mark.parametrize(
    ("where", "scored", "charged"),
    [
        # Killed at step 4, of which the last checkpoint has 2; 4 and 2 are repeated.
        ("train", [0, 1, 4, 5, 6, 7], 8),
        ("ScoredSteps.keep", [0, 1, 4, 5, 6, 7], 10),
        ("save_partial", [0, 1, 2, 3, 4, 5, 6, 7], 10),
        ("after", [0, 1, 2, 3, 4, 5], 8),
    ],
)
def test_a_crash_doubles_no_step(
    one_silo, observed, monkeypatch, where, scored, charged
):
    """What a crash lost is on account and in no score; what is repeated is noised anew
    and scored as the step it is."""
    module, calls = silo.private_round, []

    def dying(name, real, *, after=False):
        def call(*arguments):
            calls.append(name)
            is_second = calls.count(name) == 2
            if is_second and not after:
                raise Killed
            real(*arguments)
            if is_second:
                raise Killed

        return call

    if where == "train":
        real_train = module.train_privately

        def train(*arguments, **options):
            options["keep"] = dying("keep", options["keep"])
            return real_train(*arguments, **options)

        monkeypatch.setattr(module, "train_privately", train)
    elif where == "ScoredSteps.keep":
        monkeypatch.setattr(ScoredSteps, "keep", dying("keep", ScoredSteps.keep))
    else:
        is_after = where == "after"
        real_save = module.save_partial
        monkeypatch.setattr(
            module, "save_partial", dying("save", real_save, after=is_after)
        )
    with pytest.raises(Killed):
        one_silo.train()
    assert one_silo.train() == charged
    opened = one_silo.file.load().opened()
    assert opened.num_steps == len(scored) <= charged
    expected = np.sum([observed[step] for step in scored], axis=0)
    assert opened.scores == pytest.approx(expected, abs=1e-6)


class TestFile:
    def test_for_its_owner_alone(self, one_silo):
        mode = one_silo.file.path.stat().st_mode
        assert stat.S_IMODE(mode) == 0o600
        assert SEED not in repr(one_silo.file.load())

    @pytest.mark.parametrize(
        "changed", [b"{", b'{"form":"gradient"}', b"", b"\xff\xfe"]
    )
    def test_damaged(self, one_silo, changed):
        save_secret(one_silo.file.path, changed)
        with pytest.raises(StateBroken, match="canaries-gradient"):
            one_silo.file.load()

    def test_by_hand(self):
        kept = KeptCanaries(form="gradient", num_canaries=2, seed=SEED)
        assert kept.opened().scores == (0.0, 0.0)
        kept = kept.after(Scored(3, np.array([1.0, -2.0])))
        kept = kept.after(Scored(1, np.array([0.25, 1 / 3])))
        assert kept.num_steps == kept.opened().num_steps == 4
        assert kept.opened().scores == (1.25, -1.666667)
        commitment = canary_commitment(bytes.fromhex(SEED), 2, "gradient")
        assert kept.committed().commitment == commitment.hex()

    def test_scores_of_another_number(self):
        with pytest.raises(ValueError, match="do not fit"):
            KeptCanaries(form="input", num_canaries=2, seed=SEED, scores=(1.0,))


IN_SUM = PrivacyConfig(
    mechanism="record-distributed", epsilon=5.0, delta=1e-3, sample_rate=0.25,
    multiplicity=2,
)  # fmt: skip
SILO_UNIT = PrivacyConfig(mechanism="silo", epsilon=5.0, delta=1e-3, unit="silo")
IN_SUM_UPDATE = UpdateConfig(rotation=True)


@pytest.mark.parametrize(
    ("plan", "canaries", "reason"),
    [
        (tiny_draft(), {"gradient": 5}, "gradient: only where DP-SGD adds noise"),
        (PLAN, {"gradient": 10**6}, "gradient: 1,000,000 canaries need a coordinate"),
        (
            tiny_draft(update=UpdateConfig(weights="declared")),
            {"images": 5},
            "images: the plan declares the silos' numbers of images",
        ),
    ],
)
def test_refused(plan, canaries, reason, monkeypatch):
    monkeypatch.setattr("silo.config.MAX_CANARIES", 10**6)
    config = CanaryConfig(**canaries)
    (found,) = canary_refusals(plan, config, count_trained(plan))
    assert found.startswith(reason)
    assert next(canary_sentences(plan, config, count_trained(plan))) == (
        f"REFUSED: silo.toml, [canaries] {found}."
    )


@pytest.mark.parametrize(
    ("privacy", "canaries", "reason"),
    [
        (IN_SUM, {"gradient": 5}, "the noise is in the sum over silos"),
        (SILO_UNIT, {"gradient": 5}, "the noise is in the sum over silos"),
        (SILO_UNIT, {"images": 5}, "the unit is the whole silo"),
    ],
)
def test_noise_in_the_sum_refuses(privacy, canaries, reason):
    class Plan:
        """What the refusals read of a plan; a whole one has much else to settle."""

        model, update = PLAN.model, PLAN.update

    Plan.privacy = privacy
    (found,) = canary_refusals(Plan, CanaryConfig(**canaries), 10_000)
    assert reason in found


class TestCheckPlan:
    def test_says_what_they_cost_and_what_is_published(self):
        plan = tiny_plan(training=PLAN.training, privacy=PLAN.privacy, num_rounds=2)
        (line,) = canary_lines(plan, CanaryConfig(gradient=1000))
        size = count_trained(plan)
        assert "1,000 in the gradients" in line
        assert "in a share 0.5 of up to 32 steps" in line
        assert f"{1000 / 2 * 0.5 / size:.2g} times the energy of the noise" in line
        assert "published in this silo's transcript" in line
        (line,) = canary_lines(plan, CanaryConfig(images=20))
        assert "20 images of noise" in line
        assert "CHANGE what is trained" in line
        assert "epsilon covers them" in line
        (line,) = canary_lines(tiny_plan(), CanaryConfig(images=20))
        assert "nothing limits what they reveal" in line

    def test_silent_without(self):
        assert canary_lines(tiny_plan(), CanaryConfig()) == []

    @pytest.mark.parametrize("field", ["gradient", "images"])
    def test_numbers_out_of_range(self, field):
        for number in (-1, 10_001):
            with pytest.raises(ValueError, match=f"{field}: must be 0 to 10,000"):
                CanaryConfig(**{field: number})
