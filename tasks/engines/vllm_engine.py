"""The engine of vLLM in this process: `pip install 'llm-fuse[vllm]'`. Written against its documented API, not yet run.

Used of it: `LLM(model=, dtype=, max_logprobs=, tensor_parallel_size=)`, `LLM.generate` of token ids, and of each
`RequestOutput` the lists `prompt_logprobs` and `outputs[0].logprobs` of dictionaries from token to `.logprob`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fusion_core.distributions import ExtractionMode, TopK
from fusion_core.spec import Spec
from fusion_core.types import Tokens
from tasks.artifacts import Runtime
from tasks.engines.devices import Dtype
from tasks.engines.scoring import DocumentRows
from tasks.engines.served import Candidates, check_mode, rows_of


class VllmEngine(Spec):
    """A model that vLLM runs in this process (an extra package; not yet run on hardware)."""

    kind: Literal["vllm"] = "vllm"
    dtype: Dtype = Field("bfloat16", title="Precision", description="Of weights and activations.")

    def __call__(self, folder: Path, mode: ExtractionMode, vocab_size: int, runtime: Runtime) -> "VllmScorer":
        """The model of a Hugging Face folder. Raises `ValueError` without vLLM, or for a mode that it can't give."""
        kept = check_mode(mode, self.kind)
        try:
            from vllm import LLM
        except ImportError as error:
            raise ValueError(
                "engine vllm: expected the package vllm, found none; pip install 'llm-fuse[vllm]'"
            ) from error
        devices = max(torch.cuda.device_count(), 1) if runtime.spread else 1
        model = LLM(model=str(folder), dtype=self.dtype, max_logprobs=kept.k, tensor_parallel_size=devices)
        return VllmScorer(model, kept, vocab_size)


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
