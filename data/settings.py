"""Recipes: pydantic sections read from YAML and `key=value`, every mistake named at once.

A recipe is a tree of `Section`s. Each field is followed by its docstring, which is its reference manual and
states its unit. A field's type says what may happen to it once a run has begun:

    Fixed[int]    part of what the run *is*; another value is another run
    Branch[int]   changes what comes after; allowed in a new run that starts from this one (`--from`)
    Free[int]     where and how it runs; may differ at every start

YAML is read as its version 1.2 means it: `off` and `no` are words, `3e-4` is a number. PyYAML by itself still reads
version 1.1, where `off` is false and `3e-4` a string.
"""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from data.errors import UserError


class _Yaml(yaml.SafeLoader):
    """YAML 1.2's core schema, as far as it differs in recipes."""

    yaml_implicit_resolvers = {  # noqa: RUF012  (PyYAML's own attribute)
        first: [
            (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":float", ":int", ":timestamp"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF|nan|NaN))$"
    ),
    list("-+.0123456789"),
)


_Yaml.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))


def _whole_number(reader: _Yaml, node: yaml.ScalarNode) -> int:
    return int(node.value)


def _mapping(reader: _Yaml, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [key.value for key, _ in node.value]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"{twice} is set twice", node.start_mark)
    return reader.construct_mapping(node, deep=True)


_Yaml.add_constructor("tag:yaml.org,2002:int", _whole_number)
_Yaml.add_constructor("tag:yaml.org,2002:map", _mapping)


class _Writer(yaml.SafeDumper):
    """Quotes what `_Yaml` would read as something else than the word it is."""

    yaml_implicit_resolvers = _Yaml.yaml_implicit_resolvers


def _write_text(writer: _Writer, text: str) -> yaml.ScalarNode:
    # These end a line for YAML; between double quotes PyYAML escapes them, elsewhere it folds them into a space.
    style = '"' if re.search("[\x85\u2028\u2029\ufeff]", text) else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _write_text)

T = TypeVar("T")
Fixed = Annotated[T, "fixed"]
Branch = Annotated[T, "branch"]
Free = Annotated[T, "free"]
KINDS = ("fixed", "branch", "free")


class Section(BaseModel):
    """One level of a recipe: unknown names are errors, defaults are checked, values don't change."""

    model_config = ConfigDict(
        extra="forbid", validate_default=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Section)


def load(section: type[S], path: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """The recipe in `path` (YAML; none: all defaults) with `key.sub=value` overrides on top.

    Raises:
        UserError: naming every unknown key (with the nearest known one) and every bad value at once.
    """
    return validate(section, apply(read_yaml(path) if path else {}, overrides), str(path) if path else "the recipe")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file is missing, is not YAML, or is not a mapping at its top level.
    """
    try:
        tree = yaml.load(path.read_text("utf-8"), _Yaml)
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(tree, dict | None):
        raise UserError(f"{path} must hold `name: value` lines at its top level, not {type(tree).__name__}")
    return tree or {}


def apply(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`tree` with each `a.b=value` set; the value is read as YAML, so `x=null` and `x=[1, 2]` mean what they say."""
    problems = []
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            problems.append(f"{item}: write a setting as key=value, such as optimizer.lr=3e-4")
            continue
        *parents, leaf = key.split(".")
        node: Any = tree
        for parent in parents:
            node = _descend(node, parent)
        if isinstance(node, list):
            problems.append(f"{item}: set the whole list, such as {'.'.join(parents)}='[...]', or edit the YAML")
            continue
        try:
            node[leaf] = yaml.load(text, _Yaml) if text else None
        except yaml.YAMLError:
            node[leaf] = text
    if problems:
        raise UserError("\n".join(problems))
    return tree


def _descend(node: Any, name: str) -> Any:
    """The mapping or list called `name` inside `node`, made where there is none; an entry of a list by its number."""
    if isinstance(node, list):
        known = name.isdigit() and int(name) < len(node) and isinstance(node[int(name)], dict | list)
        return node[int(name)] if known else node
    child = node.get(name)
    if not isinstance(child, dict | list):
        child = node[name] = {}
    return child


def validate(section: type[S], tree: dict[str, Any], source: str) -> S:
    """`tree` as a `section`; `source` names it in the message. Raises UserError listing every problem."""
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(section, problem) for problem in error.errors()]
        raise UserError(
            f"{source} has {len(lines)} mistake{'s' * (len(lines) > 1)}:\n  " + "\n  ".join(lines)
        ) from None


def fields(section: type[Section] | Section) -> Iterator[tuple[str, FieldInfo]]:
    """Every leaf setting as (dotted name, field), in the order of the source."""
    cls = section if isinstance(section, type) else type(section)
    for name, field in cls.model_fields.items():
        inner = _section_of(field)
        if inner is None:
            yield name, field
        else:
            yield from ((f"{name}.{deeper}", found) for deeper, found in fields(inner))


def kind(field: FieldInfo) -> str:
    """ "fixed", "branch" or "free"."""
    return next(mark for mark in field.metadata if mark in KINDS)


def differences(old: S, new: S) -> list[tuple[str, str, Any, Any]]:
    """(dotted name, kind, old value, new value) of each setting that differs."""
    return [
        (name, kind(field), value(old, name), value(new, name))
        for name, field in fields(old)
        if value(old, name) != value(new, name)
    ]


def given(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the leaf settings that a recipe's YAML and overrides state."""
    for name, held in tree.items():
        if isinstance(held, dict):
            yield from given(held, f"{prefix}{name}.")
        else:
            yield prefix + name


def value(section: Section, name: str) -> Any:
    """The setting called `a.b.c`."""
    for part in name.split("."):
        section = getattr(section, part)
    return section


def dump(section: Section) -> str:
    """The resolved recipe as YAML that `load` reads back to an equal one."""
    return yaml.dump(section.model_dump(mode="json"), Dumper=_Writer, sort_keys=False, allow_unicode=True, width=100)


def manual(section: Section) -> str:
    """The resolved recipe as YAML, each setting under its own documentation; in a list of sections, in the first."""
    return "\n".join(_documented(section, 0, True)) + "\n"


def _documented(section: Section, depth: int, explained: bool) -> Iterator[str]:
    pad = "  " * depth
    for name, field in type(section).model_fields.items():
        held = getattr(section, name)
        if isinstance(held, Section):
            yield f"{pad}{name}:"
            yield from _documented(held, depth + 1, explained)
            continue
        text = " ".join((field.description or "").split())
        if explained:
            yield f"{pad}# [{kind(field)}] {text}"
        if isinstance(held, list | tuple) and held and all(isinstance(entry, Section) for entry in held):
            yield f"{pad}{name}:"
            for number, entry in enumerate(held):
                yield from _listed(_documented(entry, depth + 2, explained and not number), f"{pad}  ")
            continue
        shown = yaml.dump(
            {name: section.model_dump(mode="json")[name]}, Dumper=_Writer, allow_unicode=True, width=10**6
        )
        yield from (pad + line for line in shown.rstrip("\n").split("\n"))


def _listed(lines: Iterator[str], pad: str) -> Iterator[str]:
    """An entry of a list: its first setting, which comments may precede, after a dash."""
    begun = False
    for line in lines:
        if not begun and not line.lstrip().startswith("#"):
            begun, line = True, f"{pad}- {line.lstrip()}"
        yield line


def _section_of(field: FieldInfo, inside_lists: bool = False) -> type[Section] | None:
    """The Section class that a field holds, also as `Section | None` and, where asked, as a list of them; or none."""
    origin, options = get_origin(field.annotation), get_args(field.annotation)
    known = (Union, UnionType, list, tuple) if inside_lists else (Union, UnionType)
    for option in (field.annotation, *(options if origin in known else ())):
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def _explain(section: type[Section], problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    where = ".".join(path) or "the recipe as a whole"
    if problem["type"] != "extra_forbidden":
        seen = problem["input"]
        shown = "" if isinstance(seen, dict | Section) else f" (got {seen!r})"
        return f"{where}: {problem['msg'].removeprefix('Value error, ')}{shown}"
    owner = section
    for part in path[:-1]:
        if part.isdigit():
            continue  # an entry of a list of sections
        inner = _section_of(owner.model_fields[part], inside_lists=True) if part in owner.model_fields else None
        if inner is None:
            return f"{where}: no such setting"
        owner = inner
    prefix = [*path[:-1]]
    near = difflib.get_close_matches(path[-1], owner.model_fields, 1)
    if near:
        return f"{where}: no such setting. Did you mean {'.'.join([*prefix, near[0]])}?"
    elsewhere = [name for name, _ in fields(section) if name.split(".")[-1] == path[-1]]
    if elsewhere:
        return f"{where}: no such setting. Did you mean {elsewhere[0]}?"
    return f"{where}: no such setting. Known here: {', '.join(owner.model_fields)}"
