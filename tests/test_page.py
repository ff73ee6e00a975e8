"""The page: nothing that models wrote can break it, it loads nothing, and it reads without eyes, mouse or script."""

import base64
import hashlib
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from pages import Tree, make
from synthetic_run import HOSTILE, wide_params, write_run

from anamnesis import page
from anamnesis.lost import NO_TEXT

TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "nav", "main", "section", "footer", "div", "span"),
    *("h1", "h2", "h3", "p", "a", "b", "i", "strong", "small", "code", "br", "ul", "li", "dl", "dt", "dd", "details"),
    *("summary", "figure", "figcaption", "table", "caption", "thead", "tbody", "tr", "th", "td", "script"),
    *("svg", "desc", "defs", "g", "path", "use", "text", "clippath", "rect"),
}
MEASURES = ["domain_choice", "domain_text", "own_text", "own_kl", "leaderboard_mmlu_pro", "leaderboard_gpqa"]
MEASURES += ["refused_harmful"]


@pytest.fixture(scope="module")
def tree(root: Path) -> Tree:
    return Tree((root / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 15 variants and 3 interpolations, two variants trained with further seeds."""
    root = tmp_path_factory.mktemp("wide")
    write_run(root, wide_params(), MEASURES)
    make(root)
    return root


@pytest.fixture(scope="module")
def wide_tree(wide: Path) -> Tree:
    return Tree((wide / "report.html").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------ hostile text


def test_hostile_text_stays_text(tree: Tree, root: Path) -> None:
    assert set(tree.tags) <= TAGS
    assert not [item for item in tree.attributes if item[1].startswith("on") or item[1] in ("src", "srcdoc", "action")]
    said = "".join(tree.texts)
    shown = [text for text in HOSTILE if page.visible(text) in said]
    assert len(shown) >= 4, "the examples must show hostile text for this test to mean anything"
    assert tree.open == []


def test_template_syntax_in_a_response_is_not_run(tree: Tree) -> None:
    said = "".join(tree.texts)
    assert "{{ 7 * 7 }}" in said
    assert "</style>49" not in said


def test_control_and_direction_characters_are_made_visible(root: Path) -> None:
    html = (root / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)
    assert page.visible("\x1b[31mred\x1b[0m\x07") == "␛[31mred␛[0m␇"
    assert page.visible("a\r\nb\tc") == "a\nb\tc"


def test_very_long_output_is_cut_and_says_so() -> None:
    assert page.visible("a" * (page.SHOWN_CHARACTERS + 5)).endswith("a… (5 more characters)")


# -------------------------------------------------------------------------------------------------- self-contained


def test_page_loads_nothing(tree: Tree, root: Path) -> None:
    links = [value for _, key, value in tree.attributes if key in ("href", "xlink:href", "src", "data", "poster")]
    assert links
    assert all(link.startswith("#") for link in links)
    assert not {"link", "iframe", "object", "embed", "img", "base", "form"} & set(tree.tags)
    html = (root / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert "@import" not in html
    policy = next(
        value for tag, key, value in tree.attributes if tag == "meta" and key == "content" and "default" in value
    )
    script = html[html.index("<script>") + 8 : html.index("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; ")
    assert "http" not in policy
    assert tree.tags["script"] == 1
    assert not re.search(r"fetch|XMLHttp|innerHTML|eval|import", script)


def test_every_link_and_label_has_its_target(tree: Tree) -> None:
    ids = [value for _, key, value in tree.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    wanted = {value[1:] for _, key, value in tree.attributes if key == "href"}
    wanted |= {name for _, key, value in tree.attributes if key == "aria-labelledby" for name in value.split()}
    html_urls = {value[5:-1] for _, key, value in tree.attributes if key == "clip-path"}
    assert wanted | html_urls <= set(ids)


def test_page_can_be_read_without_seeing_it(tree: Tree) -> None:
    assert ("html", "lang", "en") in tree.attributes
    assert tree.tags["h1"] == 1
    assert tree.tags["table"] == tree.tags["caption"] >= 8
    assert tree.tags["svg"] == tree.tags["desc"] == 8
    scopes = Counter(value for tag, key, value in tree.attributes if tag == "th" and key == "scope")
    assert sum(scopes.values()) == tree.tags["th"]
    regions = [value for _, key, value in tree.attributes if (key, value) == ("role", "region")]
    assert len(regions) == tree.tags["table"], "a table that scrolls must be reachable by keyboard"


# ------------------------------------------------------------------------------------------------------- many models


def headings(tree: Tree, table: str) -> list[str]:
    return [" ".join(cell.split()) for cell in tree.cells[table][0]]


def test_the_head_counts_what_the_page_counts(tree: Tree) -> None:
    said = " ".join("".join(tree.texts).split())
    assert "40 of 50 samples probed" in said
    assert "21 on 7 measures" in said
    assert "of 7 measures" in said
    assert page._minus("17 % to -3 %") == "17\u00a0% to \u22123\u00a0%"  # no line ends between them


def test_many_models_stand_below_each_other(wide_tree: Tree, wide: Path) -> None:
    html = (wide / "report.html").read_text(encoding="utf-8")
    groups, heads, *lines = wide_tree.cells["results"]
    assert len(lines) == 18
    assert len(heads) == 1 + len(MEASURES)
    assert groups == ["", "The domain", "Everything else", "Safety"]
    assert wide_tree.tags["details"] > 18, "findings, measures and items fold"
    key = wide_tree.cells["key"]
    assert headings(wide_tree, "key")[2:] == [
        "learntbits per byte: domain, held-out answers",
        "forgottenbits per byte: its own answers to held-out instructions",
        "learntaccuracy: domain, multiple choice",
        "forgottenaccuracy: mean of 2 measures",
    ]
    assert re.fullmatch(r"domain, multiple choiceaccuracy ↑base 0\.\d+, n = 60", " ".join(heads[1].split()))
    assert [line[1] for line in key[1:]] == [str(i) for i in range(1, 19)]
    assert html.count("figure-frontier-text-title") == 2  # the id and what refers to it
    assert len(html) < 2_000_000


def test_the_papers_tables_are_there_with_stand_ins_named(wide_tree: Tree) -> None:
    assert headings(wide_tree, "table-1")[0] == "model"
    names = [line[0] for line in wide_tree.cells["table-1"][1:]]
    assert names[0] == "base"
    assert "Dollystands in for GenQA" in names
    assert "GPTeacher <i>stands in for OpenHermes 1" in names  # a label is text
    assert "wise-50" in [line[0] for line in wide_tree.cells["table-2"]]
    assert not [cell for line in wide_tree.cells["table-1"] for cell in line if "paper " in cell]


def test_every_measure_tells_gained_and_lost_items_and_seeds(wide_tree: Tree) -> None:
    head, first, *_ = wide_tree.cells["task-leaderboard_mmlu_pro"]
    found = dict(zip(head, first, strict=True))
    assert found["model"] == "domain-only"
    assert int(found["lost"]) > int(found["gained"]) > 0
    assert "standard deviation" in first[-1]
    assert wide_tree.cells["task-leaderboard_mmlu_pro"][2][-1] == "one seed"
    moved = {line[0]: line[1:] for line in wide_tree.cells["moved"][1:]}
    of_measures = [
        wide_tree.cells[f"task-{name}"] for name in MEASURES if name not in ("domain_text", "own_text", "own_kl")
    ]
    lost = [int(table[1][head.index("lost")]) for table in of_measures]  # domain, two of everything else, safety
    assert [int(number) for number in moved["domain-only"][1::2]] == [lost[0], lost[1] + lost[2], lost[3]]
    assert headings(wide_tree, "moved")[1:4] == ["gaineddomain", "lostdomain", "gainedeverything else"]


def test_categories_stand_across(wide_tree: Tree) -> None:
    head = headings(wide_tree, "categories-leaderboard_mmlu_pro")
    assert head[1].startswith("biology")
    assert len(wide_tree.cells["categories-leaderboard_mmlu_pro"]) == 1 + 18
    assert "categories-leaderboard_gpqa" not in wide_tree.cells


def test_lost_items_are_browsed_and_gpqa_is_not_shown(wide: Path) -> None:
    html = (wide / "report.html").read_text(encoding="utf-8")
    section = html[html.index('<section id="lost"') : html.index('<section id="rehearsal"')]
    gpqa = section[section.index("GPQA <span") : section.index("refused, harmful prompts <span")]
    asked = re.findall(r'<summary><span class="text" dir="auto">(.*?)</span>', gpqa)
    assert asked
    assert all(text.endswith(f"question {NO_TEXT}") for text in asked)
    assert set(re.findall(r'<dd class="said" dir="auto">(.*?)</dd>', gpqa)) == {NO_TEXT}
    others = section[: section.index("GPQA <span")]
    assert re.search(r"of 3 seeds\)", others)
    orders = [int(count) for count in re.findall(r"lost by (\d+) of 18", others.partition("MMLU-Pro <span")[2])]
    assert orders == sorted(orders, reverse=True)
    assert max(map(len, re.findall(r"<dd[^>]*>(.*?)</dd>", others, re.DOTALL))) < 6 * page.ITEM_CHARACTERS


# ---------------------------------------------------------------------------------------------- sorting, in a browser

CLICKS = """
const table = document.getElementById("moved");
const button = table.tHead.rows[0].cells[2].querySelector("button");
const column = () => [...table.tBodies[0].rows].map((row) => Number(row.cells[2].textContent)).join();
const states = [column()];
for (let i = 0; i < 3; i++) {
  button.click();
  states.push(table.tHead.rows[0].cells[2].getAttribute("aria-sort") + ":" + column());
}
const heads = [...document.querySelectorAll("#table-1 thead th")];
const avoided = heads.find((head) => head.textContent.startsWith("forgetting avoided"));
avoided.querySelector("button").click();  // base, the first row, has none
const select = document.querySelector("#lost select");
select.selectedIndex = 1; select.dispatchEvent(new Event("change"));
const items = [...document.querySelector("#lost ul.items").children];
const right = items.every((item) => item.hidden !== item.dataset.lost.split(" ").includes(select.value));
const root = document.documentElement;
const sideways = root.scrollWidth - root.clientWidth;  // tables scroll by themselves, the page does not
const some = items.some((item) => !item.hidden);
const first = avoided.getAttribute("aria-sort");
document.body.dataset.found = JSON.stringify({states, first, right, some, sideways});
"""


def dom(file: Path, profile: Path) -> str:
    """The page's elements after its script ran."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium here: the script is not run")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}", "--dump-dom"]
    return subprocess.run([*command, f"file://{file}"], capture_output=True, text=True, timeout=120, check=True).stdout


def test_the_pages_policy_lets_its_own_script_run_and_no_other(wide: Path, tmp_path: Path) -> None:
    html = (wide / "report.html").read_text(encoding="utf-8")
    file = tmp_path / "page.html"
    file.write_text(html.replace("</body>", "<script>document.body.id = 'strange'</script></body>"), encoding="utf-8")
    found = dom(file, tmp_path / "profile")
    assert '<button type="button">' in found
    assert 'id="strange"' not in found


def test_tables_sort_and_lost_items_filter(wide: Path, tmp_path: Path) -> None:
    import html as entities
    import json

    text = (wide / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", f"<script>{CLICKS}</script></body>")
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    told = re.search(r'data-found="([^"]*)"', dom(tmp_path / "page.html", tmp_path / "profile"))
    assert told
    found = json.loads(entities.unescape(told.group(1)))
    before, down, up, again = found["states"]
    order = [int(number) for number in before.split(",")]
    assert down == f"descending:{','.join(map(str, sorted(order, reverse=True)))}"
    assert up == f"ascending:{','.join(map(str, sorted(order)))}"
    assert again == f"null:{before}"
    assert found["first"] == "descending"
    assert found["sideways"] <= 0
    assert found["right"]
    assert found["some"]
