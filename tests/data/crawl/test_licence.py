"""What licence texts mean, and which statement counts."""

import pytest

from tests import needs

needs.module("aiohttp", "crawl")

from speechgpt2.data.crawl.licence import (
    CHANNEL,
    ITEM,
    OPEN,
    SEED,
    Statement,
    is_statement,
    permits,
    spdx,
    strongest,
)


@pytest.mark.parametrize(
    "raw, identifier",
    [
        ("https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("http://creativecommons.org/licenses/by-nc-sa/3.0/deed.de", "CC-BY-NC-SA-3.0"),
        ("cc-by-4.0", "CC-BY-4.0"),
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("Creative Commons Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
        ("Creative Commons Attribution NoDerivs 2.5", "CC-BY-ND-2.5"),
        ("© 2024 Someone. Licensed under CC BY 4.0.", "CC-BY-4.0"),
        ("Creative Commons Attribution license (reuse allowed)", "CC-BY-3.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "CC-PDM-1.0"),
        ("cc0-1.0", "CC0-1.0"),
        ("CC0", "CC0-1.0"),
        ("CC0 1.0 Universal", "CC0-1.0"),
        ("cc-by-4.0 https://creativecommons.org/licenses/by/4.0/", "CC-BY-4.0"),
        ("Apache-2.0", "Apache-2.0"),
        ("CC BY", None),  # of no version
        ("All rights reserved", None),
        ("© 2024 Someone", None),
        ("public domain", None),
        ("cc-by-4.0 or http://creativecommons.org/licenses/by-sa/4.0/", None),  # which?
        ("cc-by-freedom-4.0", None),
        ("CC BY 4.01", None),
        ("admit it", None),
        ("", None),
    ],
)
def test_licence_text_maps_to_an_identifier_or_none(raw, identifier):
    assert spdx(raw) == identifier


def test_copyright_notice_is_no_licence():
    assert not is_statement("© 2024 Someone")
    assert is_statement("© 2024 Someone, all rights reserved")
    assert is_statement("CC BY 4.0")


def test_nearest_statement_counts_in_any_order():
    statements = [Statement("CC0-1.0", SEED), Statement("All rights reserved", ITEM), Statement("cc-by-4.0", CHANNEL)]
    for order in (statements, statements[::-1]):
        assert strongest(order, OPEN) == statements[1]


def test_of_equally_near_statements_the_one_that_forbids_counts():
    pair = [Statement("cc-by-4.0", CHANNEL), Statement("cc-by-nc-4.0", CHANNEL)]
    assert not permits(strongest(pair, OPEN), OPEN)
    assert not permits(strongest(pair[::-1], OPEN), OPEN)


def test_missing_licence_is_rejected_unless_all_are_allowed():
    assert not permits(strongest([], OPEN), OPEN)
    assert permits(strongest([], ("any",)), ("any",))
