"""The launcher in nemo-run's own style of command line:

    python -m launch.nemo config=configs/quickstart.yaml cluster=slurm cluster.nodes=2 \\
        overrides='["seed=7"]' --dryrun

``cluster`` takes a function of the site's file (SCOPE_MEGATRON_SITE, default example) and dotted
overrides of its fields; nemo-run checks their names. (Its ``--to-yaml`` cannot write the context
that it hands to a program of this kind.) `python -m launch.run` does the same with usual options.
"""

# No `from __future__ import annotations`: nemo-run reads the annotations themselves.
import os
import sys
from typing import Any

from launch import executors, sites
from launch.cluster import Cluster
from launch.plan import LaunchRequest
from launch.run import launch, reported

SITE = "SCOPE_MEGATRON_SITE"


def main() -> int:
    """Register the site's functions and the entry point, then hand over to nemo-run."""
    try:
        run = executors.import_nemo_run()
        found = sites.factories(os.environ.get(SITE, "example"))
    except ValueError as error:
        print(f"launch: error: {str(error).replace('--site', SITE)}", file=sys.stderr)
        return 2
    for name, function in found.items():
        run.cli.factory(run.autoconvert(function), target=Cluster, name=name)
    status = []

    def train(
        ctx: run.cli.RunContext,  # type: ignore[name-defined]
        config: str,
        cluster: Cluster,
        overrides: list[str] = [],  # noqa: B006  nemo-run shows and copies it
        sweep: list[str] = [],  # noqa: B006
        then: str | None = None,
        check: bool = False,
        package: bool = False,
        allow_dirty: bool = False,
        follow: bool = False,
    ) -> None:
        """Launch a run or a sweep of scope_megatron."""
        request = LaunchRequest(
            config=config,
            cluster=cluster,
            overrides=overrides,
            sweep=sweep,
            then=then,
            check=check,
            package=package,
            allow_dirty=allow_dirty,
            follow=follow,
            dryrun=ctx.dryrun,
        )
        status.append(reported(lambda: launch(request)))

    entry: Any = run.cli.entrypoint(
        train, name="launch", namespace="scope_megatron", type="experiment"
    )
    run.cli.main(entry, cmd_defaults={"skip_confirmation": True})
    if status:
        return status[0]
    return 0 if "--help" in sys.argv else 1  # nemo-run has said why, and drops its exit status


if __name__ == "__main__":
    sys.exit(main())
