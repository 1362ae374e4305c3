"""Weights from other programs' files: find the tensors, and match their names with a model's. Nothing is unpickled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from art_aft.checks import check_choice
from art_aft.runtime.text import shown

Tensors = dict[str, torch.Tensor]

#: Entries that people store a model's tensors under. Where several entries fit, the first of these is taken.
ENTRIES = ("", "state_dict", "model_state_dict", "model_state", "model", "net", "netC")

#: What wrappers put in front of the names: data parallelism, SWA and EMA; `torch.compile`; Lightning.
PREFIXES = ("module.", "_orig_mod.", "model.")

MATCHES = ("names", "shapes")

# Where these stand at the end of a name, they say what the tensor is for.
_ROLES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def fitting_state(model: torch.nn.Module, path: Path, *, match: str = "names", head: str | None = None) -> tuple:
    """
    Return the tensors of a file for `model.load_state_dict`.

    :param model: The model that they are for, which is not changed.
    :param path: The file: .safetensors, or a checkpoint in .pt or .pth.
    :param match: "names", or "shapes" to ignore names and match tensors in their order.
    :param head: The name of a layer that keeps its own weights. None for no such layer.
    :return: The tensors by the model's names, and a text that says which tensors of the file they are.
    :raises ValueError: If the file has no tensors that fit.
    """
    check_choice("match", match, MATCHES)
    if match == "shapes" and path.suffix == ".safetensors":
        raise ValueError("match: got 'shapes' with a .safetensors file, expected 'names': it keeps no order of tensors")
    own = {key: value for key, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    kept = {key: value for key, value in own.items() if head is not None and key.startswith(f"{head}.")}
    wanted = {key: value for key, value in own.items() if key not in kept}
    known = {_plain(own)[key]: key for key in own}
    tries = []
    for entry, tensors in read_tensors(path).items():
        found = _in_order(wanted, tensors) if match == "shapes" else _by_name(wanted, known, tensors)
        found = {key: value for key, value in found.items() if key not in kept}
        tries.append((_misfits(wanted, found), entry, found, tensors))
    misfits, entry, found, tensors = min(tries, key=lambda each: (sum(map(len, each[0])), _rank(each[1])))
    if any(misfits):
        raise ValueError(_mismatch(path, misfits, match == "names" and _in_order_fits(path, wanted, tensors)))
    text = f"weights: {len(found)} tensors" + (f" of the entry {shown(entry)}" if entry else "")
    others = [shown(each[1]) for each in tries if each[1] != entry and not any(each[0])]
    text += f" (these fit too: {', '.join(others)})" if others else ""
    if match == "shapes":
        text += ", matched by their order and shapes: check the accuracy"
    return {**found, **kept}, text


def read_tensors(path: Path) -> dict[str, Tensors]:
    """
    Return the mappings of tensors in a file, by the name of the entry that they are in ("" for the whole file).

    :param path: The file.
    :raises ValueError: If the file has none, or contains what would have to be unpickled.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            # A victim that this package stored has the attacker's trigger beside the model.
            own = {key: value for key, value in tensors.items() if not key.startswith("trigger.")}
            return {"": own if own and all(key.startswith("model.") for key in own) else tensors}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        if not path.is_file():
            raise ValueError(f"path: got {path}, expected a file of tensors alone ({error})") from None
        raise ValueError(f"path: got {path}, expected a file of tensors alone ({_reason(path, error)})") from None
    found = dict(_mappings(content))
    if not found:
        raise ValueError(f"path: got {path} without a mapping of tensors, expected a state dict")
    return found


def _reason(path: Path, error: Exception) -> str:
    """Return why a file could not be read, without torch's advice to unpickle it all the same."""
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    if start.startswith(b"<"):
        return "it is a web page, perhaps that of a failed download"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself"
    if path.suffix == ".safetensors":
        return " ".join(str(error).split())[:200]
    objects = re.search(r"(?:GLOBAL|global|class) [`']?([\w.]+)", str(error))
    if objects or "nsupported" in str(error):
        what = f", such as {objects[1]}," if objects else ""
        return f"it holds Python objects{what} which are not unpickled; ask for a file of model.state_dict() alone"
    return f"it is broken or no file of PyTorch: {type(error).__name__}"


def _mappings(content: Any, entry: str = "", depth: int = 3) -> Iterator[tuple[str, Tensors]]:
    """Yield the mappings of names to tensors. Optimizers number their tensors, so theirs are not found."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if tensors and not any(isinstance(value, Mapping) for value in content.values()):
        yield entry, tensors
    elif depth:
        for key, value in content.items():
            yield from _mappings(value, f"{entry}.{key}" if entry else key, depth - 1)


def _rank(entry: str) -> int:
    return ENTRIES.index(entry) if entry in ENTRIES else len(ENTRIES)


def _plain(tensors: Mapping[str, Any]) -> dict[str, str]:
    """Return names without the prefixes that all of them have."""
    names = {key: key.replace("_orig_mod.", "") for key in tensors if key != "n_averaged"}
    while prefix := next((p for p in PREFIXES if names and all(n.startswith(p) for n in names.values())), None):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    return names


def _by_name(own: Tensors, known: dict[str, str], tensors: Tensors) -> Tensors:
    """Return tensors by the model's names, as far as it has such names."""
    if own.keys() - tensors.keys():
        tensors = {known.get(name, name): tensors[key] for key, name in _plain(tensors).items()}
    # Old checkpoints have no counts of batches, and `load_state_dict` does not ask for them.
    counts = {k: v for k, v in own.items() if k.endswith("num_batches_tracked") and k not in tensors}
    return {**counts, **tensors}


def _in_order(own: Tensors, tensors: Tensors) -> Tensors:
    """Return tensors by the model's names, in their order, as far as they are for the same."""
    given = [(key, value) for key, value in tensors.items() if key != "n_averaged"]
    if len(given) != len(own):
        return dict(given)
    pairs = zip(own, given, strict=True)
    return {(name if _same_role(name, key) else key): value for name, (key, value) in pairs}


def _same_role(one: str, other: str) -> bool:
    roles = one.rpartition(".")[2], other.rpartition(".")[2]
    return roles[0] == roles[1] or not set(roles) <= set(_ROLES)


def _in_order_fits(path: Path, own: Tensors, tensors: Tensors) -> bool:
    return path.suffix != ".safetensors" and not any(_misfits(own, _in_order(own, tensors)))


def _misfits(own: Tensors, found: Tensors) -> tuple[list[str], list[str], list[str]]:
    """Return what is missing, what is unexpected, and what is of another shape or type, each as text."""
    missing = [shown(key) for key in own if key not in found]
    unexpected = [shown(key) for key in found if key not in own]
    other = []
    for key, value in found.items():
        if key in own:
            mine = own[key]
            if mine.shape != value.shape:
                other.append(f"{shown(key)} {tuple(value.shape)}, expected {tuple(mine.shape)}")
            elif mine.is_floating_point() != value.is_floating_point() or mine.is_complex() != value.is_complex():
                other.append(f"{shown(key)} {value.dtype}, expected {mine.dtype}")
    return missing, unexpected, other


def _mismatch(path: Path, misfits: tuple[list[str], list[str], list[str]], in_order: bool) -> str:
    """Return what does not fit, in three lines."""
    words = ("missing", "unexpected", "of another shape or type")
    parts = [f"{len(m)} {word}, first {m[0]}" for m, word in zip(misfits, words, strict=True) if m]
    hint = "is this the right architecture, with the right number of classes?"
    if in_order:
        hint = "the shapes agree in their order: match='shapes' (--match shapes) ignores the names"
    return f"path: got tensors that do not fit the model in {path}\n  {'; '.join(parts)}\n  {hint}"
