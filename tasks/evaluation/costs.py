"""What models paid for held-out documents, read back and compared."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion_core.metrics import Interval, bootstrap_interval, paired_bootstrap
from tasks.artifacts import EvaluationRef
from tasks.storage.store import Store

COSTS = "costs.json"
RESAMPLES, SEED = 2000, 0


@dataclass(frozen=True)
class Costs:
    """What one model paid, per document."""

    ids: tuple[str, ...]
    domains: tuple[str, ...]
    bytes: NDArray[np.int64]
    nats: NDArray[np.float64]

    @classmethod
    def read(cls, store: Store, ref: EvaluationRef) -> "Costs":
        """The costs of an evaluation in the store."""
        entries = json.loads((store.fetch(ref, [COSTS]) / COSTS).read_text(encoding="utf-8"))
        return cls(
            ids=tuple(entry["id"] for entry in entries),
            domains=tuple(entry["domain"] for entry in entries),
            bytes=np.array([entry["bytes"] for entry in entries], dtype=np.int64),
            nats=np.array([entry["nats"] for entry in entries], dtype=np.float64),
        )

    def by_domain(self) -> list[tuple[str, "Costs"]]:
        """The documents of each domain, in the order in which domains first appear."""
        names = np.array(self.domains)
        return [(name, self._take(np.flatnonzero(names == name))) for name in dict.fromkeys(self.domains)]

    def interval(self) -> Interval:
        """Bits per byte, each domain alike (`fusion_core.metrics.bootstrap_interval`)."""
        return bootstrap_interval(self.nats, self.bytes, self.domains, resamples=RESAMPLES, seed=SEED)

    def against(self, rival: "Costs") -> Interval:
        """The relative difference in bits per byte; below zero this model is the better one."""
        return paired_bootstrap(self.nats, rival.nats, self.bytes, self.domains, resamples=RESAMPLES, seed=SEED)

    def against_by_domain(self, rival: "Costs") -> tuple[Interval, ...]:
        """The same within each domain, in the order of `by_domain`."""
        pairs = zip(self.by_domain(), rival.by_domain(), strict=True)
        return tuple(own.against(other) for (_, own), (_, other) in pairs)

    def _take(self, index: NDArray[np.intp]) -> "Costs":
        pick = index.tolist()
        return Costs(
            tuple(self.ids[i] for i in pick), tuple(self.domains[i] for i in pick), self.bytes[index], self.nats[index]
        )


def check_same_documents(names: Sequence[str], costs: Sequence[Costs]) -> None:
    """Raises ValueError unless all models were measured on the same documents in the same order."""
    for name, found in zip(names, costs, strict=True):
        one, other = (list(zip(c.ids, c.domains, c.bytes.tolist(), strict=True)) for c in (costs[0], found))
        if one != other:
            shared = len(set(one) & set(other))
            raise ValueError(
                f"report: expected all models measured on the same documents in the same order, found {len(one)} for "
                f"{names[0]!r} and {len(other)} for {name!r} with {shared} in common; evaluate both on one corpus"
            )
