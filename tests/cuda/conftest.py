import sys
from pathlib import Path

# The samples of every op are shared with the tests of the CPU ops.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ops"))
