"""Programs that nobody trusts, each in a fresh process that sees nothing and can be killed.

bubblewrap  the isolation: namespaces, what is mounted, and the proof that it holds here
seccomp     system calls that are denied
inside      what runs in there: limits, then the program or its functions
pool        processes started ahead, exchanges with them, deadlines, the end
"""

from __future__ import annotations

from scope_megatron.rollout.verify.sandbox.bubblewrap import Limits, NoIsolation, require_isolation
from scope_megatron.rollout.verify.sandbox.pool import Exchange, Pool, Reply

__all__ = ["Exchange", "Limits", "NoIsolation", "Pool", "Reply", "require_isolation"]
