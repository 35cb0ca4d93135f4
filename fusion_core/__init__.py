"""The mathematics of knowledge fusion: tensors in, tensors out, on whatever device they come.

Where the method lives, in the order of Wan et al., "Knowledge Fusion of Large Language Models", ICLR 2024, section 3:

| what | module | names |
|---|---|---|
| values: rows, boundaries, missing mass | `types` | `TokenDist`, `Tokens`, `Scored`, `Aligned`, `Fused`, `VocabMap` |
| what a choice is: frozen, closed, called | `spec` | `Spec` |
| what is kept of a source's distribution | `distributions` | `TopK`, `TopP`, `Sampled`, `reduce_logits` |
| byte surface of every token, and where it ends | `vocabulary` | `Vocabulary`, `read_vocabulary`, `token_boundaries` |
| token alignment, over vocabularies | `vocab_mapping` | `BytePiece`, `Canonical`, `ExactMatch`, `Statistics` |
| the same, by least edit distance | `min_edit` | `MinEdit`, `CoOccurrence` |
| the same, from what a corpus shows | `alignment`, `pair_counts` | `tally_pairs`, `sum_counts`, `PairCounts` |
| token alignment, over positions | `alignment` | `ByteBoundary`, `MinEditDTW`, `ExactDTW`, `Pair` |
| their kernels: edit distance, time warping | `edit_distance`, `nearest_string`, `dtw` | `find_nearest`, `warp` |
| how kernels are compiled | `compilation` | `compiled` |
| fusion strategies: many teachers into one | `fusion`, `candidates` | `MinCE`, `AvgCE`, `StaticWeights`, `Strategy` |
| what a text cost each of them | `costs` | `sequence_costs`, `block_costs`, `token_costs` |
| objective: CLM and divergence | `losses`, `divergences`, `objective` | `fusion_loss`, `SoftCrossEntropy` |
| the original, number for number | `reference` | `Objective`, `collate_targets`, `extract`, `pack`, `split_long_text` |
| merging weights of one architecture | `merging` | `Linear`, `Slerp`, `TaskArithmetic`, `Ties`, `Dare`, `Sce` |
| before a run: where rows will meet | `preflight`, `text_kinds` | `count_rows`, `compare_vocabularies` |
| what is measured | `metrics` | `bits_per_byte`, `paired_bootstrap` |
| what it is measured against | `controls`, `ensembles` | `Shuffled`, `Uniform`, `Unigram`, `ensemble_nats` |
"""
