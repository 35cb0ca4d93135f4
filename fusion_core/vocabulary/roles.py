"""Special tokens of two vocabularies: they correspond by what they are for, never by how they are spelled."""

from fusion_core.vocabulary.surfaces import Vocabulary

NOWHERE = -1


def map_roles(source: Vocabulary, target: Vocabulary) -> list[int]:
    """Per source id the target id of its role: the end token's for the end token, -1 for every other id."""
    ids = [NOWHERE] * source.size
    if "eos" in source.roles and "eos" in target.roles:
        ids[source.roles["eos"]] = target.roles["eos"]
    return ids
