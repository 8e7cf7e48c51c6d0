"""Questions to a page in a browser, as the fixture ``opened`` opens it."""

import html
import json
import re

SPY = """<script>window.problems = [];
addEventListener("error", (event) => problems.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => problems.push(event.violatedDirective));</script>"""


def ask(opened, text, expression):
    """The value of a JavaScript expression in the page, once its own script has run, and what went wrong there."""
    answer = f"<script>document.title = JSON.stringify([problems, {expression}]);</script>"
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    document = opened(free.replace("<head>", f"<head>{SPY}").replace("</body>", f"{answer}</body>"))
    title = re.search(r"<title>(.*?)</title>", document, re.DOTALL)[1]
    return json.loads(html.unescape(title))


OUTSIDE = """[...doc.querySelectorAll('main *')].filter((item) => {
    if (item.getBoundingClientRect().right <= doc.documentElement.clientWidth + 1) return false;
    for (let box = item.parentElement; box; box = box.parentElement)
      if (['auto', 'hidden'].includes(doc.defaultView.getComputedStyle(box).overflowX)) return false;
    return true; }).map((item) => item.textContent)"""


def in_a_narrow_window(opened, text):
    """Width of a window as wide as a phone, of what is in it, and the words of what lies outside and cannot be seen."""
    page = text.replace("&", "&amp;").replace('"', "&quot;")
    frame = f'<head></head><body><iframe style="width:360px;height:800px" srcdoc="{page}"></iframe></body>'
    wide = f"""(() => {{ const doc = document.querySelector('iframe').contentDocument;
    return [doc.documentElement.clientWidth, doc.documentElement.scrollWidth, {OUTSIDE}]; }})()"""
    late = f"<script>onload = () => {{ document.title = JSON.stringify({wide}); }}</script>"
    document = opened(f"<title>-</title>{frame.replace('</body>', late + '</body>')}")
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", document, re.DOTALL)[1]))
