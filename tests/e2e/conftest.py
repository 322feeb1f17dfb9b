"""The MLflow UI in a real headless browser: what a user sees who follows the address of `bench ui`."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SERVE = "import sys; from pathlib import Path; from bench.logbook import serve; serve(Path(sys.argv[1]))"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-proxy-server"),
    "--window-size=1500,1100",
)
PATIENCE_S = 40  # a page takes two seconds, on a busy machine ten
CHARTS = """
return Array.from(document.querySelectorAll('.js-plotly-plot')).map(plot => ({
  text: plot.closest('[data-testid="experiment-view-compare-runs-card"]')?.innerText ?? '',
  axis: plot.layout?.xaxis?.title?.text ?? '',
  x: plot.data?.[0]?.x ?? [], y: plot.data?.[0]?.y ?? [],
  lines: Array.from(plot.querySelectorAll('path.js-line')).map(path => path.getAttribute('d')),
}))
"""


Check = Callable[[Path, str, Path], tuple[list[float], list[float]]]


@pytest.fixture(scope="session")
def check_ui_shows_curve(browser: Any) -> Check:
    """Return a function of (store, metric, folder for screenshots) that gives the (steps, values) drawn."""
    return lambda store, metric, screenshots: _curve_shown(browser, store, metric, screenshots)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    driver = shutil.which("chromedriver")
    binary = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if driver is None or binary is None:
        pytest.skip("no Chromium and chromedriver on this machine; install both to see the UI tested")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield chrome
    chrome.quit()


@contextmanager
def served(store: Path) -> Iterator[str]:
    """Give the address that `bench ui` prints for a store; the server is gone afterwards."""
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(store)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, line
        yield found.group()
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


def newest_run(client: Any) -> Any:
    """Return the MLflow run of a store that was started last."""
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0]


def _curve_shown(browser: Any, store: Path, metric: str, screenshots: Path) -> tuple[list[float], list[float]]:
    """Walk from the first page to the newest run of a store; return (steps, values) of the curve drawn there.

    Fails where the experiment, the run or the metric's line chart over Step does not appear. Leaves a
    picture of each page in `screenshots`.
    """
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    run = newest_run(client)
    experiment = client.get_experiment(run.info.experiment_id)
    with served(store) as address:
        browser.get(address)
        wait(browser, lambda: experiment.name in page_text(browser), f"the experiment {experiment.name}")
        click(browser, f"//a[.//*[normalize-space()='{run.info.run_name}']]", screenshots / "runs.png")
        click(browser, "//*[@role='tab' or self::a or self::button][normalize-space()='Model metrics']")
        click(browser, "//input[contains(@placeholder, 'metric charts')]").send_keys(metric)
        chart = wait(browser, lambda: chart_of(browser, metric), f"the chart {metric}")
        browser.save_screenshot(str(screenshots / "curve.png"))
    assert "Step" in chart["axis"]
    assert chart["lines"]
    assert all(line.startswith("M") and "L" in line for line in chart["lines"])
    return chart["x"], chart["y"]


def chart_of(browser: Any, metric: str) -> Any:
    """Return the line chart of a metric, None while it is not drawn or charts of other names are still there."""
    charts = browser.execute_script(CHARTS)
    if not all(metric in chart["text"] for chart in charts):
        return None
    return next((chart for chart in charts if f"({metric})" in chart["text"] and chart["lines"]), None)


def click(browser: Any, xpath: str, screenshot: Path | None = None) -> Any:
    """Click the first visible element, once there is one, and return it."""

    def visible() -> Any:
        return next((e for e in browser.find_elements("xpath", xpath) if e.is_displayed()), None)

    element = wait(browser, visible, xpath)
    if screenshot:
        browser.save_screenshot(str(screenshot))
    element.click()
    return element


def wait(browser: Any, condition: Callable[[], Any], what: str) -> Any:
    """Return the condition's first true value; fail with the text of the page after PATIENCE_S."""
    from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
    from selenium.webdriver.support.ui import WebDriverWait

    waiting = WebDriverWait(browser, PATIENCE_S, ignored_exceptions=[StaleElementReferenceException])
    try:
        return waiting.until(lambda _: condition())
    except TimeoutException:
        pytest.fail(f"{what} did not appear; the page says:\n{page_text(browser)}")


def page_text(browser: Any) -> str:
    """Return the text a user can read on the page."""
    return str(browser.find_element("tag name", "body").text)
