"""A federation that trains with labels: whole, and with the embedding kept local."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from audits.audit import run_audit
from audits.evidence import load_evidence
from audits.findings import Severity
from diffusion.checkpoint import load_checkpoint
from diffusion.config import SamplerConfig
from protocol.aggregation_settings import EvaluationConfig
from protocol.settings import TrainingConfig
from protocol.update_settings import ProtectionConfig, UpdateConfig
from silo.store import RunStore
from tests.end_to_end.conftest import Crash, Harness, equal_parameters, tiny_draft

Make = Callable[..., Harness]
ROWS = "class_embedding.rows.weight"


def conditional(**changes):
    """Return the tiny draft with the ten digits as classes."""
    model = replace(tiny_draft().model, dim=16, dim_mults=(1,), num_classes=10)
    training = TrainingConfig(local_steps=3, examples_per_step=8, learning_rate=1e-2)
    return tiny_draft(**({"model": model, "training": training} | changes))


def models_of(harness: Harness):
    """Return every silo's finished model."""
    for party in harness.plan.silos:
        files = harness.federation.silo(party.name)
        store = RunStore(files.run(harness.plan), files.journal(harness.plan))
        yield load_checkpoint(store.model)


@pytest.mark.parametrize("selection", ["full", "udec"])
def test_a_run_with_labels(harness: Make, selection):
    is_full = selection == "full"
    sampler = SamplerConfig(num_steps=2, guidance=0.5)
    evaluation = EvaluationConfig(
        every_rounds=2 if is_full else 0,
        num_samples=20,
        extractor="fd-small-digits",
        sampler=sampler,
    )
    made = harness(
        conditional(
            update=UpdateConfig(selection=selection, rounding="nearest"),
            evaluation=evaluation,
        )
    )
    made.run()
    audit = run_audit(load_evidence(made.federation.root, None))
    assert not audit.with_severity(Severity.FAIL)
    models = list(models_of(made))
    rows = [model.parameters[ROWS] for model in models]
    assert rows[0].shape == (11, 64)
    # The embedding is the encoder's: shared by "full", each silo's own with "udec".
    assert torch.equal(rows[0], rows[1]) == is_full
    images = models[0].images(seed=1, count=3, device=torch.device("cpu"))
    assert images.shape == (3, 1, 8, 8)


def test_local_rows_are_in_no_message(harness: Make):
    """In the clear, so that no mask could hide them."""
    made = harness(
        conditional(
            update=UpdateConfig(selection="udec", rounding="nearest"),
            protection=ProtectionConfig(method="none", slots_per_setup=2),
        )
    )
    made.run()
    sent = b"".join(reply for _, _, reply in made.wire)
    for model in models_of(made):
        for row in model.parameters[ROWS]:
            assert row.numpy().tobytes() not in sent


def test_labels_survive_a_crash(harness: Make):
    """What was withheld is withheld again: the run ends as if nothing had happened."""
    undisturbed = harness(conditional()).run()
    made, hits = harness(conditional()), iter(range(20))

    def fault(moment: str, kind: int, silo: int) -> bool | None:
        if moment == "after" and next(hits, None) == 13:
            raise Crash
        return None

    with pytest.raises(Crash):
        made.run(fault)
    assert equal_parameters(made.run(), undisturbed)
