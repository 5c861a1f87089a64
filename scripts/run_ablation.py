#!/usr/bin/env python3
"""Makes a table: trains and evaluates each of its rows with several seeds, and compares them.

What the table consists of stands in a YAML file (its form: longtail_det2/ablation/specification.py). Below
--output it leaves results.json (each run with its settings, times and machine), table.md, plot.png and
differences.png, and below runs/ a folder for each run with its log. What is finished is not done again,
unless the file changed what it depends on; a training that was interrupted goes on from its last checkpoint.

Examples:
    python scripts/run_ablation.py projects/ConcurrentSoftmax/ablations/loss.yaml --dry-run
    python scripts/run_ablation.py projects/ConcurrentSoftmax/ablations/loss.yaml --jobs 2
"""

import argparse
import logging
import os
import shlex
import signal
import sys
import time
import warnings
from pathlib import Path
from types import FrameType

# PyTorch warns of what Detectron2 uses, which the user cannot change.
warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated", category=FutureWarning)

from longtail_det2.ablation.estimate import describe_work  # noqa: E402
from longtail_det2.ablation.jobs import Job, expand  # noqa: E402
from longtail_det2.ablation.layout import Layout, locked  # noqa: E402
from longtail_det2.ablation.parsing import load_specification  # noqa: E402
from longtail_det2.ablation.report import write_report  # noqa: E402
from longtail_det2.ablation.runner import Runner  # noqa: E402
from longtail_det2.ablation.specification import Specification  # noqa: E402
from longtail_det2.engine.cli import USER_ERROR  # noqa: E402
from longtail_det2.utils.errors import ConfigError, DataError  # noqa: E402
from longtail_det2.visualization.report_facts import duration  # noqa: E402

SCRIPTS = Path(__file__).resolve().parent
OUTPUT = Path("output") / "ablations"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("specification", type=Path, metavar="SPECIFICATION.yaml", help="what the table consists of")
    add("--output", type=Path, metavar="DIR", help=f"default: {OUTPUT}/<project>/<name of the file>")
    add("--jobs", type=int, default=1, metavar="N", help="runs at once (default: 1)")
    add("--threads", type=int, default=1, metavar="N", help="$OMP_NUM_THREADS of each run (default: 1)")
    add("--only", default="", metavar="ROW,...", help="these rows alone, with the rows that they start from")
    add("--seeds", default="", metavar="N,...", help="instead of those of the file")
    add("--dry-run", action="store_true", help="list what is to be done and how long it may take")
    add("--report", action="store_true", help="run nothing: write table and plots of what is there")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0; 1 if a run failed; 2 after an error that the user can mend."""
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("longtail_det2.ablation").setLevel(logging.INFO)
    _interrupt_on_sigterm()
    try:
        return run(args)
    except (ConfigError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT


def _interrupt_on_sigterm() -> None:
    """Makes SIGTERM end this process as Ctrl-C does; the forked ones that draw pictures end at once."""
    own = os.getpid()

    def interrupt(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != own:
            os._exit(128 + number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def run(args: argparse.Namespace) -> int:
    """Does what the command line says.

    Raises:
        ConfigError: in the specification or the command line.
        DataError: the output folder cannot be written.
    """
    for name in ("jobs", "threads"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} must be at least 1, got {getattr(args, name)}")
    specification = load_specification(args.specification, SCRIPTS)
    seeds = parse_seeds(args.seeds)
    jobs = expand(specification, seeds, [name.strip() for name in args.only.split(",") if name.strip()])
    layout = Layout((args.output or default_output(args.specification)).absolute())
    if args.dry_run:
        print_work(specification, jobs, layout, args.jobs)
        return 0
    everything = expand(specification, sorted({*specification.seeds, *seeds}))
    command = f"python scripts/run_ablation.py {shlex.quote(shown_path(args.specification))}"
    started = time.monotonic()
    with locked(layout.output) as lock:
        if args.report:
            print_files(write_report(specification, everything, layout, command))
            return 0
        runner = Runner(
            specification,
            layout,
            SCRIPTS,
            at_once=args.jobs,
            threads=args.threads,
            lock=lock,
            finished=lambda: write_report(specification, everything, layout, command, plots=False),
        )
        write_report(specification, everything, layout, command, plots=False)
        runner.run(jobs)
        files = write_report(specification, everything, layout, command)
    print(f"\n{len(jobs)} runs in {duration(time.monotonic() - started)}")
    print_files(files)
    for failure in runner.failures:
        print(f"FAILED {failure.job.place}: {failure.reason}", file=sys.stderr)
    return 1 if runner.failures else 0


def parse_seeds(text: str) -> tuple[int, ...]:
    """Numbers separated by commas.

    Raises:
        ConfigError: something else.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words) or len(set(words)) < len(words):
        raise ConfigError(f"--seeds must be different numbers separated by commas, got {text!r}")
    return tuple(int(word) for word in words)


def default_output(specification: Path) -> Path:
    """Where the results of projects/PROJECT/ablations/NAME.yaml go: OUTPUT/PROJECT/NAME."""
    folder = specification.resolve().parent
    project = folder.parent.name if folder.name == "ablations" else ""
    return OUTPUT / project / specification.stem


def shown_path(path: Path) -> str:
    """The path from here, where it is below; else its name."""
    path = path.resolve()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.name


def print_work(specification: Specification, jobs: list[Job], layout: Layout, at_once: int) -> None:
    """Lists the jobs with their state and an estimate."""
    lines, seconds = describe_work(specification, jobs, layout)
    trainings = sum(not job.is_evaluation for job in jobs)
    print("\n".join(lines))
    print(f"\n{trainings} trainings, {len(jobs) - trainings} further evaluations")
    wall = f"{duration(seconds / at_once)} with --jobs {at_once}"
    print(f"to do: about {duration(seconds)} of processor time, {wall}")


def print_files(files: list[Path]) -> None:
    """Lists what was written."""
    for path in files:
        print(shown_path(path) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
