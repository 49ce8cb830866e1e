"""``gossipdbn replay``, ``archive``, ``bisect``: look back at a run from its log alone."""

from __future__ import annotations

import datetime as dt
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from gossipdbn.cli.options import HomeOption, JsonOption, home_of, notice, terminal, write_json
from gossipdbn.cli.runs import BootstrapOption, KafkaOption, KeyFileOption, PrefixOption
from gossipdbn.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from gossipdbn.launch.records import Recorded, Where
    from gossipdbn.models.files import Model
    from gossipdbn.replay.history import History
    from gossipdbn.replay.moments import Bisection, Diff, Timeline
    from gossipdbn.replay.verify import Progress, Verification

RunArgument = Annotated[str, typer.Argument(metavar="RUN|FILE", help="Run id, its beginning, or an archive file.")]
LastOption = Annotated[bool, typer.Option("--last", help="The newest run.")]
JobsOption = Annotated[
    int | None, typer.Option("--jobs", "-j", help="Processes.", min=1, show_default="one per core, one for small runs")
]
WRONG = 5
_EVERY_S = 5.0
_SMALL_BYTES = 8 << 20


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    for command in (replay, archive, bisect):
        app.command()(command)


# ---- what all of them need ------------------------------------------------------------------------------------------
def where_of(
    home: Path | None, bootstrap: str, prefix: str, key_file: Path | None, key_id: int, kafka: list[str] | None
) -> Where:
    """What the options say of the cluster; raises ConfigError when they do not fit."""
    from gossipdbn.config import read_keys
    from gossipdbn.launch.records import Where

    settings = {}
    for text in kafka or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--kafka {text}: needed is KEY=VALUE")
        settings[key] = value
    keys = read_keys(key_file, key_id) if key_file else {}
    if key_id and not key_file:
        raise ConfigError("--key-id: give the file of keys too (--key-file)")
    return Where(home_of(home), bootstrap, prefix, keys, key_id, settings)


@contextmanager
def recorded_run(where: Where, run: str, last: bool) -> Iterator[Recorded]:
    """The records of a run, of the newest run, or of an archive file."""
    from gossipdbn.launch.records import recorded

    if bool(run) == last:
        raise ConfigError("name a run or an archive file, or --last for the newest run; `gossipdbn runs` lists them")
    with recorded(where, run, notice) as found:
        yield found


def _cores(jobs: int | None, found: Recorded) -> int:
    """As many processes as wanted, else as there are cores; one for runs that are done before others would start."""
    small = sum(p.size for p in found.run.spool.index.parts if p.kind == "updates") < _SMALL_BYTES
    return jobs or (1 if small else len(os.sched_getaffinity(0)))


def history_of(found: Recorded, jobs: int | None) -> History:
    """Verdicts on all records, and a warning for what could not be judged."""
    from gossipdbn.replay.verify import judge_run, workers

    with workers(found.run, _cores(jobs, found)) as on:
        history = judge_run(found.run, on)
    for partition, why in history.undecided.items():
        notice(f"warning: updates partition {partition} is read only up to a record that waits: {why}")
    return history


def check_folder(option: str, output: Path | None) -> None:
    """Refuse a file in a folder that is not there, before the work that it shall hold."""
    if output is not None and not output.absolute().parent.is_dir():
        raise ConfigError(f"{option}: there is no folder {output.parent} to write {output.name} into")


def time_text(at_ms: int) -> str:
    """A moment of the log's clock for people."""
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# ---- replay ---------------------------------------------------------------------------------------------------------
def replay(
    run: RunArgument = "",
    last: LastOption = False,
    verify: Annotated[bool, typer.Option("--verify", help="Recompute every update (the default).")] = False,
    until: Annotated[
        str, typer.Option("--until", metavar="MOMENT", help="Write the model as it was at a moment; needs -o.")
    ] = "",
    diff: Annotated[
        tuple[str, str] | None, typer.Option("--diff", metavar="A B", help="What changed between two moments.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Model file.", dir_okay=False)] = None,
    jobs: JobsOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    kafka: KafkaOption = None,
    json: JsonOption = None,
) -> None:
    """Recompute a run from its log alone, or go back to any moment of it.

    `--verify` recomputes every round of every slot, crashes and takeovers included, and compares each update byte for
    byte with the logged one. Exit status 0: bit-identical; 5: it is not, with the first difference named.

    A moment is `start`, `end`, a version such as `120,118,121,0`, an update such as `2:117` (slot 2's update 117 and
    all that the log took before it), a time such as `2025-01-31T12:00:00Z` or `+90s`, or `#500` (the first 500
    updates).

    Examples:

        gossipdbn replay --last --verify

        gossipdbn replay mnist.zip

        gossipdbn replay mnist-20250101-120000 --until +30s -o early.safetensors

        gossipdbn replay --last --diff "#100" end
    """
    from gossipdbn.replay.moments import check_moment

    if sum((verify, bool(until), diff is not None)) > 1:
        raise ConfigError("replay: --verify, --until and --diff are three different things; give one")
    if bool(until) != (output is not None):
        raise ConfigError("replay: --until MOMENT and -o MODEL belong together")
    check_folder("-o", output)
    for moment in (until, *(diff or ())):
        if moment:
            check_moment(moment)
    with recorded_run(where_of(home, bootstrap, prefix, key_file, 0, kafka), run, last) as found:
        if until and output is not None:
            _until(history_of(found, jobs), until, output, json)
        elif diff is not None:
            _diff(history_of(found, jobs), *diff, json)
        else:
            _verify(found, _cores(jobs, found), json)


def _verify(found: Recorded, jobs: int, json: Path | None) -> None:
    from gossipdbn.launch.runs import software
    from gossipdbn.replay.verify import divergence_text
    from gossipdbn.replay.verify import verify as run_verification

    with _progress() as show:
        v = run_verification(found.run, jobs, show, expected=found.facts)
    here, logged = software(), found.run.manifest.versions
    write_json(json, {**msgspec.to_builtins(v), "packages_here": here, "packages_logged": logged})
    out = terminal(json)
    out.print(
        f"run {v.run}: {v.state}; {v.claims} claims, {v.resets} resets, {v.revocations} revocations, "
        f"{v.voids} void records"
    )
    out.print(_speed(v))
    if v.beyond:
        out.print(f"not recomputed: {v.beyond} updates at the end of a live run that name records after this copy")
    for problem in v.problems:
        out.print(f"problem: {problem}")
    if v.divergences:
        out.print(f"diverges at {divergence_text(v.divergences[0])}")
        for d in v.divergences[1:]:
            out.print(f"also at     {divergence_text(d)}")
        others = [f"{k} {logged.get(k, 'none')} then, {here.get(k, 'none')} here" for k in sorted({*logged, *here})
                  if logged.get(k) != here.get(k)]  # fmt: skip
        out.print("packages: " + (", ".join(others) or "the same versions"))
    if not v.identical:
        out.print(
            f"NOT IDENTICAL: {v.updates} of {sum(v.version) - v.revocations} updates were recomputed and are the same"
        )
        raise typer.Exit(WRONG)
    out.print(f"bit-identical, {v.updates} updates, digest {v.digest}")


def _speed(v: Verification) -> str:
    by = f"{v.jobs} processes" if v.jobs > 1 else "1 process"
    return (
        f"{v.updates} updates, {v.rows:,} rows recomputed in {v.seconds:.1f} s by {by} in {v.pieces} pieces (trained "
        f"{v.training_seconds:.1f} s by the log's clock; kernels {v.kernel_seconds:.1f} s, then "
        f"{v.training_kernel_seconds:.1f} s)"
    )


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show how far a verification is: a bar on a terminal, a line now and then elsewhere."""
    if not sys.stderr.isatty():
        newest = [time.monotonic()]

        def line(p: Progress) -> None:
            if time.monotonic() - newest[0] > _EVERY_S:
                newest[0] = time.monotonic()
                if p.judged < p.partitions:
                    notice(f"{p.judged} of {p.partitions} partitions judged, {p.seconds:.0f} s")
                else:
                    notice(f"{p.rows:,} of {p.rows_all:,} rows, {p.pieces} of {p.pieces_all} pieces, {p.seconds:.0f} s")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("judging partitions", total=None)

        def draw(p: Progress) -> None:
            if p.judged < p.partitions:
                bar.update(task, completed=p.judged, total=p.partitions)
            else:
                bar.update(task, description="recomputing rows", completed=p.rows, total=p.rows_all)

        yield draw


def _until(history: History, text: str, output: Path, json: Path | None) -> None:
    from gossipdbn.models.files import save_model
    from gossipdbn.replay.moments import Timeline, parse_moment

    timeline = Timeline(history)
    moment = parse_moment(timeline, text)
    model = timeline.model(moment)
    sha = save_model(output, model)
    write_json(json, {"moment": moment, "updates": moment.updates, "digest": model.provenance.digest,
                      "model": str(output), "sha256": sha})  # fmt: skip
    version = ",".join(str(n) for n in moment.version)
    when = f", {time_text(moment.at_ms)}" if moment.at_ms else ""
    terminal(json).print(
        f"{output}: the model at {moment.name}: {moment.updates} of {len(history.order)} updates (version {version})"
        f"{when}, digest "
        f"{model.provenance.digest}"
    )


def _diff(history: History, a: str, b: str, json: Path | None) -> None:
    from gossipdbn.replay.moments import Timeline, diff, parse_moment

    timeline = Timeline(history)
    found = diff(timeline, parse_moment(timeline, a), parse_moment(timeline, b))
    write_json(json, found)
    _tell_diff(found, json)


def _tell_diff(d: Diff, json: Path | None) -> None:
    from rich.table import Table

    out = terminal(json)
    out.print(f"from {d.a.name} ({d.a.updates} updates, {d.digest_a}) to {d.b.name} ({d.b.updates}, {d.digest_b})")
    tensors = Table("tensor", "values", "changed", "length of change", "relative", "largest", box=None)
    for t in d.tensors:
        tensors.add_row(t.tensor, f"{t.values:,}", f"{t.changed:,}", f"{t.length:.4g}", f"{100 * t.relative:.2f} %",
                        f"{t.largest:.4g}")  # fmt: skip
    out.print(tensors)
    by = Table("who", "updates", "rows", "which", "length", "workers", box=None)
    for c in d.contributions:
        by.add_row(c.who, str(c.updates), f"{c.rows:,}", f"{c.first_seq} to {c.last_seq}", f"{c.length:.4g}",
                   ", ".join(c.workers))  # fmt: skip
    out.print(by)


# ---- archive, bisect -----------------------------------------------------------------------------------------
def archive(
    run: RunArgument = "",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write.", show_default="RUN.zip", dir_okay=False)
    ] = None,
    last: LastOption = False,
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    kafka: KafkaOption = None,
    json: JsonOption = None,
) -> None:
    """Pack a whole run into one file: all records, verdicts, manifest, environment. It replays without Kafka.

    Equal runs give equal files. The file contains the rows the run was trained on; signing keys are not in it.

    Example:

        gossipdbn archive mnist-20250101-120000 -o mnist.zip
    """
    from gossipdbn.launch.records import pack

    check_folder("-o", output)
    with recorded_run(where_of(home, bootstrap, prefix, key_file, 0, kafka), run, last) as found:
        history = history_of(found, None)
        path = output or Path(f"{found.run.manifest.run}.zip")
        facts, sha = pack(history, path)
        size = path.stat().st_size
    write_json(json, {"archive": str(path), "bytes": size, "sha256": sha, "run": facts.run, "state": facts.state,
                      "version": facts.version, "digest": facts.digest})  # fmt: skip
    terminal(json).print(
        f"{path}: run {facts.run} ({facts.state}), {size / 1e6:.2f} MB, sha256 {sha}\n"
        f"replay it: gossipdbn replay {path}"
    )


def bisect(
    run: RunArgument = "",
    metric: Annotated[
        str, typer.Option("--metric", help="test-error, reconstruction-error or free-energy; small is good.")
    ] = "test-error",
    data: Annotated[
        str, typer.Option("--data", help="Held-out rows: files, folder or glob.", show_default="the run's [test] rows")
    ] = "",
    labels: Annotated[str, typer.Option("--labels", help="File of labels beside idx images.")] = "",
    above: Annotated[
        float | None,
        typer.Option("--above", help="Broken means above this.", show_default="half way from the best to the end"),
    ] = None,
    looks: Annotated[int, typer.Option("--looks", help="Evenly spread looks before the search.", min=2)] = 9,
    last: LastOption = False,
    jobs: JobsOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    kafka: KafkaOption = None,
    json: JsonOption = None,
) -> None:
    """Find the update after which a held-out measure broke, by binary search over the versions of a run.

    Examples:

        gossipdbn bisect --last --metric test-error

        gossipdbn bisect mnist.zip --metric reconstruction-error --data heldout.csv --above 0.05
    """
    from gossipdbn.replay.moments import Timeline, bisect_metric

    if metric not in ("test-error", "reconstruction-error", "free-energy"):
        raise ConfigError(f"--metric {metric}: it is one of test-error, reconstruction-error, free-energy")
    where = where_of(home, bootstrap, prefix, key_file, 0, kafka)
    with recorded_run(where, run, last) as found:
        timeline = Timeline(history_of(found, jobs))
        rows = data or _held_out(where, found.run.manifest.run)
        measure = _measure(metric, rows, labels)

        def look(count: int) -> float:
            value = measure(timeline.model(timeline.moment(count)))
            notice(f"after {count} updates: {metric} {value:.6g}")
            return value

        result = bisect_metric(timeline, look, above, looks)
    write_json(json, {"metric": metric, **msgspec.to_builtins(result)})
    name = run if found.facts is not None else timeline.run.manifest.run
    terminal(json).print(_bisection_text(result, metric, timeline, name))


def _held_out(where: Where, run: str) -> Any:
    from gossipdbn.launch.train import load_remembered

    config, _ = load_remembered(where.home, run)
    if config.test is None:
        raise ConfigError("bisect: the run's configuration has no [test] rows; name held-out rows with --data")
    return config.test


def _measure(metric: str, rows: Any, labels: str) -> Callable[[Model], float]:
    from gossipdbn import inference

    def measure(model: Model) -> float:
        if metric == "test-error":
            return float(inference.evaluate(model, rows, labels=labels).error)
        summary = inference.score(model, rows, labels=labels)
        value = summary.mean_reconstruction_error if metric == "reconstruction-error" else summary.mean_free_energy
        assert value is not None
        return float(value)

    return measure


def _bisection_text(b: Bisection, metric: str, timeline: Timeline, name: str) -> str:
    if not b.broken:
        best = min(value for _, value in b.values)
        end = b.values[-1][1]
        return f"{metric} did not break: {end:.6g} at the end, {best:.6g} at best (threshold {b.threshold:.6g})"
    if b.offset < 0:
        return f"{metric} was above {b.threshold:.6g} at every look: it never was good"
    values = dict(b.values)
    what = f"revocation {b.seq}" if b.revocation else f"slot {b.slot} update {b.seq}"
    version = ",".join(str(n) for n in timeline.version(b.bad))
    return (
        f"{metric} broke with {what} (worker {b.worker}, {time_text(b.at_ms)}): {values[b.good]:.6g} before, "
        f"{values[b.bad]:.6g} after (threshold {b.threshold:.6g}, version {version})\n"
        f"the model before it: gossipdbn replay {name} --until '#{b.good}' -o MODEL"
    )
