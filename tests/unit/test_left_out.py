"""The line at the end of `make test`."""

from __future__ import annotations

from tests.support.left_out import line

SANDBOX = (
    "Skipped: verifier.code: bwrap is not installed; install bubblewrap (apt-get install bwrap)"
)
GPU = "Skipped: needs an NVIDIA GPU"


def test_what_apt_brings_is_one_command() -> None:
    said = line([SANDBOX, SANDBOX, GPU], ["bubblewrap", "rsync"])
    assert said == (
        "left out: 2 tests for lack of bubblewrap, rsync: `make system-deps`; "
        "1 (needs an NVIDIA GPU)"
    )


def test_where_all_is_installed_the_reason_stands() -> None:
    assert line([SANDBOX], []) == f"left out: 1 ({SANDBOX.removeprefix('Skipped: ')})"
    assert line([], ["rsync"]) == "left out: nothing"
