"""The ranks of these tests start engines: the server that forks them has imported vLLM."""

from __future__ import annotations

import os

from tests.support.harness import ENGINES_TOO

os.environ[ENGINES_TOO] = "1"
