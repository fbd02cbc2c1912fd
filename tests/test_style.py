"""Named styles and how they combine."""

import pytest

from speechgpt2.errors import UserError
from speechgpt2.style import MAX_LEVEL, NORMAL, STEPS_FASTEST, Style, delivered, named_style, parse_style, table


def test_every_style_of_the_table_is_named_in_both_languages():
    wanted = "normal faster slower louder softer higher lower whisper happy sad angry calm"
    assert set(table()) == set(wanted.split())
    for name, entry in table().items():
        assert all(named_style(alias) == named_style(name) for alias in entry.names)
        assert any(alias.isascii() for alias in entry.names) and not all(alias.isascii() for alias in entry.names)
        assert set(entry.instruction) == set(entry.phrases) == {"en", "zh"}


def test_every_style_but_the_normal_one_changes_audio():
    assert [name for name in table() if not named_style(name).changes_audio] == ["normal"]
    assert named_style("normal") == NORMAL


def test_unknown_style_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"no style 'loud'.*whisper"):
        parse_style("slower, loud")


@pytest.mark.parametrize(
    "values", [{"rate": 5.0}, {"rate": 0.1}, {"pitch": 20}, {"level": -30}, {"rate": float("nan")}]
)
def test_style_out_of_range_is_refused(values):
    with pytest.raises(UserError):
        Style(**values)


def test_several_names_make_one_style():
    style = parse_style("slower, 悄悄话")
    assert style.whisper and style.rate == named_style("slower").rate
    assert style.instruction_for("Hello.") == "Speak slower than usual. Whisper."


def test_steps_add_up_within_limits():
    style = NORMAL
    for _ in range(20):
        style = named_style("faster").over(named_style("louder").over(style))
    assert style.rate == STEPS_FASTEST and style.level == MAX_LEVEL
    back = named_style("slower").over(named_style("faster"))
    assert back.rate == pytest.approx(1.0)


def test_speed_multiplies_the_rate_within_limits():
    assert named_style("faster").faster(2.0).rate == 2.5
    assert named_style("faster").faster(4.0).rate == 4.0
    assert NORMAL.faster(1.0) is NORMAL


@pytest.mark.parametrize("speed", [0.0, 0.2, 4.1, float("nan")])
def test_speed_out_of_range_is_refused(speed):
    with pytest.raises(UserError, match="a speed must be"):
        delivered(NORMAL, speed, follows_instructions=False)


def test_model_that_follows_instructions_leaves_only_the_speed_to_delivery():
    style = named_style("whisper")
    assert delivered(style, 1.0, follows_instructions=True) == NORMAL
    assert delivered(style, 1.5, follows_instructions=True) == Style(rate=1.5)
    assert delivered(style, 1.5, follows_instructions=False).whisper
