from collections.abc import Iterator

import pytest
from host_library import HostLibrary, build, compiler


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> HostLibrary:
    if compiler() is None:
        pytest.skip("no C++ compiler")
    return HostLibrary(build(tmp_path_factory.mktemp("host_cuda")))


@pytest.fixture(params=[0, 7], ids=["ascending", "shuffled"])
def order(request: pytest.FixtureRequest, kernels: HostLibrary) -> Iterator[int]:
    """Threads in two orders: a result that depends on it misses a barrier."""
    kernels.set_order(request.param)
    yield request.param
    kernels.set_order(0)
