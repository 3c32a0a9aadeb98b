import dataclasses
import json
import stat

import pytest

from crypto import labels
from crypto.signatures import sign
from protocol.encoding import decode, encode, to_table
from protocol.probe_report import (
    AttackResult,
    Memorisation,
    ProbeRejected,
    ProbeReport,
    Share,
    load_probe,
    load_probe_of,
    save_probe,
)
from tests.silo.conftest import make_identities, tiny_plan

PLAN = tiny_plan()
KEYS = make_identities(3)
HALF = Share(count=5, total=10, low=0.2, high=0.8)


def attack(**changes) -> AttackResult:
    fields = {
        "attack": "PIA",
        "target": "control",
        "settings": "t = 200, 4-norm",
        "num_members": 10,
        "num_held_out": 10,
        "confidence": 0.95,
        "auc": 0.9,
        "auc_low": 0.7,
        "auc_high": 1.0,
        "at_fpr": (0.01, 0.001),
        "tpr_at": (HALF, HALF),
        "false_positives_at": (0, 0),
        "roc_fpr": (0.0, 0.5, 1.0),
        "roc_tpr": (0.5, 0.75, 1.0),
    }
    return AttackResult(**(fields | changes))


def memorised(**changes) -> Memorisation:
    fields = {
        "target": "control",
        "num_samples": 10,
        "num_training": 5,
        "num_held_out": 5,
        "num_searched": 9,
        "confidence": 0.95,
        "distance": "L2 in pixels",
        "nearer_to_training": HALF,
        "copies": HALF,
        "copies_of_held_out": HALF,
        "copies_of_any": HALF,
        "histogram_edges": (-1.0, 0.0, 1.0),
        "histogram_counts": (4, 6),
    }
    return Memorisation(**(fields | changes))


def report(**changes) -> ProbeReport:
    fields = {
        "format": 1,
        "plan": PLAN.digest.hex(),
        "silo": "silo-2",
        "software": "cloister test",
        "round_number": 3,
        "model": "ab" * 32,
        "own_model": "",
        "seed": 0,
        "control_images": 128,
        "control_steps": 1000,
        "attacks": (attack(target="global", auc=0.75), attack()),
        "memorisation": (memorised(),),
    }
    return ProbeReport(**(fields | changes))


def test_it_comes_back_as_it_was(tmp_path):
    path = tmp_path / "probe.json"
    save_probe(path, report(), KEYS[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_probe_of(path, PLAN) == report()
    assert load_probe(path, KEYS[1].public) == load_probe(path) == report()


def test_power_is_that_of_the_control():
    assert report().control_auc == 0.9
    assert report().has_power
    weak = (attack(target="global", auc=0.95), attack(auc=0.79), attack(auc=0.7))
    assert not report(attacks=weak).has_power


def tampered(**changes):
    """Return the file of a report that was changed after it was signed."""
    body = encode(to_table(report()))
    signature = sign(KEYS[1], labels.PROBE, body).hex()
    table = decode(body) | changes
    return encode({"body": encode(table).decode(), "signature": signature})


def signed_by(key, label=labels.PROBE, **changes):
    body = encode(to_table(report(**changes)))
    signature = sign(key, label, body).hex()
    return encode({"body": body.decode(), "signature": signature})


ROWS = {
    "a figure changed": (tampered(seed=1), "not signed"),
    "the model changed": (tampered(model="cd" * 32), "not signed"),
    "another silo's name": (tampered(silo="silo-1"), "not signed"),
    "a name that is no silo": (tampered(silo="silo-9"), "no silo"),
    "another plan": (tampered(plan="00" * 32), "another plan"),
    "signed by another silo": (signed_by(KEYS[0]), "not signed"),
    "signed by the aggregator": (signed_by(KEYS[3]), "not signed"),
    "signed as something else": (signed_by(KEYS[1], labels.PLAN), "not signed"),
    "a field too many": (tampered(images=[1]), "unknown field"),
    "no control": (tampered(attacks=[]), "control"),
    "cut off": (signed_by(KEYS[1])[:-9], "JSON"),
    "not canonical": (
        json.dumps(json.loads(signed_by(KEYS[1])), indent=1).encode(),
        "canonical",
    ),
    "a part too many": (encode({"body": "", "signature": "", "x": 1}), "exactly"),
    "a signature of nothing": (encode({"body": "{}", "signature": "zz"}), "format|is"),
    "nothing": (b"", "JSON"),
    "too large": (b" " * ((1 << 24) + 1), "too large"),
}


@pytest.mark.parametrize(("content", "words"), ROWS.values(), ids=ROWS)
def test_a_report_that_is_not_this_silos_is_refused(tmp_path, content, words):
    path = tmp_path / "probe.json"
    path.write_bytes(content)
    with pytest.raises(ProbeRejected, match=words):
        load_probe_of(path, PLAN)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Share(count=11, total=10, low=0.0, high=1.0),
        lambda: Share(count=0, total=0, low=0.0, high=1.0),
        lambda: Share(count=5, total=10, low=0.6, high=0.8),
        lambda: attack(tpr_at=(HALF,)),
        lambda: attack(false_positives_at=(0,)),
        lambda: attack(roc_fpr=(0.0, 1.0)),
        lambda: attack(roc_fpr=(0.0, 0.7, 0.5)),
        lambda: attack(roc_tpr=(0.5, 0.75, 1.5)),
        lambda: attack(roc_fpr=(0.5,) * 201, roc_tpr=(0.5,) * 201),
        lambda: attack(auc=0.6),
        lambda: attack(auc_high=1.1),
        lambda: attack(ceiling_epsilon=-1.0),
        lambda: attack(ceiling_delta=2.0),
        lambda: attack(at_fpr=(7.0, 0.001)[: len(attack().at_fpr)]),
        lambda: attack(num_held_out=10**400),
        lambda: attack(num_members=0),
        lambda: attack(false_positives_at=(-1,) * len(attack().at_fpr)),
        lambda: attack(confidence=-3.0),
        lambda: Share(count=10**400, total=10**400, low=0.5, high=1.0),
        lambda: memorised(histogram_counts=(10**400, 1)),
        lambda: memorised(histogram_edges=(0.0, 0.0, 1.0)),
        lambda: memorised(histogram_edges=(-1e308, 0.0, 1e308)),
        lambda: memorised(histogram_counts=(1, 2, 3)),
        lambda: memorised(histogram_counts=(-1, 2)),
        lambda: memorised(histogram_edges=(0.0, -1.0, 1.0)),
        lambda: report(format=2),
        lambda: report(attacks=(attack(target="own"),)),
    ],
)
def test_figures_that_cannot_be_are_refused(make):
    with pytest.raises(ValueError, match=":"):
        make()


def test_nothing_in_it_can_hold_an_image():
    """Curves have at most 200 points, whatever was attacked; the rest are names and
    counts."""
    for kind in (AttackResult, Memorisation, ProbeReport, Share):
        for field in dataclasses.fields(kind):
            of_many = str(field.type).startswith("tuple")
            known = {
                "at_fpr", "tpr_at", "false_positives_at", "roc_fpr", "roc_tpr",
                "histogram_edges", "histogram_counts", "attacks", "memorisation",
            }  # fmt: skip
            assert not of_many or field.name in known
            assert "Any" not in str(field.type)
            assert "bytes" not in str(field.type)
