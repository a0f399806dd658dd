"""The command line: parses, calls, prints. Every command takes ``--json``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pathways import options
from pathways.baselines.registry import BASELINES, check_baselines
from pathways.console import command
from pathways.options import (
    DATA_HELP,
    TARGET_HELP,
    BatchSize,
    Device,
    Granularity,
    Json,
    Overwrite,
    Resume,
    RunFolder,
    Seed,
    SiteGlobs,
    Weights,
)
from pathways.planted.command import planted

app = typer.Typer(
    name="pathways",
    help="Explain image classifiers by neural pathways: the neurons that carry a prediction.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the ``pathways`` program."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        import pathways

        typer.echo(f"pathways {pathways.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command()
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
        from pathways.pipeline import json_metrics
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


@app.command()
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


@app.command()
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
        typer.Option("--set", help="Any other training setting, NAME=VALUE; VALUE is JSON."),
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
        from pathways.pipeline import load_training, start_training, train

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


@app.command()
def evaluate(
    run_folder: RunFolder,
    data: Annotated[
        str | None, typer.Option(help=f"Other data than the run's: {DATA_HELP}")
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help=f"Baselines to compare with, separated by commas: {', '.join(BASELINES)}."
        ),
    ] = "",
    kept: Annotated[
        str,
        typer.Option(
            help="Shares of neurons, 0.1,0.3: measure every method at these equal sizes besides."
        ),
    ] = "",
    test_images: Annotated[
        int | None, typer.Option(min=2, help="Measure on at most so many test images.")
    ] = None,
    ranking_images: Annotated[
        int, typer.Option(min=0, help="Images for figures of many runs (CPR, necessity); 0: none.")
    ] = 256,
    map_images: Annotated[
        int, typer.Option(min=0, help="Images for insertion, deletion and ROAD; 0: none.")
    ] = 64,
    shots: Annotated[
        str, typer.Option(help="Images per class on the transfer curve, besides all there are.")
    ] = "1,2,5,10,50",
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default is the run.")
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Measure a run: faithfulness, class pathways, transfer, and the leak controls beside them."""
    with command(as_json) as output:
        from pathways.pipeline import evaluate_methods, json_metrics, save_evaluation
        from pathways.printing import show_metrics
        from pathways.runs import Run

        names = [name.strip() for name in baselines.split(",") if name.strip()]
        check_baselines(names)
        sizes = options.shares("--kept", kept)
        counts = options.integers("--shots", shots)
        run = Run.open(run_folder)
        folder = options.writable("--out", run_folder if out is None else out)
        options.place(run, device)
        images = run.images if data is None else run.load_images(data)
        output.interrupted = "interrupted; nothing was written"
        evaluations = evaluate_methods(
            run.explainer,
            run.preprocessing,
            images,
            names,
            sizes,
            limit=test_images,
            ranking_images=ranking_images,
            map_images=map_images,
            shots=counts,
            batch_size=batch_size,
            seed=seed,
            progress=output.progress,
        )
        files = save_evaluation(evaluations, run.classes, folder)
        metrics = {name: evaluation.metrics() for name, evaluation in evaluations.items()}
        show_metrics(output, metrics, len(run.classes))
        output.show("Written:", *[str(file) for file in files])
        output.result(
            {
                "run": str(run_folder),
                "methods": {name: json_metrics(values) for name, values in metrics.items()},
                "files": [str(file) for file in files],
            }
        )


@app.command()
def frontier(
    run_folder: RunFolder,
    sparsity: Annotated[
        str | None,
        typer.Option(
            help="Weights of the share kept (1,2,4,8); the weight of the leak term grows with "
            "them in the run's ratio."
        ),
    ] = None,
    variants: Annotated[
        Path | None,
        typer.Option(help='Instead compare the settings in a JSON file, {"name": {settings}}.'),
    ] = None,
    plain: Annotated[
        bool, typer.Option(help="Train the plain objective, without the leak term, as well.")
    ] = True,
    seeds: Annotated[str, typer.Option(help="Seeds of the trainings.")] = "0,1,2",
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; default: the run's.")
    ] = None,
    test_images: Annotated[
        int | None, typer.Option(min=2, help="Measure on at most so many test images.")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Trainings at a time, each with one thread.")
    ] = 1,
    data: Annotated[
        str | None, typer.Option(help=f"Other data than the run's: {DATA_HELP}")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default is RUN/frontier.")
    ] = None,
    device: Device = "cpu",
    resume: Resume = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train generators over a sweep of settings and seeds; table and picture of what they reach.

    RUN names target, data and settings; its own training need not be finished and stays as it is.
    """
    with command(as_json) as output:
        from dataclasses import replace

        from pathways.pipeline import load_training
        from pathways.printing import show_sweep
        from pathways.report import save_sweep
        from pathways.sweep import read_variants, run_sweep, sparsity_variants, unfinished
        from pathways.sweep_jobs import train_in_processes

        if variants is not None and sparsity is not None:
            raise typer.BadParameter("--sparsity cannot be given with --variants")
        run, config = load_training(run_folder)
        config = config if steps is None else replace(config, steps=steps)
        if variants is not None:
            chosen = read_variants(variants)
        else:
            weights = options.listed("--sparsity", sparsity or "1,2,4,8", float)
            chosen = sparsity_variants(config, weights, plain=plain)
        numbers = options.listed("--seeds", seeds, int)
        options.place(run, device)
        images = run.images if data is None else run.load_images(data)
        folder = run_folder / "frontier" if out is None else out
        output.interrupted = (
            f"interrupted; finished points are in {folder}, go on with the same command and "
            "--resume"
        )
        points = (run, config, chosen, numbers, folder)
        settings: dict[str, Any] = {
            "test_images": test_images, "resume": resume, "overwrite": overwrite,
        }  # fmt: skip
        if jobs > 1:
            train_in_processes(
                run, config, unfinished(*points, images=images, **settings), folder,
                jobs=jobs, data=data, progress=output.progress, **settings,
            )  # fmt: skip
            settings |= {"resume": True, "overwrite": False}
        found = run_sweep(*points, images=images, progress=output.progress, **settings)
        result = save_sweep(
            [point.to_json() for point in found],
            len(run.classes),
            folder,
            ablation=variants is not None,
            about={
                "kind": "frontier" if variants is None else "variants",
                "run": str(run_folder),
                "fingerprint": run.description.fingerprint,
                "seeds": numbers,
                "test_images": min(len(images.test), test_images or len(images.test)),
            },
        )
        show_sweep(output, result)
        files = [str(folder / name) for name in ("frontier.json", "frontier.png")]
        output.show("Written:", *files)
        output.result({**result, "files": files})


@app.command()
def explain(
    run_folder: RunFolder,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE...", help="Image files.")
    ] = None,
    test: Annotated[
        list[int] | None,
        typer.Option(help="Number of a test image of the run's data; repeat for several."),
    ] = None,
    about: Annotated[
        str | None,
        typer.Option(
            "--class", help="Class (name or number) the maps are for; default: predicted."
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=0, help="Most important neurons to name.")] = 8,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; default is RUN/explanations.")
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Explain images: a picture and a JSON file for each."""
    with command(as_json) as output:
        from pathways.printing import show_explanations
        from pathways.report import explain_images, fit_to_run
        from pathways.runs import Run, class_index
        from pathways.training.data import read_image

        if not images and not test:
            raise typer.BadParameter("at least one IMAGE or --test NUMBER is needed")
        run = Run.open(run_folder)
        label = None if about is None else class_index(about, run.classes)
        shape = run.description.image_shape
        # Everything is read before the first file is written.
        pixels = [
            fit_to_run(read_image(path, shape[0]), shape, run.preprocessing)
            for path in images or []
        ]
        names = [str(path) for path in images or []]
        for number in test or []:
            if not 0 <= number < len(run.images.test):
                raise ValueError(f"--test must be in [0, {len(run.images.test)}), got {number}")
            pixels.append(run.images.test[number])
            names.append(f"test_{number:04d}")
        options.place(run, device)
        folder = run_folder / "explanations" if out is None else out
        results = explain_images(
            run.explainer,
            run.preprocessing,
            pixels,
            names,
            run.classes,
            folder,
            about=label,
            top=top,
            progress=output.progress if len(pixels) > 3 else None,
        )
        show_explanations(output, results)
        output.result({"run": str(run_folder), "explanations": results})


@app.command()
def export(
    run_folder: RunFolder,
    out: Annotated[
        Path | None,
        typer.Option(help="File to write; default is explainer.pt, or explainer.pt2 for aoti."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="torchscript (.pt); or aoti (.pt2), native code that a C++ compiler makes in "
            "minutes. Default: as --out ends, else torchscript.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one file with target, generator and preprocessing that runs without this package.

    Such a file is code, native code with aoti: load only those from a source you trust. Class
    pathways of the last evaluation, if there are any, become part of the file.
    """
    with command(as_json) as output:
        from pathways.export import SUFFIXES, WRITERS
        from pathways.pipeline import save_explainer
        from pathways.runs import Run

        if kind is not None and kind not in WRITERS:
            raise ValueError(f"--format must be one of {', '.join(WRITERS)}, got {kind!r}")
        kinds = {suffix: name for name, suffix in SUFFIXES.items()}
        named = None if out is None else kinds.get(out.suffix)
        if kind is not None and named is not None and kind != named:
            raise ValueError(
                f"--out must end in {SUFFIXES[kind]} for --format {kind}, got {str(out)!r}"
            )
        kind = kind or named or "torchscript"
        path = Path(f"explainer{SUFFIXES[kind]}") if out is None else out
        run = Run.open(run_folder)
        run.check_output(path)
        difference = save_explainer(
            run.explainer,
            run.preprocessing,
            run.classes,
            path,
            format=kind,
            class_pathways=run.class_pathways,
            image_shape=run.description.image_shape,
            check=run.example_images(),
            progress=output.progress,
        )
        size = path.stat().st_size
        output.show(
            f"Wrote {path} ({size / 1e6:.1f} MB); "
            f"loaded back it equals the run to {difference:.1e}."
        )
        output.result(
            {
                "run": str(run_folder),
                "file": str(path),
                "format": kind,
                "bytes": size,
                "class_pathways": run.class_pathways is not None,
                "largest_difference": difference,
            }
        )


@app.command()
def extract(
    run_folder: RunFolder,
    about: Annotated[str, typer.Option("--class", help="Class (name or number).")],
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("small.pt2"),
    threshold: Annotated[
        float | None,
        typer.Option(
            help="Frequency from which a channel belongs to the class; default: the run's."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the pathway of a class as a network of its own: smaller, and free of this package.

    The file is one of torch.export and takes images in [0, 1]. Its logits are those of the target
    with all other channels switched off.
    """
    with command(as_json) as output:
        from pathways.pipeline import save_extracted
        from pathways.printing import show_extraction
        from pathways.runs import Run, class_index

        run = Run.open(run_folder)
        run.check_output(out)
        result = save_extracted(run, class_index(about, run.classes), out, threshold)
        show_extraction(output, result, out)
        output.result({"run": str(run_folder), "file": str(out), **result})


@app.command()
def overlap(
    file: Annotated[Path, typer.Argument(help="Saved pathways or class pathways.")],
    other: Annotated[
        Path | None, typer.Argument(help="A second file of the same target to compare with.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Picture to write; default is FILE with -overlap.png.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Overlap (IoU) of saved pathways: of the rows of one file, or of one file with another."""
    with command(as_json) as output:
        from pathways.printing import show_overlap
        from pathways.report import overlap_files

        picture = file.with_name(f"{file.stem}-overlap.png") if out is None else out
        result = overlap_files(file, other, picture)
        show_overlap(output, result)
        output.result(result)


app.command()(planted)


if __name__ == "__main__":
    main()
