"""``gossipdbn predict``, ``score``, ``transform``: a trained model at work on files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossipdbn.cli.options import JsonOption, terminal, write_json

if TYPE_CHECKING:
    from gossipdbn.inference import Summary

ModelArgument = Annotated[Path, typer.Argument(help="Model file (model.safetensors).", show_default=False)]
DataArgument = Annotated[
    list[str], typer.Argument(help="Files, folders or globs: idx, CSV, Parquet, JSON lines, npz.", show_default=False)
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Where rows go: a name ending in .csv or .parquet.", show_default="nowhere"),
]
LabelsOption = Annotated[str, typer.Option("--labels", help="File of labels beside idx images.", show_default="none")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(predict)
    app.command()(score)
    app.command()(transform)


def predict(
    model: ModelArgument,
    data: DataArgument,
    output: OutputOption = None,
    labels: LabelsOption = "",
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write the probability of every class.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Classify rows. Where they carry labels, the error is shown.

    Each line of the output names its file and row, the class and its probability.

    Examples:

        gossipdbn predict model.safetensors new/*.csv -o classes.csv

        gossipdbn predict model.safetensors t10k-images.gz --labels t10k-labels.gz
    """
    from gossipdbn import inference

    _tell(inference.predict(model, data, output, labels=labels, probabilities=probabilities), json)


def score(
    model: ModelArgument,
    data: DataArgument,
    output: OutputOption = None,
    labels: LabelsOption = "",
    json: JsonOption = None,
) -> None:
    """Score rows for anomalies: free energy and reconstruction error, the higher the stranger.

    Free energy can invert where anomalies form a dense cluster; look at both.

    Example:

        gossipdbn score model.safetensors measurements.parquet -o scores.parquet
    """
    from gossipdbn import inference

    _tell(inference.score(model, data, output, labels=labels), json)


def transform(
    model: ModelArgument,
    data: DataArgument,
    output: OutputOption = None,
    labels: LabelsOption = "",
    layers: Annotated[
        int | None, typer.Option(help="Features after this many layers.", min=1, show_default="all")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Turn rows into features: probabilities of the hidden units.

    Example:

        gossipdbn transform model.safetensors measurements.csv -o features.parquet --layers 1
    """
    from gossipdbn import inference

    _tell(inference.transform(model, data, output, layers=layers, labels=labels), json)


def _tell(summary: Summary, json: Path | None) -> None:
    out = terminal(json)
    out.print(f"{summary.rows} rows" + (f" -> {summary.output}" if summary.output else ""))
    facts: dict[str, object] = {"rows": summary.rows, "output": summary.output}
    if summary.evaluation is not None:
        seen = summary.evaluation
        out.print(f"error {seen.error:.2%} ({seen.wrong} of {seen.rows} labelled rows)")
        facts |= {
            "error": seen.error,
            "labelled_rows": seen.rows,
            "wrong": seen.wrong,
            "confusion": seen.confusion.tolist(),
        }
    if summary.mean_free_energy is not None:
        out.print(f"mean free energy {summary.mean_free_energy:.4f}")
        facts["mean_free_energy"] = summary.mean_free_energy
    if summary.mean_reconstruction_error is not None:
        out.print(f"mean reconstruction error {summary.mean_reconstruction_error:.6f}")
        facts["mean_reconstruction_error"] = summary.mean_reconstruction_error
    write_json(json, facts)
