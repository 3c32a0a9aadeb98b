import numpy as np
import pytest

from silo.data import ImageSet
from silo.errors import DataError
from silo.units import units_of


def image_set(*patients: int) -> ImageSet:
    number = max(len(patients), 3)
    pixels = np.arange(4 * number, dtype=np.uint8).reshape(number, 2, 2, 1)
    if not patients:
        return ImageSet(pixels, (0.0, 255.0))
    names = tuple(f"p{number}" for number in range(max(patients) + 1))
    return ImageSet(pixels, (0.0, 255.0), None, np.array(patients), names)


def test_every_image_is_a_unit_of_its_own():
    units = units_of(image_set(), "example")
    assert len(units) == 3
    assert [units.images(u).tolist() for u in range(3)] == [[0], [1], [2]]
    assert units.kind == "example"


def test_examples_are_units_even_where_patients_are_known():
    assert len(units_of(image_set(0, 0, 1), "example")) == 3


def test_copies_of_an_image_are_one_unit():
    pixels = image_set().pixels[[0, 1, 0, 2, 1, 1]]
    units = units_of(ImageSet(pixels, (0.0, 255.0)), "example")
    assert [units.images(u).tolist() for u in range(len(units))] == [[0], [1], [3]]


def test_images_of_a_patient_are_one_unit():
    units = units_of(image_set(1, 0, 1, 2, 1), "patient")
    assert len(units) == 3
    assert [units.images(u).tolist() for u in range(3)] == [[1], [0, 2, 4], [3]]
    assert units.order.dtype == np.int64
    assert sorted(units.order.tolist()) == [0, 1, 2, 3, 4]


def test_patients_that_nobody_knows():
    with pytest.raises(DataError, match=r"do not say whose they are.*silo\.toml"):
        units_of(image_set(), "patient")
