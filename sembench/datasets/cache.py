"""Where the files of a set are: in SEMBENCH_DATA, in the cache, or downloaded; always checked by SHA-256."""

import hashlib
import json
import logging
import lzma
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from sembench.datasets.manifest import Dataset, ManifestRow, load_manifest
from sembench.errors import InputError, UnavailableError, WriteError

TIMEOUT_SECONDS = 10
CHUNK_BYTES = 1 << 16
ALEXNET_PREFIX = "features."

_unreachable: set[str] = set()
_verified: dict[Path, dict[str, list[object]]] = {}


def cache_folder() -> Path:
    """The folder $SEMBENCH_CACHE, else the user's cache folder of the platform; it need not exist yet."""
    chosen = os.environ.get("SEMBENCH_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("sembench"))


def data_folder() -> Path | None:
    """The folder $SEMBENCH_DATA, laid out as <set>/<file>; None where it is not set.

    Raises UnavailableError where it is set and no folder.
    """
    chosen = os.environ.get("SEMBENCH_DATA")
    if not chosen:
        return None
    folder = Path(chosen).expanduser()
    if not folder.is_dir():
        raise UnavailableError(f"SEMBENCH_DATA names {chosen}, which is no folder: set it to one, or unset it")
    return folder


def locate(
    dataset: Dataset | str,
    row: ManifestRow,
    *,
    download: bool = True,
    on_bytes: Callable[[int], None] | None = None,
) -> Path | None:
    """Path of a file whose content has the SHA-256 of its row; `<file>.xz` counts as `<file>`.

    Looked for in $SEMBENCH_DATA/<set>, beside the manifest of a set that is not shipped, in the cache; then downloaded
    into the cache, `on_bytes` being told the bytes so far. None where it is not there and `download` is false.
    Raises UnavailableError: wrong content in a folder of the user's, no network; WriteError: the cache is not writable.
    """
    name = _name(dataset)
    for folder in _own_folders(dataset):
        for path in _candidates(folder, row.file):
            _require(path, content_sha256(path), row.sha256, f"remove it, then `sembench data fetch {name}`")
            return path
    for path in _candidates(cache_folder() / "data" / name, row.file):
        if content_sha256(path) == row.sha256:
            return path
    return _download(name, row, on_bytes) if download else None


def locate_weight(file: str, *, download: bool = True, on_bytes: Callable[[int], None] | None = None) -> Path | None:
    """Path of a file of the set `weights`, as `locate` finds it; InputError for a name that the set has not."""
    weights = load_manifest("weights")
    for row in weights.rows:
        if row.file == file:
            return locate(weights, row, download=download, on_bytes=on_bytes)
    raise InputError(f"no weights {file!r}: there are {', '.join(row.file for row in weights.rows)}")


def missing(dataset: Dataset | str, rows: Iterable[ManifestRow]) -> list[ManifestRow]:
    """The rows whose files are not here (no download is tried); UnavailableError where one has wrong content."""
    return [row for row in rows if locate(dataset, row, download=False) is None]


def present_files(dataset: Dataset | str, row: ManifestRow) -> list[Path]:
    """Every file that is there for a row, in the order of `locate`, its content unread."""
    folders = [*_own_folders(dataset), cache_folder() / "data" / _name(dataset)]
    return [path for folder in folders for path in _candidates(folder, row.file)]


def read_bytes(path: Path) -> bytes:
    """The plain content of a file, decompressed where its name ends in `.xz`; UnavailableError where it is damaged."""
    try:
        with _open(path) as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UnavailableError(f"{path}: cannot be read ({error}); replace the file") from error


def content_sha256(path: Path) -> str:
    """SHA-256 (hex) of what `read_bytes` gives; remembered in the cache while path, time and size stay the same."""
    stat = path.stat()
    key, stamp = str(path.resolve()), [stat.st_mtime_ns, stat.st_size]
    memory_path = cache_folder() / "verified.json"
    memory = _verified.setdefault(memory_path, _read_memory(memory_path))
    known = memory.get(key)
    if known is not None and known[:2] == stamp:
        return str(known[2])
    digest = _hash(path)
    memory[key] = [*stamp, digest]
    _write_memory(memory_path, memory)
    return digest


def cut_alexnet(pth_path: Path, out_path: Path, *, sha256: str) -> Path:
    """Write the convolutional part (`features.*`) of a torchvision AlexNet .pth as safetensors, and return its path.

    Raises UnavailableError where the result has not the SHA-256 given (nothing is left behind) or the .pth is damaged.
    """
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        state = torch.load(pth_path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else told
        raise UnavailableError(f"{pth_path}: no weights of torch ({reason}); remove it and fetch again") from error
    features = {key: value.contiguous() for key, value in state.items() if key.startswith(ALEXNET_PREFIX)}
    out_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_path.parent) as scratch:
        partial = Path(scratch) / out_path.name
        save_file(features, partial)
        _require(out_path, _hash(partial), sha256, "fetch again, or put the right file into $SEMBENCH_DATA/weights")
        partial.replace(out_path)
    return out_path


def _name(dataset: Dataset | str) -> str:
    return dataset if isinstance(dataset, str) else dataset.name


def _own_folders(dataset: Dataset | str) -> Iterator[Path]:
    """Folders of the user's, which a wrong file is never silently passed over in."""
    data = data_folder()
    if data is not None:
        yield data / _name(dataset)
    if isinstance(dataset, Dataset) and not dataset.shipped:
        yield dataset.path.parent


def _candidates(folder: Path, file: str) -> Iterator[Path]:
    for path in (folder / file, folder / f"{file}.xz"):
        if path.is_file():
            yield path


def _open(path: Path) -> IO[bytes]:
    return lzma.open(path) if path.suffix == ".xz" else path.open("rb")


def _hash(path: Path) -> str:
    hasher = hashlib.sha256()
    try:
        with _open(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                hasher.update(chunk)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise UnavailableError(f"{path}: cannot be read ({error}); replace the file") from error
    return hasher.hexdigest()


def _require(path: Path, got: str, expected: str, mend: str) -> None:
    if got != expected:
        raise UnavailableError(f"{path}: wrong content, SHA-256 {got[:12]} instead of {expected[:12]}; {mend}")


def _read_memory(path: Path) -> dict[str, list[object]]:
    try:
        memory = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(memory, dict):
        return {}
    return {key: value for key, value in memory.items() if isinstance(value, list) and len(value) == 3}


def _write_memory(path: Path, memory: dict[str, list[object]]) -> None:
    """Keep what was hashed; a cache that cannot be written costs hashing again, nothing else."""
    merged = _read_memory(path) | memory
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as partial:
            json.dump(merged, partial)
        Path(partial.name).replace(path)
    except OSError:
        return


def _download(name: str, row: ManifestRow, on_bytes: Callable[[int], None] | None) -> Path:
    put = f"put it into $SEMBENCH_DATA/{name}"
    if not row.url:
        raise UnavailableError(f"{name}/{row.file} has no address to download from: {put}")
    folder = cache_folder() / "data" / name
    target = folder / row.file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not row.url.endswith(".pth"):
            return _retrieve(name, row, target, f"sha256:{row.sha256}", on_bytes)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            whole = _retrieve(name, row, Path(scratch) / urlsplit(row.url).path.rsplit("/", 1)[-1], None, on_bytes)
            _require_name_hash(whole)
            return cut_alexnet(whole, target, sha256=row.sha256)
    except OSError as error:
        raise WriteError(f"{target}: cannot be written ({error.strerror}); free it, or set SEMBENCH_CACHE") from error


def _retrieve(
    name: str, row: ManifestRow, target: Path, known_hash: str | None, on_bytes: Callable[[int], None] | None
) -> Path:
    import pooch
    from requests.exceptions import HTTPError, RequestException

    mend = f"set SEMBENCH_DATA to a folder with {name}/{row.file}, or try again with a network"
    host = urlsplit(row.url).hostname or ""
    if host in _unreachable:
        raise UnavailableError(f"{name}/{row.file} is not here and its server was not reached: {mend}")
    pooch.get_logger().setLevel(logging.CRITICAL)
    downloader = pooch.HTTPDownloader(
        progressbar=_Progress(on_bytes) if on_bytes else False, chunk_size=CHUNK_BYTES, timeout=TIMEOUT_SECONDS
    )
    try:
        return Path(pooch.retrieve(row.url, known_hash, target.name, target.parent, downloader=downloader))
    except HTTPError as error:
        status = error.response.status_code if error.response is not None else "an error"
        raise UnavailableError(f"{name}/{row.file} is not here and its server answers {status}: {mend}") from error
    except RequestException as error:
        _unreachable.add(host)
        raise UnavailableError(f"{name}/{row.file} is not here and its server was not reached: {mend}") from error
    except ValueError as error:
        raise UnavailableError(
            f"{name}/{row.file}: the server gives other content than SHA-256 {row.sha256[:12]}; "
            f"put the right file into $SEMBENCH_DATA/{name}"
        ) from error


def _require_name_hash(pth_path: Path) -> None:
    """torch publishes a .pth under a name that ends in the first eight digits of its SHA-256."""
    promised = pth_path.stem.rsplit("-", 1)[-1]
    got = _hash(pth_path)
    if not got.startswith(promised):
        raise UnavailableError(f"{pth_path.name}: wrong content, SHA-256 {got[:12]} instead of {promised}; fetch again")


class _Progress:
    """What pooch tells of a download, passed on as the bytes so far."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        self.on_bytes = on_bytes
        self.total = 0
        self.done = 0

    def update(self, count: int) -> None:
        self.done += count
        self.on_bytes(self.done)

    def reset(self) -> None:
        self.done = 0

    def close(self) -> None:
        """Nothing is held open."""
