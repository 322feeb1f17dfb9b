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

from bench.logbook import open_book

mlflow = pytest.importorskip("mlflow")
webdriver = pytest.importorskip("selenium.webdriver")

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


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
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
        server.communicate(timeout=20)


def newest_run(store: Path) -> Any:
    """Return the MLflow run of a store that was started last."""
    client = mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    return client.search_runs(experiments, order_by=["attributes.start_time DESC"], max_results=1)[0]


def check_ui_shows_curve(browser: Any, store: Path, metric: str, screenshots: Path) -> tuple[list[float], list[float]]:
    """Walk from the first page to the newest run of a store; return (steps, values) of the curve drawn there.

    Fails where the experiment, the run or the metric's line chart over Step does not appear. Leaves a
    picture of each page in `screenshots`.
    """
    run = newest_run(store)
    client = mlflow.MlflowClient(f"sqlite:///{store / 'mlflow.db'}")
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


@pytest.mark.slow
def test_ui_shows_a_run_and_its_snr_curve(browser: Any, tmp_path: Path) -> None:
    store = tmp_path / "store"
    curve = {0: 0.31, 5: 0.59, 10: 0.75, 15: 0.85, 20: 0.95}
    with open_book(
        store / "runs" / "k", experiment="fma-segment/v1", name="now-playing/0/k", store=store, warn=pytest.fail
    ) as book:
        book.params({"train.lr": 1e-3})
        for snr_db, top1 in curve.items():
            book.metrics(
                {
                    "segment_top1_0.96s/noise": top1,
                    "segment_top1_2s/noise": top1 / 2,
                    "segment_top1_0.96s/noise_reverb": 0.0,
                },
                step=snr_db,
            )
        book.metrics({"segment_top1/mean": 0.69})
    steps, values = check_ui_shows_curve(browser, store, "segment_top1_0.96s/noise", tmp_path)
    assert steps == list(curve)
    assert values == pytest.approx(list(curve.values()))
