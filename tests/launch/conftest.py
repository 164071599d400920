import pytest
from fake_cloud import Cloud, make_repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("checkout") / "xretrieval")


@pytest.fixture
def cloud(tmp_path, repository):
    made = Cloud(tmp_path / "cloud", repository)
    yield made
    made.end()


@pytest.fixture
def pod(cloud):
    """A cloud whose pod, two workers, is set up."""
    cloud.run("create")
    cloud.run("setup")
    cloud.forget_calls()
    return cloud
