"""A rehearsal for people: a picture of all views, and a table in plain words."""

import base64
import io
from statistics import median

from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from protocol.rehearsal import Rehearsal, View

RECOGNISABLE_DECIBELS = 20.0
BEYOND_DECIBELS = 3.0

MARGIN, LINE = 12, 17
INK, PAPER, FAINT = 20, 255, 105


def is_read(psnr: float, guess: float) -> bool:
    """Whether an image is read: 20 dB or more, and 3 dB better than the guess."""
    return psnr >= RECOGNISABLE_DECIBELS and psnr >= guess + BEYOND_DECIBELS


def meaning(view: View) -> str:
    """Return what a view means, in plain words."""
    pairs = list(zip(view.psnr, view.psnr_guess, strict=True))
    num_read = sum(is_read(psnr, guess) for psnr, guess in pairs)
    if num_read:
        return f"the aggregator reads {num_read} of {len(pairs)} images"
    num_better = sum(psnr >= guess + BEYOND_DECIBELS for psnr, guess in pairs)
    if num_better:
        return f"it learns something of {num_better} of {len(pairs)} images, reads none"
    return "this attack does no better than a guess without looking"


def settings_of(view: View) -> str:
    """Return how many examples and steps a view is about."""
    examples = "1 example" if view.num_examples == 1 else f"{view.num_examples} ex."
    steps = "1 step" if view.num_steps == 1 else f"{view.num_steps} steps"
    return f"{examples}, {steps}"


def rehearsal_table(rehearsal: Rehearsal) -> Table:
    """Return the views as a table for the terminal."""
    table = Table(
        title=f"What the aggregator of {rehearsal.plan} would see",
        title_justify="left",
    )
    for name in ("it holds", "in a silo", "PSNR (dB)", "guess", "what that means"):
        table.add_column(name, overflow="fold")
    for view in rehearsal.views:
        table.add_row(
            f"{view.name}\n[dim]{view.explanation}\nknown: {view.known}[/dim]",
            settings_of(view),
            f"{median(view.psnr):.1f}\n[dim]{min(view.psnr):.1f} … "
            f"{max(view.psnr):.1f}[/dim]",
            f"{median(view.psnr_guess):.1f}",
            meaning(view),
        )
    return table


def uniformity_table(rehearsal: Rehearsal) -> Table:
    """Return the statistical tests as a table for the terminal."""
    table = Table(title="Are the words that leave uniform?", title_justify="left")
    for name in ("words", "test", "values", "statistic", "p"):
        table.add_column(name)
    for test in rehearsal.uniformity:
        row = (f"{test.num_values:,}", f"{test.statistic:.4g}", f"{test.p_value:.3g}")
        table.add_row(test.words, test.test, *row)
    return table


def rehearsal_png(rehearsal: Rehearsal) -> bytes:
    """Return one picture of all views: originals above, reconstructions below."""
    font = ImageFont.load_default(size=13)
    pictures = [_opened(view) for view in rehearsal.views]
    captions = [_caption(view) for view in rehearsal.views]
    texts = [line for caption in captions for line in caption]
    width = 2 * MARGIN + max(
        *(picture.width for picture in pictures),
        *(int(font.getlength(text)) for text in texts),
    )
    heights = [
        LINE * len(caption) + picture.height + 2 * MARGIN
        for caption, picture in zip(captions, pictures, strict=True)
    ]
    page = Image.new("RGB", (width, sum(heights) + MARGIN), (PAPER,) * 3)
    draw, top = ImageDraw.Draw(page), MARGIN
    for caption, picture, height in zip(captions, pictures, heights, strict=True):
        for number, line in enumerate(caption):
            ink = (FAINT if number else INK,) * 3
            draw.text((MARGIN, top + number * LINE), line, fill=ink, font=font)
        page.paste(picture, (MARGIN, top + len(caption) * LINE))
        top += height
    buffer = io.BytesIO()
    page.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _opened(view: View) -> Image.Image:
    """Return a view's own picture."""
    return Image.open(io.BytesIO(base64.b64decode(view.picture))).convert("RGB")


def _caption(view: View) -> tuple[str, ...]:
    """Return the lines above a view's picture."""
    decibels = " ".join(f"{value:.0f}" for value in view.psnr)
    guesses = " ".join(f"{value:.0f}" for value in view.psnr_guess)
    name = view.name[0].upper() + view.name[1:]
    return (
        f"{name} ({settings_of(view)} in a silo): {meaning(view)}",
        view.explanation,
        f"PSNR {decibels} dB; a guess without looking {guesses} dB",
        f"known: {view.known}",
    )
