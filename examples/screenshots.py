"""Photograph the app of a fitted pipeline as a desktop and a phone show it: published/screenshots/space-*.png.

After `make demo`, without arguments: `python examples/screenshots.py`. Needs chromium and its driver.
"""

from __future__ import annotations

import argparse
import base64
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo import penguins_csv
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys


HERE = Path(__file__).resolve().parent
WIDTHS = (1280, 390)
PORT = 7861
PATIENCE = 300.0
WALK_STEPS = 6


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """Poll until ``condition()`` is true; a page that is not there yet, or is being redrawn, is not."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except Exception:
            pass
        time.sleep(0.3)
    raise TimeoutError(f"waited {PATIENCE:.0f} s for {what}")


def photograph(url: str, target: Path, rows: int = 24) -> list[Path]:
    """Sample in the app at ``url``, drag across its map and save the whole page, once for each width."""
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--no-proxy-server",
    ):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    target.mkdir(parents=True, exist_ok=True)
    taken = []
    try:
        for width in WIDTHS:
            metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700}
            page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            wait_for(lambda: page.get(url) is None, f"the app at {url}")
            field = wait_for(lambda: page.find_element(By.CSS_SELECTOR, "#rows input[type=number]"), "the app")
            field.send_keys(Keys.CONTROL + "a")
            field.send_keys(str(rows) + Keys.TAB)
            wait_for(lambda: page.find_element(By.ID, "sample").click() is None, "the button")
            wait_for(lambda: page.find_element(By.CSS_SELECTOR, "#plots img").is_displayed(), "the plots")
            image = wait_for(lambda: page.find_element(By.CSS_SELECTOR, "#latent-map img"), "the map")
            page.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
            before = len(page.find_element(By.ID, "walk").text.splitlines())
            mouse = webdriver.ActionChains(page).move_to_element_with_offset(image, -width // 10, 20)
            mouse.click_and_hold().move_by_offset(width // 20, -10).move_by_offset(
                width // 20, -20
            ).release().perform()
            wait_for(
                lambda known=before: (
                    len(page.find_element(By.ID, "walk").text.splitlines()) >= known + WALK_STEPS
                    and "processing" not in page.find_element(By.ID, "layout").text
                ),
                "the walk",
            )
            page.execute_script("window.scrollTo(0, 0)")
            time.sleep(1)  # fonts and the redrawn map
            size = page.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            whole = {"x": 0, "y": 0, "width": width, "height": size["height"], "scale": 1}
            shot = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": whole})
            taken.append(target / f"space-{width}.png")
            taken[-1].write_bytes(base64.b64decode(shot["data"]))
    finally:
        page.quit()
    return taken


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fitted", nargs="?", default="demo/pipeline", help="folder that `difflm fit` wrote")
    parser.add_argument("--reference", default=str(penguins_csv()), help="the training table")
    parser.add_argument("--target", type=Path, default=HERE / "published" / "screenshots", help="folder to write to")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "difflm", "space", arguments.fitted, "--reference", arguments.reference]
    app = subprocess.Popen([*command, "--port", str(PORT)])
    try:
        for path in photograph(f"http://127.0.0.1:{PORT}", arguments.target):
            print(path)
    finally:
        app.terminate()
        app.wait()
