import pytest
from fake_cloud import Cloud, make_repository


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("checkout") / "xretrieval")


@pytest.fixture(scope="session")
def active_pod(tmp_path_factory, repository):
    made = Cloud(tmp_path_factory.mktemp("active") / "cloud", repository)
    made.run("create")
    made.forget_calls()
    return made


@pytest.fixture(scope="session")
def installed_pod(tmp_path_factory, active_pod):
    made = Cloud(tmp_path_factory.mktemp("installed") / "cloud", active_pod.repository, active_pod)
    made.run("setup")
    made.forget_calls()
    return made


@pytest.fixture
def cloud(tmp_path, repository):
    """A cloud with nothing in it."""
    made = Cloud(tmp_path / "cloud", repository)
    yield made
    made.end()


@pytest.fixture
def created(tmp_path, active_pod):
    """A cloud with a pod of two workers, nothing on them."""
    made = Cloud(tmp_path / "cloud", active_pod.repository, active_pod)
    yield made
    made.end()


@pytest.fixture
def pod(tmp_path, installed_pod):
    """A cloud whose pod, two workers, is set up."""
    made = Cloud(tmp_path / "cloud", installed_pod.repository, installed_pod)
    yield made
    made.end()
