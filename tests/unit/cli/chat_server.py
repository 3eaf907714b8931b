"""A server that speaks the wire format of `parley chat`, and goes wrong as a test wants it to."""

from __future__ import annotations

import itertools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEARD = "rep"  # of a reply that hangs


class Server(ThreadingHTTPServer):
    """Keeps conversations in memory and answers each turn with what was said in it.

    Attributes:
        conversations: the stored items of each.
        requests: the bodies that were posted.
        script: "whole"; or what goes wrong: "refuse", "fail" and "cut" behind the text, "mute"
            before it, "hang" in the middle of it until `released` is set.
        stream: sent instead of the events of a reply, if it is set.
        refusal: status, headers and body that answer everything, if it is set.
        authorization: that header of the latest request.
        models: names of those that it serves.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.conversations: dict[str, list[dict[str, Any]]] = {}
        self.requests: list[dict[str, Any]] = []
        self.ids = itertools.count()
        self.script = "whole"
        self.released = threading.Event()
        self.stream: bytes | None = None
        self.refusal: tuple[int, dict[str, str], bytes] | None = None
        self.authorization: str | None = None
        self.models = ["m"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def parse_request(self) -> bool:
        well = super().parse_request()
        if well:
            self.server.authorization = self.headers["authorization"]
        return well

    def do_GET(self) -> None:
        if self.server.refusal:
            self.refuse(*self.server.refusal)
            return
        path, _, query = self.path.partition("?")
        if path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": name} for name in self.server.models]})
            return
        conversation = path.split("/")[3]
        if conversation not in self.server.conversations:
            error = {"message": "No conversation x.", "code": "conversation_not_found"}
            self.answer({"error": error}, 404)
            return
        items = self.server.conversations[conversation]
        after = dict(pair.split("=") for pair in query.split("&")).get("after")
        begin = next((n + 1 for n, item in enumerate(items) if item["id"] == after), 0)
        page = items[begin : begin + 2]  # short pages, so that paging is exercised
        more = begin + 2 < len(items)
        last = page[-1]["id"] if page else ""
        self.answer({"object": "list", "data": page, "last_id": last, "has_more": more})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append(body)
        if self.server.refusal:
            self.refuse(*self.server.refusal)
            return
        if self.path == "/v1/conversations":
            name = f"conv_{next(self.server.ids)}"
            self.server.conversations[name] = [self.item(**item) for item in body["items"]]
            self.answer({"id": name})
            return
        if body["conversation"] not in self.server.conversations:
            error = {"message": "No conversation x.", "code": "conversation_not_found"}
            self.answer({"error": error}, 404)
            return
        turn = [self.item(**item) for item in body["input"]]
        if self.server.script == "refuse":
            self.answer({"error": {"message": "Too busy; come back.", "code": "overloaded"}}, 503)
            return
        text = f"reply to [{body['input'][-1]['content']}]"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if self.server.stream is not None:
            self.wfile.write(self.server.stream)
            return
        self.event(type="response.created")
        if self.server.script == "mute":
            return
        try:
            for position, character in enumerate(text):
                if self.server.script == "hang" and position == len(HEARD):
                    self.server.released.wait(30)
                    return
                self.event(type="response.output_text.delta", delta=character)
        except ConnectionError:
            return  # the reader has interrupted the reply
        if self.server.script == "cut":
            return
        if self.server.script == "fail":
            self.event(type="error", message="The generator died.", code="generator_lost")
            return
        usage = {
            "input_tokens": 5,
            "output_tokens": 3,
            "input_tokens_details": {"cached_tokens": 2},
        }
        conversation = self.server.conversations[body["conversation"]]
        conversation += [*turn, self.item("assistant", text)]
        self.event(type="response.completed", response={"status": "completed", "usage": usage})

    def item(self, role: str, content: str, type: str = "message") -> dict[str, Any]:  # noqa: A002
        part = {"type": "output_text", "text": content}
        return {"id": f"msg_{next(self.server.ids)}", "type": type, "role": role, "content": [part]}

    def event(self, **event: Any) -> None:
        self.wfile.write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())

    def refuse(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def answer(self, body: dict[str, Any], status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
