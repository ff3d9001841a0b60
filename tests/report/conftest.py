import pytest
from report_samples import sample


@pytest.fixture
def report():
    return sample()


@pytest.fixture(name="sample")
def make_sample():
    return sample
