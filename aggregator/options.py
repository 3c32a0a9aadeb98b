"""Arguments and options that several of the aggregator's commands have."""

from pathlib import Path

import click

DirPath = click.Path(file_okay=False, path_type=Path)
FilePath = click.Path(dir_okay=False, path_type=Path)

dir_option = click.option(
    "--dir",
    "folder",
    type=DirPath,
    default=Path(),
    help="The aggregator's folder.  [default: the current one]",
)
plan_argument = click.argument("plan_path", metavar="PLAN", type=FilePath)
device_option = click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "cpu"]),
    default="auto",
    show_default=True,
)
reference_option = click.option(
    "--reference", type=FilePath, help="File of the reference statistics."
)
weights_option = click.option(
    "--weights", type=FilePath, help="Inception's weights, where the plan uses them."
)
download_option = click.option(
    "--download", is_flag=True, help="Fetch Inception's weights if they are missing."
)
