"""The times in a transcript: nobody vouches for them, but they must go forward."""

import re
from datetime import UTC, datetime

from protocol.transcript import Entry

_FORM = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")


class Clock:
    """What the times of one transcript show, record by record.

    ``wrong`` are index and text of the first time that is none; ``back`` index and
    seconds of the largest step back, which a corrected clock may make, or a liar.
    """

    def __init__(self) -> None:
        self._latest, self._text = 0.0, ""
        self.wrong: tuple[int, str] | None = None
        self.back: tuple[int, int] | None = None

    def add(self, entry: Entry) -> None:
        """Take in the time of the next record."""
        if entry.time == self._text:
            return
        seconds = _seconds(entry.time)
        if seconds is None:
            self.wrong = self.wrong or (entry.index, entry.time[:64])
            return
        step = int(self._latest - seconds)
        if step > 0 and (self.back is None or step > self.back[1]):
            self.back = (entry.index, step)
        self._latest, self._text = max(self._latest, seconds), entry.time


def _seconds(text: str) -> float | None:
    """Return a time in seconds, None where it is none."""
    if not _FORM.fullmatch(text):
        return None
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC).timestamp()
