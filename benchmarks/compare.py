"""The side-by-side comparison: systems x inputs x batches x sizes in one run, and its result file.

1. The **plan** is a list of cells, the most telling first; what the time budget does not reach is left out by name.
2. In a cell the quick systems run in turns, forth and back, so that whatever slows the machine slows them alike; the
   slow ones, which cost minutes, follow in turns of their own.
3. Rows are written as soon as they are known; a run that was cut off continues from them with ``resume``.

The weights are random, of the sizes of a plan, or those of a checkpoint, whose name is then the size.
"""

import gc
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import transformers
from tqdm import tqdm

import plume
from plume import PlumeModel, PlumeProcessor
from plume.benchmarks.models import DTYPES, build_model
from plume.benchmarks.names import INPUTS, LATENT_STEPS, RUNTIMES, runs_on
from plume.benchmarks.systems import SLOW, timers
from plume.evaluation.embedders import fingerprint
from plume.evaluation.store import check_condition, write_whole
from plume.hub.identity import identity_of

if TYPE_CHECKING:
    from plume.runtime import Runtime  # needs onnxruntime

Row = dict[str, Any]
Loaded = tuple[PlumeModel, PlumeProcessor]
COLUMNS = (
    *("system", "size", "device", "dtype", "batch", "input", "latent_steps"),
    *("ms_median", "ms_iqr", "per_second", "turns"),
)


class Cell(NamedTuple):
    """One condition that all systems run under."""

    size: str
    dtype: str
    batch: int
    input: str


@dataclass
class Effort:
    """How long to measure.

    Attributes:
        rounds: Fewest and most rounds of a cell; the slow systems run a third as often.
        seconds: Time after which a cell that has its fewest rounds is done.
        longest: Time after which it is done whatever its rounds. Where a turn takes a tenth of it, only one system
            has a turn to warm up, because the others gain nothing from theirs.
        minutes: Time after which no further cell starts.
        now: Gives the seconds that are measured.
    """

    rounds: tuple[int, int] = (5, 15)
    seconds: float = 10.0
    longest: float = 120.0
    minutes: float = 18.0
    now: Callable[[], float] = time.perf_counter


def plan(device: str, quick: bool) -> list[Cell]:
    """The cells of a run; those that a claim of ``docs/performance.md`` needs come first."""
    if device != "cpu":
        wide = [Cell("2b", "bf16", batch, kind) for kind in ("image448", "text64") for batch in (1, 32, 8)]
        rest = [Cell("2b", "bf16", batch, kind) for kind in ("text512", "video8") for batch in (1, 8, 32)]
        short = [Cell("2b", "bf16", 1, "query12")]
        more = [*short, *rest, *_cells("0.2b", "fp32"), *_cells("tiny", "fp32")]
        return [wide[0], wide[1], wide[4]] if quick else [*wide, *more]
    telling = [  # the cheapest first
        Cell("0.2b", "fp32", 32, "text64"),
        Cell("2b", "bf16", 1, "query12"),
        Cell("2b", "bf16", 8, "text64"),
        Cell("2b", "bf16", 1, "image448"),
    ]
    if quick:
        return telling
    more = [Cell("2b", "bf16", 1, "text64"), Cell("2b", "fp32", 8, "text64"), Cell("2b", "fp32", 1, "image448")]
    small = [Cell("0.2b", "bf16", batch, "text64") for batch in (32, 8, 1)] + [Cell("0.2b", "bf16", 1, "image448")]
    medium = [cell for cell in _cells("0.2b", "fp32") if cell.batch == 1 or cell.input == "text64"]
    last = [Cell("0.2b", "fp32", 8, kind) for kind in ("image448", "text512")]
    last += [Cell("2b", "bf16", 1, kind) for kind in ("text512", "video8", "page896")]
    # Cells of one model are kept together: building it takes longer than some of them.
    cells = [*telling, *more, *medium, *small, *_cells("tiny", "fp32"), *_cells("tiny", "bf16"), *last]
    return list(dict.fromkeys(cells))


def _cells(size: str, dtype: str) -> list[Cell]:
    kinds = {"query12": (1,), "text64": (1, 8, 32), "text512": (1, 8), "image448": (1, 8), "video8": (1,)}
    return [Cell(size, dtype, batch, kind) for kind, batches in kinds.items() for batch in batches]


def open_random(cell: Cell, device: str, model_type: str = "qwen2_vl") -> Loaded:
    """Random weights of the size and dtype of a cell, sped up."""
    model, processor = build_model(cell.size, DTYPES[cell.dtype], device, model_type)
    return model.speed_up(reuse=False), processor


def plan_checkpoint(
    path: str, device: str, batches: Sequence[int], kinds: Sequence[str] = ()
) -> tuple[list[Cell], Callable[[Cell, str], Loaded], dict[str, Any], int]:
    """Measure a checkpoint instead of random weights.

    Args:
        path: Folder or Hub id.
        device: Torch device.
        batches: Rows per batch.
        kinds: Keys of :data:`~plume.benchmarks.names.INPUTS`; all where empty.

    Returns:
        Its cells, what opens it for :func:`run`, what identifies its weights, and the most latent steps that it takes.
    """
    model, processor = plume.load(path, device=device)
    dtypes = {dtype: name for name, dtype in DTYPES.items()}
    dtype = dtypes.get(model.dtype, str(model.dtype).removeprefix("torch."))
    cells = [Cell(Path(path).name, dtype, batch, kind) for batch in batches for kind in kinds or INPUTS]
    return (
        cells,
        lambda cell, device: (model.speed_up(reuse=False), processor),
        fingerprint(path),
        model.config.max_latent_steps,
    )


def open_runtimes(folders: Sequence[Path], checkpoint: str | None, threads: int) -> "dict[str, Runtime]":
    """Exports of a checkpoint, by the system that each is.

    Args:
        folders: What ``plume export`` wrote; one in float32, one in eight bits, or both.
        checkpoint: Folder or Hub id.
        threads: Of each.

    Raises:
        ValueError: If an export is of another checkpoint, or no checkpoint is given.
    """
    if not folders:
        return {}
    if checkpoint is None:
        raise ValueError("--runtime times exports next to the model that they are of: name it with --model.")
    from plume.runtime import Runtime

    exported = [Runtime(folder, threads=threads) for folder in folders]
    for runtime in exported:
        if runtime.manifest.checkpoint != identity_of(checkpoint, "torch.float32"):  # as it was exported
            raise ValueError(
                f"{runtime.folder} was exported from another checkpoint than {checkpoint}, so times would not be those "
                f"of the same weights. Export it again: plume export {checkpoint} OUT"
            )
    return {RUNTIMES[runtime.manifest.int8]: runtime for runtime in exported}


def runnable(systems: Sequence[str], max_latent_steps: int) -> list[str]:
    """The systems that a model with so many latent steps can run."""
    return [system for system in systems if LATENT_STEPS[system] <= max_latent_steps]


def describe_machine(device: str) -> dict[str, Any]:
    """Where and with what a run is made; runs are only continued under the same."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    return {
        "device": torch.cuda.get_device_name() if device != "cpu" else processor,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "bf16_dot_product": torch.cpu._is_avx512_bf16_supported(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def read_rows(path: Path, machine: dict[str, Any], quick: bool) -> list[Row]:
    """Rows of an earlier run to continue from.

    Raises:
        ValueError: If that run was made elsewhere, with other versions or with other effort.
    """
    if not path.exists():
        return []
    result = json.loads(path.read_text("utf-8"))
    made_under = {**result["header"]["machine"], "quick": result["header"]["quick"]}
    check_condition(path, made_under, {**machine, "quick": quick}, "Run without --resume, or into another file.")
    return result["rows"]


def write_result(path: Path, header: dict[str, Any], rows: list[Row]) -> None:
    """Write header and rows at once, so that no cut leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"header": header}, indent=2)[:-2] + ',\n  "rows": [\n    '
    text += ",\n    ".join(json.dumps(row) for row in rows) + "\n  ]\n}\n"
    write_whole(path, text)


def run(
    cells: list[Cell],
    systems_of: Callable[[Cell], Sequence[str]],
    device: str,
    effort: Effort,
    rows: list[Row],
    save: Callable[[], None],
    open_model: Callable[[Cell, str], Loaded] = open_random,
    runtimes: "Mapping[str, Runtime]" = MappingProxyType({}),
) -> list[Cell]:
    """Measure what ``rows`` does not hold yet, add it there and save after every group of rows.

    Args:
        cells: The conditions, in order.
        systems_of: The systems of a cell.
        device: Torch device.
        effort: How long.
        rows: What is known; grows.
        save: Called after every group of rows.
        open_model: The model and processor of a cell, sped up.
        runtimes: Exports of the model, by system.

    Returns:
        The cells that the time did not reach.
    """
    begin, built, loaded = time.monotonic(), None, None
    left_out = []
    for cell in tqdm(cells, desc="cells", unit="cell"):
        systems = [system for system in systems_of(cell) if runs_on(system, cell.input)]
        missing = [system for system in systems if not any(_is_of(row, cell, device, system) for row in rows)]
        if not missing:
            continue
        if time.monotonic() - begin > 60 * effort.minutes:
            left_out.append(cell)
            continue
        if loaded is None or built != cell[:2]:
            loaded = None  # one at a time: the old one goes before the new one comes
            gc.collect()
            loaded, built = open_model(cell, device), cell[:2]
        for group in ([s for s in missing if s not in SLOW], [s for s in missing if s in SLOW]):
            if group:
                rows += measure(loaded, cell, group, device, effort, runtimes)
                save()
    return left_out


def measure(
    loaded: Loaded,
    cell: Cell,
    systems: list[str],
    device: str,
    effort: Effort,
    runtimes: "Mapping[str, Runtime]" = MappingProxyType({}),
) -> list[Row]:
    """Rows of some systems in one cell, measured in turns."""
    is_slow = systems[0] in SLOW
    fewest, most = ((count + 2) // 3 for count in effort.rounds) if is_slow else effort.rounds
    with torch.inference_mode():
        measured = timers(*loaded, cell.input, cell.batch, effort.now, runtimes)
        times: dict[str, list[float]] = {system: [] for system in systems}
        if not is_slow:
            first = "plume_k8" if "plume_k8" in systems else systems[-1]  # packs the weights
            for system in [first, *(other for other in systems if other != first)]:
                if measured[system]() > 100 * effort.longest:  # milliseconds
                    break
        start = time.monotonic()
        for turn in range(most):
            passed = time.monotonic() - start
            if turn and (passed > effort.longest or (turn >= fewest and passed > effort.seconds)):
                break
            for system in systems if turn % 2 == 0 else reversed(systems):
                times[system].append(measured[system]())
    return [_row(system, cell, device, values) for system, values in times.items()]


def _row(system: str, cell: Cell, device: str, times: list[float]) -> Row:
    middle = median(times)
    spread = None
    if len(times) > 2:
        low, _, high = quantiles(times, n=4, method="inclusive")
        spread = round(high - low, 3)
    values = (system, cell.size, device, cell.dtype, cell.batch, cell.input, LATENT_STEPS[system])
    figures = (round(middle, 3), spread, round(1000 * cell.batch / middle, 3), len(times))
    return dict(zip(COLUMNS, (*values, *figures), strict=True))


def _is_of(row: Row, cell: Cell, device: str, system: str) -> bool:
    found = (row["system"], row["device"], row["size"], row["dtype"], row["batch"], row["input"])
    return found == (system, device, *cell)
