"""The mathematics of knowledge fusion: tensors in, tensors out, on whatever device they come.

Where the method lives (section numbers: Wan et al., "Knowledge Fusion of Large Language Models", ICLR 2024):

| what | module | names |
|---|---|---|
| values: rows, boundaries, missing mass | `types` | `TokenDist`, `Tokens`, `Scored`, `Aligned`, `Fused`, `VocabMap` |
| 3.1 what is kept of a source's distribution | `distributions` | `TopK`, `TopP`, `Sampled`, `reduce_logits` |
| byte surface of every token | `vocabulary` | `Vocabulary`, `read_vocabulary`, `token_boundaries` |
| 3.2 token alignment, over vocabularies | `vocab_mapping` | `BytePiece`, `Canonical`, `ExactMatch`, `MinEdit` |
| 3.2 the same, from what a corpus shows | `pair_counts`, `min_edit` | `tally_pairs`, `Statistics`, `CoOccurrence` |
| 3.2 token alignment, over positions | `alignment` | `ByteBoundary`, `MinEditDTW`, `ExactDTW` |
| 3.2 their kernels: edit distance, time warping | `edit_distance`, `nearest_string`, `dtw` | `find_nearest`, `warp` |
| 3.3 fusion of many teachers into one | `fusion`, `costs` | `MinCE`, `AvgCE`, `StaticWeights` |
| 3.1 objective: CLM and divergence | `losses`, `divergences`, `objective` | `fusion_loss` |
| the original, number for number | `reference` | `Objective`, `collate_targets`, `extract`, `pack` |
| merging weights of one architecture | `merging` | `Linear`, `Slerp`, `TaskArithmetic`, `Ties`, `Dare`, `Sce` |
| what is measured | `metrics` | `bits_per_byte`, `paired_bootstrap` |
"""
