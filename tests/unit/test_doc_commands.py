"""Every command that the pages name is one that its program takes; which of them run where."""

from __future__ import annotations

import pytest

from tests.support.doc_commands import DocCommand, commands, problems

COMMANDS = commands()


def test_the_pages_were_read() -> None:
    whole = [command for command in COMMANDS if command.whole]
    assert len(whole) > 40 and len(COMMANDS) - len(whole) > 40
    assert {"README.md", "docs/quickstart.md", "docs/planning.md"} <= {c.page for c in whole}
    joined = next(c for c in whole if "--nodes 4 --gpus-per-node 8" in c.text)
    assert joined.words[-1] == "--dryrun", "continued lines are one command, comments none"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.where)
def test_a_command_parses(command: DocCommand) -> None:
    assert problems(command) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("make quickstrat", "make has no target quickstrat"),
        ("make test ARG=1", "make has no variable ARG"),
        ('make gpu-proof ARGS="--only-one kernels"', "NoSuchOption"),
        ("scope-megatron trian configs/quickstart.yaml", "No such command"),
        ("scope-megatron check configs/quickstart.yaml objective.tua=2.0", "objective.tau?"),
        ("scope-megatron check configs/quickstart.yaml --gpus 8", "NoSuchOption"),
        ("scope-megatron check", "MissingParameter"),
        ("scope-megatron train configs/quickstrat.yaml", "does not exist"),
        ("python -m tools.prepare_data convret a b", "No such command"),
        ("python -m tools.prepare", "no module"),
        ("python -m launch.status", "required"),
        ("python -m launch.run configs/quickstart.yaml --exectuor slurm", "exectuor"),
        ("python benchmarks/bench_plan.py --tabels", "unrecognized"),
        ("pytest -m sutdy tests/unit", "no mark sutdy"),
        ("pytest tests/unit/test_nothing.py", "does not exist"),
        ("torchrun --nproc-per-nodes 2 -m scope_megatron train configs/quickstart.yaml", "nproc"),
        ("torchrun --nproc-per-node 2 -m scope_megatron tarin x.yaml", "No such command"),
        ("cowsay hello", "no program"),
    ],
)
def test_what_does_not_parse_is_told(text: str, told: str) -> None:
    assert any(told in problem for problem in problems(DocCommand("page", 1, text, True))), text


def test_a_sentence_may_leave_arguments_out() -> None:
    assert problems(DocCommand("page", 1, "scope-megatron check --gpu h100", False)) == []
