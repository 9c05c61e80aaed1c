"""Plots and bars in plain characters say the same as the pictures beside them."""

from __future__ import annotations

import math

import pytest

from timebox.text import MARKS, bar, bars, plot


@pytest.mark.parametrize(("share", "drawn"), [
    (0, "    "), (1, "████"), (0.5, "██  "), (0.125, "▌   "), (0.0001, "▏   "),
    (2, "████"), (-1, "    "), (math.nan, "    "),
])  # fmt: skip
def test_a_bar_is_drawn_to_an_eighth_of_a_character(share, drawn):
    assert bar(share, 4) == drawn


def test_rows_of_bars_have_names_and_values():
    assert bars({"a": 0.5, "long": 1.0}, width=24).splitlines() == [
        "a     █████       50.0%",
        "long  ██████████  100.0%",
    ]
    assert bars({"a": 0.5}, most=1, width=30).startswith("a  ██████████   ")
    assert bars({"a": 3, "b": 0}, shown="{:g} s".format).splitlines()[1].endswith("0 s")
    assert bars({}) == "" and "0.0%" in bars({"a": 0.0})


def test_a_line_goes_from_corner_to_corner_between_its_axes():
    lines = plot({"rise": [(0, 0), (10, 1)]}, "minutes", width=20, height=4).splitlines()
    assert [line[:5] for line in lines[:4]] == ["  1 ┤", "0.5 ┤", "    │", "  0 ┤"]
    assert lines[0].endswith("⠊") or lines[0].endswith("⠁"), lines[0]
    assert lines[3][5] != " " and lines[0][5] == " "
    assert lines[4] == "    └" + "─" * 15
    assert lines[5].split() == ["0", "minutes", "10"]
    assert lines[6].strip() == "⠒ rise"


def test_further_series_and_marks_and_levels_are_named():
    many = {name: [(0, k), (4, k)] for k, name in enumerate(["a", "b", "c"])}
    text = plot(many, marks={"best": (2, 2)}, level=("floor", 0.5), begin=-4, width=30)
    assert text.splitlines()[-1].strip() == f"⠒ a   {MARKS[0]} b   {MARKS[1]} c   ● best   ┄ floor"
    rows = text.splitlines()[:-1]
    assert "".join(rows).count(MARKS[0]) == 2 and "●" in rows[0]
    assert text.splitlines()[-2].split() == ["-4", "4"]


@pytest.mark.parametrize("points", [[], [(1, math.nan)], [(math.inf, 1)], [(1, None)]])
def test_nothing_to_plot_is_said(points):
    assert plot({"a": points}) == "(nothing to plot yet)"


@pytest.mark.parametrize("points", [[(3, 5)], [(3, 5), (4, 5)], [(3, 5), (3, 5)]])
def test_a_point_or_a_flat_line_is_a_plot_too(points):
    text = plot({"": points}, width=40)
    assert "5 ┤" in text and max(map(len, text.splitlines())) <= 40
    assert any("•" in line or any(0x2800 < ord(c) < 0x2900 for c in line) for line in [text])


def test_every_plot_fits_its_width():
    points = [(k / 7, math.sin(k) * 10.0**k) for k in range(12)]
    for width in (30, 76, 120):
        text = plot({"training": points}, "minutes of the run", width=width)
        assert max(map(len, text.splitlines())) <= width
