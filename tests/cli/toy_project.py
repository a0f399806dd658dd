"""A toy project on disk: a classifier, its weights, data, and a run trained on them."""

import json
import textwrap
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner, Result

from pathways.cli import app
from pathways.loading import load_target, save_weights
from pathways.preprocessing import Preprocessing
from pathways.training.classifier import train_classifier
from pathways.training.data import load_images

TOY = '''
import torch
from pathways.training.data import Images

def net():
    """A classifier of bright quarters; 24 channels at three sites."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return torch.nn.Sequential(
            torch.nn.Conv2d(1, 8, 3, padding=1), torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
            torch.nn.Linear(32, 8), torch.nn.ReLU(),
            torch.nn.Linear(8, 3),
        )

def random_net():
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)
    )

def broken():
    raise KeyError("no such thing")

def nothing():
    return 3

def linear():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))

def data(count=96):
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(count + 48, 1, 8, 8, generator=generator) * 90).to(torch.uint8)
    labels = torch.arange(count + 48) % 3
    for row, label in enumerate(labels.tolist()):
        top, left = 4 * (label // 2), 4 * (label % 2)
        images[row, :, top:top + 4, left:left + 4] += 150
    return Images(
        images[:count], labels[:count], images[count:], labels[count:], ("left", "right", "low")
    )

def other_data():
    images = data()
    return Images(images.train.expand(-1, 3, -1, -1), images.train_labels,
                  images.test.expand(-1, 3, -1, -1), images.test_labels, images.classes)
'''


@dataclass
class Project:
    """Paths of the toy project, and the program to run on it."""

    folder: Path
    run: Path

    @property
    def toy(self) -> str:
        return str(self.folder / "toy.py")

    def fit_arguments(self, out: Path, steps: int = 12) -> list[str]:
        return [
            "fit", "--out", str(out), "--target", f"{self.toy}:net",
            "--weights", str(self.folder / "net.safetensors"), "--data", f"{self.toy}:data",
            "--mean", "0.5", "--std", "0.5", "--steps", str(steps), "--batch-size", "16",
            "--set", 'generator={"width": 8, "min_keep": 0.1}', "--set", "validation_every=6",
        ]  # fmt: skip

    def call(self, *arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    def json(self, *arguments: object):
        """Standard output of a command that must succeed with --json."""
        result = self.call(*arguments, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)


def make_project(folder: Path) -> Project:
    """Write the project to a folder and train its run."""
    (folder / "toy.py").write_text(textwrap.dedent(TOY))
    model = load_target(f"{folder / 'toy.py'}:net")
    images = load_images(f"{folder / 'toy.py'}:data")
    train_classifier(
        model,
        images.train,
        images.train_labels,
        epochs=20,
        transform=Preprocessing((0.5,), (0.5,)),
        batch_size=16,
    )
    save_weights(model, folder / "net.safetensors")
    project = Project(folder, folder / "run")
    result = project.call(*project.fit_arguments(project.run))
    assert result.exit_code == 0, result.output
    return project
