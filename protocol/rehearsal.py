"""What ``cloister rehearse`` found: how much an aggregator could see of public images.

Written by ``simulation``, shown by ``audits``; the images in it are public ones.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class View:
    """What one thing that an aggregator may hold gives away.

    ``name`` is "plain update", "masked update", "mean" or "mean under DP". ``psnr``
    has a value in dB for each image that was looked for, ``psnr_guess`` the same for
    the best guess without looking (the mean of public images); ``picture`` is a PNG in
    base64, originals above, reconstructions below.
    """

    name: str
    explanation: str
    num_examples: int
    num_steps: int
    psnr: tuple[float, ...]
    psnr_guess: tuple[float, ...]
    picture: str


@dataclass(frozen=True, kw_only=True)
class Uniformity:
    """A statistical test of masked words against the uniform law."""

    test: str
    num_values: int
    statistic: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """One rehearsed round of one plan, on public images."""

    format: int
    plan: str
    software: str
    images: str
    attack: str
    seed: int
    views: tuple[View, ...]
    uniformity: tuple[Uniformity, ...]
