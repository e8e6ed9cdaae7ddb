"""The Space in a headless browser, served by ``difflm space``: sample, fix columns, download, bad input, map."""

from __future__ import annotations

import csv
import importlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
try:
    import gradio  # noqa: F401
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
except ImportError as error:
    pytest.skip(f"no {error.name}: pip install difflm[space] selenium", allow_module_level=True)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or CHROMEDRIVER is None,
        reason="no browser is installed: apt-get install chromium chromium-driver",
    ),
]
# A browser on a busy machine is slow; what is waited for is polled.
PATIENCE = 120.0


def wait_for(condition: Any, what: str) -> Any:
    """Poll until ``condition()`` is true and return it."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except Exception:  # the page may be redrawn between two looks
            pass
        time.sleep(0.2)
    raise AssertionError(f"waited {PATIENCE:.0f} s in vain for {what}")


@pytest.fixture(scope="module")
def space(saved: Path, small_table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the app, served by the command in a process of its own."""
    folder = tmp_path_factory.mktemp("space")
    small_table.to_csv(folder / "real.csv", index=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "difflm", "space", str(saved), "--port", str(port)]
    log = folder / "log.txt"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "--reference", str(folder / "real.csv")],
            env=os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1,localhost"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"http://127.0.0.1:{port}") as page:
            return page.status == 200

    try:
        wait_for(answers, f"the app; its log: {log}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def page(space: str, tmp_path: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    arguments = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server")
    for argument in (*arguments, "--window-size=1280,1400"):
        options.add_argument(argument)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    browser.get(space)
    wait_for(lambda: browser.find_element(By.ID, "sample").is_displayed(), "the page")
    yield browser
    browser.quit()


def field(page: Any, name: str) -> Any:
    return page.find_element(By.CSS_SELECTOR, f"#{name} input[type=number], #{name} input, #{name} textarea")


def fill(page: Any, name: str, text: str) -> None:
    element = field(page, name)
    element.send_keys(Keys.CONTROL + "a")
    element.send_keys(text + Keys.TAB)


def click(page: Any, selector: str) -> None:
    """Click when it can be: a page that is being redrawn shifts under the pointer."""
    wait_for(lambda: page.find_element(By.CSS_SELECTOR, selector).click() is None, f"{selector} to be clicked")


def sample(page: Any, rows: int) -> None:
    fill(page, "rows", str(rows))
    click(page, "#sample")


def note(page: Any) -> str:
    return page.find_element(By.ID, "note").text


def download(page: Any, button: str, folder: Path) -> Path:
    before = set(folder.iterdir())
    click(page, f"#{button}")
    done = wait_for(
        lambda: [p for p in set(folder.iterdir()) - before if p.suffix in (".csv", ".parquet") and p.stat().st_size],
        f"the download of {button}",
    )
    return done[0]


def test_hub_space_samples_and_downloads(page, tmp_path, random_pipeline):
    sample(page, 12)
    wait_for(lambda: "12 records" in note(page), "12 records")
    expected = random_pipeline(12, seed=0, output_type="pandas")
    pd.testing.assert_frame_equal(pd.read_parquet(download(page, "parquet", tmp_path)), expected)
    rows = list(csv.DictReader(download(page, "csv", tmp_path).open()))
    assert [row["kind"] for row in rows] == list(expected["kind"])
    assert wait_for(lambda: page.find_element(By.CSS_SELECTOR, "#plots img").is_displayed(), "the plots")


def test_hub_space_fixes_columns_and_explains_bad_input(page, tmp_path):
    click(page, "#conditions button")
    wait_for(lambda: field(page, "condition-age").is_displayed(), "the controls")
    fill(page, "condition-age", "3..5")
    sample(page, 10)
    wait_for(lambda: "10 records" in note(page), "10 records")
    assert set(pd.read_csv(download(page, "csv", tmp_path))["age"]) <= {3, 4, 5}
    for text, message in (("young", "write a number such as"), ("5..3", "age")):
        fill(page, "condition-age", text)
        click(page, "#sample")
        toast = wait_for(lambda: page.find_element(By.CSS_SELECTOR, ".toast-body").text, f"an error for {text!r}")
        assert message in toast
        click(page, ".toast-close")
        wait_for(lambda: not page.find_elements(By.CSS_SELECTOR, ".toast-body"), "the error to go")


def test_hub_space_decodes_the_latent_map(page):
    sample(page, 8)
    wait_for(lambda: "8 records" in note(page), "8 records")
    # The plots push the map down when they come.
    wait_for(lambda: page.find_element(By.CSS_SELECTOR, "#plots img").is_displayed(), "the plots")
    picture = wait_for(lambda: page.find_element(By.CSS_SELECTOR, "#latent-map img"), "the map")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", picture)
    pointer(page).click_and_hold().move_by_offset(100, 30).move_by_offset(100, 30).release().perform()
    wait_for(lambda: decoded(page) == 6, "the walk of six records along a drag")
    pointer(page).click().perform()
    wait_for(lambda: decoded(page) == 1, "the record of a click")
    pointer(page).move_by_offset(200, 60).click().perform()
    wait_for(lambda: decoded(page) == 6, "the walk of six records between two clicks")


def pointer(page: Any) -> Any:
    """The mouse, left of the middle of the map, which is drawn anew by every choice."""
    picture = page.find_element(By.CSS_SELECTOR, "#latent-map img")
    return webdriver.ActionChains(page).move_to_element_with_offset(picture, -80, 0)


def decoded(page: Any) -> int:
    """Records in the table below the map: each has one kind."""
    return sum(word in ("cat", "dog") for word in page.find_element(By.ID, "walk").text.split())


def test_hub_space_fits_a_phone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    )
    sample(page, 5)
    wait_for(lambda: "5 records" in note(page), "5 records")
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390


def test_hub_space_is_photographed(space, tmp_path):
    taken = importlib.import_module("screenshots").photograph(space, tmp_path, rows=12)
    widths = [Image.open(path).size[0] for path in taken]
    assert [path.name for path in taken] == ["space-1280.png", "space-390.png"] and widths == [1280, 390]
    # The whole page, with the table below the map, not what fits a screen.
    assert all(Image.open(path).size[1] > 1200 for path in taken)
