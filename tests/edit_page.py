"""Edits Mezzanine's About page the way its administrator does: log in, open, save.

usage: edit_page.py PORT PASSWORD TEXT
"""

import html.parser
import http.cookiejar
import sys
import urllib.parse
import urllib.request

PORT, PASSWORD, TEXT = sys.argv[1:]
SITE = f"http://127.0.0.1:{PORT}"


class Token(html.parser.HTMLParser):
    """The value of the form's hidden token."""

    value = None

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "input" and attributes.get("name") == "csrfmiddlewaretoken":
            self.value = self.value or attributes["value"]


browser = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),
    urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()),
)


def fill(path, fields):
    """Opens a form, sends it filled, and answers where that leads."""
    with browser.open(SITE + path, timeout=30) as form:
        address = form.url
        token = Token()
        token.feed(form.read().decode())
    if token.value is None:
        sys.exit(f"{address} has no form")
    data = urllib.parse.urlencode({"csrfmiddlewaretoken": token.value, **fields}).encode()
    request = urllib.request.Request(address, data, {"Referer": address})
    with browser.open(request, timeout=30) as answer:
        return urllib.parse.urlsplit(answer.url).path


def expect(reached, wanted, what):
    if reached != wanted:
        sys.exit(f"{what} led to {reached}, not to {wanted}")


login = {
    "username": "admin",
    "password": PASSWORD,
    "mezzanine_login_interface": "admin",
    "next": "/admin/",
}
expect(fill("/admin/login/?next=/admin/", login), "/admin/", "the login")
page = {
    "title": "About",
    "status": "2",
    "content": TEXT,
    "gen_description": "on",
    "in_sitemap": "on",
    "_save": "Save",
}
expect(fill("/admin/pages/page/2/change/", page), "/admin/pages/page/", "saving the page")
