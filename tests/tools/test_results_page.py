"""docs/results.md and docs/planted.md show what is in docs/results, and nothing that is not."""

import json

import pytest
import results_page

OWNERS = ("own", "classmate", "other")


@pytest.mark.parametrize(
    ("file", "blocks"),
    [
        (results_page.PAGE, results_page.blocks),
        (results_page.PLANTED_PAGE, results_page.planted_blocks),
    ],
)
def test_the_page_is_up_to_date(file, blocks):
    page = file.read_text()
    assert page.count("<!-- end -->") == len(blocks())
    assert results_page.with_tables(page, blocks()) == page


def test_methods_of_one_size_stand_together():
    methods = {
        "generator": {"kept": 0.4, "ms_per_explanation": 1.234, "agreement": None},
        "mct@0.1": {"kept": 0.1},
        "mct": {"kept": 0.4},
        "generator@0.1": {"kept": 0.1},
    }
    lines = results_page.compare_table(methods).splitlines()
    first = [line.split("|")[1].strip() for line in lines[2:]]
    own = "**size of the generator's own**"
    assert first == [own, "`generator`", "`mct`", "**10% kept**", "`mct`", "`generator`"]
    cells = [cell.strip() for cell in lines[3].split("|")]
    assert cells[2:4] == ["0.40", "-"]
    assert cells[-2] == "1.23"


def test_maps_stand_by_owner():
    figures = {owner: {"gradient": i / 10, "grad_cam": i / 4} for i, owner in enumerate(OWNERS, 1)}
    lines = results_page.maps_table({"digits": {"methods": {"mct": figures}}}).splitlines()
    assert lines[2] == "| digits | `mct` | 0.10 | 0.20 | 0.30 | 0.25 | 0.50 | 0.75 |"
    assert lines[0].split(" | ")[2:4] == ["ins - del, its own", "ins - del, same class"]


def test_close_calls():
    figures = {"agreement": 0.9, "close": None, "clear": 0.95}
    found = {"images": 1000, "close_share": 0.0625, "methods": {"mct@0.5": figures}}
    lines = results_page.close_table(found).splitlines()
    assert lines[0] == "| method | all 1,000 images | the 6.2% close ones | the others |"
    assert lines[2] == "| `mct@0.5` | 0.900 | - | 0.950 |"


def test_units_beside_channels():
    channels, half, fifth = (
        dict.fromkeys(results_page.UNIT_FIGURES, value) for value in (0.25, 0.5, None)
    )
    lines = results_page.units_table(
        {"net": channels}, {"net": {"0.5": half, "0.2": fifth}}
    ).splitlines()
    columns = len(results_page.UNIT_FIGURES)
    assert lines[2] == "| net | channels |" + " 0.250 |" * columns
    assert lines[3] == "| net | units, from 0.5 |" + " 0.500 |" * columns
    assert lines[4] == "| net | units, from 0.2 |" + " - |" * columns


def test_differences_are_from_the_first_variant():
    def figures(mean, difference):
        value = {"mean": mean, "std": 0.25, "difference": difference}
        return dict.fromkeys(results_page.SWEPT, value)

    variants = [
        {"name": "as shipped", "figures": figures(0.5, 0.0)},
        {"name": "other", "figures": figures(0.75, 0.25)},
    ]
    lines = results_page.sweep_table(variants, compared=True).splitlines()
    assert lines[2].startswith("| as shipped | 0.500 ± 0.250 |")
    assert lines[3].startswith("| other | 0.750 ± 0.250 (+0.250) |")
    assert "(" not in results_page.sweep_table(variants, compared=False).splitlines()[3]


def test_a_figure_that_only_some_variants_have():
    value = {"mean": 0.5, "std": None, "difference": None}
    figures = dict.fromkeys(results_page.SWEPT, value)
    without = {name: entry for name, entry in figures.items() if not name.startswith("told")}
    variants = [{"name": "a", "figures": without}, {"name": "b", "figures": figures}]
    heads, _, first, second = results_page.sweep_table(variants, compared=True).splitlines()
    place = heads.split(" | ").index("told")
    assert first.split(" | ")[place] == "-" and second.split(" | ")[place] == "0.500"
    heads = results_page.sweep_table(variants[:1], compared=True).splitlines()[0]
    assert "told" not in heads


def test_a_page_without_a_place_is_refused():
    with pytest.raises(ValueError, match="must have a place <!-- metrics -->"):
        results_page.with_tables("# Results", {"metrics": "| a |"})
    page = "a\n<!-- metrics -->\nold\n<!-- end -->\nb\n<!-- other -->\nkept\n<!-- end -->\n"
    wanted = page.replace("old", "new")
    assert results_page.with_tables(page, {"metrics": "new"}) == wanted


def test_figures_are_shortened():
    assert results_page.rounded({"a": {"b": 0.123456789, "c": None}}) == {
        "a": {"b": 0.12346, "c": None}
    }
    json.dumps(results_page.rounded({"a": float("inf")}))
