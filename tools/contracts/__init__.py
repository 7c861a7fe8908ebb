"""Contracts: what this project uses of packages that it cannot install here, checked by reading.

    ../check_contracts.py  the command: versions that setup.py allows -> table, exit status
    uses.py                names, keywords and attributes used by a source, collected from its AST
    scopes.py              what a source's names stand for: imports, annotated types, instances
    declared.py            uses that no AST shows: remote calls by name, fields, patched attributes
    package.py             a package's sources: modules, classes and functions found without import
    members.py             a class's members, fields and constructor over its bases
    judge.py               a use against a package: there, missing, or not to be decided
    guards.py              megatron-core's conditions on the version of Transformer Engine
    versions.py            lowest and highest released version of setup.py's ranges, downloaded
    page.py                the table, and its section of docs/gpu.md

Nothing is installed and nothing of the packages is run: wheels are unpacked and parsed.
"""

from __future__ import annotations
