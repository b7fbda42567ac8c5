"""``python -m plume.evaluation COMMAND``: run tasks, print the score table, check results, list the tasks.

``run`` scores a checkpoint; ``table`` prints the scores of result folders next to published ones; ``doctor`` checks a
result folder or a file in the VLM2Vec layout; ``tasks`` lists the table; ``audit`` asks whether the latent steps are
used. What an embedding costs is measured by ``python -m plume.benchmarks compare``.
"""

import argparse
import json
import sys
from pathlib import Path

from plume.arguments import ArgumentParser
from plume.evaluation.table import AUDIT_QUERIES, AUDIT_SWEEP, METRICS, MMEB_V2, PROMPT_SETS, read_table, select


def _add_run(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("run", help="score a checkpoint, one result file per task")
    parser.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id")
    parser.add_argument("--revision", help="revision of a Hub checkpoint")
    parser.add_argument("--table", type=Path, default=MMEB_V2, help="table of tasks; MMEB-v2 if omitted")
    parser.add_argument("--tasks", nargs="*", default=[], help="ids, groups or modalities; all if omitted")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="local copies of data sets, by repository")
    parser.add_argument("--media-root", type=Path, help="images and frames; --data-root if omitted")
    parser.add_argument("--output", dest="out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--prompt-set", choices=PROMPT_SETS, help="instructions; the checkpoint's own if omitted")
    parser.add_argument(
        "--num-latent-steps",
        "--latent-steps",
        dest="latent_steps",
        type=int,
        nargs="+",
        help="K; the checkpoint's if omitted. Several give the whole curve in one pass, each in a folder OUT/kK",
    )
    parser.add_argument(
        "--baseline", choices=["single-pass", "explicit-cot"], help="the same weights, without latent steps"
    )
    parser.add_argument(
        "--exit-threshold", type=float, help="1 - cosine of two read-outs below which an input stops thinking"
    )
    parser.add_argument("--exit-steps", type=int, nargs="+", help="where it may stop; every step if omitted")
    parser.add_argument("--dim", type=int, help="leading dimensions to keep; all if omitted")
    parser.add_argument("--num-frames", type=int, help="frames per clip; the table's if omitted")
    parser.add_argument("--batch-size", type=int, default=8, help="inputs per forward pass")
    parser.add_argument("--devices", nargs="*", default=[], help="torch devices, e.g. cuda:0 cuda:1")
    parser.add_argument("--dtype", default="auto", help="of the weights, e.g. bfloat16")
    parser.add_argument("--vectors", type=Path, help="folder of vectors, for resuming; OUT/vectors if omitted")
    parser.add_argument("--num-workers", type=int, help="processes that decode media")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Score a checkpoint."""
    from plume.evaluation.curve import evaluate_curve
    from plume.evaluation.runner import evaluate
    from plume.evaluation.store import FailedTasksError

    rows = select(read_table(options.table), options.tasks)
    settings = {
        name: value for name, value in vars(options).items() if name not in ("command", "model", "table", "tasks")
    }
    failures: dict[str, str] = {}
    steps = settings.pop("latent_steps") or [None]
    try:
        if len(steps) > 1:
            results = evaluate_curve(options.model, rows, steps=steps, **settings)
        else:
            results = evaluate(options.model, rows, latent_steps=steps[0], **settings)
    except FailedTasksError as failed:
        results, failures = failed.results, failed.reasons
    for result in results:
        k = f"  K={result['condition'].get('latent_steps')}" if len(steps) > 1 else ""
        thought = result.get("mean_steps", {})
        k += "".join(f"  {mean:.2f} steps per {role}" for role, mean in thought.items())
        print(f"{result['task']:<48}{result['metric']:<16}{100 * result['score']:7.2f}  n={result['n']}{k}")
    for task, reason in failures.items():
        print(f"{task:<48}FAILED  {reason}")
    return int(bool(failures))


def _add_tasks(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("tasks", help="list the table")
    parser.add_argument("--table", type=Path, default=MMEB_V2, help="table of tasks; MMEB-v2 if omitted")
    parser.add_argument("--tasks", nargs="*", default=[], help="ids, groups or modalities; all if omitted")
    parser.add_argument("--check", action="store_true", help="compare the data with the table (media are not read)")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="local copies of data sets, by repository")
    parser.set_defaults(command=tasks)


def tasks(options: argparse.Namespace) -> int:
    """List tasks, or check their data."""
    rows = select(read_table(options.table), options.tasks)
    if options.check:
        from plume.evaluation.tasks import check_data, data_folder

        differing, offline = 0, False
        for row in rows:
            try:
                if offline and not data_folder(row, options.data_root).is_dir():  # do not wait for the Hub once more
                    raise ConnectionError("no local copy, and the Hub cannot be reached")
                differences = check_data(row, options.data_root)
            except (ValueError, ConnectionError) as error:  # the other tasks are worth a look
                differences, offline = [str(error)], offline or isinstance(error, ConnectionError)
            differing += bool(differences)
            print(f"{row.id:<48}{'; '.join(differences) or 'as the table says'}")
        return int(differing > 0)
    for row in rows:
        pool = f"{row.pool} {row.pool_size or ''}"
        print(f"{row.id:<48}{row.group:<8}{pool:<14}{row.metric:<15}{row.num_queries or '?':>6}  {row.dataset['repo']}")
    local = sum(row.pool == "local" for row in rows)
    print(f"\n{len(rows)} tasks: {local} with local pools, {len(rows) - local} with global ones; {', '.join(METRICS)}")
    return 0


def _add_table(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("table", help="print scores next to published ones")
    parser.add_argument("results", nargs="*", type=Path, help="folders of results")
    parser.add_argument("--table", type=Path, default=MMEB_V2, help="table that they were made with")
    parser.add_argument(
        "--reference",
        nargs="*",
        help="published scores, MODEL or MODEL@VERSION; UME-R1-2B and PLUME if omitted, none without names",
    )
    parser.add_argument("--per-task", action="store_true", help="also print every task (Tables 7 and 8)")
    parser.add_argument("--radar", type=Path, help="draw means by group into this file")
    parser.add_argument("--tradeoff", type=Path, help="draw mean score against latency into this file")
    parser.add_argument("--efficiency", type=Path, help="for --tradeoff: result of python -m plume.benchmarks compare")
    parser.set_defaults(command=table)


def table(options: argparse.Namespace) -> int:
    """Print the score table, and draw."""
    from plume.evaluation.report import report
    from plume.evaluation.scores import choose_references, results_column

    tasks_table = read_table(options.table)
    measured = [results_column(folder, tasks_table) for folder in options.results]
    is_ours = options.table == MMEB_V2
    names = options.reference if options.reference is not None else ["UME-R1-2B", "PLUME"] if is_ours else []
    columns = measured + choose_references(names)
    print(report(columns, tasks_table, options.per_task))
    if options.radar:
        from plume.evaluation.plots import radar

        left_out = radar(columns, tasks_table, options.radar)
        print(f"drawn: {options.radar}" + (f", without {', '.join(left_out)}" if left_out else ""))
    if options.tradeoff:
        from plume.evaluation.plots import measured_points, tradeoff

        if not options.efficiency:
            raise ValueError(
                "--tradeoff needs latencies: give --efficiency FILE, the result of python -m plume.benchmarks compare."
            )
        costs = json.loads(options.efficiency.read_text(encoding="utf-8"))["rows"]
        tradeoff(measured_points(measured, tasks_table, costs), options.tradeoff)
        print(f"drawn: {options.tradeoff}")
    return 0


def _add_doctor(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("doctor", help="check results; exits with 1 if there is a fault")
    parser.add_argument("results", type=Path, help="folder of results, or a score file in the VLM2Vec layout")
    parser.add_argument("--table", type=Path, default=MMEB_V2, help="table that they were made with")
    parser.set_defaults(command=doctor)


def doctor(options: argparse.Namespace) -> int:
    """Check results."""
    from plume.evaluation.doctor import diagnose

    findings = diagnose(options.results, read_table(options.table))
    for finding in findings:
        print(f"{finding.level:<9}{finding.check:<14}{finding.detail}")
    return int(any(finding.level == "fault" for finding in findings))


def _add_audit(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser("audit", prog="plume audit", help="are the latent steps used?")
    parser.add_argument("--model", required=True, help="checkpoint: a folder or a Hub id")
    parser.add_argument("--table", type=Path, default=MMEB_V2, help="table of tasks; MMEB-v2 if omitted")
    parser.add_argument("--data-root", type=Path, required=True, help="folder of local copies of the data sets")
    parser.add_argument("--media-root", type=Path, help="folder of images and frames; --data-root if omitted")
    parser.add_argument("--tasks", nargs="*", help="task ids, groups or modalities; all if omitted")
    parser.add_argument("--output", dest="out", type=Path, required=True, help="folder of the report")
    parser.add_argument(
        "--max-queries", type=int, default=AUDIT_QUERIES, help="queries per task, drawn by seed; 0 for all"
    )
    parser.add_argument(
        "--num-latent-steps", dest="latent_steps", type=int, help="K to audit; the checkpoint's if omitted"
    )
    parser.add_argument(
        "--sweep", type=int, nargs="*", help=f"numbers of latent steps to compare; {AUDIT_SWEEP} if omitted"
    )
    parser.add_argument("--prompt-set", choices=PROMPT_SETS, help="instructions; the checkpoint's own if omitted")
    parser.add_argument("--batch-size", type=int, default=8, help="inputs per forward pass")
    parser.add_argument("--device", help="torch device; a GPU if available")
    parser.add_argument("--dtype", default="auto", help="dtype of the weights")
    parser.add_argument("--revision", help="of a Hub checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="of queries drawn, shuffles and noise")
    parser.set_defaults(command=audit)


def audit(options: argparse.Namespace) -> int:
    """Audit the latent steps of a checkpoint."""
    from plume.evaluation.audit import audit as measure
    from plume.evaluation.audit.report import headline
    from plume.evaluation.embedders import ModelEmbedder, load_embedder
    from plume.evaluation.store import FailedTasksError

    embedder = load_embedder(
        options.model,
        latent_steps=options.latent_steps,
        devices=[options.device] if options.device else [],
        dtype=options.dtype,
        revision=options.revision,
    )
    assert isinstance(embedder, ModelEmbedder), "one device, one model"
    try:
        results = measure(
            embedder,
            select(read_table(options.table), options.tasks),
            options.data_root,
            options.out,
            media_root=options.media_root,
            prompt_set=options.prompt_set,
            max_queries=options.max_queries or None,
            sweep=options.sweep,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    except FailedTasksError as failed:
        print(failed)
        return 1
    print("\n".join([*headline(results), f"Report: {options.out / 'audit.md'}"]))
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Command line without the program. Defaults to ``sys.argv``.

    Returns:
        The exit status: 1 where a task failed, its data differ from the table, or the doctor finds a fault.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["efficiency"]:
        print("Costs are measured by: python -m plume.benchmarks compare --model MODEL --output FILE", file=sys.stderr)
        return 2
    parser = ArgumentParser(prog="plume evaluate", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_run, _add_table, _add_doctor, _add_tasks, _add_audit):
        add(commands)
    options = parser.parse_args(arguments)
    return options.command(options)


if __name__ == "__main__":
    raise SystemExit(main())
