"""ConfigError, for a wrong configuration: one line per problem, each naming its key and the fix."""

from __future__ import annotations

SHOWN = 60  # characters of a value that a message repeats


class ConfigError(ValueError):
    """All problems that were found, one line each: `<key>: <what is wrong>; <what to do>`."""

    def __init__(self, *problems: str) -> None:
        assert problems, "an error needs a problem"
        self.problems = tuple(" ".join(problem.split()) for problem in problems)
        super().__init__("\n".join(self.problems))

    @property
    def one_line(self) -> str:
        """The first problem, and how many more there are."""
        more = len(self.problems) - 1
        return self.problems[0] + (f" (and {more} more)" if more else "")


def shown(value: object) -> str:
    """The value as a message repeats it: as YAML spells it, cut when long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
