"""A headless Chromium that is driven as a person would, and a proxy that puts words into a model's mouth."""

import http.client
import http.server
import json
import os
import shutil
import threading
import time

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


class Browser:
    """One window on the page."""

    def __init__(self, url, out, width=1280, height=800, phone=False, dark=False):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for flag in ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                     "--disable-background-networking", f"--window-size={width},{height}"]:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        self.driver.set_script_timeout(20)
        self.out = out
        self.scheme("dark" if dark else "light")
        metrics = dict(width=width, height=height, deviceScaleFactor=2 if phone else 1, mobile=phone)
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        if phone:
            self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", dict(enabled=True))
        self.driver.get(url)
        self.until(lambda: self.script("return document.getElementById('model').textContent"), "the name of the model")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.driver.quit()

    def scheme(self, name):
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def script(self, code, *arguments):
        return self.driver.execute_script(code, *arguments)

    def until(self, condition, what, seconds=20):
        end = time.time() + seconds
        while time.time() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.03)
        self.shot("failed")
        raise SystemExit(f"serve_page: {what} does not come within {seconds} s")

    def one(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def click(self, selector):
        self.one(selector).click()

    def keys(self, *keys):
        """To whatever has the focus."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def open(self, number):
        """A conversation of the list. In one go: the list is made anew whenever an answer ends."""
        self.script("document.querySelectorAll('#list .open')[arguments[0]].click()", number)

    def hover(self, element):
        ActionChains(self.driver).move_to_element(element).perform()

    def shift_enter(self):
        ActionChains(self.driver).key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).perform()

    def focused(self):
        return self.script("const e = document.activeElement; return e.id || e.className || e.tagName")

    def texts(self, role="assistant"):
        return self.script("return [...document.querySelectorAll(`.msg.${arguments[0]} .text`)].map((e) => e.textContent)", role)

    def idle(self):
        self.until(lambda: not self.all(".msg.working"), "the end of an answer", 60)

    def say(self, words):
        """Writes a message, sends it and waits for the answer, which is returned."""
        self.one("#prompt").send_keys(words + Keys.ENTER)
        self.until(lambda: self.texts("user")[-1:] == [words], "the message")
        self.idle()
        return self.texts()[-1]

    def set(self, **fields):
        """Settings, as a person makes them."""
        self.click("#open-settings")
        for name, value in fields.items():
            field = self.one(f"#s-{name}")
            if isinstance(value, bool):
                if field.is_selected() != value:
                    field.click()
            else:
                field.send_keys(Keys.CONTROL + "a" + Keys.NULL, Keys.BACKSPACE, value)
        self.keys(Keys.ESCAPE)
        self.until(lambda: not self.all("dialog[open]"), "the end of the dialog")

    def shot(self, name):
        os.makedirs(self.out, exist_ok=True)
        self.driver.save_screenshot(os.path.join(self.out, f"{name}.png"))

    def complaints(self):
        """What the browser itself has to say: violations of the policy, errors of scripts."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]


class Proxy:
    """Passes everything on to a server, but answers chats with words of its own."""

    def __init__(self, server, pieces):
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                outer.forward(self)

            def do_POST(self):
                self.rfile.read(int(self.headers["content-length"]))
                outer.speak(self)

        self.server, self.pieces = server, pieces
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def forward(self, asked):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port)
        connection.request("GET", asked.path)
        reply = connection.getresponse()
        body = reply.read()
        asked.send_response(reply.status)
        for name, value in reply.getheaders():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                asked.send_header(name, value)
        asked.send_header("content-length", str(len(body)))
        asked.end_headers()
        asked.wfile.write(body)

    def speak(self, asked):
        asked.send_response(200)
        asked.send_header("content-type", "text/event-stream")
        asked.send_header("connection", "close")
        asked.end_headers()
        for piece in self.pieces:
            token = {"token": piece, "logprob": -0.5, "top_logprobs": [{"token": piece, "logprob": -0.5},
                                                                     {"token": piece[::-1], "logprob": -1.5}]}
            choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None, "logprobs": {"content": [token]}}
            asked.wfile.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        asked.wfile.write(b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n')
        asked.close_connection = True

    def close(self):
        self.http.shutdown()
