"""The process that calls a user's grader. Started by its path, never imported.

One JSON object per line, as ``children`` says. Whatever the function prints goes to nowhere, and
an exception ends the process: the parent counts a crash and starts another.
"""

from __future__ import annotations

import importlib
import json
import os
import sys


def main(name: str, search_path: str) -> None:
    sys.path += [p for p in search_path.split(os.pathsep) if p and p not in sys.path]
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(message: dict[str, object]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        module, _, attribute = name.partition(":")
        function = getattr(importlib.import_module(module), attribute)
        if not callable(function):
            raise TypeError(f"{attribute} is not a function")
    except Exception as error:  # whatever stops it, the parent has to learn why
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        rewards = [function(request["response"], answer) for answer in request["answers"]]
        say({"id": request["id"], "correct": judgement(rewards)})


def judgement(rewards: list[object]) -> bool | None:
    """True if one accepted answer was hit, None if not and one was not judged."""
    judged = [None if reward is None else float(reward) >= 1.0 for reward in rewards]  # type: ignore[arg-type]
    if any(judged):
        return True
    return None if None in judged else False


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
