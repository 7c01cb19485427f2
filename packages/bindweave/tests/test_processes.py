"""`bindweave run` refuses processes that would all take the same steps, before any step."""

import pytest
from click.testing import CliRunner

from bindweave.cli.run import run_command


@pytest.mark.parametrize(
    ("options", "word"),
    [(["--ulysses_size", "2"], "bindweave infer"), (["--dit_fsdp"], "bindweave infer"), ([], "one video for 2")],
)
def test_processes_that_would_take_the_same_steps_are_refused(options: list[str], word: str) -> None:
    words = ["--prompt", "a", "--image", "tests/data/red_circle.png", "--dry-run", "--nproc", "2", *options]
    result = CliRunner().invoke(run_command, words)
    assert result.exit_code == 2, result.output
    assert word in result.output
