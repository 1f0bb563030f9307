"""The chat page in headless Chromium, against a server that answers as the API does."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("websockets")

from serve.http.browser import CHROMIUM, Page, chromium
from serve.http.page_stub import ANSWER, StubServer, serving

from seqloom.serve.http.page import HEADERS, page_files

FILES = {path: content.decode() for path, (_, content) in page_files().items()}


def test_the_page_is_whole_and_asks_nobody_else() -> None:
    for path, text in FILES.items():
        for target in re.findall(r'(?:src|href)="([^"]*)"|from "\./([^"]*)"', text):
            assert (f"/{target[0]}" if target[0] else f"/page/{target[1]}") in FILES, (path, target)
        without_names = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"""["'(]https?://|innerHTML|insertAdjacentHTML|document\.write|eval\(""", without_names)
        assert path.endswith(".css") or not re.search(r'\sstyle="', text)
    assert not re.search(r"<script(?! [^>]*src=)|\son\w+=|javascript:", FILES["/"])
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


@pytest.fixture
def server() -> Iterator[StubServer]:
    with serving() as server:
        yield server


@pytest.fixture
def page(browser: Page, server: StubServer) -> Page:
    browser.open(server.address)
    browser.complaints.clear()
    return browser


def ask(page: Page, text: str, *, wait: bool = True) -> None:
    page.run("document.getElementById('say').focus()")
    page.type(text)
    page.press("Enter")
    if wait:
        rest(page)


def rest(page: Page) -> None:
    page.wait("!document.body.classList.contains('answering')")


def in_browser(test: object) -> object:
    """Starting a browser takes seconds."""
    return pytest.mark.full(pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")(test))  # type: ignore[arg-type]


@in_browser
def test_an_answer_streams_with_its_thoughts_folded_away(page: Page, server: StubServer) -> None:
    server.pause = 0.006
    ask(page, "think", wait=False)
    page.wait("document.querySelector('.answer').innerText.includes('fused step')")
    early = page.text(".answer")
    assert "not here" not in early
    assert page.run("document.getElementById('log').ariaBusy") == "true"
    assert "tokens/s" in page.text("#live")
    rest(page)
    assert page.text(".answer").startswith(early.split("What it costs")[0].strip()[:40])
    assert page.run("document.querySelector('details').open") is False
    assert re.fullmatch(r"Thought for [\d.]+ s, 38 tokens", page.text("summary"))
    assert "compare bytes" not in page.run("document.body.innerText")
    page.click("summary")
    assert "compare bytes" in page.text(".thoughts")
    for said in ("154 tokens", "75 % guessed right", "50 % cached"):
        assert said in page.text("#live")
    assert page.text("#model") == "hybrid-150m"
    assert server.bodies[0]["messages"] == [{"role": "user", "content": "think"}]
    assert "thinking_tokens" not in server.bodies[0]
    # What the model wrote is text: no element of its making, no address but those of the web.
    assert page.run("document.querySelectorAll('#log img, #log script').length") == 0
    assert page.run("[...document.querySelectorAll('#log a')].map((a) => a.href)") == ["https://example.org/docs"]
    assert page.text(".answer pre").startswith("def step(rows: list[Row])")
    assert page.complaints == []


@in_browser
def test_escape_stops_and_the_answer_can_be_had_again(page: Page, server: StubServer) -> None:
    ask(page, "slow", wait=False)
    page.wait("document.querySelector('.answer').innerText.includes('word3')")
    page.press("Escape")
    rest(page)
    until = time.monotonic() + 5
    while not server.stopped and time.monotonic() < until:
        time.sleep(0.01)
    assert server.stopped == 1
    assert "Stopped." in page.text(".assistant")
    page.click(".again")
    page.wait("document.querySelector('.answer')?.innerText.includes('word3')")
    page.click("#send")  # which is the button to stop now
    rest(page)
    assert len(server.bodies) == 2
    assert server.bodies[0]["messages"] == server.bodies[1]["messages"]
    ask(page, "next")
    kept = server.bodies[2]["messages"]
    assert [message["role"] for message in kept] == ["user", "assistant", "user"]
    assert kept[1]["content"].startswith("word0 word1 ")


@in_browser
def test_a_message_can_be_edited_and_lines_broken(page: Page, server: StubServer) -> None:
    page.run("document.getElementById('say').focus()")
    page.type("first")
    page.press("Enter", shift=True)
    ask(page, "line")
    ask(page, "second")
    page.press("ArrowUp")
    assert page.run("document.activeElement.value") == "second"
    page.press("Escape")
    assert page.run("document.activeElement.id") == "say"
    page.run("document.querySelector('.user .quiet').click(); document.activeElement.value = ''")
    page.type("changed")
    page.press("Enter")
    rest(page)
    assert server.bodies[0]["messages"][0]["content"] == "first\nline"
    assert server.bodies[2]["messages"] == [{"role": "user", "content": "changed"}]
    assert page.run("document.querySelectorAll('article').length") == 2
    page.click("#anew")
    assert page.run("document.querySelectorAll('article').length") == 0
    assert not page.run("document.getElementById('empty').hidden")


@in_browser
def test_dark_as_the_system_has_it_or_as_chosen(page: Page, server: StubServer) -> None:
    def paper() -> int:
        found = page.run("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", found)[:3])

    assert paper() > 600
    page.click("#theme")
    assert paper() < 150
    page.open(server.address)
    assert paper() < 150  # remembered
    page.click("#theme")
    page.run("localStorage.clear()")
    page.open(server.address, dark=True)
    assert paper() < 150


@in_browser
def test_tool_calls_can_be_read_and_answered(page: Page, server: StubServer) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    page.click("#open-settings")
    page.run("document.getElementById('tools').focus()")
    page.type(json.dumps(tools))
    ask(page, "tool")
    assert page.text(".call figcaption") == "calls get_weather"
    assert json.loads(page.text(".call pre")) == {"city": "Łódź", "days": 3}
    page.click(".actions .strong")  # nothing typed yet: the field is shown instead
    assert page.run("document.activeElement.placeholder") == "What get_weather answers"
    page.type("sun")
    page.click(".actions .strong")
    rest(page)
    asked, _, result = server.bodies[1]["messages"]
    assert server.bodies[1]["tools"] == tools
    assert (asked["content"], result) == ("tool", {"role": "tool", "tool_call_id": "call_1", "content": "sun"})
    assert server.bodies[1]["messages"][1]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert page.text("article:last-child .answer") == "It says sun."


@in_browser
@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("busy", "The server is busy. Try again in 3 s."),
        ("broken", "The server says: the engine has ended and is being started again"),
        ("cut", "The connection ended in the middle of the answer."),
    ],
)
def test_what_went_wrong_and_what_to_do(page: Page, server: StubServer, said: str, told: str) -> None:
    ask(page, said)
    assert page.text(".note") == told
    assert page.text(".again") == "Try again"
    page.click(".again")
    rest(page)
    assert len(server.bodies) == 2


@in_browser
def test_a_server_that_is_gone(browser: Page) -> None:
    with serving() as server:
        browser.open(server.address)
    server.server_close()
    ask(browser, "hello")
    assert browser.text(".note") == "The server cannot be reached. Is it still running?"


@in_browser
def test_the_key_is_asked_for_and_kept_for_the_tab(browser: Page, server: StubServer) -> None:
    server.key = "k" * 20
    browser.send("Page.navigate", url=server.address)
    browser.wait("document.getElementById('key-dialog')?.open")
    browser.type("wrong")
    browser.press("Enter")
    browser.wait("document.getElementById('key-dialog').open && !document.getElementById('key-wrong').hidden")
    browser.type(server.key)
    browser.press("Enter")
    browser.wait("document.getElementById('model').textContent === 'hybrid-150m'")
    server.key = "other" * 4
    ask(browser, "hello", wait=False)
    browser.wait("document.getElementById('key-dialog').open")
    browser.type(server.key)
    browser.press("Enter")
    rest(browser)
    assert "fused step" in browser.text(".answer")
    assert browser.run("localStorage.length") == 0


@in_browser
def test_budget_and_settings_reach_the_server(page: Page, server: StubServer) -> None:
    for steps, words, sent in ((0, "off", 0), (1, "64 tokens", 64), (9, "unlimited", None)):
        page.run(f"budget.value = {steps}; budget.dispatchEvent(new Event('input'))")
        assert page.text("#budget-shown") == words
        ask(page, "think")
        assert server.bodies[-1].get("thinking_tokens") == sent
    page.run("system.value = 'be brief'; temperature.value = 0; document.getElementById('max-tokens').value = 5")
    ask(page, "hello")
    body = server.bodies[-1]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0, 0.95, 5)
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    page.run("temperature.value = 9")
    ask(page, "refused")
    assert server.bodies[-1] is body
    assert not page.run("settings.hidden")


@in_browser
def test_everything_fits_a_narrow_screen_and_the_keyboard_reaches_it(browser: Page, server: StubServer) -> None:
    browser.open(server.address, 360, 720)
    ask(browser, "think")
    browser.click("#open-settings")
    beyond = """[...document.querySelectorAll('body *')].filter((one) => !one.closest('pre, .scroll, .unseen')
        && one.getBoundingClientRect().right > 361).map((one) => one.outerHTML.slice(0, 80))"""
    assert browser.run(beyond) == []
    reached = []
    browser.run("document.getElementById('anew').focus()")
    for _ in range(10):
        browser.press("Tab")
        reached.append(browser.run("document.activeElement.id || document.activeElement.innerText.slice(0, 8)"))
    order = ["export", "open-settings", "theme", "system", "temperature", "top-p", "max-tokens", "tools"]
    assert reached[: len(order)] == order
    assert reached[-1] != "BODY"


@in_browser
def test_a_base_model_goes_on_with_the_text(browser: Page, server: StubServer) -> None:
    server.chat = False
    browser.open(server.address)
    assert browser.run("document.getElementById('thinking').hidden")
    ask(browser, "one")
    assert browser.text(".answer") == "# and so on"
    ask(browser, "two")
    assert [body["prompt"] for body in server.bodies] == ["one", "one# and so on\ntwo"]
    assert "messages" not in server.bodies[0]


@in_browser
def test_export_is_the_conversation(page: Page, tmp_path: Path) -> None:
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    ask(page, "think")
    page.click("#export")
    until = time.monotonic() + 10
    while not (found := list(tmp_path.glob("*.json"))) and time.monotonic() < until:
        time.sleep(0.02)
    written = json.loads(found[0].read_text())
    assert [message["role"] for message in written["messages"]] == ["user", "assistant"]
    assert written["messages"][1]["content"].strip() == ANSWER.strip()
    assert written["settings"]["model"] == "hybrid-150m"


MARKDOWN = {
    "a *b* **c** `d*e*` ~~f~~": "<p>a <em>b</em> <strong>c</strong> <code>d*e*</code> <s>f</s></p>",
    "2 * 3 * 4 and snake_case_name": "<p>2 * 3 * 4 and snake_case_name</p>",
    "# A\ntext\n---": "<h3>A</h3><p>text</p><hr>",
    "- a\n  - b\n- c": "<ul><li><p>a</p><ul><li><p>b</p></li></ul></li><li><p>c</p></li></ul>",
    "3. a\n\n4. b\n\nc": '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol><p>c</p>',
    "> a\n> b\n\nc": "<blockquote><p>a\nb</p></blockquote><p>c</p>",
    "|a|b|\n|-|-:|\n|1|<b>|": '<div class="scroll" tabindex="0"><table><thead><tr><th>a</th><th class="right">b</th>'
    '</tr></thead><tbody><tr><td>1</td><td class="right">&lt;b&gt;</td></tr></tbody></table></div>',
    "<script>alert(1)</script>": "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>",
    "[x](JavaScript:alert(1)) [y](data:text/html,1)": "<p>[x](JavaScript:alert(1)) [y](data:text/html,1)</p>",
}


@in_browser
def test_markdown_is_the_same_however_it_arrives(page: Page) -> None:
    page.run("import('/page/markdown.js').then((module) => { window.show = module.show; })")
    for text, wanted in MARKDOWN.items():
        page.run(f"window.box = document.createElement('div'); show({json.dumps(text)}, box)")
        assert page.run("box.innerHTML") == wanted
    growing = """((text) => {
        const once = document.createElement('div'), often = document.createElement('div');
        show(text, once);
        for (let end = 0; end <= text.length; end += 1) show(text.slice(0, end), often);
        return once.innerHTML === often.innerHTML;
    })"""
    for text in (ANSWER, *MARKDOWN, "```\ncode without an end\n\n- a", "~~~~\n~~~\n~~~~\nafter"):
        assert page.run(f"{growing}({json.dumps(text)})"), text
    # Blocks that stay as they were keep their elements.
    assert page.run(
        "(() => { const div = document.createElement('div'); show('a\\n\\nb', div); const first = div.firstChild;"
        " show('a\\n\\nb c', div); return first === div.firstChild; })()"
    )
