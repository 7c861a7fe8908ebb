"""`python -m scope_megatron`: the same as the `scope-megatron` command."""

from __future__ import annotations

from scope_megatron.cli import main

if __name__ == "__main__":
    main()
