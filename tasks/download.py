"""A model becomes an artifact: the files of a hub repository or of a local folder, mirrored into the store."""

import fnmatch
import functools
import hashlib
import shutil
from collections.abc import Iterable
from pathlib import Path

from tasks.artifacts import ModelRef, Runtime, TokenizerRef, canonical_json
from tasks.models.chat_template import write_template
from tasks.models.folders import CONFIG, HubModel, LocalModel, check_readable
from tasks.models.hub import download_files, list_files, remember_commit, resolve_commit
from tasks.models.weight_files import WEIGHTS, WEIGHTS_INDEX, check_weights
from tasks.step import Output, step
from tasks.storage.store import Store, open_store

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
_WEIGHT_PART = "model-[0-9][0-9][0-9][0-9][0-9]-of-[0-9][0-9][0-9][0-9][0-9].safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SMALL = (
    CONFIG,
    "generation_config.json",
    *_TOKENIZERS,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "USE_POLICY*",
)


def pin_model(spec: HubModel | LocalModel, *, runtime: Runtime) -> dict[str, object]:
    """What the model is today: the commit of its revision, or a digest of its folder's names and contents."""
    if isinstance(spec, HubModel):
        return {"commit": resolve_commit("model", spec.id, spec.revision, open_store(runtime))}
    return {"content": _digest_files(*_local_files(spec))}


@step(version=1, pin=pin_model)
def download(spec: HubModel | LocalModel, *, runtime: Runtime, out: Output) -> ModelRef:
    """The model's config, tokenizer, safetensors weights and licence; nothing else, and never a pickle."""
    if isinstance(spec, HubModel):
        store, commit = open_store(runtime), str(out.pins["commit"])
        _mirror_hub(spec, commit, store, out)
        remember_commit("model", spec.id, spec.revision, commit, store)
    else:
        _mirror_folder(spec, out)
    check_weights(out.dir, _name_of(spec))
    write_template(out.dir, spec.chat_template)
    return out.ref(ModelRef)


def pin_description(spec: HubModel | LocalModel, *, runtime: Runtime) -> dict[str, object]:
    """What the model's description is today: the commit, or a digest of the folder's small files and of its size."""
    if isinstance(spec, HubModel):
        return pin_model(spec, runtime=runtime)
    folder, names, weight_bytes = _local_description(spec)
    return {"content": _digest_files(folder, names), "weight_bytes": weight_bytes}


@step(version=1, pin=pin_description)
def download_description(spec: HubModel | LocalModel, *, runtime: Runtime, out: Output) -> TokenizerRef:
    """The model's files without its weights: tokenizer, licence and, where there is one, the config."""
    if isinstance(spec, HubModel):
        commit = str(out.pins["commit"])
        listing = list_files(spec.id, commit)
        names = select_description(listing.files, _name_of(spec), with_code=spec.trust_remote_code)
        waiting = _waiting_room(open_store(runtime), out)
        download_files(spec.id, commit, {n: listing.files[n] for n in names}, waiting, lambda done, total: None)
        _move_files(waiting, names, out.dir)
        weights = sum(listing.files[n].bytes for n in select_files(listing.files, _name_of(spec)) if n not in names)
        out.facts |= {"id": spec.id, "licence": listing.licence, "weight_bytes": weights}
    else:
        folder, names, weights = _local_description(spec)
        for name in names:
            (out.dir / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, out.dir / name)
        out.facts |= {"path": str(folder.resolve()), "licence": _card_licence(out.dir), "weight_bytes": weights}
    write_template(out.dir, spec.chat_template)
    return out.ref(TokenizerRef)


def select_description(names: Iterable[str], name: str, with_code: bool = False) -> list[str]:
    """The files that describe a model: config, tokenizer, licence. Raises `ValueError` without a tokenizer."""
    found = sorted(names)
    if not _matching(found, _TOKENIZERS):
        raise ValueError(
            f"{name}: expected a tokenizer ({', '.join(_TOKENIZERS[:3])} ...), found {_listing(found)}; "
            "save the tokenizer that the model was trained with beside it"
        )
    return _matching(found, (*_SMALL, *(("*.py",) if with_code else ())))


def select_files(names: Iterable[str], name: str, with_code: bool = False) -> list[str]:
    """The files of a model that are mirrored, small ones first: config, tokenizer, licence, then safetensors.

    One copy of the weights is taken: `model.safetensors`, or else the parts and their index. Files in folders
    are left out, chat templates excepted.

    Args:
        name: how messages call the model.
        with_code: take `*.py` too.

    Raises:
        ValueError: no config, no tokenizer, no weights, or weights as pickles only.
    """
    found = sorted(names)
    small = _matching(found, (*_SMALL, *(("*.py",) if with_code else ())))
    if CONFIG not in small:
        raise ValueError(f"{name}: expected a {CONFIG}, found {_listing(found)}; is this a Hugging Face model?")
    if not _matching(found, _TOKENIZERS):
        raise ValueError(
            f"{name}: expected a tokenizer ({', '.join(_TOKENIZERS[:3])} ...), found none; "
            "save the tokenizer that the model was trained with beside it"
        )
    weights = [WEIGHTS] if WEIGHTS in found else _matching(found, (WEIGHTS_INDEX, _WEIGHT_PART))
    if weights in ([], [WEIGHTS_INDEX]):
        if pickles := _matching(found, _PICKLES):
            raise ValueError(
                f"{name}: expected safetensors weights, found only pickles ({pickles[0]}), which can run code; "
                "convert to safetensors first: load it with transformers where you trust it, and save_pretrained"
            )
        raise ValueError(f"{name}: expected {WEIGHTS}, or {WEIGHTS_INDEX} with its parts, found {_listing(found)}")
    return small + weights


def _matching(names: list[str], patterns: Iterable[str]) -> list[str]:
    return [n for n in names if any(n.count("/") == p.count("/") and fnmatch.fnmatchcase(n, p) for p in patterns)]


def _listing(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "") or "no files"


def _name_of(spec: HubModel | LocalModel) -> str:
    return f"model {spec.id}" if isinstance(spec, HubModel) else f"model {spec.path}"


# ---- from the hub ----------------------------------------------------------------------------------------


def _mirror_hub(spec: HubModel, commit: str, store: Store, out: Output) -> None:
    listing = list_files(spec.id, commit)
    names = select_files(listing.files, _name_of(spec), with_code=spec.trust_remote_code)
    waiting = _waiting_room(store, out)
    small = [n for n in names if not n.endswith(".safetensors")]

    def bring(part: list[str]) -> None:
        wanted = {n: listing.files[n] for n in part}
        download_files(spec.id, commit, wanted, waiting, lambda done, total: out.progress(done, total, "bytes"))

    bring(small)
    check_readable(waiting, _name_of(spec))  # before the weights, which take long
    bring(names)
    _move_files(waiting, names, out.dir)
    out.facts |= {
        "source": "hub",
        "id": spec.id,
        "revision": spec.revision,
        "commit": commit,
        "licence": listing.licence,
    }
    if spec.trust_remote_code:
        out.facts["trusted_code"] = [name for name in names if name.endswith(".py")]


def _move_files(waiting: Path, names: list[str], folder: Path) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(waiting / name, folder / name)
    shutil.rmtree(waiting, ignore_errors=True)


def _waiting_room(store: Store, out: Output) -> Path:
    """A folder that outlives an attempt, so that the next one keeps the files that came whole."""
    here = Path(store.base) / out.step / out.fingerprint if store.is_local else store.cache / "attempts"
    folder = here / f"download-{out.fingerprint}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# ---- from a folder ---------------------------------------------------------------------------------------


def _local_files(spec: LocalModel) -> tuple[Path, list[str]]:
    folder, name = Path(spec.path).expanduser(), _name_of(spec)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise ValueError(
            f"{name}: expected a folder with config.json, tokenizer and safetensors, found {found}; check the path"
        )
    names = select_files((p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()), name)
    _refuse_links_out(folder, names, name)
    return folder, names


def _refuse_links_out(folder: Path, names: list[str], name: str) -> None:
    """Raises `ValueError` for a link to a file elsewhere that isn't called the same.

    A model may have come in an archive, and what is mirrored may be published: a LICENSE that leads to a private key.
    A hub's cache keeps all files in `blobs`, under other names.
    """
    home = folder.resolve()
    blobs = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    for file in names:
        target = (folder / file).resolve()
        if target.name != Path(file).name and not (target.is_relative_to(home) or target.is_relative_to(blobs)):
            raise ValueError(
                f"{name}: expected its own {file}, found a link to {target}; copy the file into the folder if it is one"
            )


def _local_description(spec: LocalModel) -> tuple[Path, list[str], int]:
    """The folder, the files that describe its model, and the bytes of its weights."""
    folder, name = Path(spec.path).expanduser(), _name_of(spec)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise ValueError(f"{name}: expected a folder with tokenizer files, found {found}; check the path")
    names = select_description((p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()), name)
    _refuse_links_out(folder, names, name)
    return folder, names, sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _mirror_folder(spec: LocalModel, out: Output) -> None:
    folder, names = _local_files(spec)
    sizes = [(folder / name).stat().st_size for name in names]
    for i, name in enumerate(names):
        (out.dir / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, out.dir / name)
        out.progress(sum(sizes[: i + 1]), sum(sizes), "bytes")
    if out.pins != {"content": _digest_files(out.dir, names)}:
        raise OSError(f"{_name_of(spec)}: its files changed while they were copied; run again")
    check_readable(out.dir, _name_of(spec))  # the mirror, not the folder: only it is free of code
    out.facts |= {"source": "local", "path": str(folder.resolve()), "licence": _card_licence(out.dir)}


def _digest_files(folder: Path, names: list[str]) -> str:
    """SHA-256 over names and contents."""
    contents = []
    for name in names:
        status = (folder / name).stat()
        contents.append([name, _digest_file(folder / name, status.st_size, status.st_mtime_ns)])
    return hashlib.sha256(canonical_json(contents).encode()).hexdigest()


@functools.lru_cache(maxsize=4096)
def _digest_file(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, read once per process while its size and time stay."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _card_licence(folder: Path) -> str | None:
    """The licence that the model card's header names."""
    card = folder / "README.md"
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines() if card.is_file() else []
    header = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    return next((line.removeprefix("license:").strip() for line in header if line.startswith("license:")), None)
