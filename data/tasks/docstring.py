"""Docstring examples: Python source -> (function without its docstring, the docstring's first paragraph)."""

import ast
import inspect
import warnings
from collections.abc import Iterator

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def documented_functions(text: str) -> list[tuple[str, str, str]] | None:
    """(qualified name and line, source without docstring, docstring's first paragraph) of each such function."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = [line.encode() for line in text.split("\n")]  # the tree's columns count bytes
    found = []
    for name, function in _functions(tree, ""):
        prompt = _without_docstring(function, lines)
        docstring = ast.get_docstring(function, clean=False)
        if prompt and docstring:
            paragraph = inspect.cleandoc(docstring).split("\n\n")[0]
            found.append((f"{name}:{function.lineno}", prompt, " ".join(paragraph.split())))
    return found


def _functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, _Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield prefix + child.name, child
        inner = f"{prefix}{child.name}." if isinstance(child, _Function | ast.ClassDef) else prefix
        yield from _functions(child, inner)


def _without_docstring(function: _Function, lines: list[bytes]) -> str | None:
    """The function's source, dedented; none if nothing else is in it or the docstring shares a line with code."""
    docstring = function.body[0]
    if len(function.body) == 1 or not (isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant)):
        return None
    first = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)]) - 1
    start, stop, end = docstring.lineno - 1, docstring.end_lineno or 0, function.end_lineno or 0
    before = lines[start][: docstring.col_offset]
    after = lines[stop - 1][docstring.end_col_offset :].strip()
    if before.strip() or (after and not after.startswith(b"#")):
        return None
    margin = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
    kept = lines[first:start] + lines[stop:end]
    return b"\n".join(line.removeprefix(margin) for line in kept).decode().rstrip() + "\n"
