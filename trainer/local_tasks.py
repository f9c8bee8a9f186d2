"""`luban evaluate --lm-eval`: tasks of the lm-evaluation-harness from files on this machine, without a network.

A task's file is lm-eval's own YAML; its data lie beside it (`dataset_path: json` and `data_files`, looked for from the
file's folder on). The tasks that come with lm-eval are not looked at: their index alone takes 32 s to build, and
their data come from the Hugging Face Hub. Like any lm-eval task, a file may name Python functions: run your own.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.errors import UserError
from trainer.generation.passes import prefix
from trainer.likelihood import refuse_others
from trainer.scores import Loaded, load_model

EXTRA = "pip install 'luban[eval]'"
FORMATS = ("json", "csv", "parquet", "text", "arrow")
"""What `dataset_path` may be, beside a folder: the loaders of local files."""
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE")
SEED = 1234
"""Of the examples that are shown before a question: lm-eval's own default."""
DRAWS = 1000
"""Of the bootstrap, for metrics whose standard error has no formula."""


def read_tasks(place: str, cache: str) -> list[dict[str, Any]]:
    """The tasks of a YAML file, or of all in a folder and below, in the order of their paths.

    Args:
        cache: where the data are unpacked.

    Raises:
        UserError: there is none, or one can't be read, is a group, or would reach out.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    path, found = Path(place), []
    if not path.exists():
        raise UserError(f"there is no {place}: give a task's YAML file, or a folder of them")
    for file in sorted(path.rglob("*.yaml")) if path.is_dir() else [path]:
        try:
            task = load_yaml(file)
        except Exception as error:  # of YAML, of a function's module: whatever the file brings
            raise UserError(f"{file} is no task of lm-eval: {error}") from None
        if isinstance(task.get("task"), list):
            raise UserError(f"{file} is a group: give the files of its tasks, or their folder")
        if "task" in task:  # others are what tasks include
            found.append(_local(task, file, cache))
    if not found:
        raise UserError(f"{place} holds no task: a YAML file of lm-eval, with its task's name")
    names = [task["task"] for task in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{place} holds two tasks called {twice}: a result would be of which?")
    return found


def _local(task: dict[str, Any], file: Path, cache: str) -> dict[str, Any]:
    """The task with its data's paths made absolute. Raises UserError where it would ask a network for them."""
    where, name = f"{file}: dataset_path", str(task.get("dataset_path"))
    if callable(task.get("custom_dataset")):
        return task
    told = dict(task.get("dataset_kwargs") or {})
    if name not in FORMATS:
        folder = (file.parent / name).absolute()
        if not folder.is_dir():
            raise UserError(
                f"{where} {name} would be fetched from a network: save it here, and name {', '.join(FORMATS)} with "
                "dataset_kwargs.data_files, or a folder"
            )
        return task | {"dataset_path": str(folder), "dataset_kwargs": told | {"cache_dir": cache}}
    files = told.get("data_files")
    if not files:
        raise UserError(f"{where} {name} needs dataset_kwargs.data_files, split by split")
    placed = {split: _placed(held, file) for split, held in _by_split(files).items()}
    return task | {"dataset_kwargs": told | {"data_files": placed, "cache_dir": cache}}


def _by_split(files: Any) -> dict[str, list[str]]:
    splits = files if isinstance(files, dict) else {"train": files}  # as datasets does
    return {split: [held] if isinstance(held, str) else list(held) for split, held in splits.items()}


def _placed(names: list[str], file: Path) -> list[str]:
    paths = [(file.parent / name).absolute() for name in names]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{file}: there is no data file {path}")
    return [str(path) for path in paths]


def evaluate_tasks(point: str, place: str) -> str:
    """What `luban evaluate --lm-eval` prints."""
    for name in OFFLINE:
        os.environ[name] = "1"  # read when the libraries are imported
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells each default that it takes
    try:
        import lm_eval
    except ImportError:
        raise UserError(f"tasks of lm-eval need lm-eval: {EXTRA}") from None
    with TemporaryDirectory(prefix="luban-lm-eval-") as cache:
        tasks = read_tasks(place, cache)
        loaded = load_model(point)
        results, cut = answered(loaded, tasks)
    lines = [f"{point} at step {loaded.step} on {len(tasks)} tasks of {place}, by lm-eval {lm_eval.__version__}"]
    lines += _table(results)
    if cut:
        lines.append(
            f"  {cut:,} inputs were longer than the context of {loaded.recipe.model.context}: they lost their beginning"
        )
    if loaded.inputs.task is not None:
        lines.append(
            f"  texts are read plain, not in the template that the run's {loaded.inputs.task.kind} examples have"
        )
    return "\n".join(lines)


def answered(loaded: Loaded, tasks: list[dict[str, Any]]) -> tuple[dict[str, Any], int]:
    """lm-eval's results of `tasks`, as `read_tasks` gives them, and how many inputs lost their beginning.

    Each is loaded before any is asked, and asked by itself, so that an error is told with its name.

    Raises:
        UserError: the model is no decoder, or has a tuned prompt, or a task asks for what it can't do, or lm-eval can't
            use it, or knows none of the metrics that it names.
    """
    # Not simple_evaluate, which does this and then takes 2 s to describe the machine.
    import lm_eval.api.metrics  # noqa: F401  fills the registry
    from lm_eval.api.registry import metric_registry
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    from trainer.harness import Harnessed

    refuse_others(loaded, "a task of lm-eval")
    if prefix(loaded.model):
        raise UserError(
            "a task of lm-eval reads plain texts, and this model has a tuned prompt: take its base, or lora"
        )
    os.environ["DISABLE_MULTIPROC"] = "1"  # a bootstrap on as many processes as cores, whoever else is here
    model, manager, asked = Harnessed(loaded), TaskManager(include_defaults=False), {}
    metrics = {told["task"]: _metrics(told) for told in tasks}
    for told in tasks:
        if strange := [name for name in metrics[told["task"]] if name not in metric_registry]:
            raise UserError(f"task {told['task']}: lm-eval has no metric {strange[0]} here: mend metric_list")
        with _naming(told["task"]):
            asked[told["task"]] = manager.load([told])
            (task,) = asked[told["task"]]["tasks"].values()
            if task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(SEED)
    results: dict[str, Any] = {"results": {}, "n-samples": {}}
    for name, one in asked.items():
        with _naming(name):
            found = evaluate(lm=model, task_dict=one, bootstrap_iters=DRAWS, log_samples=False)
        assert found is not None  # it is None on other ranks
        for part, held in results.items():
            held |= dict(found)[part]
        figures = [label.partition(",")[0] for label in results["results"][name]]
        if none := [metric for metric in metrics[name] if metric not in figures]:
            raise UserError(f"task {name}: metric {none[0]} gives no figure with its output_type: mend metric_list")
    return results, model.cut


@contextmanager
def _naming(task: str) -> Iterator[None]:
    """Whatever goes wrong inside as a UserError that names the task; of an error's causes, the first."""
    try:
        yield
    except UserError as error:
        raise UserError(f"task {task}: {error}") from None
    except Exception as error:  # of its templates, its data, its functions: whatever the file brings
        first: BaseException = error
        while cause := first.__cause__ or first.__context__:
            first = cause
        raise UserError(f"task {task}: lm-eval can't use it: {type(first).__name__}: {first}") from None


def _metrics(task: dict[str, Any]) -> list[str]:
    """Names in the task's `metric_list`; a function there is none."""
    named = [each.get("metric") for each in task.get("metric_list") or []]
    return [metric for metric in named if isinstance(metric, str)]


def _table(results: dict[str, Any]) -> Iterator[str]:
    """A line a figure."""
    rows = []
    for task, figures in results["results"].items():
        documents = results["n-samples"][task]["effective"]
        for name, value in figures.items():
            metric, comma, kind = name.partition(",")
            if comma and not metric.endswith("_stderr"):
                error = figures.get(f"{metric}_stderr,{kind}")
                label = metric if kind == "none" else f"{metric} ({kind})"
                rows.append((task, label, _figure(value), _figure(error), f"{documents:,}"))
    head = ("task", "metric", "value", "std error", "documents")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        left = "  ".join(f"{cell:{width}}" for cell, width in zip(row[:2], widths[:2], strict=True))
        yield f"  {left}  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row[2:], widths[2:], strict=True))


def _figure(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "n/a"
