"""The report in Chromium: nothing is asked for or complained about, it sorts, filters, can be used.

Debian's package `chromium` is what runs; .ci/run installs it.
"""

from __future__ import annotations

import os
import shutil
import threading

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from fake_sweep import DOMAINS, random_runs, write
from PIL import Image
from playwright.sync_api import sync_playwright

from domainbed.reporting import build_report, load_records
from domainbed.reporting.page import build_page, to_html
from domainbed.reporting.page.serve import make_server
from domainbed.runs.predictions import Predicted, write_predictions

HOSTILE = "<script>document.title = 'taken'</script>"
PHONE, DESK = (390, 844), (1280, 900)

# In points, of all that can be seen; figures are scaled to the page.
SMALLEST_LETTERS = """Math.min(...[...document.querySelectorAll("main *, header *, svg text")]
    .filter((each) => each.checkVisibility() && !each.matches(".hidden") &&
        [...each.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
    .map((each) => {
        const { a, b } = each.getScreenCTM?.() ?? { a: 1, b: 0 };
        return 0.75 * parseFloat(getComputedStyle(each).fontSize) * Math.hypot(a, b);
    }))"""


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if path is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no command `chromium`")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder and report of a sweep with two draws, a published dataset and a hostile one."""
    folder = tmp_path_factory.mktemp("sweep")
    DOMAINS[HOSTILE] = 3
    names = ("ERM", "Fishr", "<i>")
    runs = random_runs(0, ("ColoredMNIST", HOSTILE), names, n_hparams=2, n_trials=1, pairs=False)
    del DOMAINS[HOSTILE]
    for number, (run, kept) in enumerate(zip(runs, write(folder, runs), strict=True)):
        (env,) = run[0]["args"]["test_envs"]
        logits = np.eye(2)[[number % 2, 1, 0]]
        parts = [Predicted(env, "in", ["a", "b", "c"], np.array([0, 1, 1]), logits)]
        facts = {"step": 20, "classes": ["<cat>", "dog"]}
        write_predictions(kept / "predictions.parquet", facts, parts)
    report = build_report(load_records(folder), ["training-domain", "oracle"])
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "white", "black")]
    return folder, build_page(report, folder, "ERM", lambda run, env, names: images[: len(names)])


@pytest.fixture(scope="module")
def file(built):
    folder, page = built
    file = folder / "report.html"
    file.write_text(to_html(page), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def opened(browser, file):
    """Opens the report as somebody sees it; what the page asked for and complained about."""

    def open_page(size=DESK, scheme="light"):
        width, height = size
        context = browser.new_context(
            color_scheme=scheme, viewport={"width": width, "height": height}
        )
        page, told = context.new_page(), []
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: told.append(request.url))
        page.goto(file.as_uri())
        return page, told

    return open_page


def column(page, table, place):
    cells = page.locator(f"#results table >> nth={table} >> tbody tr > :nth-child({place})")
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def test_nothing_is_asked_for_or_complained_about(opened, file):
    page, told = opened()
    assert told == [file.as_uri()]
    assert page.title() == f"Report of {file.parent.name}"
    assert page.locator("svg").count() == 10


def test_pictures_are_shown(opened):
    page, _ = opened()
    pictures = page.locator("#wrong-images img")
    assert pictures.count() >= 6  # an image of each of six test domains is wrong by all
    assert {each.evaluate("e => e.naturalWidth") for each in pictures.all()} == {80}
    assert pictures.first.get_attribute("alt").startswith("c, of class dog; ERM: <cat>, ")


def test_it_can_be_used_by_all(opened):
    """By the rules of axe, with every table opened."""
    page, _ = opened()
    assert violations(page) == []


def test_dark_colours_can_be_told_apart(opened):
    page, _ = opened(scheme="dark")
    assert violations(page, runOnly=["color-contrast"]) == []


def violations(page, **options):
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    asked = {"resultTypes": ["violations"], **options}
    found = Axe().run(page, options=asked).response["violations"]
    return [(each["id"], each["nodes"][0]["html"]) for each in found]


@pytest.mark.parametrize("size", [DESK, PHONE])
def test_the_page_never_scrolls_sideways(opened, size):
    page, _ = opened(size)
    assert page.evaluate("document.documentElement.scrollWidth") == size[0]


def test_the_colours_follow_the_system(opened):
    grounds = {}
    for scheme in ("light", "dark"):
        page, _ = opened(scheme=scheme)
        lightness = (
            "e => getComputedStyle(e).%s.match(/\\d+/g).slice(0, 3).reduce((a, b) => +a + +b)"
        )
        ground = page.locator("body").evaluate(lightness % "backgroundColor")
        ink = page.locator("#ranks svg text >> nth=0").evaluate(lightness % "fill")
        grounds[scheme] = ground > ink
    assert grounds == {"light": True, "dark": False}


def test_a_column_sorts(opened):
    page, _ = opened()
    table = page.locator("#results table >> nth=1")
    header = table.locator("th[aria-sort] >> nth=1")
    before = column(page, 1, 2)
    numbers = sorted((float(text.split(" ")[0]) for text in before), reverse=True)
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(text.split(" ")[0]) for text in column(page, 1, 2)] == numbers
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "ascending"
    assert [float(text.split(" ")[0]) for text in column(page, 1, 2)] == numbers[::-1]
    table.locator("th[aria-sort] >> nth=0").get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "none"
    assert column(page, 1, 1) == ["<i>", "ERM", "Fishr"]


def test_the_algorithms_are_filtered(opened):
    page, _ = opened()
    shown = page.locator("[data-algorithm]:visible")
    everything = shown.count()
    page.get_by_label("Algorithms").fill("fish, core")
    assert {each.get_attribute("data-algorithm") for each in shown.all()} == {"Fishr"}
    assert page.locator("#shown").inner_text() == "1 of 3 algorithms"
    assert page.locator("#hparams figure:visible").count() == 1
    page.get_by_label("Algorithms").fill("fishr")  # exactly a name
    assert {each.get_attribute("data-algorithm") for each in shown.all()} == {"Fishr"}
    page.get_by_label("Algorithms").fill("")
    assert shown.count() == everything
    assert page.locator("#shown").inner_text() == "all 3 algorithms"


def test_published_numbers_can_be_left_out(opened):
    page, _ = opened()
    numbers = page.locator(".published:visible")
    assert numbers.count() > 10
    page.get_by_label("published numbers").uncheck()
    assert numbers.count() == 0


def test_print_shows_the_tables(opened):
    page, _ = opened()
    hint = "getComputedStyle(document.querySelector('#results > .intro'), '::after').content"
    assert "sort" in page.evaluate(hint)
    page.emulate_media(media="print")
    assert page.evaluate(hint) == "none"
    assert not page.locator(".controls").is_visible()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    rows = page.locator("details").evaluate_all(
        "all => all.map(each => [each.open,"
        " each.querySelectorAll('table:not([data-part]) tbody tr').length])"
    )
    assert len(rows) > 5
    assert [count for is_open, count in rows if is_open != (count <= 100)] == []
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not(:has(dl))[open]").count() == 0


def test_no_table_is_wider_than_paper(opened):
    """Columns that would not fit stand below the others, and no letter is below 10 points."""
    page, _ = opened(scheme="dark")
    before = page.locator("table").count()
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.set_viewport_size({"width": 960, "height": 660})  # Letter within its margins
    widths = page.locator("table:visible").evaluate_all(
        "all => all.map(each => each.getBoundingClientRect().right)"
    )
    assert len(widths) > before
    assert max(widths) <= 960
    assert round(page.evaluate(SMALLEST_LETTERS), 2) >= 10
    parts = page.locator("#results table[data-part] thead tr:first-child")
    methods = ["training-domain validation set", "test-domain validation set (oracle)"]
    assert [text.strip() for text in parts.all_inner_texts()][:2] == methods
    assert page.locator("body").evaluate("e => getComputedStyle(e).color") == "rgb(27, 27, 29)"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("table").count() == before


def test_a_running_sweep_refreshes_itself(browser, built):
    """What somebody filtered by stays."""
    folder, content = built
    with make_server(lambda: to_html(content, refresh=1), folder, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        with page.expect_event("load"):
            page.get_by_label("Algorithms").fill("Fishr")
        assert page.get_by_label("Algorithms").input_value() == "Fishr"
        assert page.locator("#shown").inner_text() == "1 of 3 algorithms"
        page.close()
        server.shutdown()
        thread.join()
