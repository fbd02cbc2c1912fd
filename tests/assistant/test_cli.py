"""`sg2 kb` and the options of `sg2 chat` that hand functions to the model."""

from types import SimpleNamespace

import pytest

from speechgpt2.cli import chat
from speechgpt2.types import ReplyDone, TextDelta, ToolCall, Turn
from tests import needs
from tests.command_line import fails, sg2

needs.module("jsonschema", "assistant")
needs.module("jieba", "assistant")

from speechgpt2.assistant.sources import ToolSources
from speechgpt2.assistant.toolbox import Toolbox


@pytest.fixture(autouse=True)
def workdir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tea.md").write_text("# Tea\nGreen tea wants water of eighty degrees.")


def test_knowledge_base_commands(tmp_path):
    assert "1 added" in sg2("kb", "add", "docs").stdout
    assert sg2("kb", "add", "docs").stdout == "1 unchanged\n"
    assert "docs/tea.md, Tea (score" in sg2("kb", "search", "hot water for green tea").stdout
    assert sg2("kb", "list").stdout.split("\t")[2:] == ["Tea", f"{tmp_path / 'docs' / 'tea.md'}\n"]
    assert "version 2, 1 documents, 1 pieces" in sg2("kb", "info").stdout
    assert "removed: " in sg2("kb", "remove", "docs").stdout


def test_skipped_files_are_named_and_the_others_added(tmp_path):
    (tmp_path / "docs" / "image.txt").write_bytes(b"\0\1")
    result = sg2("kb", "add", "docs")
    assert "image.txt: is a binary file" in result.stderr and result.stdout.endswith("1 added, 1 skipped\n")


def test_errors_of_the_knowledge_base(tmp_path):
    assert "no such file or folder" in fails("kb", "add", "gone")
    assert "no such knowledge base" in fails("kb", "search", "tea")
    (tmp_path / "image.bin").write_bytes(b"\0\1")
    assert "is a binary file" in fails("kb", "add", "image.bin")
    sg2("kb", "add", "docs")
    assert "query is empty" in fails("kb", "search", " ")
    assert "limit is 1,000" in fails("kb", "add", "--max-mb", "0.001", str(big_file(tmp_path)))


def big_file(folder):
    path = folder / "big.txt"
    path.write_text("word " * 1000)
    return path


def test_errors_of_tool_files(tmp_path):
    (tmp_path / "own.py").write_text("import nonexistent_module")
    assert "cannot be imported" in fails("chat", "-t", "Hello", "--tools", "own.py")
    (tmp_path / "own.py").write_text("__all__ = ['f']\ndef f(x):\n    'F.'\n")
    assert "f(x): the argument needs a type annotation" in fails("chat", "-t", "Hello", "--tools", "own.py")
    assert "no such knowledge base" in fails("chat", "-t", "Hello", "--kb", "gone.sqlite")


def test_tool_file_and_knowledge_base_make_a_toolbox(tmp_path):
    (tmp_path / "own.py").write_text(
        "__all__ = ['clock']\ndef clock() -> str:\n    'Tell the time.'\n    return 'noon'\n"
    )
    sg2("kb", "add", "docs")
    toolbox = ToolSources(
        tmp_path / "own.py", tmp_path / "knowledge.sqlite", search=f"kb@{tmp_path / 'knowledge.sqlite'}"
    ).open()
    assert [tool.name for tool in toolbox.tools] == ["clock", "search_documents", "web_search"]
    assert ToolSources().open() is None


@pytest.mark.parametrize("trained", [True, False])
def test_model_without_tools_gets_a_warning(trained, capsys):
    template = SimpleNamespace(tools=trained)
    model = SimpleNamespace(lm=SimpleNamespace(prompt=SimpleNamespace(template=template)))
    assert chat.can_call_tools(model, "mini", Toolbox()) is trained
    assert ("mini was not trained to call tools" in capsys.readouterr().err) is not trained


def test_chat_prints_calls_and_results_on_stderr(capsys):
    def clock() -> str:
        """Tell the time."""
        return "noon"

    replies = [
        [TextDelta("Wait."), ToolCall("clock", "{}"), ReplyDone("stop")],
        [TextDelta("Noon."), ReplyDone("stop")],
    ]
    conversation = SimpleNamespace(tools=True, ask=lambda turn, stream: (event for event in replies.pop(0)))
    chat.answer(conversation, chat.Question(Turn.user("What time is it?"), "What time is it?"), None, Toolbox([clock]))
    printed = capsys.readouterr()
    assert (
        printed.out == "you: What time is it?\nsg2: Wait.\nsg2: Noon.\n" and printed.err == "tool: clock({}) → noon\n"
    )
