"""Labels of a silo's images: which folder is which class, and do they fit a plan?"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from silo.errors import DataError

Labels = npt.NDArray[np.int64]


def folder_labels(
    root: Path, files: Sequence[Path], classes: Sequence[str]
) -> tuple[Labels, tuple[str, ...]]:
    """Return the label of each file, by its folder, and the folders' names by label.

    Args:
        classes: names of folders below ``root``, by label; none: those that hold
            files, in sorted order.

    Raises:
        DataError: a file lies in a folder that ``classes`` leaves out.
    """
    folders = [root / name for name in classes]
    if not classes:
        folders = sorted({file.parent for file in files})
    places = {folder: label for label, folder in enumerate(folders)}
    labels = np.empty(len(files), dtype=np.int64)
    for number, file in enumerate(files):
        if file.parent not in places:
            raise DataError(
                f"{root}: image {number + 1} of {len(files)} in sorted order lies in a "
                "folder that [data] classes does not name"
            )
        labels[number] = places[file.parent]
    return labels, tuple(folder.relative_to(root).as_posix() for folder in folders)


def check_labels(
    labels: Labels | None, class_names: Sequence[str], num_classes: int
) -> None:
    """Refuse images that do not all have a label which the plan's model knows.

    Args:
        class_names: of the folders that the images lie in; none if there are none.
            Fewer than the classes would be numbered otherwise than at other silos.

    Raises:
        DataError: one line for the operator alone, with what to do.
    """
    wanted = f"the plan's model has {num_classes:,} classes"
    if labels is None:
        raise DataError(
            f"{wanted}, and these images have no labels; put an array of labels "
            f"0 … {num_classes - 1} into the .npz file, or the images into one "
            "folder a class ([data] in silo.toml)"
        )
    if class_names and len(class_names) != num_classes:
        raise DataError(
            f"{wanted}, and these images lie in {len(class_names):,} folders; name the "
            "folders of all classes, in the order that the silos agreed on, in [data] "
            "classes of silo.toml"
        )
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0 or highest >= num_classes:
        raise DataError(
            f"{wanted}, 0 … {num_classes - 1}, and these images have labels from "
            f"{lowest} to {highest}; correct them ([data] in silo.toml)"
        )
