"""From what a command line says to a recipe, and to the folders it means."""

from pathlib import Path
from typing import Any


def load_recipe(section: Any, name: str | None, overrides: list[str] | None, recipes: Path, default: str) -> Any:
    """The recipe as `section` checks it, of what `recipe_tree` reads; without a name `folder`, if sources are given."""
    from data.settings import validate

    if name is None or "=" in name:
        own = any(item.startswith("sources=") for item in (name or "", *(overrides or [])))
        default = "folder" if own else default  # its splits are for one's own text, the library's for the demo
    return validate(section, *recipe_tree(name, overrides, recipes, default))


def recipe_tree(
    name: str | None, overrides: list[str] | None, recipes: Path, default: str
) -> tuple[dict[str, Any], str]:
    """The recipe called `name` (a file, a shipped one, or `default`) with the overrides on top, and what to call it."""
    from data.settings import apply, read_yaml

    path, stated, label = recipe_file(name, overrides, recipes, default)
    return apply(read_yaml(path), stated), label


def recipe_file(
    name: str | None, overrides: list[str] | None, recipes: Path, default: str
) -> tuple[Path, list[str], str]:
    """The file of the recipe called `name`, the settings that go on top of it, and what to call it.

    Raises:
        UserError: there is no such recipe.
    """
    from data.errors import UserError

    overrides = list(overrides or [])
    if name is not None and "=" in name and not Path(name).exists():
        overrides.insert(0, name)  # settings alone: the default recipe
        name = None
    path = Path(name) if name is not None and name.endswith((".yaml", ".yml")) else recipes / f"{name or default}.yaml"
    if not path.is_file():
        shipped = ", ".join(sorted(file.stem for file in recipes.glob("*.yaml")))
        raise UserError(f"there is no recipe {name}: give a YAML file, or one of those that come with Luban: {shipped}")
    return path, overrides, name or f"the recipe {default}"


def sources_at_home(recipe: Any) -> Any:
    """A dataset recipe whose datasets are looked for under LUBAN_HOME where the working directory has none."""
    from trainer.run import home

    def place(path: Path | None) -> Path | None:
        return home() / path if path is not None and not path.exists() and (home() / path).exists() else path

    sources = tuple(
        source.model_copy(update={"path": str(place(source.local))}) if source.kind == "dataset" else source
        for source in recipe.sources
    )
    tokenizer = recipe.tokenizer.model_copy(update={"reuse": place(recipe.tokenizer.reuse)})
    return recipe.model_copy(update={"sources": sources, "tokenizer": tokenizer})


def at_home(place: Path) -> Path:
    """A path as it is given, if it is there or absolute; else under LUBAN_HOME."""
    from trainer.run import home

    return place if place.exists() or place.is_absolute() else home() / place
