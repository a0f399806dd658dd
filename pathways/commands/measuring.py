"""Commands that measure a run, or many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pathways import options
from pathways.baselines.registry import BASELINES
from pathways.console import command
from pathways.options import (
    BatchSize,
    Device,
    Json,
    OtherData,
    Overwrite,
    Resume,
    RunFolder,
    Seed,
)


def evaluate(
    run_folder: RunFolder,
    data: OtherData = None,
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
    threshold: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Frequency from which a neuron belongs to a class's pathway; effective takes any.",
        ),
    ] = 0.5,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default is the run.")
    ] = None,
    device: Device = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the baselines that an interrupted one measured.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Start anew where an interrupted one left some.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a run: faithfulness, class pathways, transfer, and the leak controls beside them."""
    with command(as_json) as output:
        from pathways.evaluation import Evaluation
        from pathways.measuring import evaluate_methods, method_names, method_report, metrics_of
        from pathways.partial import PartialEvaluation, settings_of
        from pathways.pipeline import save_evaluation
        from pathways.printing import show_metrics
        from pathways.runs import Run

        names = options.baseline_names(baselines)
        sizes = options.shares("--kept", kept)
        counts = options.integers("--shots", shots)
        run = Run.open(run_folder)
        folder = options.writable("--out", run_folder if out is None else out)
        options.place(run, device)
        images = run.images if data is None else run.load_images(data)
        settings: dict[str, Any] = {
            "limit": test_images,
            "ranking_images": ranking_images,
            "map_images": map_images,
            "shots": counts,
            "threshold": threshold,
            "batch_size": batch_size,
            "seed": seed,
        }
        explainer = run.explainer
        partial = PartialEvaluation(
            folder, settings_of(run, images, **settings), resume=resume, overwrite=overwrite
        )
        kept_so_far = (
            f"interrupted; what was measured is in {partial.file}, go on with the same command and "
            "--resume"
        )
        output.interrupted = kept_so_far if partial.methods else "interrupted; nothing was written"

        def finished(name: str, found: Evaluation) -> None:
            partial.add(name, method_report(found))
            output.interrupted = kept_so_far

        evaluations = evaluate_methods(
            explainer,
            run.preprocessing,
            images,
            names,
            sizes,
            skip=set(partial.methods),
            finished=finished,
            progress=output.progress,
            **settings,
        )
        reports = {
            name: partial.methods[name] for name in method_names(["generator", *names], sizes)
        }
        files = save_evaluation(evaluations["generator"], reports, run.classes, folder)
        partial.finish(reports)
        metrics = {name: metrics_of(report) for name, report in reports.items()}
        show_metrics(output, metrics, len(run.classes))
        output.show("Written:", *[str(file) for file in files])
        output.result(
            {
                "run": str(run_folder),
                "methods": {name: report["metrics"] for name, report in reports.items()},
                "files": [str(file) for file in files],
            }
        )


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
    data: OtherData = None,
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

        from pathways.printing import show_sweep
        from pathways.report import save_sweep
        from pathways.run_training import load_training
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


def randomize(
    run_folder: RunFolder,
    baselines: Annotated[
        str, typer.Option(help="Baselines to check as well, separated by commas.")
    ] = "",
    data: OtherData = None,
    test_images: Annotated[int, typer.Option(min=1, help="Test images to explain.")] = 64,
    batch_size: BatchSize = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; default is the run.")
    ] = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Sanity check: do explanations change as the target's weights are shuffled, layer by layer?

    Baselines keep as many neurons as the generator does on average.
    """
    with command(as_json) as output:
        from pathways.measuring import check_randomization
        from pathways.printing import show_randomization
        from pathways.runs import RANDOMIZATION, Run, write_json

        names = options.baseline_names(baselines)
        run = Run.open(run_folder)
        folder = options.writable("--out", run_folder if out is None else out)
        options.place(run, device)
        images = run.images if data is None else run.load_images(data)
        output.interrupted = "interrupted; nothing was written"
        result = check_randomization(
            run.explainer,
            run.preprocessing,
            images,
            names,
            limit=test_images,
            batch_size=batch_size,
            seed=seed,
            progress=output.progress,
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RANDOMIZATION, result)
        show_randomization(output, result)
        output.show("Written:", str(folder / RANDOMIZATION))
        output.result({"run": str(run_folder), **result, "files": [str(folder / RANDOMIZATION)]})
