"""Errors of this package.

::

    DiffusionError
    ├── ShapeMismatch         a tensor, name or length does not fit its layout or model
    ├── ImagesRejected        images have the wrong shape, range or a non-finite value
    ├── PartsIncomplete       a model's parts are not disjoint and exhaustive
    ├── CorruptFile           a file of ours is cut off, damaged or of another kind
    ├── WeightsUnavailable    a feature extractor's file is missing or is another one
    ├── StatisticsRejected    feature statistics are too few or of another extractor
    ├── DeviceUnavailable     a device was asked for that this machine lacks
    ├── NoDenoiser            central images were asked to predict noise
    ├── UnknownClass          images were asked of a class that a model does not know
    └── WarmUpFailed          the loss of a warm-up is not finite

A wrong field of a configuration is a ``ValueError`` (``config.py``). No message
contains a tensor, a pixel or a file name of a patient.
"""


class DiffusionError(Exception):
    """Base of every error that this package raises on purpose."""


class ShapeMismatch(DiffusionError):
    """A tensor, a name or a length does not fit the layout or the model."""


class ImagesRejected(DiffusionError):
    """Images are not finite, not in [-1, 1], or not of an accepted shape."""


class PartsIncomplete(DiffusionError):
    """A model's encoder, bottleneck and decoder do not cover it exactly once."""


class CorruptFile(DiffusionError):
    """A file is cut off, damaged, or not of the expected kind."""


class WeightsUnavailable(DiffusionError):
    """The weights of a feature extractor are missing or have another digest."""


class StatisticsRejected(DiffusionError):
    """Feature statistics cannot be used: too few, not finite, another extractor."""


class DeviceUnavailable(DiffusionError):
    """A device was asked for by name, and this machine has none of its kind."""


class NoDenoiser(DiffusionError):
    """A model holds central images: no network, which cannot be trained or sampled."""


class UnknownClass(DiffusionError):
    """A class was asked for that the model was not trained with."""


class WarmUpFailed(DiffusionError):
    """The loss of a warm-up is not finite any more; names step and learning rate."""
