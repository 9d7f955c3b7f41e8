"""A headless Chromium for tests of the report's page, and what is asked of it."""

import shutil
import time

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

# Pairs of visible elements that cover one another. An element counts as far as the boxes that clip it let it be seen.
OVERLAPS = """
const seen = (element) => {
  let { left, top, right, bottom } = element.getBoundingClientRect();
  for (let box = element.parentElement; box; box = box.parentElement) {
    if (getComputedStyle(box).overflow === "visible") continue;
    const clip = box.getBoundingClientRect();
    [left, top] = [Math.max(left, clip.left), Math.max(top, clip.top)];
    [right, bottom] = [Math.min(right, clip.right), Math.min(bottom, clip.bottom)];
  }
  return { element, left, top, right, bottom };
};
const say = (element) => `${element.tagName} ${element.id} "${element.textContent.trim().slice(0, 40)}"`;
const found = [];
const apart = (selector, root) => {
  const boxes = [...root.querySelectorAll(selector)].map(seen)
    .filter((box) => box.right - box.left > 1 && box.bottom - box.top > 1);
  boxes.forEach((a, number) => boxes.slice(number + 1).forEach((b) => {
    if (a.element.contains(b.element) || b.element.contains(a.element)) return;
    const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (across > 1 && down > 1) found.push(`${say(a.element)} / ${say(b.element)}`);
  }));
};
apart("h1, h2:not(.unseen), h3, nav a, button, label, [role=status], dt, dd, th, td, .hint, li", document);
apart("h2:not(.unseen), h3, button, label, figcaption, figure svg, pre", document);
for (const plot of document.querySelectorAll("figure:not(.drawing) svg")) apart("text", plot);
for (const drawing of document.querySelectorAll(".drawing svg")) apart(".node rect", drawing);
return found;
"""


def chromium():
    """A started browser; the test is skipped, with its reason, where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[test]'")
    if not CHROMIUM or not DRIVER:
        pytest.skip("no Chromium with its driver: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=Service(DRIVER))


def resize(browser, width, height=900):
    """Give the page a window of exactly this size: Chromium's own windows are at least 500 pixels wide."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def open_page(browser, path, width=1280):
    """Load a page from disk. Returns the seconds until it was shown whole."""
    resize(browser, width)
    browser.get_log("browser")
    browser.get_log("performance")
    start = time.perf_counter()
    browser.get(path.as_uri())
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0]))")
    return time.perf_counter() - start
