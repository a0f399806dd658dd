import pytest
from export_nets import make_explainer


@pytest.fixture(scope="session")
def small():
    """One small explainer for what does not depend on the architecture."""
    return make_explainer("vgg")
