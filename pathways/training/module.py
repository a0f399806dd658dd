"""The Lightning module that trains a generator for a frozen target."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor

from pathways.generator import GenCNP
from pathways.generator.gen_cnp import FORMAT_VERSION
from pathways.target import GatedTarget
from pathways.training import losses
from pathways.training.config import TrainingConfig


class GeneratorTraining(lightning.LightningModule):
    """Trains a :class:`pathways.GenCNP`; use it with your own Trainer, or call ``training.fit``.

    The objective is KL(f || f_m) + sparsity (warm-up) + auxiliary distillation + specificity
    (+ similarity within classes): see ``training.losses``. In training a share of the masks is
    larger than the generator has it (``larger_share``), a share of the inputs is run under the
    mask of another input of the same predicted class (``class_share``), and generators that read
    the logits are told those of another input in a share of the leak term (``told_share``);
    validation has every input's own as it is. Batches are ``images`` or ``(images, labels)`` of
    model inputs; labels are not used.

    Args:
        target (GatedTarget): the frozen classifier; not part of the checkpoints.
        config (TrainingConfig): settings.
        blanks (Tensor[B, ...] or None): content-free inputs (black, mean, white) mixed into the
            leak term beside noise; None uses noise alone.

    Logs ``kl`` (nats), ``kept`` (share of neurons), ``agreement`` (gated and clean prediction
    equal) and ``flip`` (an input takes the class of a foreign pathway, or that it was told) of the
    masks as they are applied, except ``kept``, which is the generator's own; with ``val_`` in front
    for validation, where ``val_loss`` is the objective at full weights.
    """

    def __init__(
        self, target: GatedTarget, config: TrainingConfig, blanks: Tensor | None = None
    ) -> None:
        super().__init__()
        # A GatedTarget is not a module: the frozen target stays out of checkpoints and optimisers.
        self.target = target
        self.config = config
        self.generator = GenCNP(target.sites, target.num_classes, **config.generator)
        self.register_buffer("blanks", blanks, persistent=False)
        self.kl_multiplier: Tensor
        self.register_buffer("kl_multiplier", torch.ones(()))
        self.fingerprint = target.fingerprint

    # ------------------------------------------------------------------ objective

    def objective(self, images: Tensor, sparsity_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and figures of one batch ``[N, ...]``."""
        config = self.config
        if images.dim() == 4:  # convolutions on the CPU and on tensor cores prefer this layout
            images = images.contiguous(memory_format=torch.channels_last)
        with self._target_precision():
            logits, summaries = self.target.features(images, reduce=self.generator.summary)
        logits, summaries = logits.float(), [summary.float() for summary in summaries]
        classes = logits.argmax(1)
        importance, auxiliary = self.generator.from_summaries(summaries, logits)
        mask = self.generator.masks(importance)
        applied = mask
        if self.training and config.larger_share > 0:
            applied = self._enlarged(mask, importance)

        # The leak term gates other inputs with these masks: one gated run over both halves.
        inputs, masks, rows = images, applied, len(images)
        if self.training and config.class_share > 0:
            masks = applied[self._donors(classes)]
        if self.training and config.mask_noise > 0:
            masks = masks + (1 - masks) * (torch.rand_like(mask) < config.mask_noise)
        if config.specificity > 0:
            told = self.training and self.generator.reads_logits and config.told_share > 0
            foreign, foreign_logits, other, seen = self._foreign_inputs(
                images, logits, classes, summaries if told else []
            )
            foreign_masks = applied[other]
            if told:
                foreign_masks = self._told(foreign_masks, seen, logits[other])
            inputs, masks = torch.cat([images, foreign]), torch.cat([masks, foreign_masks])
        with self._target_precision():
            gated = self.target.gated(inputs, masks).float()

        kl = losses.distillation(logits * config.sharpness, gated[:rows])
        kept = losses.sparsity(mask, self.generator.sizes, config.sparsity_mode)
        loss = kl * self.kl_multiplier + sparsity_weight * kept
        loss = loss + config.auxiliary * losses.distillation(logits, auxiliary)
        with torch.no_grad():
            figures = {
                "kl": losses.distillation(logits, gated[:rows]),
                "kept": mask.mean(),
                "agreement": (gated[:rows].argmax(1) == classes).float().mean(),
            }
        if config.specificity > 0:
            leak = losses.specificity(gated[rows:], foreign_logits, classes[other])
            loss = loss + config.specificity * leak
            with torch.no_grad():
                clean = foreign_logits.argmax(1) != classes[other]
                flipped = (gated[rows:].argmax(1) == classes[other]) & clean
                figures["flip"] = flipped.sum() / clean.sum().clamp_min(1)
                figures["leak"] = leak.detach()
        if config.class_similarity > 0:
            loss = loss + config.class_similarity * losses.class_similarity(importance, classes)
        return loss, figures

    def _enlarged(self, mask: Tensor, importance: Tensor) -> Tensor:
        """The masks, a share of them by the same ranking but with more neurons.

        Their size is random from the pathway's own upwards, closer to its own: there the order
        decides most. Scores of less than 1e-6, or as near to 1, count as equal.
        """
        chosen = torch.rand(len(mask), device=mask.device) < self.config.larger_share
        scores = importance[chosen]
        own = mask[chosen].detach().sum(1, keepdim=True)
        room = scores.size(1) - own
        size = (own + torch.rand_like(own).square() * room).long().clamp(1, scores.size(1))
        smallest = scores.detach().sort(1, descending=True)[0].gather(1, size - 1)
        # Scores moved until the smallest one to keep is just above where the quantiser switches.
        moved = torch.logit(scores, 1e-6) - torch.logit(smallest, 1e-6) + 1e-4
        larger = self.generator.masks(moved.sigmoid())
        enlarged = mask.clone()
        # None of its own is lost where scores are tied, or where gates are drawn anew.
        enlarged[chosen] = larger + (mask[chosen] - larger).clamp_min(0).detach()
        return enlarged

    def _donors(self, classes: Tensor) -> Tensor:
        """Whose mask (row) each input gets: its own, or for a share of them a classmate's."""
        rows = len(classes)
        own = torch.arange(rows, device=classes.device)
        scores = torch.rand(rows, rows, device=classes.device)
        scores.masked_fill_(classes.unsqueeze(0) != classes.unsqueeze(1), -1.0)
        scores.fill_diagonal_(-0.5)  # below every classmate, above every other class
        swapped = torch.rand(rows, device=classes.device) < self.config.class_share
        return torch.where(swapped, scores.argmax(1), own)

    def _foreign_inputs(
        self, images: Tensor, logits: Tensor, classes: Tensor, summaries: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Inputs for the leak term, their clean logits, and whose mask (row) each of them gets.

        Input i meets the mask of a randomly chosen row of another predicted class; a share of the
        inputs is replaced by blank or noise images, on which no mask may produce a class. Given the
        images' summaries, last come those of the inputs.
        """
        rows = len(images)
        # Random scores, with -1 for rows of the same class: the arg-maximum is a random other row.
        scores = torch.rand(rows, rows, device=images.device)
        if self.config.hard_negatives > 0:
            second = logits.scatter(1, classes.unsqueeze(1), -torch.inf).argmax(1)
            hard = torch.rand(rows, 1, device=images.device) < self.config.hard_negatives
            scores += hard & (second.unsqueeze(1) == classes.unsqueeze(0))
        scores.masked_fill_(classes.unsqueeze(0) == classes.unsqueeze(1), -1.0)
        best, other = scores.max(1)
        keep = best >= 0  # a batch of a single class has no foreign masks
        foreign, reference, seen = images[keep], logits[keep], [part[keep] for part in summaries]
        other = other[keep]
        blank = int(self.config.blank_share * len(other))
        mixed = int(self.config.mixed_share * len(other))
        count = blank + mixed
        if count > 0:
            partners = torch.randint(rows, (mixed,), device=images.device)
            mixtures = (foreign[:mixed] + images[partners]) / 2
            made = torch.cat([mixtures, self._content_free(images, blank)])
            with self._target_precision():
                if seen:
                    made_logits, found = self.target.features(made, reduce=self.generator.summary)
                    pairs = zip(seen, found, strict=True)
                    seen = [torch.cat([part[:-count], own.float()]) for part, own in pairs]
                else:
                    made_logits = self.target(made)
            foreign = torch.cat([foreign[:-count], made])
            reference = torch.cat([reference[:-count], made_logits.float()])
        return foreign, reference, other, seen

    def _told(self, masks: Tensor, summaries: list[Tensor], logits: Tensor) -> Tensor:
        """The masks, a share of them anew from the inputs' own features and these logits."""
        chosen = torch.rand(len(masks), device=masks.device) < self.config.told_share
        rows = chosen.nonzero().squeeze(1)
        training = self.generator.embedders.training
        self.generator.embedders.eval()  # statistics stay those of images
        importance, _ = self.generator.from_summaries(
            [part[rows] for part in summaries], logits[rows]
        )
        self.generator.embedders.train(training)
        told = masks.clone()
        told[rows] = self.generator.masks(importance)
        return told

    def _content_free(self, images: Tensor, count: int) -> Tensor:
        """``count`` inputs without content: blanks, Gaussian noise, images with shuffled pixels."""
        noise = torch.randn(count, *images.shape[1:], device=images.device, dtype=images.dtype)
        noise = noise * images.std() + images.mean()
        if images.dim() == 4:
            half = count // 2
            flat = images[:half].flatten(2)
            order = torch.randperm(flat.shape[2], device=images.device)
            noise[:half] = flat[:, :, order].view_as(images[:half])
        blanks = self.blanks
        if isinstance(blanks, Tensor) and len(blanks):
            chosen = torch.rand(count, device=images.device) < 0.5
            picks = torch.randint(len(blanks), (count,), device=images.device)
            shape = [-1] + [1] * (images.dim() - 1)
            noise = torch.where(chosen.view(shape), blanks[picks].to(noise.dtype), noise)
        return noise

    def _target_precision(self) -> torch.autocast:
        enabled = self.config.target_bfloat16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def sparsity_weight(self, step: int) -> float:
        """Weight of the kept share at an optimiser step: linear warm-up, then constant."""
        warmup = self.config.sparsity_warmup * self.config.steps
        return self.config.sparsity * (min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0)

    # ------------------------------------------------------------------ Lightning

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        images = _images(batch)
        loss, figures = self.objective(images, self.sparsity_weight(self.global_step))
        if self.config.kl_limit is not None:
            # Dual ascent in the logarithm keeps the multiplier positive.
            excess = (figures["kl"] / self.config.kl_limit - 1).clamp(-1.0, 1.0)
            multiplier = self.kl_multiplier * torch.exp(self.config.kl_rate * excess)
            self.kl_multiplier = multiplier.clamp(1e-2, 1e3)
            figures["kl_multiplier"] = self.kl_multiplier
        self._log(figures | {"loss": loss.detach()}, "", len(images))
        return loss

    def validation_step(self, batch: Any, batch_index: int) -> None:
        images = _images(batch)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.config.seed + batch_index)
            loss, figures = self.objective(images, self.config.sparsity)
        self._log(figures | {"loss": loss}, "val_", len(images))

    def _log(self, figures: dict[str, Tensor], prefix: str, batch_size: int) -> None:
        for name, value in figures.items():
            self.log(
                prefix + name,
                value,
                prog_bar=name in ("kl", "kept", "agreement", "flip"),
                on_step=not prefix,
                on_epoch=bool(prefix),
                batch_size=batch_size,
                sync_dist=bool(prefix),
            )

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.generator.parameters(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )
        # Not ten: OneCycleLR divides by zero where its warm-up is a single step.
        total = max(self.config.steps, 11)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.config.learning_rate, total_steps=total, pct_start=0.1
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_fit_start(self) -> None:
        self.target.model.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["pathways"] = {
            "fingerprint": self.fingerprint,
            "config": self.config.to_json(),
            "generator_format": FORMAT_VERSION,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        found = checkpoint.get("pathways", {}).get("fingerprint")
        if found != self.fingerprint:
            raise ValueError(
                "GeneratorTraining: the checkpoint must belong to the target with fingerprint "
                f"{self.fingerprint[:16]}, got one of {str(found)[:16]}"
            )
        # Where the schedule stands, not how long it was meant to be: a resumed run may be longer.
        for schedule in checkpoint.get("lr_schedulers", []):
            for name in set(schedule) - {"last_epoch", "_step_count", "_last_lr"}:
                del schedule[name]


def _images(batch: Any) -> Tensor:
    images: Tensor = batch if isinstance(batch, Tensor) else batch[0]
    return images
