"""Which of this silo's images are in exact sums of features already, of which runs.

::

    references/
      tags.key              as in silo.tags; secret, mode 0600
      <plan digest>.tags    keyed tags of the images that left in a run's sum

An entry is written before the sum leaves the silo, and stays: whether the aggregator
opened the sum is not for the silo to see. Images are recognised as privacy ledgers
recognise them, value for value, or by their patient.
"""

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


class PastReferences:
    """What this silo remembers of exact sums that its images are in.

    Args:
        folder: for all runs; made where it is missing.
        plan: digest of this run's plan, hexadecimal.
        may_repeat: let images enter another exact sum, which the operator wants.
    """

    def __init__(
        self, folder: Path, plan: str, images: ImageSet, *, may_repeat: bool
    ) -> None:
        self._folder, self._plan, self._images = folder, plan, images
        self._may_repeat = may_repeat
        self._tags: Tags | None = None

    def check(self) -> None:
        """Refuse images of which another run's exact sum may hold some.

        Raises:
            ReferenceRefused: the message names the plan; it is for the operator alone.
            StateBroken, KeyFileRejected: what is remembered cannot be read.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked_alone(self._folder):
            self._check()

    def note(self) -> None:
        """Note that these images leave in this run's sum; it is on disk on return.

        Raises:
            ReferenceRefused, StateBroken, KeyFileRejected: as :meth:`check`.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked_alone(self._folder):
            tags = self._check()
            save_tags(self._folder / f"{self._plan}{SUFFIX}", tags)

    def _check(self) -> Tags:
        """Return the tags of this run's images, where none is in another sum."""
        entries = sorted(self._folder.glob(f"*{SUFFIX}"))
        if self._tags is None:
            key = load_or_make_key(self._folder, may_make=not entries)
            self._tags = tags_of(self._images, key)
        for path in entries:
            if path.stem == self._plan or self._may_repeat:
                continue
            if has_common(load_tags(path), self._tags):
                raise ReferenceRefused(
                    f"some of these images are in the exact sum of features of plan "
                    f"{path.stem[:16]}; a second one could show this silo's own "
                    "statistics as their difference. If that is acceptable, start "
                    "with --repeat-reference"
                )
        return self._tags
