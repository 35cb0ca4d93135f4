"""What licences of models and data ask of a model that is made from them. Words of care, not legal advice."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Severity = Literal["note", "conflict"]

_FREE = ("apache-2.0", "mit", "bsd", "cc0", "cc-by-4", "cc-by-3", "odc-by", "pddl", "unlicense", "isc", "openrail")
_ALIKE = ("cc-by-sa", "gpl", "agpl", "lgpl", "odbl")


@dataclass(frozen=True)
class LicenceFinding:
    """What one licence asks. A `conflict` should stop a publication; a `note` should be read before it."""

    subject: str
    severity: Severity
    reason: str


def find_licence_conflicts(
    target: tuple[str, str | None], sources: Mapping[str, str | None], data: Mapping[str, str | None]
) -> list[LicenceFinding]:
    """What the licences ask, target first; empty where all of them are free of conditions that matter here.

    Licences are named as the Hugging Face hub names them (`apache-2.0`, `llama2`, `cc-by-nc-4.0`); None is not stated.

    Args:
        target: name and licence of the model that learns, whose licence the fused model inherits.
        sources, data: licences by name.
    """
    name, licence = target
    found = [*_conditions(name, licence)]
    for source, own in sources.items():
        found += _conditions(source, own)
        found += _forbids_teaching(source, own, licence)
    for text, own in data.items():
        found += _conditions(text, own)
    alike = {lic for lic in (licence, *sources.values(), *data.values()) if lic and lic.startswith(_ALIKE)}
    if len(alike) > 1:
        both = " and ".join(sorted(alike))
        found.append(LicenceFinding(name, "conflict", f"{both} each ask for the result to be under them alone"))
    return found


def _conditions(subject: str, licence: str | None) -> list[LicenceFinding]:
    if licence is None or licence in ("unknown", "other"):
        stated = "no licence is stated" if licence is None else f"its licence is {licence!r}"
        return [LicenceFinding(subject, "note", f"{stated}; read its terms before the result leaves the house")]
    if "-nc" in licence:
        return [LicenceFinding(subject, "note", f"{licence}: the result must not be used commercially")]
    if "-nd" in licence:
        return [LicenceFinding(subject, "conflict", f"{licence} allows no derivatives")]
    if licence.startswith(_ALIKE):
        return [LicenceFinding(subject, "note", f"{licence}: the result may have to be published under it too")]
    if licence.startswith(("llama", "gemma")):
        return [LicenceFinding(subject, "note", f"{licence}: its terms and use policy go with the result")]
    if licence.startswith(_FREE):
        return []
    return [LicenceFinding(subject, "note", f"{licence}: not among the licences known here; read its terms")]


def _forbids_teaching(source: str, licence: str | None, target: str | None) -> list[LicenceFinding]:
    """Llama 2 and Llama 3 must not improve language models other than themselves; from 3.1 on the name is the price."""
    if licence in ("llama2", "llama3") and target != licence:
        reason = f"{licence} forbids using its outputs to improve other language models, and the target is {target}"
        return [LicenceFinding(source, "conflict", reason)]
    if licence and licence.startswith("llama3.") and target != licence:
        return [LicenceFinding(source, "note", f"{licence}: the name of a model that it taught begins with Llama")]
    return []
