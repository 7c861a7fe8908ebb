"""A rank of TRL's DistillationTrainer that makes a step whenever it is asked to.

    python -m benchmarks.worker_trl STUDENT TEACHER ROWS OPTIONS (JSON)

Exact reverse KL (beta 1), one update per batch, prompts in the order of the file, each repeated as
often as a group has samples. Needs TRL and accelerate, which `benchmarks.bench_peer` puts into a
folder of their own.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from typing import Any

import torch

from benchmarks.lengths import length_of
from benchmarks.rounds import channel


def main() -> None:
    student, teacher, rows = sys.argv[1:4]
    options = json.loads(sys.argv[4])
    trainer = build(student, teacher, rows, options)
    trainer.train()


def build(student: str, teacher: str, rows: str, options: dict[str, Any]) -> Any:
    import transformers
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    torch.set_num_threads(1)
    with open(rows, encoding="utf-8") as file:
        prompts = [json.loads(line)["prompt"] for line in file]
    prompts = prompts[: options["steps"] * options["prompts"]]
    repeated = [p for p in prompts for _ in range(options["samples"])]
    data = Dataset.from_dict({"prompt": [[{"role": "user", "content": p}] for p in repeated]})
    batch = options["prompts"] * options["samples"] // options["ranks"]
    natural = options["lengths"] == "natural"
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    settings = DistillationConfig(
        output_dir=tempfile.mkdtemp(prefix="bench-peer-"),
        beta=1.0,
        learning_rate=options["lr"],
        adam_beta2=0.95,
        weight_decay=0.0,
        max_completion_length=options["limit"],
        per_device_train_batch_size=batch // options["accumulate"],
        gradient_accumulation_steps=options["accumulate"],
        max_steps=options["steps"],
        shuffle_dataset=False,
        temperature=1.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        ddp_backend="gloo",
        ddp_find_unused_parameters=False,
        save_strategy="no",
        report_to=[],
        logging_steps=10**6,
        disable_tqdm=True,
        generation_kwargs=None if natural else {"suppress_tokens": _ends(student)},
    )
    load = transformers.AutoModelForCausalLM.from_pretrained
    trainer = DistillationTrainer(
        model=load(student, dtype=torch.float32),
        teacher_model=load(teacher, dtype=torch.float32),
        args=settings,
        train_dataset=data,
        processing_class=tokenizer,
    )
    clock = _turns(trainer, transformers)
    _prescribe(trainer, options, clock)
    return trainer


def _ends(model: str) -> list[int]:
    from transformers import GenerationConfig

    ends = GenerationConfig.from_pretrained(model).eos_token_id
    return ends if isinstance(ends, list) else [ends]


def _turns(trainer: Any, transformers: Any) -> dict[str, float]:
    """Each step waits to be asked for; its times are the answer."""
    asked = channel()
    clock: dict[str, float] = {"step": 0.0, "rollout": 0.0}

    class Turns(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if trainer.state.global_step == 0:
                asked.send({})
            if asked.recv() != "step":
                raise SystemExit(0)
            clock["started"] = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            asked.send(
                {
                    "step": time.perf_counter() - clock["started"],
                    "rollout": clock["rollout"],
                    "memory GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                }
            )

    trainer.add_callback(Turns)
    return clock


def _prescribe(trainer: Any, options: dict[str, Any], clock: dict[str, float]) -> None:
    """Time what generates, and end every response at its length."""
    import transformers

    generate, rank = trainer._generate_single_turn, trainer.accelerator.process_index
    tokenizer = trainer._tokenizer
    trainer.generation_config.pad_token_id = tokenizer.pad_token_id

    class Ends(transformers.StoppingCriteria):  # type: ignore[misc]
        def __init__(self, last: list[int]) -> None:
            self.last = torch.tensor(last)

        def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
            return self.last <= input_ids.shape[1]

    def timed(prompt_ids: Any, *rest: Any, **named: Any) -> Any:
        started = time.perf_counter()
        first, step = rank * len(prompt_ids), trainer.state.global_step + 1
        lengths = [
            length_of(options["lengths"], options["limit"], step, first + k) or 0
            for k in range(len(prompt_ids))
        ]
        if options["lengths"] == "natural":
            made = generate(prompt_ids, *rest, **named)
        else:
            width = max(map(len, prompt_ids))
            model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            plain = model.generate
            criteria = transformers.StoppingCriteriaList([Ends([width + n for n in lengths])])
            model.generate = lambda **kw: plain(**kw, stopping_criteria=criteria)
            made = generate(prompt_ids, *rest, **named)
            del model.generate
            made = [ids[:n] for ids, n in zip(made, lengths, strict=True)]
        clock["rollout"] = time.perf_counter() - started
        return made

    trainer._generate_single_turn = timed


if __name__ == "__main__":
    main()
