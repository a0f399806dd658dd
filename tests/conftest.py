import signal

import pytest
import torch

# A shell that runs the tests in the background makes them ignore ctrl-C, which some of them test.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tests share the machine with others; results must not depend on threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same random numbers, whatever ran before it."""
    torch.manual_seed(0)
