"""Every verifier by its name, and which one a row gets.

``verifier.name`` decides; where it is ``auto``, the row's own ``verifier`` column does, then its
``data_source``, and mathematics is what is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from scope_megatron.config import VerifierConfig
from scope_megatron.config.sections.verifier import verifier_for
from scope_megatron.rollout.verify import text
from scope_megatron.rollout.verify.custom import CustomVerifier
from scope_megatron.rollout.verify.mathematics import MathVerifier
from scope_megatron.rollout.verify.programs import CodeVerifier
from scope_megatron.rollout.verify.sandbox import Limits, NoIsolation
from scope_megatron.types import Answer, Prompt, Verdict


class Verifier(Protocol):
    """Judges responses. May hold processes; ``close`` ends them."""

    def grade(self, items: list[tuple[str, Answer]]) -> list[Verdict]:
        """One verdict per (response text, reference answer or accepted answers), in order. A
        response that could not be judged is TIMEOUT, CRASH or REFUSED, and costs the others
        nothing."""
        ...

    def close(self) -> None: ...


def _custom(config: VerifierConfig) -> Verifier:
    if config.custom is None:
        raise ValueError("verifier.custom: is missing but rows ask for it; give module:function")
    verifier = CustomVerifier(config.custom, config.timeout_s, config.workers)
    try:
        verifier.start()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    return verifier


def _code(config: VerifierConfig) -> Verifier:
    """Isolated wherever this machine can, whatever the settings allow."""
    code = config.code
    limits = Limits(
        timeout_s=code.timeout_s,
        memory_bytes=code.memory_mib << 20,
        disk_bytes=code.disk_mib << 20,
        output_bytes=code.output_kib << 10,
        processes=code.processes,
        open_files=code.open_files,
    )
    try:
        return CodeVerifier(limits, config.workers, code.total_timeout_s)
    except NoIsolation:
        if not code.run_without_isolation:
            raise
    return CodeVerifier(limits, config.workers, code.total_timeout_s, isolated=False)


# To add a verifier: a line here, and its name in config.sections.verifier.VerifierName.
VERIFIERS: dict[str, Callable[[VerifierConfig], Verifier]] = {
    "math": lambda config: MathVerifier(config.timeout_s, config.workers),
    "exact": lambda config: text.TextVerifier(text.exact),
    "choice": lambda config: text.TextVerifier(text.choice),
    "gsm8k": lambda config: text.TextVerifier(text.gsm8k),
    "string": lambda config: text.TextVerifier(text.string),
    "code": _code,
    "custom": _custom,
}


class Verifiers:
    """All the verifiers that a set of rows needs; each response goes to its row's.

    Use it as a context manager, or call ``close``.
    """

    def __init__(self, config: VerifierConfig, prompts: Iterable[Prompt]) -> None:
        """``prompts``: the rows whose responses will be graded.

        Raises ValueError, naming the setting or the row's column, for a verifier that does not
        exist or cannot work here.
        """
        self.config = config
        self._verifiers: dict[str, Verifier] = {}
        try:
            for choice in sorted({(p.verifier, p.source) for p in prompts}):
                self._verifier(self._name(*choice))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Verifiers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def name(self, prompt: Prompt) -> str:
        """The verifier that this row gets."""
        return self._name(prompt.verifier, prompt.source)

    def grade(self, responses: Sequence[tuple[str, Prompt]]) -> list[Verdict]:
        """One verdict per (response text, its prompt), in order."""
        verdicts: dict[int, Verdict] = {}
        by_name: dict[str, list[int]] = {}
        for i, (_, prompt) in enumerate(responses):
            by_name.setdefault(self.name(prompt), []).append(i)
        for name, indices in by_name.items():
            items = [(responses[i][0], responses[i][1].answer) for i in indices]
            verdicts |= zip(indices, self._verifier(name).grade(items), strict=True)
        return [verdicts[i] for i in range(len(responses))]

    def close(self) -> None:
        """End every process that a verifier holds."""
        for verifier in self._verifiers.values():
            verifier.close()

    def _name(self, column: str, source: str) -> str:
        if self.config.name == "auto" and column and column not in VERIFIERS:
            raise ValueError(
                f"data: a row's verifier column says {column!r}; use one of {', '.join(VERIFIERS)}"
            )
        return verifier_for(source, column, self.config.name)

    def _verifier(self, name: str) -> Verifier:
        if name not in self._verifiers:
            self._verifiers[name] = VERIFIERS[name](self.config)
        return self._verifiers[name]
