"""What a silo's session of one run works with, opened together or not at all."""

from contextlib import ExitStack
from dataclasses import dataclass

from crypto.bfv.installed import check_installed
from protocol.plan import RunPlan
from silo.auxiliary import AuxiliaryShare
from silo.canary_run import RunCanaries
from silo.disclosures import keep_plan
from silo.encrypted_upload import EncryptedUpload
from silo.evaluation import SiloEvaluation, make_evaluation
from silo.evidence import Evidence
from silo.masked_upload import MaskedUpload
from silo.noisy_round import make_mechanism
from silo.policy import check_plan
from silo.private_round import PrivateRounds
from silo.reference_share import ReferenceShare, make_reference
from silo.replies import Replies
from silo.resources import LocalResources
from silo.store import RunStore
from silo.trainer import RoundTrainer
from silo.witness import Witness


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """The parts of one silo in one run; ``opened`` closes transcript, journal, ledger.

    ``silo`` is its index in the plan. What the plan does not ask for is None.
    """

    silo: int
    trainer: RoundTrainer
    evaluation: SiloEvaluation | None
    reference: ReferenceShare | None
    auxiliary: AuxiliaryShare
    private: PrivateRounds | None
    canaries: RunCanaries
    secure: MaskedUpload | EncryptedUpload
    replies: Replies
    evidence: Evidence
    witness: Witness
    opened: ExitStack


def open_parts(plan: RunPlan, store: RunStore, resources: LocalResources) -> RunParts:
    """Open the parts of a run, begun or continued; the transcript says that it is.

    Raises:
        PolicyViolation: this silo's policy refuses the plan.
        SiloError, ProtocolError: images or saved state do not fit the plan; nothing
            stays open.
        ModuleNotFoundError: the plan has updates encrypted, and TenSEAL is missing.
    """
    store.remove_leftovers()
    check_plan(resources.policy, plan)
    if plan.protection.is_encrypted:
        check_installed()
    keep_plan(store.folder, plan)
    silo = plan.silo_index(resources.identity.public)
    canaries = RunCanaries(plan, store, resources)
    planted = canaries.planted()
    with ExitStack() as opened:
        private: PrivateRounds | None = None
        if plan.privacy.is_private:
            gradient = canaries.gradient
            private = make_mechanism(plan, store.folder, planted, gradient)
            opened.callback(private.close)
        trainer = RoundTrainer(
            plan,
            silo,
            store,
            planted.images,
            resources.device,
            resources.observe,
            initial=resources.initial,
            private=private,
        )
        evaluation = make_evaluation(plan, silo, store, resources)
        reference = make_reference(plan, store, resources, private)
        auxiliary = AuxiliaryShare(plan, silo, store.folder, planted, private)
        trained = store.load_trained()
        if private is not None and trained is not None:
            private.check_ledger(trained.ledger)
        secure = _make_secure(plan, store, resources, silo)
        opened.callback(secure.close)
        trainer.residual.settle(secure.latest_slot)
        evidence = Evidence(store.transcript, plan, silo, resources.identity)
        opened.callback(evidence.close)
        witness = Witness(plan, evidence, store.transcript)
        if not store.is_finished():
            if private is not None:
                evidence.open_ledger(private.opened())
            canaries.commit(evidence)
        return RunParts(
            silo=silo,
            trainer=trainer,
            evaluation=evaluation,
            reference=reference,
            auxiliary=auxiliary,
            private=private,
            canaries=canaries,
            secure=secure,
            replies=Replies(plan, silo, resources.identity, private),
            evidence=evidence,
            witness=witness,
            opened=opened.pop_all(),
        )


def _make_secure(
    plan: RunPlan, store: RunStore, resources: LocalResources, silo: int
) -> MaskedUpload | EncryptedUpload:
    """Return this silo's half of secure aggregation, as the plan protects updates."""
    arguments = plan, store, resources.identity, silo
    if plan.protection.is_encrypted:
        return EncryptedUpload(*arguments, resources.make_workers)
    return MaskedUpload(*arguments)
