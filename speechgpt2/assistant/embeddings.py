"""Embeddings: a knowledge base finds passages that mean the same as a question, whatever their words.

    embedder = open_embedder("model2vec@FOLDER")     # an entry of EMBEDDERS
    embedder.embed(["a car", "an automobile"])       # [2, D]
    embedder.embed(["What is a car?"], questions=True)

An embedder is a plug-in: a class with the methods of `Embedder`, and a line in `EMBEDDERS`. Vectors are kept in the
base's file, and a search compares all of them with the question's. The ranks of words and of vectors are merged by
reciprocal rank fusion (Cormack, Clarke and Büttcher 2009, https://doi.org/10.1145/1571941.1572114).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from speechgpt2.errors import UserError
from speechgpt2.extras import require

FUSION = 60  # the constant of reciprocal rank fusion: how little the first ranks stand out
WEIGHTS = ("model.safetensors", "0_StaticEmbedding/model.safetensors")  # of model2vec, and of sentence-transformers
STORED = "<f2"


class Embedder(Protocol):
    """Turns texts into vectors: the closer the direction of two, the closer their meaning."""

    @property
    def name(self) -> str:
        """What opens it again (`open_embedder`)."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies its weights. Vectors of other weights are of no use."""
        ...

    def embed(self, texts: Sequence[str], questions: bool = False) -> np.ndarray:
        """Return the vectors of passages, or of the questions that look for them, `[N, D]` float32."""
        ...


class Model2Vec:
    """A static model of words by the package `model2vec` (https://github.com/MinishLab/model2vec).

    Args:
        folder: Its folder. Nothing is downloaded.

    Raises:
        UserError: There is no model.
        MissingDependency: The extra `embeddings` is not installed.
    """

    def __init__(self, folder: str):
        path = Path(folder).resolve()
        weights = [path / file for file in WEIGHTS if (path / file).is_file()]
        if not weights:  # the library would look for it on the Hugging Face hub
            raise UserError(f"{folder}: not the folder of a model2vec model (there is no {WEIGHTS[0]})")
        library = require("model2vec", "embeddings")
        try:
            self._model: Any = library.StaticModel.from_pretrained(path)
        except Exception as error:  # whatever its parsers raise
            raise UserError(f"{folder}: cannot be read as a model2vec model ({' '.join(str(error).split())})") from None
        self.name, self.fingerprint = f"model2vec@{path}", hashlib.sha256(weights[0].read_bytes()).hexdigest()[:16]

    def embed(self, texts: Sequence[str], questions: bool = False) -> np.ndarray:
        """See `Embedder`."""
        return np.asarray(self._model.encode(list(texts), use_multiprocessing=False), np.float32)


class SentenceTransformers:
    """A transformer by the package `sentence-transformers` (https://sbert.net), on the CPU.

    Args:
        folder: Its folder, with weights as safetensors. Nothing is downloaded, and no code in it is run.

    Raises:
        UserError: There is no model.
        MissingDependency: The extra `sentence-transformers` is not installed.
    """

    def __init__(self, folder: str):
        path = Path(folder).resolve()
        weights = sorted(path.rglob("*.safetensors"))
        if not (path / "modules.json").is_file() or not weights:  # the library would look for it on the hub
            raise UserError(f"{folder}: not the folder of a sentence-transformers model with safetensors")
        library = require("sentence_transformers", "sentence-transformers")
        require("transformers.utils.logging", "sentence-transformers").disable_progress_bar()
        try:
            self._model: Any = library.SentenceTransformer(str(path), device="cpu", local_files_only=True)
        except Exception as error:  # whatever its parsers raise
            reason = " ".join(str(error).split())
            raise UserError(f"{folder}: cannot be read as a sentence-transformers model ({reason})") from None
        self.name, hashed = f"sentence-transformers@{path}", hashlib.sha256()
        for file in weights:
            hashed.update(file.read_bytes())
        self.fingerprint = hashed.hexdigest()[:16]

    def embed(self, texts: Sequence[str], questions: bool = False) -> np.ndarray:
        """See `Embedder`. The prompts that the model's settings name for questions and passages are added."""
        encode = self._model.encode_query if questions else self._model.encode_document
        return np.asarray(encode(list(texts), show_progress_bar=False), np.float32)


EMBEDDERS: dict[str, Callable[[str], Embedder]] = {
    "model2vec": Model2Vec,
    "sentence-transformers": SentenceTransformers,
}


def open_embedder(name: str) -> Embedder:
    """Return an embedder by its name, ``KIND@ADDRESS``.

    Raises:
        UserError: There is none of this name.
        MissingDependency: The package that it needs is not installed.
    """
    kind, _, address = name.partition("@")
    if kind not in EMBEDDERS or not address:
        known = ", ".join(f"{known}@FOLDER" for known in EMBEDDERS)
        raise UserError(f"no embedder {name!r}; there are: {known}")
    return EMBEDDERS[kind](address)


class _Loaded(NamedTuple):
    """Passages as they were at a version: `ids [N]`, `vectors [N, D]`. Threads replace it as a whole."""

    version: object
    ids: np.ndarray
    vectors: np.ndarray


class VectorIndex:
    """The vectors of a base's passages, in memory.

    Args:
        embedder: Embeds questions.
        read: Returns the passages' ids and their stored vectors.
    """

    def __init__(self, embedder: Embedder, read: Callable[[str], Iterable[tuple[int, bytes]]]):
        self.embedder, self._read = embedder, read
        self._loaded = _Loaded(None, np.zeros(0, np.int64), np.zeros((0, 0), np.float32))

    def nearest(self, query: str, count: int, version: object) -> list[int]:
        """Return the ids of the passages closest to a question, the closest first.

        Args:
            query: The question.
            count: How many at most. A passage at a right angle or more does not count.
            version: Another value than at the last call means that the passages have changed.
        """
        loaded = self._loaded
        if loaded.version != version:
            self._loaded = loaded = self._load(version)
        if not len(loaded.ids):
            return []
        likeness = loaded.vectors @ unit(self.embedder.embed([query], questions=True))[0]
        best = np.argsort(-likeness, kind="stable")[:count]
        return [int(loaded.ids[place]) for place in best if likeness[place] > 0]

    def _load(self, version: object) -> _Loaded:
        rows = list(self._read(self.embedder.fingerprint))
        vectors = np.array([np.frombuffer(stored, STORED) for _, stored in rows], np.float32)
        return _Loaded(version, np.array([id for id, _ in rows], np.int64), vectors)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Return vectors `[N, D]` at length 1; zeros stay zeros."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length, length, 1)


def to_bytes(vectors: np.ndarray) -> list[bytes]:
    """Return vectors `[N, D]` as they are stored: of length 1, in half precision."""
    return [vector.astype(STORED).tobytes() for vector in unit(vectors)]


def fuse(*rankings: Sequence[int]) -> dict[int, float]:
    """Merge rankings, each the best first, by reciprocal rank fusion. Returns scores by id, the best first."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for rank, id in enumerate(ranking, 1):
            scores[id] += 1 / (FUSION + rank)
    return dict(sorted(scores.items(), key=lambda entry: -entry[1]))
