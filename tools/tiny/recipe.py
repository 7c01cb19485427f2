"""One start for the recipes of bundled weights: the options that all have, and a process that keeps to itself."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

from tools.tiny.train import prepare_process

Run = Callable[[argparse.Namespace], object]


def recipe_parser(about: str | None, stages: Mapping[str, Run]) -> argparse.ArgumentParser:
    """``--stage``, ``--work`` and ``--steps``; ``about`` is what the recipe's module says of itself."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--stage", choices=[*stages], required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints, examples, logs and scores")
    parser.add_argument("--steps", type=int, help="number of steps; may be changed when a run goes on")
    return parser


def run_recipe(module: str, parser: argparse.ArgumentParser, stages: Mapping[str, Run]) -> None:
    """Read the command line of ``module`` and run the stage that it names."""
    arguments = parser.parse_args()
    prepare_process(module)
    arguments.work.mkdir(parents=True, exist_ok=True)
    stages[arguments.stage](arguments)
