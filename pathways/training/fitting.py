"""``fit``: train a generator into a run folder, resumable."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from pathways.files import check_fingerprint, replace_file
from pathways.generator import GenCNP
from pathways.generator.gen_cnp import FORMAT_VERSION
from pathways.target import GatedTarget
from pathways.training.config import TrainingConfig
from pathways.training.module import GeneratorTraining

CHECKPOINT = "last.ckpt"
GENERATOR = "generator.safetensors"
CONFIG = "training.json"


def fit(
    target: GatedTarget,
    images: Tensor,
    out: str | os.PathLike[str],
    config: TrainingConfig | None = None,
    *,
    validation: Tensor | None = None,
    blanks: Tensor | None = None,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[Any] = (),
    devices: int | str = 1,
) -> GenCNP:
    """Train a generator for a frozen target.

    Writes into ``out``: ``training.json`` (settings and fingerprint), ``last.ckpt`` (resumable),
    ``log/metrics.csv``, and at the end ``generator.safetensors``. Ctrl-C leaves ``last.ckpt``.

    Args:
        target (GatedTarget): the frozen classifier.
        images (Tensor[N, ...]): model inputs to train on, preprocessed.
        out (path): run folder; made if absent.
        config (TrainingConfig or None): settings; None takes the defaults.
        validation (Tensor[M, ...] or None): inputs for validation, early stopping and the log.
        blanks (Tensor[B, ...] or None): content-free inputs for the leak term.
        resume (bool): go on from ``last.ckpt`` if there is one.
        progress (bool): show a progress bar.
        callbacks (sequence of Lightning Callback): further callbacks.
        loggers (sequence of Lightning Logger): beside the CSV log, for example TensorBoardLogger.
        devices (int or str): Lightning's.

    Returns:
        GenCNP: the trained generator in eval mode.

    Raises:
        ValueError: fewer than two images, patience without validation, or, to resume from, a
            damaged checkpoint or one of another target; nothing is written then.
        KeyboardInterrupt: passed on after ``last.ckpt`` is written.
    """
    config = config or TrainingConfig()
    if len(images) < 2:
        raise ValueError(f"fit: images must hold at least 2 inputs, got {len(images)}")
    if config.patience is not None and validation is None:
        raise ValueError("fit: patience needs validation images, got none")
    out = Path(out)
    checkpoint = out / CHECKPOINT
    resume = resume and checkpoint.is_file()
    lightning.seed_everything(config.seed, verbose=False)
    module = GeneratorTraining(target, config, blanks)
    if resume:
        _check_checkpoint(checkpoint, module.fingerprint)
    out.mkdir(parents=True, exist_ok=True)
    with replace_file(out / CONFIG) as temporary:
        Path(temporary).write_text(
            json.dumps({"fingerprint": module.fingerprint, **config.to_json()}, indent=2) + "\n"
        )
    trainer = lightning.Trainer(
        max_steps=config.steps,
        accelerator="cpu" if target.device.type == "cpu" else "auto",
        devices=devices,
        logger=[CSVLogger(out, name="", version="log", flush_logs_every_n_steps=50), *loggers],
        log_every_n_steps=10,
        val_check_interval=config.validation_every if validation is not None else None,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_model_summary=False,
        callbacks=_callbacks(config, out, progress, callbacks),
        gradient_clip_val=1.0,
    )
    if resume:
        _keep_log(out)
    train_loader, validation_loader = _loaders(images, validation, config)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(
            module,
            train_loader,
            validation_loader,
            ckpt_path=str(checkpoint) if resume else None,
            weights_only=True if resume else None,
        )
    except (KeyboardInterrupt, SystemExit) as stop:
        # Lightning turns ctrl-C into SystemExit and leaves SIGINT ignored.
        signal.signal(signal.SIGINT, on_interrupt)
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    generator = module.generator.eval().cpu().to(target.device)
    if trainer.is_global_zero:
        generator.save(out / GENERATOR, module.fingerprint)
    return generator


def _loaders(
    images: Tensor, validation: Tensor | None, config: TrainingConfig
) -> tuple[DataLoader[Any], DataLoader[Any] | None]:
    train = DataLoader(
        TensorDataset(images),
        batch_size=min(config.batch_size, len(images)),
        shuffle=True,
        drop_last=True,
        generator=torch.Generator().manual_seed(config.seed),
    )
    if validation is None:
        return train, None
    return train, DataLoader(TensorDataset(validation), batch_size=config.batch_size)


class _SaveAtEnd(Callback):
    """Writes a checkpoint at the last step or at a ctrl-C, while there is a state to write."""

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        trainer.save_checkpoint(self.checkpoint)

    def on_exception(
        self, trainer: lightning.Trainer, module: lightning.LightningModule, error: BaseException
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            trainer.save_checkpoint(self.checkpoint)


def _check_checkpoint(path: Path, fingerprint: str) -> None:
    """Refuse a checkpoint before anything in the folder is touched."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["pathways"]
        fingerprint_there = found["fingerprint"]
    except Exception as error:  # unpickling fails in many ways
        raise ValueError(
            f"fit: {path} is damaged or not a checkpoint of pathways; remove it to start anew"
        ) from error
    check_fingerprint(path, fingerprint_there, fingerprint)
    if found.get("generator_format") != FORMAT_VERSION:
        raise ValueError(
            f"fit: {path} must hold a generator in format version {FORMAT_VERSION}, got one in "
            f"{found.get('generator_format', 'an older one')}; fit it anew without resuming"
        )


def _keep_log(out: Path) -> None:
    """Set the log so far aside, ``metrics.1.csv`` and so on: the logger starts a new file."""
    log = out / "log" / "metrics.csv"
    if log.is_file():
        earlier = len(list(log.parent.glob("metrics.*.csv")))
        log.rename(log.with_name(f"metrics.{earlier + 1}.csv"))


def _callbacks(
    config: TrainingConfig, out: Path, progress: bool, extra: Sequence[Callback]
) -> list[Callback]:
    callbacks: list[Callback] = [
        ModelCheckpoint(
            out,
            filename="last",
            every_n_train_steps=min(200, config.steps),
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        ),
        _SaveAtEnd(out / CHECKPOINT),
    ]
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=10))
    if config.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=config.patience))
    return [*callbacks, *extra]
