"""Questions to a page in a browser, as the fixture ``opened`` opens it."""

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
    return json.loads(title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def narrow_overflow(opened, text):
    """Width of a window as wide as a phone, and of what is in it."""
    page = text.replace("&", "&amp;").replace('"', "&quot;")
    frame = f'<head></head><body><iframe style="width:360px;height:800px" srcdoc="{page}"></iframe></body>'
    wide = """(() => { const body = document.querySelector('iframe').contentDocument.documentElement;
    return [body.clientWidth, body.scrollWidth]; })()"""
    late = f"<script>onload = () => {{ document.title = JSON.stringify({wide}); }}</script>"
    document = opened(f"<title>-</title>{frame.replace('</body>', late + '</body>')}")
    return json.loads(re.search(r"<title>(.*?)</title>", document)[1])
