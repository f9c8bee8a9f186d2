"""Arguments and options that several verbs take."""

from typing import Annotated

import typer

RecipeArgument = Annotated[
    str | None, typer.Argument(help="A YAML file, or the name of a recipe that comes with Luban.", show_default=False)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as optimizer.lr=3e-4.", show_default=False)
]
DatasetOverrides = Annotated[
    list[str] | None, typer.Argument(help="Settings as key=value, such as split.valid=0.05.", show_default=False)
]
Show = Annotated[bool, typer.Option("--show", help="Print the resolved recipe, each setting documented, and stop.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")]
On = Annotated[str, typer.Option("--on", help="Where to run: local, slurm[=SITE.yaml] or ray[=ADDRESS].")]
After = Annotated[
    str | None,
    typer.Option("--after", help="With --on slurm: begin when this job, or this run's job, has ended well."),
]
Array = Annotated[
    str | None,
    typer.Option(
        "--array", help="With --on slurm: a run NAME-0, NAME-1 ... for each value of KEY=[V,V...], as one job array."
    ),
]
Takeover = Annotated[
    bool,
    typer.Option("--takeover", help="Take the run from whoever runs it, at once: what that start still does is void."),
]
RunArgument = Annotated[str, typer.Argument(help="A run's name under runs/, or its folder.", show_default=False)]
PointArgument = Annotated[
    str, typer.Argument(help="RUN, RUN@STEP or RUN@best; without a point, its newest checkpoint.", show_default=False)
]
