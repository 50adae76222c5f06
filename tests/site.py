"""The built site as a reader meets it; `make docs` runs this after the build: pytest tests/site.py.

One browser opens every page in a frame, wide and narrow, light and dark, and sends home what it saw.
"""

import functools
import html.parser
import http.server
import json
import queue
import subprocess
import threading
import urllib.parse
from pathlib import Path

from tests.browser import BROWSER, needs_browser

SITE = Path(__file__).parents[1] / "docs/_build/html"
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html") if "_static" not in page.parts)
WIDE, NARROW = 1400, 400

SEARCHED = {
    "resume": "how-to/checkpoints",
    "freeze": "how-to/freezing",
    "export": "how-to/export",
    "NaN": "how-to/finding-a-nan",
    "learning rate": "how-to/schedules",
    "augmentation": "how-to/augmentation",
    "several devices": "devices",
    "LSTM": "reference/operations/lstm",
    "kernel size": "reference/operations/conv",
}


class Links(html.parser.HTMLParser):
    """What a page links to, and the places in it that can be linked to."""

    def __init__(self, page: Path):
        super().__init__()
        self.links, self.pictures, self.places = [], [], set()
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.places |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag == "img":
            self.pictures.append(attributes)


@functools.cache
def read(page: Path) -> Links:
    return Links(page)


def test_the_site_is_built():
    assert len(PAGES) > 200, "make docs"


def test_no_link_inside_is_dead():
    dead = []
    for name in PAGES:
        page = SITE / name
        for link in [*read(page).links, *(picture["src"] for picture in read(page).pictures)]:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (page.parent / urllib.parse.unquote(url.path)).resolve() if url.path else page
            if not target.is_file():
                dead.append(f"{name}: {link}")
            elif url.fragment and target.suffix == ".html":
                place = urllib.parse.unquote(url.fragment)
                if place not in read(target).places:
                    dead.append(f"{name}: {link}")
    assert not dead


def test_every_picture_says_what_it_shows():
    silent = [
        f"{name}: {picture['src']}"
        for name in PAGES
        for picture in read(SITE / name).pictures
        if not picture.get("alt") or picture["alt"] == picture["src"]
    ]
    assert not silent


# ---- in a browser -----------------------------------------------------------------------------------------


def seen(tmp_path, urls, look, site=SITE):
    """What a look at each of these pages gives, in one browser that a server on this machine answers."""
    script = (Path(__file__).parent / "site.js").read_text("utf-8")
    start = f"const WIDTHS = {[WIDE, NARROW]};\n{script}\nall({json.dumps(urls)}, {look});"
    probe = f'<!doctype html><meta charset="utf-8"><title>probe</title><body><script>{start}</script>'
    answers = queue.Queue()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            if self.path != "/probe":
                super().do_GET()
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(probe.encode())

        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # a frame that was closed takes no more of its page
        threading.Thread(target=server.serve_forever, daemon=True).start()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
            f"--disable-background-networking --window-size=1500,1000 --user-data-dir={tmp_path / 'profile'} "
            "--remote-debugging-port=0"  # stays open until it is told to go
        )
        url = f"http://127.0.0.1:{server.server_port}/probe"
        with subprocess.Popen([str(BROWSER), *flags.split(), url], stderr=subprocess.DEVNULL) as browser:
            try:
                return answers.get(timeout=900)
            finally:
                browser.terminate()
                server.shutdown()


@needs_browser
def test_a_page_that_is_wrong_is_seen(tmp_path):
    text = r'<p style="width: 600px; color: #bbb">faint \(x\)</p> <span class="math">y</span>'
    page = f'<!doctype html><body style="background: #fff">{text}'
    (tmp_path / "wrong.html").write_text(page)
    looks = seen(tmp_path, ["wrong.html"], "page", site=tmp_path)
    assert [sentence.split(":")[0] for sentence in looks["wrong.html"]] == [
        "1 formulas not drawn", "raw TeX", "400 px", "light", "dark", "light and dark",
    ]  # fmt: skip


@needs_browser
def test_every_page_in_a_browser(tmp_path):
    looks = seen(tmp_path, PAGES, "page")
    assert looks.keys() == set(PAGES)
    assert not {page: wrong for page, wrong in looks.items() if wrong}


@needs_browser
def test_the_search_finds_what_people_look_for(tmp_path):
    urls = {f"search.html?{urllib.parse.urlencode({'q': words})}": words for words in SEARCHED}
    found = seen(tmp_path, list(urls), "search")
    first = {words: [link.partition(".html")[0] for link in found[url][:5]] for url, words in urls.items()}
    assert not {words: first[words] for words, page in SEARCHED.items() if page not in first[words]}
