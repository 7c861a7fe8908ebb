"""vLLM inside the Megatron ranks.

``engine.tensor`` ranks that stand next to each other form one engine replica; every rank of a
replica makes the same calls with the same arguments (vLLM's external launcher).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from scope_megatron.config import EngineConfig
from scope_megatron.engine.direct import DirectSend, ShardSource
from scope_megatron.engine.interface import Finished, Member, Sampling, request_seed
from scope_megatron.engine.start import (
    memory_shortage,
    name_shared_memory,
    prepare_environment,
    ranks_of_the_world,
)
from scope_megatron.exits import ENGINE, StopRun
from scope_megatron.parallel import platform
from scope_megatron.types import Prompt, Rollout


class VLLMEngine:
    """vLLM in this process, sharing the job's torch.distributed world with Megatron."""

    def __init__(
        self,
        model_dir: Path,
        settings: EngineConfig,
        *,
        max_model_len: int,
        dtype: torch.dtype,
        eos_ids: Iterable[int],
        seed: int,
        head_dtype: torch.dtype | None = None,
        own_weights: bool = False,
    ) -> None:
        """``head_dtype``: of the logits; None: of the parameters. ``own_weights``: the directory's,
        read by vLLM; else the trainer's arrive before the first request (:meth:`load_weights`)."""
        self._eos_ids = sorted(eos_ids)
        self._sleeps = settings.sleep and platform.has_cuda()
        self._asleep = False
        self._ranks = settings.tensor
        self._direct = DirectSend(settings.tensor)
        prepare_environment(settings, model_dir)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"vllm\..*")
        logging.getLogger("vllm").setLevel(logging.ERROR)  # until vLLM sets up its own logging
        from vllm import LLM

        if settings.tensor > 1 and not platform.has_cuda():
            name_shared_memory()
        with memory_shortage(), ranks_of_the_world():
            self._llm = LLM(
                model=str(model_dir),
                skip_tokenizer_init=True,
                load_format="auto" if own_weights else "dummy",
                dtype=str(dtype).removeprefix("torch."),
                tensor_parallel_size=settings.tensor,
                distributed_executor_backend="external_launcher" if dist.is_initialized() else None,
                max_model_len=max_model_len,
                max_num_seqs=settings.max_num_seqs,
                logprobs_mode="processed_logprobs",  # of the distribution that was sampled from
                generation_config="vllm",  # never defaults from the model's own files
                enforce_eager=not platform.has_cuda(),
                disable_log_stats=True,
                seed=seed,
                hf_overrides=_overrides(head_dtype),
                **_platform_arguments(settings, self._sleeps, max_model_len),
            )
        platform.restore_allocator_options()

    def generate(
        self, prompts: list[Prompt], sampling: Sampling, finished: Finished | None = None
    ) -> list[Rollout]:
        """See :class:`Engine`."""
        members = [(prompt, k) for prompt in prompts for k in range(sampling.samples)]
        rollouts = {}
        for number, rollout in self._numbered(members, sampling):
            rollouts[number] = rollout
            if finished is not None:
                finished(number, rollout)
        return [rollouts[number] for number in range(len(members))]

    def stream(self, members: Sequence[Member], sampling: Sampling) -> Iterator[Rollout]:
        """The response of every (prompt, sample), each as soon as it is finished."""
        return (rollout for _, rollout in self._numbered(members, sampling))

    def _numbered(
        self, members: Sequence[Member], sampling: Sampling
    ) -> Iterator[tuple[int, Rollout]]:
        """(number, response) of members as they finish. One request each, with its own seed.

        The prefix cache starts empty: what was asked before can change how prompts are batched,
        and with it the last bits; a resumed run has not asked it. After a failure the engine is
        emptied and unfinished requests are made anew, once: the tokens are the same.
        """
        self._wake()
        waiting = dict(enumerate(members))
        for retried in (False, True):
            if not waiting:
                return
            self._llm.reset_prefix_cache()
            try:
                for number, output in self._finished(waiting, sampling):
                    prompt, k = waiting.pop(number)
                    yield number, _rollout(prompt, k, output.outputs[0])
            except Exception as error:
                self._require_retry(error, retried)

    def _finished(
        self, waiting: dict[int, Member], sampling: Sampling
    ) -> Iterator[tuple[int, Any]]:
        """(number, output) of requests as they finish; all are queued before the first step."""
        requests = [{"prompt_token_ids": list(prompt.token_ids)} for prompt, _ in waiting.values()]
        parameters = [self._parameters(sampling, *member) for member in waiting.values()]
        queued = self._llm.enqueue(requests, parameters, use_tqdm=False)
        number_of = {name.partition("-")[0]: n for name, n in zip(queued, waiting, strict=True)}
        engine = self._llm.llm_engine
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    yield number_of[output.request_id], output
        self._drain()

    def _parameters(self, sampling: Sampling, prompt: Prompt, sample: int) -> Any:
        """vLLM's parameters of one response, which has a seed of its own."""
        from vllm import SamplingParams

        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            stop_token_ids=self._eos_ids,
            seed=request_seed(sampling.seed, prompt.index, sample),
            logprobs=0 if sampling.logprobs else None,
            flat_logprobs=sampling.logprobs,
            detokenize=False,
        )

    def score(self, sequences: list[list[int]]) -> list[list[float]]:
        """See :class:`Engine`; the log-probabilities of given tokens, by a prefill."""
        self._wake()
        if not sequences:
            return []
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )
        requests = [{"prompt_token_ids": ids} for ids in sequences]
        outputs = self._run(requests, parameters)
        return [
            _logprobs_of(ids[1:], output.prompt_logprobs, first=1)
            for ids, output in zip(sequences, outputs, strict=True)
        ]

    def _run(self, requests: list[dict[str, list[int]]], parameters: Any) -> list[Any]:
        """The outputs of all requests. After a failure the engine is emptied and they are made
        anew, once: seeds belong to requests, so the tokens are the same.

        Raises StopRun at the second failure, and at the first of an engine of several ranks (the
        others would wait): the run goes on from its checkpoint with a new engine.
        """
        for retried in (False, True):
            try:
                outputs = list(self._llm.generate(requests, parameters, use_tqdm=False))
                self._drain()
                return outputs
            except Exception as error:
                self._require_retry(error, retried)
        raise AssertionError("the second failure ends the run")

    def _require_retry(self, error: Exception, retried: bool) -> None:
        """Empty the engine, so that requests can be made again; raises where that is no use."""
        if self._ranks > 1 and platform.lost_connection(error):
            raise error  # not the engine's fault: the run names the rank that is gone
        reason = _reason(error)
        if self._ranks == 1 and not retried:
            print(f"warning: vLLM failed ({reason}); its requests are made again", flush=True)
            try:
                self._empty()
                return
            except Exception as second:
                reason = _reason(second)
        raise StopRun(
            ENGINE,
            f"rollout.engine: vLLM failed: {reason}; if memory ran out, lower "
            "rollout.engine.max_num_seqs or gpu_memory_utilization (kv_cache_gib on a CPU)",
        ) from None

    def _drain(self) -> None:
        """Take the batch that asynchronous scheduling, which is for GPUs alone, made before it knew
        that the last response is complete: nothing shall run or wait when the engine sleeps."""
        engine = self._llm.llm_engine
        while engine.engine_core.engine_core.batch_queue:
            engine.step()

    def _empty(self) -> None:
        """Drop every unfinished request, what was begun for them, and the cache."""
        engine = self._llm.llm_engine
        engine.abort_request(list(engine.output_processor.request_states), internal=True)
        if queue := engine.engine_core.engine_core.batch_queue:
            queue.clear()  # batches after the one that failed: they would raise in the retry
        self._llm.collective_rpc(_forget_unsampled)
        self._llm.reset_prefix_cache()

    def send_parameters(self, source: Iterable[tuple[str, torch.Tensor]]) -> None:
        """See :class:`Engine`. In place; every parameter of the model must come, each once."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        if isinstance(source, ShardSource):
            (model,) = self._llm.apply_model(lambda model: model)  # it is in this process
            self._direct.send(model, source, self._reload)
        else:
            self._reload(source)
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._llm.reset_prefix_cache()

    def _reload(self, source: Iterable[tuple[str, torch.Tensor]]) -> None:
        """By vLLM's own loaders, each of which cuts its part out of the full tensor."""
        if not platform.has_cuda():
            self._llm.collective_rpc(_forget_packed_experts)
        self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(source)})

    def sleep(self) -> None:
        """Level 2: parameters are dropped too, since new ones come before the next request."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = True

    def close(self) -> None:
        del self._llm

    def _wake(self) -> None:
        assert not self._asleep, "send_parameters wakes the engine: it slept without parameters"


def _rollout(prompt: Prompt, sample: int, completion: Any) -> Rollout:
    token_ids = list(completion.token_ids)
    return Rollout(
        prompt=prompt,
        sample=sample,
        token_ids=token_ids,
        engine_logprobs=_logprobs_of(token_ids, flat) if (flat := completion.logprobs) else [],
        finished=completion.finish_reason == "stop",
    )


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _logprobs_of(token_ids: list[int], flat: Any, first: int = 0) -> list[float]:
    """The log-probability of each token, from vLLM's flat lists (a few objects per response, where
    a dictionary per token would keep Python's garbage collector busy).

    ``first``: the position of the first of the tokens; a prompt's first token has no entry.
    """
    starts = flat.start_indices[first:]
    if [flat.token_ids[start] for start in starts] != token_ids:  # what was asked for comes first
        raise ValueError("vLLM gave log-probabilities of other tokens than those asked for")
    return [flat.logprobs[start] for start in starts]


def _forget_unsampled(worker: Any) -> None:
    """Drop a pass whose tokens were not sampled: vLLM's first runner would refuse the next one."""
    if getattr(worker.model_runner, "execute_model_state", None) is not None:
        worker.model_runner.execute_model_state = None


def _forget_packed_experts(worker: Any) -> None:
    """Let vLLM's CPU build set the kernels of experts up again, which packs their weights.

    With a kernel there, it would copy new weights as they are over the packed ones.
    """
    for layer in worker.get_model().modules():
        method = getattr(layer, "quant_method", None)
        if method is not None and getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def _without_custom_all_reduce(tensor: int) -> bool:
    """Whether vLLM's own all-reduce cannot be used: it shares its buffers among processes in a way
    that segments which grow do not have, and ends the process without a word."""
    if tensor == 1 or not platform.has_expandable_segments():
        return False
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(
            "warning: rollout.engine.tensor: the engine sums over its ranks by NCCL, since vLLM's "
            "own all-reduce fails with expandable_segments:True; unset that in PYTORCH_ALLOC_CONF "
            "or PYTORCH_CUDA_ALLOC_CONF to have it",
            flush=True,
        )
    return True


def _overrides(head_dtype: torch.dtype | None) -> dict[str, str]:
    """Settings that vLLM reads in place of the model's own ``config.json``."""
    if head_dtype is None:
        return {}
    return {"head_dtype": str(head_dtype).removeprefix("torch.")}


def _platform_arguments(settings: EngineConfig, sleeps: bool, longest: int) -> dict[str, Any]:
    if platform.has_cuda():
        return {
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enable_sleep_mode": sleeps,
            "disable_custom_all_reduce": _without_custom_all_reduce(settings.tensor),
        }
    return {
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
        # of a prompt that is cut, vLLM turns back the seeded generator: a CPU's cannot be
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(4096, longest, settings.max_num_seqs),
    }
