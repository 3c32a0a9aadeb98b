"""Sections: canaries, membership inference, memorisation, the aggregator's view."""

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from audits.findings import count, listing
from audits.report.blocks import (
    Block,
    Bullets,
    Code,
    Facts,
    Figures,
    Heading,
    Paragraph,
    Picture,
    facts,
    number,
    percent,
    rows,
)

Content = Mapping[str, Any]
WITHHELD = (
    "Not in this report: it depends on real images and has no differential privacy. "
    "The silo-internal report shows it."
)


def canaries(content: Content) -> Iterator[Block]:
    """Yield what was committed, what the canaries show, and the power table."""
    table = content["canaries"]
    if not table["commitments"] and not table["silos"]:
        yield Paragraph("No canaries were used in this run.")
    if table["commitments"]:
        yield Paragraph(
            "A silo bound itself to its canaries before it trained, and opened them "
            "after: nobody chose them to suit the result."
        )
        yield rows(
            ("Silo", "Form", "Canaries", "Opened", "Commitment"),
            (
                (
                    row["silo"],
                    row["form"],
                    row["num_canaries"],
                    row["opened"],
                    row["commitment"],
                )
                for row in table["commitments"]
            ),
            (2,),
        )
    held_back = {row["what"] for row in content["withheld"]}
    if "scores of input canaries" in held_back:
        yield Paragraph(WITHHELD)
    for index, row in enumerate(table["silos"]):
        yield from _silo(index, row)
    yield from _power(table["power"], used=bool(table["silos"]))


def _silo(index: int, row: Content) -> Iterator[Block]:
    """Yield the canaries of one silo."""
    yield Heading(f"Canaries of {row['silo']} ({row['form']})")
    claimed = row["claimed_epsilon"]
    yield facts(
        [
            [
                "Canaries",
                f"{row['num_canaries']:,}, of them {row['num_included']:,} planted",
            ],
            [
                "Claimed",
                "no epsilon"
                if claimed is None
                else f"epsilon {claimed:.4g} at delta {row['delta']:g}",
            ],
            ["Expected gap of the means", number(row["expected_gap"])],
            ["Expected standard deviation", number(row["expected_stddev"])],
            [
                "Expected standard deviation of the planted ones",
                number(row["expected_included_stddev"]),
            ],
        ]
    )
    yield Figures((f"canary-scores-{index}", f"canary-bounds-{index}"))
    yield rows(
        ("Method", "Epsilon", "Confidence", "Guesses", "Correct", "Remark"),
        (
            (
                each["name"],
                _bound(each),
                percent(each["confidence"]) if each["kind"] == "bound" else "–",
                each["num_guesses"] or None,
                each["num_correct"] if each["num_guesses"] else None,
                each["detail"] or None,
            )
            for each in row["bounds"]
        ),
        (2, 3, 4),
    )
    if row["refuted"]:
        yield Paragraph("The canaries contradict the claim:", "strong")
        yield Bullets(tuple(row["refuted"]))
    elif row["doubtful"]:
        yield Paragraph(
            f"Above the claim, which may be chance: {listing(row['doubtful'])}.",
            "strong",
        )
    elif claimed is not None:
        yield Paragraph(
            "No violation was found. That is no proof that there is none: which faults "
            "these tests would have found, and how often, is below. A lower bound that "
            "is small says nothing of how private the run is."
        )
    yield from _powers(row["powers"])


def _powers(powers: list[Any]) -> Iterator[Block]:
    """Yield which faults the tests of these canaries find, in simulated runs."""
    if not powers:
        return
    tests = [test for test, _ in powers[0]["by_test"]]
    yield rows(
        ("Fault, in simulated runs", "Found by any test", *tests),
        (
            (
                each["fault"],
                percent(each["caught"]),
                *(percent(share) for _, share in each["by_test"]),
            )
            for each in powers
        ),
        range(1, len(tests) + 2),
    )


def _bound(each: Content) -> str:
    """Return a bound or an estimate in words."""
    word = "at least" if each["kind"] == "bound" else "about"
    if each["epsilon"] is None:
        return "no finite epsilon"
    return f"{word} {each['epsilon']:.3g}"


def _power(power: Content | None, *, used: bool) -> Iterator[Block]:
    """Yield what each check catches of mechanisms that were broken on purpose."""
    if power is None:
        if used:
            yield Paragraph(
                "This version has no measured table of what the checks catch.", "quiet"
            )
        return
    yield Heading("What these checks catch")
    yield Paragraph(
        "Mechanisms broken on purpose, and how often each check caught them, measured "
        f"on {power['measured']} with this software, not in this run:"
    )
    ordered = sorted(power["rows"], key=_setting)
    for (epsilon, planted), group in groupby(ordered, key=_setting):
        listed = list(group)
        yield Heading(f"Claimed epsilon {epsilon:g}, {planted:,} canaries")
        yield rows(
            ("What was broken", "Caught by", "Not caught by"),
            (
                (mutation.replace("-", " "), *_caught(listed, mutation))
                for mutation in dict.fromkeys(row["mutation"] for row in listed)
            ),
        )
    yield Bullets(tuple(power["notes"]))


def _caught(listed: list[Any], mutation: str) -> tuple[str, str]:
    """Return which checks caught a mutation, with how often, and which did not."""
    own = [row for row in listed if row["mutation"] == mutation]
    caught = (
        row["check"]
        + (f" ({row['caught']} of {row['runs']})" if row["runs"] > 1 else "")
        for row in own
        if row["caught"]
    )
    missed = (row["check"] for row in own if not row["caught"])
    return "; ".join(caught) or "nothing", "; ".join(missed) or "–"


def _setting(row: Content) -> tuple[float, int]:
    """Return the setting in which a row of the power table was measured."""
    return row["epsilon"], row["num_canaries"]


def membership(content: Content) -> Iterator[Block]:
    """Yield how well attacks tell members from held-out images."""
    table = content["membership"]
    if table is None:
        yield Paragraph(WITHHELD)
        return
    if not table:
        yield Paragraph(
            "No silo attacked the models of this run: there is no probe report "
            "(`silo probe`) among the files."
        )
        return
    yield Paragraph(
        "A silo asked of its own images which ones were in the training. Each attack "
        "gives one lower limit of what an attacker could do; better ones may exist. An "
        "AUC of 0.5 is guessing. The overfitted control was trained to be attacked: "
        "where the attack fails on it, its failure elsewhere says nothing."
    )
    for silo in dict.fromkeys(row["silo"] for row in table):
        own = (f"roc-{i}" for i, row in enumerate(table) if row["silo"] == silo)
        yield Figures(tuple(own))
    for row in table:
        yield Heading(f"{row['silo']}, {row['model']}")
        yield _attacks(row)
        if row["target"] == "control":
            yield _control(row)
        elif not row["ceiling"]:
            yield Paragraph("No epsilon bounds these attacks.", "quiet")


def _control(row: Content) -> Block:
    """Say whether the attacks succeed where they should."""
    said = (
        f"Positive control: overfitted on purpose, {count(row['control_steps'], 'step')} "
        f"on {count(row['control_images'], 'image')}."
    )
    if row["has_power"]:
        return Paragraph(said, "quiet")
    return Paragraph(
        f"{said} No attack succeeds even on it: the other results say nothing.",
        "strong",
    )


def _attacks(row: Content) -> Block:
    """Return the attacks on one model as a table."""
    return rows(
        ("Attack", "AUC", "Interval", "False alarms", "Found", "Interval", "Ceiling"),
        (
            (
                attack["attack"] if first else "",
                f"{attack['auc']:.3f}" if first else "",
                f"{attack['auc_low']:.3f} – {attack['auc_high']:.3f}" if first else "",
                f"{percent(at['fpr'])} ({at['false_positives']:,} of "
                f"{attack['num_held_out']:,})",
                f"{percent(at['count'] / at['total'] if at['total'] else None)} "
                f"({at['count']:,} of {at['total']:,})",
                f"{percent(at['low'])} – {percent(at['high'])}",
                percent(at["ceiling"]),
            )
            for attack in row["attacks"]
            for first, at in _marked(attack["true_positives"])
        ),
        (1, 2, 3, 4, 5, 6),
    )


def _marked(points: list[Any]) -> Iterator[tuple[bool, Any]]:
    """Yield points, with whether each is the first."""
    for index, point in enumerate(points):
        yield index == 0, point


def memorisation(content: Content) -> Iterator[Block]:
    """Yield whether samples are copies of training images."""
    table = content["memorisation"]
    if table is None:
        yield Paragraph(WITHHELD)
        return
    if not table:
        yield Paragraph(
            "No silo looked for its training images among samples: there is no probe "
            "report (`silo probe`) among the files."
        )
        return
    yield Paragraph(
        "Each sample's nearest training image, beside its nearest held-out one. A "
        "model that memorised nothing is nearer to either equally often; a copy is "
        "nearer to a training image than a third of the distance to the second nearest."
    )
    yield Figures(tuple(f"memory-{index}" for index in range(len(table))))
    yield rows(
        (
            "Silo",
            "Model",
            "Samples",
            "Nearer to training",
            "Copies",
            "By chance",
            "Copies of any training image",
        ),
        (
            (
                row["silo"],
                row["model"],
                row["num_samples"],
                _share(row["nearer_to_training"]),
                _share(row["copies"]),
                _share(row["copies_of_held_out"]),
                f"{_share(row['copies_of_any'])} of {row['num_searched']:,} images",
            )
            for row in table
        ),
        (2, 3, 4, 5, 6),
    )
    yield Paragraph(
        "“By chance”: the same test against held-out images. Pairs of images are shown "
        "inside the silo only.",
        "quiet",
    )


def _share(share: Content) -> str:
    """Return a share with its interval and counts."""
    value = share["count"] / share["total"] if share["total"] else None
    return (
        f"{percent(value)} ({share['count']:,} of {share['total']:,}; "
        f"{percent(share['low'])} – {percent(share['high'])})"
    )


def rehearsal(content: Content) -> Iterator[Block]:
    """Yield what an aggregator could see of public images in a rehearsed round."""
    table = content["rehearsal"]
    if table is None:
        yield Paragraph(
            "No round was rehearsed. `cloister rehearse PLAN` shows, on public images, "
            "what an aggregator could make of what it receives."
        )
        return
    if table["digest"] is None:
        yield Paragraph(f"Rehearsed with a draft, named {table['plan']}.", "quiet")
    elif not table["is_of_this_plan"]:
        yield Paragraph(
            f"This rehearsal is of another plan, {table['plan']} "
            f"({table['digest'][:16]}…).",
            "strong",
        )
    yield from (Paragraph(warning) for warning in table["warnings"])
    if table["is_quick"]:
        yield Paragraph("A quick rehearsal: fewer steps of the attack.", "quiet")
    yield facts(
        [
            ["Images", f"{table['images']} (public)"],
            ["Attack", table["attack"]],
            ["Silos", table["num_silos"] or None],
            ["Software", table["software"]],
        ]
    )
    for view in table["views"]:
        yield Heading(
            f"{view['name'][:1].upper()}{view['name'][1:]}, {view['setting']}"
        )
        yield Paragraph(view["explanation"])
        yield Facts(
            (
                (
                    "PSNR of the reconstruction",
                    f"{number(view['mean_psnr'], '.1f')} dB in the mean of "
                    f"{len(view['psnr'])} images; guessing without looking "
                    f"{number(view['mean_psnr_guess'], '.1f')} dB",
                ),
                (
                    "The update",
                    f"{count(view['num_steps'], 'step')} on "
                    f"{count(view['num_examples'], 'image')} in one silo",
                ),
                ("The attacker is granted", view["known"] or "–"),
                (
                    "Left unexplained of what it held",
                    f"{number(view['mismatch'], '.2g')} (0: nothing, 1: all)",
                ),
            )
        )
        if view["picture"]:
            yield Picture(
                **view["picture"],
                alt=f"Original images above, reconstructions from the {view['name']} "
                "below",
                caption="Originals above, reconstructions below.",
            )
    if table["uniformity"]:
        yield Heading("Are masked values uniform?")
        yield rows(
            ("Words", "Test", "Values", "Statistic", "p-value"),
            (
                (
                    each["words"],
                    each["test"],
                    each["num_values"],
                    number(each["statistic"]),
                    number(each["p_value"], ".3g"),
                )
                for each in table["uniformity"]
            ),
            (2, 3, 4),
        )
    yield Code("cloister rehearse PLAN")
