"""Where checkpoints are, and how they are read and written.

    folder = hub.resolve("mini", "codec.json").parent     # a folder, a built-in name, or a Hugging Face id
    tensors = hub.load_tensors(folder / "codec.safetensors")
    hub.load_into(module, tensors, "mini")                # every tensor must fit

Downloads are announced on stderr. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from speechgpt2.errors import UserError

if TYPE_CHECKING:  # for annotations only: writing a file should not wait for torch
    import numpy as np
    import torch
    from tokenizers import Tokenizer

ASSETS = Path(__file__).parent / "assets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FETCHED = ("*.json", "*.safetensors", "README.md")  # downloaded files of a checkpoint, besides the requested one
NAMED = 3  # tensors that an error names; it counts the others


def built_in() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.name for path in ASSETS.iterdir() if path.is_dir()) if ASSETS.is_dir() else []


def resolve(name: str | Path, *files: str) -> Path:
    """Find a checkpoint and return the first of `files` that it holds.

    Args:
        name: A built-in name, a folder, or a Hugging Face id `owner/name`, which is downloaded once. A built-in name
            goes before a folder of that name (write `./mini` for the folder).
        *files: File names that identify the kind of checkpoint.

    Raises:
        UserError: If there is no such checkpoint, or it holds none of the files.
    """
    text, wanted = str(name), " or ".join(files)
    if text in built_in():
        folder = ASSETS / text
    elif Path(name).is_dir():
        folder = Path(name)
    elif Path(name).exists():
        raise UserError(f"{name}: a file, where a folder with {wanted} is needed")
    elif HUB_ID.fullmatch(text) and not Path(name).parent.is_dir():
        # If the parent folder exists, the name is a local path with a typo.
        folder = _fetch(text, files)
    else:
        raise UserError(f"{name}: no such folder or built-in model (built in: {', '.join(built_in()) or 'none'})")
    for file in files:
        if (folder / file).is_file():
            return folder / file
    raise UserError(f"{name}: not a checkpoint of the kind needed here, it holds no {wanted}")


def _fetch(repo: str, files: tuple[str, ...]) -> Path:
    """Return the local folder of a Hugging Face repository, from the cache if it holds one of `files`."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [*files, *FETCHED]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=True))
        if any((folder / file).is_file() for file in files):
            return folder
    except LocalEntryNotFoundError:
        pass  # not downloaded yet
    print(f"downloading {repo} from Hugging Face …", file=sys.stderr, flush=True)
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise UserError(f"{repo}: no such folder, and Hugging Face cannot be reached") from None
    except RepositoryNotFoundError:
        raise UserError(f"{repo}: no such folder, and no such model on Hugging Face") from None
    except (OSError, ValueError) as error:  # the base classes of all other errors of the client
        raise UserError(f"{repo}: cannot be downloaded from Hugging Face ({_first_line(error)})") from None


def check_writable(path: str | Path) -> None:
    """Raise `UserError` unless a file can be written at `path`. Commands check it before they work for minutes."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not target.parent.is_dir():
        raise UserError(f"cannot write {path}: no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission to write in {target.parent}")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a temporary file beside `path`, then rename it. After a failure nothing is left.

    A link is followed. Something that is not a regular file, such as `/dev/null`, is written directly.

    Args:
        path: The file.
        write: Called with the path of the temporary file.

    Raises:
        UserError: If it cannot be written.
    """
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file() and not target.is_dir()
    if not special:
        check_writable(path)
    scratch = target if special else target.with_name(f".{target.stem[:64]}.{secrets.token_hex(4)}{target.suffix}")
    try:
        write(scratch)
        if not special:
            os.replace(scratch, target)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if not special:
            scratch.unlink(missing_ok=True)


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 of the content of files, one after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def save_array(path: str | Path, values: np.ndarray) -> None:
    """Write an array as `.npy`. Raises `UserError` if the file cannot be written."""
    import numpy as np

    def write(scratch: Path) -> None:
        with scratch.open("wb") as file:  # given a name without a suffix, numpy would add one
            np.save(file, values)

    write_atomically(path, write)


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write named tensors as safetensors. Raises `UserError` if the file cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        write_atomically(path, lambda scratch: save_file(plain, scratch, {"format": "pt", **(metadata or {})}))
    except SafetensorError as error:
        raise UserError(f"cannot write {path}: {_first_line(error)}") from None


def load_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Read a safetensors file. Raises `UserError` if it is absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_file(path)
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or not safetensors ({_first_line(error)})") from None


class TensorInfo(NamedTuple):
    """Precision and shape of a tensor in a file; `dtype` is as safetensors writes it, for example "BF16"."""

    dtype: str
    shape: tuple[int, ...]


def list_tensors(path: str | Path) -> dict[str, TensorInfo]:
    """List the tensors of a safetensors file from its header. Raises `UserError` as `load_tensors` does."""
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {name: TensorInfo(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged, or not safetensors ({_first_line(error)})") from None


def load_into(module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], what: str) -> None:
    """Copy `tensors` into `module`. A module on the meta device adopts them with their precision and device.

    Args:
        module: The module.
        tensors: Tensors under the names of its state dict.
        what: What errors call the checkpoint.

    Raises:
        UserError: If tensors are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    wrong = [
        f"{name} is {list(tensors[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    faults = {
        "lacks": [name for name in own if name not in tensors],
        "has unknown": [name for name in tensors if name not in own],
        "has wrong shapes:": wrong,
    }
    report = "; ".join(f"{fault} {_some(names)}" for fault, names in faults.items() if names)
    if report:
        raise UserError(f"{what}: the checkpoint does not fit its configuration; it {report}")
    module.load_state_dict(dict(tensors), assign=any(tensor.is_meta for tensor in own.values()))


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `tokenizer.json` in `folder`. Raises `UserError` if it is absent or damaged."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    _check_file(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path}: not a tokenizer ({_first_line(error)})") from None


def _check_file(path: str | Path) -> None:
    if not Path(path).is_file():
        raise UserError(f"{path}: {'a folder, not a file' if Path(path).is_dir() else 'no such file'}")


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
