"""Sections: membership inference, memorisation, the aggregator's view."""

from collections.abc import Iterator, Mapping
from typing import Any

from audits.findings import count
from audits.report.blocks import (
    Block,
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
USEFUL_DECIBEL = 3.0
"""Above a guess without looking: half of its error; less is no reconstruction."""
WITHHELD = (
    "Not in this report: it depends on real images and has no differential privacy. "
    "The silo-internal report shows it."
)


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
    steps = count(row["control_steps"], "step")
    images = count(row["control_images"], "image")
    said = f"Positive control: overfitted on purpose, {steps} on {images}."
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


def _reconstructs(views: list[Any]) -> bool:
    """Return whether an attack succeeds on a plain update, where it should."""
    return any(
        found > guessed + USEFUL_DECIBEL
        for view in views
        if view["name"] == "plain update"
        for found, guessed in zip(view["psnr"], view["psnr_guess"], strict=False)
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
    if not _reconstructs(table["views"]):
        yield Paragraph(
            "The attack reconstructed no image even from an update without protection: "
            "that it found nothing elsewhere says nothing.",
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
        yield from _view(view)
    if table["uniformity"]:
        yield Heading(f"Are {_hidden(table['uniformity'])} values uniform?")
        yield _uniformity(table["uniformity"])
    yield Code("cloister rehearse PLAN")


def _view(view: Content) -> Iterator[Block]:
    """Yield what one thing that an aggregator may hold gave away."""
    yield Heading(f"{view['name'][:1].upper()}{view['name'][1:]}, {view['setting']}")
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
            alt=f"Original images above, reconstructions from the {view['name']} below",
            caption="Originals above, reconstructions below.",
        )


def _hidden(tests: list[Content]) -> str:
    """Return how the words that were tested are hidden."""
    is_encrypted = any(each["words"] == "encrypted" for each in tests)
    return "encrypted" if is_encrypted else "masked"


def _uniformity(tests: list[Content]) -> Block:
    """Return the tests of hidden words, and of the same words in the clear."""
    return rows(
        ("Words", "Test", "Values", "Statistic", "p-value"),
        (
            (
                each["words"],
                each["test"],
                each["num_values"],
                number(each["statistic"]),
                number(each["p_value"], ".3g"),
            )
            for each in tests
        ),
        (2, 3, 4),
    )
