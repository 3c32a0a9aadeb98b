"""Which of this silo's images are in exact sums of features already, of which runs.

::

    references/
      tags.key              as in silo.tags; secret, mode 0600
      <plan digest>.tags    keyed tags of the images that left in a run's sum

An entry is written before the sum leaves the silo, and stays: whether the aggregator
opened the sum is not for the silo to see. It is a copy of what was written beside the
sum when that was made, so that it names the images in it, whatever the silo's data have
become since. Images are recognised as privacy ledgers recognise them, value for value,
or by their patient.
"""

from contextlib import AbstractContextManager
from pathlib import Path

from silo.data import ImageSet
from silo.errors import ReferenceRefused
from silo.overlap import locked_alone
from silo.tags import (
    Tags,
    has_common,
    load_or_make_key,
    load_tags,
    save_tags,
    tags_of,
)

SUFFIX = ".tags"
SUMMED_FILE = "reference.tags"
"""In a run's folder: the tags of the images in its sum."""


class PastReferences:
    """What this silo remembers of exact sums that its images are in.

    Args:
        folder: for all runs; made where it is missing.
        run: this run's own folder; what is in its sum is kept there.
        plan: digest of this run's plan, hexadecimal.
        may_repeat: let images enter another exact sum, which the operator wants.
    """

    def __init__(
        self, folder: Path, run: Path, plan: str, images: ImageSet, *, may_repeat: bool
    ) -> None:
        self._folder, self._plan, self._images = folder, plan, images
        self._summed = run / SUMMED_FILE
        self._own, self._may_repeat = folder / f"{plan}{SUFFIX}", may_repeat

    def begin(self) -> None:
        """Keep what a sum is about to hold, unless another exact sum may hold some.

        Raises:
            ReferenceRefused: the message names the plan; it is for the operator alone.
                Also where a sum of this run has left, and is not here any more: a
                second one could be over other silos.
            StateBroken, KeyFileRejected: what is remembered cannot be read.
        """
        with self._alone():
            if self._own.exists():
                raise ReferenceRefused(
                    "a sum of features left in this very run, and this silo's state of "
                    "it is lost; begin a new run with a new plan"
                )
            may_make = not any(self._folder.glob(f"*{SUFFIX}"))
            tags = tags_of(
                self._images, load_or_make_key(self._folder, may_make=may_make)
            )
            self._check(tags)
            save_tags(self._summed, tags)

    def check(self) -> None:
        """Refuse again, once the sum is made, what :meth:`begin` refuses.

        Raises:
            ReferenceRefused, StateBroken, KeyFileRejected: as :meth:`begin`.
        """
        with self._alone():
            self._check(load_tags(self._summed))

    def note(self) -> None:
        """Note that what the sum holds leaves in this run; it is on disk on return.

        Raises:
            ReferenceRefused, StateBroken, KeyFileRejected: as :meth:`begin`.
        """
        with self._alone():
            tags = load_tags(self._summed)
            self._check(tags)
            save_tags(self._own, tags)

    def _alone(self) -> AbstractContextManager[None]:
        """Hold the folder of all runs alone."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return locked_alone(self._folder)

    def _check(self, tags: Tags) -> None:
        """Refuse tags of which one is in another run's sum."""
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            if path.stem == self._plan or self._may_repeat:
                continue
            if has_common(load_tags(path), tags):
                raise ReferenceRefused(
                    f"some of these images are in the exact sum of features of plan "
                    f"{path.stem[:16]}; a second one could show this silo's own "
                    "statistics as their difference. If that is acceptable, start "
                    "with --repeat-reference"
                )
