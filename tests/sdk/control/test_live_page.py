"""The live page over HTTP, and in a real headless Chromium where there is one (`pytest --also browser`)."""

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tests.sdk.control.fake_process import Bench

from roboalign.sdk.control.live_page import LivePage, PageConfig
from roboalign.sdk.control.live_state import LiveState
from roboalign.sdk.control.policy_process import write_words
from roboalign.sdk.control.records import CHUNK, WORDS

TOKEN = "0123456789abcdef"


@pytest.fixture
def bench(spec):
    bench = Bench(spec)
    yield bench
    bench.close()


@pytest.fixture
def state(bench):
    """The state after a run of three seconds."""
    state = LiveState(bench.channels, "push the cup", "numbers")
    tick, chunk = np.zeros(1, bench.channels.ticks.record), np.zeros(1, CHUNK)
    bench.run(30)
    for number in range(1, bench.channels.ticks.newest + 1):
        assert bench.channels.ticks.copy(tick, number)
        state.take_tick(tick)
    assert bench.channels.chunks.copy(chunk)
    state.take_chunk(chunk)
    bench.channels.board["is_over"][0] = 0
    bench.channels.board["control_beat_s"][0] = time.monotonic() + 1000.0
    return state


@pytest.fixture
def page(state):
    page = LivePage(state, PageConfig(port=0))
    yield page
    page.close()


def get(url: str, *, method: str = "GET", **headers: str):
    request = urllib.request.Request(url, method=method, headers={k.replace("_", "-"): v for k, v in headers.items()})
    return urllib.request.urlopen(request, timeout=5)


def refused(url: str, **options) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        get(url, **options)
    error.value.close()
    return error.value.code


def events(url: str) -> dict:
    with get(url) as stream:
        return json.loads(stream.readline().removeprefix(b"data: "))


def test_the_page_and_its_events_say_what_happens(page):
    with get(page.url) as answer:
        html = answer.read().decode()
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert 'id="stop"' in html
    assert "src=" not in html.replace('image.src = "', ""), "nothing is loaded from elsewhere"
    now = events(page.url + "events")
    assert (now["reason"], now["instruction"], now["policy"]) == ("moving", "push the cup", "numbers")
    assert now["thought"].startswith("thought ")
    assert now["reasons"] == {"warming": 2}
    assert now["rate_hz"] == pytest.approx(10.0)
    assert len(now["measured"]) == len(now["joints"]) == 3


def test_the_camera_is_a_picture_of_the_ring(page):
    with get(page.url + "camera/front") as answer:
        assert Image.open(BytesIO(answer.read())).size == (16, 16)
    assert refused(page.url + "camera/../../etc/passwd") == 404
    assert refused(page.url + "camera/wrist") == 404


def test_stop_is_taken_with_its_header_alone(page, bench):
    assert refused(page.url + "stop", method="POST") == 403
    assert refused(page.url + "else", method="POST", X_Roboalign="stop") == 403
    assert bench.channels.board["stop"][0] == 0
    get(page.url + "stop", method="POST", X_Roboalign="stop").close()
    assert bench.channels.board["stop"][0] == 1


def test_a_page_from_elsewhere_cannot_speak_for_this_one(page, bench):
    """A name that somebody lets point to this machine: the browser sends that name as host."""
    assert refused(page.url, Host="evil.example:8360") == 403
    assert refused(page.url + "stop", method="POST", X_Roboalign="stop", Host="evil.example") == 403
    assert bench.channels.board["stop"][0] == 0
    get(page.url, Host="localhost:8360").close()


def test_with_a_token_nothing_is_answered_without_it(state):
    page = LivePage(state, PageConfig(host="127.0.0.1", port=0, token=TOKEN))
    bare = page.url.partition("?")[0]
    for path in ("", "events", "camera/front", "?token=wrong"):
        assert refused(bare + path) == 401
    assert refused(bare + "stop", method="POST", X_Roboalign="stop") == 401
    get(page.url).close()
    get(f"{bare}camera/front?token={TOKEN}&n=1").close()
    page.close()


def test_so_many_readers_and_no_more(page):
    open_ = [get(page.url + "events") for _ in range(8)]
    assert refused(page.url + "events") == 503
    for stream in open_:
        stream.close()


class Chromium:
    """A headless Chromium, spoken to by its own protocol."""

    def __init__(self, folder) -> None:
        program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        assert program is not None, "no Chromium: apt install chromium-headless-shell"
        options = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
        self.process = subprocess.Popen(
            [program, *options, f"--user-data-dir={folder}", "about:blank"],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.opened = ExitStack()
        self.opened.callback(self.process.stderr.close)
        self.opened.callback(self.process.wait, 20)
        self.opened.callback(os.killpg, self.process.pid, signal.SIGKILL)  # the program is a script that starts it
        self.number = 0

    def __enter__(self):
        from websockets.sync.client import connect

        with self.opened:
            port = next(line for line in self.process.stderr if "DevTools listening on" in line).split(":")[2]
            with urllib.request.urlopen(f"http://127.0.0.1:{port.split('/')[0]}/json/list", timeout=10) as answer:
                found = next(page for page in json.load(answer) if page["type"] == "page")
            self.socket = self.opened.enter_context(connect(found["webSocketDebuggerUrl"]))
            self.opened = self.opened.pop_all()
        return self

    def __exit__(self, *error) -> None:
        self.opened.close()

    def tell(self, method: str, **params):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv(timeout=20))).get("id") != self.number:
            pass
        return answer["result"]

    def value(self, expression: str):
        return self.tell("Runtime.evaluate", expression=expression)["result"].get("value")

    def wait_for(self, expression: str, wanted) -> None:
        deadline_s = time.monotonic() + 20
        while (found := self.value(expression)) != wanted:
            assert time.monotonic() < deadline_s, f"{expression} is {found!r}, expected {wanted!r}"
            time.sleep(0.1)


@pytest.mark.browser
def test_a_real_browser_shows_the_run_and_its_stop_button_stops_it(page, state, bench, tmp_path):
    words = np.zeros(1, WORDS)
    text = "document.getElementById('{}').textContent".format
    with Chromium(tmp_path / "profile") as browser:
        browser.tell("Page.navigate", url=page.url)
        browser.wait_for("document.getElementById('why')?.textContent", "moving")
        assert browser.value(text("instruction")) == "push the cup"
        assert browser.value(text("thought")).startswith("thought ")
        assert browser.value(text("writing")) == ""
        for written in ("the cup", "the cup is left"):
            write_words(bench.channels, written)
            assert bench.channels.words.copy(words)
            state.take_words(words)
            browser.wait_for(text("writing"), f"{written} ...")
        assert browser.value(text("thought")).startswith("thought ")
        assert "warming" in browser.value(text("reasons"))
        assert browser.value("document.querySelectorAll('#joints tr').length") == 3
        browser.wait_for("document.querySelector('#cameras img')?.naturalWidth", 16)
        assert bench.channels.board["stop"][0] == 0
        browser.value("document.getElementById('stop').click()")
        browser.wait_for(text("stop"), "Stopped")
        assert bench.channels.board["stop"][0] == 1
