"""GeneratorTraining: the objective, its figures, the leak term's inputs, planted circuits."""

import pytest
import torch
from torch import nn

from pathways import ClassPathways, Explainer, GatedTarget
from pathways.training import GeneratorTraining, TrainingConfig, losses

TINY = {"width": 8, "heads": 2, "min_keep": 0.05}


def make_module(target, blanks=None, **settings):
    return GeneratorTraining(target, TrainingConfig(**{"generator": TINY} | settings), blanks)


def train(module, images, steps):
    """The optimiser steps of a run, without the machinery around them."""
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    history = []
    module.train()
    for step in range(steps):
        batch = images[torch.randint(len(images), (module.config.batch_size,))]
        loss, figures = module.objective(batch, module.sparsity_weight(step))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.generator.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        history.append({**figures, "loss": loss.detach()})
    return history


def test_objective_is_the_sum_of_its_terms(planted):
    x, _ = planted.images(32)
    module = make_module(
        planted.target, specificity=0.0, class_similarity=0.5, auxiliary=0.25, sparsity_mode="site"
    ).eval()
    loss, figures = module.objective(x, 3.0)
    logits, features = planted.target.features(x)
    importance, auxiliary = module.generator(features, logits)
    mask = module.generator.masks(importance)
    gated = planted.target.gated(x, mask)
    expected = (
        losses.distillation(logits, gated)
        + 3.0 * losses.sparsity(mask, planted.target.sites.sizes)
        + 0.25 * losses.distillation(logits, auxiliary)
        + 0.5 * losses.class_similarity(importance, logits.argmax(1))
    )
    torch.testing.assert_close(loss, expected)
    assert set(figures) == {"kl", "kept", "agreement"}
    assert figures["kept"] == mask.mean()
    assert figures["agreement"] == (gated.argmax(1) == logits.argmax(1)).float().mean()
    torch.testing.assert_close(figures["kl"], losses.distillation(logits, gated))
    assert not any(figure.requires_grad for figure in figures.values())


def test_sharpness_is_in_the_loss_alone(planted):
    x, _ = planted.images(32)
    settings = {"specificity": 0.0, "auxiliary": 0.0, "class_share": 0.0}
    plain = make_module(planted.target, **settings)
    sharp = make_module(planted.target, **settings, sharpness=2.0)
    sharp.generator.load_state_dict(plain.generator.state_dict())
    loss, figures = sharp.objective(x, 0.0)
    assert figures["kl"].item() == plain.objective(x, 0.0)[1]["kl"].item()
    logits = planted.target(x)
    # All gates are open before training, so the gated logits are the target's own.
    torch.testing.assert_close(loss, losses.distillation(2 * logits, logits))
    assert loss > figures["kl"] + 1e-3


def test_an_open_generator_has_no_kl_and_no_leak(planted):
    x, _ = planted.images(32)
    loss, figures = make_module(planted.target, specificity=2.0, auxiliary=0.0).objective(x, 0.5)
    assert figures["kept"] == 1
    assert figures["agreement"] == 1
    assert figures["kl"].item() == pytest.approx(0, abs=1e-6)
    assert figures["leak"].item() == pytest.approx(0, abs=1e-6)
    assert figures["flip"] == 0
    assert loss.item() == pytest.approx(0.5, abs=1e-5)


def test_leak_of_masks_that_decide(planted, monkeypatch):
    """Masks that switch the background off and one class on, whatever the input."""
    net = nn.Sequential(nn.Linear(15, 3), nn.Softplus(), nn.Linear(3, 3), nn.ReLU())
    with torch.no_grad():
        net[2].weight.copy_(torch.eye(3) * 10)
        net[2].bias.fill_(5.0)
    target = GatedTarget(net, torch.zeros(2, 15))
    x = torch.randn(64, 15)
    module = make_module(target, specificity=1.0, auxiliary=0.0, blank_share=0.5)
    classes = target(x).argmax(1)
    assert len(classes.unique()) > 1
    monkeypatch.setattr(
        module.generator, "masks", lambda importance: nn.functional.one_hot(classes, 3).float()
    )
    _, figures = module.objective(x, 0.0)
    assert figures["flip"] == 1
    assert figures["leak"] > 1
    assert figures["agreement"] == 1


def foreign_of(module, images, logits, labels):
    """Foreign inputs, their clean logits, and whose mask each gets; summaries are of the inputs."""
    _, summaries = module.target.features(images, reduce=module.generator.summary)
    foreign, reference, other, seen = module._foreign_inputs(images, logits, labels, summaries)
    _, wanted = module.target.features(foreign, reduce=module.generator.summary)
    for found, expected in zip(seen, wanted, strict=True):
        torch.testing.assert_close(found, expected)
    return foreign, reference, other


def test_foreign_inputs_meet_masks_of_other_classes(planted):
    x, labels = planted.images(50)
    module = make_module(planted.target, blank_share=0.0)
    logits = planted.target(x)
    for _ in range(5):
        foreign, reference, other = foreign_of(module, x, logits, labels)
        assert torch.equal(foreign, x)
        assert torch.equal(reference, logits)
        assert (labels[other] != labels).all()
    assert len(other.unique()) > 10


def test_a_share_of_the_foreign_inputs_is_content_free(planted):
    x, labels = planted.images(40)
    module = make_module(planted.target, blank_share=0.25)
    foreign, reference, other = foreign_of(module, x, planted.target(x), labels)
    assert len(foreign) == len(other) == 40
    changed = (foreign != x).any(1)
    assert changed.tolist() == [False] * 30 + [True] * 10
    torch.testing.assert_close(reference, planted.target(foreign))
    everything = make_module(planted.target, blank_share=1.0)
    foreign, _, _ = foreign_of(everything, x, planted.target(x), labels)
    assert (foreign != x).any(1).all()


def test_a_share_of_the_foreign_inputs_is_mixed(planted):
    x, labels = planted.images(40)
    module = make_module(planted.target, blank_share=0.25, mixed_share=0.5)
    foreign, reference, other = foreign_of(module, x, planted.target(x), labels)
    assert torch.equal(foreign[:10], x[:10])
    assert len(foreign) == len(other) == 40
    # Twice a mixture less its first half is an input of the batch.
    partners = 2 * foreign[10:30] - x[:20]
    distances = (partners.unsqueeze(1) - x).abs().amax(2)
    assert (distances.amin(1) < 1e-5).all()
    assert len(distances.argmin(1).unique()) > 5  # of all of it, not the first half itself
    assert (foreign[10:30] != x[:20]).any(1).sum() > 10
    torch.testing.assert_close(reference, planted.target(foreign))


def test_hard_negatives_are_the_second_most_likely_class(planted):
    x, labels = planted.images(60)
    logits = torch.randn(60, 4)  # the planted net's second class is always the same
    labels = logits.argmax(1)
    second = logits.scatter(1, labels.unsqueeze(1), -torch.inf).argmax(1)
    hard = make_module(planted.target, blank_share=0.0, hard_negatives=1.0)
    _, _, other = foreign_of(hard, x, logits, labels)
    there = torch.isin(second, labels)
    assert there.any()
    assert torch.equal(labels[other][there], second[there])
    assert (labels[other] != labels).all()
    some = make_module(planted.target, blank_share=0.0, hard_negatives=0.0)
    _, _, other = foreign_of(some, x, logits, labels)
    assert not torch.equal(labels[other][there], second[there])


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_told_masks_are_of_the_inputs_own_features(planted, monkeypatch, share):
    """Those of a share of the foreign inputs, told the logits of whose mask they replace."""
    x, _ = planted.images(40)
    settings = {"blank_share": 0.25, "told_share": share}
    module = make_module(planted.target, generator=TINY | {"reads_logits": True}, **settings)
    calls, gated, foreign = [], [], []
    read, gate, meet = module.generator.from_summaries, module.target.gated, module._foreign_inputs
    module.generator.from_summaries = lambda summaries, logits: (
        calls.append((summaries, logits, module.generator.embedders.training)),
        read(summaries, logits),
    )[1]
    monkeypatch.setattr(
        module.target, "gated", lambda *inputs: (gated.append(inputs), gate(*inputs))[1]
    )
    module._foreign_inputs = lambda *known: (foreign.append(meet(*known)), foreign[-1])[1]
    module.train()
    module.objective(x, 1.0)
    (_, logits, training), *told = calls
    assert training and module.generator.embedders.training
    if share == 0:
        assert not told
        return
    ((_, said, training),) = told
    assert not training  # statistics are those of images
    ((inputs, masks),), ((_, _, other, _),) = gated, foreign
    module.generator.embedders.eval()
    _, seen = module.target.features(inputs[40:], reduce=module.generator.summary)
    expected = module.generator.masks(read(seen, logits[other])[0])
    module.generator.embedders.train()
    chosen = (masks[40:] == expected).all(1)
    assert chosen.all() if share == 1 else 5 < len(said) < 35
    kept = module.generator.masks(read(*calls[0][:2])[0])[other]
    assert ((masks[40:] == kept).all(1) | chosen).all()
    assert len(said) <= chosen.sum()
    assert torch.isin(said.argmax(1), logits[other].argmax(1)).all()


def test_told_masks_learn(planted):
    """The leak term has a gradient through them."""
    x, _ = planted.images(40)
    generator = TINY | {"reads_logits": True, "start": 0.0}
    module = make_module(planted.target, generator=generator, told_share=1.0).train()
    told, gradients = module._told, []
    for made in (told, lambda *known: told(*known).detach()):
        module._told = made
        torch.manual_seed(5)
        loss, _ = module.objective(x, 0.0)
        gradients.append(torch.autograd.grad(loss, module.generator.distillation.reading.weight)[0])
    assert not torch.equal(*gradients)
    assert (gradients[1] - gradients[0]).abs().max() > 0.01 * gradients[0].abs().max()


def test_validation_tells_nothing(planted, monkeypatch):
    x, _ = planted.images(40)
    generator = TINY | {"reads_logits": True}
    module = make_module(planted.target, generator=generator, told_share=1.0).eval()
    monkeypatch.setattr(module, "_told", None)  # not called
    module.objective(x, 1.0)


def test_told_masks_change_nothing_where_logits_are_not_read(planted):
    x, _ = planted.images(40)
    losses = []
    for share in (0.0, 1.0):
        torch.manual_seed(3)
        module = make_module(planted.target, told_share=share).train()
        losses.append(module.objective(x, 1.0)[0])
    assert torch.equal(*losses)


def test_mask_noise_only_adds_neurons(planted, monkeypatch):
    x, _ = planted.images(20)
    module = make_module(planted.target, specificity=1.0, mask_noise=0.5, blank_share=0.0)
    seen = []
    gated = planted.target.gated

    def spy(images, masks):
        seen.append(masks.detach())
        return gated(images, masks)

    half = torch.zeros(20, planted.target.sites.num_neurons)
    half[:, ::2] = 1
    monkeypatch.setattr(planted.target, "gated", spy)
    monkeypatch.setattr(module.generator, "masks", lambda importance: half)
    _, figures = module.objective(x, 1.0)
    own, foreign = seen[0].split([20, len(seen[0]) - 20])
    assert (own[:, ::2] == 1).all()
    assert 0.3 < own[:, 1::2].mean() < 0.7
    assert (foreign == half[0]).all()
    assert figures["kept"] == half.mean()  # noise does not count as size


def test_a_share_of_the_inputs_meets_a_classmates_mask(planted):
    classes = torch.tensor([0, 1, 0, 2, 1, 0, 0, 1])
    rows = torch.arange(8)
    none, all_of_them = (make_module(planted.target, class_share=share) for share in (0.0, 1.0))
    assert torch.equal(none._donors(classes), rows)
    seen = torch.stack([all_of_them._donors(classes) for _ in range(50)])
    assert (classes[seen] == classes).all()
    assert (
        (seen == rows) == (classes == 2)
    ).all()  # only an input without classmates keeps its own
    assert set(seen[:, 0].tolist()) == {2, 5, 6}
    many = torch.zeros(400, dtype=torch.long)
    half = make_module(planted.target, class_share=0.5)
    assert 0.4 < (half._donors(many) != torch.arange(400)).float().mean() < 0.6


def test_a_classmates_mask_counts_in_the_kl_alone(planted, monkeypatch):
    x, _ = planted.images(20)
    classes = planted.target(x).argmax(1)
    module = make_module(planted.target, specificity=1.0, class_share=1.0, blank_share=0.0)
    seen = []
    gated = planted.target.gated

    def spy(images, masks):
        seen.append((images, masks.detach()))
        return gated(images, masks)

    own = (torch.rand(20, planted.target.sites.num_neurons) < 0.5).float()
    monkeypatch.setattr(planted.target, "gated", spy)
    monkeypatch.setattr(module.generator, "masks", lambda importance: own)
    module.objective(x, 1.0)
    images, masks = seen[0]
    assert torch.equal(images[:20], x)
    donors = torch.stack([(own == mask).all(1).float().argmax() for mask in masks])
    assert (classes[donors[:20]] == classes).all()
    alone = (classes.unsqueeze(0) == classes.unsqueeze(1)).sum(1) == 1
    assert torch.equal(donors[:20] == torch.arange(20), alone)
    assert (classes[donors[20:]] != planted.target(images[20:]).argmax(1)).all()


def test_larger_masks_follow_the_ranking(planted):
    """Never a neuron less; what is added is more important than all that stays out."""
    module = make_module(planted.target, larger_share=1.0)
    neurons = planted.target.sites.num_neurons
    scores = torch.randn(400, neurons, requires_grad=True)
    importance = scores.sigmoid()
    mask = module.generator.masks(importance)
    enlarged = module._enlarged(mask, importance)
    assert ((enlarged == 0) | (enlarged == 1)).all()
    assert (enlarged >= mask).all()
    least_kept = importance.masked_fill(enlarged == 0, 2.0).amin(1)
    most_left = importance.masked_fill(enlarged == 1, -1.0).amax(1)
    assert (least_kept > most_left).all()
    # u^2 of the room, rounded down: half of the sizes take less than a quarter of it.
    room = neurons - mask.sum(1)
    taken = ((enlarged - mask).sum(1) / room.clamp_min(1)).detach()
    assert 0.4 < (taken < 0.25).float().mean() < 0.65
    assert taken.max() > 0.8
    # The last neuron of the larger size is where the quantiser switches: it learns most.
    gradients = torch.autograd.grad(enlarged.sum(), scores)[0].abs()
    last = scores.masked_fill(enlarged == 0, torch.inf).amin(1)
    most = scores.gather(1, gradients.argmax(1, keepdim=True)).squeeze(1)
    moved = (enlarged - mask).sum(1) > 0
    assert moved.sum() > 200
    assert (most - last)[moved].abs().mean() < 0.1 < last[moved].abs().mean()

    open_masks = torch.ones(5, neurons)
    assert torch.equal(module._enlarged(open_masks, torch.ones(5, neurons)), open_masks)
    half = make_module(planted.target, larger_share=0.5)
    changed = (half._enlarged(mask, importance) != mask).any(1).float().mean()
    assert 0.35 < changed < 0.55
    none = make_module(planted.target, larger_share=0.0)
    assert torch.equal(none._enlarged(mask, importance), mask)


@pytest.mark.parametrize("quantizer", ["daq", "ste", "hard_concrete"])
def test_larger_masks_lose_no_neuron(planted, quantizer):
    """Also where scores are saturated or tied, or only the floor keeps a neuron."""
    module = make_module(planted.target, larger_share=1.0).train()
    module.generator.quantizer = quantizer
    neurons = planted.target.sites.num_neurons
    saturated = torch.sigmoid(torch.randn(200, neurons) * 20)
    collapsed = torch.full((200, neurons), 1e-7)
    tied = torch.full((200, neurons), 0.3)
    tied[:, :4] = 0.9
    for importance in (saturated, collapsed, tied):
        mask = module.generator.masks(importance)
        assert (module._enlarged(mask, importance) >= mask - 1e-6).all()


@pytest.mark.parametrize("class_share", [0.0, 1.0])
def test_larger_masks_count_in_kl_and_leak_but_not_as_size(planted, monkeypatch, class_share):
    x, _ = planted.images(20)
    settings = {"specificity": 1.0, "class_share": class_share, "blank_share": 0.0}
    module = make_module(planted.target, **settings, larger_share=1.0)
    neurons = planted.target.sites.num_neurons
    own = torch.zeros(20, neurons)
    larger = own.clone()
    larger[:, :2] = 1
    seen = []
    gated = planted.target.gated
    monkeypatch.setattr(
        planted.target, "gated", lambda inputs, masks: (seen.append(masks), gated(inputs, masks))[1]
    )
    monkeypatch.setattr(module.generator, "masks", lambda importance: own)
    monkeypatch.setattr(module, "_enlarged", lambda mask, importance: larger)
    _, figures = module.objective(x, 1.0)
    assert len(seen[0]) > 20
    assert (seen[0] == larger[0]).all()
    assert figures["kept"] == 0
    module.eval()
    module.objective(x, 1.0)
    assert (seen[1] == 0).all()


def test_validation_has_every_inputs_own_mask(planted, monkeypatch):
    x, _ = planted.images(20)
    settings = {"class_share": 1.0, "mask_noise": 0.5, "specificity": 0.0}
    module = make_module(planted.target, **settings)
    seen = []
    gated = planted.target.gated

    def spy(images, masks):
        seen.append(masks.detach())
        return gated(images, masks)

    own = (torch.rand(20, planted.target.sites.num_neurons) < 0.5).float()
    monkeypatch.setattr(planted.target, "gated", spy)
    monkeypatch.setattr(module.generator, "masks", lambda importance: own)
    module.objective(x, 1.0)
    module.eval()
    module.objective(x, 1.0)
    assert not torch.equal(seen[0], own)
    assert torch.equal(seen[1], own)


def test_a_batch_of_one_class_has_no_leak_term(planted):
    x, labels = planted.images(64)
    x = x[labels == 1]
    module = make_module(planted.target, specificity=2.0)
    loss, figures = module.objective(x, 1.0)
    loss.backward()
    assert figures["leak"] == 0
    assert figures["flip"] == 0
    assert torch.isfinite(loss)


def test_content_free_images():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(
                nn.Conv2d(2, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                nn.Linear(3, 2),
            )  # fmt: skip

    x = torch.randn(20, 2, 6, 6)
    blanks = torch.stack([torch.full((2, 6, 6), value) for value in (-7.0, 7.0)])
    target = GatedTarget(Net(), x)
    noise = make_module(target)._content_free(x, 10)
    assert noise.shape == (10, 2, 6, 6)
    for i in range(5):  # pixels in another order: the same values in every channel
        assert torch.equal(noise[i].flatten(1).sort(1)[0], x[i].flatten(1).sort(1)[0])
        assert not torch.equal(noise[i], x[i])
    mixed = make_module(target, blanks)._content_free(x, 200 // 10)
    constant = mixed.flatten(1).std(1) == 0
    assert 0 < constant.sum() < 20
    assert set(mixed[constant][:, 0, 0, 0].tolist()) <= {-7.0, 7.0}
    assert make_module(target)._content_free(x, 1).shape == (1, 2, 6, 6)


def test_sparsity_weight_warms_up_linearly(planted):
    module = make_module(planted.target, steps=100, sparsity=3.0, sparsity_warmup=0.2)
    assert module.sparsity_weight(0) == pytest.approx(3 / 20)
    assert module.sparsity_weight(9) == pytest.approx(1.5)
    assert module.sparsity_weight(19) == module.sparsity_weight(99) == 3.0
    assert make_module(planted.target, sparsity_warmup=0.0).sparsity_weight(0) == 2.0


def test_objective_trains_the_generator_and_not_the_target(planted):
    x, _ = planted.images(32)
    module = make_module(planted.target)
    loss, _ = module.objective(x, 1.0)
    loss.backward()
    # The maps of linear sites are single cells: there is nothing to reduce.
    without = {name for name, p in module.generator.named_parameters() if p.grad is None}
    assert all(name.startswith("embedders.block.") for name in without)
    assert all(p.grad is None for p in planted.target.model.parameters())
    assert all(p.requires_grad for p in planted.target.model.parameters())
    assert not any("target" in name for name in module.state_dict())


def test_target_in_bfloat16(planted):
    x, _ = planted.images(32)
    loss, figures = make_module(planted.target, target_bfloat16=True).objective(x, 1.0)
    assert loss.dtype == torch.float32
    assert figures["agreement"] == 1
    loss.backward()


def test_batches_with_and_without_labels(planted):
    from pathways.training.module import _images

    x, labels = planted.images(4)
    for batch in (x, (x, labels), [x], [x, labels]):
        assert torch.equal(_images(batch), x)


@pytest.mark.parametrize("settings", [{}, {"sparsity_mode": "neuron", "class_similarity": 0.2}])
def test_training_reduces_the_objective(planted, settings):
    x, _ = planted.images(256)
    module = make_module(
        planted.target, steps=90, batch_size=32, learning_rate=5e-3, sparsity_warmup=0.0, **settings
    )
    history = train(module, x, 90)
    first, last = history[0]["loss"], torch.stack([h["loss"] for h in history[-10:]]).mean()
    assert last < 0.8 * first
    assert history[-1]["kept"] < 0.8


def test_training_finds_planted_circuits(planted):
    """Recall, and pathways of a class alike and unlike those of others."""
    x, _ = planted.images(512)
    config = TrainingConfig(
        steps=250, batch_size=32, sparsity=1.0, sparsity_warmup=0.6,
        generator={"width": 32, "min_keep": 0.05},
    )  # fmt: skip
    module = GeneratorTraining(planted.target, config)
    train(module, x, 250)
    test, labels = planted.images(150, seed=1)
    explanation = Explainer(planted.target, module.generator)(test)
    assert torch.equal(explanation.predictions, labels)
    mask, circuit = explanation.pathway.mask(), planted.circuit[labels]
    assert ((mask & circuit).sum() / circuit.sum()).item() > 0.95
    distractors = torch.cat([part[:, 9:] for part in planted.target.sites.split(mask)], 1)
    assert distractors.float().mean() < 0.05
    agreement = (explanation.gated_predictions == labels).float().mean()
    assert agreement > 0.85
    iou = explanation.pathway.pairwise_iou()
    same = labels[:, None] == labels[None]
    assert iou[same].mean() > 0.9
    assert iou[~same].mean() < iou[same].mean() - 0.2
    # One example of a class is enough to transfer its pathway.
    first = torch.stack([(labels == c).nonzero()[0, 0] for c in range(3)])
    classes = ClassPathways.from_pathways(explanation.pathway[first], labels[first], num_classes=4)
    transferred = Explainer(planted.target, module.generator).transfer(test, classes)
    assert (transferred.argmax(1) == labels).float().mean() > agreement - 0.1
