"""The sections of the configuration on verifiers and the sandbox of programs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scope_megatron.config.sections.section import Section

VerifierName = Literal["auto", "math", "exact", "choice", "gsm8k", "string", "code", "custom"]

# What a row needs that names no verifier, by the start of a part of its data_source
# ("openai/gsm8k": the second part).
SOURCES: dict[str, VerifierName] = {
    "gsm8k": "gsm8k",
    "gpqa": "choice",
    "mmlu": "choice",
    "ai2_arc": "choice",
    "aqua": "choice",
    "apps": "code",
    "codecontests": "code",
    "codeforces": "code",
    "humaneval": "code",
    "livecodebench": "code",
    "mbpp": "code",
    "taco": "code",
}


def verifier_for(source: str, column: str = "", setting: str = "auto") -> str:
    """Name of the verifier of a row: ``verifier.name``, unless that is auto; the row's own column;
    what its data_source is known to need; mathematics."""
    if setting != "auto":
        return setting
    if column:
        return column
    for part in source.lower().split("/"):
        for start, name in SOURCES.items():
            if part.startswith(start):
                return name
    return "math"


class CodeConfig(Section):
    """The sandbox of the code verifier (docs/verifiers.md)."""

    timeout_s: float = Field(
        10.0, gt=0, description="seconds for one test of a program, on the clock and the processor"
    )
    total_timeout_s: float = Field(
        60.0, gt=0, description="seconds for all tests of one program together"
    )
    memory_mib: int = Field(1024, ge=64, description="address space of a program, MiB")
    disk_mib: int = Field(64, ge=1, description="what a program may write to its /tmp, MiB")
    output_kib: int = Field(
        8192, ge=1, description="output of one test, KiB; a program that prints more is wrong"
    )
    processes: int = Field(
        64, ge=1, description="threads of a program; it can start no other process"
    )
    open_files: int = Field(64, ge=8, description="files a program may have open")
    run_without_isolation: bool = Field(
        False,
        description="true: where this machine cannot isolate programs, run them with limits alone, "
        "as this user, with its files and its network; false: such rows end the run at its start",
    )


class VerifierConfig(Section):
    """The verifier, which says whether a response is correct (docs/verifiers.md)."""

    name: VerifierName = Field(
        "auto",
        description="auto: a row's verifier column, else what its data_source is known to need, "
        "else math; any other name: that one for every row",
    )
    timeout_s: float = Field(
        5.0, gt=0, description="seconds for one response; after them it is masked, not wrong"
    )
    workers: int = Field(1, ge=1, description="verifier processes per rank")
    custom: str | None = Field(
        None,
        description="module:function of the custom verifier: function(response, answer) -> bool",
    )
    code: CodeConfig = CodeConfig()
