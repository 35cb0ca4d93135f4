"""What a tokenizer's ids stand for in bytes, and where its tokens end in a text."""

from fusion_core.vocabulary.boundaries import Boundaries, token_boundaries
from fusion_core.vocabulary.roles import NOWHERE, map_roles
from fusion_core.vocabulary.surfaces import Vocabulary
from fusion_core.vocabulary.tokenizer_json import read_vocabulary, without_prefix_space

__all__ = [
    "NOWHERE",
    "Boundaries",
    "Vocabulary",
    "map_roles",
    "read_vocabulary",
    "token_boundaries",
    "without_prefix_space",
]
