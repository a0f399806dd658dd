"""Commands that use a run: explanations, files for other programs, overlaps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pathways import options
from pathways.console import command
from pathways.options import (
    Device,
    Json,
    RunFolder,
)


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
