"""`python -m campaign`: injects faults, and checks every answer against the fold."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from campaign import answers, mutants, readouts, result, soak
from campaign.alerts import run_silence
from campaign.chaos import ChaosPlan, Client, run
from campaign.clients import conformance
from campaign.exporter.command import exporter, exporter_mutants
from campaign.fuzz import TARGETS
from campaign.releases import ramp
from campaign.roads.command import roads
from campaign.tally import Tally
from stepwell.addons.grpc_api.settings import missing_packages
from tests.npm import NEEDS_NODE, node_command

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
_console = Console(stderr=True)
_INTERRUPTED = 130
app.command()(roads)
app.command()(exporter)
app.command()(exporter_mutants)


@app.callback()
def main() -> None:
    """Check Stepwell's promises under faults on this machine. Only processes that the campaign started are affected."""
    # SIGTERM ends the processes that a campaign has started, as Ctrl-C does, also in a background job of a shell, which
    # ignores SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))


@app.command()
def chaos(
    *,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long faults are injected.")] = 10.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random choices; random by default, and printed.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Concurrent streams.")] = 32,
    fault_every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two faults, on average.")] = 2.0,
    releases: Annotated[
        bool, typer.Option("--releases", help="Meanwhile try, promote and abort versions of the model.")
    ] = False,
    release_every_s: Annotated[
        float, typer.Option(min=0.05, help="Seconds between two changes of the release, on average.")
    ] = 0.4,
    transport: Annotated[
        Literal["http", "grpc"], typer.Option(help="Step over HTTP and WebSockets, or over gRPC.")
    ] = "http",
    client: Annotated[
        Client,
        typer.Option(help="What steps the streams: the campaign's own client, the TypeScript one, or the Python one."),
    ] = "own",
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the result there.")] = None,
    without: Annotated[
        str | None,
        typer.Option(help=f"Test a broken build, on which the campaign must fail: {', '.join(mutants.BROKEN)}."),
    ] = None,
) -> None:
    """Kill, pause, delay and disconnect two workers and their store while clients step streams.

    Exits with 0 if there were no violations, else with 1; with --without, the reverse.
    """
    if without is not None and without not in mutants.BROKEN:
        raise typer.BadParameter(f"{without!r}; expected one of {', '.join(mutants.BROKEN)}", param_hint="--without")
    if transport == "grpc" and (releases or without == mutants.NEEDS_RELEASES):
        raise typer.BadParameter("grpc; releases are tested over http only", param_hint="--transport")
    if transport == "grpc" and (missing := missing_packages()):
        _console.print(
            f"The packages of gRPC are not installed: no {', '.join(missing)}. Install them: "
            "STEPWELL_EXTRAS=dev,grpc ./stepwell --version",
            markup=False,
        )
        raise typer.Exit(3)
    if client != "own" and (transport == "grpc" or releases or without == mutants.NEEDS_RELEASES):
        raise typer.BadParameter(f"{client}; over http and without releases only", param_hint="--client")
    if client == "typescript" and node_command() is None:
        _console.print(f"The TypeScript client {NEEDS_NODE}", markup=False)
        raise typer.Exit(3)
    seed = secrets.randbelow(10**6) if seed is None else seed
    release_every_s = release_every_s if releases or without == mutants.NEEDS_RELEASES else 0.0
    stop_when_broken = without is not None
    plan = ChaosPlan(minutes * 60, seed, streams, fault_every_s, release_every_s, stop_when_broken, transport, client)
    _console.print(f"seed {seed}")
    tally = Tally()
    ended_early = not _run_with_progress(plan, tally, without)
    outcome = result.document(plan, tally, lacks=without, ended_early=ended_early)
    result.show(outcome, _console)
    if save is not None:
        result.save(save, outcome)
    if ended_early and not tally.violations:
        raise typer.Exit(_INTERRUPTED)
    raise typer.Exit(bool(tally.violations) != (without is not None))


@app.command(name="answers")
def compare_answers(
    *,
    before: Annotated[
        Path, typer.Option(metavar="DIR", exists=True, file_okay=False, help="A checkout of another commit.")
    ],
    requests: Annotated[int, typer.Option(min=20, help="How many requests; a feed's messages count as one.")] = 4000,
    seed: Annotated[int, typer.Option(help="Seed of the requests.")] = 1,
) -> None:
    """Send the same requests of every kind to this checkout and to another, and compare the answers byte for byte.

    Exits with 0 if all are the same, else with 1.
    """
    with tempfile.TemporaryDirectory(prefix="answers-") as folder:
        counts, found = answers.differing(before.resolve(), Path(folder), seed=seed, count=requests)
    for kind, count in sorted(counts.items()):
        _console.print(f"{kind:10} {count:7}", markup=False)
    for one in found[:10]:
        _console.print(
            f"{one.at}: {one.request}\n  before {one.before[:500]!r}\n  now    {one.now[:500]!r}", markup=False
        )
    _console.print(f"{len(found)} of {sum(counts.values())} answers differ")
    raise typer.Exit(bool(found))


@app.command(name="conformance")
def run_conformance(
    *,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long cases are begun.")] = 5.0,
    seed: Annotated[int | None, typer.Option(help="Seed of the faults; random by default, and printed.")] = None,
    fault_every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two faults, on average.")] = 2.0,
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the result there.")] = None,
) -> None:
    """Run the cases of clients/conformance.json by the clients of both languages while faults are injected.

    Exits with 0 if every case passed each time, else with 1. Without Node only the Python client runs them.
    """
    seed = secrets.randbelow(10**6) if seed is None else seed
    _console.print(f"seed {seed}")
    found = conformance.KitResult()
    with tempfile.TemporaryDirectory(prefix="sw") as path:
        try:
            running = conformance.run(Path(path), found, seconds=minutes * 60, seed=seed, fault_every_s=fault_every_s)
            asyncio.run(running)
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
    outcome = result.kit_document(found, seed, minutes)
    _console.print_json(data=outcome)
    if save is not None:
        result.save(save, outcome)
    raise typer.Exit(bool(found.violations))


@app.command(name="soak")
def run_soak(
    *,
    minutes: Annotated[float, typer.Option(min=0.1, help="Duration.")] = 120.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random choices; random by default, and printed.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Concurrent streams.")] = 32,
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the result there.")] = None,
) -> None:
    """Create and abandon streams; memory, open files and keys must not grow. Linux only."""
    seed = secrets.randbelow(10**6) if seed is None else seed
    _console.print(f"seed {seed}")
    plan, tally, samples = soak.SoakPlan(minutes * 60, seed, streams), Tally(), list[soak.Sample]()
    with tempfile.TemporaryDirectory(prefix="sw") as path, Progress(console=_console, transient=True) as bar:
        task = bar.add_task("starting", total=plan.seconds)

        def update_progress(seconds: float) -> None:
            bar.update(
                task, completed=seconds, description=f"{tally.steps:,} steps, {sum(tally.streams.values()):,} streams"
            )

        try:
            asyncio.run(soak.run(plan, Path(path), tally, samples, update_progress))
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
    outcome = result.soak_document(plan, tally, samples)
    result.show_soak(outcome, _console)
    if save is not None:
        result.save(save, outcome)
    raise typer.Exit(bool(outcome["grew"] or tally.violations))


@app.command()
def alerts(
    *,
    streams: Annotated[int, typer.Option(min=1, help="Streams that fall silent.")] = 1000,
    seconds: Annotated[float, typer.Option(min=5, help="Within which they fall silent.")] = 60.0,
    kill_every_s: Annotated[float, typer.Option(min=1, help="Seconds between two kills.")] = 10.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random choices; random by default, and printed.")
    ] = None,
) -> None:
    """Kill alert processes while streams fall silent. Exits with 1 unless each raises one alarm within 2 s."""
    seed = secrets.randbelow(10**6) if seed is None else seed
    _console.print(f"seed {seed}")
    with tempfile.TemporaryDirectory(prefix="sw") as path, Progress(console=_console, transient=True) as bar:
        task = bar.add_task("streams fall silent", total=seconds)
        found = run_silence(
            Path(path),
            streams=streams,
            seconds=seconds,
            kill_every_s=kill_every_s,
            seed=seed,
            on_progress=lambda done: bar.update(task, completed=done),
        )
    for problem in found.problems[:20]:
        _console.print(problem, markup=False)
    print(found.sentence())  # noqa: T201
    raise typer.Exit(bool(found.problems))


@app.command(name="readouts")
def run_readouts(
    *,
    streams: Annotated[int, typer.Option(min=1, help="Streams that learn.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="How long faults are injected.")] = 300.0,
    fault_every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two faults, on average.")] = 5.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random choices; random by default, and printed.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the result there.")] = None,
) -> None:
    """Kill, pause and disconnect while streams learn; weights must be a fold over their timesteps, bit for bit.

    Exits with 0 if all are, else with 1.
    """
    seed = secrets.randbelow(10**6) if seed is None else seed
    _console.print(f"seed {seed}")
    plan, found = readouts.ReadoutPlan(seconds, streams, seed, fault_every_s), readouts.ReadoutResult()
    with tempfile.TemporaryDirectory(prefix="sw") as path, Progress(console=_console, transient=True) as bar:
        task = bar.add_task("starting", total=seconds)

        def update_progress(done: float) -> None:
            bar.update(task, completed=done, description=f"{found.steps:,} steps, {found.retries:,} retries")

        asyncio.run(readouts.run(plan, Path(path), found, update_progress))
    outcome = {"seed": seed, "streams": streams, "seconds": seconds, **asdict(found)}
    _console.print_json(data=outcome)
    if save is not None:
        result.save(save, outcome)
    raise typer.Exit(bool(found.wrong) or not found.steps)


@app.command(name="ramp")
def run_ramp(
    *,
    streams: Annotated[int, typer.Option(min=10, help="Number of streams.")] = 5000,
    seed: Annotated[
        int | None, typer.Option(help="Seed of all random choices; random by default, and printed.")
    ] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the result there.")] = None,
) -> None:
    """Ramp a version over many streams under load, abort it at 50 %, then ramp it to 100 % and promote it.

    Exits with 0 if each stream was answered as it has to be, else with 1.
    """
    seed = secrets.randbelow(10**6) if seed is None else seed
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="sw") as path:
        found = asyncio.run(ramp.run(streams, seed, Path(path), tally))
    outcome = ramp.document(found, tally, seed)
    _console.print_json(data=outcome)
    if save is not None:
        result.save(save, outcome)
    raise typer.Exit(bool(tally.violations) or not found.is_good())


@app.command(name="fuzz")
def run_fuzz(
    target: Annotated[str, typer.Argument(help=f"One of {', '.join(TARGETS)}.")],
    *,
    seconds: Annotated[int, typer.Option(min=1, help="Duration.")] = 60,
    corpus: Annotated[Path, typer.Option(help="Folder for inputs that reached new code.")] = Path(".fuzz"),
) -> None:
    """Fuzz a reader of foreign bytes with atheris, guided by coverage. Exits with 1 on an unexpected exception."""
    if target not in TARGETS:
        raise typer.BadParameter(f"{target!r}; expected one of {', '.join(TARGETS)}", param_hint="target")
    try:
        import atheris
    except ImportError:
        _console.print("atheris is not installed; install it into this environment: .venv/bin/pip install atheris")
        raise typer.Exit(3) from None
    path = corpus / target
    path.mkdir(parents=True, exist_ok=True)
    atheris.instrument_all()
    atheris.Setup(
        ["campaign fuzz", f"-max_total_time={seconds}", f"-artifact_prefix={path}/", str(path)], TARGETS[target]
    )
    atheris.Fuzz()


@app.command(name="mutants")
def run_mutants(
    *,
    at_once: Annotated[int, typer.Option(min=1, help="Mutants run in parallel.")] = 2,
    machine: Annotated[bool, typer.Option(help="Run only the state machine of tests/exactly_once on each.")] = False,
) -> None:
    """Break the protocol one line at a time, and check that a test fails each time."""
    tests = ("tests/exactly_once/test_machine.py",) if machine else ()
    try:
        with tempfile.TemporaryDirectory() as folder:
            alive = mutants.survivors(Path(folder), at_once=at_once, tests=tests)
    except mutants.MutantError as exc:
        _console.print(str(exc), markup=False)
        raise typer.Exit(1) from None
    for mutant in mutants.MUTANTS:
        _console.print(f"{'NOT CAUGHT' if mutant.name in alive else 'caught':12}{mutant.name}")
    raise typer.Exit(bool(alive))


def _run_with_progress(plan: ChaosPlan, tally: Tally, without: str | None) -> bool:
    """Run a chaos campaign with a progress bar; return False if it was interrupted."""
    with tempfile.TemporaryDirectory(prefix="sw") as path, Progress(console=_console, transient=True) as bar:
        folder = Path(path)
        env = None
        if without is not None:
            env = mutants.environment(mutants.broken_copy(mutants.BROKEN[without], folder / "broken"))
        task = bar.add_task("starting", total=plan.seconds)

        def update_progress(seconds: float) -> None:
            description = (
                f"{tally.steps:,} steps, {sum(tally.faults.values())} faults, {len(tally.violations)} violations"
            )
            bar.update(task, completed=seconds, description=description)

        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run(plan, folder, tally, env=env, on_progress=update_progress))
            return True
        return False


if __name__ == "__main__":
    app()
