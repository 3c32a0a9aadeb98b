"""Who may read what: the public class of a report and the silo-internal one.

``TABLE`` is the whole rule. What is not in it is public: names, digests, counts of
bytes, what the mechanism released, and what the plan publishes.
"""

import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

from protocol.encoding import encode
from protocol.plan import RunPlan

Table = dict[str, Any]
ReportClass = Literal["public", "silo-internal"]
CLASSES: tuple[ReportClass, ...] = ("public", "silo-internal")

STEMS: dict[ReportClass, str] = {"public": "", "silo-internal": "-internal"}
"""What the class adds to a file's name."""

UNPROTECTED = (
    "It holds results that depend on real images and that no differential privacy "
    "covers"
)


@dataclass(frozen=True)
class Rule:
    """What a public report leaves out, unless its operator says otherwise.

    ``concerns`` says whether a run's content has it without protection; ``strip``
    takes it out.
    """

    title: str
    why: str
    concerns: Callable[[RunPlan, Table], bool]
    strip: Callable[[Table], None]


def _strip_losses(content: Table) -> None:
    """Take the losses out of the rounds of calibration."""
    for row in content["calibration"]["rounds"]:
        row |= {"loss_before": None, "loss_after": None}


def _strip_distances(content: Table) -> None:
    """Take out what was measured although the plan does not publish it."""
    content |= {"evaluations": [], "measurement": None}


def _strip_canaries(content: Table) -> None:
    """Take out canaries whose scores are losses of a model without protection."""
    silos = content["canaries"]["silos"]
    content["canaries"]["silos"] = [row for row in silos if row["form"] != "input"]
    for finding in content["findings"]:
        if finding["check"] == "canaries":
            finding["evidence"] = [
                line for line in finding["evidence"] if " input canaries" not in line
            ]


TABLE: tuple[Rule, ...] = (
    Rule(
        "membership inference on real images",
        "it depends on who is in the data, and on held-out images",
        lambda plan, content: bool(content["membership"]),
        lambda content: content.update(membership=None),
    ),
    Rule(
        "memorisation: nearest training and held-out images",
        "it depends on real images",
        lambda plan, content: bool(content["memorisation"]),
        lambda content: content.update(memorisation=None),
    ),
    Rule(
        "scores of input canaries",
        "they are losses of a model that was trained without differential privacy",
        lambda plan, content: (
            not plan.privacy.is_private
            and any(row["form"] == "input" for row in content["canaries"]["silos"])
        ),
        _strip_canaries,
    ),
    Rule(
        "losses on auxiliary images that silos gave",
        "they depend on the silos' models or samples",
        lambda plan, content: (
            bool(content["calibration"])
            and plan.calibration.images != "public"
            and bool(content["calibration"]["rounds"])
        ),
        _strip_losses,
    ),
    Rule(
        "Fréchet distances that the plan does not publish",
        "they depend on real images, and no silo has agreed to them",
        lambda plan, content: (
            not plan.evaluation.is_asked_for
            and bool(content["evaluations"] or content["measurement"])
        ),
        _strip_distances,
    ),
)
"""Norms of noise, gradients and clip fractions are in no row: no record, probe or
report of this version holds them. They are shown on the silo's own screen alone."""


def apply_class(
    plan: RunPlan, content: Table, report_class: ReportClass, *, include: bool = False
) -> Table:
    """Return the content for readers of a class, with its class written into it.

    ``withheld`` names what was left out, ``unprotected`` what is in although a public
    report would leave it out.

    Args:
        include: put everything into the public report, because its operator says so.
    """
    concerned = [rule for rule in TABLE if rule.concerns(plan, content)]
    result = deepcopy(content)
    is_held_back = report_class == "public" and not include
    rows = [{"what": rule.title, "why": rule.why} for rule in concerned]
    if is_held_back:
        for rule in concerned:
            rule.strip(result)
    return result | {
        "class": report_class,
        "class_sentence": sentence(report_class, bool(concerned), include=include),
        "withheld": rows if is_held_back else [],
        "unprotected": [] if is_held_back else rows,
    }


def sentence(report_class: ReportClass, is_concerned: bool, *, include: bool) -> str:
    """Return the sentence that says for whom a report is."""
    if report_class == "public":
        if include and is_concerned:
            return (
                f"Public, by decision of its operator (--include-unprotected). "
                f"{UNPROTECTED}; whoever publishes it gives them away."
            )
        return (
            "Public: what differential privacy does not cover and the plan does not "
            "publish is left out."
        )
    if is_concerned:
        return f"Silo-internal: {UNPROTECTED}. It is not for readers outside the silo."
    return (
        "Silo-internal. There was nothing to put in that the public report leaves out."
    )


def json_file(content: Mapping[str, Any]) -> tuple[str, str]:
    """Return name and SHA-256 of the JSON file that holds a content."""
    name = f"report{STEMS[content['class']]}.json"
    return name, hashlib.sha256(encode(content)).hexdigest()
