"""What a rehearsed round gave away, as a report says it."""

from statistics import fmean
from typing import Any

from audits.report.inputs import Inputs
from audits.report.samples import picture_of
from protocol.encoding import to_table
from protocol.plan import RunPlan

Table = dict[str, Any]


def rehearsal_table(plan: RunPlan, inputs: Inputs) -> Table | None:
    """Return views and tests of a rehearsal; pictures by their digest."""
    rehearsal = inputs.rehearsal
    if rehearsal is None:
        return None
    views = []
    for view in rehearsal.views:
        table: Table = to_table(view)
        del table["picture"]
        picture = picture_of(view.picture, view.name) if view.picture else None
        table["picture"] = picture.to_table() if picture else None
        table["mean_psnr"] = fmean(view.psnr) if view.psnr else None
        table["mean_psnr_guess"] = fmean(view.psnr_guess) if view.psnr_guess else None
        views.append(table)
    return {
        "plan": rehearsal.plan,
        "digest": rehearsal.digest or None,
        "is_of_this_plan": rehearsal.digest == plan.digest.hex(),
        "num_silos": rehearsal.num_silos,
        "is_quick": rehearsal.is_quick,
        "warnings": list(rehearsal.warnings),
        "software": rehearsal.software,
        "images": rehearsal.images,
        "attack": rehearsal.attack,
        "seed": rehearsal.seed,
        "views": views,
        "uniformity": [to_table(each) for each in rehearsal.uniformity],
    }
