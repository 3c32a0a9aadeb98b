import dataclasses
import hashlib
import json
import math

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from crypto.secagg.config import SecAggConfig
from protocol.encoding import from_table, to_table
from protocol.errors import PlanRejected
from protocol.plan import PlanDraft, RunPlan, SiloParty, make_plan
from protocol.plan_files import (
    MAX_PLAN_BYTES,
    describe,
    load_draft,
    load_plan,
    load_unsigned_plan,
    save_plan,
)
from tests.protocol.examples import (
    AGGREGATOR_IDENTITY,
    IDENTITIES,
    draft_table,
    make_example,
    make_identity,
    parties,
    plan_table,
    with_change,
)

KEYS = [identity.public.hex() for identity in IDENTITIES]
DP_SGD = {
    "privacy.mechanism": "dp-sgd",
    "privacy.noise_multiplier": 1.5,
    "privacy.delta": 1e-5,
    "privacy.sample_rate": 0.01,
}


NOISE_IN_SUM = {
    "privacy.mechanism": "silo",
    "privacy.unit": "silo",
    "privacy.delta": 1e-3,
    "privacy.share_variance": 10**8,
    "privacy.num_values": 1000,
    "update.value_bits": 24,
    "training.optimizer_state": "fresh",
    "protection.threshold": 4,
}


def rejection(load, path):
    """Return the message of a rejected file, which is one line and names the file."""
    with pytest.raises(PlanRejected) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


SECRET = {"update.weights": "secret", "update.max_weight": 1000}
FLOAT32 = {"update.form": "float32", "protection.method": "none"}
FEEDBACK = {"update.error_feedback": True}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"nmae": "x"}, "nmae: unknown field; did you mean name?"),
        ({"update.valeu_bits": 8}, "update.valeu_bits: unknown field; did you mean"),
        ({"simulation.num_silos": 3}, "simulation: unknown field"),
        ({"format": 2}, "format: "),
        ({"format": 1.0}, "format: "),
        ({"name": None}, "name: is missing"),
        ({"name": ""}, "name: "),
        ({"name": "Upper"}, "name: "),
        ({"name": "../x"}, "name: "),
        ({"name": "x" * 65}, "name: "),
        ({"num_rounds": 0}, "num_rounds: "),
        ({"num_rounds": 1_000_001}, "num_rounds: "),
        ({"num_rounds": True}, "num_rounds: "),
        ({"num_rounds": "3"}, "num_rounds: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"model": None}, "model: is missing"),
        ({"model.dim": 6}, "model.dim "),
        ({"model.architecture": "vit"}, "model.architecture: "),
        ({"model.dim_mults": 2}, "model.dim_mults: "),
        ({"model.dim_mults": [1, "2"]}, "model.dim_mults[1]: "),
        ({"schedule.num_timesteps": 1}, "schedule.num_timesteps "),
        ({"training.local_epochs": 1}, "training.local_steps: exactly one"),
        ({"training.local_steps": 0}, "training.local_steps: exactly one"),
        ({"training.learning_rate": "slow"}, "training.learning_rate: "),
        ({"training.learning_rate": math.nan}, "training.learning_rate: "),
        (
            {"training.learning_rate": 10**400},
            "int too large for training.learning_rate",
        ),
        ({"update.value_bits": 1}, "update.value_bits: "),
        ({"update.value_bits": 25}, "update.value_bits: "),
        ({"update.clipping_norm": 0.0}, "update.clipping_norm: "),
        ({"update.clipping_norm": math.inf}, "update.clipping_norm: "),
        ({"update.selection": "half"}, "update.selection: "),
        ({"update.clipping": "none"}, "update.clipping: "),
        ({"update.rotation": 1}, "update.rotation: "),
        ({"update.weights": "hidden"}, "update.weights: "),
        ({"update.weights": "secret"}, "update.max_weight: must be 1 to"),
        ({"update.max_weight": 9}, "update.max_weight: belongs to weights"),
        ({"update.form": "float16"}, "update.form: "),
        ({"update.form": "float32"}, 'update.form: "float32" needs protection.method'),
        (FLOAT32 | {"update.rotation": True}, "update.rotation: spreads an update"),
        (FLOAT32 | SECRET, 'update.weights: "secret" hides in a secure sum'),
        (FLOAT32 | {"update.selection": "usplit"}, 'update.selection: "usplit" deals'),
        (FLOAT32 | FEEDBACK, "update.error_feedback: makes up for a quantisation"),
        ({"protection.method": "none"} | FEEDBACK, "update.error_feedback: needs"),
        ({"update.broadcast_bits": 3}, "update.broadcast_bits: must be 0 (float32)"),
        ({"update.broadcast_bits": 17}, "update.broadcast_bits: must be 0 (float32)"),
        ({"update.broadcast_bits": True}, "update.broadcast_bits: "),
        ({"privacy.mechanism": "dp-sgd"}, "privacy.epsilon: give the target"),
        (DP_SGD | {"privacy.delta": 0.0}, "privacy.delta: "),
        (DP_SGD | {"privacy.sample_rate": 0.0}, "privacy.sample_rate: "),
        (DP_SGD | {"privacy.sample_rate": 1.5}, "privacy.sample_rate: "),
        (DP_SGD | {"privacy.clipping_norm": 0.0}, "privacy.clipping_norm: "),
        (DP_SGD | {"privacy.multiplicity": -1}, "privacy.multiplicity: "),
        (DP_SGD | {"privacy.unit": "hospital"}, "privacy.unit: "),
        (DP_SGD | {"privacy.max_images_per_patient": 0}, "privacy.max_images_per_"),
        (DP_SGD | {"privacy.spare_steps": -1}, "privacy.spare_steps: "),
        (DP_SGD | {"privacy.mechanism": "none"}, "privacy.delta: belongs to"),
        (
            {"privacy.mechanism": "none", "privacy.epsilon": 3.0},
            "privacy.epsilon: belongs to",
        ),
        (DP_SGD | SECRET, 'update.weights: "secret" releases'),
        (
            {
                "privacy.mechanism": "dp-sgd",
                "privacy.epsilon": 3.0,
                "privacy.delta": 1e-5,
                "privacy.sample_rate": 0.01,
            },
            "privacy.noise_multiplier: a finished plan says it",
        ),
        ({"initial.name": "faces"}, "initial.name: name and sha256 belong"),
        ({"initial.name": "x", "initial.sha256": "ab"}, "initial.sha256: "),
        (
            {"update.selection": "udec", "evaluation.every_rounds": 1},
            "evaluation.every_rounds: ",
        ),
        ({"protection.threshold": 4}, "protection.threshold: "),
        ({"protection.threshold": 2}, "protection.threshold: "),
        ({"protection.min_cohort": 2}, "protection.min_cohort: "),
        ({"protection.min_cohort": 4}, "protection.min_cohort: "),
        ({"protection.max_colluding": 2}, "protection.min_cohort: "),
        ({"protection.method": "aes"}, "protection.method: must be one of 'mask'"),
        ({"evaluation.sampler.eta": 2.0}, "evaluation.sampler.eta "),
        ({"evaluation.extractor_sha256": "\x1b[2J"}, "evaluation.extractor_sha256: "),
        ({"deadlines.training_seconds": 0}, "deadlines.training_seconds: "),
        ({"nonce": "00" * 15}, "nonce: "),
        ({"nonce": "AB" * 16}, "nonce: "),
        ({"aggregator.identity_key": "zz" * 32}, "aggregator.identity_key: "),
        ({"aggregator.identity_key": KEYS[1]}, "aggregator.identity_key: is also"),
        ({"aggregator": {}}, "aggregator.identity_key: is missing"),
        ({"silos": {}}, "silos: must be a list"),
        ({"silos": []}, "protection.min_cohort: "),
    ],
)
def test_a_bad_plan_is_refused_in_one_line_that_names_the_field(
    changes, field, tmp_path
):
    table = plan_table(changes)
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(table))
    assert rejection(load_unsigned_plan, path).startswith(field)


@pytest.mark.parametrize(
    ("silo", "field"),
    [
        ({"name": "silo-0"}, "silos: two have the same name"),
        ({"identity_key": KEYS[0]}, "silos: two have the same identity_key"),
        ({"identity_key": KEYS[1].upper()}, "silos[1].identity_key: "),
        ({"identity_key": KEYS[1][2:]}, "silos[1].identity_key: "),
        ({"identity_key": KEYS[1] + "00"}, "silos[1].identity_key: "),
        ({"name": "Silo"}, "silos[1].name: "),
        ({"name": "aggregator"}, "silos[1].name: "),
        ({"weight": 0}, "silos[1].weight: "),
        ({"weight": -1.0}, "silos[1].weight: "),
        ({"weight": math.inf}, "silos[1].weight: "),
        ({"weight": True}, "silos[1].weight: "),
        ({"wieght": 1.0}, "silos[1].wieght: unknown field; did you mean weight?"),
    ],
)
def test_a_bad_silo_is_refused_in_one_line(silo, field, tmp_path):
    table = plan_table()
    table["silos"][1] |= silo
    path = tmp_path / "plan.toml"
    path.write_text(tomli_w.dumps(table))
    assert rejection(load_unsigned_plan, path).startswith(field)


def test_two_silos_are_too_few_for_a_cohort_of_three():
    draft = from_table(PlanDraft, draft_table())
    silos = [from_table(SiloParty, silo) for silo in parties(2)["silos"]]
    with pytest.raises(PlanRejected, match=r"^protection\.min_cohort: 2 silos"):
        make_plan(draft, AGGREGATOR_IDENTITY.public, silos)


def test_too_many_silos_are_refused():
    silos = tuple(
        SiloParty(name=f"s{n}", identity_key=hashlib.sha256(b"%d" % n).hexdigest())
        for n in range(1001)
    )
    with pytest.raises(ValueError, match=r"^silos: must be at most 1,000"):
        dataclasses.replace(make_example(), silos=silos)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"name = ", id="cut off"),
        pytest.param(b"\xff", id="not UTF-8"),
        pytest.param(b"a = 1\na = 2", id="same name twice"),
        pytest.param(b"a = " + b"[" * 5000 + b"]" * 5000, id="deep"),
        pytest.param(b"a = " + b"1" * 5000, id="enormous number"),
        pytest.param(b"#" * (MAX_PLAN_BYTES + 1), id="too large"),
    ],
)
@pytest.mark.parametrize("load", [load_plan, load_unsigned_plan, load_draft])
def test_what_is_no_toml_is_refused(load, text, tmp_path):
    path = tmp_path / "plan.toml"
    path.write_bytes(text)
    assert rejection(load, path).startswith(("not valid TOML: ", "larger than"))


def test_a_missing_file_is_named(tmp_path):
    assert rejection(load_plan, tmp_path / "plan.toml") == "No such file or directory"


RICH = {
    "evaluation.every_rounds": 2,
    "evaluation.extractor_sha256": "ab" * 32,
    "update.weights": "declared",
    "training.learning_rate": 1e-05,
    "deadlines.training_seconds": 1e16,
}


@pytest.mark.parametrize("changes", [{}, RICH])
def test_a_saved_plan_is_loaded_as_it_was(changes, tmp_path):
    plan = make_example(changes)
    path = tmp_path / "plan.toml"
    save_plan(path, plan, AGGREGATOR_IDENTITY)
    again = load_plan(path)
    assert again == plan
    assert again.digest == plan.digest
    assert load_unsigned_plan(path).digest == plan.digest


def test_whole_numbers_for_reals_do_not_change_the_digest(tmp_path):
    draft = dataclasses.replace(
        from_table(PlanDraft, draft_table()),
        update=dataclasses.replace(make_example().update, clipping_norm=5),
    )
    silos = [
        SiloParty(name=f"silo-{n}", identity_key=KEYS[n], weight=n + 1)
        for n in range(3)
    ]
    plan = make_plan(draft, AGGREGATOR_IDENTITY.public, silos)
    save_plan(tmp_path / "plan.toml", plan, AGGREGATOR_IDENTITY)
    assert load_plan(tmp_path / "plan.toml").digest == plan.digest


def test_the_digest_is_the_sha256_of_label_and_canonical_table():
    plan = make_example()
    text = json.dumps(
        to_table(plan), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    expected = hashlib.sha256(b"cloister/1/plan\x00" + text.encode()).digest()
    assert plan.digest == expected
    assert plan.run == expected[:16]


OTHER_VALUES = {
    "name": "other",
    "num_rounds": 4,
    "seed": 8,
    "model.architecture": "feddiffuse",
    "model.dim": 32,
    "model.channels": 3,
    "model.dim_mults": [1, 2, 2],
    "model.image_size": 16,
    "schedule.kind": "cosine",
    "schedule.num_timesteps": 100,
    "training.local_steps": 5,
    "training.local_epochs": 0,
    "training.examples_per_step": 16,
    "training.learning_rate": 2e-4,
    "training.final_learning_rate_fraction": 0.5,
    "training.warm_up_fraction": 0.25,
    "training.optimizer_state": "fresh",
    "training.loss": "huber",
    "training.proximal_mu": 0.5,
    "model.num_classes": 10,
    "initial.origin": "run",
    "update.selection": "udec",
    "update.clipping_norm": 4.0,
    "update.clipping": "previous-mean",
    "update.value_bits": 8,
    "update.rotation": True,
    "update.rounding": "nearest",
    "update.weights": "declared",
    "update.max_weight": 9,
    "update.form": "float32",
    "update.broadcast_bits": 8,
    "update.error_feedback": True,
    "protection.method": "none",
    "protection.threshold": 5,
    "protection.min_cohort": 4,
    "protection.max_colluding": 0,
    "protection.trust": "semi-honest",
    "protection.slots_per_setup": 8,
    "aggregation.optimizer": "adam",
    "aggregation.learning_rate": 0.5,
    "aggregation.decay_mean": 0.8,
    "aggregation.decay_square": 0.999,
    "aggregation.adaptivity": 1e-8,
    "aggregation.ema_decay": 0.9,
    "evaluation.every_rounds": 1,
    "evaluation.in_silos": True,
    "evaluation.num_samples": 100,
    "evaluation.extractor": "inception",
    "evaluation.extractor_sha256": "ab" * 32,
    "evaluation.sampler.kind": "ancestral",
    "evaluation.sampler.num_steps": 10,
    "evaluation.sampler.eta": 0.5,
    "evaluation.sampler.clamp": False,
    "deadlines.training_seconds": 1.0,
    "deadlines.exchange_seconds": 1.0,
    "nonce": "01" * 16,
    "aggregator.identity_key": make_identity("another").public.hex(),
}
DP_VALUES = {
    "privacy.epsilon": 3.0,
    "privacy.delta": 1e-6,
    "privacy.noise_multiplier": 2.0,
    "privacy.clipping_norm": 0.5,
    "privacy.sample_rate": 0.02,
    "privacy.multiplicity": 4,
    "privacy.unit": "patient",
    "privacy.max_images_per_patient": 2,
    "privacy.spare_steps": 7,
}
"""Fields that belong to a mechanism."""

NOISE_VALUES = {"privacy.share_variance": 200_000_000, "privacy.num_values": 1001}
"""Fields that belong to noise inside the secure sum."""

CALIBRATION = {
    "calibration.when": "slow-learning",
    "calibration.steps": 3,
    "calibration.learning_rate": 0.5,
    "num_rounds": 9,
}
OF_SILOS = CALIBRATION | {
    "calibration.images": "silo-models",
    "calibration.num_images": 9,
    "calibration.local_steps": 2,
}
PUBLIC = CALIBRATION | {"calibration.name": "dots", "calibration.sha256": "ab" * 32}
AGGREGATE = CALIBRATION | {
    "calibration.images": "aggregate",
    "calibration.num_images": 9,
    "calibration.source_round": 1,
}
CALIBRATION_VALUES = {
    "calibration.when": (OF_SILOS, "every-round"),
    "calibration.images": (OF_SILOS, "silo-samples"),
    "calibration.num_images": (OF_SILOS, 10),
    "calibration.local_steps": (OF_SILOS, 3),
    "calibration.steps": (OF_SILOS, 4),
    "calibration.learning_rate": (OF_SILOS, 0.25),
    "calibration.examples_per_step": (OF_SILOS, 7),
    "calibration.window": (OF_SILOS, 2),
    "calibration.min_improvement": (OF_SILOS, 0.5),
    "calibration.name": (PUBLIC, "lines"),
    "calibration.sha256": (PUBLIC, "cd" * 32),
    "calibration.source_round": (AGGREGATE, 2),
}
"""Fields of training after the mean, in a plan in which they mean something."""

ONE_VALUE = {"format"}
"""Fields that can have one value only in this version."""

IN_COMPANY = {
    "privacy.mechanism",
    "initial.name",
    "initial.sha256",
    "update.parts",
    "protection.key_maker",
    "training.train_unassigned",
    "training.label_dropout",
    "training.local_parts",
    "evaluation.sampler.guidance",
    "evaluation.reference",
    "evaluation.min_reference_count",
    "evaluation.reference_noise_multiplier",
    "evaluation.reference_clipping",
    "evaluation.reference_uncovered",
}
"""Fields that can change only with several others."""


def test_every_field_is_walked():
    names = {name for name, _ in describe(to_table(make_example()))}
    of_silos = {name for name in names if name.startswith("silos[")}
    assert "silos[0].identity_key" in of_silos
    assert names - of_silos == {
        *OTHER_VALUES,
        *DP_VALUES,
        *NOISE_VALUES,
        *CALIBRATION_VALUES,
        *ONE_VALUE,
        *IN_COMPANY,
    }


TOGETHER = {"training.local_epochs", "update.max_weight", "update.form"}
"""Fields that can change only with another one."""


@pytest.mark.parametrize("path", sorted(set(OTHER_VALUES) - TOGETHER))
def test_the_digest_changes_with_every_field(path):
    plan = make_example({"protection.threshold": 4}, num_silos=5)
    assert with_change(plan, path, OTHER_VALUES[path]).digest != plan.digest


@pytest.mark.parametrize("path", sorted(DP_VALUES))
def test_the_digest_changes_with_every_field_of_a_mechanism(path):
    plan = make_example(DP_SGD)
    assert plan.digest != make_example().digest
    assert with_change(plan, path, DP_VALUES[path]).digest != plan.digest


@pytest.mark.parametrize("path", sorted(NOISE_VALUES))
def test_the_digest_changes_with_every_field_of_noise_in_the_sum(path):
    plan = make_example(NOISE_IN_SUM, num_silos=5)
    assert with_change(plan, path, NOISE_VALUES[path]).digest != plan.digest


@pytest.mark.parametrize("path", sorted(CALIBRATION_VALUES))
def test_the_digest_changes_with_every_field_of_calibration(path):
    changes, value = CALIBRATION_VALUES[path]
    plan = make_example(changes)
    assert with_change(plan, path, value).digest != plan.digest


def test_the_digest_changes_with_the_initial_parameters():
    plans = [
        make_example({"initial.name": name, "initial.sha256": sha256})
        for name in ("faces", "digits")
        for sha256 in ("ab" * 32, "cd" * 32)
    ]
    assert len({plan.digest for plan in plans}) == 4


def test_the_digest_changes_with_epochs_for_steps():
    plan = make_example()
    epochs = make_example({"training.local_steps": 0, "training.local_epochs": 4})
    assert epochs.digest != plan.digest


def test_the_digest_changes_with_the_largest_weight():
    plans = [make_example(SECRET | {"update.max_weight": n}) for n in (9, 10)]
    assert len({plan.digest for plan in (make_example(), *plans)}) == 3


@pytest.mark.parametrize(
    ("name", "value"), [("name", "other"), ("identity_key", KEYS[9]), ("weight", 2.0)]
)
def test_the_digest_changes_with_every_field_of_a_silo(name, value):
    table = plan_table()
    table["silos"][1][name] = value
    assert from_table(RunPlan, table).digest != make_example().digest


def test_the_digest_changes_with_the_order_of_the_silos():
    table = plan_table()
    table["silos"].reverse()
    assert from_table(RunPlan, table).digest != make_example().digest


def test_a_fresh_nonce_makes_another_run():
    plan = make_example()
    draft = from_table(PlanDraft, draft_table())
    made = [make_plan(draft, AGGREGATOR_IDENTITY.public, plan.silos) for _ in range(3)]
    assert len({plan.run for plan in made}) == 3
    assert dataclasses.replace(made[0], nonce=made[1].nonce) == made[1]


def test_make_plan_fills_in_the_threshold():
    draft = from_table(PlanDraft, draft_table())
    silos = [from_table(SiloParty, silo) for silo in parties(5)["silos"]]
    plan = make_plan(draft, AGGREGATOR_IDENTITY.public, silos)
    assert plan.protection.threshold == 4
    assert plan.secagg_config() == SecAggConfig(num_silos=5, threshold=4)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "plan.toml"
    save_plan(path, make_example(), AGGREGATOR_IDENTITY)
    return path


def test_nobody_else_signs_a_plan(tmp_path):
    with pytest.raises(PlanRejected, match="another aggregator's identity key"):
        save_plan(tmp_path / "plan.toml", make_example(), IDENTITIES[0])
    assert not list(tmp_path.iterdir())


SIGNATURE = "the signature of the aggregator is missing or wrong"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("num_rounds = 3", "num_rounds = 4"),
        ("weight = 1.0", "weight = 1.5"),
        ("[signature]", "[other]"),
        ('[signature]\naggregator = "', "[signature]\n#"),
        ('[signature]\naggregator = "', '[signature]\naggregator = "0'),
        ('[signature]\naggregator = "', '[signature]\naggregator = "00'),
        ("[signature]\naggregator = ", "[signature]\naggregator = 1 #"),
        ("[signature]\naggregator = ", "[signature.more]\naggregator = "),
    ],
)
def test_an_edited_plan_is_refused(saved, old, new):
    text = saved.read_text()
    assert old in text
    saved.write_text(text.replace(old, new, 1))
    assert rejection(load_plan, saved) in (SIGNATURE, "other: unknown field")


def test_a_comment_may_be_edited(saved):
    saved.write_text("# Approved on a Friday.\n" + saved.read_text())
    load_plan(saved)


def test_a_signature_of_another_plan_is_refused(saved, tmp_path):
    other = tmp_path / "other.toml"
    save_plan(other, make_example({"seed": 8}), AGGREGATOR_IDENTITY)
    head, _, _ = saved.read_text().partition("[signature]")
    _, _, tail = other.read_text().partition("[signature]")
    saved.write_text(f"{head}[signature]{tail}")
    assert rejection(load_plan, saved) == SIGNATURE


def test_an_unsigned_plan_is_refused(saved):
    saved.write_text(saved.read_text().partition("[signature]")[0])
    assert rejection(load_plan, saved) == SIGNATURE
    assert load_unsigned_plan(saved) == make_example()


def test_a_draft_in_place_of_a_plan_is_explained(tmp_path):
    path = tmp_path / "draft.toml"
    path.write_text(tomli_w.dumps(draft_table()))
    assert "aggregator plan make" in rejection(load_plan, path)
    draft, simulation = load_draft(path)
    assert draft == from_table(PlanDraft, draft_table())
    assert simulation == {}


def test_a_draft_keeps_its_simulation_table(tmp_path):
    path = tmp_path / "draft.toml"
    path.write_text(tomli_w.dumps(draft_table({"simulation.num_silos": 4})))
    assert load_draft(path)[1] == {"num_silos": 4}


@pytest.mark.parametrize("name", ["silos", "aggregator", "nonce", "signature"])
def test_a_plan_in_place_of_a_draft_is_explained(name, tmp_path):
    path = tmp_path / "draft.toml"
    path.write_text(tomli_w.dumps(draft_table({name: "x"})))
    expected = f"{name}: belongs to a finished plan, not here"
    assert rejection(load_draft, path) == expected


@pytest.mark.parametrize(
    ("arguments", "seed"),
    [(("noise",), 1395584706823809482), (("order", 2, 5), 5880812386373957450)],
)
def test_seeds_by_another_implementation(arguments, seed):
    # SHA-256 of ["seed",7,"noise"], first 8 bytes, halved.
    assert make_example().seed_for(*arguments) == seed


def test_seeds_differ_by_purpose_silo_round_and_plan():
    plans = [make_example(), make_example({"seed": 8})]
    seeds = {
        plan.seed_for(purpose, *numbers)
        for plan in plans
        for purpose in ("order", "noise", "order1")
        for numbers in [(), (0,), (1,), (0, 1), (1, 0), (10,), (0, 1, 0)]
    }
    assert len(seeds) == 2 * 3 * 7
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_does_not_depend_on_parties_or_nonce():
    assert make_example(num_silos=5).seed_for("order", 1) == make_example().seed_for(
        "order", 1
    )


def test_silos_by_key_and_index():
    plan = make_example()
    assert plan.roster == tuple(identity.public for identity in IDENTITIES[:3])
    assert [plan.silo_index(key) for key in plan.roster] == [0, 1, 2]
    assert plan.aggregator_key == AGGREGATOR_IDENTITY.public
    with pytest.raises(PlanRejected, match=r"not in the plan .*silo-0, silo-1"):
        plan.silo_index(IDENTITIES[5].public)


@pytest.mark.parametrize(
    ("value_bits", "round_number", "num_values", "size_bytes"),
    [
        (16, 1, 10, 40),  # 32-bit fields, two a word: 5 words
        (16, 2, 10, 32),  # 21-bit fields, three a word: 4 words
        (8, 2, 12, 16),  # 10-bit fields, six a word: 2 words
        (8, 2, 13, 24),
        (8, 2, 0, 0),
    ],
)
def test_vector_bytes_by_hand(value_bits, round_number, num_values, size_bytes):
    plan = make_example({"update.value_bits": value_bits})
    assert plan.vector_bytes(round_number, num_values) == size_bytes


@pytest.mark.parametrize(
    ("changes", "round_number", "num_values", "num_words"),
    [
        # Three silos: 8 value bits in fields of 10, six a word.
        ({"update.rotation": True}, 1, 1, 683),  # 4096 values
        ({"update.rotation": True}, 2, 4096, 683),
        ({"update.rotation": True}, 2, 4097, 1366),  # 8192 values
        (SECRET, 1, 10, 6),  # 10 values in 32-bit fields, and the weight's word
        (SECRET, 2, 11, 3),  # 11 values in two words, a field to spare, and the weight
        (SECRET, 2, 12, 3),
        (SECRET, 2, 13, 4),
        (SECRET | {"update.rotation": True}, 1, 4096, 684),
        (SECRET | {"update.max_weight": 2**32, "update.rotation": True}, 1, 9, 684),
    ],
)
def test_padding_and_weights_are_counted(changes, round_number, num_values, num_words):
    plan = make_example({"update.value_bits": 8} | changes)
    assert plan.num_words(round_number, num_values) == num_words
    assert plan.vector_bytes(round_number, num_values) == 8 * num_words


def test_relative_weights():
    table = plan_table()
    for silo, weight in zip(table["silos"], [1, 4, 2], strict=True):
        silo["weight"] = weight
    assert from_table(RunPlan, table).relative_weights() == (1.0, 1.0, 1.0)
    declared = table | {"update": {"weights": "declared"}}
    assert from_table(RunPlan, declared).relative_weights() == (0.25, 1.0, 0.5)
    with pytest.raises(ValueError, match="are secret, not in the plan"):
        make_example(SECRET).relative_weights()


@given(st.lists(st.floats(1e-9, 1e9), min_size=3, max_size=6))
def test_relative_weights_stay_in_range(weights):
    table = plan_table({"update.weights": "declared"}, num_silos=len(weights))
    for silo, weight in zip(table["silos"], weights, strict=True):
        silo["weight"] = weight
    relative = from_table(RunPlan, table).relative_weights()
    assert max(relative) == 1.0
    assert min(relative) > 0


def test_describe_names_every_field():
    shown = dict(describe(to_table(make_example())))
    assert shown["model.dim"] == "16"
    assert shown["evaluation.sampler.kind"] == "ddim"
    assert shown["protection.min_cohort"] == "3"
