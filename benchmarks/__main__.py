"""``python -m plume.benchmarks``: what latent thinking costs; see ``docs/performance.md``.

- ``compare``: this package next to a single pass, explicit reasoning and one sample at a time, in one run, with random
  weights or those of a checkpoint.
- ``parts``: what the parts of an embedding cost, and a latent step over the machine's floor.
- ``training``: memory, throughput and the cost of latent steps in a training step.
- ``chart``: a picture of a result of ``compare``.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plume.arguments import ArgumentParser
from plume.benchmarks.names import DTYPE_NAMES, INPUTS, SYSTEMS
from plume.checkpoints import locate
from plume.hub import MODEL_TYPES
from plume.hub.sizes import SIZES

if TYPE_CHECKING:
    from plume.benchmarks.compare import Cell

# Functions import what is heavy themselves: a help does not wait for torch.
_DEVICE = "torch device; CUDA if there is one, if omitted"


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=locate, help="tiny, or a folder or Hub id; random weights of several sizes if omitted"
    )
    parser.add_argument("--backbone", choices=MODEL_TYPES, default=MODEL_TYPES[0], help="of the random weights")
    parser.add_argument("--device", help=_DEVICE)
    parser.add_argument("--quick", action="store_true", help="only the telling cells and systems")
    parser.add_argument(
        "--output", type=Path, help="result file; benchmark-DEVICE.json in the working folder if omitted"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the rows of the result file")
    parser.add_argument(
        "--minutes",
        type=float,
        help="start no further cell after this time; 16, or 5 with --quick; more time, more turns",
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, help="only cells of these sizes")
    parser.add_argument("--inputs", nargs="+", choices=INPUTS, default=[], help="only cells of these inputs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="with --model: rows per batch")
    parser.add_argument("--runtime", type=Path, nargs="+", default=[], help="with --model: its exports, timed as well")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="only these systems")
    parser.add_argument("--threads", type=int, help="torch threads; torch's own choice if omitted")
    parser.add_argument("--processor-time", action="store_true", help="measure it, where others use the machine")


def _add_parts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", choices=SIZES, default="0.2b", help="shape of the random model")
    parser.add_argument("--backbone", choices=MODEL_TYPES, default=MODEL_TYPES[0], help="of the random model")
    parser.add_argument("--batch", type=int, nargs="+", default=[8], help="rows per batch")
    parser.add_argument("--input", choices=INPUTS, default="text64", help="kind of input")
    parser.add_argument("--dtype", choices=DTYPE_NAMES, default="fp32", help="dtype of the weights")
    parser.add_argument("--device", help=_DEVICE)
    parser.add_argument("--min-seconds", type=float, default=2.0, help="time spent per figure")
    parser.add_argument("--plain", action="store_true", help="without speed_up")
    parser.add_argument("--int8", action="store_true", help="with weights of eight bits")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = ArgumentParser(prog="plume bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_compare(commands.add_parser("compare", help="all systems side by side"))
    _add_parts(commands.add_parser("parts", help="parts of an embedding and the roofline of a step"))
    three = commands.add_parser("training", help="memory and throughput of a training step")
    three.add_argument("--size", choices=SIZES, default="small", help="shape of the random model")
    three.add_argument("--prefix", type=int, default=64, help="prefix tokens per row")
    three.add_argument("--suffix", type=int, default=32, help="suffix tokens per row")
    three.add_argument("--only", choices=["memory", "throughput", "latent_steps"], help="measure one of the three")

    four = commands.add_parser("chart", help="draw a result of compare")
    four.add_argument("result", type=Path, help="result file of compare")
    four.add_argument("picture", type=Path, help="PNG to write")
    return parser


def run_compare(options: argparse.Namespace) -> None:
    """Measure all systems, write the rows, print table and claims."""
    import torch

    from plume.benchmarks import compare, report

    torch.set_num_threads(options.threads or torch.get_num_threads())
    path = options.output or Path(f"benchmark-{options.device}.json")
    machine = compare.describe_machine(options.device)
    minutes = options.minutes or (5.0 if options.quick else 16.0)
    quick = {"rounds": (3, 3), "seconds": 0.0, "longest": 60.0} if options.quick else {"longest": 60 * minutes / 8}
    effort = compare.Effort(minutes=minutes, **quick)
    if options.processor_time:
        machine["clock"], effort.now = "processor time", time.process_time
    needed = report.claimed(options.device) if options.quick and not options.model else {}
    systems: Sequence[str] = options.systems or SYSTEMS
    runtimes = compare.open_runtimes(options.runtime, options.model, torch.get_num_threads())
    if options.model:
        cells, open_model, machine["weights"], most = compare.plan_checkpoint(
            options.model, options.device, options.batch, options.inputs
        )
        systems = [*compare.runnable(systems, most), *runtimes]
    else:
        cells = compare.plan(options.device, options.quick)
        open_model = partial(compare.open_random, model_type=options.backbone)
        machine["backbone"] = options.backbone
    sizes, inputs = options.sizes, options.inputs
    cells = [cell for cell in cells if (not sizes or cell.size in sizes) and (not inputs or cell.input in inputs)]
    rows = compare.read_rows(path, machine, options.quick) if options.resume else []
    header: dict[str, Any] = {"machine": machine, "load_before": round(os.getloadavg()[0], 2), "quick": options.quick}
    header["note"] = "explicit_cot is extrapolated from 65 to 403 written tokens. latent_steps is K."

    def systems_of(cell: "Cell") -> list[str]:
        return [system for system in systems if not needed or system in needed[cell]]

    save = partial(compare.write_result, path, header, rows)
    left_out: list[Cell] = []
    try:
        left_out = compare.run(cells, systems_of, options.device, effort, rows, save, open_model, runtimes)
    except KeyboardInterrupt:
        print(f"\nStopped. {len(rows)} rows are in {path}; --resume continues from them.")
    header["left_out"] = [" ".join(map(str, cell)) for cell in left_out]
    save()
    print(report.format_table(rows))
    for name, value, target in report.claims(rows):
        print(f"{name:<52}{value:>9.3f}   target {target}")
    if left_out:
        print(f"Left out, the time of {minutes} minutes was over: {', '.join(header['left_out'])}")


def run_parts(options: argparse.Namespace) -> None:
    """Measure and print the parts and the roofline for one shape."""
    from plume.benchmarks import compare, parts
    from plume.benchmarks.models import DTYPES, build_model
    from plume.evaluation.report import markdown
    from plume.evaluation.store import write_json

    model, processor = build_model(options.size, DTYPES[options.dtype], options.device, options.backbone)
    model.speed_up(not options.plain, int8=options.int8, reuse=False)
    rows = []
    for batch in options.batch:
        found = parts.roofline(model, processor, options.input, batch, options.min_seconds, options.int8)
        rows.append(
            {
                "size": options.size,
                "dtype": options.dtype,
                "int8": options.int8,
                "batch": batch,
                "input": options.input,
                **found,
            }
        )
        milliseconds = found["ms"]
        lines = [[part, f"{ms:.2f}", f"{ms / milliseconds['single pass']:.3f}"] for part, ms in milliseconds.items()]
        floor = [[name, str(value)] for name, value in found.items() if name != "ms"]
        shape = f"{options.backbone} {options.size}, {options.dtype}, {options.device}"
        print(f"\nrandom {shape}, batch {batch}, {options.input}\n")
        print(markdown(["part", "ms", "/ single pass"], lines, aligned=True))
        print("\n" + markdown(["a latent step", ""], floor, aligned=True))
    if options.json:
        write_json(options.json, {"header": {"machine": compare.describe_machine(options.device)}, "rows": rows})


def main(arguments: list[str] | None = None) -> None:
    """Run one of the commands.

    Args:
        arguments: Command line without the program; ``sys.argv`` if omitted.
    """
    options = build_parser().parse_args(arguments)
    import torch

    from plume.benchmarks import report, training

    if options.command in ("compare", "parts") and options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.command == "compare":
        run_compare(options)
    elif options.command == "parts":
        run_parts(options)
    elif options.command == "training":
        print(json.dumps(training.run(options), indent=2))
    else:
        result = json.loads(options.result.read_text("utf-8"))
        report.draw(result["rows"], result["header"], options.picture)
        print(f"wrote {options.picture}")


if __name__ == "__main__":
    main()
