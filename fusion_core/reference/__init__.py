"""The original implementation of FuseLLM (Wan et al. 2024), number for number, wrong where it is wrong.

For comparisons only: it answers "what would the paper's code have done", and every rule here is one that the
rest of this package replaces. What differs, and where:

| here | what the original does | the rest of the package |
|---|---|---|
| `split_long_text` | decodes runs of tokens, which may change the text | pieces that join to the text |
| `extract` | rounds logits to fp16 before anything else | fp32 normalisers: `reduce_logits` |
| `collate_targets` | softmax over the kept candidates alone, in bf16 | true log-probabilities and a tail |
| | drops later candidates of the same id | sums them |
| | gives an empty row the base model's | an absent row teaches nothing |
| `reward` | exp(-CE) in bf16, nats per token: 2.005 and 2.000 tie | fp32, bits per byte: `fusion_core.costs` |
| `choose_targets` | ties: the base, or the last source if it doesn't teach | the earlier candidate: `MinCE` |
| `mix_targets` | softmax(exp(-CE)): nearly equal weights | softmax(-CE / tau): `AvgCE` |
| `Objective` | the teacher's term is a mean over tokens, the last included | over labels: `fusion_loss` |
| `pack` | averages the sequences' CE over packed blocks | a choice: `MinCE(level="block")` |
| | raises RuntimeError where each token has a CE | |

A recipe with `reference: true` follows it from extraction to training by choices that give the same numbers:
`ReferenceTopK`, `MinEdit` and `MinEditDTW` with `reference`, `ReferenceMinCE` and `ReferenceAvgCE`,
`ReferenceCrossEntropy` and `ReferenceKL`. `split_long_text`, `pack` and `Objective` are functions alone.

Targets are kept sparse, which changes no number: the ids that a row lacks have probability 0. All arithmetic is done
in the floating point type of the targets, bf16 in the original; with float64 it is the same method without rounding.
"""

from fusion_core.reference.extraction import Extracted, extract
from fusion_core.reference.objective import Batch, Objective
from fusion_core.reference.packing import pack
from fusion_core.reference.splitting import Tokenizer, split_long_text
from fusion_core.reference.targets import Targets, choose_targets, collate_targets, mix_targets, reward

__all__ = [
    "Batch",
    "Extracted",
    "Objective",
    "Targets",
    "Tokenizer",
    "choose_targets",
    "collate_targets",
    "extract",
    "mix_targets",
    "pack",
    "reward",
    "split_long_text",
]
