"""Every format of training data gives the same utterances; what is damaged, foreign or mislabelled is refused."""

import gzip
import io
import json
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from speechgpt2.corpus.admission import Refusals, admitted, is_held_out
from speechgpt2.corpus.data_config import DataConfig, read_data_configs
from speechgpt2.corpus.formats import Skipped, find_parts
from speechgpt2.corpus.store import Record
from speechgpt2.errors import UserError
from tests import needs

TEXTS = {"a1": "hello there", "a2": "the second one", "b1": "good night"}
SPEAKERS = {"a1": "anna", "a2": "anna", "b1": "bert"}


def sound(seconds=1.0, seed=0):
    return (np.random.default_rng(seed).standard_normal(int(24_000 * seconds)) * 0.1).astype(np.float32)


def wav(pcm, kind="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, pcm, 24_000, "PCM_16", format=kind)
    return file.getvalue()


def archive(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def cut_of(name, **custom):
    words = [[w, 0.1 + 0.2 * i, 0.15, None] for i, w in enumerate(TEXTS[name].split())]
    supervision = {
        "id": name, "start": 0.0, "duration": 1.0, "text": TEXTS[name], "language": "en-US", "speaker": SPEAKERS[name],
        "alignment": {"word": words},
    }  # fmt: skip
    return {"id": name, "start": 0.0, "duration": 1.0, "supervisions": [supervision], "custom": custom}


def write_shar(folder, names=tuple(TEXTS)):
    folder.mkdir(exist_ok=True)
    clip = {"source": {"spdx": "CC0-1.0", "url": "http://a/1"}, "align": {"phones": [["h", 0.1, 0.2]]}}
    lines = [json.dumps(cut_of(name, clip=clip)) for name in names]
    (folder / "cuts.000000.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    files = [part for n in names for part in ((f"{n}.flac", wav(sound())), (f"{n}.json", b"{}"))]
    archive(folder / "recording.000000.tar", files)


def write_webdataset(folder):
    fields = {n: {"text": t, "speaker": SPEAKERS[n], "license": "CC0-1.0", "lang": "en"} for n, t in TEXTS.items()}
    files = [
        part for n in TEXTS for part in ((f"{n}.flac", wav(sound())), (f"{n}.json", json.dumps(fields[n]).encode()))
    ]
    archive(folder / "shard-000000.tar", files)


def write_recordings(folder):
    for name, text in TEXTS.items():
        (folder / SPEAKERS[name]).mkdir(exist_ok=True)
        (folder / SPEAKERS[name] / f"{name}.wav").write_bytes(wav(sound(), "WAV"))
        (folder / SPEAKERS[name] / f"{name}.txt").write_text(text)


def write_table(folder):
    rows = ["file_name,transcription,speaker_id,license,language"]
    for name, text in TEXTS.items():
        (folder / f"{name}.ogg").write_bytes(wav(sound(), "FLAC"))
        rows.append(f"{name}.ogg,{text},{SPEAKERS[name]},CC0-1.0,en")
    (folder / "metadata.csv").write_text("\n".join(rows))


def write_parquet(folder):
    pa = needs.module("pyarrow", "data")
    import pyarrow.parquet

    rows = [
        {"id": n, "audio": {"bytes": wav(sound()), "path": f"{n}.flac"}, "sentence": t, "client_id": SPEAKERS[n],
         "license": "CC0-1.0", "locale": "en"}
        for n, t in TEXTS.items()
    ]  # fmt: skip
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / "train-00000-of-00001.parquet")


def items(path):
    return [item for part in find_parts(str(path)) for item in part.read()]


WRITERS = (write_shar, write_webdataset, write_recordings, write_table, write_parquet)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_every_format_gives_texts_speakers_and_audio(write, tmp_path):
    write(tmp_path)
    found = items(tmp_path)
    assert {i.record.text for i in found} == set(TEXTS.values())
    by_text = {i.record.text: i.record for i in found}
    assert all(by_text[text].speaker == SPEAKERS[name] for name, text in TEXTS.items())
    assert all(len(i.pcm) == 24_000 and np.abs(i.pcm - sound()).max() < 1e-3 for i in found)
    if write is not write_recordings:
        assert {i.record.licence for i in found} == {"CC0-1.0"} and {i.record.lang for i in found} == {"en"}


def test_shar_keeps_words_and_phones(tmp_path):
    write_shar(tmp_path / "shar")
    first = items(tmp_path)[0].record  # a run's folder holds the shards in shar/
    assert [w.text for w in first.words] == ["hello", "there"] and first.words[1].end == pytest.approx(0.45)
    assert [p.label for p in first.phones] == ["h"] and first.source == "http://a/1"


def test_shar_of_lhotse_itself_is_read(tmp_path):
    needs.module("lhotse", "data")
    from lhotse import CutSet, Recording, SupervisionSegment
    from lhotse.shar import SharWriter

    (tmp_path / "x.wav").write_bytes(wav(sound(), "WAV"))
    cut = Recording.from_file(tmp_path / "x.wav").to_cut()
    cut.supervisions = [SupervisionSegment("s", cut.recording_id, 0, 1.0, text="hello", speaker="anna")]
    (tmp_path / "shar").mkdir()
    with SharWriter(tmp_path / "shar", fields={"recording": "flac"}, shard_size=10) as writer:
        for written in CutSet.from_cuts([cut]):
            writer.write(written)
    found = items(tmp_path / "shar")
    assert [i.record.text for i in found] == ["hello"] and len(found[0].pcm) == 24_000


def test_storage_of_fsspec_is_read(tmp_path):
    import fsspec

    write_webdataset(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/shard-000000.tar", (tmp_path / "shard-000000.tar").read_bytes())
    assert {i.record.text for i in items("memory://bucket")} == set(TEXTS.values())


def test_dialogues_and_their_tools(tmp_path):
    (tmp_path / "q.wav").write_bytes(wav(sound(), "WAV"))
    call = {"type": "function", "function": {"name": "lamp", "arguments": '{"on": true}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Light, please.", "audio": "q.wav"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "done"},
        {"role": "assistant", "content": "It is on."},
    ]
    tools = [{"type": "function", "function": {"name": "lamp"}}]
    (tmp_path / "dialogues.jsonl").write_text(json.dumps({"id": "d", "messages": messages, "tools": tools}))
    turns = [i.record for i in items(tmp_path)]
    assert [t.role for t in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[0].extra["system"] == "Be brief." and turns[0].extra["tools"][0]["name"] == "lamp"
    assert turns[1].extra["tool_calls"] == [{"name": "lamp", "arguments": '{"on": true}'}]
    assert [t.extra["channel"] for t in turns] == [0, 1, 0, 1]
    (tmp_path / "dialogues.jsonl").write_text('{"messages": [{"role": "user", "content": ""}]}')
    with pytest.raises(UserError, match="line 1: a message of the user is empty"):
        items(tmp_path)


def test_texts_are_cut_at_sentences(tmp_path):
    (tmp_path / "book.txt").write_text("One sentence. " * 400)
    found = items(tmp_path)
    assert len(found) > 2 and all(i.pcm is None and len(i.record.text) <= 2_000 for i in found)
    assert "".join(i.record.text for i in found) == "One sentence. " * 400


@pytest.mark.parametrize("keep", (0.3, 0.6, 0.95))
@pytest.mark.parametrize("write, name", ((write_shar, "recording.000000.tar"), (write_webdataset, "shard-000000.tar")))
def test_a_shard_that_is_cut_off_is_one_line(write, name, keep, tmp_path):
    write(tmp_path)
    data = (tmp_path / name).read_bytes()
    audio = len(data) - 10_240  # tar pads its end
    (tmp_path / name).write_bytes(data[: int(audio * keep)])
    with pytest.raises(UserError, match="cut off or damaged") as error:
        items(tmp_path)
    assert "\n" not in str(error.value)


def test_foreign_shards_are_refused(tmp_path):
    write_shar(tmp_path)
    archive(tmp_path / "recording.000000.tar", [("other.flac", wav(sound()))])
    with pytest.raises(UserError, match=r"holds other\.flac where cuts\.000000\.jsonl\.gz says a1"):
        items(tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    archive(folder / "a.tar", [("1.jpg", b"x"), ("1.cls", b"2")])
    with pytest.raises(UserError, match="holds no audio"):
        items(folder)
    with pytest.raises(UserError, match="no training data"):
        empty = tmp_path / "empty"
        empty.mkdir()
        items(empty)


def test_a_cut_index_is_named(tmp_path):
    write_shar(tmp_path)
    index = tmp_path / "cuts.000000.jsonl.gz"
    index.write_bytes(index.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"cuts\.000000\.jsonl\.gz is cut off or damaged"):
        items(tmp_path)


# Content that is no training data: the name of a file, its content, and what is said of it.
FOREIGN = (
    ("metadata.jsonl", b'{"file_name": "a1.wav", "te', r"metadata\.jsonl: not a JSON object"),
    ("metadata.jsonl", b"[1, 2]", r"metadata\.jsonl: not a JSON object"),
    ("metadata.csv", b"file_name,text\nz1.wav,not here\n", r"names no recording that is here: z1\.wav"),
    ("a1.txt", b"caf\xe9", r"a1\.txt is not UTF-8 text"),
)


@pytest.mark.parametrize("name, content, said", FOREIGN)
def test_transcripts_that_are_foreign_or_of_other_recordings_are_refused(name, content, said, tmp_path):
    (tmp_path / "a1.wav").write_bytes(wav(sound(), "WAV"))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        items(tmp_path)


@pytest.mark.parametrize("content", (b'{"text": "one"}\n{"text"', b"\x93NUMPY\xff", b'{"text": "one"}\n7'))
def test_texts_that_are_no_text_are_refused(content, tmp_path):
    (tmp_path / "texts.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"texts\.jsonl") as error:
        items(tmp_path)
    assert "\n" not in str(error.value)


def test_labels_of_shards_that_are_no_objects_are_refused(tmp_path):
    archive(tmp_path / "a.tar", [("1.flac", wav(sound())), ("1.json", b"[3]")])
    with pytest.raises(UserError, match=r"a\.tar, 1\.json: not a JSON object"):
        items(tmp_path)


def test_a_table_whose_audio_is_no_file_is_refused(tmp_path):
    pa = needs.module("pyarrow", "data")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist([{"audio": [0.1, 0.2], "text": "x"}]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet: the column 'audio' must hold"):
        items(tmp_path)


def test_a_recording_that_cannot_be_read_is_skipped_and_counted(tmp_path):
    write_recordings(tmp_path)
    (tmp_path / "broken.wav").write_bytes(b"RIFF nothing")
    assert sum(isinstance(item, Skipped) for item in items(tmp_path)) == 1
    refusals = Refusals()
    kept = [i for p in find_parts(str(tmp_path)) for i in admitted(p, DataConfig("x", licence="own"), refusals)]
    assert len(kept) == 3 and refusals.refused == {"cannot be read": 1}


def kept_and_refused(path, **config):
    refusals = Refusals()
    source = DataConfig(str(path), **config)
    return [i for p in find_parts(str(path)) for i in admitted(p, source, refusals)], refusals.refused


def test_licences_are_checked_unless_any_is_accepted(tmp_path):
    write_recordings(tmp_path)
    assert kept_and_refused(tmp_path) == ([], {"without a licence": 3})
    assert len(kept_and_refused(tmp_path, licence="own")[0]) == 3
    assert kept_and_refused(tmp_path, licence="CC-BY-NC-4.0")[1] == {"with licence CC-BY-NC-4.0": 3}
    assert len(kept_and_refused(tmp_path, licences=("any",))[0]) == 3


def test_labels_that_the_audio_cannot_hold_are_refused(tmp_path):
    write_recordings(tmp_path)
    (tmp_path / "anna" / "a1.txt").write_text("far too many words for a second of audio " * 3)
    (tmp_path / "anna" / "a2.wav").write_bytes(wav(np.zeros(24_000, np.float32), "WAV"))
    _, refused = kept_and_refused(tmp_path, licence="own")
    assert refused == {"with more text than its audio can hold": 1, "silent": 1}


def test_long_recordings_without_text_are_cut_into_pieces(tmp_path):
    (tmp_path / "long.wav").write_bytes(wav(sound(45), "WAV"))
    kept, _ = kept_and_refused(tmp_path, licence="own")
    assert [len(i.pcm) / 24_000 for i in kept] == [20, 20, 5] and len({i.record.id for i in kept}) == 3


def test_all_utterances_of_a_speaker_are_held_out_together():
    records = [Record(f"{s}{i}", "x", "en", speaker=f"speaker{s}") for s in range(200) for i in range(3)]
    held = {r.speaker: set() for r in records}
    for record in records:
        held[record.speaker].add(is_held_out(record, 0.2))
    assert all(len(answers) == 1 for answers in held.values())
    assert 20 < sum(True in answers for answers in held.values()) < 60
    assert not any(is_held_out(record, 0.0) for record in records)
    no_speaker = replace(records[0], speaker="", source="book")
    assert is_held_out(no_speaker, 0.2) == is_held_out(replace(no_speaker, id="other"), 0.2)


def test_data_files_list_sources(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text("- {path: a, weight: 2}\n- {path: b, licence: CC0-1.0}\n")
    first, second, third = read_data_configs([str(path), "c"], "own")
    assert (first.weight, first.licence, second.licence, third.licence) == (2.0, "own", "CC0-1.0", "own")
    for content, message in (("path: a", "list of sources"), ("- {path: a, weight: 0}", "weight must be above 0")):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            read_data_configs([str(path)])
