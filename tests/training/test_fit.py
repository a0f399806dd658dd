"""fit: what it writes, resuming, ctrl-C, early stop, the constraint form, refusals."""

import csv
import json
import math
import os
import signal
import subprocess
import sys

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback

import pathways.training
from pathways import GatedTarget, GenCNP
from pathways.training import GeneratorTraining, TrainingConfig
from pathways.training.fitting import CHECKPOINT, CONFIG, GENERATOR, fit

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*You're resuming from a checkpoint"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
]


def settings(**changes):
    generator = {"width": 8, "heads": 2, "min_keep": 0.05}
    return TrainingConfig(
        **{"steps": 12, "batch_size": 16, "validation_every": 4, "generator": generator, **changes}
    )


class Steps(Callback):
    """Records the global step at every batch; optionally does something at one of them."""

    def __init__(self, at=None, then=None):
        self.seen = []
        self.at, self.then = at, then

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        self.seen.append(trainer.global_step)
        if trainer.global_step == self.at:
            self.then()


def interrupt():
    raise KeyboardInterrupt


def checkpoint(out):
    return torch.load(out / CHECKPOINT, weights_only=True)


def rows(out, name="metrics.csv"):
    with open(out / "log" / name) as file:
        return list(csv.DictReader(file))


def test_fit_writes_a_run(planted, tmp_path):
    x, _ = planted.images(64)
    out = tmp_path / "runs" / "one"
    config = settings(steps=20)
    found = [parameter.requires_grad for parameter in planted.target.model.parameters()]
    generator = fit(
        planted.target, x, out, config, validation=x[:20], progress=False, callbacks=[Steps()]
    )
    assert isinstance(generator, GenCNP)
    assert not generator.training
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [CHECKPOINT, CONFIG, GENERATOR, "log"]
    )
    recorded = json.loads((out / CONFIG).read_text())
    assert recorded.pop("fingerprint") == planted.target.fingerprint
    assert TrainingConfig.from_json(recorded) == config
    loaded = GenCNP.load(out / GENERATOR, planted.target)
    logits, features = planted.target.features(x)
    with torch.no_grad():
        assert torch.equal(loaded(features, logits)[0], generator(features, logits)[0])
    assert checkpoint(out)["global_step"] == 20
    names = set(rows(out)[0])
    figures = {"kl", "kept", "agreement", "flip", "leak", "loss"}
    assert figures | {f"val_{name}" for name in figures} | {"step"} <= names
    validated = [int(row["step"]) for row in rows(out) if row["val_loss"]]
    assert validated == [3, 7, 11, 15, 19]
    assert [parameter.requires_grad for parameter in planted.target.model.parameters()] == found
    assert all(parameter.grad is None for parameter in planted.target.model.parameters())
    assert all(not module._forward_hooks for module in planted.target.model.modules())


def test_fit_of_the_package_is_the_function(planted, tmp_path):
    x, _ = planted.images(32)
    assert pathways.training.fit is fit
    pathways.training.fit(planted.target, x, tmp_path, settings(steps=1), progress=False)
    assert (tmp_path / GENERATOR).is_file()
    with pytest.raises(AttributeError, match="has no attribute 'fitt'"):
        _ = pathways.training.fitt


def test_equal_seeds_give_equal_generators(planted, tmp_path):
    x, _ = planted.images(64)
    results = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(5)  # the state before must not matter
        generator = fit(planted.target, x, tmp_path / name, settings(seed=seed), progress=False)
        results.append(torch.cat([p.flatten() for p in generator.parameters()]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_resume_goes_on(planted, tmp_path):
    x, _ = planted.images(64)
    with pytest.raises(KeyboardInterrupt):
        fit(
            planted.target, x, tmp_path, settings(), progress=False,
            callbacks=[Steps(at=5, then=interrupt)],
        )  # fmt: skip
    assert checkpoint(tmp_path)["global_step"] == 5
    assert not (tmp_path / GENERATOR).exists()
    state = checkpoint(tmp_path)["state_dict"]
    steps = Steps()

    class Loaded(Callback):
        def on_train_start(self, trainer, module):
            for name, value in module.state_dict().items():
                assert torch.equal(value, state[name]), name

    fit(
        planted.target, x, tmp_path, settings(), progress=False, resume=True,
        callbacks=[steps, Loaded()],
    )  # fmt: skip
    assert steps.seen == list(range(6, 13))
    assert checkpoint(tmp_path)["global_step"] == 12
    assert (tmp_path / GENERATOR).is_file()


def test_resume_of_a_finished_run_changes_nothing(planted, tmp_path):
    x, _ = planted.images(64)
    first = fit(planted.target, x, tmp_path, settings(), progress=False)
    steps = Steps()
    again = fit(
        planted.target, x, tmp_path, settings(), progress=False, resume=True, callbacks=[steps]
    )
    assert steps.seen == []
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_resume_with_more_steps_goes_further(planted, tmp_path):
    """The schedule of learning rates is that of the longer run."""
    x, _ = planted.images(64)
    fit(planted.target, x, tmp_path, settings(steps=6), progress=False)
    steps, rates = Steps(), []

    class Rates(Callback):
        def on_train_batch_end(self, trainer, *_):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    fit(
        planted.target, x, tmp_path, settings(steps=12), progress=False, resume=True,
        callbacks=[steps, Rates()],
    )  # fmt: skip
    assert steps.seen == list(range(7, 13))
    whole = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(whole, 2e-3, total_steps=12, pct_start=0.1)
    expected = []
    for _ in range(11):
        whole.step()
        schedule.step()
        expected.append(schedule.get_last_lr()[0])
    assert rates[:5] == pytest.approx(expected[6:])


def test_resume_without_a_checkpoint_starts(planted, tmp_path):
    x, _ = planted.images(64)
    steps = Steps()
    fit(
        planted.target, x, tmp_path, settings(steps=2), resume=True, progress=False,
        callbacks=[steps],
    )  # fmt: skip
    assert steps.seen == [1, 2]


def test_resume_keeps_the_earlier_log(planted, tmp_path):
    x, _ = planted.images(64)
    with pytest.raises(KeyboardInterrupt):
        fit(
            planted.target, x, tmp_path, settings(steps=30), progress=False,
            callbacks=[Steps(at=15, then=interrupt)],
        )  # fmt: skip
    before = rows(tmp_path)
    assert [row["step"] for row in before] == ["9"]
    fit(planted.target, x, tmp_path, settings(steps=30), progress=False, resume=True)
    assert rows(tmp_path, "metrics.1.csv") == before
    assert [row["step"] for row in rows(tmp_path)] == ["19", "29"]


def test_ctrl_c_restores_the_handler(planted, tmp_path):
    x, _ = planted.images(64)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(
            planted.target, x, tmp_path, settings(), progress=False,
            callbacks=[Steps(at=2, then=lambda: os.kill(os.getpid(), signal.SIGINT))],
        )  # fmt: skip
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint(tmp_path)["global_step"] == 2


def test_an_error_while_training_is_passed_on(planted, tmp_path):
    x, _ = planted.images(64)

    def fail():
        raise ArithmeticError("on purpose")

    with pytest.raises(ArithmeticError, match="on purpose"):
        fit(
            planted.target, x, tmp_path, settings(), progress=False,
            callbacks=[Steps(at=2, then=fail)],
        )  # fmt: skip
    assert not (tmp_path / GENERATOR).exists()
    assert all(module.training for module in planted.target.model.modules())


# --------------------------------------------------------- refusals


def test_checkpoint_of_another_target(planted, tmp_path):
    x, _ = planted.images(64)
    fit(planted.target, x, tmp_path, settings(steps=10), progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    fingerprint = planted.target.fingerprint
    with torch.no_grad():
        planted.target.model[0].weight[0, 0] += 1
    with pytest.raises(ValueError, match="was made for another target") as error:
        fit(planted.target, x, tmp_path, settings(steps=14), progress=False, resume=True)
    assert fingerprint in str(error.value)
    assert planted.target.fingerprint in str(error.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    assert (tmp_path / "log" / "metrics.csv").is_file()


def test_checkpoint_of_another_target_with_an_own_trainer(planted, tmp_path):
    x, _ = planted.images(64)
    fit(planted.target, x, tmp_path, settings(steps=2), progress=False)
    with torch.no_grad():
        planted.target.model[0].weight[0, 0] += 1
    module = GeneratorTraining(planted.target, settings(steps=4))
    trainer = lightning.Trainer(
        max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu",
    )  # fmt: skip
    loader = torch.utils.data.DataLoader(x, batch_size=16)
    with pytest.raises(ValueError, match="must belong to the target with fingerprint"):
        trainer.fit(module, loader, ckpt_path=str(tmp_path / CHECKPOINT), weights_only=True)


def test_checkpoint_of_a_generator_with_other_layers(planted, tmp_path):
    x, _ = planted.images(64)
    fit(planted.target, x, tmp_path, settings(steps=4), progress=False)
    path = tmp_path / CHECKPOINT
    for version, told in ((2, "got one in 2"), (None, "got one in an older one")):
        contents = torch.load(path, weights_only=True)
        contents["pathways"]["generator_format"] = version
        if version is None:
            del contents["pathways"]["generator_format"]
        torch.save(contents, path)
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        with pytest.raises(ValueError, match=f"in format version 3, {told}; fit it anew"):
            fit(planted.target, x, tmp_path, settings(steps=6), progress=False, resume=True)
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before


@pytest.mark.parametrize("kind", ["text", "truncated", "foreign"])
def test_damaged_checkpoint(planted, tmp_path, kind):
    x, _ = planted.images(64)
    path = tmp_path / CHECKPOINT
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "foreign":
        torch.save({"state_dict": {}}, path)
    else:
        fit(planted.target, x, tmp_path, settings(steps=2), progress=False)
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged or not a checkpoint of pathways"):
        fit(planted.target, x, tmp_path, settings(), progress=False, resume=True)


def test_arguments(planted, tmp_path):
    x, _ = planted.images(64)
    out = tmp_path / "new"
    with pytest.raises(ValueError, match="images must hold at least 2 inputs, got 1"):
        fit(planted.target, x[:1], out)
    with pytest.raises(ValueError, match="patience needs validation images, got none"):
        fit(planted.target, x, out, settings(patience=2))
    assert not out.exists()


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20])
def test_any_number_of_steps_has_a_schedule(planted, steps):
    module = GeneratorTraining(planted.target, settings(steps=steps))
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    for step in range(steps):
        assert 0 < schedule.get_last_lr()[0] <= module.config.learning_rate
        optimizer.step()
        if step < steps - 1:
            schedule.step()


def test_fewer_images_than_a_batch(planted, tmp_path):
    x, _ = planted.images(5)
    steps = Steps()
    fit(planted.target, x, tmp_path, settings(steps=3), progress=False, callbacks=[steps])
    assert steps.seen == [1, 2, 3]


# --------------------------------------------------------- early stop, constraint, own trainer


def test_early_stop(planted, tmp_path):
    """Where the objective at full weights gets no better, training ends."""
    x, _ = planted.images(64)
    config = settings(steps=200, validation_every=2, patience=2, learning_rate=1e-12)
    steps = Steps()
    fit(planted.target, x, tmp_path, config, validation=x[:32], progress=False, callbacks=[steps])
    assert steps.seen[-1] < 100
    assert steps.seen[-1] % 2 == 0
    assert checkpoint(tmp_path)["global_step"] == steps.seen[-1]
    assert (tmp_path / GENERATOR).is_file()
    losses = [float(row["val_loss"]) for row in rows(tmp_path) if row["val_loss"]]
    assert losses.index(min(losses)) == len(losses) - 3


@pytest.mark.parametrize("kl, direction", [(1.0, 1), (0.0, -1)])
def test_constraint_form_moves_its_multiplier(planted, tmp_path, monkeypatch, kl, direction):
    objective = GeneratorTraining.objective

    def with_kl(self, images, weight):
        loss, figures = objective(self, images, weight)
        return loss, figures | {"kl": torch.tensor(kl)}

    monkeypatch.setattr(GeneratorTraining, "objective", with_kl)
    x, _ = planted.images(64)
    fit(planted.target, x, tmp_path, settings(kl_limit=0.1, kl_rate=0.1), progress=False)
    multiplier = checkpoint(tmp_path)["state_dict"]["kl_multiplier"].item()
    # The excess is clipped to [-1, 1], so that every step moves by the whole rate.
    assert multiplier == pytest.approx(math.exp(direction * 0.1 * 12), rel=1e-4)
    logged = float(rows(tmp_path)[-1]["kl_multiplier"])
    assert logged == pytest.approx(math.exp(direction * 0.1 * 10), rel=1e-4)


def test_multiplier_weighs_the_kl(planted):
    x, _ = planted.images(32)
    module = GeneratorTraining(planted.target, settings(kl_limit=0.1, specificity=0.0)).eval()
    mask = torch.ones(32, 30)
    mask[:, ::2] = 0
    module.generator.masks = lambda importance: mask
    one, figures = module.objective(x, 0.0)
    module.kl_multiplier.fill_(3.0)
    three, _ = module.objective(x, 0.0)
    assert figures["kl"] > 0.1
    torch.testing.assert_close(three - one, 2 * figures["kl"])


def test_multiplier_stays_without_a_limit(planted, tmp_path):
    x, _ = planted.images(64)
    fit(planted.target, x, tmp_path, settings(), progress=False)
    assert checkpoint(tmp_path)["state_dict"]["kl_multiplier"].item() == 1


def test_own_trainer_and_labelled_batches(planted, tmp_path):
    x, labels = planted.images(64)
    module = GeneratorTraining(planted.target, settings(steps=5))
    trainer = lightning.Trainer(
        max_steps=5, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    data = torch.utils.data.TensorDataset(x, labels)
    trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=16))
    assert trainer.global_step == 5
    assert {"kl", "kept", "agreement", "flip"} <= set(trainer.callback_metrics)


def test_progress_bar_shows_the_figures_that_matter(planted, tmp_path, capsys):
    x, _ = planted.images(64)
    fit(planted.target, x, tmp_path, settings(steps=4), progress=True)
    shown = capsys.readouterr()
    for name in ("kl", "kept", "agreement", "flip"):
        assert f"{name}=" in shown.out + shown.err


def test_further_loggers(planted, tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    x, _ = planted.images(64)
    logger = CSVLogger(tmp_path / "more", name="", version="x")
    fit(planted.target, x, tmp_path / "run", settings(), progress=False, loggers=[logger])
    assert (tmp_path / "more" / "x" / "metrics.csv").is_file()


def test_images_with_units(tmp_path):
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(inplace=True), torch.nn.Flatten(),
        torch.nn.Linear(48, 3),
    )  # fmt: skip
    x = torch.randn(32, 1, 6, 6)
    target = GatedTarget(net, x[:2], granularity="unit")
    blanks = torch.zeros(1, 1, 6, 6)
    generator = fit(target, x, tmp_path, settings(steps=3), blanks=blanks, progress=False)
    assert generator.sites.sizes == [48]


def test_settings_and_data_need_no_lightning():
    code = (
        "import sys; sys.modules['lightning'] = None\n"
        "import pathways.training, pathways.training.data, pathways.training.losses\n"
        "pathways.training.TrainingConfig()\n"
        "try:\n"
        "    pathways.training.fit\n"
        "except ModuleNotFoundError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert "pathways.training.fit needs Lightning; pip install 'pathways[train]'" in result.stdout
