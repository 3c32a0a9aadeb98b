"""A page as a browser shows it: what its console says, and whether it fits a screen."""

import html
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

WIDTHS = (375, 1280)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--enable-logging=stderr", "--virtual-time-budget=2000", "--dump-dom",
)  # fmt: skip
MEASURE = """
<script>
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, root = page.documentElement;
    const wide = [...page.querySelectorAll("body *")]
      .filter(e => !e.closest(".wide, pre, svg"))
      .filter(e => e.getBoundingClientRect().right > root.clientWidth + 1)
      .map(e => e.tagName + "." + e.className);
    const p = document.createElement("p");
    p.className = "measured";
    p.textContent = [frame.width, root.clientWidth, root.scrollWidth,
      page.querySelectorAll("h2").length, wide.slice(0, 5).join(" ")].join("|");
    document.body.append(p);
  }
});
</script>
"""


@dataclass(frozen=True)
class Shown:
    """A page at one width: how wide it wants to be, and what stands out of it."""

    width: int
    scroll_width: int
    num_headings: int
    wide: str


def find_chromium() -> str | None:
    """Return the browser's program, if one is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def show(program: str, pages: list[str]) -> tuple[list[Shown], list[str]]:
    """Return how pages look at all widths, and what their consoles said.

    The pages stand in frames of one page; the frames have its origin, so that its
    script can measure them.
    """
    frames = "".join(
        f'<iframe width="{width}" height="800" srcdoc="{html.escape(page)}"></iframe>'
        for page in pages
        for width in WIDTHS
    )
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "wrapper.html"
        wrapper.write_text(f"<!doctype html><body>{frames}{MEASURE}</body>")
        done = subprocess.run(
            [program, *FLAGS, f"--user-data-dir={folder}/user", wrapper.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
    measured = re.findall(r'<p class="measured">(.*?)</p>', done.stdout)
    shown = []
    for line in measured:
        width, client, scroll, headings, wide = html.unescape(line).split("|", 4)
        assert abs(int(width) - int(client)) <= 20, line
        shown.append(Shown(int(client), int(scroll), int(headings), wide))
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return shown, console
