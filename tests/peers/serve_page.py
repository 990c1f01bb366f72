"""Headless Chromium drives the page of `zamba serve` as people do.

    serve_page.py --zamba PATH/zamba [--out DIR] [--required]

Screenshots go to DIR, to be looked at. Without Chromium (Debian: chromium and chromium-driver) nothing is tested, and that
is said; with --required it is a failure.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time

import browser
import serving
from browser import Browser, Keys

CHECKS = serving.Checks("serve_page")
KEY = "a-key-of-this-test"

# What would be markup, script or style if it were taken for it.
HOSTILE = [
    "<script>window.hit = 1</script>", "<img src=x onerror='window.hit = 2'>", "<svg onload=window.hit=3>", "<b>bold</b>",
    "<iframe srcdoc='<script>parent.hit = 4</script>'></iframe>", "</div></article></main><h1>out</h1>", "<style>* { display: none }</style>",
    "<a href='javascript:window.hit = 5'>click</a>", "<base href='http://127.0.0.1:9/'>", "<meta http-equiv=refresh content='0;url=about:blank'>",
    "&lt;script&gt;window.hit = 6&lt;/script&gt;", "<!-- ", "]]>", "<template><script>hit</script></template>", "${window.hit = 7}",
    "{{constructor.constructor('window.hit = 8')()}}", "<math><mtext></p><img src=x onerror=window.hit=9>", "<plaintext>", "<textarea>",
    "<form action=/v1/models><button id=send>", "<object data=/></object>", "<link rel=stylesheet href=/x.css>", "\u202e right to left \u202c",
    "\x00\x01\x1b[31m", "<ſcript>", "<img/src=`x`/onerror=window.hit=10>", "\u2028\u2029", "<xmp><p title='</xmp><img src onerror=window.hit=11>'>",
]


def first_look(page):
    CHECKS("no complaint of the browser", not page.complaints())
    CHECKS.equal("the field has the focus", page.focused(), "prompt")
    CHECKS("the welcome is there", page.one("#welcome").is_displayed())
    page.shot("wide-light-empty")


def typing(page):
    page.one("#prompt").send_keys("first line")
    page.shift_enter()
    page.keys("second line")
    CHECKS.equal("Shift+Enter is a new line", page.one("#prompt").get_property("value"), "first line\nsecond line")
    CHECKS.equal("nothing is sent", page.texts("user"), [])
    page.keys(Keys.ENTER)
    CHECKS.equal("Enter sends", page.texts("user"), ["first line\nsecond line"])
    page.idle()


def streaming(page):
    page.set(max_tokens="200", temperature="1", seed="5")
    page.script("""window.seen = new Set();
        new MutationObserver(() => seen.add(document.querySelector('.msg:last-child .text')?.textContent.length))
            .observe(document.getElementById('log'), { subtree: true, childList: true });""")
    text = page.say("Tell me of rivers")
    CHECKS("the answer comes in pieces", page.script("return seen.size") > 5, page.script("return seen.size"))
    stats = page.one(".msg:last-child .stats").text
    CHECKS("speed, first token and reuse are shown", re.search(r"tokens · [\d.,]+ tok/s · first after [\d,]+ ms · [\d,]+ of [\d,]+ prompt tokens", stats), stats)
    CHECKS("the server's figures are there", "Cache" in page.one("#server").text and "tok/s" in page.one("#server").text, page.one("#server").text)
    page.shot("wide-light-answer")
    return text


def stopping(page):
    page.set(max_tokens="100000", seed="6")
    for how in ["key", "button"]:
        page.one("#prompt").send_keys("Never end" + Keys.ENTER)
        page.until(lambda: page.all(".msg.working") and page.texts()[-1], "the beginning of an answer")
        if how == "key":
            page.keys(Keys.ESCAPE)
        else:
            page.shot("wide-light-working")
            page.click("#stop")
        page.idle()
        text = page.texts()[-1]
        stats = page.one(".msg:last-child .stats").text
        CHECKS(f"stopped by {how}", "stopped" in stats, stats)
        time.sleep(0.3)
        CHECKS.equal(f"nothing comes after it ({how})", page.texts()[-1], text)
    running = "const done = arguments[0]; fetch('/metrics').then((r) => r.text()).then((t) => done(/^vllm:num_requests_running 0$/m.test(t)))"
    page.until(lambda: page.driver.execute_async_script(running), "a free slot", 5)


def again(page):
    page.set(max_tokens="40", temperature="1", seed="11")
    first = page.say("Say it again")
    page.hover(page.one(".msg:last-child"))
    page.click(".msg:last-child .again")
    page.until(lambda: page.all(".msg.working") or page.texts()[-1] == first, "the second answer")
    page.idle()
    CHECKS.equal("the same seed gives the same", page.texts()[-1], first)
    page.set(seed="", temperature="1.8")
    others = set()
    for _ in range(3):
        page.click(".msg:last-child .again")
        time.sleep(0.2)
        page.idle()
        others.add(page.texts()[-1])
    CHECKS("without a seed it gives another", len(others) > 1 or others != {first}, others)
    CHECKS.equal("there is one answer, not several", len(page.all(".msg")), 2 * len(page.texts("user")))


def settings(page):
    prompt_tokens = lambda: int(re.search(r"of ([\d,]+) prompt", page.one(".msg:last-child .stats").text)[1].replace(",", ""))
    page.click("#new")
    page.set(max_tokens="3", system="", seed="1")
    page.say("short")
    plain = prompt_tokens()
    tokens = int(re.match(r"(\d+) tokens", page.one(".msg:last-child .stats").text)[1])
    CHECKS("max tokens count", tokens <= 3, tokens)
    page.click("#new")
    page.set(system="You answer in verse and never in prose.")
    page.say("short")
    CHECKS("a system prompt is sent", prompt_tokens() > plain, (prompt_tokens(), plain))
    page.click("#open-settings")
    page.one("#s-top_p").send_keys("3")
    CHECKS("a wrong number is named", "Top p" in page.one("#settings-wrong").text, page.one("#settings-wrong").text)
    page.shot("wide-light-settings")
    page.keys(Keys.ESCAPE)
    page.set(system="", top_k="1")
    one = page.say("greedy") and page.texts()[-1]
    page.click("#new")
    page.say("greedy")
    kept = json.loads(page.script("return localStorage.getItem('zamba.settings')"))
    CHECKS.equal("a wrong number is not kept", kept["top_p"], "")
    CHECKS.equal("a right one is", kept["top_k"], "1")
    page.set(top_k="", max_tokens="40")
    return one


def probabilities(page):
    page.set(probs=True, tint=True, seed="3")
    page.say("How likely is all this?")
    tokens = page.all(".msg:last-child .tok")
    CHECKS("tokens can be looked at", len(tokens) > 3, len(tokens))
    page.hover(tokens[2])
    box = page.one("#probs")
    CHECKS("hovering shows probabilities", box.is_displayed() and box.text.count("%") >= 5, box.text)
    CHECKS("one of them is the token", len(page.all("#probs .chosen")) == 1)
    page.shot("wide-light-probabilities")
    page.hover(page.one("#title"))
    CHECKS("they go when the pointer goes", not page.one("#probs").is_displayed())
    page.script("document.querySelector('.msg:last-child .text').focus()")
    page.keys(Keys.ARROW_RIGHT)
    CHECKS("arrow keys show them", page.one("#probs").is_displayed())
    first = page.script("return document.getElementById('status').textContent")
    page.keys(Keys.ARROW_RIGHT)
    second = page.script("return document.getElementById('status').textContent")
    CHECKS("and say them", "%" in first and "%" in second, (first, second))
    page.keys(Keys.ESCAPE)
    CHECKS("Esc puts them away", not page.one("#probs").is_displayed())
    page.set(probs=False, tint=False)
    page.say("And without?")
    CHECKS.equal("none if none are asked for", len(page.all(".msg:last-child .tok")), 0)
    page.set(probs=True)


def history(page):
    page.click("#new")
    page.set(max_tokens="30")
    text = page.say("Remember this one")
    url, count = page.driver.current_url, len(page.all("#list li"))
    page.driver.refresh()
    page.until(lambda: page.texts(), "the history")
    CHECKS.equal("a reload keeps the conversation", (page.texts("user"), page.texts()), (["Remember this one"], [text]))
    CHECKS.equal("and the list", len(page.all("#list li")), count)
    CHECKS("and its probabilities", len(page.all(".tok")) > 0)
    CHECKS.equal("and its place", page.driver.current_url, url)
    page.open(1)
    CHECKS("another conversation can be opened", page.texts("user")[0] != "Remember this one")
    page.open(0)
    CHECKS.equal("and the first one again", page.texts(), [text])
    # One answer goes on while another conversation is looked at.
    page.set(max_tokens="300")
    page.one("#prompt").send_keys("Go on without me" + Keys.ENTER)
    page.until(lambda: page.all(".msg.working"), "an answer")
    page.open(2)
    page.open(0)
    page.idle()
    CHECKS("an answer goes on unseen", len(page.texts()[-1]) > 0 and "tokens" in page.one(".msg:last-child .stats").text)
    page.click("#list li:first-child .bin")
    CHECKS.equal("deleting takes it off the list", len(page.all("#list li")), count - 1)
    page.shot("wide-light-deleted")
    page.click("#toast button")
    CHECKS.equal("and can be undone", len(page.all("#list li")), count)
    page.script("document.querySelector('.msg.user .tools').style.opacity = 1")
    page.click(".msg.user [aria-label='Edit and send again']")
    page.one("#prompt").send_keys(Keys.CONTROL + "a" + Keys.NULL, "Written anew" + Keys.ENTER)
    page.idle()
    CHECKS.equal("an edited message replaces what follows", page.texts("user"), ["Written anew"])
    page.set(max_tokens="30")


def hostile(server, out):
    proxy = browser.Proxy(server, HOSTILE)
    with Browser(proxy.url, out) as page:
        text = page.say("<img src=x onerror='window.hit = 100'> Say something nasty")
        wanted = "".join(HOSTILE)
        # The DOM has no NUL.
        CHECKS.equal("a hostile answer is text", text.replace("\ufffd", "\x00"), wanted)
        page.hover(page.all(".tok")[1])
        page.shot("wide-light-hostile")
        inside = page.script("return [...document.querySelectorAll('.msg *')].map((e) => e.localName)")
        allowed = {"div", "span", "p", "footer", "button", "svg", "use"}
        CHECKS("no element of its own", set(inside) <= allowed, set(inside) - allowed)
        page.driver.refresh()
        page.until(lambda: page.texts(), "the history")
        CHECKS.equal("after a reload too", page.texts()[0].replace("\ufffd", "\x00"), wanted)
        CHECKS("nothing has run", page.script("return window.hit") is None, page.script("return window.hit"))
        CHECKS("the page is whole", page.one("#send").is_displayed() and len(page.all("script")) == 2)
        CHECKS("the browser had nothing to block", not page.complaints())
    proxy.close()


FROM_THE_TOP = "document.body.tabIndex = -1; document.body.focus(); document.body.removeAttribute('tabindex')"


def keyboard(server, out):
    with Browser(server.url, out) as page:
        page.script(FROM_THE_TOP)
        page.keys(Keys.TAB)
        CHECKS.equal("the first stop is the skip link", page.focused(), "skip")
        page.shot("keyboard-skip")
        page.keys(Keys.ENTER)
        CHECKS.equal("it leads to the field", page.focused(), "prompt")
        page.keys("By keys alone" + Keys.ENTER)
        page.idle()
        CHECKS.equal("an answer by keys alone", page.texts("user"), ["By keys alone"])
        page.script(FROM_THE_TOP)
        stops, blind = [], []
        for _ in range(40):
            page.keys(Keys.TAB)
            name = page.focused()
            if name in ("BODY", "HTML") or (name == "skip" and stops):
                break
            stops.append(name)
            ring = page.script("""const e = document.activeElement; const of = (x) => getComputedStyle(x);
                return of(e).outlineStyle !== 'none' || of(e.closest('.field') ?? e).outlineStyle !== 'none'""")
            if not ring:
                blind.append(name)
        CHECKS("focus is always visible", not blind, blind)
        for name in ["new", "open", "theme", "open-settings", "text", "prompt", "send"]:
            CHECKS(f"{name} is on the way", name in stops, stops)
        order = [stops.index(name) for name in ("new", "theme", "text", "prompt") if name in stops]
        CHECKS("in the order of the page", order == sorted(order), stops)
        page.script("document.getElementById('open-settings').focus()")
        page.keys(Keys.ENTER)
        page.until(lambda: page.all("dialog[open]"), "the settings")
        inside = set()
        for _ in range(40):
            page.keys(Keys.TAB)
            inside.add(page.script("return document.activeElement === document.body || Boolean(document.activeElement.closest('dialog'))"))
        CHECKS.equal("focus stays in the dialog", inside, {True})
        page.keys(Keys.ESCAPE)
        page.until(lambda: not page.all("dialog[open]"), "the end of the settings")
        CHECKS.equal("and comes back", page.focused(), "open-settings")
        page.keys("/")
        CHECKS.equal("/ goes to the field", page.focused(), "prompt")


def phone(server, out):
    for dark in [False, True]:
        with Browser(server.url, out, 390, 844, phone=True, dark=dark) as page:
            name = "dark" if dark else "light"
            page.shot(f"phone-{name}-empty")
            page.set(max_tokens="60", seed="2", tint=dark)
            page.say("A long word from a phone: Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichenverordnung")
            overflow = page.script("return document.documentElement.scrollWidth - innerWidth")
            CHECKS("nothing sticks out at the side", overflow <= 0, overflow)
            page.all(".tok")[3].click()
            CHECKS("a tap shows probabilities", page.one("#probs").is_displayed())
            box = page.script("const r = document.getElementById('probs').getBoundingClientRect(); return [r.left, r.right, innerWidth]")
            CHECKS("within the screen", 0 <= box[0] and box[1] <= box[2], box)
            page.shot(f"phone-{name}-answer")
            sizes = page.script("""return [...document.querySelectorAll('main button')].filter((b) => b.offsetParent)
                .map((b) => Math.min(b.offsetWidth, b.offsetHeight))""")
            CHECKS("buttons are large enough for fingers", min(sizes) >= 40, sizes)
            CHECKS("the list is out of the way", page.script("return document.getElementById('sidebar').inert"))
            page.click("#menu")
            page.until(lambda: page.one("#new").is_displayed(), "the list")
            time.sleep(0.3)
            page.shot(f"phone-{name}-list")
            page.keys(Keys.ESCAPE)
            CHECKS.equal("Esc closes the list", page.focused(), "menu")
            page.click("#open-settings")
            page.shot(f"phone-{name}-settings")
            CHECKS("no complaint of the browser", not page.complaints())


CONTRAST = """
const parse = (c) => c.match(/[\\d.]+/g).map(Number);
const light = (c) => { const [r, g, b] = parse(c).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const ground = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (parse(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
return arguments[0].map((s) => { const e = document.querySelector(s); if (!e) return [s, 0];
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return [s, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)]; });
"""


def themes(server, out):
    with Browser(server.url, out) as page:
        page.set(max_tokens="60", seed="2", tint=True)
        page.say("Light and dark")
        ground = lambda: page.script("return getComputedStyle(document.body).backgroundColor")
        read = ["#title", "#model", ".msg.user .text", ".msg.assistant .text", ".stats", "#server dt", "#server dd", "#new", "#list .open",
                ".tok[data-level='4']", ".tok[data-level='1']", ".tok[data-level='0']", "kbd", ".hello", "#s-system-note", ".danger"]
        seen = {}
        for scheme in ["light", "dark"]:
            page.scheme(scheme)
            seen[scheme] = ground()
            for selector, ratio in page.script(CONTRAST, read):
                if ratio:
                    CHECKS(f"{scheme}: {selector} can be read", ratio >= 4.5, round(ratio, 2))
            page.shot(f"wide-{scheme}-tinted")
        CHECKS("the system's scheme counts", seen["light"] != seen["dark"], seen)
        page.click("#theme")
        CHECKS.equal("light by choice", ground(), seen["light"])
        page.driver.refresh()
        CHECKS.equal("the choice is kept", ground(), seen["light"])
        page.click("#theme")
        page.scheme("light")
        CHECKS.equal("dark by choice", ground(), seen["dark"])
        page.click("#theme")
        CHECKS.equal("and as the system again", ground(), seen["light"])


def with_key(binary, folder, out):
    with serving.Server(binary, folder, "--api-key", KEY) as server, Browser(server.url, out) as page:
        page.until(lambda: page.all("#key[open]"), "the question for the key")
        page.shot("wide-light-key")
        page.keys(KEY + Keys.ENTER)
        page.until(lambda: page.one("#model").text == os.path.basename(folder), "the name of the model")
        page.set(max_tokens="5")
        page.say("With a key")
        CHECKS("an answer with a key", "tokens" in page.one(".msg:last-child .stats").text)
        kept = page.script("return Object.values(localStorage).join('')")
        CHECKS("the key is not kept for good", KEY not in kept)


def without_template(binary, scratch, out):
    folder = serving.model(binary, os.path.join(scratch, "plain"), template=None)
    with serving.Server(binary, folder) as server, Browser(server.url, out) as page:
        page.set(max_tokens="12", seed="1")
        text = page.say("The river")
        problems = [e.text for e in page.all(".problem") if e.is_displayed()]
        CHECKS("a model without template goes on with the text", text and not problems, (text, problems))
        CHECKS("its tokens can be looked at", len(page.all(".tok")) > 3)
        page.click("#new")
        CHECKS("and it is said", "chat template" in page.one("#welcome-note").text, page.one("#welcome-note").text)
        page.shot("wide-light-no-template")


def refused(server, out):
    with Browser(server.url, out) as page:
        page.set(max_tokens="3")
        page.script("document.getElementById('prompt').value = 'word '.repeat(20000)")
        page.one("#prompt").send_keys(Keys.ENTER)
        problem = page.until(lambda: [e.text for e in page.all(".problem") if e.is_displayed()], "the refusal")[0]
        CHECKS("a refusal is shown in the server's words", "context" in problem or "tokens" in problem, problem)
        page.shot("wide-light-refused")


def step(part, *arguments):
    begun, before = time.time(), len(CHECKS.failures)
    part(*arguments)
    print(f"  {part.__name__}: {len(CHECKS.failures) - before} wrong, {time.time() - begun:.1f} s")
    for failure in CHECKS.failures[before:]:
        print(f"    {failure[:400]}")


def main():
    sys.stdout.reconfigure(line_buffering=True)
    parser = argparse.ArgumentParser()
    parser.add_argument("--zamba", required=True)
    parser.add_argument("--out", default="target/peers/page")
    parser.add_argument("--required", action="store_true")
    args = parser.parse_args()
    if not (browser.CHROMIUM and browser.DRIVER):
        words = "no Chromium with its driver (Debian: chromium, chromium-driver)"
        if args.required:
            raise SystemExit(f"serve_page: {words}")
        print(f"  SKIPPED, the page was NOT tested: {words}")
        return
    with tempfile.TemporaryDirectory(prefix="zamba-page-") as scratch:
        # Large enough that people have the time to stop it.
        folder = serving.model(args.zamba, scratch, width=128, layers=4, ends=False)
        with serving.Server(args.zamba, folder, "--ctx", "16000") as server:
            with Browser(server.url, args.out) as page:
                for part in [first_look, typing, streaming, stopping, again, settings, probabilities, history]:
                    step(part, page)
                complaints = page.complaints()
                CHECKS("no complaint of the browser in all this", not complaints, complaints)
            for part in [hostile, keyboard, phone, themes, refused]:
                step(part, server, args.out)
        step(with_key, args.zamba, folder, args.out)
        step(without_template, args.zamba, scratch, args.out)
    CHECKS.end()


if __name__ == "__main__":
    main()
