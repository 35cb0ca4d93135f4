"""The engine of vLLM in this process: `pip install 'llm-fuse[vllm]'`. Written against its documented API, not yet run.

Used of it: `LLM(model=, dtype=, max_logprobs=, tensor_parallel_size=)`, `LLM.generate` of token ids, and of each
`RequestOutput` the lists `prompt_logprobs` and `outputs[0].logprobs` of dictionaries from token to `.logprob`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from fusion_core.distributions import ExtractionMode, TopK
from fusion_core.spec import Spec
from fusion_core.types import Tokens
from tasks.artifacts import Runtime
from tasks.engines.devices import Dtype
from tasks.engines.scoring import DocumentRows
from tasks.engines.served import Candidates, check_mode, rows_of
from tasks.running.devices import visible_devices


class VllmEngine(Spec):
    """A model that vLLM runs in this process (an extra package; not yet run on hardware)."""

    kind: Literal["vllm"] = "vllm"
    dtype: Dtype = Field("bfloat16", title="Precision", description="Of weights and activations.")

    def devices_needed(self, runtime: Runtime) -> int | None:
        """All that the runtime names (None): vLLM begins with the first one, whichever is free."""
        return None

    def __call__(self, folder: Path, mode: ExtractionMode, vocab_size: int, runtime: Runtime) -> "VllmScorer":
        """The model of a Hugging Face folder, on the machine's first device, or over as many as the runtime names.

        Raises `ValueError` without vLLM, for a mode that it can't give, and for devices that aren't the first ones.
        """
        kept = check_mode(mode, self.kind)
        devices = count_devices(visible_devices(runtime.device), visible_devices("auto"), runtime.spread)
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                "engine vllm: expected the package vllm, found none; pip install 'llm-fuse[vllm]'"
            ) from error
        model = LLM(model=str(folder), dtype=self.dtype, max_logprobs=kept.k, tensor_parallel_size=devices)
        return VllmScorer(model, kept, vocab_size)


def count_devices(named: Sequence[str], shown: Sequence[str], spread: bool) -> int:
    """How many devices vLLM is to use: all that the runtime names where the model is spread over them, else one.

    It takes the first of those that this process is shown, which the step therefore must have for itself.
    Raises `ValueError` when the runtime names others.
    """
    count = len(named) if spread else 1
    if not set(shown[:count]) <= set(named):
        raise ValueError(
            f"runtime.device: expected {', '.join(shown[:count])}, where vLLM begins, found {', '.join(named)}; name "
            "the first ones, or start the run with CUDA_VISIBLE_DEVICES set to those that it may use"
        )
    return count


class VllmScorer:
    """A model in vLLM as a `Scorer`."""

    def __init__(self, model: Any, mode: TopK, vocab_size: int) -> None:  # Any: vllm.LLM
        self._model, self._mode, self._vocab_size = model, mode, vocab_size

    @property
    def facts(self) -> dict[str, object]:
        """The library's version."""
        import vllm

        return {"vllm": str(vllm.__version__)}

    def __call__(self, tokens: Tokens, row_keys: Tensor) -> Iterator[DocumentRows]:
        """Every document's rows, in batches of vLLM's; one more token is asked for: its candidates are the last row."""
        from vllm import SamplingParams

        k, starts = self._mode.k, tokens.doc_offsets.tolist()
        documents = [d for d in range(tokens.num_docs) if starts[d + 1] > starts[d]]
        ids = [tokens.ids[starts[d] : starts[d + 1]].tolist() for d in documents]
        sampling = SamplingParams(max_tokens=1, temperature=0.0, logprobs=k, prompt_logprobs=k, detokenize=False)
        outputs = self._model.generate([{"prompt_token_ids": one} for one in ids], sampling, use_tqdm=False)
        for document, one, output in zip(documents, ids, outputs, strict=True):
            yield rows_of(document, one, read_output(output), k, self._vocab_size)


def read_output(output: Any) -> list[Candidates]:  # Any: vllm.RequestOutput
    """What a request's output says to follow each of the prompt's tokens."""
    rows = [*output.prompt_logprobs[1:], output.outputs[0].logprobs[0]]  # nothing is before the first token
    return [{token: entry.logprob for token, entry in row.items()} for row in rows]
