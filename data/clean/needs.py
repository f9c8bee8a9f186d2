"""The optional libraries that some rules need: named in the dataset's versions, missed before anything is read."""

from importlib.metadata import PackageNotFoundError, version

from data.clean.rules import Clean
from data.errors import UserError


def library_versions(*every: Clean) -> dict[str, str]:
    """Name and version of each optional library that the rules use.

    Raises:
        UserError: one is not installed; says which setting needs it and what to install.
    """
    needed = {"ftfy": "clean.mojibake"} if any(rules.mojibake for rules in every) else {}
    if any(rules.language == "identify" for rules in every):
        needed |= {"resiliparse": "clean.language: identify", "py3langid": "clean.language: identify"}
    found = {}
    for name, setting in needed.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            raise UserError(f"{setting} needs {name}, which is not installed: pip install 'luban[web]'") from None
    return found
