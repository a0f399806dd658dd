"""Commands that make runs: the demo, and training for a target of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathways import options
from pathways.console import command
from pathways.options import (
    DATA_HELP,
    TARGET_HELP,
    Device,
    Granularity,
    Json,
    Overwrite,
    Resume,
    Seed,
    SiteGlobs,
    Weights,
)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo makes.")] = Path(
        "out/demo"
    ),
    seed: Seed = 0,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; the default is the demo's own.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Show the whole job on scikit-learn's digits: about two minutes, no download.

    Trains a small classifier and a generator of its pathways, measures faithfulness, transfer and
    leaks, draws pictures, and saves a scripted explainer.
    """
    with command(as_json) as output:
        from pathways.demo import NEEDED, run_demo
        from pathways.measuring import json_metrics
        from pathways.printing import show_files, show_metrics

        output.interrupted = f"interrupted; go on with: pathways demo --out {out} --resume"
        result = run_demo(
            out,
            seed=seed,
            steps=steps,
            resume=resume,
            overwrite=overwrite,
            progress=output.progress,
        )
        show_metrics(output, {"generator": result.metrics}, 10, NEEDED)
        show_files(output, out)
        output.show(f"Explain an image of your own:  pathways explain {out} IMAGE.png")
        output.result({"run": str(out), "metrics": json_metrics(result.metrics), "needed": NEEDED})


def sites(
    target: Annotated[str, typer.Option(help=TARGET_HELP)],
    weights: Weights = None,
    shape: Annotated[
        str | None, typer.Option(help="Shape of one model input, for example 3,32,32.")
    ] = None,
    data: Annotated[str | None, typer.Option(help=f"Take the shape from data: {DATA_HELP}")] = None,
    granularity: Granularity = "channel",
    select: Annotated[
        list[str] | None,
        typer.Option("--sites", help="Glob of module paths or keys; repeat for several."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the activations of a target that can be gated."""
    with command(as_json) as output:
        from pathways.loading import default_preprocessing, gate, load_target
        from pathways.preprocessing import Preprocessing
        from pathways.training.data import load_images

        if shape is not None:
            lengths = options.integers("--shape", shape, 3)
            identity = Preprocessing([0.0] * lengths[0], [1.0] * lengths[0])
        elif data is not None:
            lengths = list(load_images(data).shape)
            identity = default_preprocessing(target, lengths[0])
        else:
            identity = default_preprocessing(target, 3)
            if not identity.size:
                raise ValueError(f"target {target}: the input shape must be given by --shape")
            lengths = [3, *identity.size]
        model = load_target(target, weights, pretrained=False)
        gated = gate(model, identity, lengths, granularity=granularity, sites=select)
        output.show(gated.sites.table())
        output.result(
            {
                "target": target,
                "classes": gated.num_classes,
                "neurons": gated.sites.num_neurons,
                **gated.sites.to_json(),
            }
        )


def fit(
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    target: Annotated[str | None, typer.Option(help=TARGET_HELP)] = None,
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    weights: Weights = None,
    mean: Annotated[
        str | None, typer.Option(help="Mean of the target's inputs: 0.5 or 0.485,0.456,0.406.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="Standard deviation, like --mean.")] = None,
    size: Annotated[
        str | None, typer.Option(help="Resize images to 224 or 224x160 (height x width).")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="Factor on images in [0, 1]; 255 for targets of bytes.")
    ] = None,
    channel_order: Annotated[str | None, typer.Option(help="rgb or bgr.")] = None,
    granularity: Annotated[
        str | None, typer.Option(help="What a neuron is: channel (default), or unit.")
    ] = None,
    sites: SiteGlobs = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="What replaces gated-off activations: zero (default), or mean."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step.")] = None,
    sparsity: Annotated[float | None, typer.Option(help="Weight of the share kept.")] = None,
    specificity: Annotated[
        float | None, typer.Option(help="Weight of the leak term; 0 leaves leaks unpunished.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help='Any other setting, NAME=VALUE; VALUE is JSON, as in generator={"width":128}.',
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random (0).")] = None,
    train_images: Annotated[
        int | None, typer.Option(min=2, help="Train on at most so many images.")
    ] = None,
    device: Device = "cpu",
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a generator for a frozen target; writes a run folder.

    A run goes on with `pathways fit --out RUN --resume`, which needs no other option.
    """
    with command(as_json) as output:
        from pathways.run_training import load_training, start_training, train

        given = {
            "--target": target, "--data": data, "--weights": weights, "--mean": mean, "--std": std,
            "--size": size, "--scale": scale, "--channel-order": channel_order,
            "--granularity": granularity, "--sites": sites, "--baseline": baseline,
            "--steps": steps,
            "--batch-size": batch_size, "--sparsity": sparsity, "--specificity": specificity,
            "--set": settings, "--seed": seed, "--train-images": train_images,
        }  # fmt: skip
        if resume:
            for name, value in given.items():
                if value is not None:
                    raise typer.BadParameter(
                        f"{name} cannot be given with --resume: the run's settings are kept"
                    )
            run, config = load_training(out)
            images = run.images
        else:
            if target is None or data is None:
                raise typer.BadParameter("--target and --data are needed for a new run")
            config = options.training_config(
                settings,
                steps=steps,
                batch_size=batch_size,
                sparsity=sparsity,
                specificity=specificity,
                seed=seed,
            )
            run, images = start_training(
                out,
                config,
                target=target,
                data=data,
                weights=weights,
                preprocessing=lambda channels: options.preprocessing(
                    target, channels, mean, std, size, scale, channel_order
                ),
                granularity=granularity or "channel",
                sites=sites,
                baseline=baseline or "zero",
                side=options.image_side(target, size),
                train_images=train_images,
                overwrite=overwrite,
            )
        options.place(run, device)
        output.interrupted = f"interrupted; go on with: pathways fit --out {out} --resume"
        train(
            run.target, run.preprocessing, images, out, config,
            resume=resume, progress=output.progress,
        )  # fmt: skip
        output.show(f"Trained {run.target!r} into {out}.")
        output.show(f"Measure it:  pathways evaluate {out}")
        output.result(
            {
                "run": str(out),
                "fingerprint": run.description.fingerprint,
                "neurons": run.target.sites.num_neurons,
                "config": config.to_json(),
            }
        )
