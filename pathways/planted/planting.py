"""``planted``: a net, its images, and the truth about both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pathways.pathway import Pathway
from pathways.planted.network import ROLES, Channel, build, layout
from pathways.planted.stimuli import SMALLEST, answers, choose_glyphs, draw_images
from pathways.target import GatedTarget
from pathways.training.data import Images


@dataclass(frozen=True)
class Planted:
    """A net whose class circuits are known, and images that it classifies by them.

    The circuit of class c is every channel that moves a logit on images of c: the shared edges, the
    chain of c, and its inhibition. Members of a cancelling pair count as one, and are in no
    circuit. D is the number of channels at all sites, flat in site order.

    Args:
        model (nn.Module): ``[N, 1, H, W]`` to logits ``[N, K + 1]``; the last class, "nothing",
            wins without evidence for another, so that an image without content belongs to no class.
        images (Images): training and test images in [0, 1], of the first K classes.
        truth (Tensor[K, D]): bool, circuit of every class.
        backup (Tensor[K, D]): bool, the circuit that works as well when the class's chain is
            replaced by its second copy; equal to ``truth`` where there is none.
        channels (tuple of Channel): role and owner of all D channels.
        glyphs (Tensor[2 K, 3, 3]): cells of the classes' glyphs, then of their companions'.

    Source: our choice, method section "recommended test oracles" (planted circuits).
    """

    model: nn.Sequential
    images: Images
    truth: Tensor
    backup: Tensor
    channels: tuple[Channel, ...]
    glyphs: Tensor

    @property
    def num_classes(self) -> int:
        """K, without "nothing"."""
        return len(self.truth)

    def target(self) -> GatedTarget:
        """The net with a gate at every channel of every site."""
        return GatedTarget(self.model, self.images.test[:1])

    def role(self, name: str, owner: int | None = None) -> Tensor:
        """Channels of a role, bool ``[D]``; of one class with ``owner``.

        Raises:
            ValueError: unknown role.
        """
        if name not in ROLES:
            raise ValueError(f"role must be among {', '.join(ROLES)}; got {name!r}")
        members = [c.role == name and owner in (None, c.owner) for c in self.channels]
        return torch.tensor(members)

    def role_masks(self) -> dict[str, Tensor]:
        """Channels of each role as class c sees them, bool ``[K, D]``.

        ``chain``, ``inhibitory``, ``backup``, ``companion`` and ``cancelling`` are those of class c
        alone, ``foreign`` are those of the other classes. Roles without any channel are left out.
        """
        owners = torch.tensor([channel.owner for channel in self.channels])
        own = owners == torch.arange(self.num_classes).unsqueeze(1)
        masks = {name: self.role(name) & (own | (owners < 0)) for name in ROLES}
        masks["foreign"] = (owners >= 0) & ~own
        return {name: mask for name, mask in masks.items() if mask.any()}

    def circuits(self, target: GatedTarget) -> Pathway:
        """The truth as pathways of :meth:`target`, one row per class."""
        return Pathway.from_mask(self.truth, target.sites, target.fingerprint)


def planted(
    num_classes: int = 4,
    *,
    chain: int = 2,
    depth: int = 4,
    dead: int = 2,
    backup: bool = False,
    size: int = 22,
    noise: float = 0.03,
    jitter: float = 0.05,
    companionship: float = 0.75,
    train: int = 800,
    test: int = 200,
    seed: int = 0,
) -> Planted:
    """Make a net with known circuits. Nothing is trained: all weights follow from the glyphs.

    Every class has a glyph. Edges, shared by all classes, feed a chain of channels per class: parts
    of the glyph, the whole of it, relays, and evidence for its logit, with inhibition of all other
    logits. Beside them are channels that look as important and are not, see :data:`ROLES`. An image
    shows the glyph of its class and another one, mostly the class's companion, whose chain ends
    nowhere.

    Args:
        num_classes (int): K, at least 2.
        chain (int): channels per class at every site between the first and the last, 1 to 4.
        depth (int): sites, at least 4.
        dead (int): dead channels at every site.
        backup (bool): give every class a second copy of its chain that takes over, without loss,
            when the first is gone.
        size (int): side of the images in pixels, even, at least 18.
        noise (float): standard deviation of the noise of pixels, in [0, 0.05].
        jitter (float): glyphs are fainter by up to this share of the contrast, in [0, 0.1].
        companionship (float): share of images in which the other glyph is the class's own
            companion; in the rest it is any companion. In [0, 1].
        train (int): training images; test (int): test images. Classes take turns.
        seed (int): of glyphs, order of channels and images.

    Returns:
        Planted: the same for the same arguments.

    Raises:
        ValueError: a value outside its range, or more classes than there are distinct glyphs.

    Example:
        >>> net = planted(3, train=6, test=6)
        >>> target = net.target()
        >>> target.num_classes, target.sites.sizes, net.truth.sum(1).tolist()
        (4, [8, 14, 14, 17], [10, 10, 10])
        >>> (target(net.images.test).argmax(1) == net.images.test_labels).all().item()
        True
        >>> alone = target.gated(net.images.test, net.truth[net.images.test_labels])
        >>> torch.allclose(alone, target(net.images.test), atol=1e-5)
        True
    """
    for name, value, least in (
        ("num_classes", num_classes, 2), ("depth", depth, 4), ("dead", dead, 0),
        ("train", train, 0), ("test", test, 1),
    ):  # fmt: skip
        if value < least:
            raise ValueError(f"planted: {name} must be at least {least}, got {value}")
    if not 1 <= chain <= 4:
        raise ValueError(f"planted: chain must be in [1, 4], got {chain}")
    if size < SMALLEST or size % 2:
        raise ValueError(f"planted: size must be even and at least {SMALLEST}, got {size}")
    # Beyond these, glyphs are no longer told apart without error.
    for name, share, most in (
        ("noise", noise, 0.05), ("jitter", jitter, 0.1), ("companionship", companionship, 1.0),
    ):  # fmt: skip
        if not 0 <= share <= most:
            raise ValueError(f"planted: {name} must be in [0, {most:g}], got {share:g}")
    glyphs = choose_glyphs(2 * num_classes, chain, seed)
    sites = layout(num_classes, chain, depth, dead, backup, seed)
    channels = tuple(channel for site in sites for channel in site)
    parts = [
        _labelled(glyphs, chain, count, size, noise, jitter, companionship, 2 * seed + part)
        for part, count in enumerate((train, test))
    ]
    names = (*(f"glyph {label}" for label in range(num_classes)), "nothing")
    truth, spare = _circuits(channels, num_classes, len(sites[0]) + len(sites[1]))
    return Planted(
        build(sites, glyphs, seed),
        Images(*parts[0], *parts[1], names),
        truth,
        spare if backup else truth.clone(),
        channels,
        glyphs,
    )


def _labelled(
    glyphs: Tensor,
    chain: int,
    count: int,
    size: int,
    noise: float,
    jitter: float,
    companionship: float,
    seed: int,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    num_classes = len(glyphs) // 2
    labels = torch.arange(count) % num_classes
    labels = labels[torch.randperm(count, generator=generator)]
    any_other = torch.randint(num_classes, (count,), generator=generator)
    own = torch.rand(count, generator=generator) < companionship
    companions = num_classes + torch.where(own, labels, any_other)
    images = torch.zeros(count, 1, size, size)
    open_rows = torch.arange(count)
    while len(open_rows):
        drawn = draw_images(
            glyphs, labels[open_rows], companions[open_rows],
            size=size, noise=noise, jitter=jitter, generator=generator,
        )  # fmt: skip
        images[open_rows] = drawn
        # Two glyphs can look like a third where they meet; the truth of such an image would be
        # another one.
        seen = answers(drawn, glyphs[:num_classes], chain)
        seen.scatter_(1, labels[open_rows].unsqueeze(1), 0.0)
        open_rows = open_rows[(seen > 0).any(1)]
    return images, labels


def _circuits(
    channels: tuple[Channel, ...], num_classes: int, before_copies: int
) -> tuple[Tensor, Tensor]:
    """Circuit of every class, and the one that runs through the second copy."""
    truth = torch.zeros(num_classes, len(channels), dtype=torch.bool)
    spare = truth.clone()
    for i, channel in enumerate(channels):
        if channel.role == "shared":
            truth[:, i] = spare[:, i] = True
        elif channel.role in ("chain", "inhibitory"):
            truth[channel.owner, i] = True
            # Both copies read the same parts.
            spare[channel.owner, i] = i < before_copies
        elif channel.role == "backup":
            spare[channel.owner, i] = True
    return truth, spare
