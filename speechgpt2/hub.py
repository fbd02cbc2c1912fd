"""Where checkpoints are, and how they are read and written.

    folder = hub.resolve("mini", "codec.json").parent     # a folder, a built-in name, or a Hugging Face id
    tensors = hub.load_tensors(folder / "codec.safetensors")
    hub.load_into(module, tensors, "mini")                # every tensor must fit

Downloads are announced on stderr. A file appears under its name only when it is complete.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from speechgpt2.errors import UserError

if TYPE_CHECKING:  # for annotations only: writing a file should not wait for torch
    import numpy as np
    import torch
    from tokenizers import Tokenizer

ASSETS = Path(__file__).parent / "assets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Downloaded files of a checkpoint, besides the requested one.
FETCHED = ("*.json", "*.jsonl", "*.safetensors", "README.md")
WEIGHTS = (".safetensors", ".bin", ".pkl")  # suffixes of weight files
LFS_POINTER = b"version https://git-lfs"  # how a file begins that `git clone` left to Git LFS
ALIGNMENT = 64  # bytes
BLOCK_BYTES = 1 << 26  # read from a file at once
NAMED = 3  # tensors that an error names; it counts the others


def built_in() -> list[str]:
    """Return the names of the models that come with the package."""
    return sorted(path.name for path in ASSETS.iterdir() if path.is_dir()) if ASSETS.is_dir() else []


def resolve(name: str | Path, *files: str) -> Path:
    """Find a checkpoint and return the first of `files` that it holds.

    Args:
        name: A built-in name, a folder, or a Hugging Face id `owner/name`, which is downloaded once. A built-in name
            goes before a folder of that name (write `./mini` for the folder).
        *files: File names that identify the kind of checkpoint; a pattern such as `*.pkl` must fit one file.

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
        found = sorted(folder.glob(file))
        if len(found) > 1:
            raise UserError(f"{name}: holds {len(found)} files {file}; name one of them")
        if found and found[0].is_file():
            return found[0]
    raise UserError(f"{name}: not a checkpoint of the kind needed here, it holds no {wanted}")


def _fetch(repo: str, files: tuple[str, ...]) -> Path:
    """Return the local folder of a Hugging Face repository, from the cache if it is complete there.

    The client resumes a download that broke off, shows its progress, and uses the mirror that HF_ENDPOINT names.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [*files, *FETCHED]
    try:
        folder = Path(snapshot_download(repo, allow_patterns=patterns, local_files_only=True))
        if _is_complete(folder, files):
            return folder
    except LocalEntryNotFoundError:
        pass  # not downloaded yet
    place = os.environ.get("HF_ENDPOINT", "Hugging Face")
    print(f"downloading {repo} from {place} …", file=sys.stderr, flush=True)
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except LocalEntryNotFoundError:
        raise UserError(f"{repo}: no such folder, and Hugging Face cannot be reached") from None
    except RepositoryNotFoundError:
        raise UserError(f"{repo}: no such folder, and no such model on Hugging Face") from None
    except (OSError, ValueError) as error:  # the base classes of all other errors of the client
        raise UserError(f"{repo}: cannot be downloaded from Hugging Face ({_first_line(error)})") from None


def _is_complete(folder: Path, files: tuple[str, ...]) -> bool:
    """Return whether a folder of the cache holds one of `files`, weights, and all shards that an index names."""
    shards = [shard for index in folder.glob("*.index.json") for shard in read_index(index)]
    return (
        any(path.is_file() for file in files for path in folder.glob(file))
        and any(path.suffix in WEIGHTS for path in folder.iterdir())
        and all(path.is_file() for path in shards)
    )


def read_index(path: Path) -> list[Path]:
    """Return the shards that an index of weight files names. Raises `UserError` if it is damaged."""
    try:
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        return [path.parent / file for file in files]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path}: not an index of weight files") from None


def check_writable(path: str | Path) -> None:
    """Raise `UserError` unless a file can be written at `path`. Commands check it before they work for minutes."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not target.parent.is_dir():
        raise UserError(f"cannot write {path}: no folder {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"cannot write {path}: no permission to write in {target.parent}")


def is_special(path: Path) -> bool:
    """Return whether there is a pipe or a device at a path: reading it may never begin, or never end."""
    return path.exists() and not path.is_file() and not path.is_dir()


def read_text(path: Path, expected: str = "") -> str:
    """Return the content of a UTF-8 file. Raises `UserError`, with `expected` at its end if the file is not text."""
    if is_special(path):
        raise UserError(f"{path}: not a regular file (a pipe or a device)")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file{expected}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None


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
    special = is_special(target)
    if not special:
        check_writable(path)
    scratch = target if special else target.with_name(f".{target.stem[:64]}.{secrets.token_hex(4)}{target.suffix}")
    try:
        if not special:
            scratch.touch()
            mode = scratch.stat().st_mode  # as the umask has it; some libraries let nobody else read what they write
        write(scratch)
        if not special:
            scratch.chmod(mode)
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


def _dtypes() -> dict[str, torch.dtype]:
    """Return the types of safetensors that checkpoints use."""
    import torch

    floats = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    integers = {"I64": torch.int64, "I32": torch.int32, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}
    return floats | integers


def aligned_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Return the names of tensors in the order in which `save_aligned` writes them."""
    return sorted(tensors, key=lambda name: (tensors[name].nbytes % ALIGNMENT != 0, -tensors[name].itemsize))


def save_aligned(
    path: str | Path, tensors: Mapping[str, torch.Tensor], make: Callable[[str], torch.Tensor] | None = None
) -> None:
    """Write named tensors as safetensors whose data begin at multiples of `ALIGNMENT`, as kernels need mapped ones.

    Tensors whose size is not such a multiple come last, and those after them may begin anywhere.

    Args:
        path: The file.
        tensors: The tensors; with `make`, any of the same shapes and types.
        make: Returns a tensor by its name, when it is written, so that only one is in memory.

    Raises:
        UserError: If the file cannot be written.
    """
    import torch

    codes = {dtype: code for code, dtype in _dtypes().items()}
    order, make = aligned_order(tensors), make or tensors.__getitem__
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)

    def write(scratch: Path) -> None:
        with scratch.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in order:
                file.write(make(name).detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)

    write_atomically(path, write)


def load_tensors(path: str | Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """Map a safetensors file on the CPU, or read it to another device. Raises `UserError` if absent or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_file(path)
    try:
        return load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


class TensorInfo(NamedTuple):
    """Precision and shape of a tensor in a file; `dtype` is as safetensors writes it, for example "BF16"."""

    dtype: str
    shape: tuple[int, ...]


def list_tensors(path: str | Path) -> dict[str, TensorInfo]:
    """List the tensors of a safetensors file from its header. Raises `UserError` as `load_tensors` does."""
    from safetensors import SafetensorError, safe_open

    check_file(path)
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return {name: TensorInfo(s.get_dtype(), tuple(s.get_shape())) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that stays in its safetensors file until it is read, block by block.

    Mapping a file would be simpler, but the pages of a mapped file count as memory in use.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def blocks(self) -> Iterator[torch.Tensor]:
        """Read the tensor, flattened, in parts of at most `BLOCK_BYTES`. A part is valid until the next is read."""
        import torch

        left = math.prod(self.shape) * self.dtype.itemsize
        buffer = bytearray(min(left, BLOCK_BYTES))
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                view = memoryview(buffer)[: min(left, BLOCK_BYTES)]
                _read_fully(file, view, self.path)
                yield torch.frombuffer(view, dtype=self.dtype)
                left -= len(view)


def _read_fully(file: io.FileIO, view: memoryview, path: Path) -> None:
    filled = 0
    while filled < len(view):
        count = file.readinto(view[filled:])
        if not count:
            raise UserError(f"{path}: cut short while it was read; download it again")
        filled += count


def open_tensors(path: str | Path) -> dict[str, StoredTensor]:
    """Open the tensors of a safetensors file without reading them. Raises `UserError` as `load_tensors` does."""
    import torch

    types, listed, path = _dtypes(), list_tensors(path), Path(path)  # listing checks the file
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    if strange := {info.dtype for info in listed.values()} - types.keys():
        raise UserError(f"{path}: holds tensors of type {min(strange)}, which this program does not read")
    return {
        name: StoredTensor(path, 8 + size + header[name]["data_offsets"][0], types[info.dtype], torch.Size(info.shape))
        for name, info in listed.items()
    }


def copy_into(place: torch.Tensor, tensor: torch.Tensor | StoredTensor) -> None:
    """Copy a tensor of the same shape into `place`, which may be a view, of another precision or on a device."""
    import torch

    if isinstance(tensor, torch.Tensor):
        place.copy_(tensor)
        return
    if not place.is_contiguous():
        raise ValueError("a stored tensor is copied into contiguous memory")
    flat, start = place.view(-1), 0
    for block in tensor.blocks():
        flat[start : start + len(block)].copy_(block)
        start += len(block)


def load_into(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor | StoredTensor], what: str, adopt: bool = False
) -> None:
    """Copy `tensors` into `module`.

    Args:
        module: The module.
        tensors: Tensors under the names of its state dict.
        what: What errors call the checkpoint.
        adopt: Make tensors the module's own, with their precision and device, instead of copying them.

    Raises:
        UserError: If tensors are missing, unexpected or of another shape.
    """
    own = module.state_dict()
    check_fit(own, tensors, what)
    if adopt:
        module.load_state_dict(dict(tensors), assign=True)
        return
    for name, place in own.items():
        copy_into(place, tensors[name])


def check_fit(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor | StoredTensor], what: str) -> None:
    """Check names and shapes of a checkpoint against those of a module's state dict.

    Raises:
        UserError: If tensors are missing, unexpected or of another shape; the checkpoint is called `what`.
    """
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


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Read `tokenizer.json` in `folder`. Raises `UserError` if it is absent or damaged."""
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    check_file(path)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise UserError(f"{path}: not a tokenizer ({_first_line(error)})") from None


def check_file(path: str | Path) -> None:
    """Raise `UserError` unless `path` is a file with content of its own."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(f"{path}: only a pointer to the file; fetch it with `git lfs pull` in {path.parent}")


def _damaged(path: str | Path, error: Exception) -> UserError:
    if "ncomplete" in str(error) or "not fully covered" in str(error):
        return UserError(f"{path}: damaged, only part of the file is there; download it again")
    return UserError(f"{path}: damaged, or not safetensors ({_first_line(error)})")


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
