"""Read the versions of vLLM, megatron-core and Transformer Engine that setup.py allows, and check
that everything this project uses of them is there. Nothing is installed.

    python -m tools.check_contracts                    # lowest and highest version of each range
    python -m tools.check_contracts --every vllm       # each released version of one range
    python -m tools.check_contracts --write            # and write the table into docs/gpu.md

Ends with 1 when a version misses something, with 2 when a version could not be read.
"""

from __future__ import annotations

import datetime
import functools
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a script, too

from launch.code import ROOT
from tools.contracts import page, versions
from tools.contracts.declared import CONTRACTS, MEGATRON, Contract
from tools.contracts.guards import te_guard
from tools.contracts.judge import Ruling, judge, mentions
from tools.contracts.package import SourcePackage
from tools.contracts.uses import Use, collect

OWN = ("scope_megatron", "launch", "tools", "benchmarks")


def own_files(root: Path = ROOT) -> list[tuple[Path, str]]:
    """This project's sources with their dotted names."""
    files = [path for folder in OWN for path in sorted((root / folder).rglob("*.py"))]
    contracts = root / "tools" / "contracts"  # its tables name classes by strings
    return [
        (path, ".".join(path.relative_to(root).with_suffix("").parts))
        for path in files
        if contracts not in path.parents
    ]


@functools.cache
def own_uses(roots: tuple[str, ...]) -> list[Use]:
    """What this project's sources show of a package."""
    return collect(own_files(), roots, ROOT)


def check_version(
    contract: Contract, version: str, source: Path, megatron: Path | None
) -> list[Ruling]:
    """Verdicts on every use of one version. ``megatron``: sources of the megatron-core whose own
    uses count as well."""
    guard = te_guard(version)
    package = SourcePackage(source, contract.package, guard)
    uses = [*own_uses(contract.roots), *contract.uses()]
    if megatron is not None:
        uses += through_megatron(contract, megatron, version)
    uses = [replace(u, optional="") if u.target in contract.demanded else u for u in uses]
    verdicts = [judge(use, package, contract.forwards) for use in uses]
    for module, word in contract.words():
        reason = "" if mentions(package, module, word) else f"{module} does not mention {word}"
        verdicts.append(Ruling(Use(f"{module}.{word}", where="declared"), reason))
    return verdicts


def through_megatron(contract: Contract, megatron: Path, version: str) -> list[Use]:
    """megatron-core's uses of the package, in the places that this project reaches."""
    package = SourcePackage(megatron, MEGATRON.package)
    out: list[Use] = []
    for name, places in contract.through.items():
        module = package.module(name)
        if module is None:
            raise ValueError(
                f"no module {name}: tools/contracts/declared.py names another version's"
            )
        path = megatron.joinpath(*name.split("."))
        path = path / "__init__.py" if module.is_package else path.with_suffix(".py")
        uses = collect([(path, name)], contract.roots, megatron, te_guard(version), certain=True)
        out += [use for use in uses if use.within in places]
    return out


def main(
    only: Annotated[list[str] | None, typer.Option(help="distributions to check")] = None,
    every: Annotated[
        list[str] | None, typer.Option(help="check each version in the range of these")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="folder for sources: read again, not downloaded again")
    ] = None,
    write: Annotated[bool, typer.Option(help="put the table into docs/gpu.md")] = False,
    verbose: Annotated[bool, typer.Option(help="list absent optional names as well")] = False,
) -> None:
    """Check the released versions that setup.py allows."""
    checked: list[page.Checked] = []
    unread: list[str] = []
    megatron: Path | None = None
    folders: list[Path] = []
    try:
        for contract in sorted(CONTRACTS, key=lambda c: c is not MEGATRON):  # read by the others
            if contract is not MEGATRON and only and contract.distribution not in only:
                continue
            wanted = versions.requirement(ROOT / "setup.py", contract.distribution)
            for version in _versions(contract, every or []):
                print(f"{contract.distribution} {version} ...", file=sys.stderr, flush=True)
                try:
                    source = versions.sources(contract.distribution, version, keep)
                except versions.DownloadError as error:
                    unread.append(str(error))
                    continue
                folders.append(source)
                megatron = source if contract is MEGATRON else megatron
                if only and contract.distribution not in only:
                    continue
                verdicts = check_version(
                    contract, str(version), source, megatron if contract.through else None
                )
                allowed = str(wanted.specifier)
                checked.append(page.Checked(contract.distribution, allowed, str(version), verdicts))
    finally:
        for folder in folders if keep is None else []:
            shutil.rmtree(folder, ignore_errors=True)
    _show(checked, verbose)
    if write:
        page.write(ROOT / "docs" / "gpu.md", page.section(checked, str(datetime.date.today())))
    for reason in unread:
        print(f"not read: {reason}", file=sys.stderr)
    failed = any(row.failures for row in checked)
    raise SystemExit(1 if failed else 2 if unread else 0)


def _versions(contract: Contract, every: list[str]) -> list[Version]:
    wanted = versions.requirement(ROOT / "setup.py", contract.distribution)
    found = versions.released(contract.distribution)
    if contract.distribution in every:
        return versions.within(found, wanted)
    return versions.extremes(found, wanted)


def _show(checked: list[page.Checked], verbose: bool) -> None:
    print(page.versions_table(checked))
    for row in checked:
        kinds = [("missing", row.failures), ("undecided", row.undecided)]
        kinds += [("optional, absent", row.fallbacks)] if verbose else []
        for kind, verdicts in kinds:
            for verdict in verdicts:
                use = verdict.use
                reason = verdict.reason or str(use)
                print(f"{row.distribution} {row.version}: {kind}: {reason} ({use.where})")


if __name__ == "__main__":
    typer.run(main)
