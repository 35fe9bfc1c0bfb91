"""The page in a real browser: Debian's Chromium or another, driven by its own driver."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver on the PATH"),
]
selenium = pytest.importorskip("selenium", reason="needs selenium, of the group test")


@contextlib.contextmanager
def running(*flags: str) -> Iterator[str]:
    """Start tests/keyword_server.py; yield its address."""
    script = Path(__file__).with_name("keyword_server.py")
    with subprocess.Popen([sys.executable, str(script), *flags], stdout=subprocess.PIPE, encoding="utf-8") as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running() as url:
        yield url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--window-size=1000,900",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


@pytest.fixture
def page(chromium: Any, server: str) -> Any:
    chromium.get_log("browser")  # forget what other tests left there
    chromium.get(server)
    return chromium


def element(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def texts(page: Any, selector: str) -> list[str]:
    return [found.text for found in page.find_elements("css selector", selector)]


def wait(page: Any, condition: Any) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10, poll_frequency=0.05).until(lambda _: condition())


def paste(page: Any, text: str) -> None:
    """Set the field's text at once, as pasting does."""
    page.execute_script("arguments[0].value = arguments[1]", element(page, "#messages"), text)


def classify(page: Any, text: str) -> None:
    paste(page, text)
    element(page, "#classify").click()
    wait(page, lambda: element(page, "#form").get_attribute("aria-busy") == "false")


def test_a_pasted_message_gets_its_label_and_probabilities(page: Any, tmp_path: Path) -> None:
    classify(page, "Claim your spam prize\nnow")
    assert texts(page, "#status") == ["1 message: 1 spam"]
    assert texts(page, ".result .label") == ["spam"]
    assert texts(page, ".result .percent") == ["2.0 %", "98.0 %"]
    assert texts(page, ".result .excerpt") == ["Claim your spam prize\nnow"]
    assert texts(page, ".result .head .quiet") == ["5 tokens"]
    assert texts(page, ".result .note") == []
    assert texts(page, "#model") == ["Model: keyword"]
    assert page.save_screenshot(str(tmp_path / "page.png"))


def test_control_and_enter_classify_each_line(page: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    element(page, "#each-line").click()
    assert texts(page, "label[for=messages]") == ["Messages, one a line"]
    element(page, "#messages").send_keys("spam", Keys.ENTER, Keys.ENTER, "good morning, " * 5)
    element(page, "#messages").send_keys(Keys.CONTROL, Keys.ENTER)
    wait(page, lambda: texts(page, "#status") == ["2 messages: 1 ham, 1 spam"])
    assert texts(page, ".result .label") == ["spam", "ham"]
    assert texts(page, ".result .percent") == ["2.0 %", "98.0 %", "> 99.9 %", "< 0.1 %"]
    assert texts(page, ".result .note") == ["Longer than the model reads: its end was not looked at."]


def test_the_bars_are_as_long_as_the_probabilities_say(page: Any) -> None:
    classify(page, "a prize")
    widths = [
        fill.rect["width"] / track.rect["width"]
        for fill, track in zip(
            page.find_elements("css selector", ".fill"), page.find_elements("css selector", ".track"), strict=True
        )
    ]
    assert widths == pytest.approx([0.75, 0.25], abs=0.01)


PAYLOADS = [
    "<script>document.title = 'run'</script>",
    "<img src=x onerror=\"document.title = 'run'\">",
    "<svg onload=\"document.title = 'run'\"></svg>",
    "<iframe srcdoc=\"<script>parent.document.title = 'run'</script>\"></iframe>",
    '"><script>document.title = "run"</script>',
    "</p></li></ol><script>document.title = 'run'</script>",
    "<a href=\"javascript:document.title = 'run'\">click</a>",
    "<style>body { display: none }</style>",
    "<form action=https://evil.example><button>Classify</button></form>",
    "{{constructor.constructor('document.title = 1')()}} ${document.title = 1}",
    "<base href=https://evil.example/><link rel=stylesheet href=//evil.example/a.css>",
    "&lt;b&gt; &amp; <b>bold</b>",
]


def test_markup_in_a_message_is_shown_and_never_run(page: Any) -> None:
    elements = "return document.querySelectorAll('main *:not(#results *), head *').length"
    n_before = page.execute_script(elements)
    element(page, "#each-line").click()
    classify(page, "\n".join(PAYLOADS))
    assert texts(page, ".excerpt") == PAYLOADS
    assert page.execute_script(elements) == n_before
    assert page.execute_script("return document.querySelectorAll('.excerpt *').length") == 0
    assert page.title == "Classify a message"
    assert page.get_log("browser") == []


def test_an_error_of_the_server_is_told_and_the_old_result_goes(page: Any) -> None:
    classify(page, "hello")
    element(page, "#each-line").click()
    classify(page, "hello\n" * 65)
    assert texts(page, "#error") == ["65 messages in 'texts', where 1 to 64 may be."]
    assert texts(page, ".result") == []
    assert texts(page, "#status") == [""]
    classify(page, "hello\n" * 64)
    assert texts(page, "#error") == [""]
    assert len(texts(page, ".result")) == 64


def test_too_long_a_text_is_told(page: Any) -> None:
    classify(page, "a" * 100_001)
    assert texts(page, "#error") == ["Message 1 has 100,001 characters; a message has at most 100,000."]
    classify(page, "a" * 3_000_000)
    assert texts(page, "#error")[0]


def test_no_message_is_told_without_asking_the_server(page: Any) -> None:
    element(page, "#classify").click()
    assert texts(page, "#error") == ["There is no message yet; paste one into the field."]
    assert page.switch_to.active_element == element(page, "#messages")


def test_a_second_click_while_it_works_does_nothing(page: Any) -> None:
    paste(page, "hello")
    during = page.execute_script(
        "const button = arguments[0]; button.click();"
        "const state = [button.textContent, button.getAttribute('aria-disabled')]; button.click(); return state",
        element(page, "#classify"),
    )
    assert during == ["Classifying…", "true"]
    wait(page, lambda: texts(page, "#status") == ["1 message: 1 ham"])
    assert texts(page, "#classify") == ["Classify"]
    asked = page.execute_script("return performance.getEntriesByType('resource').filter(e => /classify/.test(e.name))")
    assert len(asked) == 1


def test_everything_comes_from_the_server_and_nothing_is_complained_about(page: Any, server: str) -> None:
    classify(page, "hello")
    addresses = page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert addresses
    assert all(address.startswith(server) for address in addresses)
    assert page.get_log("browser") == []


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_wider_than_the_screen(page: Any, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        classify(page, "spam" + "x" * 500)
        assert page.execute_script("return document.documentElement.scrollWidth") == width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_server_with_a_token_is_used_once_the_token_is_entered(chromium: Any) -> None:
    with running("--token", "correct-horse-battery") as url:
        chromium.get(url)
        wait(chromium, lambda: texts(chromium, "#error") == ["This server needs its token; enter it above."])
        element(chromium, "#token").send_keys("correct-horse-battery")
        classify(chromium, "spam")
        assert texts(chromium, ".result .label") == ["spam"]
        assert texts(chromium, "#error") == [""]


def test_a_stopped_server_is_told(chromium: Any) -> None:
    with running() as url:
        chromium.get(url)
        wait(chromium, lambda: texts(chromium, "#model") == ["Model: keyword"])
    classify(chromium, "hello")
    assert texts(chromium, "#error")[0].startswith("The server did not answer")
