"""A page in a real browser: what it shows once its scripts have run."""

import html.parser
import shutil
import subprocess

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the path"
)


def shown(tmp_path, page: str, script: str = "") -> "Reader":
    """The page after its scripts, and after one of the test's own, which its policy is relaxed for."""
    if script:
        page = page.replace("script-src 'sha256-", "script-src 'unsafe-inline' 'was-")
        page = page.replace("</body>", f"<script>{script}</script></body>")
    (tmp_path / "page.html").write_text(page, "utf-8")
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        f"--dump-dom --user-data-dir={tmp_path / 'profile'}"
    )
    command = [str(BROWSER), *flags.split(), (tmp_path / "page.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, encoding="utf-8")
    return Reader(done.stdout)


class Reader(html.parser.HTMLParser):
    """What a page shows: its text without scripts and styles, and its tags with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.text, self.tags, self._hidden = "", [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._hidden = False

    def handle_data(self, data):
        if not self._hidden:
            self.text += data
