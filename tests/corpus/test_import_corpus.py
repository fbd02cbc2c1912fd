"""Any data as a corpus for the codec's trainer."""

import numpy as np
import pytest
import soundfile

from speechgpt2.corpus.codec_dataset import CorpusCrops
from speechgpt2.corpus.data_config import DataConfig
from speechgpt2.corpus.import_corpus import as_corpus
from speechgpt2.errors import UserError
from tests import needs

needs.module("pyworld", "synthesis")


def write_clip(path, hz, seconds=1.5):
    t = np.arange(int(16_000 * seconds)) / 16_000
    pcm = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 8)) * 0.1
    soundfile.write(path, pcm.astype(np.float32), 16_000)


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    folder.mkdir()
    for number, hz in enumerate((120, 150, 200, 240)):
        write_clip(folder / f"{number}.wav", hz)
    (folder / "0.txt").write_text("hello there")
    return DataConfig(str(folder), licence="own", held_out=0.0)


def test_recordings_become_a_corpus_with_pitch(recordings, tmp_path):
    corpus = as_corpus([recordings], tmp_path / "run" / "corpus")
    assert [r.text for r in corpus.records] == ["hello there", "", "", ""]
    assert np.median(corpus.f0(corpus.records[2])) == pytest.approx(200, rel=0.03)
    crops = CorpusCrops(corpus).crops(np.random.default_rng(0), 2, 16)
    assert crops.pcm.shape == (2, 16 * 960) and crops.pcm.abs().max() > 0.01
    again = as_corpus([recordings], tmp_path / "run" / "corpus")  # opened, not imported again
    assert again.records == corpus.records


def test_changed_recordings_are_refused(recordings, tmp_path):
    as_corpus([recordings], tmp_path / "corpus")
    write_clip(f"{recordings.path}/new.wav", 180)
    with pytest.raises(UserError, match="holds other data"):
        as_corpus([recordings], tmp_path / "corpus")


def test_corpus_of_this_project_is_used_as_it_is(recordings, tmp_path):
    corpus = as_corpus([recordings], tmp_path / "corpus")
    assert as_corpus([DataConfig(str(tmp_path / "corpus"))], tmp_path / "other").path == corpus.path


def test_nothing_to_train_on_is_an_error(recordings, tmp_path):
    with pytest.raises(UserError, match="nothing to train on"):
        as_corpus([DataConfig(recordings.path)], tmp_path / "corpus")
