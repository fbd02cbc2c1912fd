"""A knowledge base that also searches by meaning: a small embedder, merged ranks, updates, and files of version 1."""

import sqlite3
from pathlib import Path

import numpy as np
import pytest

from speechgpt2.assistant import embeddings
from speechgpt2.assistant.embeddings import fuse, open_embedder, to_bytes, unit
from speechgpt2.assistant.knowledge import KnowledgeBase
from speechgpt2.errors import UserError
from tests import needs

needs.module("jieba", "assistant")

MEANINGS = [{"car", "automobile", "vehicle"}, {"doctor", "physician"}, {"river", "stream"}]


class Thesaurus:
    """An embedder that knows a few words; each meaning is a direction."""

    def __init__(self, address):
        self.name, self.fingerprint, self.embedded = f"thesaurus@{address}", address, []

    def embed(self, texts, questions=False):
        self.embedded += texts
        words = [set(text.lower().replace(".", "").split()) for text in texts]
        return np.array([[len(meaning & found) for meaning in MEANINGS] for found in words], np.float32)


@pytest.fixture(autouse=True)
def opened(monkeypatch):
    """The embedders that were opened."""
    made = []

    def make(address):
        made.append(Thesaurus(address))
        return made[-1]

    monkeypatch.setitem(embeddings.EMBEDDERS, "thesaurus", make)
    return made


@pytest.fixture
def docs(tmp_path):
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "garage.txt").write_text("The automobile stands behind the garden.")
    (folder / "clinic.txt").write_text("A physician is there on Mondays.")
    (folder / "walk.txt").write_text("Leave the car at home and follow the stream.")
    return folder


def names(passages):
    return [Path(passage.source).name for passage in passages]


def test_passages_are_found_by_meaning(tmp_path, docs):
    with KnowledgeBase(tmp_path / "kb.sqlite", create=True) as base:
        list(base.add([docs]))
        assert names(base.search("a vehicle")) == [] and base.embedder is None
        assert base.embed("thesaurus@one") == 3 and base.embedder == "thesaurus@one"
        assert names(base.search("a vehicle")) == ["garage.txt", "walk.txt"]  # the latter means something else, too
        assert names(base.search("my doctor", k=1)) == ["clinic.txt"]
        assert names(base.search("nothing known")) == []
        both = base.search("the car or the automobile")
        assert names(both)[0] == "garage.txt" and both[0].score > both[1].score
        assert base.embed(None) == 0 and names(base.search("a vehicle")) == []


def test_another_process_needs_no_option(tmp_path, docs, opened):
    with KnowledgeBase(tmp_path / "kb.sqlite", create=True) as base:
        list(base.add([docs]))
        base.embed("thesaurus@one")
        with KnowledgeBase(tmp_path / "kb.sqlite") as other:
            assert names(other.search("a physician or doctor")) == ["clinic.txt"]
            (docs / "hospital.txt").write_text("Ask for the doctor.")
            (docs / "clinic.txt").unlink()
            list(base.add([docs], prune=True))
            assert names(other.search("a physician")) == ["hospital.txt"]  # it sees what the first has written
    written = [text for embedder in opened for text in embedder.embedded if "doctor." in text.lower()]
    assert len(written) == 1  # the others were not embedded again


def test_vectors_of_other_weights_are_replaced(tmp_path, docs):
    with KnowledgeBase(tmp_path / "kb.sqlite", create=True) as base:
        list(base.add([docs]))
        assert base.embed("thesaurus@one") == 3 and base.embed("thesaurus@one") == 0
        assert base.embed("thesaurus@two") == 3 and names(base.search("vehicle"))


def test_killed_embedding_goes_on(tmp_path, docs, monkeypatch):
    with KnowledgeBase(tmp_path / "kb.sqlite", create=True) as base:
        list(base.add([docs]))
        base.embed("thesaurus@one")
        with base._file.transaction():
            base._file.execute("DELETE FROM vectors WHERE piece = 1")
        assert base.embed("thesaurus@one") == 1


def test_unknown_embedders_are_refused_and_change_nothing(tmp_path, docs):
    with KnowledgeBase(tmp_path / "kb.sqlite", create=True) as base:
        for name in ("thesaurus", "word2vec@x", f"model2vec@{tmp_path}", "model2vec@minishlab/potion-base-8M"):
            with pytest.raises(UserError, match=r"no embedder|not the folder"):
                base.embed(name)
        assert base.embedder is None and list(base.add([docs]))


def test_base_of_version_1_is_taken_over(tmp_path, docs):
    path = tmp_path / "kb.sqlite"
    with KnowledgeBase(path, create=True) as base:
        list(base.add([docs]))
    with sqlite3.connect(path) as db:
        db.executescript("DROP TABLE vectors; DROP TABLE settings; PRAGMA user_version = 1;")
    with KnowledgeBase(path) as base:
        assert names(base.search("the garden")) == ["garage.txt"]
        assert base.embed("thesaurus@one") == 3


def test_ranks_are_fused():
    assert list(fuse([1, 2, 3], [3, 4])) == [3, 1, 2, 4]
    assert fuse([7], [7])[7] == pytest.approx(2 / 61)


def test_vectors_are_stored_at_length_1():
    vectors = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    assert np.allclose(unit(vectors), [[0.6, 0.8], [0, 0]])
    stored = np.frombuffer(to_bytes(vectors)[0], "<f2")
    assert stored.tolist() == pytest.approx([0.6, 0.8], abs=1e-3)


def test_model2vec_reads_a_folder(tmp_path):
    model2vec = needs.module("model2vec", "embeddings")
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"[UNK]": 0, "car": 1, "automobile": 2, "river": 3}
    tokenizer = Tokenizer(models.WordLevel(vocab, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    vectors = np.array([[0, 0], [1, 0.1], [1, 0], [0, 1]], np.float32)
    model2vec.StaticModel(vectors, tokenizer).save_pretrained(tmp_path / "model")
    embedder = open_embedder(f"model2vec@{tmp_path / 'model'}")
    car, automobile, river = unit(embedder.embed(["car", "automobile", "river"]))
    assert car @ automobile > 0.9 > 0.2 > car @ river
    assert open_embedder(embedder.name).fingerprint == embedder.fingerprint
    (tmp_path / "model" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read as a model2vec model"):
        open_embedder(embedder.name)


def test_sentence_transformers_reads_a_folder(tmp_path):
    """A tiny random transformer, whose settings name prompts for questions and passages."""
    library = needs.module("sentence_transformers", "sentence-transformers")
    import torch
    from sentence_transformers import models
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "car", "river", "query", "passage"]
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(tmp_path / "bert" / "vocab.txt")).save_pretrained(tmp_path / "bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path / "bert")
    layers = [models.Transformer(str(tmp_path / "bert")), models.Pooling(8)]
    prompts = {"query": "query ", "document": "passage "}
    model = library.SentenceTransformer(modules=layers, prompts=prompts, device="cpu")
    model.save(str(tmp_path / "model"))
    embedder = open_embedder(f"sentence-transformers@{tmp_path / 'model'}")
    passages, questions = embedder.embed(["car", "river"]), embedder.embed(["car"], questions=True)
    assert passages.shape == (2, 8) and passages.dtype == np.float32
    assert np.allclose(passages, model.encode(["passage car", "passage river"]), atol=1e-6)
    assert np.allclose(questions, model.encode(["query car"]), atol=1e-6)
    assert open_embedder(embedder.name).fingerprint == embedder.fingerprint
    next((tmp_path / "model").rglob("*.safetensors")).write_bytes(b"broken")
    with pytest.raises(UserError, match="cannot be read as a sentence-transformers model"):
        open_embedder(embedder.name)
    with pytest.raises(UserError, match="with safetensors"):
        open_embedder(f"sentence-transformers@{tmp_path}")
