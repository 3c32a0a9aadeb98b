import pytest

from crypto.secagg.config import SecAggConfig

GOOD = {"num_silos": 5, "threshold": 4}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_silos": 10, "threshold": 7, "max_colluding": 3, "min_cohort": 5},
        {"num_silos": 3, "threshold": 3},
        {"num_silos": 2, "threshold": 2, "max_colluding": 0, "min_cohort": 2},
        {"num_silos": 10, "threshold": 2, "trust": "semi-honest"},
        {"num_silos": 1000, "threshold": 1000, "slots_per_setup": 64},
    ],
)
def test_accepts(fields):
    SecAggConfig(**GOOD | fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"num_silos": 1, "threshold": 1}, "num_silos"),
        ({"num_silos": 1001}, "num_silos"),
        ({"threshold": 0}, "threshold"),
        ({"threshold": 6}, "threshold"),
        ({"threshold": 3}, "threshold"),
        ({"max_colluding": 3, "min_cohort": 5}, "threshold"),
        ({"threshold": 1, "trust": "semi-honest"}, "threshold"),
        ({"max_colluding": -1}, "max_colluding"),
        ({"max_colluding": 2}, "min_cohort"),
        ({"min_cohort": 6}, "min_cohort"),
        ({"max_colluding": 0, "min_cohort": 1}, "min_cohort"),
        ({"slots_per_setup": 0}, "slots_per_setup"),
        ({"slots_per_setup": 65}, "slots_per_setup"),
        ({"trust": "blind"}, "trust"),
    ],
)
def test_refuses_and_names_the_field(fields, field):
    with pytest.raises(ValueError, match=f"^{field}: "):
        SecAggConfig(**GOOD | fields)


def test_bytes_differ_where_a_field_does():
    configs = [
        SecAggConfig(**GOOD),
        SecAggConfig(**GOOD | {"num_silos": 6}),
        SecAggConfig(**GOOD | {"threshold": 5}),
        SecAggConfig(**GOOD | {"min_cohort": 4}),
        SecAggConfig(**GOOD | {"max_colluding": 0}),
        SecAggConfig(**GOOD | {"slots_per_setup": 1}),
        SecAggConfig(**GOOD | {"trust": "semi-honest"}),
    ]
    assert len({config.to_bytes() for config in configs}) == len(configs)
    assert SecAggConfig(**GOOD).min_survivors == 4
    assert SecAggConfig(**GOOD | {"min_cohort": 5}).min_survivors == 5
