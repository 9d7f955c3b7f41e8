"""The report's page in a real browser: mouse and keyboard, both themes, two widths, and no word from the console."""

import json
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from int8pass import explain, export_onnx
from int8pass.export.decoder import with_past
from int8pass.inspection.observation import LEVELS, Details, Levels
from int8pass.inspection.onnx_file import explain_file
from int8pass.inspection.report import Report, Row
from int8pass.inspection.stages import Stage, StageNode
from int8pass.inspection.timing import Timing
from int8pass.quantization.scheme import SCHEMES
from tests.inspection.browser import OVERLAPS, chromium, open_page, resize

pytestmark = pytest.mark.browser
ENTER, TAB, DOWN, UP, RIGHT, SPACE = "\ue007", "\ue004", "\ue015", "\ue013", "\ue014", " "


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(x)))


class Model(nn.Module):
    """Three blocks in a module, and a head that is skipped."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(Block(), Block(), Block())
        self.lm_head = nn.Linear(32, 16)

    def forward(self, x):
        return self.lm_head(self.encoder(x))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = Model().eval().requires_grad_(False), torch.randn(8, 32).clamp(-4, 4)
    x[:, 3] = 9.0
    path = tmp_path_factory.mktemp("page") / "report.html"
    explain(model, (x,)).to_html(path, "a small model")
    return path


@pytest.fixture(scope="module")
def gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=64)
    model = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    model.transformer.h[0].ln_1.weight[5] = 9.0  # an outlier column
    return model


@pytest.fixture(scope="module")
def pages(path, gpt2, tmp_path_factory):
    """By name: the small model, a GPT-2-shaped one with times, and an ONNX file of that with its past."""
    folder = tmp_path_factory.mktemp("pages")
    torch._dynamo.reset()
    report = explain(gpt2, (torch.arange(8)[None],), {"use_cache": False}, timings=True)
    report.to_html(folder / "gpt2.html", "a GPT-2-shaped model")
    module, example, shapes = with_past(gpt2)
    export_onnx(module, None, folder / "gpt2.onnx", kwargs=example, dynamic_shapes=shapes)
    explain_file(folder / "gpt2.onnx").to_html(folder / "file.html", "a file of it")
    torch._dynamo.reset()
    schemed = explain(gpt2, (torch.arange(8)[None],), {"use_cache": False}, schemes=tuple(SCHEMES))
    schemed.to_html(folder / "schemes.html", "with every scheme")
    return {
        "schemes": folder / "schemes.html",
        "small": path,
        "gpt2": folder / "gpt2.html",
        "file": folder / "file.html",
    }


@pytest.fixture(scope="module")
def started():
    browser = chromium()
    yield browser
    browser.quit()


@pytest.fixture
def browser(started, path):
    open_page(started, path)
    yield started
    assert started.get_log("browser") == []


def find(browser, selector):
    return browser.find_element("css selector", selector)


def text_of(browser, selector):
    return [element.text for element in browser.find_elements("css selector", selector)]


def names(browser):
    return text_of(browser, "#layer-table tbody th")


def press(browser, *keys):
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def focused(browser):
    return browser.execute_script(
        "return document.activeElement.getAttribute('aria-label') || document.activeElement.textContent"
    )


def transform(browser, drawing):
    return browser.execute_script("return arguments[0].querySelector('svg > g').getAttribute('transform')", drawing)


def scale(browser, drawing):
    return float(transform(browser, drawing).partition("scale(")[2].rstrip(")"))


# --- loading


def test_nothing_is_requested_and_nothing_is_said(started, path):
    open_page(started, path)
    sent = [json.loads(entry["message"])["message"] for entry in started.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
    assert path.as_uri() in urls and all(url == path.as_uri() or url.startswith("data:") for url in urls)
    assert started.get_log("browser") == []


def test_totals_and_first_choice(browser):
    facts = dict(zip(text_of(browser, "#totals dt"), text_of(browser, "#totals dd"), strict=True))
    assert facts["Linears"] == "7" and facts["rewritten to int8"] == "6" and facts["skipped"] == "1"
    assert text_of(browser, "#skipped li") == ["skipped 1: lm_head (skip_modules_default)"]
    ratios = dict(zip(names(browser), text_of(browser, "#layer-table td:nth-child(6)"), strict=True))
    worst = min((name for name in ratios if ratios[name]), key=lambda name: float(ratios[name]))
    assert find(browser, "#layer-title").text == worst


# --- the table


def test_sort_by_mouse(browser):
    original = names(browser)
    heading = find(browser, "#layer-table thead th:nth-child(1)")
    heading.find_element("css selector", "button").click()
    assert names(browser) == sorted(original) and heading.get_attribute("aria-sort") == "ascending"
    heading.find_element("css selector", "button").click()
    assert names(browser) == sorted(original, reverse=True) and heading.get_attribute("aria-sort") == "descending"
    find(browser, "#layer-table thead th:nth-child(6) button").click()
    ratios = text_of(browser, "#layer-table td:nth-child(6)")
    assert ratios[-1] == "" and ratios[:-1] == sorted(ratios[:-1], key=float)
    assert heading.get_attribute("aria-sort") is None


def test_sort_and_filter_by_keyboard(browser):
    browser.execute_script("document.getElementById('with-outliers').focus()")
    press(browser, TAB, TAB)
    assert focused(browser) == "layer"
    press(browser, ENTER, ENTER)
    assert names(browser) == sorted(names(browser), reverse=True)
    browser.execute_script("document.getElementById('filter').focus()")
    press(browser, "down int8")
    assert names(browser) == [f"encoder.{number}.down" for number in (2, 1, 0)]
    assert find(browser, "#shown").text == "3 of 7 layers"


def test_filters_by_mouse(browser):
    find(browser, "#decision option[value=skipped]").click()
    assert names(browser) == ["lm_head"]
    find(browser, "#decision option[value='']").click()
    find(browser, "#with-outliers").click()
    assert "encoder.0.up" in names(browser) and len(names(browser)) < 7


def test_a_filter_that_nothing_passes(browser):
    find(browser, "#filter").send_keys("no such layer")
    assert names(browser) == [] and find(browser, "#shown").text == "0 of 7 layers"


# --- choosing a layer


def test_choose_by_mouse_shows_graphs_and_plots(browser):
    find(browser, "#layer-table tbody tr:nth-child(1) button").click()
    assert find(browser, "#layer-title").text == "encoder.0.up"
    assert text_of(browser, "#layer-body h3") == [
        "Before", "After", "Error among all layers", "Largest |x| of a column", "Activations", "Weights"
    ]  # fmt: skip
    before, after = browser.find_elements("css selector", "#layer .drawing")
    labels = [
        [node.get_attribute("aria-label") for node in part.find_elements("css selector", ".node")]
        for part in (before, after)
    ]
    assert any("= linear(" in label for label in labels[0]) and not any("int8pass" in label for label in labels[0])
    assert sum("= int8pass." in label for label in labels[1]) == 6
    assert len(browser.find_elements("css selector", "#layer .bar.over")) == 1
    assert len(browser.find_elements("css selector", "#layer figure:nth-child(3) .bar")) == LEVELS
    assert find(browser, "#layer-table tr[aria-current=true] th").text == "encoder.0.up"


def test_choose_by_keyboard(browser):
    browser.execute_script("document.querySelector('#layer-table tbody button').focus()")
    press(browser, DOWN, DOWN, UP)
    assert focused(browser) == "encoder.0.down"
    press(browser, ENTER)
    assert find(browser, "#layer-title").text == "encoder.0.down"


def test_skipped_layer_shows_its_reason_and_no_plots(browser):
    find(browser, "#layer-table tbody tr:nth-child(7) button").click()
    assert "skipped: lm_head (skip_modules_default)" in text_of(browser, "#layer-body dd")
    assert text_of(browser, "#layer-body h3") == ["Before", "After"]


# --- the whole graph


def test_zoom_by_mouse_and_by_keyboard(browser):
    drawing = find(browser, "#graph-pair .drawing")
    first = scale(browser, drawing)
    drawing.find_element("css selector", "button[aria-label^='Zoom in']").click()
    time.sleep(0.3)
    larger = scale(browser, drawing)
    assert larger > first
    browser.execute_script("arguments[0].querySelector('svg').focus()", drawing)
    press(browser, "-", "-")
    assert scale(browser, drawing) < larger
    moved = transform(browser, drawing)
    press(browser, RIGHT)
    assert transform(browser, drawing) != moved
    press(browser, "0")
    assert scale(browser, drawing) == pytest.approx(first)
    wheel = "arguments[0].querySelector('svg').dispatchEvent(new WheelEvent('wheel', {deltaY: -120, bubbles: true}))"
    browser.execute_script(wheel, drawing)
    assert scale(browser, drawing) > first


def test_modules_unfold_by_mouse_and_by_keyboard(browser):
    def modules():
        return {
            node.get_attribute("aria-label") for node in browser.find_elements("css selector", "#graph-pair .module")
        }

    def clusters():
        return {
            part.get_attribute("aria-label") for part in browser.find_elements("css selector", "#graph-pair .cluster")
        }

    assert any(label.startswith("module encoder") for label in modules())
    find(browser, "#unfold").click()
    assert "module encoder, open" in clusters()
    block = find(browser, "#graph-pair .module[aria-label^='module encoder.1']")
    browser.execute_script("arguments[0].focus()", block)
    press(browser, ENTER)
    assert "module encoder.1, open" in clusters() and focused(browser) == "module encoder.1, open"
    press(browser, ENTER)
    assert "module encoder.1, open" not in clusters() and focused(browser).startswith("module encoder.1, folded")
    press(browser, SPACE)
    assert "module encoder.1, open" in clusters()
    find(browser, "#fold").click()
    assert clusters() == set()


# --- stages


def test_stages_as_text_and_as_difference(browser):
    assert len(browser.find_elements("css selector", "#stage-text .added")) > 20
    find(browser, "#stage-mode option[value=text]").click()
    find(browser, "#stage-name option[value='0']").click()
    captured = find(browser, "#stage-text").text
    assert "= linear(" in captured and "int8pass" not in captured
    find(browser, "#stage-mode option[value=diff]").click()
    find(browser, "#stage-name option[value='1']").click()
    assert find(browser, "#stage-text").text == "this pass changed nothing"


# --- how it looks


def test_theme_by_mouse_and_by_keyboard(browser):
    def background():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    find(browser, "#theme").click()
    light = background()
    browser.execute_script("document.getElementById('theme').focus()")
    press(browser, ENTER)
    assert find(browser, "#theme").text == "Theme: dark" and background() != light
    press(browser, SPACE)
    assert find(browser, "#theme").text == "Theme: system"
    for scheme in ("dark", "light"):
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        assert (background() == light) == (scheme == "light")


@pytest.mark.parametrize("width", (1280, 400))
@pytest.mark.parametrize("page", ("small", "gpt2", "file", "schemes"))
def test_nothing_overlaps(started, pages, page, width):
    open_page(started, pages[page], width)
    for row in (":first-child", ":last-child"):
        find(started, f"#layer-table tbody tr{row} button").click()
        assert started.execute_script(OVERLAPS) == []
        assert started.execute_script("return document.documentElement.scrollWidth") <= width
    find(started, "#unfold").click()
    assert started.execute_script(OVERLAPS) == []
    assert started.get_log("browser") == []


@pytest.mark.parametrize("theme", ("light", "dark"))
def test_text_stands_out_from_its_background(browser, theme):
    """WCAG 2: a contrast of at least 4.5."""
    script = """
    document.documentElement.dataset.theme = arguments[0];
    const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const light = (name) => {
      context.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
      context.fillRect(0, 0, 1, 1);
      const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => value / 255)
        .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    return arguments[1].map(([text, behind]) => {
      const [a, b] = [light(text), light(behind)].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    });
    """
    grounds = {
        "--text": ("--page", "--panel", "--int8", "--weight", "--call", "--added", "--removed"),
        "--soft": ("--page", "--panel", "--int8", "--weight", "--call"),
        "--accent": ("--page", "--panel", "--int8"),
        "--mark": ("--page", "--panel"),
    }
    pairs = [(text, behind) for text, behinds in grounds.items() for behind in behinds]
    contrasts = dict(zip(pairs, browser.execute_script(script, theme, pairs), strict=True))
    assert {pair: value for pair, value in contrasts.items() if value < 4.5} == {}


def test_every_control_has_a_name(browser):
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    controls = {"button", "searchbox", "checkbox", "combobox", "link"}
    found = [node for node in tree if node.get("role", {}).get("value") in controls and not node.get("ignored")]
    assert len(found) > 30
    assert [node for node in found if not node.get("name", {}).get("value")] == []
    headings = [node["name"]["value"] for node in tree if node.get("role", {}).get("value") == "heading"]
    assert {"Layers", "Whole graph", "Stages"} <= set(headings)


def test_print_leaves_controls_out_and_shows_all_rows(browser):
    resize(browser, 800, 500)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert not find(browser, "#filter").is_displayed() and not find(browser, "nav").is_displayed()
    hidden = "const box = document.getElementById('layer-scroll'); return box.scrollHeight - box.clientHeight"
    assert browser.execute_script(hidden) <= 0
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(pdf) > 10_000


def test_times_are_columns_and_facts(started, tmp_path):
    path = tmp_path / "timed.html"
    plain = large_report(3)
    timing = Timing(float=4e-3, int8=1e-3, quantize=1e-4, gemm=7e-4, dequantize=None, outliers=2e-4)
    rows = (*(replace(row, timing=timing) for row in plain.rows[:2]), plain.rows[2])
    replace(plain, rows=rows).to_html(path)
    open_page(started, path)
    assert text_of(started, "#layer-table thead th")[-2:] == ["time share %", "time/float"]
    assert text_of(started, "#layer-table td:nth-child(9)") == ["50.0", "50.0", ""]
    find(started, "#layer-table tbody tr:nth-child(2) button").click()
    facts = dict(zip(text_of(started, "#layer-body dt"), text_of(started, "#layer-body dd"), strict=True))
    assert facts["µs int8, float"] == "1000, 4000"
    assert facts["µs quantize, GEMM, dequantize, outliers"] == "100, 700, fused, 200"
    assert "faster in float" not in find(started, "#skipped").text
    rows = tuple(replace(row, timing=row.timing and replace(timing, int8=8e-3)) for row in rows)
    replace(plain, rows=rows).to_html(path)
    open_page(started, path)
    suggestion = 'faster in float, by 8.00 ms: skip_modules=["blocks.0.0", "blocks.0.1"]'
    assert suggestion in text_of(started, "#skipped li")


# --- other models, and files


def test_gpt2_shaped_model(started, pages):
    open_page(started, pages["gpt2"])
    assert names(started)[:2] == ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj"]
    find(started, "#with-outliers").click()
    assert names(started) == ["transformer.h.0.attn.c_attn"]
    find(started, "#layer-table tbody button").click()
    before, after = started.find_elements("css selector", "#layer .drawing")
    assert len(before.find_elements("css selector", ".node.call:not(.beside)")) == 1  # Conv1D is one addmm
    assert len(after.find_elements("css selector", ".node.int8")) == 6
    assert len(started.find_elements("css selector", "#layer .bar.over")) == 1
    assert started.get_log("browser") == []


def test_every_scheme_of_a_layer(started, pages):
    open_page(started, pages["schemes"])
    headings = text_of(started, "#layer-table thead th")
    place = headings.index("best scheme") + 1
    assert headings[place] == "gain dB"
    gain = f"#layer-table tbody td:nth-child({place + 1})"
    find(started, f"#layer-table thead th:nth-child({place + 1}) button").click()
    gains = [float(text) for text in text_of(started, gain) if text]
    assert len(gains) == 8 and gains == sorted(gains) and gains[0] >= 0
    assert set(text_of(started, f"#layer-table tbody td:nth-child({place})")) <= {*SCHEMES, ""}
    find(started, "#layer-table tbody button").click()
    assert "Error under each scheme" in text_of(started, "#layer-body h3")
    plot = find(started, "#layer-body svg[aria-label^='Error under each scheme']")
    assert len(plot.find_elements("css selector", ".bar")) == len(SCHEMES)
    assert len(plot.find_elements("css selector", ".bar.over")) == 1
    assert all(f"{name}: " in plot.get_attribute("aria-label") for name in SCHEMES)
    assert started.get_log("browser") == []


def test_file_shows_what_a_file_tells(started, pages):
    open_page(started, pages["file"])
    facts = dict(zip(text_of(started, "#totals dt"), text_of(started, "#totals dd"), strict=True))
    assert facts["rewritten to int8"] == "8" and facts["outlier columns found"] == "in each call"
    assert "MB in the file" in facts and "MB at the peak" not in facts
    headings = text_of(started, "#layer-table thead th")
    assert headings[-2:] == ["MB float", "MB in the file"] and "SNR dB" not in headings
    find(started, "#filter").send_keys("h.1.mlp")
    assert names(started) == ["transformer.h.1.mlp.c_fc", "transformer.h.1.mlp.c_proj"]
    find(started, "#layer-table tbody tr:nth-child(2) button").click()
    assert text_of(started, "#layer-body h3") == ["In the file", "Weights"]
    labels = [each.get_attribute("aria-label") for each in started.find_elements("css selector", "#layer .node.int8")]
    assert sum(" = QuantizeLinear(" in label for label in labels) == 1
    assert any("%transformer.h.1.mlp.c_proj.weight_inputs_first" in label for label in labels)
    drawing = find(started, "#graph-pair .drawing")
    assert len(started.find_elements("css selector", "#graph-pair .drawing")) == 1
    first = scale(started, drawing)
    started.execute_script("arguments[0].querySelector('svg').focus()", drawing)
    press(started, "+")
    assert scale(started, drawing) > first
    assert not find(started, "#stage-mode").is_displayed() and " = QuantizeLinear(" in find(started, "#stage-text").text
    assert started.get_log("browser") == []


# --- large models


def large_report(linears):
    """A report of a chain of Linears, eight in a block, made without a model."""
    levels = Levels(tuple(range(LEVELS)), (0.1, 0.2, 0.3))
    rows, details, before, after = [], [], [StageNode("x", "%x : f32[8, 64] = input", "input", "", ())], []
    after.append(before[0])
    last = ("x", "x")
    for number in range(linears):
        module, name = f"blocks.{number // 8}.{number % 8}", f"l{number}"
        rows.append(
            Row(
                module,
                "linear",
                (64, 64),
                "float32",
                True,
                "",
                (3,),
                30.0 + number % 9,
                16384,
                20000,
                30000,
                True,
                f"{module}.weight",
            )
        )
        details.append(Details(0, name, levels, levels, 8, ((3, 9.0), (5, 2.0))))
        weight = StageNode(
            f"{name}_w", f"%{name}_w : f32[64, 64] = weight '{module}.weight'", "weight", module, (), f"{module}.weight"
        )
        steps = ("mask", "scale", "codes", "mm", "outliers", name)
        calls, previous = [], last[1]
        for step in steps:
            made = name if step == name else f"{name}_{step}"
            calls.append(
                StageNode(made, f"%{made} : f32[8, 64] = int8pass.{step}(%{previous})", "call", module, (previous,))
            )
            previous = made
        before += [
            weight,
            StageNode(
                name, f"%{name} : f32[8, 64] = linear(%{last[0]}, %{name}_w)", "call", module, (last[0], f"{name}_w")
            ),
        ]
        after += [weight, *calls]
        last = (name, name)
    stages = (Stage("captured", tuple(before)), Stage("linear_to_int8_mixed", tuple(after)))
    return Report(tuple(rows), 6.0, "column", stages=(stages,), details=tuple(details))


def test_thousand_linears(started, tmp_path):
    path = tmp_path / "large.html"
    large_report(1000).to_html(path)
    assert open_page(started, path) < 15
    assert find(started, "#shown").text == "1000 of 1000 layers"
    find(started, "#layer-table thead th:nth-child(6) button").click()
    find(started, "#filter").send_keys("blocks.100.")
    assert len(names(started)) == 8
    find(started, "#layer-table tbody tr:nth-child(2) button").click()
    assert find(started, "#layer-title").text.startswith("blocks.100.")
    find(started, "#unfold").click()
    assert "too much" in find(started, "#graph-status").text or started.find_elements("css selector", "#graph .cluster")
    assert started.get_log("browser") == []


@pytest.mark.slow
def test_page_of_twelve_layers_is_made_in_30_seconds_and_opens_in_2(started, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel(transformers.BertConfig(num_hidden_layers=12)).eval().requires_grad_(False)
    path = tmp_path / "bert.html"
    start = time.perf_counter()
    explain(model, (torch.arange(64)[None],)).to_html(path)
    assert time.perf_counter() - start < 30
    assert path.stat().st_size < 5e6
    assert open_page(started, path) < 2
    assert started.get_log("browser") == []
